//! `thawctl cancel`, which docker calls `stop` and `kill`; `thawctl wait`.

use std::time::Duration;

use serde_json::Value;

use super::filter::has_label;
use super::format::plain;
use super::ids::{self, newest_first};
use super::{CtlError, complain, exit, print, ps};
use thaw_client::client::Client;
use thaw_client::types::{ExecutionState, Exit};

/// Longest time that one request of `wait` waits.
const ROUND: Duration = Duration::from_secs(60);

/// Arguments of `thawctl cancel`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The command gets SIGTERM, and SIGKILL after `execution.kill_grace_ms` of the daemon's configuration. The exit code is 0 when \
the daemon took all of them, and when one had ended before, which is told.")]
pub(super) struct CancelArgs {
    /// Ids of executions, unique beginnings of them, or names; see `thawctl ps`
    #[arg(value_name = "ID", required_unless_present_any = ["all", "user", "label"],
        conflicts_with_all = ["all", "user", "label"], add = super::completion::executions())]
    ids: Vec<String>,
    /// End all that run or wait
    #[arg(long, short)]
    all: bool,
    /// End all of this user
    #[arg(long, short, value_name = "NAME", add = super::completion::users())]
    user: Option<String>,
    /// End all that have this label, with this value if one is given; may be repeated
    #[arg(long, short, value_name = "KEY[=VALUE]")]
    label: Vec<String>,
    /// docker's option, accepted where it says what is done anyway
    #[arg(long, short, hide = true, value_name = "SIGNAL", value_parser = the_signal)]
    signal: Option<String>,
}

/// The one signal that a cancelled command gets first.
fn the_signal(text: &str) -> Result<String, String> {
    match text.trim_start_matches("SIG") {
        "TERM" | "15" => Ok(text.to_owned()),
        _ => Err("cancel sends SIGTERM, then SIGKILL after the grace period; no other signal can be sent".to_owned()),
    }
}

/// Cancels all of them, printing the id of each one that the daemon took; the exit code tells whether it took all.
pub(super) async fn cancel(client: &Client, args: &CancelArgs) -> Result<u8, CtlError> {
    let ids = if args.ids.is_empty() {
        chosen(client, args).await?.into_iter().map(Ok).collect()
    } else {
        ids::resolve_all(client, &args.ids).await?
    };
    let mut code = 0;
    for id in ids {
        let result = match id {
            Ok(id) => one(client, &id).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(line) => print(&line)?,
            Err(CtlError::Output(error)) => return Err(error.into()),
            Err(error) => {
                complain(&error.to_string());
                code = exit::FAILED;
            }
        }
    }
    Ok(code)
}

/// Those that run and that the options name.
async fn chosen(client: &Client, args: &CancelArgs) -> Result<Vec<String>, CtlError> {
    let fits = |item: &Value| {
        item["state"] != "exited"
            && args.user.as_ref().is_none_or(|user| item["user"] == user.as_str())
            && args.label.iter().all(|label| has_label(item, label))
    };
    let items = newest_first(client).await?;
    let ids: Vec<String> = items.iter().filter(|item| fits(item)).map(|item| plain(item.get("id"))).collect();
    if ids.is_empty() {
        complain("nothing runs that fits");
    }
    Ok(ids)
}

async fn one(client: &Client, id: &str) -> Result<String, CtlError> {
    let before = client.execution(id).await?;
    if before.state == ExecutionState::Exited {
        complain(&format!("{id} had ended before: {}", ps::state(&before)));
        return Ok(String::new());
    }
    client.cancel(id).await?;
    Ok(format!("{id}\n"))
}

/// Arguments of `thawctl rm`.
#[derive(Debug, clap::Args)]
pub(super) struct RmArgs {
    /// Ids of executions, unique beginnings of them, or names; see `thawctl ps --all`
    #[arg(required = true, value_name = "ID", add = super::completion::executions())]
    ids: Vec<String>,
    /// End one that runs first
    #[arg(long, short)]
    force: bool,
}

/// Deletes ended executions with all that they have written; prints the id of each.
pub(super) async fn rm(client: &Client, args: &RmArgs) -> Result<u8, CtlError> {
    let mut code = 0;
    for id in ids::resolve_all(client, &args.ids).await? {
        let result = match id {
            Ok(id) => delete(client, &id, args.force).await.map(|()| id),
            Err(error) => Err(error),
        };
        match result {
            Ok(id) => print(&format!("{id}\n"))?,
            Err(error) => {
                complain(&error.to_string());
                code = exit::FAILED;
            }
        }
    }
    Ok(code)
}

async fn delete(client: &Client, id: &str, force: bool) -> Result<(), CtlError> {
    if force && client.execution(id).await?.state != ExecutionState::Exited {
        client.cancel(id).await?;
        end_of(client, id).await?;
    }
    Ok(client.delete(id).await?)
}

/// Arguments of `thawctl wait`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints the exit code of each, as `thawctl run` would have ended: see `thawctl run --help`. The exit code of wait itself is 0, \
or with --exit-code that of the last one.")]
pub(super) struct WaitArgs {
    /// Ids of executions, unique beginnings of them, or names; see `thawctl ps`
    #[arg(required = true, value_name = "ID", add = super::completion::executions())]
    ids: Vec<String>,
    /// End with the exit code of the last one
    #[arg(long)]
    exit_code: bool,
}

/// Waits until they have ended, in the order given.
pub(super) async fn wait(client: &Client, args: &WaitArgs) -> Result<u8, CtlError> {
    let mut last = 0;
    for id in ids::resolve_all(client, &args.ids).await? {
        let ended = end_of(client, &id?).await?;
        last = exit::code(&ended, None);
        print(&format!("{last}\n"))?;
    }
    Ok(if args.exit_code { last } else { 0 })
}

async fn end_of(client: &Client, id: &str) -> Result<Exit, CtlError> {
    loop {
        if let Some(ended) = client.execution_after(id, ROUND).await?.exit {
            return Ok(ended);
        }
    }
}
