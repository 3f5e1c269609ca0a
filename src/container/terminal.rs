//! Terminals for commands, opened by the daemon in the container's own devpts through a descriptor.
//!
//! The daemon's end can be kept before the command starts, so a terminal survives the daemon as pipes do. When no
//! process holds that end any more, the kernel hangs up the terminal (SIGHUP).

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// Group of terminals, `tty` on Debian and others. The group may write to a terminal whose owner allows it (mesg(1)).
const TTY_GROUP: u32 = 5;

/// Size of a terminal, characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Lines.
    pub rows: u16,
    /// Characters of a line.
    pub columns: u16,
}

/// The daemon's end of a terminal. The command's output can be read from it even after the command's end; then comes
/// EIO.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Opens a terminal in `devpts`; returns the command's end too. `user` is the owner inside, `id_base` the
    /// container's first host id.
    pub(super) fn open(
        devpts: BorrowedFd<'_>,
        id_base: u32,
        user: u32,
        size: WindowSize,
    ) -> io::Result<(Self, OwnedFd)> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        // `ptmx` of a devpts is the kernel's own: nothing in a container can put another file there.
        let ours = rustix::fs::openat(devpts, "ptmx", flags | OFlags::NOFOLLOW, Mode::empty())?;
        rustix::pty::unlockpt(&ours)?;
        let theirs =
            rustix::pty::ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        rustix::fs::fchown(&theirs, Some(Uid::from_raw(id_base + user)), Some(Gid::from_raw(id_base + TTY_GROUP)))?;
        let this = Self(ours);
        this.resize(size)?;
        Ok((this, theirs))
    }

    /// Takes a terminal that an earlier daemon had opened.
    pub fn adopt(ours: OwnedFd) -> Self {
        Self(ours)
    }

    /// Changes the size; programs in the foreground get SIGWINCH.
    ///
    /// # Errors
    /// The system's error.
    pub fn resize(&self, WindowSize { rows, columns }: WindowSize) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(&self.0, size)?)
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Terminal> for OwnedFd {
    fn from(terminal: Terminal) -> Self {
        terminal.0
    }
}
