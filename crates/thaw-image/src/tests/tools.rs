//! Layers as tools really make them: kaniko, buildpacks, buildkit, containerd, umoci, Nix, and old versions of each.

use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use super::progress::Quiet;
use super::unpack::{ItemKind, each};
use super::*;

/// Paths with kind, mode, owner and content or target.
fn described(image: &Image) -> Vec<String> {
    let describe = |path: String| {
        let at = image.rootfs.join(&path);
        let found = fs::symlink_metadata(&at).unwrap();
        let what = if found.is_symlink() {
            fs::read_link(&at).unwrap().to_str().unwrap().to_owned()
        } else if found.is_file() {
            fs::read_to_string(&at).unwrap()
        } else {
            "/".to_owned()
        };
        format!("{path} {:o} {} {what}", found.mode(), found.uid())
    };
    brought(&image.rootfs).into_iter().map(describe).collect()
}

#[test]
fn names_that_begin_with_a_slash_are_those_of_the_root() {
    let lower = |slash: &str| {
        let at = |path: &str| format!("{slash}{path}");
        tar([
            directory(if slash.is_empty() { "./" } else { slash }),
            directory(&at("app/")).mode(0o750),
            file(&at("app/run"), "run").mode(0o755),
            file(&at("app/gone"), ""),
            file(&at("app/opaque/old"), ""),
            symlink(&at("link"), "/app/run"),
            hardlink(&at("second"), &at("app/run")),
            pax(&[("path", &at("app/long")), ("linkpath", &at("app/run"))]),
            hardlink("x", "y"),
        ])
    };
    let upper = |slash: &str| {
        let at = |path: &str| format!("{slash}{path}");
        tar([
            file(&at("app/.wh.gone"), ""),
            file(&at("app/opaque/.wh..wh..opq"), ""),
            file(&at("app/opaque/new"), ""),
            file(&at(".wh..wh.plnk"), ""),
            file(&at("app//./odd"), ""),
        ])
    };
    let benches: [Bench; 7] = std::array::from_fn(|_| Bench::new());
    let without = benches[0].unpack(&[lower(""), upper("")]).unwrap();
    assert_eq!(brought(&without.rootfs).len(), 8, "{:?}", brought(&without.rootfs));
    for (slash, bench) in ["/", "//", "./", ".//", "/./"].into_iter().zip(&benches[1..]) {
        let with = bench.unpack(&[lower(slash), upper(slash)]).unwrap();
        assert_eq!(described(&with), described(&without), "{slash}");
    }
    // In one archive both ways, as buildpacks do.
    let mixed = benches[6].unpack(&[lower("/"), upper("")]).unwrap();
    assert_eq!(described(&mixed), described(&without));
}

#[test]
fn a_directory_without_a_name_is_the_root() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([directory("").mode(0o711), file("a", "")])]).unwrap();
    assert_eq!(fs::metadata(&image.rootfs).unwrap().mode() & 0o7777, 0o711);
    Bench::new().refuses(&[tar([file("", "")])], "path is empty");
    Bench::new().refuses(&[tar([file(".", "")])], "root must be a directory");
    Bench::new().refuses(&[tar([symlink("/", "x")])], "root must be a directory");
}

#[test]
fn the_root_has_the_mode_that_the_archive_says() {
    for name in ["./", "/", ".", "//"] {
        let root = Entry { owner: 12345, ..directory(name) }.mode(0o700);
        let bench = Bench::new();
        let image = bench.unpack(&[tar([root, file("a", "")])]).unwrap();
        let found = fs::metadata(&image.rootfs).unwrap();
        assert_eq!((found.mode() & 0o7777, found.uid(), found.mtime()), (0o700, 12345, 1_000_000_000), "{name}");
    }
}

