//! `[api.connections]`: limits of the connections to the API's socket.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Connections above the limit that are accepted only to answer 503, and to answer health checks. Beyond these, further
/// connections wait in the kernel's backlog.
pub const TURNED_AWAY: usize = 16;

/// Most permits of tokio's semaphore (`Semaphore::MAX_PERMITS`), which counts the connections.
const MAX_PERMITS: usize = usize::MAX >> 3;

/// Longest time that can be configured, seconds.
const DAY: u64 = 24 * 3600;

/// `[api.connections]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Connections {
    /// Most connections open at the same time; further ones are answered 503.
    pub max: usize,
    /// Seconds for the head of a request to arrive; also the longest idle time between two requests.
    pub header_timeout_seconds: u64,
    /// Seconds for the body of a request to arrive.
    pub body_timeout_seconds: u64,
    /// Seconds for which a client may read nothing of an answer that waits for it; then its connection is closed.
    pub write_stall_seconds: u64,
    /// Users besides root that may use the API, by uid; empty means everybody who may open the socket.
    pub allowed_uids: Vec<u32>,
    /// Users besides root who may change images through the API, by uid: whoever may decides what runs with the credentials
    /// of all users.
    pub image_uids: Vec<u32>,
}

impl Default for Connections {
    fn default() -> Self {
        // More than twice what `queue.max` and `container.max` can keep busy by default.
        Self {
            max: 512,
            header_timeout_seconds: 30,
            body_timeout_seconds: 60,
            write_stall_seconds: 300,
            allowed_uids: Vec::new(),
            image_uids: Vec::new(),
        }
    }
}

impl Connections {
    /// Checks that all values are in range.
    ///
    /// # Errors
    /// Key and problem of the first value that is not.
    pub fn check(&self) -> Result<(), (String, String)> {
        for (key, value, most) in [
            ("max", self.max as u64, MAX_PERMITS as u64 - TURNED_AWAY as u64),
            ("header_timeout_seconds", self.header_timeout_seconds, DAY),
            ("body_timeout_seconds", self.body_timeout_seconds, DAY),
            ("write_stall_seconds", self.write_stall_seconds, DAY),
        ] {
            if !(1..=most).contains(&value) {
                return Err((format!("api.connections.{key}"), format!("must be from 1 to {most}")));
            }
        }
        Ok(())
    }

    /// `body_timeout_seconds` as a duration.
    pub fn body_timeout(&self) -> Duration {
        Duration::from_secs(self.body_timeout_seconds)
    }
}
