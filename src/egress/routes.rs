//! Who goes out with which identity: the table that every connection asks.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use super::identity::{Identity, Lease};

/// How those go out who have no identity.
#[derive(Debug, Clone, Default)]
pub enum DefaultRoute {
    /// From this host, as it comes.
    #[default]
    Direct,
    /// Not at all.
    None,
    /// With this identity.
    Identity(Arc<Identity>),
}

/// How one connection goes out.
#[derive(Debug, Clone)]
pub(super) enum Route {
    /// From this host, as it comes.
    Direct,
    /// With this identity; the lease of a user's own is held for as long as the connection is open.
    Identity(Arc<Identity>, Option<Arc<Lease>>),
    /// Not at all, and why.
    Refused(String),
}

/// What a user has.
#[derive(Debug, Clone)]
enum Entry {
    Leased(Arc<Lease>),
    /// The configuration has no identity of this name any more.
    Missing(String),
}

/// Why an identity cannot be given.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AllocateError {
    /// There is none of that name.
    #[error("there is no egress identity {name:?}; there is {known}")]
    Unknown {
        /// Name given.
        name: String,
        /// Names that exist.
        known: String,
    },
    /// As many users have it as may.
    #[error(
        "egress identity {name:?} has {most} users already, the most that it may have (`egress.identity.{name}.max_users`)"
    )]
    Full {
        /// Which one.
        name: String,
        /// How many may have it.
        most: usize,
    },
    /// All have as many users as they may, or there are none.
    #[error("no egress identity is free: {0}")]
    NoneFree(&'static str),
}

/// Identities, and who has which. Every connection asks anew, so a change counts for the next one.
#[derive(Debug, Default)]
pub struct Routes {
    identities: BTreeMap<String, Arc<Identity>>,
    default: DefaultRoute,
    users: RwLock<HashMap<String, Entry>>,
}

impl Routes {
    /// Routes with these identities, which nobody has yet.
    pub fn new(identities: Vec<Identity>, default: &thaw_client::config::DefaultRoute<'_>) -> Self {
        use thaw_client::config::DefaultRoute as Configured;
        let identities: BTreeMap<String, Arc<Identity>> =
            identities.into_iter().map(|identity| (identity.name().to_owned(), Arc::new(identity))).collect();
        let default = match default {
            Configured::Direct => DefaultRoute::Direct,
            Configured::None => DefaultRoute::None,
            // The configuration was checked: it is there. Where it is not, nothing goes out.
            Configured::Identity(name) => {
                identities.get(*name).cloned().map_or(DefaultRoute::None, DefaultRoute::Identity)
            }
        };
        Self { identities, default, users: RwLock::default() }
    }

    /// All identities, by name.
    pub fn identities(&self) -> impl Iterator<Item = &Arc<Identity>> {
        self.identities.values()
    }

    /// One identity.
    pub fn identity(&self, name: &str) -> Option<&Arc<Identity>> {
        self.identities.get(name)
    }

    /// Name of what the user has.
    pub fn of_user(&self, user: &str) -> Option<String> {
        self.users.read().unwrap_or_else(PoisonError::into_inner).get(user).map(|entry| match entry {
            Entry::Leased(lease) => lease.identity().name().to_owned(),
            Entry::Missing(name) => name.clone(),
        })
    }

    /// How the next connection of this user goes out; without a user, that of a container that serves nobody yet.
    pub(super) fn route(&self, user: Option<&str>) -> Route {
        let entry = user.and_then(|user| self.users.read().unwrap_or_else(PoisonError::into_inner).get(user).cloned());
        match (entry, &self.default) {
            (Some(Entry::Leased(lease)), _) => Route::Identity(Arc::clone(lease.identity()), Some(lease)),
            (Some(Entry::Missing(name)), _) => Route::Refused(format!(
                "this user's egress identity {name:?} is no longer in the configuration; give the user another one"
            )),
            (None, DefaultRoute::Direct) => Route::Direct,
            (None, DefaultRoute::None) => Route::Refused(
                "this user has no egress identity, and `egress.default` is \"none\"; give the user one".to_owned(),
            ),
            (None, DefaultRoute::Identity(identity)) => Route::Identity(Arc::clone(identity), None),
        }
    }

    /// Chooses an identity for a user: the named one, or the one that the user has, or the one with the fewest users, those
    /// that are up first. It is the user's only after [`Self::set`].
    ///
    /// # Errors
    /// See [`AllocateError`].
    pub fn choose(&self, user: &str, name: Option<&str>) -> Result<Lease, AllocateError> {
        if let Some(name) = name {
            let unknown = || {
                let known: Vec<&str> = self.identities.keys().map(String::as_str).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                AllocateError::Unknown { name: name.to_owned(), known }
            };
            let identity = self.identities.get(name).ok_or_else(unknown)?;
            let most = identity.parts().max_users.unwrap_or(usize::MAX);
            return identity.lease(user).ok_or_else(|| AllocateError::Full { name: name.to_owned(), most });
        }
        if let Some(Entry::Leased(lease)) = self.users.read().unwrap_or_else(PoisonError::into_inner).get(user)
            && let Some(lease) = lease.identity().lease(user)
        {
            return Ok(lease);
        }
        let mut all: Vec<&Arc<Identity>> = self.identities.values().collect();
        all.sort_by_key(|identity| (identity.health().is_down, identity.users()));
        let found = all.iter().find_map(|identity| identity.lease(user));
        let why = match all.is_empty() {
            true => "there is none (`[egress.identity.NAME]` in thawd.toml)",
            false => "each has as many users as it may have (`max_users`)",
        };
        found.ok_or(AllocateError::NoneFree(why))
    }

