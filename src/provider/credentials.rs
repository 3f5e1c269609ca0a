//! Checks the names of the credentials in a request. Their contents never reach this room.

use std::collections::BTreeMap;

use super::manifest::{Condition, CredentialSpec, Provider, When};

/// Why the credentials of a request cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The request has no credential.
    #[error("provider `{provider}` needs a credential: give {wanted}")]
    Missing {
        /// Provider.
        provider: String,
        /// Credentials that the provider takes.
        wanted: String,
    },
    /// The provider does not read a file of this name.
    #[error("provider `{provider}` reads no credential file named {name:?}; it takes {wanted}")]
    UnknownFile {
        /// Provider.
        provider: String,
        /// Name given.
        name: String,
        /// Credentials that the provider takes.
        wanted: String,
    },
    /// The provider does not read a credential from a variable of this name.
    #[error("provider `{provider}` takes no credential from a variable named {name:?}; it takes {wanted}")]
    UnknownVariable {
        /// Provider.
        provider: String,
        /// Name given.
        name: String,
        /// Credentials that the provider takes.
        wanted: String,
    },
    /// The request has more than one credential. The daemon does not guess which one the CLI would use, and who would
    /// pay.
    #[error("provider `{provider}` got more than one credential ({given}); give one")]
    Several {
        /// Provider.
        provider: String,
        /// Names of the credentials given.
        given: String,
    },
}

impl Provider {
    /// Renames credential variables from their aliases to the names that the CLI knows.
    ///
    /// # Errors
    /// A variable was given under both of its names.
    pub fn without_aliases<T>(&self, given: BTreeMap<String, T>) -> Result<BTreeMap<String, T>, CredentialError> {
        let mut renamed = BTreeMap::new();
        for (name, value) in given {
            let real = self.aliases.get(&name).filter(|real| self.credentials.env.contains(real));
            let real = real.unwrap_or(&name).clone();
            if renamed.insert(real.clone(), value).is_some() {
                let given = format!("{real} under two names");
                return Err(CredentialError::Several { provider: self.name.clone(), given });
            }
        }
        Ok(renamed)
    }

    /// Gives credential files the names that the CLI knows them by. A file may be named as it lies in a home directory
    /// (`~/.codex/auth.json`), or by one of the manifest's `file_aliases`.
    ///
    /// # Errors
    /// One was given under two names.
    pub fn file_names<T>(&self, given: BTreeMap<String, T>) -> Result<BTreeMap<String, T>, CredentialError> {
        let spec = &self.credentials;
        let mut renamed = BTreeMap::new();
        for (name, value) in given {
            let inside = name.strip_prefix("~/").and_then(|path| path.strip_prefix(&*spec.dir)?.strip_prefix('/'));
            let real = spec.file_aliases.get(&name).map(String::as_str).or(inside).unwrap_or(&name).to_owned();
            if renamed.insert(real.clone(), value).is_some() {
                let given = format!("{real} under two names");
                return Err(CredentialError::Several { provider: self.name.clone(), given });
            }
        }
        Ok(renamed)
    }

    /// Sets what a request says under another name under the CLI's as well, unless it says that too.
    pub fn add_aliased(&self, env: &mut BTreeMap<String, String>) {
        for (alias, name) in &self.aliases {
            if let Some(value) = env.get(alias).cloned() {
                env.entry(name.clone()).or_insert(value);
            }
        }
    }

    /// Checks the credentials of a prompt: known names only, exactly one source (files, or one variable), or none
    /// where the manifest allows that.
    ///
    /// # Errors
    /// The first of these rules that is broken.
    pub fn check_credentials(&self, files: &[&str], env: &[&str]) -> Result<(), CredentialError> {
        self.check_credential_names(files, env)?;
        if self.credentials.required && files.is_empty() && env.is_empty() {
            return Err(CredentialError::Missing { provider: self.name.clone(), wanted: self.credentials.wanted() });
        }
        Ok(())
    }

    /// Checks the credentials of a command. A command needs none.
    ///
    /// # Errors
    /// As [`Provider::check_credentials`], except that none is needed.
    pub fn check_credential_names(&self, files: &[&str], env: &[&str]) -> Result<(), CredentialError> {
        let provider = || self.name.clone();
        let wanted = || self.credentials.wanted();
        if let Some(name) = files.iter().find(|name| !self.credentials.files.iter().any(|known| known == *name)) {
            let name = (*name).to_owned();
            return Err(CredentialError::UnknownFile { provider: provider(), name, wanted: wanted() });
        }
        if let Some(name) = env.iter().find(|name| !self.credentials.env.iter().any(|known| known == *name)) {
            let name = (*name).to_owned();
            return Err(CredentialError::UnknownVariable { provider: provider(), name, wanted: wanted() });
        }
        if usize::from(!files.is_empty()) + env.len() > 1 {
            let given: Vec<&str> = files.iter().chain(env).copied().collect();
            return Err(CredentialError::Several { provider: provider(), given: given.join(", ") });
        }
        Ok(())
    }
}

impl CredentialSpec {
    /// The credentials that the provider takes, in words.
    fn wanted(&self) -> String {
        let list = |names: &[String]| names.join(" or ");
        match (self.files.is_empty(), self.env.is_empty()) {
            (false, false) => format!("the file {}, or the variable {}", list(&self.files), list(&self.env)),
            (false, true) => format!("the file {}", list(&self.files)),
            (true, false) => format!("the variable {}", list(&self.env)),
            (true, true) => "none at all".to_owned(),
        }
    }
}

impl When {
    /// Whether the block applies to an execution.
    pub(super) fn holds(&self, files: &[&str], env: &[&str], has_base_url: bool) -> bool {
        let credential = match &self.credential {
            None => true,
            Some(Condition::File(name)) => files.iter().any(|given| name == "*" || name == given),
            Some(Condition::Env(name)) => env.iter().any(|given| name == "*" || name == given),
        };
        credential && self.base_url.is_none_or(|wanted| wanted == has_base_url)
    }
}
