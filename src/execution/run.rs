//! The task that owns one execution.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::clock;
use super::clock::at;
use super::decoder::{Decoder, Meaning};
use super::ending::{End, Ended, Finished, Stop, after, conclude, naming, never_ran};
use super::inside;
use super::late::Conversation;
use super::metrics::Origin;
use super::place::Place;
use super::plan::Plan;
use super::resumable::Resumable;
use super::said::Said;
use super::state::Submitted as SubmittedCommand;
use super::stdin::input;
use super::told::{announce, finish, say_why};
use super::vaulted::{self, WriteBack};
use super::{Executions, Handle, StartError, waiting, workspace};
use crate::container::{ClaimGuard, Cli, Container, ContainerError, Exited, Once, Process, Stdio};
use crate::failpoints;
use crate::output::{Recovered, Source, Stream, output_pipe};
use crate::pool::Claimed;
use crate::provider::{Dialect, DialectParser};
use thaw_client::types::{ClaimPath, Collected, Delta, Event};
use thaw_os::cgroup::Usage;
use thaw_os::kernel::thread_cpu_time;

/// Time that the pipes may stay open after every process was killed. They close at once, unless a process hangs in the
/// kernel.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Time for a thawed container to execute the command. It takes microseconds, unless the container was frozen from outside.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Number of warm containers that are tried.
const CLAIM_ATTEMPTS: u32 = 3;

/// An execution whose command runs.
pub(super) struct Running {
    container: Place,
    process: Process,
    /// How the command ended, once it has.
    exited: Option<Exited>,
    baseline: Usage,
    since: Instant,
    /// Time at which the execution times out.
    deadline: Instant,
    /// Length of standard output before this command.
    from: u64,
    /// Time of the request, and state of the container before its claim; `None` if an earlier daemon began the
    /// execution.
    pub(super) begun: Option<(Instant, Origin)>,
    stdout: Source,
    stderr: Source,
    decoder: Decoder,
    /// Watches credential files of the vault.
    write_back: Option<WriteBack>,
    /// Claim in flight for the refill throttle, until there is output.
    guard: Option<ClaimGuard>,
}

impl Running {
    /// One that an earlier daemon had begun.
    pub(super) fn resume(handle: &Handle, recovered: &Recovered, resumable: Resumable) -> io::Result<Self> {
        let Resumable { container, process, command, output, conversation } = resumable;
        let [stdout, stderr] = output;
        let decoder = match conversation {
            Some(pipes) => Decoder::resume_conversation(handle, recovered, pipes)?,
            None => Decoder::resume(handle, recovered),
        };
        let since = clock::instant(command.since);
        Ok(Self {
            process,
            exited: None,
            baseline: match &container {
                Place::Own(container) => container.baseline(),
                // Of everybody in it, so that only what is killed from now on counts.
                Place::Sandbox(inside) => inside.container().usage().map_err(io::Error::other)?,
            },
            since,
            deadline: handle.deadline.get().map_or(since + handle.timeout, |until| clock::instant(*until)),
            from: 0,
            begun: None,
            stdout: handle.source(stdout, Stream::Stdout)?,
            stderr: handle.source(stderr, Stream::Stderr)?,
            decoder,
            write_back: WriteBack::start(handle, &container, true),
            guard: None,
            container,
        })
    }

    /// Stores what the command has made of the user's credential; another daemon would find the files as well.
    async fn bring_back(&mut self, end: &End, stop: Option<Stop>) {
        if let Some(write_back) = self.write_back.take() {
            write_back.finish(stop.is_none() && end.is_orderly()).await;
        }
        failpoints::at("end.brought_back");
    }

    /// Works out the end, when the output has been read to the end or never will be.
    fn conclude(&mut self, handle: &Handle, end: End, stop: Option<Stop>) -> Ended {
        self.container.withdraw();
        let verdict = std::mem::replace(&mut self.decoder.meaning, Meaning::Bytes).verdict();
        let Self { container, exited, baseline, since, .. } = self;
        let finished = Finished { container, exited: *exited, baseline, since: *since, verdict };
        conclude(handle, finished, end, stop)
    }
}

