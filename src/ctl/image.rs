//! `thawctl image`: arguments of the image commands.

use std::path::PathBuf;

/// What to do with images.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Build an OCI image layout from an image folder, without Docker
    Build(BuildArgs),
}

/// Arguments of `thawctl image build`.
#[derive(Debug, clap::Args)]
pub struct BuildArgs {
    /// Folder that holds image.toml
    #[arg(value_name = "DIR")]
    pub manifest_dir: PathBuf,
    /// Where to write the OCI image layout
    #[arg(long, short, value_name = "LAYOUT_DIR")]
    pub output: Option<PathBuf>,
    /// Where downloads and layers are kept between builds
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}
