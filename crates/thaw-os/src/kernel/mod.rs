//! System calls that no crate offers safely, each behind a safe function. With `thaw-init`, the only unsafe code.

#![allow(unsafe_code)]

mod child;
mod clock;
mod clone;
mod directory_lock;
mod exec;
mod file_ids;
mod file_owner;
mod locked;
mod loop_device;
mod message;
mod mount;
mod network;
mod seccomp;
mod watch;

pub use child::kill_and_reap;
pub use clock::{since_boot, thread_cpu_time};
pub use clone::{Cloned, clone_container};
pub use directory_lock::{LOCK_PATIENCE, LockError, lock_directory};
pub use exec::execute;
pub use file_ids::with_file_ids;
pub use file_owner::own_files_as;
pub use locked::LockedKey;
pub use loop_device::LoopDevice;
pub use message::{Received, peek, peek_from_the_start, receive, send};
pub use mount::{attach_in_namespace, bind_detached, leave_mount_namespace, set_mount_attributes};
pub use network::{bring_up_loopback, connect_in_namespace, listening_in_namespace};
pub use seccomp::install_with_listener;
pub use watch::Watched;
