//! What a request wants in `/workspace` before its command starts, and what it wants back of it afterwards.
//!
//! What is collected lies in one archive (tar) in an unnamed file beside the output: the keeper holds it too, and it is
//! forgotten with the execution.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tar::{Archive, EntryType};

use super::Handle;
use crate::container::{ContainerError, Once, WORKSPACE};
use thaw_client::types::{self, ExecutionRequest, FileProblem, NewFile};
use thaw_os::workspace::{self, Entry, Index, MAX_PATH, What, shown};
pub use thaw_os::workspace::{Item, Kind};

/// Most paths that a request may want collected.
const MAX_COLLECT: usize = 64;

/// All of them together, bytes: they go into a note to the keeper, of limited size.
const MAX_COLLECT_BYTES: usize = 4096;

/// Room that headers, long names and gaps may take in an archive, bytes for each entry.
const ARCHIVE_OVERHEAD: u64 = 16 << 10;

/// How much goes in and out; see `[execution]` in the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// What is put into `/workspace`.
    pub put: workspace::Limits,
    /// What is collected.
    pub collect: workspace::Limits,
}

/// What is wrong with what it wants.
#[derive(Debug, thiserror::Error)]
#[error("`{field}` {problem}")]
pub struct WorkError {
    /// Field of the request.
    pub field: &'static str,
    /// What it has to be; names the path.
    pub problem: String,
}

/// What a request wants of `/workspace`.
#[derive(Debug, Default)]
pub struct Work {
    /// Made before the command starts.
    pub put: Arc<[Entry]>,
    /// Collected when it has ended, relative to `/workspace`.
    pub collect: Vec<String>,
}

impl Work {
    /// Whether it wants nothing, and may have a container without it.
    pub fn is_empty(&self) -> bool {
        self.put.is_empty() && self.collect.is_empty()
    }

    /// The directory that a command starts in, unless the request says another.
    pub fn start(&self) -> Option<&'static str> {
        (!self.is_empty()).then_some(WORKSPACE)
    }

    /// Takes it out of a request.
    ///
    /// # Errors
    /// What is wrong with a file or path, by its name.
    pub fn of(request: &mut ExecutionRequest, limits: &Limits) -> Result<Self, WorkError> {
        let mut put = Put::new(limits.put);
        if let Some(archive) = request.archive.take() {
            put.archive(archive.as_bytes())?;
        }
        for (path, file) in std::mem::take(&mut request.files) {
            put.file(&path, file)?;
        }
        Ok(Self { put: put.finish()?, collect: collect(std::mem::take(&mut request.collect))? })
    }
}

fn invalid(field: &'static str, problem: impl Into<String>) -> WorkError {
    WorkError { field, problem: problem.into() }
}

fn collect(wanted: Vec<String>) -> Result<Vec<String>, WorkError> {
    if wanted.len() > MAX_COLLECT || wanted.iter().map(String::len).sum::<usize>() > MAX_COLLECT_BYTES {
        let problem = format!(
            "must be at most {MAX_COLLECT} paths with {MAX_COLLECT_BYTES} bytes together; name a directory for \
             everything in it"
        );
        return Err(invalid("collect", problem));
    }
    let clean = wanted.iter().map(|path| {
        let refused = |problem: &str| invalid("collect", format!("{:?} {problem}", shown(path.as_bytes())));
        if path.chars().any(char::is_control) {
            return Err(refused("has a control character; name the directory that it is in"));
        }
        let clean = workspace::relative(path.as_bytes(), WORKSPACE).map_err(refused)?;
        String::from_utf8(clean).map_err(|_| refused("is not UTF-8"))
    });
    clean.collect()
}

/// What is to be put, by path.
struct Put {
    limits: workspace::Limits,
    entries: BTreeMap<Vec<u8>, What>,
    bytes: u64,
}

impl Put {
    fn new(limits: workspace::Limits) -> Self {
        Self { limits, entries: BTreeMap::new(), bytes: 0 }
    }

