//! The daemon. `thawd spawner` is the same program as the process that creates containers.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thawd::config::{Config, ConfigError, DEFAULT_PATH};
use thawd::daemon::Daemon;
use thawd::service::Service;
use thawd::systemd;
use thawd::telemetry::{LogControl, LogFormat};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Container supervisor: keeps frozen warm containers and hands one out in milliseconds.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Configuration file [default: /etc/thawd/thawd.toml, or the built-in defaults if that does not exist]
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration and the provider manifests, then exit
    #[arg(long)]
    check_config: bool,
    /// Cgroup that the containers' cgroups are made below, instead of `cgroup.parent` in the configuration
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    #[command(subcommand)]
    command: Option<Internal>,
}

#[derive(Debug, Subcommand)]
enum Internal {
    /// Creates containers for the daemon, which starts it; not for use by hand
    #[command(hide = true)]
    Spawner {
        #[arg(long, value_name = "FILE")]
        init: PathBuf,
    },
    /// Keeps a delegated cgroup for the daemon's containers, whoever restarts the daemon: thawd-containers.service
    #[command(hide = true)]
    Hold,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        // Before any thread exists: the spawner clones itself.
        Some(Internal::Spawner { init }) => thawd::spawner::serve(&init).context("spawner"),
        Some(Internal::Hold) => hold(),
        None => run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("thawd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn load(file: Option<&Path>, cgroup_parent: Option<&str>) -> Result<Config, ConfigError> {
    let mut config = match file {
        Some(path) => Config::load(path)?,
        None if Path::new(DEFAULT_PATH).exists() => Config::load(Path::new(DEFAULT_PATH))?,
        None => Config::default(),
    };
    if let Some(parent) = cgroup_parent {
        parent.clone_into(&mut config.cgroup.parent);
    }
    if let Some(filter) = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty()) {
        config.log.filter = filter;
    }
    Ok(config)
}

/// Does nothing, in a sub-group of its own, until it is killed: systemd keeps a unit's cgroup only as long as a process
/// is in it, and starts none in a cgroup that hands controllers down.
fn hold() -> anyhow::Result<()> {
    let cgroup = thawd::cgroup::step_aside("holder").context("make room in the cgroup of this unit")?;
    systemd::ready(&format!("containers go to {cgroup}"));
    loop {
        std::thread::park();
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = load(arguments.config.as_deref(), arguments.cgroup_parent.as_deref())?;
    if arguments.check_config {
        let providers = thawd::daemon::check(&config)?;
        println!("configuration ok, {providers} providers");
        return Ok(());
    }
    let log = thawd::telemetry::init(config.log.format.unwrap_or_else(LogFormat::detect), &config.log.filter)?;
    anyhow::ensure!(rustix::process::geteuid().is_root(), "must run as root: it makes namespaces, mounts and cgroups");
    // Credentials pass through this process: no core dump, no tracing by others (prctl(2), PR_SET_DUMPABLE).
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("forbid core dumps")?;
    raise_open_files(config.container.max);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(arguments, config, log))
}

/// Descriptors for the daemon itself: libraries, listener, clients.
const OWN_FILES: u64 = 512;

/// Descriptors that one container can cost: about 16 to hold it, and two for each of the 72 connections that its way
/// out accepts at once.
const FILES_PER_CONTAINER: u64 = 160;

/// Raises the limit on open files as far as it goes. The usual 1024 are what eight containers can use up at will, and
/// then nobody gets in or out any more.
fn raise_open_files(containers: usize) {
    let needed = OWN_FILES + FILES_PER_CONTAINER * containers as u64;
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    if let Some(has) = getrlimit(Resource::Nofile).current.filter(|has| *has < needed) {
        tracing::warn!(has, needed, "the limit on open files (LimitNOFILE=) is low for `container.max` containers");
    }
}

async fn serve(arguments: &Arguments, config: Config, log: LogControl) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    // Before anything is made, so that a signal during start-up clears it away too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    tokio::spawn({
        let stop = stop.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
        }
    });
    let inherited = systemd::inherited_listener().context("take over systemd's socket")?;
    let daemon = Daemon::start(&config, inherited)?;
    let service =
        Service::new(Arc::clone(daemon.executions()), daemon.socket(), log, config, daemon.metrics().clone())?;
    let (file, parent) = (arguments.config.clone(), arguments.cgroup_parent.clone());
    let beside = tokio::spawn(service.run(hangup, move || load(file.as_deref(), parent.as_deref()), stop.clone()));
    daemon.serve(stop).await?;
    // It has said that we are stopping, and ends with us.
    beside.await?;
    Ok(())
}
