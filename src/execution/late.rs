//! Passes prompt and credentials to a prestarted CLI in a claimed, frozen container.

use std::collections::BTreeMap;
use std::io;
use std::time::SystemTime;

use tokio::net::unix::pipe;
use zeroize::Zeroizing;

use crate::provider::Verdict;
use crate::provider::prestart::{Action, Driver, Input, LateRequest};
use thaw_client::types::Secret;

/// Most that waits for a CLI to read it besides what it is to do, bytes: each of its requests is answered, with an id of
/// its own choosing, and one that asks on without reading the answers would fill this process's memory.
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

/// A conversation with a claimed CLI.
pub struct Conversation {
    driver: Driver,
    stdin: pipe::Sender,
    /// Not written yet: a pipe holds 64 KiB, and a CLI may read slowly.
    unsent: Zeroizing<Vec<u8>>,
    /// Most that this may be, bytes.
    most_unsent: usize,
    verdict: Option<Verdict>,
}

impl std::fmt::Debug for Conversation {
    /// Without what is said, which holds prompts and credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Conversation").field("unsent_bytes", &self.unsent.len()).finish_non_exhaustive()
    }
}

impl Conversation {
    /// Begins with `input`, of which as much as fits is written at once: the CLI finds it when it thaws. A prompt of
    /// `prompt_bytes` is in it or follows later.
    pub fn begin(driver: Driver, stdin: pipe::Sender, input: &Input, prompt_bytes: usize) -> Self {
        let most_unsent = input.len() + ESCAPED * prompt_bytes + UNREAD_ANSWERS;
        let mut this = Self { driver, stdin, unsent: Zeroizing::default(), most_unsent, verdict: None };
        this.say(input);
        this
    }

    fn say(&mut self, input: &[u8]) {
        self.unsent.extend_from_slice(input);
        // A failure shows again when the rest is sent, and ends there.
        let _ = self.send_some();
    }

    fn send_some(&mut self) -> io::Result<()> {
        while !self.unsent.is_empty() {
            match self.stdin.try_write(&self.unsent) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends what is left; never ends when there is nothing to send. Can be cancelled at any point.
    pub async fn send(&mut self) {
        if self.unsent.is_empty() || self.stdin.writable().await.is_err() || self.send_some().is_err() {
            // Nothing to say, or nobody to say it to: its end comes another way.
            self.unsent.clear();
            std::future::pending::<()>().await;
        }
    }

    /// Decodes output; returns pieces of the answer.
    pub fn decode(&mut self, bytes: &[u8]) -> Vec<String> {
        let mut deltas = Vec::new();
        for action in self.driver.on_stdout(bytes) {
            match action {
                Action::Write(input) if self.unsent.len() + input.len() > self.most_unsent => {
                    let error = "it asks for more than it reads answers to".to_owned();
                    self.verdict = Some(Verdict { success: Some(false), error: Some(error) });
                    break;
                }
                Action::Write(input) => self.say(&input),
                Action::Delta(text) => deltas.push(text),
                Action::Done(verdict) => self.verdict = Some(verdict),
                Action::Failed(reason) => self.verdict = Some(Verdict { success: Some(false), error: Some(reason) }),
                Action::Ready => {}
            }
        }
        deltas
    }

    /// Whether [`Self::wants_renewal`] may come to be true.
    pub fn may_want_renewal(&self) -> bool {
        self.driver.may_want_renewal()
    }

    /// Whether the provider refused the token, and a CLI that has the credential file could renew it.
    pub fn wants_renewal(&self) -> bool {
        self.driver.wants_renewal()
    }

    /// Whether the CLI has given its whole answer, or failed.
    pub fn is_over(&self) -> bool {
        self.verdict.is_some()
    }

    /// How it went.
    pub fn finish(self) -> Verdict {
        self.verdict.unwrap_or_else(|| self.driver.finish())
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
