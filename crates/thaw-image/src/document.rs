//! Index, manifest and configuration as tools really write them: nulls and unknown fields everywhere, and only what is
//! needed has to be there. Of two keys of one name the last counts, as in Go.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Name of an image in an index: by the specification a tag, by habit also a whole name.
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole name, where containerd and buildkit write it.
const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// What buildkit says of documents about an image, which are in the index beside it.
const ABOUT_ANOTHER: &str = "vnd.docker.reference.type";

const INDEXES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFESTS: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// What says how a layer is compressed is its first bytes: registries have many layers whose type is wrong.
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];
/// Architectures that a configuration can name rightly (Go's names).
const ARCHITECTURES: [&str; 15] = [
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le", "riscv64",
    "s390x", "sparc64", "wasm",
];
const SYSTEMS: [&str; 9] =
    ["aix", "android", "darwin", "dragonfly", "freebsd", "linux", "netbsd", "solaris", "windows"];

/// What kind of document a media type means.
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

/// `null` is the same as absent.
fn or_default<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// A list of texts, or one text alone, as Docker takes it.
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

/// A text, or a number that stands for one.
fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    match Value::deserialize(from)? {
        Value::Null => Ok(String::new()),
        Value::String(text) => Ok(text),
        Value::Number(number) if number.is_u64() => Ok(number.to_string()),
        _ => Err(D::Error::custom("must be a text")),
    }
}

/// A number of bytes, also in quotes.
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
    /// The names that the index gives it, the whole one first.
    pub(super) fn names(&self) -> Names {
        let text = |key: &str| self.annotations.get(key).and_then(Value::as_str).map(str::to_owned);
        Names { whole: text(CONTAINERD_NAME), tag: text(REF_NAME) }
    }

    /// The platform that the index gives it, as `os/architecture`.
    pub(super) fn platform(&self) -> Option<String> {
        let Platform { os, architecture, .. } = &self.platform;
        (!os.is_empty() || !architecture.is_empty()).then(|| format!("{os}/{architecture}"))
    }

    /// Of several for one machine, the least asks the least of its processor: v1 of amd64, v8 of arm64.
    pub(super) fn variant(&self) -> &str {
        &self.platform.variant
    }

    /// Whether it says of itself that it is about an image, or something else than one.
    pub(super) fn is_artifact(&self) -> bool {
        let config = self.artifact_type.as_str();
        self.annotations.contains_key(ABOUT_ANOTHER) || !(config.is_empty() || CONFIGS.contains(&config))
    }
}

/// What an index calls an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// With registry or repository.
    pub(super) whole: Option<String>,
    /// Perhaps a tag alone.
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
    /// Makes sure that it is an image's, with layers that can be unpacked.
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

/// How it wants to be run.
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
    /// Those that are texts.
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

    /// Makes sure that it is for linux on `architecture`. A value that is none is believed to be a mistake if the index
    /// said the right one; then it is returned, for a note.
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

/// Reads a document of a kind. From a [`Value`], where the last of several keys of one name has won.
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
