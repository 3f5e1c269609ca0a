//! Images to a registry and back: Debian's own registry on loopback, and registries that are broken or hostile.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod registry;

#[path = "support/programs.rs"]
mod programs;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use registry::{Fake, OCI_INDEX, OCI_MANIFEST, Registry, Reply, SmallImage, basic, digest, names_in};
use serde_json::{Value, json};
use thaw_client::types::Secret;
use thaw_image::Store;
use thaw_image::build::{BuildOptions, build};
use thaw_image::progress::Quiet;
use thaw_image::registry::{Login, Options, PullReport, RegistryError, pull, push, reference};

/// The image `test`, built offline.
fn test_layout(folder: &Path) -> (PathBuf, String) {
    let options = BuildOptions::new(folder.join("built"), folder.join("cache"));
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/test");
    let report = build(&manifest, &options, &Quiet).unwrap();
    (options.layout_dir, report.digest)
}

async fn pulled(text: &str, folder: &Path) -> Result<PullReport, RegistryError> {
    pull(&reference(text).unwrap(), &Options::default(), folder, "pulled", &Quiet).await
}

fn login(password: &str) -> Options {
    let login = Login { user: "jane".to_owned(), password: Secret::new(password.to_owned()) };
    Options { login: Some(login), ..Options::default() }
}

#[tokio::test]
async fn an_image_comes_back_as_it_went() {
    let (registry, folder) = (Registry::open(), tempfile::tempdir().unwrap());
    let (layout, digest) = test_layout(folder.path());
    let name = format!("{}/team/test", registry.address);
    let to = reference(&format!("{name}:v1")).unwrap();
    let report = push(&layout, &to, &Options::default(), &Quiet).await.unwrap();
    assert_eq!(report.digest, digest);
    assert!(report.sent_bytes > report.compressed_bytes, "layers and configuration");
    let again = push(&layout, &to, &Options::default(), &Quiet).await.unwrap();
    assert_eq!(again.sent_bytes, 0, "the registry has everything");

    for (number, text) in [format!("{name}:v1"), format!("{name}@{digest}")].iter().enumerate() {
        let to = folder.path().join(format!("pulled-{number}"));
        let report = pulled(text, &to).await.unwrap();
        assert_eq!((report.digest.as_str(), report.unchanged), (digest.as_str(), false), "{text}");
        assert_eq!(report.fetched_bytes, report.compressed_bytes);
        assert_eq!(names_in(&to), ["blobs", "index.json", "oci-layout"]);
        assert_eq!(names_in(&to.join("blobs/sha256")), names_in(&layout.join("blobs/sha256")));
        let again = pulled(text, &to).await.unwrap();
        assert_eq!((again.fetched_bytes, again.unchanged), (0, true), "{text}");
        let image = Store::open(&folder.path().join(format!("store-{number}"))).unwrap().ensure(&to).unwrap();
        assert_eq!((image.name.as_str(), image.digest.as_str()), ("pulled", digest.as_str()));
        assert!(image.config.env.iter().any(|(name, value)| name == "HOME" && value == "/home/runtime"));
    }
}

