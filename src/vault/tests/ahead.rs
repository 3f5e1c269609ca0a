//! Logins that the daemon renews, with an authorisation server whose refresh tokens work once. The process that asks it is
//! a thread here.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use thaw_client::types::AuditAction;

use super::super::*;
use super::Bed;
use crate::keeper::{Kept, Key};
use crate::vault::login_file;
use crate::vault::token_process::Note;
use token_server::{Mood, TokenServer};

#[allow(dead_code, reason = "shared with other tests")]
#[path = "../../../tests/support/token_server.rs"]
mod token_server;

/// A provider whose logins are renewed at `server`.
fn provider(server: &TokenServer) -> Provider {
    let manifest = format!(
        r#"
        name = "test"
        image = "i"
        home = "/home/runtime"
        egress = []
        [credentials]
        dir = ".test"
        files = ["token"]
        formats = {{ token = "claude-credentials" }}
        required = false
        tmpfs_mib = 1
        [credentials.refresh]
        token_url = "http://127.0.0.1:{}/token"
        client_id = "client-1"
        encoding = "json"
        [resources.idle]
        memory_mib = 64
        cpu = 0.1
        [resources.run]
        memory_mib = 64
        cpu = 0.1
        "#,
        server.port
    );
    let provider: Provider = toml::from_str(&manifest).unwrap();
    provider.validate().unwrap();
    provider
}

fn file(text: &str) -> Credentials {
    let mut credentials = Credentials::default();
    credentials.files.insert("token".to_owned(), thaw_client::types::Secret::new(text.to_owned()));
    credentials
}

/// The login as if its access token were over.
fn over(login: &str) -> String {
    login.replace("\"expiresAt\":", "\"expiresAt\":1,\"x\":")
}

/// Asks as `thawd refresh` does.
fn start(started: &Arc<AtomicUsize>) -> token_process::Start {
    let started = Arc::clone(started);
    Box::new(move |socket: OwnedFd| {
        started.fetch_add(1, Ordering::Relaxed);
        std::thread::spawn(move || token_client::answer(socket.as_fd()).unwrap());
        Ok(())
    })
}

async fn serving(bed: &Bed, provider: &Provider, kept: Vec<(Key, Kept)>) -> (Arc<Vault>, Arc<AtomicUsize>) {
    let vault = bed.open().await;
    let started = Arc::new(AtomicUsize::new(0));
    let processes = TokenProcesses::new(start(&started), None, [].into());
    vault.serve_refreshes(processes, kept, |name| (name == "test").then_some(provider));
    (vault, started)
}

const NEED: Need = Need { patience: Duration::from_secs(20), lasting: Duration::from_secs(30) };

/// The access token that an execution gets.
async fn access(vault: &Arc<Vault>, provider: &Provider, user: &str) -> Result<String, VaultError> {
    let out = vault.checkout(user, provider, NEED).await?.unwrap();
    let text = out.credentials.files["token"].expose();
    assert!(out.is_managed && !text.contains("refreshToken") && !text.contains("r-"), "{text}");
    Ok(text.split('"').nth(5).unwrap().to_owned())
}

