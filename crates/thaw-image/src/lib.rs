//! OCI images: made from Debian and npm packages without Docker, verified, and unpacked once.
//!
//! [`build::build`] turns a manifest folder (`images/NAME`) into an OCI image layout on disk. [`Store`] turns
//! a layout, ours or anybody's, into a root file system: it trusts nothing that the layout says before the
//! bytes hash to it, and writes relative to directory descriptors only. Everything here blocks on disk (and
//! building on child processes): call it from a blocking thread.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod build;
mod digest;
#[cfg(fuzzing)]
pub mod fuzzing;
mod layout;
pub mod progress;
pub mod registry;
mod store;
mod unpack;

pub use layout::LayoutError;
pub use store::{Damage, Image, ImageConfig, ImageLayer, Store, StoreError, Verification};
pub use unpack::{Limits, UnpackError};

#[cfg(test)]
mod tests;
