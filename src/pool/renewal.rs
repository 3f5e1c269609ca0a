//! Another image for a pool that serves: what its containers are made from changes while claims go on.
//!
//! ```text
//! asked ──► preparing (unpacks beside) ──► waiting for a place ──► trying (one container) ──► taken over
//!               │ the same image: nothing        │                     │ it did not come to rest
//!               └──────────── cannot be unpacked ┴─────────────────────┴──► refused: the old one serves on
//! ```
//!
//! After that, each new container takes the place of an old one, which is given up when the new one has come to rest. What
//! executions have is not touched.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Prepared;
use crate::container::Template;

/// What became of the request to take over an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// New containers are made from it.
    Renewed,
    /// They were already.
    Unchanged,
    /// There were none to be had before: the image is unpacked now, as at a start.
    Beginning,
    /// The old one serves on, for this reason.
    Refused(String),
}

pub(super) type Reply = oneshot::Sender<Renewed>;

/// An image that is being taken over.
pub(super) struct Renewal {
    stage: Stage,
    reply: Reply,
}

enum Stage {
    Preparing,
    /// For a place for the first container.
    Waiting(Prepared),
    Trying(Prepared),
}

impl Renewal {
    /// The image is being unpacked.
    pub(super) fn new(reply: Reply) -> Self {
        Self { stage: Stage::Preparing, reply }
    }

    /// It is there.
    pub(super) fn prepared(&mut self, prepared: Prepared) {
        self.stage = Stage::Waiting(prepared);
    }

    /// What the first container is to be made from, while there is none.
    pub(super) fn waiting(&self) -> Option<Arc<Template>> {
        match &self.stage {
            Stage::Waiting(prepared) => Some(Arc::clone(&prepared.template)),
            Stage::Preparing | Stage::Trying(_) => None,
        }
    }

    /// The first container is being made.
    pub(super) fn trying(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Preparing) {
            Stage::Waiting(prepared) => Stage::Trying(prepared),
            other => other,
        };
    }

    /// The first container has come to rest.
    pub(super) fn succeeded(self) -> Option<(Prepared, Reply)> {
        match self.stage {
            Stage::Trying(prepared) => Some((prepared, self.reply)),
            Stage::Preparing | Stage::Waiting(_) => None,
        }
    }

    /// Tells how it ended.
    pub(super) fn end(self, outcome: Renewed) {
        // Nobody need be there any more.
        let _ = self.reply.send(outcome);
    }
}
