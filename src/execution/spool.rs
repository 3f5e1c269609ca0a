//! The files that the output of executions lies in: unnamed, in memory, never swapped out. They are what survives of an
//! execution when the daemon is killed, because the keeper holds them too.
//!
//! Output is moved from a command's pipe to its file by splice(2): the kernel takes from the pipe exactly what it has
//! added to the file, whenever the daemon is killed, so that the length of the file says what has been read.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::pipe::SpliceFlags;

/// Makes such files.
#[derive(Debug, Default)]
pub struct Spools {
    /// A tmpfs that is mounted nowhere; without one, files are ordinary memory files, which may be swapped out.
    mount: Option<OwnedFd>,
}

impl Spools {
    /// On a tmpfs of its own, kept out of swap (`noswap`, Linux 6.4), and in folios as large as what is written at once
    /// (`huge=always`, since Linux 6.14): output is then counted and charged by the piece and no more by the page, which
    /// takes about half the time.
    ///
    /// # Errors
    /// The tmpfs cannot be made; needs CAP_SYS_ADMIN.
    pub fn new() -> io::Result<Self> {
        let large = Self { mount: Some(mount("always")?) };
        // Older kernels know large pages of one size only, 2 MiB even for a single byte.
        if large.bytes_for_one()? <= rustix::param::page_size() as u64 {
            return Ok(large);
        }
        Ok(Self { mount: Some(mount("never")?) })
    }

    /// How much memory a file with one byte takes, bytes.
    fn bytes_for_one(&self) -> io::Result<u64> {
        let file = self.file()?;
        rustix::io::pwrite(&file, b"x", 0)?;
        // In units of 512 bytes whatever the file system (stat(2)).
        Ok(rustix::fs::fstat(&file)?.st_blocks.unsigned_abs() * 512)
    }

    /// An empty file.
    ///
    /// # Errors
    /// Out of descriptors or memory.
    pub fn file(&self) -> io::Result<Arc<OwnedFd>> {
        let file = match &self.mount {
            Some(mount) => {
                let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
                rustix::fs::openat(mount, ".", flags, Mode::from_raw_mode(0o600))?
            }
            None => rustix::fs::memfd_create("thawd-output", MemfdFlags::CLOEXEC)?,
        };
        Ok(Arc::new(file))
    }

    /// The empty files of a new execution.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub fn files(&self) -> io::Result<Files> {
        Ok(Files { journal: self.file()?, output: [self.file()?, self.file()?] })
    }
}

/// A tmpfs that is mounted nowhere; `huge` is its option of that name (tmpfs(5)).
fn mount(huge: &str) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // No limit of its own: what is kept of an execution is limited by its log.
    for (key, value) in [("mode", "0700"), ("size", "0"), ("nr_inodes", "0")] {
        rustix::mount::fsconfig_set_string(&context, key, value)?;
    }
    match rustix::mount::fsconfig_set_string(&context, "huge", huge) {
        // A kernel without large pages.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    match rustix::mount::fsconfig_set_flag(&context, "noswap") {
        // EINVAL: an older kernel. Its pages are charged to the daemon, which has no swap under systemd.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(errno) => return Err(errno.into()),
    }
    rustix::mount::fsconfig_create(&context)?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// The files of one execution.
#[derive(Debug)]
pub struct Files {
    /// For [`super::journal::Journal`].
    pub journal: Arc<OwnedFd>,
    /// Standard output and standard error.
    pub output: [Arc<OwnedFd>; 2],
}

/// One stream of one execution. Written by its one owner, read by anybody.
#[derive(Debug)]
pub struct Spool {
    file: Arc<OwnedFd>,
    length: AtomicU64,
    /// Everything before this has been thrown away.
    punched: AtomicU64,
}

impl Spool {
    /// In `file`, with what is in it already.
    ///
    /// # Errors
    /// It is no file.
    pub fn new(file: Arc<OwnedFd>) -> io::Result<Self> {
        let length = rustix::fs::fstat(&file)?.st_size;
        Ok(Self { file, length: AtomicU64::new(length.try_into().unwrap_or(0)), punched: AtomicU64::new(0) })
    }

    /// The file, for the keeper.
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// Bytes that were ever in it.
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Moves what is in `pipe` to its end, at most `most` bytes. Returns how many; 0 is the end of the pipe.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is nothing; those of splice(2).
    pub fn take(&self, pipe: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        let mut at = self.length();
        let moved = rustix::pipe::splice(pipe, None, &self.file, Some(&mut at), most, SpliceFlags::NONBLOCK)?;
        self.length.fetch_add(moved as u64, Ordering::Release);
        Ok(moved)
    }

    /// Adds bytes of our own.
    ///
    /// # Errors
    /// Out of memory.
    pub fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = rustix::io::pwrite(&self.file, bytes, self.length())?;
            self.length.fetch_add(written as u64, Ordering::Release);
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// The bytes from `from` to `to`, which must be there.
    pub fn read(&self, from: u64, to: u64) -> Bytes {
        let wanted = to.saturating_sub(from) as usize;
        let mut bytes = Vec::with_capacity(wanted);
        while bytes.len() < wanted {
            let at = from + bytes.len() as u64;
            match rustix::io::pread(&self.file, rustix::buffer::spare_capacity(&mut bytes), at) {
                Ok(read) if read > 0 => {}
                // A file in memory that is as long as that can be read.
                failed => {
                    tracing::error!(?failed, "output kept in memory cannot be read");
                    break;
                }
            }
        }
        bytes.truncate(wanted);
        bytes.into()
    }

    /// Throws away what comes before `to`.
    pub fn punch(&self, to: u64) {
        let from = self.punched.swap(to, Ordering::Relaxed);
        if from < to {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if let Err(error) = rustix::fs::fallocate(&self.file, flags, from, to - from) {
                tracing::warn!(%error, "output kept in memory cannot be thrown away");
            }
        }
    }
}
