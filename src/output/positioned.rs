//! Reading and writing at a position, whole.

use std::io;
use std::os::fd::OwnedFd;

/// Writes all of `bytes` from byte `at` of the file on. Its position stays.
///
/// # Errors
/// Those of pwrite(2).
pub fn write_at(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::pwrite(file, bytes, at)?;
        at += written as u64;
        bytes = &bytes[written..];
    }
    Ok(())
}

/// Fills `buffer` from byte `at` of the file on. Its position stays.
///
/// # Errors
/// Those of pread(2); the file is too short.
pub fn read_at(file: &OwnedFd, mut buffer: &mut [u8], mut at: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match rustix::io::pread(file, &mut *buffer, at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                at += read as u64;
                buffer = &mut buffer[read..];
            }
        }
    }
    Ok(())
}
