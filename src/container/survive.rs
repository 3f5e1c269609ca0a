//! Containers that outlive their daemon: what the keeper is told of each, and how the next daemon takes them over.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};

use serde::{Deserialize, Serialize};

use super::containers::{Entry, Status};
use super::control::Control;
use super::reaper::{Parts, Remains};
use super::{Container, ContainerError, Containers, PoolKey, State, Template};
use crate::egress;
use crate::keeper::Kept;
use thaw_os::cgroup::{Limits, Reclaim, Usage};

/// What is to be known of a container besides what the kernel tells. With it go, in this order, its control socket, its
/// PID 1, the socket of its way out, and its credential mount if it has one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Note {
    /// Version of the protocol that its `thaw-init` speaks.
    wire: u32,
    /// What pool it was made for.
    pool: PoolKey,
    /// What it was made from; see [`fingerprint`].
    fingerprint: String,
    /// First of its host ids.
    id_base: u32,
    /// Host id of the user inside.
    owner: u32,
    /// Size of its credential tmpfs, bytes.
    credential_bytes: Option<u64>,
    pid: i32,
    created_at_ms: u64,
    baseline: Usage,
    idle: Limits,
    run: Limits,
}

/// A container without a daemon that uses it. Dropping it destroys it.
#[derive(Debug)]
pub struct Orphan {
    note: Note,
    control: OwnedFd,
    listener: OwnedFd,
    credentials: Option<OwnedFd>,
    egress: egress::Limits,
    remains: Remains,
}

/// Says whether two containers are interchangeable: the same for templates that differ only in what is set at a claim.
pub fn fingerprint(settings: &super::Settings, template: &Template) -> String {
    let Template { provider, rootfs, home, user, group, credentials, idle, run, pids, reclaim, .. } = template;
    let super::Settings { ephemeral_bytes, ephemeral_inodes, open_files, limit_visible_cpus, proxy_port, .. } =
        settings;
    // What it is told of memory and processors.
    let (memory, cpu, burst) = (run.memory_bytes, run.cpu, run.cpu_burst);
    let made_from = format!(
        "{provider:?} {rootfs:?} {home:?} {user} {group} {credentials:?} {idle:?} {pids} {reclaim:?} \
         {ephemeral_bytes} {ephemeral_inodes} {open_files} {proxy_port} {memory} {cpu} {burst:?} {limit_visible_cpus}"
    );
    blake3::hash(made_from.as_bytes()).to_hex().to_string()
}

impl Container {
    /// Lets it survive the daemon from now on. One with a CLI in it does not: what was said to it is known here only.
    pub(super) fn keep(&self) {
        let (Some(keeper), None) = (self.remains.keeper(), &self.cli) else { return };
        let Some(listener) = &self.listener else { return };
        let note = Note {
            wire: thaw_wire::VERSION,
            pool: PoolKey::of(&self.template),
            fingerprint: self.fingerprint.clone(),
            id_base: self.owner - self.template.user,
            owner: self.owner,
            credential_bytes: self.template.credentials.as_ref().map(|(_, bytes)| *bytes),
            pid: self.remains.entry().pid().unwrap_or_default(),
            created_at_ms: self.remains.entry().created_at_ms,
            baseline: self.baseline,
            idle: self.template.idle,
            run: self.template.run,
        };
        let note = serde_json::to_string(&note).expect("numbers and strings always serialize");
        let own = [self.control.as_fd(), self.remains.pidfd(), listener.as_fd()];
        let fds = own.into_iter().chain(self.credentials.as_ref().map(AsFd::as_fd));
        match fds.map(|fd| fd.try_clone_to_owned().map(Arc::new)).collect() {
            Ok(fds) => keeper.put(self.id(), note, fds),
            Err::<Vec<_>, _>(error) => {
                tracing::error!(container = self.id(), %error, "it would not survive this daemon")
            }
        }
    }
}

impl Containers {
    /// What is left of the containers that an earlier daemon kept: those that live. The others are gone, or swept.
    pub fn orphans(&self, kept: BTreeMap<String, Kept>) -> Vec<(String, Orphan)> {
        let mut orphans = Vec::new();
        for (id, kept) in kept {
            match self.orphan(&id, kept) {
                Ok(orphan) => orphans.push((id, orphan)),
                Err(reason) => {
                    tracing::warn!(container = %id, %reason, "a container did not survive");
                    if let Some(keeper) = self.keeper() {
                        keeper.forget(&id);
                    }
                }
            }
        }
        orphans
    }

