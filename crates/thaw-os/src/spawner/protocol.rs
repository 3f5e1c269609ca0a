//! Messages between the daemon and the spawner: one JSON document per `SOCK_SEQPACKET` datagram, with descriptors.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Largest message, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Daemon → spawner. Descriptors: the container's end of its control socket, its cgroup directory (v2 core).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CreateRequest {
    /// Container id; also its host name.
    pub id: String,
    /// Unpacked root file system on the host.
    pub rootfs: PathBuf,
    /// A directory that the new root is attached to before it becomes the root.
    pub mount_point: PathBuf,
    /// First host user and group id of the 65,536 that the container's ids are mapped to.
    pub id_base: u32,
    /// User that commands run as, inside.
    pub user: u32,
    /// Their group.
    pub group: u32,
    /// Home directory inside, if there is to be one; must exist in the image.
    pub home: Option<String>,
    /// Directory below `home` that credentials will be mounted on.
    pub credential_dir: Option<String>,
    /// Whether there is a directory `/workspace` to work in; must exist in the image.
    pub workspace: bool,
    /// Size of everything writable together (home, /tmp, /dev/shm, /workspace), bytes.
    pub ephemeral_bytes: u64,
    /// Number of files that it may hold.
    pub ephemeral_inodes: u64,
    /// Loopback port inside on which the egress proxy listens.
    pub proxy_port: u16,
    /// Memory that it is told to have, bytes: its limit while it serves.
    pub memory_bytes: u64,
    /// Processors that it is told to have; 0 for all of the host.
    pub cpus: u32,
    /// Whether it may read its own limits and usage in `/sys/fs/cgroup`: on v2 only, where they are.
    pub sees_cgroup: bool,
    /// Open file limit (`RLIMIT_NOFILE`) inside.
    pub open_files: u64,
    /// Directories whose `cgroup.procs` the container is written to, besides the cgroup it is cloned into.
    pub cgroups: Vec<PathBuf>,
}

/// Kind of a descriptor that comes with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// pidfd of the container's PID 1.
    Pidfd,
    /// Listening socket on the proxy's port inside.
    Proxy,
    /// The container's devpts.
    Terminals,
    /// The credential directory, if one was asked for.
    Credentials,
    /// The directory at `/workspace`, if one was asked for.
    Workspace,
}

/// Spawner → daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The container was created.
    Created {
        /// Kinds of the descriptors, in their order.
        parts: Vec<Part>,
        /// Process id of PID 1.
        pid: i32,
        /// Whether the owners of the root file system are mapped (not every file system can).
        mapped: bool,
    },
    /// Failed. Descriptor: pidfd, if a process was made that the daemon has to reap.
    Failed {
        /// The step, and why it failed.
        message: String,
    },
}

/// Child → spawner.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildReply {
    /// Everything is set up; with the kinds of the descriptors. After that the child sends nothing: the end of the
    /// socket shows that the program was executed.
    Ready(Vec<Part>),
    /// The step, and why it failed.
    Failed(String),
}
