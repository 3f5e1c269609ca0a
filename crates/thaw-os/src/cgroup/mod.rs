//! Owns the use of control groups: limits, freezing, accounting and killing.
//!
//! Two layouts are supported. On **v2** (production) one directory per container does everything. On a **hybrid**
//! host the resource controllers are v1 hierarchies while the v2 hierarchy exists without controllers; freezing,
//! killing, `populated` and CPU accounting belong to the v2 *core* and work there just the same, so only limits
//! and memory accounting differ ([`Controllers`]).
//!
//! All containers of one daemon live below one directory, `name` below `parent` in `[cgroup]`, in each hierarchy.

mod abandoned;
mod core_files;
mod detect;
mod hybrid;
mod optional;
mod own;
mod reclaim;
mod v2;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::kernel::{LOCK_PATIENCE, LockError, lock_directory};

pub use abandoned::{KEEPER, clear_abandoned, leave_nothing};
pub use detect::Layout;
pub use own::own_memory_limit;
pub use reclaim::{Memory, Reclaim};

/// CPU period that quotas are expressed in unless [`Limits::cpu_period_us`] says otherwise, microseconds: the kernel's
/// default (Documentation/admin-guide/cgroup-v2.rst, `cpu.max`).
pub const CPU_PERIOD_US: u64 = 100_000;

/// Extended attribute of the v2 directory of a container that belongs, or belonged, to an execution. Below `trusted.`
/// only CAP_SYS_ADMIN over the host sees and sets it (xattr(7)).
const CLAIMED: &str = "trusted.thawd.claimed";

/// Resource limits of a container in one class (idle or run).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Hard memory limit, bytes.
    pub memory_bytes: u64,
    /// CPUs' worth of time, averaged over a period.
    pub cpu: f64,
    /// CPUs' worth of time for a short burst, from saved-up quota; `None` for no burst.
    pub cpu_burst: Option<f64>,
    /// Time over which `cpu` is averaged, microseconds, 1,000 to 1,000,000 (the kernel's bounds). With a long one a
    /// process that has waited may use the whole quota at once; with a short one it is throttled more evenly.
    pub cpu_period_us: u64,
}

impl Limits {
    /// Quota per period, microseconds; never below the kernel's minimum of 1 ms.
    pub fn quota_us(&self) -> u64 {
        ((self.cpu * self.cpu_period_us as f64).round() as u64).max(1_000)
    }

    /// Burst per period, microseconds; the kernel refuses more than the quota itself.
    pub fn burst_us(&self) -> u64 {
        let quota = self.quota_us();
        let peak = self.cpu_burst.map_or(quota, |burst| (burst * self.cpu_period_us as f64).round() as u64);
        peak.saturating_sub(quota).min(quota)
    }
}

/// Usage of a cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time since the cgroup was created, microseconds.
    pub cpu_us: u64,
    /// Memory charged now, bytes.
    pub memory_bytes: u64,
    /// Highest memory charged, bytes.
    pub memory_peak_bytes: u64,
    /// Processes killed by the OOM killer in this cgroup.
    pub oom_kills: u64,
    /// Periods of [`Limits::cpu_period_us`] in which something ran.
    pub periods: u64,
    /// Periods in which the cgroup was throttled.
    pub throttled_periods: u64,
    /// Total time that the cgroup's CPUs were throttled, microseconds.
    pub throttled_us: u64,
}

impl Usage {
    /// Usage since `baseline`. Current and peak memory are not differences: they stay.
    pub fn since(&self, baseline: &Self) -> Self {
        Self {
            cpu_us: self.cpu_us.saturating_sub(baseline.cpu_us),
            memory_bytes: self.memory_bytes,
            memory_peak_bytes: self.memory_peak_bytes,
            oom_kills: self.oom_kills.saturating_sub(baseline.oom_kills),
            periods: self.periods.saturating_sub(baseline.periods),
            throttled_periods: self.throttled_periods.saturating_sub(baseline.throttled_periods),
            throttled_us: self.throttled_us.saturating_sub(baseline.throttled_us),
        }
    }

