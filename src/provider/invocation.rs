//! Turns a prompt into the exact process: argument vector, environment, standard input, limits.

use std::{collections::BTreeMap, time::Duration};

use super::{
    credentials::CredentialError,
    dialect::Dialect,
    manifest::{PromptVia, Provider},
    template::{matches, render},
};

/// Longest single argument, bytes, its final NUL included: `MAX_ARG_STRLEN` of Linux (include/uapi/linux/binfmts.h).
const ARGUMENT_LIMIT: usize = 128 * 1024;

/// A prompt and what belongs to it.
#[derive(Debug, Clone, Copy, Default)]
pub struct PromptSpec<'a> {
    /// The prompt; must hold more than white space.
    pub prompt: &'a str,
    /// Model or alias; `None` for the manifest's default.
    pub model: Option<&'a str>,
    /// Name of one of the manifest's efforts.
    pub effort: Option<&'a str>,
    /// Names of the credential files given.
    pub credential_files: &'a [&'a str],
    /// Names of the credential variables given.
    pub credential_env: &'a [&'a str],
    /// The operator's own upstream, `http://` or `https://`, instead of the provider's.
    pub base_url: Option<&'a str>,
}

/// The process that answers a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invocation {
    /// Argument vector; the first one is looked up in the image's `PATH`.
    pub argv: Vec<String>,
    /// Environment, sorted by name: without `HOME`, `PATH`, the proxy variables and the credentials themselves.
    pub env: Vec<(String, String)>,
    /// Bytes for standard input, which is closed after them. `None` for `/dev/null`: a CLI that looks for input (gemini
    /// waits half a second) sees the end at once.
    pub stdin: Option<Vec<u8>>,
    /// Wall-clock limit when the request names none.
    pub timeout: Duration,
    /// Time until the first byte on standard output or standard error, at most.
    pub start_timeout: Duration,
    /// Decoder for the CLI's output.
    pub dialect: Dialect,
    /// Model, with aliases resolved.
    pub model: String,
}

/// Why a prompt cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvocationError {
    /// The provider's image has no CLI.
    #[error("provider `{provider}` has no CLI that takes a prompt; give `command` instead")]
    NoCommand {
        /// Provider.
        provider: String,
    },
    /// The prompt is empty or white space.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// The prompt is longer than one argument may be.
    #[error(
        "the prompt is {bytes} bytes long; provider `{provider}` takes it as an argument, which Linux limits to {limit}"
    )]
    PromptTooLong {
        /// Provider.
        provider: String,
        /// Length given, bytes.
        bytes: usize,
        /// Longest prompt that fits, bytes.
        limit: usize,
    },
    /// The prompt goes into an argument, but holds a NUL, which ends an argument.
    #[error("the prompt contains a NUL character, which provider `{provider}` cannot take")]
    PromptHasNul {
        /// Provider.
        provider: String,
    },
    /// The manifest does not have this model.
    #[error("provider `{provider}` has no model {model:?}; it has {known}")]
    UnknownModel {
        /// Provider.
        provider: String,
        /// Model asked for.
        model: String,
        /// Aliases and patterns.
        known: String,
    },
    /// The manifest does not have this effort.
    #[error("provider `{provider}` has no effort {effort:?}; it has {known}")]
    UnknownEffort {
        /// Provider.
        provider: String,
        /// Effort asked for.
        effort: String,
        /// Efforts of the manifest.
        known: String,
    },
    /// The operator's base URL cannot be passed to a CLI.
    #[error("the configured base URL of provider `{provider}` {problem}")]
    BaseUrl {
        /// Provider.
        provider: String,
        /// What is wrong; completes the sentence. The URL itself is not repeated, since it may hold a password.
        problem: &'static str,
    },
    /// A credential is missing or unknown, or there are too many.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

