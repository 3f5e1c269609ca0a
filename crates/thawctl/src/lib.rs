//! `thawctl`: docker's verbs and habits on thawd's HTTP API. It can do nothing that the API cannot.
//!
//! The exit code is the command's own for `run`; 125 says that thawctl or the daemon failed, see `exit`.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod checks;
mod credentials;
mod daemon_config;
mod doctor;
mod env_file;
mod exit;
mod files;
mod image;
mod image_registry;
mod image_store;
mod interrupt;
mod logs;
mod pool;
mod printer;
mod request;
mod run;
mod run_args;
mod stdin;
mod table;
mod top;
mod view;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use thaw_client::client::{Client, ClientError, DEFAULT_SOCKET};
use thaw_client::paper::{self, PaperError};
use thaw_image::StoreError;
use thaw_image::build::BuildError;
use thaw_image::registry::RegistryError;

/// Runs commands and prompts in thawd's containers, and shows what thawd does.
#[derive(Debug, Parser)]
#[command(name = "thawctl", version)]
struct Cli {
    /// Socket of the daemon [env: THAWD_SOCKET] [default: /run/thawd/thawd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Tables for people, or the API's JSON
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(subcommand)]
    command: Command,
}

/// How lists are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    // No doc comments here: they would blow up the help of each command.
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a prompt, or a command after `--`, and stream its output
    Run(Box<run_args::Args>),
    /// List running executions and the warm containers that wait for more
    Ps(view::PsArgs),
    /// List the pools: how many warm containers are wanted and there
    Pools,
    /// List the pools, and change how many warm containers are wanted
    #[command(subcommand)]
    Pool(pool::Command),
    /// List the containers with their cgroups and use of memory and CPU
    Containers,
    /// Show what executions use and how the pools are, again and again
    Top(top::TopArgs),
    /// List the providers: models, credentials and hosts they may reach
    Providers,
    /// List the images in the daemon's store
    Images,
    /// Build images, get them from registries, bring them in, check and remove them
    #[command(subcommand)]
    Image(image::Command),
    /// Store, list and remove the credentials that the daemon keeps for users
    #[command(subcommand)]
    Credentials(credentials::Command),
    /// Print the output of an execution
    Logs(logs::Args),
    /// List or fetch the files that were collected of an execution
    Files(files::Args),
    /// End executions
    Cancel(view::Ids),
    /// Print all that is known of executions, as JSON
    Inspect(view::Ids),
    /// Check that this machine can run thawd; exits 1 when it cannot
    Doctor,
    /// Print the version
    Version,
    /// Write the man pages and shell completions below a folder, for `make install` and `make deb`
    #[command(hide = true)]
    Paper {
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

/// Failure of thawctl itself, in one line.
#[derive(Debug, thiserror::Error)]
enum CtlError {
    #[error(transparent)]
    Client(#[from] ClientError),
    /// What was asked makes no sense, or a file or variable that it names cannot be read.
    #[error("{0}")]
    Usage(String),
    #[error("the image was not built: {0}")]
    Build(#[from] BuildError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error(transparent)]
    Paper(#[from] PaperError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// Parses the arguments, does what they ask, and reports failures on stderr.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Nothing is left to be told to when even this cannot be printed.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(exit::FAILED) } else { ExitCode::SUCCESS };
        }
    };
    // The second worker handles signals while the first one waits for a reader of our output.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(dispatch(cli)),
        Err(error) => Err(CtlError::Usage(format!("cannot start threads: {error}; raise the limit of processes"))),
    };
    ExitCode::from(match result {
        Ok(code) => code,
        // Whoever read our output has enough: leave quietly, as a program killed by SIGPIPE does.
        Err(CtlError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => exit::SIGPIPE,
        Err(error) => {
            complain(&error.to_string());
            exit::FAILED
        }
    })
}

async fn dispatch(cli: Cli) -> Result<u8, CtlError> {
    let socket =
        cli.socket.or_else(|| std::env::var_os("THAWD_SOCKET").filter(|path| !path.is_empty()).map(Into::into));
    let client = Client::new(&socket.unwrap_or_else(|| DEFAULT_SOCKET.into()))?;
    match cli.command {
        Command::Run(args) => return Box::pin(run::run(&client, *args, cli.format)).await,
        Command::Cancel(args) => return view::cancel(&client, &args).await,
        Command::Logs(args) => return logs::logs(&client, &args, cli.format).await,
        Command::Image(command) => return Box::pin(image::image(&client, &command, cli.format)).await,
        Command::Top(args) => return top::top(&client, &args, cli.format).await,
        Command::Doctor => return doctor::doctor(&client, cli.format).await,
        Command::Files(args) => files::files(&client, &args, cli.format).await?,
        Command::Ps(args) => view::ps(&client, &args, cli.format).await?,
        Command::Pools => view::pools(&client, cli.format).await?,
        Command::Pool(command) => pool::pool(&client, command, cli.format).await?,
        Command::Credentials(command) => credentials::run(&client, command, cli.format).await?,
        Command::Containers => view::containers(&client, cli.format).await?,
        Command::Providers => view::providers(&client, cli.format).await?,
        Command::Images => view::images(&client, cli.format).await?,
        Command::Inspect(args) => view::inspect(&client, &args).await?,
        Command::Paper { directory } => paper::write(&Cli::command(), &paper::CLIENT, &directory)?,
        Command::Version => print(&format!("thawctl {}\n", env!("CARGO_PKG_VERSION")))?,
    }
    Ok(0)
}

/// Writes to stdout; unlike `print!` it does not panic when the reader is gone.
fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints one line on stderr, whatever the message holds.
fn complain(message: &str) {
    // There is nowhere left to complain to when stderr is gone.
    let _ = writeln!(io::stderr(), "thawctl: {}", one_line(message));
}

/// Text from elsewhere without control characters: it must not break lines or talk to the terminal.
fn one_line(text: &str) -> String {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let cli = Cli::try_parse_from(["thawctl", "pools", "--format", "json", "--socket", "/s"]).unwrap();
        assert_eq!((cli.format, cli.socket), (Format::Json, Some("/s".into())));
    }

    #[test]
    fn a_message_stays_on_its_line_and_cannot_talk_to_the_terminal() {
        assert_eq!(one_line("a\nb\x1b[2Jc\r"), "a b [2Jc");
    }
}
