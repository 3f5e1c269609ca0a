//! Standard input that stays open: a client sends it piece by piece while the command runs.
//!
//! What is sent lies in a file in memory first, and goes from there to the command's pipe, as with [`Said`]: so that the next
//! daemon knows how much was taken and how much the command was given, and nothing is lost or given twice.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::sync::{MutexGuard as Turn, watch};

use super::said::Said;
use crate::keeper::{Keeper, Kept, Key};
use thaw_os::kernel::Watched;

/// What was sent and neither fits the command's pipe nor was read by it, bytes; beyond it a client waits.
pub(super) const MAX_UNREAD: usize = 1 << 20;

/// Why nothing more is taken.
#[derive(Debug, thiserror::Error)]
pub enum StdinError {
    /// The request did not ask for an open one.
    #[error("the execution's standard input is not open: ask for that with `stdin_open` when it is started")]
    NotOpen,
    /// It has ended.
    #[error("the standard input has ended: {0}")]
    Closed(&'static str),
    /// The command does not read.
    #[error(
        "the command has not read what was sent before, within {wait_ms} ms (`execution.stdin_wait_ms`): {taken} bytes are \
         taken; go on with `offset={taken}`"
    )]
    Full {
        /// Bytes that were taken of all that was ever sent.
        taken: u64,
        /// How long it was waited for.
        wait_ms: u128,
    },
    /// Something is missing in front of it.
    #[error("`offset` is {offset}, but only {taken} bytes were sent before; send what is missing")]
    Gap {
        /// Where the client goes on.
        offset: u64,
        /// Bytes that were taken.
        taken: u64,
    },
    /// Out of memory.
    #[error("the standard input cannot be kept: {0}")]
    Io(#[from] io::Error),
}

/// What the next daemon has to know besides the file and the pipe.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    /// Nothing more comes.
    ended: bool,
}

#[derive(Debug)]
struct State {
    said: Said,
    /// Bytes that were taken.
    taken: u64,
    /// The end was sent.
    ended: bool,
    /// Why nothing is taken any more.
    closed: Option<&'static str>,
    /// What the command reads from, until it has it.
    reader: Option<OwnedFd>,
    /// Where it goes, until it is closed: the command sees the end when nobody has this any more.
    writer: Option<Arc<OwnedFd>>,
}

/// The open standard input of an execution.
#[derive(Debug)]
pub struct OpenStdin {
    state: Mutex<State>,
    /// Counts what changes.
    changes: watch::Sender<u64>,
    /// Whose request is served.
    turn: tokio::sync::Mutex<()>,
    file: Arc<OwnedFd>,
    keeper: Option<Arc<Keeper>>,
    key: Key,
}

impl OpenStdin {
    /// One that begins with `text`; `file` is empty. Must be called in a tokio runtime.
    pub(super) fn new(id: &str, file: Arc<OwnedFd>, text: &[u8], keeper: Option<Arc<Keeper>>) -> io::Result<Arc<Self>> {
        let (reader, writer) = io::pipe()?;
        rustix::io::ioctl_fionbio(&writer, true)?;
        let mut said = Said::new(Arc::clone(&file), "")?;
        said.write(0, text)?;
        let taken = text.len() as u64;
        let writer = Some(Arc::new(OwnedFd::from(writer)));
        let state = State { said, taken, ended: false, closed: None, reader: Some(reader.into()), writer };
        let this = Self::build(id, state, file, keeper);
        this.keep(false);
        this.begin()
    }

    /// That of an earlier daemon.
    pub(super) fn resume(id: &str, kept: Kept, keeper: Option<Arc<Keeper>>) -> io::Result<Arc<Self>> {
        let note: Note = serde_json::from_str(&kept.note)?;
        let [file, writer] = <[_; 2]>::try_from(kept.fds).map_err(|_| io::Error::other("too little of it was kept"))?;
        let (said, _) = Said::resume(file.try_clone()?)?;
        let taken = said.length();
        let state = State { said, taken, ended: note.ended, closed: None, reader: None, writer: Some(writer) };
        Self::build(id, state, file, keeper).begin()
    }

    fn build(id: &str, state: State, file: Arc<OwnedFd>, keeper: Option<Arc<Keeper>>) -> Arc<Self> {
        let (changes, turn) = (watch::Sender::new(0), tokio::sync::Mutex::new(()));
        let state = Mutex::new(state);
        Arc::new(Self { state, changes, turn, file, keeper, key: Key::Input(id.to_owned()) })
    }

