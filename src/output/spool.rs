//! Files that hold the output of executions: unnamed, in memory, never swapped out. The keeper holds them too, so they
//! survive when the daemon is killed.
//!
//! splice(2) moves output from a command's pipe to its file. The kernel takes from the pipe exactly what it adds to the
//! file, and advances the file's position by as much, at whatever instruction the daemon is killed. So the position
//! tells how much was read.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::pipe::SpliceFlags;

/// Makes the files.
#[derive(Debug, Default)]
pub struct Spools {
    /// A tmpfs that is mounted nowhere; `None` for ordinary memory files, which may be swapped out.
    mount: Option<OwnedFd>,
}

impl Spools {
    /// Makes a tmpfs without swap (`noswap`, Linux 6.4), and with large pages for files whose size was set large in
    /// advance (`huge=within_size`; see [`Spool`]).
    ///
    /// # Errors
    /// The tmpfs cannot be made; needs CAP_SYS_ADMIN.
    pub fn new() -> io::Result<Self> {
        let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        // No limit on the tmpfs: the log of each execution has one.
        for (key, value) in [("mode", "0700"), ("size", "0"), ("nr_inodes", "0")] {
            rustix::mount::fsconfig_set_string(&context, key, value)?;
        }
        match rustix::mount::fsconfig_set_string(&context, "huge", "within_size") {
            // EINVAL: the kernel has no large pages.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
        match rustix::mount::fsconfig_set_flag(&context, "noswap") {
            // EINVAL: an older kernel. The pages are then charged to the daemon, which has no swap under systemd.
            Ok(()) | Err(Errno::INVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
        rustix::mount::fsconfig_create(&context)?;
        let attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        Ok(Self { mount: Some(mount) })
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

    /// Empty files for a new execution.
    ///
    /// # Errors
    /// As [`Self::file`].
    pub fn files(&self) -> io::Result<Files> {
        Ok(Files { journal: self.file()?, output: [self.file()?, self.file()?] })
    }
}

/// The files of one execution.
#[derive(Debug)]
pub struct Files {
    /// File of the [`super::journal::Journal`].
    pub journal: Arc<OwnedFd>,
    /// Standard output and standard error.
    pub output: [Arc<OwnedFd>; 2],
}

/// Size of large pages, bytes (x86-64 and arm64 with 4 KiB pages). On other machines large pages are just not used.
const LARGE_PAGE: u64 = 2 << 20;

/// One stream of one execution. Written by its one owner, read by anybody.
///
/// How much has been written is told by the position of the file, which the kernel moves and which everybody shares who has
/// the descriptor. The size of the file is the same at first. When there turns out to be much (`large`), it is set beyond that, because
/// tmpfs takes large pages for what is within the size: a page at a time, moving output takes almost twice as long.
#[derive(Debug)]
pub struct Spool {
    file: Arc<OwnedFd>,
    /// So many bytes are much.
    large: u64,
    length: AtomicU64,
    /// Size that the file was set to; 0 before that.
    size: AtomicU64,
    /// Offset before which everything was freed.
    punched: AtomicU64,
}

impl Spool {
    /// A spool in `file`, including what the file holds already.
    ///
    /// # Errors
    /// It is no file.
    pub fn new(file: Arc<OwnedFd>, large: u64) -> io::Result<Self> {
        let length = rustix::fs::seek(&file, SeekFrom::Current(0))?;
        let size = rustix::fs::fstat(&file)?.st_size.unsigned_abs();
        Ok(Self {
            length: AtomicU64::new(length),
            size: AtomicU64::new(if size > length { size } else { 0 }),
            punched: AtomicU64::new(0),
            large,
            file,
        })
    }

    /// The file, for the keeper.
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    /// Bytes that were ever written, including those freed.
    pub fn length(&self) -> u64 {
        self.length.load(Ordering::Acquire)
    }

    /// Moves up to `most` bytes from `pipe` to the end of the spool. Returns how many; 0 is the end of the pipe.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if the pipe is empty; otherwise those of splice(2).
    pub fn take(&self, pipe: BorrowedFd<'_>, most: usize) -> io::Result<usize> {
        self.announce(most as u64);
        let moved = rustix::pipe::splice(pipe, None, &self.file, None, most, SpliceFlags::NONBLOCK)?;
        self.length.fetch_add(moved as u64, Ordering::Release);
        Ok(moved)
    }

    /// Sets the file's size in advance for `more` bytes, if the stream is long.
    fn announce(&self, more: u64) {
        let end = self.length() + more;
        if end - more >= self.large && end > self.size.load(Ordering::Relaxed) {
            let size = end.next_multiple_of(LARGE_PAGE);
            // If this fails, the file still grows by itself, with small pages.
            if rustix::fs::ftruncate(&self.file, size).is_ok() {
                self.size.store(size, Ordering::Relaxed);
            }
        }
    }

    /// Gives back memory that was taken in advance; call this when no more output comes for now.
    pub fn settle(&self) {
        if self.size.swap(0, Ordering::Relaxed) > self.length()
            && let Err(error) = rustix::fs::ftruncate(&self.file, self.length())
        {
            tracing::warn!(%error, "memory taken for output cannot be given back");
        }
    }

    /// Appends bytes that the daemon itself adds.
    ///
    /// # Errors
    /// Out of memory.
    pub fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = rustix::io::write(&self.file, bytes)?;
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
                // Reading within a file in memory cannot fail.
                failed => {
                    tracing::error!(?failed, "output kept in memory cannot be read");
                    break;
                }
            }
        }
        bytes.truncate(wanted);
        bytes.into()
    }

    /// Frees what comes before `to`, as far as whole pages allow.
    pub fn punch(&self, to: u64) {
        // Freeing a part of a large page would split it.
        let to = if self.size.load(Ordering::Relaxed) > 0 { to - to % LARGE_PAGE } else { to };
        let from = self.punched.fetch_max(to, Ordering::Relaxed);
        if from < to {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            if let Err(error) = rustix::fs::fallocate(&self.file, flags, from, to - from) {
                tracing::warn!(%error, "output kept in memory cannot be thrown away");
            }
        }
    }
}
