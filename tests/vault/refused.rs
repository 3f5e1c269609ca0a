//! Access tokens that the provider refuses in the middle of their life: renewed once, and the prompt asked once more.

use std::time::Duration;

use thaw_client::types::{AuditAction, CredentialState, Event, ExecutionRequest};

use super::{ahead, put, shown, with_vault};
use crate::support::{Daemon, Mood, Outcome, Setup, TokenServer, prompt};

/// A provider whose CLI is a script that asks with its access token, and prints what claude prints. A prompt of `talk`
/// lets it speak, one of `work` call a tool, before it asks.
fn provider(server: &TokenServer, setup: Setup) -> Setup {
    let script = format!(
        r#"read -r question
        event() {{ printf '%s\n' "$1"; }}
        case $question in
        talk) event '{{"type":"stream_event","event":{{"type":"content_block_delta","delta":{{"type":"text_delta","text":"well,"}}}}}}' ;;
        work) event '{{"type":"assistant","message":{{"model":"m","content":[{{"type":"tool_use"}}]}}}}' ;;
        esac
        access=$(sed 's/.*"accessToken":"\([^"]*\).*/\1/' ~/.test/token)
        if answer=$(wget -q -O - http://auth.test:{}/ask/$access); then
            event '{{"type":"result","subtype":"success","is_error":false,"result":"'"$question: $answer"'"}}'
        else
            event '{{"type":"assistant","error":"authentication_failed","message":{{"model":"<synthetic>","content":[]}}}}'
            event '{{"type":"result","subtype":"success","is_error":true,"api_error_status":401,"result":"Not logged in"}}'
            exit 1
        fi"#,
        server.port
    );
    ahead::provider(server, setup)
        .provider("command.argv", vec!["sh", "-c", &script])
        .provider("command.dialect", "claude-stream-json")
        .provider("models.default", "m")
        .provider("models.allowed", vec!["m"])
}

async fn daemon(server: &TokenServer) -> Daemon {
    let daemon = with_vault(|setup| provider(server, setup)).await;
    put(&daemon, "u1", &server.login()).await;
    daemon
}

fn ask(question: &str) -> ExecutionRequest {
    prompt("test", &format!("{question}\n"))
}

fn starts(outcome: &Outcome) -> usize {
    outcome.events.iter().filter(|(_, event)| matches!(event, Event::Started(_))).count()
}

fn answer(outcome: &Outcome) -> String {
    let texts = outcome.events.iter().filter_map(|(_, event)| match event {
        Event::Delta(delta) => Some(delta.text.as_str()),
        _ => None,
    });
    texts.collect()
}

#[tokio::test]
async fn a_refused_token_is_renewed_once_and_the_prompt_asked_once_more() {
    let server = TokenServer::start(Duration::from_secs(3600));
    let daemon = daemon(&server).await;
    let outcome = daemon.run(&ask("one")).await.exited(0);
    assert_eq!((answer(&outcome).as_str(), starts(&outcome)), ("one: answer to a-1", 1));
    server.state().revoked = 1;
    let outcome = daemon.run(&ask("two")).await.exited(0);
    assert_eq!((answer(&outcome).as_str(), starts(&outcome)), ("two: answer to a-2", 2));
    assert!(outcome.exit.success && outcome.exit.detail.is_none(), "{:?}", outcome.exit);
    assert_eq!(shown(&daemon, "u1").await.version, 2);
    // The next one has the new token at once.
    assert_eq!(starts(&daemon.run(&ask("three")).await.exited(0)), 1);
    {
        let state = server.state();
        assert_eq!((state.renewals, &state.refused), (1, &Vec::new()));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn many_runs_with_a_refused_token_renew_it_once() {
    let server = TokenServer::start(Duration::from_secs(3600));
    let daemon = daemon(&server).await;
    server.state().revoked = 1;
    let request = ask("x");
    let outcomes = futures_util::future::join_all((0..12).map(|_| daemon.run(&request))).await;
    for outcome in outcomes {
        let outcome = outcome.exited(0);
        assert_eq!(answer(&outcome), "x: answer to a-2");
        assert!(starts(&outcome) <= 2);
    }
    {
        let state = server.state();
        assert_eq!((state.renewals, state.asked), (1, 12));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_token_that_is_refused_when_it_is_new_is_a_failure() {
    let server = TokenServer::start(Duration::from_secs(3600));
    let daemon = daemon(&server).await;
    server.state().revoked = u32::MAX;
    let outcome = daemon.run(&ask("x")).await.exited(1);
    assert_eq!((starts(&outcome), server.state().renewals), (2, 1), "once more, and not again");
    assert!(!outcome.exit.success && answer(&outcome).is_empty());
    assert_eq!(outcome.exit.detail.as_deref(), Some("Not logged in"));
    // Nor is it renewed for each prompt.
    let outcome = daemon.run(&ask("x")).await.exited(1);
    assert_eq!((starts(&outcome), server.state().renewals), (1, 1));
    let detail = outcome.exit.detail.unwrap();
    assert!(detail.starts_with("Not logged in; it was not asked again") && detail.contains("a moment ago"), "{detail}");
    daemon.stop().await;
}

#[tokio::test]
async fn what_was_said_or_done_is_not_done_again() {
    let server = TokenServer::start(Duration::from_secs(3600));
    let daemon = daemon(&server).await;
    server.state().revoked = 1;
    for question in ["talk", "work"] {
        let outcome = daemon.run(&ask(question)).await.exited(1);
        assert_eq!((starts(&outcome), server.state().renewals), (1, 0), "{question}");
    }
    // Nor is a command, which may be anything.
    let mut command = crate::support::shell(&ahead::script(&server));
    command.user = "u1".to_owned();
    let outcome = daemon.run(&command).await.exited(4);
    assert_eq!((starts(&outcome), server.state().renewals), (1, 0));
    // Nor what brings its own credential.
    let mut own = ask("x");
    own.credentials = Some(super::files("token", &server.login()));
    assert_eq!(starts(&daemon.run(&own).await.exited(1)), 1);
    assert_eq!(server.state().renewals, 0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_login_that_is_over_for_good_is_said_to_be() {
    let server = TokenServer::start(Duration::from_secs(3600));
    let daemon = daemon(&server).await;
    server.state().revoked = 1;
    server.state().mood = Mood::Answers("400 Bad Request", r#"{"error":"invalid_grant"}"#.to_owned());
    let outcome = daemon.run(&ask("x")).await.exited(1);
    assert_eq!(starts(&outcome), 1);
    let detail = outcome.exit.detail.unwrap();
    assert!(detail.contains("Not logged in") && detail.contains("invalid_grant"), "{detail}");
    assert_eq!(shown(&daemon, "u1").await.state, CredentialState::Refused);
    assert!(ahead::actions(&daemon).await.contains(&AuditAction::Refused));
    // A token endpoint that is away is no such thing.
    put(&daemon, "u1", &server.login()).await;
    server.state().mood = Mood::Answers("404 Not Found", String::new());
    let detail = daemon.run(&ask("x")).await.exited(1).exit.detail.unwrap();
    assert!(detail.contains("Not logged in") && detail.contains("404 Not Found"), "{detail}");
    assert_eq!(shown(&daemon, "u1").await.state, CredentialState::Valid);
    daemon.stop().await;
}