#[test]
fn what_containers_have_mounted_on_is_made_if_it_is_missing() {
    let bench = Bench::new();
    let image = bench.unpack(&[tar([directory("./").mode(0o711), file("hello", "")])]).unwrap();
    let mode = |path: &str| fs::symlink_metadata(image.rootfs.join(path)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(brought(&image.rootfs), ["hello"]);
    let modes = ["proc", "sys", "dev", "tmp", "run", "etc", ""].map(mode);
    assert_eq!(modes, [0o555, 0o555, 0o755, 0o1777, 0o755, 0o755, 0o711]);
    for name in ["hosts", "hostname", "resolv.conf"] {
        let path = format!("etc/{name}");
        assert_eq!((mode(&path), fs::metadata(image.rootfs.join(&path)).unwrap().len()), (0o644, 0));
    }
    assert_eq!(fs::metadata(&image.rootfs).unwrap().mtime(), 1_000_000_000, "the root keeps its time");
    assert_eq!(bench.store().verify(&Quiet).unwrap().damage, []);
    // An image without any layer.
    let bench = Bench::new();
    let image = bench.unpack(&[]).unwrap();
    assert!(image.rootfs.join("proc").is_dir() && brought(&image.rootfs).is_empty());
    assert_eq!(bench.store().verify(&Quiet).unwrap().damage, []);
}

#[test]
fn what_is_in_the_place_of_mounts_stays_what_it_is() {
    let bench = Bench::new();
    let image = bench
        .unpack(&[tar([
            symlink("tmp", "var/tmp"),
            file("proc", "a file"),
            directory("dev").mode(0o700),
            symlink("etc", bench.path("neighbour").to_str().unwrap()),
        ])])
        .unwrap();
    assert_eq!(brought(&image.rootfs), ["dev", "etc", "proc", "tmp"]);
    assert_eq!(files_in(&bench.path("neighbour")), ["file"]);
    let bench = Bench::new();
    let archive = tar([
        directory("etc"),
        symlink("etc/hosts", "/run/hosts"),
        file("etc/hostname", "box"),
        directory("etc/resolv.conf"),
    ]);
    let image = bench.unpack(&[archive]).unwrap();
    assert_eq!(brought(&image.rootfs), ["etc", "etc/hostname", "etc/hosts", "etc/resolv.conf"]);
    assert_eq!(fs::metadata(image.rootfs.join("etc")).unwrap().mtime(), 1_000_000_000);
    assert_eq!(bench.store().verify(&Quiet).unwrap().damage, []);
    // What a whiteout hid is missing.
    let bench = Bench::new();
    let image = bench.unpack(&[tar([directory("proc").mode(0o700)]), tar([file(".wh.proc", "")])]).unwrap();
    assert_eq!(fs::metadata(image.rootfs.join("proc")).unwrap().mode() & 0o7777, 0o555);
}

#[test]
fn the_directory_that_commands_start_in_is_made_as_their_user_s() {
    let passwd = "app:x:1200:1300::/:/bin/sh\n";
    for (workdir, made) in [
        ("/srv/work", Some("srv/work")),
        ("srv/work/", Some("srv/work")),
        ("/link/work", Some("real/work")),
        ("/real", None),
        ("/", None),
        ("", None),
        ("/../up", None),
        ("/etc/passwd/x", None),
    ] {
        let bench = Bench::new();
        let archive =
            || tar([directory("etc"), file("etc/passwd", passwd), directory("real"), symlink("link", "/real")]);
        bench.configured(&[archive()], |config| {
            config["config"]["WorkingDir"] = json!(workdir);
            config["config"]["User"] = json!("app");
        });
        let image = bench.ensure().unwrap();
        let mut expected = vec!["etc", "etc/passwd", "link", "real"];
        if let Some(made) = made {
            let found = fs::metadata(image.rootfs.join(made)).unwrap();
            assert_eq!((found.mode() & 0o7777, found.uid(), found.gid()), (0o755, 1200, 1300), "{workdir}");
            expected.extend([made, made.split('/').next().unwrap()]);
            expected.sort_unstable();
            expected.dedup();
        }
        assert_eq!(brought(&image.rootfs), expected, "{workdir}");
        assert_eq!(bench.store().verify(&Quiet).unwrap().damage, [], "{workdir}");
    }
}

#[test]
fn the_first_bytes_say_how_a_layer_is_compressed() {
    let archive = tar([file("a", "content")]);
    let skippable = |bytes: &[u8]| [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'a', b'b', b'c'][..], bytes].concat();
    let halves = [&archive[..700], &archive[700..]];
    for called in [TAR, GZIP, ZSTD, "application/vnd.docker.image.rootfs.diff.tar.gzip", ""] {
        for blob in [
            archive.clone(),
            compress(GZIP, &archive),
            compress(ZSTD, &archive),
            // eStargz: several members, an empty one at the end. zstd:chunked: several frames, and some to be skipped.
            [compress(GZIP, halves[0]), compress(GZIP, halves[1]), compress(GZIP, b"")].concat(),
            [compress(ZSTD, halves[0]), skippable(&compress(ZSTD, halves[1])), skippable(b"")].concat(),
            skippable(&compress(ZSTD, &archive)),
        ] {
            let bench = Bench::new();
            bench.layout_of_blob(called, &blob);
            bench.with_diff_id(&sha256(&archive));
            let image = bench.ensure().unwrap_or_else(|error| panic!("{called} {:02x?}: {error}", &blob[..8]));
            assert_eq!(brought(&image.rootfs), ["a"]);
        }
    }
    // What is checked stays the same: digest and diff id.
    let bench = Bench::new();
    bench.layout_of_blob(ZSTD, &compress(GZIP, &archive));
    bench.refuses_layout("but the configuration says");
    bench.layout_of_blob(GZIP, b"neither tar nor gzip");
    bench.refuses_layout("archive");
}

