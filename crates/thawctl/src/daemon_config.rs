//! The daemon's configuration file, for the verbs that work on its store of images without it.

use std::io;
use std::path::Path;

use thaw_client::config::{Config, ConfigError, DEFAULT_PATH};

use super::CtlError;

/// The daemon's configuration, which says where images are and what they may cost: the file that THAWD_CONFIG names,
/// else the daemon's own if there is one.
pub(super) fn daemon_config() -> Result<Config, CtlError> {
    let named = std::env::var_os("THAWD_CONFIG").filter(|path| !path.is_empty());
    let path = named.as_ref().map_or(Path::new(DEFAULT_PATH), Path::new);
    match Config::load(path) {
        Err(ConfigError::Read { source, .. }) if named.is_none() && source.kind() == io::ErrorKind::NotFound => {
            Ok(Config::default())
        }
        other => other.map_err(|error| CtlError::Usage(error.to_string())),
    }
}
