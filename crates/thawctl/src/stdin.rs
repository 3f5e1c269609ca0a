//! Standard input of `thawctl run`: passed on with `-i`, and otherwise never swallowed without a word.

use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, fstat, tell};

use tokio::sync::mpsc;

use super::{CtlError, complain};
use thaw_client::client::{Client, ClientError, Upload};

/// How long a pipe has to say something, so that a writer that starts beside thawctl is seen.
const FIRST_WORD: Duration = Duration::from_millis(100);

/// All of standard input.
pub(super) fn read_all() -> Result<Vec<u8>, CtlError> {
    let stdin = io::stdin();
    if stdin.is_terminal() {
        return Err(CtlError::Usage(
            "-i passes on a pipe or a file; standard input is a terminal, and only `thawctl exec -i` passes that on as it comes"
                .to_owned(),
        ));
    }
    let mut bytes = Vec::new();
    stdin
        .lock()
        .read_to_end(&mut bytes)
        .map_err(|error| CtlError::Usage(format!("cannot read standard input: {error}")))?;
    Ok(bytes)
}

/// What is passed on at once, bytes.
const PIECE: usize = 256 << 10;

/// Pause before a piece is sent again that the daemon could not take.
const AGAIN: Duration = Duration::from_millis(500);

/// Passes standard input on to an execution, as it comes, up to its end or to that of the command. A piece that the daemon could
/// not take is sent again; what it took is told by the offset.
pub(super) async fn feed(client: Client, execution: String) {
    let (pieces, mut waiting) = mpsc::channel::<Vec<u8>>(1);
    // A thread of its own, which nobody waits for: it hangs in read(2) when the command has ended.
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut piece = vec![0; PIECE];
        loop {
            match stdin.read(&mut piece) {
                Ok(0) => return,
                Ok(read) if pieces.blocking_send(piece[..read].to_vec()).is_ok() => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(_) => return,
                Err(error) => return complain(&format!("cannot read standard input: {error}")),
            }
        }
    });
    let mut at = 0;
    loop {
        let (piece, is_over) = waiting.recv().await.map_or((Vec::new(), true), |piece| (piece, false));
        let end = at + piece.len() as u64;
        loop {
            match client.send_stdin(&execution, Some(at), Upload::Whole(piece.clone()), is_over).await {
                Ok(_) => break,
                Err(ClientError::Problem(problem)) if !problem.retryable => {
                    // The command reads no more, or has ended: its exit code says the rest.
                    if problem.code != "stdin_closed" {
                        complain(&format!("standard input is not passed on: {}", problem.detail));
                    }
                    return;
                }
                // The command does not read, or the daemon restarts.
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
        if is_over {
            return;
        }
        at = end;
    }
}

/// Who would not get it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whose {
    /// A command.
    Command,
    /// The CLI that answers a prompt given as an argument.
    Prompt,
}

/// Fails if something stands on standard input that nobody would ever see.
pub(super) fn refuse_unread(whose: Whose) -> Result<(), CtlError> {
    if !has_input(io::stdin().as_fd()) {
        return Ok(());
    }
    Err(CtlError::Usage(
        match whose {
            Whose::Command => {
                "there is something on standard input, which the command does not get: pass it on with -i, or use < /dev/null"
            }
            Whose::Prompt => {
                "there is something on standard input, which nobody reads beside a prompt that is an argument: give `-` as \
                 the prompt and all of it on standard input, or use < /dev/null"
            }
        }
        .to_owned(),
    ))
}

fn has_input(stdin: impl AsFd) -> bool {
    let Ok(stat) = fstat(&stdin) else { return false };
    match FileType::from_raw_mode(stat.st_mode) {
        // What a loop reads line by line is a file too: only what is left of it counts.
        FileType::RegularFile => tell(&stdin).is_ok_and(|at| i64::try_from(at).is_ok_and(|at| at < stat.st_size)),
        FileType::Fifo | FileType::Socket => {
            let mut polled = [PollFd::new(&stdin, PollFlags::IN)];
            let wait = Timespec::try_from(FIRST_WORD).ok();
            poll(&mut polled, wait.as_ref()).is_ok() && polled[0].revents().contains(PollFlags::IN)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, SeekFrom, Write};

    use super::has_input;

    #[test]
    fn only_what_would_be_lost_counts() {
        let (reader, mut writer) = io::pipe().unwrap();
        assert!(!has_input(&reader), "a pipe that says nothing");
        writer.write_all(b"x").unwrap();
        assert!(has_input(&reader));
        let (reader, writer) = io::pipe().unwrap();
        drop(writer);
        assert!(!has_input(&reader), "a pipe that has ended");
        assert!(!has_input(File::open("/dev/null").unwrap()));
        let mut file = tempfile::tempfile().unwrap();
        assert!(!has_input(&file), "an empty file");
        file.write_all(b"one").unwrap();
        assert!(!has_input(&file), "a file that was read to its end");
        file.seek(SeekFrom::Start(1)).unwrap();
        assert!(has_input(&file));
    }

    use std::io;
}
