//! Messages between daemon and keeper: one JSON document per `SOCK_SEQPACKET` datagram, with descriptors.

use serde::{Deserialize, Serialize};

/// Largest message, bytes: a note is at most what an execution's labels are, about 11 KiB, and some hundred bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// What both sides say first; another one whenever something that is kept comes to mean something else. A daemon that
/// meets a keeper of another version replaces it, and what it kept is destroyed.
pub const VERSION: u32 = 2;

/// Daemon → keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Keep these descriptors under this name, instead of what was kept under it.
    Put {
        /// The name.
        key: String,
        /// What the daemon wants to know about them.
        note: String,
    },
    /// Keep what has this name no more.
    Drop {
        /// The name.
        key: String,
    },
    /// There will be no other daemon.
    End,
}

/// Keeper → daemon, after the daemon has connected.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// The first message.
    Hello {
        /// [`VERSION`].
        version: u32,
    },
    /// What is kept, one message each.
    Item {
        /// The name.
        key: String,
        /// The note.
        note: String,
    },
    /// The end of the list.
    Done,
}
