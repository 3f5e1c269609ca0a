//! How a sandbox comes to be: written down, a container claimed for it, woken.

use std::sync::Arc;

use tracing::Instrument;

use super::handle::{Handle, Inbox};
use super::owner::Owner;
use super::shared::Shared;
use super::state::Step;
use super::{SandboxError, survive};
use crate::container::Sandbox as Container;
use crate::failpoints;
use crate::keeper::Key;
use crate::pool::{ClaimRequest, Pool};
use thaw_client::types::SandboxReason;

/// Number of warm containers that are tried: one may have died since it was last looked at.
const CLAIM_ATTEMPTS: u32 = 3;

/// Creates it and starts its owner.
///
/// # Errors
/// Nothing of it is left then.
pub(super) async fn create(
    shared: &Arc<Shared>,
    pool: &Pool,
    handle: &Arc<Handle>,
    inbox: Inbox,
) -> Result<(), SandboxError> {
    let created = async {
        // First of all, so that the next daemon knows of it whatever happens.
        shared.rows.note(handle.row());
        shared.rows.flush().await?;
        failpoints::at("sandbox.written");
        claim(shared, pool, handle).await
    };
    let container = match created.await {
        Ok(container) => Arc::new(container),
        Err(error) => {
            if let Some(keeper) = &shared.keeper {
                keeper.forget(&Key::Sandbox(handle.id().to_owned()));
            }
            shared.rows.forget(handle.id());
            return Err(error);
        }
    };
    handle.view().container = Some(container.id().to_owned());
    shared.step(handle, Step::Begin, SandboxReason::Created, None);
    let owner = Owner::new(Arc::clone(shared), Arc::clone(handle), container, inbox);
    tokio::spawn(owner.run().instrument(handle.span().clone()));
    Ok(())
}

async fn claim(shared: &Shared, pool: &Pool, handle: &Handle) -> Result<Container, SandboxError> {
    let wait = shared.settings.queue_timeout;
    let want = ClaimRequest { user: handle.user(), wait, on_position: &|_| {}, prestarted: None };
    let mut attempts = 1;
    loop {
        let claimed = pool.claim(&want).await?;
        if let Some(keeper) = &shared.keeper {
            // Told first, done then: a claimed container is never taken for an unused one, or for nobody's.
            survive::keep(keeper, handle, claimed.container.id())?;
            keeper.caught_up().await;
        }
        failpoints::at("sandbox.kept");
        let container = claimed.container.claim_sandbox(handle.id())?;
        failpoints::at("sandbox.claimed");
        container.thaw()?;
        if !container.has_ended() {
            return Ok(container);
        }
        tracing::warn!(container = container.id(), "claimed container is broken");
        pool.check_health().await?;
        if attempts == CLAIM_ATTEMPTS {
            return Err(crate::container::ContainerError::InitEnded("before the sandbox had it").into());
        }
        attempts += 1;
    }
}