    /// Usage of this cgroup and of `other`, one after the other.
    pub fn and(&self, other: &Self) -> Self {
        Self {
            cpu_us: self.cpu_us + other.cpu_us,
            memory_bytes: self.memory_bytes,
            memory_peak_bytes: self.memory_peak_bytes.max(other.memory_peak_bytes),
            oom_kills: self.oom_kills + other.oom_kills,
            periods: self.periods + other.periods,
            throttled_periods: self.throttled_periods + other.throttled_periods,
            throttled_us: self.throttled_us + other.throttled_us,
        }
    }
}

/// Errors of control groups; the message names the file.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The host offers neither layout.
    #[error("no usable cgroup hierarchy: {0}")]
    Unsupported(String),
    /// A controller is missing.
    #[error("the cgroup controller `{controller}` is not available {place}; {fix}")]
    MissingController {
        /// The controller.
        controller: &'static str,
        /// Where it was looked for.
        place: String,
        /// How to make it available.
        fix: String,
    },
    /// Another daemon holds the lock on the cgroup.
    #[error("another daemon uses {}: {holders}; stop it, or choose another `cgroup.name`", path.display())]
    InUse {
        /// Directory of the cgroup.
        path: PathBuf,
        /// Processes that have it open.
        holders: String,
    },
    /// The parent cgroup does not exist.
    #[error(
        "the cgroup {} (`cgroup.parent`) does not exist; start what it belongs to, such as: \
         systemctl start thawd-containers.service",
        path.display()
    )]
    NoParent {
        /// Directory of the parent.
        path: PathBuf,
    },
    /// A control file could not be read or written.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// Operation that failed.
        operation: &'static str,
        /// File or directory.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// A control file did not hold what the kernel documents.
    #[error("{} holds {content:?}, which is not understood", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Its content.
        content: String,
    },
    /// The kernel did not confirm a change in time.
    #[error("{} did not report `{wanted}` within {waited_ms} ms", path.display())]
    NotConfirmed {
        /// The file.
        path: PathBuf,
        /// Value that was waited for.
        wanted: &'static str,
        /// Time waited, milliseconds.
        waited_ms: u64,
    },
}

impl CgroupError {
    fn io(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { operation, path, source }
    }
}

/// The part that differs between the layouts: limits and memory accounting.
trait Controllers: Send + Sync {
    /// Makes the base directories, or makes them again, with controllers enabled for the containers below.
    fn prepare_base(&self) -> Result<(), CgroupError>;
    /// Directories of a container besides the v2 core's, below `base/id`.
    fn directories(&self, id: &str) -> Vec<PathBuf>;
    /// Sets the memory limit and the pids limit.
    fn limit_memory_and_pids(&self, id: &str, memory_bytes: u64, pids: u32) -> Result<(), CgroupError>;
    /// Changes the memory limit alone.
    fn limit_memory(&self, id: &str, memory_bytes: u64) -> Result<(), CgroupError>;
    /// Sets period, quota and burst.
    fn limit_cpu(&self, id: &str, limits: &Limits) -> Result<(), CgroupError>;
    /// Opens the files that [`Hierarchy::raise`] writes.
    fn open_limits(&self, id: &str) -> Result<LimitFiles, CgroupError>;
    /// Adds memory, peak and OOM figures.
    fn usage(&self, id: &str, usage: &mut Usage) -> Result<(), CgroupError>;
    /// Charged memory, by kind.
    fn memory(&self, id: &str) -> Result<Memory, CgroupError>;
    /// Reclaims about `bytes` of the kind `what`.
    fn reclaim(&self, id: &str, what: Reclaim, bytes: u64) -> Result<(), CgroupError>;
}

/// Open control files, so that a claim makes one system call for each and looks up no path.
#[derive(Debug)]
struct LimitFiles {
    /// Memory limits, in the order in which a growing limit is written.
    memory: Vec<fs::File>,
    /// File for quota and period (v2), or for the quota alone (v1).
    quota: fs::File,
    /// File for the period; v1 only.
    period: Option<fs::File>,
    /// File for the burst; `None` before Linux 5.14.
    burst: Option<fs::File>,
    /// File where a write resets the memory peak: v1, and v2 since Linux 6.12. On v2 the reset holds only for reads
    /// through the same descriptor.
    peak: Option<fs::File>,
}

