//! What an earlier daemon left, and what a start that fails must not leave.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use crate::container::{Containers, Orphan};
use crate::egress::Policy;
use crate::execution::{self, Executions};
use crate::keeper::{Keeper, Kept, Key};
use crate::sandbox::{Row, Sandboxes};
use thaw_os::cgroup::Hierarchy;

/// What an earlier daemon left with the keeper.
pub(super) struct Survivors {
    executions: BTreeMap<Key, Kept>,
    sandboxes: BTreeMap<String, Kept>,
    containers: BTreeMap<String, Orphan>,
    /// Renewals of logins that were under way.
    refreshes: Vec<(Key, Kept)>,
}

impl Survivors {
    pub(super) fn find(containers: &Containers, kept: BTreeMap<Key, Kept>) -> Self {
        let (mut executions, mut sandboxes) = (BTreeMap::new(), BTreeMap::new());
        let (mut containers_kept, mut unknown) = (BTreeMap::new(), 0);
        let mut refreshes = Vec::new();
        for (key, kept) in kept {
            match key {
                Key::Container(id) => drop(containers_kept.insert(id, kept)),
                Key::Sandbox(id) => drop(sandboxes.insert(id, kept)),
                key @ (Key::Execution(_) | Key::Transit(..) | Key::Input(_)) => drop(executions.insert(key, kept)),
                key @ Key::Refresh(_) => refreshes.push((key, kept)),
                Key::Unknown(_) => unknown += 1,
            }
        }
        if unknown > 0 {
            tracing::info!(unknown, "a newer daemon's things stay with the keeper");
        }
        let containers = containers.orphans(containers_kept).into_iter().collect();
        Self { executions, sandboxes, containers, refreshes }
    }

    /// The renewals of logins that were under way.
    pub(super) fn refreshes(&mut self) -> Vec<(Key, Kept)> {
        std::mem::take(&mut self.refreshes)
    }

    /// The ids of containers that live.
    pub(super) fn containers(&self) -> BTreeSet<String> {
        self.containers.keys().cloned().collect()
    }

    /// Leaves all of them to the next daemon: the keeper has what they consist of.
    pub(super) fn leave(self) {
        std::mem::forget(self);
    }

    /// Those that nobody had claimed.
    pub(super) fn warm_of(&mut self, provider: &str) -> Vec<Orphan> {
        let of = |_: &String, orphan: &mut Orphan| orphan.pool().provider() == provider && !orphan.may_be_claimed();
        self.containers.extract_if(.., of).map(|(_, orphan)| orphan).collect()
    }

    /// Goes on with what runs; destroys the containers of which nobody knows anything any more.
    pub(super) fn go_on(
        mut self,
        executions: &Arc<Executions>,
        (sandboxes, rows): (&Sandboxes, Vec<Row>),
        egress: impl Fn(&str, &[String]) -> Option<Arc<Policy>>,
    ) {
        let tags = execution::tags_in_sandboxes(&self.executions);
        let mut survivors = sandboxes.adopt(rows, self.sandboxes, &mut self.containers, &tags, &egress);
        let adopted = executions.adopt(self.executions, &mut self.containers, &mut survivors, egress);
        if adopted != execution::Adopted::default() {
            let execution::Adopted { running, ended, lost } = adopted;
            tracing::info!(running, ended, lost, "executions of an earlier daemon");
        }
        for id in self.containers.keys() {
            tracing::warn!(container = %id, "destroyed: an earlier daemon left it, and no execution or sandbox has it");
        }
    }
}

/// What a start has made that fails: nothing of it is left. What an earlier daemon left stays with the keeper.
pub(super) struct Begun {
    pub(super) socket: Option<PathBuf>,
    /// One that holds nothing.
    pub(super) keeper: Option<(Arc<Keeper>, Arc<Hierarchy>)>,
}

impl Begun {
    /// There is a daemon now whose all this is.
    pub(super) fn succeeded(mut self) {
        (self.socket, self.keeper) = (None, None);
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.socket.take().map(std::fs::remove_file) {
            tracing::debug!(%error, "the socket of a start that failed");
        }
        if let Some((keeper, hierarchy)) = self.keeper.take() {
            keeper.end_blocking();
            hierarchy.remove_base();
        }
    }
}
