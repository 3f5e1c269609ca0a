//! `thawctl image`: builds images on this machine and keeps the store; the daemon is asked by `use` alone.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::daemon_config::daemon_config;
use super::fields::Fields;
use super::image_registry::{self, PullArgs, PushArgs};
use super::image_store::{self, ImportArgs, Names, StoreArgs};
use super::table::{bytes, table};
use super::{CtlError, Format, complain, print, recipes};
use thaw_client::client::Client;
use thaw_client::renewal::Renewal;
use thaw_client::types::Stage;
use thaw_image::build::{BuildError, BuildOptions, BuildReport, LayerCompression, build, check, lock, outdated};
use thaw_image::progress::Terminal;

/// Where downloads and layers are kept between builds (Filesystem Hierarchy Standard, section 5.5).
pub(super) const CACHE_DIR: &str = "/var/cache/thawd/build";

/// Exit code of `lock --check` when a lock is not the newest.
const STALE: u8 = 1;

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Build an OCI image layout from an image folder, without Docker
    Build(BuildArgs),
    /// Pin the newest packages: of npm those that fit image.toml, of Debian those of the base's suite
    Lock(LockArgs),
    /// List npm packages that have a newer version than image.toml names
    Outdated(OutdatedArgs),
    /// List the images of the store
    #[command(visible_alias = "list")]
    Ls(StoreArgs),
    /// Print all that is known of images, as JSON
    Inspect(Names),
    /// Remove images, unless something runs from them
    Rm(Names),
    /// Remove images that no name means any more and that nothing uses
    Prune(StoreArgs),
    /// Check every file of the store against its digest; exits 1 when something is damaged
    Verify(StoreArgs),
    /// Bring in an OCI layout, an OCI archive or the output of `docker save`
    Import(ImportArgs),
    /// Get an image from a registry into an OCI image layout
    Pull(PullArgs),
    /// Send the image of an OCI image layout to a registry
    Push(PushArgs),
    /// Let the running daemon take over what the image of providers is now, one container first; the old one serves on if
    /// that fails
    Use(UseArgs),
}

/// Arguments of `use`.
#[derive(Debug, clap::Args)]
pub(super) struct UseArgs {
    /// Name of the image, see `thawctl providers`
    name: String,
}

/// Arguments of `build`.
#[derive(Debug, clap::Args)]
pub(super) struct BuildArgs {
    /// Folder that holds image.toml, or the name of a recipe that came with the package
    #[arg(value_name = "DIR")]
    manifest_dir: PathBuf,
    /// Where the image layout is written [default: the daemon's, /var/lib/thawd/layouts/NAME]
    #[arg(long, short, value_name = "LAYOUT_DIR")]
    output: Option<PathBuf>,
    /// How layers are compressed: gzip for tools that cannot read zstd
    #[arg(long, value_enum, default_value_t)]
    compression: LayerCompression,
    /// Folder of our own static programs [default: target/static of the repository that DIR is in]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
    /// Mirror that keeps old versions, for locked packages that the Debian mirror has no more, or `none`
    /// [default: snapshot.debian.org, unless --debian-mirror names another mirror]
    #[arg(long, value_name = "MIRROR")]
    debian_snapshot: Option<String>,
    /// Fail when something is not to be had as it is locked, instead of taking the newest
    #[arg(long)]
    locked: bool,
    #[command(flatten)]
    sources: Sources,
}

/// Arguments of `lock`.
#[derive(Debug, clap::Args)]
pub(super) struct LockArgs {
    /// Folders that hold image.toml
    #[arg(value_name = "DIR", required = true)]
    manifest_dirs: Vec<PathBuf>,
    /// Only list what is not the newest or not to be had any more, one line each; exits 1 if something is
    #[arg(long)]
    check: bool,
    /// Write the newest versions of npm packages into image.toml first; of Node the newest of its major version
    #[arg(long, conflicts_with = "check")]
    newest: bool,
    #[command(flatten)]
    sources: Sources,
}

