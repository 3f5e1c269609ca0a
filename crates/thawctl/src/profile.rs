//! Profiles: which daemon, as whom and with what, under a name, in `~/.config/thawd/profiles.toml`.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::CtlError;

/// The profile that is used when none is named, if there is one.
const DEFAULT: &str = "default";

/// What a profile sets; options of the command line win.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Profile {
    /// Socket of the daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) socket: Option<PathBuf>,
    /// Whose executions `run` starts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    /// Provider of `run` when it is given a prompt or a command alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) provider: Option<String>,
    /// Credential files by provider, and by the name that the provider gives them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) credential_files: BTreeMap<String, BTreeMap<String, PathBuf>>,
    /// Variable of thawctl's own environment that holds a credential, by provider.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) credential_env: BTreeMap<String, String>,
}

impl Profile {
    /// The profile of this name, or the default one if there is one.
    ///
    /// # Errors
    /// The file cannot be read, or has no profile of that name.
    pub(super) fn load(name: Option<&str>) -> Result<Self, CtlError> {
        match path() {
            Some(path) => Self::load_from(&path, name),
            None if name.is_some() => {
                Err(CtlError::Usage("there are no profiles: neither XDG_CONFIG_HOME nor HOME is set".to_owned()))
            }
            None => Ok(Self::default()),
        }
    }

    fn load_from(path: &Path, name: Option<&str>) -> Result<Self, CtlError> {
        let failed = |problem: String| CtlError::Usage(format!("{}: {problem}", path.display()));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && name.is_none() => return Ok(Self::default()),
            // As with `sudo -u`, which leaves HOME as it was: nothing that this user has chosen is in there.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && name.is_none() => {
                super::complain(&format!("{}: {error}; going on without profiles", path.display()));
                return Ok(Self::default());
            }
            Err(error) => return Err(failed(error.to_string())),
        };
        let mut profiles: BTreeMap<String, Self> =
            toml::from_str(&text).map_err(|error| failed(error.to_string().trim_end().to_owned()))?;
        match profiles.remove(name.unwrap_or(DEFAULT)) {
            Some(profile) => Ok(profile.at_home()),
            None if name.is_none() => Ok(Self::default()),
            None => {
                let known = profiles.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                Err(failed(format!("there is no profile [{}]; there is {known}", name.unwrap_or(DEFAULT))))
            }
        }
    }

    /// `~/` at the beginning of a path is the home directory, which no shell replaces here.
    fn at_home(mut self) -> Self {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let replace = |path: &mut PathBuf| {
            if let Ok(below) = path.strip_prefix("~") {
                *path = home.join(below);
            }
        };
        self.socket.iter_mut().for_each(replace);
        self.credential_files.values_mut().flat_map(BTreeMap::values_mut).for_each(replace);
        self
    }
}

/// Makes this the default profile, unless there are profiles already. Returns where it is.
///
/// # Errors
/// The file cannot be written.
pub(super) fn keep_default(profile: &Profile) -> Result<Option<PathBuf>, CtlError> {
    let Some(path) = path().filter(|path| !path.exists()) else { return Ok(None) };
    let failed = |problem: String| CtlError::Usage(format!("cannot write {}: {problem}", path.display()));
    let text = toml::to_string(&BTreeMap::from([(DEFAULT, profile)])).map_err(|error| failed(error.to_string()))?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| failed(error.to_string()))?;
    }
    std::fs::write(&path, text).map_err(|error| failed(error.to_string()))?;
    Ok(Some(path))
}

/// The XDG Base Directory Specification's place.
fn path() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")))?;
    Some(folder.join("thawd/profiles.toml"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, name: Option<&str>) -> Result<Profile, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        Profile::load_from(file.path(), name).map_err(|error| error.to_string())
    }

    #[test]
    fn a_profile_is_chosen_by_name_and_the_default_one_without() {
        let text = "[default]\nuser = 'a'\n[work]\nsocket = '/s'\nprovider = 'openai'\n\
                    [work.credential_files.openai]\n'auth.json' = '/a.json'\n";
        assert_eq!(load(text, None).unwrap().user.as_deref(), Some("a"));
        let work = load(text, Some("work")).unwrap();
        assert_eq!((work.socket, work.user), (Some("/s".into()), None));
        assert_eq!(work.credential_files["openai"]["auth.json"], Path::new("/a.json"));
        assert!(load("", None).unwrap().user.is_none());
    }

    #[test]
    fn mistakes_are_named() {
        let error = load("[work]\n", Some("play")).unwrap_err();
        assert!(error.contains("[play]") && error.contains("work"), "{error}");
        assert!(load("[a]\nusr = 'x'\n", Some("a")).unwrap_err().contains("usr"));
        let nowhere = Profile::load_from(Path::new("/nonexistent/p.toml"), Some("a")).unwrap_err().to_string();
        assert!(nowhere.contains("/nonexistent/p.toml"), "{nowhere}");
        assert!(Profile::load_from(Path::new("/nonexistent/p.toml"), None).is_ok());
    }
}
