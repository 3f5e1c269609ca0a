//! Layers that mean to write where they must not. Each is refused or contained, and leaves nothing anywhere else.

use super::*;

/// A link out of the root to the neighbour.
fn way_out(bench: &Bench) -> Entry {
    symlink("out", bench.path("neighbour").to_str().unwrap())
}

#[test]
fn paths_that_climb() {
    let bench = Bench::new();
    bench.refuses(&[tar([file("../neighbour/file", "theirs")])], "has a `..`");
    bench.refuses(&[tar([file("a/../../neighbour/file", "theirs")])], "has a `..`");
    bench.refuses(&[tar([directory("..")])], "has a `..`");
}

#[test]
fn absolute_paths() {
    let path_of = |bench: &Bench| bench.path("neighbour/file").to_str().unwrap().to_owned();
    // As a PAX record, since a header has no room for it. The path is one of the image's own root.
    let bench = Bench::new();
    let path = path_of(&bench);
    let image = bench.unpack(&[tar([pax(&[("path", &path)]), file("x", "theirs")])]).unwrap();
    assert_eq!(fs::read_to_string(image.rootfs.join(&path[1..])).unwrap(), "theirs");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    let bench = Bench::new();
    let climbing = format!("/..{}", path_of(&bench));
    bench.refuses(&[tar([pax(&[("path", &climbing)]), file("x", "theirs")])], "has a `..`");
    bench.refuses(&[tar([file("/../x", "theirs")])], "has a `..`");
    bench.refuses(&[tar([file("//../x", "theirs")])], "has a `..`");
    bench.refuses(&[tar([file("/../.wh.x", "")])], "has a `..`");
    bench.refuses(&[tar([pax(&[("path", "a\0b")]), file("x", "")])], "zero byte");
}

#[test]
fn files_through_a_symbolic_link() {
    let bench = Bench::new();
    for last in [file("out/file", "theirs"), directory("out/new"), symlink("out/new", "x"), file("out/a/b", "theirs")] {
        // The link names a place of the host, which inside is nowhere.
        bench.refuses(&[tar([way_out(&bench), last])], "through a link to nowhere");
    }
    // The same in two layers.
    bench.refuses(&[tar([way_out(&bench)]), tar([file("out/file", "theirs")])], "through a link to nowhere");
    bench.refuses(&[tar([symlink("a", "b"), symlink("b", "a"), file("a/x", "")])], "through too many links");
    bench.refuses(&[tar([file("f", ""), symlink("a", "f"), file("a/x", "")])], "through a file");
    bench.refuses(&[tar([file("f", ""), file("f/x", "")])], "through a file");
}

#[test]
fn whiteouts_through_a_symbolic_link_hide_nothing_of_the_host() {
    let bench = Bench::new();
    for last in [file("out/.wh.file", ""), file("out/.wh..wh..opq", "")] {
        let image = bench.unpack(&[tar([way_out(&bench)]), tar([last])]).unwrap();
        assert_eq!(brought(&image.rootfs), ["out"]);
        assert_eq!(fs::read_to_string(bench.path("neighbour/file")).unwrap(), "mine");
    }
}

#[test]
fn links_are_resolved_within_the_root_however_they_climb() {
    let bench = Bench::new();
    let neighbour = bench.path("neighbour").to_str().unwrap().to_owned();
    // Inside there is a directory of the same path as the neighbour outside.
    for target in [neighbour.clone(), format!("../../../../../..{neighbour}"), format!("/..{neighbour}")] {
        let inside = format!("{}/", &neighbour[1..]);
        let archive = tar([directory(&inside), symlink("out", &target), file("out/file", "theirs")]);
        let image = bench.unpack(&[archive]).unwrap();
        assert_eq!(fs::read_to_string(image.rootfs.join(inside).join("file")).unwrap(), "theirs");
        assert_eq!(fs::read_to_string(bench.path("neighbour/file")).unwrap(), "mine");
    }
}

