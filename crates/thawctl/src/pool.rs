//! `thawctl pool`: how many warm containers there are, and how many there should be.

use serde_json::Value;

use super::fields::Fields;
use super::{CtlError, Format, view};
use thaw_client::client::Client;
use thaw_client::types::{Pool, PoolChange};

/// Verbs of `thawctl pool`.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List the pools: how many warm containers are wanted and there, and why
    Ls(view::ListArgs),
    /// Change how many warm containers a provider has, until the daemon ends
    Set(Set),
}

/// Arguments of `thawctl pool set`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
With --target alone the number is fixed. With --min or --max it follows demand between them, from --target on. \
The configuration file decides again when the daemon is restarted.")]
pub(super) struct Set {
    /// Provider, see `thawctl providers`
    #[arg(add = super::completion::providers())]
    provider: String,
    /// Warm containers wanted
    #[arg(long, value_name = "N", required_unless_present_any = ["min", "max", "scaling", "prestarted"])]
    target: Option<usize>,
    /// Fewest that may be wanted
    #[arg(long, value_name = "N")]
    min: Option<usize>,
    /// Most that may be wanted
    #[arg(long, value_name = "N")]
    max: Option<usize>,
    /// Whether the number follows demand
    #[arg(long, value_name = "true|false")]
    scaling: Option<bool>,
    /// Containers wanted in which the provider's CLI waits already started
    #[arg(long, value_name = "N")]
    prestarted: Option<usize>,
}

pub(super) async fn pool(client: &Client, command: Command, format: &Format) -> Result<(), CtlError> {
    let Set { provider, target, min, max, scaling, prestarted } = match command {
        Command::Ls(args) => return view::pools(client, &args, format).await,
        Command::Set(set) => set,
    };
    let change = PoolChange { target, min, max, scaling, prestarted };
    let pools: Vec<Value> = client.change_pool(&provider, &change).await?;
    format.print(&pools, &Fields::of::<Pool>(), || Ok(pools.iter().map(described).collect()))
}

/// One line for what a pool is wanted to have now.
fn described(pool: &Value) -> String {
    let word = |key: &str| pool[key].as_str().unwrap_or_default();
    let range = match pool["scaling"].as_bool() {
        Some(true) => format!("{}, between {} and {}", pool["target"], pool["min"], pool["max"]),
        _ => format!("{}, fixed", pool["target"]),
    };
    format!("{} {}: {range}\n", word("provider"), word("stage"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Cli;

    #[test]
    fn a_change_has_to_change_something() {
        let parse = |args: &[&str]| Cli::try_parse_from(["thawctl", "pool", "set"].iter().chain(args)).map(drop);
        assert!(parse(&["openai"]).is_err());
        assert!(parse(&["--target", "3"]).is_err());
        assert!(parse(&["openai", "--target", "-3"]).is_err());
        parse(&["openai", "--target", "3"]).unwrap();
        parse(&["openai", "--min", "3", "--max", "9", "--scaling", "false", "--prestarted", "0"]).unwrap();
    }
}
