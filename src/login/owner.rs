//! The task that owns one login: claims a container, starts the CLI, watches what it prints and what it leaves.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hyper::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::address::{self, Asked};
use super::callback;
use super::error::LoginError;
use super::handle::{Handle, Message, state_word};
use super::recognise::Recogniser;
use crate::container::{Container, CredentialFiles, Login as Held, Process, Reach, Stamp, Stdio};
use crate::execution::{self, Served};
use crate::output::output_pipe;
use crate::pool::ClaimRequest;
use crate::provider::{Login as Way, LoginUntil};
use crate::vault::{Asker, Vault};
use thaw_client::types::{Credentials, LoginMethod, LoginReason, Secret};

/// Number of warm containers that are tried: one may have died since it was last looked at.
const CLAIM_ATTEMPTS: u32 = 3;

/// Time for the CLI to say what the user has to do: at half a CPU the slowest of the three needs 5 s. Shorter than clients wait
/// for an answer.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(45);

/// Time for the CLI to leave its file once it has the user's answer.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);

/// Time that the CLI has to end by itself once its file is whole. After that the file counts alone.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Time that the output of a CLI that has ended, and its file, may take to be seen.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// Time between two looks at the file, and at the ports that the CLI listens on.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Pause between tries to store a credential in a database that fails, and number of tries.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
const STORE_TRIES: u32 = 30;

/// Output that is read at once, bytes.
const CHUNK: usize = 16 << 10;

/// Capacity of the pipes of the CLI, bytes.
const PIPE: usize = 64 << 10;

/// What one login needs.
pub(super) struct Owner {
    pub handle: Arc<Handle>,
    pub served: Served,
    pub way: Way,
    pub vault: Arc<Vault>,
    pub by: Asker,
    pub settings: execution::Settings,
    pub deadline: Instant,
    pub shutdown: CancellationToken,
}

/// Why nothing came of it.
struct Failure {
    reason: LoginReason,
    detail: String,
    /// What is said to whoever still waits for it to begin.
    error: Option<LoginError>,
}

impl Failure {
    fn new(reason: LoginReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), error: None }
    }
}

impl From<LoginError> for Failure {
    fn from(error: LoginError) -> Self {
        let reason = match error {
            LoginError::Stopped => LoginReason::Stopped,
            LoginError::Cancelled => LoginReason::Cancelled,
            _ => LoginReason::Refused,
        };
        Self { reason, detail: error.to_string(), error: Some(error) }
    }
}

/// Who waits for it to begin, until told.
type Begun = Option<oneshot::Sender<Result<(), LoginError>>>;

impl Owner {
    /// Runs it to its end. Returns whether its client knows of it.
    pub async fn run(self, mut inbox: mpsc::Receiver<Message>, begun: oneshot::Sender<Result<(), LoginError>>) -> bool {
        let handle = Arc::clone(&self.handle);
        tracing::info!(method = ?self.way.method, "login begun");
        let mut begun = Some(begun);
        let captured = tokio::select! {
            captured = self.capture(&mut inbox, &mut begun) => captured,
            () = tokio::time::sleep_until(self.deadline) => {
                Err(Failure::new(LoginReason::Expired, "the user did not finish it in time (`login.timeout_seconds`)"))
            }
            () = handle.cancelled().cancelled() => Err(LoginError::Cancelled.into()),
            () = self.shutdown.cancelled() => Err(LoginError::Stopped.into()),
        };
        // The container is given up by now.
        let outcome = match captured {
            Ok(credentials) => self.store(credentials).await,
            Err(failure) => Err(failure),
        };
        match outcome {
            Ok(credential) => {
                tracing::info!(fingerprint = credential.fingerprint, "audit: login captured");
                handle.is_done(credential);
                if let Some(begun) = begun.take() {
                    let _ = begun.send(Ok(()));
                }
                true
            }
            Err(Failure { reason, detail, error }) => {
                let detail = crate::telemetry::escape_control(&detail).into_owned();
                tracing::warn!(?reason, detail, "login failed");
                handle.failed(reason, detail.clone());
                match begun.take() {
                    Some(begun) => {
                        let _ = begun.send(Err(error.unwrap_or(LoginError::NotBegun(detail))));
                        false
                    }
                    None => true,
                }
            }
        }
    }