impl Provider {
    /// Makes the process that answers a prompt.
    ///
    /// # Errors
    /// Everything that is wrong before a process starts. The client can correct all of it, except
    /// [`InvocationError::BaseUrl`], which is the operator's.
    pub fn invocation(&self, spec: &PromptSpec<'_>) -> Result<Invocation, InvocationError> {
        let provider = || self.name.clone();
        if self.command.argv.is_empty() {
            return Err(InvocationError::NoCommand { provider: provider() });
        }
        if spec.prompt.trim().is_empty() {
            return Err(InvocationError::EmptyPrompt);
        }
        self.check_credentials(spec.credential_files, spec.credential_env)?;
        let model = self.resolve_model(spec.model)?;
        let effort = match spec.effort {
            None => None,
            Some(name) => Some(self.efforts.get(name).ok_or_else(|| InvocationError::UnknownEffort {
                provider: provider(),
                effort: name.to_owned(),
                known: words(self.efforts.keys()),
            })?),
        };
        let base_url = spec.base_url.map(|url| self.check_base_url(url)).transpose()?;

        let values =
            [("model", model), ("effort", spec.effort.unwrap_or_default()), ("base_url", base_url.unwrap_or_default())];
        let mut args = Vec::new();
        let mut env: BTreeMap<String, String> = self.env.clone();
        let mut add = |more_args: &[String], more_env: &BTreeMap<String, String>| {
            args.extend(more_args.iter().map(|arg| render(arg, &values)));
            env.extend(more_env.iter().map(|(name, value)| (name.clone(), render(value, &values))));
        };
        if let Some(effort) = effort {
            add(&effort.args, &effort.env);
        }
        for when in &self.when {
            if when.holds(spec.credential_files, spec.credential_env, base_url.is_some()) {
                add(&when.args, &when.env);
            }
        }

        let on_stdin = || Some(spec.prompt.as_bytes().to_vec());
        let (argv, stdin) = match self.command.prompt {
            PromptVia::Stdin => (self.argv(&values, args), on_stdin()),
            PromptVia::ArgumentOrStdin if spec.prompt.len() > self.argument_limit() => {
                (self.argv(&values, args), on_stdin())
            }
            PromptVia::Argument | PromptVia::ArgumentOrStdin => {
                self.check_argument_prompt(spec.prompt)?;
                let [model, effort, base_url] = values;
                (self.argv(&[model, effort, base_url, ("prompt", spec.prompt)], args), None)
            }
        };
        Ok(Invocation {
            argv,
            env: env.into_iter().collect(),
            stdin,
            timeout: self.timeout(model, effort.and_then(|effort| effort.timeout)),
            start_timeout: self.command.start_timeout,
            dialect: self.command.dialect,
            model: model.to_owned(),
        })
    }

    fn argv(&self, values: &[(&str, &str)], args: Vec<String>) -> Vec<String> {
        let mut args = Some(args);
        let elements = self.command.argv.iter().flat_map(|element| match element.as_str() {
            // Validation allows this element once only.
            "{args}" => args.take().unwrap_or_default(),
            // A prompt that is not passed as an argument drops the element that would hold it.
            element if element.contains("{prompt}") && values.iter().all(|(name, _)| *name != "prompt") => Vec::new(),
            element => vec![render(element, values)],
        });
        elements.collect()
    }

    pub(super) fn resolve_model<'a>(&'a self, asked: Option<&'a str>) -> Result<&'a str, InvocationError> {
        let asked = asked.unwrap_or(&self.models.default);
        let model = self.models.aliases.get(asked).map_or(asked, String::as_str);
        // Only characters of model names, so that no model is taken for a flag, and none splits a line.
        let sound = model.starts_with(|c: char| c.is_ascii_alphanumeric())
            && model.len() <= 128
            && model.chars().all(|c| c.is_ascii_alphanumeric() || "-._:/@[]".contains(c));
        if sound && self.models.allowed.iter().any(|pattern| matches(pattern, model)) {
            return Ok(model);
        }
        Err(InvocationError::UnknownModel {
            provider: self.name.clone(),
            model: asked.chars().take(128).collect(),
            known: words(self.models.aliases.keys().chain(&self.models.allowed)),
        })
    }

    pub(super) fn check_base_url<'a>(&self, url: &'a str) -> Result<&'a str, InvocationError> {
        let error = |problem| InvocationError::BaseUrl { provider: self.name.clone(), problem };
        let Some(rest) = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) else {
            return Err(error("does not begin with http:// or https://"));
        };
        if rest.is_empty() || rest.starts_with('/') {
            return Err(error("names no host"));
        }
        // The URL ends up in arguments, which every user of the host can read, and between quotes in a CLI's settings.
        if rest.contains('@') {
            return Err(error("must not hold a user name or password"));
        }
        if rest.chars().any(|c| !c.is_ascii_graphic() || "\"'\\`{}?#".contains(c)) {
            return Err(error("holds a character that a base URL cannot have (white space, quotes, braces, ? or #)"));
        }
        Ok(url.trim_end_matches('/'))
    }

    fn check_argument_prompt(&self, prompt: &str) -> Result<(), InvocationError> {
        if prompt.contains('\0') {
            return Err(InvocationError::PromptHasNul { provider: self.name.clone() });
        }
        let limit = self.argument_limit();
        if prompt.len() > limit {
            let bytes = prompt.len();
            return Err(InvocationError::PromptTooLong { provider: self.name.clone(), bytes, limit });
        }
        Ok(())
    }

    /// Longest prompt that fits into the argument that holds `{prompt}`, bytes.
    fn argument_limit(&self) -> usize {
        let around: usize =
            self.command.argv.iter().filter(|element| element.contains("{prompt}")).map(String::len).sum();
        (ARGUMENT_LIMIT - 1).saturating_sub(around.saturating_sub("{prompt}".len()))
    }

    /// The longest of the limits that apply.
    fn timeout(&self, model: &str, effort: Option<Duration>) -> Duration {
        let by_model = self.timeouts.model.iter().filter(|rule| matches(&rule.pattern, model)).map(|rule| rule.timeout);
        by_model.chain(effort).fold(self.timeouts.default, Duration::max)
    }
}

fn words<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let words: Vec<&str> = names.map(String::as_str).collect();
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}
