use std::io::Write;

use tar::{Builder, Header};
use thaw_client::content::Content;

use super::*;

const LIMITS: Limits = Limits {
    put: workspace::Limits { bytes: 1000, entries: 10 },
    collect: workspace::Limits { bytes: 1000, entries: 10 },
};

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o4755);
    header
}

/// With names that the crate itself would refuse to write.
fn raw(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, path, content) in entries {
        let is_link = matches!(kind, EntryType::Symlink | EntryType::Link);
        let mut header = header(*kind, if is_link { 0 } else { content.len() as u64 });
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        if is_link {
            gnu.linkname[..content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, if is_link { &b""[..] } else { content.as_bytes() }).unwrap();
    }
    builder.into_inner().unwrap()
}

fn of_archive(bytes: Vec<u8>) -> Result<Work, String> {
    let archive = Some(Content::from(bytes));
    Work::of(&mut ExecutionRequest { archive, ..ExecutionRequest::default() }, &LIMITS).map_err(|e| e.to_string())
}

fn of_files(files: &[(&str, &str)]) -> Result<Work, String> {
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), NewFile::new(*text))).collect();
    Work::of(&mut ExecutionRequest { files, ..ExecutionRequest::default() }, &LIMITS).map_err(|e| e.to_string())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn an_archive_is_taken_plain_and_compressed() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let plain = raw(&[
        (Directory, "./", ""),
        (Directory, "./d/", ""),
        (Regular, "./d/a", "one"),
        (Regular, "d/a", "two"),
        (Link, "d/same", "./d/a"),
        (Symlink, "/workspace/l", "/etc/passwd"),
    ]);
    for bytes in [gzip(&plain), plain] {
        let work = of_archive(bytes).unwrap();
        let file = |path: &str| Entry { path: path.into(), what: What::File(0o4755, b"two".to_vec()) };
        let link = Entry { path: b"l".to_vec(), what: What::Link(b"/etc/passwd".to_vec()) };
        let directory = Entry { path: b"d".to_vec(), what: What::Directory(0o4755) };
        assert!(*work.put == [directory, file("d/a"), file("d/same"), link], "{work:?}");
        assert_eq!(work.start(), Some("/workspace"));
    }
    assert!(of_archive(Vec::new()).unwrap().is_empty());
}

#[test]
fn what_cannot_be_put_is_named() {
    use EntryType::{Block, Fifo, Link, Regular, Symlink};
    for (entries, words) in [
        (&[(Regular, "a/../../etc/x", "x")][..], ["a/../../etc/x", "`..`"]),
        (&[(Regular, "/etc/x", "x")], ["/etc/x", "not below /workspace"]),
        (&[(Fifo, "pipe", "")], ["pipe", "no file, directory or link"]),
        (&[(Block, "sda", "")], ["sda", "no file, directory or link"]),
        (&[(Link, "l", "missing")], ["\"l\"", "second name"]),
        (&[(Link, "l", "/etc/shadow")], ["/etc/shadow", "not below"]),
        (&[(Symlink, "l", "")], ["\"l\"", "link to nothing"]),
        (&[(Symlink, "l", "/etc"), (Regular, "l/x", "x")], ["l/x", "no directory"]),
        (&[(Regular, "f", "x"), (Regular, "f/x", "x")], ["f/x", "no directory"]),
        (&[(Regular, ".", "x")], ["\".\"", "in the place of /workspace"]),
    ] {
        let error = of_archive(raw(entries)).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    for (path, words) in [
        ("../x", ["../x", "`..`"]),
        ("/workspace", ["/workspace", "directory"]),
        ("", ["\"\"", "empty"]),
        ("/home/runtime/x", ["/home/runtime/x", "not below"]),
        ("a\0b", ["a", "zero byte"]),
    ] {
        let error = of_files(&[(path, "x")]).unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
    assert!(of_files(&[("a", "x"), ("a/b", "x")]).unwrap_err().contains("no directory"));
}

#[test]
fn what_is_no_archive_says_so() {
    let cut = |bytes: Vec<u8>, to: usize| bytes[..to].to_vec();
    let whole = raw(&[(EntryType::Regular, "file", &"x".repeat(700))]);
    for bytes in [b"hello".repeat(200), vec![0x1f, 0x8b, 0, 1], cut(whole.clone(), 600), cut(gzip(&whole), 40)] {
        let error = of_archive(bytes).unwrap_err();
        assert!(error.contains("`archive`"), "{error}");
    }
}

#[test]
fn there_is_a_most_of_bytes_and_entries() {
    let error = of_files(&[("a", &"x".repeat(600)), ("b", &"x".repeat(401))]).unwrap_err();
    assert!(error.contains("\"b\"") && error.contains("1000 bytes (`execution.files_bytes`)"), "{error}");
    assert!(of_files(&[("a", &"x".repeat(600)), ("b", &"x".repeat(400))]).is_ok());
    let names: Vec<String> = (0..11).map(|number| number.to_string()).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    assert!(of_files(&files[..10]).is_ok());
    let error = of_files(&files).unwrap_err();
    assert!(error.contains("10 (`execution.files_entries`)"), "{error}");
    // A small archive of something huge, a file that only says so, and names without end.
    for bytes in [
        gzip(&raw(&[(EntryType::Regular, "bomb", &"\0".repeat(8 << 20))])),
        gzip(&{
            let mut header = header(EntryType::Regular, 1 << 40);
            header.set_path("huge").unwrap();
            header.set_cksum();
            header.as_bytes().to_vec()
        }),
        gzip(&raw(&[(EntryType::GNULongName, "long", &"n".repeat(8 << 20))])),
    ] {
        let error = of_archive(bytes).unwrap_err();
        assert!(error.contains("`archive`"), "{error}");
    }
}

#[test]
fn paths_to_collect_are_checked() {
    let of = |paths: &[String]| collect(paths.to_vec()).map_err(|error| error.to_string());
    let one = |path: &str| of(&[path.to_owned()]);
    assert_eq!(one("/workspace/a/./b/").unwrap(), ["a/b"]);
    assert_eq!(one(".").unwrap(), [""]);
    for bad in ["", "../x", "/etc/passwd", "a\nb", "a\0"] {
        assert!(one(bad).is_err(), "{bad:?}");
    }
    let many = vec!["x".to_owned(); MAX_COLLECT + 1];
    assert!(of(&many[1..]).is_ok() && of(&many).unwrap_err().contains("at most 64 paths"));
    let long = vec!["x".repeat(MAX_COLLECT_BYTES / 32); 32];
    assert!(of(&long).is_ok());
    assert!(of(&[long, vec!["x".to_owned()]].concat()).is_err());
}
