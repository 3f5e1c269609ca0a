use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::workspace::{Index, Kind};

const PLENTY: Limits = Limits { bytes: 1 << 20, entries: 1000 };

fn collected(directory: &Path, wanted: &[&str], limits: Limits) -> (Collected, Index, File) {
    let archive = tempfile::tempfile().unwrap();
    let wanted: Vec<Vec<u8>> = wanted.iter().map(|path| path.as_bytes().to_vec()).collect();
    let opened = File::open(directory).unwrap();
    let id_base = opened.metadata().unwrap().uid();
    let told = collect(opened.as_fd(), &wanted, limits, id_base, &archive).unwrap();
    let index = Index::read(&archive).unwrap();
    assert_eq!(index.items.len() as u64, told.entries);
    assert!(archive.metadata().unwrap().len() <= limits.bytes, "{told:?}");
    (told, index, archive)
}

fn paths(index: &Index) -> Vec<&str> {
    index.items.iter().map(|item| std::str::from_utf8(&item.path).unwrap()).collect()
}

fn problems(told: &Collected) -> Vec<(&str, &str)> {
    told.problems.iter().map(|one| (one.path.as_str(), one.problem.as_str())).collect()
}

fn content(archive: &File, index: &Index, path: &[u8]) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let item = index.find(path).unwrap();
    let mut bytes = vec![0; item.size as usize];
    archive.read_exact_at(&mut bytes, item.offset).unwrap();
    bytes
}

