//! System calls that no crate offers safely, each behind a safe function. With `thaw-init`, the only unsafe code.

#![allow(unsafe_code)]

mod clock;
mod clone;
mod exec;
mod message;
mod mount;
mod network;
mod watch;

pub use clock::{since_boot, thread_cpu_time};
pub use clone::{Cloned, clone_container};
pub use exec::execute;
pub use message::{Received, peek, peek_from_the_start, receive, send};
pub use mount::{attach_in_namespace, bind_detached, set_mount_attributes};
pub use network::bring_up_loopback;
pub use watch::Watched;
