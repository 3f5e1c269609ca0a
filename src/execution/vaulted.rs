//! Credentials of the vault: passed to executions whose request brings none, and stored again when a CLI has renewed
//! them.
//!
//! A renewed login makes its old form worthless. So the files are checked once a second while the command runs, and at
//! its end, through the mount that the container was given. By then the container may be gone, or the daemon be another
//! one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tracing::Instrument;

use super::place::Place;
use super::plan::Plan;
use super::{Executions, Handle, StartError};
use crate::container::{CredentialFiles, Stamp};
use crate::provider::Provider;
use crate::vault::{self, Loan, Need, Turn, Vault, VaultError, WrittenBack};
use thaw_client::types::{Credentials, ExecutionRequest, Secret};

/// Time between two checks of a running command's files: one system call for each file.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Time that the end of an execution waits for the database to store a renewed credential. Further tries follow in the
/// background.
const LAST_WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// Pause between tries, and number of tries, for a database that fails.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const RETRIES: u32 = 600;

/// How long ago a login that the daemon renews may have been looked at when a container gets it. A request that had its
/// container at once needs no second look.
const FRESH: Duration = Duration::from_millis(100);

/// What the next daemon must know of the credential.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lent {
    version: u64,
    fingerprint: String,
    files: Vec<String>,
    /// Whether it got it in order to renew it.
    #[serde(default)]
    had_turn: bool,
    /// Whether the daemon renews it: then nothing comes back.
    #[serde(default)]
    is_managed: bool,
}

/// A credential of the vault that an execution has.
#[derive(Debug)]
pub struct Vaulted {
    vault: Arc<Vault>,
    provider: Arc<Provider>,
    loan: Loan,
    lent: Lent,
    /// When it was looked at.
    seen: Instant,
    /// Whether what was looked at is not to be used any more: the provider refused it.
    is_stale: AtomicBool,
    /// Fingerprint of the credential that is known to be stored, or of the managed one that a container got last.
    fingerprint: Mutex<String>,
    /// The turn to renew the credential, until it is renewed or the execution has ended.
    turn: Mutex<Option<Turn>>,
}

impl Vaulted {
    /// The note for the next daemon.
    pub(super) fn note(&self) -> Lent {
        self.lent.clone()
    }

    /// Fingerprint of what is known to be stored.
    fn known(&self) -> String {
        self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn knows(&self, fingerprint: String) {
        *self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner) = fingerprint;
    }

