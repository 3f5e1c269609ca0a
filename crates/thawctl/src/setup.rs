//! `thawctl setup`: from an installed package to the first answer, in steps of which each is left out once it is done.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::checks::{self, Status};
use super::daemon_config::daemon_config;
use super::image_store::{self, Signed};
use super::profile::{self, Profile};
use super::run_args::{self, name_path};
use super::{CtlError, complain, recipes, run};
use crate::format::Format;
use thaw_client::client::Client;
use thaw_client::config::DEFAULT_PATH;
use thaw_client::types::Provider;
use thaw_image::build::{BuildOptions, build};
use thaw_image::progress::Terminal;

/// Longest time that a daemon is waited for, and for a first warm container: a package has just been installed, an image is
/// being unpacked.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(500);
/// Asked at the end, unless something else is.
const PROMPT: &str = "What is 3*67? Answer with the number alone.";

/// Files of credentials where the CLIs keep them, by the name that a provider gives them.
const KNOWN_FILES: [(&str, &str); 3] = [
    ("auth.json", ".codex/auth.json"),
    (".credentials.json", ".claude/.credentials.json"),
    ("oauth_creds.json", ".gemini/oauth_creds.json"),
];

/// Arguments of `thawctl setup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each step says what it does, and is left out when it is done already: run it again after a failure. Building images needs \
mmdebstrap and npm, some minutes and 2 GB below /var/lib/thawd and /var/cache/thawd; --archive needs neither.")]
pub(super) struct SetupArgs {
    /// Providers to set up, see `thawctl providers`; the first one is asked at the end
    #[arg(value_name = "PROVIDER", required = true, add = super::completion::providers())]
    providers: Vec<String>,
    /// Do everything without asking
    #[arg(long, short)]
    yes: bool,
    /// Take the image from this archive instead of building it; with one provider
    #[arg(long, value_name = "FILE")]
    archive: Option<PathBuf>,
    #[command(flatten)]
    signed: Signed,
    /// Warm containers of each provider, instead of what its manifest says
    #[arg(long, value_name = "N")]
    pool: Option<usize>,
    /// Credential file of the first provider: its name, and where it is [default: where the provider's CLI keeps it]
    #[arg(long, value_name = "NAME=PATH", value_parser = name_path)]
    file: Vec<(String, PathBuf)>,
    /// Variable of the environment that holds a credential of the first provider
    #[arg(long, value_name = "NAME", conflicts_with = "file")]
    credential_env: Option<String>,
    /// What is asked at the end; empty for nothing
    #[arg(long, value_name = "TEXT", default_value = PROMPT)]
    prompt: String,
}

/// Does it; the exit code is that of the first prompt.
pub(super) async fn setup(client: &Client, args: &SetupArgs, format: &Format) -> Result<u8, CtlError> {
    if args.archive.is_some() && args.providers.len() > 1 {
        return Err(CtlError::Usage(
            "--archive holds the image of one provider: set up one after the other".to_owned(),
        ));
    }
    check_machine()?;
    let known = daemon(client).await?;
    let mut chosen = Vec::new();
    for name in &args.providers {
        let found = known.iter().find(|provider| provider.name == *name).ok_or_else(|| {
            let names = known.iter().map(|provider| provider.name.as_str()).collect::<Vec<_>>().join(", ");
            CtlError::Usage(format!("there is no provider {name:?}; there is {names}"))
        })?;
        chosen.push(found.clone());
    }
    for provider in &chosen {
        image(provider, args)?;
    }
    pools(client, args).await?;
    warm(client, &args.providers).await?;
    let first = &chosen[0];
    let profile = credential(first, args)?;
    if args.prompt.is_empty() {
        step("done", "nothing is asked");
        return Ok(0);
    }
    step("first prompt", &format!("thawctl run {} {:?}", first.name, args.prompt));
    let prompt = run_args::Args::of_prompt(&first.name, &args.prompt);
    Box::pin(run::run(client, prompt, &profile, format)).await
}

