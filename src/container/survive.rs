//! Containers that outlive their daemon: the note to the keeper about each, and how the next daemon adopts them.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock};

use serde::{Deserialize, Serialize};

use super::control::Control;
use super::processes::{self, Process, Processes};
use super::reaper::{Teardown, TeardownParts};
use super::registry::{Entry, Status};
use super::{Cli, Container, ContainerError, Containers, Once, PoolKey, Sandbox, State, Template};
use crate::egress;
use crate::keeper::{Kept, Key};
use crate::provider::prestart::{Dialogue, Driver};
use thaw_os::cgroup::{Limits, Reclaim, Usage};
use thaw_os::spawner::Root;

/// Longest egress list that is kept, bytes: a note has to fit into a message to the keeper.
const MAX_ALLOWED_BYTES: usize = 16 * 1024;

/// Kind of a kept descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    /// The daemon's end of the control socket.
    Control,
    /// The pidfd of PID 1.
    Pidfd,
    /// The egress proxy's listening socket.
    Proxy,
    /// The container's devpts.
    Terminals,
    /// The container's own `/dev/null`.
    Null,
    /// The mount of its credential directory, if it has one.
    Credentials,
    /// The directory at `/workspace`, if it has one.
    Workspace,
    /// Standard input of the CLI that waits in it, if one does.
    CliInput,
    /// Its standard output.
    CliOutput,
    /// Its standard error.
    CliErrors,
}

/// What is to be known of a CLI that waits in a container. No user has said anything to it yet.
#[derive(Debug, Serialize, Deserialize)]
struct CliNote {
    /// Its tag at `thaw-init`.
    tag: u32,
    /// A [`Dialogue`]: how far it was spoken with.
    dialogue: serde_json::Value,
}

/// What is to be known of a container besides what the kernel tells.
#[derive(Debug, Serialize, Deserialize)]
pub struct Note {
    /// Protocol version of the container's `thaw-init`.
    wire: u32,
    /// Kinds of the descriptors, in their order.
    parts: Vec<Part>,
    /// First command tag of the daemon that wrote the note.
    first_tag: u32,
    /// Pool that the container was created for.
    pool: PoolKey,
    /// Fingerprint of what the container was created from; see [`fingerprint`].
    fingerprint: String,
    /// First host id of the container.
    id_base: u32,
    /// Host id of the user inside.
    owner: u32,
    /// Size of the credential tmpfs, bytes.
    credential_bytes: Option<u64>,
    pid: i32,
    created_at_ms: u64,
    baseline: Usage,
    idle: Limits,
    run: Limits,
    /// Destinations that the container may connect to, for an execution whose provider the next daemon does not have.
    #[serde(default)]
    egress: Vec<String>,
    /// The CLI that waits in it.
    #[serde(default)]
    cli: Option<CliNote>,
}

/// A container of an earlier daemon that has no owner yet. Dropping it destroys it.
#[derive(Debug)]
pub struct Orphan {
    note: Note,
    control: OwnedFd,
    listener: OwnedFd,
    terminals: OwnedFd,
    null: Option<OwnedFd>,
    credentials: Option<OwnedFd>,
    workspace: Option<OwnedFd>,
    /// Standard input, output and error of the CLI that waits in it.
    cli: Option<[OwnedFd; 3]>,
    egress: egress::Limits,
    teardown: Teardown,
}

impl Container {
    /// Lets it survive the daemon from now on, with the CLI that waits in it.
    pub(super) fn keep(&self) {
        let (Some(keeper), Some(listener)) = (self.teardown.keeper(), &self.listener) else { return };
        let own = [
            (Part::Control, self.processes.as_fd()),
            (Part::Pidfd, self.teardown.pidfd()),
            (Part::Proxy, listener.as_fd()),
            (Part::Terminals, self.terminals.as_fd()),
        ];
        let null = self.null.iter().map(|null| (Part::Null, null.as_fd()));
        let credentials = self.credentials.iter().map(|mount| (Part::Credentials, mount.as_fd()));
        let workspace = self.workspace.iter().map(|directory| (Part::Workspace, directory.as_fd()));
        let cli = self.cli.iter().flat_map(|cli| {
            let Cli { stdin, stdout, stderr, .. } = cli;
            [(Part::CliInput, stdin.as_fd()), (Part::CliOutput, stdout.as_fd()), (Part::CliErrors, stderr.as_fd())]
        });
        let own: Vec<_> = own.into_iter().chain(null).chain(credentials).chain(workspace).chain(cli).collect();
        let note = Note {
            wire: thaw_wire::VERSION,
            parts: own.iter().map(|(part, _)| *part).collect(),
            first_tag: self.processes.first_tag(),
            pool: self.teardown.entry().pool.clone(),
            fingerprint: self.fingerprint.clone(),
            id_base: self.id_base,
            owner: self.owner,
            credential_bytes: self.template.credentials.as_ref().map(|(_, bytes)| *bytes),
            pid: self.teardown.entry().pid().unwrap_or_default(),
            created_at_ms: self.teardown.entry().created_at_ms,
            baseline: self.baseline,
            idle: self.template.idle,
            run: *self.teardown.entry().limits(),
            egress: self.template.egress.allowed(MAX_ALLOWED_BYTES),
            cli: self.cli.as_ref().map(|cli| CliNote {
                tag: cli.process.tag(),
                dialogue: serde_json::to_value(cli.driver.dialogue()).expect("strings and numbers always serialize"),
            }),
        };
        let note = serde_json::to_string(&note).expect("numbers and strings always serialize");
        match own.iter().map(|(_, fd)| fd.try_clone_to_owned().map(Arc::new)).collect() {
            Ok(fds) => keeper.put(Key::Container(self.id().to_owned()), note, fds),
            Err::<Vec<_>, _>(error) => {
                tracing::error!(container = self.id(), %error, "it would not survive this daemon")
            }
        }
    }
}

