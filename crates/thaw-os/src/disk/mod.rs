//! File systems in files: made from a template, attached by a loop device, mounted, checked.
//!
//! Each is ext4 with a journal, of a limited size, and the file has all of its space from the beginning: what is written to
//! it cannot fail because the host is full. While it is attached, the kernel holds an exclusive flock(2) on the file, so that
//! it is never attached twice, which would destroy it. A mount is a descriptor: it ends with the last process that has it or
//! a copy of it, and the loop device with it.
//!
//! Deliberately absent: images that somebody gave. ext4 trusts what it mounts, so that only images made here are mounted.

mod attach;
mod check;
mod error;
mod layer;
mod make;
mod tool;

pub use attach::{Attached, attach, is_attached};
pub use check::{repair, wants_check};
pub use error::{DiskError, Result};
pub use layer::{Directory, keep_directory, prepare_layer};
pub use make::{Format, make, make_template};
pub use tool::{E2FSCK, MKFS, find as find_tool};
