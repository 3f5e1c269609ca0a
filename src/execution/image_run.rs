//! Commands in any image of the store, without a provider: created on the spot, honouring the image's configuration.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::container::{INIT_ID, MAX_GROUPS, Template};
use crate::egress::Policy;
use crate::pool::{ClaimError, Claimed, Pool, Supply, Want};
use thaw_image::{Store, StoreError};
use thaw_os::cgroup::{Limits, Reclaim};

/// What thawd mounts on in every container: the shared root is read-only, so an image has to bring these.
const MOUNT_POINTS: [&str; 3] = ["proc", "dev", "tmp"];

/// What stands for the provider in listings and metrics.
pub const LABEL: &str = "image";

/// Largest `/etc/passwd` or `/etc/group` that is read out of an image, bytes.
const MAX_ACCOUNTS: u64 = 1 << 20;

/// Largest id that a command may have: the last of the container's 65,536 (user_namespaces(7)) is thaw-init's. Larger ones,
/// which wrap around elsewhere (CVE-2024-40635), do not exist in it.
const MAX_ID: u32 = INIT_ID - 1;

/// Where an execution's container comes from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A provider's pool, and that of prestarted CLIs if there is one.
    Pool(Pool, Option<Pool>),
    /// An image, each time anew.
    Image(Arc<Supply>, Arc<Template>),
}

impl Origin {
    /// A container for one execution.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim(&self, want: &Want<'_>) -> Result<Claimed, ClaimError> {
        match self {
            Self::Pool(pool, _) => pool.claim(want).await,
            Self::Image(supply, template) => supply.claim(LABEL, Arc::clone(template), want).await,
        }
    }

    /// A container with a CLI that waits in it, if there is one.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim_prestarted(&self) -> Result<Option<Claimed>, ClaimError> {
        match self.prestarted() {
            Some(prestarted) => prestarted.claim_warm().await,
            None => Ok(None),
        }
    }

    /// The pool of CLIs that wait.
    pub fn prestarted(&self) -> Option<&Pool> {
        match self {
            Self::Pool(_, prestarted) => prestarted.as_ref(),
            Self::Image(..) => None,
        }
    }

    /// Looks for more broken containers after one was found.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn check_health(&self) -> Result<(), ClaimError> {
        match self {
            Self::Pool(pool, _) => pool.check_health().await.map(drop),
            Self::Image(..) => Ok(()),
        }
    }
}

/// Limits of such runs; see `[image_run]` in the configuration.
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// Memory and CPU.
    pub limits: Limits,
    /// Most processes and threads.
    pub pids: u32,
    /// Where they may connect to.
    pub egress: Arc<Policy>,
    /// Wall-clock limit when the request names none.
    pub timeout: std::time::Duration,
}

/// Makes templates out of stored images.
#[derive(Debug)]
pub struct Images {
    store: Arc<Store>,
    supply: Arc<Supply>,
    settings: ImageSettings,
}

/// Why an image cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ImageRunError {
    /// Not in the store.
    #[error("there is no image {0:?} in the store; bring it in with `thawctl image import`, `pull` or `build`")]
    Unknown(String),
    /// The store cannot be read.
    #[error("image {name:?}: {source}")]
    Store {
        /// Which image.
        name: String,
        /// Why.
        source: StoreError,
    },
    /// Its `User` cannot be resolved.
    #[error("image {name:?} wants to run as {user:?}, {problem}")]
    User {
        /// Which image.
        name: String,
        /// What its configuration says.
        user: String,
        /// What is wrong with that.
        problem: &'static str,
    },
    /// Something that is mounted on in every container is missing, or is a link or a file.
    #[error("image {name:?} has no plain directory /{path}, which every container needs; add an empty one to it")]
    MountPoint {
        /// Which image.
        name: String,
        /// What is missing.
        path: &'static str,
    },
    /// Nothing to run.
    #[error("image {0:?} names no command; give one")]
    NoCommand(String),
}

/// An image ready to be run.
pub struct Runnable {
    /// Where its container comes from.
    pub origin: Origin,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The image's environment.
    pub env: Vec<(String, String)>,
    /// Home directory, if the user has one.
    pub home: Option<String>,
    /// Working directory.
    pub cwd: String,
    /// User and group id.
    pub ids: (u32, u32),
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// Memory limit of its container.
    pub memory_bytes: u64,
    /// Wall-clock limit when the request names none.
    pub timeout: std::time::Duration,
}

