use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, OFlags, RenameFlags};

use super::*;

const PLENTY: FileLimits = FileLimits { bytes: 64 << 20, entries: 10_000 };

/// The files below a directory of this user's, as if it were the root of a container whose first id that user is.
fn place(root: &Path) -> Arc<Place> {
    let metadata = fs::metadata(root).unwrap();
    let opened = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    assert_eq!(metadata.uid(), metadata.gid(), "tests are run by a user whose group has the same number");
    Arc::new(Place::new(opened, metadata.uid(), (0, 0), Vec::new(), Arc::default()))
}

fn within<T: Send + 'static>(place: &Arc<Place>, work: impl FnOnce(&Files<'_>) -> T + Send + 'static) -> T {
    place.run(work).unwrap().blocking_recv().unwrap()
}

fn put(files: &Files<'_>, path: &str, content: &str) -> Result<bool, FileError> {
    files.create(path.as_bytes(), &NewFile::default(), PLENTY, &mut content.as_bytes()).map(|(_, is_new)| is_new)
}

fn get(files: &Files<'_>, path: &str) -> Result<String, FileError> {
    let (mut file, _) = files.read(path.as_bytes())?;
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    Ok(text)
}

fn names(files: &Files<'_>, path: &str) -> Vec<String> {
    let listing = files.list(path.as_bytes(), None, 1000).unwrap();
    listing.items.into_iter().map(|info| String::from_utf8(info.name).unwrap()).collect()
}

#[test]
fn files_are_made_read_listed_moved_and_removed() {
    let root = tempfile::tempdir().unwrap();
    within(&place(root.path()), |files| {
        assert!(put(files, "/a", "one").unwrap());
        assert!(!put(files, "/a", "two").unwrap(), "in the place of the first");
        assert_eq!(get(files, "/a").unwrap(), "two");
        assert_eq!(get(files, "/../../a").unwrap(), "two", "the root ends there");
        assert!(matches!(put(files, "/no/dir", "x").unwrap_err().why, Why::Missing));
        files.make_directory(b"/d/e/f", 0o750, true).unwrap();
        assert!(matches!(files.make_directory(b"/d", 0o755, false).unwrap_err().why, Why::Exists));
        assert!(!files.make_directory(b"/d", 0o755, true).unwrap().1);
        assert_eq!(files.stat(b"/d/e/f").unwrap().mode, 0o750);
        put(files, "/d/e/f/g", "deep").unwrap();
        files.rename(b"/d/e", b"/moved", false).unwrap();
        assert_eq!(get(files, "/moved/f/g").unwrap(), "deep");
        assert!(matches!(files.rename(b"/a", b"/moved/f/g", false).unwrap_err().why, Why::Exists));
        files.rename(b"/a", b"/moved/f/g", true).unwrap();
        assert_eq!(get(files, "/moved/f/g").unwrap(), "two");
        assert_eq!(names(files, "/"), ["d", "moved"]);
        let none = Condition::None;
        assert!(matches!(files.remove(b"/moved", false, &none, PLENTY).unwrap_err().why, Why::NotEmpty));
        files.remove(b"/moved", true, &none, PLENTY).unwrap();
        files.remove(b"/d", false, &none, PLENTY).unwrap();
        assert_eq!(names(files, "/"), [""; 0]);
        for bad in ["", "a", "/a\0b", &format!("/{}", "n".repeat(256)), &"/d".repeat(2048)] {
            assert!(matches!(put(files, bad, "x").unwrap_err().why, Why::Invalid(_)), "{bad:?}");
        }
        for none in ["/", "/.", "/..", "//"] {
            assert!(
                put(files, none, "x").is_err()
                    && files.remove(none.as_bytes(), true, &Condition::None, PLENTY).is_err()
            );
        }
    });
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "nothing is left beside");
}

