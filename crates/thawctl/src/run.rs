//! `thawctl run`: starts an execution, streams it, and ends with its exit code.

use std::io;
use std::path::PathBuf;

use serde_json::Value;

use super::exit::{Limit, Who};
use super::fields::Fields;
use super::format::Format;
use super::interrupt::Interrupts;
use super::printer::{Mode, Printer, Style};
use super::profile::Profile;
use super::run_args::Args;
use super::{CtlError, exit, files, request, speak, stdin};
use thaw_client::client::Client;
use thaw_client::types::{Event, Execution, ExecutionRequest};

/// Runs it and gives the exit code.
pub(super) async fn run(client: &Client, args: Args, profile: &Profile, format: &Format) -> Result<u8, CtlError> {
    if !args.detach {
        format.no_template("run")?;
    }
    let mode = if args.json || format.is_json() {
        Mode::Json
    } else if args.raw || !args.is_prompt(profile) {
        Mode::Raw
    } else {
        Mode::Answer
    };
    let verbose = args.verbose;
    let output = args.output.clone();
    let request = request::build(args, profile)?;
    request::check_size(client, &request).await?;
    let limit = match (request.timeout_ms, &request.image) {
        (Some(_), _) => Limit::Asked,
        (None, Some(_)) => Limit::Image,
        (None, None) => Limit::Manifest(request.provider.clone()),
    };
    execute(client, request, How { mode, verbose, output, limit, feeds: false }, format).await
}

/// How an execution is shown.
pub(super) struct How {
    pub(super) mode: Mode,
    /// Tell which container was used, and timings.
    pub(super) verbose: bool,
    /// Where what was collected is written to.
    pub(super) output: Option<PathBuf>,
    /// Where its time limit comes from.
    pub(super) limit: Limit,
    /// Standard input is passed on as it comes.
    pub(super) feeds: bool,
}

/// Starts an execution and shows it to its end; one in the background is only named.
pub(super) async fn execute(
    client: &Client,
    request: ExecutionRequest,
    how: How,
    format: &Format,
) -> Result<u8, CtlError> {
    let How { mode, verbose, output, limit, mut feeds } = how;
    if request.background {
        let execution = client.create(&request).await.map_err(|error| speak::run_error(error, &request))?;
        let item = serde_json::to_value(&execution).map_err(io::Error::from)?;
        // One execution, so one object and no array.
        let format = if *format == Format::Json { &Format::JsonLines } else { format };
        let table = || Ok(format!("{}\n", execution.id));
        format.print(std::slice::from_ref::<Value>(&item), &Fields::of::<Execution>(), table)?;
        return Ok(0);
    }

    let interrupts = Interrupts::install(client.clone())?;
    let who = if request.prompt.is_some() { Who::Cli } else { Who::Command };
    let mut printer = Printer::new(io::stdout(), io::stderr(), Style { mode, who, verbose, timestamps: false, limit });
    let mut stream = client.execute_stream(&request).await.map_err(|error| speak::run_error(error, &request))?;
    drop(request); // Wipes the credentials.
    let mut known = false;
    loop {
        if let (false, Some(id)) = (known, stream.execution()) {
            interrupts.set_execution(id);
            known = true;
            if std::mem::take(&mut feeds) {
                tokio::spawn(stdin::feed(client.clone(), id.to_owned()));
            }
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
