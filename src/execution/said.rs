//! What is said to a CLI that was prestarted: first written to an unnamed file in memory, then moved to the CLI's standard
//! input by splice(2). The kernel moves the file's position by exactly what it has put into the pipe, whenever the daemon
//! is killed. So the next daemon, which has the same file, says what is left and nothing twice.
//!
//! ```text
//! 0           8            begin                     position              end
//! │ its length │ the prompt │ what the pipe was given │ what it was not yet │
//! ```
//!
//! It holds credentials, as the pipe does. Like the output of executions it is never swapped out, and it ends with the
//! execution.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::pipe::SpliceFlags;
use zeroize::Zeroizing;

use crate::failpoints;
use crate::output::{read_at, write_at};

/// Length of what stands before the prompt, bytes.
const HEAD: u64 = 8;

/// What the CLI has read is thrown away in pieces of at least this size, bytes.
const THROWN_AWAY: u64 = 64 * 1024;

/// Whole pages are thrown away, bytes.
const PAGE: u64 = 4096;

/// What is said in one conversation.
#[derive(Debug)]
pub struct Said {
    file: Arc<OwnedFd>,
    /// Where what is said begins in the file.
    begin: u64,
    /// End of the file.
    end: u64,
    /// What the pipe was given ends here.
    position: u64,
    /// Everything between `begin` and this was thrown away.
    thrown_away: u64,
}

impl Said {
    /// Nothing yet, in an empty file. The prompt is kept in front, for a protocol in which it is said later.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(file: Arc<OwnedFd>, prompt: &str) -> io::Result<Self> {
        let begin = HEAD + prompt.len() as u64;
        write_at(&file, &(prompt.len() as u64).to_ne_bytes(), 0)?;
        write_at(&file, prompt.as_bytes(), HEAD)?;
        rustix::fs::seek(&file, SeekFrom::Start(begin))?;
        Ok(Self { file, begin, end: begin, position: begin, thrown_away: begin })
    }

    /// What an earlier daemon has said, and the prompt.
    ///
    /// # Errors
    /// The file holds something else.
    pub fn resume(file: OwnedFd) -> io::Result<(Self, Zeroizing<String>)> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "what was said to the CLI is damaged");
        let end = u64::try_from(rustix::fs::fstat(&file)?.st_size).map_err(|_| damaged())?;
        let position = rustix::fs::seek(&file, SeekFrom::Current(0))?;
        let mut head = [0; HEAD as usize];
        read_at(&file, &mut head, 0)?;
        let begin =
            HEAD.checked_add(u64::from_ne_bytes(head)).filter(|begin| *begin <= position).ok_or_else(damaged)?;
        if position > end {
            return Err(damaged());
        }
        let mut prompt = Zeroizing::new(vec![0; (begin - HEAD) as usize]);
        read_at(&file, &mut prompt, HEAD)?;
        let prompt = std::str::from_utf8(&prompt).map_err(|_| damaged())?;
        let prompt = Zeroizing::new(prompt.to_owned());
        let this = Self { file: Arc::new(file), begin, end, position, thrown_away: begin };
        Ok((this, prompt))
    }

    /// Length of the prompt.
    pub fn prompt_bytes(&self) -> usize {
        (self.begin - HEAD) as usize
    }

    /// Bytes that were said after the prompt.
    pub fn length(&self) -> u64 {
        self.end - self.begin
    }

    /// How many of `length` bytes that are said from byte `at` of the conversation on were not written down yet.
    pub fn missing(&self, at: u64, length: usize) -> usize {
        let written = (self.end - self.begin).saturating_sub(at);
        length.saturating_sub(usize::try_from(written).unwrap_or(usize::MAX))
    }

    /// Writes down what is said from byte `at` of the conversation on, but for what is there already.
    ///
    /// # Errors
    /// Out of memory.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let missing = &bytes[bytes.len() - self.missing(at, bytes.len())..];
        write_at(&self.file, missing, self.end)?;
        self.end += missing.len() as u64;
        failpoints::at("say.written");
        Ok(())
    }

    /// Bytes that the pipe was not given yet.
    pub fn unsent(&self) -> usize {
        (self.end - self.position) as usize
    }

    /// Moves what is left to `pipe`, as much as fits; whether all of it did.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub fn send(&mut self, pipe: BorrowedFd<'_>) -> io::Result<bool> {
        while self.position < self.end {
            match rustix::pipe::splice(&self.file, None, pipe, None, self.unsent(), SpliceFlags::NONBLOCK) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(sent) => self.position += sent as u64,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    self.throw_away(pipe);
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
            failpoints::at("say.moved");
        }
        self.throw_away(pipe);
        Ok(true)
    }

    /// Gives back the memory of what the CLI has read. What is still in the pipe lies in pages of this file.
    fn throw_away(&mut self, pipe: BorrowedFd<'_>) {
        let Ok(unread) = rustix::io::ioctl_fionread(pipe) else { return };
        let read = self.position.saturating_sub(unread);
        let from = self.thrown_away.next_multiple_of(PAGE);
        let to = read - read % PAGE;
        if to.saturating_sub(from) >= THROWN_AWAY {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if rustix::fs::fallocate(&self.file, flags, from, to - from).is_ok() {
                self.thrown_away = to;
            }
        }
    }
}