/// Runs the execution to its end. Returns whether it ever started; if not, `started` gets the reason.
pub async fn run(
    executions: &Arc<Executions>,
    handle: Arc<Handle>,
    mut plan: Plan,
    received: Instant,
    started: oneshot::Sender<Result<(), StartError>>,
) -> bool {
    let (mut running, failed) = match start(executions, &handle, &mut plan, received).await {
        Ok(begun) => begun,
        Err(error) => {
            executions.metrics.refused(&plan.provider, &error);
            tracing::warn!(%error, "execution not started");
            // The execution was visible while it was pending: its readers need an end.
            finish(&handle, never_ran(&error, received));
            let _ = started.send(Err(error));
            return false;
        }
    };
    let _ = started.send(Ok(()));
    let (end, stop) = follow_to_the_end(executions, &handle, &mut running, failed).await;
    let refused = stop.is_none() && running.decoder.wants_renewal(handle.has_managed_login());
    let deadline = running.deadline;
    let mut ended = running.conclude(&handle, end, stop);
    if !refused {
        ended.exit.collected = collected(executions, &handle, &running).await;
    }
    let mut last = Some(running);
    if refused {
        // That is how it ended, should this daemon be killed before its second command is handed over.
        let _ = handle.first_exit.set(ended.exit.clone());
        handle.keep(None);
        // Its place is free for the next one.
        drop(last.take());
        // Rare, and as large as everything else here: on the heap.
        (ended, last) = Box::pin(once_more(executions, &handle, &mut plan, deadline, ended)).await;
    }
    plan.forget_secrets();
    tell(executions, &handle, ended);
    // Drop the container after the `exit` event: if the daemon is killed before, the next one learns the end from it.
    drop(last);
    true
}

/// As [`begin`], until the execution is cancelled or the daemon shuts down.
async fn start(
    executions: &Executions,
    handle: &Handle,
    plan: &mut Plan,
    received: Instant,
) -> Result<(Running, Option<(i32, String)>), StartError> {
    // Whatever begins in a sandbox does not end by being given up.
    if plan.sandbox.is_some() {
        return begin(executions, handle, plan, received).await;
    }
    tokio::select! {
        begun = begin(executions, handle, plan, received) => begun,
        () = handle.cancel.cancelled() => Err(StartError::Cancelled),
        () = executions.shutdown.cancelled() => Err(StartError::Stopped),
    }
}

/// Repeats the request: the provider refused the access token, before anything was said or done. A login that the daemon
/// renews is renewed first; another one is left to a CLI that has the credential file, in a container without a prestarted
/// one. The client gets a second `started`; the time limit stays that of the first.
async fn once_more(
    executions: &Arc<Executions>,
    handle: &Arc<Handle>,
    plan: &mut Plan,
    deadline: Instant,
    first: Ended,
) -> (Ended, Option<Running>) {
    tracing::info!(container = %first.container, "the provider refused the access token: once more with a renewed one");
    let begun = Instant::now();
    if handle.has_managed_login() {
        let renewed = tokio::select! {
            renewed = vaulted::renew(handle, deadline.saturating_duration_since(begun)) => renewed,
            () = handle.cancel.cancelled() => Err(StartError::Cancelled),
            () = executions.shutdown.cancelled() => Err(StartError::Stopped),
        };
        match renewed {
            Ok(()) => {}
            Err(error @ (StartError::Cancelled | StartError::Stopped)) => {
                let ended = Ended { exit: never_ran(&error, begun), used: Usage::default(), ..first.clone() };
                return (ended.after(&first), None);
            }
            Err(error) => return (first.because(&error), None),
        }
    }
    match start(executions, handle, plan, begun).await {
        Ok((mut running, failed)) => {
            running.deadline = deadline;
            let (end, stop) = follow_to_the_end(executions, handle, &mut running, failed).await;
            let mut ended = running.conclude(handle, end, stop).after(&first);
            ended.exit.collected = collected(executions, handle, &running).await;
            (ended, Some(running))
        }
        Err(error @ (StartError::Cancelled | StartError::Stopped | StartError::Left)) => {
            let ended = Ended { exit: never_ran(&error, begun), used: Usage::default(), ..first.clone() };
            (ended.after(&first), None)
        }
        Err(error) => (first.because(&error), None),
    }
}

