//! Where the command of an execution runs: in a container of its own, or in a sandbox.

use serde::{Deserialize, Serialize};

use crate::container::{ContainerError, CredentialFiles, Once, Process};
use crate::sandbox::Use;
use thaw_os::cgroup::{Limits, Usage};

/// The sandbox that an execution asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InSandbox {
    /// Its id.
    pub id: String,
    /// Whether the sandbox is not idle while the command runs.
    pub holds: bool,
    /// Names of the credential files that are there for it alone.
    #[serde(default)]
    pub lends: Vec<String>,
}

/// The container of a command.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "the larger one is the usual one, and a claim allocates nothing for it")]
pub enum Place {
    /// Destroyed with the execution.
    Own(Once),
    /// Others may run in it, and it lives on.
    Sandbox(Use),
}

impl Place {
    /// Id of the container.
    pub fn id(&self) -> &str {
        match self {
            Self::Own(container) => container.id(),
            Self::Sandbox(inside) => inside.container().id(),
        }
    }

    /// The container that is the execution's alone.
    pub fn own(&self) -> Option<&Once> {
        if let Self::Own(container) = self { Some(container) } else { None }
    }

    /// Usage of the container since its creation.
    ///
    /// # Errors
    /// The control files cannot be read.
    pub fn usage(&self) -> Result<Usage, ContainerError> {
        match self {
            Self::Own(container) => container.usage(),
            Self::Sandbox(inside) => inside.container().usage(),
        }
    }

    /// What the container may use.
    pub fn limits(&self) -> &Limits {
        match self {
            Self::Own(container) => container.limits(),
            Self::Sandbox(inside) => inside.container().limits(),
        }
    }

    /// The credential directory, if there is one.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn credential_files(&self) -> std::io::Result<Option<CredentialFiles>> {
        match self {
            Self::Own(container) => container.credential_files(),
            Self::Sandbox(inside) => inside.container().credential_files(),
        }
    }

    /// Removes what was there for this execution alone. A container of its own is destroyed with it.
    pub fn withdraw(&self) {
        if let Self::Sandbox(inside) = self {
            inside.withdraw();
        }
    }

    /// Lets what was submitted run. A sandbox is awake already.
    ///
    /// # Errors
    /// The control file cannot be written.
    pub fn thaw(&self) -> Result<(), ContainerError> {
        self.own().map_or(Ok(()), Once::thaw)
    }

    /// Makes sure that the command can do what it is about to be told: one in a frozen sandbox hears no signal.
    pub fn rouse(&self) {
        if let Self::Sandbox(inside) = self {
            inside.rouse();
        }
    }

    /// Kills the command. Of a container of its own, everything is killed.
    pub fn kill(&self, process: &Process) {
        let killed = match self {
            Self::Own(container) => container.kill(),
            Self::Sandbox(_) => process.signal(libc::SIGKILL),
        };
        if let Err(error) = killed {
            tracing::error!(%error, "could not kill the command");
        }
    }

    /// Kills what a command has left running, where nobody wants it.
    pub fn clear(&self) {
        if let Self::Own(container) = self
            && let Err(error) = container.kill()
        {
            tracing::error!(%error, "could not kill the container");
        }
    }

    /// Why the sandbox's container was ended, as a sentence, if it was, and whether somebody or something decided that.
    pub fn why_ended(&self) -> Option<(String, bool)> {
        if let Self::Sandbox(inside) = self { inside.why_ended() } else { None }
    }
}
