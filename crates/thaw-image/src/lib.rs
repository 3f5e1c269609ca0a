//! OCI images: made from Debian and npm packages without Docker, verified, and unpacked once.
//!
//! [`build::build`] turns a manifest folder (`images/NAME`) into an OCI image layout on disk. [`Store`] turns
//! a layout, ours or anybody's, into a root file system: it trusts nothing that the layout says before the
//! bytes hash to it, and writes relative to directory descriptors only. Everything here blocks on disk (and
//! building on child processes): call it from a blocking thread.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod account;
pub mod build;
mod digest;
mod document;
#[cfg(fuzzing)]
pub mod fuzzing;
mod layout;
mod places;
pub mod progress;
pub mod registry;
pub mod signature;
mod store;
mod unpack;

#[cfg(fuzzing)]
pub use account::fuzz_account;
pub use account::{Account, MAX_GROUPS, MAX_ID, account};
pub use layout::{LayoutError, digest_in};
pub use places::{can_enter, open_plain, writable_home};
pub use store::{
    Damage, HeldImage, Hold, Image, ImageConfig, ImageLayer, ImportNames, Store, StoreError, Verification,
};
pub use unpack::{Limits, UnpackError};

#[cfg(test)]
mod tests;
