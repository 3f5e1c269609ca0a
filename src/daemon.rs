//! Puts the rooms together, and takes them apart again in order.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

mod advice;
mod images;
mod settings;

use self::images::{NAMELESS, image, image_store, nameless};
pub use self::settings::store_settings;
use self::settings::{
    container_settings, egress_total, image_settings, key_source, limits, metrics_limits, pool_settings, reclaim,
    refill_throttle_settings, scheduler_settings, vault_settings,
};
use crate::api;
use crate::container::{self, Containers, Native, Orphan, Prestarted, RefillThrottle, Template};
use crate::directory_lock::{DirectoryLock, DirectoryLockError};
use crate::egress::{EgressMetrics, Policy, PolicyError};
use crate::execution::{self, ExecutionMetrics, Executions, ImageInUse, ImageSettings, Images, Served, Spools};
use crate::feed::Feed;
use crate::jobs::Jobs;
use crate::keeper::{self, Keeper, KeeperError, Kept, Key};
use crate::pool::{Pool, PoolMetrics, Prepare, Prepared, Scheduler};
use crate::provider::{self, ManifestError, Provider, prestart};
use crate::telemetry::{self, DaemonMetrics, TelemetryError};
use crate::vault::{Vault, VaultError};
use thaw_client::config::{self, Config, OnStop};
use thaw_client::types::Stage;
use thaw_image::{Store, StoreError};
use thaw_os::cgroup::{CgroupError, Hierarchy, Reclaim, own_memory_limit};
use thaw_os::spawner::Spawner;

/// How long a stop waits for executions to end and containers to be destroyed before it gives up.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long clients have for reading the rest of their streams after every execution has ended.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(3);

/// How often a running daemon looks whether it can be found.
const REACH_INTERVAL: Duration = Duration::from_secs(5);

