//! The daemon. `thawd spawner` is the same program as the process that creates containers.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thaw_client::config::{Config, ConfigError, DEFAULT_PATH, LogFormat, OnStop};
use thaw_client::paper::{self, PaperError};
use thawd::against::Findings;
use thawd::daemon::Daemon;
use thawd::service::{Health, Service};
use thawd::systemd;
use thawd::telemetry::LogControl;
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
    /// With `--check-config`: also ask the running daemon what runs, and name what a daemon with this configuration could
    /// not go on with
    #[arg(long, requires = "check_config")]
    against_running: bool,
    /// Cgroup that the containers' cgroups are made below, instead of `cgroup.parent` in the configuration
    #[arg(long, value_name = "PATH")]
    cgroup_parent: Option<String>,
    /// What becomes of executions and warm containers at a stop, instead of `daemon.on_stop` in the configuration
    #[arg(long, value_name = "WHAT")]
    on_stop: Option<OnStop>,
    #[command(subcommand)]
    command: Option<Internal>,
}

#[derive(Debug, Subcommand)]
enum Internal {
    /// The keys of the vault, which keeps users' credentials
    #[command(subcommand)]
    Vault(VaultCommand),
    /// The database of the daemon
    #[command(subcommand)]
    Store(StoreCommand),
    /// Creates containers for the daemon, which starts it; not for use by hand
    #[command(hide = true)]
    Spawner {
        #[arg(long, value_name = "FILE")]
        init: PathBuf,
    },
    /// Keeps what survives the daemon, which starts it; not for use by hand
    #[command(hide = true)]
    Keeper {
        /// Seconds without a daemon after which it destroys the containers
        #[arg(long)]
        timeout: u64,
        /// Where their cgroups are, the v2 hierarchy first
        #[arg(long = "cgroup", value_name = "DIRECTORY")]
        cgroups: Vec<PathBuf>,
    },
    /// Asks a provider to renew a login, for the daemon, which starts it; not for use by hand
    #[command(hide = true)]
    Refresh,
    /// Keeps a delegated cgroup for the daemon's containers, whoever restarts the daemon: thawd-containers.service
    #[command(hide = true)]
    Hold,
    /// Writes the daemon's man pages and shell completions below a folder, for `make install` and `make deb`
    #[command(hide = true)]
    Paper {
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum VaultCommand {
    /// Make a master key in a new file, and say what to do with it
    Init {
        /// File to make; its folder must exist, and must not be the daemon's state directory
        #[arg(long, value_name = "FILE", default_value = "/etc/thawd/vault.key")]
        key_file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum StoreCommand {
    /// Read the whole database and say whether it is sound
    Check,
    /// Write a copy of the database, also while the daemon uses it
    Backup {
        /// File to make
        #[arg(value_name = "FILE")]
        copy: PathBuf,
    },
    /// Put a copy in the place of the database, which is kept beside it; the daemon must not run
    Restore {
        /// Copy that `backup` made
        #[arg(value_name = "FILE")]
        copy: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.command {
        Some(Internal::Vault(VaultCommand::Init { ref key_file })) => vault_init(key_file),
        Some(Internal::Store(ref command)) => store(&arguments, command),
        // Before any thread exists: the spawner clones itself.
        Some(Internal::Spawner { init }) => thaw_os::spawner::serve(&init).context("spawner"),
        Some(Internal::Keeper { timeout, cgroups }) => {
            thawd::keeper::serve(Duration::from_secs(timeout), &cgroups).context("keeper")
        }
        Some(Internal::Refresh) => thawd::vault::serve_refresh().context("refresh"),
        Some(Internal::Hold) => hold(),
        Some(Internal::Paper { directory }) => paper(&directory).context("paper"),
        None => run(&arguments),
    };
    match outcome {
        Ok(()) => {
            thawd::telemetry::flush();
            ExitCode::SUCCESS
        }
        Err(error) => {
            thawd::telemetry::last_words(&format!("thawd: {}", in_words(&error)));
            ExitCode::FAILURE
        }
    }
}

fn vault_init(key_file: &Path) -> anyhow::Result<()> {
    let id = thawd::vault::init(key_file)?;
    let path = key_file.display();
    println!(
        "made the master key {id} in {path}\n\
         1. back it up apart from the database: without it nothing in the vault can be read, by anybody\n\
         2. in thawd.toml, below [vault]: key_file = \"{path}\"\n\
         3. restart thawd; `thawctl credentials put` stores the first credential"
    );
    Ok(())
}

fn store(arguments: &Arguments, command: &StoreCommand) -> anyhow::Result<()> {
    let config = load(arguments.config.as_deref(), None, None)?;
    let settings = thawd::daemon::store_settings(&config);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let checked = match command {
        StoreCommand::Check => runtime.block_on(thawd::store::admin::check(&settings))?,
        StoreCommand::Backup { copy } => {
            runtime.block_on(thawd::store::admin::backup(&settings, copy))?;
            println!("wrote {}; it holds no secret in the clear, and needs the master key", copy.display());
            return Ok(());
        }
        StoreCommand::Restore { copy } => {
            // Held until the end: no daemon starts meanwhile.
            let _alone = thawd::directory_lock::DirectoryLock::take(&config.paths.state_dir, "paths.state_dir")?;
            runtime.block_on(thawd::store::admin::restore(&settings, copy))?
        }
    };
    println!("ok: schema version {}, {} users, {} credentials", checked.version, checked.users, checked.credentials);
    Ok(())
}

/// The error and its causes; a cause that the error names itself is not told again.
fn in_words(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn paper(directory: &Path) -> Result<(), PaperError> {
    paper::write(&Arguments::command(), &paper::DAEMON, directory)?;
    paper::write_configuration_page(directory)
}

fn load(file: Option<&Path>, cgroup_parent: Option<&str>, on_stop: Option<OnStop>) -> Result<Config, ConfigError> {
    let mut config = match file {
        Some(path) => Config::load(path)?,
        None if Path::new(DEFAULT_PATH).exists() => Config::load(Path::new(DEFAULT_PATH))?,
        None => Config::default(),
    };
    if let Some(parent) = cgroup_parent {
        parent.clone_into(&mut config.cgroup.parent);
    }
    config.daemon.on_stop = on_stop.unwrap_or(config.daemon.on_stop);
    if let Some(filter) = std::env::var("RUST_LOG").ok().filter(|filter| !filter.is_empty()) {
        config.log.filter = filter;
    }
    Ok(config)
}

/// Does nothing, in a sub-group of its own, until it is killed: systemd keeps a unit's cgroup only as long as a process
/// is in it, and starts none in a cgroup that hands controllers down.
fn hold() -> anyhow::Result<()> {
    let cgroup = thaw_os::cgroup::step_aside("holder").context("make room in the cgroup of this unit")?;
    systemd::ready(&format!("containers go to {cgroup}"));
    loop {
        std::thread::park();
    }
}

/// Says what runs now and would not survive a restart with this configuration.
fn against_running(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let Findings { lost, notes } = runtime.block_on(thawd::against::check(config))?;
    for line in notes.iter().chain(&lost) {
        println!("{line}");
    }
    anyhow::ensure!(lost.is_empty(), "{} executions would be lost by a restart with this configuration", lost.len());
    println!("nothing that runs would be lost by a restart");
    Ok(())
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = load(arguments.config.as_deref(), arguments.cgroup_parent.as_deref(), arguments.on_stop)?;
    if arguments.check_config {
        let sound = thawd::daemon::check(&config)?;
        sound.warnings.iter().for_each(|warning| println!("warning: {warning}"));
        println!("configuration ok, {} providers", sound.providers);
        return if arguments.against_running { against_running(&config) } else { Ok(()) };
    }
    let log = thawd::telemetry::init(
        config.log.format.unwrap_or_else(LogFormat::detect),
        &config.log.filter,
        config.log.queue_bytes,
    )?;
    anyhow::ensure!(rustix::process::geteuid().is_root(), "must run as root: it makes namespaces, mounts and cgroups");
    // Credentials pass through this process: no core dump, no tracing by others (prctl(2), PR_SET_DUMPABLE).
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("forbid core dumps")?;
    raise_open_files(&config)?;
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(serve(arguments, config, log))
}

/// Descriptors for the daemon itself: libraries, listener, spawner.
const OWN_FILES: u64 = 128;

/// With fewer than this many descriptors the daemon cannot serve a single container.
const FEWEST_FILES: u64 = 100;

/// Descriptors that the output of an execution is in, and what is collected of its files.
const FILES_PER_EXECUTION: u64 = 4;

/// Descriptors that holding one container costs, and the connections that are told of a time-out.
const FILES_PER_CONTAINER: u64 = 32;

/// Raises the limit on open files as far as it goes. The usual 1024 are what eight containers can use up at will, and
/// then nobody gets in or out any more.
fn raise_open_files(config: &Config) -> anyhow::Result<()> {
    let (clients, executions) = (config.api.connections.max as u64, config.execution.retained as u64);
    let containers = config.container.max as u64;
    // Each connection that is served has one to the upstream.
    let egress = &config.egress.limits;
    let per_container = FILES_PER_CONTAINER + 2 * egress.connections as u64 + egress.waiting as u64;
    let needed = OWN_FILES + clients + per_container * containers + FILES_PER_EXECUTION * executions;
    let has = || getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the limit on open files");
    }
    anyhow::ensure!(
        has() >= FEWEST_FILES,
        "the limit on open files is {}, but at least {FEWEST_FILES} are needed, and {needed} for `container.max` \
         containers and `execution.retained` executions; raise it (LimitNOFILE= of the unit, ulimit -Hn)",
        has()
    );
    if has() < needed {
        tracing::warn!(
            has = has(),
            needed,
            "the limit on open files (LimitNOFILE=) is low for `container.max` containers and `execution.retained` executions"
        );
    }
    Ok(())
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
    let (executions, metrics) = (Arc::clone(daemon.executions()), daemon.metrics().clone());
    let service = Service::new(executions, Health::new(daemon.health()), log, config, metrics);
    let (file, parent, on_stop) = (arguments.config.clone(), arguments.cgroup_parent.clone(), arguments.on_stop);
    let load = move || load(file.as_deref(), parent.as_deref(), on_stop);
    let beside = tokio::spawn(service.run(hangup, load, stop.clone()));
    if daemon.serve(stop).await? == OnStop::Keep {
        // Here and now: what is dropped on an orderly way out would be destroyed.
        thawd::telemetry::flush();
        std::process::exit(0);
    }
    // It has said that we are stopping, and ends with us.
    beside.await?;
    Ok(())
}