impl Images {
    /// Runs images of `store`.
    pub fn new(store: Arc<Store>, supply: Arc<Supply>, settings: ImageSettings) -> Self {
        Self { store, supply, settings }
    }

    /// Prepares a run of image `name`: `command` replaces the image's own, its entrypoint stays (OCI image
    /// specification, config.md).
    ///
    /// # Errors
    /// See [`ImageRunError`].
    pub fn prepare(&self, name: &str, command: Option<&[String]>) -> Result<Runnable, ImageRunError> {
        let image = self.store.get(name).map_err(|source| match source {
            StoreError::NotFound { .. } => ImageRunError::Unknown(name.to_owned()),
            source => ImageRunError::Store { name: name.to_owned(), source },
        })?;
        let config = &image.config;
        let argv: Vec<String> = config.entrypoint.iter().chain(command.unwrap_or(&config.cmd)).cloned().collect();
        if argv.is_empty() {
            return Err(ImageRunError::NoCommand(name.to_owned()));
        }
        let plain = |path: &&str| open_inside(&image.rootfs, path, OFlags::PATH | OFlags::DIRECTORY).is_ok();
        if let Some(path) = MOUNT_POINTS.into_iter().find(|path| !plain(path)) {
            return Err(ImageRunError::MountPoint { name: name.to_owned(), path });
        }
        let user = config.user.as_str();
        let account = account(&image.rootfs, user).map_err(|problem| ImageRunError::User {
            name: name.to_owned(),
            user: user.to_owned(),
            problem,
        })?;
        let template = Template {
            provider: LABEL.to_owned(),
            rootfs: image.rootfs.clone(),
            home: account.home.clone(),
            user: account.uid,
            group: account.gid,
            credentials: None,
            idle: self.settings.limits,
            run: self.settings.limits,
            pids: self.settings.pids,
            egress: Arc::clone(&self.settings.egress),
            prestarted: None,
            reclaim: Reclaim::Nothing,
        };
        let workdir = &config.workdir;
        Ok(Runnable {
            origin: Origin::Image(Arc::clone(&self.supply), Arc::new(template)),
            argv,
            env: config.env.clone(),
            home: account.home,
            cwd: if workdir.is_empty() { "/".to_owned() } else { workdir.clone() },
            ids: (account.uid, account.gid),
            groups: account.groups,
            memory_bytes: self.settings.limits.memory_bytes,
            timeout: self.settings.timeout,
        })
    }
}

struct Account {
    uid: u32,
    gid: u32,
    /// Supplementary ones.
    groups: Vec<u32>,
    home: Option<String>,
}

/// `USER[:GROUP]`, each a number or a name of the image's own `/etc/passwd` and `/etc/group`; empty is root.
fn account(rootfs: &Path, text: &str) -> Result<Account, &'static str> {
    let account = resolve(text, &read_inside(rootfs, "etc/passwd"), || read_inside(rootfs, "etc/group"))?;
    let home = account.home.filter(|home| is_plain_directory(rootfs, home));
    Ok(Account { home, ..account })
}

/// The same from the content of the two files; whether the home exists is not looked at.
fn resolve(text: &str, passwd: &str, groups: impl FnOnce() -> String) -> Result<Account, &'static str> {
    let (user, group) = text.split_once(':').map_or((text, None), |(user, group)| (user, Some(group)));
    let user = if user.is_empty() { "0" } else { user };
    // passwd(5): name:password:uid:gid:comment:home:shell
    let line = |wanted: &dyn Fn(&[&str]) -> bool| {
        passwd
            .lines()
            .map(|line| line.split(':').collect::<Vec<_>>())
            .find(|fields| fields.len() >= 6 && wanted(fields))
    };
    let number = parse_id(user)?;
    let entry = match number {
        Some(uid) => line(&|fields| fields[2].parse() == Ok(uid)),
        None => Some(line(&|fields| fields[0] == user).ok_or("which its /etc/passwd does not know")?),
    };
    let uid = match (number, &entry) {
        (Some(uid), _) => uid,
        (None, Some(fields)) => parse_id(fields[2])?.ok_or("whose id in /etc/passwd is no number")?,
        (None, None) => return Err("which its /etc/passwd does not know"),
    };
    let (gid, supplementary) = match (group, &entry) {
        // One that is named is the only one (OCI image specification, config.md).
        (Some(group), _) => match parse_id(group)? {
            Some(gid) => (gid, Vec::new()),
            None => (group_id(&groups(), group)?, Vec::new()),
        },
        (None, Some(fields)) => {
            let gid = parse_id(fields[3])?.ok_or("whose group in /etc/passwd is no number")?;
            (gid, groups_of(&groups(), fields[0], gid)?)
        }
        (None, None) => (0, Vec::new()),
    };
    let home = entry.map(|fields| fields[5].to_owned());
    Ok(Account { uid, gid, groups: supplementary, home })
}