/// How often ended executions are looked at for being forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// Control groups.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Provider manifests.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Image store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A provider's allow-list.
    #[error("provider `{provider}`: {source}")]
    Policy {
        /// Which provider.
        provider: String,
        /// What is wrong.
        source: PolicyError,
    },
    /// A CLI that is to wait already started cannot be.
    #[error("provider `{provider}` cannot be prestarted: {problem}")]
    Prestart {
        /// Which provider.
        provider: String,
        /// Why, and what to do.
        problem: String,
    },
    /// The configuration names a provider that has no manifest.
    #[error("the configuration has [provider.{name}], but there is no manifest {name}.toml in {}", directory.display())]
    UnknownProvider {
        /// Name in the configuration.
        name: String,
        /// Where manifests are.
        directory: PathBuf,
    },
    /// What lets everything survive.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// Log filter.
    #[error(transparent)]
    Log(#[from] TelemetryError),
    /// Its directories.
    #[error(transparent)]
    DirectoryLock(#[from] DirectoryLockError),
    /// Credentials of users.
    #[error("the vault cannot be opened: {0}")]
    Vault(#[from] VaultError),
    /// Something else of the operating system.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> DaemonError {
    let what = what.into();
    move |source| DaemonError::Io { what, source }
}

/// Checks everything about a configuration that can be checked without touching the machine: log filter, manifests,
/// allow-lists, what is to be prestarted, and that `thaw-init` is there. Images that are unpacked are looked at as well.
///
/// # Errors
/// The first mistake found.
pub fn check(config: &Config) -> Result<Sound, DaemonError> {
    telemetry::check_filter(&config.log.filter)?;
    let providers = Checked::new(config)?.providers;
    let mut warnings = advice::warnings(config, &load_providers(config)?);
    warnings.extend(nameless(config, providers.values().map(|checked| &*checked.provider)));
    Ok(Sound { providers: providers.len(), warnings })
}

/// A configuration without a mistake.
#[derive(Debug)]
pub struct Sound {
    /// How many providers there are.
    pub providers: usize,
    /// What is allowed, but will hardly do what it is meant to.
    pub warnings: Vec<String>,
}

/// What follows from a configuration in which everything has been found right. It comes before anything that an earlier
/// daemon left is touched: dropping a survivor destroys it, so a mistake has to be found while they are still the keeper's.
struct Checked {
    providers: BTreeMap<String, CheckedProvider>,
    image_runs: ImageSettings,
    /// This program.
    program: PathBuf,
    init: PathBuf,
}

struct CheckedProvider {
    provider: Arc<Provider>,
    policy: Arc<Policy>,
    /// What is started ahead of time, and how often.
    plans: Vec<(prestart::Plan, usize)>,
    base_url: Option<String>,
}

impl Checked {
    fn new(config: &Config) -> Result<Self, DaemonError> {
        let image_runs = image_settings(config)?;
        let check = |(name, provider): (String, Provider)| {
            let changes = config.provider.get(&name).cloned().unwrap_or_default();
            let policy = Arc::new(policy(config, &name, &provider, &changes)?);
            let plans = prestart_plans(&name, &provider, &changes)?;
            let base_url = changes.base_url;
            Ok((name, CheckedProvider { provider: Arc::new(provider), policy, plans, base_url }))
        };
        let providers = load_providers(config)?.into_iter().map(check).collect::<Result<_, DaemonError>>()?;
        let program = std::env::current_exe().map_err(io_error("find this program"))?;
        let init = init_program(config, &program)?;
        Ok(Self { providers, image_runs, program, init })
    }
}

/// What an earlier daemon left with the keeper.
struct Survivors {
    executions: BTreeMap<Key, Kept>,
    containers: BTreeMap<String, Orphan>,
}

impl Survivors {
    fn find(containers: &Containers, kept: BTreeMap<Key, Kept>) -> Self {
        let (mut executions, mut containers_kept, mut unknown) = (BTreeMap::new(), BTreeMap::new(), 0);
        for (key, kept) in kept {
            match key {
                Key::Container(id) => drop(containers_kept.insert(id, kept)),
                key @ (Key::Execution(_) | Key::Transit(..)) => drop(executions.insert(key, kept)),
                Key::Unknown(_) => unknown += 1,
            }
        }
        if unknown > 0 {
            tracing::info!(unknown, "a newer daemon's things stay with the keeper");
        }
        Self { executions, containers: containers.orphans(containers_kept).into_iter().collect() }
    }

    /// The ids of containers that live.
    fn containers(&self) -> BTreeSet<String> {
        self.containers.keys().cloned().collect()
    }

    /// Leaves all of them to the next daemon: the keeper has what they consist of.
    fn leave(self) {
        std::mem::forget(self);
    }

    /// Those that nobody had claimed.
    fn warm_of(&mut self, provider: &str) -> Vec<Orphan> {
        let of = |_: &String, orphan: &mut Orphan| orphan.pool().provider() == provider && !orphan.may_be_claimed();
        self.containers.extract_if(.., of).map(|(_, orphan)| orphan).collect()
    }

    /// Goes on with what runs; destroys the containers of which nobody knows anything any more.
    fn go_on(mut self, executions: &Arc<Executions>, egress: impl Fn(&str, &[String]) -> Option<Arc<Policy>>) {
        let survivors = executions.adopt(self.executions, &mut self.containers, egress);
        if survivors != execution::Adopted::default() {
            let execution::Adopted { running, ended, lost } = survivors;
            tracing::info!(running, ended, lost, "executions of an earlier daemon");
        }
        for id in self.containers.keys() {
            tracing::warn!(container = %id, "destroyed: an earlier daemon left it, and no execution has it");
        }
    }
}

/// What a start has made that fails: nothing of it is left. What an earlier daemon left stays with the keeper.
struct Begun {
    socket: Option<PathBuf>,
    /// One that holds nothing.
    keeper: Option<(Arc<Keeper>, Arc<Hierarchy>)>,
}

impl Begun {
    /// There is a daemon now whose all this is.
    fn succeeded(mut self) {
        (self.socket, self.keeper) = (None, None);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.socket.take().map(std::fs::remove_file) {
            tracing::debug!(%error, "the socket of a start that failed");
        }
        if let Some((keeper, hierarchy)) = self.keeper.take() {
            keeper.end_blocking();
            hierarchy.remove_base();
        }
    }
}

/// A daemon that is ready to serve.
#[derive(Debug)]
pub struct Daemon {
    executions: Arc<Executions>,
    containers: Arc<Containers>,
    keeper: Arc<Keeper>,
    state: Arc<api::State>,
    listener: UnixListener,
    socket: PathBuf,
    on_stop: OnStop,
    /// Whether the socket is the daemon's own to remove.
    made_socket: bool,
    /// Who may open it besides root.
    socket_group: String,
    run_dir: PathBuf,
    connections: config::Connections,
    /// The metrics' own listener.
    metrics_listener: Option<(tokio::net::TcpListener, api::MetricsLimits)>,
    own_metrics: DaemonMetrics,
    /// Its own for as long as it lives.
    directories: [DirectoryLock; 2],
}

impl Daemon {
    /// Prepares everything and starts filling the pools. Must be called in a tokio runtime. `inherited` is a socket that
    /// already listens for us (socket activation) and takes the place of `api.socket`.
    ///
    /// # Errors
    /// See [`DaemonError`].
    pub fn start(config: &Config, inherited: Option<std::os::unix::net::UnixListener>) -> Result<Self, DaemonError> {
        // Before anything is taken over: what runs stays with the keeper when there is a mistake.
        let Checked { providers, image_runs, program, init } = Checked::new(config)?;
        let made_by = container::made_by(&init).map_err(io_error(format!("read {}", init.display())))?;
        let paths = &config.paths;
        let is_read_only = state_directory(&paths.state_dir)?;
        public_directory(&paths.run_dir)?;
        // First of all: a second daemon must not sweep what is the first one's.
        let directories = [
            DirectoryLock::take(&paths.state_dir, "paths.state_dir")?,
            DirectoryLock::take(&paths.run_dir, "paths.run_dir")?,
        ];
        let vault = open_vault(config)?;
        let (listener, socket, made_socket) = match inherited {
            Some(inherited) => inherit(inherited).map(|(listener, path)| (listener, path, false)),
            None => api::bind(&config.api.socket, &config.api.socket_group)
                .map(|listener| (listener, config.api.socket.clone(), true)),
        }
        .map_err(io_error(format!("listen on {}", config.api.socket.display())))?;
        let mut begun = Begun { socket: made_socket.then(|| socket.clone()), keeper: None };
        let metrics_listener = config.metrics.listen.map(listen_for_metrics).transpose()?;
        let metrics_listener = metrics_listener.map(|listener| (listener, metrics_limits(config)));
        let images = Arc::new(image_store(config, is_read_only)?);

        let hierarchy = Arc::new(Hierarchy::prepare(&config.cgroup.parent, &config.cgroup.name)?);
        tracing::info!(layout = hierarchy.layout().name(), "control groups");
        let mut registry = Registry::default();
        let metrics = Arc::new(ExecutionMetrics::new(&mut registry));
        let pool_metrics = Arc::new(PoolMetrics::new(&mut registry));
        let egress_metrics = Arc::new(EgressMetrics::limited(&mut registry, egress_total(config)));
        let own_metrics = DaemonMetrics::new(&mut registry);
        let gauges = api::Gauges::new(&mut registry);

        let spools = Spools::new().map_err(io_error("make a tmpfs for output"))?;
        let place = keeper::Location {
            program: program.clone(),
            run_dir: paths.run_dir.clone(),
            timeout: Duration::from_secs(config.daemon.keeper_timeout_seconds),
            stall: Duration::from_millis(config.daemon.keeper_stall_ms),
        };
        let (keeper, kept) = Keeper::start(place, Arc::clone(&hierarchy), own_metrics.keeper_failures.clone())?;
        if kept.is_empty() {
            begun.keeper = Some((Arc::clone(&keeper), Arc::clone(&hierarchy)));
        }
        let settings = container_settings(config, made_by);
        let spawner = Spawner::start(program, init, settings.create_timeout, own_metrics.spawner_failures.clone());
        let keeps = Some(Arc::clone(&keeper));
        let throttle = RefillThrottle::new(refill_throttle_settings(config));
        let isolation = Arc::new(Native::new(spawner));
        let containers = Containers::new(settings, Arc::clone(&hierarchy), isolation, egress_metrics, keeps, throttle);
        let containers = Arc::new(containers);
        let mut survivors = Survivors::find(&containers, kept);
        // From here on nothing may fail that would drop the survivors.
        let swept = match hierarchy.sweep(&survivors.containers()) {
            Ok(swept) => swept,
            Err(error) => {
                survivors.leave();
                return Err(error.into());
            }
        };
        if swept > 0 {
            own_metrics.swept.inc_by(swept as u64);
            tracing::warn!(swept, "destroyed containers that an earlier daemon left behind");
        }
        let feed = Arc::new(Feed::new(config.api.events_kept));
        let tells = Arc::clone(&feed);
        let scheduler = Scheduler::start(scheduler_settings(config), Arc::clone(&containers), pool_metrics, tells);
        let (mut served, mut policies) = (BTreeMap::new(), BTreeMap::new());
        for (name, provider) in providers {
            let warm = survivors.warm_of(&name);
            policies.insert(name.clone(), Arc::clone(&provider.policy));
            let one = serve_provider(config, &name, provider, &scheduler, &images, warm);
            served.insert(name, one);
        }
        policies.insert(execution::IMAGE_LABEL.to_owned(), Arc::clone(&image_runs.egress));
        let images_to_run = Images::new(Arc::clone(&images), Arc::clone(&scheduler), image_runs);
        let memory = own_memory_limit(hierarchy.layout());
        let settings = execution::Settings::of(config).within(memory, config.container.max);
        let keeps = Some(Arc::clone(&keeper));
        let services =
            execution::Services { metrics, spools, keeper: keeps, feed: Arc::clone(&feed), vault: vault.clone() };
        let executions = Arc::new(Executions::new(settings, served, images_to_run, services));
        survivors.go_on(&executions, |provider, allowed| {
            // A provider that was removed is still that of what runs.
            let kept = || Policy::new(allowed, config.egress.resolve.clone(), config.egress.allow_private.clone());
            policies.get(provider).cloned().or_else(|| kept().ok().map(Arc::new))
        });
        let uploads = config.paths.state_dir.join("uploads");
        api::prepare_uploads(&uploads).map_err(io_error(format!("prepare {}", uploads.display())))?;
        let state = Arc::new(api::State {
            executions: Arc::clone(&executions),
            containers: Arc::clone(&containers),
            images,
            vault,
            jobs: Jobs::new(Arc::clone(&feed)),
            feed,
            image_uids: config.api.connections.image_uids.clone(),
            uploads,
            max_archive_bytes: config.image.max_unpacked_bytes,
            require_signature: config.image.require_signature,
            public_keys: config.image.public_keys.clone(),
            registry,
            gauges: Mutex::new(gauges),
            per_execution: config.metrics.per_execution,
            max_body_bytes: config.api.max_body_bytes,
            heartbeat: Duration::from_secs(config.api.heartbeat_seconds),
            body_timeout: config.api.connections.body_timeout(),
        });
        let (connections, on_stop) = (config.api.connections.clone(), config.daemon.on_stop);
        begun.succeeded();
        Ok(Self {
            executions,
            containers,
            keeper,
            state,
            listener,
            socket,
            on_stop,
            made_socket,
            socket_group: config.api.socket_group.clone(),
            run_dir: paths.run_dir.clone(),
            connections,
            metrics_listener,
            own_metrics,
            directories,
        })
    }

    /// What it counts about itself.
    pub fn metrics(&self) -> &DaemonMetrics {
        &self.own_metrics
    }

    /// Executions, and through them providers and pools.
    pub fn executions(&self) -> &Arc<Executions> {
        &self.executions
    }

    /// Asks its API how it is, without a connection that clients could use up.
    pub fn health(&self) -> impl Fn() -> Pin<Box<dyn Future<Output = Result<(), String>> + Send>> + use<> {
        let router = api::router(Arc::clone(&self.state));
        move || Box::pin(api::is_healthy(router.clone()))
    }

    /// The socket that it listens on.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Serves the API until `stop`, then ends executions, destroys containers and removes what the daemon made; unless
    /// all of that is to stay for the next daemon. Then the process has to exit without taking anything apart: dropping
    /// a container destroys it.
    ///
    /// # Errors
    /// The listener failed.
    pub async fn serve(self, stop: CancellationToken) -> Result<OnStop, DaemonError> {
        let Self { executions, containers, keeper, state, listener, socket, on_stop, .. } = self;
        let Self { made_socket, connections, metrics_listener, directories: _alive, run_dir, socket_group, .. } = self;
        let metrics = metrics_listener.map(|(listener, limits)| {
            tokio::spawn(api::serve_metrics(listener, Arc::clone(&state), limits, stop.clone()))
        });
        let forget = tokio::spawn({
            let (executions, vault) = (Arc::clone(&executions), state.vault.clone());
            async move {
                let mut interval = tokio::time::interval(FORGET_INTERVAL);
                loop {
                    interval.tick().await;
                    executions.forget_expired();
                    if let Some(vault) = &vault {
                        vault.write_uses().await;
                    }
                }
            }
        });
        let vault = state.vault.clone();
        tracing::info!(socket = %socket.display(), "serving");
        let feed = Arc::clone(&state.feed);
        let reach = Reach {
            run_dir,
            socket: made_socket.then(|| (socket.clone(), socket_group)),
            keeper: Arc::clone(&keeper),
            state: Arc::clone(&state),
            connections: connections.clone(),
        };
        let reach = tokio::spawn(reach.keep(stop.clone()));
        let serving = tokio::spawn(api::serve(listener, api::router(state), connections, stop.clone()));
        stop.cancelled().await;
        if on_stop == OnStop::Keep {
            // Everything that has been published is with the keeper; the rest is done as if we were killed.
            tracing::info!("stopping; executions and warm containers stay for the next daemon");
            std::mem::forget((executions, containers));
            return Ok(OnStop::Keep);
        }
        tracing::info!("stopping");
        feed.close();
        forget.abort();
        reach.abort();
        // Nobody new can find us; whoever streams still gets the `exit` event. systemd's socket stays: whoever connects
        // now is served by the next daemon.
        if made_socket {
            let _ = std::fs::remove_file(&socket);
        }
        let orderly = tokio::time::timeout(STOP_TIMEOUT, async {
            executions.shut_down().await;
            for served in executions.served().values() {
                served.pool.stop().await;
                for (prestarted, _) in &served.prestarted {
                    prestarted.stop().await;
                }
            }
            containers.all_gone().await;
        });
        if orderly.await.is_err() {
            tracing::error!("something did not end in time; the next start clears it away");
        }
        if let Some(vault) = vault {
            vault.write_uses().await;
        }
        keeper.end().await;
        containers.hierarchy().remove_base();
        if let Some(metrics) = metrics {
            metrics.abort();
        }
        // Clients may read what they have not read yet, but one that does not must not hold us up.
        match tokio::time::timeout(CLIENT_TIMEOUT, serving).await {
            Ok(served) => served.map_err(|error| io_error("serve the API")(io::Error::other(error)))?,
            Err(_) => tracing::warn!("closed the connections of clients that did not end theirs"),
        }
        Ok(OnStop::Destroy)
    }
}

/// What others need to find a running daemon, and what it keeps.
struct Reach {
    run_dir: PathBuf,
    /// The API's socket and its group, if it is ours to make.
    socket: Option<(PathBuf, String)>,
    keeper: Arc<Keeper>,
    state: Arc<api::State>,
    connections: config::Connections,
}

impl Reach {
    /// Looks now and then whether all of it is still there, and makes again what is not: somebody may clear away the run
    /// directory, and unnoticed the next daemon would lose everything.
    async fn keep(self, stop: CancellationToken) {
        let mut interval = tokio::time::interval(REACH_INTERVAL);
        // The lock on the directory that was made again.
        let mut again = None;
        loop {
            interval.tick().await;
            let is_served = self.socket.as_ref().is_none_or(|(path, _)| path.exists());
            if is_served && self.keeper.is_reachable() {
                continue;
            }
            tracing::error!(
                run_dir = %self.run_dir.display(),
                "sockets of this daemon have been removed; they are made again, so that it and what it keeps are found"
            );
            if let Err(error) = self.restore(is_served, &mut again, &stop) {
                tracing::error!(%error, "they cannot be made again");
            }
        }
    }

    fn restore(
        &self,
        is_served: bool,
        again: &mut Option<DirectoryLock>,
        stop: &CancellationToken,
    ) -> Result<(), DaemonError> {
        if !self.run_dir.exists() {
            public_directory(&self.run_dir)?;
            *again = Some(DirectoryLock::take(&self.run_dir, "paths.run_dir")?);
        }
        if !self.keeper.is_reachable() {
            self.keeper.renew();
        }
        if let Some((path, group)) = self.socket.as_ref().filter(|_| !is_served) {
            let listener = api::bind(path, group).map_err(io_error(format!("listen on {}", path.display())))?;
            let router = api::router(Arc::clone(&self.state));
            tokio::spawn(api::serve(listener, router, self.connections.clone(), stop.clone()));
        }
        Ok(())
    }
}

fn listen_for_metrics(address: std::net::SocketAddr) -> Result<tokio::net::TcpListener, DaemonError> {
    let listener = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        tokio::net::TcpListener::from_std(listener)
    });
    listener.map_err(io_error(format!("listen on {address} (`metrics.listen`)")))
}

