//! What can go wrong in the store, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

use crate::layout::LayoutError;
use crate::unpack::UnpackError;

/// Why the store could not do something.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file of the store could not be read or written.
    #[error("image store: {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The store cannot be written.
    #[error(
        "image store: {} is on a read-only file system: images that are unpacked already can be used, but none can be \
         unpacked, imported, renamed or removed; make it writable, then restart thawd", path.display()
    )]
    ReadOnly {
        /// The file that was to be written.
        path: PathBuf,
    },
    /// The layout is damaged or not understood.
    #[error("image layout: {0}")]
    Layout(#[from] LayoutError),
    /// A layer was refused or could not be unpacked.
    #[error("layer {layer}: {source}")]
    Unpack {
        /// Digest of the layer.
        layer: String,
        /// Why.
        source: UnpackError,
    },
    /// A file is no image that can be imported.
    #[error("{}: {reason}", path.display())]
    Import {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The uncompressed content of a layer is not what the configuration says.
    #[error("layer {layer}: its archive is {found}, but the configuration says {expected}")]
    DiffId {
        /// Digest of the layer.
        layer: String,
        /// The diff id in the configuration.
        expected: String,
        /// The digest of its archive.
        found: String,
    },
    /// A name cannot be used for an image.
    #[error(
        "image name {name:?}: must be like `openai` or `registry:5000/team/app:1.0`, at most 250 characters, and \
         start with a lower-case letter or digit; give one with --name"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// There is no such image.
    #[error("no image {name:?} in the store: run `thawctl image ls` to see those that are there")]
    NotFound {
        /// The name.
        name: String,
    },
    /// Something runs from the image.
    #[error("image {name:?} is in use by {user}: end that first")]
    InUse {
        /// The name.
        name: String,
        /// Who uses it.
        user: String,
    },
    /// The store was made by another version of thawd.
    #[error(
        "image store {}: has version {found}, and this thawd knows {known}: use the thawd that made it, or remove \
         the directory and build or import the images again", path.display()
    )]
    Version {
        /// The store.
        path: PathBuf,
        /// What its file `version` says.
        found: String,
        /// What this program writes.
        known: u32,
    },
    /// A layer in the store is not what was once unpacked.
    #[error(
        "layer {layer} in the store is damaged ({reason}): run `thawctl image verify` to see which images to remove \
         and make again"
    )]
    Damaged {
        /// Its diff id.
        layer: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// What the store answers with.
pub type Result<T> = std::result::Result<T, StoreError>;

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { path },
        _ => StoreError::Io { path, source },
    }
}