/// Arguments of `outdated`.
#[derive(Debug, clap::Args)]
pub(super) struct OutdatedArgs {
    /// Folder that holds image.toml
    #[arg(value_name = "DIR")]
    manifest_dir: PathBuf,
    #[command(flatten)]
    sources: Sources,
}

/// Where packages come from.
#[derive(Debug, clap::Args)]
struct Sources {
    /// Where downloads and layers are kept between builds
    #[arg(long, value_name = "DIR", default_value = CACHE_DIR)]
    cache: PathBuf,
    /// Debian mirror, as an address or as lines of sources.list [default: mmdebstrap's]
    #[arg(long, value_name = "MIRROR")]
    debian_mirror: Option<String>,
    /// npm registry, as an address [default: npm's]
    #[arg(long, value_name = "ADDRESS")]
    npm_registry: Option<String>,
    /// When mmdebstrap, apt, npm or dpkg-deb fails, print all that it wrote
    #[arg(long, short)]
    verbose: bool,
}

impl Sources {
    /// For what makes no layout.
    fn options(&self) -> BuildOptions {
        let mut options = BuildOptions::new("", &self.cache);
        options.debian_mirror.clone_from(&self.debian_mirror);
        options.npm_registry.clone_from(&self.npm_registry);
        options
    }

    /// Prints what a program wrote, if that is wanted.
    fn told<T>(&self, result: Result<T, BuildError>) -> Result<T, CtlError> {
        if let (Err(error), true) = (&result, self.verbose) {
            error.raw().unwrap_or_default().lines().for_each(complain);
        }
        Ok(result?)
    }
}

impl BuildArgs {
    fn options(&self, name: &str) -> Result<BuildOptions, CtlError> {
        let mut options = self.sources.options();
        options.layout_dir = match &self.output {
            Some(layout) => layout.clone(),
            None => daemon_config()?.paths.layouts().join(name),
        };
        options.compression = self.compression;
        options.programs_dir.clone_from(&self.programs);
        options.debian_snapshot.clone_from(&self.debian_snapshot);
        options.locked = self.locked;
        Ok(options)
    }
}

/// Does it, with progress on stderr; returns the exit code. Blocks; Ctrl-C ends it at any time, and loses only what is
/// under way.
pub(super) async fn image(client: &Client, command: &Command, format: &Format) -> Result<u8, CtlError> {
    match command {
        Command::Build(args) => built(args, format)?,
        Command::Lock(args) if args.check => return checked(args, format),
        Command::Lock(args) => locked(args)?,
        Command::Outdated(args) => newer(args, format)?,
        Command::Ls(args) => image_store::ls(args, format)?,
        Command::Inspect(args) => image_store::inspect(args)?,
        Command::Rm(args) => image_store::rm(args)?,
        Command::Prune(args) => image_store::prune(args, format)?,
        Command::Verify(args) => return image_store::verify(args, format),
        Command::Import(args) => image_store::import(args, format)?,
        Command::Pull(args) => image_registry::pull(args, format).await?,
        Command::Push(args) => image_registry::push(args, format).await?,
        Command::Use(args) => taken_over(client, &args.name, format).await?,
    }
    Ok(0)
}

async fn taken_over(client: &Client, name: &str, format: &Format) -> Result<(), CtlError> {
    let pools = client.use_image(name).await?;
    if *format != Format::Table {
        let items: Vec<_> =
            pools.iter().map(serde_json::to_value).collect::<Result<_, _>>().map_err(io::Error::from)?;
        return format.print(&items, &Fields::of_items(), || Ok(String::new()));
    }
    for pool in pools {
        let stage = if pool.stage == Stage::Prestarted { "prestarted" } else { "created" };
        let model = pool.model.map(|model| format!(" {model}")).unwrap_or_default();
        let outcome = match pool.outcome {
            Renewal::Renewed => "renewed; the old containers are replaced one by one",
            Renewal::Unchanged => "unchanged",
            Renewal::Beginning => "it had none yet; the image is unpacked now",
        };
        print(&format!("{} {stage}{model}: {outcome}\n", pool.provider))?;
    }
    Ok(())
}

