//! What thawd asks of the Linux kernel: system calls that no crate offers safely, control groups, the process that
//! clones containers, file systems in image files, and files that are put into containers and fetched. With `thaw-init`, the only crate with `unsafe` code, all of it in [`kernel`].
//!
//! Deliberately absent: images, users and HTTP. This crate deals in descriptors, ids, limits and paths.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod cgroup;
pub mod disk;
pub mod files;
pub mod kernel;
pub mod spawner;
pub mod workspace;
