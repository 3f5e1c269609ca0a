//! What a restart with a configuration would do to what runs now, said before it happens.

use std::path::Path;

use thaw_client::client::{Client, ClientError};
use thaw_client::config::Config;
use thaw_client::types::{Container, Execution, ExecutionState};

use crate::keeper;

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// What would be lost, a sentence each.
    pub lost: Vec<String>,
    /// What is worth knowing besides.
    pub notes: Vec<String>,
}

/// Asks the daemon that serves the socket of `config` what runs, and says what a daemon with `config` could not go on with.
///
/// # Errors
/// There is a daemon, and it does not answer as it should.
pub async fn check(config: &Config) -> Result<Findings, ClientError> {
    let client = Client::new(&config.api.socket)?;
    let executions = match client.executions().await {
        Ok(executions) => executions,
        Err(ClientError::Connect { source, .. })
            if matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused) =>
        {
            let note = format!("no daemon answers at {}: nothing runs that could be lost", config.api.socket.display());
            return Ok(Findings { notes: vec![note], ..Findings::default() });
        }
        Err(error) => return Err(error),
    };
    let containers = client.containers().await?;
    Ok(compare(config, &executions, &containers, &config.paths.run_dir.join(keeper::SOCKET)))
}

fn compare(config: &Config, executions: &[Execution], containers: &[Container], keeper: &Path) -> Findings {
    let mut findings = Findings::default();
    let running: Vec<_> = executions.iter().filter(|execution| execution.exit.is_none()).collect();
    let has_keeper = keeper.exists();
    let base = format!("{}/{}/", config.cgroup.parent.trim_end_matches('/'), config.cgroup.name);
    for execution in &running {
        let container = containers.iter().find(|container| Some(&container.id) == execution.container.as_ref());
        let mut lost = |why: String| findings.lost.push(format!("{}: {why}", execution.id));
        match (execution.state, container) {
            (ExecutionState::Queued | ExecutionState::Pending, _) => {
                lost("it waits for a container, which no restart survives".to_owned());
            }
            _ if !has_keeper => lost(format!(
                "there is no keeper at {} (`paths.run_dir`), which would hold it meanwhile",
                keeper.display()
            )),
            (_, Some(container)) if !format!("/{}", container.cgroup.trim_start_matches('/')).starts_with(&base) => {
                lost(format!(
                    "its container is in the control group {}, and not below {base} (`cgroup.parent`, `cgroup.name`)",
                    container.cgroup
                ));
            }
            _ => {}
        }
    }
    let kept = running.len() - findings.lost.len();
    if kept > config.container.max {
        findings.notes.push(format!(
            "{kept} running executions are kept, more than `container.max` = {}: nothing is created before there are fewer",
            config.container.max
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn execution(id: &str, state: &str) -> Execution {
        serde_json::from_value(json!({
            "id": id, "provider": "a", "user": "u", "state": state, "container": format!("c-{id}"),
            "created_at_ms": 1, "timeout_ms": 1, "labels": {},
        }))
        .unwrap()
    }

    fn container(id: &str, stage: &str, cgroup: &str) -> Container {
        serde_json::from_value(json!({
            "id": format!("c-{id}"), "provider": "a", "stage": stage, "state": "claimed", "created_at_ms": 1,
            "memory_bytes": 1, "cpu_ms": 1, "frozen": false, "cgroup": cgroup,
        }))
        .unwrap()
    }

    #[test]
    fn what_cannot_be_kept_is_named_with_its_reason() {
        let mut config = Config::default();
        "/x".clone_into(&mut config.cgroup.parent);
        "thawd".clone_into(&mut config.cgroup.name);
        let executions =
            ["1", "2", "3"].map(|id| execution(id, "running")).into_iter().chain([execution("4", "queued")]);
        let executions: Vec<_> = executions.collect();
        let containers = [
            container("1", "created", "/x/thawd/c-1"),
            container("2", "created", "x/other/c-2"),
            container("3", "prestarted", "/x/thawd/c-3"),
        ];
        let here = tempfile::tempdir().unwrap();
        let Findings { lost, notes } = compare(&config, &executions, &containers, here.path());
        assert_eq!(lost.len(), 2, "a prestarted CLI is kept as any other command: {lost:?}");
        assert!(lost[0].starts_with("2: ") && lost[0].contains("`cgroup.name`"), "{lost:?}");
        assert!(lost[1].starts_with("4: ") && lost[1].contains("waits"), "{lost:?}");
        assert_eq!(notes, [] as [String; 0]);
        let Findings { lost, .. } = compare(&config, &executions, &containers, &here.path().join("none"));
        assert_eq!(lost.len(), 4);
        assert!(lost[0].contains("`paths.run_dir`"), "{lost:?}");
    }

    #[test]
    fn more_than_the_limit_are_kept_and_it_is_said() {
        let mut config = Config::default();
        config.container.max = 1;
        let executions = ["1", "2"].map(|id| execution(id, "running"));
        let here = tempfile::tempdir().unwrap();
        let findings = compare(&config, &executions, &[], here.path());
        assert_eq!(findings.lost, [] as [String; 0]);
        assert!(findings.notes[0].contains("2 running executions are kept"), "{findings:?}");
    }
}
