//! Commands in any image of the store, without a provider: the container is created on the spot, by the image's own
//! configuration.

use std::path::Path;
use std::sync::Arc;

use crate::container::{INIT_ID, MAX_GROUPS, NO_WORKSPACE, Template, WORKSPACE, image_root};
use crate::egress::Policy;
use crate::pool::{ClaimError, ClaimRequest, Claimed, Pool, Scheduler};
use thaw_image::{Store, StoreError, account, can_enter, open_plain, writable_home};
use thaw_os::cgroup::{Limits, Reclaim};

/// Directories that thawd mounts on in every container. The store adds missing ones; a link or file stays as it is.
const MOUNT_POINTS: [&str; 3] = ["proc", "dev", "tmp"];

// Every user of an image must be possible for a command: the last id of the container is thaw-init's.
const _: () = assert!(thaw_image::MAX_ID < INIT_ID && thaw_image::MAX_GROUPS <= MAX_GROUPS);

/// Label of such executions in listings and metrics, instead of a provider.
pub const LABEL: &str = "image";

/// Source of an execution's container.
#[derive(Debug, Clone)]
pub enum Origin {
    /// A provider's pool, and its pool of prestarted CLIs if there is one that fits.
    Pool(Pool, Option<Pool>),
    /// A container of an image, created for each execution.
    Image(Arc<Scheduler>, Arc<Template>),
}

impl Origin {
    /// Claims a container for one execution.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim(&self, want: &ClaimRequest<'_>) -> Result<Claimed, ClaimError> {
        match self {
            Self::Pool(pool, _) => pool.claim(want).await,
            Self::Image(scheduler, template) => scheduler.claim(LABEL, Arc::clone(template), want).await,
        }
    }

    /// Claims a container with a prestarted CLI, if one waits.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn claim_prestarted(&self) -> Result<Option<Claimed>, ClaimError> {
        match self.prestarted() {
            Some(prestarted) => prestarted.claim_warm().await,
            None => Ok(None),
        }
    }

    /// The pool of prestarted CLIs.
    pub fn prestarted(&self) -> Option<&Pool> {
        match self {
            Self::Pool(_, prestarted) => prestarted.as_ref(),
            Self::Image(..) => None,
        }
    }

    /// Checks the pool's other containers after a broken one was found.
    ///
    /// # Errors
    /// See [`ClaimError`].
    pub async fn check_health(&self) -> Result<(), ClaimError> {
        match self {
            Self::Pool(pool, _) => pool.check_health().await.map(drop),
            Self::Image(..) => Ok(()),
        }
    }
}

/// Settings of these executions; see `[image_run]` in the configuration.
#[derive(Debug, Clone)]
pub struct ImageSettings {
    /// Memory and CPU.
    pub limits: Limits,
    /// Most processes and threads.
    pub pids: u32,
    /// Destinations that they may connect to.
    pub egress: Arc<Policy>,
    /// Wall-clock limit when the request names none.
    pub timeout: std::time::Duration,
}

/// Makes templates from stored images.
#[derive(Debug)]
pub struct Images {
    store: Arc<Store>,
    scheduler: Arc<Scheduler>,
    settings: ImageSettings,
}

/// Why an image cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ImageRunError {
    /// The image is not in the store.
    #[error("there is no image {0:?} in the store; bring it in with `thawctl image import`, `pull` or `build`")]
    Unknown(String),
    /// The store cannot be read.
    #[error("image {name:?}: {source}")]
    Store {
        /// Which image.
        name: String,
        /// Why.
        source: StoreError,
    },
    /// The image's `User` cannot be resolved.
    #[error("image {name:?} wants to run as {user:?}, {problem}")]
    User {
        /// Which image.
        name: String,
        /// `User` in the image's configuration.
        user: String,
        /// What is wrong with the user.
        problem: &'static str,
    },
    /// A directory that every container has a mount on is a link or a file in the image.
    #[error(
        "image {name:?} has a link or a file in the place of the directory /{path}, which every container has \
         something mounted on: leave it out of the image"
    )]
    MountPoint {
        /// Which image.
        name: String,
        /// The directory.
        path: &'static str,
    },
    /// The mode of the image's root directory excludes its user.
    #[error(
        "image {name:?}: its directory / has mode {mode:04o}, so that user {uid} cannot enter it and would find nothing: \
         make it 0755 where the image is made"
    )]
    Root {
        /// Which image.
        name: String,
        /// Mode of the root directory.
        mode: u32,
        /// User id that would run in it.
        uid: u32,
    },
    /// Files were to be put into it, and it has no place for them.
    #[error("image {name:?} has no place for files: {NO_WORKSPACE}")]
    Workspace {
        /// Which image.
        name: String,
    },
    /// Nothing to run.
    #[error("image {0:?} names no command; give one")]
    NoCommand(String),
}

/// What a request says of the program to start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start<'a> {
    /// Instead of the image's entrypoint.
    pub entrypoint: Option<&'a [String]>,
    /// Instead of the image's command.
    pub command: Option<&'a [String]>,
}

