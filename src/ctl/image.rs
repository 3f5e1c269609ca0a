//! `thawctl image`: builds images on this machine; the daemon is not asked.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::image_registry::{self, PullArgs, PushArgs};
use super::table::bytes;
use super::{CtlError, Format, complain, print};
use crate::config::Paths;
use crate::image::build::{BuildOptions, BuildReport, build, lock};
use crate::image::progress::Terminal;

/// Where downloads and layers are kept between builds (Filesystem Hierarchy Standard, section 5.5).
const CACHE_DIR: &str = "/var/cache/thawd/build";

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Build an OCI image layout from an image folder, without Docker
    Build(Args),
    /// Pin the newest npm packages that fit image.toml in its package-lock.json
    Lock(Args),
    /// Get an image from a registry into an OCI image layout
    Pull(PullArgs),
    /// Send the image of an OCI image layout to a registry
    Push(PushArgs),
}

/// Arguments of `build` and `lock`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder that holds image.toml
    #[arg(value_name = "DIR")]
    manifest_dir: PathBuf,
    /// Where the image layout is written [default: the daemon's, /var/lib/thawd/layouts/NAME]
    #[arg(long, short, value_name = "LAYOUT_DIR")]
    output: Option<PathBuf>,
    /// Where downloads and layers are kept between builds
    #[arg(long, value_name = "DIR", default_value = CACHE_DIR)]
    cache: PathBuf,
}

/// Does it, with progress on stderr. Builds block; Ctrl-C ends it at any time and loses only the layer being made.
pub(super) async fn image(command: &Command, format: Format) -> Result<(), CtlError> {
    let args = match command {
        Command::Build(args) | Command::Lock(args) => args,
        Command::Pull(args) => return image_registry::pull(args, format).await,
        Command::Push(args) => return image_registry::push(args, format).await,
    };
    let folder = args.manifest_dir.canonicalize().map_err(|e| usage(&args.manifest_dir, &e))?;
    let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let layout = args.output.clone().unwrap_or_else(|| Paths::default().layouts().join(&name));
    let options = BuildOptions::new(layout, &args.cache);
    if matches!(command, Command::Lock(_)) {
        lock(&folder, &options, &Terminal::new(&name))?;
        return Ok(());
    }
    if let Some(parent) = options.layout_dir.parent() {
        std::fs::create_dir_all(parent).map_err(|e| usage(parent, &e))?;
    }
    let report = build(&folder, &options, &Terminal::new(&name))?;
    report.notes.iter().for_each(|note| complain(note));
    print(&described(&report, format)?)?;
    Ok(())
}

fn usage(path: &Path, error: &io::Error) -> CtlError {
    CtlError::Usage(format!("{}: {error}", path.display()))
}

fn described(report: &BuildReport, format: Format) -> Result<String, CtlError> {
    let (stored, unpacked) = (report.compressed_bytes(), report.unpacked_bytes());
    Ok(match format {
        Format::Table => format!(
            "{} {} in {}: {} layers, {} stored, {} unpacked{}\n",
            report.name,
            report.digest,
            report.layout.display(),
            report.layers.len(),
            bytes(stored),
            bytes(unpacked),
            if report.unchanged { ", unchanged" } else { "" }
        ),
        Format::Json => {
            let item = json!({ "name": report.name, "digest": report.digest, "layout": report.layout,
                "compressed_bytes": stored, "unpacked_bytes": unpacked, "unchanged": report.unchanged });
            format!("{}\n", serde_json::to_string_pretty(&[item]).map_err(io::Error::from)?)
        }
    })
}
