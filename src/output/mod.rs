//! Owns what a command writes, from its pipe to its readers.
//!
//! ```text
//! pipe ──splice──► spool (file in memory) ──publish──► log: numbered events ──► readers, each at its own pace
//!   └─ transit, if the command is fast                  └─ journal: the order, for the next daemon
//! ```
//!
//! A [`Source`] moves a stream from its pipe into a spool. A [`Log`] publishes the stream, and holds up the writer
//! while a reader is far behind. All of this lies in unnamed files that the keeper holds too, so the next daemon
//! continues with the same numbers.
//!
//! Called by every room that has a stream: executions, and commands in sandboxes. Deliberately absent: processes,
//! containers, and the meaning of the bytes.

mod event;
mod followers;
mod journal;
mod log;
mod piece;
mod pipe;
mod positioned;
mod source;
mod spool;
mod stream;
mod text;
mod transit;

pub use event::{Numbered, Rendered};
pub use followers::Patience;
pub use journal::Checkpoint;
pub use log::{Cursor, Dropped, Limits, Log, Noted, Recovered, instant};
pub use pipe::{PIPE_BYTES, output_pipe};
pub use positioned::{read_at, write_at};
pub use source::{Amounts, Source};
pub use spool::{Files, Spool, Spools};
pub use stream::Stream;
pub use transit::{Shelter, drain_transit, transit_key};
