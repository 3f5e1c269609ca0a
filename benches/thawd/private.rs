//! A thread with a mount namespace of its own, in which a hybrid host looks like a plain cgroup v1 one: crun refuses
//! anything else ("cgroups in hybrid mode not supported"). Programs started from it cost not a call more.

use std::sync::mpsc;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{AtFlags, CWD, FileType, Mode, makedev};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use crate::machine;

type Job = Box<dyn FnOnce() + Send>;

/// Handle to the thread; it ends when the handle is dropped.
pub struct Private(mpsc::Sender<Job>);

impl Private {
    /// Starts the thread. On a pure cgroup v2 host its view of the cgroups is everybody's.
    pub fn start() -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, started) = mpsc::channel();
        std::thread::Builder::new().name("peers".to_owned()).spawn(move || {
            let entered = enter();
            let go_on = entered.is_ok();
            if ready.send(entered).is_ok() && go_on {
                inbox.into_iter().for_each(|job| job());
            }
        })?;
        started.recv().context("the thread ended early")??;
        Ok(Self(jobs))
    }

    /// Runs `job` there and waits for it.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let (done, result) = mpsc::channel();
        let job = Box::new(move || {
            let _ = done.send(job());
        });
        self.0.send(job).map_err(|_| anyhow!("the peers' thread has ended"))?;
        result.recv().context("the peers' thread has ended")?
    }
}

fn enter() -> Result<()> {
    // SAFETY: only UnshareFlags::FILES has a safety condition; this thread gives up sharing root and mounts only.
    #[allow(unsafe_code)]
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWNS).context("a mount namespace of its own")?;
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", private).context("make mounts private")?;
    if machine::is_hybrid() {
        rustix::mount::unmount("/sys/fs/cgroup/unified", UnmountFlags::empty()).context("hide the v2 hierarchy")?;
    }
    // Some versions of crun give the file at their standard input to the user of the command: not the host's /dev/null.
    let place = std::env::temp_dir();
    rustix::mount::mount("null", &place, "tmpfs", MountFlags::empty(), None).context("a file system for /dev/null")?;
    let null = place.join("null");
    let mode = Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(CWD, &null, FileType::CharacterDevice, mode, makedev(1, 3)).context("a /dev/null")?;
    rustix::fs::chmodat(CWD, &null, mode, AtFlags::empty()).context("a /dev/null for everybody")?;
    rustix::mount::mount_bind(&null, "/dev/null").context("a /dev/null of its own")?;
    rustix::mount::unmount(&place, UnmountFlags::DETACH).context("show the temporary directory again")
}
