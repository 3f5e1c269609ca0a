//! What all measures share: a temporary directory, the test image, the daemon under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use thaw_image::Store;
use thaw_image::build::{BuildOptions, build};
use thaw_image::progress::Quiet;

use crate::http::Client;
use crate::private::Private;

/// Credential files of the bench's own provider, by name.
pub const CREDENTIALS: [(&str, &str); 2] =
    [("account.json", r#"{"account":"bench"}"#), ("token.json", r#"{"token":"not-a-secret"}"#)];

/// Limits of every container in the latency measures, thawd's and the peers'.
pub const MEMORY_MIB: u64 = 128;
/// CPUs, on average.
pub const CPUS: f64 = 0.5;
/// Processes and threads.
pub const PIDS: u32 = 64;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Fails once the user has asked for the end, so that everything is cleared away on the way out.
pub fn check_interrupted() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Turns SIGINT and SIGTERM into [`check_interrupted`].
pub fn catch_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let both = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
            if let (Ok(mut interrupt), Ok(mut terminate)) = both {
                tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
                INTERRUPTED.store(true, Ordering::Relaxed);
            }
        });
    })?;
    Ok(())
}

/// Beds of this process, so that each has control groups of its own.
static BEDS: AtomicU32 = AtomicU32::new(0);

/// The shared part.
pub struct Bed {
    directory: tempfile::TempDir,
    /// The folder with thawd's release binaries.
    pub binaries: PathBuf,
    /// Builds and unpacked images that outlive a run; the demo's.
    pub cache: PathBuf,
    /// The test image's unpacked root: what every peer runs too.
    pub rootfs: PathBuf,
    /// Parent of every cgroup of this run, ours and the peers'.
    pub cgroup: String,
    /// Where peers are started.
    pub private: Private,
}

impl Bed {
    /// Builds and unpacks the test image.
    pub fn new(binaries: PathBuf) -> Result<Self> {
        for program in ["thawd", "thaw-init"] {
            let path = binaries.join(program);
            ensure!(path.is_file(), "{} is missing: run make build first", path.display());
        }
        let cache = match std::env::var_os("THAWD_CACHE") {
            Some(cache) => cache.into(),
            None => PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/thawd"),
        };
        let directory = directory_with_image(&cache)?;
        let layout = directory.path().join("layouts/test");
        let rootfs = Store::open(&directory.path().join("state/images"))?.ensure(&layout)?.rootfs.clone();
        Self::assemble(directory, binaries, cache, rootfs)
    }

    /// One for a daemon of another version, which unpacks the image by itself: its store may have another format.
    pub fn beside(&self, binaries: PathBuf) -> Result<Self> {
        let directory = directory_with_image(&self.cache)?;
        Self::assemble(directory, binaries, self.cache.clone(), self.rootfs.clone())
    }

    fn assemble(directory: tempfile::TempDir, binaries: PathBuf, cache: PathBuf, rootfs: PathBuf) -> Result<Self> {
        let cgroup = format!("thawd-bench-{}-{}", std::process::id(), BEDS.fetch_add(1, Ordering::Relaxed));
        Ok(Self { directory, binaries, cache, rootfs, cgroup, private: Private::start()? })
    }

    /// The temporary directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// A temporary directory with the layout of the test image.
fn directory_with_image(cache: &Path) -> Result<tempfile::TempDir> {
    let directory = tempfile::Builder::new().prefix("thawd-bench.").tempdir()?;
    let layout = directory.path().join("layouts/test");
    fs::create_dir_all(directory.path().join("layouts"))?;
    let source = repository().join("images/test");
    build(&source, &BuildOptions::new(&layout, cache.join("build")), &Quiet).context("build images/test")?;
    Ok(directory)
}

impl Drop for Bed {
    fn drop(&mut self) {
        unmount_below(self.directory.path());
        remove_cgroups(&self.cgroup);
    }
}

/// Engines keep mounts in their storage; without them the directory can be removed.
fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let prefix = format!("{}/", directory.display());
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|target| target.starts_with(&prefix));
    // The last mounted first.
    for target in targets.collect::<Vec<_>>().into_iter().rev() {
        if let Err(errno) = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH) {
            eprintln!("bench: {target} stays mounted: {errno}");
        }
    }
}