#[test]
fn a_condition_holds_or_nothing_is_changed() {
    let root = tempfile::tempdir().unwrap();
    within(&place(root.path()), |files| {
        let with = |condition: Condition, text: &str| {
            let new = NewFile { condition, ..NewFile::default() };
            files.create(b"/f", &new, PLENTY, &mut text.as_bytes()).map(|(info, _)| info.tag)
        };
        let changed = |done: Result<String, FileError>| matches!(done.unwrap_err().why, Why::Changed);
        assert!(changed(with(Condition::Present, "x")));
        let first = with(Condition::Absent, "first").unwrap();
        assert!(changed(with(Condition::Absent, "x")));
        let second = with(Condition::Tagged(vec![first.clone()]), "second").unwrap();
        assert_ne!(first, second);
        assert!(changed(with(Condition::Tagged(vec![first.clone()]), "x")));
        assert_eq!(get(files, "/f").unwrap(), "second");
        assert!(files.remove(b"/f", false, &Condition::Tagged(vec![first]), PLENTY).is_err());
        files.remove(b"/f", false, &Condition::Tagged(vec![second]), PLENTY).unwrap();
    });
}

#[test]
fn modes_stay_unless_they_are_given_and_nothing_is_set_id() {
    let root = tempfile::tempdir().unwrap();
    within(&place(root.path()), |files| {
        put(files, "/f", "").unwrap();
        assert_eq!(files.stat(b"/f").unwrap().mode, 0o644);
        let mode = |mode| NewFile { mode: Some(mode), ..NewFile::default() };
        files.create(b"/f", &mode(0o4755), PLENTY, &mut io::empty()).unwrap();
        assert_eq!(files.stat(b"/f").unwrap().mode, 0o755);
        put(files, "/f", "again").unwrap();
        assert_eq!(files.stat(b"/f").unwrap().mode, 0o755);
    });
}

#[test]
fn links_lead_within_the_root_and_what_is_no_file_is_not_opened() {
    let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &str| root.path().join(name);
    fs::write(other.path().join("secret"), "of the host").unwrap();
    symlink(other.path(), at("out")).unwrap();
    symlink(other.path().join("secret"), at("file")).unwrap();
    symlink("../../../../../../etc", at("up")).unwrap();
    symlink("loop", at("loop")).unwrap();
    symlink("/real", at("within")).unwrap();
    rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    within(&place(root.path()), |files| {
        for path in ["/out/secret", "/file", "/up/passwd", "/out"] {
            assert!(matches!(get(files, path).unwrap_err().why, Why::Missing), "{path}");
        }
        assert!(matches!(get(files, "/loop").unwrap_err().why, Why::Invalid(_)));
        assert!(put(files, "/file", "x").is_err(), "nothing is made where the link leads to");
        // A link to what is not there yet, within the root.
        put(files, "/within", "made").unwrap();
        assert_eq!(get(files, "/real").unwrap(), "made");
        assert_eq!(files.stat(b"/within").unwrap().target.as_deref(), Some(&b"/real"[..]));
        for (path, kind) in [("/pipe", FileKind::Fifo), ("/socket", FileKind::Socket), ("/", FileKind::Directory)] {
            assert!(matches!(get(files, path).unwrap_err().why, Why::NotAFile(_)), "{path}");
            assert_eq!(files.stat(path.as_bytes()).unwrap().kind, kind);
        }
        assert!(matches!(put(files, "/pipe", "x").unwrap_err().why, Why::NotAFile("a FIFO")));
        files.remove(b"/out", true, &Condition::None, PLENTY).unwrap();
    });
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 1);
    assert_eq!(fs::read_to_string(other.path().join("secret")).unwrap(), "of the host");
}