/// Opens the vault if there is a master key. Its users' keys that are wrapped with an older one are wrapped anew beside
/// everything else.
fn open_vault(config: &Config) -> Result<Option<Arc<Vault>>, DaemonError> {
    let Some(source) = key_source(config) else { return Ok(None) };
    let (database, settings) = (store_settings(config), vault_settings(config));
    let open = Vault::open(source, &database, settings);
    // At the start nobody else waits for this thread.
    let vault = tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(open))?;
    tokio::spawn({
        let vault = Arc::clone(&vault);
        async move {
            match vault.rewrap().await {
                Ok(0) => {}
                Ok(users) => tracing::info!(users, "users' keys are wrapped with the current master key"),
                Err(error) => tracing::error!(%error, "not every user's key is wrapped with the current master key"),
            }
        }
    });
    Ok(Some(vault))
}

fn load_providers(config: &Config) -> Result<BTreeMap<String, Provider>, DaemonError> {
    let directory = &config.paths.providers_dir;
    let providers = provider::load_dir(directory)?;
    match config.provider.keys().find(|name| !providers.contains_key(*name)) {
        Some(name) => Err(DaemonError::UnknownProvider { name: name.clone(), directory: directory.clone() }),
        None => Ok(providers),
    }
}

fn policy(config: &Config, name: &str, provider: &Provider, changes: &config::Provider) -> Result<Policy, DaemonError> {
    let allowed = settings::provider_egress(provider, changes);
    Policy::new(&allowed, config.egress.resolve.clone(), config.egress.allow_private.clone())
        .map_err(|source| DaemonError::Policy { provider: name.to_owned(), source })
}