/// Follows the command, if it could be executed, until it has to end.
async fn follow_to_the_end(
    executions: &Executions,
    handle: &Arc<Handle>,
    running: &mut Running,
    failed: Option<(i32, String)>,
) -> (End, Option<Stop>) {
    match failed {
        Some((code, detail)) => {
            say_why(handle, &detail);
            // Nothing ran, so there is no output to decode.
            running.decoder.meaning = Meaning::Bytes;
            (End::NotStarted(code), None)
        }
        None => {
            let (end, stop) = follow(executions, handle, running, executions.settings().disconnect_grace, None).await;
            running.bring_back(&end, stop).await;
            (end, stop)
        }
    }
}

/// Resumes an execution that an earlier daemon had begun, and follows it to its end.
pub(super) async fn go_on(
    executions: &Arc<Executions>,
    handle: &Arc<Handle>,
    mut running: Running,
    recovered: &Recovered,
) {
    if !recovered.announced {
        let command = handle.submitted();
        let (path, prestarted) = command.map_or((ClaimPath::Cold, false), |command| (command.path, command.prestarted));
        announce(handle, running.container.id(), path, prestarted, running.since.elapsed());
    }
    // Publish what was read but not published, and the part of the answer that was not.
    handle.log.publish(Stream::Stdout, false);
    handle.log.publish(Stream::Stderr, false);
    let answer = running.decoder.listen(&handle.log).concat();
    if let Some(missing) = answer.get(recovered.delta_bytes..).filter(|missing| !missing.is_empty()) {
        handle.log.push(&Event::Delta(Delta { text: missing.to_owned(), at: None }));
    }
    tracing::info!(container = running.container.id(), "execution goes on");
    let grace = executions.settings().reconnect_grace;
    let (end, stop) = follow(executions, handle, &mut running, grace, Stop::recovered(recovered)).await;
    running.bring_back(&end, stop).await;
    let mut ended = running.conclude(handle, end, stop);
    if let Some(first) = handle.first_exit.get() {
        ended.exit = after(ended.exit, first);
    }
    ended.exit.collected = collected(executions, handle, &running).await;
    tell(executions, handle, ended);
    drop(running);
}

/// What was asked for of the files that it left.
async fn collected(executions: &Executions, handle: &Handle, running: &Running) -> Option<Collected> {
    let container = running.container.own()?;
    let collected = workspace::collect_from(handle, container, executions.settings().files.collect).await;
    failpoints::at("end.collected");
    collected
}

fn tell(executions: &Executions, handle: &Handle, ended: Ended) {
    let Ended { container, exit, used } = ended;
    executions.metrics.exited(&handle.provider, &exit, &used);
    // The API's word, not this program's.
    let reason = serde_json::to_value(exit.reason).ok().and_then(|word| word.as_str().map(str::to_owned));
    tracing::info!(
        %container, reason, code = exit.code, duration_ms = exit.duration_ms, "execution ended"
    );
    finish(handle, exit);
}

