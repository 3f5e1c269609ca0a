//! `thawctl image ls`, `inspect`, `rm`, `prune`, `verify` and `import`: the store's folder, with the daemon or without.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::daemon_config::daemon_config;
use super::fields::Fields;
use super::table::{age, bytes, table};
use super::{CtlError, Format, complain, print};
use thaw_image::progress::Terminal;
use thaw_image::{Image, ImportNames, Store, signature};

/// Exit code of `verify` when something is damaged.
const DAMAGED: u8 = 1;

/// Which store.
#[derive(Debug, clap::Args)]
pub(super) struct StoreArgs {
    /// Folder of the images [default: the daemon's, /var/lib/thawd/images unless its configuration says otherwise]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

impl StoreArgs {
    pub(super) fn open(&self) -> Result<Store, CtlError> {
        let config = daemon_config()?;
        let default = || config.paths.state_dir.join("images");
        Ok(Store::with_limits(&self.store.clone().unwrap_or_else(default), (&config.image).into())?)
    }
}

/// Names of images.
#[derive(Debug, clap::Args)]
pub(super) struct Names {
    /// Names of images, as `thawctl image ls` shows them
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    #[command(flatten)]
    store: StoreArgs,
}

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub(super) struct ImportArgs {
    /// A folder with an OCI image layout, or a tar file of one, or what `docker save` wrote
    path: PathBuf,
    /// What the image is called in the store [default: the name that it brings]
    #[arg(long)]
    name: Option<String>,
    /// Of several images in the file, the one that is called so there
    #[arg(long = "ref", value_name = "NAME")]
    reference: Option<String>,
    #[command(flatten)]
    signed: Signed,
    #[command(flatten)]
    store: StoreArgs,
}

/// Who an archive has to be signed by.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Signed {
    /// minisign's signature of the archive [default: the archive's name with .minisig behind it, if there is one]
    #[arg(long, value_name = "FILE")]
    signature: Option<PathBuf>,
    /// minisign's public key that the signature has to be of, instead of those in image.public_keys
    #[arg(long, value_name = "KEY")]
    public_key: Vec<String>,
}

impl Signed {
    /// Checks an archive's signature where there is one, or has to be one.
    fn check(&self, archive: &Path) -> Result<(), CtlError> {
        let config = daemon_config()?.image;
        let keys = if self.public_key.is_empty() { &config.public_keys } else { &self.public_key };
        let required = config.require_signature || self.signature.is_some() || !self.public_key.is_empty();
        let found = signature::check(archive, self.signature.as_deref(), keys, required)?;
        if let Some(comment) = found {
            complain(&format!("signature of {} is good: {}", archive.display(), super::one_line(&comment)));
        }
        Ok(())
    }
}

/// Brings in an archive under a name, with progress on stderr, after its signature was checked.
pub(super) fn import_archive(archive: &Path, name: &str, signed: &Signed) -> Result<Image, CtlError> {
    signed.check(archive)?;
    let names = ImportNames { name: Some(name), reference: None };
    Ok(StoreArgs { store: None }.open()?.import_named(archive, names, &Terminal::new(name))?)
}

fn described(image: &Image) -> Value {
    json!({
        "name": image.name, "digest": image.digest, "layers": image.layers.len(),
        "compressed_bytes": image.compressed_bytes, "unpacked_bytes": image.unpacked_bytes,
        "unpacked_at_ms": image.unpacked_at_ms, "notes": image.notes,
    })
}

