//! Can executions run: images of the providers, the hosts that they have to reach, the keeper, and the clock.

use std::time::{Duration, SystemTime};

use super::{Check, Status, reach};
use thaw_client::client::Client;
use thaw_client::types::Provider;

/// Checks of a daemon that answers.
pub async fn checks(client: &Client) -> Vec<Check> {
    let mut checks = vec![keeper(client.metrics().await.ok().as_deref())];
    if let Ok(providers) = client.providers().await {
        checks.push(images(&providers));
        checks.push(reach::check(client, &providers).await);
    }
    checks
}

/// Without any image nothing can run; with some, the others may not be wanted.
fn images(providers: &[Provider]) -> Check {
    let (ready, without): (Vec<_>, Vec<_>) = providers.iter().partition(|provider| provider.ready);
    let names = |list: &[&Provider]| list.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    let (status, found) = match (ready.is_empty(), without.is_empty()) {
        (true, _) => (Status::Fail, "no provider has its image".to_owned()),
        (false, true) => (Status::Ok, format!("of {}", names(&ready))),
        // A package brings manifests of providers that nobody here uses.
        (false, false) => (Status::Ok, format!("of {}; none of {}", names(&ready), names(&without))),
    };
    Check::new("images", status, found, "Run thawctl setup PROVIDER, or build, pull or import its image.")
}

/// By the daemon's own account of how often it had to replace the keeper.
fn keeper(metrics: Option<&str>) -> Check {
    let failures = metrics.and_then(|text| {
        let line = text.lines().find(|line| line.starts_with(KEEPER))?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    });
    let (status, found) = match failures {
        Some(0.0) => (Status::Ok, "has not failed since the daemon started".to_owned()),
        Some(times) => (Status::Warn, format!("has failed {times} times: what ran then may not survive a restart")),
        None => (Status::Warn, "the daemon does not say".to_owned()),
    };
    Check::new("keeper", status, found, "Read thawd's log for why, and restart thawd.")
}

const KEEPER: &str = "thawd_keeper_failures_total";

/// A clock before the day on which this program was installed is wrong, and certificates are not valid then.
pub fn clock() -> Check {
    let installed = std::env::current_exe().and_then(|program| program.metadata()?.modified()).ok();
    let is_behind = installed.is_some_and(|installed| SystemTime::now() + Duration::from_secs(86_400) < installed);
    let (status, found) = match is_behind {
        true => (Status::Fail, "more than a day before this program was installed"),
        false => (Status::Ok, "not before this program was installed"),
    };
    Check::new("clock", status, found, "Set it, for example with: timedatectl set-ntp true.")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn provider(name: &str, ready: bool, egress: &[&str]) -> Provider {
        serde_json::from_value(json!({ "name": name, "image": name, "default_model": "m", "ready": ready,
            "credential_files": [], "credential_env": [], "egress": egress }))
        .unwrap()
    }

    #[test]
    fn a_daemon_without_any_image_is_not_well() {
        assert_eq!(images(&[provider("a", false, &[])]).status, Status::Fail);
        let some = images(&[provider("a", false, &[]), provider("b", true, &[])]);
        assert_eq!((some.status, some.found.as_str()), (Status::Ok, "of b; none of a"));
    }

    #[test]
    fn the_keeper_is_judged_by_its_metric_and_the_clock_by_the_program() {
        assert_eq!(keeper(Some("# x\nthawd_keeper_failures_total 0\n")).status, Status::Ok);
        assert_eq!(keeper(Some("thawd_keeper_failures_total 2\n")).status, Status::Warn);
        assert_eq!(keeper(None).status, Status::Warn);
        assert_eq!(clock().status, Status::Ok);
    }
}
