//! The daemon's configuration: `/etc/thawd/thawd.toml`. Every key has a default; unknown keys are refused.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

mod connections;
mod egress;
mod identity;
mod image;
mod login;
mod reclaim;
mod refresh;
mod sandbox;
mod storage;
mod telemetry;
mod units;
mod vault;

pub use connections::{Connections, TURNED_AWAY};
pub use egress::{DefaultRoute, Egress, LimitSettings, TotalSettings};
pub use identity::{IdentitySettings, ProxyKind, ProxyUrl};
pub use image::{Image, ImageRun};
pub use login::Logins;
pub use reclaim::ReclaimMode;
pub use refresh::{RefreshPolicy, token_url_problem};
pub use sandbox::Sandbox;
pub use storage::{MIN_STORAGE_BYTES, Storage};
pub use telemetry::{Log, LogFormat, MetricsSettings};
pub use vault::{Store, Vault};

/// Where the file is looked for when none is named.
pub const DEFAULT_PATH: &str = "/etc/thawd/thawd.toml";

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not TOML, a wrong type or an unknown key.
    #[error("{}: {message}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What is wrong, with the nearest known key for an unknown one.
        message: String,
    },
    /// A value out of its range.
    #[error("{}: {}`{key}` {problem}", path.display(), line.map(|line| format!("line {line}: ")).unwrap_or_default())]
    Value {
        /// Which file.
        path: PathBuf,
        /// Where in it the key stands, or its section; absent when a default does not fit the rest.
        line: Option<usize>,
        /// Which key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Longest time that can be configured, seconds: clocks can count that far from now on.
const YEAR: u64 = 365 * 24 * 3600;

/// Largest number that can be configured: 8 PiB of bytes. What is larger has no exact value in JSON, and less room to add
/// and to multiply.
const MAX_NUMBER: u64 = 1 << 53;

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The HTTP API.
    pub api: Api,
    /// Files and directories.
    pub paths: Paths,
    /// Warm pools.
    pub pool: Pool,
    /// What the host must have left for another container.
    pub admission: Admission,
    /// Requests that wait for a container.
    pub queue: Queue,
    /// What every container gets.
    pub container: Container,
    /// Executions and their output.
    pub execution: Execution,
    /// Containers of users that live on between commands.
    pub sandbox: Sandbox,
    /// Space on the disk for sandboxes.
    pub storage: Storage,
    /// What images may be like.
    pub image: Image,
    /// Commands in images without a provider.
    pub image_run: ImageRun,
    /// The daemon itself.
    pub daemon: Daemon,
    /// Control groups.
    pub cgroup: Cgroup,
    /// The way out of containers.
    pub egress: Egress,
    /// Logging.
    pub log: Log,
    /// Metrics.
    pub metrics: MetricsSettings,
    /// The database.
    pub store: Store,
    /// Credentials that the daemon keeps for users.
    pub vault: Vault,
    /// Logins that the daemon captures.
    pub login: Logins,
    /// Changes to single providers, by name.
    pub provider: BTreeMap<String, Provider>,
}

/// `[api]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Api {
    /// Unix socket that the API listens on.
    pub socket: PathBuf,
    /// Group that may use the socket (mode 0660); root alone when the group does not exist.
    pub socket_group: String,
    /// Largest request body, bytes.
    pub max_body_bytes: usize,
    /// Seconds between heartbeat comments on an event stream.
    pub heartbeat_seconds: u64,
    /// Events of the daemon that are kept for clients of `/v1/events` that come back.
    pub events_kept: usize,
    /// How many connections, and how long each may keep the daemon waiting.
    pub connections: Connections,
}

impl Default for Api {
    fn default() -> Self {
        Self {
            socket: "/run/thawd/thawd.sock".into(),
            socket_group: "thawd".to_owned(),
            max_body_bytes: 1 << 20,
            heartbeat_seconds: 15,
            events_kept: 1_000,
            connections: Connections::default(),
        }
    }
}

