//! All containers of the daemon: creation, limit and list.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::timeout_at;

use super::control::Control;
use super::credentials;
use super::fingerprint::fingerprint;
use super::holder::Holder;
use super::isolation::Isolation;
use super::lease::{Lease, Leases, Limit};
use super::pool_memory::{MemoryCache, PoolKey};
use super::processes::Processes;
use super::reaper::{self, Teardown, TeardownParts};
use super::refill_throttle::RefillThrottle;
use super::registry::{Entry, Registry, State, Status, lock};
use super::workspace::WORKSPACE;
use super::{Container, ContainerError, Template};
use crate::egress;
use crate::keeper::Keeper;
use thaw_client::types;
use thaw_os::cgroup::{Hierarchy, Limits, Usage};
use thaw_os::spawner::{
    Compromise, CreateRequest, Descriptors, Ephemeral, Machine, Mount, ProcessLimits, Spawned, SpawnerError, TextFile,
    Users,
};
use thaw_wire::{Report, op};

use crate::failpoints;

/// Settings that all containers share.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Hash of the programs that make containers; see [`super::made_by`].
    pub made_by: String,
    /// Percentage of `max`: with no more free leases than this, teardown waits for nothing.
    pub scarce_percent: usize,
    /// Hard limit on containers.
    pub max: usize,
    /// Size of all writable file systems of a container together, bytes.
    pub ephemeral_bytes: u64,
    /// Number of files that they may hold.
    pub ephemeral_inodes: u64,
    /// Open files per process.
    pub open_files: u64,
    /// Whether a container sees as many processors as it may use, rather than all of the host.
    pub limit_visible_cpus: bool,
    /// First host id of the range for containers.
    pub id_start: u32,
    /// Longest time that creating a container may take.
    pub create_timeout: Duration,
    /// Loopback port of the egress proxy inside.
    pub proxy_port: u16,
    /// Limits of the proxy for one container.
    pub egress: egress::Limits,
    /// Existing directory on which new roots are mounted for a moment, each in its own mount namespace.
    pub mount_point: PathBuf,
}

impl Settings {
    /// Number of processors that a container with these limits sees; 0 for all.
    fn visible_cpus(&self, limits: &Limits) -> u32 {
        let most = limits.cpu_burst.map_or(limits.cpu, |burst| burst.max(limits.cpu));
        if self.limit_visible_cpus { (most.ceil() as u32).max(1) } else { 0 }
    }

    /// Number of free leases at or below which teardown waits for nothing.
    pub fn scarce_places(&self) -> usize {
        self.max.saturating_mul(self.scarce_percent) / 100
    }
}

/// Creates containers, and knows all that exist. One per daemon.
#[derive(Debug)]
pub struct Containers {
    settings: Settings,
    hierarchy: Arc<Hierarchy>,
    isolation: Arc<dyn Isolation>,
    /// Whether it was said that containers share inodes.
    warned: AtomicBool,
    outside: egress::Outside,
    leases: Leases,
    registry: Arc<Registry>,
    reaper: mpsc::UnboundedSender<TeardownParts>,
    memory: MemoryCache,
    keeper: Option<Arc<Keeper>>,
    throttle: Arc<RefillThrottle>,
}

impl Containers {
    /// Starts the reaper. With a keeper, containers survive the daemon.
    pub fn new(
        settings: Settings,
        hierarchy: Arc<Hierarchy>,
        isolation: Arc<dyn Isolation>,
        outside: egress::Outside,
        keeper: Option<Arc<Keeper>>,
        throttle: Arc<RefillThrottle>,
    ) -> Self {
        let (reaper, teardown) = mpsc::unbounded_channel();
        tokio::spawn(reaper::run(teardown));
        Self {
            leases: Leases::new(settings.max, settings.id_start),
            settings,
            hierarchy,
            isolation,
            warned: AtomicBool::new(false),
            outside,
            registry: Arc::default(),
            reaper,
            memory: MemoryCache::default(),
            keeper,
            throttle,
        }
    }

    /// The keeper, with which containers survive the daemon; `None` if they do not.
    pub fn keeper(&self) -> Option<&Arc<Keeper>> {
        self.keeper.as_ref()
    }

    /// The throttle that delays refilling and teardown for claims.
    pub fn throttle(&self) -> &Arc<RefillThrottle> {
        &self.throttle
    }

