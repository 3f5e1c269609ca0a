//! Writes the OCI image layout: blobs first, the index last.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use oci_spec::OciSpecError;
use oci_spec::image::{
    ANNOTATION_REF_NAME, ConfigBuilder, Descriptor, HistoryBuilder, ImageConfiguration, ImageConfigurationBuilder,
    ImageIndexBuilder, ImageManifestBuilder, MediaType, PlatformBuilder, RootFsBuilder, Sha256Digest,
};
use serde::Serialize;

use super::layer::{LayerCache, LayerCompression};
use super::pins::{self, Moved};
use super::recipe::Entrypoint;
use super::work::{Built, Inputs};
use super::{BuildError, BuildOptions, entrypoint, write_whole};
use crate::digest::{hex, sha256};

/// Creation time that images declare: equal content must give equal bytes.
const CREATED: &str = "1970-01-01T00:00:00Z";

/// Writes `layers` as the one image of the layout. Returns the manifest's digest, and whether the layout held exactly
/// that image before.
pub(super) fn write(
    inputs: &Inputs,
    layers: &[(String, Built)],
    unlocked: &[Moved],
    cache: &LayerCache,
    options: &BuildOptions,
) -> Result<(String, bool), BuildError> {
    let folder = &*options.layout_dir;
    let media_type = match options.compression {
        LayerCompression::Zstd => MediaType::ImageLayerZstd,
        LayerCompression::Gzip => MediaType::ImageLayerGzip,
    };
    prepare(folder)?;
    let blobs = folder.join("blobs/sha256");
    let mut kept = BTreeSet::new();
    let mut descriptors = Vec::new();
    for (_, built) in layers {
        let layer = &built.layer;
        kept.insert(hex(&layer.digest).to_owned());
        link(&cache.blob(&built.key, options.compression), &blobs.join(hex(&layer.digest)), layer.size)?;
        descriptors.push(descriptor(media_type.clone(), &layer.digest, layer.size, inputs)?);
    }
    let spec = |e: OciSpecError| BuildError::Recipe {
        path: inputs.manifest_dir.join("image.toml"),
        reason: format!("makes no valid OCI image: {e}"),
    };
    let config = config(inputs, layers, unlocked, inputs.entrypoint()?).map_err(spec)?;
    let config = blob(&blobs, &config, MediaType::ImageConfig, inputs, &mut kept)?;
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(descriptors)
        .annotations(HashMap::from([(
            "org.opencontainers.image.description".to_owned(),
            inputs.image.description.clone(),
        )]))
        .build()
        .map_err(spec)?;
    let mut manifest = blob(&blobs, &manifest, MediaType::ImageManifest, inputs, &mut kept)?;
    let digest = manifest.digest().to_string();
    manifest.set_platform(Some(PlatformBuilder::default().os("linux").architecture("amd64").build().map_err(spec)?));
    manifest.set_annotations(Some(HashMap::from([(ANNOTATION_REF_NAME.to_owned(), inputs.image.name.clone())])));
    let index = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageIndex)
        .manifests(vec![manifest])
        .build()
        .map_err(spec)?;
    let index = sorted_json(&index, folder)?;
    let path = folder.join("index.json");
    let unchanged = fs::read(&path).is_ok_and(|before| before == index);
    if !unchanged {
        write_whole(&path, &index)?;
    }
    sweep(&blobs, &kept)?;
    Ok((digest, unchanged))
}

