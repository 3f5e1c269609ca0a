//! The daemon's end of a container's control socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::io::Interest;

use thaw_os::kernel::{self, Watched};
use thaw_wire::{MAX_DATAGRAM, MAX_STRINGS, Report, Signal, SpawnHeader};

/// Longest single argument or variable with its NUL, bytes (`MAX_ARG_STRLEN`, execve(2)).
pub const MAX_ARGUMENT: usize = 128 * 1024;

/// Send buffer asked for, bytes: the kernel charges bookkeeping on top of the largest datagram.
const SEND_BUFFER: usize = 2 * MAX_DATAGRAM;

/// Longest host name of a container, bytes (`HOST_NAME_MAX`, limits.h).
const MAX_HOST_NAME: usize = 64;

/// What to run in a container.
#[derive(Clone)]
pub struct Command {
    /// Program and arguments; a program without a slash is looked up in `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Variables of `env` whose value the container's host name is appended to when the command is handed over: which
    /// container it will be is not known before.
    pub with_host_name: Vec<&'static str>,
    /// Working directory inside.
    pub cwd: String,
    /// User id inside.
    pub user: u32,
    /// Group id inside.
    pub group: u32,
}

impl std::fmt::Debug for Command {
    /// Without arguments and environment, which may hold what nobody else is to know.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command").field("program", &self.argv.first()).field("cwd", &self.cwd).finish_non_exhaustive()
    }
}

/// A command that cannot be handed over.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandError {
    /// No program.
    #[error("the command is empty; give at least the program")]
    Empty,
    /// A NUL byte.
    #[error("arguments and variables cannot contain a NUL byte")]
    Nul,
    /// A variable that cannot be told from its value.
    #[error("a variable cannot be called {0:?}: its name must not be empty or contain `=`")]
    Name(String),
    /// Too many strings.
    #[error("{0} arguments or variables are more than the limit of {MAX_STRINGS}")]
    TooMany(usize),
    /// One string is too long.
    #[error("an argument or variable of {0} bytes is more than the kernel's limit of {MAX_ARGUMENT}; use stdin")]
    TooLong(usize),
    /// All together are too long.
    #[error("arguments and environment of {0} bytes are more than the limit of {MAX_DATAGRAM}; use stdin")]
    TooLarge(usize),
}

/// The daemon's end.
#[derive(Debug)]
pub struct Control {
    socket: Watched,
}