#[test]
fn files_directories_and_links_come_as_they_are_and_the_rest_is_named() {
    let place = tempfile::tempdir().unwrap();
    let at = |path: &str| place.path().join(path);
    fs::create_dir_all(at("out/deep")).unwrap();
    fs::write(at("out/a.txt"), "one").unwrap();
    fs::write(at("out/deep/b"), [0_u8, 255]).unwrap();
    fs::set_permissions(at("out/deep/b"), fs::Permissions::from_mode(0o4750)).unwrap();
    symlink("/etc/passwd", at("out/link")).unwrap();
    symlink("..", at("out/up")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, at("out/pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("out/socket")).unwrap();
    fs::write(at("other"), "not wanted").unwrap();

    let wanted = ["out", "out/deep", "missing", "out/link/x", "out/up/other", "out/a.txt/x"];
    let (told, index, archive) = collected(place.path(), &wanted, PLENTY);
    assert_eq!(paths(&index), ["out", "out/a.txt", "out/deep", "out/deep/b", "out/link", "out/up"]);
    assert_eq!(content(&archive, &index, b"out/a.txt"), b"one");
    assert_eq!(content(&archive, &index, b"out/deep/b"), [0, 255]);
    assert_eq!(index.find(b"out/deep/b").unwrap().mode, 0o4750);
    let link = index.find(b"out/link").unwrap();
    assert_eq!((link.kind, link.target.as_deref()), (Kind::Link, Some(&b"/etc/passwd"[..])));
    let told = problems(&told);
    // What lies in `out` was wanted with it.
    assert_eq!(told.iter().map(|one| one.0).collect::<Vec<_>>(), ["missing", "out/pipe", "out/socket"], "{told:?}");
    assert!(told[1].1.contains("FIFO") && told[2].1.contains("socket"), "{told:?}");

    let (told, index, _) = collected(place.path(), &wanted[3..], PLENTY);
    assert_eq!(index.items, []);
    let told = problems(&told);
    assert_eq!(told.iter().map(|one| one.0).collect::<Vec<_>>(), ["out/a.txt/x", "out/link/x", "out/up/other"]);
    assert!(told[0].1.contains("not there") && told[1].1.contains("link") && told[2].1.contains("link"), "{told:?}");
}

#[test]
fn the_whole_directory_can_be_wanted_and_odd_names_stay_what_they_are() {
    let place = tempfile::tempdir().unwrap();
    let long = "n".repeat(200);
    for name in [&b"new\nline"[..], b"\xff\xfe", b" ", b"-rf", long.as_bytes()] {
        fs::write(place.path().join(OsStr::from_bytes(name)), name).unwrap();
    }
    symlink("t".repeat(300), place.path().join("far")).unwrap();
    let (told, index, archive) = collected(place.path(), &["", "new\nline"], PLENTY);
    assert_eq!(told.problems, []);
    assert_eq!(told.entries, 6);
    for name in [&b"new\nline"[..], b"\xff\xfe", b" ", b"-rf", long.as_bytes()] {
        assert_eq!(content(&archive, &index, name), name);
    }
    assert_eq!(index.find(b"far").unwrap().target.as_ref().unwrap().len(), 300);
    // What it says of its size is its size.
    assert_eq!(archive.metadata().unwrap().len(), told.bytes);
}

#[test]
fn what_does_not_fit_is_named_and_what_fits_comes() {
    let place = tempfile::tempdir().unwrap();
    let at = |path: &str| place.path().join(path);
    File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
    fs::write(at("big"), vec![1; 600 << 10]).unwrap();
    fs::write(at("big2"), vec![1; 600 << 10]).unwrap();
    fs::write(at("small"), "s").unwrap();
    let (told, index, _) = collected(place.path(), &[""], PLENTY);
    assert_eq!(paths(&index), ["big", "small"]);
    let told = problems(&told);
    assert_eq!(told.iter().map(|one| one.0).collect::<Vec<_>>(), ["big2", "sparse"]);
    assert!(told[1].1.contains("1099511627776 bytes") && told[1].1.contains("1048576"), "{told:?}");
}

#[test]
fn a_crowd_is_cut_off_and_counted() {
    let place = tempfile::tempdir().unwrap();
    (0..1500).for_each(|number| fs::write(place.path().join(format!("f{number:05}")), "").unwrap());
    let (told, _, _) = collected(place.path(), &[""], PLENTY);
    assert_eq!((told.entries, told.problems.len()), (1000, 1), "{:?}", told.problems);
    assert!(told.problems[0].problem.contains("1000 files"), "{:?}", told.problems);
    let pipes = tempfile::tempdir().unwrap();
    for number in 0..100 {
        let path = pipes.path().join(format!("{number:03}"));
        rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    }
    let (told, _, _) = collected(pipes.path(), &[""], PLENTY);
    assert_eq!((told.entries, told.problems.len(), told.more_problems), (0, MAX_PROBLEMS, 100 - MAX_PROBLEMS as u64));
}

#[test]
fn directories_go_only_so_deep() {
    let place = tempfile::tempdir().unwrap();
    let deep: std::path::PathBuf = std::iter::repeat_n("d", MAX_DEPTH + 2).collect();
    fs::create_dir_all(place.path().join(&deep)).unwrap();
    let (told, index, _) = collected(place.path(), &[""], PLENTY);
    assert_eq!(index.items.len(), MAX_DEPTH);
    assert!(told.problems[0].problem.contains("64 directories"), "{:?}", told.problems);
}

#[test]
fn a_file_that_changes_its_size_has_that_which_it_began_with() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("f");
    fs::write(&path, "0123456789").unwrap();
    let archive = tempfile::tempfile().unwrap();
    let rules = Rules { leaves_out: false, refuses: &|_| None };
    let mut collector = Collector::new(Some(Builder::new(&archive)), PLENTY, 0, rules);
    for length in [20, 3] {
        let opened = File::open(&path).unwrap();
        let stat = rustix::fs::fstat(&opened).unwrap();
        // Grown, then cut off, after it was looked at.
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        collector.file(opened.into(), format!("to{length}").as_bytes(), &stat).unwrap();
    }
    collector.finish().unwrap();
    let index = Index::read(&archive).unwrap();
    assert_eq!(content(&archive, &index, b"to20"), b"0123456789");
    assert_eq!(content(&archive, &index, b"to3"), b"012\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}