/// The groups that have `user` among their members, besides its primary one (group(5): name:password:gid:members).
fn groups_of(groups: &str, user: &str, primary: u32) -> Result<Vec<u32>, &'static str> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let fields: Vec<_> = line.split(':').collect();
        let [_, _, id, members] = fields[..] else { continue };
        if !members.split(',').any(|member| member.trim() == user) {
            continue;
        }
        let gid = parse_id(id)?.ok_or("one of whose group ids in /etc/group is no number")?;
        if gid != primary && !found.contains(&gid) {
            found.push(gid);
        }
    }
    if found.len() > MAX_GROUPS {
        return Err("which is in more than 64 groups of its /etc/group");
    }
    Ok(found)
}

fn group_id(groups: &str, name: &str) -> Result<u32, &'static str> {
    let found = groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name);
    let fields = found.ok_or("whose group its /etc/group does not know")?;
    fields.get(2).map_or(Ok(None), |id| parse_id(id))?.ok_or("whose group id in /etc/group is no number")
}

/// Digits are an id and have to be one of the container's; anything else is a name.
fn parse_id(text: &str) -> Result<Option<u32>, &'static str> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.parse() {
        Ok(id) if id <= MAX_ID => Ok(Some(id)),
        _ => Err("an id above 65534, which no command in a container can have"),
    }
}

