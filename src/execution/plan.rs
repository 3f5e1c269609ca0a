//! Plan of an execution: everything that has to be known before a container is claimed. Mistakes in a request are found
//! here, before anything starts.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use zeroize::{Zeroize, Zeroizing};

use super::environment;
use super::image_run::{self, ImageRunError, Images, Origin, Start};
use super::late::Late;
use super::workspace::{Work, WorkError};
use super::{Served, Settings};
use crate::container::{Command, CommandError, Encoded, WORKSPACE};
use crate::pool::Pool;
use crate::provider::prestart;
use crate::provider::{CredentialError, Dialect, InvocationError, Login, PromptSpec, Provider};
use crate::sandbox::Handle as Sandbox;
use thaw_client::content::Content;
use thaw_client::types::{
    Credentials, ExecutionRequest, LABELS_RULE, Secret, USER_RULE, are_labels, is_user, is_variable,
};
use thaw_os::cgroup::Limits;

/// User and group id of `runtime` in every image.
pub const RUNTIME_USER: u32 = 1000;

/// Least memory that a request may ask for, bytes: below it hardly a program starts.
const MIN_MEMORY: u64 = 16 << 20;

/// Most of a command that is shown, bytes.
const MAX_SHOWN: usize = 256;

/// Longest path with its end, bytes (`PATH_MAX`, limits.h(0p)).
const MAX_PATH: usize = 4096;

