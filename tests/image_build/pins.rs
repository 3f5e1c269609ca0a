//! What a build does when a mirror no longer has what is locked: all on loopback.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use thaw_image::Store;
use thaw_image::build::{BuildError, BuildOptions, BuildReport, build, lock};
use thaw_image::progress::Quiet;

use super::mirror::Mirror;

/// An image on a base of two packages: `tool` needs `lib`.
pub struct Place {
    folder: tempfile::TempDir,
    pub mirror: Mirror,
}

const IMAGE: &str = r#"
name = "tiny"
description = "for a test"
base = "tiny"
user = "runtime"
workdir = "/"
[env]
PATH = "/usr/bin"
[entrypoint]
command = ["/usr/bin/tool"]
"#;

const BASE: &str = r#"
busybox = false
[debian]
suite = "trixie"
packages = ["tool"]
keep = ["/usr/bin/tool", "/usr/lib/lib.so"]
"#;

impl Place {
    /// With version 1.0 of both locked, and the other files of this repository's rootfs.
    pub fn new() -> Self {
        let place = Place { folder: tempfile::tempdir().unwrap(), mirror: Mirror::new() };
        place.mirror.add("lib", "1.0", "", "/usr/lib/lib.so", "lib 1.0");
        place.mirror.add("tool", "1.0", "lib (>= 1.0)", "/usr/bin/tool", "tool 1.0");
        let rootfs = place.path("rootfs");
        fs::create_dir_all(&rootfs).unwrap();
        let from = super::repository().join("rootfs");
        super::mirror::run(
            Command::new("cp").arg("-r").arg(from.join("files")).arg(from.join("skeleton.toml")).arg(&rootfs),
        );
        fs::write(rootfs.join("tiny.toml"), BASE).unwrap();
        fs::create_dir_all(place.manifest()).unwrap();
        fs::write(place.manifest().join("image.toml"), IMAGE).unwrap();
        let changes = lock(&place.manifest(), false, &place.options("first"), &Quiet).unwrap();
        assert_eq!(changes, ["lib: nothing -> 1.0", "tool: nothing -> 1.0"]);
        place
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    pub fn manifest(&self) -> PathBuf {
        self.path("images/tiny")
    }

    /// Options with a cache of that name.
    pub fn options(&self, cache: &str) -> BuildOptions {
        let mut options = BuildOptions::new(self.path("layout"), self.path(cache));
        options.debian_mirror = Some(self.mirror.line());
        options
    }

    pub fn build(&self, cache: &str) -> Result<BuildReport, BuildError> {
        build(&self.manifest(), &self.options(cache), &Quiet)
    }

    fn locked(&self, cache: &str) -> Result<BuildReport, BuildError> {
        let mut options = self.options(cache);
        options.locked = true;
        build(&self.manifest(), &options, &Quiet)
    }

    /// What is in a file of the image that was built last, and what the image says of how it was built.
    fn content(&self, file: &str) -> (String, Option<String>) {
        let store = Store::open(&self.path("store")).unwrap();
        let image = store.ensure(&self.path("layout")).unwrap();
        let label = image.config.labels.get("org.thawd.image.unlocked").cloned();
        (fs::read_to_string(image.rootfs.join(file)).unwrap(), label)
    }

    pub fn thawctl(&self, arguments: &[&str]) -> Output {
        Command::new(crate::programs::thawctl()).arg("image").args(arguments).output().unwrap()
    }
}

const GONE: &str = "the locked one is neither in the cache nor on the mirror; renew the lock with `thawctl image lock`";

#[test]
fn a_version_that_left_the_mirror_gives_way_to_the_newest_and_the_image_says_so() {
    let place = Place::new();
    let locked = place.locked("first").unwrap();
    assert_eq!((locked.unlocked.len(), locked.notes.len()), (0, 0));
    assert_eq!(place.content("usr/lib/lib.so"), ("lib 1.0".to_owned(), None));

    place.mirror.add("lib", "1.1", "", "/usr/lib/lib.so", "lib 1.1");
    place.mirror.remove("lib", "1.0");
    let error = place.locked("second").unwrap_err().to_string();
    let (lock, manifest) = (place.path("rootfs/tiny.lock"), place.manifest());
    let expected = format!(
        "{}: lib 1.0 is neither in the cache nor to be had any more: run `thawctl image lock {}`, or \
         build without --locked",
        lock.display(),
        manifest.display()
    );
    assert_eq!(error, expected);

    let report = place.build("second").unwrap();
    assert_eq!(report.notes, [format!("lib: locked 1.0, built with 1.1: {GONE}")]);
    assert_ne!(report.digest, locked.digest);
    let label = Some("lib 1.0 -> 1.1".to_owned());
    assert_eq!(place.content("usr/lib/lib.so"), ("lib 1.1".to_owned(), label));
    assert_eq!(place.content("usr/bin/tool").0, "tool 1.0", "what is there as locked is taken as locked");

    // Again, from the cache: it is said again, and still does not pass for the locked one.
    let again = place.build("second").unwrap();
    assert!(again.unchanged && again.layers.iter().all(|layer| layer.cached));
    assert_eq!(again.notes, report.notes);
    assert!(matches!(place.locked("second"), Err(BuildError::Withdrawn { .. })));

    // Whoever has the locked one in the cache, as a layer or as a package only, has the locked image.
    for forget in ["", "layers"] {
        if !forget.is_empty() {
            fs::remove_dir_all(place.path("first").join(forget)).unwrap();
        }
        let report = place.locked("first").unwrap();
        assert_eq!((&report.digest, report.notes.len()), (&locked.digest, 0));
    }
    assert_eq!(place.content("usr/lib/lib.so"), ("lib 1.0".to_owned(), None));

    // Renewing the lock mends it, and the packages need not be fetched again.
    assert_eq!(lock_again(&place), ["lib: 1.0 -> 1.1"]);
    let renewed = place.locked("second").unwrap();
    assert_eq!(renewed.unlocked, []);
    assert_eq!(renewed.layers[0].digest, report.layers[0].digest, "the same files");
}

fn lock_again(place: &Place) -> Vec<String> {
    lock(&place.manifest(), false, &place.options("second"), &Quiet).unwrap()
}

#[test]
fn thawctl_tells_what_moved_and_shows_it_of_the_image() {
    let place = Place::new();
    place.mirror.add("lib", "1.1", "", "/usr/lib/lib.so", "lib 1.1");
    place.mirror.remove("lib", "1.0");
    let manifest = place.manifest();
    let (line, layout, cache) = (place.mirror.line(), place.path("layout"), place.path("cache"));
    fs::create_dir(&cache).unwrap();
    let (manifest, layout, cache) = (text(&manifest), text(&layout), text(&cache));
    let arguments = ["build", manifest, "--output", layout, "--cache", cache, "--debian-mirror", &line];
    let refused = place.thawctl(&[&arguments[..], &["--locked"]].concat());
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(125));
    assert!(said.contains(&format!("run `thawctl image lock {manifest}`")), "{said}");
    let built = place.thawctl(&[&arguments[..], &["--format", "json"]].concat());
    let said = String::from_utf8(built.stderr).unwrap();
    assert!(built.status.success(), "{said}");
    assert!(said.contains(&format!("thawctl: lib: locked 1.0, built with 1.1: {GONE}\n")), "{said}");
    let told: Value = serde_json::from_slice(&built.stdout).unwrap();
    assert_eq!((&told[0]["unlocked"][0]["locked"], &told[0]["unlocked"][0]["used"]), (&"1.0".into(), &"1.1".into()));