#[test]
fn whoever_holds_a_lease_lets_nobody_wait() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("f"), "leased").unwrap();
    // F_SETLEASE, F_WRLCK (fcntl(2)). It is told when it has the lease, and ends when it is told.
    let program =
        "open(F, '+<', $ARGV[0]) or die; $SIG{IO} = 'IGNORE'; fcntl(F, 1024, 1) or die; $| = 1; print 1; <STDIN>";
    let mut holder = std::process::Command::new("perl")
        .args(["-e", program])
        .arg(root.path().join("f"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    holder.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    within(&place(root.path()), |files| {
        assert!(matches!(get(files, "/f").unwrap_err().why, Why::Busy));
        let packing = files.scan(b"/f", PLENTY).unwrap_err();
        assert!(packing.to_string().contains("busy"), "{packing}");
    });
    drop(holder.stdin.take());
    assert!(holder.wait().unwrap().success());
    within(&place(root.path()), |files| assert_eq!(get(files, "/f").unwrap(), "leased"));
}

#[test]
fn files_of_the_kernel_and_hidden_ones_are_not_reached() {
    let whole = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    let user = rustix::process::geteuid().as_raw();
    let hidden = fs::metadata("/dev/shm").unwrap().dev();
    let place = Arc::new(Place::new(whole, user, (0, 0), vec![hidden], Arc::default()));
    within(&place, |files| {
        let is_hidden = |error: FileError| matches!(error.why, Why::Hidden);
        for path in ["/proc/version", "/proc/self/status", "/proc/sys/kernel/hostname", "/dev/shm"] {
            assert!(is_hidden(files.read(path.as_bytes()).unwrap_err()), "{path}");
            assert!(is_hidden(files.stat(path.as_bytes()).unwrap_err()), "{path}");
        }
        assert!(is_hidden(put(files, "/proc/sys/kernel/hostname", "x").unwrap_err()));
        assert!(is_hidden(files.list(b"/proc", None, 10).unwrap_err()));
        // Links of the kernel's lead nowhere.
        assert!(files.read(b"/proc/self/root/etc/passwd").is_err());
        assert!(matches!(files.read(b"/dev/null").unwrap_err().why, Why::NotAFile("a device")));
    });
}

#[test]
fn a_list_comes_in_pages_by_name() {
    let root = tempfile::tempdir().unwrap();
    for number in 0..250 {
        fs::write(root.path().join(format!("{number:03}")), "").unwrap();
    }
    fs::write(root.path().join(OsStr::from_bytes(b"\xff")), "").unwrap();
    within(&place(root.path()), |files| {
        let (mut all, mut after, mut pages) = (Vec::new(), None::<Vec<u8>>, 0);
        loop {
            let listing = files.list(b"/", after.as_deref(), 100).unwrap();
            pages += 1;
            after = listing.items.last().map(|info| info.name.clone());
            all.extend(listing.items.into_iter().map(|info| info.name));
            if !listing.is_more {
                break;
            }
        }
        assert_eq!((all.len(), pages), (251, 3));
        assert!(all.is_sorted() && all[250] == b"\xff");
    });
}

#[test]
fn too_much_is_refused_and_leaves_nothing() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("d")).unwrap();
    for number in 0..20 {
        fs::write(root.path().join(format!("d/{number}")), "x").unwrap();
    }
    within(&place(root.path()), |files| {
        let small = FileLimits { bytes: 10, entries: 10 };
        let new = NewFile::default();
        let create = |content: &str| files.create(b"/f", &new, small, &mut content.as_bytes());
        assert!(matches!(create("12345678901").unwrap_err().why, Why::TooLarge(_)));
        create("1234567890").unwrap();
        assert!(matches!(files.scan(b"/d", small).unwrap_err().why, Why::Unpackable(_)));
        assert!(matches!(files.remove(b"/d", true, &Condition::None, small).unwrap_err().why, Why::TooLarge(_)));
        let mut broken = b"123".chain(Broken);
        let error = files.create(b"/g", &new, PLENTY, &mut broken).unwrap_err();
        assert!(matches!(error.why, Why::Io(_)), "{error}");
        assert_eq!(names(files, "/"), ["d", "f"]);
    });
}

struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("broken off"))
    }
}

