//! Commands and prompts in sandboxes: the plan of one, and how it begins.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use tokio::net::unix::pipe;

use super::clock;
use super::place::{InSandbox, Place};
use super::plan::{self, Plan, RequestError};
use super::state::Submitted as SubmittedCommand;
use super::stdin::input;
use super::{Executions, Handle, StartError, vaulted};
use crate::container::{Process, Stdio};
use crate::failpoints;
use crate::output::output_pipe;
use crate::sandbox::{Handle as Sandbox, SandboxError, Sandboxes};
use thaw_client::types::{ClaimPath, ExecutionRequest};
use thaw_os::cgroup::Usage;

/// Fields that make no sense with a sandbox, and why.
fn refused(request: &ExecutionRequest) -> Option<(&'static str, &'static str)> {
    const SET: &str = "the sandbox has what it was created with";
    const PLACE: &str = "the command runs in the sandbox";
    const PROMPT: &str = "it goes with a `prompt`";
    const FILES: &str = "files of a sandbox stay in it: see /v1/sandboxes/{id}/files";
    let is_command = request.prompt.is_none();
    let fields = [
        (
            "provider",
            is_command && !request.provider.is_empty(),
            "it goes with a `prompt`; a command runs in the sandbox",
        ),
        ("image", request.image.is_some(), PLACE),
        ("entrypoint", request.entrypoint.is_some(), PLACE),
        ("model", is_command && request.model.is_some(), PROMPT),
        ("effort", is_command && request.effort.is_some(), PROMPT),
        (
            "credentials",
            is_command && request.credentials.is_some(),
            "only a `prompt` has some; give variables in `env`",
        ),
        ("files", !request.files.is_empty(), FILES),
        ("archive", request.archive.is_some(), FILES),
        ("collect", !request.collect.is_empty(), FILES),
        ("memory_bytes", request.memory_bytes.is_some(), SET),
        ("cpus", request.cpus.is_some(), SET),
        ("queue_timeout_ms", request.queue_timeout_ms.is_some(), "nothing in a sandbox waits in the queue"),
    ];
    fields.into_iter().find_map(|(name, given, why)| given.then_some((name, why)))
}

/// Checks a request that names a sandbox, and makes its plan.
pub(super) fn plan(
    mut request: ExecutionRequest,
    executions: &Executions,
    sandboxes: &Sandboxes,
) -> Result<Plan, StartError> {
    if let Some((field, why)) = refused(&request) {
        return Err(RequestError::NotWithSandbox { field, why }.into());
    }
    if request.prompt.is_some() && request.command.is_some() {
        return Err(RequestError::PromptOrCommand.into());
    }
    plan::check_names(&request)?;
    let id = request.sandbox.take().unwrap_or_default();
    let found = sandboxes.get(&id).filter(|sandbox| sandbox.user() == request.user);
    let sandbox = found.ok_or(SandboxError::Unknown(id))?;
    let Some(target) = executions.served.get(sandbox.template()) else {
        let name = sandbox.template().to_owned();
        return Err(RequestError::NoTemplate { name }.into());
    };
    sandbox.env()?;
    if request.prompt.is_none() {
        return plan::inside(request, target, sandbox, &executions.settings()).map_err(StartError::from);
    }
    if request.provider != sandbox.template() {
        let problem = format!("must be {:?}, whose CLI the sandbox has: it was created from it", sandbox.template());
        return Err(RequestError::InvalidField { field: "provider".to_owned(), problem }.into());
    }
    plan::prompt_inside(request, &executions.served, sandbox, &executions.settings()).map_err(StartError::from)
}

impl Plan {
    /// The sandbox that it runs in.
    pub(super) fn in_sandbox(&self) -> Option<InSandbox> {
        self.sandbox.as_ref().map(|sandbox| InSandbox {
            id: sandbox.id().to_owned(),
            holds: self.holds,
            lends: self.lends.clone(),
        })
    }
}

/// A command that was handed over.
pub(super) struct Begun {
    pub place: Place,
    pub process: Process,
    pub baseline: Usage,
    pub stdin: Option<(pipe::Sender, usize)>,
    pub stdout: OwnedFd,
    pub stderr: OwnedFd,
}

/// Wakes the sandbox and hands the command over. Once it was, nothing here is given up: it would run on unseen.
pub(super) async fn submit(
    executions: &Executions,
    handle: &Handle,
    plan: &Plan,
    sandbox: &Arc<Sandbox>,
) -> Result<Begun, StartError> {
    let inside = tokio::select! {
        entered = sandbox.enter(plan.holds) => entered?,
        () = handle.cancel.cancelled() => return Err(StartError::Cancelled),
        () = executions.shutdown.cancelled() => return Err(StartError::Stopped),
    };
    let files = vaulted::files(handle, plan).await?;
    if !plan.lends.is_empty() {
        inside.lend(plan.lends.clone(), false)?;
    }
    let container = inside.container();
    let (stdin_reader, stdin) = match (handle.stdin(), plan.stdin.as_deref()) {
        (Some(open), _) => (open.reader()?, None),
        (None, Some(text)) => input(text)?,
        (None, None) => (container.null_input()?, None),
    };
    let is_read = handle.stdin().is_some() || plan.stdin.is_some();
    let (stdout, stdout_writer) = output_pipe(handle.log.chunk_size())?;
    let (stderr, stderr_writer) = output_pipe(handle.log.chunk_size())?;
    let pipes = [Some(stdout_writer.as_fd()), Some(stderr_writer.as_fd()), is_read.then(|| stdin_reader.as_fd())];
    for pipe in pipes.into_iter().flatten() {
        container.give(pipe)?;
    }
    let baseline = container.usage()?;
    let process = container.reserve()?;
    let command = SubmittedCommand {
        container: container.id().to_owned(),
        tag: process.tag(),
        path: ClaimPath::Warm,
        since: clock::now(),
        until: handle.deadline.get().copied(),
        prestarted: false,
    };
    handle.submit(command, &[stdout.as_fd(), stderr.as_fd()]);
    if let Some(keeper) = &handle.keeper {
        keeper.caught_up().await;
    }
    failpoints::at("inside.kept");
    if !files.is_empty() {
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.expose())).collect();
        container.inject(&files)?;
    }
    let stdio = Stdio::Three([stdin_reader.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()]);
    container.begin(&process, &plan.command, &stdio).await?;
    failpoints::at("inside.submitted");
    handle.log.note_submitted();
    Ok(Begun { place: Place::Sandbox(inside), process, baseline, stdin, stdout, stderr })
}
