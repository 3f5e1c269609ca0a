//! Documents as tools really write them: nulls, odd fields, several images, names and tags, artifacts beside images.

use super::progress::Quiet;
use super::*;

const REF: &str = "org.opencontainers.image.ref.name";
const WHOLE: &str = "io.containerd.image.name";

impl Bench {
    /// A layout whose configuration is changed by `change`.
    pub(super) fn configured(&self, layers: &[Vec<u8>], change: impl Fn(&mut Value)) {
        let layers: Vec<_> = layers.iter().map(|archive| (TAR, archive.clone())).collect();
        self.layout_with(&layers, |manifest, _| {
            let path = self.path("layout/blobs/sha256").join(hex(manifest["config"]["digest"].as_str().unwrap()));
            let mut config: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
            change(&mut config);
            let bytes = config.to_string();
            manifest["config"]["digest"] = json!(self.blob(bytes.as_bytes()));
            manifest["config"]["size"] = json!(bytes.len());
        });
    }

    /// Replaces the entries of the index; `entries` is given the one that is there.
    fn indexed(&self, entries: impl Fn(&Value) -> Value) {
        let path = self.path("layout/index.json");
        let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let manifests = entries(&index["manifests"][0]);
        fs::write(&path, json!({"schemaVersion": 2, "manifests": manifests}).to_string()).unwrap();
    }

    fn import_by(&self, path: &Path, name: Option<&str>, reference: &str) -> Result<Image, StoreError> {
        self.store().import_named(path, ImportNames { name, reference: Some(reference) }, &Quiet)
    }
}

fn called(entry: &Value, annotations: Value) -> Value {
    let mut entry = entry.clone();
    entry["annotations"] = annotations;
    entry
}

#[test]
fn configurations_with_nulls_and_odd_fields_are_taken() {
    let changes: [fn(&mut Value); 9] = [
        |config| config["rootfs"] = json!({"diff_ids": config["rootfs"]["diff_ids"]}),
        |config| config["config"] = Value::Null,
        |config| config["history"] = Value::Null,
        |config| config["config"]["Volumes"] = json!({"/d": null}),
        |config| config["config"]["Cmd"] = json!("c"),
        |config| config["config"]["Env"] = Value::Null,
        |config| config["created"] = json!(""),
        |config| config["container_config"] = json!({"Cmd": 1}),
        |config| config["history"] = json!([{"created": "x", "empty_layer": true}, {"empty_layer": true}]),
    ];
    for change in changes {
        let bench = Bench::new();
        bench.configured(&[tar([file("a", "")])], change);
        assert_eq!(brought(&bench.ensure().unwrap().rootfs), ["a"]);
    }
    let bench = Bench::new();
    bench.configured(&[tar([file("a", "")])], |config| {
        config["config"]["Env"] = json!(["A=1", "ALONE", "=x", "B=x=y", "A=2", "E="]);
    });
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let expected = [pair("A", "1"), pair("B", "x=y"), pair("A", "2"), pair("E", "")];
    assert_eq!(bench.ensure().unwrap().config.env, expected);
}

#[test]
fn a_strange_architecture_is_named_or_taken_if_the_index_says_the_right_one() {
    for architecture in [json!(""), Value::Null, json!("x86_64")] {
        let bench = Bench::new();
        bench.configured(&[tar([file("a", "")])], |config| config["architecture"] = architecture.clone());
        let said = architecture.as_str().unwrap_or_default();
        bench.refuses_layout(&format!("\"architecture\": {said:?}, but must say \"linux\" and \"amd64\""));
        bench.indexed(|one| {
            let mut one = one.clone();
            one["platform"] = json!({"os": "linux", "architecture": "amd64", "variant": null});
            json!([one])
        });
        let image = bench.ensure().unwrap();
        assert!(image.notes[0].contains("taken for linux/amd64, as its index says"), "{:?}", image.notes);
    }
    let bench = Bench::new();
    bench.configured(&[tar([file("a", "")])], |config| config["architecture"] = json!("s390x"));
    bench.refuses_layout("is for linux/s390x, and this machine is linux/amd64");
}

