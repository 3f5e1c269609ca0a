//! From a blob to the archive in it, in three threads: one decompresses (and hashes the blob), one hashes the archive,
//! and the caller's reads it. Hashing takes as long as decompressing does, so that one thread alone would be half as
//! fast. A fixed number of chunks goes round: what one thread has done with it passes to the next.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};

use crate::digest::{HashingReader, named};
use crate::layout::LayerBlob;

/// Bytes of a chunk: enough to make handing it on cheap, little enough to stay in a processor's cache.
const CHUNK: usize = 128 * 1024;
/// Chunks that may wait between two threads: a few MiB of memory for each layer that is unpacked.
const WAITING: usize = 16;

/// What came of reading a blob.
pub(super) struct Produced {
    /// Its digest.
    pub(super) blob: io::Result<String>,
    /// Size and digest of the archive in it, if that was read to its end.
    pub(super) archive: Option<(u64, String)>,
    /// Whether the archive has more bytes than it may have.
    pub(super) over_limit: bool,
}

/// Lets `read` read the archive in a blob, of `limit` bytes at most. The blob is read to its end whatever `read` does,
/// so that its digest can be told.
///
/// # Errors
/// When a thread cannot be started.
pub(super) fn run<T>(
    blob: File,
    layer: &LayerBlob,
    limit: u64,
    read: impl FnOnce(Chunks) -> T,
) -> io::Result<(T, Produced)> {
    std::thread::scope(|scope| {
        let (to_hash, to_be_hashed) = sync_channel(WAITING);
        let (to_reader, to_be_read) = sync_channel(WAITING);
        let (used, unused) = channel();
        let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
        let decompressing =
            thread("decompress").spawn_scoped(scope, move || decompress(blob, layer, limit, &unused, &to_hash))?;
        let hashing = thread("hash").spawn_scoped(scope, move || hash(&to_be_hashed, &to_reader))?;
        let result = read(Chunks { from: to_be_read, used, chunk: None, at: 0 });
        // A panic over there is a panic here.
        let (blob, over_limit) = decompressing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let archive = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((result, Produced { blob, archive, over_limit }))
    })
}

/// Some bytes of an archive.
struct Chunk {
    bytes: Box<[u8]>,
    length: usize,
}

/// Reads the blob to its end, and sends what is in it until nobody wants more of it. Returns the digest of the blob, and
/// whether the archive is too long.
fn decompress(
    blob: File,
    layer: &LayerBlob,
    limit: u64,
    unused: &Receiver<Box<[u8]>>,
    to: &SyncSender<io::Result<Chunk>>,
) -> (io::Result<String>, bool) {
    let mut blob = HashingReader::new(blob, layer.size);
    let mut over_limit = false;
    match decoder(&mut blob) {
        Ok(mut decoder) => {
            let mut left = limit;
            loop {
                let mut bytes = unused.try_recv().unwrap_or_else(|_| vec![0; CHUNK].into_boxed_slice());
                let message = match fill(&mut decoder, &mut bytes) {
                    Ok(0) => break,
                    Ok(length) if length as u64 > left => {
                        over_limit = true;
                        Err(io::Error::other("the archive is larger than it may be"))
                    }
                    Ok(length) => {
                        left -= length as u64;
                        Ok(Chunk { bytes, length })
                    }
                    Err(error) => Err(error),
                };
                let failed = message.is_err();
                if to.send(message).is_err() || failed {
                    break;
                }
            }
        }
        // Nobody reads on when this cannot be sent.
        Err(error) => drop(to.send(Err(error))),
    }
    (blob.finish().map(|(_, digest)| digest), over_limit)
}

/// Reads until the buffer is full or nothing is left.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match from.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Passes chunks on; returns size and digest of the archive if it was passed on to its end.
fn hash(from: &Receiver<io::Result<Chunk>>, to: &SyncSender<io::Result<Chunk>>) -> Option<(u64, String)> {
    let (mut hasher, mut size) = (Sha256::new(), 0);
    for message in from {
        let failed = match &message {
            Ok(chunk) => {
                hasher.update(&chunk.bytes[..chunk.length]);
                size += chunk.length as u64;
                false
            }
            Err(_) => true,
        };
        if to.send(message).is_err() || failed {
            return None;
        }
    }
    Some((size, named(hasher)))
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// First bytes that are looked at.
const MAGIC: usize = 10;

impl Compression {
    /// By the first bytes, whatever the archive is called: its name is wrong often enough.
    pub(super) fn of(start: &[u8]) -> io::Result<Self> {
        let other = match start {
            [0x1f, 0x8b, ..] => return Ok(Compression::Gzip),
            // A frame, or one to be skipped, of which there are 16 kinds.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => return Ok(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59, ..] => "bzip2",
            [0x04, 0x22, 0x4d, 0x18, ..] => "lz4",
            [b'L', b'Z', b'I', b'P', 1, ..] => "lzip",
            [0x5d, 0, 0, ..] => "lzma",
            [0x1f, 0x9d, ..] => "compress",
            [b'P', b'K', 3, 4, ..] => "zip",
            _ => return Ok(Compression::None),
        };
        let text = format!("is compressed with {other}, which is not read here: compress it with gzip or zstd");
        Err(io::Error::new(io::ErrorKind::Unsupported, text))
    }
}

/// What is in a file that may be compressed.
pub(super) fn decoder<'a>(blob: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut blob = BufReader::with_capacity(CHUNK, blob);
    let mut start = [0; MAGIC];
    let length = fill(&mut blob, &mut start)?;
    let compression = Compression::of(&start[..length])?;
    let blob = Cursor::new(start).take(length as u64).chain(blob);
    Ok(match compression {
        Compression::None => Box::new(blob),
        Compression::Gzip => Box::new(MultiGzDecoder::new(blob)),
        // The window is at most 128 MiB, the library's default.
        Compression::Zstd => Box::new(zstd::Decoder::with_buffer(blob)?),
    })
}

/// The archive, as it comes.
pub(super) struct Chunks {
    from: Receiver<io::Result<Chunk>>,
    /// Where chunks go that have been read.
    used: Sender<Box<[u8]>>,
    chunk: Option<Chunk>,
    /// How much of the chunk has been read.
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(chunk) = &self.chunk {
                let mut rest = &chunk.bytes[self.at..chunk.length];
                let count = rest.read(buffer)?;
                if count > 0 || buffer.is_empty() {
                    self.at += count;
                    return Ok(count);
                }
            }
            if let Some(chunk) = self.chunk.take() {
                // When nothing is decompressed any more, nobody wants it back.
                let _ = self.used.send(chunk.bytes);
            }
            match self.from.recv() {
                Ok(chunk) => (self.chunk, self.at) = (Some(chunk?), 0),
                Err(_) => return Ok(0),
            }
        }
    }
}
