//! Shared view of a login.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use zeroize::Zeroizing;

use super::error::LoginError;
use thaw_client::time::Timestamp;
use thaw_client::types::{Credential, Login, LoginMethod, LoginReason, LoginRequest, LoginState};

/// Messages that wait for the owner.
const INBOX: usize = 4;

/// What others want of a login.
#[derive(Debug)]
pub(super) enum Message {
    /// The query of a callback, and who is told whether it was taken.
    Callback(Zeroizing<String>, oneshot::Sender<Result<(), LoginError>>),
}

/// A login, as others hold it.
#[derive(Debug)]
pub struct Handle {
    id: String,
    shown: watch::Sender<Login>,
    inbox: mpsc::Sender<Message>,
    cancelled: CancellationToken,
    span: tracing::Span,
}

impl Handle {
    pub(super) fn new(
        id: String,
        request: &LoginRequest,
        method: LoginMethod,
        timeout: Duration,
    ) -> (Arc<Self>, mpsc::Receiver<Message>) {
        let (inbox, messages) = mpsc::channel(INBOX);
        let now = crate::telemetry::unix_ms();
        let timeout = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let (user, provider) = (request.user.clone(), request.provider.clone());
        let span = tracing::error_span!(parent: None, "login", login = id, provider, user);
        let shown = watch::Sender::new(Login {
            id: id.clone(),
            provider,
            user,
            method,
            state: LoginState::Waiting,
            url: None,
            code: None,
            redirect: None,
            created_at: Timestamp::from_unix_ms(now),
            expires_at: Timestamp::from_unix_ms(now.saturating_add(timeout)),
            ended_at: None,
            reason: None,
            detail: None,
            credential: None,
        });
        let this = Arc::new(Self { id, shown, inbox, cancelled: CancellationToken::new(), span });
        (this, messages)
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Span of its log lines.
    pub fn span(&self) -> &tracing::Span {
        &self.span
    }

    /// How far it is.
    pub fn state(&self) -> LoginState {
        self.shown.borrow().state
    }

    /// As the API shows it.
    pub fn describe(&self) -> Login {
        self.shown.borrow().clone()
    }

    /// Follows it.
    pub fn follow(&self) -> watch::Receiver<Login> {
        let mut follower = self.shown.subscribe();
        follower.mark_changed();
        follower
    }

    /// Waits until it has ended.
    pub async fn ended(&self) {
        // The sender lives as long as `self`.
        let _ = self.shown.subscribe().wait_for(|login| login.state.is_ended()).await;
    }

    pub(super) fn is_of(&self, user: &str, provider: &str) -> bool {
        let login = self.shown.borrow();
        login.user == user && login.provider == provider
    }

    /// Asks for it to end.
    pub fn cancel(&self) {
        self.cancelled.cancel();
    }

    pub(super) fn cancelled(&self) -> &CancellationToken {
        &self.cancelled
    }

    /// Hands over the query of the callback that the user's browser was sent to. Taken once.
    ///
    /// # Errors
    /// It is none, or of another login, or it is not the time for one; the login goes on then.
    pub async fn answer(&self, query: Zeroizing<String>) -> Result<(), LoginError> {
        let (reply, taken) = oneshot::channel();
        let over = || LoginError::NotNow(state_word(self.state()));
        self.inbox.send(Message::Callback(query, reply)).await.map_err(|_| over())?;
        taken.await.map_err(|_| over())?
    }

    pub(super) fn shows_code(&self, url: String, code: Option<String>, redirect: Option<String>) {
        self.shown.send_modify(|login| {
            (login.state, login.url, login.code, login.redirect) = (LoginState::Code, Some(url), code, redirect);
        });
    }

    pub(super) fn exchanges(&self) {
        self.shown.send_modify(|login| {
            (login.state, login.url, login.code, login.redirect) = (LoginState::Exchanging, None, None, None);
        });
    }

    pub(super) fn is_done(&self, credential: Credential) {
        self.end(|login| (login.state, login.credential) = (LoginState::Done, Some(credential)));
    }

    pub(super) fn failed(&self, reason: LoginReason, detail: String) {
        self.end(|login| {
            (login.state, login.reason, login.detail) = (LoginState::Failed, Some(reason), Some(detail));
        });
    }

    fn end(&self, change: impl FnOnce(&mut Login)) {
        self.shown.send_modify(|login| {
            (login.url, login.code, login.redirect, login.ended_at) = (None, None, None, Some(Timestamp::now()));
            change(login);
        });
    }
}

/// A state as the API writes it.
pub(super) fn state_word(state: LoginState) -> &'static str {
    match state {
        LoginState::Waiting => "waiting",
        LoginState::Code => "code",
        LoginState::Exchanging => "exchanging",
        LoginState::Done => "done",
        LoginState::Failed => "failed",
    }
}