#[tokio::test]
async fn of_several_platforms_ours_comes_and_replaces_what_was_there() {
    let (registry, folder) = (Registry::open(), tempfile::tempdir().unwrap());
    let (layout, _) = test_layout(folder.path());
    let name = format!("{}/multi", registry.address);
    push(&layout, &reference(&format!("{name}:zstd")).unwrap(), &Options::default(), &Quiet).await.unwrap();
    let to = folder.path().join("pulled");
    pulled(&format!("{name}:zstd"), &to).await.unwrap();

    // A second image, gzip, sent from a layout made by hand, and an index over both.
    let small = SmallImage::new(100_000);
    let other = folder.path().join("other");
    std::fs::create_dir_all(other.join("blobs/sha256")).unwrap();
    for blob in [&small.layer, &small.config, &small.manifest] {
        std::fs::write(other.join("blobs/sha256").join(&digest(blob)[7..]), blob).unwrap();
    }
    std::fs::write(other.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let descriptor =
        json!({"mediaType": OCI_MANIFEST, "digest": digest(&small.manifest), "size": small.manifest.len()});
    let index = json!({"schemaVersion": 2, "manifests": [descriptor]});
    std::fs::write(other.join("index.json"), index.to_string()).unwrap();
    let to_small = reference(&format!("{name}:gzip")).unwrap();
    assert_eq!(push(&other, &to_small, &Options::default(), &Quiet).await.unwrap().digest, digest(&small.manifest));
    let platform = |architecture: &str, variant: Option<&str>, digest: &str| {
        let mut entry = descriptor.clone();
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        if let Some(variant) = variant {
            entry["platform"]["variant"] = variant.into();
        }
        entry["digest"] = digest.into();
        entry
    };
    let zstd: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let mut zstd = zstd["manifests"][0].clone();
    zstd["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let ours = digest(&small.manifest);
    let entries = [zstd, platform("amd64", Some("v3"), &ours), platform("amd64", None, &ours)];
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string();
    let index_digest = registry.put_manifest("multi", "all", OCI_INDEX, index.as_bytes()).await;

    let report = pulled(&format!("{name}:all"), &to).await.unwrap();
    assert_eq!((report.digest, report.index), (ours.clone(), Some(index_digest.clone())));
    let report = pulled(&format!("{name}@{index_digest}"), &to).await.unwrap();
    assert!(report.unchanged, "by the digest of the index it is the same image");
    assert_eq!(names_in(&to.join("blobs/sha256")).len(), 3, "the image before is gone");
    let image = Store::open(&folder.path().join("store")).unwrap().ensure(&to).unwrap();
    assert_eq!(image.config.env, [("FROM".to_owned(), "registry".to_owned())]);
    assert_eq!(std::fs::metadata(image.rootfs.join("data")).unwrap().len(), 100_000);
}

#[tokio::test]
async fn what_a_registry_changed_is_refused_and_nothing_is_left() {
    let (registry, folder) = (Registry::open(), tempfile::tempdir().unwrap());
    let (layout, _) = test_layout(folder.path());
    let name = format!("{}/test:v1", registry.address);
    push(&layout, &reference(&name).unwrap(), &Options::default(), &Quiet).await.unwrap();
    let good = folder.path().join("good");
    pulled(&name, &good).await.unwrap();
    let index = std::fs::read(good.join("index.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&index).unwrap();
    let manifest = good.join("blobs/sha256").join(&manifest["manifests"][0]["digest"].as_str().unwrap()[7..]);
    let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    let blobs = [&manifest["layers"][0], &manifest["layers"][1], &manifest["config"]];
    for blob in blobs.map(|blob| blob["digest"].as_str().unwrap()) {
        let path = registry.blob_path(blob);
        let original = std::fs::read(&path).unwrap();
        let (mut flipped, shorter, longer) =
            (original.clone(), &original[..original.len() - 1], [&original[..], b"x"].concat());
        flipped[original.len() / 2] ^= 1;
        for content in [&flipped, shorter, &longer] {
            std::fs::write(&path, content).unwrap();
            let to = folder.path().join("new");
            let error = pulled(&name, &to).await.unwrap_err();
            let refused = matches!(error, RegistryError::Digest { .. } | RegistryError::Size { .. });
            assert!(refused && error.to_string().contains(blob), "{error}");
            assert!(!to.exists(), "{:?}", names_in(&to));
        }
        // Where there was an image before, it stays.
        std::fs::remove_file(good.join("blobs/sha256").join(&blob[7..])).unwrap();
        pulled(&name, &good).await.unwrap_err();
        assert_eq!(names_in(&good), ["blobs", "index.json", "oci-layout"]);
        assert_eq!(std::fs::read(good.join("index.json")).unwrap(), index);
        std::fs::write(&path, &original).unwrap();
        pulled(&name, &good).await.unwrap();
    }
}

#[tokio::test]
async fn damaged_layouts_are_not_sent() {
    let (registry, folder) = (Registry::open(), tempfile::tempdir().unwrap());
    let (layout, _) = test_layout(folder.path());
    let to = reference(&format!("{}/test:v1", registry.address)).unwrap();
    let blobs = layout.join("blobs/sha256");
    let largest = names_in(&blobs).into_iter().max_by_key(|name| blobs.join(name).metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(blobs.join(&largest)).unwrap();
    bytes[100] ^= 1;
    // Not in place: the blob is a hard link to the one in the cache.
    std::fs::remove_file(blobs.join(&largest)).unwrap();
    std::fs::write(blobs.join(&largest), bytes).unwrap();
    let error = push(&layout, &to, &Options::default(), &Quiet).await.unwrap_err();
    assert!(error.to_string().contains(&largest), "{error}");
    assert!(matches!(pulled(&to.to_string(), &folder.path().join("x")).await, Err(RegistryError::NotFound { .. })));
    let by_digest = reference(&format!("{}/test@{}", registry.address, digest(b"x"))).unwrap();
    assert!(matches!(
        push(&layout, &by_digest, &Options::default(), &Quiet).await,
        Err(RegistryError::Reference { .. })
    ));
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let (registry, folder) = (Registry::open(), tempfile::tempdir().unwrap());
    let to = folder.path().join("to");
    for name in ["none:v1", &format!("none@{}", digest(b"none"))] {
        let error = pulled(&format!("{}/{name}", registry.address), &to).await.unwrap_err();
        assert!(matches!(&error, RegistryError::NotFound { .. }), "{error}");
        assert!(error.to_string().contains("none"), "{error}");
    }
    let address = registry.address.clone();
    drop(registry);
    let error = pulled(&format!("{address}/none:v1"), &to).await.unwrap_err();
    assert!(matches!(&error, RegistryError::Network { .. }) && error.to_string().contains("refused"), "{error}");
    assert!(!to.exists());
    for text in ["", "a b", "x:", "x@sha256:abc", "../x"] {
        assert!(matches!(reference(text), Err(RegistryError::Reference { .. })), "{text}");
    }
}

#[tokio::test]
async fn folders_that_are_no_layouts_are_left_alone() {
    let small = SmallImage::new(1000);
    let fake = Fake::start(move |request| small.answer(request));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("precious"), "mine").unwrap();
    let error = pulled(&format!("{}/x:1", fake.address), folder.path()).await.unwrap_err();
    assert!(matches!(error, RegistryError::NotALayout { .. }));
    assert_eq!(names_in(folder.path()), ["precious"]);
}

#[tokio::test]
async fn a_password_opens_the_registry() {
    let (registry, folder) = (Registry::with_password(), tempfile::tempdir().unwrap());
    let (layout, digest) = test_layout(folder.path());
    let to = reference(&format!("{}/test:v1", registry.address)).unwrap();
    let nobody = push(&layout, &to, &Options::default(), &Quiet).await.unwrap_err();
    assert!(nobody.to_string().contains("wants a login: give --username"), "{nobody}");
    let wrong = push(&layout, &to, &login("wrong horse"), &Quiet).await.unwrap_err();
    assert!(matches!(&wrong, RegistryError::Refused { .. }), "{wrong}");
    assert!(!wrong.to_string().contains("horse"), "{wrong}");
    assert_eq!(push(&layout, &to, &login(registry::PASSWORD), &Quiet).await.unwrap().digest, digest);
    let out = folder.path().join("pulled");
    let wrong = pull(&to, &login("wrong horse"), &out, "pulled", &Quiet).await.unwrap_err();
    assert!(matches!(wrong, RegistryError::Refused { .. }) && !out.exists());
    assert_eq!(pull(&to, &login(registry::PASSWORD), &out, "pulled", &Quiet).await.unwrap().digest, digest);
}

/// The real program, with no configuration of docker but the one given.
fn thawctl(args: &[&str], docker_config: &Path, stdin: &str) -> Output {
    let mut child = Command::new(programs::thawctl())
        .args(args)
        .env("DOCKER_CONFIG", docker_config)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), stdin.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn thawctl_pushes_and_pulls() {
    let (registry, folder) = (Registry::with_password(), tempfile::tempdir().unwrap());
    let (layout, digest) = test_layout(folder.path());
    let (layout, out) = (layout.to_str().unwrap(), folder.path().join("out"));
    let name = format!("{}/team/test:v1", registry.address);
    let (nobody, jane) = (folder.path().join("nobody"), folder.path().join("jane"));
    std::fs::create_dir_all(&jane).unwrap();
    registry::docker_config(&jane, &registry.address);

    let refused = thawctl(&["image", "push", layout, &name], &nobody, "");
    assert_eq!(refused.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("wants a login"), "{refused:?}");
    let pushed = thawctl(&["image", "push", layout, &name], &jane, "");
    let line = String::from_utf8(pushed.stdout).unwrap();
    assert!(line.starts_with(&format!("{name} {digest}: 2 layers")), "{line}");

    let stdin = format!("{}\n", registry::PASSWORD);
    let with_stdin =
        ["image", "pull", &name, "--output", out.to_str().unwrap(), "--username", "jane", "--password-stdin"];
    let pulled = thawctl(&[&["--format", "json"], &with_stdin[..]].concat(), &nobody, &stdin);
    assert!(pulled.status.success(), "{pulled:?}");
    let report: Value = serde_json::from_slice(&pulled.stdout).unwrap();
    assert_eq!((&report[0]["name"], &report[0]["digest"]), (&json!("test"), &json!(digest)));
    let told = String::from_utf8_lossy(&pulled.stderr).into_owned();
    assert!(told.contains("fetching 2 layers") && !told.contains("horse"), "{told}");
    assert_eq!(Store::open(&folder.path().join("store")).unwrap().ensure(&out).unwrap().name, "test");

    let no_password = thawctl(&["image", "pull", &name, "--username", "jane"], &nobody, "");
    assert!(String::from_utf8_lossy(&no_password.stderr).contains("THAWCTL_REGISTRY_PASSWORD"), "{no_password:?}");
}

#[test]
fn thawctl_believes_the_authority_that_it_is_given_and_no_other() {
    let (registry, other, folder) = (Registry::with_tls(), Registry::with_tls(), tempfile::tempdir().unwrap());
    let (layout, digest) = test_layout(folder.path());
    let (layout, name) = (layout.to_str().unwrap(), format!("{}/test:v1", registry.address));
    let authority = |registry: &Registry| registry.authority().to_str().unwrap().to_owned();
    let (good, wrong) = (authority(&registry), authority(&other));
    let output = thawctl(&["image", "push", layout, &name, "--ca-file", &good], folder.path(), "");
    assert!(output.status.success(), "{output:?}");
    let to = folder.path().join("pulled");
    let pull = |more: &[&str]| {
        let arguments = [&["image", "pull", &name, "--output", to.to_str().unwrap()][..], more].concat();
        thawctl(&arguments, folder.path(), "")
    };
    // Without it, the registry on loopback is talked to in http, which it does not speak; with that of another it is
    // some registry that nobody vouches for.
    for more in [&[][..], &["--ca-file", &wrong][..]] {
        let output = pull(more);
        assert_eq!(output.status.code(), Some(125), "{output:?}");
        assert!(!to.exists());
    }
    let told = String::from_utf8(pull(&["--ca-file", &wrong]).stderr).unwrap();
    assert!(told.contains("certificate") && told.contains(&registry.address), "{told}");
    let index = Path::new(layout).join("index.json");
    let told = String::from_utf8(pull(&["--ca-file", index.to_str().unwrap()]).stderr).unwrap();
    assert!(told.contains("has no certificate in PEM form"), "{told}");
    let output = pull(&["--ca-file", &good]);
    assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains(&digest), "{output:?}");
}

#[tokio::test]
async fn tokens_are_fetched_where_the_registry_says_and_credentials_stay_at_home() {
    let small = SmallImage::new(50_000);
    let (layer, image) = (small.layer.clone(), small.manifest.clone());
    let storage = Fake::start(move |_| Some(Reply::new(200, layer.clone())));
    let tokens = Fake::start(|_| Some(Reply::new(200, r#"{"access_token": "t0ken", "expires_in": 300}"#)));
    let (realm, elsewhere) = (format!("http://{}/token", tokens.address), format!("http://{}/layer", storage.address));
    let fake = Fake::start(move |request| {
        if request.header("authorization") != Some("Bearer t0ken") {
            let wants = format!("Bearer realm=\"{realm}\",service=\"fake\"");
            return Some(Reply::new(401, "{}").header("www-authenticate", &wants));
        }
        if request.path.ends_with(&digest(&small.layer)) {
            return Some(Reply::new(307, "").header("location", &elsewhere));
        }
        small.answer(request)
    });
    let folder = tempfile::tempdir().unwrap();
    let name = reference(&format!("{}/team/x:1", fake.address)).unwrap();
    let report = pull(&name, &login("correct horse"), &folder.path().join("to"), "x", &Quiet).await.unwrap();
    assert_eq!(report.digest, digest(&image));

    let asked = tokens.asked();
    assert_eq!(asked.len(), 1, "one token does for all");
    assert_eq!(asked[0].path, "/token?service=fake&scope=repository%3Ateam%2Fx%3Apull");
    assert_eq!(asked[0].header("authorization"), Some(basic("jane", "correct horse").as_str()));
    for request in fake.asked() {
        assert!(!request.header("authorization").is_some_and(|value| value.starts_with("Basic")), "{request:?}");
    }
    let asked = storage.asked();
    assert_eq!((asked.len(), asked[0].header("authorization")), (1, None), "another host gets no token");
}

#[tokio::test]
async fn a_registry_that_sends_us_elsewhere_for_the_login_gets_none() {
    let other = Fake::start(|_| Some(Reply::new(401, "{}").header("www-authenticate", "Basic realm=\"x\"")));
    let location = format!("http://{}/v2/", other.address);
    let fake = Fake::start(move |_| Some(Reply::new(307, "").header("location", &location)));
    let name = reference(&format!("{}/x:1", fake.address)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = pull(&name, &login("correct horse"), &folder.path().join("to"), "x", &Quiet).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 307, .. }), "{error}");
    assert!(other.asked().is_empty());
}

#[tokio::test]
async fn documents_of_two_meanings_and_foreign_layers_are_refused() {
    let small = SmallImage::new(1000);
    let plain = small.manifest_value();
    let index = |entry: Value| json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]});
    let entry = json!({"mediaType": OCI_MANIFEST, "digest": digest(&small.manifest), "size": small.manifest.len()});
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut manifest = plain.clone();
        change(&mut manifest);
        manifest
    };
    let mut odd = index(entry.clone());
    odd["manifests"][0]["mediaType"] = "application/x".into();
    let mut other_machine = index(entry.clone());
    other_machine["manifests"][0]["platform"] = json!({"os": "linux", "architecture": "riscv64"});
    let evil = Fake::start(|_| Some(Reply::new(200, "evil")));
    let url = format!("http://{}/layer", evil.address);
    let cases: Vec<(Value, &str, &str)> = vec![
        (changed(&|m| m["manifests"] = json!([entry])), OCI_MANIFEST, "an index and a manifest at once"),
        (plain.clone(), OCI_INDEX, "looks like a manifest, but is called a"),
        (index(entry.clone()), OCI_MANIFEST, "looks like an index, but is called a"),
        (changed(&|m| m["mediaType"] = OCI_INDEX.into()), OCI_MANIFEST, "looks like a manifest, but is called a"),
        (
            plain.clone(),
            "application/vnd.docker.distribution.manifest.v2+json",
            "but the registry calls it a application/vnd.docker",
        ),
        (json!({"schemaVersion": 2}), OCI_MANIFEST, "neither an index nor a manifest"),
        (json!({"schemaVersion": 1, "fsLayers": []}), OCI_MANIFEST, "old schema"),
        (odd, OCI_INDEX, "not an image manifest"),
        (other_machine, OCI_INDEX, "only for linux/riscv64"),
        (changed(&|m| m["layers"][0]["urls"] = json!([url])), OCI_MANIFEST, "fetched from elsewhere"),
        (
            changed(&|m| {
                let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
                m["layers"][0]["mediaType"] = foreign.into();
            }),
            OCI_MANIFEST,
            "unsupported type application/vnd.docker.image.rootfs.foreign",
        ),
        (changed(&|m| m["config"]["mediaType"] = "application/x".into()), OCI_MANIFEST, "is no image"),
        (changed(&|m| m["config"]["size"] = (5_u64 << 20).into()), OCI_MANIFEST, "a configuration of 5242880 bytes"),
        (changed(&|m| m["layers"][0]["size"] = (u64::MAX / 2).into()), OCI_MANIFEST, "says that it has more than"),
        (changed(&|m| m["layers"][0]["size"] = (-1).into()), OCI_MANIFEST, "manifest 1: "),
        (changed(&|m| m["layers"][0]["digest"] = "sha256:../../../etc/passwd".into()), OCI_MANIFEST, "manifest 1: "),
        (changed(&|m| m["layers"] = json!(vec![m["layers"][0].clone(); 128])), OCI_MANIFEST, "has 128 layers"),
    ];
    for (document, content_type, expected) in cases {
        let body = document.to_string();
        let fake = Fake::start(move |request| {
            let is_manifest = request.path.ends_with("/manifests/1");
            is_manifest
                .then(|| Reply::new(200, body.clone()).header("content-type", content_type))
                .or_else(|| (request.path == "/v2/").then(|| Reply::new(200, "{}")))
        });
        let folder = tempfile::tempdir().unwrap();
        let error = pulled(&format!("{}/x:1", fake.address), &folder.path().join("to")).await.unwrap_err();
        assert!(matches!(error, RegistryError::Invalid { .. }), "{expected}: {error:?}");
        assert!(error.to_string().contains(expected), "{expected}: {error}");
        assert!(names_in(folder.path()).is_empty(), "{expected}");
        assert!(fake.asked_for("/blobs/").is_empty(), "refused before anything is fetched: {expected}");
    }
    assert!(evil.asked().is_empty(), "the foreign layer was asked for");
}

