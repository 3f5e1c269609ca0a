//! Logins that the daemon renews itself, before they are over (`refresh-ahead`). An execution gets a file without the refresh
//! token, so that nothing in a container can use it up.
//!
//! One renewal of a login at a time: whoever asks takes its turn, and with a shared database its lease. The renewal is a task
//! of its own, since whoever waits for it may go away. Its answer stays in a socket that the keeper holds until it is
//! stored, so that a daemon that dies in between loses neither the old token nor the new one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use thaw_client::config::RefreshPolicy;
use thaw_client::types::{AuditAction, Credentials};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::due::{self, Due};
use super::login_file::{self, Tokens};
use super::record::Record;
use super::rows::{Credential, now_ms};
use super::token_process::{Note, Pending, TokenProcesses};
use super::token_request::TokenReply;
use super::write::renewed;
use super::{Checkout, Need, Turn, Vault, VaultError, check, lease};
use crate::keeper::{Kept, Key};
use crate::provider::{Endpoint, Provider};

/// Pause between looks at what another daemon does.
const LEASE_INTERVAL: Duration = Duration::from_millis(100);

/// Time for which the lease is held besides that of the renewal.
const LEASE_SLACK: Duration = Duration::from_secs(15);

/// Pause between tries, and tries, to store an answer in a database that fails.
const STORE_INTERVAL: Duration = Duration::from_secs(1);
const STORE_TRIES: u32 = 600;

/// How long ago a login may have been renewed whose access token the provider refuses: another one would be refused too.
const JUST_RENEWED: Duration = Duration::from_secs(60);

/// A login without its refresh token, and what it is like.
struct Lean {
    checkout: Checkout,
    row: Credential,
}

impl Lean {
    fn is_usable(&self) -> bool {
        due::left_ms(&self.row, now_ms()) > 0
    }
}

/// What is found of a login that the daemon may renew.
enum Found {
    /// It may.
    Managed(Box<Lean>),
    /// There is nothing to renew: a key, or an access token alone.
    Plain(Checkout),
}

