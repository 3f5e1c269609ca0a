//! Files of Debian packages, pinned by a committed lock file; no script of a package is ever run.
//!
//! A lock is a preference. Packages are cached by hash, so an image that was built once can be built again after the
//! mirror has dropped its versions. A package that is not available anywhere is replaced by the newest of the suite;
//! [`Moved`] reports that, and the image records it.

mod choose;
mod depends;
mod fetch;
mod keep;
mod lock;
mod newest;
mod renew;

pub(super) use self::choose::{add, choose};
pub(super) use self::lock::{lock_path, read_lock};
pub(super) use self::renew::{check, renew_lock};
