//! `thawctl run`: starts an execution, streams it, and ends with its exit code.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::interrupt::Interrupts;
use super::printer::{Mode, Printer};
use super::{CtlError, Format, exit, print, request};
use thaw_client::client::Client;
use thaw_client::types::Event;

/// Arguments of `thawctl run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: that of the command; 1 when a prompt's CLI reports a failure although its exit code is 0; 124 on timeout; \
125 when thawctl or the daemon failed; 126 and 127 when the command cannot be run or found; 128+N when killed by \
signal N. Ctrl-C cancels the execution, a second one leaves.")]
pub(super) struct Args {
    /// Provider whose container to use, see `thawctl providers`
    #[arg(required_unless_present = "image", conflicts_with = "image")]
    pub(super) provider: Option<String>,
    /// Image of the store to run the command in, without a provider, see `thawctl images`
    #[arg(long, value_name = "NAME", conflicts_with_all = ["model", "effort", "file", "credential_env", "raw"])]
    pub(super) image: Option<String>,
    /// What to ask the provider's CLI; `-` reads it from stdin
    #[arg(required_unless_present_any = ["command", "image"], conflicts_with = "command")]
    pub(super) prompt: Option<String>,
    /// Command to run in the provider's image instead of its CLI
    #[arg(last = true, value_name = "CMD")]
    pub(super) command: Vec<String>,
    /// Model; the provider's default otherwise
    #[arg(long, conflicts_with = "command")]
    pub(super) model: Option<String>,
    /// Reasoning effort, one of those that the provider knows
    #[arg(long, conflicts_with = "command")]
    pub(super) effort: Option<String>,
    /// Whose execution this is (a-z, 0-9 and '-'); you otherwise
    #[arg(long, short)]
    pub(super) user: Option<String>,
    /// Credential file for this execution: its name, and where its content is read from
    #[arg(long, value_name = "NAME=PATH", value_parser = request::name_path)]
    pub(super) file: Vec<(String, PathBuf)>,
    /// Credential variable for this execution; its value is taken from thawctl's own environment
    #[arg(long, value_name = "NAME")]
    pub(super) credential_env: Vec<String>,
    /// Environment variable; not for secrets, since others can read thawctl's arguments
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = request::key_value)]
    pub(super) env: Vec<(String, String)>,
    /// Label that is returned with the execution
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = request::key_value)]
    pub(super) label: Vec<(String, String)>,
    /// Wall-clock limit in seconds, fractions allowed
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) timeout: Option<Duration>,
    /// How long to wait for a container in seconds, fractions allowed; 0 for not at all
    #[arg(long, value_name = "SECONDS", value_parser = wait_seconds)]
    pub(super) queue_timeout: Option<Duration>,
    /// Write the events as JSON lines
    #[arg(long)]
    json: bool,
    /// Write what the provider's CLI wrote itself, instead of the answer's text
    #[arg(long, conflicts_with_all = ["json", "command"])]
    raw: bool,
    /// Print the id and leave; see `thawctl logs`
    #[arg(long, short, conflicts_with_all = ["json", "raw"])]
    pub(super) detach: bool,
    /// Tell on stderr which container was used, and timings
    #[arg(long, short)]
    verbose: bool,
}

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
            return Ok(exit::code(exit, interrupts.received()));
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.filter(|duration| duration.as_millis() > 0).ok_or_else(|| "must be a number of seconds above 0".to_owned())
}

fn wait_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| "must be a number of seconds, 0 or more".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::{Cli, Command};
    use super::*;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        let cli = Cli::try_parse_from(["thawctl", "run"].iter().chain(args))?;
        let Command::Run(args) = cli.command else { panic!("{:?}", cli.command) };
        Ok(*args)
    }

    #[test]
    fn a_prompt_or_a_command_but_never_both_or_neither() {
        assert_eq!(parse(&["openai", "3*67"]).unwrap().prompt.as_deref(), Some("3*67"));
        assert_eq!(parse(&["openai", "-"]).unwrap().prompt.as_deref(), Some("-"));
        let command = parse(&["openai", "-v", "--", "sh", "-c", "exit 3", "--json"]).unwrap();
        assert_eq!((command.command.len(), command.json, command.verbose), (4, false, true));
        assert!(parse(&["openai"]).is_err());
        assert!(parse(&["openai", "hi", "--", "sh"]).is_err());
        assert!(parse(&["openai", "--model", "m", "--", "sh"]).is_err());
    }

    #[test]
    fn a_timeout_is_a_number_of_seconds() {
        assert_eq!(seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "x", "inf", "nan", "1e400"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
