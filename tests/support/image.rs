//! The `test` image, built once for all tests of a program.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use thaw_image::build::{BuildOptions, build};
use thaw_image::progress::Quiet;

/// Folder with the layout of the image `test` in it. Kept between runs, so that only the first builds it.
pub fn layouts() -> &'static Path {
    static LAYOUTS: OnceLock<PathBuf> = OnceLock::new();
    LAYOUTS.get_or_init(|| {
        let place =
            if super::in_bed() { Path::new("/var/lib/scratch") } else { Path::new(env!("CARGO_TARGET_TMPDIR")) };
        let (layouts, cache) = (place.join("layouts"), place.join("image-cache"));
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/test");
        build(&manifest, &BuildOptions::new(layouts.join("test"), cache), &Quiet).unwrap();
        layouts
    })
}