#[test]
fn one_image_under_two_names_is_one_image() {
    let bench = Bench::new();
    bench.layout_with(&[(TAR, tar([file("a", "")]))], |_, _| {});
    bench.indexed(|one| json!([called(one, json!({REF: "a:1"})), called(one, json!({REF: "a:2", "x": null}))]));
    let image = bench.store().import(&bench.path("layout"), None, &Quiet).unwrap();
    assert_eq!(image.name, "a:1");
    assert_eq!(image.notes, ["has other names there, which were not taken over: a:2"]);
    assert_eq!(bench.ensure().unwrap().name, "a:1");
    let archive = tar(bench.archived());
    assert_eq!(bench.import(&archive, None).unwrap().name, "a:1");
    let named = bench.import(&archive, Some("b")).unwrap();
    assert_eq!((named.name.as_str(), named.notes.len()), ("b", 0));
    let by_second = bench.import_by(&bench.path("layout"), None, "a:2").unwrap();
    assert_eq!(by_second.name, "a:2", "the name that it was asked for by");
    let error = bench.import_by(&bench.path("layout"), None, "c").unwrap_err().to_string();
    assert!(error.contains("has no image \"c\", only a:1"), "{error}");
}

#[test]
fn of_several_images_one_has_to_be_chosen() {
    let bench = Bench::new();
    bench.layout_with(&[(TAR, tar([file("one", "")]))], |_, _| {});
    let first: Value = serde_json::from_slice(&fs::read(bench.path("layout/index.json")).unwrap()).unwrap();
    let first = &first["manifests"][0];
    let kept = bench.path("kept");
    fs::rename(bench.path("layout/blobs/sha256"), &kept).unwrap();
    bench.layout_with(&[(TAR, tar([file("two", "")]))], |_, _| {});
    for blob in fs::read_dir(&kept).unwrap() {
        let blob = blob.unwrap();
        fs::rename(blob.path(), bench.path("layout/blobs/sha256").join(blob.file_name())).unwrap();
    }
    let second: Value = serde_json::from_slice(&fs::read(bench.path("layout/index.json")).unwrap()).unwrap();
    let second = &second["manifests"][0];
    bench.indexed(|_| json!([called(first, json!({REF: "a:1"})), called(second, json!({REF: "a:2"}))]));
    bench.refuses_layout("has 2 images for linux/amd64: a:1, a:2; say with --ref which one");
    for (reference, name, file) in [("a:1", None, "one"), ("a:2", None, "two"), ("a:2", Some("b"), "two")] {
        let image = bench.import_by(&bench.path("layout"), name, reference).unwrap();
        let expected = (name.unwrap_or(reference), vec![file.to_owned()]);
        assert_eq!((image.name.as_str(), brought(&image.rootfs)), expected);
        fs::write(bench.path("archive.tar"), tar(bench.archived())).unwrap();
        let image = bench.import_by(&bench.path("archive.tar"), name, reference).unwrap();
        assert_eq!(brought(&image.rootfs), [file]);
    }
    // Variants of a processor are no choice: the one that runs everywhere.
    bench.indexed(|_| {
        let (mut first, mut second) = (first.clone(), second.clone());
        first["platform"] = json!({"os": "linux", "architecture": "amd64", "variant": "v3"});
        second["platform"] = json!({"os": "linux", "architecture": "amd64"});
        json!([called(&first, json!({REF: "v"})), called(&second, json!({REF: "v"}))])
    });
    assert_eq!(brought(&bench.ensure().unwrap().rootfs), ["two"]);
}

/// Two images as `docker save` writes them, and the entries of their manifest.json.
fn saved(contents: [&str; 2]) -> (Vec<Entry>, Vec<Value>) {
    let (mut all, mut list) = (Vec::new(), Vec::new());
    for (number, content) in contents.into_iter().enumerate() {
        let mut entries = import::docker_save(&[tar([file(content, "")])], &format!("app:{number}"));
        let manifest: Value = serde_json::from_slice(&entries.pop().unwrap().content).unwrap();
        let mut one = manifest[0].clone();
        one["Layers"] = json!([format!("{number}.tar")]);
        list.push(one);
        entries[2].path = format!("{number}.tar").into();
        all.extend(entries.into_iter().filter(|entry| entry.kind != EntryType::Directory));
    }
    (all, list)
}

