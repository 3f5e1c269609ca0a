//! Messages between the daemon and the spawner: one JSON document per `SOCK_SEQPACKET` datagram, with descriptors that
//! the document names.

use serde::{Deserialize, Serialize};

use super::parts::CreateRequest;

/// Largest message, bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Daemon → spawner.
#[derive(Debug, Serialize, Deserialize)]
pub struct Create {
    /// What the container consists of.
    pub request: CreateRequest,
    /// What the descriptors are that come with it, in their order.
    pub given: Vec<Given>,
}

/// What a descriptor is that comes with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Given {
    /// The container's end of its control socket.
    Control,
    /// Its cgroup directory (v2 core).
    Cgroup,
    /// The directory that the writable layer of its root lies in.
    Layer,
}

/// Spawner → child: go on, with what the child may not make itself.
#[derive(Debug, Serialize, Deserialize)]
pub struct Go {
    /// What the descriptors are that come with it, in their order.
    pub parts: Vec<ChildPart>,
}

/// What a descriptor is that the child gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChildPart {
    /// The mount that becomes its root.
    Root,
    /// The mount that becomes its `/dev`.
    Devices,
    /// The mount of the next volume in the request's list of mounts.
    Volume,
    /// A file by which it enters a v1 cgroup.
    Tasks,
}

/// Kind of a descriptor that comes with a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// pidfd of the container's PID 1.
    Pidfd,
    /// Listening socket on the proxy's port inside.
    Proxy,
    /// Devpts of the container.
    Terminals,
    /// Its own `/dev/null`, opened for reading.
    Null,
    /// The credential directory, if one was asked for.
    Credentials,
    /// The directory at `/workspace`, if one was asked for.
    Workspace,
}

/// What could not be had of the root as it should be, on this kernel or file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compromise {
    /// Owners of its files are not mapped: the image's file system cannot.
    pub unmapped: bool,
    /// Why its inodes are those of the image, which other containers of the image have too.
    pub shared_inodes: Option<String>,
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
        /// What its root lacks.
        compromise: Compromise,
    },
    /// The creation failed. Descriptor: a pidfd, if a process was made that the daemon has to reap.
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
