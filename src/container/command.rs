//! A command for a container, and its encoding for `thaw-init`.

use std::os::fd::BorrowedFd;

use thaw_wire::{self as wire, MAX_DATAGRAM, MAX_GROUPS, MAX_RLIMITS, MAX_STRINGS, Rlimit, SpawnHeader};

/// Longest single argument or variable with its NUL, bytes (`MAX_ARG_STRLEN`, execve(2)).
pub const MAX_ARGUMENT: usize = 128 * 1024;

/// Longest host name of a container, bytes (`HOST_NAME_MAX`, limits.h).
const MAX_HOST_NAME: usize = 64;

/// What to run in a container.
#[derive(Clone)]
pub struct Command {
    /// Program and arguments; a program without a slash is looked up in `PATH` of `env`.
    pub argv: Vec<String>,
    /// The complete environment.
    pub env: Vec<(String, String)>,
    /// Variables of `env` to whose value the container's host name is appended when the command is submitted. The
    /// container is not known before.
    pub with_host_name: Vec<&'static str>,
    /// Working directory inside.
    pub cwd: String,
    /// User id inside.
    pub user: u32,
    /// Group id inside.
    pub group: u32,
    /// Supplementary group ids inside.
    pub groups: Vec<u32>,
    /// Resource limits of the command, below those of the container.
    pub rlimits: Vec<Rlimit>,
}

impl std::fmt::Debug for Command {
    /// Omits arguments and environment, which may hold secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Command").field("program", &self.argv.first()).field("cwd", &self.cwd).finish_non_exhaustive()
    }
}

/// Why a command cannot be passed to a container.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CommandError {
    /// There is no program.
    #[error("the command is empty; give at least the program")]
    Empty,
    /// A string contains a NUL byte.
    #[error("arguments and variables cannot contain a NUL byte")]
    Nul,
    /// The name of a variable is empty or contains `=`.
    #[error("a variable cannot be called {0:?}: its name must not be empty or contain `=`")]
    Name(String),
    /// There are too many arguments or variables.
    #[error("{0} arguments or variables are more than the limit of {MAX_STRINGS}")]
    TooMany(usize),
    /// There are too many supplementary groups.
    #[error("{0} supplementary groups are more than the limit of {MAX_GROUPS}")]
    TooManyGroups(usize),
    /// There are too many resource limits.
    #[error("{0} resource limits are more than the limit of {MAX_RLIMITS}")]
    TooManyRlimits(usize),
    /// One string is too long.
    #[error("an argument or variable of {0} bytes is more than the kernel's limit of {MAX_ARGUMENT}; use stdin")]
    TooLong(usize),
    /// All strings together are too long.
    #[error("arguments and environment of {0} bytes are more than the limit of {MAX_DATAGRAM}; use stdin")]
    TooLarge(usize),
}