impl LimitFiles {
    fn raise(&self, from: &Limits, to: &Limits) -> io::Result<()> {
        let memory = to.memory_bytes.to_string();
        for file in &self.memory {
            rustix::io::pwrite(file, memory.as_bytes(), 0)?;
        }
        if let Some(period) = self.period.as_ref().filter(|_| to.cpu_period_us != from.cpu_period_us) {
            rustix::io::pwrite(period, to.cpu_period_us.to_string().as_bytes(), 0)?;
        }
        // The burst must never exceed the quota: a shrinking burst is written before the quota, a growing one after.
        let burst = self.burst.as_ref().filter(|_| to.burst_us() != from.burst_us());
        let set_burst = |file: &fs::File| rustix::io::pwrite(file, to.burst_us().to_string().as_bytes(), 0).map(drop);
        let shrinks = to.burst_us() < from.burst_us();
        burst.filter(|_| shrinks).map_or(Ok(()), set_burst)?;
        let mut quota = to.quota_us().to_string();
        if self.period.is_none() {
            quota = format!("{quota} {}", to.cpu_period_us);
        }
        rustix::io::pwrite(&self.quota, quota.as_bytes(), 0)?;
        Ok(burst.filter(|_| !shrinks).map_or(Ok(()), set_burst)?)
    }
}

/// The daemon's own subtree in every hierarchy in use.
pub struct Hierarchy {
    layout: Layout,
    /// `relative` below the v2 core's mount.
    core: PathBuf,
    /// Path of the subtree in every hierarchy, without a leading slash.
    relative: String,
    controllers: Box<dyn Controllers>,
    /// Lock on `core`, held for as long as this lives.
    lock: Mutex<OwnedFd>,
}

impl std::fmt::Debug for Hierarchy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hierarchy").field("layout", &self.layout).field("core", &self.core).finish()
    }
}

impl Hierarchy {
    /// Detects the host's layout, and makes `name` below `parent` in each hierarchy, with the controllers enabled below
    /// it. `parent` is a path from the hierarchy's root; `/` is the root itself. Any other must be delegated to the
    /// daemon (systemd: `Delegate=`). Nothing above it is changed.
    ///
    /// # Errors
    /// A host without a usable layout or a needed controller, with the fix in the message; no such parent.
    pub fn prepare(parent: &str, name: &str) -> Result<Self, CgroupError> {
        let layout = Layout::detect()?;
        Self::with_layout(layout, parent.trim_matches('/'), name)
    }

    fn with_layout(layout: Layout, parent: &str, name: &str) -> Result<Self, CgroupError> {
        let above = layout.core().join(parent);
        if !above.is_dir() {
            return Err(CgroupError::NoParent { path: above });
        }
        let relative = if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
        let core = layout.core().join(&relative);
        make_directory(&core)?;
        let lock = lock(&core, LOCK_PATIENCE)?;
        let controllers: Box<dyn Controllers> = match &layout {
            Layout::V2 { .. } => Box::new(v2::V2::new(&above, &core)),
            Layout::Hybrid { memory, cpu, pids, .. } => Box::new(hybrid::Hybrid::new(memory, cpu, pids, &relative)),
        };
        controllers.prepare_base()?;
        Ok(Self { layout, core, relative, controllers, lock: Mutex::new(lock) })
    }

    /// Makes the daemon's directories again after somebody removed them, which is possible while they are empty. The
    /// daemon keeps its lock on them.
    fn restore_base(&self) -> Result<(), CgroupError> {
        tracing::warn!(cgroup = %self.core.display(), "a cgroup of the daemon's own was removed; made again");
        // Creations come here one at a time; later ones find what the first has made.
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.core.is_dir() {
            make_directory(&self.core)?;
            *held = lock(&self.core, LOCK_PATIENCE)?;
        }
        self.controllers.prepare_base()
    }

    /// The layout of this host.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Makes a fresh cgroup for container `id` with its memory and pids limits set.
    ///
    /// The CPU limit is set separately, once the container is ready: set-up must not be throttled.
    ///
    /// # Errors
    /// A directory or control file that cannot be made or written. What was made is removed again.
    pub fn create(&self, id: &str, memory_bytes: u64, pids: u32) -> Result<Cgroup, CgroupError> {
        let mut made = self.make(id, memory_bytes, pids);
        if made.is_err() && self.bases().iter().any(|base| !base.is_dir()) {
            self.remove_directories(id);
            self.restore_base()?;
            made = self.make(id, memory_bytes, pids);
        }
        if made.is_err() {
            self.remove_directories(id);
        }
        made
    }

