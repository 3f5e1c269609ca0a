//! Handle to one container's proxy.

use std::net::TcpListener;
use std::sync::Arc;

use super::accept;
use super::meter::{Meter, Usage};
use super::policy::Policy;
use super::shared::{Outside, Shared};
use super::{EgressError, Limits};

/// A running proxy. Dropping it closes the listener and every connection and tunnel; [`Proxy::shutdown`] does so and
/// waits until they are closed.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
}

impl Proxy {
    /// Serves `listener`, a socket that listens inside a container's network namespace, with [`Limits::default`].
    ///
    /// `container` names it in log lines. Connections go out from the namespace of the calling process.
    ///
    /// # Errors
    /// [`EgressError::NoRuntime`] outside of tokio, [`EgressError::Listener`] when the socket is not usable.
    pub fn serve(
        listener: TcpListener,
        policy: Arc<Policy>,
        container: String,
        outside: Outside,
    ) -> Result<Self, EgressError> {
        Self::serve_with(listener, policy, container, outside, Limits::default())
    }

    /// As [`Proxy::serve`], with other limits.
    ///
    /// # Errors
    /// As [`Proxy::serve`].
    pub fn serve_with(
        listener: TcpListener,
        policy: Arc<Policy>,
        container: String,
        outside: Outside,
        limits: Limits,
    ) -> Result<Self, EgressError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| EgressError::NoRuntime)?;
        listener.set_nonblocking(true).map_err(EgressError::Listener)?;
        let listener = tokio::net::TcpListener::from_std(listener).map_err(EgressError::Listener)?;
        let shared = Arc::new(Shared::new(policy, &container, outside, limits, runtime));
        shared.spawn(accept::run(listener, Arc::clone(&shared)));
        Ok(Self { shared })
    }

    /// Raises the rate of bytes to that of a running execution.
    pub fn serve_execution(&self) {
        self.shared.account.set_rate(self.shared.limits.run_mbit_per_second);
    }

    /// Lets later connections go out with the identity of `user`. Only the first call has an effect.
    pub fn goes_out_for(&self, user: &str) {
        self.shared.goes_out_for(user);
    }

    /// Attaches the log lines of later connections to `span`. Only the first call has an effect.
    pub fn belongs_to(&self, span: tracing::Span) {
        self.shared.belongs_to(span);
    }

    /// A reader of the container's usage, which stays valid after the proxy has ended.
    pub fn meter(&self) -> Meter {
        Meter(Arc::clone(&self.shared.account))
    }

    /// The container's usage so far.
    pub fn usage(&self) -> Usage {
        self.shared.account.usage()
    }

    /// Closes the listener and every connection and tunnel; returns the usage when they are closed.
    pub async fn shutdown(self) -> Usage {
        self.shared.end().await;
        self.usage()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.cancel();
    }
}
