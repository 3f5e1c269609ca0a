//! Files of Debian packages, pinned by a committed lock file; no script of a package is ever run.
//!
//! A lock says what is preferred. Packages are kept in the cache by their hash, so what was built once can be built again
//! when the mirror has dropped these versions; what is nowhere any more gives way to the newest of the suite, which
//! [`Moved`] tells and the image records.

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
