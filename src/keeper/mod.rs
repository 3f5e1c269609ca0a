//! What survives the daemon: a small process that holds, under a key each, descriptors and a note about them.
//!
//! A container lives as long as some process holds the other end of its control socket. Its output is safe as long as some
//! process holds its pipes and the files that the output was moved to. The keeper holds a duplicate of each, and passes
//! them to the next daemon that connects.
//!
//! ```text
//! thawd ──► put(key, note, descriptors) ──► keeper        thawd is killed: nothing ends
//! thawd' ──► connects ──► every (key, note, descriptors) ──► thawd' goes on
//! ```
//!
//! A daemon that stops for good tells the keeper to end. A keeper without a daemon for `daemon.keeper_timeout_seconds`
//! kills the containers, so that a daemon that never returns leaves nothing running.
//!
//! Called by `container`, `execution` and `output`, each for what it wants to survive. Deliberately absent: threads,
//! and any knowledge of what the descriptors are.

mod client;
mod key;
mod protocol;
mod server;

pub use client::{Keeper, KeeperError, Kept, Location};
pub use key::Key;
pub use server::serve;

/// Name of the keeper's socket in the run directory.
pub const SOCKET: &str = "keeper.sock";
