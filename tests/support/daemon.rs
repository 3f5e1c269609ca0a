//! A daemon of a test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use thaw_client::client::Client;
use thaw_client::types::{Container, ContainerState, ExecutionRequest, Pool};
use tokio::net::UnixStream;

use super::machine::{self, Process};
use super::{Answer, ContainerCgroup, Outcome, Setup, eventually, hierarchies, http, shell};

/// A running `thawd`. Dropping it kills it and clears up; [`Daemon::stop`] is how a test ends.
pub struct Daemon {
    child: Option<Child>,
    pub client: Client,
    name: String,
    scratch: TempDir,
}

impl Daemon {
    /// Starts one and waits until it can serve.
    pub async fn start(change: impl FnOnce(Setup) -> Setup) -> Self {
        let mut daemon = Self::prepare(change);
        daemon.launch().await;
        daemon
    }

    /// Writes the configuration, and starts nothing yet.
    pub fn prepare(change: impl FnOnce(Setup) -> Setup) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("thawd-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        // Not on an overlay, which the test bed's root is; and a short path, because a socket's may have 107 bytes.
        let place = if super::in_bed() { "/var/lib/scratch" } else { "/var/tmp" };
        let scratch = tempfile::Builder::new().prefix("thawd-test-").tempdir_in(place).unwrap();
        change(Setup::new(scratch.path(), &name)).write(scratch.path());
        let client = Client::new(&scratch.path().join("run/thawd.sock")).unwrap();
        Self { child: None, client, name, scratch }
    }

    /// Starts the program with the configuration as it is, and waits until it can serve.
    pub async fn launch(&mut self) {
        self.spawn(&[]);
        self.ready().await;
    }