/// Claims a container and starts the command. A command that cannot be executed counts as started: it exits with 126 or
/// 127, and the code and its reason are returned beside it.
///
/// Dropping the future at any point destroys the container.
async fn begin(
    executions: &Executions,
    handle: &Handle,
    plan: &mut Plan,
    received: Instant,
) -> Result<(Running, Option<(i32, String)>), StartError> {
    let mut attempts = 1;
    let (container, path, submitted, failed) = loop {
        let (container, path, submitted) = hand_over(executions, handle, plan, &mut attempts).await?;
        container.thaw()?;
        failpoints::at("claim.thawed");
        match started(&submitted).await {
            Ok(failed) => {
                let failed = failed.map(|(code, why)| (code, naming(&plan.program, &why)));
                break (container, path, submitted, failed);
            }
            Err(error) if plan.sandbox.is_some() => {
                // It may begin later, with nobody who knows of it.
                container.kill(&submitted.process);
                return Err(error.into());
            }
            // It died after it was given everything, and has reported no start: the next one is as good.
            Err(error) if may_try_another(&error, path, attempts) => {
                tracing::warn!(container = container.id(), %error, "claimed container died");
                plan.origin.check_health().await?;
                attempts += 1;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let Submitted { process, baseline, stdin, stdout, stderr, conversation, guard } = submitted;
    failpoints::at("run.started");
    if let Some(open) = handle.stdin() {
        open.begun();
    }
    let is_managed = handle.has_managed_login();
    let may_be_asked_again = match &conversation {
        Some(decoder) => decoder.may_want_renewal(is_managed),
        None => is_managed && plan.dialect.is_some_and(Dialect::tells_refusals),
    };
    if !may_be_asked_again {
        plan.forget_secrets();
    } else if is_managed {
        // The next container would get another one.
        plan.files.clear();
    }
    plan.late = None;
    let claim = received.elapsed();
    let origin = Origin::of(path, conversation.is_some());
    executions.metrics.claimed(&plan.provider, origin, claim);
    announce(handle, container.id(), path, conversation.is_some(), claim);
    if let Some((mut writer, sent)) = stdin
        && let Some(text) = if may_be_asked_again { plan.stdin.clone() } else { plan.stdin.take() }
    {
        // In a task of its own: a command that reads slowly, or never, must not delay the reading of its output. The
        // write fails when the command closes its end of the pipe.
        tokio::spawn(async move {
            let _ = writer.write_all(&text[sent..]).await;
        });
    }
    if !may_be_asked_again {
        // The command has its input, or the task above has.
        plan.stdin = None;
        plan.work.put = Arc::default();
    }
    let decoder = match (conversation, plan.dialect) {
        (Some(conversation), _) => conversation,
        (None, Some(dialect)) => Decoder::new(handle, Meaning::Dialect(DialectParser::new(dialect))),
        (None, None) => Decoder::new(handle, Meaning::Bytes),
    };
    let write_back = WriteBack::start(handle, &container, false);
    let since = Instant::now();
    let _ = handle.deadline.set(clock::now() + handle.timeout);
    Ok((
        Running {
            container,
            process,
            exited: None,
            baseline,
            since,
            deadline: since + handle.timeout,
            from: handle.log.spool(Stream::Stdout).length(),
            begun: Some((received, origin)),
            stdout: handle.source(stdout, Stream::Stdout)?,
            stderr: handle.source(stderr, Stream::Stderr)?,
            decoder,
            write_back,
            guard,
        },
        failed,
    ))
}

/// Waits until the command runs. Returns code and reason if it cannot be executed.
async fn started(submitted: &Submitted) -> Result<Option<(i32, String)>, ContainerError> {
    if submitted.conversation.is_some() {
        return Ok(None);
    }
    let started = tokio::time::timeout(START_TIMEOUT, submitted.process.started()).await;
    match started.unwrap_or(Err(ContainerError::Timeout(START_TIMEOUT.as_secs()))) {
        Ok(()) => Ok(None),
        Err(error) => error.exit_code().map(|code| Some((code, error.to_string()))).ok_or(error),
    }
}

/// Whether a warm container turned out to be dead, and another one may work.
fn may_try_another(error: &ContainerError, path: ClaimPath, attempts: u32) -> bool {
    error.is_broken() && path == ClaimPath::Warm && attempts < CLAIM_ATTEMPTS
}

/// Claims a container and passes credentials and command to it. Replaces a warm container that died since its last health
/// check: nothing has run in it.
async fn hand_over(
    executions: &Executions,
    handle: &Handle,
    plan: &Plan,
    attempts: &mut u32,
) -> Result<(Place, ClaimPath, Submitted), StartError> {
    if let Some(sandbox) = &plan.sandbox {
        let begun = inside::submit(executions, handle, plan, sandbox).await?;
        let inside::Begun { place, process, baseline, stdin, stdout, stderr } = begun;
        let submitted = Submitted { process, baseline, stdin, stdout, stderr, conversation: None, guard: None };
        return Ok((place, ClaimPath::Warm, submitted));
    }
    if plan.late.is_some()
        && let Some(claimed) = plan.origin.claim_prestarted().await?
    {
        let id = claimed.container.id().to_owned();
        match submit_late(executions, handle, plan, claimed).await {
            Ok((container, submitted)) => return Ok((Place::Own(container), ClaimPath::Warm, submitted)),
            // The CLI got no prompt, so any other container may be used instead.
            Err(error) => {
                tracing::warn!(container = %id, %error, "prestarted CLI unusable")
            }
        }
    }
    loop {
        let claimed = waiting::claim(handle, plan, executions.settings().disconnect_grace).await?;
        let (id, path) = (claimed.container.id().to_owned(), claimed.path);
        let is_prestarted = claimed.container.cli().is_some();
        let submitted = match is_prestarted {
            true => submit_late(executions, handle, plan, claimed).await,
            false => submit(handle, plan, claimed).await,
        };
        match submitted {
            Ok((container, submitted)) => return Ok((Place::Own(container), path, submitted)),
            Err(StartError::Container(error))
                if may_try_another(&error, path, *attempts)
                    || (is_prestarted && path == ClaimPath::Warm && *attempts < CLAIM_ATTEMPTS) =>
            {
                tracing::warn!(container = %id, %error, "claimed container is broken");
                // Whatever ended this container may have ended others.
                plan.origin.check_health().await?;
                *attempts += 1;
            }
            Err(error) => return Err(error),
        }
    }
}

/// A command that starts as soon as its container is thawed.
struct Submitted {
    process: Process,
    baseline: Usage,
    /// Also reports how many bytes of stdin were written.
    stdin: Option<(pipe::Sender, usize)>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    /// What is understood of a CLI that runs already, and said to it.
    conversation: Option<Decoder>,
    /// To be dropped at the first byte of output; none in a sandbox, which was claimed before.
    guard: Option<ClaimGuard>,
}

/// Hands everything to a CLI that waits in the frozen container.
async fn submit_late(
    executions: &Executions,
    handle: &Handle,
    plan: &Plan,
    claimed: Claimed,
) -> Result<(Once, Submitted), StartError> {
    let Claimed { container, path, guard } = claimed;
    let broken = |reason: String| StartError::Container(ContainerError::Prestart(reason));
    let late = plan.late.as_ref().ok_or_else(|| broken("it is not for this request".to_owned()))?;
    let said = Said::new(executions.spools.file()?, &late.prompt)?;
    let files = vaulted::files(handle, plan).await?;
    {
        let cli = container.cli().ok_or_else(|| broken("there is none".to_owned()))?;
        let pipes = [cli.stdout.as_fd(), cli.stderr.as_fd(), cli.stdin.as_fd(), said.as_fd()];
        keep_command(handle, &container, path, &pipes).await;
    }
    let mut container = container.claim_once(&handle.id, handle.user())?;
    failpoints::at("claim.raised");
    let Cli { process, mut driver, stdin, stdout, stderr } =
        container.take_cli().ok_or_else(|| broken("there is none".to_owned()))?;
    let env = BTreeMap::new();
    let request = late.request(&files, &env);
    if driver.plan().mounts_files(&request) {
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.expose())).collect();
        container.inject(&files)?;
    }
    if !plan.work.is_empty() {
        container.put(&plan.work.put).await?;
    }
    failpoints::at("claim.injected");
    let input = driver.claim(&request).map_err(|refusal| broken(refusal.to_string()))?;
    let (stdout, stderr) = (stdout.into_nonblocking_fd()?, stderr.into_nonblocking_fd()?);
    let conversation = Conversation::begin(driver.into_dialogue(), stdin.into_nonblocking_fd()?, said, &input)?;
    let mut decoder = Decoder::new(handle, Meaning::Conversation(Box::new(conversation)));
    failpoints::at("claim.submitted");
    handle.log.note_submitted();
    failpoints::at("claim.noted");
    // The CLI finds it when it thaws.
    decoder.meaning.send_some();
    let baseline = container.baseline();
    Ok((
        container,
        Submitted { process, baseline, stdin: None, stdout, stderr, conversation: Some(decoder), guard: Some(guard) },
    ))
}

/// Lets the next daemon know whose the container was, and what is in it, before it is claimed.
async fn keep_command(handle: &Handle, container: &Container, path: ClaimPath, pipes: &[BorrowedFd<'_>]) {
    let (since, until) = (clock::now(), handle.deadline.get().copied());
    let cli = container.cli();
    let (tag, prestarted) = (cli.map_or_else(|| container.next_tag(), |cli| cli.process.tag()), cli.is_some());
    let container = container.id().to_owned();
    handle.submit(SubmittedCommand { container, tag, path, since, until, prestarted }, pipes);
    if let Some(keeper) = &handle.keeper {
        keeper.caught_up().await;
    }
    failpoints::at("claim.kept");
}

/// Everything that is done while a warm container is still frozen, so that the thaw is the last thing between the
/// claim and the command.
async fn submit(handle: &Handle, plan: &Plan, claimed: Claimed) -> Result<(Once, Submitted), StartError> {
    let Claimed { container, path, guard } = claimed;
    let (stdin_reader, stdin) = match (handle.stdin(), plan.stdin.as_deref()) {
        (Some(open), _) => (open.reader()?, None),
        (None, Some(text)) => input(text)?,
        (None, None) => (container.null_input()?, None),
    };
    let files = vaulted::files(handle, plan).await?;
    let (stdout, stdout_writer) = output_pipe(handle.log.chunk_size())?;
    let (stderr, stderr_writer) = output_pipe(handle.log.chunk_size())?;
    keep_command(handle, &container, path, &[stdout.as_fd(), stderr.as_fd()]).await;
    let mut container = container.claim_once(&handle.id, handle.user())?;
    if let Some(limits) = plan.limits {
        container.tighten(limits)?;
    }
    failpoints::at("claim.raised");
    if !files.is_empty() {
        let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.expose())).collect();
        container.inject(&files)?;
    }
    if !plan.work.is_empty() {
        container.put(&plan.work.put).await?;
    }
    failpoints::at("claim.injected");
    let baseline = container.baseline();
    for pipe in [stdout_writer.as_fd(), stderr_writer.as_fd()]
        .into_iter()
        .chain((plan.stdin.is_some() || handle.stdin.is_some()).then(|| stdin_reader.as_fd()))
    {
        container.give(pipe)?;
    }
    let stdio = Stdio::Three([stdin_reader.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()]);
    let process = container.submit(&plan.command, &stdio)?;
    failpoints::at("claim.submitted");
    handle.log.note_submitted();
    failpoints::at("claim.noted");
    Ok((container, Submitted { process, baseline, stdin, stdout, stderr, conversation: None, guard: Some(guard) }))
}

