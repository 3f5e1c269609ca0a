//! What is understood of an execution's standard output, and how far.

use std::io;
use std::os::fd::OwnedFd;

use super::Handle;
use super::late::{Conversation, Spoken};
use crate::output::{Checkpoint, Log, Recovered, Stream};
use crate::provider::{DialectParser, Verdict};

/// Most output decoded at once, bytes.
const HEAR_BYTES: u64 = 1 << 20;

/// Decoder for the provider's output dialect.
pub(super) enum Meaning {
    /// None: the output is a command's.
    Bytes,
    /// Decoder for a CLI that runs once.
    Dialect(DialectParser),
    /// Driver of a prestarted CLI.
    Conversation(Box<Conversation>),
}

impl Meaning {
    pub(super) fn decode(&mut self, bytes: &[u8]) -> Vec<String> {
        match self {
            Self::Bytes => Vec::new(),
            Self::Dialect(parser) => parser.push(bytes),
            Self::Conversation(conversation) => conversation.decode(bytes),
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self, Self::Conversation(conversation) if conversation.is_over())
    }

    /// Sends as much of what a conversation has to say as fits into its pipe. A failure shows again when the rest is sent.
    pub(super) fn send_some(&mut self) {
        if let Self::Conversation(conversation) = self {
            let _ = conversation.send_some();
        }
    }

    /// Sends what a conversation has left to say; never ends otherwise.
    pub(super) async fn send(&mut self) {
        match self {
            Self::Conversation(conversation) => conversation.send().await,
            Self::Bytes | Self::Dialect(_) => std::future::pending().await,
        }
    }

    pub(super) fn verdict(self) -> Option<Verdict> {
        match self {
            Self::Bytes => None,
            Self::Dialect(parser) => Some(parser.finish()),
            Self::Conversation(conversation) => Some(conversation.finish()),
        }
    }
}

/// Decoder of standard output, and how far it has come.
pub(super) struct Decoder {
    pub(super) meaning: Meaning,
    /// Bytes of standard output decoded so far.
    offset: u64,
}

impl Decoder {
    /// A decoder that begins where the command's output begins.
    pub(super) fn new(handle: &Handle, meaning: Meaning) -> Self {
        let this = Self { meaning, offset: handle.log.spool(Stream::Stdout).length() };
        let is_conversation = matches!(this.meaning, Meaning::Conversation(_));
        if !matches!(this.meaning, Meaning::Bytes) {
            handle.log.keep_for_parser(this.offset);
        }
        // Another one spoke before; or it begins with what was said at the claim.
        if this.offset > 0 || is_conversation {
            this.write_checkpoint(&handle.log);
        }
        this
    }

    /// Whether [`Self::wants_renewal`] may come to be true.
    pub(super) fn may_want_renewal(&self, is_managed: bool) -> bool {
        match &self.meaning {
            Meaning::Bytes => false,
            Meaning::Dialect(_) => is_managed,
            Meaning::Conversation(conversation) => is_managed || conversation.may_want_renewal(),
        }
    }

    /// Whether the credential was refused before anything was said or done, and could be renewed: by the daemon if that is
    /// who renews it, else by a CLI that has the file.
    pub(super) fn wants_renewal(&self, is_managed: bool) -> bool {
        match &self.meaning {
            Meaning::Bytes => false,
            Meaning::Dialect(parser) => is_managed && parser.was_refused(),
            Meaning::Conversation(conversation) if is_managed => conversation.was_refused(),
            Meaning::Conversation(conversation) => conversation.wants_renewal(),
        }
    }

    /// From where an earlier daemon was in a conversation; `pipes` are the CLI's standard input and what is said to it.
    pub(super) fn resume_conversation(handle: &Handle, recovered: &Recovered, pipes: [OwnedFd; 2]) -> io::Result<Self> {
        let json =
            recovered.checkpoint.as_deref().ok_or_else(|| io::Error::other("nothing is known of what was said"))?;
        let Checkpoint { offset, parser } = serde_json::from_slice::<Checkpoint<Spoken<_>>>(json)?;
        handle.log.keep_for_parser(offset);
        let [stdin, said] = pipes;
        let conversation = Conversation::resume(parser, stdin, said)?;
        Ok(Self { meaning: Meaning::Conversation(Box::new(conversation)), offset })
    }

    /// From where an earlier daemon was.
    pub(super) fn resume(handle: &Handle, recovered: &Recovered) -> Self {
        let Some(dialect) = handle.dialect else { return Self { meaning: Meaning::Bytes, offset: 0 } };
        let checkpoint = recovered.checkpoint.as_deref().and_then(|json| serde_json::from_slice(json).ok());
        let Checkpoint { offset, parser } =
            checkpoint.unwrap_or_else(|| Checkpoint { offset: 0, parser: DialectParser::new(dialect) });
        handle.log.keep_for_parser(offset);
        Self { meaning: Meaning::Dialect(parser), offset }
    }

    /// Decodes new standard output; returns pieces of the answer.
    pub(super) fn listen(&mut self, log: &Log) -> Vec<String> {
        let spool = log.spool(Stream::Stdout);
        let mut deltas = Vec::new();
        while !matches!(self.meaning, Meaning::Bytes) && self.offset < spool.length() {
            let to = spool.length().min(self.offset + HEAR_BYTES);
            deltas.extend(self.meaning.decode(&spool.read(self.offset, to)));
            self.offset = to;
        }
        deltas
    }

    /// Writes a checkpoint for the next daemon, if one is due.
    pub(super) fn checkpoint(&self, log: &Log) {
        if log.is_checkpoint_due(self.offset) {
            self.write_checkpoint(log);
        }
    }

    fn write_checkpoint(&self, log: &Log) {
        let offset = self.offset;
        let json = match &self.meaning {
            Meaning::Bytes => return,
            Meaning::Dialect(parser) => serde_json::to_vec(&Checkpoint { offset, parser }),
            Meaning::Conversation(conversation) => {
                serde_json::to_vec(&Checkpoint { offset, parser: conversation.spoken() })
            }
        };
        log.checkpoint(offset, json.expect("strings and numbers always serialize"));
    }
}