/// Opens something of an image without following a link: the image is foreign.
fn open_inside(rootfs: &Path, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let root = rustix::fs::open(rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Content of a regular file, or nothing: an image need not have one. Of a larger one than [`MAX_ACCOUNTS`], the lines
/// that are whole.
fn read_inside(rootfs: &Path, path: &str) -> String {
    let mut text = String::new();
    // Non-blocking, so that a FIFO in its place does not hang us.
    if let Ok(fd) = open_inside(rootfs, path, OFlags::RDONLY | OFlags::NONBLOCK) {
        let file = std::fs::File::from(fd);
        if file.metadata().is_ok_and(|data| data.is_file())
            && file.take(MAX_ACCOUNTS).read_to_string(&mut text).is_err()
        {
            text.clear();
        }
        // Half a line can have half an id.
        if text.len() as u64 == MAX_ACCOUNTS {
            text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
        }
    }
    text
}

fn is_plain_directory(rootfs: &Path, path: &str) -> bool {
    let relative = path.trim_matches('/');
    // /tmp is a mount already, and / must stay what it is.
    !relative.is_empty() && relative != "tmp" && open_inside(rootfs, relative, OFlags::PATH | OFlags::DIRECTORY).is_ok()
}

/// What the fuzz target of accounts calls: `text` with the content of both files.
///
/// # Panics
/// If an id comes out that a container does not have, or root without anything saying so.
#[cfg(fuzzing)]
pub fn fuzz_account(text: &str, passwd: &str, groups: &str) {
    let Ok(Account { uid, gid, groups, .. }) = resolve(text, passwd, || groups.to_owned()) else { return };
    assert!(uid <= MAX_ID && gid <= MAX_ID && groups.iter().all(|gid| *gid <= MAX_ID), "{uid}:{gid} {groups:?}");
    let user = text.split_once(':').map_or(text, |(user, _)| user);
    let zero = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte == b'0');
    let says_root = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        fields.len() >= 6 && fields[0] == user && zero(fields[2])
    };
    assert!(uid != 0 || user.is_empty() || zero(user) || passwd.lines().any(says_root), "root out of nowhere");
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::{MAX_ACCOUNTS, MAX_GROUPS, account, parse_id};

    fn rootfs() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("etc")).unwrap();
        std::fs::create_dir_all(root.path().join("srv/app")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\napp:x:1234:1235::/srv/app:/bin/sh\nbig:x:4294967296:0::/:/bin/sh\n";
        std::fs::write(root.path().join("etc/passwd"), passwd).unwrap();
        std::fs::write(root.path().join("etc/group"), "staff:x:50:\n").unwrap();
        root
    }

    fn ids(root: &Path, text: &str) -> Result<(u32, u32, Option<String>), &'static str> {
        account(root, text).map(|account| (account.uid, account.gid, account.home))
    }

    #[test]
    fn users_are_numbers_or_names_of_the_image() {
        let root = rootfs();
        let root = root.path();
        assert_eq!(ids(root, ""), Ok((0, 0, None)), "root, whose home the image does not have");
        assert_eq!(ids(root, "app"), Ok((1234, 1235, Some("/srv/app".to_owned()))));
        assert_eq!(ids(root, "1234"), Ok((1234, 1235, Some("/srv/app".to_owned()))));
        assert_eq!(ids(root, "app:staff"), Ok((1234, 50, Some("/srv/app".to_owned()))));
        assert_eq!(ids(root, "77:88"), Ok((77, 88, None)));
        assert!(ids(root, "nobody").unwrap_err().contains("does not know"));
        assert!(ids(root, "app:wheel").unwrap_err().contains("does not know"));
    }

    #[test]
    fn a_user_is_in_the_groups_of_the_image() {
        let root = rootfs();
        let root = root.path();
        let groups = |text: &str| account(root, text).map(|account| account.groups);
        let many: String = (0..=MAX_GROUPS).map(|id| format!("g{id}:x:{}:many\n", 100 + id)).collect();
        let file = "audio:x:29:app\nvideo:x:44:other,app\nown:x:1235:app\nagain:x:29:app\nappy:x:30:appy,\nhuge:x:70000:big\n\
                    bad:x:z:bad\n+:::\nroots:x:7:root\n";
        std::fs::write(root.join("etc/group"), file.to_owned() + "staff:x:50:\n" + &many).unwrap();
        let mut passwd = std::fs::read_to_string(root.join("etc/passwd")).unwrap();
        passwd += "many:x:7:7::/:\nhuge:x:8:8::/:\nbad:x:9:9::/:\nbig2:x:10:10::/:\n";
        std::fs::write(
            root.join("etc/passwd"),
            passwd.replace("huge", "big").replace("big:x:4294967296", "x:x:4294967296"),
        )
        .unwrap();
        assert_eq!(groups("app"), Ok(vec![29, 44]));
        assert_eq!(groups("1234"), Ok(vec![29, 44]), "by number the same as by name");
        assert_eq!(groups(""), Ok(vec![7]), "root too");
        assert_eq!(groups("app:staff"), Ok(vec![]), "one that is named is the only one");
        assert_eq!(groups("1234:29"), Ok(vec![]));
        assert_eq!(groups("77"), Ok(vec![]), "nobody that it knows");
        assert!(groups("many").unwrap_err().contains("64 groups"));
        assert!(groups("big").unwrap_err().contains("65534"));
        assert!(groups("bad").unwrap_err().contains("no number"));
        std::fs::remove_file(root.join("etc/group")).unwrap();
        assert_eq!(groups("app"), Ok(vec![]), "an image need not have the file");
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
        assert_eq!(ids(root, "late"), Ok((1234, 1235, None)));
        assert!(ids(root, "later").unwrap_err().contains("does not know"));
        // Cut off in the middle of its id.
        with_room_for("late:x:12".len());
        assert!(ids(root, "late").unwrap_err().contains("does not know"));
    }

    #[test]
    fn ids_that_would_wrap_around_are_refused() {
        let root = rootfs();
        for user in ["65535", "65536", "2147483648", "4294967296", "18446744073709551616", "0:70000", "big"] {
            assert!(ids(root.path(), user).unwrap_err().contains("65534"), "{user}");
        }
        assert_eq!(parse_id("-1"), Ok(None), "no number, and no name either");
    }

    #[test]
    fn accounts_are_not_read_through_links() {
        let root = rootfs();
        std::fs::remove_file(root.path().join("etc/passwd")).unwrap();
        symlink("/etc/passwd", root.path().join("etc/passwd")).unwrap();
        assert!(ids(root.path(), "daemon").is_err(), "the host's own has one");
    }
}
