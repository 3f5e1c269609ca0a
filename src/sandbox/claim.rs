//! How a sandbox gets a container: claimed, told to the keeper, woken.

use std::sync::Arc;

use super::handle::Handle;
use super::shared::Shared;
use super::{SandboxError, note};
use crate::container::{ContainerError, Sandbox as Container, Template};
use crate::failpoints;
use crate::pool::{ClaimRequest, Pool};

/// Number of warm containers that are tried: one may have died since it was last looked at.
const CLAIM_ATTEMPTS: u32 = 3;

/// Claims a container for it, out of the pool or made of `template`, and lets it run.
///
/// # Errors
/// See [`SandboxError`].
pub(super) async fn claim(
    shared: &Shared,
    pool: &Pool,
    handle: &Handle,
    template: Option<Arc<Template>>,
) -> Result<Container, SandboxError> {
    let wait = shared.settings.queue_timeout;
    let want = ClaimRequest { user: handle.user(), wait, on_position: &|_| {}, prestarted: None };
    let mut attempts = 1;
    loop {
        let claimed = match &template {
            None => pool.claim(&want).await?,
            Some(template) => pool.claim_other(Arc::clone(template), &want).await?,
        };
        if let Some(keeper) = &shared.keeper {
            // Told first, done then: a claimed container is never taken for an unused one, or for nobody's.
            note::keep(keeper, handle, Some(claimed.container.id()))?;
            keeper.caught_up().await;
        }
        failpoints::at("sandbox.kept");
        let container = claimed.container.claim_sandbox(handle.id(), handle.user())?;
        failpoints::at("sandbox.claimed");
        container.thaw()?;
        if !container.has_ended() {
            return Ok(container);
        }
        tracing::warn!(container = container.id(), "claimed container is broken");
        if template.is_none() {
            pool.check_health().await?;
        }
        // The file system of a root is that container's alone.
        if attempts == CLAIM_ATTEMPTS || template.is_some() {
            return Err(ContainerError::InitEnded("before the sandbox had it").into());
        }
        attempts += 1;
    }
}
