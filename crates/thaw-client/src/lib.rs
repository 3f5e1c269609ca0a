//! What the programs of thawd have in common: the types of the HTTP API, a client of it, the one TLS set-up of all that
//! speaks HTTPS, and the configuration file.
//!
//! A program that only speaks to the API needs this crate and no other.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod client;
pub mod config;
pub mod content;
pub mod files;
#[cfg(feature = "paper")]
pub mod paper;
pub mod renewal;
pub mod time;
pub mod tls;
pub mod types;