async fn actions(vault: &Vault) -> Vec<AuditAction> {
    let query = AuditQuery { user: "u1".to_owned(), provider: None, limit: 1000, cursor: None };
    vault.audit(&query).await.unwrap().items.iter().rev().map(|record| record.action).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_at_once_over_a_login_that_ends_every_two_seconds_all_get_one_that_lasts() {
    let server = Arc::new(TokenServer::start(Duration::from_secs(2)));
    let (bed, provider) = (Bed::new(), Arc::new(provider(&server)));
    let (vault, started) = serving(&bed, &provider, Vec::new()).await;
    vault.put("u1", &provider, &file(&server.login()), Asker::default()).await.unwrap();
    let tasks = (0..200u64).map(|number| {
        let (vault, provider, server) = (Arc::clone(&vault), Arc::clone(&provider), Arc::clone(&server));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(number % 40 * 150)).await;
            let access = access(&vault, &provider, "u1").await.unwrap();
            assert!(server.is_good(&access), "{access}");
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    vault.finish_refreshes().await;
    let (last, renewals) = {
        let state = server.state();
        assert!(state.refused.is_empty(), "{state:?}");
        (state.last, state.renewals)
    };
    assert!(
        last > 3 && renewals + 1 == last && started.load(Ordering::Relaxed) as u32 == renewals,
        "{last} {renewals}"
    );
    // The newest is stored.
    let (out, _) = vault.look("u1", &provider).await.unwrap().unwrap();
    let format = provider.endpoint().unwrap().format;
    let token = login_file::refresh_token(format, out.credentials.files["token"].expose()).unwrap();
    assert_eq!(token.expose(), format!("r-{last}"));
    assert!(actions(&vault).await.contains(&AuditAction::Refreshed));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_provider_answered_is_stored_by_the_next_daemon() {
    let server = TokenServer::start(Duration::from_secs(3600));
    let (bed, provider) = (Bed::new(), provider(&server));
    let (vault, _) = serving(&bed, &provider, Vec::new()).await;
    vault.put("u1", &provider, &file(&over(&server.login())), Asker::default()).await.unwrap();
    let fingerprint = vault.describe("u1", "test").await.unwrap().unwrap().fingerprint;
    // The daemon dies when it has asked: what it had is with the keeper, the answer comes to that.
    server.state().mood = Mood::Slow(Duration::from_millis(200));
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    let kind = rustix::net::SocketType::SEQPACKET;
    let (ours, its) = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, kind, flags, None).unwrap();
    let note = |user: &str, fingerprint: &str| Note {
        user: user.to_owned(),
        provider: "test".to_owned(),
        fingerprint: fingerprint.to_owned(),
        holder: "r-1".to_owned(),
    };
    let endpoint = provider.endpoint().unwrap();
    let request = token_request::TokenRequest {
        url: endpoint.url.to_owned(),
        encoding: endpoint.encoding,
        client_id: endpoint.client_id.to_owned(),
        refresh_token: thaw_client::types::Secret::new("r-1".to_owned()),
        resolve: Vec::new(),
        timeout_ms: 5000,
    };
    thaw_os::kernel::send(ours.as_fd(), &[&serde_json::to_vec(&request).unwrap()], &[]).unwrap();
    std::thread::spawn(move || token_client::answer(its.as_fd()).unwrap());
    drop(vault);
    let kept = |note: &Note, socket: &OwnedFd| Kept {
        note: serde_json::to_string(note).unwrap(),
        fds: vec![Arc::new(socket.try_clone().unwrap())],
    };
    // Killed once more before it has stored it: the answer stays where it is.
    for _ in 0..2 {
        let pending =
            token_process::Pending::resume(Key::Refresh("r-1".to_owned()), &kept(&note("u1", &fingerprint), &ours));
        pending.unwrap().reply(Duration::from_secs(5)).await.unwrap();
    }
    let all = vec![(Key::Refresh("r-1".to_owned()), kept(&note("u1", &fingerprint), &ours))];
    let (vault, started) = serving(&bed, &provider, all).await;
    assert_eq!(access(&vault, &provider, "u1").await.unwrap(), "a-2");
    assert_eq!((started.load(Ordering::Relaxed), server.state().renewals), (0, 1));
    vault.finish_refreshes().await;
    drop(vault);
    // Stored, and found again: it is known to be old.
    let all = vec![(Key::Refresh("r-1".to_owned()), kept(&note("u1", &fingerprint), &ours))];
    let (vault, _) = serving(&bed, &provider, all).await;
    assert_eq!(access(&vault, &provider, "u1").await.unwrap(), "a-2");
    vault.finish_refreshes().await;
    assert_eq!(actions(&vault).await, [AuditAction::Stored, AuditAction::Refreshed, AuditAction::NotTaken]);
    drop(vault);
    // The process has died without an answer, or nobody knows the provider any more.
    let (dead, other) = rustix::net::socketpair(rustix::net::AddressFamily::UNIX, kind, flags, None).unwrap();
    drop(other);
    let unknown = Note { provider: "gone".to_owned(), ..note("u1", "x") };
    let all = vec![
        (Key::Refresh("r-2".to_owned()), kept(&note("u1", "x"), &dead)),
        (Key::Refresh("r-3".to_owned()), kept(&unknown, &dead)),
        (Key::Refresh("r-4".to_owned()), Kept { note: "{}".to_owned(), fds: Vec::new() }),
    ];
    let (vault, _) = serving(&bed, &provider, all).await;
    vault.finish_refreshes().await;
    assert_eq!(actions(&vault).await.last(), Some(&AuditAction::RefreshFailed));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_user_stores_meanwhile_stays_and_a_new_key_of_the_user_does_no_harm() {
    let server = TokenServer::start(Duration::from_secs(3600));
    let (bed, provider) = (Bed::new(), Arc::new(provider(&server)));
    let (vault, _) = serving(&bed, &provider, Vec::new()).await;
    vault.put("u1", &provider, &file(&over(&server.login())), Asker::default()).await.unwrap();
    server.state().mood = Mood::Slow(Duration::from_millis(300));
    let begin = async || {
        let (vault, provider) = (Arc::clone(&vault), Arc::clone(&provider));
        let task = tokio::spawn(async move { access(&vault, &provider, "u1").await });
        tokio::time::sleep(Duration::from_millis(150)).await;
        vec![task]
    };
    let mut tasks = begin().await;
    vault.rotate_user_key("u1", Asker::default()).await.unwrap().unwrap();
    assert_eq!(tasks.remove(0).await.unwrap().unwrap(), "a-2");
    vault.put("u1", &provider, &file(&over(&server.login())), Asker::default()).await.unwrap();
    let mut tasks = begin().await;
    let other = server.login().replace("r-", "new-r-").replace("a-", "new-a-");
    vault.put("u1", &provider, &file(&other), Asker::default()).await.unwrap();
    assert!(tasks.remove(0).await.unwrap().unwrap().starts_with("new-a-"));
    assert!(actions(&vault).await.contains(&AuditAction::NotTaken));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_from_an_endpoint_that_is_away() {
    let server = TokenServer::start(Duration::from_secs(2));
    let (bed, provider) = (Bed::new(), provider(&server));
    let (vault, started) = serving(&bed, &provider, Vec::new()).await;
    server.state().mood = Mood::Answers("503 Service Unavailable", String::new());
    vault.put("u1", &provider, &file(&server.login()), Asker::default()).await.unwrap();
    // Time for a new one; the one that there is does.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(access(&vault, &provider, "u1").await.unwrap(), "a-1");
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let error = access(&vault, &provider, "u1").await.unwrap_err();
    assert!(matches!(&error, VaultError::NotRenewed { reason, .. } if reason == "503 Service Unavailable"), "{error}");
    assert!(error.is_transient());
    // Who comes in the pause asks nobody.
    let before = (started.load(Ordering::Relaxed), server.state().renewals);
    for _ in 0..10 {
        access(&vault, &provider, "u1").await.unwrap_err();
    }
    assert!(started.load(Ordering::Relaxed) <= before.0 + 1, "{before:?}");
    assert!(before.1 >= 3, "each asks three times");
    for (status, text, why) in [
        ("200 OK", "{}".to_owned(), "no access token"),
        ("200 OK", "<html>".to_owned(), "no JSON"),
        ("200 OK", "x".repeat((64 << 10) + 1), "more than 65536 bytes"),
        ("200 OK", format!(r#"{{"access_token":"{}"}}"#, "x".repeat(65_480)), "makes no login"),
        ("401 Unauthorized", r#"{"error":"invalid_client"}"#.to_owned(), "invalid_client"),
        ("302 Found", String::new(), "302 Found"),
    ] {
        server.state().mood = Mood::Answers(status, text);
        let user = format!("u-{}", why.len());
        vault.put(&user, &provider, &file(&over(&server.login())), Asker::default()).await.unwrap();
        let error = access(&vault, &provider, &user).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    // It was never held to be bad: back again, it is renewed.
    server.state().mood = Mood::Well;
    vault.put("u1", &provider, &file(&over(&server.login())), Asker::default()).await.unwrap();
    assert!(access(&vault, &provider, "u1").await.unwrap().starts_with("a-"));
    let used = over(&server.login().replace("r-", "used-r-"));
    vault.put("u1", &provider, &file(&used), Asker::default()).await.unwrap();
    let error = vault.checkout("u1", &provider, NEED).await.unwrap_err();
    assert!(matches!(&error, VaultError::Refused { reason, .. } if reason.contains("invalid_grant")), "{error}");
    let actions = actions(&vault).await;
    for action in [AuditAction::RefreshFailed, AuditAction::Refreshed, AuditAction::Refused, AuditAction::UseRefused] {
        assert!(actions.contains(&action), "{action:?}: {actions:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_does_not_answer_holds_nobody_up_for_longer_than_he_waits() {
    let server = TokenServer::start(Duration::from_secs(3600));
    let (bed, provider) = (Bed::new(), provider(&server));
    let (vault, _) = serving(&bed, &provider, Vec::new()).await;
    server.state().mood = Mood::Slow(Duration::from_millis(1500));
    vault.put("u1", &provider, &file(&over(&server.login())), Asker::default()).await.unwrap();
    let need = Need { patience: Duration::from_millis(200), ..NEED };
    for _ in 0..2 {
        let error = vault.checkout("u1", &provider, need).await.unwrap_err();
        assert!(matches!(error, VaultError::Busy { .. }), "{error}");
    }
    // It goes on without those who asked.
    assert_eq!(access(&vault, &provider, "u1").await.unwrap(), "a-2");
    assert_eq!(server.state().renewals, 1);
}

#[tokio::test]
async fn keys_and_access_tokens_alone_are_handed_out_as_they_are() {
    let server = TokenServer::start(Duration::from_secs(3600));
    let (bed, provider) = (Bed::new(), provider(&server));
    let (vault, started) = serving(&bed, &provider, Vec::new()).await;
    let alone = r#"{"claudeAiOauth":{"accessToken":"a","expiresAt":4102444800000,"scopes":["user:inference"]}}"#;
    vault.put("u1", &provider, &file(alone), Asker::default()).await.unwrap();
    let out = vault.checkout("u1", &provider, NEED).await.unwrap().unwrap();
    assert_eq!((out.credentials.files["token"].expose(), out.is_managed), (alone, false));
    assert_eq!(started.load(Ordering::Relaxed), 0);
}
