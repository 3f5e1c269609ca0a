//! Resolves an image's `User` by the image's own `/etc/passwd` and `/etc/group`. The image is not trusted: files are
//! read within its root only, whatever links it has, and up to a size.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};

/// Largest `/etc/passwd` or `/etc/group` that is read out of an image, bytes.
const MAX_ACCOUNTS: u64 = 1 << 20;
/// Largest id that a command may have. The last of the container's 65,536 ids (user_namespaces(7)) belongs to its PID
/// 1. Larger ids, which wrap around in other programs (CVE-2024-40635), do not exist in the container.
pub const MAX_ID: u32 = 65_534;
/// Most supplementary groups of a user. No system needs more, and each is passed with every command.
pub const MAX_GROUPS: usize = 64;

/// A user of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups from `/etc/group`, in its order; empty if the image names a group.
    pub groups: Vec<u32>,
    /// Name in `/etc/passwd`; `None` if the file lacks the user.
    pub name: Option<String>,
    /// Home directory as written in `/etc/passwd`: empty if the line ends before it, `None` if the file lacks the user.
    pub home: Option<String>,
}

/// Resolves `USER[:GROUP]`, each a number or a name of the image's own `/etc/passwd` and `/etc/group`; empty is root.
///
/// # Errors
/// What is wrong with it; continues a sentence that begins with the user.
pub fn account(rootfs: &Path, text: &str) -> Result<Account, &'static str> {
    resolve(text, &read_inside(rootfs, "etc/passwd"), || read_inside(rootfs, "etc/group"))
}

/// One line of passwd(5): `name:password:uid:gid:comment:home:shell`. In some images it ends after the ids.
struct Line<'a> {
    name: &'a str,
    uid: &'a str,
    gid: &'a str,
    home: &'a str,
}

impl<'a> Line<'a> {
    fn read(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        // Comments, and lines that NIS adds, are no users.
        let is_user = !name.is_empty() && !name.starts_with(['#', '+', '-']);
        is_user.then(|| Line { name, uid, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

/// As [`account`], from the content of the two files.
fn resolve(text: &str, passwd: &str, groups: impl FnOnce() -> String) -> Result<Account, &'static str> {
    let (user, group) = text.split_once(':').map_or((text, ""), |(user, group)| (user, group));
    let user = if user.is_empty() { "0" } else { user };
    let find = |wanted: &dyn Fn(&Line<'_>) -> bool| passwd.lines().filter_map(Line::read).find(|line| wanted(line));
    let number = parse_id(user)?;
    let entry = match number {
        Some(uid) => find(&|line| line.uid.parse() == Ok(uid)),
        None => Some(find(&|line| line.name == user).ok_or("which its /etc/passwd does not know")?),
    };
    let uid = match (number, &entry) {
        (Some(uid), _) => uid,
        (None, Some(line)) => parse_id(line.uid)?.ok_or("whose id in /etc/passwd is no number")?,
        (None, None) => return Err("which its /etc/passwd does not know"),
    };
    let (gid, others) = match (group, &entry) {
        ("", Some(line)) => {
            let gid = parse_id(line.gid)?.ok_or("whose group in /etc/passwd is no number")?;
            (gid, groups_of(&groups(), line.name, gid)?)
        }
        ("", None) => (0, Vec::new()),
        (group, _) => (
            match parse_id(group)? {
                Some(gid) => gid,
                None => group_id(&groups(), group)?,
            },
            Vec::new(),
        ),
    };
    let home = entry.as_ref().map(|line| line.home.to_owned());
    Ok(Account { uid, gid, groups: others, name: entry.map(|line| line.name.to_owned()), home })
}

fn group_id(groups: &str, name: &str) -> Result<u32, &'static str> {
    // group(5): name:password:gid:members
    let found = groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name);
    let fields = found.ok_or("whose group its /etc/group does not know")?;
    fields.get(2).map_or(Ok(None), |id| parse_id(id))?.ok_or("whose group id in /etc/group is no number")
}

/// Groups that list the user as a member. Unusable lines are skipped.
fn groups_of(groups: &str, user: &str, primary: u32) -> Result<Vec<u32>, &'static str> {
    let mut found = Vec::new();
    for line in groups.lines().filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(':').collect();
        let [_, _, id, members, ..] = fields[..] else { continue };
        if !members.split(',').any(|member| member.trim() == user) {
            continue;
        }
        let Some(gid) = parse_id(id)? else { continue };
        if gid != primary && !found.contains(&gid) {
            found.push(gid);
        }
    }
    if found.len() > MAX_GROUPS {
        return Err("who is in more than 64 groups of its /etc/group");
    }
    Ok(found)
}