#[test]
fn links_cannot_make_a_tree_deeper_than_the_limit() {
    let bench = Bench::with(Limits { depth: 4, ..Limits::default() });
    let other = Bench::with(bench.limits.clone());
    other.unpack(&[tar([directory("a/b/c/d"), symlink("x", "a/b"), file("x/c/d/f", "")])]).unwrap();
    bench.refuses(&[tar([directory("a/b/c"), symlink("x", "a/b/c"), directory("x/d/e")])], "limit of 4 levels");
    bench.refuses(&[tar([directory("a/b/c"), symlink("x", "a/b/c"), file("x/d/e/f", "")])], "limit of 4 levels");
}

#[test]
fn a_file_over_a_link_replaces_the_link() {
    let bench = Bench::new();
    let link = symlink("out", bench.path("neighbour/file").to_str().unwrap());
    let image = bench.unpack(&[tar([link]), tar([file("out", "inside")])]).unwrap();
    assert_eq!(fs::read_to_string(image.rootfs.join("out")).unwrap(), "inside");
    assert_eq!(fs::read_to_string(bench.path("neighbour/file")).unwrap(), "mine");
}

#[test]
fn a_directory_over_a_link_does_not_change_what_it_leads_to() {
    let bench = Bench::new();
    let before = fs::metadata(bench.path("neighbour")).unwrap().permissions();
    let image = bench.unpack(&[tar([way_out(&bench)]), tar([directory("out").mode(0o700)])]).unwrap();
    assert!(fs::symlink_metadata(image.rootfs.join("out")).unwrap().is_dir());
    assert_eq!(fs::metadata(bench.path("neighbour")).unwrap().permissions(), before);
}

#[test]
fn a_directory_that_is_later_exchanged_for_a_link_is_not_chmodded_through_it() {
    let bench = Bench::new();
    let before = fs::metadata(bench.path("neighbour")).unwrap().permissions();
    bench.unpack(&[tar([directory("out").mode(0o700), way_out(&bench)])]).unwrap();
    assert_eq!(fs::metadata(bench.path("neighbour")).unwrap().permissions(), before);
}

#[test]
fn hard_links_to_the_outside() {
    let bench = Bench::new();
    bench.refuses(&[tar([hardlink("x", "../neighbour/file")])], "has a `..`");
    bench.refuses(&[tar([hardlink("x", "/etc/passwd")])], "not there");
    bench.refuses(&[tar([hardlink("x", "/../neighbour/file")])], "has a `..`");
    bench.refuses(&[tar([file("x", ""), hardlink("x", "/x")])], "link to itself");
    bench.refuses(&[tar([hardlink("x", "/")])], "link to a directory");
    bench.refuses(&[tar([way_out(&bench), hardlink("x", "out/file")])], "not there");
    bench.refuses(&[tar([hardlink("x", "missing")])], "not there");
    bench.refuses(&[tar([file("x", ""), hardlink("x", "./x")])], "link to itself");
    bench.refuses(&[tar([directory("d"), hardlink("x", "d")])], "link to a directory");
    bench.refuses(&[tar([hardlink("x", ".")])], "link to a directory");
}

#[test]
fn a_hard_link_to_a_link_does_not_give_what_it_leads_to() {
    let bench = Bench::new();
    let link = symlink("s", bench.path("neighbour/file").to_str().unwrap());
    // Writing to the second name must not write to the neighbour.
    let image = bench.unpack(&[tar([link, hardlink("x", "s"), file("x", "inside")])]).unwrap();
    assert_eq!(fs::read_to_string(image.rootfs.join("x")).unwrap(), "inside");
    assert_eq!(fs::read_to_string(bench.path("neighbour/file")).unwrap(), "mine");
}

#[test]
fn whiteouts_of_nothing_and_of_the_parent() {
    let bench = Bench::new();
    bench.refuses(&[tar([file(".wh.", "")])], "whiteout of no file");
    bench.refuses(&[tar([file("a/.wh...", "")])], "whiteout of no file");
    bench.refuses(&[tar([file("a/.wh..", "")])], "whiteout of no file");
}

