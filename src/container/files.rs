//! Files of a container that a sandbox holds, from outside, whether it is frozen or not.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};

use super::holder::Sandbox;
use super::{Container, ContainerError};
use thaw_os::files::Place;

impl Sandbox {
    /// Its files, which belong to the user of its commands. Credentials are not reached. Whoever has this keeps the
    /// container's file systems in use.
    ///
    /// # Errors
    /// The container has ended.
    pub fn files(&self, turn: &Arc<Mutex<()>>) -> Result<Arc<Place>, ContainerError> {
        let Container { id_base, owner, credentials, .. } = self.container();
        let root = self.root()?;
        let hidden = credentials.iter().map(|mount| Ok(rustix::fs::fstat(mount)?.st_dev));
        let hidden = hidden.collect::<io::Result<Vec<_>>>().map_err(ContainerError::Control)?;
        // The group of that user has the same number in every image.
        let user = owner - id_base;
        let place = Place::new(root, *id_base, (user, user), hidden, Arc::clone(turn));
        Ok(Arc::new(place))
    }

    /// The root of its PID 1, which is thaw-init: no command can be it, or change its root.
    fn root(&self) -> Result<OwnedFd, ContainerError> {
        let ended = || ContainerError::InitEnded("meanwhile");
        let teardown = &self.container().teardown;
        let pid = teardown.entry().pid().ok_or_else(ended)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty()).map_err(|errno| match errno {
                rustix::io::Errno::NOENT | rustix::io::Errno::SRCH => ended(),
                errno => ContainerError::Control(errno.into()),
            })?;
        // It has not ended, so that the number was its own when the root was opened.
        let mut pidfd = [PollFd::from_borrowed_fd(teardown.pidfd(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        match poll(&mut pidfd, Some(&now)).map_err(|errno| ContainerError::Control(errno.into()))? {
            0 => Ok(root),
            _ => Err(ended()),
        }
    }
}