    /// From now on the user has this.
    pub fn set(&self, user: &str, lease: Lease) {
        let entry = Entry::Leased(Arc::new(lease));
        self.users.write().unwrap_or_else(PoisonError::into_inner).insert(user.to_owned(), entry);
    }

    /// What was written down of an earlier daemon: the user keeps the identity, even if more have it than may, or it is gone.
    pub fn restore(&self, user: &str, name: &str) {
        let lease = self.identities.get(name).map(|identity| identity.lease_again(user));
        let entry = lease.map_or_else(|| Entry::Missing(name.to_owned()), |lease| Entry::Leased(Arc::new(lease)));
        self.users.write().unwrap_or_else(PoisonError::into_inner).insert(user.to_owned(), entry);
    }

    /// From now on the user has none. Connections that are open stay, and with them the place among the identity's users.
    pub fn unset(&self, user: &str) -> bool {
        self.users.write().unwrap_or_else(PoisonError::into_inner).remove(user).is_some()
    }

    /// Looks at each identity again and again, for ever.
    pub async fn probe(&self, interval: Duration, patience: Duration) {
        let mut interval = tokio::time::interval(interval);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let looks = self.identities.values().map(|identity| identity.probe(patience));
            futures_util::future::join_all(looks).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::identity::{IdentityParts, Way};
    use super::*;

    fn identity(name: &str, max_users: Option<usize>) -> Identity {
        Identity::new(IdentityParts {
            name: name.to_owned(),
            way: Way::Bind("127.0.0.1".parse().unwrap()),
            address: None,
            labels: BTreeMap::new(),
            max_users,
            down_after: 2,
        })
    }

    fn routes(identities: Vec<Identity>) -> Routes {
        Routes::new(identities, &thaw_client::config::DefaultRoute::None)
    }

    fn allocate(routes: &Routes, user: &str, name: Option<&str>) -> Result<String, AllocateError> {
        let lease = routes.choose(user, name)?;
        let name = lease.identity().name().to_owned();
        routes.set(user, lease);
        Ok(name)
    }

    #[test]
    fn a_thousand_users_are_spread_evenly_and_keep_theirs() {
        let names: Vec<String> = (0..50).map(|index| format!("i{index}")).collect();
        let routes = routes(names.iter().map(|name| identity(name, None)).collect());
        let first: Vec<String> = (0..1000).map(|user| allocate(&routes, &user.to_string(), None).unwrap()).collect();
        assert!(routes.identities().all(|identity| identity.users() == 20));
        for (user, name) in first.iter().enumerate() {
            assert_eq!(allocate(&routes, &user.to_string(), None).as_ref(), Ok(name), "it stays");
        }
        assert!(routes.identities().all(|identity| identity.users() == 20), "asking again takes no place");
    }

    #[test]
    fn a_place_is_free_when_the_last_connection_has_ended() {
        let routes = routes(vec![identity("one", Some(1))]);
        assert_eq!(allocate(&routes, "a", None).unwrap(), "one");
        let Route::Identity(_, connection) = routes.route(Some("a")) else { panic!("no route") };
        assert!(routes.unset("a"));
        assert!(matches!(routes.route(Some("a")), Route::Refused(_)));
        assert!(matches!(allocate(&routes, "b", Some("one")), Err(AllocateError::Full { most: 1, .. })));
        drop(connection);
        assert_eq!(allocate(&routes, "b", None).unwrap(), "one");
        assert!(matches!(allocate(&routes, "c", None), Err(AllocateError::NoneFree(_))));
    }

    #[test]
    fn one_that_is_down_is_given_last_and_comes_up_again() {
        let routes = routes(vec![identity("a", None), identity("b", None)]);
        let first = Arc::clone(routes.identity("a").unwrap());
        first.failed("away", false);
        assert!(!first.health().is_down);
        first.failed("away", true);
        assert!(first.health().is_down);
        assert_eq!(first.health().problem.as_deref(), Some("away"));
        for user in ["x", "y", "z"] {
            assert_eq!(allocate(&routes, user, None).unwrap(), "b");
        }
        first.succeeded(true);
        assert_eq!(allocate(&routes, "w", None).unwrap(), "a");
    }

    #[test]
    fn an_identity_that_is_gone_is_no_way_around() {
        let routes = Routes::new(vec![identity("a", Some(1))], &thaw_client::config::DefaultRoute::Direct);
        routes.restore("u", "b");
        routes.restore("first", "a");
        routes.restore("second", "a");
        assert_eq!((routes.of_user("second").as_deref(), routes.identity("a").unwrap().users()), (Some("a"), 2));
        assert!(routes.unset("first") && routes.unset("second"));
        assert!(matches!(routes.route(Some("u")), Route::Refused(why) if why.contains("\"b\"")));
        assert!(matches!(routes.route(Some("other")), Route::Direct));
        assert!(matches!(routes.choose("u", Some("b")), Err(AllocateError::Unknown { known, .. }) if known == "a"));
        assert_eq!(allocate(&routes, "u", None).unwrap(), "a");
    }
}
