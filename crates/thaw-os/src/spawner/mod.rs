//! Creating containers: a small single-threaded process that clones them, and the daemon's handle to it.
//!
//! The daemon never forks a container itself: it has threads, and its memory would be copied each time. The
//! spawner is the same program executed again (`thawd spawner`), holds no secret and no state, and clones with
//! `CLONE_PARENT`, so that containers are the daemon's children. It is ours rather than libcontainer's because
//! the same namespaces and mounts cost a fraction of the time when made straight on the kernel's descriptor-based
//! mount API, and because libcontainer can neither map owners of the root file system nor create a container
//! directly inside its cgroup.

mod choices;
mod client;
mod confine;
mod filesystem;
mod filter;
mod protocol;
mod server;
mod shortage;
mod view;

pub use client::{Spawned, Spawner, SpawnerError};
pub use filter::page as filter_page;
pub use protocol::CreateRequest;
pub use server::serve;
