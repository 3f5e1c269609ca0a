//! `/v1/users/{user}/credentials`: what is taken, what is shown, and what never is.

use thaw_client::types::{CredentialKind, CredentialState};

use super::{MARKER, files, put, request, shown, with_vault};
use crate::support::Daemon;

#[tokio::test]
async fn without_a_master_key_there_is_no_vault_and_nothing_else_changes() {
    let daemon = Daemon::start(|setup| setup).await;
    for (request_line, body) in [
        ("GET /v1/vault", ""),
        ("GET /v1/users/u1/credentials", ""),
        ("GET /v1/users/u1/credentials/test", ""),
        ("PUT /v1/users/u1/credentials/test", r#"{"files":{"token":"x"}}"#),
        ("DELETE /v1/users/u1/credentials/test", ""),
        ("DELETE /v1/users/u1/credentials", ""),
        ("POST /v1/users/u1/credentials/test/check", ""),
        ("GET /v1/users/u1/audit", ""),
        ("POST /v1/users/u1/rotate-key", ""),
        ("POST /v1/vault/rotate-key", ""),
    ] {
        let problem = request(&daemon, request_line, body).await.problem();
        assert_eq!((problem.status, problem.code.as_str(), problem.retryable), (409, "vault_off", false));
        assert!(problem.detail.contains("thawd vault init"), "{}", problem.detail);
    }
    assert_eq!(daemon.sh("ls -A ~/.test | wc -l").await.exited(0).text(), "0\n");
    assert!(!daemon.path("state/store.db").exists(), "no database is made for nothing");
    daemon.stop().await;
}

#[tokio::test]
async fn a_credential_is_described_and_cannot_be_read_back() {
    let daemon = with_vault(|setup| setup.set("log.filter", "trace")).await;
    let stored = put(&daemon, "u1", MARKER).await;
    assert_eq!((stored.kind, stored.state, stored.version), (CredentialKind::File, CredentialState::Valid, 1));
    assert_eq!((stored.files.as_slice(), stored.user.as_str()), (&["token".to_owned()][..], "u1"));
    assert_eq!(put(&daemon, "u1", &format!("{MARKER}-2")).await.version, 2);
    let mut answers = String::new();
    for path in ["/v1/users/u1/credentials", "/v1/users/u1/credentials/test", "/v1/vault", "/metrics", "/v1/providers"]
    {
        let answer = request(&daemon, &format!("GET {path}"), "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answers += &answer.text();
    }
    assert!(answers.contains(&stored.created_at) && !answers.contains(MARKER));
    assert!(!daemon.log().contains(MARKER), "not even at the level trace");
    assert!(daemon.log().contains("audit: credential stored"));
    for path in walk(&daemon.path("state")) {
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(MARKER.len()).any(|part| part == MARKER.as_bytes()), "{}", path.display());
    }
    assert!(request(&daemon, "GET /v1/users/u2/credentials", "").await.text().contains(r#""items":[]"#));
    assert_eq!(request(&daemon, "DELETE /v1/users/u1/credentials/test", "").await.status, 204);
    for gone in ["GET /v1/users/u1/credentials/test", "DELETE /v1/users/u1/credentials/test"] {
        assert_eq!(request(&daemon, gone, "").await.problem().code, "not_found");
    }
    put(&daemon, "u1", MARKER).await;
    assert_eq!(request(&daemon, "DELETE /v1/users/u1/credentials", "").await.status, 204);
    assert_eq!(request(&daemon, "DELETE /v1/users/u1/credentials", "").await.status, 404);
    daemon.stop().await;
}

/// Every file below a folder.
fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[tokio::test]
async fn what_cannot_be_kept_is_refused_with_its_reason() {
    let daemon = with_vault(|setup| setup).await;
    let large = format!(r#"{{"files":{{"token":"{}"}}}}"#, "x".repeat((64 << 10) + 1));
    for (path, body, code, why) in [
        ("u1/credentials/test", "{}", "invalid_credential", "both empty"),
        ("u1/credentials/test", r#"{"files":{"other":"x"}}"#, "invalid_credential", "reads no credential file"),
        ("u1/credentials/test", r#"{"files":{"token":" "}}"#, "invalid_credential", "`files.token` is empty"),
        ("u1/credentials/test", r#"{"env":{"TEST_TOKEN":"a b"}}"#, "invalid_credential", "has a space"),
        (
            "u1/credentials/test",
            r#"{"files":{"token":"x"},"env":{"TEST_TOKEN":"x"}}"#,
            "invalid_credential",
            "more than one",
        ),
        ("u1/credentials/test", r#"{"files":{"token":"x","~/.test/token":"y"}}"#, "invalid_credential", "two names"),
        ("u1/credentials/test", large.as_str(), "invalid_credential", "`vault.max_credential_bytes`"),
        ("u1/credentials/test", r#"{"file":{}}"#, "unknown_field", "`file`"),
        ("u1/credentials/nobody", r#"{"files":{"token":"x"}}"#, "not_found", "provider"),
        ("u%201/credentials/test", r#"{"files":{"token":"x"}}"#, "invalid_id", "a-z"),
    ] {
        let problem = request(&daemon, &format!("PUT /v1/users/{path}"), body).await.problem();
        assert_eq!(problem.code, code, "{}", problem.detail);
        assert!(problem.detail.contains(why), "{}", problem.detail);
    }
    // As it lies in a home directory.
    let stored = daemon.client.put_credential("u1", "test", &files("~/.test/token", "x")).await;
    let stored: thaw_client::types::Credential = stored.unwrap();
    assert_eq!(stored.files, ["token"]);
    assert_eq!(shown(&daemon, "u1").await.version, 1);
    daemon.stop().await;
}