    fn begin(self: Arc<Self>) -> io::Result<Arc<Self>> {
        let writer = self.state().writer.clone().ok_or(io::ErrorKind::NotFound)?;
        let pipe = Watched::new(writer.try_clone()?, Interest::WRITABLE)?;
        // It must not depend on an execution that waits for it.
        tokio::spawn(Arc::clone(&self).send(pipe));
        Ok(self)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change leaves the value whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn keep(&self, ended: bool) {
        let writer = self.state().writer.clone();
        if let (Some(keeper), Some(writer), Ok(note)) = (&self.keeper, writer, serde_json::to_string(&Note { ended })) {
            keeper.put(self.key.clone(), note, vec![Arc::clone(&self.file), writer]);
        }
    }

    /// What the command reads from.
    pub(super) fn reader(&self) -> io::Result<OwnedFd> {
        let state = self.state();
        state.reader.as_ref().ok_or(io::ErrorKind::NotFound)?.try_clone()
    }

    /// The command has it: when it has closed it, nobody reads any more.
    pub(super) fn begun(&self) {
        self.state().reader = None;
    }

    /// Moves what is sent to the pipe, until the end.
    async fn send(self: Arc<Self>, pipe: Watched) {
        let mut changes = self.changes.subscribe();
        loop {
            changes.mark_unchanged();
            let (unsent, ended, closed) = {
                let state = self.state();
                (state.said.unsent(), state.ended, state.closed)
            };
            if closed.is_some() {
                return;
            }
            if unsent > 0 {
                let sent = pipe.run(Interest::WRITABLE, |fd| {
                    let done = self.state().said.send(fd);
                    self.changed();
                    if done? { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
                });
                let failed = tokio::select! {
                    sent = sent => sent.is_err(),
                    () = self.is_closed() => false,
                };
                if failed {
                    return self.close("the command reads no more");
                }
            } else if ended {
                return self.close("its end was sent");
            } else if changes.changed().await.is_err() {
                return;
            }
        }
    }

    async fn is_closed(&self) {
        let mut changes = self.changes.subscribe();
        // The sender exists for as long as this does.
        let _ = changes.wait_for(|_| self.state().closed.is_some()).await;
    }

    /// Takes nothing more. The command sees its end once the last who has the pipe has closed it.
    pub(super) fn close(&self, why: &'static str) {
        {
            let mut state = self.state();
            if state.closed.is_some() {
                return;
            }
            (state.closed, state.reader, state.writer) = (Some(why), None, None);
        }
        if let Some(keeper) = &self.keeper {
            keeper.forget(&self.key);
        }
        self.changed();
    }

    /// Begins a request, which is served when those before it are: from byte `offset` of all that is ever sent, or from where
    /// the last one ended. It waits for no longer than `wait` for the command to read.
    ///
    /// # Errors
    /// See [`StdinError`].
    pub async fn writer(&self, offset: Option<u64>, wait: Duration) -> Result<Writer<'_>, StdinError> {
        let turn = tokio::time::timeout(wait, self.turn.lock()).await;
        let turn = turn.map_err(|_| StdinError::Full { taken: self.state().taken, wait_ms: wait.as_millis() })?;
        let taken = self.state().taken;
        let at = offset.unwrap_or(taken);
        if at > taken {
            return Err(StdinError::Gap { offset: at, taken });
        }
        Ok(Writer { stdin: self, at, wait, _turn: turn })
    }
}

/// One request's part of the input.
#[derive(Debug)]
pub struct Writer<'a> {
    stdin: &'a OpenStdin,
    at: u64,
    wait: Duration,
    _turn: Turn<'a, ()>,
}