    /// Passes the turn on to other executions.
    pub(super) fn end_turn(&self) {
        drop(self.turn.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// The credential files for the claimed container, which is about to get the credential: a login that the daemon renews
/// as it is now, since the request may have waited for its container.
pub(super) async fn files<'a>(
    handle: &Handle,
    plan: &'a Plan,
) -> Result<Cow<'a, BTreeMap<String, Secret>>, StartError> {
    let Some(vaulted) = &handle.vaulted else { return Ok(Cow::Borrowed(&plan.files)) };
    let (loan, name) = (&vaulted.loan, &vaulted.provider.name);
    let is_stale = vaulted.is_stale.load(Ordering::Relaxed);
    if vaulted.lent.is_managed && (is_stale || vaulted.seen.elapsed() > FRESH) {
        let need = Need { patience: plan.queue_timeout, lasting: plan.timeout };
        // Removed meanwhile: the request was accepted with it.
        if let Some(mut now) = vaulted.vault.checkout(&loan.user, &vaulted.provider, need).await?
            && now.is_managed
        {
            vaulted.vault.note_use(&Loan { version: now.version, ..loan.clone() }, name);
            vaulted.knows(now.fingerprint);
            return Ok(Cow::Owned(std::mem::take(&mut now.credentials.files)));
        }
        if is_stale {
            let reason = "it was removed or replaced meanwhile".to_owned();
            return Err(VaultError::NotRenewed { user: loan.user.clone(), provider: name.clone(), reason }.into());
        }
    }
    vaulted.vault.note_use(loan, name);
    Ok(Cow::Borrowed(&plan.files))
}

/// Has the daemon renew the login that the provider has refused in a container.
pub(super) async fn renew(handle: &Handle, patience: Duration) -> Result<(), StartError> {
    let Some(vaulted) = &handle.vaulted else { return Ok(()) };
    let refused = vaulted.known();
    vaulted.vault.renew_refused(&vaulted.loan.user, &vaulted.provider, &refused, patience).await?;
    vaulted.is_stale.store(true, Ordering::Relaxed);
    Ok(())
}

impl Handle {
    /// Whether it has a login of the vault that the daemon renews.
    pub(super) fn has_managed_login(&self) -> bool {
        self.vaulted.as_ref().is_some_and(|vaulted| vaulted.lent.is_managed)
    }
}

impl Executions {
    /// The request with the user's stored credential, if it names a provider and no `credentials`, and one is stored.
    /// Empty `credentials` mean none.
    pub(super) async fn with_stored_credentials(
        &self,
        mut request: ExecutionRequest,
    ) -> Result<(ExecutionRequest, Option<(Lent, Option<Turn>)>), StartError> {
        let (Some(vault), None, None) = (&self.vault, &request.credentials, &request.image) else {
            return Ok((request, None));
        };
        // A user whose name is none is told so later, and so is a provider that does not exist.
        let is_in_name = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if !request.user.bytes().all(is_in_name) {
            return Ok((request, None));
        }
        let Some(served) = self.served.get(&request.provider) else { return Ok((request, None)) };
        let patience = request.queue_timeout_ms.map_or(self.settings().queue_timeout, Duration::from_millis);
        let patience = patience.min(self.settings().max_queue_timeout);
        let lasting = request.timeout_ms.map_or(served.provider.timeouts.default, Duration::from_millis);
        let need = Need { patience, lasting };
        let checkout = vault.checkout(&request.user, &served.provider, need).await.map_err(|error| {
            let error = StartError::from(error);
            self.metrics.refused(&served.provider.name, &error);
            error
        })?;
        let Some(checkout) = checkout else { return Ok((request, None)) };
        let is_managed = checkout.is_managed;
        let files = if is_managed { Vec::new() } else { checkout.credentials.files.keys().cloned().collect() };
        let (version, fingerprint, had_turn) = (checkout.version, checkout.fingerprint, checkout.turn.is_some());
        tracing::info!(
            user = request.user,
            provider = request.provider,
            version,
            to_renew = had_turn,
            "audit: credential used"
        );
        let lent = Lent { version, fingerprint, files, had_turn, is_managed };
        request.credentials = Some(checkout.credentials);
        Ok((request, Some((lent, checkout.turn))))
    }

    /// The vault's credential of an execution; `None` without a vault or without such a provider.
    pub(super) fn vaulted(
        &self,
        lent: Option<(Lent, Option<Turn>)>,
        provider: &str,
        user: &str,
        id: &str,
    ) -> Option<Vaulted> {
        let ((lent, turn), vault) = (lent?, self.vault.clone()?);
        let provider = Arc::clone(&self.served.get(provider)?.provider);
        let fingerprint = lent.fingerprint.clone();
        let loan = Loan { user: user.to_owned(), execution: id.to_owned(), version: lent.version, fingerprint };
        let fingerprint = Mutex::new(lent.fingerprint.clone());
        let (seen, is_stale, turn) = (Instant::now(), AtomicBool::new(false), Mutex::new(turn));
        Some(Vaulted { vault, provider, loan, lent, seen, is_stale, fingerprint, turn })
    }
}

/// Watches the credential files of one command.
#[derive(Debug)]
pub(super) struct WriteBack {
    ended: oneshot::Sender<bool>,
    task: JoinHandle<()>,
}

impl WriteBack {
    /// Starts watching, if the execution has files of the vault. For an execution of an earlier daemon, the files count
    /// as changed, since that daemon may have missed a change.
    pub(super) fn start(handle: &Handle, container: &Place, is_resumed: bool) -> Option<Self> {
        let vaulted = handle.vaulted.as_ref().filter(|vaulted| !vaulted.lent.files.is_empty())?;
        if is_resumed && vaulted.lent.had_turn {
            // It may be renewing it at this moment. Nobody else can have asked yet.
            let turn = vaulted.vault.resume_turn(&vaulted.loan.user, &vaulted.provider.name);
            *vaulted.turn.lock().unwrap_or_else(PoisonError::into_inner) = turn;
        }
        let files = match container.credential_files() {
            Ok(files) => files?,
            Err(error) => {
                tracing::error!(%error, "a credential that its CLI renews will be lost");
                return None;
            }
        };
        let (ended, end) = oneshot::channel();
        let seen = if is_resumed { Vec::new() } else { vaulted.stamps(&files) };
        let task = tokio::spawn(watch(Arc::clone(vaulted), files, seen, end).instrument(handle.span.clone()));
        Some(Self { ended, task })
    }