/// `[paths]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Paths {
    /// Images and their unpacked root file systems.
    pub state_dir: PathBuf,
    /// Sockets and other things that a reboot may clear.
    pub run_dir: PathBuf,
    /// Provider manifests, `*.toml`.
    pub providers_dir: PathBuf,
    /// OCI image layouts, one folder per image; `STATE_DIR/layouts` when absent.
    pub layouts_dir: Option<PathBuf>,
    /// The `thaw-init` program; beside `thawd` itself when absent.
    pub init_program: Option<PathBuf>,
}

impl Default for Paths {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/thawd".into(),
            run_dir: "/run/thawd".into(),
            providers_dir: "/usr/share/thawd/providers".into(),
            layouts_dir: None,
            init_program: None,
        }
    }
}

impl Paths {
    /// Where OCI image layouts are.
    pub fn layouts(&self) -> PathBuf {
        self.layouts_dir.clone().unwrap_or_else(|| self.state_dir.join("layouts"))
    }
}

/// `[pool]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// Warm containers per provider, unless `[provider.NAME]` says otherwise; what its manifest says when absent. Set
    /// without `min` and `max`, it is fixed; otherwise scaling starts there.
    pub target: Option<usize>,
    /// Whether targets follow demand, between `min` and `max`.
    pub scaling: bool,
    /// Fewest warm containers per provider: 5 when absent, or the target if that is lower.
    pub min: Option<usize>,
    /// Most warm containers per provider; `container.max` when absent.
    pub max: Option<usize>,
    /// A target grows when more requests than this wait for the provider.
    pub scale_up_queue: usize,
    /// It also grows when a smaller share of the claims found a warm container, percent.
    pub scale_up_hit_percent: u32,
    /// Claims of that many seconds count for that share.
    pub hit_window_seconds: u64,
    /// It shrinks when more warm containers than this are not needed ...
    pub scale_down_idle: usize,
    /// ... for that many seconds.
    pub scale_down_idle_seconds: u64,
    /// Milliseconds without a claim in flight before refilling goes on: creating slows claims down.
    pub refill_quiet_ms: u64,
    /// Longest time that claims hold refilling up, milliseconds.
    pub refill_max_hold_ms: u64,
    /// Longest time that claims hold the clearing away of containers up, milliseconds.
    pub clearing_max_hold_ms: u64,
    /// When no more than this share of `container.max` is free, clearing away waits for nothing, percent.
    pub clearing_scarce_percent: usize,
    /// Share of its target below which a pool does not wait for claims, percent.
    pub refill_low_water_percent: usize,
    /// Creations at the same time, of all pools together, while claims are in flight.
    pub held_creations: usize,
    /// Seconds between two looks at every warm container.
    pub health_interval_seconds: u64,
    /// Containers that one pool creates at the same time.
    pub concurrent_creations: usize,
    /// What is taken from a container when it has come to rest: nothing (`off`), pages of files (`cache`), or
    /// anonymous memory too, if the host has swap (`swap`).
    #[serde(alias = "squeeze")]
    pub reclaim: ReclaimMode,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            target: None,
            scaling: true,
            min: None,
            max: None,
            scale_up_queue: 3,
            scale_up_hit_percent: 80,
            hit_window_seconds: 60,
            scale_down_idle: 5,
            scale_down_idle_seconds: 600,
            refill_quiet_ms: 5,
            refill_max_hold_ms: 250,
            clearing_max_hold_ms: 1000,
            clearing_scarce_percent: 12,
            refill_low_water_percent: 25,
            held_creations: 1,
            health_interval_seconds: 30,
            concurrent_creations: 1,
            reclaim: ReclaimMode::Off,
        }
    }
}

/// `[admission]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admission {
    /// Memory that has to stay available on the host, bytes; 0 switches the checks of memory off.
    pub min_available_bytes: u64,
    /// Most that processes may have waited for memory in the last 10 s, percent of the time (where the kernel has PSI).
    pub max_memory_pressure_percent: f64,
    /// Highest load average of the last minute per CPU; 0 switches the checks of CPUs off.
    pub max_load_per_cpu: f64,
    /// A load above that counts only if processes also waited for a CPU in more than this share of the last 10 s,
    /// percent (where the kernel has PSI). Processes that wait for their own quota count as waiting.
    pub max_cpu_pressure_percent: f64,
}