    fn make(&self, id: &str, memory_bytes: u64, pids: u32) -> Result<Cgroup, CgroupError> {
        let path = self.core.join(id);
        fresh_directory(&path)?;
        for directory in self.controllers.directories(id) {
            fresh_directory(&directory)?;
        }
        self.controllers.limit_memory_and_pids(id, memory_bytes, pids)?;
        self.open(id, path)
    }

    fn open(&self, id: &str, path: PathBuf) -> Result<Cgroup, CgroupError> {
        let freeze = path.join("cgroup.freeze");
        let freeze_file = open_for_writing(&freeze)?;
        let limit_files = self.controllers.open_limits(id)?;
        Ok(Cgroup { id: id.to_owned(), path, freeze_file, limit_files })
    }

    /// Directories whose `cgroup.procs` a new process must be written to (all but the v2 core's, which `clone3`
    /// enters by itself).
    pub fn extra_directories(&self, id: &str) -> Vec<PathBuf> {
        self.controllers.directories(id)
    }

    /// Sets the memory limit and the CPU limit of a class.
    ///
    /// # Errors
    /// A control file that cannot be written; for memory, EBUSY when more is in use than the new limit.
    pub fn apply(&self, cgroup: &Cgroup, limits: &Limits) -> Result<(), CgroupError> {
        self.controllers.limit_memory(&cgroup.id, limits.memory_bytes)?;
        self.controllers.limit_cpu(&cgroup.id, limits)
    }

    /// Changes from a class set with [`Self::apply`] to another one, at a claim.
    ///
    /// # Errors
    /// A control file that cannot be written.
    pub fn raise(&self, cgroup: &Cgroup, from: &Limits, to: &Limits) -> Result<(), CgroupError> {
        if to.memory_bytes < from.memory_bytes {
            // A memory limit that changes needs another order of writes.
            return self.apply(cgroup, to);
        }
        cgroup.limit_files.raise(from, to).map_err(CgroupError::io("raise the limits of", &cgroup.path))
    }

    /// Resets the memory peak, where the kernel can (v1; v2 since Linux 6.12).
    pub fn reset_peak(&self, cgroup: &Cgroup) {
        if let Some(peak) = &cgroup.limit_files.peak
            && let Err(error) = rustix::io::pwrite(peak, b"0", 0)
        {
            tracing::debug!(%error, "memory peak not reset");
        }
    }

    /// Usage of `cgroup`.
    ///
    /// # Errors
    /// A control file that cannot be read or understood.
    pub fn usage(&self, cgroup: &Cgroup) -> Result<Usage, CgroupError> {
        let mut usage = core_files::cpu_usage(&cgroup.path)?;
        self.controllers.usage(&cgroup.id, &mut usage)?;
        if let Some(peak) = &cgroup.limit_files.peak {
            usage.memory_peak_bytes = read_number_from(peak, &cgroup.path)?;
        }
        Ok(usage)
    }

    /// Removes a cgroup whose processes are all gone.
    ///
    /// # Errors
    /// EBUSY when a process is left.
    pub fn remove(&self, cgroup: &Cgroup) -> Result<(), CgroupError> {
        let mut result = remove_directory(&cgroup.path);
        for directory in self.controllers.directories(&cgroup.id) {
            let removed = remove_directory(&directory);
            result = result.and(removed);
        }
        result
    }

    fn remove_directories(&self, id: &str) {
        for directory in self.controllers.directories(id).into_iter().chain([self.core.join(id)]) {
            if let Err(error) = remove_directory(&directory) {
                tracing::warn!(%error, "left a cgroup behind");
            }
        }
    }

    /// The cgroup of a container that an earlier daemon made, whether it is empty or not.
    ///
    /// # Errors
    /// It is gone.
    pub fn adopt(&self, id: &str) -> Result<Cgroup, CgroupError> {
        self.open(id, self.core.join(id))
    }

