//! Credentials of the vault in executions, and what the executions make of them.

use std::collections::BTreeMap;

use thaw_client::types::{CredentialState, Credentials, ExitReason, Secret};

use super::{MARKER, files, put, request, shown, with_vault};
use crate::support::{Daemon, Process, eventually, shell};

/// The file as an execution of `user` finds it.
async fn found(daemon: &Daemon, user: &str) -> String {
    let mut request = shell("cat ~/.test/token 2>/dev/null || echo none");
    request.user = user.to_owned();
    daemon.run(&request).await.exited(0).text().trim().to_owned()
}

#[tokio::test]
async fn an_execution_without_credentials_gets_its_user_s() {
    let mut daemon = with_vault(|setup| setup).await;
    assert_eq!(found(&daemon, "u1").await, "none");
    put(&daemon, "u1", MARKER).await;
    assert_eq!(found(&daemon, "u1").await, MARKER);
    assert_eq!(found(&daemon, "u2").await, "none", "another user has none of it");
    assert!(shown(&daemon, "u1").await.last_used_at.is_some());

    // What a request brings counts, and is not kept.
    let mut own = shell("cat ~/.test/token; echo \" $TEST_TOKEN\"");
    own.credentials = Some(files("token", "inline"));
    assert_eq!(daemon.run(&own).await.exited(0).text(), "inline \n");
    // No credentials are none.
    own.credentials = Some(Credentials::default());
    assert!(daemon.run(&own).await.errors().contains("No such file"));
    assert_eq!(shown(&daemon, "u1").await.version, 1);

    // The next daemon has it too.
    daemon.signal(rustix::process::Signal::TERM);
    daemon.ended().await;
    daemon.launch().await;
    assert_eq!(found(&daemon, "u1").await, MARKER);
    assert!(shown(&daemon, "u1").await.last_used_at.is_some());

    let mut key = Credentials::default();
    key.env = BTreeMap::from([("TEST_TOKEN".to_owned(), Secret::new("key-1".to_owned()))]);
    let _: thaw_client::types::Credential = daemon.client.put_credential("u1", "test", &key).await.unwrap();
    let mut variable = shell("echo $TEST_TOKEN; ls -A ~/.test");
    variable.user = "u1".to_owned();
    assert_eq!(daemon.run(&variable).await.exited(0).text(), "key-1\n");
    assert_eq!(request(&daemon, "DELETE /v1/users/u1/credentials/test", "").await.status, 204);
    assert_eq!(found(&daemon, "u1").await, "none");
    daemon.stop().await;
}