    /// Keeps the credential.
    async fn store(&self, credentials: Credentials) -> Result<thaw_client::types::Credential, Failure> {
        let (user, provider) = (self.handle.describe().user, &self.served.provider);
        let mut tries = 0;
        loop {
            tries += 1;
            match self.vault.put(&user, provider, &credentials, self.by).await {
                Ok((credential, _)) => return Ok(credential),
                Err(error) if error.is_transient() && tries < STORE_TRIES => tokio::time::sleep(STORE_INTERVAL).await,
                Err(error) => {
                    return Err(Failure::new(LoginReason::NotStored, format!("it cannot be kept: {error}")));
                }
            }
        }
    }

    /// Lets the CLI log in; returns what it has left. Dropping the future destroys the container.
    async fn capture(&self, inbox: &mut mpsc::Receiver<Message>, begun: &mut Begun) -> Result<Credentials, Failure> {
        let mut cli = self.start().await?;
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let begin_by = Instant::now() + BEGIN_TIMEOUT;
        let mut buffers = [vec![0; CHUNK], vec![0; CHUNK]];
        loop {
            let [out, err] = &mut buffers;
            tokio::select! {
                read = cli.stdout.read(out), if cli.open[0] => cli.heard(0, read, out),
                read = cli.stderr.read(err), if cli.open[1] => cli.heard(1, read, err),
                ended = cli.process.ended(), if cli.ended.is_none() => {
                    tracing::debug!(?ended, "the CLI has ended");
                    cli.ended = Some(Instant::now());
                }
                Some(Message::Callback(query, reply)) = inbox.recv() => {
                    let taken = cli.take_callback(query, &self.handle);
                    let _ = reply.send(taken);
                }
                forwarded = forwarded(&mut cli.forwarding) => {
                    cli.forwarding = None;
                    match forwarded {
                        Ok(status) => tracing::debug!(%status, "the CLI took the callback"),
                        // The file may be there all the same.
                        Err(error) => cli.trouble = Some(error),
                    }
                }
                _ = look.tick() => {
                    if cli.asked.is_none() {
                        cli.recognise().await;
                        if let Some(shown) = &cli.asked {
                            shown.show(&self.handle);
                            tracing::info!("the user can act");
                            if let Some(begun) = begun.take() {
                                // A client that is gone has cancelled it.
                                let _ = begun.send(Ok(()));
                            }
                        } else if Instant::now() > begin_by {
                            return Err(cli.gave_up("it did not say in time what the user has to do"));
                        }
                    }
                    if let Some(credentials) = cli.captured(&self.vault, &self.served)? {
                        return Ok(credentials);
                    }
                }
            }
        }
    }

    /// Claims a container, and starts the CLI in it.
    async fn start(&self) -> Result<Cli, Failure> {
        let login = self.handle.describe();
        let want = ClaimRequest {
            user: &login.user,
            wait: self.settings.queue_timeout,
            on_position: &|_| {},
            prestarted: None,
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let claimed = self.served.pool.claim(&want).await.map_err(LoginError::from)?;
            match self.start_in(claimed.container).await {
                Err(LoginError::Container(error)) if error.is_broken() && attempts < CLAIM_ATTEMPTS => {
                    tracing::warn!(%error, "claimed container is broken");
                    self.served.pool.check_health().await.map_err(LoginError::from)?;
                }
                started => return Ok(started?),
            }
        }
    }