fn inherit(listener: std::os::unix::net::UnixListener) -> io::Result<(UnixListener, PathBuf)> {
    let address = listener.local_addr()?;
    let path = address.as_pathname().ok_or_else(|| io::Error::other("the inherited socket has no path"))?.to_owned();
    Ok((UnixListener::from_std(listener)?, path))
}

/// The directory of the state; whether it cannot be written. A running daemon does not need to, and so it does not keep
/// one from starting.
fn state_directory(path: &Path) -> Result<bool, DaemonError> {
    match directory(path, 0o700) {
        Err(DaemonError::Io { source, .. }) if source.kind() == io::ErrorKind::ReadOnlyFilesystem && path.is_dir() => {
            tracing::error!(
                state_dir = %path.display(),
                "the state directory is on a read-only file system: images that are unpacked are served, others cannot be \
                 unpacked; make it writable, then restart thawd"
            );
            Ok(true)
        }
        prepared => prepared.map(|()| false),
    }
}

/// Searchable by all, because the socket's group must reach the socket; nothing in it is readable by others.
fn public_directory(path: &Path) -> Result<(), DaemonError> {
    directory(path, 0o755)
}

fn directory(path: &Path, mode: u32) -> Result<(), DaemonError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let what = || format!("prepare {}", path.display());
    std::fs::create_dir_all(path).map_err(io_error(what()))?;
    let is = std::fs::symlink_metadata(path).map_err(io_error(what()))?;
    // Its mode is about to be set: /tmp by mistake must not become anybody's, least of all ours.
    if is.uid() != rustix::process::geteuid().as_raw() || is.mode() & 0o1002 != 0 {
        let error = io::Error::other("it is shared with others; name a directory that is for thawd alone");
        return Err(io_error(what())(error));
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(io_error(what()))
}

