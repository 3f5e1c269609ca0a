//! Reads an OCI image layout without trusting it: each document must have the size and digest that the document above
//! it names, and must have one meaning only.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::digest::{hex, is_sha256, sha256};
use super::document::{self, Configuration, Descriptor, Index, Manifest, MediaKind, Names, REF_NAME};
use super::unpack::Limits;

/// Most levels of nested indexes.
const MAX_NESTED: usize = 4;
/// Most documents that are read to find the image of an index.
const MAX_CANDIDATES: usize = 256;

/// Why a layout was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A file is missing or cannot be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
    /// The content of a file is invalid.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The content of a blob does not match its digest.
    #[error("blob {expected} has the content of {found}: the layout is damaged, get or build it again")]
    Digest {
        /// Digest in the manifest.
        expected: String,
        /// Digest of the content.
        found: String,
    },
}

/// A layer to apply.
pub(super) struct LayerBlob {
    pub(super) digest: String,
    pub(super) size: u64,
    /// Expected digest of the uncompressed archive.
    pub(super) diff_id: String,
}

/// A layout with one image for this machine.
pub(super) struct Layout {
    folder: PathBuf,
    /// Names of the image in the index; an image can have several.
    names: Vec<Names>,
    pub(super) manifest_digest: String,
    manifest: Value,
    /// Whether the index names this machine's platform for the image.
    index_said: bool,
    max_document: u64,
}

/// The image of a layout. Its documents are checked, its layers are not yet.
pub(super) struct LayoutImage {
    pub(super) config: Configuration,
    pub(super) layers: Vec<LayerBlob>,
    /// Note about something unusual in the documents that was accepted.
    pub(super) note: Option<String>,
}

/// A manifest in an index that may be the wanted one.
struct Candidate {
    descriptor: Descriptor,
    names: Vec<Names>,
    index_said: bool,
}

impl Layout {
    /// Reads the index and the manifest of the one image for this machine.
    pub(super) fn open(folder: &Path, limits: &Limits) -> Result<Self, LayoutError> {
        Self::choose(folder, None, limits)
    }

    /// Like [`Layout::open`]; of several images, takes the one named `wanted`.
    pub(super) fn choose(folder: &Path, wanted: Option<&str>, limits: &Limits) -> Result<Self, LayoutError> {
        let invalid = |file: &str, reason: String| LayoutError::Invalid { path: folder.join(file), reason };
        let max_document = limits.document_bytes;
        let marker: Value = parse(&read(&folder.join("oci-layout"), None, max_document)?, &folder.join("oci-layout"))?;
        if marker["imageLayoutVersion"] != "1.0.0" {
            return Err(invalid("oci-layout", "is not version 1.0.0 of an OCI image layout".to_owned()));
        }
        let path = folder.join("index.json");
        let index: Value = parse(&read(&path, None, max_document)?, &path)?;
        let mut layout = Layout {
            folder: folder.to_owned(),
            names: Vec::new(),
            manifest_digest: String::new(),
            manifest: Value::Null,
            index_said: false,
            max_document,
        };
        let mut search = Search { layout: &layout, found: Vec::new(), others: Vec::new(), read: 0 };
        search.index(index, "index.json", None, 0)?;
        let chosen = search.one(wanted, limits)?;
        layout.names = chosen.names;
        layout.index_said = chosen.index_said;
        layout.manifest_digest = chosen.descriptor.digest;
        layout.manifest = layout.document(&layout.manifest_digest, chosen.descriptor.size)?;
        Ok(layout)
    }

    /// Name of the image in the layout.
    pub(super) fn name(&self) -> Result<&str, LayoutError> {
        self.names.iter().find_map(Names::first).ok_or_else(|| self.nameless(format!("no name ({REF_NAME})")))
    }

    /// Like [`Layout::name`], for a layout from elsewhere. A possible tag alone does not count as a name. `true` is
    /// returned with a name that lacks repository or tag, which two different images can have.
    pub(super) fn foreign_name(&self) -> Result<(&str, bool), LayoutError> {
        if let Some(whole) = self.names.iter().find_map(|names| names.whole.as_deref()) {
            return Ok((whole, false));
        }
        let name = self.name()?;
        if name.contains(['/', ':']) {
            return Ok((name, false));
        }
        let digits = name.strip_prefix('v').unwrap_or(name);
        if name == "latest" || digits.starts_with(|first: char| first.is_ascii_digit()) {
            return Err(self.nameless(format!("only the tag {name:?}")));
        }
        Ok((name, true))
    }

    fn nameless(&self, what: String) -> LayoutError {
        let reason = format!("gives the image {what}: give a name with --name");
        LayoutError::Invalid { path: self.folder.join("index.json"), reason }
    }

    /// Other names of the image in the layout.
    pub(super) fn other_names(&self, name: &str) -> Vec<&str> {
        self.names.iter().filter_map(Names::first).filter(|other| *other != name).collect()
    }

