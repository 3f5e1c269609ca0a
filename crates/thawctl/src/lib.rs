//! `thawctl`: docker's verbs and habits on thawd's HTTP API. It can do nothing that the API cannot.
//!
//! The exit code is the command's own for `run`; 125 says that thawctl or the daemon failed, see `exit`.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod bundle;
mod cancel;
mod checks;
mod completion;
mod copy;
mod credentials;
mod daemon_config;
mod doctor;
mod egress;
mod env_file;
mod events;
mod exec;
mod exit;
mod fields;
mod files;
mod filter;
mod fold;
mod format;
mod ids;
mod image;
mod image_registry;
mod image_store;
mod info;
mod interrupt;
mod login;
mod logs;
mod pool;
mod printer;
mod profile;
mod ps;
mod recipes;
mod request;
mod run;
mod run_args;
mod sandbox;
mod setup;
mod speak;
mod stdin;
mod table;
mod top;
mod view;
mod words;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use format::Format;
use profile::Profile;
use thaw_client::client::{Client, ClientError, DEFAULT_SOCKET};
use thaw_client::paper::{self, PaperError};
use thaw_image::StoreError;
use thaw_image::build::BuildError;
use thaw_image::registry::RegistryError;
use thaw_image::signature::SignatureError;

/// Runs commands and prompts in thawd's containers, and shows what thawd does.
#[derive(Debug, Parser)]
#[command(
    name = "thawctl",
    version,
    after_help = "\
docker's words work too: kill and stop (cancel), stats (top), attach (logs -f), pull, push, build, load, rmi (image ...), info."
)]
struct Cli {
    /// Socket of the daemon [env: THAWD_SOCKET] [default: /run/thawd/thawd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Profile of ~/.config/thawd/profiles.toml [env: THAWCTL_PROFILE] [default: the one called default]
    #[arg(long, global = true, value_name = "NAME")]
    profile: Option<String>,
    /// Tables for people, the API's JSON, one JSON object a line, or a template such as '{{.ID}} {{.State}}'
    #[arg(long, global = true, value_parser = format::FormatParser, default_value = "table")]
    format: Format,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a prompt, or a command after `--`, and stream its output
    Run(Box<run_args::Args>),
    /// Run a command in a sandbox and stream its output
    Exec(Box<exec::Args>),
    /// Create, list, freeze, wake and end sandboxes: containers that live on between commands
    #[command(subcommand)]
    Sandbox(sandbox::Command),
    /// Copy files between here and a sandbox: SANDBOX:PATH
    Cp(copy::Args),
    /// List the executions that run; with -a also those that ended, newest first
    Ps(ps::PsArgs),
    /// List the pools: how many warm containers are wanted and there
    Pools(view::ListArgs),
    /// List the pools, and change how many warm containers are wanted
    #[command(subcommand)]
    Pool(pool::Command),
    /// List the containers, warm ones too, with their use of memory and CPU
    Containers(view::ListArgs),
    /// Show what executions use and how the pools are, again and again
    #[command(visible_alias = "stats")]
    Top(top::TopArgs),
    /// List the providers: models, credentials and hosts they may reach
    Providers(view::ListArgs),
    /// List the images in the daemon's store
    Images(view::ListArgs),
    /// Build images, get them from registries, bring them in, check and remove them
    #[command(subcommand)]
    Image(image::Command),
    /// Log a user in to a provider; thawd keeps the credential
    Login(login::Args),
    /// Store, list and remove the credentials that the daemon keeps for users
    #[command(subcommand)]
    Credentials(credentials::Command),
    /// List the addresses with which users go out, and give them to users
    #[command(subcommand)]
    Egress(egress::Command),
    /// Write an image as an OCI bundle, which crun and runc start with the mounts, ids, limits and filter of thawd
    Bundle(bundle::Args),
    /// Print the output of an execution
    Logs(logs::Args),
    /// Print what happens in the daemon, as it happens
    Events(events::EventsArgs),
    /// List or fetch the files that were collected of an execution
    Files(files::Args),
    /// Wait until executions have ended, and print their exit codes
    Wait(cancel::WaitArgs),
    /// End executions
    #[command(visible_aliases = ["stop", "kill"])]
    Cancel(cancel::CancelArgs),
    /// Delete executions that ended, with all that they have written
    Rm(cancel::RmArgs),
    /// Print all that is known of executions, as JSON
    Inspect(ps::Ids),
    /// Show the daemon: its version, what runs, pools, providers and images
    Info,
    /// From an installed package to a first answer: checks, images, warm containers, a credential, a prompt
    Setup(setup::SetupArgs),
    /// Check that this machine can run thawd; exits 1 when it cannot
    Doctor(doctor::DoctorArgs),
    /// Print a script that completes words of thawctl in a shell, with live values of the daemon
    #[command(
        after_help = "For one shell: source <(thawctl completion bash); in fish: thawctl completion fish | source"
    )]
    Completion { shell: completion::Shell },
    /// Print the version
    Version,
    /// docker's word for `image pull`
    #[command(hide = true)]
    Pull(image_registry::PullArgs),
    /// docker's word for `image push`
    #[command(hide = true)]
    Push(image_registry::PushArgs),
    /// docker's word for `image build`
    #[command(hide = true)]
    Build(image::BuildArgs),
    /// docker's word for `image import`
    #[command(hide = true)]
    Load(image_store::ImportArgs),
    /// docker's word for `image rm`
    #[command(hide = true)]
    Rmi(image_store::Names),
    /// docker's word for `logs -f --exit-code`
    #[command(hide = true)]
    Attach(logs::AttachArgs),
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
    Signature(#[from] SignatureError),
    #[error(transparent)]
    Bundle(#[from] bundle::BundleError),
    #[error(transparent)]
    Paper(#[from] PaperError),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

/// Parses the arguments, does what they ask, and reports failures on stderr.
pub fn main() -> ExitCode {
    // A shell that completes asks by a variable; nothing is run then.
    clap_complete::env::CompleteEnv::with_factory(Cli::command).var(completion::VARIABLE).bin("thawctl").complete();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            match words::instead(&error) {
                Some(sentence) => complain(&sentence),
                // Nothing is left to be told to when even this cannot be printed.
                None => drop(error.print()),
            }
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

/// Where the daemon listens: the option, the variable, the profile, or the usual place.
fn socket(option: Option<PathBuf>, profile: &Profile) -> PathBuf {
    option
        .or_else(|| set("THAWD_SOCKET").map(Into::into))
        .or_else(|| profile.socket.clone())
        .unwrap_or_else(|| DEFAULT_SOCKET.into())
}

/// A variable that is set to something.
fn set(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

async fn dispatch(cli: Cli) -> Result<u8, CtlError> {
    let named = cli.profile.or_else(|| set("THAWCTL_PROFILE").map(|name| name.to_string_lossy().into_owned()));
    let profile = Profile::load(named.as_deref())?;
    let client = Client::new(&socket(cli.socket, &profile))?;
    let format = &cli.format;
    match cli.command {
        Command::Run(args) => return Box::pin(run::run(&client, *args, &profile, format)).await,
        Command::Exec(args) => return Box::pin(exec::exec(&client, *args, &profile, format)).await,
        Command::Sandbox(command) => return Box::pin(sandbox::run(&client, command, &profile, format)).await,
        Command::Cp(args) => Box::pin(copy::cp(&client, args, &profile)).await?,
        Command::Cancel(args) => return cancel::cancel(&client, &args).await,
        Command::Rm(args) => return cancel::rm(&client, &args).await,
        Command::Events(args) => return events::events(&client, &args, format).await,
        Command::Wait(args) => return cancel::wait(&client, &args).await,
        Command::Logs(args) => return logs::logs(&client, &args, format).await,
        Command::Attach(args) => return logs::logs(&client, &args.into(), format).await,
        Command::Image(command) => return Box::pin(image::image(&client, &command, format)).await,
        Command::Pull(args) => return Box::pin(image::image(&client, &image::Command::Pull(args), format)).await,
        Command::Push(args) => return Box::pin(image::image(&client, &image::Command::Push(args), format)).await,
        Command::Build(args) => return Box::pin(image::image(&client, &image::Command::Build(args), format)).await,
        Command::Load(args) => return Box::pin(image::image(&client, &image::Command::Import(args), format)).await,
        Command::Rmi(args) => return Box::pin(image::image(&client, &image::Command::Rm(args), format)).await,
        Command::Top(args) => return top::top(&client, &args, format).await,
        Command::Setup(args) => return Box::pin(setup::setup(&client, &args, format)).await,
        Command::Bundle(args) => bundle::bundle(&args)?,
        Command::Doctor(args) => return doctor::doctor(&client, &args, format).await,
        Command::Files(args) => files::files(&client, &args, format).await?,
        Command::Ps(args) => ps::ps(&client, &args, format).await?,
        Command::Pools(args) => view::pools(&client, &args, format).await?,
        Command::Pool(command) => pool::pool(&client, command, format).await?,
        Command::Login(args) => return login::login(&client, args, format).await,
        Command::Credentials(command) => return credentials::run(&client, command, format).await,
        Command::Egress(command) => egress::run(&client, command, format).await?,
        Command::Containers(args) => view::containers(&client, &args, format).await?,
        Command::Providers(args) => view::providers(&client, &args, format).await?,
        Command::Images(args) => view::images(&client, &args, format).await?,
        Command::Inspect(args) => ps::inspect(&client, &args, format).await?,
        Command::Info => info::info(&client, format).await?,
        Command::Completion { shell } => completion::script(shell)?,
        Command::Paper { directory } => write_paper(&directory)?,
        Command::Version => print(&format!("thawctl {}\n", env!("CARGO_PKG_VERSION")))?,
    }
    Ok(0)
}

fn write_paper(directory: &Path) -> Result<(), CtlError> {
    Ok(paper::write(&Cli::command(), &paper::CLIENT, directory)?)
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
