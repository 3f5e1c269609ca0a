//! The commands that list what the daemon has, and those that take ids.

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde_json::Value;

use super::table::{age, bytes, table};
use super::{CtlError, Format, complain, exit, print};
use thaw_client::client::{Client, execution_path};
use thaw_client::types::{Container, ContainerState, Execution, ExecutionState, ExitReason};

/// Arguments of `thawctl ps`.
#[derive(Debug, clap::Args)]
pub(super) struct PsArgs {
    /// Print only the ids of the executions
    #[arg(long, short)]
    quiet: bool,
    /// Also list executions that ended
    #[arg(long, short)]
    all: bool,
}

/// One or more executions.
#[derive(Debug, clap::Args)]
pub(super) struct Ids {
    /// Ids of executions, see `thawctl ps --all`
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

pub(super) async fn ps(client: &Client, args: &PsArgs, format: Format) -> Result<(), CtlError> {
    let wanted = |state: ExecutionState| args.all || state != ExecutionState::Exited;
    if format == Format::Json && !args.quiet {
        let mut items: Vec<Value> = client.list("/v1/executions").await?;
        items.retain(|item| args.all || item["state"] != "exited");
        return json(&items);
    }
    let mut executions = client.executions().await?;
    executions.retain(|execution| wanted(execution.state));
    if args.quiet {
        return Ok(print(&executions.iter().map(|execution| format!("{}\n", execution.id)).collect::<String>())?);
    }
    let now = now_ms();
    let containers = client.containers().await?;
    let warm = containers.iter().filter(|container| container.state == ContainerState::Warm);
    let rows = executions.iter().map(|execution| execution_row(execution, now)).chain(warm.map(|c| warm_row(c, now)));
    Ok(print(&table(["EXECUTION", "CONTAINER", "PROVIDER", "USER", "STATE", "PATH", "AGE"], rows))?)
}

fn execution_row(execution: &Execution, now: u64) -> [String; 7] {
    let state = match &execution.exit {
        None => word(&execution.state),
        Some(exit) if exit.reason == ExitReason::Exited => match (exit.code, exit.signal) {
            (_, Some(signal)) => format!("exited (signal {signal})"),
            (Some(0), None) if !exit.success => "exited (0, failed)".to_owned(),
            (code, None) => format!("exited ({})", code.unwrap_or_default()),
        },
        Some(exit) => word(&exit.reason),
    };
    [
        execution.id.clone(),
        execution.container.clone().unwrap_or_default(),
        execution.provider.clone(),
        execution.user.clone(),
        state,
        execution.path.as_ref().map(word).unwrap_or_default(),
        age(execution.created_at_ms, now),
    ]
}

fn warm_row(container: &Container, now: u64) -> [String; 7] {
    let state = if container.frozen { "warm, frozen" } else { "warm, not frozen" };
    [
        String::new(),
        container.id.clone(),
        container.provider.clone(),
        String::new(),
        state.to_owned(),
        String::new(),
        age(container.created_at_ms, now),
    ]
}

pub(super) async fn pools(client: &Client, format: Format) -> Result<(), CtlError> {
    if format == Format::Json {
        return json(&client.list::<Value>("/v1/pools").await?);
    }
    let rows = client.pools().await?.into_iter().map(|pool| {
        [
            pool.provider,
            word(&pool.stage),
            pool.target.to_string(),
            if pool.scaling { format!("{} to {}", pool.min, pool.max) } else { "fixed".to_owned() },
            pool.warm.to_string(),
            pool.creating.to_string(),
            pool.claimed.to_string(),
            pool.queued.to_string(),
            pool.hits.to_string(),
            pool.misses.to_string(),
            // Of one warm container.
            bytes(pool.memory.bytes_per_container),
            // Trouble first: it matters more than why the target was changed.
            pool.last_error.or(pool.paused).or(pool.reason).unwrap_or_default(),
        ]
    });
    let columns = [
        "PROVIDER",
        "STAGE",
        "TARGET",
        "RANGE",
        "WARM",
        "CREATING",
        "CLAIMED",
        "QUEUED",
        "HITS",
        "MISSES",
        "MEMORY EACH",
        "REASON",
    ];
    Ok(print(&table(columns, rows))?)
}

pub(super) async fn containers(client: &Client, format: Format) -> Result<(), CtlError> {
    if format == Format::Json {
        return json(&client.list::<Value>("/v1/containers").await?);
    }
    let now = now_ms();
    let rows = client.containers().await?.into_iter().map(|container| {
        [
            container.id,
            container.provider,
            word(&container.state),
            if container.frozen { "yes" } else { "no" }.to_owned(),
            container.execution.unwrap_or_default(),
            container.pid.map(|pid| pid.to_string()).unwrap_or_default(),
            age(container.created_at_ms, now),
            bytes(container.memory_bytes),
            format!("{} ms", container.cpu_ms),
            container.cgroup,
        ]
    });
    let columns = ["CONTAINER", "PROVIDER", "STATE", "FROZEN", "EXECUTION", "PID", "AGE", "MEMORY", "CPU", "CGROUP"];
    Ok(print(&table(columns, rows))?)
}

pub(super) async fn providers(client: &Client, format: Format) -> Result<(), CtlError> {
    if format == Format::Json {
        return json(&client.list::<Value>("/v1/providers").await?);
    }
    let rows = client.providers().await?.into_iter().map(|provider| {
        [
            provider.name,
            provider.image,
            if provider.ready { "yes" } else { "no" }.to_owned(),
            provider.default_model,
            provider.credential_files.join(","),
            provider.credential_env.join(","),
            provider.egress.join(","),
        ]
    });
    let columns = ["PROVIDER", "IMAGE", "READY", "DEFAULT MODEL", "CREDENTIAL FILES", "CREDENTIAL ENV", "EGRESS"];
    Ok(print(&table(columns, rows))?)
}

pub(super) async fn images(client: &Client, format: Format) -> Result<(), CtlError> {
    if format == Format::Json {
        return json(&client.list::<Value>("/v1/images").await?);
    }
    let now = now_ms();
    let rows = client.images().await?.into_iter().map(|image| {
        [
            image.name,
            // Twelve digits are docker's habit and tell images apart; the whole digest is in the JSON.
            image.digest.trim_start_matches("sha256:").chars().take(12).collect(),
            bytes(image.compressed_bytes),
            bytes(image.unpacked_bytes),
            age(image.unpacked_at_ms, now),
        ]
    });
    Ok(print(&table(["IMAGE", "DIGEST", "COMPRESSED", "UNPACKED", "AGE"], rows))?)
}

/// Cancels all of them, printing the id of each one that the daemon took; the exit code tells whether it took all.
pub(super) async fn cancel(client: &Client, args: &Ids) -> Result<u8, CtlError> {
    let mut code = 0;
    for id in &args.ids {
        match client.cancel(id).await {
            Ok(()) => print(&format!("{id}\n"))?,
            Err(error) => {
                complain(&format!("{id}: {error}"));
                code = exit::FAILED;
            }
        }
    }
    Ok(code)
}

pub(super) async fn inspect(client: &Client, args: &Ids) -> Result<(), CtlError> {
    let mut items: Vec<Value> = Vec::new();
    for id in &args.ids {
        items.push(client.get(&execution_path(id)?).await?);
    }
    json(&items)
}

pub(super) fn json(items: &[impl Serialize]) -> Result<(), CtlError> {
    let text = serde_json::to_string_pretty(items).map_err(io::Error::from)?;
    Ok(print(&format!("{text}\n"))?)
}

/// The word that the API uses for a state.
pub(super) fn word(state: &impl Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

pub(super) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