    /// Settings of all containers.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes a lease under the container limit.
    ///
    /// # Errors
    /// [`Limit`] if no lease is free.
    pub fn lease(&self) -> Result<Lease, Limit> {
        self.leases.take()
    }

    /// All leases.
    pub(super) fn leases(&self) -> &Leases {
        &self.leases
    }

    /// The parts of a container that its teardown needs. Adds the container to the list.
    pub(super) fn parts(&self, entry: Arc<Entry>, lease: Lease) -> TeardownParts {
        self.registry.add(Arc::clone(&entry));
        TeardownParts {
            entry,
            hierarchy: Arc::clone(&self.hierarchy),
            isolation: Arc::clone(&self.isolation),
            registry: Arc::clone(&self.registry),
            reaper: self.reaper.clone(),
            outside: self.outside.clone(),
            keeper: self.keeper.clone(),
            throttle: Arc::clone(&self.throttle),
            leases: self.leases.clone(),
            scarce_places: self.settings.scarce_places(),
            pidfd: None,
            proxy: None,
            _lease: lease,
        }
    }

    /// Notified when a lease becomes free. Only one task may wait for this: the scheduler's.
    pub fn changed(&self) -> &Notify {
        self.leases.changed()
    }

    /// The container limit.
    pub fn limit(&self) -> Limit {
        Limit(self.settings.max)
    }

    /// Number of containers that could be created now.
    pub fn free_leases(&self) -> usize {
        self.leases.free()
    }

    /// Waits until every container is destroyed; for shutdown, after their owners have dropped them.
    pub async fn all_gone(&self) {
        self.leases.all().await;
    }

    /// The cgroup hierarchy, for listing and for the last cleanup.
    pub fn hierarchy(&self) -> &Arc<Hierarchy> {
        &self.hierarchy
    }

    /// Number of claimed containers of `provider`.
    pub fn claimed(&self, provider: &str) -> usize {
        let is_claimed = |entry: &Arc<Entry>| lock(&entry.status).state == State::Claimed;
        self.registry.entries().values().filter(|entry| entry.provider == provider && is_claimed(entry)).count()
    }

    /// Memory of the warm containers of each pool, not older than a second. Blocks while it is read.
    pub fn pool_memory(&self) -> Vec<(PoolKey, types::PoolMemory)> {
        let is_warm = |entry: &Arc<Entry>| lock(&entry.status).state == State::Warm;
        self.memory.get(|| {
            let entries: Vec<_> = self.registry.entries().values().cloned().collect();
            let warm = entries.into_iter().filter(is_warm);
            // A container that was claimed or destroyed meanwhile has no figures.
            warm.filter_map(|entry| Some((entry.pool.clone(), self.hierarchy.memory(&entry.cgroup).ok()?))).collect()
        })
    }

    /// Number of containers by provider, stage and state.
    pub fn count(&self) -> BTreeMap<(String, types::Stage, State), usize> {
        let mut counts = BTreeMap::new();
        for entry in self.registry.entries().values() {
            let state = lock(&entry.status).state;
            *counts.entry((entry.provider.clone(), entry.pool.stage(), state)).or_default() += 1;
        }
        counts
    }

    /// All containers. Blocks: this reads half a dozen files for each.
    pub fn list(&self) -> Vec<types::Container> {
        let entries: Vec<_> = self.registry.entries().values().cloned().collect();
        entries.iter().map(|entry| self.describe(entry)).collect()
    }

    /// What an execution has used so far; none if no container serves it. Blocks: it reads half a dozen files.
    pub fn usage_of(&self, execution: &str) -> Option<types::Usage> {
        let is_its = |entry: &&Arc<Entry>| match &lock(&entry.status).holder {
            Some(Holder::Execution(id)) => id == execution,
            Some(Holder::Sandbox(_) | Holder::Login(_)) | None => false,
        };
        let entry = self.registry.entries().values().find(is_its).cloned()?;
        self.describe(&entry).usage
    }

    /// What a container has been used for since its claim; none of one that is not claimed. Blocks as the above.
    pub fn usage_in(&self, container: &str) -> Option<types::Usage> {
        let entry = self.registry.entries().get(container).cloned()?;
        self.describe(&entry).usage
    }

