//! What of an image's files matters before a container is made of it: where something can be mounted, and who can enter.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::Account;

/// Most entries of a home directory that are examined; a directory with more counts as not empty.
const MAX_HOME_ENTRIES: usize = 256;

/// Opens something of an image without following a link, as it is mounted on.
///
/// # Errors
/// It is not there, or no directory.
pub fn open_plain(rootfs: &Path, path: &str) -> rustix::io::Result<OwnedFd> {
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Whether `account` can enter `/`. Commands in a container have no capabilities, not even as root.
///
/// # Errors
/// The mode that keeps it out.
pub fn can_enter(rootfs: &Path, account: &Account) -> Result<(), u32> {
    // The store keeps the mode that the image has.
    let Ok(found) = rustix::fs::stat(rootfs) else { return Ok(()) };
    let mode = found.st_mode & 0o7777;
    let passes =
        match (found.st_uid == account.uid, found.st_gid == account.gid || account.groups.contains(&found.st_gid)) {
            (true, _) => mode & 0o100,
            (false, true) => mode & 0o010,
            (false, false) => mode & 0o001,
        };
    if passes == 0 { Err(mode) } else { Ok(()) }
}

/// Whether the user's home directory can be made writable: a plain directory in which the image has only what
/// `/etc/skel` provides, since the mount hides it. `/tmp` is a mount already, and `/` must stay as it is.
pub fn writable_home(rootfs: &Path, home: &str, workdir: &str) -> bool {
    let clean = |path: &str| path.split('/').filter(|part| !matches!(*part, "" | ".")).collect::<Vec<_>>().join("/");
    let (relative, workdir) = (clean(home), clean(workdir));
    let is_below = workdir.strip_prefix(relative.as_str()).is_some_and(|rest| rest.starts_with('/'));
    !matches!(relative.as_str(), "" | "tmp")
        && !is_below
        && open_plain(rootfs, &relative)
            .is_ok_and(|_| is_bare(&rootfs.join(&relative), 0, &mut MAX_HOME_ENTRIES.clone()))
}

/// Whether a directory contains only hidden files at its top, and empty directories.
fn is_bare(folder: &Path, depth: usize, left: &mut usize) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else { return false };
    for entry in entries {
        let Ok(entry) = entry else { return false };
        let Some(rest) = left.checked_sub(1) else { return false };
        *left = rest;
        let is_bare = match entry.file_type() {
            Ok(kind) if kind.is_dir() => is_bare(&entry.path(), depth + 1, left),
            Ok(kind) => kind.is_file() && depth == 0 && entry.file_name().as_encoded_bytes().starts_with(b"."),
            Err(_) => false,
        };
        if !is_bare {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_home_in_which_the_image_has_something_is_not_hidden() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for folder in ["home/skel/.config", "home/app/bin", "app", "home/tool/.local/bin", "tmp"] {
            fs::create_dir_all(root.join(folder)).unwrap();
        }
        for file in ["home/skel/.bashrc", "home/app/bin/run", "home/tool/.local/bin/uv", "app/server"] {
            fs::write(root.join(file), "").unwrap();
        }
        symlink("/app", root.join("home/link")).unwrap();
        for (home, count) in [("home/many", MAX_HOME_ENTRIES), ("home/more", MAX_HOME_ENTRIES + 1)] {
            fs::create_dir_all(root.join(home)).unwrap();
            (0..count).for_each(|number| fs::write(root.join(home).join(format!(".{number}")), "").unwrap());
        }
        assert!(writable_home(root, "/home/many", "/") && !writable_home(root, "/home/more", "/"));
        assert!(writable_home(root, "/home/skel", "/"));
        assert!(writable_home(root, "/home/skel/", "/home/skel"), "to start in the home itself does no harm");
        assert!(!writable_home(root, "/home/skel", "/home/skel/work"), "this would be gone");
        for home in ["/home/app", "/app", "/home/tool", "/", "/tmp", "//tmp/", "", "/home/link", "/missing"] {
            assert!(!writable_home(root, home, "/"), "{home}");
        }
    }

    #[test]
    fn who_can_pass_through_the_root_is_told_by_its_mode() {
        let root = tempfile::tempdir().unwrap();
        let owner = fs::metadata(root.path()).unwrap();
        use std::os::unix::fs::MetadataExt;
        let account = |uid, gid, groups: &[u32]| Account { uid, gid, groups: groups.to_vec(), name: None, home: None };
        let (uid, gid) = (owner.uid(), owner.gid());
        let others = account(uid + 1, gid + 1, &[]);
        for (mode, expected) in [
            (0o755, [true; 4]),
            (0o700, [true, false, false, false]),
            (0o710, [true, true, true, false]),
            (0o701, [true, false, false, true]),
            (0o071, [false, true, true, true]),
        ] {
            fs::set_permissions(root.path(), fs::Permissions::from_mode(mode)).unwrap();
            let who =
                [account(uid, gid, &[]), account(uid + 1, gid, &[]), account(uid + 1, gid + 1, &[gid]), others.clone()];
            assert_eq!(who.map(|account| can_enter(root.path(), &account).is_ok()), expected, "{mode:o}");
        }
    }
}