#[test]
fn whiteouts_remove_links_and_not_what_they_lead_to() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([way_out(&bench)]), tar([file(".wh.out", "")])]).unwrap();
    assert!(brought(&image.rootfs).is_empty());
    assert_eq!(files_in(&bench.path("neighbour")), ["file"]);
}

#[test]
fn devices_and_pipes() {
    let bench = Bench::new();
    let image = bench
        .unpack(&[tar([
            entry(EntryType::Char, "null"),
            entry(EntryType::Block, "sda"),
            entry(EntryType::Fifo, "run/pipe"),
            hardlink("other", "null"),
            file("a", ""),
        ])])
        .unwrap();
    assert_eq!(brought(&image.rootfs), ["a"]);
    bench.refuses_only(&[tar([entry(EntryType::new(b'Z'), "odd")])], "unknown type");
    bench.refuses_only(&[tar([entry(EntryType::Char, "../null")])], "has a `..`");
    bench.refuses_only(&[tar([Entry { content: vec![1; 512], ..entry(EntryType::Fifo, "p") }])], "no file");
}

#[test]
fn setuid_setgid_and_capabilities_do_not_survive() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new();
    let archive = tar([
        pax(&[("SCHILY.xattr.security.capability", "\u{1}\0\0\u{2}")]),
        file("su", "").mode(0o6755),
        directory("d").mode(0o6755),
    ]);
    let image = bench.unpack(&[archive]).unwrap();
    for path in ["su", "d"] {
        let mode = fs::metadata(image.rootfs.join(path)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755);
    }
    let mut value = [0; 64];
    assert!(rustix::fs::getxattr(image.rootfs.join("su"), "security.capability", &mut value).is_err());
}

#[test]
fn uid_and_gid_above_two_to_the_31() {
    let bench = Bench::new();
    for id in ["2147483648", "4294967295", "4294967296", "18446744073709551615"] {
        bench.refuses(&[tar([pax(&[("uid", id)]), file("x", "")])], "owner is above 2147483647");
        bench.refuses(&[tar([pax(&[("gid", id)]), directory("x")])], "owner is above 2147483647");
    }
    // In the header itself, as GNU tar writes large numbers; and one that no number can hold.
    bench.refuses(&[tar([Entry { owner: 1 << 31, ..file("x", "") }])], "owner is above 2147483647");
    bench.refuses(&[tar([pax(&[("uid", "18446744073709551616")]), file("x", "")])], "malformed");
    bench.refuses(&[tar([pax(&[("uid", "-1")]), file("x", "")])], "malformed");
}

#[test]
fn duplicate_entries_never_write_through_the_first() {
    let bench = Bench::new();
    let neighbour = bench.path("neighbour/file").to_str().unwrap().to_owned();
    // A link and then a file of the same name, also by another spelling and by a second hard link.
    for second in ["x", "./x", "d/../x", "d//..//x"] {
        let archive = tar([directory("d"), symlink("x", &neighbour), file(second, "theirs")]);
        if second.contains("..") {
            bench.refuses_only(&[archive], "has a `..`");
        } else {
            let image = bench.unpack(&[archive]).unwrap();
            assert_eq!(fs::read_to_string(image.rootfs.join("x")).unwrap(), "theirs");
        }
        assert_eq!(fs::read_to_string(&neighbour).unwrap(), "mine");
    }
    // The content of one entry never ends up in a file that another layer, or another image, has too.
    let lower = tar([file("a", "lower"), hardlink("b", "a")]);
    let image =
        bench.unpack(&[lower, tar([file("a", "1"), file("a", "2"), hardlink("a", "b"), file("a", "3")])]).unwrap();
    assert_eq!(fs::read_to_string(image.rootfs.join("a")).unwrap(), "3");
    assert_eq!(fs::read_to_string(image.rootfs.join("b")).unwrap(), "lower");
}

#[test]
fn a_hard_link_over_the_directory_that_its_file_is_in() {
    let bench = Bench::new();
    bench.refuses(&[tar([file("d/f", ""), hardlink("d", "d/f")])], "not there");
    bench.refuses(&[tar([directory("d"), symlink("l", "d"), file("d/f", ""), hardlink("l/f", "d/f")])], "to itself");
}
