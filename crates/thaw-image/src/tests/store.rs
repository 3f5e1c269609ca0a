//! The store's own promises.

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::build::{BuildOptions, build};
use super::progress::Quiet;
use super::*;

fn test_manifest() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/test")
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
    assert_eq!(bench.store().list().unwrap(), std::slice::from_ref(&*image));
    assert_eq!(*store.get("test").unwrap(), *image);
    assert_eq!(*store.ensure(&report.layout).unwrap(), *image, "the second time nothing is unpacked");
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
        labels: std::collections::BTreeMap::new(),
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
    assert_eq!(fs::read_to_string(old.rootfs.join("a")).unwrap(), "old", "a container may still run from it");
    assert_eq!(store.prune().unwrap(), [old.digest]);
    assert!(!old.rootfs.exists() && new.rootfs.exists());
    assert_eq!(fs::read_dir(bench.path("store/layers")).unwrap().count(), 1, "the layer went with its image");
}

#[test]
fn removing_takes_the_files_away_and_says_what_is_not_there() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([file("a", "")])]).unwrap();
    let store = bench.store();
    store.remove("crafted").unwrap();
    assert!(!image.rootfs.exists() && store.list().unwrap().is_empty());
    assert_eq!(files_in(&bench.path("store")), EMPTY_STORE);
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
    fs::create_dir_all(bench.path("store/layers/half/files")).unwrap();
    fs::remove_file(image.rootfs.parent().unwrap().join("image.json")).unwrap();
    fs::write(image.rootfs.join("a"), "half").unwrap();
    let store = bench.store();
    assert!(files_in(&bench.path("store/tmp")).is_empty());
    assert_eq!(fs::read_dir(bench.path("store/layers")).unwrap().count(), 0, "no whole image has one");
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
            std::thread::spawn(move || Image::clone(&store.ensure(&layout).unwrap()))
        })
        .collect();
    let images: Vec<Image> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert!(images.iter().all(|image| *image == images[0]), "one time of unpacking for all");
}

#[test]
fn a_layer_of_two_images_is_one_on_disk_and_goes_with_the_last() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let base = || tar([directory("d"), file("d/shared", &"x".repeat(1000))]);
    let mut images = Vec::new();
    for (name, own) in [("one", "1"), ("two", "22")] {
        bench.layout_with(&[(ZSTD, base()), (GZIP, tar([file("d/own", own)]))], |_, _| {});
        bench.rename(name);
        images.push(bench.ensure().unwrap());
    }
    let inode = |image: &Image| fs::metadata(image.rootfs.join("d/shared")).unwrap().ino();
    assert_eq!(inode(&images[0]), inode(&images[1]), "one file, in memory too");
    assert_eq!(images[0].layers[0].diff_id, images[1].layers[0].diff_id);
    let store = bench.store();
    assert_eq!(store.list().unwrap().iter().map(|image| image.unpacked_bytes).sum::<u64>(), 2003);
    assert_eq!(store.unpacked_bytes().unwrap(), 1003, "counted once");
    store.remove("one").unwrap();
    assert_eq!(store.unpacked_bytes().unwrap(), 1002);
    assert_eq!(fs::read_to_string(images[1].rootfs.join("d/shared")).unwrap().len(), 1000);
    store.remove("two").unwrap();
    assert_eq!(files_in(&bench.path("store")), EMPTY_STORE);
}

#[test]
fn a_name_for_the_same_image_costs_nothing_and_keeps_it() {
    let bench = Bench::new();
    let first = bench.unpack(&[tar([file("a", "")])]).unwrap();
    bench.rename("other");
    let second = bench.ensure().unwrap();
    assert_eq!((&first.rootfs, first.unpacked_at_ms), (&second.rootfs, second.unpacked_at_ms));
    bench.store().remove("crafted").unwrap();
    assert!(second.rootfs.join("a").exists());
}

#[test]
fn an_image_that_a_daemon_may_start_is_neither_removed_nor_pruned() {
    let bench = Bench::new();
    bench.unpack(&[tar([file("a", "")])]).unwrap();
    let daemon = bench.store();
    let image = daemon.get("crafted").unwrap();
    let error = bench.store().remove("crafted").unwrap_err().to_string();
    assert_eq!(error, "image \"crafted\" is in use by a daemon that starts containers from it: end that first");
    let newer = bench.unpack(&[tar([file("a", "newer")])]).unwrap();
    assert!(bench.store().prune().unwrap().is_empty() && image.rootfs.exists());
    let digest = image.digest.clone();
    drop(image);
    assert_eq!(bench.store().prune().unwrap(), [digest], "also while the daemon lives");
    drop(daemon);
    bench.store().remove("crafted").unwrap();
    assert!(!newer.rootfs.exists());
}

#[test]
fn a_store_of_the_first_version_is_emptied_and_one_of_the_future_is_left_alone() {
    let bench = Bench::new();
    let old = bench.path("store/images/00/rootfs");
    fs::create_dir_all(&old).unwrap();
    fs::create_dir_all(bench.path("store/names")).unwrap();
    fs::write(bench.path("store/names/openai"), format!("sha256:{}", "0".repeat(64))).unwrap();
    assert!(bench.store().list().unwrap().is_empty() && !old.exists());
    assert_eq!(files_in(&bench.path("store")), EMPTY_STORE);
    fs::write(bench.path("store/version"), "5\n").unwrap();
    let error = Store::open(&bench.path("store")).unwrap_err().to_string();
    assert!(error.contains("has version 5, and this thawd knows 4: use the thawd that made it, or remove"), "{error}");
}

