//! The task that owns one execution.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use super::clock;
use super::clock::at;
use super::ending::{End, Ended, Finished, Stop, conclude, naming, never_ran};
use super::late::{Conversation, Late};
use super::metrics::Origin;
use super::plan::Plan;
use super::state::{Assignment, Step, Submitted as SubmittedCommand};
use super::stdin::input;
use super::vaulted::WriteBack;
use super::{Executions, Handle, StartError, waiting, workspace};
use crate::container::{ClaimGuard, Cli, Container, ContainerError, Once, Process, Stdio};
use crate::failpoints;
use crate::output::{Checkpoint, Log, Recovered, Source, Stream, output_pipe};
use crate::pool::Claimed;
use crate::provider::{DialectParser, Verdict};
use thaw_client::types::{ClaimPath, Collected, Delta, Event, Exit, Started};
use thaw_os::cgroup::Usage;

/// How long the pipes may stay open after every process was killed. They close at once, unless a process hangs in
/// the kernel.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a thawed container may take to execute the command: microseconds, unless somebody froze it from outside.
const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Most output decoded at once, bytes.
const HEAR_BYTES: u64 = 1 << 20;

/// Number of warm containers that are tried.
const CLAIM_ATTEMPTS: u32 = 3;

/// Decoder for the provider's output dialect.
enum Meaning {
    /// None: the output is a command's.
    Bytes,
    /// Decoder for a CLI that runs once.
    Dialect(DialectParser),
    /// Driver of a prestarted CLI.
    Conversation(Box<Conversation>),
}

impl Meaning {
    fn decode(&mut self, bytes: &[u8]) -> Vec<String> {
        match self {
            Self::Bytes => Vec::new(),
            Self::Dialect(parser) => parser.push(bytes),
            Self::Conversation(conversation) => conversation.decode(bytes),
        }
    }

    fn is_over(&self) -> bool {
        matches!(self, Self::Conversation(conversation) if conversation.is_over())
    }

    /// Sends what a conversation has left to say; never ends otherwise.
    async fn send(&mut self) {
        match self {
            Self::Conversation(conversation) => conversation.send().await,
            Self::Bytes | Self::Dialect(_) => std::future::pending().await,
        }
    }

    fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Bytes => None,
            Self::Dialect(parser) => Some(parser.finish()),
            Self::Conversation(conversation) => Some(conversation.finish()),
        }
    }
}

/// Decoder of standard output, and how far it has come.
struct Decoder {
    meaning: Meaning,
    /// Bytes of standard output decoded so far.
    offset: u64,
}

impl Decoder {
    /// A decoder that begins where the command's output begins.
    fn new(handle: &Handle, meaning: Meaning) -> Self {
        let this = Self { meaning, offset: handle.log.spool(Stream::Stdout).length() };
        if matches!(this.meaning, Meaning::Dialect(_)) {
            handle.log.keep_for_parser(this.offset);
            if this.offset > 0 {
                // Another one spoke before.
                this.write_checkpoint(&handle.log);
            }
        }
        this
    }

    /// Whether the credential was refused, and another CLI could renew it.
    fn wants_renewal(&self) -> bool {
        matches!(&self.meaning, Meaning::Conversation(conversation) if conversation.wants_renewal())
    }

    /// From where an earlier daemon was.
    fn resume(handle: &Handle, recovered: &Recovered) -> Self {
        let Some(dialect) = handle.dialect else { return Self { meaning: Meaning::Bytes, offset: 0 } };
        let checkpoint = recovered.checkpoint.as_deref().and_then(|json| serde_json::from_slice(json).ok());
        let Checkpoint { offset, parser } =
            checkpoint.unwrap_or_else(|| Checkpoint { offset: 0, parser: DialectParser::new(dialect) });
        handle.log.keep_for_parser(offset);
        Self { meaning: Meaning::Dialect(parser), offset }
    }

