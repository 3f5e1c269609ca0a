//! Archives that lie about themselves or cost more than they should.

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

#[test]
fn a_million_entries() {
    let bench = Bench::new();
    // 1 000 001 empty files with one header each: 512 MB of archive, 3 MB as a blob.
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    let mut header = file("f", "").header();
    for number in 0..=MAX_ENTRIES_HERE {
        let name = format!("{number:08}");
        header.as_old_mut().name[..8].copy_from_slice(name.as_bytes());
        header.set_cksum();
        encoder.write_all(header.as_bytes()).unwrap();
    }
    encoder.write_all(&[0; 1024]).unwrap();
    bench.layout_of_blob(ZSTD, &encoder.finish().unwrap());
    let limited = Bench { limits: Limits { entries: MAX_ENTRIES_HERE, ..Limits::default() }, ..bench };
    limited.refuses_layout(&format!("limit of {MAX_ENTRIES_HERE} entries"));
}

/// As many as a test can wait for; the limit of the product is a million, and works the same.
const MAX_ENTRIES_HERE: u64 = 20_000;

#[test]
fn the_limits_of_the_product_are_a_million_entries_and_128_levels() {
    let limits = Limits::default();
    assert_eq!((limits.entries, limits.depth, limits.layers), (1_000_000, 128, 127));
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
