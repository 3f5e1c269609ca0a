//! `thawctl completion SHELL`: a script for the shell that asks this program, which asks the daemon.

use std::ffi::OsStr;
use std::io;
use std::time::Duration;

use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{Bash, EnvCompleter, Fish, Zsh};
use serde_json::Value;

use super::format::plain;
use super::ids::NAME_LABEL;
use super::profile::Profile;
use super::{CtlError, print};
use thaw_client::client::Client;

/// Variable that makes this program complete instead of running; its value is the shell.
pub(super) const VARIABLE: &str = "THAWCTL_COMPLETE";

/// Longest time that a tab waits for the daemon.
const PATIENCE: Duration = Duration::from_secs(1);

/// Shells.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Shell {
    /// bash
    Bash,
    /// fish
    Fish,
    /// zsh
    Zsh,
}

/// Prints the script.
pub(super) fn script(shell: Shell) -> Result<(), CtlError> {
    let completer: &dyn EnvCompleter = match shell {
        Shell::Bash => &Bash,
        Shell::Fish => &Fish,
        Shell::Zsh => &Zsh,
    };
    let mut text = Vec::new();
    completer.write_registration(VARIABLE, "thawctl", "thawctl", "thawctl", &mut text)?;
    let text = String::from_utf8(text).map_err(io::Error::other)?;
    Ok(print(&text)?)
}

/// Ids and names of executions.
pub(super) fn executions() -> ArgValueCompleter {
    live("/v1/executions", |item| {
        let name = plain(item["labels"].get(NAME_LABEL));
        let (id, state) = (plain(item.get("id")), plain(item.get("state")));
        let help = format!("{state} {} {}", plain(item.get("provider")), plain(item.get("user")));
        [id, name].into_iter().filter(|text| !text.is_empty()).map(|text| (text, help.clone())).collect()
    })
}

/// Ids of sandboxes, and names as whoever has them is called.
pub(super) fn sandboxes() -> ArgValueCompleter {
    live("/v1/sandboxes", |item| {
        let (id, user) = (plain(item.get("id")), plain(item.get("user")));
        let name = plain(item.get("name"));
        let help = format!("{} {name} {user}", plain(item.get("state")));
        let named = (!name.is_empty()).then(|| format!("{user}/{name}"));
        [Some(id), named].into_iter().flatten().map(|text| (text, help.clone())).collect()
    })
}

/// Users that have executions.
pub(super) fn users() -> ArgValueCompleter {
    live("/v1/executions", |item| vec![(plain(item.get("user")), String::new())])
}

/// Providers.
pub(super) fn providers() -> ArgValueCompleter {
    live("/v1/providers", |item| vec![(plain(item.get("name")), plain(item.get("default_model")))])
}

/// Images of the store.
pub(super) fn images() -> ArgValueCompleter {
    live("/v1/images", |item| vec![(plain(item.get("name")), String::new())])
}

/// Values that the daemon lists at `path`.
fn live(path: &'static str, of: fn(&Value) -> Vec<(String, String)>) -> ArgValueCompleter {
    ArgValueCompleter::new(move |current: &OsStr| {
        let current = current.to_string_lossy();
        let mut found: Vec<(String, String)> = fetch(path).iter().flat_map(of).collect();
        found.retain(|(value, _)| value.starts_with(current.as_ref()));
        found.sort();
        found.dedup_by(|a, b| a.0 == b.0);
        let candidate = |(value, help): (String, String)| {
            CompletionCandidate::new(value).help((!help.is_empty()).then(|| help.into()))
        };
        found.into_iter().map(candidate).collect()
    })
}

/// The items, or none: a shell that completes has no place for complaints.
fn fetch(path: &str) -> Vec<Value> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let profile = Profile::load(None).unwrap_or_default();
    let Ok(client) = Client::new(&super::socket(None, &profile)) else { return Vec::new() };
    let items = async { tokio::time::timeout(PATIENCE, client.list(path)).await };
    runtime.block_on(items).ok().and_then(Result::ok).unwrap_or_default()
}