    /// Reads the rest of the documents.
    pub(super) fn image(&self, limits: &Limits) -> Result<LayoutImage, LayoutError> {
        self.read_image(&self.manifest, &self.manifest_digest, self.index_said, limits)
    }

    fn read_image(
        &self,
        manifest: &Value,
        digest: &str,
        index_said: bool,
        limits: &Limits,
    ) -> Result<LayoutImage, LayoutError> {
        let path = self.blob_path(digest);
        let invalid = |reason: String| LayoutError::Invalid { path: path.clone(), reason };
        if manifest.get("manifests").is_some() {
            return Err(invalid("is a manifest and an index at once".to_owned()));
        }
        let manifest: Manifest = document::from(manifest.clone()).map_err(invalid)?;
        manifest.check().map_err(invalid)?;
        let config = self.document(&manifest.config.digest, manifest.config.size)?;
        let config: Configuration = document::from(config).map_err(|reason| LayoutError::Invalid {
            path: self.blob_path(&manifest.config.digest),
            reason: format!("is no configuration of an image: {reason}"),
        })?;
        let note = config.check_platform(architecture(), index_said).map_err(invalid)?;
        let diff_ids = config.diff_ids();
        if diff_ids.len() != manifest.layers.len() || diff_ids.len() > limits.layers {
            return Err(invalid(format!(
                "has {} layers and {} diff ids (they must agree, and be at most {})",
                manifest.layers.len(),
                diff_ids.len(),
                limits.layers
            )));
        }
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers.into_iter().zip(diff_ids) {
            if !is_sha256(diff_id) {
                return Err(invalid("has a diff id that is not sha256".to_owned()));
            }
            self.checked_path(&layer.digest)?;
            layers.push(LayerBlob { digest: layer.digest, size: layer.size, diff_id: diff_id.clone() });
        }
        Ok(LayoutImage { config, layers, note })
    }

    /// Opens a blob of the given size; its content is not checked yet.
    pub(super) fn open_blob(&self, digest: &str, size: u64) -> Result<File, LayoutError> {
        open(&self.checked_path(digest)?, Some(size))
    }

    fn document(&self, digest: &str, size: u64) -> Result<Value, LayoutError> {
        let path = self.checked_path(digest)?;
        let bytes = read(&path, Some(size), self.max_document)?;
        let found = sha256(&bytes);
        if found != digest {
            return Err(LayoutError::Digest { expected: digest.to_owned(), found });
        }
        parse(&bytes, &path)
    }

    fn is_image(&self, candidate: &Candidate, limits: &Limits) -> bool {
        let Descriptor { digest, size, .. } = &candidate.descriptor;
        let manifest = self.document(digest, *size);
        manifest.is_ok_and(|manifest| self.read_image(&manifest, digest, candidate.index_said, limits).is_ok())
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.folder.join("blobs/sha256").join(hex(digest))
    }

    fn checked_path(&self, digest: &str) -> Result<PathBuf, LayoutError> {
        if !is_sha256(digest) {
            let reason = format!("names a blob by {digest:?}, which is no lower-case sha256 digest");
            return Err(LayoutError::Invalid { path: self.folder.clone(), reason });
        }
        Ok(self.blob_path(digest))
    }
}

/// Search in an index for images for this machine.
struct Search<'a> {
    layout: &'a Layout,
    found: Vec<Candidate>,
    /// Other entries, for an error message.
    others: Vec<String>,
    read: usize,
}

