//! Archives that lie about themselves or cost more than they should.

use super::digest::HashingWriter;
use super::*;

#[test]
fn pax_headers_and_tar_headers_that_disagree_on_a_size() {
    let bench = Bench::new();
    // CVE-2025-62518 and RUSTSEC-2026-0068: what one reader takes for content is a header for another.
    let hidden = tar([file("hidden", "theirs")]);
    let inner = Entry { content: hidden.clone(), ..file("archive.tar", "") };
    bench.refuses(&[tar([pax(&[("size", "0")]), inner])], "different sizes");
    bench.refuses(&[tar([pax(&[("size", "1024")]), file("x", "content")])], "different sizes");
    let more = hidden.len() + 512;
    bench.refuses(&[tar([pax(&[("size", &more.to_string())]), file("x", "")])], "different sizes");
}

#[test]
fn pax_headers_that_say_a_thing_twice() {
    let bench = Bench::new();
    bench.refuses(&[tar([pax(&[("path", "a"), ("path", "b")]), file("x", "")])], "two extension headers");
    bench.refuses(&[tar([pax(&[("path", "a")]), pax(&[("path", "b")]), file("x", "")])], "two extension headers");
    let long = Entry { content: b"a\0".to_vec(), ..entry(EntryType::GNULongName, "l") };
    bench.refuses(&[tar([pax(&[("path", "b")]), long, file("x", "")])], "two extension headers");
}

#[test]
fn malformed_pax_headers() {
    let bench = Bench::new();
    for text in ["12 path=short", "99999999999999999999 a=b\n", "0 a=b\n", "-1 a=b\n", "6 a b\n", "6\n", "5 a=b\n", " "]
    {
        let header = Entry { content: text.into(), ..pax(&[]) };
        bench.refuses(&[tar([header, file("x", "")])], "malformed extension header");
    }
    bench.refuses(&[tar([pax(&[("path", "x")])])], "ends after an extension header");
}

#[test]
fn global_pax_headers_that_change_every_entry() {
    let bench = Bench::new();
    for (key, value) in
        [("path", "everything"), ("linkpath", "x"), ("size", "0"), ("uid", "0"), ("gid", "0"), ("mtime", "1")]
    {
        let global = Entry { kind: EntryType::XGlobalHeader, ..pax(&[(key, value)]) };
        bench.refuses(&[tar([global, file("x", "")])], "global header");
    }
}

#[test]
fn sparse_files_of_every_dialect() {
    let bench = Bench::new();
    // A header of 512 bytes could claim a file of 8 EiB.
    bench.refuses(&[tar([entry(EntryType::GNUSparse, "x")])], "sparse");
    bench.refuses(&[tar([pax(&[("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0")]), file("x", "")])], "sparse");
    bench.refuses(&[tar([pax(&[("GNU.sparse.realsize", "9223372036854775807")]), file("x", "")])], "sparse");
    bench.refuses(&[tar([pax(&[("GNU.sparse.map", "0,0")]), file("x", "")])], "sparse");
}

#[test]
fn content_where_there_must_be_none() {
    let bench = Bench::new();
    bench.refuses(&[tar([Entry { content: vec![1; 512], ..directory("d") }])], "no file");
    bench.refuses(&[tar([Entry { content: vec![1; 512], ..symlink("l", "x") }])], "no file");
    bench.refuses(&[tar([file("a", ""), Entry { content: vec![1; 512], ..hardlink("h", "a") }])], "no file");
    bench.refuses(&[tar([file(".", "")])], "root must be a directory");
}

#[test]
fn a_second_archive_behind_the_end_mark() {
    let bench = Bench::new();
    bench.refuses(&[[tar([file("a", "")]), tar([file("b", "")])].concat()], "data after its end mark");
}

#[test]
fn archives_that_are_cut_off_or_broken() {
    let bench = Bench::new();
    let whole = tar([file("x", &"content".repeat(1000))]);
    let mut broken = whole.clone();
    broken[0] ^= 1;
    bench.refuses(&[broken], "checksum");
    for length in [1, 511, 513, 1024, 7000] {
        let mut short = whole.clone();
        short.truncate(length);
        bench.refuses(&[short], "archive");
    }
}

/// The limits that a daemon without a configuration has.
const MILLION: u64 = 1_000_000;