    fn orphan(&self, id: &str, kept: Kept) -> Result<Orphan, String> {
        let note: Note = serde_json::from_str(&kept.note).map_err(|error| error.to_string())?;
        if note.wire != thaw_wire::VERSION {
            return Err("its thaw-init speaks another version".to_owned());
        }
        // Copies, since the others stay with the keeper's items for as long as it lives.
        let fds: io::Result<Vec<_>> = kept.fds.iter().map(|fd| fd.try_clone()).collect();
        let mut fds = fds.map_err(|error| error.to_string())?.into_iter();
        let (Some(control), Some(pidfd), Some(listener)) = (fds.next(), fds.next(), fds.next()) else {
            return Err("too little of it was kept".to_owned());
        };
        let credentials = fds.next();
        let cgroup = self.hierarchy().adopt(id).map_err(|error| error.to_string())?;
        let place =
            self.place_at(note.id_base).ok_or("there is no place for it (`container.max`, `container.id_start`)")?;
        let entry = Arc::new(Entry {
            id: id.to_owned(),
            provider: note.pool.provider().to_owned(),
            pool: note.pool.clone(),
            cgroup,
            created_at_ms: note.created_at_ms,
            limits: note.run,
            network: OnceLock::new(),
            status: Mutex::new(Status { state: State::Creating, execution: None, pid: Some(note.pid), claimed: None }),
        });
        let remains = Remains::new(Parts { pidfd: Some(pidfd), ..self.parts(entry, place) });
        let egress = self.settings().egress.clone();
        Ok(Orphan { note, control, listener, credentials, egress, remains })
    }
}

impl Orphan {
    /// For which pool it was made.
    pub fn pool(&self) -> &PoolKey {
        &self.note.pool
    }

    /// Whether it may have been given to an execution, so that nobody else may ever have it.
    pub fn may_be_claimed(&self) -> bool {
        self.remains.cgroup().is_claimed().unwrap_or(true)
    }

    /// Back into its pool, if it is as warm containers have to be and made from what they are made from today.
    ///
    /// # Errors
    /// Why not; it is destroyed then.
    pub fn into_warm(self, fingerprint: &str, template: Arc<Template>) -> Result<Container, ContainerError> {
        let unfit = |reason: &str| ContainerError::Init(reason.to_owned());
        if self.note.fingerprint != fingerprint {
            return Err(unfit("it was made from something else than today"));
        }
        if self.may_be_claimed() {
            return Err(unfit("it was given to an execution"));
        }
        if !self.remains.cgroup().is_frozen()? {
            return Err(unfit("it is not frozen"));
        }
        let container = self.adopt(template)?;
        container.remains.set_state(State::Warm);
        Ok(container)
    }

    /// For the execution that had it since `claimed_at_ms`, Unix milliseconds.
    ///
    /// # Errors
    /// It cannot be talked to; it is destroyed then.
    pub fn into_claimed(
        self,
        execution: &str,
        claimed_at_ms: u64,
        egress: Arc<egress::Policy>,
    ) -> Result<Container, ContainerError> {
        // What it was made from matters no more; what is left is what it may do from now on.
        let template = Template {
            provider: self.note.pool.provider().to_owned(),
            rootfs: PathBuf::new(),
            home: None,
            user: 0,
            group: 0,
            credentials: self.note.credential_bytes.map(|bytes| (String::new(), bytes)),
            idle: self.note.idle,
            run: self.note.run,
            pids: 0,
            egress,
            prestarted: None,
            reclaim: Reclaim::Nothing,
        };
        let container = self.adopt(Arc::new(template))?;
        container.remains.set_claimed(execution, claimed_at_ms, container.baseline);
        container.remains.serve_execution();
        Ok(container)
    }

    fn adopt(self, template: Arc<Template>) -> Result<Container, ContainerError> {
        let Self { note, control, listener, credentials, egress: limits, mut remains } = self;
        let control = Control::adopt(control).map_err(ContainerError::Control)?;
        let served = TcpListener::from(listener.try_clone().map_err(ContainerError::Control)?);
        let (policy, metrics) = (Arc::clone(&template.egress), remains.egress_metrics());
        let id = remains.id().to_owned();
        remains.set_proxy(egress::Proxy::serve_with(served, policy, id, metrics, limits)?);
        Ok(Container {
            control,
            credentials,
            listener: Some(listener),
            fingerprint: note.fingerprint,
            owner: note.owner,
            template,
            next_tag: 0,
            cli: None,
            resting: true,
            baseline: note.baseline,
            remains,
        })
    }
}
