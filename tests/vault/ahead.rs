//! Logins that the daemon renews itself.

use std::time::Duration;

use thaw_client::types::{AuditAction, AuditRecord, CheckMethod, CheckOutcome, CredentialCheck, CredentialState, Page};
use toml::Table;

use super::{prepare, put, request, shown, with_vault};
use crate::support::{Daemon, Mood, Process, Setup, TokenServer, eventually, programs, shell};

/// A provider whose logins the daemon renews here.
pub fn provider(server: &TokenServer, setup: Setup) -> Setup {
    let formats = Table::from_iter([("token".to_owned(), "claude-credentials".into())]);
    let addresses = Table::from_iter([("auth.test".to_owned(), vec!["127.0.0.1"].into())]);
    let refresh = Table::from_iter([
        ("token_url".to_owned(), format!("http://127.0.0.1:{}/token", server.port).into()),
        ("client_id".to_owned(), "client-1".into()),
    ]);
    setup
        .provider("credentials.formats", formats)
        .provider("credentials.refresh", refresh)
        .provider("egress", vec![format!("auth.test:{}", server.port)])
        .set("egress.resolve", addresses)
        .set("queue.timeout_ms", 300_000)
        .set("queue.max_timeout_ms", 300_000)
}

/// A script of a CLI that asks with what its file has, and cannot renew it: there is no refresh token.
pub fn script(server: &TokenServer) -> String {
    format!(
        r#"cd ~/.test
        ! grep -q 'refreshToken\|r-[0-9]' token || {{ echo "it has a refresh token"; exit 3; }}
        access=$(sed 's/.*"accessToken":"\([^"]*\).*/\1/' token)
        wget -q -O - http://auth.test:{}/ask/$access || {{ echo "refused: $access"; exit 4; }}"#,
        server.port
    )
}

/// The login as if its access token were over.
fn over(login: &str) -> String {
    login.replace("\"expiresAt\":", "\"expiresAt\":1,\"x\":")
}

pub async fn actions(daemon: &Daemon) -> Vec<AuditAction> {
    let answer = request(daemon, "GET /v1/users/u1/audit?limit=1000", "").await;
    let page: Page<AuditRecord> = serde_json::from_slice(&answer.body).unwrap();
    page.items.into_iter().rev().map(|record| record.action).collect()
}

/// Runs the script that asks with the access token, many times at once.
async fn many_at_once(count: usize) {
    let server = TokenServer::start(Duration::from_secs(2));
    let daemon = with_vault(|setup| provider(&server, setup)).await;
    // Over already, so that it has to be renewed however fast the machine is.
    put(&daemon, "u1", &over(&server.login())).await;
    let mut run = shell(&script(&server));
    run.user = "u1".to_owned();
    let outcomes = futures_util::future::join_all((0..count).map(|_| daemon.run(&run))).await;
    for outcome in outcomes {
        assert!(outcome.exited(0).text().starts_with("answer to a-"));
    }
    {
        let state = server.state();
        assert_eq!((state.asked as usize, &state.refused, &state.over), (count, &Vec::new(), &Vec::new()));
        assert!(state.last > 1 && state.renewals + 1 == state.last, "{state:?}");
    }
    // What is stored is the newest: it can be renewed once more.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let last = server.state().last;
    assert_eq!(daemon.run(&run).await.exited(0).text(), format!("answer to a-{}\n", last + 1));
    assert!(server.state().refused.is_empty());
    daemon.stop().await;
}

#[tokio::test]
async fn sixty_runs_over_a_login_that_expires_every_two_seconds_all_succeed_without_a_refresh_token() {
    many_at_once(60).await;
}

#[tokio::test]
#[ignore = "takes a minute: cargo test --test vault -- --ignored two_hundred"]
async fn two_hundred_runs_over_a_login_that_expires_every_two_seconds_all_succeed() {
    many_at_once(200).await;
}

