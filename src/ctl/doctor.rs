//! `thawctl doctor`: can this machine run thawd, and what to do when it cannot.

use super::table::table;
use super::view::json;
use super::{CtlError, Format, print};
use crate::client::Client;
use crate::doctor::{self, Status};

/// Prints the checks; the exit code is 1 when one failed.
pub(super) async fn doctor(client: &Client, format: Format) -> Result<u8, CtlError> {
    let mut checks = doctor::run();
    checks.extend(doctor::daemon(client).await);
    match format {
        Format::Json => json(&checks)?,
        Format::Table => {
            let rows = checks.iter().map(|check| {
                let fix = if check.status == Status::Ok { String::new() } else { check.fix.clone() };
                [check.status.to_string(), check.name.clone(), check.found.clone(), fix]
            });
            print(&table(["STATUS", "CHECK", "FOUND", "WHAT TO DO"], rows))?;
        }
    }
    Ok(u8::from(checks.iter().any(|check| check.status == Status::Fail)))
}