fn archive(entries: &[(tar::EntryType, &str, &str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (kind, path, target, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o6755);
        header.set_mtime(1_000_000_000);
        header.set_uid(4242);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..path.len()].copy_from_slice(path.as_bytes());
        gnu.linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn an_archive_goes_in_and_comes_out() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let root = tempfile::tempdir().unwrap();
    let packed = archive(&[
        (Directory, "top/", "", ""),
        (Regular, "top/run", "", "#!/bin/sh"),
        (Regular, "./top/deep/er/f", "", "f"),
        (Symlink, "top/link", "/etc/passwd", ""),
        (Link, "top/second", "top/run", ""),
        (Regular, "/absolute", "", "lies below as with tar"),
    ]);
    let out = within(&place(root.path()), move |files| {
        put(files, "/absolute", "in the way").unwrap();
        let entries = files.unpack(b"/", PLENTY, &mut packed.as_slice()).unwrap();
        assert_eq!(entries, 6);
        assert_eq!(get(files, "/absolute").unwrap(), "lies below as with tar");
        assert_eq!(get(files, "/top/second").unwrap(), "#!/bin/sh");
        assert_eq!(files.stat(b"/top/run").unwrap().mode, 0o755);
        assert_eq!(files.stat(b"/top/run").unwrap().owner, (0, 0));
        assert_eq!(files.stat(b"/top/run").unwrap().modified_ms, 1_000_000_000_000);
        files.unpack(b"/", PLENTY, &mut packed.as_slice()).unwrap();
        rustix::fs::mknodat(&files.place.root, "top/pipe", FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let pack = |path: &str| {
            let packing = files.scan(path.as_bytes(), PLENTY).unwrap();
            let mut out = Vec::new();
            files.pack(&packing, &mut out).unwrap();
            (packing.left_out(), out)
        };
        [pack("/top"), pack("/top/."), pack("/top/run")]
    });
    let paths = |bytes: &[u8]| {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries().unwrap();
        entries.map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let all = ["top", "top/deep", "top/deep/er", "top/deep/er/f", "top/link", "top/run", "top/second"];
    assert_eq!((out[0].0, paths(&out[0].1)), (1, all.map(str::to_owned).to_vec()));
    let inner: Vec<String> = all[1..].iter().map(|path| path.strip_prefix("top/").unwrap().to_owned()).collect();
    assert_eq!(paths(&out[1].1), inner);
    assert_eq!(paths(&out[2].1), ["run"]);
}

#[test]
fn what_an_archive_must_not_do_is_refused() {
    use tar::EntryType::{Char, Directory, Fifo, Link, Regular, Symlink};
    let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = other.path().to_str().unwrap().to_owned();
    for (what, entries) in [
        ("above", vec![(Regular, "../x", "", "x")]),
        ("within", vec![(Regular, "a/../../x", "", "x")]),
        ("through a link of its own", vec![(Symlink, "l", &*out, ""), (Regular, "l/x", "", "x")]),
        ("a directory in the place of a link", vec![(Symlink, "m", &*out, ""), (Directory, "m", "", "")]),
        ("a device", vec![(Char, "null", "", "")]),
        ("a FIFO", vec![(Fifo, "pipe", "", "")]),
        ("a second name of something outside", vec![(Link, "h", "../../etc/passwd", "")]),
        ("a second name of nothing", vec![(Link, "h", "none", "")]),
        ("a link to nothing", vec![(Symlink, "e", "", "")]),
        ("a file in the place of a directory", vec![(Directory, "d", "", ""), (Regular, "d", "", "x")]),
    ] {
        let packed = archive(&entries);
        let place = place(root.path());
        let refused = within(&place, move |files| files.unpack(b"/", PLENTY, &mut packed.as_slice()));
        assert!(refused.is_err(), "{what}");
    }
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0);
    let whole = archive(&[(Regular, "cut", "", &"x".repeat(2000))]);
    let cut = whole[..1500].to_vec();
    within(&place(root.path()), move |files| {
        assert!(files.unpack(b"/", PLENTY, &mut cut.as_slice()).is_err());
        assert!(files.stat(b"/cut").is_err(), "a part of a file is none");
        let small = FileLimits { bytes: 1999, entries: 10 };
        assert!(matches!(files.unpack(b"/", small, &mut whole.as_slice()).unwrap_err().why, Why::TooLarge(_)));
        let none = FileLimits { bytes: 1 << 20, entries: 0 };
        assert!(matches!(files.unpack(b"/", none, &mut whole.as_slice()).unwrap_err().why, Why::TooLarge(_)));
        assert!(files.unpack(b"/", PLENTY, &mut &b"no archive at all, but 512 bytes of text".repeat(20)[..]).is_err());
    });
}

/// Somebody inside swaps a directory for links that lead out, over and over, while files are read and made, directories are
/// listed, packed and removed. Nothing outside is ever read or changed.
fn race(rounds: u32) {
    let (root, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (inside, outside) = (root.path().to_owned(), other.path().to_owned());
    for place in [&inside.join("real"), &outside] {
        fs::create_dir_all(place.join("sub")).unwrap();
        fs::write(place.join("f"), "of the host").unwrap();
        fs::write(place.join("sub/f"), "of the host").unwrap();
    }
    for path in ["real/f", "real/sub/f"] {
        fs::write(inside.join(path), "inside").unwrap();
    }
    symlink(&outside, inside.join("absolute")).unwrap();
    symlink(format!("../../../../../../..{}", outside.display()), inside.join("upwards")).unwrap();
    symlink(format!("/proc/self/root{}", outside.display()), inside.join("magic")).unwrap();
    fs::create_dir(inside.join("far")).unwrap();
    let before = fingerprint(&outside);
    let stop = Arc::new(AtomicBool::new(false));
    let hostile = {
        let (inside, stop) = (inside.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let exchange = |one: &str, two: &str| {
                let _ = rustix::fs::renameat_with(CWD, inside.join(one), CWD, inside.join(two), RenameFlags::EXCHANGE);
            };
            while !stop.load(Ordering::Relaxed) {
                for link in ["absolute", "upwards", "magic"] {
                    exchange("real", link);
                    exchange("real", link);
                }
                exchange("real/sub", "absolute");
                exchange("real/sub", "absolute");
                let _ = fs::rename(inside.join("real"), inside.join("far/real"));
                let _ = fs::rename(inside.join("far/real"), inside.join("real"));
            }
        })
    };
    let place = place(&inside);
    let (good, leaked) = within(&place, move |files| {
        let (mut good, mut leaked) = (0u32, 0u32);
        let mut looked = |text: Result<String, FileError>| match text {
            Ok(text) if text.contains("host") => leaked += 1,
            Ok(_) => good += 1,
            Err(_) => {}
        };
        for round in 0..rounds {
            for path in ["/real/f", "/real/sub/f", "/real/../real/f", "/far/../real/sub/../f"] {
                looked(get(files, path));
            }
            let name = format!("/real/new{}", round % 3);
            let _ = put(files, &name, "inside");
            let _ = files.make_directory(format!("{name}.d/e").as_bytes(), 0o755, true);
            let _ = files.list(b"/real", None, 10);
            let _ = files.rename(name.as_bytes(), format!("{name}.d/f").as_bytes(), true);
            if let Ok(packing) = files.scan(b"/real", PLENTY) {
                let mut out = Vec::new();
                if files.pack(&packing, &mut out).is_ok() {
                    looked(Ok(String::from_utf8_lossy(&out).into_owned()));
                }
            }
            let packed = archive(&[(tar::EntryType::Regular, "sub/g", "", "inside")]);
            let _ = files.unpack(b"/real", PLENTY, &mut packed.as_slice());
            let _ = files.remove(format!("{name}.d").as_bytes(), true, &Condition::None, PLENTY);
            let _ = files.remove(b"/real/sub/g", false, &Condition::None, PLENTY);
        }
        (good, leaked)
    });
    stop.store(true, Ordering::Relaxed);
    hostile.join().unwrap();
    assert_eq!(leaked, 0, "of {rounds} rounds");
    assert!(good > rounds / 10, "{good} of {rounds} rounds found the file: the race is no test otherwise");
    assert_eq!(fingerprint(&outside), before, "nothing outside has changed");
}

/// Everything below a directory: names, contents, modes.
fn fingerprint(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let content = if metadata.is_file() { fs::read_to_string(&path).unwrap() } else { String::new() };
            all.push(format!("{} {:o} {content}", path.display(), metadata.permissions().mode()));
            if metadata.is_dir() {
                left.push(path);
            }
        }
    }
    all.sort();
    all
}

#[test]
fn whoever_swaps_directories_for_links_gets_nothing_of_the_host() {
    race(3_000);
}

#[test]
#[ignore = "takes minutes; run by hand"]
fn whoever_swaps_directories_for_links_gets_nothing_of_the_host_for_long() {
    race(100_000);
}