#[tokio::test]
async fn what_was_used_is_in_no_memory_of_the_daemon_any_more() {
    let mut daemon = with_vault(|setup| setup).await;
    put(&daemon, "u1", MARKER).await;
    // What a request brought may lie in buffers of the HTTP library; the next daemon has never had one.
    daemon.signal(rustix::process::Signal::TERM);
    daemon.ended().await;
    daemon.launch().await;
    // Nothing that a command prints is a secret of the daemon's, so that it prints none.
    assert_eq!(daemon.sh("wc -c < ~/.test/token").await.exited(0).text(), format!("{}\n", MARKER.len()));
    daemon.sh("cd ~/.test && sed s/marker/marker-renewed/ token > token.tmp && mv token.tmp token").await.exited(0);
    assert_eq!(shown(&daemon, "u1").await.version, 2);
    let _: thaw_client::types::UserKey = daemon.client.rotate_user_key("u1").await.unwrap();
    let me = Process::now(daemon.pid()).unwrap();
    let family = [me, daemon.keeper().unwrap(), daemon.spawner().unwrap()];
    // It is not the search that finds nothing.
    assert!(family[0].has_in_memory("/v1/executions"));
    for process in family {
        for secret in ["marker-9c41f7", "marker-renewed-9c41f7"] {
            assert!(!process.has_in_memory(secret), "{secret}: {}", process.command_line());
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn what_a_cli_renews_is_there_for_the_next_run() {
    let daemon = with_vault(|setup| setup).await;
    put(&daemon, "u1", "token-1").await;
    // As codex and claude do it, and as gemini does it.
    for (script, renewed) in [
        ("cd ~/.test && echo token-2 > token.tmp && mv token.tmp token", "token-2"),
        ("cd ~/.test && echo token-3 > token", "token-3"),
    ] {
        daemon.sh(script).await.exited(0);
        assert_eq!(found(&daemon, "u1").await, renewed);
        assert!(shown(&daemon, "u1").await.updated_at >= shown(&daemon, "u1").await.created_at);
    }
    assert_eq!(shown(&daemon, "u1").await.version, 3);
    // One that ends badly has renewed it all the same.
    daemon.sh("cd ~/.test && echo token-4 > token.tmp && mv token.tmp token; exit 3").await.exited(3);
    assert_eq!(found(&daemon, "u1").await, "token-4");
    // And one that is killed.
    let mut slow = shell("cd ~/.test && echo token-5 > token.tmp && mv token.tmp token; sleep 60");
    slow.timeout_ms = Some(2_000);
    daemon.run(&slow).await.ended(ExitReason::Timeout);
    assert_eq!(found(&daemon, "u1").await, "token-5");
    // What somebody brings himself is never kept.
    let mut own = shell("cd ~/.test && echo stolen > token");
    own.credentials = Some(files("token", "inline"));
    daemon.run(&own).await.exited(0);
    assert_eq!(found(&daemon, "u1").await, "token-5");
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_renewed_is_stored_while_the_command_still_runs() {
    let daemon = with_vault(|setup| setup).await;
    put(&daemon, "u1", "token-1").await;
    let mut slow = shell("cd ~/.test && echo token-2 > token.tmp && mv token.tmp token; sleep 300");
    slow.background = true;
    let running = daemon.client.create(&slow).await.unwrap();
    eventually("it is stored", || async { (shown(&daemon, "u1").await.version == 2).then_some(()) }).await;
    assert_eq!(found(&daemon, "u1").await, "token-2");
    daemon.client.cancel(&running.id).await.unwrap();
    daemon.stop().await;
}

/// A login of claude's, over or good for an hour; its refresh token says how often it was renewed.
fn claude(is_over: bool, renewals: u32) -> String {
    let expires = if is_over { 1 } else { 4_102_444_800_000u64 };
    format!(
        r#"{{"claudeAiOauth":{{"accessToken":"a","refreshToken":"r-{renewals}","expiresAt":{expires},"scopes":["user:inference"]}}}}"#
    )
}

#[tokio::test]
async fn of_many_runs_with_a_login_that_is_over_one_renews_it_and_the_others_have_the_new_one() {
    let daemon = with_vault(|setup| {
        setup.provider(
            "credentials.formats",
            toml::Table::from_iter([("token".to_owned(), "claude-credentials".into())]),
        )
    })
    .await;
    put(&daemon, "u1", &claude(true, 0)).await;
    // As a CLI does it: what is over is renewed, by a token that works once.
    let script = format!(
        "cd ~/.test; if grep -q '\"expiresAt\":1,' token; then sleep 1; cat > token.tmp <<'END'\n{}\nEND\nmv token.tmp token; \
         echo renewed; sleep 2; else echo had it; fi; grep -o 'r-[0-9]*' token",
        claude(false, 1)
    );
    let mut request = shell(&script);
    request.queue_timeout_ms = Some(30_000);
    let begun = std::time::Instant::now();
    let outcomes = futures_util::future::join_all((0..6).map(|_| daemon.run(&request))).await;
    let mut texts: Vec<_> = outcomes.into_iter().map(|outcome| outcome.exited(0).text().to_owned()).collect();
    texts.sort();
    assert_eq!(texts[..5], ["had it\nr-1\n"; 5], "after {:?}", begun.elapsed());
    assert_eq!(texts[5], "renewed\nr-1\n");
    assert_eq!(shown(&daemon, "u1").await.version, 2);

    // Who cannot wait is told so; a login that is good is everybody's at once.
    put(&daemon, "u1", &claude(true, 2)).await;
    let mut slow = shell("sleep 300");
    slow.background = true;
    let running = daemon.client.create(&slow).await.unwrap();
    let body = r#"{"provider":"test","user":"u1","command":["true"],"queue_timeout_ms":200}"#;
    let problem = super::request(&daemon, "POST /v1/executions", body).await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (503, "credential_busy"), "{}", problem.detail);
    daemon.client.cancel(&running.id).await.unwrap();
    request.queue_timeout_ms = Some(30_000);
    daemon.run(&request).await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_file_that_is_emptied_does_not_replace_the_good_one() {
    let daemon = with_vault(|setup| setup).await;
    put(&daemon, "u1", "token-1").await;
    // Not held against it: the command was killed in the middle.
    let mut cut = shell("cd ~/.test && : > token; sleep 60");
    cut.timeout_ms = Some(2_000);
    daemon.run(&cut).await.ended(ExitReason::Timeout);
    assert_eq!(found(&daemon, "u1").await, "token-1");
    // A link, a pipe or a folder in its place is no credential, and nothing hangs on it.
    for script in ["ln -sf /etc/passwd token", "rm token; mkfifo token", "rm token; mkdir token", "rm token"] {
        daemon.sh(&format!("cd ~/.test && {script}")).await.exited(0);
        assert_eq!(found(&daemon, "u1").await, "token-1", "{script}");
    }
    // claude does this when the provider refuses to renew a login.
    daemon.sh("cd ~/.test && : > token").await.exited(0);
    let is = shown(&daemon, "u1").await;
    assert_eq!(is.state, CredentialState::Refused);
    assert!(is.reason.unwrap().contains("`files.token` is empty"));
    let problem =
        request(&daemon, "POST /v1/executions", r#"{"provider":"test","user":"u1","command":["true"]}"#).await;
    let problem = problem.problem();
    assert_eq!((problem.status, problem.code.as_str()), (409, "credential_refused"), "{}", problem.detail);
    put(&daemon, "u1", "token-2").await;
    assert_eq!(found(&daemon, "u1").await, "token-2");
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_renewed_while_no_daemon_runs_is_stored_by_the_next_one() {
    let mut daemon = with_vault(|setup| setup).await;
    put(&daemon, "u1", "token-1").await;
    let script = "cd ~/.test && echo ready; while [ ! -e go ]; do sleep 0.05; done; \
                  echo token-2 > token.tmp && mv token.tmp token; echo done > /tmp/done; sleep 300";
    let mut slow = shell(script);
    slow.background = true;
    let running = daemon.client.create(&slow).await.unwrap();
    let container = eventually("it runs", || async {
        let is = daemon.client.execution(&running.id).await.unwrap();
        is.container
    })
    .await;
    let pid = daemon.container(&container).await.pid.unwrap();
    let inside = std::path::PathBuf::from(format!("/proc/{pid}/root/home/runtime/.test"));
    eventually("its directory is there", || std::future::ready(inside.join("token").exists().then_some(()))).await;
    daemon.kill();
    std::fs::write(inside.join("go"), "").unwrap();
    let renewed = inside.join("token");
    eventually("it renews", || {
        std::future::ready((std::fs::read_to_string(&renewed).unwrap_or_default() == "token-2\n").then_some(()))
    })
    .await;
    daemon.launch().await;
    eventually("it is stored", || async { (shown(&daemon, "u1").await.version == 2).then_some(()) }).await;
    daemon.client.cancel(&running.id).await.unwrap();
    assert_eq!(found(&daemon, "u1").await, "token-2");
    daemon.stop().await;
}
