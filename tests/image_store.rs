//! The image store and a process that is killed at its work.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use thawd::image::Store;
use thawd::image::build::{BuildOptions, build};
use thawd::image::progress::Quiet;

/// A layout of the test image with one large file, so that unpacking takes a moment.
fn large_layout(folder: &Path) -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = folder.join("images/large");
    fs::create_dir_all(manifest.join("files/opt")).unwrap();
    fs::copy(repository.join("images/test/image.toml"), manifest.join("image.toml")).unwrap();
    File::create(manifest.join("files/opt/large")).unwrap().set_len(256 << 20).unwrap();
    let mut options = BuildOptions::new(folder.join("layout"), folder.join("cache"));
    options.rootfs_dir = Some(repository.join("rootfs"));
    build(&manifest, &options, &Quiet).unwrap().layout
}

/// Run by the test below in a process of its own; does nothing otherwise.
#[test]
fn child_that_unpacks() {
    if let Some(folder) = std::env::var_os("THAWD_TEST_UNPACK") {
        let folder = PathBuf::from(folder);
        Store::open(&folder.join("store")).unwrap().ensure(&folder.join("layout")).unwrap();
    }
}

#[test]
fn a_process_killed_while_it_unpacks_leaves_nothing_that_looks_whole() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let layout = large_layout(folder.path());
    let store = folder.path().join("store");
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_unpacks"])
        .env("THAWD_TEST_UNPACK", folder.path())
        .spawn()
        .unwrap();
    let entries = |below: &str| fs::read_dir(store.join(below)).map_or(0, Iterator::count);
    let begun = Instant::now();
    while entries("tmp") == 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((entries("tmp"), entries("images"), entries("names")), (1, 0, 0), "killed in the middle");

    let opened = Store::open(&store).unwrap();
    assert_eq!(entries("tmp"), 0, "swept");
    assert!(opened.list().unwrap().is_empty());
    let image = opened.ensure(&layout).unwrap();
    assert_eq!(fs::metadata(image.rootfs.join("opt/large")).unwrap().len(), 256 << 20);
}
