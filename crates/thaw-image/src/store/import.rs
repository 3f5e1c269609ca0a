//! Images that come as one tar file: an OCI archive, or what `docker save` writes.
//!
//! The file is taken apart into numbered files, whatever the names in it; those that matter are then arranged as an
//! OCI image layout, which is read like any other.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::error::{Result, StoreError, at};
use super::pipeline::decoder;
use crate::digest::{HashingReader, HashingWriter, hex, is_sha256, sha256};
use crate::layout::Compression;
use crate::progress::Progress;
use crate::unpack::{self, ItemKind, Limits, UnpackError};

/// Files in an archive, at most: an image has a few for each layer.
const MAX_FILES: usize = 10_000;
/// Links that lead to links, at most.
const MAX_LINKS: usize = 8;

/// A file of the archive.
struct Part {
    path: PathBuf,
    size: u64,
    digest: String,
}

/// Everything in the archive by its name there.
#[derive(Default)]
struct Parts {
    files: HashMap<String, Part>,
    links: HashMap<String, String>,
}

/// Makes the layout `layout` from the archive at `path`; returns the name that the archive has for its image, where
/// it has one that is not in the layout. Both `scratch` and `layout` are new folders.
pub(super) fn arrange(
    path: &Path,
    scratch: &Path,
    layout: &Path,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Option<String>> {
    for folder in [scratch, layout, &layout.join("blobs"), &layout.join("blobs/sha256")] {
        DirBuilder::new().mode(0o700).create(folder).map_err(at(folder))?;
    }
    let parts = take_apart(path, scratch, limits, progress)?;
    let invalid = |reason: &str| StoreError::Import { path: path.to_owned(), reason: reason.to_owned() };
    // Newer versions of Docker write both; only theirs has the whole name.
    if let Some(list) = parts.get("manifest.json") {
        let list: Vec<Saved> = document(list, limits)
            .and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
            .map_err(|error| invalid(&format!("manifest.json: {error}")))?;
        let [saved] = &list[..] else {
            return Err(invalid(&format!("has {} images: save one at a time", list.len())));
        };
        arrange_docker(saved, &parts, layout, limits).map_err(|reason| invalid(&reason))?;
        return Ok(saved.tags.iter().flatten().next().cloned());
    }
    if parts.get("index.json").is_none() {
        return Err(invalid("is no image: it has neither an index.json (OCI) nor a manifest.json (docker save)"));
    }
    for (name, part) in &parts.files {
        let to = match name.strip_prefix("blobs/sha256/") {
            // Whether the content has this digest is checked when the blob is read.
            Some(digest) if is_sha256(&format!("sha256:{digest}")) => layout.join("blobs/sha256").join(digest),
            None if matches!(name.as_str(), "oci-layout" | "index.json") => layout.join(name),
            _ => continue,
        };
        fs::rename(&part.path, &to).map_err(at(&to))?;
    }
    Ok(None)
}

/// Writes every file of the archive into `scratch`.
fn take_apart(path: &Path, scratch: &Path, limits: &Limits, progress: &dyn Progress) -> Result<Parts> {
    let mut file = File::open(path).map_err(at(path))?;
    let compression = compression(&mut file).map_err(at(path))?;
    let mut parts = Parts::default();
    let mut total = 0;
    let archive = decoder(file, compression).map_err(at(path))?;
    let mut archive = HashingReader::new(archive, limits.archive_bytes);
    let result = unpack::each(&mut archive, |item, content| {
        let Some(name) = clean(&item.path) else {
            return Err(UnpackError::entry(&item.path, "its path is absolute, has a `..` or is no text"));
        };
        if parts.files.len() + parts.links.len() >= MAX_FILES {
            return Err(UnpackError::Limit { what: "files in an image archive", limit: MAX_FILES as u64 });
        }
        match &item.kind {
            ItemKind::Directory => {}
            ItemKind::File { size } => {
                total += size;
                if total > limits.archive_bytes {
                    return Err(UnpackError::Limit { what: "bytes of archives", limit: limits.archive_bytes });
                }
                let to = scratch.join(parts.files.len().to_string());
                let part = write(&to, &mut content.take(*size), progress)
                    .map_err(|error| UnpackError::io(&item.path, error))?;
                if part.size != *size {
                    return Err(UnpackError::entry(&item.path, "the archive ends in the middle of it"));
                }
                if parts.files.insert(name, part).is_some() {
                    return Err(UnpackError::entry(&item.path, "is there twice"));
                }
            }
            ItemKind::Hardlink { target } => {
                parts.links.extend(clean(target).map(|target| (name, target)));
            }
            ItemKind::Symlink { target } => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();
                parts.links.extend(joined(&folder, target).map(|target| (name, target)));
            }
        }
        Ok(())
    });
    match result {
        Ok(()) => Ok(parts),
        Err(_) if archive.over_limit() => {
            Err(UnpackError::Limit { what: "bytes of archives", limit: limits.archive_bytes })
        }
        Err(source) => Err(source),
    }
    .map_err(|source| StoreError::Unpack { layer: path.display().to_string(), source })
}

