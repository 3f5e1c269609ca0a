//! Layers and documents that mean harm. Each is refused, and leaves nothing anywhere.

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
    let bench = Bench::new();
    let path = bench.path("neighbour/file");
    // As a PAX record, since a header has no room for it.
    bench.refuses(&[tar([pax(&[("path", path.to_str().unwrap())]), file("x", "theirs")])], "is absolute");
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
        assert_eq!(files_in(&image.rootfs), ["out"]);
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
    bench.refuses(&[tar([hardlink("x", "/etc/passwd")])], "is absolute");
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
    assert!(files_in(&image.rootfs).is_empty());
    assert_eq!(files_in(&bench.path("neighbour")), ["file"]);
}

#[test]
fn devices_and_pipes() {
    let bench = Bench::new();
    bench.refuses(&[tar([entry(EntryType::Char, "null")])], "is a device");
    bench.refuses(&[tar([entry(EntryType::Block, "sda")])], "is a device");
    bench.refuses(&[tar([entry(EntryType::Fifo, "pipe")])], "is a named pipe");
    bench.refuses(&[tar([entry(EntryType::new(b'Z'), "odd")])], "unknown type");
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
fn owners_that_overflow() {
    let bench = Bench::new();
    bench.refuses(&[tar([pax(&[("uid", "4294967295")]), file("x", "")])], "owner is above");
    bench.refuses(&[tar([pax(&[("gid", "2147483648")]), file("x", "")])], "owner is above");
}

#[test]
fn archives_that_two_readers_would_read_differently() {
    let bench = Bench::new();
    bench.refuses(&[tar([pax(&[("size", "1024")]), file("x", "content")])], "different sizes");
    bench.refuses(&[tar([pax(&[("path", "a"), ("path", "b")]), file("x", "")])], "two extension headers");
    bench.refuses(&[tar([pax(&[("GNU.sparse.major", "1")]), file("x", "")])], "sparse");
    bench.refuses(&[tar([entry(EntryType::GNUSparse, "x")])], "sparse");
    bench.refuses(&[tar([Entry { content: b"12 path=short".to_vec(), ..pax(&[]) }, file("x", "")])], "malformed");
    bench.refuses(&[tar([Entry { content: b"99999999999999999999 a=b\n".to_vec(), ..pax(&[]) }])], "malformed");
    bench.refuses(&[tar([pax(&[("path", "x")])])], "ends after an extension header");
    bench.refuses(&[tar([Entry { content: vec![1; 512], ..directory("d") }])], "no file");
    let global = Entry { kind: EntryType::XGlobalHeader, ..pax(&[("path", "everything")]) };
    bench.refuses(&[tar([global, file("x", "")])], "global header");
    let hidden = [tar([file("a", "")]), tar([file("b", "")])].concat();
    bench.refuses(&[hidden], "data after its end mark");
    let mut broken = tar([file("x", "content")]);
    broken[0] ^= 1;
    bench.refuses(&[broken], "checksum");
    let mut short = tar([file("x", &"content".repeat(1000))]);
    short.truncate(1024);
    bench.refuses(&[short], "ends in the middle");
    bench.refuses(&[tar([file(".", "")])], "root must be a directory");
}

#[test]
fn every_limit_holds() {
    let archive = || tar([file("a/b/c", "0123456789"), file("d", "0123456789")]);
    let default = Limits::default;
    Bench::with(Limits { unpacked_bytes: 20, ..default() }).unpack(&[archive()]).unwrap();
    Bench::with(Limits { unpacked_bytes: 19, ..default() }).refuses(&[archive()], "limit of 19 unpacked bytes");
    Bench::with(Limits { entries: 4, ..default() }).unpack(&[archive()]).unwrap();
    Bench::with(Limits { entries: 3, ..default() }).refuses(&[archive()], "limit of 3 entries");
    Bench::with(Limits { path_bytes: 10, ..default() }).unpack(&[archive()]).unwrap();
    Bench::with(Limits { path_bytes: 9, ..default() }).refuses(&[archive()], "limit of 9 bytes of paths");
    Bench::with(Limits { depth: 3, ..default() }).unpack(&[archive()]).unwrap();
    Bench::with(Limits { depth: 2, ..default() }).refuses(&[archive()], "limit of 2 levels");
    Bench::with(Limits { layers: 1, ..default() }).refuses(&[archive(), archive()], "at most 1");
    Bench::with(Limits { archive_bytes: 2048, ..default() }).refuses(&[archive()], "limit of 2048 bytes of archives");
    Bench::with(Limits { document_bytes: 100, ..default() }).refuses(&[archive()], "more than 100 bytes");
}

#[test]
fn bombs_end_at_the_limit() {
    // 64 MiB of zeros in a few kilobytes: as a file, as padding after the end, and as an extension header.
    let zeros = "\0".repeat(64 << 20);
    let limits = || Limits { unpacked_bytes: 1 << 20, archive_bytes: 2 << 20, ..Limits::default() };
    for kind in [GZIP, ZSTD] {
        let bench = Bench::with(limits());
        bench.layout_with(&[(kind, tar([file("bomb", &zeros)]))], |_, _| {});
        bench.refuses_layout("limit of 1048576 unpacked bytes");
        let padded = [tar([file("a", "")]), zeros.clone().into_bytes()].concat();
        bench.layout_with(&[(kind, padded)], |_, _| {});
        bench.refuses_layout("limit of 2097152 bytes of archives");
        let name = Entry { content: zeros.clone().into(), ..entry(EntryType::GNULongName, "l") };
        bench.layout_with(&[(kind, tar([name, file("a", "")]))], |_, _| {});
        bench.refuses_layout("bytes of an extension header");
    }
}

#[test]
fn blobs_that_are_not_what_they_are_called() {
    let bench = Bench::new();
    let archive = tar([file("a", "content")]);
    let spoil = |digest: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = bench.path("layout/blobs/sha256").join(hex(digest));
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
    };
    for kind in [TAR, GZIP, ZSTD] {
        let digest = sha256(&compress(kind, &archive));
        // Right length, wrong content; then the wrong length.
        bench.layout_with(&[(kind, archive.clone())], |_, _| {});
        spoil(&digest, &|bytes| *bytes.last_mut().unwrap() ^= 1);
        bench.refuses_layout("the layout is damaged");
        bench.layout_with(&[(kind, archive.clone())], |_, _| {});
        spoil(&digest, &|bytes| bytes.push(0));
        bench.refuses_layout("the layout is damaged");
    }
    // The configuration and the manifest themselves.
    for marker in ["diff_ids", "\"layers\":["] {
        bench.layout_with(&[(TAR, archive.clone())], |_, _| {});
        for entry in fs::read_dir(bench.path("layout/blobs/sha256")).unwrap() {
            let path = entry.unwrap().path();
            let text = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            if text.contains(marker) {
                fs::write(&path, text.replacen("sha256", "sha257", 1)).unwrap();
            }
        }
        bench.refuses_layout("the layout is damaged");
    }
}