#[test]
fn a_million_entries_and_one_more() {
    let bench = Bench::new();
    assert_eq!(bench.limits.entries, MILLION);
    // 512 MB of headers, 4 MB as a blob: a directory costs whoever sends it nothing.
    bench.layout_of_blob(ZSTD, &many(MILLION + 1, EntryType::Directory, b'd').0);
    bench.refuses_layout("more than the limit of 1000000 entries (`image.max_entries` in thawd.toml)");
}

#[test]
fn a_million_entries_exactly_are_taken() {
    // Of whiteouts, which put nothing on a disk.
    let bench = Bench::new();
    let (blob, diff_id) = many(MILLION, EntryType::Regular, b'.');
    bench.layout_of_blob(ZSTD, &blob);
    bench.with_diff_id(&diff_id);
    assert!(brought(&bench.ensure().unwrap().rootfs).is_empty());
    // The limit is for the image and not for a layer: one more directory in a second layer is too much.
    let bench = Bench::with(Limits { entries: 3, ..Limits::default() });
    bench
        .refuses(&[tar([directory("a"), directory("b")]), tar([directory("c"), directory("d")])], "limit of 3 entries");
}

/// A compressed archive of `count` entries of one kind, and its diff id; it is never in memory as a whole.
fn many(count: u64, kind: EntryType, first: u8) -> (Vec<u8>, String) {
    let name = if first == b'.' { ".wh.00000000" } else { "d00000000" };
    let digits = name.len() - 8;
    let mut header = entry(kind, name).header();
    let mut encoder = HashingWriter::new(zstd::Encoder::new(Vec::new(), 1).unwrap());
    let base: u32 = header.cksum().unwrap() - 8 * u32::from(b'0');
    for number in 0..count {
        // The sum of a header is changed by what changes in it: adding up all of each would take a minute.
        let text = format!("{number:08}");
        header.as_old_mut().name[digits..digits + 8].copy_from_slice(text.as_bytes());
        let sum = base + text.bytes().map(u32::from).sum::<u32>();
        header.as_old_mut().cksum.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        encoder.write_all(header.as_bytes()).unwrap();
    }
    encoder.write_all(&[0; 1024]).unwrap();
    let (encoder, _, diff_id) = encoder.finish();
    (encoder.finish().unwrap(), diff_id)
}

#[test]
fn the_limits_of_the_product_are_those_of_its_configuration() {
    let limits = Limits::default();
    assert_eq!((limits.entries, limits.depth, limits.layers), (MILLION, 128, 127));
    assert_eq!((limits.unpacked_bytes, limits.path_bytes, limits.document_bytes), (16 << 30, 256 * MILLION, 4 << 20));
    let set = thaw_client::config::Image { max_entries: 5, max_unpacked_bytes: 1000, ..Default::default() };
    let limits = Limits::from(&set);
    assert_eq!((limits.entries, limits.unpacked_bytes, limits.archive_bytes), (5, 1000, 1000 + 5 * 1024));
}

#[test]
fn deep_paths() {
    let bench = Bench::new();
    let deep = |levels: usize| pax(&[("path", &vec!["d"; levels].join("/"))]);
    let other = Bench::new();
    other.unpack(&[tar([deep(128), file("x", "")])]).unwrap();
    bench.refuses(&[tar([deep(129), file("x", "")])], "limit of 128 levels");
    bench.refuses(&[tar([deep(2000), directory("x")])], "limit of 128 levels");
    let long = format!("{}x", "d/".repeat(2048));
    bench.refuses(&[tar([pax(&[("path", &long)]), file("x", "")])], "longer than 4096 bytes");
    bench.refuses(&[tar([pax(&[("path", &"n".repeat(256))]), file("x", "")])], "File name too long");
    bench.refuses(&[tar([pax(&[("linkpath", &"n".repeat(4096))]), symlink("x", "")])], "too long");
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
fn a_window_of_zstd_that_would_take_a_gigabyte_of_memory() {
    let bench = Bench::new();
    for (log, taken) in [(27, true), (28, false), (30, false)] {
        let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(log).unwrap();
        encoder.write_all(&tar([file("a", "")])).unwrap();
        bench.layout_of_blob(ZSTD, &encoder.finish().unwrap());
        bench.with_diff_id(&sha256(&tar([file("a", "")])));
        if taken {
            bench.ensure().unwrap();
            bench.store().remove("crafted").unwrap();
        } else {
            bench.refuses_layout("Frame requires too much memory");
        }
    }
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
