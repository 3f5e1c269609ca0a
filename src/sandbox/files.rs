//! Calls for files of a sandbox. None of them wakes it; while there is one, the sandbox is not idle.

use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use flate2::read::MultiGzDecoder;
use futures_util::Stream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::handle::Call;
use super::{SandboxError, Sandboxes};
use crate::container::{FileError, FileInfo, FileLimits, Files, NewFile, Place};

/// What is read at once, bytes.
const PIECE: usize = 256 << 10;

/// Pieces of what comes or goes that wait for the other end.
const PIECES: usize = 8;

/// A call for files, until it is dropped.
#[derive(Debug)]
pub struct FileCall {
    place: Arc<Place>,
    limits: FileLimits,
    call: Call,
    permit: OwnedSemaphorePermit,
}

impl Sandboxes {
    /// Begins a call for files of a sandbox, frozen or not.
    ///
    /// # Errors
    /// There is no such sandbox, it is gone, or there are too many such calls.
    pub async fn files(&self, id: &str) -> Result<FileCall, SandboxError> {
        let handle = self.find(id)?;
        let settings = self.settings();
        let too_many = |_| SandboxError::FileCalls(settings.file_calls);
        let permit = Arc::clone(&self.file_calls).try_acquire_owned().map_err(too_many)?;
        let call = handle.call().await?;
        let place = call.container().files(handle.turn())?;
        Ok(FileCall { place, limits: settings.files, call, permit })
    }
}

/// Some of a file.
#[derive(Debug)]
pub struct Opened {
    file: File,
    from: u64,
    length: u64,
    first: Bytes,
    call: FileCall,
}

impl FileCall {
    /// Does something with the files.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce(&Files<'_>, FileLimits) -> Result<T, FileError> + Send + 'static,
    ) -> Result<T, SandboxError> {
        self.begin(work)?.await.map_err(|_| ended())?.map_err(SandboxError::File)
    }

    fn begin<T: Send + 'static>(
        self,
        work: impl FnOnce(&Files<'_>, FileLimits) -> Result<T, FileError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, FileError>>, SandboxError> {
        let Self { place, limits, call, permit } = self;
        let work = move |files: &Files<'_>| {
            let done = work(files, limits);
            drop((call, permit));
            done
        };
        Ok(place.run(work)?)
    }

    /// Opens a file, and reads the part that `choose` wants of it: from which byte on, and how many. `None` is nothing.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub async fn read(
        self,
        path: Vec<u8>,
        choose: impl FnOnce(&FileInfo) -> Option<(u64, u64)> + Send + 'static,
    ) -> Result<(FileInfo, Option<Opened>), SandboxError> {
        let place = Arc::clone(&self.place);
        let work = move |files: &Files<'_>| {
            let (file, info) = files.read(&path)?;
            let Some((from, length)) = choose(&info) else { return Ok((info, None)) };
            let mut first = vec![0; usize::try_from(length).unwrap_or(PIECE).min(PIECE)];
            let read = file.read_at(&mut first, from).map_err(|error| FileError::new(&path, error))?;
            first.truncate(read);
            Ok((info, Some(Opened { file, from, length, first: first.into(), call: self })))
        };
        place.run(work)?.await.map_err(|_| ended())?.map_err(SandboxError::File)
    }

    /// Makes a file of what is sent; with `parents` also the directories above it.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn create(self, path: Vec<u8>, new: NewFile, parents: bool) -> Result<Upload<(FileInfo, bool)>, SandboxError> {
        Upload::begin(self, move |files, limits, content| {
            if parents {
                files.make_parents(&path)?;
            }
            files.create(&path, &new, limits, content)
        })
    }

    /// Unpacks an archive that is sent, plain or compressed with gzip, into a directory; gives the number of its entries.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn unpack(self, path: Vec<u8>) -> Result<Upload<u64>, SandboxError> {
        Upload::begin(self, move |files, limits, content| {
            let mut head = Vec::new();
            content.take(2).read_to_end(&mut head).map_err(|error| FileError::new(&path, error))?;
            let is_packed = head == [0x1f, 0x8b];
            let mut whole = Cursor::new(head).chain(content);
            let mut plain: Box<dyn Read + '_> =
                if is_packed { Box::new(MultiGzDecoder::new(&mut whole)) } else { Box::new(&mut whole) };
            let entries = files.unpack(&path, limits, &mut plain)?;
            // What stands behind the end of an archive is nothing; who sends it is let finish.
            io::copy(&mut plain, &mut io::sink()).map_err(|error| FileError::new(&path, error))?;
            Ok(entries)
        })
    }

    /// Packs what has this path. Returns how many things are left out, and the archive.
    ///
    /// # Errors
    /// It cannot be packed as a whole.
    pub async fn pack(
        self,
        path: Vec<u8>,
    ) -> Result<(u64, impl Stream<Item = io::Result<Bytes>> + Send + 'static), SandboxError> {
        let (scanned, told) = oneshot::channel();
        let (pieces, mut waiting) = mpsc::channel(PIECES);
        let work = move |files: &Files<'_>, limits: FileLimits| {
            let packing = match files.scan(&path, limits) {
                Ok(packing) => packing,
                Err(error) => {
                    let _ = scanned.send(Err(error));
                    return Ok(());
                }
            };
            if scanned.send(Ok(packing.left_out())).is_err() {
                return Ok(());
            }
            let mut archive = BufWriter::with_capacity(PIECE, Sending(&pieces));
            let packed = files.pack(&packing, &mut archive);
            let written = packed.and_then(|()| archive.flush().map_err(|error| FileError::new(&path, error)));
            let last = match written {
                Ok(()) => Ok(Piece::End),
                Err(error) => Err(io::Error::other(error)),
            };
            // Whoever has left needs no end.
            let _ = pieces.blocking_send(last);
            Ok(())
        };
        // Its result says nothing more.
        drop(self.begin(work)?);
        let left_out = told.await.map_err(|_| ended())?.map_err(SandboxError::File)?;
        let stream = futures_util::stream::poll_fn(move |context| {
            waiting.poll_recv(context).map(|piece| match piece {
                Some(Ok(Piece::Data(bytes))) => Some(Ok(bytes)),
                Some(Ok(Piece::End)) => None,
                Some(Err(error)) => Some(Err(error)),
                None => Some(Err(io::Error::other("the thread ended early"))),
            })
        });
        Ok((left_out, stream))
    }
}

