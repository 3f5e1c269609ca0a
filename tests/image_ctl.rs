//! `thawctl image` as a person uses it, and beside the container tools of others.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use support::Daemon;

/// A store and the test image's layout, made by thawctl.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        for compression in ["zstd", "gzip"] {
            let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/test");
            fs::create_dir_all(place.path("cache")).unwrap();
            let mut build = place.thawctl();
            build.arg("build").arg(manifest).args(["--compression", compression]);
            build.arg("--output").arg(place.path(compression)).arg("--cache").arg(place.path("cache"));
            assert!(said(&mut build).contains("2 layers"));
        }
        place
    }

    fn path(&self, below: &str) -> PathBuf {
        self.0.path().join(below)
    }

    fn thawctl(&self) -> Command {
        let mut command = Command::new(support::programs::thawctl());
        command.arg("image");
        command
    }

    /// Runs `thawctl image VERB … --store STORE --format json`.
    fn image(&self, arguments: &[&str]) -> Output {
        let mut command = self.thawctl();
        command.args(arguments).arg("--store").arg(self.path("store")).args(["--format", "json"]);
        command.output().unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let output = self.image(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn import(&self, from: &str, name: &str) -> Value {
        self.json(&["import", self.path(from).to_str().unwrap(), "--name", name])[0].take()
    }

    fn rootfs(&self, name: &str) -> PathBuf {
        self.json(&["inspect", name])[0]["rootfs"].as_str().unwrap().into()
    }
}

fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn complaint(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn images_come_are_looked_at_checked_and_go() {
    let place = Place::new();
    let image = place.import("zstd", "test");
    assert_eq!(place.json(&["ls"])[0], image);
    assert_eq!(place.json(&["inspect", "test"])[0]["config"]["user"], "1000:1000");
    let found = place.json(&["verify"])[0].take();
    assert_eq!((&found["images"], &found["layers"], &found["damage"]), (&json!(1), &json!(2), &json!([])));

    // The same layers in another compression are there once; then the older image has no name.
    let newer = place.import("gzip", "test");
    assert_ne!(newer["digest"], image["digest"]);
    assert_eq!(place.json(&["verify"])[0]["bytes"], image["unpacked_bytes"], "two images, the files of one");
    assert_eq!(place.json(&["prune"])[0]["removed"], json!([image["digest"]]));

    fs::write(place.rootfs("test").join("usr/bin/busybox"), "not busybox").unwrap();
    let output = place.image(&["verify"]);
    assert_eq!(output.status.code(), Some(1));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found[0]["rebuild"], json!(["test"]));
    let told = place.thawctl().arg("verify").arg("--store").arg(place.path("store")).output().unwrap();
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("\"usr/bin/busybox\": has 11 bytes"), "{told}");
    assert!(told.contains("run `thawctl image rm test`, then build, import or pull them again"), "{told}");

    assert!(place.image(&["rm", "test"]).status.success());
    let again = complaint(&place.image(&["rm", "test"]));
    assert_eq!(again, "thawctl: no image \"test\" in the store: run `thawctl image ls` to see those that are there\n");
    assert_eq!(place.json(&["ls"]), json!([]));
    assert_eq!(fs::read_dir(place.path("store/layers")).unwrap().count(), 0);
}