/// Parses an id: digits must be an id of the container; anything else is a name.
fn parse_id(text: &str) -> Result<Option<u32>, &'static str> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err("an id above 65534, which no command in a container can have"),
    }
}

/// Opens a file of an image. Links are followed within the image's root, as a process inside would follow them.
fn open_inside(rootfs: &Path, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Content of a regular file; empty if there is none, since an image need not have one. Of a file larger than
/// [`MAX_ACCOUNTS`], only the complete lines before that size.
fn read_inside(rootfs: &Path, path: &str) -> String {
    let mut bytes = Vec::new();
    // Non-blocking, so that a FIFO in place of the file does not hang the daemon.
    if let Ok(fd) = open_inside(rootfs, path, OFlags::RDONLY | OFlags::NONBLOCK) {
        let file = std::fs::File::from(fd);
        if !file.metadata().is_ok_and(|data| data.is_file()) || file.take(MAX_ACCOUNTS).read_to_end(&mut bytes).is_err()
        {
            bytes.clear();
        }
        // An incomplete line could hold an incomplete id.
        if bytes.len() as u64 == MAX_ACCOUNTS {
            bytes.truncate(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        }
    }
    // Names and comments may be in an old encoding; digits are the same in each.
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the fuzz target of accounts calls: `text` with the content of both files.
///
/// # Panics
/// If an id comes out that a container does not have, or root without anything saying so.
#[cfg(fuzzing)]
pub fn fuzz_account(text: &str, passwd: &str, groups: &str) {
    let Ok(Account { uid, gid, groups, .. }) = resolve(text, passwd, || groups.to_owned()) else { return };
    assert!(uid <= MAX_ID && gid <= MAX_ID && groups.iter().all(|group| *group <= MAX_ID), "{uid}:{gid} {groups:?}");
    let user = text.split_once(':').map_or(text, |(user, _)| user);
    let zero = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte == b'0');
    let says_root = |line: &str| Line::read(line).is_some_and(|line| line.name == user && zero(line.uid));
    assert!(uid != 0 || user.is_empty() || zero(user) || passwd.lines().any(says_root), "root out of nowhere");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\n# a comment:x:7:7\n\n+::::::\napp:x:1234:1235::/srv/app:/bin/sh\n\
        short:x:1300:1301\nbig:x:4294967296:0::/:/bin/sh\nm\u{fc}ller:x:1400:1400:M\u{fc}ller:/m:/bin/sh\n";
    const GROUPS: &str = "staff:x:50:\naudio:x:29:app,short\nvideo:x:44: other,app \napp:x:1235:app\nagain:x:29:app\n\
        odd:x:nine:app\nfew:x\n#no:x:3:app\n";

    fn rootfs() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        // One name in Latin-1, as old images have it.
        let passwd: Vec<u8> = PASSWD.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(root.path().join("etc/group"), GROUPS).unwrap();
        root
    }

    /// Ids, other groups, and home.
    type Found = (u32, u32, Vec<u32>, Option<String>);

    fn ids(root: &Path, text: &str) -> Result<Found, &'static str> {
        account(root, text).map(|account| (account.uid, account.gid, account.groups, account.home))
    }

    #[test]
    fn users_are_numbers_or_names_of_the_image() {
        let root = rootfs();
        let root = root.path();
        let home = |home: &str| Some(home.to_owned());
        assert_eq!(ids(root, ""), Ok((0, 0, vec![], home("/root"))));
        assert_eq!(ids(root, "app"), Ok((1234, 1235, vec![29, 44], home("/srv/app"))));
        assert_eq!(ids(root, "1234"), ids(root, "app"), "by number the same as by name");
        assert_eq!(ids(root, "app:staff"), Ok((1234, 50, vec![], home("/srv/app"))));
        assert_eq!(ids(root, "app:app"), Ok((1234, 1235, vec![], home("/srv/app"))));
        assert_eq!(ids(root, "app:"), ids(root, "app"), "an empty group is none");
        assert_eq!(ids(root, ":staff"), Ok((0, 50, vec![], home("/root"))));
        assert_eq!(ids(root, "77:88"), Ok((77, 88, vec![], None)));
        assert_eq!(ids(root, "77"), Ok((77, 0, vec![], None)));
        assert_eq!(ids(root, "short"), Ok((1300, 1301, vec![29], home(""))));
        assert_eq!(ids(root, "1400"), Ok((1400, 1400, vec![], home("/m"))), "not spoilt by bytes that are no UTF-8");
        assert_eq!(account(root, "1234").unwrap().name.as_deref(), Some("app"));
        assert!(ids(root, "nobody").unwrap_err().contains("does not know"));
        assert!(ids(root, "+").unwrap_err().contains("does not know"));
        assert!(ids(root, "app:wheel").unwrap_err().contains("does not know"));
    }

    #[test]
    fn a_user_is_in_sixty_four_groups_at_most() {
        let root = rootfs();
        let groups = |count: u32| (0..count).map(|id| format!("g{id}:x:{}:app\n", 2000 + id)).collect::<String>();
        std::fs::write(root.path().join("etc/group"), groups(64)).unwrap();
        assert_eq!(ids(root.path(), "app").unwrap().2.len(), MAX_GROUPS);
        std::fs::write(root.path().join("etc/group"), groups(65)).unwrap();
        assert!(ids(root.path(), "app").unwrap_err().contains("more than 64 groups"));
        assert!(ids(root.path(), "app:app").is_err() && ids(root.path(), "app:2000").is_ok());
    }

    #[test]
    fn what_is_behind_the_first_mebibyte_is_no_account() {
        let root = rootfs();
        let root = root.path();
        let line = "late:x:1234:1235::/:/bin/sh\n";
        let with_room_for = |bytes: usize| {
            let filler = format!("{}\n", "#".repeat(usize::try_from(MAX_ACCOUNTS).unwrap() - bytes - 1));
            std::fs::write(root.join("etc/passwd"), filler + line + "later:x:1:1::/:/bin/sh\n").unwrap();
        };
        with_room_for(line.len());
        assert_eq!(ids(root, "late").map(|found| (found.0, found.1)), Ok((1234, 1235)));
        assert!(ids(root, "later").unwrap_err().contains("does not know"));
        // Cut off in the middle of its id.
        with_room_for("late:x:12".len());
        assert!(ids(root, "late").unwrap_err().contains("does not know"));
    }

    #[test]
    fn ids_that_would_wrap_around_are_refused() {
        let root = rootfs();
        assert_eq!(ids(root.path(), "65534:65534").map(|found| (found.0, found.1)), Ok((65534, 65534)));
        for user in ["65535", "65536", "2147483648", "4294967296", "18446744073709551616", "0:70000", "big"] {
            assert!(ids(root.path(), user).unwrap_err().contains("above 65534"), "{user}");
        }
        assert_eq!(parse_id("-1"), Ok(None), "no number, and no name either");
    }

    #[test]
    fn accounts_are_read_through_links_within_the_image_only() {
        let root = rootfs();
        let root = root.path();
        let (passwd, store) = (root.join("etc/passwd"), root.join("nix/store/etc"));
        std::fs::create_dir_all(&store).unwrap();
        std::fs::rename(&passwd, store.join("passwd")).unwrap();
        // As Nix makes its images: the link names a place of the image.
        symlink("/nix/store/etc/passwd", &passwd).unwrap();
        assert_eq!(ids(root, "app").map(|found| found.0), Ok(1234));
        for target in ["/etc/passwd", "../../../../etc/passwd", "/proc/self/root/etc/passwd"] {
            std::fs::remove_file(&passwd).unwrap();
            symlink(target, &passwd).unwrap();
            assert!(ids(root, "daemon").is_err(), "the host's own has one: {target}");
        }
    }
}
