//! Index, manifest and configuration as tools write them in practice: with nulls and unknown fields everywhere. Only
//! the fields that are needed must be present. Of two keys with one name the last counts, as in Go.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Name of an image in an index: a tag by the specification, often a whole name in practice.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Whole name of an image, as containerd and buildkit write it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// Annotation of buildkit on documents about an image, which stand beside the image in the index.
const ABOUT_ANOTHER: &str = "vnd.docker.reference.type";

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Layer types. The first bytes of a layer decide how it is compressed: many layers in registries have a wrong type.
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
/// Architectures that a configuration can name (Go's names).
const ARCHITECTURES: [&str; 15] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x", "sparc64", "wasm",
];
const SYSTEMS: [&str; 9] =
    ["aix", "android", "darwin", "dragonfly", "freebsd", "linux", "netbsd", "solaris", "windows"];

/// Kind of document that a media type stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MediaKind {
    Index,
    Manifest,
    Other,
}

pub(super) fn media_kind(media_type: &str) -> MediaKind {
    match media_type {
        kind if INDEXES.contains(&kind) => MediaKind::Index,
        kind if MANIFESTS.contains(&kind) => MediaKind::Manifest,
        _ => MediaKind::Other,
    }
}

/// Reads `null` as absent.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Reads a list of texts, or a single text, as Docker does.
fn texts<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Texts {
        None(()),
        One(String),
        Many(Vec<Option<String>>),
    }
    match Texts::deserialize(from).map_err(|_| D::Error::custom("must be a list of texts"))? {
        Texts::None(()) => Ok(Vec::new()),
        Texts::One(text) => Ok(vec![text]),
        Texts::Many(list) => Ok(list.into_iter().map(Option::unwrap_or_default).collect()),
    }
}

/// Reads a text, or a number in place of one.
fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    match Value::deserialize(from)? {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        Value::Number(number) if number.is_u64() => Ok(number.to_string()),
        _ => Err(D::Error::custom("must be a text")),
    }
}

/// Reads a number of bytes, also in quotes.
fn count<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    let value = Value::deserialize(from)?;
    let number = value.as_u64().or_else(|| value.as_str().and_then(|text| text.parse().ok()));
    number.ok_or_else(|| D::Error::custom(format!("{value} is no number of bytes")))
}

/// A reference to a blob.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) media_type: String,
    pub(super) digest: String,
    #[serde(deserialize_with = "count")]
    pub(super) size: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) urls: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, Value>,
    #[serde(default, deserialize_with = "or_default")]
    platform: Platform,
    #[serde(default, deserialize_with = "or_default")]
    artifact_type: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct Platform {
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    variant: String,
}

impl Descriptor {
    /// Names of the image in the index, the whole one first.
    pub(super) fn names(&self) -> Names {
        let text = |key: &str| self.annotations.get(key).and_then(Value::as_str).map(str::to_owned);
        Names { whole: text(CONTAINERD_NAME), tag: text(REF_NAME) }
    }

    /// Platform in the index, as `os/architecture`.
    pub(super) fn platform(&self) -> Option<String> {
        let Platform { os, architecture, .. } = &self.platform;
        (!os.is_empty() || !architecture.is_empty()).then(|| format!("{os}/{architecture}"))
    }

    /// Variant of the architecture. Of several for one machine, the lowest needs the fewest features: v1 of amd64, v8
    /// of arm64.
    pub(super) fn variant(&self) -> &str {
        &self.platform.variant
    }

    /// Whether the document describes an image, or is something other than an image.
    pub(super) fn is_artifact(&self) -> bool {
        let config = self.artifact_type.as_str();
        self.annotations.contains_key(ABOUT_ANOTHER) || !(config.is_empty() || CONFIGS.contains(&config))
    }
}

/// Names of an image in an index.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Name with registry or repository.
    pub(super) whole: Option<String>,
    /// Name that may be a tag alone.
    pub(super) tag: Option<String>,
}

impl Names {
    pub(super) fn first(&self) -> Option<&str> {
        self.whole.as_deref().or(self.tag.as_deref())
    }

    pub(super) fn has(&self, name: &str) -> bool {
        [&self.whole, &self.tag].into_iter().any(|known| known.as_deref() == Some(name))
    }
}

/// An index: images for several platforms, or under several names.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) manifests: Vec<Descriptor>,
}

/// A manifest of an image.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) layers: Vec<Descriptor>,
}

impl Manifest {
    /// Checks that the manifest is of an image whose layers can be unpacked.
    pub(super) fn check(&self) -> Result<(), String> {
        let kind = self.config.media_type.as_str();
        if !kind.is_empty() && !CONFIGS.contains(&kind) {
            return Err(format!("is no image: its configuration is a {kind}"));
        }
        for layer in &self.layers {
            if !layer.urls.is_empty() {
                return Err("has a layer that is to be fetched from elsewhere".to_owned());
            }
            let kind = layer.media_type.as_str();
            if !kind.is_empty() && !LAYERS.contains(&kind) {
                return Err(format!("has a layer of the unsupported type {kind}"));
            }
        }
        Ok(())
    }
}

/// The configuration of an image.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Configuration {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) os: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) config: RunConfiguration,
    #[serde(default, deserialize_with = "or_default")]
    rootfs: RootFs,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<String>,
}

/// How the image is to be run.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct RunConfiguration {
    #[serde(default, deserialize_with = "text")]
    pub(super) user: String,
    #[serde(default, deserialize_with = "texts")]
    pub(super) env: Vec<String>,
    #[serde(default, deserialize_with = "texts")]
    pub(super) entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "texts")]
    pub(super) cmd: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) working_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, Value>,
}

