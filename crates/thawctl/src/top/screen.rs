//! The terminal while `thawctl top` shows something on it; dropping it leaves it as it was.

use std::io::{self, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::sync::mpsc;

/// The other screen, and no cursor (console_codes(4), xterm's control sequences).
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";

pub struct Screen {
    /// As the terminal was, if the keyboard is one.
    before: Option<Termios>,
    keys: mpsc::Receiver<u8>,
}

impl Screen {
    /// Takes the terminal over: keys are not shown, and come without Enter.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn open() -> io::Result<Self> {
        let stdin = io::stdin();
        let before = if stdin.is_terminal() { tcgetattr(&stdin).ok() } else { None };
        let (sender, keys) = mpsc::channel(16);
        let screen = Self { before, keys };
        screen.enter()?;
        if screen.before.is_some() {
            // A thread, because a terminal cannot be waited for as a socket can; it ends with the program.
            std::thread::spawn(move || {
                for key in io::stdin().lock().bytes().map_while(Result::ok) {
                    if sender.blocking_send(key).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(screen)
    }

    /// Takes the terminal, at first or again.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn enter(&self) -> io::Result<()> {
        if let Some(before) = &self.before {
            let mut quiet = before.clone();
            quiet.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
            tcsetattr(io::stdin(), OptionalActions::Now, &quiet)?;
        }
        put(ENTER)
    }

    /// Leaves the terminal as it was.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn leave(&self) -> io::Result<()> {
        put(LEAVE)?;
        if let Some(before) = &self.before {
            tcsetattr(io::stdin(), OptionalActions::Now, before)?;
        }
        Ok(())
    }

    /// Ends when `q` was pressed.
    pub async fn quit(&mut self) {
        while let Some(key) = self.keys.recv().await {
            if key == b'q' {
                return;
            }
        }
        std::future::pending().await
    }

    /// Shows as much of the text as there is room for.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn show(&self, text: &str) -> io::Result<()> {
        // A terminal that does not know its size says 0.
        let or = |size: u16, usual| if size > 0 { size.into() } else { usual };
        let size = tcgetwinsize(io::stdout()).map_or((24, 80), |size| (or(size.ws_row, 24), or(size.ws_col, 80)));
        put(&frame(text, size))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is nothing else to be done with a terminal that is gone.
        let _ = self.leave();
    }
}

fn put(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Draws over what is there, line by line, instead of clearing first: that would flicker.
fn frame(text: &str, (rows, columns): (usize, usize)) -> String {
    let mut frame = "\x1b[H".to_owned();
    for (index, line) in text.lines().take(rows).enumerate() {
        if index > 0 {
            frame.push_str("\r\n");
        }
        frame.extend(line.chars().take(columns));
        frame.push_str("\x1b[K");
    }
    frame.push_str("\x1b[J");
    frame
}

#[cfg(test)]
mod tests {
    use super::frame;

    #[test]
    fn a_frame_fits() {
        assert_eq!(frame("abcd\nx\ny\n", (2, 3)), "\x1b[Habc\x1b[K\r\nx\x1b[K\x1b[J");
    }
}
