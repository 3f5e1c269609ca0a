//! Splits a tar archive into headers and contents. The caller provides the length of each content, since only it has
//! read the extension headers.

use std::io::{self, Read};

use tar::Header;

/// Block size, bytes: everything in an archive begins at a multiple of it.
const BLOCK: u64 = 512;

/// An archive, read from its beginning to its end mark.
pub(super) struct Blocks<R> {
    inner: R,
    /// Unread bytes of the current content.
    left: u64,
    /// Bytes after the content that fill its last block.
    padding: u64,
}

impl<R: Read> Blocks<R> {
    pub(super) fn new(inner: R) -> Self {
        Blocks { inner, left: 0, padding: 0 }
    }

    /// Reads the next header, after skipping the rest of the content before it. `None` at the end mark, or when the
    /// archive ends without one: some tools (umoci) omit it, and the padding of the last file too.
    pub(super) fn header(&mut self) -> io::Result<Option<Header>> {
        let (left, padding) = (std::mem::take(&mut self.left), std::mem::take(&mut self.padding));
        if self.pass(left)? < left {
            return Err(cut_off());
        }
        if self.pass(padding)? < padding {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let mut length = 0;
        while length < header.as_bytes().len() {
            match self.inner.read(&mut header.as_mut_bytes()[length..]) {
                Ok(0) if length == 0 => return Ok(None),
                Ok(0) => return Err(cut_off()),
                Ok(count) => length += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if !is_sum(&header) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a header has the wrong checksum"));
        }
        Ok(Some(header))
    }

    /// Skips this many bytes, or as many as there are.
    fn pass(&mut self, bytes: u64) -> io::Result<u64> {
        io::copy(&mut (&mut self.inner).take(bytes), &mut io::sink())
    }

    /// Content of `size` bytes after the last header.
    pub(super) fn content(&mut self, size: u64) -> Content<'_, R> {
        self.left = size;
        self.padding = (BLOCK - size % BLOCK) % BLOCK;
        Content(self)
    }

    /// Reader of what follows the end mark.
    pub(super) fn into_inner(self) -> R {
        self.inner
    }
}

/// The content of one entry.
pub(super) struct Content<'a, R>(&'a mut Blocks<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.0.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.0.inner.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(cut_off());
        }
        self.0.left -= count as u64;
        Ok(count)
    }
}

fn cut_off() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF: the archive ends in the middle of an entry")
}

/// Whether the checksum is the sum of all bytes, with blanks in its own place. Old systems added signed bytes.
fn is_sum(header: &Header) -> bool {
    let Some(said) = number(&header.as_old().cksum) else { return false };
    let bytes = header.as_bytes();
    let others = || bytes[..148].iter().chain(&bytes[156..]);
    let blanks = 8 * i64::from(b' ');
    let unsigned: i64 = others().map(|byte| i64::from(*byte)).sum();
    let signed: i64 = others().map(|byte| i64::from(byte.cast_signed())).sum();
    said == unsigned + blanks || said == signed + blanks
}

/// Number in a header: octal digits, or GNU's form for larger numbers (first bit set, then two's complement, highest
/// byte first). A field without a digit means 0, as in Go and GNU tar.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let negative = first & 0x40 != 0;
        let start = i128::from(first & 0x3f) - if negative { 0x40 } else { 0 };
        // Twelve bytes at most, so this cannot overflow.
        return i64::try_from(rest.iter().fold(start, |sum, byte| (sum << 8) + i128::from(*byte))).ok();
    }
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    match field[..end].trim_ascii() {
        [] => Some(0),
        digits if !digits[0].is_ascii_digit() => None,
        digits => i64::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_dialect() {
        for (field, expected) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"00000000", Some(0)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777777\0", Some((1 << 33) - 1)),
            (b"777777777777", Some((1 << 36) - 1)),
            (b"\x80\0\0\0\0\0\0\x02\0\0\0\0", Some(1 << 33)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\x00", Some(-256)),
            (b"\x80\0\0\x01\0\0\0\0\0\0\0\0", None),
            (b"0000688\0", None),
            (b"+000644\0", None),
            (b"-000644\0", None),
        ] {
            assert_eq!(number(field), expected, "{field:x?}");
        }
    }
}