/// Standard streams of a command.
#[derive(Debug)]
pub enum Stdio<'a> {
    /// Standard input, output and error.
    Three([BorrowedFd<'a>; wire::SPAWN_FDS]),
    /// A terminal for all three, which becomes the command's controlling terminal.
    Terminal([BorrowedFd<'a>; 1]),
}

impl<'a> Stdio<'a> {
    /// Descriptors to send with the message.
    pub fn descriptors(&self) -> &[BorrowedFd<'a>] {
        match self {
            Self::Three(fds) => fds,
            Self::Terminal(fds) => fds,
        }
    }

    fn flags(&self) -> u32 {
        match self {
            Self::Three(_) => 0,
            Self::Terminal(_) => wire::TERMINAL,
        }
    }
}

/// A command, encoded for the control socket.
pub struct Encoded {
    header: SpawnHeader,
    /// Groups, resource limits and strings.
    body: zeroize::Zeroizing<Vec<u8>>,
    /// Offsets in `body` at which the host name is inserted.
    host_name_at: Vec<usize>,
}

impl std::fmt::Debug for Encoded {
    /// Omits the strings, which may hold credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoded").field("header", &self.header).field("bytes", &self.body.len()).finish()
    }
}

impl Encoded {
    /// Wipes the encoded strings, secrets included.
    pub fn wipe(&mut self) {
        self.body = zeroize::Zeroizing::default();
        self.host_name_at.clear();
    }

    /// A hash of what the command is.
    pub fn digest(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(format!("{:?} {:?}", self.header, self.host_name_at).as_bytes());
        hasher.update(&self.body);
        hasher.finalize().to_hex().to_string()
    }

    /// What the message begins with.
    pub fn header(&self, tag: u32, stdio: &Stdio<'_>) -> [u8; wire::SPAWN_HEADER_LEN] {
        SpawnHeader { tag, flags: stdio.flags(), ..self.header }.encode()
    }

    /// Parts of the message, for the kernel to gather. No copy of the strings is made here, since they hold secrets.
    pub fn parts<'a>(&'a self, header: &'a [u8], host_name: &'a str) -> Vec<&'a [u8]> {
        let mut parts = vec![header];
        let mut from = 0;
        for place in &self.host_name_at {
            parts.extend([&self.body[from..*place], host_name.as_bytes()]);
            from = *place;
        }
        parts.push(&self.body[from..]);
        parts
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
        if self.groups.len() > MAX_GROUPS {
            return Err(CommandError::TooManyGroups(self.groups.len()));
        }
        if self.rlimits.len() > MAX_RLIMITS {
            return Err(CommandError::TooManyRlimits(self.rlimits.len()));
        }
        let lists = self.groups.len() * wire::GROUP_LEN + self.rlimits.len() * wire::RLIMIT_LEN;
        let lengths = self.argv.iter().map(String::len).chain(self.env.iter().map(|(k, v)| k.len() + 1 + v.len()));
        let mut total = wire::SPAWN_HEADER_LEN + lists + self.cwd.len() + 1;
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
        // The whole capacity is reserved, because growing would leave a copy of a secret in freed memory.
        let mut body = zeroize::Zeroizing::new(Vec::with_capacity(total));
        self.groups.iter().for_each(|group| body.extend_from_slice(&group.to_ne_bytes()));
        self.rlimits.iter().for_each(|rlimit| body.extend_from_slice(&rlimit.encode()));
        let mut put = |parts: &[&str]| {
            for part in parts {
                if part.contains('\0') {
                    return Err(CommandError::Nul);
                }
                body.extend_from_slice(part.as_bytes());
            }
            body.push(0);
            Ok(body.len() - 1)
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
        let header = SpawnHeader {
            tag: 0,
            uid: self.user,
            gid: self.group,
            argc: self.argv.len() as u32,
            envc: self.env.len() as u32,
            flags: 0,
            groups: self.groups.len() as u32,
            rlimits: self.rlimits.len() as u32,
        };
        Ok(Encoded { header, body, host_name_at })
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, CommandError, MAX_ARGUMENT, MAX_GROUPS, MAX_RLIMITS, MAX_STRINGS, Rlimit};

    fn command(argv: &[&str]) -> Command {
        let argv = argv.iter().map(|argument| (*argument).to_owned()).collect();
        Command {
            argv,
            env: vec![("A".to_owned(), "b".to_owned())],
            with_host_name: vec!["A"],
            cwd: "/".to_owned(),
            user: 1000,
            group: 1000,
            groups: Vec::new(),
            rlimits: Vec::new(),
        }
    }

    #[test]
    fn a_command_becomes_terminated_strings() {
        let encoded = command(&["echo", "", "x y"]).encode().unwrap();
        assert_eq!(encoded.body.as_slice(), b"/\0echo\0\0x y\0A=b\0");
        assert_eq!(encoded.host_name_at, [encoded.body.len() - 1], "behind the value");
        assert_eq!(encoded.parts(b"", "host").concat(), b"/\0echo\0\0x y\0A=bhost\0");
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
        let groups = Command { groups: vec![1; MAX_GROUPS + 1], ..command(&["a"]) };
        assert_eq!(groups.encode().unwrap_err(), CommandError::TooManyGroups(MAX_GROUPS + 1));
        let rlimit = Rlimit { resource: 0, soft: 0, hard: 0 };
        let rlimits = Command { rlimits: vec![rlimit; MAX_RLIMITS + 1], ..command(&["a"]) };
        assert_eq!(rlimits.encode().unwrap_err(), CommandError::TooManyRlimits(MAX_RLIMITS + 1));
        let long = "x".repeat(MAX_ARGUMENT);
        assert_eq!(command(&["a", &long]).encode().unwrap_err(), CommandError::TooLong(MAX_ARGUMENT));
        let half = "x".repeat(MAX_ARGUMENT - 1);
        assert!(command(&["a", &half]).encode().is_ok());
        assert!(matches!(command(&["a", &half, &half]).encode().unwrap_err(), CommandError::TooLarge(_)));
    }
}
