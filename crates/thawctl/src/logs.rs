//! `thawctl logs`: the output of an execution, from its beginning or from an event on.

use std::io;
use std::time::{Duration, Instant};

use super::printer::{Mode, Printer};
use super::{CtlError, Format, exit};
use thaw_client::client::Client;
use thaw_client::types::Event;

/// Silence after which `logs` without `--follow` takes it that all kept events were read: the API has no mark for
/// that, and the daemon sends what it keeps without a pause.
const QUIET: Duration = Duration::from_millis(300);

/// Longest time that `logs` without `--follow` goes on for an execution that writes without a pause.
const LONGEST: Duration = Duration::from_secs(5);

/// Arguments of `thawctl logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: 0, whatever the execution came to; 125 when thawctl or the daemon failed, or a part of the output is missing \
(a gap), because it was more than the daemon keeps.")]
pub(super) struct Args {
    /// Id of the execution, see `thawctl ps --all`
    id: String,
    /// Go on until the execution ends
    #[arg(long, short)]
    follow: bool,
    /// Start after the event of this sequence number
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
    /// Write what a prompt's CLI wrote itself, instead of the answer's text
    #[arg(long)]
    raw: bool,
}

/// Prints the output and gives the exit code; what the execution came to is in `thawctl inspect`.
pub(super) async fn logs(client: &Client, args: &Args, format: Format) -> Result<u8, CtlError> {
    // Only prompts have a model.
    let is_prompt = client.execution(&args.id).await?.model.is_some();
    let mode = match format {
        Format::Json => Mode::Json,
        Format::Table if args.raw || !is_prompt => Mode::Raw,
        Format::Table => Mode::Answer,
    };
    let began = Instant::now();
    let mut printer = Printer::new(io::stdout(), io::stderr(), mode, is_prompt, false, began);
    let mut stream = client.events(&args.id, args.since).await?;
    loop {
        let next = if args.follow {
            stream.next().await
        } else if began.elapsed() > LONGEST {
            break;
        } else {
            match tokio::time::timeout(QUIET, stream.next()).await {
                Ok(next) => next,
                Err(_) => break,
            }
        };
        let Some(next) = next else { break };
        let (id, event) = next?;
        printer.event(id, &event)?;
        if matches!(event, Event::Exit(_)) {
            break;
        }
    }
    printer.finish()?;
    Ok(if printer.is_incomplete() { exit::FAILED } else { 0 })
}