    fn file(&mut self, path: &str, file: NewFile) -> Result<(), WorkError> {
        let place = self.place("files", path.as_bytes())?;
        if place.is_empty() {
            return Err(invalid("files", format!("{path:?} is a directory")));
        }
        let mode = file.mode;
        self.add("files", place, What::File(mode, file.content.into_bytes()))
    }

    fn place(&self, field: &'static str, path: &[u8]) -> Result<Vec<u8>, WorkError> {
        workspace::relative(path, WORKSPACE).map_err(|problem| invalid(field, format!("{:?} {problem}", shown(path))))
    }

    fn add(&mut self, field: &'static str, path: Vec<u8>, what: What) -> Result<(), WorkError> {
        if let What::File(_, content) = &what {
            self.bytes += content.len() as u64;
            if self.bytes > self.limits.bytes {
                return Err(self.too_large(field, &path));
            }
        }
        self.entries.insert(path, what);
        if self.entries.len() as u64 > self.limits.entries {
            let most = self.limits.entries;
            return Err(invalid(field, format!("are more than {most} (`execution.files_entries`)")));
        }
        Ok(())
    }

    fn too_large(&self, field: &'static str, path: &[u8]) -> WorkError {
        let most = self.limits.bytes;
        let problem = format!("with {:?} are more than {most} bytes (`execution.files_bytes`)", shown(path));
        invalid(field, problem)
    }

    /// Everything in an archive, plain or compressed with gzip.
    fn archive(&mut self, bytes: &[u8]) -> Result<(), WorkError> {
        // What it may say in all; more is cut off, and then it is no archive any more.
        let most = self.limits.bytes.saturating_add(self.limits.entries.saturating_mul(ARCHIVE_OVERHEAD));
        let plain: Box<dyn Read + '_> = match bytes {
            [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(bytes)),
            _ => Box::new(bytes),
        };
        let mut archive = Archive::new(plain.take(most));
        let unreadable = |error: io::Error| {
            let cause = shown(error.to_string().as_bytes());
            invalid(
                "archive",
                format!("cannot be read; it must be a tar archive, plain or compressed with gzip: {cause}"),
            )
        };
        for entry in archive.entries().map_err(unreadable)? {
            let mut entry = entry.map_err(unreadable)?;
            let path = entry.path_bytes().into_owned();
            let place = self.place("archive", &path)?;
            let what = match entry.header().entry_type() {
                EntryType::Directory => What::Directory(entry.header().mode().map_err(unreadable)?),
                EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                    let size = entry.size();
                    if self.bytes.saturating_add(size) > self.limits.bytes {
                        return Err(self.too_large("archive", &place));
                    }
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).map_err(unreadable)?;
                    if content.len() as u64 != size {
                        return Err(invalid("archive", format!("ends within {:?}", shown(&path))));
                    }
                    What::File(entry.header().mode().map_err(unreadable)?, content)
                }
                EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    let target = self.place("archive", &target)?;
                    match self.entries.get(&target) {
                        Some(What::File(mode, content)) => What::File(*mode, content.clone()),
                        _ => {
                            let problem =
                                format!("has {:?} as a second name of a file that is not before it", shown(&path));
                            return Err(invalid("archive", problem));
                        }
                    }
                }
                EntryType::Symlink => {
                    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
                    if target.is_empty() || target.len() > MAX_PATH || target.contains(&0) {
                        return Err(invalid("archive", format!("has {:?}, a link to nothing", shown(&path))));
                    }
                    What::Link(target)
                }
                EntryType::XGlobalHeader => continue,
                _ => {
                    let problem = format!("has {:?}, which is no file, directory or link", shown(&path));
                    return Err(invalid("archive", problem));
                }
            };
            match (place.is_empty(), &what) {
                // `/workspace` itself stays as it is.
                (true, What::Directory(_)) => {}
                (true, _) => {
                    return Err(invalid("archive", format!("has {:?} in the place of /workspace", shown(&path))));
                }
                (false, _) => self.add("archive", place, what)?,
            }
        }
        Ok(())
    }

    /// All of it, what lies above before what lies in it.
    fn finish(self) -> Result<Arc<[Entry]>, WorkError> {
        for path in self.entries.keys() {
            let above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| &path[..at]);
            if let Some(above) = above
                .into_iter()
                .find(|above| self.entries.get(*above).is_some_and(|what| !matches!(what, What::Directory(_))))
            {
                let problem = format!("has {:?} below {:?}, which is no directory", shown(path), shown(above));
                return Err(invalid("files", problem));
            }
        }
        Ok(self.entries.into_iter().map(|(path, what)| Entry { path, what }).collect())
    }
}

