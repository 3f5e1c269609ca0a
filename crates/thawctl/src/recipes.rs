//! Where the recipes of images are: the folder that was named, or one of those that the package brings.

use std::path::{Path, PathBuf};

use super::CtlError;

/// Where the package puts `images`, `rootfs` and the static programs.
const SHARE: &str = "/usr/share/thawd";

/// The folder of an image's recipe: a path, or the name of one in `images` of the current directory, or of one that came
/// with the package.
///
/// # Errors
/// There is neither.
pub(super) fn folder(given: &Path) -> Result<PathBuf, CtlError> {
    find(given, &Path::new(SHARE).join("images"))
}

fn find(given: &Path, packaged: &Path) -> Result<PathBuf, CtlError> {
    if given.join("image.toml").is_file() {
        return given.canonicalize().map_err(|error| CtlError::Usage(format!("{}: {error}", given.display())));
    }
    let is_name = given.components().count() == 1 && given.is_relative();
    let known = [Path::new("images").join(given), packaged.join(given)];
    if let Some(own) = known.into_iter().find(|folder| is_name && folder.join("image.toml").is_file()) {
        return own.canonicalize().map_err(|error| CtlError::Usage(format!("{}: {error}", own.display())));
    }
    let mut known: Vec<String> = packaged
        .read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.path().join("image.toml").is_file())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    known.sort();
    let known = if known.is_empty() { String::new() } else { format!("; the package brings {}", known.join(", ")) };
    Err(CtlError::Usage(format!("{} has no image.toml: name the folder of an image's recipe{known}", given.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_before_a_name_and_what_there_is_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let packaged = dir.path().join("images");
        for name in ["a", "b"] {
            std::fs::create_dir_all(packaged.join(name)).unwrap();
            std::fs::write(packaged.join(name).join("image.toml"), "").unwrap();
        }
        assert_eq!(find(Path::new("a"), &packaged).unwrap(), packaged.join("a").canonicalize().unwrap());
        assert_eq!(find(&packaged.join("b"), &packaged).unwrap(), packaged.join("b").canonicalize().unwrap());
        let error = find(Path::new("c"), &packaged).unwrap_err().to_string();
        assert!(error.contains("c has no image.toml") && error.contains("brings a, b"), "{error}");
        assert!(find(Path::new("../images/a"), &packaged).is_err());
    }
}
