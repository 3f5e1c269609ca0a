//! Owns the creation of containers: a small single-threaded process that clones them, and the daemon's handle to it.
//!
//! The daemon never forks a container itself: it has threads, and its memory would be copied each time. The spawner is
//! the same program executed again (`thawd spawner`). It holds no secret and no state, and clones with `CLONE_PARENT`,
//! so containers are the daemon's children. `docs/decisions.md` says why it is not libcontainer.

mod allowed;
mod choices;
mod client;
mod confine;
mod devices;
mod error;
mod filesystem;
mod filter;
mod filter_error;
mod oci;
mod oci_filter;
mod parts;
mod program;
mod protocol;
mod root;
mod server;
mod shortage;
mod view;

pub use ::oci_spec::OciSpecError;
pub use client::{Descriptors, Spawned, Spawner, SpawnerError};
pub use filter::page as filter_page;
pub use filter_error::FilterError;
pub use oci::{Bundle, Program, spec as oci_spec};
pub use parts::{CreateRequest, Ephemeral, Machine, Mount, ProcessLimits, Root, Source, TextFile, Users};
pub use protocol::Compromise;
pub use server::{IDS_PER_CONTAINER, serve};