impl Default for Admission {
    fn default() -> Self {
        Self {
            min_available_bytes: 256 << 20,
            max_memory_pressure_percent: 25.0,
            max_load_per_cpu: 64.0,
            max_cpu_pressure_percent: 95.0,
        }
    }
}

/// `[queue]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Queue {
    /// Requests that may wait for a container, all together; beyond it a request gets 503 at once.
    pub max: usize,
    /// How long a request waits unless it says otherwise, milliseconds; then it gets 503.
    pub timeout_ms: u64,
    /// Longest wait that a request may ask for, milliseconds.
    pub max_timeout_ms: u64,
}

impl Default for Queue {
    fn default() -> Self {
        Self { max: 200, timeout_ms: 10_000, max_timeout_ms: 60_000 }
    }
}

/// `[container]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Container {
    /// Hard limit on containers of all kinds together; beyond it requests wait.
    pub max: usize,
    /// Size of everything writable in a container together (home, /tmp, /dev/shm, /workspace), bytes.
    pub ephemeral_bytes: u64,
    /// Number of files that it may hold.
    pub ephemeral_inodes: u64,
    /// Open files per process (`RLIMIT_NOFILE`).
    pub open_files: u64,
    /// Whether a container sees as many processors as it may use for a moment (`cpu_burst`, rounded up) instead of the
    /// host's, and is kept on them.
    pub limit_visible_cpus: bool,
    /// First host id of the range that containers' user and group ids are mapped to; each takes 65,536.
    pub id_start: u32,
    /// Longest creation, seconds: then the container is given up and destroyed.
    pub create_timeout_seconds: u64,
}

impl Default for Container {
    fn default() -> Self {
        Self {
            max: 50,
            ephemeral_bytes: 100 << 20,
            ephemeral_inodes: 25_600,
            open_files: 16_384,
            limit_visible_cpus: true,
            // Above what login.defs(5), useradd(8) and systemd's dynamic and container users hand out.
            id_start: 1_879_048_192,
            create_timeout_seconds: 30,
        }
    }
}

/// `[execution]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Execution {
    /// Output kept per execution, bytes; older events are trimmed and replaced by a `gap` event.
    pub output_bytes: usize,
    /// Output of a stream, bytes, that is in its pipe at once when the command writes fast: from then on it flows through a
    /// second pipe. A pipe holds 262144, so that with more there is never a second one.
    pub second_pipe_bytes: usize,
    /// Output of a stream, bytes, from which on its file in memory grows in large pages.
    pub large_pages_bytes: u64,
    /// Milliseconds for which a command that is ahead of a reader waits for it while it takes nothing.
    pub reader_stall_ms: u64,
    /// Seconds for which an ended execution and its output are kept.
    pub retention_seconds: u64,
    /// Ended executions kept at most, whatever their age.
    pub retained: usize,
    /// Output of ended executions kept at most, all together, bytes; the oldest are forgotten first.
    pub retained_bytes: usize,
    /// Milliseconds after which an execution without `background` is cancelled when its last reader has gone.
    pub disconnect_grace_ms: u64,
    /// The same for an execution that has survived a restart of the daemon, until its first reader has come back. And as
    /// long a command that is ahead of a reader waits for it to come back.
    pub reconnect_grace_ms: u64,
    /// Milliseconds for which a client that sends standard input (`stdin_open`) waits for a command that does not read.
    pub stdin_wait_ms: u64,
    /// Milliseconds between SIGTERM and SIGKILL for a cancelled or timed-out command.
    pub kill_grace_ms: u64,
    /// Longest time limit that a request may ask for, milliseconds.
    pub max_timeout_ms: u64,
    /// Executions of one user at the same time, those that wait included; beyond it a request gets 429.
    pub max_per_user: usize,
    /// Files that a request may put into `/workspace`, all together, bytes. The request itself, in which an archive may be
    /// compressed, must fit `api.max_body_bytes`.
    pub files_bytes: u64,
    /// Files, directories and links that a request may put there.
    pub files_entries: u64,
    /// What is collected of an execution's files, as an archive, bytes; it counts for `retained_bytes` too.
    pub collect_bytes: u64,
    /// Files, directories and links that are collected.
    pub collect_entries: u64,
}

