//! Events as the log keeps them.

use bytes::Bytes;

use super::event::Rendered;
use super::journal::Record;
use super::stream::Stream;
use super::text;
use thaw_client::time::Timestamp;

/// Bytes charged per event in addition to its data: queue entry, positions, allocation.
const EVENT_OVERHEAD: usize = 160;

/// Content of an event that is kept: for output where the bytes lie in the spool, for other events the rendered text.
#[derive(Debug, Clone)]
pub(super) enum Piece {
    /// Bytes of a stream.
    Output(Written),
    Other(Rendered),
}

/// Bytes of a stream that are published as one event.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub(super) stream: Stream,
    /// Where they begin.
    pub(super) from: u64,
    pub(super) length: u32,
    /// When the first of them came.
    pub(super) at: Timestamp,
}

impl Written {
    pub(super) fn end(&self) -> u64 {
        self.from + u64::from(self.length)
    }
}

impl Piece {
    pub(super) fn charge(&self) -> usize {
        EVENT_OVERHEAD
            + match self {
                Self::Output(written) => written.length as usize,
                Self::Other(rendered) => rendered.data.len(),
            }
    }

    pub(super) fn record(&self) -> Record {
        match self {
            Self::Output(Written { stream, length, at, .. }) => Record::Output(*stream as usize, *length, at.unix_ms()),
            Self::Other(rendered) => Record::Event(rendered.name.to_owned(), rendered.data.to_string()),
        }
    }
}

/// Content of an event, copied out of the log to be rendered without its lock.
pub(super) enum Taken {
    Output(Stream, Bytes, Timestamp),
    Other(Rendered),
}

impl Taken {
    pub(super) fn render(self) -> Rendered {
        match self {
            Self::Output(stream, bytes, at) => Rendered { name: stream.name(), data: text::json(&bytes, at).into() },
            Self::Other(rendered) => rendered,
        }
    }
}
