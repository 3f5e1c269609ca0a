//! The same images, made by different tools, run by podman and by thawd: the same exit code, output, user, groups,
//! directory, environment and files.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use support::{Daemon, Outcome, configure_podman, podman};
use thaw_client::types::ExecutionRequest;
use thaw_image::Store;
use thaw_image::progress::Quiet;

/// Variables that only one of the two sets, or each to its own; all are in the table of docs/images.md.
const OWN: [&str; 14] = [
    "container",
    "TERM",
    "HOSTNAME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "NODE_USE_ENV_PROXY",
    "NODE_OPTIONS",
    "GOMEMLIMIT",
];
/// Lines that differ on purpose, by image and beginning; docs/images.md says why.
const DIFFERENT: [(&str, &str); 3] = [
    // Root of an image has no capability, so that it cannot read what is another user's alone.
    ("kaniko", "content "),
    ("links", "content "),
    // A tmpfs of its own, made at the start.
    ("debian", "drwxrwxrwt "),
];
/// Images that there are at least.
const LEAST: usize = 30;

/// podman with storage of its own.
struct Podman {
    folder: PathBuf,
}

impl Podman {
    fn new(folder: &Path) -> Self {
        configure_podman(folder, 1024);
        Podman { folder: folder.to_owned() }
    }

    fn call(&self, arguments: &[&str]) -> Output {
        podman(&self.folder, arguments).unwrap()
    }

    /// Runs what lies at `image`; returns exit code and output.
    fn run(&self, image: &str, command: &[String]) -> (i32, String) {
        let pulled = self.call(&["pull", "-q", image]);
        let id = String::from_utf8_lossy(&pulled.stdout).trim().to_owned();
        assert!(pulled.status.success(), "podman pull {image}: {}", String::from_utf8_lossy(&pulled.stderr));
        let mut arguments = vec!["run", "--rm", "--network", "none", "--cgroups", "disabled", &id];
        arguments.extend(command.iter().map(String::as_str));
        let output = self.call(&arguments);
        let code = output.status.code().unwrap();
        assert!(code < 125, "podman run {image}: {}", String::from_utf8_lossy(&output.stderr));
        let result = (code, String::from_utf8(output.stdout).unwrap());
        self.call(&["rmi", "-f", &id]);
        result
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.call(&["rm", "-a", "-f"]);
    }
}

/// The lines of an output that have to be the same, in an order that does not depend on who set a variable first.
fn comparable(image: &str, output: &str) -> Vec<String> {
    let gid = output.lines().find_map(|line| line.strip_prefix("gid ")).unwrap_or_default();
    let mut lines: Vec<String> = output
        .lines()
        // Whether the primary group is among the others as well is of no consequence.
        .filter(|line| line.strip_prefix("group ") != Some(gid))
        .filter(|line| {
            let name = line.strip_prefix("env ").and_then(|line| line.split('=').next());
            !name.is_some_and(|name| OWN.contains(&name))
        })
        // What ends with a line break of its own leaves an empty line behind.
        .filter(|line| !line.is_empty())
        .filter(|line| !DIFFERENT.iter().any(|(of, beginning)| *of == image && line.starts_with(beginning)))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn podman_and_thawd_run_the_same_images_alike() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(0));
    // podman takes no path with a capital letter in it.
    let number = std::process::id().to_string();
    let folder =
        tempfile::Builder::new().prefix("podman-").suffix(&number).rand_bytes(0).tempdir_in("/var/tmp").unwrap();
    let images = folder.path().join("images");
    std::fs::create_dir(&images).unwrap();
    let made = Command::new("python3")
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/podman/images.py"))
        .arg(&images)
        .arg(support::layouts().join("test"))
        .output()
        .unwrap();
    assert!(made.status.success(), "images.py: {}", String::from_utf8_lossy(&made.stderr));
    let list: Vec<Value> = serde_json::from_slice(&std::fs::read(images.join("list.json")).unwrap()).unwrap();
    assert!(list.len() >= LEAST, "{} images", list.len());
    let text = |entry: &Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let command = |entry: &Value| -> Vec<String> {
        entry["command"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
    };

    let store = Store::open(&daemon.path("state/images")).unwrap();
    for entry in &list {
        let name = format!("compared-{}", text(entry, "name"));
        let path = text(entry, "path");
        store.import(Path::new(&path), Some(&name), &Quiet).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    drop(store);
    daemon.launch().await;
    let podman = Podman::new(&folder.path().join("storage"));
    let mut differences = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in &list {
        let name = text(entry, "name");
        assert!(seen.insert(name.clone()), "{name} twice");
        let (code, output) = podman.run(&text(entry, "podman"), &command(entry));
        let own = command(entry);
        let request = ExecutionRequest {
            image: Some(format!("compared-{name}")),
            user: "u1".to_owned(),
            command: (!own.is_empty()).then_some(own),
            ..ExecutionRequest::default()
        };
        let (our_code, our_output) = match daemon.client.execute_stream(&request).await {
            Ok(stream) => {
                let outcome = Outcome::of(stream).await;
                (outcome.exit.code, String::from_utf8_lossy(&outcome.stdout).into_owned())
            }
            Err(error) => (None, error.to_string()),
        };
        let (theirs, ours) = (comparable(&name, &output), comparable(&name, &our_output));
        if (Some(code), &theirs) != (our_code, &ours) {
            differences.push(format!("{name}: podman {code} {theirs:#?}\nthawd {our_code:?} {ours:#?}"));
        }
    }
    daemon.stop().await;
    assert!(differences.is_empty(), "{}", differences.join("\n\n"));
}