impl Default for Execution {
    fn default() -> Self {
        Self {
            output_bytes: 16 << 20,
            second_pipe_bytes: 128 << 10,
            large_pages_bytes: 1 << 20,
            reader_stall_ms: 10_000,
            retention_seconds: 600,
            retained: 1_000,
            retained_bytes: 256 << 20,
            disconnect_grace_ms: 10_000,
            stdin_wait_ms: 30_000,
            reconnect_grace_ms: 60_000,
            kill_grace_ms: 2_000,
            max_timeout_ms: 3_600_000,
            max_per_user: 10,
            files_bytes: 16 << 20,
            files_entries: 10_000,
            collect_bytes: 16 << 20,
            collect_entries: 10_000,
        }
    }
}

/// `[daemon]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Daemon {
    /// What becomes of executions and warm containers when the daemon is told to stop.
    pub on_stop: OnStop,
    /// Seconds for which they go on without a daemon before they are destroyed.
    pub keeper_timeout_seconds: u64,
    /// Milliseconds for which the process that keeps them may take in nothing of what it is told; then it is replaced.
    pub keeper_stall_ms: u64,
}

/// What becomes of executions and warm containers when the daemon is told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum OnStop {
    /// They are ended.
    Destroy,
    /// They stay for the next daemon.
    Keep,
}

impl Default for Daemon {
    fn default() -> Self {
        Self { on_stop: OnStop::Destroy, keeper_timeout_seconds: 600, keeper_stall_ms: 1000 }
    }
}

/// `[cgroup]`
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cgroup {
    /// Cgroup that the daemon's directory lies in, a path from the root of each hierarchy; any but the root has to be
    /// delegated to thawd. `thawd --cgroup-parent` overrides it, which is what thawd.service does.
    pub parent: String,
    /// Directory for this daemon's containers, below `parent`. Two daemons need two names.
    pub name: String,
}

impl Default for Cgroup {
    fn default() -> Self {
        Self { parent: "/".to_owned(), name: "thawd".to_owned() }
    }
}

