//! Puts the rooms together, and takes them apart again in order.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

mod advice;
mod checked;
mod directories;
mod error;
mod identities;
mod images;
mod reach;
mod settings;
mod survivors;
mod templates;

use self::checked::Checked;
pub use self::checked::{Sound, check};
use self::directories::{inherit, listen_for_metrics, public_directory, state_directory};
use self::error::io_error;
pub use self::error::{DaemonError, IdentityProblem, PrestartProblem};
pub use self::identities::egress_identities;
use self::images::{image_store, stored_image};
use self::reach::Reach;
pub use self::settings::store_settings;
use self::settings::{
    container_settings, egress_total, key_source, metrics_limits, refill_throttle_settings, sandbox_settings,
    scheduler_settings, storage_settings, vault_settings,
};
use self::survivors::{Begun, Survivors};
use self::templates::serve_provider;
use crate::api;
use crate::container::{self, Containers, Native, RefillThrottle};
use crate::directory_lock::DirectoryLock;
use crate::egress::{EgressMetrics, Identity, IdentityMetrics, Outside, Policy, Routes};
use crate::execution::{self, ExecutionMetrics, Executions, Images, Spools};
use crate::feed::Feed;
use crate::identity::Identities;
use crate::jobs::Jobs;
use crate::keeper::{self, Keeper};
use crate::login::{self, Logins};
use crate::pool::{PoolMetrics, Scheduler};
use crate::sandbox::{self, Sandboxes};
use crate::storage::Storage;
use crate::store::{self, Store};
use crate::telemetry::DaemonMetrics;
use crate::vault::{self, TokenProcesses, Vault};
use thaw_client::config::{self, Config, OnStop};
use thaw_os::cgroup::{Hierarchy, own_memory_limit};
use thaw_os::spawner::Spawner;

/// How long a stop waits for executions to end and containers to be destroyed before it gives up.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// How long clients have for reading the rest of their streams after every execution has ended.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(3);

/// How often ended executions are looked at for being forgotten.
const FORGET_INTERVAL: Duration = Duration::from_secs(10);

/// A daemon that is ready to serve.
#[derive(Debug)]
pub struct Daemon {
    executions: Arc<Executions>,
    sandboxes: Arc<Sandboxes>,
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
        let Checked { providers, image_runs, identities, program, init } = Checked::new(config)?;
        let made_by = container::made_by(&init).map_err(io_error(format!("read {}", init.display())))?;
        let paths = &config.paths;
        let is_read_only = state_directory(&paths.state_dir)?;
        public_directory(&paths.run_dir)?;
        // First of all: a second daemon must not sweep what is the first one's.
        let directories = [
            DirectoryLock::take(&paths.state_dir, "paths.state_dir")?,
            DirectoryLock::take(&paths.run_dir, "paths.run_dir")?,
        ];
        let local = store::Settings { url: None, ..store_settings(config) };
        let store = if is_read_only {
            None
        } else {
            let has_users = key_source(config).is_some() && config.store.url.is_none();
            open_store(&local, has_users || !config.egress.identity.is_empty())?
        };
        let rows = store.as_ref().map(|store| wait(sandbox::written(store))).transpose()?.unwrap_or_default();
        let vault = open_vault(config, store.as_ref())?;
        let (routes, identities) = open_identities(config, identities, store.clone())?;
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
        let storage = Storage::open(storage_settings(config))?;