/// What an execution is to give back, and where that lies.
#[derive(Debug)]
pub struct Collection {
    wanted: Vec<String>,
    file: Arc<OwnedFd>,
    index: OnceLock<Index>,
}

impl Collection {
    /// Nothing of `wanted` is there yet.
    pub fn new(wanted: Vec<String>, file: Arc<OwnedFd>) -> Self {
        Self { wanted, file, index: OnceLock::new() }
    }

    /// Paths that are wanted.
    pub fn wanted(&self) -> &[String] {
        &self.wanted
    }

    /// Where they come, for the keeper.
    pub fn file(&self) -> &Arc<OwnedFd> {
        &self.file
    }

    fn own_file(&self) -> io::Result<File> {
        Ok(File::from(self.file.try_clone()?))
    }

    /// What is in the archive, once it is written. Blocks for as long as it takes to read it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn items(&self) -> io::Result<&[Item]> {
        if self.index.get().is_none() {
            let index = Index::read(&self.own_file()?)?;
            let _ = self.index.set(index);
        }
        Ok(self.index.get().map_or(&[], |index| &index.items))
    }

    /// Throws away what was collected. Who still reads it learns that the rest is gone.
    ///
    /// # Errors
    /// The file cannot be cut off.
    pub fn erase(&self) -> io::Result<()> {
        Ok(rustix::fs::ftruncate(&self.file, 0)?)
    }

    /// A path of a client's, as items have it.
    ///
    /// # Errors
    /// Why that is no path below `/workspace`, as a fragment.
    pub fn path(path: &str) -> Result<Vec<u8>, &'static str> {
        workspace::relative(path.as_bytes(), WORKSPACE)
    }

    /// Some of the archive's bytes.
    ///
    /// # Errors
    /// They are not there.
    pub fn read(&self, from: u64, length: usize) -> io::Result<Bytes> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; length];
        self.own_file()?.read_exact_at(&mut bytes, from)?;
        Ok(bytes.into())
    }
}

impl Handle {
    /// What it is to give back, if anything.
    pub fn collection(&self) -> Option<&Collection> {
        self.collection.as_ref()
    }
}

/// Collects what an execution is to give back. Kills what is left in its container.
pub(super) async fn collect_from(
    handle: &Handle,
    container: &Once,
    limits: workspace::Limits,
) -> Option<types::Collected> {
    let collection = handle.collection.as_ref()?;
    let wanted = collection.wanted.iter().map(|path| path.clone().into_bytes()).collect();
    let collected = match collection.own_file() {
        Ok(file) => container.collect(wanted, limits, file).await,
        Err(error) => Err(ContainerError::Control(error)),
    };
    Some(match collected {
        Ok(collected) => {
            let problems = collected.problems.len() as u64 + collected.more_problems;
            tracing::info!(entries = collected.entries, bytes = collected.bytes, problems, "files collected");
            let problem = |one: workspace::Problem| FileProblem { path: one.path, problem: one.problem };
            types::Collected {
                entries: collected.entries,
                bytes: collected.bytes,
                problems: collected.problems.into_iter().map(problem).collect(),
                more_problems: collected.more_problems,
            }
        }
        Err(error) => {
            tracing::error!(%error, "files not collected");
            let problem = FileProblem { path: WORKSPACE.to_owned(), problem: format!("cannot be collected: {error}") };
            types::Collected { problems: vec![problem], ..types::Collected::default() }
        }
    })
}

#[cfg(test)]
mod tests;
