//! Prestarted CLIs: started without prompt, user and credential, frozen once they are quiet, and given everything at
//! the claim over their own long-running protocol.
//!
//! [`Provider::prestart`](super::Provider::prestart) makes a [`Plan`] from a manifest's `[prestart]`. A [`Driver`]
//! speaks the protocol with one process: its input is what the CLI prints, its output are [`Action`]s. It does no I/O
//! and has no clock, so the same bytes always lead to the same actions.
//!
//! The steps of the owner of one process:
//!
//! 1. Start [`Plan::argv`] with [`Plan::env`]; write [`Driver::start`] to its standard input and keep that open.
//! 2. Pass its standard output to [`Driver::on_stdout`]; write each [`Action::Write`], until [`Action::Ready`].
//! 3. Wait until it has printed nothing for [`Plan::quiet`], then freeze it. Discard its standard error so far: no
//!    request exists yet that it could belong to.
//! 4. At a claim, ask [`Plan::can_take`]. If it refuses, use a container without a CLI in it.
//! 5. Mount the credential files if [`Plan::mounts_files`] says so, write [`Driver::claim`], thaw.
//! 6. Pass its output on again until [`Action::Done`] or [`Action::Failed`], then kill the container. If the output
//!    ends before that, [`Driver::finish`] has the verdict. The exit code means nothing.

mod auth;
mod claude;
mod codex;
mod credential;
mod dialogue;
mod gemini;
mod line;
mod manifest;
mod plan;
mod subject;
mod validate;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use dialogue::Dialogue;
pub use line::Input;
pub use manifest::{HandOver, LateCredential, ModelMode, Prestart, Protocol};
pub use plan::{Plan, Refusal};

use super::dialect::Verdict;
use thaw_client::types::Secret;

/// Longest error text that is kept, characters; the same as in [`super::dialect`].
const ERROR_CHARS: usize = 1000;

/// A request for a prestarted CLI, passed at the claim.
#[derive(Clone, Copy)]
pub struct LateRequest<'a> {
    /// The prompt; must hold more than white space.
    pub prompt: &'a str,
    /// Model, with aliases resolved as in [`super::Invocation::model`].
    pub model: &'a str,
    /// One of the manifest's efforts.
    pub effort: Option<&'a str>,
    /// Directory to work in, if not the one that it was started in.
    pub cwd: Option<&'a str>,
    /// Credential files, by name. As for [`super::Provider::check_credentials`]: files, or one variable.
    pub files: &'a BTreeMap<String, Secret>,
    /// Credential variables, by name.
    pub variables: &'a BTreeMap<String, Secret>,
    /// Environment of the request, by name. A running process can take none.
    pub env: &'a BTreeMap<String, String>,
    /// Time now: an expired token is not passed to a CLI that cannot renew it.
    pub now: SystemTime,
}

impl std::fmt::Debug for LateRequest<'_> {
    /// Omits prompt and environment, which belong to the user.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LateRequest").field("model", &self.model).field("effort", &self.effort).finish_non_exhaustive()
    }
}

/// What the owner of the process has to do after the CLI printed something.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Write this to the CLI's standard input.
    Write(Input),
    /// The CLI waits for a prompt and may be frozen once it is quiet. Comes once, before the claim.
    Ready,
    /// A piece of the answer.
    Delta(String),
    /// The turn is over: kill the CLI. No action follows.
    Done(Verdict),
    /// The CLI is unusable: kill it. Before the claim, discard the container; after the claim, the execution failed
    /// with this reason. No action follows.
    Failed(String),
}

/// What one line leads to, in the words of the protocols' own modules.
#[derive(Debug)]
enum Step {
    Write(Input),
    Ready,
    Delta(String),
    Done(Result<(), String>),
    Failed(String),
}

/// Speaks the protocol of one prestarted process until it is claimed; from then on its [`Dialogue`] does. Bounded in memory
/// by [`super::dialect::LINE_LIMIT`] and by the prompt, and indifferent to garbage: lines that are not JSON, or of unknown
/// kinds, are passed over.
#[derive(Debug)]
pub struct Driver {
    plan: Arc<Plan>,
    dialogue: Dialogue,
}

impl Driver {
    /// A driver for one process that runs `plan`.
    pub fn new(plan: Arc<Plan>) -> Self {
        Self { dialogue: Dialogue::new(&plan), plan }
    }

    /// A driver for a process that an earlier daemon started with the same plan, and spoke with as far as `dialogue` says.
    pub fn resume(plan: Arc<Plan>, dialogue: Dialogue) -> Self {
        Self { plan, dialogue }
    }

    /// The plan that the process runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How far the conversation has come.
    pub fn dialogue(&self) -> &Dialogue {
        &self.dialogue
    }

    /// The conversation alone: after the claim the plan is not needed any more.
    pub fn into_dialogue(self) -> Dialogue {
        self.dialogue
    }

    /// What to write to its standard input right after it was started.
    pub fn start(&mut self) -> Input {
        self.dialogue.start()
    }

    /// Decodes the next bytes of standard output, cut anywhere.
    pub fn on_stdout(&mut self, bytes: &[u8]) -> Vec<Action> {
        self.dialogue.on_stdout(bytes)
    }

    /// Whether the CLI waits for a prompt: [`Action::Ready`] was returned, and neither a failure nor a claim came after it.
    pub fn is_ready(&self) -> bool {
        self.dialogue.is_ready()
    }

    /// As [`Plan::can_take`], and for the state of this process.
    ///
    /// # Errors
    /// Why the claim must use a container without a CLI in it.
    pub fn can_take(&self, request: &LateRequest<'_>) -> Result<(), Refusal> {
        if !self.is_ready() {
            return Err(Refusal::NotReady);
        }
        self.plan.can_take(request)
    }

    /// Bytes for the CLI's standard input for `request`; more may follow from [`Driver::on_stdout`]. May be written
    /// while the CLI is frozen: a pipe holds 64 KiB, so the rest of a longer prompt is written after the thaw.
    ///
    /// # Errors
    /// As [`Driver::can_take`]; the driver is then unchanged.
    pub fn claim(&mut self, request: &LateRequest<'_>) -> Result<Input, Refusal> {
        self.can_take(request)?;
        let credential = self.plan.credential(request)?;
        let turn = Turn {
            prompt: Zeroizing::new(request.prompt.to_owned()),
            model: request.model.to_owned(),
            effort: request.effort.and_then(|effort| self.plan.effort(effort)).cloned(),
            cwd: request.cwd.map(str::to_owned),
        };
        Ok(self.dialogue.claim(turn, &credential, &self.plan))
    }
}

/// What is asked, kept until the CLI has taken its credential.
#[derive(Serialize, Deserialize)]
struct Turn {
    #[serde(skip)]
    prompt: Zeroizing<String>,
    model: String,
    effort: Option<plan::LateEffort>,
    cwd: Option<String>,
}

impl std::fmt::Debug for Turn {
    /// Omits the prompt, which belongs to the user.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn").field("model", &self.model).field("effort", &self.effort).finish_non_exhaustive()
    }
}

fn verdict(result: Result<(), String>) -> Verdict {
    match result {
        Ok(()) => Verdict { success: Some(true), error: None },
        Err(error) => Verdict { success: Some(false), error: Some(shorten(&error)) },
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(ERROR_CHARS).collect()
}
