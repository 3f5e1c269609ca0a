//! Renewal of a pool's image: the template of new containers changes while claims go on.
//!
//! ```text
//! asked ──► preparing (unpacks beside) ──► waiting for a lease ──► trying (one container) ──► renewed
//!               │ the same image: unchanged      │                     │ it could not be parked
//!               └──────────── cannot be unpacked ┴─────────────────────┴──► refused: the old image stays
//! ```
//!
//! After that, each new container replaces an old one, which is destroyed once the new one is parked. Claimed
//! containers are not touched.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::Prepared;
use crate::container::{Hold, Template};

/// Outcome of a renewal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewed {
    /// New containers are created from the new image.
    Renewed,
    /// The pool uses this image already.
    Unchanged,
    /// The pool had no template before: the image is now unpacked as at a start.
    Beginning,
    /// The old image stays in use, for this reason.
    Refused(String),
}

pub(super) type Reply = oneshot::Sender<Renewed>;

/// A renewal in progress.
pub(super) struct Renewal {
    stage: Stage,
    /// Time for which claims have kept the first container from being created. It is not the pool's: each refill of a
    /// pool that is low resets that one, and the renewal would never have its turn under load.
    hold: Hold,
    reply: Reply,
}

enum Stage {
    Preparing,
    /// Waits for a lease for the first container.
    Waiting(Prepared),
    Trying(Prepared),
}

impl Renewal {
    /// A renewal whose image is being unpacked.
    pub(super) fn new(reply: Reply) -> Self {
        Self { stage: Stage::Preparing, hold: Hold::default(), reply }
    }

    /// Records that the image is unpacked.
    pub(super) fn prepared(&mut self, prepared: Prepared) {
        self.stage = Stage::Waiting(prepared);
    }

    /// Template of the first container, and its hold, while the renewal waits for its lease.
    pub(super) fn waiting(&mut self) -> Option<(Arc<Template>, &mut Hold)> {
        match &self.stage {
            Stage::Waiting(prepared) => Some((Arc::clone(&prepared.template), &mut self.hold)),
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