fn init_program(config: &Config, program: &Path) -> Result<PathBuf, DaemonError> {
    let init = config.paths.init_program.clone().unwrap_or_else(|| program.with_file_name("thaw-init"));
    if init.is_file() {
        return Ok(init);
    }
    let what = format!("{} (install it beside thawd or set `paths.init_program`)", init.display());
    Err(io_error(what)(io::ErrorKind::NotFound.into()))
}

fn serve_provider(
    config: &Config,
    name: &str,
    checked: CheckedProvider,
    scheduler: &Arc<Scheduler>,
    images: &Arc<Store>,
    mut warm: Vec<Orphan>,
) -> Served {
    let CheckedProvider { provider, policy, plans, base_url } = checked;
    let (image_env, image_digest) = (Arc::default(), Arc::default());
    let source = Arc::new(Source {
        provider: Arc::clone(&provider),
        images: Arc::clone(images),
        image_env: Arc::clone(&image_env),
        image_digest: Arc::clone(&image_digest),
        layout: config.paths.layouts().join(&provider.image),
        policy: Arc::clone(&policy),
        proxy_port: config.egress.port,
        reclaim: reclaim(config.pool.reclaim),
    });
    let mut start = |stage, bounds, prestart: Option<Arc<prestart::Plan>>| {
        let source = Arc::clone(&source);
        let fixed = prestart.as_ref().filter(|plan| plan.model_mode == prestart::ModelMode::Fixed);
        let model = fixed.map(|plan| plan.model.clone());
        let prepare: Prepare = Arc::new(move || source.template(prestart.as_ref()));
        let own = warm.extract_if(.., |orphan| orphan.pool().is_for(stage, model.as_deref())).collect();
        Pool::start(name, pool_settings(config, stage, model, bounds), Arc::clone(scheduler), prepare, own)
    };
    let pool = start(Stage::Created, config.pool_bounds(name, provider.pool_target), None);
    let prestarted = plans.into_iter().map(|(plan, target)| {
        let plan = Arc::new(plan);
        // As many as the operator says: what they hold is a decision about memory.
        (start(Stage::Prestarted, (target, target, target, false), Some(Arc::clone(&plan))), plan)
    });
    let prestarted = prestarted.collect();
    let layout = config.paths.layouts().join(&provider.image);
    let image = ImageInUse { env: image_env, digest: image_digest, layout };
    Served { provider, pool, prestarted, image, base_url, policy }
}

