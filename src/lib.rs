//! thawd: turns OCI images into running sandboxes and hands one out in milliseconds.
//!
//! Data flows one way: `api` → `execution` → `pool` → `container` → kernel. Each module imports only those
//! listed below it; `ARCHITECTURE.md` names the owner of each piece of state.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod api;
pub mod cgroup;
pub mod client;
pub mod config;
pub mod container;
pub mod ctl;
pub mod daemon;
pub mod doctor;
pub mod egress;
pub mod execution;
pub mod image;
pub mod init;
pub mod journal;
pub mod keeper;
pub mod kernel;
pub mod paper;
pub mod pool;
pub mod provider;
pub mod reload;
pub mod service;
pub mod sole;
pub mod spawner;
pub mod steps;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod types;
pub mod unified;
