//! What a container consists of, as the daemon describes it: the spawner makes it, and [`super::oci_spec`] says it to
//! other runtimes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::view::View;

/// A container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateRequest {
    /// Container id.
    pub id: String,
    /// Host name inside.
    pub host_name: String,
    /// Root file system.
    pub root: Root,
    /// A directory of the host that the new root is attached to before it becomes the root.
    pub mount_point: PathBuf,
    /// Whose ids it has.
    pub users: Users,
    /// What is mounted besides `/proc`, `/dev` and what goes with them, in this order: a later one may lie inside an earlier.
    pub mounts: Vec<Mount>,
    /// Files that cover those of the image, where the image has them as plain files.
    pub files: Vec<TextFile>,
    /// Size of the file system that all ephemeral mounts share.
    pub ephemeral: Ephemeral,
    /// Limits of each process.
    pub limits: ProcessLimits,
    /// What it is told about the machine.
    pub machine: Machine,
    /// Loopback port inside on which the egress proxy listens.
    pub proxy_port: u16,
    /// Directories whose `tasks` the container is written to, besides the cgroup it is cloned into.
    pub cgroups: Vec<PathBuf>,
}

/// A root file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Unpacked image on the host. Never written to.
    pub image: PathBuf,
    /// An empty directory, on the file system of `image`: the second layer that overlayfs insists on.
    pub empty: PathBuf,
    /// Name of the mount, in `mountinfo`: by it the store knows who uses the image.
    pub name: String,
    /// Whether it can be written to. Changes then go to `upper` in the directory that comes with the request, which has an
    /// empty `work` beside it, both on a file system that can map owners.
    pub writable: bool,
}

/// Ids, inside and outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Users {
    /// First host user and group id of the 65,536 that the container's ids are mapped to.
    pub id_base: u32,
    /// User that commands run as, inside.
    pub user: u32,
    /// Their group.
    pub group: u32,
}

/// Size of everything ephemeral together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ephemeral {
    /// Bytes.
    pub bytes: u64,
    /// Number of files.
    pub inodes: u64,
}

/// What each process is limited to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// Open files (`RLIMIT_NOFILE`).
    pub open_files: u64,
}

/// What a container's files say about the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Memory, bytes: its limit while it serves.
    pub memory_bytes: u64,
    /// Processors; 0 for all of the host.
    pub cpus: u32,
    /// Whether it may read its own limits and usage in `/sys/fs/cgroup`: on v2 only, where they are.
    pub sees_cgroup: bool,
}

/// A small file that nobody inside can change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TextFile {
    /// Absolute path inside.
    pub path: String,
    /// Its content.
    pub content: String,
}

/// Something mounted in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Absolute path inside. The root must have it as a plain directory, but for credentials, whose directory is made.
    pub at: String,
    /// What is mounted there.
    pub source: Source,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// An empty directory of the tmpfs that everything ephemeral shares.
    Ephemeral {
        /// Its mode.
        mode: u32,
        /// Its owner and group, inside.
        owner: (u32, u32),
        /// Whether the daemon gets a descriptor of it, to put files there and to collect them.
        collected: bool,
    },
    /// A directory on which the daemon mounts a tmpfs with credentials later: made inside an ephemeral one, or one that a
    /// writable root has.
    Credentials {
        /// Its owner and group, inside.
        owner: (u32, u32),
        /// Size of that tmpfs, bytes.
        bytes: u64,
    },
    /// A directory of the host. Ids on its disk are those inside: its mount maps owners.
    Volume {
        /// Where, on the host.
        path: PathBuf,
        /// Whether nothing in it can be changed.
        read_only: bool,
    },
}

impl CreateRequest {
    /// Paths of its volumes, in the order of its mounts, each with whether it is read-only.
    pub fn volumes(&self) -> impl Iterator<Item = (&PathBuf, bool)> {
        self.mounts.iter().filter_map(|mount| match &mount.source {
            Source::Volume { path, read_only } => Some((path, *read_only)),
            Source::Ephemeral { .. } | Source::Credentials { .. } => None,
        })
    }
}

impl Mount {
    /// What every container has: `/tmp` and `/dev/shm`, a home directory if there is to be one, and below that a directory
    /// for credentials of so many bytes, if there is to be one.
    pub fn usual(users: &Users, home: Option<&str>, credentials: Option<(&str, u64)>) -> Vec<Self> {
        let owner = (users.user, users.group);
        let ephemeral = |at: &str, mode, owner| Self {
            at: at.to_owned(),
            source: Source::Ephemeral { mode, owner, collected: false },
        };
        let mut mounts = vec![ephemeral("/tmp", 0o1777, (0, 0)), ephemeral("/dev/shm", 0o1777, (0, 0))];
        if let Some(home) = home {
            mounts.push(ephemeral(home, 0o700, owner));
            mounts.extend(credentials.map(|(name, bytes)| Self::credentials(users, home, name, bytes)));
        }
        mounts
    }

    /// A directory below `home` for credentials of so many bytes.
    pub fn credentials(users: &Users, home: &str, name: &str, bytes: u64) -> Self {
        let owner = (users.user, users.group);
        let at = format!("{}/{name}", home.trim_end_matches('/'));
        Self { at, source: Source::Credentials { owner, bytes } }
    }

    /// A directory to work in, which the daemon can put files into.
    pub fn workspace(users: &Users, at: &str) -> Self {
        let owner = (users.user, users.group);
        Self { at: at.to_owned(), source: Source::Ephemeral { mode: 0o755, owner, collected: true } }
    }
}

impl TextFile {
    /// What every container has in `/etc`: names of hosts, and where to ask for others.
    pub fn usual(host_name: &str) -> Vec<Self> {
        let file = |(name, content)| Self { path: format!("/etc/{name}"), content };
        View::etc(host_name).into_iter().map(file).collect()
    }
}