/// `[provider.NAME]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Provider {
    /// Warm containers; `pool.target` when absent, and without that what the manifest says. Set without `pool_min` and
    /// `pool_max`, it is fixed.
    pub pool_target: Option<usize>,
    /// Fewest warm containers; `pool.min` when absent.
    pub pool_min: Option<usize>,
    /// Most warm containers; `pool.max` when absent.
    pub pool_max: Option<usize>,
    /// Containers in which the provider's CLI waits already started, besides the others; none when absent. Each holds
    /// what `memory_mib` in the manifest's `[prestart]` says.
    pub prestarted: usize,
    /// The same for other models than the default one, by model or alias, of a provider whose CLI cannot change its
    /// model after the start.
    pub prestarted_models: BTreeMap<String, usize>,
    /// Another upstream than the provider's own, such as `http://upstream.test:8901`.
    pub base_url: Option<String>,
    /// Hosts that its containers may reach besides those of the manifest, as `host:port`. With a `base_url`, its host takes
    /// the place of the manifest's.
    pub egress: Vec<String>,
    /// Hosts that its containers may reach instead of those of the manifest and of `base_url`; not together with `egress`.
    pub egress_replace: Option<Vec<String>>,
    /// Who renews its users' logins, instead of what the manifest says: `refresh-ahead`, `exclusive` or `shared`.
    pub refresh: Option<RefreshPolicy>,
    /// Another token endpoint than the manifest's, for `refresh-ahead`.
    pub token_url: Option<String>,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let at = |key: String, problem: String| ConfigError::Value {
            path: path.to_owned(),
            line: units::line(text, &key),
            key,
            problem,
        };
        let numbers = units::in_numbers(text).map_err(|wrong| at(wrong.key, wrong.problem))?;
        let config: Self = toml::from_str(&numbers).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: with_nearest_key(error.to_string().trim_end(), error.message()),
        })?;
        config.check().map_err(|(key, problem)| at(key, problem))?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (String, String)> {
        let at_least_one = [
            ("container.max", self.container.max as u64),
            ("container.ephemeral_inodes", self.container.ephemeral_inodes),
            ("container.create_timeout_seconds", self.container.create_timeout_seconds),
            ("pool.health_interval_seconds", self.pool.health_interval_seconds),
            ("pool.concurrent_creations", self.pool.concurrent_creations as u64),
            ("pool.hit_window_seconds", self.pool.hit_window_seconds),
            ("pool.scale_down_idle_seconds", self.pool.scale_down_idle_seconds),
            ("pool.held_creations", self.pool.held_creations as u64),
            ("execution.max_per_user", self.execution.max_per_user as u64),
            ("sandbox.freeze_after_seconds", self.sandbox.freeze_after_seconds),
            ("sandbox.max_per_user", self.sandbox.max_per_user as u64),
            ("sandbox.file_calls", self.sandbox.file_calls as u64),
            ("sandbox.file_bytes", self.sandbox.file_bytes),
            ("sandbox.file_entries", self.sandbox.file_entries),
            ("sandbox.stop_after_seconds", self.sandbox.stop_after_seconds),
            ("execution.files_entries", self.execution.files_entries),
            ("execution.collect_entries", self.execution.collect_entries),
            ("api.heartbeat_seconds", self.api.heartbeat_seconds),
            ("api.events_kept", self.api.events_kept as u64),
            ("execution.max_timeout_ms", self.execution.max_timeout_ms),
            ("egress.port", self.egress.port.into()),
            ("image.max_unpacked_bytes", self.image.max_unpacked_bytes),
            ("image.max_entries", self.image.max_entries),
            ("image_run.pids_max", self.image_run.pids_max.into()),
            ("image_run.timeout_seconds", self.image_run.timeout_seconds),
            ("metrics.max_connections", self.metrics.max_connections as u64),
            ("metrics.timeout_seconds", self.metrics.timeout_seconds),
            ("daemon.keeper_stall_ms", self.daemon.keeper_stall_ms),
            ("store.timeout_ms", self.store.timeout_ms),
            ("vault.key_command_timeout_seconds", self.vault.key_command_timeout_seconds),
            ("vault.max_credential_bytes", self.vault.max_credential_bytes as u64),
            ("vault.audit_seconds", self.vault.audit_seconds),
            ("vault.audit_records", self.vault.audit_records),
            ("vault.refresh_timeout_seconds", self.vault.refresh_timeout_seconds),
        ];
        for (key, value) in at_least_one {
            if value == 0 {
                return Err((key.to_owned(), "must be at least 1".to_owned()));
            }
        }
        for (key, value, least) in [
            ("container.ephemeral_bytes", self.container.ephemeral_bytes, 1 << 20),
            ("image_run.memory_bytes", self.image_run.memory_bytes, 1 << 20),
            ("container.open_files", self.container.open_files, 64),
            ("api.max_body_bytes", self.api.max_body_bytes as u64, 1024),
            ("execution.output_bytes", self.execution.output_bytes as u64, 64 << 10),
            ("execution.files_bytes", self.execution.files_bytes, 1024),
            ("execution.collect_bytes", self.execution.collect_bytes, 1024),
            ("execution.second_pipe_bytes", self.execution.second_pipe_bytes as u64, 4096),
            ("execution.large_pages_bytes", self.execution.large_pages_bytes, 64 << 10),
            ("log.queue_bytes", self.log.queue_bytes as u64, 64 << 10),
        ] {
            if value < least {
                return Err((key.to_owned(), format!("must be at least {least}")));
            }
        }
        let all = toml::Table::try_from(self).map_err(|error| (String::new(), error.to_string()))?;
        check_numbers("", &all)?;
        self.api.connections.check()?;
        self.egress.check()?;
        for (name, provider) in &self.provider {
            if provider.egress_replace.is_some() && !provider.egress.is_empty() {
                let problem =
                    format!("replaces what `provider.{name}.egress` would add to: put all hosts into one of the two");
                return Err((format!("provider.{name}.egress_replace"), problem));
            }
        }
        self.store.check()?;
        self.vault.check()?;
        self.storage.check()?;
        let own = self.sandbox.storage_bytes;
        if own != 0 && !(MIN_STORAGE_BYTES..=self.storage.max_bytes).contains(&own) {
            let most = self.storage.max_bytes;
            let problem = format!("must be 0, or from {MIN_STORAGE_BYTES} to `storage.max_bytes`, {most}");
            return Err(("sandbox.storage_bytes".to_owned(), problem));
        }
        for (name, provider) in &self.provider {
            if provider.egress_replace.is_some() && !provider.egress.is_empty() {
                let problem =
                    format!("replaces what `provider.{name}.egress` would add to: put all hosts into one of the two");
                return Err((format!("provider.{name}.egress_replace"), problem));
            }
        }
        self.check_pools()?;
        let run = &self.image_run;
        if !(run.cpu >= 0.01 && run.cpu_burst >= run.cpu && run.cpu_burst <= 1024.0) {
            let problem = "must be at least 0.01 and at most `image_run.cpu_burst`, which must be at most 1024";
            return Err(("image_run.cpu".to_owned(), problem.to_owned()));
        }
        let ids = u64::from(self.container.id_start).saturating_add((self.container.max as u64).saturating_mul(65_536));
        if self.execution.retained_bytes < self.execution.output_bytes {
            let problem = format!("must be at least `execution.output_bytes`, {}", self.execution.output_bytes);
            return Err(("execution.retained_bytes".to_owned(), problem));
        }
        // The kernel's ids are 32 bits and 2^31 upwards breaks programs that use signed ones (CVE-2024-40635).
        if ids > 1 << 31 || self.container.id_start < 65_536 {
            let problem = format!(
                "must be at least 65536 and leave room for `container.max` times 65536 ids below 2147483648, \
                 but the last one would be {ids}"
            );
            return Err(("container.id_start".to_owned(), problem));
        }
        let parent = &self.cgroup.parent;
        if !parent.starts_with('/') || parent.split('/').any(|part| part == "." || part == "..") {
            let problem = "must be a path from the hierarchy's root, such as /system.slice/thawd-containers.service";
            return Err(("cgroup.parent".to_owned(), problem.to_owned()));
        }
        let name = &self.cgroup.name;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.starts_with('.') || !name.bytes().all(plain) {
            return Err(("cgroup.name".to_owned(), "must be one path component of letters, digits, - _ .".to_owned()));
        }
        Ok(())
    }
}