/// An image ready to be run.
pub struct Runnable {
    /// Source of the container.
    pub origin: Origin,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The image's environment.
    pub env: Vec<(String, String)>,
    /// Value of `HOME` if the image does not set it.
    pub home: String,
    /// Working directory.
    pub cwd: String,
    /// User and group id.
    pub ids: (u32, u32),
    /// Supplementary group ids.
    pub groups: Vec<u32>,
    /// Limits of its container.
    pub limits: Limits,
    /// Wall-clock limit when the request names none.
    pub timeout: std::time::Duration,
}

impl Images {
    /// Runs images of `store`.
    pub fn new(store: Arc<Store>, scheduler: Arc<Scheduler>, settings: ImageSettings) -> Self {
        Self { store, scheduler, settings }
    }

    /// Who hands out their containers.
    pub(super) fn scheduler(&self) -> &Scheduler {
        &self.scheduler
    }

    /// Prepares a run of image `name`: a command replaces the image's own, its entrypoint stays (OCI image
    /// specification, config.md); another entrypoint leaves the image's command out, as docker and podman have it. With `workspace`, in a container that has a directory of its own at
    /// `/workspace`.
    ///
    /// # Errors
    /// See [`ImageRunError`].
    pub fn prepare(&self, name: &str, start: Start<'_>, workspace: bool) -> Result<Runnable, ImageRunError> {
        let image = self.store.get(name).map_err(|source| match source {
            StoreError::NotFound { .. } => ImageRunError::Unknown(name.to_owned()),
            source => ImageRunError::Store { name: name.to_owned(), source },
        })?;
        let config = &image.config;
        let argv = match (start.entrypoint, start.command) {
            (Some(entrypoint), command) => [entrypoint, command.unwrap_or_default()].concat(),
            (None, Some(command)) => [&config.entrypoint, command].concat(),
            (None, None) => [config.entrypoint.as_slice(), &config.cmd].concat(),
        };
        if argv.is_empty() {
            return Err(ImageRunError::NoCommand(name.to_owned()));
        }
        if let Some(path) = MOUNT_POINTS.into_iter().find(|path| open_plain(&image.rootfs, path).is_err()) {
            return Err(ImageRunError::MountPoint { name: name.to_owned(), path });
        }
        if workspace && !has_workspace(&image.rootfs) {
            return Err(ImageRunError::Workspace { name: name.to_owned() });
        }
        let user = config.user.as_str();
        let account = account(&image.rootfs, user).map_err(|problem| ImageRunError::User {
            name: name.to_owned(),
            user: user.to_owned(),
            problem,
        })?;
        can_enter(&image.rootfs, &account).map_err(|mode| ImageRunError::Root {
            name: name.to_owned(),
            mode,
            uid: account.uid,
        })?;
        let workdir =
            if config.workdir.starts_with('/') { config.workdir.clone() } else { format!("/{}", config.workdir) };
        // As podman does: a user that /etc/passwd does not know has the working directory as home, root has `/`.
        let nowhere = || if account.uid == 0 { "/".to_owned() } else { workdir.clone() };
        let home = account.home.clone().unwrap_or_else(nowhere);
        let root = image_root(&image).map_err(|source| ImageRunError::Store { name: name.to_owned(), source })?;
        let template = Template {
            provider: LABEL.to_owned(),
            root,
            layer: None,
            hold: Some(image.hold()),
            home: account.home.filter(|home| writable_home(&image.rootfs, home, &workdir)),
            user: account.uid,
            group: account.gid,
            credentials: None,
            workspace,
            idle: self.settings.limits,
            run: self.settings.limits,
            pids: self.settings.pids,
            egress: Arc::clone(&self.settings.egress),
            prestarted: None,
            reclaim: Reclaim::Nothing,
        };
        Ok(Runnable {
            origin: Origin::Image(Arc::clone(&self.scheduler), Arc::new(template)),
            argv,
            env: config.env.clone(),
            home,
            cwd: workdir,
            ids: (account.uid, account.gid),
            groups: account.groups,
            limits: self.settings.limits,
            timeout: self.settings.timeout,
        })
    }
}

/// Name that a provider's image has for the user `uid`, as which its commands run; `None` if `/etc/passwd` lacks the
/// user.
///
/// # Errors
/// [`ImageRunError::Root`] if the user cannot enter the root directory; others if the account is unusable.
pub fn runtime_name(name: &str, rootfs: &Path, uid: u32) -> Result<Option<String>, ImageRunError> {
    let user = format!("{uid}:{uid}");
    let account = account(rootfs, &user).map_err(|problem| ImageRunError::User {
        name: name.to_owned(),
        user: user.clone(),
        problem,
    })?;
    can_enter(rootfs, &account).map_err(|mode| ImageRunError::Root {
        name: name.to_owned(),
        mode,
        uid: account.uid,
    })?;
    Ok(account.name)
}

/// Whether an image has a directory at `/workspace` in which nothing would be hidden by what is mounted on it.
pub fn has_workspace(rootfs: &Path) -> bool {
    let directory = open_plain(rootfs, WORKSPACE.trim_start_matches('/'));
    directory.is_ok() && std::fs::read_dir(rootfs.join("workspace")).is_ok_and(|mut entries| entries.next().is_none())
}