/// Removes `name` with everything below it from every hierarchy. Each cgroup is empty by now.
fn remove_cgroups(name: &str) {
    fn remove(directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove(&entry.path());
            }
        }
        if let Err(error) = fs::remove_dir(directory) {
            eprintln!("bench: {} stays: {error}", directory.display());
        }
    }
    let below = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path().join(name));
    for directory in below.chain([Path::new("/sys/fs/cgroup").join(name)]) {
        if directory.join("cgroup.procs").exists() {
            remove(&directory);
        }
    }
}

/// The checkout.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A provider of the bench's own: the test image with two credential files.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Name.
    pub name: &'static str,
    /// Warm containers.
    pub target: usize,
    /// CPUs while running.
    pub cpus: f64,
    /// Memory while running, MiB.
    pub memory_mib: u64,
}

impl Provider {
    /// With the limits of the latency measures.
    pub fn new(name: &'static str, target: usize) -> Self {
        Self { name, target, cpus: CPUS, memory_mib: MEMORY_MIB }
    }

    fn manifest(&self) -> String {
        let Self { name, target, cpus, memory_mib } = self;
        let files: Vec<_> = CREDENTIALS.iter().map(|(name, _)| name).collect();
        format!(
            "name = \"{name}\"\nimage = \"test\"\nhome = \"/home/runtime\"\npool_target = {target}\n\
             pids_max = {PIDS}\negress = []\n\
             [credentials]\ndir = \".bench\"\nfiles = {files:?}\nrequired = false\ntmpfs_mib = 1\n\
             [resources.idle]\nmemory_mib = 64\ncpu = 0.1\n\
             [resources.run]\nmemory_mib = {memory_mib}\ncpu = {cpus:.1}\ncpu_burst = {:.1}\n",
            cpus * 2.0
        )
    }
}

/// The daemon under test, stopped when dropped.
pub struct Daemon {
    child: Child,
    /// Where it listens.
    pub socket: PathBuf,
    log: PathBuf,
    /// Its cgroup directory, below each hierarchy.
    pub cgroup: String,
}

impl Daemon {
    /// Starts it with providers of our own, and waits until their pools are full.
    pub fn start(bed: &Bed, providers: &[Provider], max: usize) -> Result<Self> {
        let daemon = Self::start_empty(bed, providers, max)?;
        for provider in providers {
            daemon.wait_full(provider.name, provider.target)?;
        }
        Ok(daemon)
    }