impl Config {
    /// Within which numbers a pool is scaled, and whether it is, given what its manifest starts with: target, fewest,
    /// most, scaling.
    pub fn pool_bounds(&self, provider: &str, manifest_target: usize) -> (usize, usize, usize, bool) {
        let own = self.provider.get(provider);
        let target = own.and_then(|own| own.pool_target).or(self.pool.target);
        let (min, max) =
            (own.and_then(|own| own.pool_min).or(self.pool.min), own.and_then(|own| own.pool_max).or(self.pool.max));
        // A number that the operator asked for stays, unless there are bounds for it too.
        let scaling = self.pool.scaling && (target.is_none() || min.is_some() || max.is_some());
        let target = target.unwrap_or(manifest_target);
        let max = max.unwrap_or(self.container.max);
        let min = min.unwrap_or(MIN_TARGET.min(target)).min(max);
        (target, min, max, scaling)
    }

    fn check_pools(&self) -> Result<(), (String, String)> {
        let limit = self.container.max;
        let mut sections = vec![("pool".to_owned(), "min", "max", self.pool.min, self.pool.max)];
        for (section, target) in [("pool.target".to_owned(), self.pool.target)]
            .into_iter()
            .chain(self.provider.iter().map(|(name, own)| (format!("provider.{name}.pool_target"), own.pool_target)))
        {
            if target.is_some_and(|target| target > limit) {
                return Err((section, format!("must be at most `container.max`, {limit}")));
            }
        }
        for (name, own) in &self.provider {
            if let Some(problem) = own.token_url.as_deref().and_then(token_url_problem) {
                return Err((format!("provider.{name}.token_url"), problem));
            }
            if let Some(problem) = own.base_url.as_deref().and_then(base_url_problem) {
                return Err((format!("provider.{name}.base_url"), problem));
            }
            let (min, max) = (own.pool_min.or(self.pool.min), own.pool_max.or(self.pool.max));
            sections.push((format!("provider.{name}"), "pool_min", "pool_max", min, max));
        }
        for (section, min_key, max_key, min, max) in sections {
            if max.is_some_and(|max| max > limit) {
                let problem = format!("must be at most `container.max`, {limit}");
                return Err((format!("{section}.{max_key}"), problem));
            }
            let most = max.unwrap_or(limit);
            if min.is_some_and(|min| min > most) {
                return Err((format!("{section}.{min_key}"), format!("must be at most `{max_key}`, {most}")));
            }
        }
        for (key, percent) in [
            ("pool.scale_up_hit_percent", f64::from(self.pool.scale_up_hit_percent)),
            ("pool.refill_low_water_percent", self.pool.refill_low_water_percent as f64),
            ("pool.clearing_scarce_percent", self.pool.clearing_scarce_percent as f64),
            ("admission.max_memory_pressure_percent", self.admission.max_memory_pressure_percent),
            ("admission.max_cpu_pressure_percent", self.admission.max_cpu_pressure_percent),
        ] {
            if !(0.0..=100.0).contains(&percent) {
                return Err((key.to_owned(), "must be from 0 to 100".to_owned()));
            }
        }
        let load = self.admission.max_load_per_cpu;
        if load.is_nan() || load < 0.0 {
            return Err(("admission.max_load_per_cpu".to_owned(), "must be 0 or more".to_owned()));
        }
        if self.queue.timeout_ms > self.queue.max_timeout_ms {
            let problem = format!("must be at most `queue.max_timeout_ms`, {}", self.queue.max_timeout_ms);
            return Err(("queue.timeout_ms".to_owned(), problem));
        }
        Ok(())
    }
}

