//! A login of the vault whose access token the provider refuses: thawd renews it, and asks the real CLI once more.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use thaw_client::types::{Credential, Event, ExecutionRequest, Stage, Started};

use super::support::{Outcome, eventually, prompt};
use super::{Upstream, answer, daemon};

fn starts(outcome: &Outcome) -> Vec<&Started> {
    let started = outcome.events.iter().filter_map(|(_, event)| match event {
        Event::Started(started) => Some(started),
        _ => None,
    });
    started.collect()
}

/// A file with a master key.
pub fn vault_key(folder: &Path) -> String {
    let key = folder.join("vault.key");
    std::fs::write(&key, "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\n").unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    key.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_the_provider_refuses_is_renewed_and_each_cli_asked_once_more() {
    let upstream = Upstream::start();
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let key = vault_key(scratch.path());
    let daemon = daemon(&upstream, |setup, name| {
        let prestarted = i64::from(name == "openai");
        let setup = setup
            .set("vault.key_file", key.clone())
            .set(&format!("provider.{name}.pool_target"), 0)
            .set(&format!("provider.{name}.prestarted"), prestarted);
        if name == "google" {
            return setup;
        }
        setup.set(&format!("provider.{name}.token_url"), format!("http://{}/oauth/token", upstream.address))
    })
    .await;
    let renewals = async || {
        let requests = upstream.get("/__requests").await;
        let items = requests["items"].as_array().unwrap().clone();
        items.iter().filter(|item| item["path"].as_str().is_some_and(|path| path.ends_with("/oauth/token"))).count()
    };
    // One that waits already started, and two that begin with their prompt.
    for (provider, env) in [("openai", ""), ("openai", "PLAIN"), ("anthropic", "")] {
        let login = upstream.credentials(provider).await;
        let _: Credential = daemon.client.put_credential("u1", provider, &login).await.unwrap();
        eventually("codex waits already started", || async {
            let pools = daemon.client.pools().await.unwrap();
            pools.iter().any(|pool| pool.stage == Stage::Prestarted && pool.warm == 1).then_some(())
        })
        .await;
        let mut request = ExecutionRequest { timeout_ms: Some(120_000), ..prompt(provider, "What is 3*67?") };
        if !env.is_empty() {
            request.env = BTreeMap::from([(env.to_owned(), "1".to_owned())]);
        }
        upstream.forget().await;
        upstream.control(json!({"misbehave": "401", "api": provider, "until_renewed": true})).await;
        let outcome = daemon.run(&request).await;
        let said = (String::from_utf8_lossy(&outcome.stdout), String::from_utf8_lossy(&outcome.stderr));
        assert!(outcome.exit.success, "{provider}: {:?} {said:?}", outcome.exit);
        assert!(answer(&outcome).contains("201"), "{provider}: {said:?}");
        let started = starts(&outcome);
        let prestarted = provider == "openai" && env.is_empty();
        assert_eq!((started.len(), started[0].prestarted), (2, prestarted), "{provider}: {said:?}");
        let stored: Credential = shown(&daemon, provider).await;
        assert!(stored.last_refresh_at.is_some() && stored.version > 1, "{stored:?}");
        assert!(renewals().await >= 1);
        upstream.control(json!({"misbehave": "none"})).await;
        // Otherwise the next one would be renewed too soon after this one.
        let _: () = daemon.client.remove_credential("u1", Some(provider)).await.unwrap();
    }
    daemon.stop().await;
}

async fn shown(daemon: &super::support::Daemon, provider: &str) -> Credential {
    let all: Vec<Value> = daemon.client.credentials("u1").await.unwrap();
    let one = all.into_iter().find(|one| one["provider"] == provider).unwrap();
    serde_json::from_value(one).unwrap()
}
