//! Attaching and mounting images.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::check::{repair, wants_check};
use super::error::{DiskError, Result, at, failed};
use crate::kernel::LoopDevice;

/// Pause between two tries to lock an image.
const AGAIN: Duration = Duration::from_millis(2);

/// A mounted image.
#[derive(Debug)]
pub struct Attached {
    /// Its file system, as a detached mount: nobody sees it, and it ends with the last copy of this descriptor.
    pub mount: OwnedFd,
    /// Whether e2fsck has repaired it.
    pub repaired: bool,
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    options.open(path).map_err(at("open", path))
}

/// Locks it for whoever attaches it; false if it is still locked after `patience`.
fn lock(image: &File, path: &Path, patience: Duration) -> Result<bool> {
    let until = Instant::now() + patience;
    loop {
        match rustix::fs::flock(image, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(AGAIN),
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(errno) => return Err(at("lock", path)(errno)),
        }
    }
}

/// Whether the image is still attached after `patience`. Blocks.
///
/// # Errors
/// The image is gone.
pub fn is_attached(path: &Path, patience: Duration) -> Result<bool> {
    Ok(!lock(&open(path)?, path, patience)?)
}

/// Mounts an image that nobody else has, and repairs it first if it has to be. Waits up to `patience` until who had it
/// before has let go of it. Blocks.
///
/// # Errors
/// See [`DiskError`]; nothing stays attached then.
pub fn attach(path: &Path, patience: Duration) -> Result<Attached> {
    let image = open(path)?;
    if !lock(&image, path, patience)? {
        return Err(DiskError::Busy(path.to_owned()));
    }
    let mut repaired = wants_check(&image, path)?;
    if repaired {
        repair(path)?;
    }
    let device = device(&image, path)?;
    let mount = match mount(&device) {
        Ok(mount) => mount,
        // Whatever it was, it is not looked for twice.
        Err(error) if repaired => return Err(DiskError::Damaged(error.to_string())),
        Err(error) => {
            tracing::warn!(image = %path.display(), %error, "cannot be mounted; e2fsck looks at it");
            drop((device, image));
            let image = open(path)?;
            if !lock(&image, path, patience)? {
                return Err(DiskError::Busy(path.to_owned()));
            }
            repair(path)?;
            repaired = true;
            let device = self::device(&image, path)?;
            mount(&device).map_err(|error| DiskError::Damaged(error.to_string()))?
        }
    };
    Ok(Attached { mount, repaired })
}

fn device(image: &File, path: &Path) -> Result<LoopDevice> {
    LoopDevice::attach(image.as_fd()).map_err(failed(format!("attach {} to a loop device", path.display())))
}

fn mount(device: &LoopDevice) -> std::result::Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let source = device.path().to_str().unwrap_or_default();
    rustix::mount::fsconfig_set_string(&context, "source", source)?;
    // Whatever the kernel's default is: an error stops writing, and nothing panics.
    rustix::mount::fsconfig_set_string(&context, "errors", "remount-ro")?;
    rustix::mount::fsconfig_set_flag(&context, "noinit_itable")?;
    rustix::mount::fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
