//! `thawctl cp`: files and directories between here and a sandbox, as `docker cp` has it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tar::{Archive, Builder};
use tokio::sync::mpsc;

use super::files::{add, add_inside};
use super::format::plain;
use super::profile::Profile;
use super::request::current_user;
use super::{CtlError, complain, sandbox};
use thaw_client::client::{Client, ClientError, Download, Upload};
use thaw_client::types::{NewDirectory, SandboxFile, SandboxFileKind};

/// What is read or written at once, bytes.
const PIECE: usize = 256 << 10;

/// Pieces that wait for the other end.
const PIECES: usize = 8;

/// Arguments of `thawctl cp`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One of the two is in a sandbox: SANDBOX:PATH, where SANDBOX is an id, a beginning of one, a name of yours, or USER/NAME; PATH \
begins at the sandbox's root. A directory goes under its own name into one that is there, and under the name that is given \
otherwise; DIR/. means what is in it. - is a tar archive on standard input or output. Files in the sandbox belong to its user. A \
frozen sandbox stays frozen.")]
pub(super) struct Args {
    /// Copy what a link leads to, not the link
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// SANDBOX:PATH, a path here, or - for a tar archive
    #[arg(value_name = "FROM", allow_hyphen_values = true)]
    from: String,
    /// SANDBOX:PATH, a path here, or - for a tar archive
    #[arg(value_name = "TO", allow_hyphen_values = true)]
    to: String,
}

/// One of the two.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Inside { sandbox: String, path: String },
    Here(PathBuf),
    Stream,
}

impl Place {
    fn of(text: &str) -> Self {
        if text == "-" {
            return Self::Stream;
        }
        match text.split_once(':') {
            // A path here may have a colon behind a slash, as with docker; ./ in front makes it one.
            Some((sandbox, path)) if !sandbox.is_empty() && !sandbox.starts_with(['.', '/']) => {
                let slash = if path.starts_with('/') { "" } else { "/" };
                Self::Inside { sandbox: sandbox.to_owned(), path: format!("{slash}{path}") }
            }
            _ => Self::Here(text.into()),
        }
    }
}

/// A sandbox, and a path in it.
struct There<'a> {
    client: &'a Client,
    id: String,
    path: String,
}

pub(super) async fn cp(client: &Client, args: Args, profile: &Profile) -> Result<(), CtlError> {
    let (from, to) = (Place::of(&args.from), Place::of(&args.to));
    let there = |sandbox: String, path: String| async move {
        let user = profile.user.clone().unwrap_or_else(current_user);
        let id = plain(sandbox::find(client, &user, &sandbox).await?.get("id"));
        Ok::<_, CtlError>(There { client, id, path })
    };
    match (from, to) {
        (Place::Inside { sandbox, path }, Place::Here(to)) => {
            there(sandbox, path).await?.fetch(&to, args.follow_link).await
        }
        (Place::Inside { sandbox, path }, Place::Stream) => there(sandbox, path).await?.fetch_archive().await,
        (Place::Here(from), Place::Inside { sandbox, path }) => {
            there(sandbox, path).await?.send(from, args.follow_link).await
        }
        (Place::Stream, Place::Inside { sandbox, path }) => there(sandbox, path).await?.send_archive().await,
        (Place::Inside { .. }, Place::Inside { .. }) => {
            let problem = "not from one sandbox to another: thawctl cp A:PATH - | thawctl cp - B:PATH";
            Err(CtlError::Usage(problem.to_owned()))
        }
        (Place::Here(_) | Place::Stream, Place::Here(_) | Place::Stream) => {
            Err(CtlError::Usage("one of the two must be in a sandbox: SANDBOX:PATH".to_owned()))
        }
    }
}

/// An error about a path here.
fn here(path: &Path) -> impl FnOnce(io::Error) -> CtlError {
    move |error| CtlError::Usage(format!("{}: {error}", path.display()))
}

fn is_missing(error: &ClientError) -> bool {
    matches!(error, ClientError::Problem(problem) if matches!(&*problem.code, "no_such_file" | "not_a_directory"))
}

/// The last name of a path, unless it ends with one that means a directory itself.
fn own_name(path: &Path) -> Option<&std::ffi::OsStr> {
    let text = path.as_os_str().as_encoded_bytes();
    let name = path.file_name()?;
    (!text.ends_with(b"/.")).then_some(name)
}

/// The part of a path above its last name, and that.
fn split(path: &str) -> (&str, &str) {
    let path = path.trim_end_matches('/');
    match path.rsplit_once('/') {
        Some(("", name)) => ("/", name),
        Some((above, name)) => (above, name),
        None => ("/", ""),
    }
}

