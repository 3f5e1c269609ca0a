//! How a sandbox comes to be: written down, and given a container.

use std::sync::Arc;

use tracing::Instrument;

use super::handle::{Handle, Inbox, Running};
use super::owner::Owner;
use super::shared::Shared;
use super::state::Step;
use super::{SandboxError, claim, root};
use crate::failpoints;
use crate::keeper::Key;
use crate::pool::Pool;
use thaw_client::types::SandboxReason;

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
        match handle.storage_bytes() {
            Some(bytes) => root::make(shared, pool, handle, bytes).await,
            None => claim::claim(shared, pool, handle, None).await,
        }
    };
    let container = match created.await {
        Ok(container) => Running::new(Arc::new(container)),
        Err(error) => {
            if let Some(keeper) = &shared.keeper {
                keeper.forget(&Key::Sandbox(handle.id().to_owned()));
            }
            shared.remove_storage(handle).await;
            shared.rows.forget(handle.id());
            return Err(error);
        }
    };
    handle.view().container = Some(container.container.id().to_owned());
    shared.step(handle, Step::Begin, SandboxReason::Created, None);
    let owner = Owner::new(Arc::clone(shared), Arc::clone(handle), Some(pool.clone()), Some(container), inbox);
    tokio::spawn(owner.run().instrument(handle.span().clone()));
    Ok(())
}