#[test]
fn a_list_that_was_changed_is_not_believed() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([file("a", "")])]).unwrap();
    let list = bench.path("store/layers").join(hex(&image.layers[0].diff_id)).join("contents.jsonl");
    let text = fs::read_to_string(&list).unwrap();
    fs::write(&list, text.replace("420", "493")).unwrap();
    let second = [tar([file("a", "")]), tar([file("b", "")])];
    bench.layout_with(&second.map(|archive| (TAR, archive)), |_, _| {});
    let error = bench.ensure().unwrap_err().to_string();
    assert!(error.contains("is damaged (its list of files was changed)") && error.contains("image verify"), "{error}");
}

#[test]
fn the_images_of_a_store_of_the_second_version_stay_and_are_completed() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([file("a", "")])]).unwrap();
    // As the version before left it.
    for path in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        fs::remove_file(image.rootfs.join(path)).unwrap();
    }
    for path in ["dev", "etc", "proc", "run", "sys", "tmp", "workspace"] {
        fs::remove_dir(image.rootfs.join(path)).unwrap();
    }
    let layer = bench.path("store/layers").join(hex(&image.layers[0].diff_id)).join("layer.json");
    for record in [layer, image.rootfs.parent().unwrap().join("image.json")] {
        let mut value: Value = serde_json::from_slice(&fs::read(&record).unwrap()).unwrap();
        value.as_object_mut().unwrap().retain(|key, _| !matches!(key.as_str(), "blobs" | "notes"));
        fs::write(&record, value.to_string()).unwrap();
    }
    fs::write(bench.path("store/version"), "2\n").unwrap();
    let store = bench.store();
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&image));
    assert!(image.rootfs.join("proc").is_dir() && image.rootfs.join("etc/hosts").is_file());
    assert_eq!(store.verify(&Quiet).unwrap().damage, []);
    assert_eq!(fs::read_to_string(bench.path("store/version")).unwrap(), "4\n");
}

#[test]
fn the_images_of_a_store_of_the_third_version_get_a_workspace() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([file("a", "")])]).unwrap();
    fs::remove_dir(image.rootfs.join("workspace")).unwrap();
    fs::write(bench.path("store/version"), "3\n").unwrap();
    let store = bench.store();
    assert!(image.rootfs.join("workspace").is_dir());
    assert_eq!(store.verify(&Quiet).unwrap().damage, []);
}

#[test]
fn builds_of_one_name_that_were_run_are_freed_and_cost_no_descriptor() {
    let bench = Bench::new();
    let daemon = bench.store();
    let is_ours = |path: &Path| fs::read_link(path).is_ok_and(|target| target.starts_with(bench.path("store")));
    let descriptors =
        || fs::read_dir("/proc/self/fd").unwrap().filter(|fd| is_ours(&fd.as_ref().unwrap().path())).count();
    let mut last = None;
    for number in 0..20 {
        bench.unpack(&[tar([file("a", &number.to_string())])]).unwrap();
        drop(last.take());
        // A run, and a second one of the same image.
        let (one, two) = (daemon.get("crafted").unwrap(), daemon.get("crafted").unwrap());
        assert_eq!(descriptors(), 1, "all who use an image share one");
        drop(one);
        last = Some(two);
    }
    assert_eq!(daemon.prune().unwrap().len(), 19);
    assert!(daemon.remove("crafted").is_err(), "the last one runs");
    drop(last);
    assert_eq!(descriptors(), 0);
    daemon.remove("crafted").unwrap();
    assert_eq!(files_in(&bench.path("store")), EMPTY_STORE);
}

#[test]
fn whoever_gets_an_image_has_it_however_it_is_removed_meanwhile() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let bench = Bench::new();
    bench.unpack(&[tar([file("a", "content")])]).unwrap();
    let (done, layout) = (AtomicBool::new(false), bench.path("layout"));
    let got = std::thread::scope(|scope| {
        let user = || {
            // A process of its own, as far as locks go.
            let store = bench.store();
            let mut got = 0;
            while !done.load(Ordering::Relaxed) {
                match store.get("crafted") {
                    Ok(image) => {
                        for _ in 0..2 {
                            assert_eq!(fs::read_to_string(image.rootfs.join("a")).unwrap(), "content");
                            std::thread::yield_now();
                        }
                        got += 1;
                    }
                    Err(StoreError::NotFound { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            got
        };
        let users = [scope.spawn(user), scope.spawn(user)];
        let store = bench.store();
        let mut removed = 0;
        let begun = std::time::Instant::now();
        while removed < 50 && begun.elapsed() < std::time::Duration::from_secs(20) {
            match store.remove("crafted") {
                Ok(()) => {
                    removed += 1;
                    store.import(&layout, None, &Quiet).unwrap();
                }
                Err(StoreError::InUse { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
        done.store(true, Ordering::Relaxed);
        assert!(removed >= 5, "removed {removed} times only");
        users.map(|user| user.join().unwrap()).iter().sum::<u32>()
    });
    assert!(got > 0, "it was never there");
}
