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
use super::pipeline::{Compression, decoder};
use crate::digest::{HashingReader, HashingWriter, hex, is_sha256, sha256};
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

/// Makes the layout `layout` from the archive at `path`; returns the names that the archive has for its image, where
/// it has some that are not in the layout. Of several images, takes the one that is called `wanted`. Both `scratch` and
/// `layout` are new folders.
pub(super) fn arrange(
    path: &Path,
    wanted: Option<&str>,
    scratch: &Path,
    layout: &Path,
    limits: &Limits,
    progress: &dyn Progress,
) -> Result<Vec<String>> {
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
        let saved = one(list, wanted).map_err(|reason| invalid(&reason))?;
        arrange_docker(&saved, &parts, layout, limits).map_err(|reason| invalid(&reason))?;
        return Ok(saved.tags.unwrap_or_default());
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
    Ok(Vec::new())
}

/// The image that is meant, with all its names; fails with a reason.
fn one(list: Vec<Saved>, wanted: Option<&str>) -> std::result::Result<Saved, String> {
    let mut images: Vec<Saved> = Vec::new();
    for saved in list {
        // Some tools write one entry for each name.
        match images.iter_mut().find(|known| known.config == saved.config && known.layers == saved.layers) {
            Some(known) => known.tags.get_or_insert_default().extend(saved.tags.unwrap_or_default()),
            None => images.push(saved),
        }
    }
    let names = |saved: &Saved| match saved.tags.as_deref() {
        None | Some([]) => "one without a name".to_owned(),
        Some(tags) => tags.join(", "),
    };
    let all = images.iter().take(20).map(names).collect::<Vec<_>>().join("; ");
    if let Some(wanted) = wanted {
        images.retain(|saved| saved.tags.iter().flatten().any(|tag| tag == wanted));
        if images.is_empty() {
            return Err(format!("has no image {wanted:?}, only {all}"));
        }
    }
    match images.len() {
        1 => Ok(images.remove(0)),
        0 => Err("has 0 images".to_owned()),
        count => Err(format!("has {count} images ({all}): say with --ref which one, or save one at a time")),
    }
}

/// Writes every file of the archive into `scratch`.
fn take_apart(path: &Path, scratch: &Path, limits: &Limits, progress: &dyn Progress) -> Result<Parts> {
    let file = File::open(path).map_err(at(path))?;
    let mut parts = Parts::default();
    let mut total = 0;
    let archive = decoder(file).map_err(at(path))?;
    let mut archive = HashingReader::new(archive, limits.archive_bytes);
    let result = unpack::each(&mut archive, |item, content| {
        let Some(name) = clean(&item.path) else {
            return Err(UnpackError::entry(&item.path, "its path has a `..` or is no text"));
        };
        if parts.files.len() + parts.links.len() >= MAX_FILES {
            return Err(UnpackError::Limit { what: "files in an image archive", limit: MAX_FILES as u64 });
        }
        match &item.kind {
            ItemKind::Directory => {}
            // Whatever it is called, no image is made of it.
            ItemKind::Special(_) => {}
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

/// A name without `.` and doubled slashes, from the root of the archive on, whether it begins with a slash or not.
fn clean(path: &[u8]) -> Option<String> {
    joined("", path)
}

/// `path` seen from `folder`; `None` if that leads out of the archive.
fn joined(folder: &str, path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let folder = if path.starts_with('/') { "" } else { folder };
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
        let mut name = clean(name.as_bytes())?;
        for _ in 0..MAX_LINKS {
            match self.links.get(&name) {
                Some(target) => name.clone_from(target),
                None => return self.files.get(&name),
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
    #[serde(default, rename = "RepoTags")]
    tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
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
    let names = saved.layers.as_deref().unwrap_or_default();
    if names.len() > limits.layers {
        return Err(format!("has {} layers, and may have {}", names.len(), limits.layers));
    }
    let mut layers = Vec::new();
    for name in names {
        let layer = part(name)?;
        let mut start = Vec::new();
        let read = File::open(&layer.path).and_then(|file| file.take(16).read_to_end(&mut start));
        read.map_err(|error| error.to_string())?;
        let suffix = match Compression::of(&start).map_err(|error| format!("{name:?} {error}"))? {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_the_archive() {
        assert_eq!(clean(b"./a//b/").as_deref(), Some("a/b"));
        assert_eq!(clean(b"../a"), None);
        assert_eq!(clean(b"a/../b"), None);
        assert_eq!(clean(b"/a").as_deref(), Some("a"));
        assert_eq!(clean(b"/../a"), None);
        assert_eq!(joined("one", b"/two/layer.tar").as_deref(), Some("two/layer.tar"));
        assert_eq!(joined("one/two", b"../three/layer.tar").as_deref(), Some("one/three/layer.tar"));
        assert_eq!(joined("one", b"../../etc/passwd"), None);
    }
}