fn locked(args: &LockArgs) -> Result<(), CtlError> {
    for folder in &args.manifest_dirs {
        let folder = canonical(folder)?;
        let progress = Terminal::new(&name_of(&folder));
        let changes = args.sources.told(lock(&folder, args.newest, &args.sources.options(), &progress))?;
        print(&changes.iter().map(|change| format!("{change}\n")).collect::<String>())?;
    }
    Ok(())
}

/// Lists what is stale of each image; the exit code says whether there is anything.
fn checked(args: &LockArgs, format: &Format) -> Result<u8, CtlError> {
    let mut found = Vec::new();
    for folder in &args.manifest_dirs {
        let folder = canonical(folder)?;
        let name = name_of(&folder);
        let stale = args.sources.told(check(&folder, &args.sources.options(), &Terminal::new(&name)))?;
        found.extend(stale.into_iter().map(|one| (name.clone(), one)));
    }
    let items: Vec<_> = found
        .iter()
        .map(|(image, one)| {
            json!({ "image": image, "package": one.package, "locked": one.locked, "newest": one.newest,
                "is_there": one.is_there })
        })
        .collect();
    let lines = || Ok(found.iter().map(|(image, one)| format!("{image}: {one}\n")).collect());
    format.print(&items, &Fields::of_items(), lines)?;
    Ok(if found.is_empty() { 0 } else { STALE })
}

fn built(args: &BuildArgs, format: &Format) -> Result<(), CtlError> {
    let folder = recipes::folder(&args.manifest_dir)?;
    let name = name_of(&folder);
    let options = args.options(&name)?;
    if let Some(parent) = options.layout_dir.parent() {
        std::fs::create_dir_all(parent).map_err(|e| usage(parent, &e))?;
    }
    let report = args.sources.told(build(&folder, &options, &Terminal::new(&name)))?;
    report.notes.iter().for_each(|note| complain(note));
    Ok(print(&described(&report, format)?)?)
}

fn newer(args: &OutdatedArgs, format: &Format) -> Result<(), CtlError> {
    let found = args.sources.told(outdated(&canonical(&args.manifest_dir)?, &args.sources.options()))?;
    let items: Vec<_> =
        found.iter().map(|one| json!({ "package": one.package, "pinned": one.pinned, "newest": one.newest })).collect();
    format.print(&items, &Fields::of_items(), || {
        let rows = found.into_iter().map(|one| [one.package, one.pinned, one.newest]);
        Ok(table(["PACKAGE", "PINNED", "NEWEST"], rows))
    })
}

fn canonical(folder: &Path) -> Result<PathBuf, CtlError> {
    folder.canonicalize().map_err(|e| usage(folder, &e))
}

fn name_of(folder: &Path) -> String {
    folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn usage(path: &Path, error: &io::Error) -> CtlError {
    CtlError::Usage(format!("{}: {error}", path.display()))
}

fn described(report: &BuildReport, format: &Format) -> Result<String, CtlError> {
    let (stored, unpacked) = (report.compressed_bytes(), report.unpacked_bytes());
    let layers: Vec<_> = report
        .layers
        .iter()
        .map(|layer| {
            json!({ "role": layer.role, "digest": layer.digest, "compressed_bytes": layer.compressed_bytes,
                "unpacked_bytes": layer.unpacked_bytes, "cached": layer.cached })
        })
        .collect();
    let item = json!({ "name": report.name, "digest": report.digest, "layout": report.layout, "layers": layers,
        "compressed_bytes": stored, "unpacked_bytes": unpacked, "unchanged": report.unchanged, "unlocked": report.unlocked });
    format.text(&[item], &Fields::of_items(), || {
        Ok(format!(
            "{} {} in {}: {} layers, {} stored, {} unpacked{}\n",
            report.name,
            report.digest,
            report.layout.display(),
            report.layers.len(),
            bytes(stored),
            bytes(unpacked),
            if report.unchanged { ", unchanged" } else { "" }
        ))
    })
}
