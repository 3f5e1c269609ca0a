//! `thawctl run`: starts an execution, streams it, and ends with its exit code.

use std::io;
use std::time::Instant;

use super::interrupt::Interrupts;
use super::printer::{Mode, Printer};
use super::run_args::Args;
use super::{CtlError, Format, exit, files, print, request};
use thaw_client::client::Client;
use thaw_client::types::Event;

/// Runs it and gives the exit code.
pub(super) async fn run(client: &Client, args: Args, format: Format) -> Result<u8, CtlError> {
    let mode = if args.json || format == Format::Json {
        Mode::Json
    } else if args.raw || args.prompt.is_none() {
        Mode::Raw
    } else {
        Mode::Answer
    };
    let (is_prompt, verbose) = (args.prompt.is_some(), args.verbose);
    let output = args.output.clone();
    let request = request::build(args)?;
    if request.background {
        let execution = client.create(&request).await?;
        print(&match format {
            Format::Table => format!("{}\n", execution.id),
            Format::Json => format!("{}\n", serde_json::to_value(&execution).map_err(io::Error::from)?),
        })?;
        return Ok(0);
    }

    let interrupts = Interrupts::install(client.clone())?;
    let began = Instant::now();
    let mut stream = client.execute_stream(&request).await?;
    drop(request); // Wipes the credentials.
    let mut printer = Printer::new(io::stdout(), io::stderr(), mode, is_prompt, verbose, began);
    let mut known = false;
    loop {
        if let (false, Some(id)) = (known, stream.execution()) {
            interrupts.set_execution(id);
            known = true;
        }
        let Some(next) = stream.next().await else {
            printer.finish()?;
            return Ok(exit::FAILED);
        };
        let (id, event) = next.inspect_err(|_| {
            // The error of the stream matters more than one of the last line's end.
            let _ = printer.finish();
        })?;
        if let Err(error) = printer.event(id, &event) {
            if let Some(id) = stream.execution() {
                // Nobody reads the output any more. When this fails, the daemon still sees us disconnect.
                let _ = client.cancel(id).await;
            }
            return Err(error.into());
        }
        if let Event::Exit(exit) = &event {
            let code = exit::code(exit, interrupts.received());
            let mut is_complete = !printer.is_incomplete();
            if let Some(collected) = &exit.collected {
                is_complete &= !files::report(collected);
                if let (Some(folder), Some(id)) = (&output, stream.execution()) {
                    files::fetch(client, id, folder).await?;
                }
            }
            return Ok(if is_complete { code } else { exit::FAILED });
        }
    }
}
