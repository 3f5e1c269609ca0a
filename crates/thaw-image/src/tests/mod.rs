//! The store against layouts of our own making, good and bad.

mod archives;
mod claims;
mod documents;
mod hostile;
mod import;
mod layers;
mod names;
mod store;
mod tools;
mod umoci;
mod verify;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tar::{EntryType, Header};

use super::digest::{hex, sha256};
use super::*;

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";
const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// What a store without an image has.
const EMPTY_STORE: [&str; 7] = ["empty", "images", "layers", "lock", "names", "tmp", "version"];

/// One entry of a crafted archive; nothing about it is checked.
struct Entry {
    kind: EntryType,
    path: Vec<u8>,
    link: Vec<u8>,
    mode: u32,
    owner: u64,
    content: Vec<u8>,
}

fn entry(kind: EntryType, path: &str) -> Entry {
    let mode = if kind == EntryType::Directory { 0o755 } else { 0o644 };
    Entry { kind, path: path.into(), link: Vec::new(), mode, owner: 0, content: Vec::new() }
}

fn directory(path: &str) -> Entry {
    entry(EntryType::Directory, path)
}

fn file(path: &str, content: &str) -> Entry {
    Entry { content: content.into(), ..entry(EntryType::Regular, path) }
}

fn symlink(path: &str, target: &str) -> Entry {
    Entry { link: target.into(), ..entry(EntryType::Symlink, path) }
}

fn hardlink(path: &str, target: &str) -> Entry {
    Entry { link: target.into(), ..entry(EntryType::Link, path) }
}

impl Entry {
    fn mode(self, mode: u32) -> Self {
        Entry { mode, ..self }
    }

    fn header(&self) -> Header {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..self.path.len()].copy_from_slice(&self.path);
        header.as_old_mut().linkname[..self.link.len()].copy_from_slice(&self.link);
        header.set_entry_type(self.kind);
        header.set_mode(self.mode);
        header.set_uid(self.owner);
        header.set_gid(self.owner);
        header.set_mtime(1_000_000_000);
        header.set_size(self.content.len() as u64);
        header.set_cksum();
        header
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header().as_bytes().to_vec();
        bytes.extend_from_slice(&self.content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

fn tar(entries: impl IntoIterator<Item = Entry>) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.into_iter().flat_map(|entry| entry.bytes()).collect();
    bytes.extend_from_slice(&[0; 1024]);
    bytes
}

/// Records of a PAX header.
fn pax(records: &[(&str, &str)]) -> Entry {
    let mut text = String::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while format!("{length}{rest}").len() != length {
            length = format!("{length}{rest}").len();
        }
        text += &format!("{length}{rest}");
    }
    Entry { content: text.into(), ..entry(EntryType::XHeader, "pax") }
}

/// A layout and a store in a folder of its own, with a neighbour that must stay as it is.
struct Bench {
    folder: tempfile::TempDir,
    limits: Limits,
}