/// What is wrong with the address of another upstream.
fn base_url_problem(text: &str) -> Option<String> {
    let wrong = |what: &str| Some(format!("{what}: write it as https://HOST[:PORT][/PATH]"));
    match reqwest::Url::parse(text) {
        Err(error) => wrong(&format!("is no address ({error})")),
        Ok(url) if !["http", "https"].contains(&url.scheme()) => wrong("must begin with http:// or https://"),
        Ok(url) if url.host_str().is_none_or(str::is_empty) => wrong("names no host"),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            wrong("holds a user or a password, which belong into the credentials")
        }
        Ok(_) => None,
    }
}

/// Refuses times that the clock cannot count to, and numbers that cannot be calculated with, whatever key they are in.
fn check_numbers(prefix: &str, table: &toml::Table) -> Result<(), (String, String)> {
    for (name, value) in table {
        let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Table(inner) => check_numbers(&key, inner)?,
            toml::Value::Integer(number) => {
                let number = number.unsigned_abs();
                let seconds = if name.ends_with("_ms") { number / 1000 } else { number };
                let is_time = name.ends_with("_ms") || name.ends_with("_seconds");
                if is_time && seconds > YEAR {
                    return Err((key, format!("must be at most a year, {YEAR} s")));
                }
                if number > MAX_NUMBER {
                    return Err((key, format!("must be at most {MAX_NUMBER}")));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Fewest warm containers of a provider when nothing says otherwise (product requirement: at least 5 warm).
const MIN_TARGET: usize = 5;

/// Adds `did you mean` to serde's message on an unknown field, which lists the known ones in backticks.
fn with_nearest_key(full: &str, message: &str) -> String {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let nearest = message.starts_with("unknown field").then(|| quoted.next()).flatten().and_then(|unknown| {
        quoted.map(|known| (strsim::jaro_winkler(unknown, known), known)).max_by(|a, b| a.0.total_cmp(&b.0))
    });
    match nearest {
        Some((likeness, known)) if likeness > 0.6 => format!("{full}\ndid you mean `{known}`?"),
        _ => full.to_owned(),
    }
}

#[cfg(test)]
mod tests;