    fn describe(&self, entry: &Entry) -> types::Container {
        // A container under destruction has no figures left.
        let usage = self.hierarchy.usage(&entry.cgroup).unwrap_or_default();
        let frozen = entry.cgroup.is_frozen().unwrap_or(false);
        let status = lock(&entry.status);
        let serving = status.claimed.filter(|_| status.state == State::Claimed);
        types::Container {
            id: entry.id.clone(),
            provider: entry.provider.clone(),
            stage: entry.pool.stage(),
            state: status.state,
            execution: match &status.holder {
                Some(Holder::Execution(id)) => Some(id.clone()),
                _ => None,
            },
            sandbox: match &status.holder {
                Some(Holder::Sandbox(id)) => Some(id.clone()),
                _ => None,
            },
            login: match &status.holder {
                Some(Holder::Login(id)) => Some(id.clone()),
                _ => None,
            },
            user: None,
            claimed_at_ms: serving.map(|claimed| claimed.at_ms),
            usage: serving.map(|claimed| entry.used(&usage, &claimed)),
            pid: status.pid,
            created_at_ms: entry.created_at_ms,
            memory_bytes: usage.memory_bytes,
            cpu_ms: usage.cpu_us / 1000,
            frozen,
            cgroup: self.hierarchy.relative_path(&entry.id),
        }
    }

    /// Creates a container and waits until its `thaw-init` is ready. The container runs, without a CPU limit so far.
    ///
    /// If the caller drops the future, the creation still finishes, and the container is then destroyed.
    ///
    /// # Errors
    /// See [`ContainerError`]; whatever was created is destroyed.
    pub async fn create(self: &Arc<Self>, template: Arc<Template>, lease: Lease) -> Result<Container, ContainerError> {
        let this = Arc::clone(self);
        let task = tokio::spawn(async move { this.create_here(template, lease).await });
        task.await?
    }

    async fn create_here(&self, template: Arc<Template>, lease: Lease) -> Result<Container, ContainerError> {
        let limit = self.settings.create_timeout;
        let deadline = tokio::time::Instant::now() + limit;
        let late = || ContainerError::CreateTimeout(limit.as_secs());
        let id = format!("c-{}", ulid::Ulid::new().to_string().to_lowercase());
        let id_base = lease.id_base();
        let cgroup = {
            let (hierarchy, id) = (Arc::clone(&self.hierarchy), id.clone());
            let (memory, pids) = (template.idle.memory_bytes, template.pids);
            let created = tokio::task::spawn_blocking(move || hierarchy.create(&id, memory, pids)).await;
            created??
        };
        let entry = Arc::new(Entry {
            id: id.clone(),
            provider: template.provider.clone(),
            pool: PoolKey::of(&template),
            cgroup,
            created_at_ms: crate::telemetry::unix_ms(),
            limits: template.run,
            tightened: OnceLock::new(),
            network: OnceLock::new(),
            status: Mutex::new(Status { state: State::Creating, holder: None, pid: None, claimed: None }),
        });
        let mut teardown = Teardown::new(self.parts(entry, lease));

        failpoints::at("create.cgroup");
        let directory = teardown.cgroup().open()?;
        let (control, theirs) = Control::pair().map_err(ContainerError::Control)?;
        let request = self.request(&template, &id, id_base);
        let layer =
            template.layer.as_ref().map(|layer| layer.try_clone()).transpose().map_err(ContainerError::Control)?;
        let descriptors = Descriptors { control: theirs, cgroup: directory, layer };
        let spawned = match timeout_at(deadline, self.isolation.create(request, descriptors)).await {
            Err(_) => return Err(late()),
            Ok(Ok(spawned)) => spawned,
            Ok(Err(SpawnerError::Failed { message, pidfd })) => {
                teardown.set_process(None, pidfd);
                return Err(SpawnerError::Failed { message, pidfd: None }.into());
            }
            Ok(Err(error)) => return Err(error.into()),
        };
        let Spawned { pid, pidfd, proxy, terminals, null, credential_dir, workspace, compromise } = spawned;
        failpoints::at("create.spawned");
        // The root has it from here on. Whoever keeps it keeps its file system from ending with the container.
        let template = match template.layer {
            None => template,
            Some(_) => Arc::new(Template { layer: None, ..Template::clone(&template) }),
        };
        teardown.set_process(Some(pid), Some(pidfd));
        self.note(&id, &compromise);
        let policy = Arc::clone(&template.egress);
        let listener = self.keeper.as_ref().map(|_| proxy.try_clone()).transpose().map_err(ContainerError::Control)?;
        let (outside, limits) = (self.outside.clone(), self.settings.egress.clone());
        teardown.set_proxy(egress::Proxy::serve_with(proxy, policy, id, outside, limits)?);

        match timeout_at(deadline, control.report()).await {
            Err(_) => return Err(late()),
            Ok(Err(error)) => return Err(ContainerError::Control(error)),
            Ok(Ok(Some(Report { op: op::HELLO, value, .. }))) if value == thaw_wire::VERSION as i32 => {}
            Ok(Ok(Some(other))) => return Err(ContainerError::InitSaid(Some(other.op))),
            Ok(Ok(None)) => return Err(ContainerError::InitEnded("during start-up")),
        }
        failpoints::at("create.ready");
        let owner = id_base + template.user;
        let credentials = match (&template.credentials, credential_dir) {
            (Some((_, limit)), Some(directory)) => {
                let mount = credentials::create(owner, *limit)?;
                let pidfd = teardown.pidfd().try_clone_to_owned().map_err(ContainerError::Control)?;
                Some(timeout_at(deadline, credentials::attach(pidfd, mount, directory)).await.map_err(|_| late())??)
            }
            _ => None,
        };
        failpoints::at("create.credentials");
        Ok(Container {
            processes: Processes::new(control).map_err(ContainerError::Control)?,
            credentials,
            workspace,
            listener: listener.map(OwnedFd::from),
            terminals,
            null: Some(null),
            fingerprint: fingerprint(&self.settings, &template),
            id_base,
            owner,
            template,
            cli: None,
            resting: false,
            baseline: Usage::default(),
            teardown,
        })
    }

