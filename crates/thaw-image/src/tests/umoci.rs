//! The cases by which umoci tests its unpacking (`oci/layer/tar_extract_test.go` there), told anew. Where it makes a
//! path harmless that leads out of the root, thawd refuses the layer.

use std::os::unix::fs::MetadataExt;

use super::*;

#[test]
fn sanitise_scoping() {
    let bench = Bench::new();
    bench.refuses(&[tar([pax(&[("path", "/../file")]), file("x", "theirs")])], "has a `..`");
    bench.refuses(&[tar([file("../file", "theirs")])], "has a `..`");
}

#[test]
fn symlink_scoping() {
    for target in [
        "/",
        "/../",
        "/../../../../../../../../../../../../../../../",
        "/./.././.././.././.././.././.././.././.././.././../",
        "..",
    ] {
        let bench = Bench::new();
        fs::write(bench.path("file"), "host content").unwrap();
        let image =
            bench.unpack(&[tar([symlink("link", target)]), tar([file("link/file", "container content")])]).unwrap();
        assert_eq!(fs::read_to_string(image.rootfs.join("file")).unwrap(), "container content", "{target}");
        assert_eq!(fs::read_to_string(bench.path("file")).unwrap(), "host content");
    }
}

#[test]
fn parent_directories_are_made() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([file("a/b/c/file", "creating parentdirs")])]).unwrap();
    assert_eq!(fs::read_to_string(image.rootfs.join("a/b/c/file")).unwrap(), "creating parentdirs");
}

#[test]
fn whiteouts_leave_the_time_of_the_parent() {
    for (path, is_directory) in [
        ("rootpath", false),
        (".hiddenroot", false),
        ("some/path/file", false),
        ("another/path/.hiddenfile", false),
        ("rootpath", true),
        (".hiddenroot", true),
        ("some/path/dir", true),
        ("another/path/.hiddendir", true),
    ] {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let mut lower = vec![directory(parent)];
        if is_directory {
            lower.push(directory(path));
            lower.extend(
                ["file1", "file2", ".subdir/file3"].map(|inside| file(&format!("{path}/{inside}"), "some value")),
            );
        } else {
            lower.push(file(path, "some value"));
        }
        let bench = Bench::new();
        let image = bench.unpack(&[tar(lower), tar([file(&format!("{parent}/.wh.{name}"), "")])]).unwrap();
        assert!(fs::symlink_metadata(image.rootfs.join(path)).is_err(), "{path}");
        assert_eq!(fs::metadata(image.rootfs.join(parent)).unwrap().mtime(), 1_000_000_000, "{path}");
    }
}

#[test]
fn opaque_whiteouts_hide_all_of_lower_layers_in_any_order() {
    let lower = || {
        tar([
            directory("dir"),
            file("dir/fileindir", ""),
            directory("dir/dirindir"),
            file("dir/dirindir/file", ""),
            file("dir/replaced", "old"),
            directory("other"),
            file("other/stays", ""),
        ])
    };
    let own = || {
        vec![file("dir/new", "new"), directory("dir/newdir"), file("dir/newdir/file", ""), file("dir/replaced", "new")]
    };
    for at in 0..=4 {
        let mut upper = own();
        upper.insert(at, file("dir/.wh..wh..opq", ""));
        let bench = Bench::new();
        let image = bench.unpack(&[lower(), tar(upper)]).unwrap();
        let left = ["dir", "dir/new", "dir/newdir", "dir/newdir/file", "dir/replaced", "other", "other/stays"];
        assert_eq!(brought(&image.rootfs), left, "{at}");
        assert_eq!(fs::read_to_string(image.rootfs.join("dir/replaced")).unwrap(), "new");
    }
}

#[test]
fn hard_links_to_files_and_to_symlinks_without_their_owners() {
    let bench = Bench::new();
    let image = bench
        .unpack(&[tar([
            file("regular", "some content"),
            Entry { owner: 1337, ..hardlink("hard link", "regular") },
            symlink("link", "../../../regular"),
            Entry { owner: 2020, ..hardlink("hard link to symlink", "./link") },
        ])])
        .unwrap();
    let of = |path: &str| fs::symlink_metadata(image.rootfs.join(path)).unwrap();
    assert_eq!(of("regular").ino(), of("hard link").ino());
    assert_eq!(of("link").ino(), of("hard link to symlink").ino());
    assert_ne!(of("link").ino(), of("regular").ino());
    assert_eq!(fs::read_link(image.rootfs.join("hard link to symlink")).unwrap(), Path::new("../../../regular"));
    if rustix::process::geteuid().is_root() {
        assert_eq!((of("regular").uid(), of("link").uid()), (0, 0));
    }
    // umoci resolves these within the root; thawd the first only.
    let image = bench.unpack(&[tar([file("regular", ""), hardlink("hard", "/regular")])]).unwrap();
    assert_eq!(brought(&image.rootfs), ["hard", "regular"]);
    bench.refuses_only(&[tar([symlink("link", "x"), hardlink("hard", "../../../link")])], "has a `..`");
}
