//! Arguments of `thawctl run`.

use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `thawctl run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: that of the command; 1 when a prompt's CLI reports a failure although its exit code is 0; 124 on timeout; \
125 when thawctl or the daemon failed, or a part of the output (a gap) or a file that was to be collected is missing; 126 and 127 when the command cannot be \
run or found; 128+N when killed by signal N. Ctrl-C cancels the execution, a second one leaves.")]
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
    #[arg(long, value_name = "NAME=PATH", value_parser = name_path)]
    pub(super) file: Vec<(String, PathBuf)>,
    /// Credential variable for this execution; its value is taken from thawctl's own environment
    #[arg(long, value_name = "NAME")]
    pub(super) credential_env: Vec<String>,
    /// Environment variable; not for secrets, since others can read thawctl's arguments
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(super) env: Vec<(String, String)>,
    /// File of environment variables: a line is KEY=VALUE, KEY alone (taken from thawctl's environment), or a # comment
    #[arg(long, value_name = "FILE")]
    pub(super) env_file: Vec<PathBuf>,
    /// Pass standard input to the command, up to its end
    #[arg(long, short, conflicts_with = "prompt")]
    pub(super) interactive: bool,
    /// File or folder to put into /workspace, under its own name; of a folder with a `/` behind it what is in it
    #[arg(long, short = 'f', value_name = "PATH")]
    pub(super) put: Vec<PathBuf>,
    /// File or folder below /workspace to keep when the command has ended; see `thawctl files`
    #[arg(long, value_name = "PATH")]
    pub(super) collect: Vec<String>,
    /// Write what was collected below this folder; without --collect, all of /workspace
    #[arg(long, short, value_name = "DIR", conflicts_with = "detach")]
    pub(super) output: Option<PathBuf>,
    /// Directory to start in; /workspace with --put, --collect or --output
    #[arg(long, short, value_name = "PATH")]
    pub(super) workdir: Option<String>,
    /// Label that is returned with the execution
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(super) label: Vec<(String, String)>,
    /// Wall-clock limit in seconds, fractions allowed
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(super) timeout: Option<Duration>,
    /// How long to wait for a container in seconds, fractions allowed; 0 for not at all
    #[arg(long, value_name = "SECONDS", value_parser = wait_seconds)]
    pub(super) queue_timeout: Option<Duration>,
    /// Write the events as JSON lines
    #[arg(long)]
    pub(super) json: bool,
    /// Write what the provider's CLI wrote itself, instead of the answer's text
    #[arg(long, conflicts_with_all = ["json", "command"])]
    pub(super) raw: bool,
    /// Print the id and leave; see `thawctl logs`
    #[arg(long, short, conflicts_with_all = ["json", "raw"])]
    pub(super) detach: bool,
    /// Tell on stderr which container was used, and timings
    #[arg(long, short)]
    pub(super) verbose: bool,
}

/// Parses `KEY=VALUE`.
fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must have the form KEY=VALUE".to_owned()),
    }
}

/// Parses `NAME=PATH`.
fn name_path(text: &str) -> Result<(String, PathBuf), String> {
    match key_value(text) {
        Ok((name, path)) if !path.is_empty() => Ok((name, path.into())),
        _ => Err("must have the form NAME=PATH".to_owned()),
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
    use super::*;
    use clap::Parser;

    use super::super::{Cli, Command};

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

    #[test]
    fn pairs_are_split_at_the_first_equals_sign() {
        assert_eq!(key_value("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(key_value("A="), Ok(("A".into(), String::new())));
        assert!(key_value("A").is_err() && key_value("=b").is_err());
        assert!(name_path("auth.json=").is_err());
    }
}
