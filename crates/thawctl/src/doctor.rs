//! `thawctl doctor`: can this machine run thawd, and what to do when it cannot.

use std::io;

use super::daemon_config::daemon_config;
use super::fields::Fields;
use super::table::table;
use super::{CtlError, Format, one_line, print};
use crate::checks::{self, Check, Status};
use thaw_client::client::Client;

/// Commands that do what a check's sentence says, where one command does it everywhere.
const COMMANDS: [(&str, &str); 8] = [
    ("process ids", "sysctl -w kernel.pid_max=4194304"),
    ("mmdebstrap", "apt-get install -y mmdebstrap"),
    ("npm", "apt-get install -y npm"),
    ("group of the socket", "systemd-sysusers thawd.conf || groupadd --system thawd"),
    ("daemon socket", "systemctl start thawd.socket thawd.service"),
    ("daemon health", "systemctl restart thawd.service"),
    ("cgroup delegation", "systemctl start thawd.service"),
    ("clock", "timedatectl set-ntp true"),
];

/// Arguments of `thawctl doctor`.
#[derive(Debug, clap::Args)]
pub(super) struct DoctorArgs {
    /// Print a shell script that does what can be done by commands, and says the rest; nothing is changed
    #[arg(long)]
    fix: bool,
}

/// Prints the checks; the exit code is 1 when one failed.
pub(super) async fn doctor(client: &Client, args: &DoctorArgs, format: &Format) -> Result<u8, CtlError> {
    let mut found = checks::run();
    // A configuration that cannot be read is one of the checks above.
    found.extend(daemon_config().iter().flat_map(checks::shares));
    found.extend(checks::daemon(client).await);
    if args.fix {
        print(&script(&found))?;
        return Ok(0);
    }
    let items: Vec<_> = found.iter().map(serde_json::to_value).collect::<Result<_, _>>().map_err(io::Error::from)?;
    format.print(&items, &Fields::of_items(), || {
        let rows = found.iter().map(|check| {
            let fix = if check.status == Status::Ok { String::new() } else { check.fix.clone() };
            [check.status.to_string(), check.name.clone(), check.found.clone(), fix]
        });
        Ok(table(["STATUS", "CHECK", "FOUND", "WHAT TO DO"], rows))
    })?;
    Ok(u8::from(found.iter().any(|check| check.status == Status::Fail)))
}

/// What to do for each check that is not as it should be, for a shell: read it before it is run.
fn script(found: &[Check]) -> String {
    let mut text = "#!/bin/sh\n# Printed by `thawctl doctor --fix`: read it, then run it as root.\nset -e\n".to_owned();
    for check in found.iter().filter(|check| check.status != Status::Ok) {
        text +=
            &format!("\n# {}: {}: {}\n# {}\n", check.status, check.name, one_line(&check.found), one_line(&check.fix));
        if let Some((_, command)) = COMMANDS.iter().find(|(name, _)| *name == check.name) {
            text += &format!("{command}\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_has_commands_for_names_that_checks_have_and_only_for_what_is_wrong() {
        let names: Vec<String> = checks::run().into_iter().map(|check| check.name).collect();
        for (name, _) in COMMANDS {
            assert!(name.starts_with("daemon ") || names.iter().any(|known| known == name), "{name}");
        }
        let check = |name: &str, status| Check {
            name: name.to_owned(),
            status,
            found: "x\nrm -rf /".to_owned(),
            fix: "Do this.".to_owned(),
        };
        let text = script(&[check("npm", Status::Warn), check("clock", Status::Ok), check("kernel", Status::Fail)]);
        assert!(text.contains("\napt-get install -y npm\n") && !text.contains("timedatectl"), "{text}");
        // What was found cannot become a command.
        assert!(text.contains("# fail: kernel: x rm -rf /\n# Do this.\n") && !text.contains("\nrm"), "{text}");
    }
}
