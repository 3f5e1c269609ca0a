//! npm packages, pinned by a committed `package-lock.json`; no script of a package is ever run.
//!
//! As with Debian's packages, a lock is a preference: first npm's cache by hash, then the registry, and in place of
//! withdrawn packages the newest that fit.

mod choose;
mod files;
mod newest;
mod pinned;
mod versions;

pub(super) use self::choose::choose;
pub(super) use self::files::{copy_into, node_tree, strip_version};
pub use self::newest::Outdated;
pub(super) use self::newest::{check, newest_in_manifest, outdated, renew_lock};
pub(super) use self::pinned::{Modules, Pinned};