/// Lists the images with their sizes, and what all of them take on disk together.
pub(super) fn ls(args: &StoreArgs, format: &Format) -> Result<(), CtlError> {
    let store = args.open()?;
    let images = store.list()?;
    if *format != Format::Table {
        let items: Vec<Value> = images.iter().map(described).collect();
        return format.print(&items, &Fields::of_items(), || Ok(String::new()));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let rows = images.iter().map(|image| {
        [
            image.name.clone(),
            image.digest.chars().take("sha256:".len() + 12).collect(),
            image.layers.len().to_string(),
            bytes(image.compressed_bytes),
            bytes(image.unpacked_bytes),
            age(image.unpacked_at_ms, now_ms),
        ]
    });
    print(&table(["NAME", "DIGEST", "LAYERS", "STORED", "UNPACKED", "AGE"], rows))?;
    let together = bytes(store.unpacked_bytes()?);
    print(&format!(
        "{} images, {together} unpacked on disk: a layer that several images have is there once\n",
        images.len()
    ))?;
    Ok(())
}

/// Prints all that is known of images, as JSON.
pub(super) fn inspect(args: &Names) -> Result<(), CtlError> {
    let store = args.store.open()?;
    let mut found = Vec::new();
    for name in &args.names {
        let image = store.look(name)?;
        let mut value = described(&image);
        value["rootfs"] = json!(image.rootfs);
        value["layers"] = json!(image.layers);
        value["config"] = json!(image.config);
        found.push(value);
    }
    Format::Json.print(&found, &Fields::of_items(), || Ok(String::new()))
}

/// Removes images; goes on after a failure, and tells the last.
pub(super) fn rm(args: &Names) -> Result<(), CtlError> {
    let store = args.store.open()?;
    let mut result = Ok(());
    for name in &args.names {
        match store.remove(name) {
            Ok(()) => print(&format!("{name}\n"))?,
            Err(error) => {
                if let Err(earlier) = std::mem::replace(&mut result, Err(error.into())) {
                    complain(&CtlError::to_string(&earlier));
                }
            }
        }
    }
    result
}

/// Removes what no name means any more.
pub(super) fn prune(args: &StoreArgs, format: &Format) -> Result<(), CtlError> {
    let store = args.open()?;
    let before = store.unpacked_bytes()?;
    let removed = store.prune()?;
    let freed = before.saturating_sub(store.unpacked_bytes()?);
    let item = json!({ "removed": removed, "freed_bytes": freed });
    format.print(&[item], &Fields::of_items(), || {
        let lines: String = removed.iter().map(|digest| format!("{digest}\n")).collect();
        Ok(format!("{lines}{} images removed, {} freed\n", removed.len(), bytes(freed)))
    })
}

/// Checks every file; the exit code says whether all is well.
pub(super) fn verify(args: &StoreArgs, format: &Format) -> Result<u8, CtlError> {
    let found = args.open()?.verify(&Terminal::new("images"))?;
    let rebuild = found.to_rebuild();
    let damage: Vec<Value> = found
        .damage
        .iter()
        .map(|one| json!({ "what": one.what, "reasons": one.reasons, "images": one.images }))
        .collect();
    let item = json!({ "images": found.images, "layers": found.layers, "files": found.files, "bytes": found.bytes,
        "damage": damage, "rebuild": rebuild });
    format.print(&[item], &Fields::of_items(), || {
        let mut text = String::new();
        for one in &found.damage {
            text += &format!("{} is damaged:\n", one.what);
            one.reasons.iter().for_each(|reason| text += &format!("  {}\n", super::one_line(reason)));
        }
        if !rebuild.is_empty() {
            let names = rebuild.iter().copied().collect::<Vec<_>>().join(" ");
            text += &format!("run `thawctl image rm {names}`, then build, import or pull them again\n");
        } else if !found.damage.is_empty() {
            text += "no name means what is damaged: run `thawctl image prune`\n";
        }
        Ok(text
            + &format!(
                "{} images, {} layers, {} files of {} checked: {}\n",
                found.images,
                found.layers,
                found.files,
                bytes(found.bytes),
                if found.damage.is_empty() { "all well".to_owned() } else { format!("{} damaged", found.damage.len()) }
            ))
    })?;
    Ok(if found.damage.is_empty() { 0 } else { DAMAGED })
}

/// Brings an image in.
pub(super) fn import(args: &ImportArgs, format: &Format) -> Result<(), CtlError> {
    let label = args.name.as_deref().unwrap_or("import");
    args.signed.check(&args.path)?;
    let names = ImportNames { name: args.name.as_deref(), reference: args.reference.as_deref() };
    let image = args.store.open()?.import_named(&args.path, names, &Terminal::new(label))?;
    for note in &image.notes {
        complain(&format!("note: {}", super::one_line(note)));
    }
    format.print(&[described(&image)], &Fields::of_items(), || {
        Ok(format!(
            "{} {}: {} layers, {} stored, {} unpacked\n",
            image.name,
            image.digest,
            image.layers.len(),
            bytes(image.compressed_bytes),
            bytes(image.unpacked_bytes)
        ))
    })
}