#[test]
fn an_image_that_a_container_runs_from_stays() {
    let place = Place::new();
    place.import("zstd", "test");
    let script = r#"mount --bind "$0" /mnt && mount -o remount,bind,ro /mnt && echo mounted && read -r line"#;
    let mut container = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .arg(place.rootfs("test"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(container.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "mounted\n");
    let refused = complaint(&place.image(&["rm", "test"]));
    assert!(refused.contains("is in use by the container of process"), "{refused}");
    // A newer image of the name does not take it away either.
    place.import("gzip", "test");
    assert_eq!(place.json(&["prune"])[0]["removed"], json!([]));
    drop(container.stdin.take());
    container.wait().unwrap();
    assert_eq!(place.json(&["prune"])[0]["removed"].as_array().unwrap().len(), 1);
}

#[test]
fn what_is_no_image_is_refused_in_one_line() {
    let place = Place::new();
    fs::write(place.path("harm.tar"), "no archive").unwrap();
    let refused = complaint(&place.image(&["import", place.path("harm.tar").to_str().unwrap()]));
    assert!(refused.lines().last().unwrap().contains("harm.tar"), "{refused}");
    let refused = complaint(&place.image(&["import", place.path("zstd").to_str().unwrap(), "--name", "../x"]));
    assert!(refused.contains("must be like `openai` or `registry:5000/team/app:1.0`"), "{refused}");
    assert_eq!(place.json(&["ls"]), json!([]));
}

/// Mode, owner, and size or target of everything below a folder, by path.
fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, u32, String)> {
    let mut found = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_symlink() {
                fs::read_link(&path).unwrap().display().to_string()
            } else if metadata.is_dir() {
                open.push(path.clone());
                String::new()
            } else {
                metadata.len().to_string()
            };
            let known = (metadata.permissions().mode(), metadata.uid(), content);
            found.insert(path.strip_prefix(root).unwrap().to_owned(), known);
        }
    }
    found
}

#[test]
fn skopeo_and_umoci_accept_our_images_and_we_what_skopeo_writes() {
    let place = Place::new();
    place.import("gzip", "test");
    let ours = tree(&place.rootfs("test"));
    assert!(ours.len() > 100);
    let of = |layout: &str| format!("oci:{}:test", place.path(layout).display());

    // Debian 12's umoci knows gzip only, and says of zstd that it does not.
    let image = format!("{}:test", place.path("gzip").display());
    said(Command::new("umoci").args(["unpack", "--image", &image]).arg(place.path("bundle")));
    let theirs = tree(&place.path("bundle/rootfs"));
    // What every root file system is given, since engines mount on it.
    let given = ["dev", "etc", "proc", "run", "sys", "tmp", "etc/hosts", "etc/hostname", "etc/resolv.conf"];
    let mut brought = ours.clone();
    brought.retain(|path, _| theirs.contains_key(path) || !given.iter().any(|given| path == Path::new(given)));
    assert_eq!(theirs, brought, "the same tree as umoci's");

    for (layout, suffix) in [("zstd", "+zstd"), ("gzip", "+gzip")] {
        let told: Value = serde_json::from_str(&said(Command::new("skopeo").args(["inspect", &of(layout)]))).unwrap();
        assert_eq!((&told["Architecture"], &told["Os"]), (&json!("amd64"), &json!("linux")));
        let raw = said(Command::new("skopeo").args(["inspect", "--raw", &of(layout)]));
        let raw: Value = serde_json::from_str(&raw).unwrap();
        let layers = raw["layers"].as_array().unwrap();
        assert!(layers.iter().all(|layer| layer["mediaType"].as_str().unwrap().ends_with(suffix)), "{raw}");
        let digests: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        assert_eq!((digests.len(), json!(digests)), (2, told["Layers"].clone()));
    }
    for kind in ["docker-archive", "oci-archive"] {
        let file = place.path(&format!("{kind}.tar"));
        let to = format!("{kind}:{}:name:tag", file.display());
        said(Command::new("skopeo").args(["--insecure-policy", "copy", &of("gzip"), &to]));
        let image = place.import(&format!("{kind}.tar"), kind);
        assert_eq!(image["name"], json!(kind));
        assert_eq!(tree(&place.rootfs(kind)), ours, "{kind}");
    }
    assert_eq!(place.json(&["verify"])[0]["layers"], json!(2), "however they came, the layers are the same");
}

#[tokio::test]
async fn a_daemon_keeps_the_image_that_it_may_start() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let store = daemon.path("state/images");
    let thawctl = |verb: &str| {
        let mut command = Command::new(support::programs::thawctl());
        command.args(["image", verb, "test", "--store"]).arg(&store);
        command.output().unwrap()
    };
    let refused = complaint(&thawctl("rm"));
    assert!(refused.contains("image \"test\" is in use by a daemon that starts containers from it"), "{refused}");
    assert!(daemon.sh("echo still here").await.exit.success);
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
    assert!(thawctl("rm").status.success(), "nobody holds it any more");
}
