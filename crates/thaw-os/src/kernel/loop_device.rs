//! Loop devices: files as block devices (loop(4)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Requests of linux/loop.h.
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

/// The device lets go of its file when nothing has it open or mounted any more.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// What is read and written is not cached a second time, where the file's file system can do that.
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// Size of a block, bytes: that of the file systems on it, which direct I/O needs.
const BLOCK_BYTES: u32 = 4096;

/// Tries to get a device that another process does not get first.
const TRIES: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    real_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

impl Info {
    fn with(flags: u32) -> Self {
        Self {
            device: 0,
            inode: 0,
            real_device: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags,
            file_name: [0; 64],
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }
}

/// A loop device that has a file. It lets go of the file when this is dropped, unless it is mounted by then; in that case
/// with the last mount.
#[derive(Debug)]
pub struct LoopDevice {
    file: OwnedFd,
    path: PathBuf,
}

impl LoopDevice {
    /// Attaches `file`, which is open for reading and writing. The kernel keeps the open file as long as the device has it,
    /// and so every flock(2) that was taken through it.
    ///
    /// # Errors
    /// There is no loop device left, or none at all.
    pub fn attach(file: BorrowedFd<'_>) -> io::Result<Self> {
        let control = open(Path::new("/dev/loop-control"))?;
        for _ in 0..TRIES {
            // SAFETY: the request takes no argument and changes no memory.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = open(&path)?;
            let config = Config {
                fd: file.as_raw_fd() as u32,
                block_size: BLOCK_BYTES,
                info: Info::with(LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO),
                reserved: [0; 8],
            };
            // SAFETY: `config` is a `struct loop_config`, which the kernel only reads; both descriptors are open.
            let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
            if result == 0 {
                return Ok(Self { file: device, path });
            }
            let error = io::Error::last_os_error();
            // Somebody else was faster.
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error);
            }
        }
        Err(io::Error::new(io::ErrorKind::ResourceBusy, "others take every free loop device"))
    }

    /// Its node, for a mount.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for LoopDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let opened = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from);
    opened.map_err(|error| io::Error::new(error.kind(), format!("open {}: {error}", path.display())))
}

const _: () = assert!(size_of::<Info>() == 232 && size_of::<Config>() == 304);
