//! What a process and its daemon have said to each other, as far as it matters for what is still to come. The next daemon
//! goes on from it: written down at some byte of the process's output and read again, it leads to the same actions for the
//! bytes behind that one.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::credential::Credential;
use super::manifest::Protocol;
use super::plan::Plan;
use super::subject::Subject;
use super::{Action, Input, Step, Turn, claude, codex, gemini, shorten, verdict};
use crate::provider::dialect::{ANSWER_TOO_LONG, LEFT_OUT, Lines, Verdict};

/// Where a process stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Not waiting for a prompt yet.
    Starting,
    Ready,
    Claimed,
    /// `Done` or `Failed` was said.
    Over,
}

/// One conversation. Serialized without the prompt: see [`Dialogue::set_prompt`].
#[derive(Debug, Serialize, Deserialize)]
pub struct Dialogue {
    subject: Subject,
    lines: Lines,
    state: State,
    phase: Phase,
    /// A part of the answer was in a line that was too long.
    is_incomplete: bool,
}

#[derive(Debug, Serialize, Deserialize)]
enum State {
    Codex(codex::Codex),
    Claude(claude::Claude),
    Gemini(gemini::Gemini),
}

impl Dialogue {
    /// With a process of `plan` that has just been started.
    pub(super) fn new(plan: &Plan) -> Self {
        let state = match plan.protocol {
            Protocol::CodexAppServer => State::Codex(codex::Codex::default()),
            Protocol::ClaudeStreamJson => State::Claude(claude::Claude::default()),
            Protocol::GeminiAcp => State::Gemini(gemini::Gemini::default()),
        };
        let subject = plan.subject();
        Self { subject, lines: Lines::default(), state, phase: Phase::Starting, is_incomplete: false }
    }

    /// Gives back the prompt, which is written down in a place of its own, to a conversation that was read again. Without
    /// effect once the process has been told it.
    pub fn set_prompt(&mut self, prompt: &str) {
        let turn = match &mut self.state {
            State::Codex(state) => &mut state.turn,
            State::Gemini(state) => &mut state.turn,
            // It is told at the claim.
            State::Claude(_) => return,
        };
        if let Some(turn) = turn {
            turn.prompt = Zeroizing::new(prompt.to_owned());
        }
    }

    /// What to write to its standard input right after it was started.
    pub(super) fn start(&mut self) -> Input {
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
                State::Codex(state) => state.read(&value, &self.subject),
                State::Claude(state) => state.read(&value, line.is_shortened),
                State::Gemini(state) => state.read(&value, &self.subject),
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
    pub(super) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready
    }

    /// What to write for `turn`.
    pub(super) fn claim(&mut self, turn: Turn, credential: &Credential<'_>, plan: &Plan) -> Input {
        self.phase = Phase::Claimed;
        match &mut self.state {
            State::Codex(state) => state.claim(turn, credential),
            State::Claude(state) => state.claim(&turn, credential, plan),
            State::Gemini(state) => state.claim(turn, credential),
        }
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

    /// Whether the provider refused the credential, and nothing had been said or done before: then the same request may be
    /// tried once more with another credential.
    pub fn was_refused(&self) -> bool {
        match &self.state {
            State::Codex(state) => state.was_refused(),
            State::Claude(state) => state.was_refused(),
            State::Gemini(_) => false,
        }
    }

    /// The verdict when its output has ended without [`Action::Done`] or [`Action::Failed`].
    pub fn finish(self) -> Verdict {
        let last = match self.state {
            State::Codex(state) => state.last_error(),
            State::Claude(state) => return state.finish(),
            State::Gemini(_) => None,
        };
        let name = if self.subject.program.is_empty() { "the CLI" } else { &self.subject.program };
        verdict(Err(match last {
            Some(error) => format!("{name} ended in the middle of its turn; its last message: {error}"),
            None => format!("{name} ended in the middle of its turn; its standard error may say why"),
        }))
    }
}
