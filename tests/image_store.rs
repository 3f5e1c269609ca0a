//! Images and processes that are killed at their work: building, unpacking, importing.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/programs.rs"]
mod programs;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use thaw_image::Store;
use thaw_image::build::{BuildOptions, build};
use thaw_image::progress::Quiet;

/// Size of a file that takes a moment to unpack, bytes.
const LARGE: u64 = 128 << 20;

/// A layout of the test image with one large file, so that unpacking takes a moment.
fn large_layout(folder: &Path) -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = folder.join("images/large");
    fs::create_dir_all(manifest.join("files/opt")).unwrap();
    fs::copy(repository.join("images/test/image.toml"), manifest.join("image.toml")).unwrap();
    File::create(manifest.join("files/opt/large")).unwrap().set_len(LARGE).unwrap();
    let mut options = BuildOptions::new(folder.join("layout"), folder.join("cache"));
    options.rootfs_dir = Some(repository.join("rootfs"));
    build(&manifest, &options, &Quiet).unwrap().layout
}

/// Run by the tests below in a process of its own; does nothing otherwise. Prints when the image was unpacked.
#[test]
fn child_that_unpacks() {
    if let Some(folder) = std::env::var_os("THAWD_TEST_UNPACK") {
        let folder = PathBuf::from(folder);
        let image = Store::open(&folder.join("store")).unwrap().ensure(&folder.join("layout")).unwrap();
        println!("unpacked at {} to {}.", image.unpacked_at_ms, image.rootfs.display());
    }
}

/// `thawctl image VERB` at work, to be killed.
fn thawctl(arguments: &[&str], paths: &[(&str, PathBuf)]) -> Child {
    let mut command = Command::new(programs::thawctl());
    command.arg("image").args(arguments).stdout(Stdio::null()).stderr(Stdio::null());
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    command.spawn().unwrap()
}

/// Kills what `start` starts at 12 moments of its life, the first time after a run that is not disturbed. `after` is
/// told whether the process had been at work until the kill.
fn killed_at_any_moment(start: impl Fn() -> Child, mut after: impl FnMut(bool)) {
    let begun = Instant::now();
    assert!(start().wait().unwrap().success());
    let whole = begun.elapsed();
    after(false);
    let mut killed = 0;
    for step in 1..=12 {
        let mut child = start();
        std::thread::sleep(whole * step / 13);
        child.kill().unwrap();
        let at_work = !child.wait().unwrap().success();
        killed += usize::from(at_work);
        after(at_work);
    }
    assert!(killed >= 3, "only {killed} of 12 were at work");
}

fn child(folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_unpacks", "--nocapture"])
        .env("THAWD_TEST_UNPACK", folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn entries(folder: &Path) -> usize {
    fs::read_dir(folder).map_or(0, Iterator::count)
}

/// Asserts that the store is empty or has the image whole, and nothing else.
fn empty_or_whole(store: &Path) -> bool {
    let opened = Store::open(store).unwrap();
    let images = opened.list().unwrap();
    assert_eq!(entries(&store.join("tmp")), 0, "swept");
    if let [image] = &images[..] {
        assert_eq!(fs::metadata(image.rootfs.join("opt/large")).unwrap().len(), LARGE);
        assert_eq!(entries(&store.join("layers")), image.layers.len());
    } else {
        assert_eq!(entries(&store.join("names")), 0);
        // An image that is whole may be there already without its name; then so are its layers.
        assert_eq!(entries(&store.join("layers")), entries(&store.join("images")) * 2);
    }
    !images.is_empty()
}

#[test]
fn a_process_killed_at_any_moment_leaves_nothing_that_looks_whole() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let layout = large_layout(folder.path());
    let store = folder.path().join("store");
    let begun = Instant::now();
    child(folder.path()).wait().unwrap();
    let whole = begun.elapsed();
    assert!(empty_or_whole(&store));
    let mut killed_at_work = 0;
    for step in 1..=12 {
        fs::remove_dir_all(&store).unwrap();
        let mut child = child(folder.path());
        std::thread::sleep(whole * step / 12);
        child.kill().unwrap();
        child.wait().unwrap();
        killed_at_work += usize::from(entries(&store.join("tmp")) > 0);
        if store.exists() {
            empty_or_whole(&store);
        }
    }
    assert!(killed_at_work >= 3, "only {killed_at_work} of 12 were at work");
    let image = Store::open(&store).unwrap().ensure(&layout).unwrap();
    assert_eq!(fs::metadata(image.rootfs.join("opt/large")).unwrap().len(), LARGE);
}

#[test]
fn several_processes_at_once_unpack_once() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    large_layout(folder.path());
    let children: Vec<Child> = (0..4).map(|_| child(folder.path())).collect();
    let said = children.into_iter().map(|child| {
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find(|line| line.contains("unpacked at")).expect("it says so").to_owned()
    });
    assert_eq!(said.collect::<BTreeSet<_>>().len(), 1, "one time of unpacking for all");
    assert!(empty_or_whole(&folder.path().join("store")));
}

#[test]
fn a_build_killed_at_any_moment_leaves_nothing_that_looks_whole() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (_, manifest) = (large_layout(folder.path()), folder.path().join("images/large"));
    let rootfs = folder.path().join("rootfs");
    std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs"), rootfs).unwrap();
    let (layout, cache) = (folder.path().join("built"), folder.path().join("built-cache"));
    let start = || {
        let _ = fs::remove_dir_all(&cache);
        let _ = fs::remove_dir_all(&layout);
        fs::create_dir(&cache).unwrap();
        thawctl(&["build"], &[("--output", layout.clone()), ("--cache", cache.clone()), ("--", manifest.clone())])
    };
    let mut digest = None;
    killed_at_any_moment(start, |killed| {
        // There is no layout yet, or it is refused, or it has the whole image.
        let store = folder.path().join("store");
        let found = Store::open(&store).unwrap().ensure(&layout);
        assert!(killed || found.is_ok(), "{found:?}");
        if let Ok(image) = &found {
            assert!(empty_or_whole(&store));
            assert_eq!(digest.get_or_insert(image.digest.clone()), &image.digest);
        } else {
            assert!(!empty_or_whole(&store));
        }
        let _ = fs::remove_dir_all(&store);
        // What was left in the cache does no harm to the next build: it gives the same image.
        let again =
            thawctl(&["build"], &[("--output", layout.clone()), ("--cache", cache.clone()), ("--", manifest.clone())])
                .wait()
                .unwrap();
        assert!(again.success());
        let image = Store::open(&store).unwrap().ensure(&layout).unwrap();
        assert_eq!(digest.as_ref(), Some(&image.digest));
        let _ = fs::remove_dir_all(&store);
    });
}

#[test]
fn an_import_killed_at_any_moment_leaves_nothing_that_looks_whole() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (layout, store) = (large_layout(folder.path()), folder.path().join("store"));
    let archive = folder.path().join("image.tar");
    let tar = Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg(".").status().unwrap();
    assert!(tar.success());
    let start = || {
        let _ = fs::remove_dir_all(&store);
        thawctl(&["import"], &[("--store", store.clone()), ("--", archive.clone())])
    };
    killed_at_any_moment(start, |killed| {
        assert!(empty_or_whole(&store) || killed);
        let image = Store::open(&store).unwrap().import(&archive, None, &Quiet).unwrap();
        assert_eq!(fs::metadata(image.rootfs.join("opt/large")).unwrap().len(), LARGE);
        assert_eq!(Store::open(&store).unwrap().verify(&Quiet).unwrap().damage, []);
    });
}
