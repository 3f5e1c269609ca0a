//! What a command writes, from its pipe to whoever reads it.
//!
//! ```text
//! pipe ──splice──► spool (file in memory) ──publish──► log: numbered events ──► readers, each at its own pace
//!   └─ transit, if it comes fast                        └─ journal: the order, for the next daemon
//! ```
//!
//! A stream is moved by a [`Source`] into a spool, and published in a [`Log`], which holds up its writer while a reader is
//! far behind. All of it lies in unnamed files that the keeper holds too: the next daemon goes on with the same numbers.
//!
//! Used by whatever has a stream. Deliberately absent: processes and containers, and what the bytes mean.

mod event;
mod followers;
mod journal;
mod log;
mod pipe;
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
pub use source::Source;
pub use spool::{Files, Spool, Spools};
pub use stream::Stream;
pub use transit::{Shelter, drain_transit, transit_key};
