//! The commands that list what the daemon has besides executions.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::fields::Fields;
use super::filter::Filters;
use super::format::Format;
use super::ids::short;
use super::table::{age, bytes, table};
use super::{CtlError, print};
use thaw_client::client::Client;
use thaw_client::types::{Container, Image, Pool, Provider};

/// Arguments of a list.
#[derive(Debug, clap::Args)]
pub(super) struct ListArgs {
    /// Show whole ids
    #[arg(long)]
    no_trunc: bool,
    /// Print only the ids or names
    #[arg(long, short)]
    quiet: bool,
    #[command(flatten)]
    filters: Filters,
}

impl ListArgs {
    /// An id as the table shows it.
    fn id(&self, id: &str) -> String {
        if self.no_trunc { id.to_owned() } else { short(id).to_owned() }
    }

    /// Fetches, filters and prints a list. `name` is the field that `--quiet` prints.
    async fn list<T: DeserializeOwned + utoipa::ToSchema>(
        &self,
        client: &Client,
        path: &str,
        format: &Format,
        name: &str,
        rows: impl FnOnce(Vec<T>) -> String,
    ) -> Result<(), CtlError> {
        let fields = Fields::of::<T>();
        let mut items: Vec<Value> = client.list(path).await?;
        self.filters.apply(&mut items, &fields)?;
        if self.quiet {
            let names = items.iter().map(|item| super::format::plain(item.get(name)) + "\n");
            return Ok(print(&names.collect::<String>())?);
        }
        format.print(&items, &fields, || Ok(rows(typed(&items)?)))
    }
}

/// Items of the API as this version knows them.
///
/// # Errors
/// The daemon says something that is no such item.
pub(super) fn typed<T: DeserializeOwned>(items: &[Value]) -> Result<Vec<T>, CtlError> {
    let read = |item: &Value| {
        serde_json::from_value(item.clone())
            .map_err(|error| CtlError::Usage(format!("the daemon's answer cannot be understood: {error}")))
    };
    items.iter().map(read).collect()
}

pub(super) async fn pools(client: &Client, args: &ListArgs, format: &Format) -> Result<(), CtlError> {
    args.list(client, "/v1/pools", format, "provider", |pools: Vec<Pool>| pools_table(pools)).await
}

fn pools_table(pools: Vec<Pool>) -> String {
    let rows = pools.into_iter().map(|pool| {
        [
            pool.provider,
            word(&pool.stage),
            format!("{}/{}", pool.warm, pool.target),
            if pool.scaling { format!("{}-{}", pool.min, pool.max) } else { "fixed".to_owned() },
            pool.creating.to_string(),
            pool.claimed.to_string(),
            pool.queued.to_string(),
            format!("{}/{}", pool.hits, pool.hits + pool.misses),
            // Trouble first: it matters more than why the target was changed.
            pool.last_error.or(pool.paused).or(pool.reason).unwrap_or_default(),
        ]
    });
    let columns = ["PROVIDER", "STAGE", "WARM", "RANGE", "CREATING", "CLAIMED", "QUEUED", "HITS", "REASON"];
    table(columns, rows)
}

pub(super) async fn containers(client: &Client, args: &ListArgs, format: &Format) -> Result<(), CtlError> {
    let now = now_ms();
    let rows = |containers: Vec<Container>| {
        let rows = containers.into_iter().map(|container| {
            [
                args.id(&container.id),
                container.provider,
                match container.frozen {
                    true => format!("{}, frozen", word(&container.state)),
                    false => word(&container.state),
                },
                args.id(&container.execution.or(container.sandbox).unwrap_or_default()),
                container.pid.map(|pid| pid.to_string()).unwrap_or_default(),
                age(container.created_at_ms, now),
                bytes(container.memory_bytes),
                format!("{} ms", container.cpu_ms),
            ]
        });
        table(["CONTAINER", "PROVIDER", "STATE", "HOLDER", "PID", "AGE", "MEMORY", "CPU"], rows)
    };
    args.list(client, "/v1/containers", format, "id", rows).await
}

pub(super) async fn providers(client: &Client, args: &ListArgs, format: &Format) -> Result<(), CtlError> {
    let rows = |providers: Vec<Provider>| {
        let rows = providers.into_iter().map(|provider| {
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
        table(["PROVIDER", "IMAGE", "READY", "DEFAULT MODEL", "CREDENTIAL FILES", "CREDENTIAL ENV", "EGRESS"], rows)
    };
    args.list(client, "/v1/providers", format, "name", rows).await
}

pub(super) async fn images(client: &Client, args: &ListArgs, format: &Format) -> Result<(), CtlError> {
    let now = now_ms();
    let rows = |images: Vec<Image>| {
        let rows = images.into_iter().map(|image| {
            let digest = image.digest.trim_start_matches("sha256:");
            [
                image.name,
                // Twelve digits are docker's habit and tell images apart.
                if args.no_trunc { digest.to_owned() } else { digest.chars().take(12).collect() },
                bytes(image.compressed_bytes),
                bytes(image.unpacked_bytes),
                age(image.unpacked_at_ms, now),
            ]
        });
        table(["IMAGE", "DIGEST", "COMPRESSED", "UNPACKED", "AGE"], rows)
    };
    args.list(client, "/v1/images", format, "name", rows).await
}

/// The word that the API uses for a state.
pub(super) fn word(state: &impl Serialize) -> String {
    serde_json::to_value(state).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

pub(super) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX)
}