impl Vault {
    /// Lets the vault renew logins, and goes on with what an earlier daemon has begun. Called before anybody asks for a
    /// login.
    pub fn serve_refreshes<'a>(
        self: &Arc<Self>,
        processes: TokenProcesses,
        kept: Vec<(Key, Kept)>,
        provider: impl Fn(&str) -> Option<&'a Provider>,
    ) {
        let processes = self.processes.get_or_init(|| processes);
        for (key, kept) in kept {
            let resumed = Pending::resume(key.clone(), &kept).ok().and_then(|pending| {
                let provider = provider(&pending.note.provider)?.clone();
                let turn = self.turns.try_take(&pending.note.user, &provider.name)?;
                Some((pending, provider, turn))
            });
            let Some((pending, provider, turn)) = resumed else {
                tracing::warn!(%key, "a renewal that an earlier daemon began is of no provider that this one has");
                processes.forget_key(&key);
                continue;
            };
            let this = Arc::clone(self);
            self.renewals.spawn(async move {
                let user = pending.note.user.clone();
                let outcome = this.settle(&pending, &provider).await;
                // What was wrong is on record.
                let _ = this.conclude(&user, &provider, outcome);
                drop(turn);
            });
        }
    }

    /// Waits until no renewal is under way, when the daemon stops.
    pub async fn finish_refreshes(&self) {
        self.renewals.close();
        self.renewals.wait().await;
    }

    /// Has the provider renew a login now, whether or not it is time: what it says of it. None if the daemon does not renew
    /// it.
    ///
    /// # Errors
    /// It cannot be used any more, or another execution has it for longer than `patience`.
    pub async fn check_by_refresh(
        self: &Arc<Self>,
        user: &str,
        provider: &Provider,
        patience: Duration,
    ) -> Result<Option<Result<(), String>>, VaultError> {
        let endpoint = provider.endpoint().filter(|_| provider.refresh_policy() == RefreshPolicy::RefreshAhead);
        let Some(endpoint) = endpoint else { return Ok(None) };
        let Some(Found::Managed(_)) = self.look_lean(user, provider, endpoint).await? else { return Ok(None) };
        let busy = || VaultError::Busy { user: user.to_owned(), provider: provider.name.clone() };
        let turn = tokio::time::timeout(patience, self.turns.take(user, &provider.name)).await;
        let renewal = self.begin_refresh(user, provider, turn.map_err(|_| busy())?);
        let outcome = renewal.await.unwrap_or_else(|_| Err("the daemon stops".to_owned()));
        // A refusal is an error from here on.
        self.look(user, provider).await?;
        Ok(Some(outcome))
    }

    /// Has a login renewed whose access token the provider has refused: the one with the fingerprint `refused`. If another
    /// one is stored by now, there is nothing to do.
    ///
    /// # Errors
    /// It cannot be renewed, was renewed just before, or somebody else renews it for longer than `patience`.
    pub async fn renew_refused(
        self: &Arc<Self>,
        user: &str,
        provider: &Provider,
        refused: &str,
        patience: Duration,
    ) -> Result<(), VaultError> {
        let until = Instant::now() + patience;
        let busy = || VaultError::Busy { user: user.to_owned(), provider: provider.name.clone() };
        let not_renewed = |reason: &str| {
            let (user, provider, reason) = (user.to_owned(), provider.name.clone(), reason.to_owned());
            Err(VaultError::NotRenewed { user, provider, reason })
        };
        let Some(endpoint) = provider.endpoint() else { return not_renewed("thawd does not renew it") };
        let turn = tokio::time::timeout(patience, self.turns.take(user, &provider.name)).await.map_err(|_| busy())?;
        let Some(Found::Managed(lean)) = self.look_lean(user, provider, endpoint).await? else {
            return not_renewed("it was removed or replaced meanwhile");
        };
        if lean.checkout.fingerprint != refused {
            return Ok(());
        }
        if let Some(reason) = self.failures.pausing(user, &provider.name) {
            return not_renewed(&reason);
        }
        let age = lean.row.refreshed_at_ms.map(|at| now_ms().saturating_sub(at));
        if age.and_then(|ms| u64::try_from(ms).ok()).is_some_and(|ms| Duration::from_millis(ms) < JUST_RENEWED) {
            return not_renewed("it was renewed a moment ago, and the provider refuses the new one too");
        }
        drop(lean);
        let renewal = self.begin_refresh(user, provider, turn);
        match tokio::time::timeout(until.saturating_duration_since(Instant::now()), renewal).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(reason))) => not_renewed(&reason),
            Ok(Err(_)) => not_renewed("the daemon stops"),
            Err(_) => Err(busy()),
        }
    }

    /// The login as an execution gets it. When it would be over before the execution, this waits until it is renewed.
    pub(super) async fn checkout_ahead(
        self: &Arc<Self>,
        user: &str,
        provider: &Provider,
        endpoint: Endpoint<'_>,
        need: Need,
    ) -> Result<Option<Checkout>, VaultError> {
        let until = Instant::now() + need.patience;
        let due = |lean: &Lean| due::due(&lean.row, now_ms(), need.lasting, self.settings.refresh_ahead);
        let first = match self.look_lean(user, provider, endpoint).await? {
            None => return Ok(None),
            Some(Found::Plain(checkout)) => return Ok(Some(checkout)),
            Some(Found::Managed(lean)) => lean,
        };
        match due(&first) {
            Due::Fresh => return Ok(Some(first.checkout)),
            Due::Soon => {
                self.refresh_behind(user, provider);
                return Ok(Some(first.checkout));
            }
            Due::Now => {}
        }
        let busy = || VaultError::Busy { user: user.to_owned(), provider: provider.name.clone() };
        // One that is not over yet is better than none.
        let or_first =
            |error: VaultError, lean: Box<Lean>| if lean.is_usable() { Ok(Some(lean.checkout)) } else { Err(error) };
        let left = until.saturating_duration_since(Instant::now());
        let Ok(turn) = tokio::time::timeout(left, self.turns.take(user, &provider.name)).await else {
            return or_first(busy(), first);
        };
        drop(first);
        // Whoever had the turn before has renewed it, or not.
        let second = match self.look_lean(user, provider, endpoint).await? {
            None => return Ok(None),
            Some(Found::Plain(checkout)) => return Ok(Some(checkout)),
            Some(Found::Managed(lean)) => lean,
        };
        if due(&second) != Due::Now {
            return Ok(Some(second.checkout));
        }
        let not_renewed =
            |reason: String| VaultError::NotRenewed { user: user.to_owned(), provider: provider.name.clone(), reason };
        if let Some(reason) = self.failures.pausing(user, &provider.name) {
            return or_first(not_renewed(reason), second);
        }
        let renewal = self.begin_refresh(user, provider, turn);
        // Nobody waits until the one that there is has become useless too.
        let half = Duration::from_millis(u64::try_from(due::left_ms(&second.row, now_ms())).unwrap_or_default()) / 2;
        let left = until.saturating_duration_since(Instant::now());
        let left = if second.is_usable() { left.min(half) } else { left };
        let Ok(outcome) = tokio::time::timeout(left, renewal).await else {
            return or_first(busy(), second);
        };
        drop(second);
        match self.look_lean(user, provider, endpoint).await? {
            None => Ok(None),
            Some(Found::Plain(checkout)) => Ok(Some(checkout)),
            Some(Found::Managed(lean)) => {
                let reason = match outcome {
                    Ok(Err(reason)) => reason,
                    _ => "the answer was over when it came".to_owned(),
                };
                or_first(not_renewed(reason), lean)
            }
        }
    }

    async fn look_lean(
        &self,
        user: &str,
        provider: &Provider,
        endpoint: Endpoint<'_>,
    ) -> Result<Option<Found>, VaultError> {
        let Some((mut checkout, row)) = self.look(user, provider).await? else { return Ok(None) };
        let text = checkout.credentials.files.get(endpoint.file).filter(|_| row.is_renewable_login());
        let lean = text.and_then(|text| login_file::without_refresh_token(endpoint.format, text.expose()));
        let Some(lean) = lean else { return Ok(Some(Found::Plain(checkout))) };
        checkout.credentials.files.insert(endpoint.file.to_owned(), lean);
        checkout.is_managed = true;
        Ok(Some(Found::Managed(Box::new(Lean { checkout, row }))))
    }

    /// Renews a login while the one before is still good; nobody waits for it.
    fn refresh_behind(self: &Arc<Self>, user: &str, provider: &Provider) {
        if self.failures.pausing(user, &provider.name).is_none()
            && let Some(turn) = self.turns.try_take(user, &provider.name)
        {
            drop(self.begin_refresh(user, provider, turn));
        }
    }

    fn begin_refresh(
        self: &Arc<Self>,
        user: &str,
        provider: &Provider,
        turn: Turn,
    ) -> oneshot::Receiver<Result<(), String>> {
        let (done, outcome) = oneshot::channel();
        let (this, user, provider) = (Arc::clone(self), user.to_owned(), provider.clone());
        self.renewals.spawn(async move {
            let outcome = this.refresh(&user, &provider).await;
            let outcome = this.conclude(&user, &provider, outcome);
            drop(turn);
            // Whoever asked may be gone.
            let _ = done.send(outcome);
        });
        outcome
    }

    fn conclude(&self, user: &str, provider: &Provider, outcome: Result<(), String>) -> Result<(), String> {
        match &outcome {
            Ok(()) => self.failures.forget(user, &provider.name),
            Err(reason) => {
                tracing::warn!(user, provider = provider.name, reason, "audit: credential could not be renewed");
                self.failures.note(user, &provider.name, reason);
                let record = Record::new(AuditAction::RefreshFailed, user, &provider.name);
                self.audit.note(record.detail(reason.as_str()));
            }
        }
        outcome
    }

    /// Asks the provider, and stores what it says.
    async fn refresh(&self, user: &str, provider: &Provider) -> Result<(), String> {
        let (processes, endpoint) = match (self.processes.get(), provider.endpoint()) {
            (Some(processes), Some(endpoint)) => (processes, endpoint),
            _ => return Err("the daemon is not ready for it".to_owned()),
        };
        let holder = format!("r-{}", ulid::Ulid::new().to_string().to_lowercase());
        let before = self.fingerprint_of(user, provider).await?;
        self.lease(user, provider, &holder).await?;
        let asked = async {
            let said = |error: VaultError| error.to_string();
            let Some((checkout, _)) = self.look(user, provider).await.map_err(said)? else { return Ok(None) };
            if before.is_some_and(|before| before != checkout.fingerprint) {
                // Another daemon was faster.
                return Ok(None);
            }
            let text = checkout.credentials.files.get(endpoint.file);
            let token = text.and_then(|text| login_file::refresh_token(endpoint.format, text.expose()));
            let token = token.ok_or_else(|| "the login has no refresh token".to_owned())?;
            let note = Note {
                user: user.to_owned(),
                provider: provider.name.clone(),
                fingerprint: checkout.fingerprint.clone(),
                holder: holder.clone(),
            };
            crate::failpoints::at("refresh.asking");
            let begun = processes.begin(note, endpoint, token, self.settings.refresh_timeout).await;
            begun.map(Some).map_err(|error| format!("the process that asks for it cannot be started: {error}"))
        };
        match asked.await {
            Ok(Some(pending)) => self.settle(&pending, provider).await,
            other => {
                self.release(&holder).await;
                other.map(|_| ())
            }
        }
    }

    async fn fingerprint_of(&self, user: &str, provider: &Provider) -> Result<Option<String>, String> {
        let stored = self.stored(user).await.map_err(|error| error.to_string())?;
        Ok(stored.and_then(|stored| Some(stored.credential(&provider.name)?.facts.fingerprint.clone())))
    }

    /// Waits until no other daemon renews this login.
    async fn lease(&self, user: &str, provider: &Provider, holder: &str) -> Result<(), String> {
        if self.store.is_exclusive() {
            return Ok(());
        }
        let time = self.settings.refresh_timeout + LEASE_SLACK;
        let ms = i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        loop {
            let now = now_ms();
            let which = (user, provider.name.as_str());
            match lease::take(&self.store, which, holder, now, now.saturating_add(ms)).await {
                Ok(true) => return Ok(()),
                Ok(false) => tokio::time::sleep(LEASE_INTERVAL).await,
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    async fn release(&self, holder: &str) {
        if !self.store.is_exclusive()
            && let Err(error) = lease::release(&self.store, holder).await
        {
            tracing::warn!(%error, "the lease on a login is held until its time is over");
        }
    }

    /// Stores what the provider has said. Until that is done, its answer stays where the next daemon finds it.
    async fn settle(&self, pending: &Pending, provider: &Provider) -> Result<(), String> {
        let outcome = match pending.reply(self.settings.refresh_timeout).await {
            Ok(reply) => {
                crate::failpoints::at("refresh.answered");
                self.store_reply(&pending.note, provider, &reply).await
            }
            Err(error) => Err(error.to_string()),
        };
        crate::failpoints::at("refresh.stored");
        if let Some(processes) = self.processes.get() {
            processes.forget(pending);
        }
        self.release(&pending.note.holder).await;
        outcome
    }

    async fn store_reply(&self, note: &Note, provider: &Provider, reply: &Zeroizing<Vec<u8>>) -> Result<(), String> {
        let unreadable = || "its answer cannot be read".to_owned();
        let reply: TokenReply<'_> = serde_json::from_slice(reply).map_err(|_| unreadable())?;
        for _ in 0..STORE_TRIES {
            let stored = match (&reply.answer, &reply.refused, &reply.failed) {
                (Some(answer), _, _) => self.take_answer(note, provider, answer.get()).await,
                (None, Some(code), _) => self.take_refusal(note, provider, code).await,
                (None, None, failed) => return Err(failed.clone().unwrap_or_else(unreadable)),
            };
            match stored {
                Err(error) if error.is_transient() => tokio::time::sleep(STORE_INTERVAL).await,
                Err(error) => return Err(error.to_string()),
                Ok(outcome) => return outcome,
            }
        }
        tracing::error!(
            user = note.user,
            "a renewed credential is lost: the database could not be used for ten minutes"
        );
        Err("the database could not be used for ten minutes".to_owned())
    }

    /// Stores an answer, if the login is still the one that was renewed.
    async fn take_answer(
        &self,
        note: &Note,
        provider: &Provider,
        answer: &str,
    ) -> Result<Result<(), String>, VaultError> {
        let (user, name) = (note.user.as_str(), provider.name.as_str());
        let (Some(endpoint), Some(tokens)) = (provider.endpoint(), Tokens::read(answer)) else {
            return Ok(Err("its answer has no access token".to_owned()));
        };
        let now = now_ms();
        let most = self.settings.max_credential_bytes;
        let outcome = self
            .change(user, |draft| {
                let Some(row) = draft.unchanged(name, &note.fingerprint) else { return Ok(Ok(None)) };
                let before = draft.opened(&row)?;
                let text = before.files.get(endpoint.file);
                let text = text
                    .and_then(|text| login_file::renewed(endpoint.format, text.expose(), &tokens, answer.len(), now));
                let Some(text) = text else { return Ok(Err("the login is not in the file".to_owned())) };
                let mut credentials = Credentials::default();
                credentials.files = before.files.clone();
                credentials.files.insert(endpoint.file.to_owned(), text);
                // The credential was good before; what is wrong now is the answer.
                let facts = match check::examine(provider, &credentials, most, now) {
                    Ok(facts) => facts,
                    Err(error) => return Ok(Err(format!("its answer makes no login: {error}"))),
                };
                let version = draft.put(renewed(Some(row), name, &credentials, facts, Some(now)), &credentials);
                draft.record(Record::new(AuditAction::Refreshed, user, name).version(version));
                Ok(Ok(Some(version)))
            })
            .await?;
        match &outcome {
            Ok(Some(version)) => tracing::info!(user, provider = name, version, "audit: credential renewed"),
            Ok(None) => {
                tracing::info!(
                    user,
                    provider = name,
                    "audit: another credential was stored while this one was renewed"
                );
                let record = Record::new(AuditAction::NotTaken, user, name);
                self.audit.note(record.detail("another one was stored, or it was removed, while it was renewed"));
            }
            Err(_) => {}
        }
        Ok(outcome.map(|_| ()))
    }

    /// Marks a login as refused, if it is still the one that was to be renewed.
    async fn take_refusal(
        &self,
        note: &Note,
        provider: &Provider,
        code: &str,
    ) -> Result<Result<(), String>, VaultError> {
        let (user, name) = (note.user.as_str(), provider.name.as_str());
        let reason = format!("the provider will not renew it: {code}");
        self.change(user, |draft| {
            if let Some(row) = draft.unchanged(name, &note.fingerprint) {
                let before = draft.opened(&row)?;
                let row = Credential { refused: Some(reason.clone()), updated_at_ms: now_ms(), ..row };
                let version = draft.put(row, &before);
                draft.record(Record::new(AuditAction::Refused, user, name).version(version).detail(reason.as_str()));
            }
            Ok(())
        })
        .await?;
        tracing::warn!(user, provider = name, code, "audit: credential refused by its provider");
        Ok(Ok(()))
    }
}
