//! What layers mean: the cases of the OCI image specification.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::*;

fn read(image: &Image, path: &str) -> String {
    fs::read_to_string(image.rootfs.join(path)).unwrap()
}

fn mode(image: &Image, path: &str) -> u32 {
    fs::symlink_metadata(image.rootfs.join(path)).unwrap().permissions().mode() & 0o7777
}

#[test]
fn all_three_compressions_give_the_same_files() {
    let bench = Bench::new();
    let archive = |n: u32| tar([directory("d"), file(&format!("d/{n}"), "content")]);
    bench.layout_with(&[(TAR, archive(1)), (GZIP, archive(2)), (ZSTD, archive(3))], |_, _| {});
    let image = bench.ensure().unwrap();
    assert_eq!(brought(&image.rootfs), ["d", "d/1", "d/2", "d/3"]);
    assert_eq!(image.unpacked_bytes, 21);
}

#[test]
fn a_whiteout_hides_files_and_whole_directories_of_lower_layers() {
    let bench = Bench::new();
    let lower = tar([directory("a"), directory("a/b"), file("a/b/c", "1"), file("d", "2"), file("e", "3")]);
    let upper = tar([file(".wh.a", ""), file(".wh.d", ""), file(".wh.not-there", ""), file("no/.wh.x", "")]);
    assert_eq!(brought(&bench.unpack(&[lower, upper]).unwrap().rootfs), ["e"]);
}

#[test]
fn a_whiteout_does_not_hide_what_its_own_layer_brings() {
    for order in [[0, 1], [1, 0]] {
        let bench = Bench::new();
        let lower = tar([directory("a"), file("a/old", "1")]);
        let parts = [file("a/new", "2"), file(".wh.a", "")];
        let mut upper: Vec<Option<Entry>> = parts.into_iter().map(Some).collect();
        let upper = tar(order.map(|at: usize| upper[at].take().unwrap()));
        assert_eq!(brought(&bench.unpack(&[lower, upper]).unwrap().rootfs), ["a", "a/new"], "{order:?}");
    }
}

#[test]
fn an_opaque_directory_hides_lower_content_only() {
    let bench = Bench::new();
    let lower = tar([directory("a"), directory("a/sub"), file("a/sub/x", "1"), file("a/old", "1"), file("b", "")]);
    let upper = tar([directory("a"), file("a/new", "2"), file("a/.wh..wh..opq", ""), file("a/later", "3")]);
    let image = bench.unpack(&[lower, upper]).unwrap();
    assert_eq!(brought(&image.rootfs), ["a", "a/later", "a/new", "b"]);
}

#[test]
fn an_upper_layer_replaces_any_kind_by_any_other() {
    let bench = Bench::new();
    let lower = tar([
        file("file", "1"),
        directory("folder"),
        file("folder/inside", "2"),
        symlink("link", "folder"),
        symlink("to-folder", "folder"),
    ]);
    let upper = tar([
        directory("file"),
        file("folder", "now a file"),
        file("link", "now a file"),
        directory("to-folder"),
        file("to-folder/x", ""),
    ]);
    let image = bench.unpack(&[lower, upper]).unwrap();
    assert_eq!(brought(&image.rootfs), ["file", "folder", "link", "to-folder", "to-folder/x"]);
    assert_eq!(read(&image, "link"), "now a file");
    assert!(image.rootfs.join("file").is_dir());
}

#[test]
fn rewriting_one_of_two_hard_links_leaves_the_other() {
    let bench = Bench::new();
    let lower = tar([file("one", "old"), hardlink("two", "one")]);
    let image = bench.unpack(&[lower, tar([file("two", "new")])]).unwrap();
    assert_eq!((read(&image, "one"), read(&image, "two")), ("old".to_owned(), "new".to_owned()));
}

#[test]
fn hard_links_share_a_file_also_across_layers_and_to_symlinks() {
    let bench = Bench::new();
    let lower = tar([file("one", "1"), symlink("s", "/etc/passwd")]);
    let image = bench.unpack(&[lower, tar([hardlink("two", "./one"), hardlink("t", "s")])]).unwrap();
    let inode = |path: &str| fs::symlink_metadata(image.rootfs.join(path)).unwrap().ino();
    assert_eq!(inode("one"), inode("two"));
    assert_eq!(fs::read_link(image.rootfs.join("t")).unwrap(), Path::new("/etc/passwd"));
}

