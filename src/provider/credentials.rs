//! Which credentials a request may bring, by name. Their contents never come here.

use std::collections::BTreeMap;

use super::manifest::{Condition, CredentialSpec, Provider, When};

/// Why the credentials of a request cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// None was given.
    #[error("provider `{provider}` needs a credential: give {wanted}")]
    Missing {
        /// Provider.
        provider: String,
        /// What it would take.
        wanted: String,
    },
    /// A file that the provider does not read.
    #[error("provider `{provider}` reads no credential file named {name:?}; it takes {wanted}")]
    UnknownFile {
        /// Provider.
        provider: String,
        /// Name given.
        name: String,
        /// What it would take.
        wanted: String,
    },
    /// A variable that the provider does not read a credential from.
    #[error("provider `{provider}` takes no credential from a variable named {name:?}; it takes {wanted}")]
    UnknownVariable {
        /// Provider.
        provider: String,
        /// Name given.
        name: String,
        /// What it would take.
        wanted: String,
    },
    /// More than one credential: which one the CLI would use, and who would pay, is not for us to guess.
    #[error("provider `{provider}` got more than one credential ({given}); give one")]
    Several {
        /// Provider.
        provider: String,
        /// What was given.
        given: String,
    },
}

impl Provider {
    /// Gives credential variables the names that the CLI knows them by.
    ///
    /// # Errors
    /// One was given under both of its names.
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

    /// Checks the credentials of a command, which may do without.
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
    /// What would be taken, in words.
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
    /// Whether the block applies.
    pub(super) fn holds(&self, files: &[&str], env: &[&str], has_base_url: bool) -> bool {
        let credential = match &self.credential {
            None => true,
            Some(Condition::File(name)) => files.iter().any(|given| name == "*" || name == given),
            Some(Condition::Env(name)) => env.iter().any(|given| name == "*" || name == given),
        };
        credential && self.base_url.is_none_or(|wanted| wanted == has_base_url)
    }
}
