//! Passes prompt and credentials to a prestarted CLI in a claimed, frozen container.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use zeroize::Zeroizing;

use super::said::Said;
use crate::provider::Verdict;
use crate::provider::prestart::{Action, Dialogue, Input, LateRequest};
use thaw_client::types::Secret;
use thaw_os::kernel::Watched;

/// Most answers that wait for a CLI to read them, bytes, besides prompt and credentials. The CLI gets an answer, with an id
/// of its own choosing, to each request. A CLI that kept asking without reading would fill the daemon's memory.
const UNREAD_ANSWERS: usize = 256 * 1024;

/// Most bytes that one byte of a prompt takes in JSON (`\\u0000`).
const ESCAPED: usize = 6;

/// What a prestarted CLI gets at the claim, besides the plan's files.
pub struct Late {
    /// The prompt.
    pub prompt: Zeroizing<String>,
    /// Model, with aliases resolved.
    pub model: String,
    /// Effort.
    pub effort: Option<String>,
    /// Directory to work in, if not the one that it is in.
    pub cwd: Option<String>,
    /// Credential variables.
    pub variables: BTreeMap<String, Secret>,
}

impl std::fmt::Debug for Late {
    /// Omits the prompt, which belongs to the user.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Late").field("model", &self.model).field("effort", &self.effort).finish_non_exhaustive()
    }
}

impl Late {
    /// The request in the representation that prestart drivers expect.
    pub fn request<'a>(
        &'a self,
        files: &'a BTreeMap<String, Secret>,
        env: &'a BTreeMap<String, String>,
    ) -> LateRequest<'a> {
        LateRequest {
            prompt: &self.prompt,
            model: &self.model,
            effort: self.effort.as_deref(),
            cwd: self.cwd.as_deref(),
            files,
            variables: &self.variables,
            env,
            now: SystemTime::now(),
        }
    }
}

/// How far a conversation has come, for the next daemon.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spoken<D> {
    /// Bytes that were said in it.
    said: u64,
    dialogue: D,
}

/// A conversation with a claimed CLI.
pub struct Conversation {
    dialogue: Dialogue,
    /// The CLI's standard input.
    stdin: Watched,
    /// What is said, also what was not read yet: a pipe holds 64 KiB, and a CLI may read slowly.
    said: Said,
    /// Bytes that were said.
    length: u64,
    /// Most that may wait to be sent, bytes.
    most_unsent: usize,
    verdict: Option<Verdict>,
}

impl std::fmt::Debug for Conversation {
    /// Omits the unwritten bytes, which hold prompts and credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation").field("unsent_bytes", &self.said.unsent()).finish_non_exhaustive()
    }
}

impl Conversation {
    /// Begins with `input`. It is written down; [`Self::send_some`] sends it.
    ///
    /// # Errors
    /// Out of memory or descriptors.
    pub fn begin(dialogue: Dialogue, stdin: OwnedFd, said: Said, input: &Input) -> io::Result<Self> {
        let mut this = Self::new(dialogue, stdin, said, 0)?;
        this.most_unsent += input.len();
        this.write(input)?;
        Ok(this)
    }

    /// Goes on with one of an earlier daemon, from where `checkpoint` says: what comes of the CLI's output after it is said
    /// again, and only what was not said yet goes to the CLI.
    ///
    /// # Errors
    /// Out of descriptors, or `said` is damaged.
    pub fn resume(checkpoint: Spoken<Dialogue>, stdin: OwnedFd, said: OwnedFd) -> io::Result<Self> {
        let Spoken { said: length, mut dialogue } = checkpoint;
        let (said, prompt) = Said::resume(said)?;
        dialogue.set_prompt(&prompt);
        let mut this = Self::new(dialogue, stdin, said, length)?;
        this.most_unsent += this.said.unsent();
        // A failure shows again when the rest is sent, and ends there.
        let _ = this.send_some();
        Ok(this)
    }