/// What is wrong with a request; [`RequestError::code`] is stable.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The provider does not exist.
    #[error("there is no provider {name:?}; there is {known}")]
    UnknownProvider {
        /// Name given.
        name: String,
        /// Names that exist.
        known: String,
    },
    /// Both or neither of `prompt` and `command` were given.
    #[error("give exactly one of `prompt` and `command`")]
    PromptOrCommand,
    /// The field is allowed with `prompt` only.
    #[error("`{0}` goes with `prompt`, not with `command`")]
    OnlyWithPrompt(&'static str),
    /// The value of a field is invalid or out of range.
    #[error("`{field}` {problem}")]
    InvalidField {
        /// Which field.
        field: String,
        /// What the value must be.
        problem: String,
    },
    /// The prompt, model or effort cannot be used.
    #[error(transparent)]
    Invocation(InvocationError),
    /// The credentials cannot be used.
    #[error(transparent)]
    Credentials(CredentialError),
    /// The command cannot be passed to a container.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The field is allowed with a command only.
    #[error("`{0}` goes with `command` or `image`, not with `prompt`")]
    OnlyWithCommand(&'static str),
    /// Both or neither of `provider` and `image` were given.
    #[error("give exactly one of `provider` and `image`")]
    ProviderOrImage,
    /// The field is allowed with `provider` only.
    #[error("`{0}` goes with `provider`, not with `image`")]
    OnlyWithProvider(&'static str),
    /// A field that goes with `image` only.
    #[error("`{0}` goes with `image`, not with `provider`")]
    OnlyWithImage(&'static str),
    /// The image cannot be run.
    #[error(transparent)]
    Image(#[from] ImageRunError),
    /// A field that does not go with `sandbox`.
    #[error("`{field}` does not go with `sandbox`: {why}")]
    NotWithSandbox {
        /// Which field.
        field: &'static str,
        /// Why not, or what to do instead.
        why: &'static str,
    },
    /// The sandbox's template is not there any more.
    #[error("the sandbox was made from the provider {name:?}, which the configuration does not have any more")]
    NoTemplate {
        /// Its name.
        name: String,
    },
}

impl RequestError {
    /// Stable machine-readable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::UnknownProvider { .. } => "unknown_provider",
            Self::PromptOrCommand => "prompt_or_command",
            Self::OnlyWithPrompt(_) => "only_with_prompt",
            Self::InvalidField { .. } => "invalid_field",
            Self::Credentials(CredentialError::Missing { .. }) => "missing_credentials",
            Self::Credentials(_) => "invalid_credentials",
            Self::Invocation(InvocationError::UnknownModel { .. }) => "unknown_model",
            Self::Invocation(InvocationError::UnknownEffort { .. }) => "unknown_effort",
            Self::Invocation(InvocationError::BaseUrl { .. }) => "misconfigured_provider",
            Self::Invocation(_) => "invalid_prompt",
            Self::Command(_) => "invalid_command",
            Self::OnlyWithCommand(_) => "only_with_command",
            Self::ProviderOrImage => "provider_or_image",
            Self::OnlyWithProvider(_) => "only_with_provider",
            Self::OnlyWithImage(_) => "only_with_image",
            Self::NotWithSandbox { .. } => "not_with_sandbox",
            Self::NoTemplate { .. } => "unknown_template",
            Self::Image(ImageRunError::Unknown(_)) => "unknown_image",
            Self::Image(ImageRunError::Workspace { .. }) => "no_workspace",
            Self::Image(_) => "invalid_image",
        }
    }
}

impl From<WorkError> for RequestError {
    fn from(WorkError { field, problem }: WorkError) -> Self {
        Self::InvalidField { field: field.to_owned(), problem }
    }
}

impl From<InvocationError> for RequestError {
    fn from(error: InvocationError) -> Self {
        match error {
            InvocationError::Credentials(error) => Self::Credentials(error),
            error => Self::Invocation(error),
        }
    }
}

/// A checked request.
pub struct Plan {
    /// Provider name.
    pub provider: String,
    /// User that the execution belongs to.
    pub user: String,
    /// Model; only with a prompt.
    pub model: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// The command as it is shown; none for a prompt.
    pub shown: Option<String>,
    /// The program that is started.
    pub(super) program: String,
    /// Limits below those of the class.
    pub(super) limits: Option<Limits>,
    /// Where the container comes from, if there is no `sandbox`.
    pub(super) origin: Origin,
    /// The sandbox that it runs in.
    pub(super) sandbox: Option<Arc<Sandbox>>,
    /// Whether the sandbox is not idle while it runs.
    pub(super) holds: bool,
    /// Names of the credential files that are in the sandbox for it alone; only with a prompt.
    pub(super) lends: Vec<String>,
    /// What a prestarted CLI would get, if one can take this request.
    pub(super) late: Option<Late>,
    /// The command, encoded for `thaw-init`.
    pub(super) command: Encoded,
    /// Standard input; `None` for `/dev/null`.
    pub(super) stdin: Option<Vec<u8>>,
    /// Whether more of it comes while the command runs.
    pub(super) stdin_open: bool,
    /// Credential files.
    pub(super) files: BTreeMap<String, Secret>,
    /// What is put into `/workspace` and collected of it.
    pub(super) work: Work,
    /// Wall-clock limit.
    pub timeout: Duration,
    /// Longest time in the fair queue.
    pub(super) queue_timeout: Duration,
    /// Time until the first output, at most; only with a prompt.
    pub(super) start_timeout: Option<Duration>,
    /// Decoder for the provider's output dialect; only with a prompt.
    pub(super) dialect: Option<Dialect>,
}

impl std::fmt::Debug for Plan {
    /// Omits prompt, arguments and credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdin = self.stdin.as_ref().map(Vec::len);
        f.debug_struct("Plan")
            .field("provider", &self.provider)
            .field("user", &self.user)
            .field("model", &self.model)
            .field("stdin_bytes", &stdin)
            .finish_non_exhaustive()
    }
}

impl Plan {
    /// Wipes secrets that the container has by now: credentials in files and in variables.
    pub(super) fn forget_secrets(&mut self) {
        self.files.clear();
        self.command.wipe();
        self.late = None;
    }
}

struct Task {
    argv: Vec<String>,
    env: Vec<(String, String)>,
    stdin: Option<Vec<u8>>,
    timeout: Duration,
    start_timeout: Option<Duration>,
    dialect: Option<Dialect>,
    model: Option<String>,
}

/// Checks `request` and makes its plan.
pub fn plan(
    request: ExecutionRequest,
    served: &BTreeMap<String, Served>,
    images: &Images,
    settings: &Settings,
) -> Result<Plan, RequestError> {
    match (&request.image, request.provider.is_empty()) {
        (None, false) => provider_plan(request, served, settings),
        (Some(_), true) => image_plan(request, images, settings),
        _ => Err(RequestError::ProviderOrImage),
    }
}

fn image_plan(mut request: ExecutionRequest, images: &Images, settings: &Settings) -> Result<Plan, RequestError> {
    check_names(&request)?;
    force_env(&mut request)?;
    for (name, given) in [
        ("prompt", request.prompt.is_some()),
        ("model", request.model.is_some()),
        ("effort", request.effort.is_some()),
        ("credentials", request.credentials.is_some()),
    ] {
        if given {
            return Err(RequestError::OnlyWithProvider(name));
        }
    }
    let name = request.image.take().unwrap_or_default();
    let work = Work::of(&mut request, &settings.files)?;
    let start = Start { entrypoint: request.entrypoint.as_deref(), command: request.command.as_deref() };
    let runnable = images.prepare(&name, start, !work.is_empty())?;
    let limits = limits(&request, &runnable.limits)?;
    let timeout = timeout(request.timeout_ms, runnable.timeout, settings)?;
    let queue_timeout = queue_timeout(request.queue_timeout_ms, settings)?;
    let home = ("HOME".to_owned(), runnable.home);
    // The image's own variables win, also over the home directory.
    let mut env = environment::of_image([home].into_iter().chain(runnable.env));
    environment::set_proxy(settings.proxy_port, &mut env);
    env.extend(request.env);
    let with_host_name = environment::complete(limits.unwrap_or(runnable.limits).memory_bytes, &mut env);
    let (user, group) = runnable.ids;
    let env = env.into_iter().collect();
    let command = Command {
        argv: runnable.argv,
        env,
        with_host_name,
        cwd: request.workdir.or(work.start().map(str::to_owned)).unwrap_or(runnable.cwd),
        user,
        group,
        groups: runnable.groups,
        rlimits: Vec::new(),
    };
    Ok(Plan {
        provider: image_run::LABEL.to_owned(),
        user: request.user,
        model: None,
        labels: request.labels,
        shown: Some(shown(&command.argv)),
        program: command.argv.first().cloned().unwrap_or_default(),
        limits,
        origin: runnable.origin,
        sandbox: None,
        holds: true,
        lends: Vec::new(),
        late: None,
        command: command.encode()?,
        stdin_open: request.stdin_open,
        stdin: request.stdin.map(Content::into_bytes),
        files: BTreeMap::new(),
        work,
        timeout,
        queue_timeout,
        start_timeout: None,
        dialect: None,
    })
}

/// The wall-clock limit: the request's, if it is allowed, or else the default.
fn timeout(asked_ms: Option<u64>, usual: Duration, settings: &Settings) -> Result<Duration, RequestError> {
    match asked_ms {
        None => Ok(usual.min(settings.max_timeout)),
        Some(ms) if ms >= 1 && Duration::from_millis(ms) <= settings.max_timeout => Ok(Duration::from_millis(ms)),
        Some(_) => {
            let problem = format!("must be from 1 to {}", settings.max_timeout.as_millis());
            Err(RequestError::InvalidField { field: "timeout_ms".to_owned(), problem })
        }
    }
}

/// What the request may use, if that is less than its class.
fn limits(request: &ExecutionRequest, class: &Limits) -> Result<Option<Limits>, RequestError> {
    let invalid = |field: &str, problem: String| Err(RequestError::InvalidField { field: field.to_owned(), problem });
    if let Some(bytes) = request.memory_bytes
        && !(MIN_MEMORY..=class.memory_bytes).contains(&bytes)
    {
        return invalid("memory_bytes", format!("must be from {MIN_MEMORY} to {}, the class's", class.memory_bytes));
    }
    // The kernel counts no less than a millisecond in a period.
    let least = (1e3 / class.cpu_period_us as f64).max(0.01).min(class.cpu);
    if let Some(cpus) = request.cpus
        && !(cpus >= least && cpus <= class.cpu)
    {
        return invalid("cpus", format!("must be from {least} to {}, the class's", class.cpu));
    }
    if request.memory_bytes.is_none() && request.cpus.is_none() {
        return Ok(None);
    }
    Ok(Some(Limits {
        memory_bytes: request.memory_bytes.unwrap_or(class.memory_bytes),
        cpu: request.cpus.unwrap_or(class.cpu),
        cpu_burst: if request.cpus.is_some() { None } else { class.cpu_burst },
        cpu_period_us: class.cpu_period_us,
    }))
}

/// A command as one line, cut where it is long.
fn shown(argv: &[String]) -> String {
    let mut text = argv.join(" ").replace(char::is_control, " ");
    if text.len() > MAX_SHOWN {
        // The sign that it was cut has three bytes.
        let end = (0..=MAX_SHOWN - 3).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// How long it may wait for a container.
fn queue_timeout(asked_ms: Option<u64>, settings: &Settings) -> Result<Duration, RequestError> {
    let asked = asked_ms.map_or(settings.queue_timeout, Duration::from_millis);
    if asked > settings.max_queue_timeout {
        let problem = format!("must be at most {}", settings.max_queue_timeout.as_millis());
        return Err(RequestError::InvalidField { field: "queue_timeout_ms".to_owned(), problem });
    }
    Ok(asked)
}

fn provider_plan(
    mut request: ExecutionRequest,
    served: &BTreeMap<String, Served>,
    settings: &Settings,
) -> Result<Plan, RequestError> {
    let Some(target) = served.get(&request.provider) else {
        let known = served.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        return Err(RequestError::UnknownProvider { name: request.provider, known });
    };
    check_names(&request)?;
    force_env(&mut request)?;
    if request.entrypoint.is_some() {
        return Err(RequestError::OnlyWithImage("entrypoint"));
    }
    let work = Work::of(&mut request, &settings.files)?;
    let mut credentials = request.credentials.clone().unwrap_or_default();
    let given = std::mem::take(&mut credentials.env);
    credentials.env = target.provider.without_aliases(given).map_err(RequestError::Credentials)?;
    target.provider.add_aliased(&mut request.env);
    let files: Vec<&str> = credentials.files.keys().map(String::as_str).collect();
    let variables: Vec<&str> = credentials.env.keys().map(String::as_str).collect();
    let provider = &target.provider;
    let task = match (&request.prompt, &request.command) {
        (Some(prompt), None) => {
            for (name, given) in [("stdin", request.stdin.is_some()), ("stdin_open", request.stdin_open)] {
                if given {
                    return Err(RequestError::OnlyWithCommand(name));
                }
            }
            provider.check_credentials(&files, &variables).map_err(RequestError::Credentials)?;
            let invocation = provider.invocation(&PromptSpec {
                prompt,
                model: request.model.as_deref(),
                effort: request.effort.as_deref(),
                credential_files: &files,
                credential_env: &variables,
                base_url: target.base_url.as_deref(),
            })?;
            Task {
                argv: invocation.argv,
                env: invocation.env,
                stdin: invocation.stdin,
                timeout: invocation.timeout,
                start_timeout: Some(invocation.start_timeout),
                dialect: Some(invocation.dialect),
                model: Some(invocation.model),
            }
        }
        (None, Some(command)) => {
            for (name, given) in [("model", request.model.is_some()), ("effort", request.effort.is_some())] {
                if given {
                    return Err(RequestError::OnlyWithPrompt(name));
                }
            }
            provider.check_credential_names(&files, &variables).map_err(RequestError::Credentials)?;
            Task {
                argv: command.clone(),
                env: provider.env.clone().into_iter().collect(),
                stdin: request.stdin.clone().map(Content::into_bytes),
                timeout: provider.timeouts.default,
                start_timeout: None,
                dialect: None,
                model: None,
            }
        }
        _ => return Err(RequestError::PromptOrCommand),
    };
    let timeout = timeout(request.timeout_ms, task.timeout, settings)?;
    let class = &provider.resources.run;
    let class = Limits {
        memory_bytes: class.memory_bytes,
        cpu: class.cpu,
        cpu_burst: class.cpu_burst,
        cpu_period_us: class.cpu_period.as_micros() as u64,
    };
    let limits = limits(&request, &class)?;
    let (prestarted, late) = late(target, &request, &work, &credentials, task.model.as_deref()).unzip();
    let queue_timeout = queue_timeout(request.queue_timeout_ms, settings)?;
    let mut env = environment(target, provider, settings, task.env, &credentials.env, &request.env);
    let with_host_name = environment::complete(limits.unwrap_or(class).memory_bytes, &mut env);
    let (user, group) = (RUNTIME_USER, RUNTIME_USER);
    let env = env.into_iter().collect();
    let mut command = Command {
        argv: task.argv,
        env,
        with_host_name,
        cwd: request.workdir.as_deref().or(work.start()).unwrap_or(&provider.home).to_owned(),
        user,
        group,
        groups: Vec::new(),
        rlimits: Vec::new(),
    };
    let encoded = command.encode();
    // `command` still holds keys in its variables; the encoded form wipes itself.
    command.env.iter_mut().for_each(|(_, value)| value.zeroize());
    Ok(Plan {
        provider: request.provider,
        user: request.user,
        model: task.model,
        labels: request.labels,
        shown: request.command.as_deref().map(shown),
        program: command.argv.first().cloned().unwrap_or_default(),
        limits,
        origin: Origin::Pool(target.pool.clone(), prestarted),
        sandbox: None,
        holds: true,
        lends: Vec::new(),
        late,
        command: encoded?,
        stdin: task.stdin,
        stdin_open: request.stdin_open,
        files: credentials.files.clone(),
        work,
        timeout,
        queue_timeout,
        start_timeout: task.start_timeout,
        dialect: task.dialect,
    })
}

/// The plan of a prompt in a sandbox, whose container has the provider's CLI; what does not go with a sandbox was refused.
pub(super) fn prompt_inside(
    mut request: ExecutionRequest,
    served: &BTreeMap<String, Served>,
    sandbox: Arc<Sandbox>,
    settings: &Settings,
) -> Result<Plan, RequestError> {
    let mut env = sandbox.env().cloned().unwrap_or_default();
    env.extend(std::mem::take(&mut request.env));
    request.env = env;
    let holds = !request.background;
    let plan = provider_plan(request, served, settings)?;
    let lends = served.get(&plan.provider).map(|of| of.provider.credentials.files.clone()).unwrap_or_default();
    Ok(Plan { sandbox: Some(sandbox), holds, lends, late: None, ..plan })
}

/// The plan of a command in a sandbox of `target`; the request's names were checked, and what does not go with a sandbox
/// was refused.
pub(super) fn inside(
    mut request: ExecutionRequest,
    target: &Served,
    sandbox: Arc<Sandbox>,
    settings: &Settings,
) -> Result<Plan, RequestError> {
    force_env(&mut request)?;
    let Some(argv) = request.command.take() else {
        let (field, why) = ("sandbox", "needs a `command`, which is what runs in it");
        return Err(RequestError::InvalidField { field: field.to_owned(), problem: why.to_owned() });
    };
    let provider = &target.provider;
    let timeout = timeout(request.timeout_ms, provider.timeouts.default, settings)?;
    let mut own = sandbox.env().cloned().unwrap_or_default();
    own.extend(std::mem::take(&mut request.env));
    provider.add_aliased(&mut own);
    let mut env =
        environment(target, provider, settings, provider.env.clone().into_iter().collect(), &BTreeMap::new(), &own);
    let with_host_name = environment::complete(provider.resources.run.memory_bytes, &mut env);
    let command = Command {
        argv,
        env: env.into_iter().collect(),
        with_host_name,
        cwd: request.workdir.unwrap_or_else(|| provider.home.clone()),
        user: RUNTIME_USER,
        group: RUNTIME_USER,
        groups: Vec::new(),
        rlimits: Vec::new(),
    };
    Ok(Plan {
        provider: provider.name.clone(),
        user: request.user,
        model: None,
        labels: request.labels,
        shown: Some(shown(&command.argv)),
        program: command.argv.first().cloned().unwrap_or_default(),
        limits: None,
        origin: Origin::Pool(target.pool.clone(), None),
        sandbox: Some(sandbox),
        holds: !request.background,
        lends: Vec::new(),
        late: None,
        command: command.encode()?,
        stdin_open: request.stdin_open,
        stdin: request.stdin.map(Content::into_bytes),
        files: BTreeMap::new(),
        work: Work::default(),
        timeout,
        queue_timeout: Duration::ZERO,
        start_timeout: None,
        dialect: None,
    })
}

/// The pool of prestarted CLIs that can take this request, and what the CLI would get.
fn late(
    target: &Served,
    request: &ExecutionRequest,
    work: &Work,
    credentials: &Credentials,
    model: Option<&str>,
) -> Option<(Pool, Late)> {
    // It was made for the limits of its class.
    let has_limits = request.memory_bytes.is_some() || request.cpus.is_some();
    if target.prestarted.is_empty() || has_limits {
        return None;
    }
    // A CLI that runs already is in its directory; some can be told to work in another that is known to be there.
    let cwd = match request.workdir.as_deref() {
        None => work.start(),
        Some(home) if home == target.provider.home => None,
        Some(WORKSPACE) if !work.is_empty() => Some(WORKSPACE),
        Some(_) => return None,
    };
    let late = Late {
        prompt: Zeroizing::new(request.prompt.clone()?),
        model: model?.to_owned(),
        effort: request.effort.clone(),
        cwd: cwd.map(str::to_owned),
        variables: credentials.env.clone(),
    };
    let pool = target.prestarted.iter().find_map(|(pool, plan)| {
        match plan.can_take(&late.request(&credentials.files, &request.env)) {
            Ok(()) => Some(pool.clone()),
            Err(refusal) => {
                tracing::debug!(provider = %target.provider.name, %refusal, "not for a prestarted CLI");
                None
            }
        }
    });
    pool.map(|pool| (pool, late))
}

/// The command that prestarts a CLI, with an environment that belongs to no user.
///
/// # Errors
/// See [`CommandError`].
pub fn prestart_command(
    plan: &prestart::Plan,
    provider: &Provider,
    image_env: &[(String, String)],
    proxy_port: u16,
) -> Result<Encoded, CommandError> {
    let env = plan.env.iter().cloned();
    nobodys_command(provider, (plan.argv.clone(), plan.cwd.clone()), env, image_env, proxy_port)
}

/// A command of a provider's CLI that logs a user in: without a credential, and with no variable of a request.
///
/// # Errors
/// See [`CommandError`].
pub fn login_command(
    login: &Login,
    provider: &Provider,
    image_env: &[(String, String)],
    proxy_port: u16,
) -> Result<Encoded, CommandError> {
    let env = provider.env.iter().chain(&login.env).map(|(name, value)| (name.clone(), value.clone()));
    nobodys_command(provider, (login.argv.clone(), provider.home.clone()), env, image_env, proxy_port)
}

fn nobodys_command(
    provider: &Provider,
    (argv, cwd): (Vec<String>, String),
    more: impl Iterator<Item = (String, String)>,
    image_env: &[(String, String)],
    proxy_port: u16,
) -> Result<Encoded, CommandError> {
    let mut env = environment::of_provider(image_env, &provider.home);
    env.extend(more);
    environment::set_proxy(proxy_port, &mut env);
    let with_host_name = environment::complete(provider.resources.run.memory_bytes, &mut env);
    let (user, group) = (RUNTIME_USER, RUNTIME_USER);
    let env = env.into_iter().collect();
    Command { argv, env, with_host_name, cwd, user, group, groups: Vec::new(), rlimits: Vec::new() }.encode()
}

/// Takes over the variables that are meant to replace a CLI's own, after none was found that is not.
fn force_env(request: &mut ExecutionRequest) -> Result<(), RequestError> {
    if request.prompt.is_some()
        && let Some(name) = request.env.keys().find(|name| environment::is_the_clis(name))
    {
        let problem = format!("sets {name:?}, by which the provider's CLI works; `forced_env` sets it on purpose");
        return Err(RequestError::InvalidField { field: "env".to_owned(), problem });
    }
    let forced = std::mem::take(&mut request.forced_env);
    request.env.extend(forced);
    Ok(())
}

pub(super) fn check_names(request: &ExecutionRequest) -> Result<(), RequestError> {
    let invalid = |field: &str, problem: &str| {
        Err(RequestError::InvalidField { field: field.to_owned(), problem: problem.to_owned() })
    };
    if !is_user(&request.user) {
        return invalid("user", USER_RULE);
    }
    for (name, value) in request.env.iter().chain(&request.forced_env) {
        if !is_variable(name) {
            return invalid("env", "names must not be empty or contain `=` or a NUL character");
        }
        if value.contains('\0') {
            return invalid("env", &format!("has a NUL character in the value of {name:?}, where a value ends"));
        }
    }
    if let Some(workdir) = &request.workdir
        && (!workdir.starts_with('/') || workdir.len() >= MAX_PATH || workdir.contains('\0'))
    {
        return invalid("workdir", "must be an absolute path of less than 4096 bytes, without a zero byte");
    }
    if !are_labels(&request.labels) {
        return invalid("labels", LABELS_RULE);
    }
    Ok(())
}

/// Merges the environment; later sources win: image, daemon, manifest, proxy, credentials, request.
fn environment(
    target: &Served,
    provider: &Provider,
    settings: &Settings,
    task: Vec<(String, String)>,
    credentials: &BTreeMap<String, Secret>,
    request: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let image_env = target.image.env.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut env = environment::of_provider(&image_env, &provider.home);
    drop(image_env);
    env.extend(task);
    environment::set_proxy(settings.proxy_port, &mut env);
    env.extend(credentials.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())));
    env.extend(request.clone());
    env
}