#[test]
fn an_archive_that_is_not_the_one_of_the_configuration() {
    let bench = Bench::new();
    let other = bench.descriptor(TAR, &tar([file("b", "")]));
    bench.layout_with(&[(TAR, tar([file("a", "")]))], |manifest, _| {
        bench.blob(&tar([file("b", "")]));
        manifest["layers"] = json!([other]);
    });
    bench.refuses_layout("but the configuration says");
}

#[test]
fn documents_that_mean_two_things_or_point_elsewhere() {
    let bench = Bench::new();
    let layers = || [(TAR, tar([file("a", "")]))];
    bench.layout_with(&layers(), |_, index| index["layers"] = json!([]));
    bench.refuses_layout("index and a manifest at once");
    bench.layout_with(&layers(), |manifest, _| manifest["manifests"] = json!([]));
    bench.refuses_layout("manifest and an index at once");
    bench.layout_with(&layers(), |manifest, _| manifest["layers"][0]["urls"] = json!(["http://x/"]));
    bench.refuses_layout("fetched from elsewhere");
    bench.layout_with(&layers(), |manifest, _| manifest["layers"][0]["mediaType"] = json!("application/zip"));
    bench.refuses_layout("unsupported type application/zip");
    bench.layout_with(&layers(), |manifest, _| {
        manifest["config"]["mediaType"] = json!("application/vnd.oci.empty.v1+json")
    });
    bench.refuses_layout("is no image");
    bench.layout_with(&layers(), |manifest, _| manifest["layers"] = json!([]));
    bench.refuses_layout("0 layers and 1 diff ids");
    bench.layout_with(&layers(), |_, index| index["manifests"] = json!([]));
    bench.refuses_layout("exactly one manifest");
    let climbing = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "size": 4, "digest": "sha256:../../../neighbour/file"});
    bench.layout_with(&layers(), |_, index| index["manifests"] = json!([climbing]));
    bench.refuses_layout("Invalid encoded value");
}

#[test]
fn blobs_that_are_links_or_pipes() {
    let bench = Bench::new();
    let archive = tar([file("a", "")]);
    let blob = bench.path("layout/blobs/sha256").join(hex(&sha256(&archive)));
    bench.layout_with(&[(TAR, archive.clone())], |_, _| {});
    let elsewhere = bench.path("elsewhere");
    fs::rename(&blob, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &blob).unwrap();
    bench.refuses_layout("symbolic link");
    fs::remove_file(&blob).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &blob, rustix::fs::Mode::RUSR).unwrap();
    bench.refuses_layout("is not a file");
}

#[test]
fn names_that_are_paths() {
    let bench = Bench::new();
    bench.layout_with(&[(TAR, tar([file("a", "")]))], |_, _| {});
    let path = bench.path("layout/index.json");
    let text = fs::read_to_string(&path).unwrap();
    for name in ["../../neighbour/file", "", ".hidden", "A", "a/../b", "/a"] {
        fs::write(&path, text.replace("\"crafted\"", &json!(name).to_string())).unwrap();
        bench.refuses_layout("image name");
    }
}