impl There<'_> {
    /// What has this path, if there is anything. Links are followed for a directory.
    async fn stat(&self, path: &str) -> Result<Option<SandboxFile>, CtlError> {
        match self.client.stat_sandbox_file(&self.id, path).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn is_directory(&self, path: &str) -> Result<bool, CtlError> {
        Ok(self.stat(&format!("{path}/.")).await?.is_some())
    }

    async fn fetch(self, to: &Path, follow: bool) -> Result<(), CtlError> {
        let found = self.client.stat_sandbox_file(&self.id, &self.path).await?;
        let into = fs::metadata(to).is_ok_and(|metadata| metadata.is_dir());
        let is_contents = self.path.ends_with("/.");
        let is_directory = found.kind == SandboxFileKind::Directory
            || (follow || self.path.ends_with('/')) && self.is_directory(&self.path).await?;
        if is_directory {
            if !into && to.exists() {
                let problem = format!("{} is a file, and {} is a directory", to.display(), self.path);
                return Err(CtlError::Usage(problem));
            }
            // Under its own name into one that is there; else what is in it becomes the new one.
            let name = if into && !is_contents { split(&self.path).1 } else { "" };
            let folder = to.join(name);
            fs::create_dir_all(&folder).map_err(here(&folder))?;
            let archive = self.client.read_sandbox_archive(&self.id, &format!("{}/.", self.path)).await?;
            return unpack(archive, folder).await;
        }
        let name = split(&self.path).1;
        let file = if into { to.join(name) } else { to.to_owned() };
        if found.kind == SandboxFileKind::Link && !follow {
            let target = found.target.unwrap_or_default();
            let _ = fs::remove_file(&file);
            return std::os::unix::fs::symlink(target, &file).map_err(here(&file));
        }
        let content = self.client.read_sandbox_file(&self.id, &self.path).await?;
        let mode = u32::from_str_radix(&found.mode, 8).unwrap_or(0o644) & 0o777;
        write(content, file, mode).await
    }

    async fn fetch_archive(self) -> Result<(), CtlError> {
        let mut archive = self.client.read_sandbox_archive(&self.id, &self.path).await?;
        warn(archive.left_out());
        let mut out = io::stdout().lock();
        while let Some(piece) = archive.next().await? {
            out.write_all(&piece)?;
        }
        Ok(out.flush()?)
    }

    async fn send(self, from: PathBuf, follow: bool) -> Result<(), CtlError> {
        let metadata =
            if follow || own_name(&from).is_none() { fs::metadata(&from) } else { fs::symlink_metadata(&from) };
        let metadata = metadata.map_err(here(&from))?;
        let into = self.is_directory(&self.path).await?;
        let (above, name) = match own_name(&from) {
            Some(name) if into => {
                (self.path.clone(), name.to_str().ok_or_else(|| CtlError::Usage(format!("{name:?} is not UTF-8")))?)
            }
            _ if metadata.is_dir() => {
                if !into {
                    let path = self.path.trim_end_matches('/').to_owned();
                    self.client
                        .make_sandbox_directory(&self.id, &NewDirectory { path, ..NewDirectory::default() })
                        .await?;
                }
                (self.path.clone(), "")
            }
            _ if self.path.ends_with('/') => {
                return Err(CtlError::Usage(format!("there is no directory {}", self.path)));
            }
            _ => {
                let (above, name) = split(&self.path);
                (above.to_owned(), name)
            }
        };
        let name = PathBuf::from(name);
        let (pieces, waiting) = mpsc::channel(PIECES);
        let packed = tokio::task::spawn_blocking(move || pack(&from, &name, follow, &pieces));
        let sent = self.client.put_sandbox_archive(&self.id, &above, Upload::Pieces(waiting)).await;
        // What is wrong here is why the other end heard only a part.
        match packed.await.map_err(io::Error::other)? {
            Err(error @ CtlError::Usage(_)) => Err(error),
            _ => Ok(sent.map(drop)?),
        }
    }

    async fn send_archive(self) -> Result<(), CtlError> {
        let (pieces, waiting) = mpsc::channel(PIECES);
        let read = move || {
            let mut input = io::stdin().lock();
            let mut piece = vec![0; PIECE];
            loop {
                let next = match input.read(&mut piece) {
                    Ok(0) => return,
                    read => read.map(|read| bytes::Bytes::copy_from_slice(&piece[..read])),
                };
                let failed = next.is_err();
                if pieces.blocking_send(next).is_err() || failed {
                    return;
                }
            }
        };
        tokio::task::spawn_blocking(read);
        Ok(self.client.put_sandbox_archive(&self.id, &self.path, Upload::Pieces(waiting)).await.map(drop)?)
    }
}

fn warn(left_out: u64) {
    if left_out > 0 {
        complain(&format!("{left_out} FIFOs, sockets and devices are left out"));
    }
}

