//! `thawctl events`: what happens in the daemon as a whole, as it happens.

use serde_json::Value;

use super::fields::Fields;
use super::filter::Filters;
use super::format::{Format, plain};
use super::{CtlError, logs, print};
use thaw_client::client::Client;
use thaw_client::time::Timestamp;
use thaw_client::types::DaemonEvent;

/// Arguments of `thawctl events`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Goes on until it is interrupted. A line `gap` says that events are missing, because they are not kept any more or the daemon \
was started anew: list again what you watch.")]
pub(super) struct EventsArgs {
    /// Begin with what came within this time (10m) or after this point in time; with what happens from now on otherwise
    #[arg(long, value_name = "TIME", value_parser = logs::since)]
    since: Option<Timestamp>,
    #[command(flatten)]
    filters: Filters,
}

/// Prints each event as a line; ends with the connection.
pub(super) async fn events(client: &Client, args: &EventsArgs, format: &Format) -> Result<u8, CtlError> {
    let fields = Fields::of::<DaemonEvent>();
    args.filters.apply(&mut Vec::new(), &fields)?;
    let query = args.since.iter().map(|since| ("since".to_owned(), since.to_string())).collect();
    let mut events = client.daemon_events(query).await?;
    loop {
        let event = events.next().await?;
        let mut items: Vec<Value> = vec![serde_json::to_value(event).map_err(std::io::Error::from)?];
        args.filters.apply(&mut items, &fields)?;
        // One at a time, so an array of all would have no end.
        let format = if *format == Format::Json { &Format::JsonLines } else { format };
        print(&format.text(&items, &fields, || Ok(items.iter().map(line).collect()))?)?;
    }
}

/// `2026-11-30T02:15:00.123Z execution_started e-… provider=openai user=alice path=warm`
fn line(event: &Value) -> String {
    let mut text = format!("{} {}", plain(event.get("at")), plain(event.get("kind")));
    if let Some(execution) = event.get("execution") {
        text += &format!(" {}", plain(Some(execution)));
    }
    for (key, value) in event.as_object().into_iter().flatten() {
        if !["at", "kind", "execution"].contains(&key.as_str()) {
            text += &format!(" {key}={}", plain(Some(value)));
        }
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::line;

    #[test]
    fn an_event_is_a_line() {
        let event = json!({ "kind": "execution_started", "at": "2026-11-30T02:15:00.123Z", "execution": "e-1", "path": "warm" });
        assert_eq!(line(&event), "2026-11-30T02:15:00.123Z execution_started e-1 path=warm\n");
    }
}
