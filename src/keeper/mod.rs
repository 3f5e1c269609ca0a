//! What survives the daemon: a small process that holds, under a name each, descriptors and a note about them.
//!
//! A container lives as long as somebody holds the other end of its control socket, and its output is safe as long as
//! somebody holds its pipes and the files that it was moved to. The keeper holds a duplicate of each, does nothing with
//! them, and gives them to the next daemon that connects. It has one thread and knows nothing of what it keeps.
//!
//! ```text
//! thawd ──► put(name, note, descriptors) ──► keeper        thawd is killed: nothing ends
//! thawd' ──► connects ──► every (name, note, descriptors) ──► thawd' goes on
//! ```
//!
//! A daemon that is stopped for good says so, and the keeper ends. A keeper that no daemon has come to for
//! `keeper.timeout_seconds` kills the containers, so that a daemon that never comes back leaves nothing running.

mod client;
mod key;
mod protocol;
mod server;

pub use client::{Keeper, KeeperError, Kept, Location};
pub use key::Key;
pub use server::serve;

/// Name of its socket in the run directory.
pub const SOCKET: &str = "keeper.sock";
