//! `thawctl ps` and `inspect`: executions.

use serde_json::Value;

use super::fields::Fields;
use super::filter::Filters;
use super::format::Format;
use super::ids::{self, newest_first, short};
use super::table::{age, table};
use super::view::{now_ms, typed, word};
use super::{CtlError, print};
use thaw_client::client::{Client, execution_path};
use thaw_client::types::{Execution, ExecutionState, ExitReason};

/// Arguments of `thawctl ps`.
#[derive(Debug, clap::Args)]
pub(super) struct PsArgs {
    /// Print only the ids of the executions, whole
    #[arg(long, short)]
    quiet: bool,
    /// Also list executions that ended, newest first
    #[arg(long, short)]
    all: bool,
    /// Show the newest N, ended ones included
    #[arg(long, short = 'n', value_name = "N")]
    last: Option<usize>,
    /// Show whole ids
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    filters: Filters,
}

/// One or more executions.
#[derive(Debug, clap::Args)]
pub(super) struct Ids {
    /// Ids of executions, unique beginnings of them, or names; see `thawctl ps --all`
    #[arg(required = true, value_name = "ID", add = super::completion::executions())]
    ids: Vec<String>,
}

pub(super) async fn ps(client: &Client, args: &PsArgs, format: &Format) -> Result<(), CtlError> {
    let fields = Fields::of::<Execution>();
    let mut items = newest_first(client).await?;
    // Who asks for a state or an end wants to see it.
    let ended = args.all || args.last.is_some() || args.filters.names(&["state", "exit.code", "exit.reason"]);
    items.retain(|item| ended || item["state"] != "exited");
    args.filters.apply(&mut items, &fields)?;
    items.truncate(args.last.unwrap_or(usize::MAX));
    if args.quiet {
        let ids = items.iter().map(|item| super::format::plain(item.get("id")) + "\n");
        return Ok(print(&ids.collect::<String>())?);
    }
    format.print(&items, &fields, || {
        let now = now_ms();
        let executions: Vec<Execution> = typed(&items)?;
        let rows = executions.iter().map(|execution| row(execution, now, args.no_trunc));
        Ok(table(["EXECUTION", "PROVIDER", "USER", "STATE", "PATH", "STARTED", "NAME", "COMMAND"], rows))
    })
}

fn row(execution: &Execution, now: u64, whole: bool) -> [String; 8] {
    [
        if whole { execution.id.clone() } else { short(&execution.id).to_owned() },
        execution.provider.clone(),
        execution.user.clone(),
        state(execution),
        execution.path.as_ref().map(word).unwrap_or_default(),
        format!("{} ago", age(execution.created_at_ms, now)),
        execution.labels.get(ids::NAME_LABEL).cloned().unwrap_or_default(),
        execution
            .command
            .clone()
            .or_else(|| Some(format!("prompt to {}", execution.model.as_ref()?)))
            .unwrap_or_default(),
    ]
}

/// The state in words, with how it ended.
pub(super) fn state(execution: &Execution) -> String {
    match (&execution.exit, execution.state) {
        (None, ExecutionState::Queued) => match execution.queue_position {
            Some(position) => format!("queued ({position})"),
            None => "queued".to_owned(),
        },
        (None, state) => word(&state),
        (Some(exit), _) if exit.reason == ExitReason::Exited => match (exit.code, exit.signal) {
            (_, Some(signal)) => format!("exited (signal {signal})"),
            (Some(0), None) if !exit.success => "exited (0, failed)".to_owned(),
            (code, None) => format!("exited ({})", code.unwrap_or_default()),
        },
        (Some(exit), _) => word(&exit.reason),
    }
}

/// Prints all that the API says of executions.
pub(super) async fn inspect(client: &Client, args: &Ids, format: &Format) -> Result<(), CtlError> {
    let mut items: Vec<Value> = Vec::new();
    for id in ids::resolve_all(client, &args.ids).await? {
        items.push(client.get(&execution_path(&id?)?).await?);
    }
    // A table of one execution says less than its JSON.
    let format = if *format == Format::Table { &Format::Json } else { format };
    format.print(&items, &Fields::of::<Execution>(), || Ok(String::new()))
}