    /// Starts the program with these variables, and waits for nothing.
    pub fn spawn(&mut self, variables: &[(&str, &str)]) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        self.begin(log, variables);
    }

    /// Starts the program; what it logs goes to `errors`.
    pub fn begin(&mut self, errors: impl Into<Stdio>, variables: &[(&str, &str)]) {
        self.run_program(Command::new(env!("CARGO_BIN_EXE_thawd")), errors, variables);
    }

    /// Starts the program in a mount namespace of its own, after `script` (sh) has changed that.
    pub fn spawn_within(&mut self, script: &str) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log_file()).unwrap();
        let mut command = Command::new("unshare");
        let script = format!("{script}\nexec \"$0\" \"$@\"");
        command.args(["--mount", "sh", "-euc", &script, env!("CARGO_BIN_EXE_thawd")]);
        self.run_program(command, log, &[("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")]);
    }

    fn run_program(&mut self, mut command: Command, errors: impl Into<Stdio>, variables: &[(&str, &str)]) {
        assert!(self.child.is_none(), "one daemon at a time");
        super::programs::check_init();
        command.arg("--config").arg(self.path("thawd.toml")).env_clear().envs(variables.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until it can serve.
    pub async fn ready(&mut self) {
        let this = &mut *self;
        let begun = std::time::Instant::now();
        loop {
            if let Some(status) = this.child.as_mut().unwrap().try_wait().unwrap() {
                panic!("the daemon ended with {status}: {}", this.log());
            }
            match this.client.readyz().await {
                Ok(()) => return,
                Err(error) => assert!(begun.elapsed() < super::PATIENCE, "not ready: {error}\n{}", this.log()),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts the program, which has to refuse; returns what it says.
    pub async fn refused(&mut self) -> String {
        self.begin(fs::File::create(self.log_file()).unwrap(), &[]);
        let status = self.ended().await;
        assert!(!status.success(), "{}", self.log());
        self.log()
    }

    /// A path in its own directory.
    pub fn path(&self, part: &str) -> PathBuf {
        self.scratch.path().join(part)
    }

    /// Name of its directory in each cgroup hierarchy.
    pub fn cgroup_name(&self) -> &str {
        &self.name
    }

    /// Where its API listens.
    pub fn socket(&self) -> PathBuf {
        self.path("run/thawd.sock")
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().unwrap().id() as i32
    }

    /// Everything that it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.path("daemon.log")
    }

    /// Runs a request to its end, streaming.
    pub async fn run(&self, request: &ExecutionRequest) -> Outcome {
        let stream = self.client.execute_stream(request).await.unwrap_or_else(|error| panic!("{error}"));
        Outcome::of(stream).await
    }

    /// Runs a shell script to its end.
    pub async fn sh(&self, script: &str) -> Outcome {
        self.run(&shell(script)).await
    }

    /// A request by hand, such as `GET /v1/pools`.
    pub async fn http(&self, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        Answer::to(&self.socket(), request, headers, body).await
    }

    /// A request without headers and body.
    pub async fn http_owned(&self, request: String) -> Answer {
        self.http(&request, &[], b"").await
    }

    /// Sends a request by hand and leaves the answer to the caller.
    pub async fn open(&self, request: &str, headers: &[(&str, &str)], body: &[u8]) -> UnixStream {
        http::open(&self.socket(), request, headers, body).await
    }

    /// The pool of the provider `test`.
    pub async fn pool(&self) -> Pool {
        self.client.pools().await.unwrap().into_iter().find(|pool| pool.provider == "test").unwrap()
    }

    /// The containers that exist now.
    pub async fn containers(&self) -> Vec<Container> {
        self.client.containers().await.unwrap()
    }

    /// One container; panics if it is not there.
    pub async fn container(&self, id: &str) -> Container {
        self.containers().await.into_iter().find(|container| container.id == id).unwrap()
    }

    /// Waits until the pool of `test` is full and every other container gone; returns the warm ones.
    pub async fn settled(&self) -> Vec<Container> {
        self.settled_beside(0).await
    }

    /// The same while `claimed` executions run on.
    pub async fn settled_beside(&self, claimed: usize) -> Vec<Container> {
        eventually("the pool fills and nothing else is left", || async {
            let pool = self.pool().await;
            let mut containers = self.containers().await;
            containers.retain(|container| container.provider == "test");
            let all = containers.len();
            containers.retain(|container| container.state == ContainerState::Warm);
            let full = pool.warm == pool.target && pool.creating == 0 && containers.len() == pool.target;
            (full && all == pool.target + claimed).then_some(containers)
        })
        .await
    }

    /// Waits until nothing of a container is left in the kernel.
    pub async fn gone(&self, container: &Container) {
        let cgroup = ContainerCgroup::of(container);
        let process = container.pid.and_then(Process::now);
        eventually("the container is gone", || async {
            (!cgroup.exists() && !process.is_some_and(|process| process.exists())).then_some(())
        })
        .await;
    }

    /// The process that creates its containers.
    pub fn spawner(&self) -> Option<Process> {
        machine::children(self.pid()).into_iter().find(|child| child.command_line().contains(" spawner "))
    }

    /// The process that holds what survives it, whoever started that.
    pub fn keeper(&self) -> Option<Process> {
        machine::processes_in_cgroup(&self.name).into_iter().find(|child| child.command_line().contains(" keeper "))
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.pid()).unwrap(), signal).unwrap();
    }

    /// Kills it without warning. What it leaves is left.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Waits for it to end.
    pub async fn ended(&mut self) -> ExitStatus {
        let child = self.child.as_mut().unwrap();
        let status = eventually("the daemon ends", || std::future::ready(child.try_wait().unwrap())).await;
        self.child = None;
        status
    }

    /// Ends it in order and asserts that nothing is left of it.
    pub async fn stop(mut self) {
        let family = self.family();
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "the daemon ended with {status}");
        // Children of an earlier daemon, which was killed, are init's to reap.
        eventually("all are reaped", || async { (!family.iter().any(|process| process.exists())).then_some(()) }).await;
        self.assert_nothing_left(&family);
    }

    /// It and everything that descends from it or lives in its cgroups.
    pub fn family(&self) -> Vec<Process> {
        let mut family = machine::children(self.pid());
        family.extend(machine::processes_in_cgroup(&self.name));
        family
    }

    /// Asserts that a daemon that has ended left no process, cgroup, mount or file behind.
    pub fn assert_nothing_left(&self, family: &[Process]) {
        let processes: Vec<_> = family.iter().filter(|process| process.exists()).collect();
        assert!(processes.is_empty(), "processes left: {processes:?}");
        assert_eq!(machine::processes_in_cgroup(&self.name), [], "processes left in its cgroups");
        for directory in self.cgroups() {
            assert!(!directory.exists(), "left: {}", directory.display());
        }
        let mounts = machine::mounts_below(self.scratch.path().to_str().unwrap());
        assert!(mounts.is_empty(), "mounts left: {mounts:?}");
        // A daemon that found a mistake has not even made it.
        let run = self.path("run");
        let files: Vec<_> = run.exists().then(|| fs::read_dir(run).unwrap()).into_iter().flatten().collect();
        assert!(files.is_empty(), "left in its run directory: {files:?}");
    }

    /// Its directory in every hierarchy, existing or not.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        hierarchies().into_iter().map(|(mount, _)| mount.join(&self.name)).collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the daemon's log, its end:\n{}\n---", lines[lines.len().saturating_sub(60)..].join("\n"));
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        // A test that failed must not disturb the next.
        for directory in self.cgroups() {
            let _ = fs::write(directory.join("cgroup.kill"), "1");
        }
        for directory in self.cgroups() {
            remove_cgroup(&directory);
        }
    }
}

/// Removes a cgroup and those below it, whose processes have been killed.
fn remove_cgroup(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path());
    }
    for _ in 0..200 {
        match fs::remove_dir(directory) {
            Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(10));
            }
            _ => return,
        }
    }
}
