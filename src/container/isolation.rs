//! What makes containers, freezes and kills them. There is one way: the kernel's own means. An OCI runtime would be another,
//! which starts the container that [`CreateRequest`] describes. Control groups, with limits and figures, are the daemon's
//! own whatever the way is.

use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;

use thaw_os::cgroup::{Cgroup, CgroupError};
use thaw_os::spawner::{CreateRequest, Descriptors, Spawned, Spawner, SpawnerError};

/// What an implementation does in its own time.
pub type Doing<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A way to have containers.
pub trait Isolation: Debug + Send + Sync {
    /// Creates a container in its control group; done when its `thaw-init` has been executed.
    fn create(&self, request: CreateRequest, descriptors: Descriptors) -> Doing<'_, Result<Spawned, SpawnerError>>;

    /// Freezes everything in it; done when the kernel has confirmed that.
    fn freeze<'a>(&'a self, cgroup: &'a Cgroup) -> Doing<'a, Result<(), CgroupError>>;

    /// Kills everything in it, frozen or not.
    ///
    /// # Errors
    /// The control file cannot be written.
    fn kill(&self, cgroup: &Cgroup) -> Result<(), CgroupError>;
}

/// Namespaces, mounts and filters that thawd makes itself.
#[derive(Debug)]
pub struct Native(Spawner);

impl Native {
    /// With this spawner.
    pub fn new(spawner: Spawner) -> Self {
        Self(spawner)
    }
}

impl Isolation for Native {
    fn create(&self, request: CreateRequest, descriptors: Descriptors) -> Doing<'_, Result<Spawned, SpawnerError>> {
        Box::pin(self.0.create(request, descriptors))
    }

    fn freeze<'a>(&'a self, cgroup: &'a Cgroup) -> Doing<'a, Result<(), CgroupError>> {
        Box::pin(cgroup.freeze())
    }

    fn kill(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        cgroup.kill()
    }
}