    fn note(&self, id: &str, compromise: &Compromise) {
        if compromise.unmapped {
            tracing::debug!(container = %id, "owners are not mapped: the state directory's file system cannot");
        }
        if let Some(reason) = &compromise.shared_inodes
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                reason,
                "containers of one image have its inodes in common, so that locks and inotify reach from one to another; \
                 thawctl doctor says what is missing"
            );
        }
    }

    fn request(&self, template: &Template, id: &str, id_base: u32) -> CreateRequest {
        let users = Users { id_base, user: template.user, group: template.group };
        let credentials = template.credentials.as_ref().map(|(name, bytes)| (name.as_str(), *bytes));
        let home = template.home.as_deref();
        let mut mounts = match template.root.writable {
            false => Mount::usual(&users, home, credentials),
            // Home is a directory of the root, like all others.
            true => {
                let mut mounts = Mount::usual(&users, None, None);
                mounts.extend(
                    home.zip(credentials).map(|(home, (name, bytes))| Mount::credentials(&users, home, name, bytes)),
                );
                mounts
            }
        };
        mounts.extend(template.workspace.then(|| Mount::workspace(&users, WORKSPACE)));
        CreateRequest {
            id: id.to_owned(),
            host_name: id.to_owned(),
            root: template.root.clone(),
            mount_point: self.settings.mount_point.clone(),
            users,
            mounts,
            files: TextFile::usual(id),
            ephemeral: Ephemeral { bytes: self.settings.ephemeral_bytes, inodes: self.settings.ephemeral_inodes },
            limits: ProcessLimits { open_files: self.settings.open_files },
            machine: Machine {
                memory_bytes: template.run.memory_bytes,
                cpus: self.settings.visible_cpus(&template.run),
                sees_cgroup: self.hierarchy.layout().is_v2(),
            },
            proxy_port: self.settings.proxy_port,
            cgroups: self.hierarchy.extra_directories(id),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::Settings;
    use crate::egress;

    pub fn settings() -> Settings {
        Settings {
            made_by: "one".to_owned(),
            scarce_percent: 12,
            max: 50,
            ephemeral_bytes: 1,
            ephemeral_inodes: 1,
            open_files: 64,
            limit_visible_cpus: false,
            id_start: 65_536,
            create_timeout: Duration::from_secs(1),
            proxy_port: 1,
            egress: egress::Limits::default(),
            mount_point: "/run".into(),
        }
    }

    #[test]
    fn places_are_scarce_by_the_share_that_is_free() {
        let scarce = |max, scarce_percent| Settings { max, scarce_percent, ..settings() }.scarce_places();
        assert_eq!([scarce(50, 12), scarce(500, 12), scarce(5, 12), scarce(50, 0), scarce(50, 100)], [6, 60, 0, 0, 50]);
    }
}
