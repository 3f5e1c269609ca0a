//! What a test wants to be different: `thawd.toml` and the provider manifests.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};

/// Configuration and manifests of one daemon.
pub struct Setup {
    config: Table,
    providers: BTreeMap<String, Table>,
}

impl Setup {
    /// Directories and names of its own below `scratch`; short waits; every manifest of `tests/support/providers`.
    pub fn new(scratch: &Path, name: &str) -> Self {
        let path = |part: &str| scratch.join(part).to_str().unwrap().to_owned();
        let mut setup = Self { config: Table::new(), providers: BTreeMap::new() }
            .set("api.socket", path("run/thawd.sock"))
            .set("api.socket_group", "thawd-test-has-no-group")
            .set("paths.state_dir", path("state"))
            .set("paths.run_dir", path("run"))
            .set("paths.providers_dir", path("providers"))
            .set("paths.layouts_dir", super::image::layouts().to_str().unwrap())
            .set("cgroup.name", name)
            .set("execution.kill_grace_ms", 300)
            // One user runs everything, and numbers stay as the tests set them, however busy the machine is.
            .set("execution.max_per_user", 1_000)
            .set("pool.scaling", false)
            .set("admission.min_available_bytes", 0)
            .set("admission.max_load_per_cpu", 0.0)
            .set("log.filter", "thawd=debug,info");
        let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/providers");
        for entry in std::fs::read_dir(manifests).unwrap() {
            setup = setup.add_provider(&std::fs::read_to_string(entry.unwrap().path()).unwrap());
        }
        setup
    }

    /// Sets a key of `thawd.toml`, such as `container.max`.
    pub fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        put(&mut self.config, key, value.into());
        self
    }

    /// Sets a key of the manifest of the provider `test`, such as `resources.run.memory_mib`.
    pub fn provider(mut self, key: &str, value: impl Into<Value>) -> Self {
        put(self.providers.get_mut("test").unwrap(), key, value.into());
        self
    }

    /// How many warm containers of the provider `test` there are to be.
    pub fn pool(self, target: i64) -> Self {
        self.provider("pool_target", target)
    }

    /// Forgets the manifests of the tests, for one that brings its own.
    pub fn clear_providers(&mut self) {
        self.providers.clear();
    }

    /// Adds a provider by its manifest.
    pub fn add_provider(mut self, manifest: &str) -> Self {
        let manifest: Table = manifest.parse().unwrap();
        self.providers.insert(manifest["name"].as_str().unwrap().to_owned(), manifest);
        self
    }

    /// Writes everything; returns the configuration file.
    pub fn write(&self, scratch: &Path) -> std::path::PathBuf {
        let providers = scratch.join("providers");
        std::fs::create_dir_all(&providers).unwrap();
        for (name, manifest) in &self.providers {
            std::fs::write(providers.join(format!("{name}.toml")), manifest.to_string()).unwrap();
        }
        let file = scratch.join("thawd.toml");
        std::fs::write(&file, self.config.to_string()).unwrap();
        file
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(table.insert(key.to_owned(), value)),
        Some((section, rest)) => {
            let inner = table.entry(section).or_insert_with(|| Table::new().into());
            put(inner.as_table_mut().unwrap(), rest, value);
        }
    }
}