        let hierarchy = Arc::new(Hierarchy::prepare(&config.cgroup.parent, &config.cgroup.name)?);
        tracing::info!(layout = hierarchy.layout().name(), "control groups");
        let mut registry = Registry::default();
        let metrics = Arc::new(ExecutionMetrics::new(&mut registry));
        let pool_metrics = Arc::new(PoolMetrics::new(&mut registry));
        let egress_metrics = Arc::new(EgressMetrics::limited(&mut registry, egress_total(config)));
        registry.register_collector(Box::new(IdentityMetrics(Arc::clone(&routes))));
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
        let spawner =
            Spawner::start(program.clone(), init, settings.create_timeout, own_metrics.spawner_failures.clone());
        let keeps = Some(Arc::clone(&keeper));
        let throttle = RefillThrottle::new(refill_throttle_settings(config));
        let isolation = Arc::new(Native::new(spawner));
        let outside = Outside { metrics: egress_metrics, routes, user: None };
        let containers = Containers::new(settings, Arc::clone(&hierarchy), isolation, outside, keeps, throttle);
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
        let refreshes = survivors.refreshes();
        if let Some(vault) = &vault {
            let resolve = config.egress.resolve.clone();
            let start = vault::start_with(program, Arc::clone(&hierarchy));
            let processes = TokenProcesses::new(start, Some(Arc::clone(&keeper)), resolve);
            let provider = |name: &str| served.get(name).map(|served: &execution::Served| &*served.provider);
            vault.serve_refreshes(processes, refreshes, provider);
        } else {
            refreshes.iter().for_each(|(key, _)| keeper.forget(key));
        }
        let images_to_run = Images::new(Arc::clone(&images), Arc::clone(&scheduler), image_runs);
        let memory = own_memory_limit(hierarchy.layout());
        let settings = execution::Settings::of(config).within(memory, config.container.max);
        let keeps = Some(Arc::clone(&keeper));
        let templates =
            served.iter().map(|(name, one): (&String, &execution::Served)| (name.clone(), one.pool.clone()));
        let database = (!is_read_only).then(|| sandbox::Database::new(local, store));
        let of_images = Arc::clone(&images);
        let services = sandbox::Services {
            database,
            keeper: keeps.clone(),
            feed: Arc::clone(&feed),
            storage: Arc::new(storage),
            images: Box::new(move |digest| stored_image(&of_images, digest)),
        };
        let sandboxes = Arc::new(Sandboxes::new(sandbox_settings(config), templates.collect(), services));
        let services = execution::Services {
            metrics,
            spools,
            keeper: keeps,
            feed: Arc::clone(&feed),
            vault: vault.clone(),
            sandboxes: Arc::clone(&sandboxes),
        };
        let executions = Arc::new(Executions::new(settings, served, images_to_run, services));
        survivors.go_on(&executions, (&sandboxes, rows), |provider, allowed| {
            // A provider that was removed is still that of what runs.
            let kept = || Policy::new(allowed, config.egress.resolve.clone(), config.egress.allow_private.clone());
            policies.get(provider).cloned().or_else(|| kept().ok().map(Arc::new))
        });
        let uploads = config.paths.state_dir.join("uploads");
        // Where nothing can be written, uploads are refused one by one.
        if !is_read_only {
            api::prepare_uploads(&uploads).map_err(io_error(format!("prepare {}", uploads.display())))?;
        }
        let logins = vault.clone().map(|vault| {
            let timeout = Duration::from_secs(config.login.timeout_seconds);
            let settings = login::Settings { max: config.login.max, timeout };
            Arc::new(Logins::new(settings, Arc::clone(&executions), vault))
        });
        let state = Arc::new(api::State {
            executions: Arc::clone(&executions),
            sandboxes: Arc::clone(&sandboxes),
            containers: Arc::clone(&containers),
            images,
            identities,
            vault,
            logins,
            jobs: Jobs::new(Arc::clone(&feed)),
            feed,
            image_uids: config.api.connections.image_uids.clone(),
            image_limits: (&config.image).into(),
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
            sandboxes,
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
        let Self { executions, sandboxes, containers, keeper, state, listener, socket, on_stop, .. } = self;
        let Self { made_socket, connections, metrics_listener, directories: _alive, run_dir, socket_group, .. } = self;
        let metrics = metrics_listener.map(|(listener, limits)| {
            tokio::spawn(api::serve_metrics(listener, Arc::clone(&state), limits, stop.clone()))
        });
        let forget = tokio::spawn({
            let (executions, sandboxes, vault) = (Arc::clone(&executions), Arc::clone(&sandboxes), state.vault.clone());
            async move {
                let mut interval = tokio::time::interval(FORGET_INTERVAL);
                loop {
                    interval.tick().await;
                    executions.forget_expired();
                    sandboxes.forget_expired();
                    if let Some(vault) = &vault {
                        vault.write_uses().await;
                    }
                }
            }
        });
        let (vault, logins) = (state.vault.clone(), state.logins.clone());
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
            tracing::info!("stopping; executions, sandboxes and warm containers stay for the next daemon");
            if let Some(vault) = vault {
                vault.write_uses().await;
            }
            std::mem::forget((executions, sandboxes, containers));
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
            if let Some(logins) = logins {
                logins.shut_down().await;
            }
            executions.shut_down().await;
            sandboxes.shut_down().await;
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
            // The keeper holds what is to come of them.
            if tokio::time::timeout(STOP_TIMEOUT, vault.finish_refreshes()).await.is_err() {
                tracing::error!("a login was being renewed for longer than it may take");
            }
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

/// Waits for what is quick; at the start nobody else waits for this thread.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

/// Opens the database of this host, if there is one or it is `needed`: SQLite whatever `store.url` says, since sandboxes are
/// of one host, and so are their rows.
fn open_store(local: &store::Settings, needed: bool) -> Result<Option<Store>, DaemonError> {
    let is_there = needed || local.file.exists();
    Ok(is_there.then(|| wait(Store::open(local))).transpose()?)
}

/// Who goes out with which identity, as it was when an earlier daemon ended.
fn open_identities(
    config: &Config,
    identities: Vec<Identity>,
    store: Option<Store>,
) -> Result<(Arc<Routes>, Arc<Identities>), DaemonError> {
    let egress = &config.egress;
    let routes = Arc::new(Routes::new(identities, &egress.default_route()));
    let identities = Arc::new(wait(Identities::open(Arc::clone(&routes), store))?);
    if egress.probe_seconds > 0 && !egress.identity.is_empty() {
        let (interval, patience) = (egress.probe_seconds, egress.limits.connect_timeout_seconds);
        let routes = Arc::clone(&routes);
        tokio::spawn(async move { routes.probe(Duration::from_secs(interval), Duration::from_secs(patience)).await });
    }
    Ok((routes, identities))
}

/// Opens the vault if there is a master key. Its users' keys that are wrapped with an older one are wrapped anew beside
/// everything else.
fn open_vault(config: &Config, local: Option<&Store>) -> Result<Option<Arc<Vault>>, DaemonError> {
    let Some(source) = key_source(config) else { return Ok(None) };
    let (database, settings) = (store_settings(config), vault_settings(config));
    let vault = match local {
        // SQLite has one connection, which sandboxes have too.
        Some(local) if database.url.is_none() => wait(Vault::open_in(source, local.clone(), settings))?,
        _ => wait(Vault::open(source, &database, settings))?,
    };
    tokio::spawn(Arc::clone(&vault).keep_audit());
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
