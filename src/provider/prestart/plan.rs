//! Plan of a prestarted CLI, made from a manifest, and which requests a CLI of that plan can take.

use std::{collections::BTreeMap, time::Duration};

use super::{
    LateRequest,
    auth::{self, Unusable},
    credential::Credential,
    manifest::{HandOver, LateCredential, ModelMode, Protocol},
    subject::Subject,
};
use crate::provider::{
    InvocationError,
    manifest::{Condition, Provider},
    template::render,
};
use serde::{Deserialize, Serialize};
use thaw_client::types::Secret;

/// How a CLI is prestarted; the same for every process of one pool.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Protocol of the CLI.
    pub protocol: Protocol,
    /// Argument vector; the first one is looked up in the image's `PATH`.
    pub argv: Vec<String>,
    /// Environment, sorted by name. `HOME`, `PATH` and the proxy variables are set by the daemon.
    pub env: Vec<(String, String)>,
    /// Working directory of the CLI.
    pub cwd: String,
    /// Model that the CLI is started with, aliases resolved.
    pub model: String,
    /// Whether the CLI takes another model at the claim. If not, a pool serves one model.
    pub model_mode: ModelMode,
    /// Time without output, once the CLI is ready, after which it is frozen.
    pub quiet: Duration,
    /// Time until the CLI must be ready, at the run class.
    pub ready_timeout: Duration,
    /// Memory of a waiting CLI, bytes, for the reservation while one is created.
    pub memory_bytes: u64,
    efforts: Vec<LateEffort>,
    /// Credential variables that the CLI was started with a placeholder for.
    pub(super) placeholders: Vec<String>,
    credentials: Vec<LateCredential>,
}

/// An effort that can be chosen at the claim.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LateEffort {
    pub(super) name: String,
    /// Tokens, from `MAX_THINKING_TOKENS` in the effort's environment.
    pub(super) thinking_tokens: Option<u32>,
}

/// Why a request cannot use a prestarted CLI and needs a process of its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The CLI does not wait for a prompt.
    #[error("it is not ready")]
    NotReady,
    /// The CLI was started with another model, which is fixed.
    #[error("it was started with the model {0}, which cannot be changed")]
    Model(String),
    /// The effort needs arguments or variables, which a running process cannot take.
    #[error("the effort {0} cannot be chosen after the start")]
    Effort(String),
    /// It cannot be told to work in another directory.
    #[error("a running process cannot be moved to {0}")]
    Directory(String),
    /// The request sets variables.
    #[error("the environment of a running process cannot be changed")]
    Environment,
    /// A credential of this kind, or none, cannot be passed to a running process.
    #[error("{0} cannot be handed to a running process")]
    Credential(String),
    /// This credential needs the CLI's own handling of the file.
    #[error("{name}: {problem}")]
    Unusable {
        /// Name of the file.
        name: String,
        /// What is wrong with it; says nothing of its content.
        problem: Unusable,
    },
}

impl Provider {
    /// Makes the plan; `None` if the manifest has no `[prestart]`.
    ///
    /// # Errors
    /// An unknown model, which the client can correct, or an unusable base URL, which is the operator's.
    pub fn prestart(&self, model: Option<&str>, base_url: Option<&str>) -> Result<Option<Plan>, InvocationError> {
        let Some(prestart) = &self.prestart else { return Ok(None) };
        let model = self.resolve_model(model)?;
        let base_url = base_url.map(|url| self.check_base_url(url)).transpose()?;
        let values = [("model", model), ("base_url", base_url.unwrap_or_default())];
        let mut args = Vec::new();
        let mut env: BTreeMap<String, String> = self.env.clone();
        let render_env = |more: &BTreeMap<String, String>| -> Vec<(String, String)> {
            more.iter().map(|(name, value)| (name.clone(), render(value, &values))).collect()
        };
        env.extend(render_env(&prestart.env));
        for when in prestart.when.iter().filter(|when| when.holds(&[], &[], base_url.is_some())) {
            args.extend(when.args.iter().map(|arg| render(arg, &values)));
            env.extend(render_env(&when.env));
        }
        let mut args = Some(args);
        let argv = prestart.argv.iter().flat_map(|element| match element.as_str() {
            // Validation allows this element once only.
            "{args}" => args.take().unwrap_or_default(),
            element => vec![render(element, &values)],
        });
        Ok(Some(Plan {
            protocol: prestart.protocol,
            argv: argv.collect(),
            env: env.into_iter().collect(),
            cwd: self.home.clone(),
            model: model.to_owned(),
            model_mode: prestart.model,
            quiet: prestart.quiet,
            ready_timeout: prestart.ready_timeout,
            memory_bytes: prestart.memory_bytes,
            efforts: prestart.efforts.iter().map(|name| self.late_effort(name)).collect(),
            placeholders: self
                .credentials
                .env
                .iter()
                .filter(|name| prestart.env.contains_key(*name))
                .cloned()
                .collect(),
            credentials: prestart.credentials.clone(),
        }))
    }

