//! Messages between daemon and keeper: one JSON document per `SOCK_SEQPACKET` datagram, with descriptors.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Largest message, bytes: a note is at most what an execution's labels are, about 11 KiB, and some hundred bytes.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// What both sides say first; another one whenever something that is kept comes to mean something else. A daemon that
/// meets a keeper of another version replaces it, and what it kept is destroyed.
pub const VERSION: u32 = 3;

/// A keeper of this version has names instead of keys, and means the same otherwise; a daemon goes on with it.
pub const NAMES: u32 = 2;

/// Daemon → keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Keep these descriptors under this key, instead of what was kept under it.
    Put {
        /// The key, whatever it is.
        key: Value,
        /// What the daemon wants to know about them.
        note: String,
    },
    /// Keep what has this key no more.
    Drop {
        /// The key.
        key: Value,
    },
    /// End: no other daemon will come.
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
    /// One kept item.
    Item {
        /// The key, as it was given.
        key: Value,
        /// The note.
        note: String,
    },
    /// The end of the list.
    Done,
}