fn ended() -> SandboxError {
    SandboxError::Io(io::Error::other("a thread ended early"))
}

impl Opened {
    /// First byte of the part, and how many there are.
    pub fn part(&self) -> (u64, u64) {
        (self.from, self.length)
    }

    /// The part, piece by piece. It breaks off where the file became shorter meanwhile.
    pub fn stream(self) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
        let Self { file, from, length, first, call } = self;
        let state = (Arc::new(file), from, length, Some(first), call);
        futures_util::stream::try_unfold(state, |(file, at, left, first, call)| async move {
            if left == 0 {
                return Ok(None);
            }
            let piece = match first {
                Some(first) => first,
                None => {
                    let file = Arc::clone(&file);
                    let read = move || {
                        let mut piece = vec![0; usize::try_from(left).unwrap_or(PIECE).min(PIECE)];
                        let read = file.read_at(&mut piece, at)?;
                        piece.truncate(read);
                        Ok::<_, io::Error>(Bytes::from(piece))
                    };
                    tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??
                }
            };
            if piece.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file has become shorter meanwhile"));
            }
            let read = piece.len() as u64;
            Ok(Some((piece, (file, at + read, left - read, None, call))))
        })
    }
}

/// A part of what comes or goes.
#[derive(Debug)]
enum Piece {
    Data(Bytes),
    /// All of it was sent.
    End,
}

/// Something that is made of what is sent.
#[derive(Debug)]
pub struct Upload<T> {
    pieces: mpsc::Sender<Piece>,
    done: oneshot::Receiver<Result<T, FileError>>,
}

impl<T: Send + 'static> Upload<T> {
    fn begin(
        call: FileCall,
        work: impl FnOnce(&Files<'_>, FileLimits, &mut dyn Read) -> Result<T, FileError> + Send + 'static,
    ) -> Result<Self, SandboxError> {
        let (pieces, waiting) = mpsc::channel(PIECES);
        let done = call.begin(move |files, limits| {
            let mut content = Received { waiting, piece: Bytes::new(), is_over: false };
            work(files, limits, &mut content)
        })?;
        Ok(Self { pieces, done })
    }

    /// Sends a part; whether more is wanted.
    pub async fn send(&self, piece: Bytes) -> bool {
        self.pieces.send(Piece::Data(piece)).await.is_ok()
    }

    /// What came of it, once everything was sent. Whoever drops this instead has nothing made.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub async fn finish(self) -> Result<T, SandboxError> {
        // Whoever wants nothing more has said why.
        let _ = self.pieces.send(Piece::End).await;
        self.done.await.map_err(|_| ended())?.map_err(SandboxError::File)
    }
}

/// What was sent, as a thread reads it.
struct Received {
    waiting: mpsc::Receiver<Piece>,
    piece: Bytes,
    is_over: bool,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.is_over {
            match self.waiting.blocking_recv() {
                Some(Piece::Data(piece)) => self.piece = piece,
                Some(Piece::End) => self.is_over = true,
                None => return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "it was not sent as a whole")),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece.split_to(length));
        Ok(length)
    }
}

/// Where a thread writes what goes.
struct Sending<'a>(&'a mpsc::Sender<io::Result<Piece>>);

impl Write for Sending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Piece::Data(Bytes::copy_from_slice(bytes));
        self.0.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