    /// Stores what the command has left of the files; `settled` if the command ended by itself.
    pub(super) async fn finish(self, settled: bool) {
        let _ = self.ended.send(settled);
        if tokio::time::timeout(LAST_WRITE_PATIENCE, self.task).await.is_err() {
            tracing::warn!("the database does not take a renewed credential; it is kept in memory and tried again");
        }
    }
}

async fn watch(
    vaulted: Arc<Vaulted>,
    files: CredentialFiles,
    mut seen: Vec<Option<Stamp>>,
    mut end: oneshot::Receiver<bool>,
) {
    let mut interval = tokio::time::interval(WATCH_INTERVAL);
    loop {
        tokio::select! {
            _ = interval.tick() => {
                let now = vaulted.stamps(&files);
                if now != seen {
                    seen = now;
                    vaulted.bring_back(&files, false).await;
                }
            }
            settled = &mut end => {
                // The sender was dropped with the daemon's task: then the files count as unsettled.
                vaulted.bring_back(&files, settled.unwrap_or(false)).await;
                return;
            }
        }
    }
}

impl Vaulted {
    fn stamps(&self, files: &CredentialFiles) -> Vec<Option<Stamp>> {
        self.lent.files.iter().map(|name| files.stamp(name).ok().flatten()).collect()
    }

    /// Content of the files now; `None` if one is gone.
    fn read(&self, files: &CredentialFiles) -> io::Result<Option<Credentials>> {
        let limit = self.vault.max_credential_bytes();
        let mut found = BTreeMap::new();
        for name in &self.lent.files {
            let Some(content) = files.read(name, limit)? else { return Ok(None) };
            let text = std::str::from_utf8(&content).map_err(|_| io::Error::other("it is not UTF-8"))?;
            found.insert(name.clone(), Secret::new(text.to_owned()));
        }
        let mut credentials = Credentials::default();
        credentials.files = found;
        Ok(Some(credentials))
    }

    async fn bring_back(&self, files: &CredentialFiles, settled: bool) {
        let credentials = match self.read(files) {
            Ok(Some(credentials)) => credentials,
            // The user has logged out inside, or the files were never mounted.
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "what a command made of its credential file is not taken back");
                return;
            }
        };
        let fingerprint = vault::fingerprint(&credentials);
        if self.known() == fingerprint {
            return;
        }
        for _ in 0..RETRIES {
            match self.vault.write_back(&self.loan, &self.provider, &credentials, settled).await {
                // The write was not finished; the files are read again when the command has ended.
                Ok(WrittenBack::Unfinished) => return,
                Ok(_) => {
                    self.end_turn();
                    self.knows(fingerprint);
                    return;
                }
                Err(error) if error.is_transient() => tokio::time::sleep(RETRY_INTERVAL).await,
                Err(error) => {
                    tracing::error!(%error, "a renewed credential cannot be stored");
                    return;
                }
            }
        }
        tracing::error!("a renewed credential is lost: the database could not be used for ten minutes");
    }
}