/// Kills the daemon again and again while logins are renewed.
async fn killed(rounds: u64) {
    let server = TokenServer::start(Duration::from_secs(2));
    let mut daemon = with_vault(|setup| provider(&server, setup)).await;
    put(&daemon, "u1", &server.login()).await;
    let mut run = shell(&script(&server));
    run.user = "u1".to_owned();
    run.background = true;
    for round in 0..rounds {
        // So that each round has to renew it, and the daemon dies before, during or after that.
        server.state().mood = Mood::Slow(Duration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let mut begun = Vec::new();
        for _ in 0..4 {
            let (client, run) = (daemon.client.clone(), run.clone());
            begun.push(tokio::spawn(async move { client.create(&run).await }));
        }
        tokio::time::sleep(Duration::from_millis(5 + 17 * (round % 12))).await;
        daemon.kill();
        begun.iter().for_each(tokio::task::JoinHandle::abort);
        daemon.launch().await;
    }
    eventually("all have ended", || async { all_ended(&daemon).await.then_some(()) }).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    run.background = false;
    assert!(daemon.run(&run).await.exited(0).text().starts_with("answer to a-"));
    {
        let state = server.state();
        assert!(state.refused.is_empty(), "used twice: {state:?}");
        assert!(state.last > 1 && state.renewals + 1 == state.last, "{state:?}");
    }
    assert_eq!(shown(&daemon, "u1").await.state, CredentialState::Expiring);
    daemon.stop().await;
}

pub async fn all_ended(daemon: &Daemon) -> bool {
    let executions = daemon.client.executions().await.unwrap();
    executions.iter().all(|execution| execution.exit.is_some())
}

#[tokio::test]
async fn neither_token_is_lost_although_the_daemon_is_killed_while_it_renews() {
    killed(12).await;
}

#[tokio::test]
#[ignore = "takes minutes: cargo test --test vault -- --ignored fifty_times"]
async fn neither_token_is_lost_although_the_daemon_is_killed_fifty_times() {
    killed(50).await;
}

#[tokio::test]
async fn dying_at_each_step_of_a_renewal_loses_neither_token() {
    for step in thawd::failpoints::REFRESH {
        let server = TokenServer::start(Duration::from_secs(3600));
        let mut daemon = prepare(|setup| provider(&server, setup));
        daemon.spawn(&[("THAWD_DIE_AT", step)]);
        daemon.ready().await;
        put(&daemon, "u1", &over(&server.login())).await;
        let mut run = shell(&script(&server));
        run.user = "u1".to_owned();
        let asked = {
            let (client, run) = (daemon.client.clone(), run.clone());
            tokio::spawn(async move { client.create(&run).await })
        };
        daemon.ended().await;
        asked.await.unwrap().unwrap_err();
        daemon.launch().await;
        assert_eq!(daemon.run(&run).await.exited(0).text(), "answer to a-2\n", "{step}");
        {
            let state = server.state();
            assert_eq!((state.last, state.renewals, &state.refused), (2, 1, &Vec::new()), "{step}");
        }
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_provider_that_refuses_or_is_away_is_told_apart() {
    let server = TokenServer::start(Duration::from_secs(3));
    let daemon = with_vault(|setup| provider(&server, setup).set("vault.refresh_timeout_seconds", 2)).await;
    let mut run = shell(&script(&server));
    run.user = "u1".to_owned();
    let body = r#"{"provider":"test","user":"u1","command":["true"]}"#;
    // Away, while the token is still good: that is used.
    server.state().mood = Mood::Answers("503 Service Unavailable", String::new());
    put(&daemon, "u1", &server.login()).await;
    tokio::time::sleep(Duration::from_millis(1600)).await;
    assert_eq!(daemon.run(&run).await.exited(0).text(), "answer to a-1\n");
    // And when it is over.
    tokio::time::sleep(Duration::from_millis(1600)).await;
    let problem = request(&daemon, "POST /v1/executions", body).await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (503, "credential_not_renewed"), "{}", problem.detail);
    assert!(problem.retryable && problem.detail.contains("503 Service Unavailable"), "{}", problem.detail);
    assert!(server.state().renewals > 2, "it was tried again");
    // Answers that are none.
    for (status, text, why) in [
        ("200 OK", "{}".to_owned(), "no access token"),
        ("200 OK", "<html>".to_owned(), "no JSON"),
        ("200 OK", "x".repeat((64 << 10) + 1), "more than 65536 bytes"),
        ("401 Unauthorized", r#"{"error":"invalid_client"}"#.to_owned(), "invalid_client"),
        ("302 Found", String::new(), "302 Found"),
    ] {
        server.state().mood = Mood::Answers(status, text);
        let wrong = format!("user-{}", why.len());
        put(&daemon, &wrong, &over(&server.login())).await;
        let body = body.replace("u1", &wrong);
        let problem = request(&daemon, "POST /v1/executions", &body).await.problem();
        assert_eq!(problem.code, "credential_not_renewed");
        assert!(problem.detail.contains(why), "{}", problem.detail);
    }
    // Back again: the login was never held to be bad.
    server.state().mood = Mood::Well;
    let well = eventually("it is renewed", || async {
        let answer = request(&daemon, "POST /v1/executions", body).await;
        (answer.status != 503).then_some(answer.status)
    });
    assert_eq!(well.await, 201);
    // One that was used by somebody else.
    put(&daemon, "u1", &over(&server.login().replace("r-", "stolen-r-"))).await;
    let problem = request(&daemon, "POST /v1/executions", body).await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (409, "credential_refused"), "{}", problem.detail);
    assert!(problem.detail.contains("invalid_grant"), "{}", problem.detail);
    assert_eq!(shown(&daemon, "u1").await.state, CredentialState::Refused);
    let actions = actions(&daemon).await;
    for action in [AuditAction::RefreshFailed, AuditAction::Refreshed, AuditAction::Refused, AuditAction::UseRefused] {
        assert!(actions.contains(&action), "{action:?}: {actions:?}");
    }
    put(&daemon, "u1", &server.login()).await;
    daemon.run(&run).await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn nothing_of_a_renewal_stays_in_memory_and_its_process_is_gone() {
    let server = TokenServer::start(Duration::from_secs(3));
    let mut daemon = with_vault(|setup| provider(&server, setup)).await;
    put(&daemon, "u1", &server.login()).await;
    daemon.signal(rustix::process::Signal::TERM);
    daemon.ended().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    daemon.launch().await;
    let mut run = shell("grep -c accessToken ~/.test/token");
    run.user = "u1".to_owned();
    daemon.run(&run).await.exited(0);
    assert_eq!(server.state().last, 2);
    let is = shown(&daemon, "u1").await;
    assert!(is.last_refresh_at.is_some() && is.version == 2);
    // A form, as RFC 6749 has it.
    assert!(
        server.state().request.contains("grant_type=refresh_token&")
            || server.state().request.contains("&grant_type=refresh_token")
    );
    let me = Process::now(daemon.pid()).unwrap();
    let family = [me, daemon.keeper().unwrap(), daemon.spawner().unwrap()];
    for process in &family {
        for secret in ["\"refreshToken\":\"r-", "\"refresh_token\":\"r-", "refresh_token=r-"] {
            assert!(!process.has_in_memory(secret), "{secret}: {}", process.command_line());
        }
    }
    let others = daemon.family();
    assert!(!others.iter().any(|process| process.command_line().contains(" refresh")), "{others:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn an_operator_chooses_who_renews() {
    let server = TokenServer::start(Duration::from_secs(3600));
    // The CLI, and all at once: none waits for another.
    let daemon = with_vault(|setup| provider(&server, setup).set("provider.test.refresh", "shared")).await;
    put(&daemon, "u1", &over(&server.login())).await;
    let mut run = shell("grep -o 'r-[0-9]*' ~/.test/token; sleep 1");
    (run.user, run.queue_timeout_ms) = ("u1".to_owned(), Some(500));
    let both = tokio::join!(daemon.run(&run), daemon.run(&run));
    assert_eq!((both.0.exited(0).text(), both.1.exited(0).text()), ("r-1\n", "r-1\n"));
    assert_eq!(server.state().renewals, 0);
    daemon.stop().await;

    let mut daemon = prepare(|setup| setup.set("provider.test.refresh", "refresh-ahead"));
    let said = daemon.refused().await;
    assert!(said.contains("needs one file with a format"), "{said}");
    let mut daemon = prepare(|setup| setup.set("provider.test.token_url", "http://auth.test/token"));
    let said = daemon.refused().await;
    assert!(said.contains("provider.test.token_url") && said.contains("[::1] only"), "{said}");
}

#[tokio::test]
async fn a_check_says_what_the_provider_says() {
    let server = TokenServer::start(Duration::from_secs(3600));
    let daemon = with_vault(|setup| provider(&server, setup)).await;
    let path = "POST /v1/users/u1/credentials/test/check";
    assert_eq!(request(&daemon, path, "").await.problem().code, "not_found");
    put(&daemon, "u1", &server.login()).await;
    let check = async || {
        let answer = request(&daemon, path, "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_slice::<CredentialCheck>(&answer.body).unwrap()
    };
    let good = check().await;
    assert_eq!((good.outcome, good.method, good.credential.version), (CheckOutcome::Good, CheckMethod::Refresh, 2));
    server.state().mood = Mood::Answers("404 Not Found", String::new());
    let unknown = check().await;
    assert_eq!((unknown.outcome, unknown.detail.as_deref()), (CheckOutcome::Unknown, Some("404 Not Found")));
    assert_eq!(unknown.credential.state, CredentialState::Valid, "nothing is held against it");
    let thawctl = || {
        let mut command = std::process::Command::new(programs::thawctl());
        command.arg("--socket").arg(daemon.socket()).args(["credentials", "check", "test", "-u", "u1"]);
        let done = command.output().unwrap();
        (done.status.code(), String::from_utf8(done.stdout).unwrap())
    };
    let said = "test of u1: unknown (asked to renew the login): 404 Not Found\n";
    assert_eq!(thawctl(), (Some(1), said.to_owned()));
    server.state().mood = Mood::Well;
    assert_eq!(thawctl(), (Some(0), "test of u1: good (asked to renew the login)\n".to_owned()));
    server.state().mood = Mood::Answers("400 Bad Request", r#"{"error":"invalid_grant"}"#.to_owned());
    let refused = check().await;
    assert_eq!((refused.outcome, refused.credential.state), (CheckOutcome::Refused, CredentialState::Refused));
    assert!(refused.detail.unwrap().contains("invalid_grant"));
    let asked = server.state().renewals;
    assert_eq!((check().await.method, server.state().renewals), (CheckMethod::Stored, asked));
    assert_eq!(actions(&daemon).await.iter().filter(|action| **action == AuditAction::Checked).count(), 6);

    // A key of a provider without a CLI can be asked about in no way.
    let mut key = thaw_client::types::Credentials::default();
    key.env.insert("TEST_TOKEN".to_owned(), thaw_client::types::Secret::new("key-1".to_owned()));
    let _: thaw_client::types::Credential = daemon.client.put_credential("u1", "test", &key).await.unwrap();
    let problem = request(&daemon, path, "").await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (409, "cannot_check"));
    daemon.stop().await;
}

#[tokio::test]
async fn a_key_is_checked_by_a_prompt_of_the_cli() {
    let daemon = with_vault(|setup| {
        setup
            .provider("command.argv", vec!["sh", "-c", "read line; [ \"$TEST_TOKEN\" = good ] && echo OK"])
            .provider("models.default", "m")
            .provider("models.allowed", vec!["m"])
    })
    .await;
    for (text, outcome) in [("good", CheckOutcome::Good), ("bad", CheckOutcome::Unknown)] {
        let mut key = thaw_client::types::Credentials::default();
        key.env.insert("TEST_TOKEN".to_owned(), thaw_client::types::Secret::new(text.to_owned()));
        let _: thaw_client::types::Credential = daemon.client.put_credential("u1", "test", &key).await.unwrap();
        let found: CredentialCheck = daemon.client.check_credential("u1", "test").await.unwrap();
        assert_eq!((found.outcome, found.method), (outcome, CheckMethod::Prompt), "{:?}", found.detail);
        let execution = daemon.client.execution(&found.execution.unwrap()).await.unwrap();
        assert_eq!((execution.user.as_str(), execution.exit.unwrap().success), ("u1", outcome == CheckOutcome::Good));
        assert_eq!(found.detail.is_none(), outcome == CheckOutcome::Good);
    }
    daemon.stop().await;
}
