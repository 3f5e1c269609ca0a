//! `thawctl exec`: runs a command in a sandbox, streams it, and ends with its exit code.

use std::time::Duration;

use super::exit::Limit;
use super::format::{Format, plain};
use super::printer::Mode;
use super::profile::Profile;
use super::request::{check_size, current_user};
use super::run::{How, execute};
use super::run_args::{key_value, seconds};
use super::{CtlError, env_file, sandbox, stdin};
use thaw_client::client::Client;
use thaw_client::types::ExecutionRequest;

/// Arguments of `thawctl exec`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A frozen sandbox is woken. What the command leaves running goes on in the sandbox, and nobody reads its output any more. Exit \
code: that of the command; 124 on timeout; 125 when thawctl or the daemon failed, or a part of the output is missing; 126 and \
127 when the command cannot be run or found; 128+N when killed by signal N. Ctrl-C cancels the command, a second one leaves.")]
pub(super) struct Args {
    /// Pass standard input to the command as it comes, up to its end; with -d all of it first
    #[arg(long, short)]
    interactive: bool,
    /// Environment variable; not for secrets, since others can read thawctl's arguments
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// File of environment variables: a line is KEY=VALUE, KEY alone (taken from thawctl's environment), or a # comment
    #[arg(long, value_name = "FILE")]
    env_file: Vec<std::path::PathBuf>,
    /// Directory to start in; the home directory otherwise
    #[arg(long, short, value_name = "PATH")]
    workdir: Option<String>,
    /// Wall-clock limit in seconds, fractions allowed
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    timeout: Option<Duration>,
    /// Label that is returned with the execution
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    label: Vec<(String, String)>,
    /// Write the events as JSON lines
    #[arg(long)]
    json: bool,
    /// Print the id of the execution and leave; it does not keep the sandbox from being frozen; see `thawctl logs`
    #[arg(long, short, conflicts_with = "json")]
    detach: bool,
    /// Tell on stderr which container was used, and timings
    #[arg(long, short)]
    verbose: bool,
    /// Id, unique beginning of one, name of your sandbox, or USER/NAME; see `thawctl sandbox ls`
    #[arg(value_name = "SANDBOX", add = super::completion::sandboxes())]
    sandbox: String,
    /// Command to run
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

/// Runs it and gives the exit code.
pub(super) async fn exec(client: &Client, args: Args, profile: &Profile, format: &Format) -> Result<u8, CtlError> {
    if !args.detach {
        format.no_template("exec")?;
    }
    let user = profile.user.clone().unwrap_or_else(current_user);
    let found = sandbox::find(client, &user, &args.sandbox).await?;
    let (id, template) = (plain(found.get("id")), plain(found.get("template")));
    let feeds = args.interactive && !args.detach;
    let stdin = match args.interactive {
        true if feeds => None,
        true => Some(stdin::read_all()?.into()),
        false => {
            stdin::refuse_unread(stdin::Whose::Command)?;
            None
        }
    };
    let mut env = env_file::read(&args.env_file)?;
    env.extend(args.env);
    let request = ExecutionRequest {
        sandbox: Some(id),
        user: plain(found.get("user")),
        command: Some(args.command),
        env,
        stdin,
        stdin_open: feeds,
        workdir: args.workdir,
        timeout_ms: args.timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        background: args.detach,
        labels: args.label.into_iter().collect(),
        ..ExecutionRequest::default()
    };
    check_size(client, &request).await?;
    let limit = if request.timeout_ms.is_some() { Limit::Asked } else { Limit::Manifest(template) };
    let mode = if args.json || format.is_json() { Mode::Json } else { Mode::Raw };
    execute(client, request, How { mode, verbose: args.verbose, output: None, limit, feeds }, format).await
}
