//! Containers with several processes, as whoever holds one has them: without pool, executions and API.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod bundle;
mod house;
mod identity;
mod inodes;
mod killed;
mod many;
mod terminal;
mod writable;