impl Control {
    /// A connected pair: ours, and the one for `thaw-init`.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        if rustix::net::sockopt::set_socket_send_buffer_size_force(&ours, SEND_BUFFER).is_err() {
            // Without CAP_NET_ADMIN over the host the limit is net.core.wmem_max: large prompts may be refused.
            rustix::net::sockopt::set_socket_send_buffer_size(&ours, SEND_BUFFER)?;
        }
        let socket = Watched::new(ours, Interest::READABLE | Interest::WRITABLE)?;
        Ok((Self { socket }, theirs))
    }

    /// The end that an earlier daemon had.
    ///
    /// # Errors
    /// It cannot be polled.
    pub fn adopt(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { socket: Watched::new(socket, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Asks for a command to be run; works while the container is frozen.
    ///
    /// # Errors
    /// The container is gone (EPIPE), or the command is too large.
    pub fn spawn(
        &self,
        tag: u32,
        command: &Encoded,
        host_name: &str,
        stdio: [BorrowedFd<'_>; thaw_wire::SPAWN_FDS],
    ) -> io::Result<()> {
        let header = SpawnHeader { tag, ..command.header }.encode();
        // Gathered by the kernel: the strings hold secrets, of which no copy is made here.
        let mut parts: Vec<&[u8]> = vec![&header];
        let mut from = 0;
        for place in &command.host_name_at {
            parts.push(&command.strings[from..*place]);
            parts.push(host_name.as_bytes());
            from = *place;
        }
        parts.push(&command.strings[from..]);
        kernel::send(self.socket.fd(), &parts, &stdio)
    }

    /// Asks for a signal to be sent to a command's process group.
    ///
    /// # Errors
    /// The container is gone.
    pub fn signal(&self, tag: u32, signal: i32) -> io::Result<()> {
        let message = Signal { tag, signal: signal as u32 };
        kernel::send(self.socket.fd(), &[&message.encode()], &[])
    }

    /// The next report, which is not taken away; `None` when the container is gone.
    ///
    /// # Errors
    /// Anything else than a report.
    pub async fn peek(&self) -> io::Result<Option<Report>> {
        let mut buffer = [0; 64];
        let received = self.socket.run(Interest::READABLE, |socket| kernel::peek(socket, &mut buffer)).await;
        let length = match received {
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => 0,
            Err(error) => return Err(error),
        };
        if length == 0 {
            return Ok(None);
        }
        let report = Report::decode(&buffer[..length]);
        report.map(Some).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "not a report of thaw-init"))
    }

    /// Takes the report away that was looked at.
    ///
    /// # Errors
    /// There is none.
    pub fn consume(&self) -> io::Result<()> {
        let mut buffer = [0; 64];
        kernel::receive(self.socket.fd(), &mut buffer).map(drop)
    }

    /// The next report; `None` when the container is gone.
    ///
    /// # Errors
    /// As [`Self::peek`].
    pub async fn report(&self) -> io::Result<Option<Report>> {
        let report = self.peek().await?;
        if report.is_some() {
            self.consume()?;
        }
        Ok(report)
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}

/// A command in the form that goes over the socket.
pub struct Encoded {
    header: SpawnHeader,
    strings: zeroize::Zeroizing<Vec<u8>>,
    /// Where in `strings` the host name is put in, ascending.
    host_name_at: Vec<usize>,
}

impl std::fmt::Debug for Encoded {
    /// Without the strings, which hold credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoded").field("header", &self.header).field("bytes", &self.strings.len()).finish()
    }
}

impl Encoded {
    /// Forgets what it was, secrets included.
    pub fn wipe(&mut self) {
        self.strings = zeroize::Zeroizing::default();
        self.host_name_at.clear();
    }
}

impl Command {
    /// Checks every limit and encodes the command.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn encode(&self) -> Result<Encoded, CommandError> {
        if self.argv.first().is_none_or(String::is_empty) {
            return Err(CommandError::Empty);
        }
        for count in [self.argv.len(), self.env.len()] {
            if count > MAX_STRINGS {
                return Err(CommandError::TooMany(count));
            }
        }
        if let Some((name, _)) = self.env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
            return Err(CommandError::Name(name.clone()));
        }
        let lengths = self.argv.iter().map(String::len).chain(self.env.iter().map(|(k, v)| k.len() + 1 + v.len()));
        let mut total = thaw_wire::SPAWN_HEADER_LEN + self.cwd.len() + 1;
        for length in lengths {
            if length + 1 > MAX_ARGUMENT {
                return Err(CommandError::TooLong(length));
            }
            total += length + 1;
        }
        let names = self.with_host_name.len() * MAX_HOST_NAME;
        if total + names > MAX_DATAGRAM {
            return Err(CommandError::TooLarge(total + names));
        }
        // Reserved whole, so that growing never leaves a copy of a secret behind.
        let mut strings = zeroize::Zeroizing::new(Vec::with_capacity(total));
        let mut put = |parts: &[&str]| {
            for part in parts {
                if part.contains('\0') {
                    return Err(CommandError::Nul);
                }
                strings.extend_from_slice(part.as_bytes());
            }
            strings.push(0);
            Ok(strings.len() - 1)
        };
        put(&[&self.cwd])?;
        for argument in &self.argv {
            put(&[argument])?;
        }
        let mut host_name_at = Vec::new();
        for (name, value) in &self.env {
            let end = put(&[name, "=", value])?;
            if self.with_host_name.contains(&name.as_str()) {
                host_name_at.push(end);
            }
        }
        let (argc, envc) = (self.argv.len() as u32, self.env.len() as u32);
        Ok(Encoded {
            header: SpawnHeader { tag: 0, uid: self.user, gid: self.group, argc, envc },
            strings,
            host_name_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, CommandError, MAX_ARGUMENT, MAX_STRINGS};

    fn command(argv: &[&str]) -> Command {
        let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
        let env = vec![("A".to_owned(), "b".to_owned())];
        Command { argv, env, with_host_name: vec!["A"], cwd: "/".to_owned(), user: 1000, group: 1000 }
    }

    #[test]
    fn a_command_becomes_terminated_strings() {
        let encoded = command(&["echo", "", "x y"]).encode().unwrap();
        assert_eq!(encoded.strings.as_slice(), b"/\0echo\0\0x y\0A=b\0");
        assert_eq!(encoded.host_name_at, [encoded.strings.len() - 1], "behind the value");
    }

    #[test]
    fn every_limit_has_its_error() {
        assert_eq!(command(&[]).encode().unwrap_err(), CommandError::Empty);
        assert_eq!(command(&[""]).encode().unwrap_err(), CommandError::Empty);
        assert_eq!(command(&["a", "b\0c"]).encode().unwrap_err(), CommandError::Nul);
        assert_eq!(command(&["a"; MAX_STRINGS + 1]).encode().unwrap_err(), CommandError::TooMany(MAX_STRINGS + 1));
        for name in ["", "A=B", "="] {
            let mut command = command(&["a"]);
            command.env = vec![(name.to_owned(), String::new())];
            assert_eq!(command.encode().unwrap_err(), CommandError::Name(name.to_owned()));
        }
        let long = "x".repeat(MAX_ARGUMENT);
        assert_eq!(command(&["a", &long]).encode().unwrap_err(), CommandError::TooLong(MAX_ARGUMENT));
        let half = "x".repeat(MAX_ARGUMENT - 1);
        assert!(command(&["a", &half]).encode().is_ok());
        assert!(matches!(command(&["a", &half, &half]).encode().unwrap_err(), CommandError::TooLarge(_)));
    }
}
