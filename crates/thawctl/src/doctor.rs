//! `thawctl doctor`: can this machine run thawd, and what to do when it cannot.

use super::daemon_config::daemon_config;
use super::table::table;
use super::view::json;
use super::{CtlError, Format, print};
use crate::checks::{self, Status};
use thaw_client::client::Client;

/// Prints the checks; the exit code is 1 when one failed.
pub(super) async fn doctor(client: &Client, format: Format) -> Result<u8, CtlError> {
    let mut found = checks::run();
    found.extend(checks::shares(&daemon_config()?));
    found.extend(checks::daemon(client).await);
    match format {
        Format::Json => json(&found)?,
        Format::Table => {
            let rows = found.iter().map(|check| {
                let fix = if check.status == Status::Ok { String::new() } else { check.fix.clone() };
                [check.status.to_string(), check.name.clone(), check.found.clone(), fix]
            });
            print(&table(["STATUS", "CHECK", "FOUND", "WHAT TO DO"], rows))?;
        }
    }
    Ok(u8::from(found.iter().any(|check| check.status == Status::Fail)))
}