/// Writes what comes to a file, which is there when it is whole.
async fn write(mut content: Download, file: PathBuf, mode: u32) -> Result<(), CtlError> {
    let meanwhile = file.with_file_name(format!(".thawctl-{}.part", std::process::id()));
    let written = async {
        let mut out = BufWriter::with_capacity(PIECE, File::create_new(&meanwhile).map_err(here(&file))?);
        while let Some(piece) = content.next().await? {
            out.write_all(&piece).map_err(here(&file))?;
        }
        out.flush().map_err(here(&file))?;
        out.get_ref().set_permissions(fs::Permissions::from_mode(mode)).map_err(here(&file))?;
        fs::rename(&meanwhile, &file).map_err(here(&file))
    };
    let written = written.await;
    if written.is_err() {
        let _ = fs::remove_file(&meanwhile);
    }
    written
}

/// Unpacks what comes below a folder.
async fn unpack(mut archive: Download, folder: PathBuf) -> Result<(), CtlError> {
    warn(archive.left_out());
    let (pieces, waiting) = mpsc::channel::<Vec<u8>>(PIECES);
    let unpacked = tokio::task::spawn_blocking(move || {
        let content = Received { waiting, piece: Vec::new(), at: 0 };
        let mut archive = Archive::new(content);
        // Each path is checked to lie below the folder; owners and set-id bits stay behind.
        for entry in archive.entries()? {
            let mut entry = entry?;
            if !entry.unpack_in(&folder)? {
                let path = entry.path_bytes().escape_ascii().to_string();
                return Err(io::Error::other(format!("{path} would lie elsewhere")));
            }
        }
        // What stands behind the end.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map(drop)
    });
    let came = async {
        while let Some(piece) = archive.next().await? {
            if pieces.send(piece.into()).await.is_err() {
                break;
            }
        }
        Ok::<_, ClientError>(())
    };
    let came = came.await;
    drop(pieces);
    let unpacked = unpacked.await.map_err(io::Error::other)?;
    came?;
    unpacked.map_err(|error| CtlError::Usage(format!("cannot write what came: {error}")))
}

/// What came, as a thread reads it.
struct Received {
    waiting: mpsc::Receiver<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.waiting.blocking_recv() {
                Some(piece) => (self.piece, self.at) = (piece, 0),
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len() - self.at);
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Where a thread writes what goes.
struct Sending<'a>(&'a mpsc::Sender<io::Result<bytes::Bytes>>);

impl Write for Sending<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = bytes::Bytes::copy_from_slice(bytes);
        self.0.blocking_send(Ok(piece)).map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packs a file or a folder under another name, or for an empty name what is in it.
fn pack(
    from: &Path,
    name: &Path,
    follow: bool,
    pieces: &mpsc::Sender<io::Result<bytes::Bytes>>,
) -> Result<(), CtlError> {
    let pack = || {
        let mut builder = Builder::new(BufWriter::with_capacity(PIECE, Sending(pieces)));
        builder.follow_symlinks(false);
        if name.as_os_str().is_empty() {
            add_inside(&mut builder, from, name)?;
        } else {
            add(&mut builder, from, name, follow)?;
        }
        let done = builder.into_inner().and_then(|mut out| out.flush());
        done.map_err(here(from))
    };
    let packed = pack();
    if packed.is_err() {
        // So that what was sent does not pass for an archive.
        let _ = pieces.blocking_send(Err(io::Error::other("packing failed")));
    }
    packed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_a_sandbox_here_or_a_stream() {
        let inside = |sandbox: &str, path: &str| Place::Inside { sandbox: sandbox.to_owned(), path: path.to_owned() };
        for (text, place) in [
            ("dev:/a/b", inside("dev", "/a/b")),
            ("dev:a", inside("dev", "/a")),
            ("dev:", inside("dev", "/")),
            ("u@x.org/dev:/a:b", inside("u@x.org/dev", "/a:b")),
            ("./a:b", Place::Here("./a:b".into())),
            ("/a:b", Place::Here("/a:b".into())),
            ("a", Place::Here("a".into())),
            ("-", Place::Stream),
        ] {
            assert_eq!(Place::of(text), place, "{text}");
        }
    }

    #[test]
    fn names_are_those_of_what_is_copied() {
        for (path, above, name) in [("/a/b", "/a", "b"), ("/a/", "/", "a"), ("/", "/", ""), ("/a", "/", "a")] {
            assert_eq!(split(path), (above, name), "{path}");
        }
        for (path, name) in [("a/b", Some("b")), ("a/.", None), ("..", None), (".", None), ("a/b/", Some("b"))] {
            assert_eq!(own_name(Path::new(path)).and_then(|name| name.to_str()), name, "{path}");
        }
    }
}