impl Bench {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("neighbour")).unwrap();
        fs::write(folder.path().join("neighbour/file"), "mine").unwrap();
        Bench { folder, limits }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn store(&self) -> Store {
        Store::with_limits(&self.path("store"), self.limits.clone()).unwrap()
    }

    fn blob(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        fs::create_dir_all(self.path("layout/blobs/sha256")).unwrap();
        fs::write(self.path("layout/blobs/sha256").join(hex(&digest)), bytes).unwrap();
        digest
    }

    fn descriptor(&self, kind: &str, bytes: &[u8]) -> Value {
        json!({"mediaType": kind, "digest": self.blob(bytes), "size": bytes.len()})
    }

    /// Writes a layout of these archives; `change` may spoil the documents (manifest, index) before.
    fn layout_with(&self, layers: &[(&str, Vec<u8>)], change: impl FnOnce(&mut Value, &mut Value)) {
        let _ = fs::remove_dir_all(self.path("layout"));
        let diff_ids: Vec<String> = layers.iter().map(|(_, archive)| sha256(archive)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Env": ["PATH=/bin", "EMPTY="], "User": "1000", "WorkingDir": "/w", "Cmd": ["c"], "Entrypoint": ["e"]},
        });
        let layers: Vec<Value> =
            layers.iter().map(|(kind, archive)| self.descriptor(kind, &compress(kind, archive))).collect();
        let config = self.descriptor("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let mut manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let mut index = json!({"schemaVersion": 2});
        change(&mut manifest, &mut index);
        let mut manifest =
            self.descriptor("application/vnd.oci.image.manifest.v1+json", manifest.to_string().as_bytes());
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "crafted"});
        if index["manifests"].is_null() {
            index["manifests"] = json!([manifest]);
        }
        fs::write(self.path("layout/index.json"), index.to_string()).unwrap();
        fs::write(self.path("layout/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }

    /// Gives the image of the layout another name.
    fn rename(&self, name: &str) {
        let path = self.path("layout/index.json");
        let mut index: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"] = json!(name);
        fs::write(path, index.to_string()).unwrap();
    }

    fn ensure(&self) -> Result<Image, StoreError> {
        self.store().ensure(&self.path("layout")).map(|held| Image::clone(&held))
    }

    /// The image of these archives.
    fn unpack(&self, layers: &[Vec<u8>]) -> Result<Image, StoreError> {
        self.layout_with(&layers.iter().map(|archive| (TAR, archive.clone())).collect::<Vec<_>>(), |_, _| {});
        self.ensure()
    }

    /// Asserts that the image is refused with a text that has `reason`, and that nothing was left anywhere.
    #[track_caller]
    fn refuses(&self, layers: &[Vec<u8>], reason: &str) {
        self.layout_with(&layers.iter().map(|archive| (TAR, archive.clone())).collect::<Vec<_>>(), |_, _| {});
        self.refuses_layout(reason);
    }

    #[track_caller]
    fn refuses_layout(&self, reason: &str) {
        let error = self.ensure().unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        self.assert_untouched();
    }

    /// Like [`Bench::refuses`], for a store that has images already.
    #[track_caller]
    fn refuses_only(&self, layers: &[Vec<u8>], reason: &str) {
        let before = files_in(&self.path("store"));
        let error = self.unpack(layers).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} does not say {reason:?}");
        assert_eq!(files_in(&self.path("store")), before, "left in the store");
    }

    /// A layout of one layer that is given as it lies there; its archive is not looked at.
    fn layout_of_blob(&self, kind: &str, blob: &[u8]) {
        let layer = self.descriptor(kind, blob);
        self.layout_with(&[(TAR, Vec::new())], |manifest, _| manifest["layers"] = json!([layer]));
        self.blob(blob);
    }

    /// Makes the configuration of a layout of [`Bench::layout_of_blob`] say what the archive of its layer is.
    fn with_diff_id(&self, diff_id: &str) {
        let read = |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |value: &Value| self.path("layout/blobs/sha256").join(hex(value["digest"].as_str().unwrap()));
        let mut index = read(&self.path("layout/index.json"));
        let mut manifest = read(&blob(&index["manifests"][0]));
        let mut config = read(&blob(&manifest["config"]));
        config["rootfs"]["diff_ids"] = json!([diff_id]);
        let rewrite = |descriptor: &mut Value, document: &Value| {
            let bytes = document.to_string();
            descriptor["digest"] = json!(self.blob(bytes.as_bytes()));
            descriptor["size"] = json!(bytes.len());
        };
        rewrite(&mut manifest["config"], &config);
        rewrite(&mut index["manifests"][0], &manifest);
        fs::write(self.path("layout/index.json"), index.to_string()).unwrap();
    }

    #[track_caller]
    fn assert_untouched(&self) {
        assert_eq!(files_in(&self.path("store")), EMPTY_STORE, "left in the store");
        assert_eq!(files_in(&self.path("neighbour")), ["file"]);
        assert_eq!(fs::read_to_string(self.path("neighbour/file")).unwrap(), "mine");
    }
}

fn compress(kind: &str, archive: &[u8]) -> Vec<u8> {
    match kind {
        GZIP => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(archive).unwrap();
            gzip.finish().unwrap()
        }
        ZSTD => zstd::encode_all(archive, 3).unwrap(),
        _ => archive.to_vec(),
    }
}

/// What the layers of an image brought, sorted: all paths but those that every root file system is given.
fn brought(rootfs: &Path) -> Vec<String> {
    let given = |path: &String| {
        let found = fs::symlink_metadata(rootfs.join(path)).unwrap();
        match path.as_str() {
            // The last is the directory that commands of the bench's images start in.
            "dev" | "etc" | "proc" | "run" | "sys" | "tmp" | "workspace" | "w" => {
                std::os::unix::fs::MetadataExt::mtime(&found) == 0
            }
            "etc/hosts" | "etc/hostname" | "etc/resolv.conf" => {
                found.is_file() && std::os::unix::fs::MetadataExt::nlink(&found) == 1
            }
            _ => false,
        }
    };
    files_in(rootfs).into_iter().filter(|path| !given(path)).collect()
}

/// Every path below a folder, sorted; links are not followed.
fn files_in(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            }
            found.push(name);
        }
    }
    let mut found = Vec::new();
    walk(folder, "", &mut found);
    found.sort();
    found
}