impl AsFd for Said {
    /// The file, for the keeper.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};

    use super::*;
    use crate::output::Spools;

    fn pipe() -> (PipeReader, OwnedFd) {
        let (reader, writer) = io::pipe().unwrap();
        (reader, writer.into())
    }

    fn take(reader: &mut PipeReader, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        reader.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn text(length: usize) -> Vec<u8> {
        (0..length).map(|index| b'a' + (index % 23) as u8).collect()
    }

    /// What another daemon is given.
    fn next(said: &Said) -> (Said, Zeroizing<String>) {
        Said::resume(said.file.try_clone().unwrap()).unwrap()
    }

    #[test]
    fn whoever_goes_on_says_the_rest_and_nothing_twice() {
        let (mut reader, writer) = pipe();
        let mut said = Said::new(Spools::default().file().unwrap(), "my prompt").unwrap();
        let all = text(300_000);
        said.write(0, &all[..200_000]).unwrap();
        assert!(!said.send(writer.as_fd()).unwrap(), "more than a pipe holds");
        let mut read = take(&mut reader, 1000);
        let (mut said, prompt) = next(&said);
        assert_eq!(&**prompt, "my prompt");
        // The next daemon comes to say the same once more, and then goes on.
        said.write(0, &all[..200_000]).unwrap();
        said.write(100_000, &all[100_000..250_000]).unwrap();
        said.write(250_000, &all[250_000..]).unwrap();
        while !said.send(writer.as_fd()).unwrap() {
            let unread = rustix::io::ioctl_fionread(&writer).unwrap() as usize;
            read.extend(take(&mut reader, unread));
        }
        let (said, _) = next(&said);
        assert_eq!(said.unsent(), 0);
        read.extend(take(&mut reader, all.len() - read.len()));
        assert!(read == all);
        assert_eq!(rustix::io::ioctl_fionread(&writer).unwrap(), 0);
    }

    #[test]
    fn what_was_read_takes_no_memory_and_what_was_not_stays_whole() {
        let (mut reader, writer) = pipe();
        let mut said = Said::new(Spools::default().file().unwrap(), "p").unwrap();
        let piece = text(50_001);
        let mut at = 0;
        for _ in 0..100 {
            said.write(at, &piece).unwrap();
            at += piece.len() as u64;
            let mut left = piece.len();
            while left > 0 {
                said.send(writer.as_fd()).unwrap();
                // Read after what was read before may have been thrown away.
                let unread = (rustix::io::ioctl_fionread(&writer).unwrap() as usize).min(20_000);
                assert!(take(&mut reader, unread) == piece[piece.len() - left..][..unread]);
                left -= unread;
            }
        }
        let blocks = rustix::fs::fstat(&said.file).unwrap().st_blocks as u64 * 512;
        assert!(blocks < 4 * THROWN_AWAY, "{blocks} bytes of {at}");
    }

    #[test]
    fn a_file_of_something_else_is_refused() {
        let file = Spools::default().file().unwrap();
        assert!(Said::resume(file.try_clone().unwrap()).is_err(), "empty");
        write_at(&file, &u64::MAX.to_ne_bytes(), 0).unwrap();
        assert!(Said::resume(file.try_clone().unwrap()).is_err(), "a prompt without end");
    }

    #[test]
    fn nobody_who_reads_is_an_error() {
        let (reader, writer) = pipe();
        drop(reader);
        let mut said = Said::new(Spools::default().file().unwrap(), "").unwrap();
        said.write(0, b"hello").unwrap();
        assert!(said.send(writer.as_fd()).is_err());
    }
}
