//! thawd: turns OCI images into running sandboxes and hands one out in milliseconds.
//!
//! Data flows one way: `api` → `execution` → `pool` → `container` → kernel. Each module imports only those
//! listed below it; `ARCHITECTURE.md` names the owner of each piece of state.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod against;
pub mod api;
pub mod container;
pub mod daemon;
pub mod directory_lock;
pub mod egress;
pub mod execution;
pub mod failpoints;
pub mod feed;
pub mod idempotency;
pub mod identity;
pub mod jobs;
pub mod keeper;
pub mod login;
pub mod output;
mod peer;
pub mod pool;
pub mod provider;
pub mod reload;
pub mod sandbox;
mod secret_file;
pub mod service;
pub mod storage;
pub mod store;
pub mod systemd;
pub mod telemetry;
pub mod vault;