    /// Decodes new standard output; returns pieces of the answer.
    fn listen(&mut self, log: &Log) -> Vec<String> {
        let spool = log.spool(Stream::Stdout);
        let mut deltas = Vec::new();
        while !matches!(self.meaning, Meaning::Bytes) && self.offset < spool.length() {
            let to = spool.length().min(self.offset + HEAR_BYTES);
            deltas.extend(self.meaning.decode(&spool.read(self.offset, to)));
            self.offset = to;
        }
        deltas
    }

    /// Writes a checkpoint for the next daemon, if one is due.
    fn checkpoint(&self, log: &Log) {
        if log.is_checkpoint_due(self.offset) {
            self.write_checkpoint(log);
        }
    }

    fn write_checkpoint(&self, log: &Log) {
        if let Meaning::Dialect(parser) = &self.meaning {
            let json = serde_json::to_vec(&Checkpoint { offset: self.offset, parser });
            log.checkpoint(self.offset, json.expect("strings and numbers always serialize"));
        }
    }
}

/// An execution whose command runs.
pub(super) struct Running {
    container: Once,
    process: Process,
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
    pub(super) fn resume(
        handle: &Handle,
        recovered: &Recovered,
        container: Once,
        process: Process,
        pipes: [OwnedFd; 2],
        command: &SubmittedCommand,
    ) -> io::Result<Self> {
        let [stdout, stderr] = pipes;
        let since = clock::instant(command.since);
        Ok(Self {
            process,
            baseline: container.baseline(),
            since,
            deadline: handle.deadline.get().map_or(since + handle.timeout, |until| clock::instant(*until)),
            from: 0,
            begun: None,
            stdout: handle.source(stdout, Stream::Stdout)?,
            stderr: handle.source(stderr, Stream::Stderr)?,
            decoder: Decoder::resume(handle, recovered),
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
        let verdict = std::mem::replace(&mut self.decoder.meaning, Meaning::Bytes).verdict();
        let Self { container, baseline, since, .. } = self;
        let finished = Finished { container, baseline, since: *since, verdict };
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
    let (end, stop) = see_through(executions, &handle, &mut running, failed).await;
    let refused = stop.is_none() && running.decoder.wants_renewal();
    let deadline = running.deadline;
    let mut ended = running.conclude(&handle, end, stop);
    if !refused {
        ended.exit.collected = collected(executions, &handle, &running).await;
    }
    let mut last = Some(running);
    if refused {
        // Its place is free for the next one.
        drop(last.take());
        (ended, last) = once_more(executions, &handle, &mut plan, deadline, ended).await;
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
    tokio::select! {
        begun = begin(executions, handle, plan, received) => begun,
        () = handle.cancel.cancelled() => Err(StartError::Cancelled),
        () = executions.shutdown.cancelled() => Err(StartError::Stopped),
    }
}

/// Repeats the request in a container without a CLI: the provider refused the access token, and a CLI that has the
/// credential file can renew it. The client gets a second `started`; the time limit stays that of the first.
async fn once_more(
    executions: &Arc<Executions>,
    handle: &Arc<Handle>,
    plan: &mut Plan,
    deadline: Instant,
    first: Ended,
) -> (Ended, Option<Running>) {
    tracing::info!(container = %first.container, "the provider refused the access token: once more with a CLI that can renew it");
    let begun = Instant::now();
    match start(executions, handle, plan, begun).await {
        Ok((mut running, failed)) => {
            running.deadline = deadline;
            let (end, stop) = see_through(executions, handle, &mut running, failed).await;
            let mut ended = running.conclude(handle, end, stop).after(&first);
            ended.exit.collected = collected(executions, handle, &running).await;
            (ended, Some(running))
        }
        Err(error @ (StartError::Cancelled | StartError::Stopped | StartError::Left)) => {
            let ended = Ended { exit: never_ran(&error, begun), used: Usage::default(), ..first.clone() };
            (ended.after(&first), None)
        }
        Err(error) => {
            tracing::warn!(%error, "it cannot be asked again");
            (first, None)
        }
    }
}

/// Follows the command, if it could be executed, until it has to end.
async fn see_through(
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
        let path = handle.submitted().map_or(ClaimPath::Cold, |command| command.path);
        announce(handle, &running.container, path, false, running.since.elapsed());
    }
    // What was read and not published any more; and of the answer, what was not.
    handle.log.publish(Stream::Stdout, false);
    handle.log.publish(Stream::Stderr, false);
    let answer = running.decoder.listen(&handle.log).concat();
    if let Some(missing) = answer.get(recovered.delta_bytes..).filter(|missing| !missing.is_empty()) {
        handle.log.push(&Event::Delta(Delta { text: missing.to_owned() }));
    }
    tracing::info!(container = running.container.id(), "execution goes on");
    let grace = executions.settings().reconnect_grace;
    let (end, stop) = follow(executions, handle, &mut running, grace, Stop::recovered(recovered)).await;
    running.bring_back(&end, stop).await;
    let mut ended = running.conclude(handle, end, stop);
    ended.exit.collected = collected(executions, handle, &running).await;
    tell(executions, handle, ended);
    drop(running);
}

/// What was asked for of the files that it left.
async fn collected(executions: &Executions, handle: &Handle, running: &Running) -> Option<Collected> {
    let collected = workspace::collect_from(handle, &running.container, executions.settings().files.collect).await;
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

/// Writes to standard error why the command could not be executed.
fn say_why(handle: &Handle, detail: &str) {
    // An earlier daemon may have written it already.
    if handle.log.spool(Stream::Stderr).length() == 0 {
        handle.log.push_output(Stream::Stderr, format!("thawd: {detail}\n").as_bytes());
    }
}

/// Writes the last event. From then on only the log is kept.
pub(super) fn finish(handle: &Handle, mut exit: Exit) {
    exit.request_id = handle.request_id.clone();
    if !handle.step(Step::End(exit.clone())) {
        return;
    }
    handle.log.push(&Event::Exit(exit));
    failpoints::at("end.written");
    if handle.is_kept() {
        handle.keep(None);
    }
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
        let (container, path, submitted) =
            hand_over(handle, plan, executions.settings().disconnect_grace, &mut attempts).await?;
        container.thaw()?;
        failpoints::at("claim.thawed");
        match started(&submitted).await {
            Ok(failed) => {
                let failed = failed.map(|(code, why)| (code, naming(&plan.program, &why)));
                break (container, path, submitted, failed);
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
    let may_be_asked_again = conversation.as_ref().is_some_and(Conversation::may_want_renewal);
    if !may_be_asked_again {
        plan.forget_secrets();
    }
    plan.late = None;
    let claim = received.elapsed();
    let origin = Origin::of(path, conversation.is_some());
    executions.metrics.claimed(&plan.provider, origin, claim);
    announce(handle, &container, path, conversation.is_some(), claim);
    if let Some((mut writer, sent)) = stdin
        && let Some(text) = plan.stdin.take()
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
    let meaning = match (conversation, plan.dialect) {
        (Some(conversation), _) => Meaning::Conversation(Box::new(conversation)),
        (None, Some(dialect)) => Meaning::Dialect(DialectParser::new(dialect)),
        (None, None) => Meaning::Bytes,
    };
    let write_back = WriteBack::start(handle, &container, false);
    let since = Instant::now();
    let _ = handle.deadline.set(clock::now() + handle.timeout);
    Ok((
        Running {
            container,
            process,
            baseline,
            since,
            deadline: since + handle.timeout,
            from: handle.log.spool(Stream::Stdout).length(),
            begun: Some((received, origin)),
            stdout: handle.source(stdout, Stream::Stdout)?,
            stderr: handle.source(stderr, Stream::Stderr)?,
            decoder: Decoder::new(handle, meaning),
            write_back,
            guard: Some(guard),
        },
        failed,
    ))
}

/// Waits until the command runs. One that cannot be executed has a code and a reason.
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

/// Claims a container and gives it credentials and command. A warm one that died since it was last looked at gets
/// replaced: nothing has run in it.
async fn hand_over(
    handle: &Handle,
    plan: &Plan,
    grace: Duration,
    attempts: &mut u32,
) -> Result<(Once, ClaimPath, Submitted), StartError> {
    if let Some(late) = &plan.late
        && let Some(Claimed { container, guard, .. }) = plan.origin.claim_prestarted().await?
    {
        let id = container.id().to_owned();
        match submit_late(handle, plan, late, container, guard).await {
            Ok((container, submitted)) => return Ok((container, ClaimPath::Warm, submitted)),
            // Correct first, then fast: nothing has been asked, so another container may be.
            Err(error) => {
                tracing::warn!(container = %id, %error, "prestarted CLI unusable")
            }
        }
    }
    loop {
        let Claimed { container, path, guard } = waiting::claim(handle, plan, grace).await?;
        let id = container.id().to_owned();
        let late = plan.late.as_ref().filter(|_| container.has_cli());
        let submitted = match late {
            Some(late) => submit_late(handle, plan, late, container, guard).await,
            None => submit(handle, plan, container, path, guard).await,
        };
        match submitted {
            Ok((container, submitted)) => return Ok((container, path, submitted)),
            Err(StartError::Container(error))
                if may_try_another(&error, path, *attempts)
                    || (late.is_some() && path == ClaimPath::Warm && *attempts < CLAIM_ATTEMPTS) =>
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
    /// With a CLI that runs already.
    conversation: Option<Conversation>,
    /// To be dropped at the first byte of output.
    guard: ClaimGuard,
}

/// Hands everything to a CLI that waits in the frozen container.
async fn submit_late(
    handle: &Handle,
    plan: &Plan,
    late: &Late,
    container: Container,
    guard: ClaimGuard,
) -> Result<(Once, Submitted), StartError> {
    // What is said to it is known to this daemon only, so that it ends with it; but it does end.
    handle.keep(None);
    let mut container = container.claim_once(&handle.id)?;
    let broken = |reason: String| StartError::Container(ContainerError::Prestart(reason));
    let Cli { process, mut driver, stdin, stdout, stderr } =
        container.take_cli().ok_or_else(|| broken("there is none".to_owned()))?;
    let env = BTreeMap::new();
    let request = late.request(&plan.files, &env);
    if driver.plan().mounts_files(&request) {
        let files: Vec<(&str, &str)> = plan.files.iter().map(|(name, text)| (name.as_str(), text.expose())).collect();
        container.inject(&files)?;
    }
    if !plan.work.is_empty() {
        container.put(&plan.work.put).await?;
    }
    let input = driver.claim(&request).map_err(|refusal| broken(refusal.to_string()))?;
    let conversation = Some(Conversation::begin(driver, stdin, &input, late.prompt.len()));
    let (stdout, stderr) = (stdout.into_nonblocking_fd()?, stderr.into_nonblocking_fd()?);
    let baseline = container.baseline();
    Ok((container, Submitted { process, baseline, stdin: None, stdout, stderr, conversation, guard }))
}

/// Everything that is done while a warm container is still frozen, so that the thaw is the last thing between the
/// claim and the command.
async fn submit(
    handle: &Handle,
    plan: &Plan,
    container: Container,
    path: ClaimPath,
    guard: ClaimGuard,
) -> Result<(Once, Submitted), StartError> {
    let (stdin_reader, stdin) = match plan.stdin.as_deref() {
        Some(text) => input(text)?,
        None => (container.null_input()?, None),
    };
    let (stdout, stdout_writer) = output_pipe(handle.log.chunk_size())?;
    let (stderr, stderr_writer) = output_pipe(handle.log.chunk_size())?;
    // Before it is claimed, so that the next daemon knows whose it was.
    let (id, tag) = (container.id().to_owned(), container.next_tag());
    let (since, until) = (clock::now(), handle.deadline.get().copied());
    handle.submit(SubmittedCommand { container: id, tag, path, since, until }, [stdout.as_fd(), stderr.as_fd()]);
    if let Some(keeper) = &handle.keeper {
        keeper.caught_up().await;
    }
    failpoints::at("claim.kept");
    let mut container = container.claim_once(&handle.id)?;
    if let Some(limits) = plan.limits {
        container.tighten(limits)?;
    }
    failpoints::at("claim.raised");
    if !plan.files.is_empty() {
        let files: Vec<(&str, &str)> = plan.files.iter().map(|(name, text)| (name.as_str(), text.expose())).collect();
        container.inject(&files)?;
    }
    if !plan.work.is_empty() {
        container.put(&plan.work.put).await?;
    }
    failpoints::at("claim.injected");
    let baseline = container.baseline();
    for pipe in [stdout_writer.as_fd(), stderr_writer.as_fd()]
        .into_iter()
        .chain(plan.stdin.as_ref().map(|_| stdin_reader.as_fd()))
    {
        container.give(pipe)?;
    }
    let stdio = Stdio::Three([stdin_reader.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()]);
    let process = container.submit(&plan.command, &stdio)?;
    failpoints::at("claim.submitted");
    handle.log.note_submitted();
    failpoints::at("claim.noted");
    Ok((container, Submitted { process, baseline, stdin, stdout, stderr, conversation: None, guard }))
}

fn announce(handle: &Handle, container: &Once, path: ClaimPath, prestarted: bool, claim: Duration) {
    handle.step(Step::Announce(Assignment { container: container.id().to_owned(), path }));
    handle.log.push(&Event::Started(Started {
        execution: handle.id.clone(),
        container: container.id().to_owned(),
        path,
        prestarted,
        claim_us: claim.as_micros() as u64,
        request_id: handle.request_id.clone(),
    }));
}

/// Publishes output and decodes it.
struct Sink<'a, F: FnMut()> {
    handle: &'a Handle,
    decoder: &'a mut Decoder,
    /// Called for each piece of standard output; acts on the first only.
    on_first: F,
}

impl<F: FnMut()> Sink<'_, F> {
    fn stdout(&mut self, all: bool) {
        (self.on_first)();
        let log = &self.handle.log;
        failpoints::at("run.taken");
        log.publish(Stream::Stdout, all);
        failpoints::at("run.published");
        for text in self.decoder.listen(log) {
            log.push(&Event::Delta(Delta { text }));
        }
        self.decoder.checkpoint(log);
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
    let Running { container, process, stdout, stderr, since, deadline, from, begun, decoder, guard, .. } = running;
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
    let mut kill_at = stop.map(|(reason, since)| ask_to_end(process, reason, since + kill_grace));
    let mut stop = stop.map(|(reason, _)| reason);
    let deadline = tokio::time::Instant::from_std(*deadline);
    let start_deadline = handle.start_timeout.map(|timeout| tokio::time::Instant::from_std(*since + timeout));
    let mut abandoned = std::pin::pin!(handle.abandoned(first_grace, executions.settings().disconnect_grace));

    let end = loop {
        // Not read while a reader is far behind, the command waits on a full pipe, as it would for `less`.
        let seen = handle.log.moves();
        let waits_until = handle.log.waits_until(stop.is_some());
        let is_read = waits_until.is_none();
        let wanted = tokio::select! {
            read = stdout.read(), if stdout.is_open() && is_read => {
                guard.take();
                if read {
                    silent = false;
                    sink.stdout(false);
                }
                if sink.decoder.meaning.is_over() && stop.is_none() {
                    break End::Answered;
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
                Ok(Some(exited)) => End::Status(exited.status),
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
                kill(container);
                None
            }
        };
        if let Some(reason) = wanted {
            // Record the reason for the next daemon. If an earlier decision was recorded, that one counts: it was
            // promised.
            let noted = handle.log.note_stop(reason as u8);
            let reason = Stop::noted(noted).unwrap_or(reason);
            stop = Some(reason);
            kill_at = Some(ask_to_end(process, reason, noted.at + kill_grace));
        }
    };
    guard.take();
    failpoints::at("end.seen");
    // Everything that the command left running is killed. Then the pipes end, without losing a byte written before.
    kill(container);
    let drained = tokio::time::timeout(DRAIN_TIMEOUT, async {
        while stdout.is_open() || stderr.is_open() {
            tokio::select! {
                read = stdout.read(), if stdout.is_open() => if read { sink.stdout(false) },
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
fn ask_to_end(process: &Process, reason: Stop, kill_at: Duration) -> tokio::time::Instant {
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

fn kill(container: &Once) {
    if let Err(error) = container.kill() {
        tracing::error!(%error, "could not kill the container");
    }
}