/// What is started ahead of time, and how often: with the default model, and with those that are named.
fn prestart_plans(
    name: &str,
    provider: &Provider,
    changes: &config::Provider,
) -> Result<Vec<(prestart::Plan, usize)>, DaemonError> {
    plans(provider, changes).map_err(|problem| DaemonError::Prestart { provider: name.to_owned(), problem })
}

fn plans(provider: &Provider, changes: &config::Provider) -> Result<Vec<(prestart::Plan, usize)>, String> {
    let plan = |model: Option<&str>| {
        let plan = provider.prestart(model, changes.base_url.as_deref()).map_err(|error| error.to_string())?;
        plan.ok_or_else(|| "its manifest has no [prestart]; remove `prestarted` from the configuration".to_owned())
    };
    let mut plans: Vec<(prestart::Plan, usize)> = Vec::new();
    if changes.prestarted > 0 {
        plans.push((plan(None)?, changes.prestarted));
    }
    for (model, count) in &changes.prestarted_models {
        let plan = plan(Some(model))?;
        if plan.model_mode == prestart::ModelMode::Late {
            return Err("each of its CLIs takes any model; use `prestarted` instead of `prestarted_models`".to_owned());
        }
        if plans.iter().any(|(other, _)| other.model == plan.model) {
            return Err(format!(
                "`prestarted_models` has {model:?}, which is {} once more; that of `prestarted` is the default model",
                plan.model
            ));
        }
        plans.push((plan, *count));
    }
    Ok(plans)
}