impl Containers {
    /// The living containers that an earlier daemon kept. The others are gone, or are destroyed here.
    pub fn orphans(&self, kept: BTreeMap<String, Kept>) -> Vec<(String, Orphan)> {
        let mut orphans = Vec::new();
        // Claimed containers first: a warm one must not take the lease of one that serves an execution.
        let (claimed, others): (Vec<_>, Vec<_>) = kept.into_iter().partition(|(id, _)| {
            let cgroup = self.hierarchy().adopt(id);
            cgroup.is_ok_and(|cgroup| cgroup.is_claimed().unwrap_or(true))
        });
        for (id, kept) in claimed.into_iter().chain(others) {
            match self.orphan(&id, kept) {
                Ok(orphan) => orphans.push((id, orphan)),
                Err(reason) => {
                    tracing::warn!(container = %id, %reason, "a container did not survive");
                    if let Some(keeper) = self.keeper() {
                        keeper.forget(&Key::Container(id));
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
        // Duplicates, since the originals stay with the keeper's items.
        let copies: io::Result<BTreeMap<_, _>> =
            note.parts.iter().zip(&kept.fds).map(|(part, fd)| Ok((*part, fd.try_clone()?))).collect();
        let mut copies = copies.map_err(|error| error.to_string())?;
        let mut take = |part| copies.remove(&part);
        let mut needed = |part| take(part).ok_or_else(|| format!("its {part:?} was not kept"));
        let (control, pidfd) = (needed(Part::Control)?, needed(Part::Pidfd)?);
        let (listener, terminals) = (needed(Part::Proxy)?, needed(Part::Terminals)?);
        let (null, credentials, workspace) = (take(Part::Null), take(Part::Credentials), take(Part::Workspace));
        let cli = match (take(Part::CliInput), take(Part::CliOutput), take(Part::CliErrors)) {
            (Some(stdin), Some(stdout), Some(stderr)) => Some([stdin, stdout, stderr]),
            _ => None,
        };
        let cgroup = self.hierarchy().adopt(id).map_err(|error| error.to_string())?;
        // A claimed container goes on even if there are fewer leases today; a warm one does not.
        let is_claimed = cgroup.is_claimed().unwrap_or(true);
        let lease = self.leases().take_at(note.id_base, is_claimed);
        let lease = lease.ok_or("there is no place for it any more (`container.max`)")?;
        let entry = Arc::new(Entry {
            id: id.to_owned(),
            provider: note.pool.provider().to_owned(),
            pool: note.pool.clone(),
            cgroup,
            created_at_ms: note.created_at_ms,
            limits: note.run,
            tightened: OnceLock::new(),
            network: OnceLock::new(),
            status: Mutex::new(Status { state: State::Creating, holder: None, pid: Some(note.pid), claimed: None }),
        });
        let teardown = Teardown::new(TeardownParts { pidfd: Some(pidfd), ..self.parts(entry, lease) });
        let egress = self.settings().egress.clone();
        Ok(Orphan { note, control, listener, terminals, null, credentials, workspace, cli, egress, teardown })
    }
}

impl Orphan {
    /// Destinations that the container may connect to, if its provider no longer exists.
    pub fn allowed(&self) -> &[String] {
        &self.note.egress
    }

    /// Pool that the container was created for.
    pub fn pool(&self) -> &PoolKey {
        &self.note.pool
    }

    /// Whether the container may have been claimed, so that no other holder may ever have it.
    pub fn may_be_claimed(&self) -> bool {
        self.teardown.cgroup().is_claimed().unwrap_or(true)
    }

    /// Returns the container to its pool, if it is warm and its fingerprint matches.
    ///
    /// # Errors
    /// Why not; it is destroyed then.
    pub fn into_warm(mut self, fingerprint: &str, template: Arc<Template>) -> Result<Container, ContainerError> {
        let unfit = ContainerError::Unfit;
        if self.note.fingerprint != fingerprint {
            return Err(unfit("it was made from something else than today"));
        }
        if self.may_be_claimed() {
            return Err(unfit("it was given to an execution"));
        }
        if !self.teardown.cgroup().is_frozen()? {
            return Err(unfit("it is not frozen"));
        }
        let prestarted = template.prestarted.clone();
        let cli = match (&prestarted, self.note.cli.take(), self.cli.take()) {
            (None, ..) => None,
            (Some(prestarted), Some(note), Some(pipes)) => Some((prestarted, note, pipes)),
            (Some(_), ..) => return Err(unfit("the CLI in it was not kept")),
        };
        let tags: Vec<u32> = cli.iter().map(|(_, note, _)| note.tag).collect();
        let (mut container, processes) = self.adopt(template, &tags, None)?;
        container.cli = match cli.zip(processes.into_iter().next()) {
            Some(((prestarted, note, pipes), process)) => {
                let dialogue: Dialogue = serde_json::from_value(note.dialogue)
                    .map_err(|_| unfit("what was said to the CLI in it cannot be read"))?;
                let driver = Driver::resume(Arc::clone(&prestarted.plan), dialogue);
                Some(Cli::adopt(process, driver, pipes).map_err(ContainerError::Control)?)
            }
            None => None,
        };
        container.teardown.set_state(State::Warm);
        Ok(container)
    }

    /// Returns the container to the execution that has held it since `claimed_at_ms`, Unix milliseconds, together with
    /// its command, which has this tag.
    ///
    /// # Errors
    /// The control socket cannot be used; the container is then destroyed.
    pub fn into_once(
        self,
        (execution, user): (&str, &str),
        claimed_at_ms: u64,
        egress: Arc<egress::Policy>,
        tag: u32,
    ) -> Result<(Once, Process), ContainerError> {
        let (container, processes) = self.adopt_claimed(egress, &[tag], user)?;
        let process = processes.into_iter().next().expect("one for each tag");
        Ok((container.claimed_before(execution, user, claimed_at_ms), process))
    }

    /// Returns the container to the sandbox that has held it since `claimed_at_ms`, Unix milliseconds, together with
    /// those of its commands, by tag, whose end nobody has taken notice of.
    ///
    /// # Errors
    /// The control socket cannot be used; the container is then destroyed.
    pub fn into_sandbox(
        self,
        (sandbox, user): (&str, &str),
        claimed_at_ms: u64,
        egress: Arc<egress::Policy>,
        tags: &[u32],
    ) -> Result<(Sandbox, Vec<Process>), ContainerError> {
        let (container, processes) = self.adopt_claimed(egress, tags, user)?;
        // New command tags begin after those of the last daemon; the next daemon must know where.
        container.keep();
        Ok((container.claimed_before(sandbox, user, claimed_at_ms), processes))
    }

    fn adopt_claimed(
        self,
        egress: Arc<egress::Policy>,
        tags: &[u32],
        user: &str,
    ) -> Result<(Container, Vec<Process>), ContainerError> {
        // Drop the creation parameters of the claimed container; from here on only its run limits are used.
        let template = Template {
            provider: self.note.pool.provider().to_owned(),
            root: Root::default(),
            layer: None,
            hold: None,
            home: None,
            user: 0,
            group: 0,
            credentials: self.note.credential_bytes.map(|bytes| (String::new(), bytes)),
            workspace: self.workspace.is_some(),
            idle: self.note.idle,
            run: self.note.run,
            pids: 0,
            egress,
            prestarted: None,
            reclaim: Reclaim::Nothing,
        };
        self.adopt(Arc::new(template), tags, Some(user))
    }

    fn adopt(
        self,
        template: Arc<Template>,
        tags: &[u32],
        user: Option<&str>,
    ) -> Result<(Container, Vec<Process>), ContainerError> {
        let Self {
            note,
            control,
            listener,
            terminals,
            null,
            credentials,
            workspace,
            cli: _,
            egress: limits,
            mut teardown,
        } = self;
        let control = Control::adopt(control).map_err(ContainerError::Control)?;
        let first_tag = note.first_tag.wrapping_add(processes::TAGS);
        let (processes, running) = Processes::adopt(control, first_tag, tags).map_err(ContainerError::Control)?;
        let served = TcpListener::from(listener.try_clone().map_err(ContainerError::Control)?);
        // Whose it is from the first connection on, so that none takes another way.
        let (policy, outside) = (Arc::clone(&template.egress), teardown.outside().of(user));
        let id = teardown.id().to_owned();
        teardown.set_proxy(egress::Proxy::serve_with(served, policy, id, outside, limits)?);
        let container = Container {
            processes,
            credentials,
            workspace,
            listener: Some(listener),
            terminals,
            null,
            fingerprint: note.fingerprint,
            id_base: note.id_base,
            owner: note.owner,
            template,
            cli: None,
            resting: true,
            baseline: note.baseline,
            teardown,
        };
        Ok((container, running))
    }
}