#[test]
fn compressions_that_are_not_read_are_named() {
    let bench = Bench::new();
    for (start, name) in [
        (&b"\xfd7zXZ\0\0\x04"[..], "xz"),
        (b"BZh91AY&SY\0", "bzip2"),
        (b"\x04\x22\x4d\x18\x64\x40", "lz4"),
        (b"\x5d\0\0\x80\0", "lzma"),
        (b"PK\x03\x04\0\0", "zip"),
    ] {
        let blob = [start, &[7; 600]].concat();
        bench.layout_of_blob(GZIP, &blob);
        let says = format!("is compressed with {name}, which is not read here: compress it with gzip or zstd");
        bench.refuses_layout(&says);
        let mut save = import::docker_save(&[tar([file("a", "")])], "x");
        save[2].content = blob.clone();
        let error = bench.import(&tar(save), None).unwrap_err().to_string();
        assert!(error.contains(&format!("\"000/layer.tar\" {says}")), "{error}");
        let error = bench.import(&blob, None).unwrap_err().to_string();
        assert!(error.contains(&says), "{error}");
        bench.assert_untouched();
    }
    // A file may be called so.
    let bench = Bench::new();
    let image = bench.unpack(&[tar([file("BZh9 is a name", ""), file("PK", "")])]).unwrap();
    assert_eq!(brought(&image.rootfs).len(), 2);
}

#[test]
fn devices_and_pipes_are_left_out_and_told() {
    let bench = Bench::new();
    let device = |path: &str, major: u32, minor: u32| {
        let mut header = entry(EntryType::Char, path).header();
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        header.as_bytes().to_vec()
    };
    let lower = tar([directory("dev"), file("dev/under", "stays"), file("run/kept", "")]);
    let upper = [
        device("dev/console", 5, 1),
        // A whiteout of overlayfs, which in a layer means nothing.
        device("dev/under", 0, 0),
        tar([entry(EntryType::Fifo, "/run/initctl"), hardlink("run/other", "/run/initctl"), file("a", "")]),
    ]
    .concat();
    let image = bench.unpack(&[lower, upper]).unwrap();
    assert_eq!(brought(&image.rootfs), ["a", "dev", "dev/under", "run/kept"]);
    let note = image.notes.join("\n");
    let expected = "left out: \"dev/console\" (a character device), \"dev/under\" (a character device), \
                    \"run/initctl\" (a named pipe), \"run/other\" (another name of one of them); containers";
    assert!(note.starts_with(expected), "{note}");
    // Told again to whoever brings the same layer.
    bench.rename("again");
    assert_eq!(bench.ensure().unwrap().notes, image.notes);
    // The last of several entries for one path counts.
    let both = [device("x", 1, 3), tar([file("x", "a file")])].concat();
    let image = bench.unpack(&[both]).unwrap();
    assert_eq!((brought(&image.rootfs), image.notes), (vec!["x".to_owned()], vec![]));
    let image = bench.unpack(&[tar([file("su", "").mode(0o4755)])]).unwrap();
    assert!(image.notes[0].starts_with("setuid and setgid bits dropped: \"su\";"), "{:?}", image.notes);
}