    /// Kills and removes every container cgroup below `name` but those in `keep`: what a killed daemon left. Returns
    /// how many there were. Blocks until they are gone.
    ///
    /// # Errors
    /// A cgroup that cannot be listed, killed or removed.
    pub fn sweep(&self, keep: &BTreeSet<String>) -> Result<usize, CgroupError> {
        let bases = self.bases();
        let bases: Vec<&Path> = bases.iter().map(PathBuf::as_path).collect();
        abandoned::clear(&bases, |id| keep.contains(id))
    }

    /// The directory of all containers in each hierarchy, the v2 core's first.
    pub fn bases(&self) -> Vec<PathBuf> {
        std::iter::once(self.core.clone()).chain(self.controllers.directories("")).collect()
    }

    /// Makes the empty cgroup [`KEEPER`]. Processes in an existing one are killed.
    ///
    /// # Errors
    /// It cannot be made or emptied.
    pub fn fresh_keeper(&self) -> Result<PathBuf, CgroupError> {
        let path = self.core.join(KEEPER);
        make_directory(&path)?;
        core_files::kill(&path)?;
        core_files::wait_empty(&path)?;
        Ok(path)
    }

    /// Moves a process to the keeper's cgroup, where it lives on when the daemon's own cgroup is cleared.
    ///
    /// # Errors
    /// There is no such cgroup or process.
    pub fn move_to_keeper(&self, pid: u32) -> std::io::Result<()> {
        std::fs::write(self.core.join(KEEPER).join("cgroup.procs"), pid.to_string())
    }

    /// Waits until the keeper's process has ended by itself; kills it after a second.
    ///
    /// # Errors
    /// A process is left in the cgroup.
    pub fn end_keeper(&self) -> Result<(), CgroupError> {
        let path = self.core.join(KEEPER);
        for _ in 0..100 {
            if !core_files::events(&path)?.populated {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        core_files::kill(&path)?;
        core_files::wait_empty(&path)
    }

    /// Removes the daemon's own directories, when no container is left in them.
    pub fn remove_base(&self) {
        let keeper = self.core.join(KEEPER);
        for directory in std::iter::once(keeper).chain(self.controllers.directories("")).chain([self.core.clone()]) {
            if let Err(error) = remove_directory(&directory) {
                tracing::warn!(%error, "left a cgroup behind");
            }
        }
    }

    /// Path of a container's cgroup, relative to the hierarchy's root.
    pub fn relative_path(&self, id: &str) -> String {
        format!("{}/{id}", self.relative)
    }
}

/// One container's cgroup. Dropping it removes nothing: see [`Hierarchy::remove`].
#[derive(Debug)]
pub struct Cgroup {
    id: String,
    /// Directory in the v2 core.
    path: PathBuf,
    freeze_file: fs::File,
    limit_files: LimitFiles,
}

impl Cgroup {
    /// The v2 directory as a descriptor, for `CLONE_INTO_CGROUP`.
    ///
    /// # Errors
    /// The directory cannot be opened.
    pub fn open(&self) -> Result<OwnedFd, CgroupError> {
        rustix::fs::open(&self.path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| CgroupError::io("open", &self.path)(errno.into()))
    }

    /// Freezes the cgroup, and waits until the kernel confirms it. Freezing is asynchronous, and an empty cgroup
    /// reports `frozen 1` at once, so `populated 1` is required too.
    ///
    /// # Errors
    /// [`CgroupError::NotConfirmed`] after [`core_files::CONFIRM_TIMEOUT`].
    pub async fn freeze(&self) -> Result<(), CgroupError> {
        self.set_frozen(true)?;
        core_files::wait_for(&self.path, "frozen 1 and populated 1", |events| events.frozen && events.populated).await
    }

    /// Thaws the cgroup. The kernel wakes its tasks before the write returns.
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn thaw(&self) -> Result<(), CgroupError> {
        self.set_frozen(false)
    }

    fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        rustix::io::pwrite(&self.freeze_file, if frozen { b"1" } else { b"0" }, 0)
            .map(drop)
            .map_err(|errno| CgroupError::io("write", self.path.join("cgroup.freeze"))(errno.into()))
    }

    /// Whether the kernel reports the cgroup as frozen and populated.
    ///
    /// # Errors
    /// `cgroup.events` cannot be read.
    pub fn is_frozen(&self) -> Result<bool, CgroupError> {
        let events = core_files::events(&self.path)?;
        Ok(events.frozen && events.populated)
    }

    /// Marks the cgroup in the kernel as belonging to a holder. The mark stays whatever happens to this process or the
    /// keeper.
    ///
    /// # Errors
    /// The extended attribute cannot be set.
    pub fn mark_claimed(&self) -> Result<(), CgroupError> {
        rustix::fs::setxattr(&self.path, CLAIMED, b"1", XattrFlags::empty())
            .map_err(|errno| CgroupError::io("mark as claimed", &self.path)(errno.into()))
    }

    /// Whether [`Self::mark_claimed`] has been called.
    ///
    /// # Errors
    /// The extended attribute cannot be read.
    pub fn is_claimed(&self) -> Result<bool, CgroupError> {
        match rustix::fs::getxattr(&self.path, CLAIMED, &mut [0; 8]) {
            Ok(_) => Ok(true),
            Err(Errno::NODATA) => Ok(false),
            Err(errno) => Err(CgroupError::io("ask whether it is claimed", &self.path)(errno.into())),
        }
    }

    /// Kills every process in it, frozen or not (`cgroup.kill`, Linux 5.14).
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn kill(&self) -> Result<(), CgroupError> {
        core_files::kill(&self.path)
    }

    /// The processes in it, by their numbers on the host; none of one that is gone.
    ///
    /// # Errors
    /// The control file cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        core_files::processes(&self.path)
    }