/// Publishes output and decodes it.
struct Sink<'a, F: FnMut()> {
    handle: &'a Handle,
    decoder: &'a mut Decoder,
    /// Called for each piece of standard output; acts on the first only.
    on_first: F,
}

impl<F: FnMut()> Sink<'_, F> {
    /// Publishes and decodes a piece; returns the processor time that decoding took.
    fn stdout(&mut self, all: bool) -> Duration {
        (self.on_first)();
        let log = &self.handle.log;
        failpoints::at("run.taken");
        log.publish(Stream::Stdout, all);
        failpoints::at("run.published");
        if matches!(self.decoder.meaning, Meaning::Bytes) {
            return Duration::ZERO;
        }
        let begun = thread_cpu_time();
        for text in self.decoder.listen(log) {
            log.push(&Event::Delta(Delta { text, at: None }));
        }
        self.decoder.checkpoint(log);
        thread_cpu_time().saturating_sub(begun)
    }

    fn stderr(&self, all: bool) {
        self.handle.log.publish(Stream::Stderr, all);
    }
}

/// Reads the output until the command has ended, by itself or because it had to. `first_grace` is the time without a
/// first reader; `stop` is a decision made before.
async fn follow(
    executions: &Executions,
    handle: &Arc<Handle>,
    running: &mut Running,
    first_grace: Duration,
    stop: Option<(Stop, Duration)>,
) -> (End, Option<Stop>) {
    let Running { container, process, exited, stdout, stderr, since, deadline, from, begun, decoder, guard, .. } =
        running;
    let mut silent = handle.log.spool(Stream::Stdout).length() == *from;
    // The earlier daemon has recorded the time of what it began.
    let mut unheard = begun.filter(|_| silent);
    let on_first = || {
        if handle.log.spool(Stream::Stdout).length() > *from
            && let Some((received, origin)) = unheard.take()
        {
            executions.metrics.spoke(&handle.provider, origin, received.elapsed());
        }
    };
    let mut sink = Sink { handle, decoder, on_first };
    let kill_grace = executions.settings().kill_grace;
    let mut kill_at = stop.map(|(reason, since)| ask_to_end(container, process, reason, since + kill_grace));
    let mut stop = stop.map(|(reason, _)| reason);
    let deadline = tokio::time::Instant::from_std(*deadline);
    let start_deadline = handle.start_timeout.map(|timeout| tokio::time::Instant::from_std(*since + timeout));
    let mut abandoned = std::pin::pin!(handle.abandoned(first_grace, executions.settings().disconnect_grace));

    let end = loop {
        // Also what an earlier daemon has read may be all.
        if sink.decoder.meaning.is_over() && stop.is_none() {
            break End::Answered;
        }
        // Not read while a reader is far behind, the command waits on a full pipe, as it would for `less`.
        let seen = handle.log.moves();
        let waits_until = handle.log.waits_until(stop.is_some());
        let is_read = waits_until.is_none();
        let wanted = tokio::select! {
            read = stdout.read(), if stdout.is_open() && is_read => {
                guard.take();
                if read {
                    silent = false;
                    stdout.spent(sink.stdout(false));
                }
                None
            }
            read = stderr.read(), if stderr.is_open() && is_read => {
                guard.take();
                if read {
                    sink.stderr(false);
                }
                None
            }
            () = progress(handle, seen, waits_until), if !is_read => None,
            () = sink.decoder.meaning.send() => None,
            ended = process.ended() => break match ended {
                Ok(Some(how)) => {
                    *exited = Some(how);
                    End::Status(how.status)
                }
                Ok(None) => End::Vanished,
                Err(error) => match error.exit_code() {
                    // The report was meant for an earlier daemon, which could not pass it on.
                    Some(code) => {
                        say_why(handle, &error.to_string());
                        End::NotStarted(code)
                    }
                    None => {
                        tracing::error!(%error, "lost the container");
                        End::Vanished
                    }
                },
            },
            () = tokio::time::sleep_until(deadline), if stop.is_none() => Some(Stop::Timeout),
            () = at(start_deadline), if stop.is_none() && silent => Some(Stop::StartTimeout),
            () = handle.cancel.cancelled(), if stop.is_none() => Some(Stop::Cancelled),
            () = executions.shutdown.cancelled(), if stop.is_none() => Some(Stop::Shutdown),
            () = &mut abandoned, if stop.is_none() => Some(Stop::Cancelled),
            () = at(kill_at) => {
                kill_at = None;
                container.kill(process);
                None
            }
        };
        if let Some(reason) = wanted {
            // Record the reason for the next daemon. If an earlier decision was recorded, that one counts: it was
            // promised.
            let noted = handle.log.note_stop(reason as u8);
            let reason = Stop::noted(noted).unwrap_or(reason);
            stop = Some(reason);
            kill_at = Some(ask_to_end(container, process, reason, noted.at + kill_grace));
        }
    };
    guard.take();
    failpoints::at("end.seen");
    // Everything that the command left running is killed. Then the pipes end, without losing a byte written before.
    container.clear();
    if container.own().is_none() {
        // What runs on in the sandbox may have them too. What the command itself has written is there.
        if stdout.take_rest() {
            sink.stdout(false);
        }
        if stderr.take_rest() {
            sink.stderr(false);
        }
    }
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
        while stdout.is_open() || stderr.is_open() {
            tokio::select! {
                read = stdout.read(), if stdout.is_open() => if read { sink.stdout(false); },
                read = stderr.read(), if stderr.is_open() => if read { sink.stderr(false) },
            }
        }
    });
    if drained.await.is_err() {
        tracing::error!("output still open after every process was killed");
    }
    sink.stdout(true);
    sink.stderr(true);
    failpoints::at("end.drained");
    (end, stop)
}

/// Sends SIGTERM first: a CLI may be writing a renewed token. Returns when to kill: at `kill_at`, by the clock of
/// [`clock::now`], or now.
fn ask_to_end(container: &Place, process: &Process, reason: Stop, kill_at: Duration) -> tokio::time::Instant {
    container.rouse();
    let polite = reason != Stop::Shutdown && process.signal(libc::SIGTERM).is_ok();
    let now = tokio::time::Instant::now();
    if polite { now + kill_at.saturating_sub(clock::now()) } else { now }
}

/// Waits until a reader reads, at most until `until`; pending for ever without a time.
async fn progress(handle: &Handle, seen: u64, until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => handle.log.progress(seen, until).await,
        None => std::future::pending().await,
    }
}