    let store = place.path("store");
    assert!(place.thawctl(&["import", layout, "--store", text(&store)]).status.success());
    let shown = place.thawctl(&["inspect", "tiny", "--store", text(&store)]);
    let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown[0]["config"]["labels"]["org.thawd.image.unlocked"], "lib 1.0 -> 1.1");
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn an_archive_of_the_past_has_what_the_mirror_dropped() {
    let (place, past) = (Place::new(), Mirror::new());
    let locked = place.locked("first").unwrap();
    past.add("lib", "1.0", "", "/usr/lib/lib.so", "lib 1.0");
    place.mirror.add("lib", "1.1", "", "/usr/lib/lib.so", "lib 1.1");
    place.mirror.remove("lib", "1.0");
    let mut options = place.options("second");
    options.debian_snapshot = Some(past.line());
    options.locked = true;
    let report = build(&place.manifest(), &options, &Quiet).unwrap();
    assert_eq!((report.digest, report.notes.len()), (locked.digest, 0));
}

#[test]
fn an_archive_that_does_not_answer_is_not_waited_for() {
    let place = Place::new();
    place.mirror.add("lib", "1.1", "", "/usr/lib/lib.so", "lib 1.1");
    place.mirror.remove("lib", "1.0");
    // Connections are made, and nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let mut options = place.options("second");
    options.debian_snapshot = Some(format!("deb [trusted=yes] {address} trixie main"));
    options.snapshot_patience = Duration::from_secs(2);
    let begun = Instant::now();
    let report = build(&place.manifest(), &options, &Quiet).unwrap();
    // apt alone would have waited for 30 s.
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    let [silent, moved] = &report.notes[..] else { panic!("{:?}", report.notes) };
    assert!(silent.starts_with(&format!("no locked package came from {address}: ")), "{silent}");
    assert!(silent.contains("no answer within 2 s"), "{silent}");
    assert_eq!(*moved, format!("lib: locked 1.0, built with 1.1: {GONE}"));
}

