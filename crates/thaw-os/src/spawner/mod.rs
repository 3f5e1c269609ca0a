//! Owns the creation of containers: a small single-threaded process that clones them, and the daemon's handle to it.
//!
//! The daemon never forks a container itself: it has threads, and its memory would be copied each time. The spawner is
//! the same program executed again (`thawd spawner`). It holds no secret and no state, and clones with `CLONE_PARENT`,
//! so containers are the daemon's children. `docs/decisions.md` says why it is not libcontainer.

mod allowed;
mod choices;
mod client;
mod confine;
mod filesystem;
mod filter;
mod program;
mod protocol;
mod server;
mod shortage;
mod view;

pub use client::{Spawned, Spawner, SpawnerError};
pub use filter::page as filter_page;
pub use protocol::CreateRequest;
pub use server::serve;