#[test]
fn modes_times_and_owners_come_from_the_layer_whatever_the_umask() {
    let bench = Bench::new();
    let archive = tar([
        directory("./").mode(0o750),
        directory("tmp").mode(0o1777),
        directory("closed").mode(0o500),
        Entry { owner: 1000, ..file("closed/file", "x") }.mode(0o664),
        directory("implied/later").mode(0o711),
    ]);
    let image = bench.unpack(&[archive]).unwrap();
    let all = ["", "tmp", "closed", "closed/file", "implied", "implied/later"].map(|path| mode(&image, path));
    assert_eq!(all, [0o750, 0o1777, 0o500, 0o664, 0o755, 0o711]);
    let found = fs::metadata(image.rootfs.join("closed/file")).unwrap();
    assert_eq!(found.mtime(), 1_000_000_000);
    if rustix::process::geteuid().is_root() {
        assert_eq!((found.uid(), found.gid()), (1000, 1000));
    }
}

#[test]
fn long_names_are_read_in_both_dialects() {
    let bench = Bench::new();
    let deep = format!("{}/{}", "d".repeat(120), "f".repeat(150));
    let gnu = Entry { content: format!("{deep}-gnu\0").into(), ..entry(EntryType::GNULongName, "././@LongLink") };
    let gnu_link = Entry { content: "t".repeat(300).into(), ..entry(EntryType::GNULongLink, "././@LongLink") };
    let archive = tar([
        gnu,
        file("short", "1"),
        pax(&[("path", &format!("{deep}-pax")), ("mtime", "5.25"), ("SCHILY.xattr.user.x", "a\nb")]),
        file("short", "2"),
        gnu_link,
        symlink("l", "short"),
    ]);
    let image = bench.unpack(&[archive]).unwrap();
    assert_eq!(read(&image, &format!("{deep}-gnu")), "1");
    assert_eq!(read(&image, &format!("{deep}-pax")), "2");
    assert_eq!(fs::metadata(image.rootfs.join(format!("{deep}-pax"))).unwrap().mtime(), 5);
    assert_eq!(fs::read_link(image.rootfs.join("l")).unwrap().as_os_str().len(), 300);
}

#[test]
fn links_may_lead_anywhere_since_nothing_follows_them_here() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([symlink("a", "../../../etc/passwd"), symlink("b", "/nowhere")])]).unwrap();
    assert_eq!(fs::read_link(image.rootfs.join("a")).unwrap(), Path::new("../../../etc/passwd"));
}

#[test]
fn entries_through_a_link_of_a_lower_layer_go_to_where_it_leads_inside() {
    let bench = Bench::new();
    let base = tar([directory("usr/lib"), symlink("lib", "usr/lib"), symlink("abs", "/usr"), symlink("up", "../usr")]);
    let upper =
        tar([file("lib/x", "1"), file("abs/lib/y", "2"), file("up/lib/z", "3"), hardlink("lib/w", "abs/lib/y")]);
    let image = bench.unpack(&[base, upper]).unwrap();
    let all = ["abs", "lib", "up", "usr", "usr/lib", "usr/lib/w", "usr/lib/x", "usr/lib/y", "usr/lib/z"];
    assert_eq!(brought(&image.rootfs), all);
    assert_eq!(read(&image, "usr/lib/w"), "2");
}

#[test]
fn whiteouts_through_a_link_spare_what_their_own_layer_brings_by_another_path() {
    let bench = Bench::new();
    let base = tar([directory("usr/lib"), file("usr/lib/old", "1"), symlink("lib", "usr/lib")]);
    let upper = tar([file("lib/new", "2"), file("usr/lib/.wh..wh..opq", ""), file("lib/.wh.new", "")]);
    let image = bench.unpack(&[base, upper]).unwrap();
    assert_eq!(brought(&image.rootfs), ["lib", "usr", "usr/lib", "usr/lib/new"]);
}

#[test]
fn the_last_of_several_entries_for_one_path_counts() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([file("a", "1"), file("b", "x"), file("a", "2"), file("c", "y")])]).unwrap();
    assert_eq!([read(&image, "a"), read(&image, "b"), read(&image, "c")], ["2", "x", "y"]);
}

#[test]
fn the_same_layer_twice_is_unpacked_once() {
    let bench = Bench::new();
    let archive = || tar([file("a", "1")]);
    let image = bench.unpack(&[archive(), tar([file(".wh.a", "")]), archive()]).unwrap();
    assert_eq!(brought(&image.rootfs), ["a"]);
}
