//! The daemon. `thawd spawner` is the same program as the process that creates containers.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thawd::config::{Config, DEFAULT_PATH};
use thawd::daemon::Daemon;
use thawd::telemetry::LogFormat;
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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        // Before any thread exists: the spawner clones itself.
        Some(Internal::Spawner { init }) => thawd::spawner::serve(&init).context("spawner"),
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

fn load(arguments: &Arguments) -> anyhow::Result<Config> {
    match &arguments.config {
        Some(path) => Ok(Config::load(path)?),
        None if Path::new(DEFAULT_PATH).exists() => Ok(Config::load(Path::new(DEFAULT_PATH))?),
        None => Ok(Config::default()),
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = load(arguments)?;
    if arguments.check_config {
        let providers = thawd::provider::load_dir(&config.paths.providers_dir)?;
        println!("configuration ok, {} providers", providers.len());
        return Ok(());
    }
    thawd::telemetry::init(config.log.format.unwrap_or_else(LogFormat::detect), &config.log.filter)?;
    anyhow::ensure!(rustix::process::geteuid().is_root(), "must run as root: it makes namespaces, mounts and cgroups");
    // Credentials pass through this process: no core dump, no tracing by others (prctl(2), PR_SET_DUMPABLE).
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("forbid core dumps")?;
    raise_open_files(config.container.max);
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(&config))
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

async fn serve(config: &Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    // Before anything is made, so that a signal during start-up clears it away too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
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
    Daemon::start(config)?.serve(stop).await?;
    Ok(())
}