    /// Sends a signal to every process in it but `except`.
    ///
    /// # Errors
    /// The control file cannot be read.
    pub fn signal(&self, signal: i32, except: Option<i32>) -> Result<(), CgroupError> {
        core_files::signal(&self.path, signal, except)
    }

    /// Waits until no process is left.
    ///
    /// # Errors
    /// [`CgroupError::NotConfirmed`] after [`core_files::CONFIRM_TIMEOUT`].
    pub async fn wait_empty(&self) -> Result<(), CgroupError> {
        let waited = core_files::wait_for(&self.path, "populated 0", |events| !events.populated).await;
        // A cgroup that was removed meanwhile counts as empty.
        waited.or_else(|error| if self.path.exists() { Err(error) } else { Ok(()) })
    }
}

/// Locks a cgroup for this process: a daemon destroys unknown containers at its start, so two daemons with one name
/// would destroy each other's. The kernel releases the lock when the process ends.
fn lock(path: &Path, patience: Duration) -> Result<OwnedFd, CgroupError> {
    lock_directory(path, patience).map_err(|error| match error {
        LockError::Held(holders) => CgroupError::InUse { path: path.to_owned(), holders },
        LockError::Io(source) => CgroupError::io("lock", path)(source),
    })
}

/// Moves this process into the sub-group `name` of its own v2 cgroup, so that controllers can be enabled for children:
/// a cgroup with processes cannot do that. Returns the path of the cgroup that it left, as for `cgroup.parent`.
///
/// # Errors
/// There is no v2 hierarchy, or the cgroup is not delegated to this process.
pub fn step_aside(name: &str) -> Result<String, CgroupError> {
    let layout = Layout::detect()?;
    let table = Path::new("/proc/self/cgroup");
    let content = read(table)?;
    let own = content.lines().find_map(|line| line.strip_prefix("0::/"));
    let own = own.ok_or_else(|| CgroupError::Parse { path: table.to_owned(), content: content.clone() })?;
    let aside = layout.core().join(own).join(name);
    make_directory(&aside)?;
    write(&aside.join("cgroup.procs"), "0")?;
    Ok(format!("/{own}"))
}

fn make_directory(path: &Path) -> Result<(), CgroupError> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::io("create", path)(error)),
        _ => Ok(()),
    }
}

/// Makes a directory; unlike [`make_directory`] fails if it exists, since its counters would include an earlier
/// container.
fn fresh_directory(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir(path).map_err(CgroupError::io("create", path))
}

fn remove_directory(path: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(CgroupError::io("remove", path)(error)),
        _ => Ok(()),
    }
}

