//! The images of providers: where they are, and what there is to know of them.

use std::path::Path;

use crate::container::{StoredImage, image_root};
use crate::execution;
use crate::pool::PrepareError;
use crate::provider::Provider;
use thaw_client::config::Config;
use thaw_image::{Store, StoreError};

/// What is said of an image that has nobody called by the number that a provider's commands run as.
pub(super) const NAMELESS: &str = "the image's /etc/passwd has no user of this number: commands have no name, which \
                                   whoami, ssh, git and Node's os.userInfo() need; add one to the image";

/// The store below the state directory.
pub(super) fn image_store(config: &Config, is_read_only: bool) -> Result<Store, StoreError> {
    let (path, limits) = (config.paths.state_dir.join("images"), (&config.image).into());
    if is_read_only { Store::read_only(&path, limits) } else { Store::with_limits(&path, limits) }
}

/// The image with this digest, for a sandbox that was made from it.
pub(super) fn stored_image(images: &Store, digest: &str) -> Result<StoredImage, String> {
    let image = images.with_digest(digest).map_err(|error| error.to_string())?;
    let image =
        image.ok_or_else(|| format!("the image that it was made from, {digest}, is not in the store any more"))?;
    let root = image_root(&image).map_err(|error| error.to_string())?;
    Ok(StoredImage { root, hold: image.hold() })
}

/// The unpacked image: from the layout if there is one (which may be newer), else from the store.
pub(super) fn image(images: &Store, name: &str, layout: &Path) -> Result<thaw_image::HeldImage, PrepareError> {
    let failed = |source: StoreError| PrepareError::Image { image: name.to_owned(), source: source.into() };
    if layout.join("index.json").is_file() {
        return images.ensure(layout).map_err(failed);
    }
    images.get(name).map_err(|error| match error {
        StoreError::NotFound { .. } => PrepareError::NotBuilt { image: name.to_owned() },
        error => failed(error),
    })
}

/// The providers whose image is unpacked and has no name for the user of their commands, a sentence each. An image that is
/// not unpacked yet is looked at when it is.
pub(super) fn nameless<'a>(config: &Config, providers: impl Iterator<Item = &'a Provider>) -> Vec<String> {
    let Ok(store) = image_store(config, true) else { return Vec::new() };
    let uid = execution::RUNTIME_USER;
    let mut notes = Vec::new();
    for Provider { name, image, .. } in providers {
        let Ok(found) = store.look(image) else { continue };
        match execution::runtime_name(image, &found.rootfs, uid) {
            Ok(Some(_)) => {}
            Ok(None) => notes.push(format!("provider `{name}`, image `{image}`, uid {uid}: {NAMELESS}")),
            Err(error) => notes.push(format!("provider `{name}`: {error}")),
        }
    }
    notes
}