#[tokio::test]
async fn a_registry_that_lies_about_digests_or_never_ends_is_refused() {
    let small = SmallImage::new(1000);
    let (manifest, wanted) = (small.manifest.clone(), digest(b"something else"));
    let header = wanted.clone();
    let lying = Fake::start(move |request| {
        let reply = small.answer(request)?;
        Some(if request.path.contains("manifests") { reply.header("docker-content-digest", &header) } else { reply })
    });
    let folder = tempfile::tempdir().unwrap();
    for name in ["x:1", &format!("x@{wanted}")] {
        let error = pulled(&format!("{}/{name}", lying.address), &folder.path().join("to")).await.unwrap_err();
        let RegistryError::Digest { found, .. } = &error else { panic!("{error}") };
        assert_eq!(found, &digest(&manifest));
    }
    let endless = Fake::start(|request| {
        Some(if request.path == "/v2/" { Reply::new(200, "{}") } else { Reply::new(200, vec![b' '; 65_536]).endless() })
    });
    let error = pulled(&format!("{}/x:1", endless.address), &folder.path().join("to")).await.unwrap_err();
    assert!(error.to_string().contains("has more than 4194304 bytes"), "{error}");
    assert!(names_in(folder.path()).is_empty());
}

#[tokio::test]
async fn a_download_goes_on_where_it_broke_off() {
    let small = SmallImage::new(200_000);
    let (layer, tries) = (small.layer.clone(), AtomicUsize::new(0));
    let length = layer.len();
    let fake = Fake::start(move |request| {
        let reply = small.answer(request)?;
        if !request.path.ends_with(&digest(&small.layer)) {
            return Some(reply);
        }
        let from = request.header("range").map_or(0, |range| {
            range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse::<usize>().unwrap()
        });
        let rest = small.layer[from..].to_vec();
        Some(match tries.fetch_add(1, Ordering::Relaxed) {
            0 => reply.cut_after(50_000),
            1 => Reply::new(206, rest).cut_after(60_000),
            _ => Reply::new(206, rest),
        })
    });
    let folder = tempfile::tempdir().unwrap();
    let report = pulled(&format!("{}/x:1", fake.address), &folder.path().join("to")).await.unwrap();
    let asked = fake.asked_for(&digest(&layer));
    let ranges: Vec<Option<&str>> = asked.iter().map(|request| request.header("range")).collect();
    assert_eq!(ranges, [None, Some("bytes=50000-"), Some("bytes=110000-")]);
    assert_eq!(report.fetched_bytes, length as u64, "no byte came twice");
}

