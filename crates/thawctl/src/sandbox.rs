//! `thawctl sandbox`: containers of a user that live on between commands.

use serde_json::Value;

use super::fields::Fields;
use super::filter::Filters;
use super::format::{Format, plain};
use super::profile::Profile;
use super::request::current_user;
use super::run_args::{key_value, memory};
use super::table::{age, table};
use super::view::{now_ms, typed, word};
use super::{CtlError, complain, env_file, exit, print};
use thaw_client::client::Client;
use thaw_client::types::{
    NamedSandboxRequest, Sandbox, SandboxFilter, SandboxLifecycle, SandboxRequest, SandboxStorage,
};

/// Characters of a whole id: `s-` and a ULID.
const WHOLE: usize = 28;
/// Most ids that an error names.
const NAMED: usize = 5;

/// Verbs of `thawctl sandbox`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create a sandbox, and print its id
    Create(Box<Create>),
    /// List the sandboxes that live; with -a also those that are gone, newest first
    Ls(List),
    /// Print all that is known of sandboxes, as JSON
    Inspect(Names),
    /// End sandboxes with everything in them; one that is gone is not listed any more
    Rm(Names),
    /// End the processes of sandboxes that have storage, and keep their files
    Stop(Names),
    /// Freeze sandboxes now; a command wakes them
    Freeze(Names),
    /// Wake sandboxes, whether they are frozen or stopped
    Wake(Names),
}

/// Arguments of `thawctl sandbox create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A sandbox is frozen when no command runs in it for a while, and woken by the next one: see `thawctl exec`. It takes a place \
of `container.max` for as long as it lives. Without --storage its files are in memory, and gone with the host.")]
pub(super) struct Create {
    /// Provider whose container it is, see `thawctl providers`; may be left out when the profile names one
    #[arg(add = super::completion::providers())]
    template: Option<String>,
    /// Name to find it by instead of its id
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Whose sandbox it is; yours otherwise
    #[arg(long, short)]
    user: Option<String>,
    /// Take the one of that name if there is one that is as asked for
    #[arg(long, requires = "name")]
    existing: bool,
    /// Environment variable of every command in it; not for secrets, since others can read thawctl's arguments
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    env: Vec<(String, String)>,
    /// File of environment variables: a line is KEY=VALUE, KEY alone (taken from thawctl's environment), or a # comment
    #[arg(long, value_name = "FILE")]
    env_file: Vec<std::path::PathBuf>,
    /// Label
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = key_value)]
    label: Vec<(String, String)>,
    /// Seconds without a command after which it is frozen
    #[arg(long, value_name = "SECONDS")]
    freeze_after: Option<u64>,
    /// Seconds without a command after which it is destroyed; never otherwise
    #[arg(long, value_name = "SECONDS")]
    destroy_after: Option<u64>,
    /// Give it a root file system of its own to write to, which outlives its processes; of so many bytes, such as 512MiB
    #[arg(long, value_name = "SIZE", num_args = 0..=1, value_parser = memory)]
    storage: Option<Option<u64>>,
    /// Seconds without a command after which its processes are ended and its files kept
    #[arg(long, value_name = "SECONDS", requires = "storage")]
    stop_after: Option<u64>,
    /// Do not freeze or stop it when it is idle
    #[arg(long, conflicts_with_all = ["freeze_after", "stop_after"])]
    keep_active: bool,
}

/// Arguments of `thawctl sandbox ls`.
#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Print only the ids
    #[arg(long, short)]
    quiet: bool,
    /// Also list those that are gone
    #[arg(long, short)]
    all: bool,
    /// Show whole ids
    #[arg(long)]
    no_trunc: bool,
    #[command(flatten)]
    filters: Filters,
}

/// One or more sandboxes.
#[derive(Debug, clap::Args)]
pub(super) struct Names {
    /// Ids, unique beginnings of them, names of your sandboxes, or USER/NAME; see `thawctl sandbox ls`
    #[arg(required = true, value_name = "SANDBOX", add = super::completion::sandboxes())]
    names: Vec<String>,
}