    /// Starts it with providers of our own; their pools fill from now on.
    pub fn start_empty(bed: &Bed, providers: &[Provider], max: usize) -> Result<Self> {
        let folder = bed.path().join("providers");
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder)?;
        for provider in providers {
            fs::write(folder.join(format!("{}.toml", provider.name)), provider.manifest())?;
        }
        let state = bed.path().join("state");
        let layouts = bed.path().join("layouts");
        Self::with(bed, &state, &layouts, &folder, max, "[pool]\nscaling = false\n")
    }

    /// Starts it with any providers; `more` is added to the configuration.
    pub fn with(bed: &Bed, state: &Path, layouts: &Path, providers: &Path, max: usize, more: &str) -> Result<Self> {
        let run = bed.path().join("run");
        let socket = run.join("thawd.sock");
        let cgroup = format!("{}-thawd", bed.cgroup);
        let config = bed.path().join("thawd.toml");
        fs::write(
            &config,
            format!(
                "[api]\nsocket = {socket:?}\n[paths]\nstate_dir = {state:?}\nlayouts_dir = {layouts:?}\n\
                 run_dir = {run:?}\nproviders_dir = {providers:?}\n[container]\nmax = {max}\n\
                 [execution]\nmax_per_user = 1000\nretained = 1\n\
                 [cgroup]\nname = {cgroup:?}\n{more}"
            ),
        )?;
        let log = bed.path().join("thawd.log");
        let child = Command::new(bed.binaries.join("thawd"))
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::OpenOptions::new().create(true).append(true).open(&log)?)
            .spawn()
            .context("start thawd")?;
        let mut daemon = Self { child, socket, log, cgroup };
        daemon.wait_for("listening", Duration::from_secs(30), |daemon| {
            Ok(std::os::unix::net::UnixStream::connect(&daemon.socket).is_ok())
        })?;
        Ok(daemon)
    }

    /// Process id of the daemon.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    fn wait_for(&mut self, what: &str, limit: Duration, done: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !done(self)? {
            if let Some(status) = self.child.try_wait()? {
                bail!("thawd ended ({status}); its log ends with:\n{}", self.log_end());
            }
            ensure!(Instant::now() < deadline, "thawd: {what} took too long; its log ends with:\n{}", self.log_end());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The last lines of its log.
    pub fn log_end(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Waits until a pool holds `warm` containers and nothing of it is claimed.
    pub fn wait_full(&self, provider: &str, warm: usize) -> Result<()> {
        // A refill can back off for up to a minute.
        let deadline = Instant::now() + Duration::from_secs(150);
        let mut client = self.client();
        loop {
            check_interrupted()?;
            let pool =
                pool(&mut client, provider).with_context(|| format!("its log ends with:\n{}", self.log_end()))?;
            if pool["warm"] == warm && pool["claimed"] == 0 && pool["creating"] == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the pool did not fill: {pool}; log:\n{}", self.log_end());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until all containers are warm: what was claimed is not only over, but cleared away.
    pub fn wait_settled(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut client = self.client();
        loop {
            check_interrupted()?;
            let containers = client.get("/v1/containers")?;
            let mut all = containers["items"].as_array().into_iter().flatten();
            if all.all(|container| container["state"] == "warm") {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not cleared away; log:\n{}", self.log_end());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a provider's pool of another stage than `created` holds `warm` containers.
    pub fn wait_stage(&self, provider: &str, stage: &str, warm: usize) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(150);
        let mut client = self.client();
        loop {
            check_interrupted()?;
            let pools = client.get("/v1/pools")?;
            let mut all = pools["items"].as_array().into_iter().flatten();
            let pool = all.find(|pool| pool["provider"] == provider && pool["stage"] == stage);
            if pool.is_some_and(|pool| pool["warm"] == warm && pool["claimed"] == 0 && pool["creating"] == 0) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the pool did not fill: {pool:?}; log:\n{}", self.log_end());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until a pool has its first container, or begins to make it.
    pub fn wait_ready(&self, provider: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut client = self.client();
        loop {
            let pool = pool(&mut client, provider)?;
            if pool["warm"] != 0 || pool["creating"] != 0 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the pool does not begin to fill: {pool}; log:\n{}", self.log_end());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Stops it; fails if it had to be killed.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        if let Some(pid) = Pid::from_raw(self.child.id() as i32) {
            rustix::process::kill_process(pid, Signal::TERM)?;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                self.child.kill()?;
                self.child.wait()?;
                bail!("thawd did not stop within a minute and was killed; log:\n{}", self.log_end());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            eprintln!("bench: {error:#}");
        }
    }
}

/// One pool's figures.
pub fn pool(client: &mut Client, provider: &str) -> Result<serde_json::Value> {
    let pools = client.get("/v1/pools")?;
    let found = pools["items"].as_array().and_then(|all| all.iter().find(|pool| pool["provider"] == provider));
    found.cloned().with_context(|| format!("no pool {provider}"))
}

/// Raises the limit of open files as far as it goes: a thousand containers have a few descriptors each.
pub fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let hard = getrlimit(Resource::Nofile).maximum;
    let _ = setrlimit(Resource::Nofile, Rlimit { current: hard, maximum: hard });
}