impl Search<'_> {
    /// Searches an index and those nested in it. `above` is the entry of the outer index for this one.
    fn index(&mut self, index: Value, name: &str, above: Option<&Candidate>, depth: usize) -> Result<(), LayoutError> {
        let invalid = |reason: String| LayoutError::Invalid { path: name.into(), reason };
        if index.get("layers").is_some() || index.get("config").is_some() {
            return Err(invalid("is an index and a manifest at once".to_owned()));
        }
        let index: Index = document::from(index).map_err(invalid)?;
        for descriptor in index.manifests {
            if let Some(platform) = descriptor.platform().filter(|platform| *platform != this_platform()) {
                self.others.push(platform);
                continue;
            }
            if descriptor.is_artifact() {
                self.others.push("an artifact".to_owned());
                continue;
            }
            self.read += 1;
            if self.read > MAX_CANDIDATES {
                return Err(invalid(format!("names more than {MAX_CANDIDATES} documents for this machine")));
            }
            // The name in the outer index counts.
            let outer = above.map(|above| above.names.clone()).filter(|names| !names.is_empty());
            let names = outer.unwrap_or_else(|| {
                let own = descriptor.names();
                if own == Names::default() { Vec::new() } else { vec![own] }
            });
            let index_said = descriptor.platform().is_some() || above.is_some_and(|above| above.index_said);
            match document::media_kind(&descriptor.media_type) {
                MediaKind::Index if depth >= MAX_NESTED => {
                    return Err(invalid(format!("has more than {MAX_NESTED} indexes within each other")));
                }
                MediaKind::Index => {
                    let inner = self.layout.document(&descriptor.digest, descriptor.size)?;
                    let digest = descriptor.digest.clone();
                    self.index(inner, &digest, Some(&Candidate { descriptor, names, index_said }), depth + 1)?;
                }
                MediaKind::Manifest => {
                    match self.found.iter_mut().find(|known| known.descriptor.digest == descriptor.digest) {
                        Some(known) => {
                            known.index_said |= index_said;
                            known.names.extend(
                                names.into_iter().filter(|name| !known.names.contains(name)).collect::<Vec<_>>(),
                            );
                        }
                        None => self.found.push(Candidate { descriptor, names, index_said }),
                    }
                }
                MediaKind::Other => self.others.push(format!("a {}, not an image manifest", descriptor.media_type)),
            }
        }
        Ok(())
    }

    /// The one image that fits.
    fn one(mut self, wanted: Option<&str>, limits: &Limits) -> Result<Candidate, LayoutError> {
        if let Some(wanted) = wanted {
            let is_wanted = |found: &Candidate| {
                found.descriptor.digest == wanted || found.names.iter().any(|names| names.has(wanted))
            };
            let (fitting, others): (Vec<_>, Vec<_>) = self.found.into_iter().partition(is_wanted);
            (self.found, self.others) = (fitting, others.iter().map(called).collect());
        } else if self.found.len() > 1 {
            // Entries beside an image that do not declare what they are: signatures, bills of materials.
            let (layout, others) = (self.layout, &mut self.others);
            self.found.retain(|found| {
                let is_image = layout.is_image(found, limits);
                if !is_image {
                    others.push("an artifact".to_owned());
                }
                is_image
            });
        }
        let same_names = self.found.iter().all(|found| found.names == self.found[0].names);
        let variants = self.found.iter().map(|found| found.descriptor.variant());
        let variants: std::collections::BTreeSet<&str> = variants.collect();
        if same_names && variants.len() == self.found.len() {
            self.found.sort_by(|a, b| a.descriptor.variant().cmp(b.descriptor.variant()));
            self.found.truncate(1);
        }
        let invalid = |reason: String| LayoutError::Invalid { path: self.layout.folder.join("index.json"), reason };
        let listed = |all: Vec<String>| if all.is_empty() { "nothing".to_owned() } else { all.join(", ") };
        match self.found.len() {
            1 => Ok(self.found.remove(0)),
            0 => {
                self.others.truncate(20);
                let what =
                    wanted.map_or_else(|| format!("image for {}", this_platform()), |name| format!("image {name:?}"));
                Err(invalid(format!("has no {what}, only {}", listed(self.others))))
            }
            count => Err(invalid(format!(
                "has {count} images for {}: {}; say with --ref which one",
                this_platform(),
                listed(self.found.iter().take(20).map(called).collect())
            ))),
        }
    }
}

/// Name of a candidate for a message.
fn called(found: &Candidate) -> String {
    found.names.iter().find_map(Names::first).map_or_else(|| found.descriptor.digest.clone(), str::to_owned)
}

/// This machine's platform in OCI's form.
pub(super) fn this_platform() -> String {
    format!("linux/{}", architecture())
}

/// This machine's architecture in OCI's (and Go's) form.
pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Opens a regular file; refuses a link or a pipe in its place.
fn open(path: &Path, size: Option<u64>) -> Result<File, LayoutError> {
    let fail = |source| LayoutError::Io { path: path.to_owned(), source };
    let file =
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).map_err(fail)?;
    let found = file.metadata().map_err(fail)?;
    let invalid = |reason: String| LayoutError::Invalid { path: path.to_owned(), reason };
    if !found.is_file() {
        return Err(invalid("is not a file".to_owned()));
    }
    match size {
        Some(size) if found.len() != size => {
            Err(invalid(format!("has {} bytes, but must have {size}: the layout is damaged", found.len())))
        }
        _ => Ok(file),
    }
}

fn read(path: &Path, size: Option<u64>, limit: u64) -> Result<Vec<u8>, LayoutError> {
    let mut bytes = Vec::new();
    open(path, size)?
        .take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| LayoutError::Io { path: path.to_owned(), source })?;
    if bytes.len() as u64 > limit {
        return Err(LayoutError::Invalid { path: path.to_owned(), reason: format!("has more than {limit} bytes") });
    }
    Ok(bytes)
}

fn parse(bytes: &[u8], path: &Path) -> Result<Value, LayoutError> {
    serde_json::from_slice(bytes).map_err(|e| LayoutError::Invalid { path: path.to_owned(), reason: e.to_string() })
}

/// Digest of the image in the layout `folder`, if there is one that can be read.
pub fn digest_in(folder: &Path) -> Option<String> {
    let layout = Layout::open(folder, &Limits::default()).ok()?;
    Some(layout.manifest_digest)
}