pub(super) async fn run(client: &Client, command: Command, profile: &Profile, format: &Format) -> Result<u8, CtlError> {
    let user = profile.user.clone().unwrap_or_else(current_user);
    match command {
        Command::Create(args) => create(client, *args, profile, format).await.map(|()| 0),
        Command::Ls(args) => list(client, &args, format).await.map(|()| 0),
        Command::Inspect(args) => inspect(client, &args, &user, format).await.map(|()| 0),
        Command::Rm(args) => each(client, &args, &user, Verb::Rm).await,
        Command::Freeze(args) => each(client, &args, &user, Verb::Freeze).await,
        Command::Stop(args) => each(client, &args, &user, Verb::Stop).await,
        Command::Wake(args) => each(client, &args, &user, Verb::Wake).await,
    }
}

async fn create(client: &Client, args: Create, profile: &Profile, format: &Format) -> Result<(), CtlError> {
    let template = args.template.or_else(|| profile.provider.clone()).ok_or_else(|| {
        CtlError::Usage("name a provider: thawctl sandbox create PROVIDER; `thawctl providers` lists them".to_owned())
    })?;
    let mut env = env_file::read(&args.env_file)?;
    env.extend(args.env);
    let lifecycle = SandboxLifecycle {
        freeze_after_s: args.freeze_after,
        stop_after_s: args.stop_after,
        destroy_after_s: args.destroy_after,
        keep_active: args.keep_active,
    };
    let labels = args.label.into_iter().collect();
    let storage = args.storage.map(|size_bytes| SandboxStorage { size_bytes });
    let user = args.user.or_else(|| profile.user.clone()).unwrap_or_else(current_user);
    let item: Value = match (args.existing, args.name) {
        (true, Some(name)) => {
            let request = NamedSandboxRequest { template, env, labels, lifecycle, storage };
            client.ensure_sandbox(&user, &name, &request).await?
        }
        (_, name) => {
            let request = SandboxRequest { name, user, template, env, labels, lifecycle, storage };
            client.create_sandbox(&request, None).await?
        }
    };
    let line = format!("{}\n", plain(item.get("id")));
    // One sandbox, so one object and no array.
    let format = if *format == Format::Json { &Format::JsonLines } else { format };
    format.print(std::slice::from_ref(&item), &Fields::of::<Sandbox>(), || Ok(line))
}

async fn list(client: &Client, args: &List, format: &Format) -> Result<(), CtlError> {
    let fields = Fields::of::<Sandbox>();
    let mut items = all(client).await?;
    // Who asks for a state wants to see it.
    let gone = args.all || args.filters.names(&["state", "reason"]);
    items.retain(|item| gone || item["state"] != "gone");
    args.filters.apply(&mut items, &fields)?;
    if args.quiet {
        let ids = items.iter().map(|item| plain(item.get("id")) + "\n");
        return Ok(print(&ids.collect::<String>())?);
    }
    format.print(&items, &fields, || {
        let now = now_ms();
        let sandboxes: Vec<Sandbox> = typed(&items)?;
        let rows = sandboxes.into_iter().map(|sandbox| {
            [
                if args.no_trunc { sandbox.id } else { super::ids::short(&sandbox.id).to_owned() },
                sandbox.name.unwrap_or_default(),
                sandbox.user,
                sandbox.template,
                format!("{} ({})", word(&sandbox.state), word(&sandbox.reason)),
                age(sandbox.since.unix_ms(), now),
                sandbox.commands.to_string(),
                age(sandbox.created_at.unix_ms(), now),
            ]
        });
        Ok(table(["SANDBOX", "NAME", "USER", "TEMPLATE", "STATE", "SINCE", "COMMANDS", "AGE"], rows))
    })
}

async fn inspect(client: &Client, args: &Names, user: &str, format: &Format) -> Result<(), CtlError> {
    let mut items: Vec<Value> = Vec::new();
    for name in &args.names {
        items.push(find(client, user, name).await?);
    }
    // A table of one sandbox says less than its JSON.
    let format = if *format == Format::Table { &Format::Json } else { format };
    format.print(&items, &Fields::of::<Sandbox>(), || Ok(String::new()))
}

#[derive(Debug, Clone, Copy)]
enum Verb {
    Rm,
    Freeze,
    Stop,
    Wake,
}

/// Does it to all of them, printing the id of each; the exit code tells whether all went well.
async fn each(client: &Client, args: &Names, user: &str, verb: Verb) -> Result<u8, CtlError> {
    let mut code = 0;
    for name in &args.names {
        match one(client, user, name, verb).await {
            Ok(id) => print(&format!("{id}\n"))?,
            Err(error) => {
                complain(&error.to_string());
                code = exit::FAILED;
            }
        }
    }
    Ok(code)
}