impl RunConfiguration {
    /// Labels whose values are texts.
    pub(super) fn labels(&self) -> BTreeMap<String, String> {
        let text = |(name, value): (&String, &Value)| Some((name.clone(), value.as_str()?.to_owned()));
        self.labels.iter().filter_map(text).collect()
    }
}

impl Configuration {
    /// Digests of the uncompressed layers.
    pub(super) fn diff_ids(&self) -> &[String] {
        &self.rootfs.diff_ids
    }

    /// Checks that the image is for linux on `architecture`. An impossible value counts as a mistake if the index names
    /// the right platform; a note about it is then returned.
    pub(super) fn check_platform(&self, architecture: &str, index_said: bool) -> Result<Option<String>, String> {
        let Configuration { os, architecture: found, .. } = self;
        if os == "linux" && found == architecture {
            return Ok(None);
        }
        let is_known = |value: &str, right: &str, all: &[&str]| value == right || all.contains(&value);
        if is_known(os, "linux", &SYSTEMS) && is_known(found, architecture, &ARCHITECTURES) {
            return Err(format!("is for {os}/{found}, and this machine is linux/{architecture}"));
        }
        let said = format!("its configuration says \"os\": {os:?}, \"architecture\": {found:?}");
        let foreign = |value: &str, right: &str, all: &[&str]| value != right && all.contains(&value);
        if index_said && !foreign(os, "linux", &SYSTEMS) && !foreign(found, architecture, &ARCHITECTURES) {
            return Ok(Some(format!("{said}; taken for linux/{architecture}, as its index says")));
        }
        Err(format!("{said}, but must say \"linux\" and {architecture:?} for this machine"))
    }
}

/// Reads a document of one kind from a [`Value`], in which the last of several keys of one name has won.
pub(super) fn from<T: DeserializeOwned>(value: Value) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn configuration(value: Value) -> Result<Configuration, String> {
        from(value)
    }

    #[test]
    fn configurations_are_read_as_tools_write_them() {
        let full = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ["a"]},
            "config": {"User": "u", "Env": ["A=b"], "Entrypoint": ["e"], "Cmd": ["c"], "WorkingDir": "/w"}});
        for (pointer, key) in [
            ("", "config"),
            ("", "history"),
            ("", "created"),
            ("", "variant"),
            ("/rootfs", "type"),
            ("/rootfs", "diff_ids"),
            ("/config", "Cmd"),
            ("/config", "Entrypoint"),
            ("/config", "Env"),
            ("/config", "User"),
            ("/config", "WorkingDir"),
            ("/config", "Volumes"),
            ("/config", "ExposedPorts"),
            ("/config", "Labels"),
            ("/config", "OnBuild"),
            ("/config", "Healthcheck"),
        ] {
            let mut odd = full.clone();
            odd.pointer_mut(pointer).unwrap()[key] = Value::Null;
            configuration(odd.clone()).unwrap_or_else(|error| panic!("{pointer}/{key} null: {error}"));
            odd.pointer_mut(pointer).unwrap().as_object_mut().unwrap().remove(key);
            configuration(odd).unwrap_or_else(|error| panic!("no {pointer}/{key}: {error}"));
        }
        let mut odd = full.clone();
        odd["config"] = json!({"Volumes": {"/d": null}, "ExposedPorts": {"80/tcp": null}, "Labels": {"a": null}, "X": 1,
            "Cmd": "one text", "Entrypoint": "another", "User": 1000, "Env": ["A=b", null]});
        odd["history"] = json!([null, {"created": "yesterday", "empty_layer": "yes"}]);
        odd["created"] = json!("yesterday");
        let read = configuration(odd).unwrap();
        assert_eq!(
            (read.config.cmd, read.config.entrypoint),
            (vec!["one text".to_owned()], vec!["another".to_owned()])
        );
        assert_eq!(read.config.user, "1000");
        for (key, value) in
            [("Cmd", json!(5)), ("Env", json!({"A": "b"})), ("User", json!(["u"])), ("User", json!(1.5))]
        {
            let mut wrong = full.clone();
            wrong["config"][key] = value;
            assert!(configuration(wrong).is_err(), "{key}");
        }
    }

    #[test]
    fn a_platform_is_right_or_a_mistake_or_another_one() {
        let check = |os: &str, architecture: &str, index_said| {
            let read = configuration(json!({"os": os, "architecture": architecture})).unwrap();
            read.check_platform("amd64", index_said)
        };
        assert_eq!(check("linux", "amd64", false), Ok(None));
        for (os, architecture) in [("linux", ""), ("linux", "x86_64"), ("", "amd64"), ("", ""), ("Linux", "AMD64")] {
            let error = check(os, architecture, false).unwrap_err();
            assert!(error.contains(&format!("\"architecture\": {architecture:?}")), "{error}");
            let note = check(os, architecture, true).unwrap().unwrap();
            assert!(note.contains("taken for linux/amd64"), "{note}");
        }
        for (os, architecture) in [("windows", "amd64"), ("linux", "arm64"), ("", "arm64"), ("windows", "")] {
            assert!(check(os, architecture, true).is_err(), "{os}/{architecture}");
        }
    }

    #[test]
    fn sizes_are_numbers() {
        let read = |size: Value| from::<Descriptor>(json!({"digest": "d", "size": size})).map(|found| found.size);
        assert_eq!((read(json!(5)), read(json!("5"))), (Ok(5), Ok(5)));
        for wrong in [json!(-1), json!(1.5), json!(null), json!("5 MB"), json!([5])] {
            assert!(read(wrong).unwrap_err().contains("no number of bytes"));
        }
    }
}
