//! `thawctl credentials`: what the daemon keeps for users. Nothing here can show a secret.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::fields::Fields;
use super::request::{credentials, current_user};
use super::table::table;
use super::{CtlError, Format, print, view};
use thaw_client::client::Client;
use thaw_client::types::{self, UserKey, Vault};

/// Verbs of `thawctl credentials`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Store a credential: the file that a provider's CLI wrote at its login, or a key in a variable
    Put(Put),
    /// List the credentials of a user, without the secrets
    Ls(Owner),
    /// Remove a credential of a user, or all of them
    Rm(Remove),
    /// Ask the provider whether a credential is good: by renewing the login, or by a short prompt
    Check(Check),
    /// List what happened to a user's credentials, newest first
    Audit(Audit),
    /// Encrypt with a new key what is kept of a user, or every user's key with a new master key
    RotateKey(Rotate),
}

/// Whose.
#[derive(Debug, clap::Args)]
pub(super) struct Owner {
    /// Whose credentials; yours otherwise
    #[arg(long, short)]
    user: Option<String>,
}

impl Owner {
    fn name(self) -> String {
        self.user.unwrap_or_else(current_user)
    }
}

/// Arguments of `thawctl credentials put`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Executions of that user that bring no credentials get this one from then on. It replaces the one before. A file keeps its \
name (auth.json, .credentials.json, oauth_creds.json); NAME=FILE gives it another.")]
pub(super) struct Put {
    /// Provider, see `thawctl providers`
    provider: String,
    /// Credential files
    #[arg(value_name = "FILE", required_unless_present = "credential_env", conflicts_with = "credential_env")]
    files: Vec<PathBuf>,
    /// Variable with a key; its value is taken from thawctl's own environment
    #[arg(long, value_name = "NAME")]
    credential_env: Option<String>,
    #[command(flatten)]
    owner: Owner,
}

/// Arguments of `thawctl credentials rm`.
#[derive(Debug, clap::Args)]
pub(super) struct Remove {
    /// Provider
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    provider: Option<String>,
    /// Everything that is kept of the user, the user's key first
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    owner: Owner,
}

/// Arguments of `thawctl credentials check`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Where thawd renews the provider's logins, it renews this one now. Otherwise the provider's CLI asks a short prompt, which costs \
what that costs. Exits with 0 if the credential is good, and with 1 if it is refused or nothing could be learned.")]
pub(super) struct Check {
    /// Provider
    provider: String,
    #[command(flatten)]
    owner: Owner,
}

/// Arguments of `thawctl credentials audit`.
#[derive(Debug, clap::Args)]
pub(super) struct Audit {
    /// Provider; all of them otherwise
    provider: Option<String>,
    /// Most records to list
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    #[command(flatten)]
    owner: Owner,
}

/// Arguments of `thawctl credentials rotate-key`.
#[derive(Debug, clap::Args)]
pub(super) struct Rotate {
    /// The master key: the daemon reads it again, and the first line counts
    #[arg(long, conflicts_with = "user")]
    master: bool,
    #[command(flatten)]
    owner: Owner,
}

pub(super) async fn run(client: &Client, command: Command, format: &Format) -> Result<u8, CtlError> {
    match command {
        Command::Check(args) => return check(client, args, format).await,
        Command::Put(args) => put(client, args, format).await,
        Command::Ls(owner) => list(client, &owner.name(), format).await,
        Command::Rm(Remove { provider, owner, .. }) => {
            let user = owner.name();
            client.remove_credential(&user, provider.as_deref()).await?;
            let what = provider.unwrap_or_else(|| "everything".to_owned());
            Ok::<_, CtlError>(print(&format!("removed {what} of {user}\n"))?)
        }
        Command::Audit(args) => audit(client, args, format).await,
        Command::RotateKey(args) => rotate(client, args, format).await,
    }?;
    Ok(0)
}

/// The credential is refused, or nothing is known of it.
const NOT_GOOD: u8 = 1;

async fn check(client: &Client, args: Check, format: &Format) -> Result<u8, CtlError> {
    let user = args.owner.name();
    let json: Value = client.check_credential(&user, &args.provider).await?;
    let found: types::CredentialCheck = parsed(&json)?;
    let detail = found.detail.map(|detail| format!(": {detail}")).unwrap_or_default();
    let how = match found.method {
        types::CheckMethod::Refresh => " (asked to renew the login)",
        types::CheckMethod::Prompt => " (asked a prompt)",
        types::CheckMethod::Stored => "",
    };
    object(&json, format, format!("{} of {user}: {}{how}{detail}\n", args.provider, view::word(&found.outcome)))?;
    Ok(if found.outcome == types::CheckOutcome::Good { 0 } else { NOT_GOOD })
}

async fn put(client: &Client, args: Put, format: &Format) -> Result<(), CtlError> {
    let files = args.files.iter().map(|path| named(path)).collect::<Result<Vec<_>, _>>()?;
    let secret = credentials(&files, args.credential_env.into_iter().collect())?.unwrap_or_default();
    let user = args.owner.name();
    let stored: Value = client.put_credential(&user, &args.provider, &secret).await?;
    let word = |key: &str| stored[key].as_str().unwrap_or_default().to_owned();
    let account = if word("account").is_empty() { String::new() } else { format!(" of {}", word("account")) };
    let line = format!("stored {} for {user}{account}: {}, {}\n", args.provider, word("kind"), word("state"));
    object(&stored, format, line)
}