    async fn start_in(&self, container: Container) -> Result<Cli, LoginError> {
        let provider = &self.served.provider;
        let command = {
            let env = self.served.image.env.lock().unwrap_or_else(PoisonError::into_inner);
            execution::login_command(&self.way, provider, &env, self.settings.proxy_port)?
        };
        let mut container = container.claim_login(self.handle.id(), &self.handle.describe().user)?;
        let (stdin_reader, stdin) = if self.way.input.is_empty() {
            (container.null_input()?, None)
        } else {
            let (reader, writer) = std::io::pipe()?;
            (reader.into(), Some(pipe::Sender::from_owned_fd(writer.into())?))
        };
        let (stdout, stdout_writer) = output_pipe(PIPE)?;
        let (stderr, stderr_writer) = output_pipe(PIPE)?;
        for end in [stdout_writer.as_fd(), stderr_writer.as_fd()] {
            container.give(end)?;
        }
        let stdio = Stdio::Three([stdin_reader.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()]);
        let process = container.submit(&command, &stdio)?;
        drop((stdin_reader, stdout_writer, stderr_writer));
        container.thaw()?;
        process.started().await?;
        let files = container.credential_files()?.ok_or_else(|| {
            LoginError::NotBegun("the provider has no directory for credentials (`credentials.dir`)".to_owned())
        })?;
        let mut cli = Cli {
            reach: Arc::new(container.reach()?),
            way: self.way.clone(),
            own_port: self.settings.proxy_port,
            recogniser: Recogniser::new(&self.way.url, self.way.code.as_deref()),
            process,
            stdin,
            stdout: pipe::Receiver::from_owned_fd(stdout)?,
            stderr: pipe::Receiver::from_owned_fd(stderr)?,
            open: [true; 2],
            files,
            seen: None,
            whole: None,
            ended: None,
            asked: None,
            answered: None,
            forwarding: None,
            trouble: None,
            _container: container,
        };
        if let Some(stdin) = &mut cli.stdin {
            for line in &self.way.input {
                stdin.write_all(format!("{line}\n").as_bytes()).await?;
            }
        }
        Ok(cli)
    }
}

/// What the user has to do.
enum Shown {
    Callback(Asked),
    Device { url: String, code: String },
}

impl Shown {
    fn show(&self, handle: &Handle) {
        match self {
            Self::Callback(asked) => {
                handle.shows_code(asked.url.clone(), None, Some(asked.redirect.address.clone()));
            }
            Self::Device { url, code } => handle.shows_code(url.clone(), Some(code.clone()), None),
        }
    }
}

/// A CLI that logs in, and its container.
struct Cli {
    reach: Arc<Reach>,
    way: Way,
    /// The port of the daemon's proxy, which is listened on inside too.
    own_port: u16,
    recogniser: Recogniser,
    process: Process,
    /// Held open: a CLI that speaks a protocol leaves when nobody is there.
    stdin: Option<pipe::Sender>,
    stdout: pipe::Receiver,
    stderr: pipe::Receiver,
    open: [bool; 2],
    files: CredentialFiles,
    /// The file as it was looked at last.
    seen: Option<Stamp>,
    /// What it has left, and since when that is whole.
    whole: Option<(Credentials, Instant)>,
    /// When it ended.
    ended: Option<Instant>,
    asked: Option<Shown>,
    /// When it got the user's answer.
    answered: Option<Instant>,
    forwarding: Option<AbortOnDropHandle<Result<StatusCode, String>>>,
    /// What went wrong with the callback.
    trouble: Option<String>,
    // Last field: dropped after what refers to it.
    _container: Held,
}

/// How the callback went; never, without one.
async fn forwarded(task: &mut Option<AbortOnDropHandle<Result<StatusCode, String>>>) -> Result<StatusCode, String> {
    match task {
        Some(task) => task.await.unwrap_or_else(|error| Err(error.to_string())),
        None => std::future::pending().await,
    }
}

impl Cli {
    fn heard(&mut self, stream: usize, read: std::io::Result<usize>, buffer: &[u8]) {
        match read {
            Ok(length @ 1..) => self.recogniser.push(stream, &buffer[..length]),
            Ok(0) | Err(_) => self.open[stream] = false,
        }
    }

    /// Looks whether the CLI has said by now what the user has to do.
    async fn recognise(&mut self) {
        let Some(url) = self.recogniser.url().map(str::to_owned) else { return };
        if self.way.method == LoginMethod::Device {
            if let Some(code) = self.recogniser.code() {
                self.asked = Some(Shown::Device { url, code: code.to_owned() });
            }
            return;
        }
        let port = if self.way.redirect.is_some() { self.port().await } else { None };
        if self.way.redirect.is_some() && port.is_none() {
            return;
        }
        match address::read(&url, self.way.redirect.as_deref(), port) {
            Ok(asked) => self.asked = Some(Shown::Callback(asked)),
            Err(problem) => self.trouble = Some(format!("the address that it printed cannot be used: {problem}")),
        }
    }

