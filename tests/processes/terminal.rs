//! Commands with a controlling terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use thawd::container::{Process, Sandbox, Stdio, Terminal, WindowSize};

use crate::house::{Address, House, SIZE, script};
use crate::support::PATIENCE;

/// Reads what a terminal shows, as it comes.
struct Screen {
    shown: String,
    pieces: tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>,
}

impl Screen {
    fn of(terminal: &Terminal) -> Self {
        let mut file = File::from(terminal.as_fd().try_clone_to_owned().unwrap());
        let (sender, pieces) = tokio::sync::mpsc::unbounded_channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO: nobody has the other end any more.
            while let Ok(length @ 1..) = file.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { shown: String::new(), pieces }
    }

    /// Waits until `text` is to be seen.
    async fn until(&mut self, text: &str) {
        let read = async {
            while !self.shown.contains(text) {
                let piece = self.pieces.recv().await.unwrap_or_else(|| panic!("no {text:?} in {:?}", self.shown));
                self.shown.push_str(&String::from_utf8_lossy(&piece));
            }
        };
        tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| panic!("no {text:?}"));
    }

    async fn rest(mut self) -> String {
        while let Some(piece) = tokio::time::timeout(PATIENCE, self.pieces.recv()).await.unwrap() {
            self.shown.push_str(&String::from_utf8_lossy(&piece));
        }
        self.shown
    }
}

async fn start(sandbox: &Sandbox, text: &str) -> (Process, Terminal) {
    let (ours, theirs) = sandbox.terminal(1000, SIZE).unwrap();
    let process = sandbox.start(&script(text).encode().unwrap(), &Stdio::Terminal([theirs.as_fd()])).await.unwrap();
    (process, ours)
}

async fn status(process: &Process) -> i32 {
    tokio::time::timeout(PATIENCE, process.ended()).await.unwrap().unwrap().unwrap().status
}

fn write(terminal: &Terminal, bytes: &[u8]) {
    File::from(terminal.as_fd().try_clone_to_owned().unwrap()).write_all(bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_a_controlling_terminal_of_its_users() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let text = "tty; stty size; stat -c '%u %g %a' $(tty); echo here > /dev/tty; read line; echo got $line; exit 3";
    let (process, terminal) = start(&sandbox, text).await;
    let mut screen = Screen::of(&terminal);
    screen.until("here\r\n").await;
    write(&terminal, b"hello\n");
    assert_eq!(status(&process).await >> 8, 3);
    let shown = screen.rest().await;
    // What is typed is shown, too.
    assert_eq!(shown, "/dev/pts/0\r\n24 80\r\n1000 5 620\r\nhere\r\nhello\r\ngot hello\r\n");
    drop((process, terminal, sandbox));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_size_is_told_and_ctrl_c_interrupts() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let text = "trap 'stty size' WINCH; echo ready; while :; do sleep 0.05; done";
    let (process, terminal) = start(&sandbox, text).await;
    let mut screen = Screen::of(&terminal);
    screen.until("ready").await;
    terminal.resize(WindowSize { rows: 50, columns: 132 }).unwrap();
    screen.until("50 132").await;
    write(&terminal, b"\x03");
    assert_eq!(libc::WTERMSIG(status(&process).await), libc::SIGINT);
    drop((process, terminal, sandbox));
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_that_nobody_has_any_more_hangs_up() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let (process, terminal) = start(&sandbox, "echo ready; exec sleep 1000").await;
    let (other, others) = start(&sandbox, "echo ready; exec sleep 1000").await;
    Screen::of(&others).until("ready").await;
    process.started().await.unwrap();
    drop(OwnedFd::from(terminal));
    assert_eq!(libc::WTERMSIG(status(&process).await), libc::SIGHUP);
    // Each has its own session.
    other.signal(libc::SIGTERM).unwrap();
    assert_eq!(libc::WTERMSIG(status(&other).await), libc::SIGTERM);
    drop((process, other, others, sandbox));
    house.close().await;
}
