//! `thawctl egress`: the addresses with which users go out.

use serde_json::Value;

use super::fields::Fields;
use super::request::current_user;
use super::table::table;
use super::view::{typed, word};
use super::{CtlError, Format, one_line, print};
use thaw_client::client::Client;
use thaw_client::types::{EgressAllocation, EgressIdentity};

/// Verbs of `thawctl egress`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the identities: how they fare, and how many users have them
    Ls,
    /// Show which identity a user has
    Show(Owner),
    /// Give a user an identity: the named one, or the one with the fewest users
    Allocate(Allocate),
    /// Take a user's identity back
    Release(Owner),
}

/// Whose.
#[derive(Debug, clap::Args)]
pub(super) struct Owner {
    /// Whose identity; yours otherwise
    #[arg(long, short)]
    user: Option<String>,
}

impl Owner {
    fn name(self) -> String {
        self.user.unwrap_or_else(current_user)
    }
}

/// Arguments of `thawctl egress allocate`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A user who has an identity keeps it unless another one is named. Connections that begin from then on go out with it, those of \
containers that run already too. Identities are sections [egress.identity.NAME] of thawd.toml.")]
pub(super) struct Allocate {
    /// Name of an identity
    identity: Option<String>,
    #[command(flatten)]
    owner: Owner,
}

pub(super) async fn run(client: &Client, command: Command, format: &Format) -> Result<(), CtlError> {
    match command {
        Command::Ls => {
            let items = client.egress_identities::<Value>().await?;
            format.print(&items, &Fields::of::<EgressIdentity>(), || Ok(rows(typed(&items)?)))
        }
        Command::Show(owner) => show(client.user_egress(&owner.name()).await?, format),
        Command::Allocate(Allocate { identity, owner }) => {
            show(client.allocate_egress(&owner.name(), identity.as_deref()).await?, format)
        }
        Command::Release(owner) => {
            let user = owner.name();
            client.release_egress(&user).await?;
            Ok(print(&format!("released the identity of {}\n", one_line(&user)))?)
        }
    }
}

fn show(given: Value, format: &Format) -> Result<(), CtlError> {
    let items = [given];
    format.print(&items, &Fields::of::<EgressAllocation>(), || {
        let rows = typed::<EgressAllocation>(&items)?.into_iter().map(|one| {
            let address = one.address.map(|address| address.to_string()).unwrap_or_default();
            [one_line(&one.user), one.identity, address, one.allocated_at.to_string()]
        });
        Ok(table(["USER", "IDENTITY", "ADDRESS", "SINCE"], rows))
    })
}

fn rows(items: Vec<EgressIdentity>) -> String {
    let rows = items.into_iter().map(|one| {
        let users = match one.max_users {
            Some(most) => format!("{} of {most}", one.users),
            None => one.users.to_string(),
        };
        let address = one.address.map(|address| address.to_string()).unwrap_or_default();
        let bind = one.bind.map(|bind| bind.to_string());
        let state = word(&one.state);
        [
            one.name,
            word(&one.kind),
            one.upstream.or(bind).unwrap_or_default(),
            address,
            users,
            state,
            one_line(&one.problem.unwrap_or_default()),
        ]
    });
    table(["NAME", "KIND", "THROUGH", "ADDRESS", "USERS", "STATE", "PROBLEM"], rows)
}