/// One line for each step, on stderr: standard output is for the answer.
fn step(name: &str, what: &str) {
    // A terminal that is gone does not keep the rest from being done.
    let _ = writeln!(io::stderr(), "{name}: {}", super::one_line(what));
}

fn agreed(args: &SetupArgs, question: &str) -> Result<bool, CtlError> {
    if args.yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() {
        return Err(CtlError::Usage(format!("{question} There is no terminal to answer on: give --yes")));
    }
    let _ = write!(io::stderr(), "{question} [Y/n] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).map_err(|error| CtlError::Usage(format!("no answer: {error}")))?;
    Ok(["", "y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}

fn check_machine() -> Result<(), CtlError> {
    let found = checks::run();
    let failed: Vec<_> = found.iter().filter(|check| check.status == Status::Fail).collect();
    for check in &failed {
        complain(&format!("{}: {}; {}", check.name, check.found, check.fix));
    }
    if !failed.is_empty() {
        return Err(CtlError::Usage(format!(
            "{} checks of this machine failed; `thawctl doctor` has all",
            failed.len()
        )));
    }
    step("machine", &format!("{} checks, none failed", found.len()));
    Ok(())
}

/// The providers of the daemon, once it answers.
async fn daemon(client: &Client) -> Result<Vec<Provider>, CtlError> {
    let began = Instant::now();
    loop {
        match client.providers().await {
            Ok(providers) => {
                step("daemon", &format!("answers at {}", client.socket().display()));
                return Ok(providers);
            }
            Err(error) if error.is_retryable() && began.elapsed() < Duration::from_secs(20) => {
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The image of a provider where the daemon looks: there already, from an archive, or built.
fn image(provider: &Provider, args: &SetupArgs) -> Result<(), CtlError> {
    let config = daemon_config()?;
    let layout = config.paths.layouts().join(&provider.image);
    if provider.ready || layout.join("index.json").is_file() {
        step("image", &format!("{} is there", provider.image));
        return Ok(());
    }
    if let Some(archive) = &args.archive {
        let image = image_store::import_archive(archive, &provider.image, &args.signed)?;
        step("image", &format!("{} {} from {}", image.name, image.digest, archive.display()));
        return Ok(());
    }
    let folder = recipes::folder(Path::new(&provider.image))?;
    let question = format!("Build the image {} from {}?", provider.image, folder.display());
    if !agreed(args, &question)? {
        return Err(CtlError::Usage(format!("{} has no image", provider.name)));
    }
    let options = BuildOptions::new(&layout, super::image::CACHE_DIR);
    let report = build(&folder, &options, &Terminal::new(&provider.image))?;
    report.notes.iter().for_each(|note| complain(note));
    step("image", &format!("{} {}", report.name, report.digest));
    Ok(())
}

/// As many warm containers as were asked for: now, and in the configuration for the next start.
async fn pools(client: &Client, args: &SetupArgs) -> Result<(), CtlError> {
    let Some(target) = args.pool else { return Ok(()) };
    let path = std::env::var_os("THAWD_CONFIG").map_or_else(|| PathBuf::from(DEFAULT_PATH), PathBuf::from);
    let config = daemon_config()?;
    let mut text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(CtlError::Usage(format!("{}: {error}", path.display()))),
    };
    let mut changed = Vec::new();
    for name in &args.providers {
        match config.provider.get(name) {
            Some(own) if own.pool_target == Some(target) => {}
            // Somebody has thought about this section.
            Some(_) => complain(&format!(
                "{} has a section [provider.{name}] already: set pool_target = {target} there to keep it",
                path.display()
            )),
            None => {
                text += &format!("\n[provider.{name}]\npool_target = {target}\n");
                changed.push(name.as_str());
            }
        }
        let change = thaw_client::types::PoolChange { target: Some(target), ..Default::default() };
        client.change_pool::<serde_json::Value>(name, &change).await?;
    }
    if changed.is_empty() {
        step("configuration", "is as wanted");
        return Ok(());
    }
    if agreed(args, &format!("Write pool_target = {target} of {} to {}?", changed.join(", "), path.display()))? {
        replace(&path, &text)?;
        step("configuration", &format!("{} has pool_target = {target} of {}", path.display(), changed.join(", ")));
    }
    Ok(())
}

/// Writes a file beside and renames it, so that nobody reads half of it.
fn replace(path: &Path, text: &str) -> Result<(), CtlError> {
    let failed = |error: io::Error| CtlError::Usage(format!("cannot write {}: {error}", path.display()));
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let new = folder.join(format!(".{}.new", path.file_name().unwrap_or_default().to_string_lossy()));
    std::fs::write(&new, text).map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)
}

/// Waits until each provider has a warm container; says what the daemon says is in the way.
async fn warm(client: &Client, providers: &[String]) -> Result<(), CtlError> {
    let (began, mut told) = (Instant::now(), String::new());
    loop {
        let pools = client.pools().await?;
        let of = |name: &String| pools.iter().filter(|pool| pool.provider == *name).collect::<Vec<_>>();
        let cold: Vec<&String> =
            providers.iter().filter(|name| of(name).iter().all(|pool| pool.warm == 0 && pool.target > 0)).collect();
        if cold.is_empty() {
            let counts = providers.iter().map(|name| {
                let (warm, target) =
                    of(name).iter().fold((0, 0), |(warm, target), pool| (warm + pool.warm, target + pool.target));
                format!("{name} {warm}/{target}")
            });
            step("warm containers", &counts.collect::<Vec<_>>().join(", "));
            return Ok(());
        }
        let why =
            cold.iter().flat_map(|name| of(name)).find_map(|pool| pool.last_error.clone().or(pool.paused.clone()));
        let why = why.unwrap_or_else(|| "the image is being unpacked".to_owned());
        if began.elapsed() > PATIENCE {
            return Err(CtlError::Usage(format!(
                "{} has no warm container after {} s: {why}",
                cold[0],
                PATIENCE.as_secs()
            )));
        }
        if why != told {
            step("waiting", &format!("for a warm container of {}: {why}", cold[0]));
            told = why;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The credential of the first provider: as it was named, or where its CLI keeps it. Its place is remembered in the default
/// profile if there is none yet; the credential itself is nowhere but where it was.
fn credential(provider: &Provider, args: &SetupArgs) -> Result<Profile, CtlError> {
    let mut files: BTreeMap<String, PathBuf> = args.file.iter().cloned().collect();
    let mut variable = args.credential_env.clone();
    if files.is_empty() && variable.is_none() {
        let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
        let found = KNOWN_FILES.iter().find_map(|(name, place)| {
            let path = home.join(place);
            (provider.credential_files.iter().any(|file| file == name) && path.is_file())
                .then(|| ((*name).to_owned(), path))
        });
        match found {
            Some((name, path)) => drop(files.insert(name, path)),
            None => variable = provider.credential_env.iter().find(|name| super::set(name).is_some()).cloned(),
        }
    }
    let what = match (&variable, files.first_key_value()) {
        (Some(name), _) => format!("the variable {name}"),
        (None, Some((name, path))) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
            let what = format!("{name} from {}", path.display());
            files.insert(name.clone(), path);
            what
        }
        (None, None) => {
            let known = provider.credential_files.iter().chain(&provider.credential_env).cloned().collect::<Vec<_>>();
            return Err(CtlError::Usage(format!(
                "{} needs a credential, one of {}: give --file NAME=PATH or --credential-env NAME",
                provider.name,
                known.join(", ")
            )));
        }
    };
    let mut profile = Profile { provider: Some(provider.name.clone()), ..Profile::default() };
    if !files.is_empty() {
        profile.credential_files.insert(provider.name.clone(), files);
    }
    if let Some(variable) = variable {
        profile.credential_env.insert(provider.name.clone(), variable);
    }
    let kept = match profile::keep_default(&profile)? {
        Some(path) => format!("{what}, remembered in {}", path.display()),
        None => what,
    };
    step("credential", &kept);
    Ok(profile)
}