/// `NAME=FILE`, or a file under its own name.
fn named(path: &Path) -> Result<(String, PathBuf), CtlError> {
    let text = path.to_str().ok_or_else(|| CtlError::Usage(format!("{}: the name must be UTF-8", path.display())))?;
    if let Some((name, file)) = text.split_once('=')
        && !path.exists()
    {
        return Ok((name.to_owned(), file.into()));
    }
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.ok_or_else(|| CtlError::Usage(format!("{text} names no file")))?;
    Ok((name.to_owned(), path.to_owned()))
}

async fn list(client: &Client, user: &str, format: &Format) -> Result<(), CtlError> {
    let items = client.credentials::<Value>(user).await?;
    format.print(&items, &Fields::of::<types::Credential>(), || Ok(rows(view::typed(&items)?)))
}

fn rows(items: Vec<types::Credential>) -> String {
    let date = |text: Option<String>| text.unwrap_or_default().chars().take(19).collect::<String>().replace('T', " ");
    let rows = items.into_iter().map(|item| {
        [
            item.provider,
            view::word(&item.kind),
            item.account.unwrap_or_default(),
            view::word(&item.state),
            item.version.to_string(),
            date(item.expires_at),
            date(item.last_used_at),
            date(Some(item.updated_at)),
            item.fingerprint,
        ]
    });
    let columns = ["PROVIDER", "KIND", "ACCOUNT", "STATE", "VERSION", "EXPIRES", "LAST USED", "UPDATED", "FINGERPRINT"];
    table(columns, rows)
}

/// Most records that the daemon gives at once.
const PAGE: u64 = 1000;

async fn audit(client: &Client, args: Audit, format: &Format) -> Result<(), CtlError> {
    let user = args.owner.name();
    let (mut items, mut cursor) = (Vec::<Value>::new(), None);
    loop {
        let left = args.limit.saturating_sub(items.len() as u64).min(PAGE);
        let page = client.audit(&user, args.provider.as_deref(), left as usize, cursor.as_deref()).await?;
        let types::Page { items: more, next_cursor } = page;
        items.extend(more);
        cursor = next_cursor;
        if cursor.is_none() || items.len() as u64 >= args.limit {
            break;
        }
    }
    format.print(&items, &Fields::of::<types::AuditRecord>(), || Ok(audit_rows(view::typed(&items)?)))
}

fn audit_rows(items: Vec<types::AuditRecord>) -> String {
    let rows = items.into_iter().map(|item| {
        [
            item.at.chars().take(19).collect::<String>().replace('T', " "),
            view::word(&item.action),
            item.provider.unwrap_or_default(),
            item.version.map(|version| version.to_string()).unwrap_or_default(),
            item.execution.unwrap_or_default(),
            item.peer_uid.map(|uid| uid.to_string()).unwrap_or_default(),
            item.detail.unwrap_or_default(),
        ]
    });
    table(["AT", "ACTION", "PROVIDER", "VERSION", "EXECUTION", "UID", "DETAIL"], rows)
}

async fn rotate(client: &Client, args: Rotate, format: &Format) -> Result<(), CtlError> {
    let (json, line) = match args.master {
        true => {
            let json: Value = client.rotate_master_key().await?;
            let vault: Vault = parsed(&json)?;
            let line = format!("{} users' keys are wrapped with the master key {}\n", vault.users, vault.master_key);
            (json, line)
        }
        false => {
            let json: Value = client.rotate_user_key(&args.owner.name()).await?;
            let key: UserKey = parsed(&json)?;
            (json, format!("{}: {} credentials encrypted with the key {}\n", key.user, key.credentials, key.key))
        }
    };
    object(&json, format, line)
}

/// The one object that the daemon answered, or a line about it.
fn object(json: &Value, format: &Format, line: String) -> Result<(), CtlError> {
    match format {
        Format::Json => Ok(print(&format!("{json:#}\n"))?),
        _ => format.print(std::slice::from_ref(json), &Fields::of_items(), || Ok(line)),
    }
}

fn parsed<T: serde::de::DeserializeOwned>(json: &Value) -> Result<T, CtlError> {
    serde_json::from_value(json.clone()).map_err(|error| CtlError::Usage(format!("the daemon's answer: {error}")))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;
    use super::named;

    #[test]
    fn a_file_has_its_own_name_or_another_one() {
        let name = |text: &str| named(text.as_ref()).unwrap();
        assert_eq!(name("/home/u/.codex/auth.json"), ("auth.json".to_owned(), "/home/u/.codex/auth.json".into()));
        assert_eq!(name("auth.json=/tmp/x"), ("auth.json".to_owned(), "/tmp/x".into()));
        assert!(named("/".as_ref()).is_err());
    }

    #[test]
    fn each_verb_knows_what_it_is_about() {
        let parse = |args: &[&str]| Cli::try_parse_from(["thawctl", "credentials"].iter().chain(args)).map(drop);
        parse(&["put", "openai", "auth.json", "--user", "u1"]).unwrap();
        parse(&["put", "openai", "--credential-env", "OPENAI_API_KEY"]).unwrap();
        assert!(parse(&["put", "openai"]).is_err());
        assert!(parse(&["put", "openai", "auth.json", "--credential-env", "X"]).is_err());
        parse(&["rm", "openai"]).unwrap();
        parse(&["rm", "--all", "-u", "u1"]).unwrap();
        assert!(parse(&["rm"]).is_err() && parse(&["rm", "openai", "--all"]).is_err());
        parse(&["check", "openai", "-u", "u1"]).unwrap();
        parse(&["audit", "-u", "u1"]).unwrap();
        parse(&["audit", "openai", "-n", "5"]).unwrap();
        assert!(parse(&["audit", "-n", "0"]).is_err());
        parse(&["rotate-key", "--master"]).unwrap();
        assert!(parse(&["rotate-key", "--master", "--user", "u1"]).is_err());
    }
}