#[tokio::test]
async fn a_download_that_gets_no_further_is_given_up_after_five_tries() {
    let small = SmallImage::new(200_000);
    let (layer, tries) = (digest(&small.layer), AtomicUsize::new(0));
    let fake = Fake::start(move |request| {
        let reply = small.answer(request)?;
        if !request.path.ends_with(&digest(&small.layer)) {
            return Some(reply);
        }
        // The first brings something, which is why counting begins with it.
        Some(match tries.fetch_add(1, Ordering::Relaxed) {
            0 => reply.cut_after(50_000),
            _ => Reply::new(503, "busy"),
        })
    });
    let folder = tempfile::tempdir().unwrap();
    let error = pulled(&format!("{}/x:1", fake.address), &folder.path().join("to")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 503, .. }), "{error}");
    assert_eq!(fake.asked_for(&layer).len(), 5);
}

#[tokio::test]
async fn the_next_pull_goes_on_where_the_last_one_gave_up() {
    let small = SmallImage::new(200_000);
    let layer = small.layer.clone();
    let broken = Fake::start(move |request| {
        let reply = small.answer(request)?;
        match (request.path.ends_with(&digest(&small.layer)), request.header("range")) {
            (true, None) => Some(reply.cut_after(80_000)),
            (true, Some(_)) => Some(Reply::new(500, "broken")),
            _ => Some(reply),
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let to = folder.path().join("to");
    let error = pulled(&format!("{}/x:1", broken.address), &to).await.unwrap_err();
    assert!(matches!(error, RegistryError::Status { status: 500, .. }), "{error}");
    assert_eq!(names_in(&to), [".pull"], "not a layout that anything would take for one");

    let small = SmallImage::new(200_000);
    let working = Fake::start(move |request| {
        let reply = small.answer(request)?;
        Some(if request.header("range").is_some() { Reply::new(206, small.layer[80_000..].to_vec()) } else { reply })
    });
    let report = pulled(&format!("{}/x:1", working.address), &to).await.unwrap();
    assert_eq!(report.fetched_bytes, layer.len() as u64 - 80_000);
    assert_eq!(names_in(&to), ["blobs", "index.json", "oci-layout"]);
}

#[tokio::test]
async fn a_rest_that_does_not_fit_is_fetched_anew() {
    // A registry may send the wrong part, or all of it whatever is asked for.
    for (sends_all, expected) in [(false, 3), (true, 2)] {
        anew(sends_all, expected).await;
    }
}

async fn anew(sends_all: bool, expected: usize) {
    let small = SmallImage::new(200_000);
    let (layer, first) = (small.layer.clone(), AtomicUsize::new(0));
    let fake = Fake::start(move |request| {
        let reply = small.answer(request)?;
        if !request.path.ends_with(&digest(&small.layer)) {
            return Some(reply);
        }
        Some(match (first.fetch_add(1, Ordering::Relaxed), request.header("range")) {
            (0, _) => reply.cut_after(80_000),
            (_, Some(_)) if !sends_all => Reply::new(206, small.layer[..small.layer.len() - 80_000].to_vec()),
            _ => reply,
        })
    });
    let folder = tempfile::tempdir().unwrap();
    pulled(&format!("{}/x:1", fake.address), &folder.path().join("to")).await.unwrap();
    assert_eq!(fake.asked_for(&digest(&layer)).len(), expected, "sends all: {sends_all}");
}

#[tokio::test]
async fn pulls_into_one_folder_wait_for_each_other() {
    let small = SmallImage::new(200_000);
    let layer = small.layer.clone();
    let fake = Fake::start(move |request| {
        if request.path.ends_with(&digest(&small.layer)) {
            std::thread::sleep(std::time::Duration::from_millis(300));
        }
        small.answer(request)
    });
    let folder = tempfile::tempdir().unwrap();
    let (name, to) = (format!("{}/x:1", fake.address), folder.path().join("to"));
    let (one, two) = tokio::join!(pulled(&name, &to), pulled(&name, &to));
    assert_eq!(one.unwrap().fetched_bytes + two.unwrap().fetched_bytes, layer.len() as u64);
    assert_eq!(fake.asked_for(&digest(&layer)).len(), 1);
}

/// A registry that lets everybody see `/v2/` and asks for the rest: one token is enough for documents, one for all.
fn late(small: SmallImage, realm: &str, documents: &'static str, blobs: &'static str) -> Fake {
    let wants = format!("Bearer realm=\"http://{realm}/token\",service=\"fake\",scope=\"repository:team/x:pull\"");
    let layer = digest(&small.layer);
    Fake::start(move |request| {
        if request.path == "/v2/" {
            return Some(Reply::new(200, "{}"));
        }
        let given = request.header("authorization").unwrap_or_default();
        let enough = given == blobs || (given == documents && !request.path.ends_with(&layer));
        if enough { small.answer(request) } else { Some(Reply::new(401, "{}").header("www-authenticate", &wants)) }
    })
}

#[tokio::test]
async fn a_registry_that_asks_late_is_answered_once() {
    for (documents, blobs, tokens_asked) in
        [("Bearer t1", "Bearer t1", 1), ("Bearer t1", "Bearer t2", 2), ("Bearer t1", "never", 2), ("never", "never", 1)]
    {
        for options in [login("correct horse"), Options::default()] {
            let count = std::sync::atomic::AtomicUsize::new(0);
            let tokens = Fake::start(move |_| {
                let number = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed) + 1;
                Some(Reply::new(200, format!(r#"{{"token": "t{number}", "expires_in": 300}}"#)))
            });
            let fake = late(SmallImage::new(50_000), &tokens.address, documents, blobs);
            let folder = tempfile::tempdir().unwrap();
            let name = reference(&format!("{}/team/x:1", fake.address)).unwrap();
            let result = pull(&name, &options, &folder.path().join("to"), "x", &Quiet).await;
            if blobs == "never" {
                assert!(matches!(result, Err(RegistryError::Refused { .. })), "{result:?}");
            } else {
                assert_eq!(result.unwrap().layers, 1);
            }
            let asked = tokens.asked();
            assert_eq!(asked.len(), tokens_asked, "{documents} {blobs}");
            let expected = options.login.as_ref().map(|_| basic("jane", "correct horse"));
            for request in asked {
                assert_eq!(request.header("authorization"), expected.as_deref(), "the password goes here only");
                assert_eq!(request.path, "/token?service=fake&scope=repository%3Ateam%2Fx%3Apull");
            }
            for request in fake.asked() {
                let given = request.header("authorization").unwrap_or_default();
                assert!(given.is_empty() || given.starts_with("Bearer t"), "{request:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_password_that_is_asked_for_late_goes_to_the_registry_and_to_nobody_else() {
    let small = SmallImage::new(50_000);
    let layer = digest(&small.layer);
    // Where the blobs are asks for a password too.
    let storage = Fake::start(|_| Some(Reply::new(401, "{}").header("www-authenticate", "Basic realm=\"storage\"")));
    let elsewhere = format!("http://{}/layer", storage.address);
    let redirects = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sends_away = std::sync::Arc::clone(&redirects);
    let fake = Fake::start(move |request| {
        if request.path == "/v2/" {
            return Some(Reply::new(200, "{}"));
        }
        if request.header("authorization") != Some(basic("jane", "correct horse").as_str()) {
            return Some(Reply::new(401, "{}").header("www-authenticate", "Basic realm=\"fake\""));
        }
        if request.path.ends_with(&layer) && sends_away.load(std::sync::atomic::Ordering::Relaxed) {
            return Some(Reply::new(307, "").header("location", &elsewhere));
        }
        small.answer(request)
    });
    let folder = tempfile::tempdir().unwrap();
    let name = reference(&format!("{}/team/x:1", fake.address)).unwrap();
    let to = |number: u32| folder.path().join(number.to_string());
    pull(&name, &login("correct horse"), &to(1), "x", &Quiet).await.unwrap();
    let error = pull(&name, &Options::default(), &to(2), "x", &Quiet).await.unwrap_err().to_string();
    assert!(error.contains("it wants a login: give --username"), "{error}");
    let error = pull(&name, &login("wrong"), &to(3), "x", &Quiet).await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused { .. }), "{error}");
    redirects.store(true, std::sync::atomic::Ordering::Relaxed);
    let error = pull(&name, &login("correct horse"), &to(4), "x", &Quiet).await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused { .. }), "{error}");
    assert!(storage.asked().iter().all(|request| request.header("authorization").is_none()));
    assert!(!storage.asked().is_empty());
}

#[tokio::test]
async fn the_image_is_found_in_indexes_within_indexes_and_among_artifacts() {
    let small = SmallImage::new(1000);
    let entry = |kind: &str, bytes: &[u8]| json!({"mediaType": kind, "digest": digest(bytes), "size": bytes.len()});
    let attestation = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": null, "layers": [],
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(b"{}"), "size": 2}});
    let attestation = attestation.to_string().into_bytes();
    let ours = entry(OCI_MANIFEST, &small.manifest);
    let beside = entry(OCI_MANIFEST, &attestation);
    let mut unknown = beside.clone();
    unknown["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let index = |entries: Value| {
        json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries, "annotations": null})
            .to_string()
            .into_bytes()
    };
    let innermost = index(json!([unknown, beside, ours]));
    let mut documents = vec![attestation, innermost.clone()];
    for _ in 0..3 {
        let last = documents.last().unwrap();
        documents.push(index(json!([entry(OCI_INDEX, last), unknown])));
    }
    let top = documents.last().unwrap().clone();
    let mut deeper = documents.clone();
    deeper.push(index(json!([entry(OCI_INDEX, &top)])));
    let mut others: Vec<Value> = (0..8).map(|number| entry(OCI_MANIFEST, &[number])).collect();
    others.push(ours.clone());
    let many = vec![index(json!(others))];
    let refused = "within more than 4 indexes";
    for (all, refusal) in [(documents, ""), (deeper, refused), (many, "has 9 entries that name no machine")] {
        let small = SmallImage::new(1000);
        let all = std::sync::Arc::new(all);
        let fake = Fake::start(move |request| {
            let wanted = request.path.rsplit('/').next().unwrap();
            let found = match wanted {
                "1" => all.last(),
                _ => all.iter().find(|document| digest(document) == wanted),
            };
            match found {
                Some(found) if request.path.contains("/manifests/") => Some(Reply::new(200, found.clone())),
                _ => small.answer(request),
            }
        });
        let folder = tempfile::tempdir().unwrap();
        let name = reference(&format!("{}/x:1", fake.address)).unwrap();
        let result = pull(&name, &Options::default(), &folder.path().join("to"), "x", &Quiet).await;
        match result {
            Ok(report) if refusal.is_empty() => assert_eq!(report.layers, 1),
            Err(error) if !refusal.is_empty() => assert!(error.to_string().contains(refusal), "{error}"),
            other => panic!("{other:?}"),
        }
    }
}
