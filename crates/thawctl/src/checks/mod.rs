//! Can this machine run thawd? One check for each thing that it needs of the kernel and the host, with its fix.
//!
//! Nothing is changed: no mount, cgroup or process is made. `thawctl doctor` prints the checks; the daemon can run
//! them at its start.

mod cgroup;
mod daemon;
mod host;
mod install;
mod kernel;
mod provider;
mod reach;
mod shares;
mod storage;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thaw_client::config::Config;

pub use self::daemon::daemon;

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// As needed.
    Ok,
    /// thawd runs, but not as well as it could; or this could not be found out.
    Warn,
    /// thawd cannot run, or not safely.
    Fail,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One thing that thawd needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What is checked.
    pub name: String,
    /// How it came out.
    pub status: Status,
    /// What was found, in words.
    pub found: String,
    /// What to do when the status is not `ok`, in one sentence.
    pub fix: String,
}

impl Check {
    fn new(name: &str, status: Status, found: impl Into<String>, fix: &str) -> Self {
        Self { name: name.to_owned(), status, found: found.into(), fix: fix.to_owned() }
    }
}

/// Checks the kernel and the host, in the order in which problems should be fixed. Takes some milliseconds, blocks
/// only on reads of `/proc` and `/sys`.
pub fn run() -> Vec<Check> {
    let host = Host::new(Path::new("/"));
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut checks = kernel::checks(&host, &release);
    checks.extend(cgroup::checks(&host, &release));
    checks.extend(host::checks(&host));
    checks.extend(install::checks(&host));
    checks.extend(storage::checks(&host));
    checks.push(provider::clock());
    checks
}

/// Checks the host's limits against what `config` lets all containers have together.
pub fn shares(config: &Config) -> Vec<Check> {
    shares::checks(&Host::new(Path::new("/")), config)
}

/// The files that tell about the host; `root` is another folder than `/` in tests.
#[derive(Debug)]
struct Host {
    root: PathBuf,
}

impl Host {
    fn new(root: &Path) -> Self {
        Self { root: root.to_path_buf() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn read(&self, path: &str) -> std::io::Result<String> {
        std::fs::read_to_string(self.path(path)).map(|text| text.trim_end().to_owned())
    }

    fn number(&self, path: &str) -> Option<u64> {
        self.read(path).ok()?.trim().parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with these files as the root of a host.
    pub(super) fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::new(dir.path());
        for (path, content) in files {
            let path = host.path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        (dir, host)
    }

    #[test]
    fn every_check_of_this_machine_says_what_it_found_and_how_to_fix_it() {
        let checks = run();
        assert!(checks.len() > 30, "{checks:#?}");
        for check in &checks {
            assert!(!check.name.is_empty() && !check.found.is_empty(), "{check:?}");
            assert!(check.fix.ends_with('.') && !check.fix.contains('\n'), "{check:?}");
        }
        let mut names: Vec<_> = checks.iter().map(|check| &check.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), checks.len(), "two checks share a name");
    }
}