/// What a provider's containers are made from.
struct Source {
    provider: Arc<Provider>,
    images: Arc<Store>,
    image_env: Arc<Mutex<Vec<(String, String)>>>,
    image_digest: Arc<Mutex<Option<String>>>,
    layout: PathBuf,
    policy: Arc<Policy>,
    proxy_port: u16,
    reclaim: Reclaim,
}

impl Source {
    /// Unpacks the image if need be, which may take seconds.
    fn template(&self, plan: Option<&Arc<prestart::Plan>>) -> Result<Prepared, String> {
        let provider = &self.provider;
        let image = image(&self.images, &provider.image, &self.layout)?;
        let mut image_env = image.config.env.clone();
        let name = execution::runtime_name(&provider.image, &image.rootfs, execution::RUNTIME_USER)
            .map_err(|error| error.to_string())?;
        if name.is_none() {
            tracing::warn!(
                provider = %provider.name, image = %provider.image, uid = execution::RUNTIME_USER, "{NAMELESS}"
            );
        }
        let name = name.unwrap_or_else(|| execution::RUNTIME_USER.to_string());
        image_env.push(("USER".to_owned(), name));
        let prestarted = plan.map(|plan| {
            let command = execution::prestart_command(plan, provider, &image_env, self.proxy_port)
                .map_err(|error| format!("the manifest's [prestart]: {error}"))?;
            Ok::<_, String>(Arc::new(Prestarted { plan: Arc::clone(plan), command }))
        });
        let credentials = &provider.credentials;
        let template = Arc::new(Template {
            provider: provider.name.clone(),
            root: container::image_root(&image).map_err(|error| format!("image `{}`: {error}", provider.image))?,
            hold: Some(image.hold()),
            home: Some(provider.home.clone()),
            user: execution::RUNTIME_USER,
            group: execution::RUNTIME_USER,
            credentials: (!credentials.dir.is_empty()).then(|| (credentials.dir.clone(), credentials.tmpfs_bytes)),
            workspace: execution::has_workspace(&image.rootfs),
            idle: limits(&provider.resources.idle),
            run: limits(&provider.resources.run),
            pids: provider.pids_max,
            egress: Arc::clone(&self.policy),
            prestarted: prestarted.transpose()?,
            reclaim: self.reclaim,
        });
        let (known, in_use) = (Arc::clone(&self.image_env), Arc::clone(&self.image_digest));
        let digest = image.digest.clone();
        let take_over = move || {
            known.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&image_env);
            *in_use.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest.clone());
        };
        Ok(Prepared { template, take_over: Arc::new(take_over) })
    }
}
