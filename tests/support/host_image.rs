//! Images of this machine's own programs, with the libraries that they need and little else.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use sha2::{Digest as _, Sha256};
use thaw_image::Store;
use thaw_image::progress::Quiet;

/// What goes into an image.
#[derive(Debug, Default)]
pub struct HostImage {
    /// Files and folders of this machine, to the same place.
    files: BTreeSet<PathBuf>,
    /// Files of the test's own.
    written: Vec<(String, Vec<u8>)>,
    /// Variables.
    env: Vec<String>,
}

/// A path without `..`; links in it stay, since libraries are known by them.
fn plain(path: &str) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in Path::new(path).components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

impl HostImage {
    /// A program of this machine, by its path, and its libraries.
    pub fn program(mut self, path: &str) -> Self {
        let output = Command::new("ldd").arg(path).output().unwrap();
        for word in String::from_utf8_lossy(&output.stdout).split_whitespace().filter(|word| word.starts_with('/')) {
            self.files.insert(plain(word));
        }
        self.files.insert(path.into());
        self
    }

    /// The files of a folder of this machine, not those below it.
    pub fn folder(mut self, path: &str) -> Self {
        let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
        self.files.extend(entries.filter(|path| path.is_file()));
        self
    }

    /// A file with this content, executable.
    pub fn file(mut self, path: &str, content: &[u8]) -> Self {
        self.written.push((path.to_owned(), content.to_owned()));
        self
    }

    /// A variable of the image's.
    pub fn env(mut self, pair: &str) -> Self {
        self.env.push(pair.to_owned());
        self
    }

    /// Brings it into a store, as the archive that `docker save` would write.
    pub fn import(self, store: &Store, scratch: &Path, name: &str) {
        let mut layer = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_uid(0);
        header.set_gid(0);
        header.set_mode(0o755);
        header.set_entry_type(tar::EntryType::Directory);
        header.set_size(0);
        for folder in ["dev", "etc", "proc", "sys", "tmp"] {
            layer.append_data(&mut header, folder, std::io::empty()).unwrap();
        }
        header.set_entry_type(tar::EntryType::Regular);
        let host = self.files.iter().map(|path| (path.to_str().unwrap().to_owned(), fs::read(path).unwrap()));
        for (path, content) in host.chain(self.written) {
            header.set_size(content.len() as u64);
            layer.append_data(&mut header, path.trim_start_matches('/'), content.as_slice()).unwrap();
        }
        let layer = layer.into_inner().unwrap();
        let hex: String = Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
        let config = serde_json::json!({"architecture": "amd64", "os": "linux", "config": {"Env": self.env},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{hex}")]}});
        let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
        let archive = scratch.join("host-image.tar");
        let mut outer = tar::Builder::new(fs::File::create(&archive).unwrap());
        for (name, content) in [
            ("layer.tar", layer),
            ("config.json", config.to_string().into_bytes()),
            ("manifest.json", manifest.to_string().into_bytes()),
        ] {
            header.set_size(content.len() as u64);
            outer.append_data(&mut header, name, content.as_slice()).unwrap();
        }
        outer.finish().unwrap();
        store.import(&archive, Some(name), &Quiet).unwrap();
        fs::remove_file(archive).unwrap();
    }
}
