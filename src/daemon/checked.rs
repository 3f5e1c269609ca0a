//! What follows from a configuration that is right: found before anything on the machine is touched.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::advice;
use super::directories::init_program;
use super::error::{DaemonError, PrestartProblem, io_error};
use super::identities::egress_identities;
use super::images::nameless;
use super::settings::{self, image_settings};
use crate::egress::{Identity, Policy};
use crate::execution::ImageSettings;
use crate::provider::{self, Provider, prestart};
use crate::telemetry;
use thaw_client::config::{self, Config};

/// Checks everything about a configuration that can be checked without touching the machine: log filter, manifests,
/// allow-lists, what is to be prestarted, and that `thaw-init` is there. Images that are unpacked are looked at as well.
///
/// # Errors
/// The first mistake found.
pub fn check(config: &Config) -> Result<Sound, DaemonError> {
    telemetry::check_filter(&config.log.filter)?;
    let providers = Checked::new(config)?.providers;
    let mut warnings = advice::warnings(config, &load_providers(config)?);
    warnings.extend(nameless(config, providers.values().map(|checked| &*checked.provider)));
    Ok(Sound { providers: providers.len(), warnings })
}

/// A configuration without a mistake.
#[derive(Debug)]
pub struct Sound {
    /// How many providers there are.
    pub providers: usize,
    /// What is allowed, but will hardly do what it is meant to.
    pub warnings: Vec<String>,
}

/// What follows from a configuration in which everything has been found right. It comes before anything that an earlier
/// daemon left is touched: dropping a survivor destroys it, so a mistake has to be found while they are still the keeper's.
pub(super) struct Checked {
    pub(super) providers: BTreeMap<String, CheckedProvider>,
    pub(super) image_runs: ImageSettings,
    /// Addresses with which users go out.
    pub(super) identities: Vec<Identity>,
    /// This program.
    pub(super) program: PathBuf,
    pub(super) init: PathBuf,
}

pub(super) struct CheckedProvider {
    pub(super) provider: Arc<Provider>,
    pub(super) policy: Arc<Policy>,
    /// What is started ahead of time, and how often.
    pub(super) plans: Vec<(prestart::Plan, usize)>,
    pub(super) base_url: Option<String>,
}

impl Checked {
    pub(super) fn new(config: &Config) -> Result<Self, DaemonError> {
        let image_runs = image_settings(config)?;
        let identities = egress_identities(config)?;
        let check = |(name, mut provider): (String, Provider)| {
            let changes = config.provider.get(&name).cloned().unwrap_or_default();
            provider
                .set_refresh(changes.refresh, changes.token_url.as_deref(), changes.base_url.is_some())
                .map_err(|problem| DaemonError::Refresh { provider: name.clone(), problem })?;
            let policy = Arc::new(policy(config, &name, &provider, &changes)?);
            let plans = prestart_plans(&name, &provider, &changes)?;
            let base_url = changes.base_url;
            Ok((name, CheckedProvider { provider: Arc::new(provider), policy, plans, base_url }))
        };
        let providers = load_providers(config)?.into_iter().map(check).collect::<Result<_, DaemonError>>()?;
        let program = std::env::current_exe().map_err(io_error("find this program"))?;
        let init = init_program(config, &program)?;
        Ok(Self { providers, image_runs, identities, program, init })
    }
}

fn load_providers(config: &Config) -> Result<BTreeMap<String, Provider>, DaemonError> {
    let directory = &config.paths.providers_dir;
    let providers = provider::load_dir(directory)?;
    match config.provider.keys().find(|name| !providers.contains_key(*name)) {
        Some(name) => Err(DaemonError::UnknownProvider { name: name.clone(), directory: directory.clone() }),
        None => Ok(providers),
    }
}

fn policy(config: &Config, name: &str, provider: &Provider, changes: &config::Provider) -> Result<Policy, DaemonError> {
    let allowed = settings::provider_egress(provider, changes);
    Policy::new(&allowed, config.egress.resolve.clone(), config.egress.allow_private.clone())
        .map_err(|source| DaemonError::Policy { provider: name.to_owned(), source })
}

/// What is started ahead of time, and how often: with the default model, and with those that are named.
fn prestart_plans(
    name: &str,
    provider: &Provider,
    changes: &config::Provider,
) -> Result<Vec<(prestart::Plan, usize)>, DaemonError> {
    plans(provider, changes).map_err(|problem| DaemonError::Prestart { provider: name.to_owned(), problem })
}

fn plans(provider: &Provider, changes: &config::Provider) -> Result<Vec<(prestart::Plan, usize)>, PrestartProblem> {
    let plan =
        |model: Option<&str>| provider.prestart(model, changes.base_url.as_deref())?.ok_or(PrestartProblem::Unknown);
    let mut plans: Vec<(prestart::Plan, usize)> = Vec::new();
    if changes.prestarted > 0 {
        plans.push((plan(None)?, changes.prestarted));
    }
    for (model, count) in &changes.prestarted_models {
        let plan = plan(Some(model))?;
        if plan.model_mode == prestart::ModelMode::Late {
            return Err(PrestartProblem::AnyModel);
        }
        if plans.iter().any(|(other, _)| other.model == plan.model) {
            return Err(PrestartProblem::Twice { name: model.clone(), model: plan.model });
        }
        plans.push((plan, *count));
    }
    Ok(plans)
}
