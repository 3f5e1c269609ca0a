//! Owns who goes out with which egress identity, as it is written down: the table behind [`Routes`], which connections ask.
//!
//! What is promised is on the disk first, and in the table then. Identities are those of this host's configuration, and so
//! are the rows: they are in its own database, also where `store.url` names another one. Deliberately absent: connections
//! and their health, which are `egress`'s.

use std::sync::Arc;

use sqlx::Row as _;
use tokio::sync::Mutex;

use crate::egress::{AllocateError, Health, Identity, Routes, Way};
use crate::store::{Store, StoreError};
use crate::telemetry::unix_ms;
use thaw_client::config::ProxyKind;
use thaw_client::time::Timestamp;
use thaw_client::types::{EgressAllocation, EgressIdentity, EgressKind, EgressState};

/// Why a user cannot be given an identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// None fits.
    #[error(transparent)]
    Allocate(#[from] AllocateError),
    /// It cannot be written down.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing can be written down.
    #[error("no identity can be given, because `paths.state_dir` is read-only and has no database for it")]
    ReadOnly,
}

/// Who has which identity.
#[derive(Debug)]
pub struct Identities {
    routes: Arc<Routes>,
    store: Option<Store>,
    /// One change at a time.
    changing: Mutex<()>,
}

impl Identities {
    /// Reads what was written down. Without a database nobody has anything.
    ///
    /// # Errors
    /// The database fails.
    pub async fn open(routes: Arc<Routes>, store: Option<Store>) -> Result<Self, StoreError> {
        if let Some(store) = &store {
            let rows =
                sqlx::query("SELECT user_name, identity FROM egress_allocations").fetch_all(store.pool()).await?;
            for row in rows {
                let (user, name): (String, String) = (row.try_get("user_name")?, row.try_get("identity")?);
                if routes.identity(&name).is_none() {
                    tracing::warn!(
                        user,
                        identity = name,
                        "a user has an egress identity that is not in the configuration"
                    );
                }
                routes.restore(&user, &name);
            }
        }
        Ok(Self { routes, store, changing: Mutex::default() })
    }

    /// All identities, by name.
    pub fn list(&self) -> Vec<EgressIdentity> {
        self.routes.identities().map(|identity| describe(identity)).collect()
    }

    /// One identity.
    pub fn get(&self, name: &str) -> Option<EgressIdentity> {
        self.routes.identity(name).map(|identity| describe(identity))
    }

    /// Gives the user the identity of this name, or the one with the fewest users, unless there is one already.
    ///
    /// # Errors
    /// See [`IdentityError`]; then the user has what there was before.
    pub async fn allocate(&self, user: &str, name: Option<&str>) -> Result<EgressAllocation, IdentityError> {
        let _turn = self.changing.lock().await;
        let lease = self.routes.choose(user, name)?;
        let identity = Arc::clone(lease.identity());
        if self.routes.of_user(user).as_deref() == Some(identity.name())
            && let Some(there) = self.of(user).await?
        {
            return Ok(there);
        }
        let store = self.store.as_ref().ok_or(IdentityError::ReadOnly)?;
        let now = unix_ms();
        sqlx::query(
            "INSERT INTO egress_allocations (user_name, identity, allocated_at_ms) VALUES ($1, $2, $3)
             ON CONFLICT (user_name) DO UPDATE SET identity = $2, allocated_at_ms = $3",
        )
        .bind(user)
        .bind(identity.name())
        .bind(i64::try_from(now).unwrap_or(i64::MAX))
        .execute(store.pool())
        .await
        .map_err(StoreError::from)?;
        self.routes.set(user, lease);
        Ok(allocation(user, identity.name(), Some(&identity), now))
    }

    /// Takes the user's identity back. False if there is none.
    ///
    /// # Errors
    /// The database fails; then the user keeps it.
    pub async fn release(&self, user: &str) -> Result<bool, IdentityError> {
        let _turn = self.changing.lock().await;
        let Some(store) = &self.store else { return Ok(false) };
        let query = sqlx::query("DELETE FROM egress_allocations WHERE user_name = $1").bind(user);
        query.execute(store.pool()).await.map_err(StoreError::from)?;
        Ok(self.routes.unset(user))
    }

    /// What the user has.
    ///
    /// # Errors
    /// The database fails.
    pub async fn of(&self, user: &str) -> Result<Option<EgressAllocation>, StoreError> {
        let Some(store) = &self.store else { return Ok(None) };
        let query = sqlx::query("SELECT identity, allocated_at_ms FROM egress_allocations WHERE user_name = $1");
        let Some(row) = query.bind(user).fetch_optional(store.pool()).await? else { return Ok(None) };
        let (name, at): (String, i64) = (row.try_get("identity")?, row.try_get("allocated_at_ms")?);
        let at = u64::try_from(at)
            .map_err(|_| StoreError::Damaged(format!("egress_allocations of {user}: `allocated_at_ms`")))?;
        Ok(Some(allocation(user, &name, self.routes.identity(&name), at)))
    }
}

fn allocation(user: &str, name: &str, identity: Option<&Arc<Identity>>, at_ms: u64) -> EgressAllocation {
    EgressAllocation {
        user: user.to_owned(),
        identity: name.to_owned(),
        address: identity.and_then(|identity| identity.parts().address),
        allocated_at: Timestamp::from_unix_ms(at_ms),
    }
}

fn describe(identity: &Identity) -> EgressIdentity {
    let parts = identity.parts();
    let Health { is_down, since_ms, failures, problem, opened, failed } = identity.health();
    let (kind, upstream, bind) = match &parts.way {
        Way::Bind(address) => (EgressKind::Bind, None, Some(*address)),
        Way::Proxy(proxy) => {
            let url = proxy.url();
            let host = if url.host.contains(':') { format!("[{}]", url.host) } else { url.host.clone() };
            let kind = match url.kind {
                ProxyKind::Http => EgressKind::Http,
                ProxyKind::Https => EgressKind::Https,
                ProxyKind::Socks5 => EgressKind::Socks5,
            };
            (kind, Some(format!("{host}:{}", url.port)), None)
        }
    };
    EgressIdentity {
        name: identity.name().to_owned(),
        kind,
        upstream,
        bind,
        address: parts.address,
        labels: parts.labels.clone(),
        max_users: parts.max_users,
        users: identity.users(),
        state: if is_down { EgressState::Down } else { EgressState::Up },
        since: Timestamp::from_unix_ms(since_ms),
        failures,
        problem,
        opened,
        failed,
    }
}