#[test]
fn a_package_that_is_called_otherwise_now_is_found_by_its_files() {
    let place = Place::new();
    place.mirror.add("lib2", "2.0", "", "/usr/lib/lib.so", "lib 2.0");
    place.mirror.add("tool", "1.1", "lib2", "/usr/bin/tool", "tool 1.1");
    place.mirror.remove("lib", "1.0");
    place.mirror.remove("tool", "1.0");
    let report = place.build("second").unwrap();
    let label = Some("lib2 none -> 2.0, tool 1.0 -> 1.1, lib 1.0 -> none".to_owned());
    assert_eq!(place.content("usr/lib/lib.so"), ("lib 2.0".to_owned(), label));
    assert_eq!(report.notes.len(), 3, "{:?}", report.notes);
    assert!(report.notes[0].starts_with("lib2: not in the lock, built with 2.0: "), "{:?}", report.notes);
    assert!(report.notes[2].starts_with("lib: locked 1.0, built without it: "), "{:?}", report.notes);
}

#[test]
fn what_does_not_go_with_a_package_that_moved_moves_too() {
    let place = Place::new();
    place.mirror.add("tool", "1.1", "lib (>= 1.1)", "/usr/bin/tool", "tool 1.1");
    place.mirror.add("lib", "1.1", "", "/usr/lib/lib.so", "lib 1.1");
    place.mirror.remove("tool", "1.0");
    let report = place.build("second").unwrap();
    let label = Some("lib 1.0 -> 1.1, tool 1.0 -> 1.1".to_owned());
    assert_eq!(place.content("usr/lib/lib.so"), ("lib 1.1".to_owned(), label));
    assert!(report.notes[0].ends_with("it has to go with tool 1.1"), "{:?}", report.notes);
}

#[test]
fn the_same_version_with_another_content_is_refused_always() {
    let place = Place::new();
    place.mirror.add("lib", "1.0", "", "/usr/lib/lib.so", "not lib 1.0");
    for result in [place.build("second"), place.locked("second")] {
        let error = result.unwrap_err().to_string();
        assert!(error.contains("pins lib 1.0 with another hash than the mirror's"), "{error}");
    }
    assert!(place.build("first").is_ok(), "the right one is in this cache");
}
