//! The store's own promises.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::build::{BuildOptions, build};
use super::progress::Quiet;
use super::*;

fn test_manifest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("images/test")
}

#[test]
fn the_test_image_goes_from_manifest_to_list() {
    let bench = Bench::new();
    let options = BuildOptions::new(bench.path("layout"), bench.path("cache"));
    let report = build(&test_manifest(), &options, &Quiet).unwrap();
    let store = bench.store();
    let image = store.ensure(&report.layout).unwrap();
    assert_eq!((image.name.as_str(), &image.digest), ("test", &report.digest));
    assert_eq!(image.compressed_bytes, report.compressed_bytes());
    assert!(image.unpacked_bytes > 1_000_000 && image.unpacked_at_ms > 1_700_000_000_000);
    assert_eq!(image.config.user, "1000:1000");
    assert_eq!(image.config.entrypoint, ["/usr/local/bin/entrypoint"]);
    assert!(image.config.env.contains(&("HOME".to_owned(), "/home/runtime".to_owned())));
    for path in ["proc", "sys", "dev", "tmp", "run", "home/runtime", "bin/sh", "usr/bin/env", "etc/passwd"] {
        assert!(fs::metadata(image.rootfs.join(path)).is_ok(), "{path}");
    }
    let output = std::process::Command::new(image.rootfs.join("usr/bin/busybox")).args(["echo", "works"]).output();
    assert_eq!(output.unwrap().stdout, b"works\n");
    assert_eq!(bench.store().list().unwrap(), std::slice::from_ref(&image));
    assert_eq!(store.get("test").unwrap(), image);
    assert_eq!(store.ensure(&report.layout).unwrap(), image, "the second time nothing is unpacked");
}

#[test]
fn others_cannot_reach_the_files_from_the_host() {
    let bench = Bench::new();
    fs::create_dir(bench.path("store")).unwrap();
    fs::set_permissions(bench.path("store"), fs::Permissions::from_mode(0o777)).unwrap();
    let image = bench.unpack(&[tar([file("a", "")])]).unwrap();
    assert_eq!(fs::metadata(bench.path("store")).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&image.rootfs).unwrap().permissions().mode() & 0o777, 0o755);
}

#[test]
fn the_configuration_is_read() {
    let image = Bench::new().unpack(&[tar([file("a", "")])]).unwrap();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let expected = ImageConfig {
        env: vec![pair("PATH", "/bin"), pair("EMPTY", "")],
        user: "1000".to_owned(),
        workdir: "/w".to_owned(),
        entrypoint: vec!["e".to_owned()],
        cmd: vec!["c".to_owned()],
    };
    assert_eq!(image.config, expected);
}

#[test]
fn a_new_image_of_a_name_leaves_the_old_files_until_pruned() {
    let bench = Bench::new();
    let old = bench.unpack(&[tar([file("a", "old")])]).unwrap();
    let new = bench.unpack(&[tar([file("a", "new")])]).unwrap();
    let store = bench.store();
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&new));
    assert!(store.prune(&[old.digest.clone()].into()).unwrap().is_empty());
    assert_eq!(fs::read_to_string(old.rootfs.join("a")).unwrap(), "old", "a container may still run from it");
    assert_eq!(store.prune(&[].into()).unwrap(), [old.digest]);
    assert!(!old.rootfs.exists() && new.rootfs.exists());
}

#[test]
fn removing_takes_the_files_away_and_says_what_is_not_there() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([file("a", "")])]).unwrap();
    let store = bench.store();
    store.remove("crafted").unwrap();
    assert!(!image.rootfs.exists() && store.list().unwrap().is_empty());
    assert!(matches!(store.remove("crafted"), Err(StoreError::NotFound { .. })));
    assert!(matches!(store.get("../x"), Err(StoreError::Name { .. })));
}

#[test]
fn leftovers_of_a_kill_are_swept_and_never_look_whole() {
    let bench = Bench::new();
    let store = bench.store();
    bench.layout_with(&[(TAR, tar([file("a", "")]))], |_, _| {});
    let image = store.ensure(&bench.path("layout")).unwrap();
    // As killed while unpacking: work in progress, and a folder without its record.
    fs::create_dir_all(bench.path("store/tmp/1-2-3/rootfs/bin")).unwrap();
    fs::write(bench.path("store/tmp/name"), "half").unwrap();
    fs::remove_file(image.rootfs.parent().unwrap().join("image.json")).unwrap();
    fs::write(image.rootfs.join("a"), "half").unwrap();
    let store = bench.store();
    assert!(files_in(&bench.path("store/tmp")).is_empty());
    assert!(store.list().unwrap().is_empty());
    let image = store.ensure(&bench.path("layout")).unwrap();
    assert_eq!(fs::read_to_string(image.rootfs.join("a")).unwrap(), "");
}

#[test]
fn opening_does_not_sweep_the_work_of_another() {
    let bench = Bench::new();
    bench.store();
    let busy = fs::File::options().write(true).open(bench.path("store/lock")).unwrap();
    busy.lock().unwrap();
    fs::create_dir(bench.path("store/tmp/theirs")).unwrap();
    bench.store();
    assert!(bench.path("store/tmp/theirs").exists());
    drop(busy);
    bench.store();
    assert!(!bench.path("store/tmp/theirs").exists());
}

#[test]
fn many_at_once_unpack_once() {
    let bench = Bench::new();
    bench.layout_with(&[(ZSTD, tar([file("a", &"x".repeat(1 << 20))]))], |_, _| {});
    let (store, layout) = (Arc::new(bench.store()), bench.path("layout"));
    let threads: Vec<_> = (0..8)
        .map(|_| {
            let (store, layout) = (Arc::clone(&store), layout.clone());
            std::thread::spawn(move || store.ensure(&layout).unwrap())
        })
        .collect();
    let images: Vec<Image> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(images.iter().all(|image| *image == images[0]), "one time of unpacking for all");
}
