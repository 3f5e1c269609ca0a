//! What outlives the daemon, however it ends: warm containers, running executions, every byte and every event of them.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod changed;
#[cfg(debug_assertions)]
mod failpoints;
mod flood;
mod kills;
mod left;
mod load;
mod mistakes;
mod prestarted;
mod read_only;
mod restart;
mod strict;
#[cfg(debug_assertions)]
mod unknown;