/// Makes the folder a layout, if it is empty or a layout already.
fn prepare(folder: &Path) -> Result<(), BuildError> {
    let fail = |e| BuildError::io(folder, e);
    let blobs = folder.join("blobs/sha256");
    let marker = folder.join("oci-layout");
    if !marker.exists() {
        if folder.exists() && fs::read_dir(folder).map_err(fail)?.next().is_some() {
            return Err(BuildError::NotALayout { path: folder.to_owned() });
        }
        fs::create_dir_all(folder).map_err(fail)?;
        write_whole(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    }
    fs::create_dir_all(&blobs).map_err(fail)
}

fn config(
    inputs: &Inputs,
    layers: &[(String, Built)],
    unlocked: &[Moved],
    said: &Entrypoint,
) -> Result<ImageConfiguration, OciSpecError> {
    let image = &inputs.image;
    let mut env = inputs.env();
    env.insert("HOME".to_owned(), inputs.user.home.clone());
    env.insert("USER".to_owned(), inputs.user.name.clone());
    let (entrypoint, cmd) = if entrypoint::is_needed(said) {
        (vec![entrypoint::PATH.to_owned()], said.command.clone())
    } else {
        (said.command.clone(), Vec::new())
    };
    let mut run = ConfigBuilder::default()
        .user(format!("{}:{}", inputs.user.uid, inputs.user.gid))
        .env(env.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>())
        .entrypoint(entrypoint)
        .cmd(cmd)
        .working_dir(image.workdir.clone())
        .stop_signal("SIGTERM")
        .build()?;
    if !unlocked.is_empty() {
        run.set_labels(Some(HashMap::from([(pins::LABEL.to_owned(), pins::label(unlocked))])));
    }
    let mut history = Vec::new();
    for (role, built) in layers {
        let made_by = format!("thawd image build: {role} from {}", built.made_by);
        history.push(HistoryBuilder::default().created(CREATED).created_by(made_by).build()?);
    }
    let diff_ids: Vec<String> = layers.iter().map(|(_, built)| built.layer.diff_id.clone()).collect();
    ImageConfigurationBuilder::default()
        .created(CREATED)
        .architecture("amd64")
        .os("linux")
        .config(run)
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids(diff_ids).build()?)
        .history(history)
        .build()
}

/// JSON with sorted keys, since the maps of the OCI types have a random order.
fn sorted_json(value: &impl Serialize, folder: &Path) -> Result<Vec<u8>, BuildError> {
    serde_json::to_value(value)
        .and_then(|value| serde_json::to_vec(&value))
        .map_err(|e| BuildError::io(folder, e.into()))
}

/// Writes a JSON blob and returns its descriptor.
fn blob(
    blobs: &Path,
    value: &impl Serialize,
    kind: MediaType,
    inputs: &Inputs,
    kept: &mut BTreeSet<String>,
) -> Result<Descriptor, BuildError> {
    let bytes = sorted_json(value, blobs)?;
    let digest = sha256(&bytes);
    let path = blobs.join(hex(&digest));
    if !fs::read(&path).is_ok_and(|before| before == bytes) {
        write_whole(&path, &bytes)?;
    }
    kept.insert(hex(&digest).to_owned());
    descriptor(kind, &digest, bytes.len() as u64, inputs)
}

fn descriptor(kind: MediaType, digest: &str, size: u64, inputs: &Inputs) -> Result<Descriptor, BuildError> {
    let digest: Sha256Digest = hex(digest).parse().map_err(|e: OciSpecError| BuildError::Recipe {
        path: inputs.manifest_dir.clone(),
        reason: format!("digest {digest}: {e}"),
    })?;
    Ok(Descriptor::new(kind, size, digest))
}

/// Links a blob of the cache into the layout; copies it if the two are on different file systems.
fn link(from: &Path, to: &Path, size: u64) -> Result<(), BuildError> {
    let fail = |e| BuildError::io(to, e);
    if fs::metadata(to).is_ok_and(|before| before.len() == size) {
        return Ok(());
    }
    let partial = to.with_extension("partial");
    let _ = fs::remove_file(&partial);
    if fs::hard_link(from, &partial).is_err() {
        fs::copy(from, &partial).map_err(fail)?;
        fs::File::open(&partial).and_then(|file| file.sync_all()).map_err(fail)?;
    }
    fs::rename(&partial, to).map_err(fail)
}

/// Removes the blobs of an earlier build.
fn sweep(blobs: &Path, kept: &BTreeSet<String>) -> Result<(), BuildError> {
    let fail = |e| BuildError::io(blobs, e);
    for entry in fs::read_dir(blobs).map_err(fail)? {
        let entry = entry.map_err(fail)?;
        if !entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
            fs::remove_file(entry.path()).map_err(fail)?;
        }
    }
    Ok(())
}