fn write(to: &Path, content: &mut impl Read, progress: &dyn Progress) -> io::Result<Part> {
    let mut writer = HashingWriter::new(File::create_new(to)?);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match content.read(&mut buffer)? {
            0 => break,
            count => {
                writer.write_all(&buffer[..count])?;
                progress.advanced(count as u64);
            }
        }
    }
    let (_, size, digest) = writer.finish();
    Ok(Part { path: to.to_owned(), size, digest })
}

/// A name without `.` and doubled slashes.
fn clean(path: &[u8]) -> Option<String> {
    if path.starts_with(b"/") { None } else { joined("", path) }
}

/// `path` seen from `folder`; `None` if that leads out of the archive.
fn joined(folder: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    let own = parts.len();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            // Upwards only from a folder, as links do.
            ".." if own > 0 => drop(parts.pop()?),
            ".." => return None,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

impl Parts {
    fn get(&self, name: &str) -> Option<&Part> {
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match self.links.get(name) {
                Some(target) => name = target,
                None => return self.files.get(name),
            }
        }
        None
    }
}

fn document(part: &Part, limits: &Limits) -> io::Result<Vec<u8>> {
    if part.size > limits.document_bytes {
        return Err(io::Error::other(format!("has more than {} bytes", limits.document_bytes)));
    }
    fs::read(&part.path)
}

/// An image in the `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(rename = "RepoTags")]
    tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Writes an OCI manifest for a saved image and moves what it names into place; fails with a reason.
fn arrange_docker(saved: &Saved, parts: &Parts, layout: &Path, limits: &Limits) -> std::result::Result<(), String> {
    let part =
        |name: &String| parts.get(name).ok_or_else(|| format!("manifest.json names {name:?}, which is not there"));
    let config = part(&saved.config)?;
    let stem = saved.config.rsplit('/').next().unwrap_or_default().trim_end_matches(".json");
    if is_sha256(&format!("sha256:{stem}")) && hex(&config.digest) != stem {
        return Err(format!("{:?} has the content of {}: the archive is damaged", saved.config, config.digest));
    }
    if config.size > limits.document_bytes {
        return Err(format!("{:?} has more than {} bytes", saved.config, limits.document_bytes));
    }
    if saved.layers.len() > limits.layers {
        return Err(format!("has {} layers, and may have {}", saved.layers.len(), limits.layers));
    }
    let mut layers = Vec::new();
    for name in &saved.layers {
        let layer = part(name)?;
        let kind = File::open(&layer.path).and_then(|mut file| compression(&mut file)).map_err(|e| e.to_string())?;
        let suffix = match kind {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        layers.push(descriptor(&format!("application/vnd.oci.image.layer.v1.tar{suffix}"), &layer.digest, layer.size));
        place(layer, layout)?;
    }
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config.digest, config.size),
        "layers": layers,
    });
    place(config, layout)?;
    let bytes = manifest.to_string().into_bytes();
    let digest = sha256(&bytes);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor(kind, &digest, bytes.len() as u64)] });
    let write = |name: PathBuf, bytes: &[u8]| fs::write(layout.join(name), bytes).map_err(|error| error.to_string());
    write(Path::new("blobs/sha256").join(hex(&digest)), &bytes)?;
    write("index.json".into(), index.to_string().as_bytes())?;
    write("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#)
}

fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({ "mediaType": kind, "digest": digest, "size": size })
}

/// Moves a part to where a layout has it. A layer that the image has twice is there already.
fn place(part: &Part, layout: &Path) -> std::result::Result<(), String> {
    let to = layout.join("blobs/sha256").join(hex(&part.digest));
    if to.exists() { Ok(()) } else { fs::rename(&part.path, to).map_err(|error| error.to_string()) }
}

/// How a file is compressed, by its first bytes; it is left at its beginning.
fn compression(file: &mut File) -> io::Result<Compression> {
    use std::io::Seek;
    let mut magic = Vec::new();
    (&mut *file).take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(match &magic[..] {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd] => Compression::Zstd,
        _ => Compression::None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_archive() {
        assert_eq!(clean(b"./a//b/").as_deref(), Some("a/b"));
        assert_eq!(clean(b"../a"), None);
        assert_eq!(clean(b"a/../b"), None);
        assert_eq!(clean(b"/a"), None);
        assert_eq!(joined("one/two", b"../three/layer.tar").as_deref(), Some("one/three/layer.tar"));
        assert_eq!(joined("one", b"../../etc/passwd"), None);
    }
}
