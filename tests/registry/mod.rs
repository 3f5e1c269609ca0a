//! What the tests of registries share: Debian's registry on loopback, and one that does whatever a test says.

mod fake;
mod real;

use std::path::Path;

use base64::Engine as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use fake::{Fake, Reply, Request};
pub use real::{PASSWORD, Registry, docker_config};

/// `sha256:…` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// Value of an `Authorization` header.
pub fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

/// A small image with one layer: its blobs, and the manifest on top.
pub struct SmallImage {
    pub layer: Vec<u8>,
    pub config: Vec<u8>,
    pub manifest: Vec<u8>,
}

impl SmallImage {
    /// With a layer that holds one file of `bytes` bytes that cannot be compressed, in gzip as most registries have it.
    pub fn new(bytes: usize) -> Self {
        let mut content = Vec::with_capacity(bytes + 32);
        while content.len() < bytes {
            let next = Sha256::digest(content.len().to_le_bytes());
            content.extend_from_slice(&next);
        }
        content.truncate(bytes);
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        archive.append_data(&mut header, "data", content.as_slice()).unwrap();
        let archive = archive.into_inner().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, &archive).unwrap();
        let layer = gzip.finish().unwrap();
        let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["FROM=registry"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(&archive)]}})
        .to_string()
        .into_bytes();
        let mut image = SmallImage { layer, config, manifest: Vec::new() };
        image.manifest = image.manifest_value().to_string().into_bytes();
        image
    }

    /// The manifest, to be changed.
    pub fn manifest_value(&self) -> Value {
        json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&self.config),
                "size": self.config.len()},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest(&self.layer),
                "size": self.layer.len()}]})
    }

    /// Answers as a registry that has this image under every name; `None` for requests that it does not know.
    pub fn answer(&self, request: &Request) -> Option<Reply> {
        if request.path == "/v2/" {
            return Some(Reply::new(200, "{}"));
        }
        if request.path.contains("/manifests/") {
            return Some(Reply::new(200, self.manifest.clone()).header("content-type", OCI_MANIFEST));
        }
        let blob = [&self.layer, &self.config].into_iter().find(|blob| request.path.ends_with(&digest(blob)))?;
        Some(Reply::new(200, blob.clone()))
    }
}

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Names of everything in a folder, hidden files too; empty when there is no folder.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).map(|entries| entries.map(Result::unwrap).collect::<Vec<_>>());
    let mut names: Vec<String> =
        entries.unwrap_or_default().iter().map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