impl Writer<'_> {
    /// Takes a piece; what was taken before is left out.
    ///
    /// # Errors
    /// See [`StdinError`]; a part of it may be taken then.
    pub async fn write(&mut self, mut piece: &[u8]) -> Result<(), StdinError> {
        let mut changes = self.stdin.changes.subscribe();
        let mut until = tokio::time::Instant::now() + self.wait;
        while !piece.is_empty() {
            changes.mark_unchanged();
            let length = {
                let mut state = self.stdin.state();
                let missing = state.said.missing(self.at, piece.len());
                if let Some(why) = state.closed.filter(|_| missing > 0) {
                    return Err(StdinError::Closed(why));
                }
                if state.ended && missing > 0 {
                    return Err(StdinError::Closed("its end was sent"));
                }
                let room = MAX_UNREAD.saturating_sub(state.said.unsent());
                let length = (piece.len() - missing + room).min(piece.len());
                state.said.write(self.at, &piece[..length])?;
                state.taken = state.taken.max(self.at + length as u64);
                length
            };
            if length > 0 {
                self.at += length as u64;
                piece = &piece[length..];
                until = tokio::time::Instant::now() + self.wait;
                self.stdin.changed();
            } else if tokio::time::timeout_at(until, changes.changed()).await.is_err() {
                return Err(StdinError::Full { taken: self.at, wait_ms: self.wait.as_millis() });
            }
        }
        Ok(())
    }

    /// Ends the request, and the input if that is meant. Returns how many bytes were taken of all that was ever sent, and
    /// whether the end was sent.
    pub async fn finish(self, end: bool) -> (u64, bool) {
        let (taken, ended, is_new) = {
            let mut state = self.stdin.state();
            let is_new = end && !state.ended && state.closed.is_none();
            state.ended |= end;
            (state.taken, state.ended, is_new)
        };
        if is_new {
            // The next daemon knows it before the client does.
            self.stdin.keep(true);
            if let Some(keeper) = &self.stdin.keeper {
                keeper.caught_up().await;
            }
            self.stdin.changed();
        }
        (taken, ended)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;
    use crate::output::Spools;

    const WAIT: Duration = Duration::from_millis(200);

    fn open(text: &[u8]) -> (Arc<OpenStdin>, File) {
        let open = OpenStdin::new("e-1", Spools::default().file().unwrap(), text, None).unwrap();
        let reader = File::from(open.reader().unwrap());
        open.begun();
        (open, reader)
    }

    async fn send(open: &OpenStdin, offset: Option<u64>, bytes: &[u8], end: bool) -> Result<(u64, bool), StdinError> {
        let mut writer = open.writer(offset, WAIT).await?;
        writer.write(bytes).await?;
        Ok(writer.finish(end).await)
    }

    async fn rest(mut reader: File) -> Vec<u8> {
        let read = move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_sent_arrives_in_order_and_once() {
        let (open, reader) = open(b"first ");
        assert_eq!(send(&open, None, b"second ", false).await.unwrap(), (13, false));
        assert_eq!(send(&open, Some(6), b"second third ", false).await.unwrap(), (19, false), "again, and more");
        let gap = send(&open, Some(20), b"x", false).await.unwrap_err();
        assert!(matches!(gap, StdinError::Gap { offset: 20, taken: 19 }), "{gap}");
        assert_eq!(send(&open, None, b"", true).await.unwrap(), (19, true));
        assert!(matches!(send(&open, None, b"x", false).await.unwrap_err(), StdinError::Closed(_)));
        // Whoever sends the same again learns that it was taken.
        assert_eq!(send(&open, Some(13), b"third ", true).await.unwrap(), (19, true));
        assert_eq!(rest(reader).await, b"first second third ");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_command_that_does_not_read_is_waited_for_and_then_it_is_said_how_far_it_came() {
        let (open, reader) = open(b"");
        let all: Vec<u8> = (0..3 * MAX_UNREAD).map(|at| (at % 251) as u8).collect();
        let StdinError::Full { taken, .. } = send(&open, None, &all, false).await.unwrap_err() else { panic!() };
        assert!(taken >= MAX_UNREAD as u64 && taken < all.len() as u64, "{taken}");
        let reading = tokio::spawn(rest(reader));
        let mut at = taken;
        while at < all.len() as u64 {
            at = match send(&open, Some(at), &all[at as usize..], true).await {
                Ok((taken, true)) => taken,
                Err(StdinError::Full { taken, .. }) => taken,
                other => panic!("{other:?}"),
            };
        }
        assert!(reading.await.unwrap() == all);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_command_that_has_ended_takes_nothing() {
        let (open, reader) = open(b"");
        drop(reader);
        // The first may be taken before it is known.
        let _ = send(&open, None, b"x", false).await;
        let closed = loop {
            match send(&open, None, b"x", false).await {
                Err(error) => break error,
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert!(matches!(closed, StdinError::Closed(why) if why.contains("reads no more")), "{closed}");
    }
}