#[test]
fn several_images_that_docker_saved_can_be_chosen_from() {
    let bench = Bench::new();
    let (mut all, list) = saved(["zero", "one"]);
    all.push(file("manifest.json", &json!(list).to_string()));
    bench.refuses_import(all, "has 2 images (app:0; app:1): say with --ref which one");
    let (mut all, list) = saved(["zero", "one"]);
    all.push(file("/manifest.json", &json!(list).to_string()));
    fs::write(bench.path("archive.tar"), tar(all)).unwrap();
    let image = bench.import_by(&bench.path("archive.tar"), None, "app:1").unwrap();
    assert_eq!((image.name.as_str(), brought(&image.rootfs)), ("app:1", vec!["one".to_owned()]));
    let error = bench.import_by(&bench.path("archive.tar"), None, "app:7").unwrap_err().to_string();
    assert!(error.contains("has no image \"app:7\", only app:0; app:1"), "{error}");
    // One image in two entries, and one with two names.
    let (mut all, mut list) = saved(["zero", "one"]);
    list.truncate(1);
    list.push(list[0].clone());
    list[1]["RepoTags"] = json!(["other:1"]);
    all.push(file("manifest.json", &json!(list).to_string()));
    let image = bench.import(&tar(all), None).unwrap();
    assert_eq!(image.name, "app:0");
    assert!(image.notes.iter().any(|note| note.ends_with("not taken over: other:1")), "{:?}", image.notes);
    assert_eq!(bench.import_by(&bench.path("archive.tar"), None, "other:1").unwrap().name, "other:1");
    // Without a name, and with nulls.
    let (mut all, mut list) = saved(["zero", "one"]);
    list.truncate(1);
    list[0]["RepoTags"] = Value::Null;
    list[0]["LayerSources"] = Value::Null;
    all.push(file("manifest.json", &json!(list).to_string()));
    let error = bench.import(&tar(all), None).unwrap_err().to_string();
    assert!(error.contains("give a name with --name"), "{error}");
}

#[test]
fn a_tag_alone_is_no_name() {
    let archive = |bench: &Bench, content: &str, annotations: Value| {
        bench.layout_with(&[(TAR, tar([file(content, "")]))], |_, _| {});
        bench.indexed(|one| json!([called(one, annotations.clone())]));
        tar(bench.archived())
    };
    let bench = Bench::new();
    for (content, whole) in [("one", "docker.io/team/one:latest"), ("two", "docker.io/team/two:latest")] {
        let archive = archive(&bench, content, json!({REF: "latest", WHOLE: whole}));
        let image = bench.import(&archive, None).unwrap();
        assert_eq!((image.name.as_str(), brought(&image.rootfs)), (whole, vec![content.to_owned()]));
    }
    for tag in ["latest", "1.0", "v2", "12"] {
        let error = bench.import(&archive(&bench, "three", json!({REF: tag})), None).unwrap_err().to_string();
        assert!(error.contains(&format!("only the tag {tag:?}: give a name with --name")), "{error}");
    }
    let error = bench.import(&archive(&bench, "three", json!(null)), None).unwrap_err().to_string();
    assert!(error.contains("no name"), "{error}");
    // A word can be both: it never replaces another image by itself.
    bench.import(&archive(&bench, "three", json!({REF: "stable"})), None).unwrap();
    bench.import(&archive(&bench, "three", json!({REF: "stable"})), None).unwrap();
    let other = archive(&bench, "four", json!({REF: "stable"}));
    let error = bench.import(&other, None).unwrap_err().to_string();
    assert!(error.contains("give --name stable to replace that one, or another name"), "{error}");
    let image = bench.import(&other, Some("stable")).unwrap();
    assert!(image.notes[0].starts_with("stable meant sha256:"), "{:?}", image.notes);
    // With a tag it is the same image, newer.
    for content in ["five", "six"] {
        let image = bench.import(&archive(&bench, content, json!({REF: "app:1"})), None).unwrap();
        assert_eq!(brought(&image.rootfs), [content]);
    }
}