/// Reads an archive and throws the contents away; returns names and sizes.
fn read_through(archive: impl Read) -> Result<Vec<(String, u64)>, UnpackError> {
    let mut found = Vec::new();
    each(archive, |item, content| {
        let ItemKind::File { size } = item.kind else { panic!("no file") };
        let read = std::io::copy(content, &mut std::io::sink()).map_err(UnpackError::Archive)?;
        assert_eq!(read, size);
        found.push((String::from_utf8(item.path.clone()).unwrap(), size));
        Ok(())
    })?;
    Ok(found)
}

#[test]
fn a_file_of_eight_gibibytes_has_its_size_in_an_extension_header_or_in_binary() {
    const SIZE: u64 = 8 << 30;
    let zeros = || std::io::repeat(0).take(SIZE);
    let next = tar([file("next", "content")]);
    let header = [pax(&[("size", &SIZE.to_string())]).bytes(), file("large", "").bytes()].concat();
    let expected = vec![("large".to_owned(), SIZE), ("next".to_owned(), 7)];
    assert_eq!(read_through(header.chain(zeros()).chain(&next[..])).unwrap(), expected);
    let mut binary = file("large", "").header();
    binary.set_size(SIZE);
    binary.set_cksum();
    assert_eq!(read_through(binary.as_bytes().chain(zeros()).chain(&next[..])).unwrap(), expected);
    // A size that has a place in the header must be there.
    for (said, content) in [("5", ""), ("5", "7 bytes"), ("0", "7 bytes"), (&*(SIZE - 1).to_string(), "")] {
        let archive = tar([pax(&[("size", said)]), file("x", content)]);
        assert!(read_through(&archive[..]).unwrap_err().to_string().contains("different sizes"), "{said}");
    }
    for said in ["9223372036854775808", "18446744073709551615"] {
        let archive = tar([pax(&[("size", said)]), file("x", "")]);
        assert!(read_through(&archive[..]).unwrap_err().to_string().contains("out of range"), "{said}");
    }
    // Both and equal, of an archive that is cut off there; and a size that is only said again.
    let archive = [pax(&[("size", &SIZE.to_string())]).bytes(), binary.as_bytes().to_vec()].concat();
    assert!(read_through(&archive[..]).unwrap_err().to_string().contains("unexpected EOF"));
    let archive = tar([pax(&[("size", "7")]), file("x", "7 bytes")]);
    assert_eq!(read_through(&archive[..]).unwrap(), [("x".to_owned(), 7)]);
}

#[test]
fn headers_with_empty_fields_and_times_before_1970_are_read() {
    let mut odd = file("a", "content").header();
    let old = odd.as_old_mut();
    (old.uid, old.gid, old.mode) = ([0; 8], [b' '; 8], *b"0100644\0");
    old.mtime = [0xff; 12];
    odd.set_cksum();
    let mut archive = odd.as_bytes().to_vec();
    archive.extend_from_slice(b"content");
    archive.resize(1024, 0);
    archive.extend(tar([pax(&[("mtime", "-1.5"), ("atime", "1"), ("LIBARCHIVE.creationtime", "1")]), file("b", "")]));
    let bench = Bench::new();
    let image = bench.unpack(&[archive]).unwrap();
    let found = |path: &str| fs::metadata(image.rootfs.join(path)).unwrap();
    assert_eq!((found("a").uid(), found("a").mode() & 0o7777, found("a").mtime()), (0, 0o644, -1));
    assert_eq!(found("b").mtime(), -1);
}

#[test]
fn archives_without_an_end_mark_and_without_the_last_padding_are_whole() {
    let archive = tar([file("a", "first"), file("b", "last")]);
    for length in [archive.len() - 512, archive.len() - 1024, 3 * 512 + 4, 3 * 512 + 5] {
        let bench = Bench::new();
        let image = bench.unpack(&[archive[..length].to_vec()]).unwrap();
        assert_eq!(brought(&image.rootfs), ["a", "b"], "{length}");
        assert_eq!(fs::read_to_string(image.rootfs.join("b")).unwrap(), "last");
    }
    for length in [3 * 512 + 3, 3 * 512, 3 * 512 - 1, 512 + 3] {
        Bench::new().refuses(&[archive[..length].to_vec()], "ends in the middle of an entry");
    }
    let bench = Bench::new();
    let image = bench.unpack(&[archive[..1024].to_vec()]).unwrap();
    assert_eq!(brought(&image.rootfs), ["a"], "nothing says that there was more; the digest does");
}