fn open_for_writing(path: &Path) -> Result<fs::File, CgroupError> {
    fs::OpenOptions::new().write(true).open(path).map_err(CgroupError::io("open", path))
}

/// Opens a control file for writing; `None` if the kernel is too old to write it.
fn open_if_writable(path: &Path) -> Option<fs::File> {
    fs::OpenOptions::new().read(true).write(true).open(path).ok()
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(path, value).map_err(CgroupError::io("write", path))
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(CgroupError::io("read", path))
}

fn read_number(path: &Path) -> Result<u64, CgroupError> {
    let content = read(path)?;
    content.trim().parse().map_err(|_| CgroupError::Parse { path: path.to_owned(), content })
}

fn read_number_from(file: &fs::File, of: &Path) -> Result<u64, CgroupError> {
    let mut buffer = [0; 32];
    let length = rustix::io::pread(file, &mut buffer, 0)
        .map_err(|errno| CgroupError::io("read the memory peak of", of)(errno.into()))?;
    let content = String::from_utf8_lossy(&buffer[..length]).into_owned();
    content.trim().parse().map_err(|_| CgroupError::Parse { path: of.to_owned(), content })
}

/// Value of `key` in a flat-keyed file; 0 when the kernel does not list it.
fn flat_key(content: &str, key: &str) -> u64 {
    content.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{CPU_PERIOD_US, CgroupError, Limits, Usage, core_files, flat_key, fresh_directory, lock};

    #[test]
    fn a_cgroup_has_one_daemon() {
        let directory = tempfile::tempdir().unwrap();
        let soon = std::time::Duration::from_millis(50);
        let first = lock(directory.path(), soon).unwrap();
        assert!(matches!(lock(directory.path(), soon), Err(CgroupError::InUse { .. })));
        drop(first);
        lock(directory.path(), soon).unwrap();
    }

    #[test]
    fn a_cgroup_that_is_gone_needs_no_killing_and_one_without_the_file_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gone");
        core_files::kill(&path).unwrap();
        // A directory in which nothing can be created, as in a cgroup without that control file.
        std::fs::create_dir(&path).unwrap();
        std::fs::create_dir(path.join("cgroup.kill")).unwrap();
        core_files::kill(&path).unwrap_err();
    }

    #[test]
    fn a_container_gets_no_cgroup_that_was_there_before() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c-1");
        fresh_directory(&path).unwrap();
        let error = fresh_directory(&path).unwrap_err().to_string();
        assert!(error.contains("c-1") && error.contains("exists"), "{error}");
    }

    #[test]
    fn use_counts_from_a_baseline() {
        let before =
            Usage { cpu_us: 70, oom_kills: 1, periods: 9, throttled_periods: 4, throttled_us: 50, ..Usage::default() };
        let now = Usage { cpu_us: 100, memory_bytes: 10, memory_peak_bytes: 20, throttled_us: 60, ..before };
        let expected = Usage {
            cpu_us: 30,
            memory_bytes: 10,
            memory_peak_bytes: 20,
            oom_kills: 0,
            periods: 0,
            throttled_periods: 0,
            throttled_us: 10,
        };
        assert_eq!(now.since(&before), expected);
        assert_eq!(before.since(&now).cpu_us, 0, "read in another order");
    }

    #[test]
    fn quota_and_burst_follow_the_class() {
        let of = |cpu, cpu_burst, cpu_period_us| {
            let limits = Limits { memory_bytes: 1, cpu, cpu_burst, cpu_period_us };
            (limits.quota_us(), limits.burst_us())
        };
        assert_eq!(of(0.5, Some(1.0), CPU_PERIOD_US), (50_000, 50_000));
        assert_eq!(of(0.1, None, CPU_PERIOD_US), (10_000, 0));
        assert_eq!(of(0.1, Some(0.2), 1_000_000), (100_000, 100_000));
        assert_eq!(of(0.001, Some(4.0), CPU_PERIOD_US), (1_000, 1_000), "kernel minimum, burst at most the quota");
    }

    #[test]
    fn flat_keys_match_whole_words() {
        let content = "oom 1\noom_kill 3\noom_group_kill 5\n";
        assert_eq!(flat_key(content, "oom_kill"), 3);
        assert_eq!(flat_key(content, "absent"), 0);
    }
}
