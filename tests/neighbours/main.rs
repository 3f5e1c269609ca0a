//! What one container takes from its neighbours, its daemon and its host: kernel memory that is charged to nobody, limits
//! that all share, and time. Each kind is tried from inside, and measured outside.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod bed;
mod memory;
mod podman;
mod shares;
mod storms;
