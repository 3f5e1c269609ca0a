//! Memory for a key: a page of its own that is never swapped, never dumped, absent in children, and wiped at the end.

use std::io;
use std::ptr::{self, NonNull};

use rustix::mm::{Advice, MapFlags, ProtFlags};
use zeroize::Zeroize;

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;

/// Size of the mapping, bytes. The kernel rounds up to whole pages.
const MAPPED: usize = 4096;

/// A key of 256 bits in locked memory. It has no printable form and cannot be copied.
pub struct LockedKey {
    page: NonNull<[u8; KEY_BYTES]>,
}

// SAFETY: the page belongs to this value alone, and it is written only by `new` and `drop`.
unsafe impl Send for LockedKey {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for LockedKey {}

impl LockedKey {
    /// Moves `key` into locked memory and wipes the original.
    ///
    /// # Errors
    /// There is no memory, or no more may be locked (`RLIMIT_MEMLOCK`, `LimitMEMLOCK=` of a unit).
    pub fn new(key: &mut [u8; KEY_BYTES]) -> io::Result<Self> {
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches no memory that exists.
        let page = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), MAPPED, access, flags) }?;
        let made = NonNull::new(page.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        // From here on `drop` unmaps the page, whatever fails.
        let this = Self { page: made };
        // SAFETY: the range is the mapping just made. Locking, leaving it out of core dumps and of children changes no
        // content that anybody refers to.
        unsafe {
            rustix::mm::mlock(page, MAPPED)?;
            rustix::mm::madvise(page, MAPPED, Advice::LinuxDontDump)?;
            rustix::mm::madvise(page, MAPPED, Advice::LinuxDontFork)?;
            this.page.write(*key);
        }
        key.zeroize();
        Ok(this)
    }

    /// The key itself. Do not copy, print or log it.
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        // SAFETY: the page is mapped, aligned and initialised for as long as this value lives, and nobody writes to it.
        unsafe { self.page.as_ref() }
    }
}

impl Drop for LockedKey {
    fn drop(&mut self) {
        // SAFETY: nobody else refers to the page, which is unmapped once, after it was wiped.
        unsafe {
            self.page.as_mut().zeroize();
            // Unmapping a whole mapping of one's own cannot fail.
            let _ = rustix::mm::munmap(self.page.as_ptr().cast(), MAPPED);
        }
    }
}

impl std::fmt::Debug for LockedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("[key]")
    }
}

#[cfg(test)]
mod tests {
    use super::LockedKey;

    #[test]
    fn a_key_lies_in_a_page_that_is_locked_and_left_out_of_dumps_and_children() {
        let mut key = [7; 32];
        let locked = LockedKey::new(&mut key).unwrap();
        assert_eq!((key, locked.expose()), ([0; 32], &[7; 32]));
        assert_eq!(format!("{locked:?}"), "[key]");
        let address = format!("{:x}-", locked.expose().as_ptr() as usize);
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let (_, mapping) = maps.split_once(&address).unwrap();
        let flags = mapping.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
        // Locked, not dumped, not copied to children (proc_pid_smaps(5)).
        for flag in [" lo", " dd", " dc"] {
            assert!(flags.contains(flag), "{flag}: {flags}");
        }
    }
}
