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
mod gemini;
mod line;
mod manifest;
mod plan;
mod validate;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use zeroize::Zeroizing;

pub use line::Input;
pub use manifest::{HandOver, LateCredential, ModelMode, Prestart, Protocol};
pub use plan::{Plan, Refusal};

use super::dialect::{ANSWER_TOO_LONG, LEFT_OUT, Lines, Verdict};
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

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not waiting for a prompt yet.
    Starting,
    Ready,
    Claimed,
    /// `Done` or `Failed` was said.
    Over,
}

/// Speaks the protocol of one prestarted process. Bounded in memory by [`super::dialect::LINE_LIMIT`] and by the
/// prompt, and indifferent to garbage: lines that are not JSON, or of unknown kinds, are passed over.
#[derive(Debug)]
pub struct Driver {
    plan: Arc<Plan>,
    lines: Lines,
    state: State,
    phase: Phase,
    /// A part of the answer was in a line that was too long.
    is_incomplete: bool,
}

#[derive(Debug)]
enum State {
    Codex(codex::Codex),
    Claude(claude::Claude),
    Gemini(gemini::Gemini),
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

impl Driver {
    /// A driver for one process that runs `plan`.
    pub fn new(plan: Arc<Plan>) -> Self {
        let state = match plan.protocol {
            Protocol::CodexAppServer => State::Codex(codex::Codex::default()),
            Protocol::ClaudeStreamJson => State::Claude(claude::Claude::default()),
            Protocol::GeminiAcp => State::Gemini(gemini::Gemini::default()),
        };
        Self { plan, lines: Lines::default(), state, phase: Phase::Starting, is_incomplete: false }
    }

    /// The plan that the process runs.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What to write to its standard input right after it was started.
    pub fn start(&mut self) -> Input {
        match &mut self.state {
            State::Codex(state) => state.start(),
            State::Claude(state) => state.start(),
            State::Gemini(state) => state.start(),
        }
    }

    /// Takes the next bytes of standard output, cut anywhere.
    pub fn on_stdout(&mut self, bytes: &[u8]) -> Vec<Action> {
        let mut actions = Vec::new();
        for line in self.lines.push(bytes) {
            let Ok(value) = serde_json::from_slice(&line.bytes) else { continue };
            let steps = match &mut self.state {
                State::Codex(state) => state.read(&value, &self.plan),
                State::Claude(state) => state.read(&value, line.is_shortened),
                State::Gemini(state) => state.read(&value, &self.plan),
            };
            for step in steps {
                if line.is_shortened && matches!(&step, Step::Delta(text) if text.contains(LEFT_OUT)) {
                    self.is_incomplete = true;
                    continue;
                }
                self.take(step, &mut actions);
            }
        }
        actions
    }

    fn take(&mut self, step: Step, actions: &mut Vec<Action>) {
        if self.phase == Phase::Over {
            return;
        }
        let action = match step {
            Step::Write(input) => Action::Write(input),
            Step::Ready if self.phase == Phase::Starting => {
                self.phase = Phase::Ready;
                Action::Ready
            }
            Step::Ready => return,
            Step::Delta(text) if self.phase == Phase::Claimed && !text.is_empty() => Action::Delta(text),
            Step::Delta(_) => return,
            Step::Done(Ok(())) if self.phase == Phase::Claimed && self.is_incomplete => {
                Action::Done(verdict(Err(ANSWER_TOO_LONG.to_owned())))
            }
            Step::Done(result) if self.phase == Phase::Claimed => Action::Done(verdict(result)),
            // An answer without a question.
            Step::Done(_) => Action::Failed("it ended a turn that nobody had begun".to_owned()),
            Step::Failed(reason) => Action::Failed(shorten(&reason)),
        };
        if matches!(action, Action::Done(_) | Action::Failed(_)) {
            self.phase = Phase::Over;
        }
        actions.push(action);
    }

    /// Whether [`Action::Ready`] was said and nothing has gone wrong or been handed over since.
    pub fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// As [`Plan::can_take`], and for the state of this process.
    ///
    /// # Errors
    /// Why the claim must use a container without a CLI in it.
    pub fn can_take(&self, request: &LateRequest<'_>) -> Result<(), Refusal> {
        if self.phase != Phase::Ready {
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
        let input = match &mut self.state {
            State::Codex(state) => state.claim(turn, &credential),
            State::Claude(state) => state.claim(&turn, &credential, &self.plan),
            State::Gemini(state) => state.claim(turn, &credential),
        };
        self.phase = Phase::Claimed;
        Ok(input)
    }

    /// Whether [`Self::wants_renewal`] may come to be true: whoever handed over the credential has to keep it until then.
    pub fn may_want_renewal(&self) -> bool {
        matches!(&self.state, State::Codex(state) if state.may_want_renewal())
    }

    /// Whether the turn failed because the provider refused the token, nothing of an answer had come, and a CLI that
    /// has the credential file could renew the token by itself: then the same request may be tried once more in a
    /// container without a CLI in it.
    pub fn wants_renewal(&self) -> bool {
        matches!(&self.state, State::Codex(state) if state.wants_renewal())
    }

    /// The verdict when its output has ended without [`Action::Done`] or [`Action::Failed`].
    pub fn finish(self) -> Verdict {
        let last = match self.state {
            State::Codex(state) => state.last_error(),
            State::Claude(state) => return state.finish(),
            State::Gemini(_) => None,
        };
        let name = self.plan.argv.first().map_or("the CLI", String::as_str);
        verdict(Err(match last {
            Some(error) => format!("{name} ended in the middle of its turn; its last message: {error}"),
            None => format!("{name} ended in the middle of its turn; its standard error may say why"),
        }))
    }
}

/// What is asked, kept until the CLI has taken its credential.
struct Turn {
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