    fn late_effort(&self, name: &str) -> LateEffort {
        let tokens = self.efforts.get(name).and_then(|effort| effort.env.get("MAX_THINKING_TOKENS"));
        LateEffort { name: name.to_owned(), thinking_tokens: tokens.and_then(|tokens| tokens.parse().ok()) }
    }
}

impl Plan {
    /// What a conversation with such a process is about.
    pub(super) fn subject(&self) -> Subject {
        let program = self.argv.first().cloned().unwrap_or_default();
        Subject { program, model: self.model.clone(), cwd: self.cwd.clone() }
    }

    /// Whether a process of this plan can take `request`; asked before one is claimed.
    ///
    /// # Errors
    /// Why the claim must use a container without a CLI in it.
    pub fn can_take(&self, request: &LateRequest<'_>) -> Result<(), Refusal> {
        if self.model_mode == ModelMode::Fixed && request.model != self.model {
            return Err(Refusal::Model(self.model.clone()));
        }
        if let Some(effort) = request.effort
            && self.effort(effort).is_none()
        {
            return Err(Refusal::Effort(effort.to_owned()));
        }
        if let (Some(cwd), Protocol::ClaudeStreamJson) = (request.cwd, self.protocol) {
            return Err(Refusal::Directory(cwd.to_owned()));
        }
        if !request.env.is_empty() {
            return Err(Refusal::Environment);
        }
        self.credential(request).map(|_| ())
    }

    /// Whether the request's files must be in the credential directory before the claim is written.
    pub fn mounts_files(&self, request: &LateRequest<'_>) -> bool {
        matches!(self.credential(request), Ok(Credential::File))
    }

    pub(super) fn effort(&self, name: &str) -> Option<&LateEffort> {
        self.efforts.iter().find(|known| known.name == name)
    }

    pub(super) fn credential<'a>(&self, request: &LateRequest<'a>) -> Result<Credential<'a>, Refusal> {
        let files = request.files.iter().map(|(name, value)| (Condition::File(name.clone()), name, value));
        let variables = request.variables.iter().map(|(name, value)| (Condition::Env(name.clone()), name, value));
        let mut given = files.chain(variables);
        let Some((condition, name, value)) = given.next() else {
            return Err(Refusal::Credential("a request without a credential".to_owned()));
        };
        if given.next().is_some() {
            return Err(Refusal::Credential("more than one credential".to_owned()));
        }
        match self.credentials.iter().find(|known| known.credential == condition) {
            None => Err(Refusal::Credential(name.clone())),
            Some(known) => handed_over(known.by, name, value, request),
        }
    }
}

fn handed_over<'a>(
    by: HandOver,
    name: &'a str,
    value: &'a Secret,
    request: &LateRequest<'_>,
) -> Result<Credential<'a>, Refusal> {
    Ok(match by {
        HandOver::ApiKey => Credential::Key(value.expose()),
        HandOver::Environment => Credential::Variable(name, value.expose()),
        HandOver::File => Credential::File,
        HandOver::AuthJson => auth::read(value.expose(), request.now)
            .map_err(|problem| Refusal::Unusable { name: name.to_owned(), problem })?,
    })
}