    fn new(dialogue: Dialogue, stdin: OwnedFd, said: Said, length: u64) -> io::Result<Self> {
        let most_unsent = ESCAPED * said.prompt_bytes() + UNREAD_ANSWERS;
        let stdin = Watched::new(stdin, Interest::WRITABLE)?;
        Ok(Self { dialogue, stdin, said, length, most_unsent, verdict: None })
    }

    /// How far it has come.
    pub fn spoken(&self) -> Spoken<&Dialogue> {
        Spoken { said: self.length, dialogue: &self.dialogue }
    }

    fn write(&mut self, input: &[u8]) -> io::Result<()> {
        self.said.write(self.length, input)?;
        self.length += input.len() as u64;
        Ok(())
    }

    fn say(&mut self, input: &[u8]) {
        if self.said.unsent() + self.said.missing(self.length, input.len()) > self.most_unsent {
            return self.fail("it asks for more than it reads answers to");
        }
        match self.write(input) {
            // A failure shows again when the rest is sent, and ends there.
            Ok(()) => drop(self.send_some()),
            Err(error) => self.fail(&format!("what it is to be told cannot be kept: {error}")),
        }
    }

    fn fail(&mut self, reason: &str) {
        self.verdict = Some(Verdict { success: Some(false), error: Some(reason.to_owned()) });
    }

    /// Sends as much as fits into the pipe.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub fn send_some(&mut self) -> io::Result<bool> {
        self.said.send(self.stdin.fd())
    }

    /// Sends what is left; never ends when there is nothing to send. Can be cancelled at any point.
    pub async fn send(&mut self) {
        let Self { said, stdin, .. } = self;
        let sent = stdin.run(Interest::WRITABLE, |pipe| match said.send(pipe)? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        });
        // Sent, or nobody is there to be told: its end comes another way.
        let _ = sent.await;
        std::future::pending().await
    }

    /// Decodes output; returns pieces of the answer.
    pub fn decode(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut deltas = Vec::new();
        for action in self.dialogue.on_stdout(bytes) {
            // Nothing follows, however it ended.
            if self.is_over() {
                break;
            }
            match action {
                Action::Write(input) => self.say(&input),
                Action::Delta(text) => deltas.push(text),
                Action::Done(verdict) => self.verdict = Some(verdict),
                Action::Failed(reason) => self.fail(&reason),
                Action::Ready => {}
            }
        }
        deltas
    }

    /// Whether [`Self::wants_renewal`] may become true later.
    pub fn may_want_renewal(&self) -> bool {
        self.dialogue.may_want_renewal()
    }

    /// Whether the provider refused the token, and a CLI that has the credential file could renew it.
    pub fn wants_renewal(&self) -> bool {
        self.dialogue.wants_renewal()
    }

    /// Whether the provider refused the credential, before anything was said or done.
    pub fn was_refused(&self) -> bool {
        self.dialogue.was_refused()
    }

    /// Whether the CLI has given its whole answer, or failed.
    pub fn is_over(&self) -> bool {
        self.verdict.is_some()
    }

    /// The verdict.
    pub fn finish(self) -> Verdict {
        self.verdict.unwrap_or_else(|| self.dialogue.finish())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use zeroize::Zeroizing;

    use super::Late;

    #[test]
    fn what_is_asked_is_not_printed() {
        let late = Late {
            prompt: Zeroizing::new("my secret plan".to_owned()),
            model: "m1".to_owned(),
            effort: None,
            cwd: None,
            variables: BTreeMap::from([(
                "KEY".to_owned(),
                serde_json::from_str::<thaw_client::types::Secret>("\"sk-secret\"").unwrap(),
            )]),
        };
        let (files, env) = (BTreeMap::new(), BTreeMap::from([("A".to_owned(), "a secret".to_owned())]));
        let printed = format!("{late:?} {:?}", late.request(&files, &env));
        assert!(printed.contains("m1") && !printed.contains("secret"), "{printed}");
    }
}