    /// The one port that the CLI listens on.
    async fn port(&self) -> Option<u16> {
        let ports = self.reach.listening().await.inspect_err(|error| tracing::debug!(%error, "no ports")).ok()?;
        let mut others = ports.into_iter().filter(|port| *port != self.own_port);
        others.next().filter(|_| others.next().is_none())
    }

    /// Takes a callback, once, and passes it on.
    fn take_callback(&mut self, query: Zeroizing<String>, handle: &Handle) -> Result<(), LoginError> {
        let asked = match &self.asked {
            Some(Shown::Callback(asked)) if self.answered.is_none() && self.ended.is_none() => asked,
            Some(Shown::Device { .. }) => return Err(LoginError::TakesNothing),
            _ => return Err(LoginError::NotNow(state_word(handle.state()))),
        };
        callback::check(&query, &asked.state)?;
        self.answered = Some(Instant::now());
        handle.exchanges();
        let (reach, redirect, follow) = (Arc::clone(&self.reach), asked.redirect.clone(), self.way.follow.clone());
        let forward = async move { callback::forward(&reach, &redirect, query, follow.as_deref()).await };
        self.forwarding = Some(AbortOnDropHandle::new(tokio::spawn(forward)));
        Ok(())
    }

    /// What the CLI has left, if it is over; or why nothing will come of it.
    fn captured(&mut self, vault: &Vault, served: &Served) -> Result<Option<Credentials>, Failure> {
        let now = Instant::now();
        if self.look(vault, served).map_err(|error| self.gave_up(&error))?
            && let Some((credentials, since)) = &self.whole
        {
            let has_ended = self.way.until == LoginUntil::File || self.ended.is_some();
            // While the CLI still answers the callback it may go on to write.
            if has_ended && self.forwarding.is_none() || now - *since > END_TIMEOUT {
                return Ok(Some(credentials.clone()));
            }
        }
        let is_late = |since: Option<Instant>, limit: Duration| since.is_some_and(|since| now - since > limit);
        if is_late(self.ended, LAST_LOOK) && self.whole.is_none() {
            return Err(self.gave_up("it ended without having logged in"));
        }
        if is_late(self.answered, EXCHANGE_TIMEOUT) && self.whole.is_none() {
            return Err(self.gave_up("it did not finish in time once it had the user's answer"));
        }
        Ok(None)
    }

    /// Reads the file if it has changed; whether it is whole.
    fn look(&mut self, vault: &Vault, served: &Served) -> Result<bool, String> {
        let stamp = self.files.stamp(&self.way.file).map_err(|error| format!("its file: {error}"))?;
        if stamp == self.seen {
            return Ok(self.whole.is_some());
        }
        self.whole = None;
        let read = self.files.read(&self.way.file, vault.max_credential_bytes());
        // One that is too large, or no file, stays so.
        let content = read.map_err(|error| format!("its file: {error}"))?;
        self.seen = stamp;
        let Some(text) = content.as_ref().and_then(|content| std::str::from_utf8(content).ok()) else {
            return Ok(false);
        };
        let mut credentials = Credentials::default();
        credentials.files = BTreeMap::from([(self.way.file.clone(), Secret::new(text.to_owned()))]);
        match vault.examine(&served.provider, &credentials) {
            Ok(()) => self.whole = Some((credentials, Instant::now())),
            Err(error) => self.trouble = Some(format!("the file that it left cannot be used: {error}")),
        }
        Ok(self.whole.is_some())
    }

    /// The CLI came to nothing.
    fn gave_up(&self, what: &str) -> Failure {
        let mut detail = format!("the provider's CLI: {what}");
        if let Some(trouble) = &self.trouble {
            detail = format!("{detail}; {trouble}");
        }
        if let Some(words) = self.recogniser.last_words() {
            detail = format!("{detail}; it said: {words}");
        }
        Failure::new(LoginReason::Refused, detail)
    }
}
