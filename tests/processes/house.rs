//! What holds containers, with everything that the daemon has for that: control groups, spawner, keeper.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tempfile::TempDir;
use thaw_client::config::Config;
use thaw_image::Store;
use thaw_os::cgroup::{Hierarchy, Limits, Reclaim};
use thaw_os::spawner::Spawner;
use thawd::container::{
    Command, Containers, Exited, Isolation, Native, Orphan, Process, RefillThrottle, RefillThrottleSettings, Sandbox,
    Settings, Stdio, Template, WindowSize, image_root,
};
use thawd::egress::{EgressMetrics, Outside, Policy};
use thawd::keeper::{self, Keeper, Kept, Key};

use crate::support::{self, PATIENCE};

/// Directory, and name of the control groups.
pub struct Address {
    dir: PathBuf,
    name: String,
}

impl Address {
    /// The same for whoever comes next.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), name: dir.file_name().unwrap().to_str().unwrap().to_owned() }
    }

    /// A new one.
    pub fn new() -> (TempDir, Self) {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let place = if support::in_bed() { "/var/lib/scratch" } else { "/var/tmp" };
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("thawd-test-{}-p{count}-", std::process::id());
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir_in(place).unwrap();
        let address = Self::at(dir.path());
        (dir, address)
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

pub struct House {
    pub containers: Arc<Containers>,
    pub keeper: Arc<Keeper>,
    pub hierarchy: Arc<Hierarchy>,
    pub template: Arc<Template>,
    /// What an earlier holder kept, but for containers.
    pub kept: BTreeMap<Key, Kept>,
    pub orphans: BTreeMap<String, Orphan>,
}

impl House {
    /// As a daemon starts.
    pub fn open(address: &Address) -> Self {
        Self::open_with(address, |native| Arc::new(native))
    }

    /// The same, with another way to make containers.
    pub fn open_with(address: &Address, with: impl FnOnce(Native) -> Arc<dyn Isolation>) -> Self {
        support::programs::check_init();
        let run_dir = address.dir.join("run");
        std::fs::create_dir_all(&run_dir).unwrap();
        let config = Config::default();
        let hierarchy = Arc::new(Hierarchy::prepare(&config.cgroup.parent, &address.name).unwrap());
        let program = PathBuf::from(env!("CARGO_BIN_EXE_thawd"));
        let (timeout, stall) = (PATIENCE, PATIENCE);
        let place = keeper::Location { program: program.clone(), run_dir: run_dir.clone(), timeout, stall };
        let (keeper, kept) = Keeper::start(place, Arc::clone(&hierarchy), Default::default()).unwrap();
        let init = program.with_file_name("thaw-init");
        let spawner = Spawner::start(program.clone(), init, PATIENCE, Default::default());
        let settings = Settings {
            made_by: String::new(),
            scarce_percent: 0,
            max: 8,
            ephemeral_bytes: 64 << 20,
            ephemeral_inodes: 4096,
            open_files: 512,
            id_start: config.container.id_start,
            limit_visible_cpus: false,
            create_timeout: PATIENCE,
            proxy_port: config.egress.port,
            egress: (&config.egress.limits).into(),
            mount_point: run_dir,
        };
        let throttle = RefillThrottle::new(RefillThrottleSettings {
            quiet: Duration::ZERO,
            max_hold: Duration::ZERO,
            max_hold_clearing: Duration::ZERO,
            held_creations: 8,
            cpus: 8,
        });
        let metrics =
            Outside::direct(Arc::new(EgressMetrics::new(&mut prometheus_client::registry::Registry::default())));
        let keeps = Some(Arc::clone(&keeper));
        let isolation = with(Native::new(spawner));
        let containers = Containers::new(settings, Arc::clone(&hierarchy), isolation, metrics, keeps, throttle);
        let containers = Arc::new(containers);
        let (mut of_containers, mut others) = (BTreeMap::new(), BTreeMap::new());
        for (key, kept) in kept {
            match key {
                Key::Container(id) => drop(of_containers.insert(id, kept)),
                key => drop(others.insert(key, kept)),
            }
        }
        let kept = others;
        let orphans = containers.orphans(of_containers).into_iter().collect();
        let store = Store::open(&address.dir.join("images")).unwrap();
        let image = store.ensure(&support::layouts().join("test")).unwrap();
        let limits = Limits { memory_bytes: 256 << 20, cpu: 2.0, cpu_burst: None, cpu_period_us: 100_000 };
        let template = Arc::new(Template {
            provider: "house".to_owned(),
            root: image_root(&image).unwrap(),
            layer: None,
            hold: Some(image.hold()),
            home: Some("/home/runtime".to_owned()),
            user: 1000,
            group: 1000,
            credentials: None,
            workspace: false,
            idle: limits,
            run: limits,
            pids: 400,
            egress: egress(),
            prestarted: None,
            reclaim: Reclaim::Nothing,
        });
        Self { containers, keeper, hierarchy, template, kept, orphans }
    }

    /// A running sandbox that was frozen before, as one out of a pool.
    pub async fn sandbox(&self, id: &str) -> Sandbox {
        let place = self.containers.lease().unwrap();
        let mut container = self.containers.create(Arc::clone(&self.template), place).await.unwrap();
        container.park().await.unwrap();
        let sandbox = container.claim_sandbox(id, "u1").unwrap();
        sandbox.thaw().unwrap();
        sandbox
    }

    /// Its PID 1, on the host.
    pub fn init_of(&self, sandbox: &Sandbox) -> i32 {
        let listed = self.containers.list();
        listed.iter().find(|container| container.id == sandbox.id()).unwrap().pid.unwrap()
    }

    /// Waits until no more than so many leases are taken.
    pub async fn leases(&self, taken: usize) {
        support::eventually("leases are given back", || async {
            (self.containers.free_leases() + taken >= self.containers.limit().0).then_some(())
        })
        .await;
    }

    /// Waits until every container is gone, and removes everything.
    pub async fn close(self) {
        tokio::time::timeout(PATIENCE, self.containers.all_gone()).await.unwrap();
        self.keeper.end().await;
        self.hierarchy.remove_base();
    }
}

pub fn egress() -> Arc<Policy> {
    Arc::new(Policy::new(&Vec::<String>::new(), BTreeMap::new(), Vec::new()).unwrap())
}

/// A shell script as a command of uid 1000.
pub fn script(script: &str) -> Command {
    let env = [("PATH", "/usr/local/bin:/usr/bin:/bin"), ("TERM", "dumb")];
    Command {
        argv: ["sh", "-c", script].map(str::to_owned).to_vec(),
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec(),
        with_host_name: Vec::new(),
        cwd: "/tmp".to_owned(),
        user: 1000,
        group: 1000,
        groups: Vec::new(),
        rlimits: Vec::new(),
    }
}

pub const SIZE: WindowSize = WindowSize { rows: 24, columns: 80 };

/// A command with pipes of its own, or with a terminal.
pub struct Run {
    pub process: Process,
    /// Its standard output, or what its terminal shows.
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// What it has written, and how it ended.
#[derive(Debug)]
pub struct Ended {
    pub exited: Exited,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn code(&self) -> i32 {
        assert!(libc::WIFEXITED(self.exited.status), "{self:?}");
        libc::WEXITSTATUS(self.exited.status)
    }

    pub fn signal(&self) -> i32 {
        assert!(libc::WIFSIGNALED(self.exited.status), "{self:?}");
        libc::WTERMSIG(self.exited.status)
    }
}

impl Run {
    pub async fn start(sandbox: &Sandbox, command: &Command) -> Self {
        let (stdout, stdout_writer) = std::io::pipe().unwrap();
        let (stderr, stderr_writer) = std::io::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let stdio = Stdio::Three([null.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()]);
        let process = sandbox.start(&command.encode().unwrap(), &stdio).await.unwrap();
        Self { process, stdout: stdout.into(), stderr: stderr.into() }
    }

    /// With a controlling terminal of its own; its standard error is there too.
    pub async fn in_terminal(sandbox: &Sandbox, command: &Command) -> Self {
        let (ours, theirs) = sandbox.terminal(command.user, SIZE).unwrap();
        let process = sandbox.start(&command.encode().unwrap(), &Stdio::Terminal([theirs.as_fd()])).await.unwrap();
        let (nothing, _) = std::io::pipe().unwrap();
        Self { process, stdout: ours.into(), stderr: nothing.into() }
    }

    pub async fn ended(self) -> Ended {
        let exited = tokio::time::timeout(PATIENCE, self.process.ended()).await.expect("it ends");
        let exited = exited.unwrap().expect("before its container");
        Ended { exited, stdout: text(self.stdout).await, stderr: text(self.stderr).await }
    }
}

/// Runs a script to its end.
pub async fn run(sandbox: &Sandbox, text: &str) -> Ended {
    Run::start(sandbox, &script(text)).await.ended().await
}

/// Everything that comes out of a pipe, to its end.
pub async fn text(pipe: OwnedFd) -> String {
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        match File::from(pipe).read_to_end(&mut bytes) {
            Ok(_) => {}
            // The end of a terminal that nobody has the other end of.
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}"),
        }
        String::from_utf8(bytes).unwrap()
    });
    tokio::time::timeout(PATIENCE, read).await.expect("the pipe ends").unwrap()
}