#[test]
fn what_stands_beside_an_image_is_passed_over() {
    let bench = Bench::new();
    bench.layout_with(&[(TAR, tar([file("a", "")]))], |_, _| {});
    let empty = || bench.descriptor("application/vnd.oci.empty.v1+json", b"{}");
    let statement = || bench.descriptor("application/vnd.in-toto+json", b"{\"_type\": \"statement\"}");
    let manifest = |config: Value, layer: Value, note: &str| {
        let text = json!({"schemaVersion": 2, "config": config, "layers": [layer], "annotations": {"note": note}});
        bench.descriptor("application/vnd.oci.image.manifest.v1+json", text.to_string().as_bytes())
    };
    // An attestation of buildkit, with and without its platform; a signature of cosign, whose configuration calls itself
    // an image's; an artifact by its type, one by its configuration, and something that nobody knows.
    let mut attestation = manifest(empty(), statement(), "1");
    attestation["platform"] = json!({"os": "unknown", "architecture": "unknown"});
    let mut without_platform = manifest(empty(), statement(), "2");
    without_platform["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    let config = bench.descriptor("application/vnd.oci.image.config.v1+json", b"{\"architecture\": \"\"}");
    let payload = bench.descriptor("application/vnd.dev.cosign.simplesigning.v1+json", b"{ }");
    let signature = manifest(config, payload, "3");
    let mut artifact = manifest(empty(), statement(), "4");
    artifact["artifactType"] = json!("application/vnd.example.sbom");
    let by_config = manifest(bench.descriptor("application/vnd.cncf.helm.config.v1+json", b"{  }"), statement(), "5");
    let odd = bench.descriptor("application/x-new", b"anything");
    let beside = [attestation, without_platform, signature, artifact, by_config, odd];
    let path = bench.path("layout/index.json");
    let index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let ours = index["manifests"][0].clone();
    for at in [0, 3, beside.len()] {
        let mut all = beside.to_vec();
        all.insert(at, ours.clone());
        fs::write(&path, json!({"schemaVersion": 2, "manifests": all}).to_string()).unwrap();
        assert_eq!(brought(&bench.ensure().unwrap().rootfs), ["a"], "{at}");
        // In an index of its own, as registries have it.
        all[at]["annotations"] = Value::Null;
        let inner = json!({"schemaVersion": 2, "manifests": all}).to_string();
        let kind = "application/vnd.docker.distribution.manifest.list.v2+json";
        let outer = called(&bench.descriptor(kind, inner.as_bytes()), json!({REF: "inner"}));
        fs::write(&path, json!({"schemaVersion": 2, "manifests": [outer]}).to_string()).unwrap();
        assert_eq!(bench.ensure().unwrap().name, "inner");
    }
    // Nothing but these.
    fs::write(&path, json!({"schemaVersion": 2, "manifests": beside}).to_string()).unwrap();
    let error = bench.ensure().unwrap_err().to_string();
    assert!(error.contains("has no image for linux/amd64, only unknown/unknown, an artifact"), "{error}");
}

#[test]
fn docker_and_oci_media_types_mix() {
    let manifests =
        ["application/vnd.docker.distribution.manifest.v2+json", "application/vnd.oci.image.manifest.v1+json"];
    let configs = ["application/vnd.docker.container.image.v1+json", "application/vnd.oci.image.config.v1+json", ""];
    for manifest_type in manifests {
        for config_type in configs {
            for layer_type in ["application/vnd.docker.image.rootfs.diff.tar.gzip", GZIP, ZSTD] {
                let bench = Bench::new();
                bench.layout_with(&[(GZIP, tar([file("a", "")]))], |manifest, _| {
                    manifest["config"]["mediaType"] = json!(config_type);
                    manifest["layers"][0]["mediaType"] = json!(layer_type);
                    manifest["mediaType"] = Value::Null;
                    manifest["annotations"] = Value::Null;
                });
                bench.indexed(|one| {
                    let mut one = one.clone();
                    one["mediaType"] = json!(manifest_type);
                    one["platform"] = Value::Null;
                    one["urls"] = Value::Null;
                    json!([one])
                });
                let image = bench.ensure().unwrap();
                assert_eq!(brought(&image.rootfs), ["a"], "{manifest_type} {config_type} {layer_type}");
            }
        }
    }
}
