//! `thawctl info`: the daemon at a glance.

use serde_json::{Value, json};

use super::CtlError;
use super::fields::Fields;
use super::format::{Format, plain};
use super::table::table;
use thaw_client::client::Client;

/// Prints what the daemon has, with the version of both programs.
pub(super) async fn info(client: &Client, format: &Format) -> Result<(), CtlError> {
    client.healthz().await?;
    // A daemon from before this request says nothing of its version.
    let version: Value = client.get("/v1/version").await.unwrap_or_default();
    let executions: Vec<Value> = client.list("/v1/executions").await?;
    let containers: Vec<Value> = client.list("/v1/containers").await?;
    let pools: Vec<Value> = client.list("/v1/pools").await?;
    let providers: Vec<Value> = client.list("/v1/providers").await?;
    let images: Vec<Value> = client.list("/v1/images").await?;
    let with = |items: &[Value], key: &str, value: &str| items.iter().filter(|item| item[key] == value).count();
    let (ready, unready): (Vec<_>, Vec<_>) = providers.iter().partition(|provider| provider["ready"] == true);
    let names = |items: &[&Value]| items.iter().map(|item| plain(item.get("name"))).collect::<Vec<_>>();
    let number = |key: &str| pools.iter().filter_map(|pool| pool[key].as_u64()).sum::<u64>();
    let item = json!({
        "socket": client.socket(),
        "client_version": env!("CARGO_PKG_VERSION"),
        "version": version.get("version"),
        "ready": client.readyz().await.is_ok(),
        "executions": { "running": with(&executions, "state", "running"), "queued": with(&executions, "state", "queued"),
            "ended": with(&executions, "state", "exited") },
        "containers": { "all": containers.len(), "warm": with(&containers, "state", "warm") },
        "warm_wanted": number("target"),
        "providers_ready": names(&ready),
        "providers_without_image": names(&unready),
        "images": images.len(),
    });
    format.print(std::slice::from_ref(&item), &Fields::of_items(), || {
        let list = |key: &str| {
            let names = item[key].as_array().into_iter().flatten().map(|name| plain(Some(name)));
            names.collect::<Vec<_>>().join(", ")
        };
        let of = |what: &str, key: &str| item[what][key].to_string();
        let rows = [
            ["socket".to_owned(), plain(item.get("socket"))],
            ["thawctl".to_owned(), plain(item.get("client_version"))],
            ["thawd".to_owned(), plain(item.get("version"))],
            ["ready".to_owned(), if item["ready"] == true { "yes" } else { "no" }.to_owned()],
            [
                "executions".to_owned(),
                format!(
                    "{} running, {} queued, {} ended",
                    of("executions", "running"),
                    of("executions", "queued"),
                    of("executions", "ended")
                ),
            ],
            [
                "containers".to_owned(),
                format!("{}, {} of {} warm", of("containers", "all"), of("containers", "warm"), item["warm_wanted"]),
            ],
            ["providers".to_owned(), list("providers_ready")],
            ["without image".to_owned(), list("providers_without_image")],
            ["images".to_owned(), item["images"].to_string()],
        ];
        Ok(table(["DAEMON", ""], rows))
    })
}