async fn one(client: &Client, user: &str, name: &str, verb: Verb) -> Result<String, CtlError> {
    let id = plain(find(client, user, name).await?.get("id"));
    match verb {
        Verb::Rm => client.delete_sandbox(&id).await?,
        Verb::Stop => drop(client.stop_sandbox::<Value>(&id).await?),
        Verb::Freeze => drop(client.freeze_sandbox::<Value>(&id).await?),
        Verb::Wake => drop(client.wake_sandbox::<Value>(&id).await?),
    }
    Ok(id)
}

/// All of them, newest first.
async fn all(client: &Client) -> Result<Vec<Value>, CtlError> {
    Ok(client.sandboxes_where(&SandboxFilter::default()).await?.items)
}

/// The sandbox that was typed: its id, the beginning of one, the name of one of `user`, or USER/NAME.
///
/// # Errors
/// Those of the client; nothing or several sandboxes fit.
pub(super) async fn find(client: &Client, user: &str, typed: &str) -> Result<Value, CtlError> {
    if typed.len() == WHOLE && typed.starts_with("s-") {
        return Ok(client.sandbox(typed).await?);
    }
    if let Some((user, name)) = typed.rsplit_once('/') {
        return Ok(client.named_sandbox(user, name).await?);
    }
    chosen(all(client).await?, user, typed)
}

fn chosen(items: Vec<Value>, user: &str, typed: &str) -> Result<Value, CtlError> {
    let live = |item: &&Value| item["state"] != "gone";
    let named = |item: &&Value| item["name"] == typed && item["user"] == user;
    let id = |item: &Value| plain(item.get("id"));
    // `s-` may be left out.
    let begins = |item: &&Value| {
        let id = id(item);
        id.starts_with(typed) || id.strip_prefix("s-").is_some_and(|id| id.starts_with(typed))
    };
    let exact: Vec<&Value> = items.iter().filter(|item| id(item) == typed).collect();
    let by_name: Vec<&Value> = items.iter().filter(live).filter(named).collect();
    // The newest of those that are gone.
    let gone: Vec<&Value> = items.iter().filter(named).take(1).collect();
    let beginning: Vec<&Value> = items.iter().filter(begins).collect();
    let found = [exact, by_name, gone, beginning].into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    match &found[..] {
        [] if typed.starts_with("e-") => Err(CtlError::Usage(format!(
            "{typed:?} names an execution, whose container is destroyed with it: `thawctl sandbox create PROVIDER` makes one \
             that lives on"
        ))),
        [] => Err(CtlError::Usage(format!(
            "there is no sandbox {typed:?} of {user}, and none whose id begins so; `thawctl sandbox ls` lists them, and \
             USER/NAME names another user's"
        ))),
        [one] => Ok((*one).clone()),
        several => {
            let more = if several.len() > NAMED { ", …" } else { "" };
            let ids = several.iter().take(NAMED).map(|item| id(item)).collect::<Vec<_>>().join(", ");
            let count = several.len();
            Err(CtlError::Usage(format!("{typed:?} fits {count} sandboxes: {ids}{more}; give more of the id")))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_a_name_or_a_unique_beginning_will_do() {
        let items = || {
            vec![
                json!({ "id": "s-03", "name": "dev", "user": "a", "state": "active" }),
                json!({ "id": "s-02abc", "name": "dev", "user": "b", "state": "frozen" }),
                json!({ "id": "s-02abd", "name": "old", "user": "a", "state": "gone" }),
                json!({ "id": "s-01", "name": "dev", "user": "a", "state": "gone" }),
                json!({ "id": "s-00", "name": "old", "user": "a", "state": "gone" }),
            ]
        };
        let found = |user: &str, typed: &str| {
            chosen(items(), user, typed).map(|item| plain(item.get("id"))).map_err(|error| error.to_string())
        };
        assert_eq!(found("a", "dev").unwrap(), "s-03", "the one that lives");
        assert_eq!(found("b", "dev").unwrap(), "s-02abc");
        assert_eq!(found("a", "old").unwrap(), "s-02abd", "the newest of those that are gone");
        assert_eq!(found("a", "s-01").unwrap(), "s-01");
        assert_eq!(found("a", "02abc").unwrap(), "s-02abc");
        assert!(found("a", "s-02").unwrap_err().contains("fits 2 sandboxes: s-02abc, s-02abd"));
        assert!(found("c", "dev").unwrap_err().contains("there is no sandbox \"dev\" of c"));
    }
}
