//! Executions from claim to exit, through the socket, in real containers.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod clients;
mod credentials;
mod endings;
mod input;
mod output;
mod raw;
mod resuming;
mod stopping;
mod surroundings;
