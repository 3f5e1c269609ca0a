//! The process that asks a token endpoint: `thawd refresh`.
//!
//! A process of its own, for two reasons. It survives the daemon: the answer, which makes the old token worthless, waits
//! in a socket that the keeper holds, until it is stored. And what a HTTP library leaves in memory is gone with it.
//! It opens no file but what TLS needs, gets its request on its standard input, and ends after one answer.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;
use thaw_os::kernel;

use super::token_request::{MAX_ANSWER, MAX_MESSAGE, TokenReply, TokenRequest};
use crate::provider::Encoding;

/// Longest time for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pauses before the further tries. An endpoint that has taken the request and not answered may have used up the token;
/// then the next try says so.
const PAUSES: [Duration; 2] = [Duration::from_millis(300), Duration::from_secs(1)];

/// Longest code of an error that is passed on, bytes.
const MAX_CODE: usize = 64;

/// Codes by which providers say that a login is over: that of RFC 6749 (section 5.2), and those of OpenAI.
const OVER: [&str; 4] = ["invalid_grant", "refresh_token_expired", "refresh_token_reused", "refresh_token_invalidated"];

/// What one try came to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Answered(String),
    Refused(String),
    /// It may go better soon.
    Unavailable(String),
    Failed(String),
}

/// Takes a request from the socket on standard input, asks, and sends the reply there.
///
/// # Errors
/// The socket cannot be used.
pub fn serve() -> io::Result<()> {
    // It works without these too, where they are not allowed.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // Behind a limit, memory that is locked when it comes would fail to come.
    let unlimited = rustix::process::Rlimit { current: None, maximum: None };
    if rustix::process::setrlimit(rustix::process::Resource::Memlock, unlimited).is_ok() {
        let _ = rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE);
    }
    answer(rustix::stdio::stdin())
}

/// The same with any socket.
///
/// # Errors
/// The socket cannot be used.
pub fn answer(socket: BorrowedFd<'_>) -> io::Result<()> {
    let mut buffer = vec![0; MAX_MESSAGE];
    let length = kernel::receive(socket, &mut buffer)?.length;
    let request: TokenRequest = serde_json::from_slice(&buffer[..length]).map_err(io::Error::other)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(ask(&request));
    let raw;
    let reply = match outcome {
        Outcome::Answered(text) => {
            raw = RawValue::from_string(text);
            match &raw {
                Ok(raw) => TokenReply { answer: Some(raw), ..TokenReply::default() },
                Err(_) => TokenReply { failed: Some("its answer is no JSON".to_owned()), ..TokenReply::default() },
            }
        }
        Outcome::Refused(why) => TokenReply { refused: Some(why), ..TokenReply::default() },
        Outcome::Unavailable(why) | Outcome::Failed(why) => TokenReply { failed: Some(why), ..TokenReply::default() },
    };
    kernel::send(socket, &[&serde_json::to_vec(&reply).map_err(io::Error::other)?], &[])
}

async fn ask(request: &TokenRequest) -> Outcome {
    let until = Instant::now() + Duration::from_millis(request.timeout_ms);
    let client = match client(request) {
        Ok(client) => client,
        Err(error) => return Outcome::Failed(causes(&error)),
    };
    let mut pauses = PAUSES.into_iter();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let tried = tokio::time::timeout(left, once(&client, request)).await;
        let outcome = tried.unwrap_or_else(|_| Outcome::Unavailable("it has not answered in time".to_owned()));
        match (outcome, pauses.next()) {
            (Outcome::Unavailable(_), Some(pause)) if Instant::now() + pause < until => {
                tokio::time::sleep(pause).await;
            }
            (outcome, _) => return outcome,
        }
    }
}

/// The operator's proxy is in the environment (`HTTPS_PROXY`), as for every HTTP client; authorities are the system's.
fn client(request: &TokenRequest) -> reqwest::Result<reqwest::Client> {
    // An error means that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .user_agent(concat!("thawd/", env!("CARGO_PKG_VERSION")));
    for (host, addresses) in &request.resolve {
        builder = builder.resolve_to_addrs(host, addresses);
    }
    builder.build()
}

async fn once(client: &reqwest::Client, request: &TokenRequest) -> Outcome {
    let fields = [
        ("grant_type", "refresh_token"),
        ("refresh_token", request.refresh_token.expose()),
        ("client_id", &request.client_id),
    ];
    let builder = client.post(&request.url).header("accept", "application/json");
    let builder = match request.encoding {
        Encoding::Json => builder.json(&std::collections::BTreeMap::from(fields)),
        Encoding::Form => {
            let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish();
            builder.header("content-type", "application/x-www-form-urlencoded").body(form)
        }
    };
    let mut response = match builder.send().await {
        Ok(response) => response,
        Err(error) => return Outcome::Unavailable(causes(&error.without_url())),
    };
    let status = response.status();
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > MAX_ANSWER => {
                return Outcome::Failed(format!("its answer has more than {MAX_ANSWER} bytes"));
            }
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => break,
            Err(error) => return Outcome::Unavailable(causes(&error.without_url())),
        }
    }
    judge(status, body)
}

/// What an answer means.
fn judge(status: StatusCode, body: Vec<u8>) -> Outcome {
    if status.is_success() {
        return match String::from_utf8(body) {
            Ok(text) => Outcome::Answered(text),
            Err(_) => Outcome::Failed("its answer is not UTF-8".to_owned()),
        };
    }
    let code = code(&body);
    let said = code.as_ref().map_or_else(|| status.to_string(), |code| format!("{status}, {code}"));
    let is_answer = matches!(status, StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
    match code {
        Some(code) if is_answer && OVER.contains(&&*code) => Outcome::Refused(code),
        _ if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => Outcome::Unavailable(said),
        _ => Outcome::Failed(said),
    }
}

/// The code of an error answer (RFC 6749, section 5.2), or of OpenAI's, where it is one level deeper.
fn code(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        error: Error,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Error {
        Code(String),
        Object { code: String },
    }
    let (Error::Code(code) | Error::Object { code }) = serde_json::from_slice::<Answer>(body).ok()?.error;
    let is_code = (1..=MAX_CODE).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_graphic());
    is_code.then_some(code)
}

/// An error and its causes, none twice.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_from_what_may_go_better_soon() {
        let judge = |status: u16, body: &str| judge(StatusCode::from_u16(status).unwrap(), body.as_bytes().to_vec());
        assert_eq!(judge(200, "{}"), Outcome::Answered("{}".to_owned()));
        let grant = r#"{"error":"invalid_grant","error_description":"sk-secret"}"#;
        assert_eq!(judge(400, grant), Outcome::Refused("invalid_grant".to_owned()));
        let reused = r#"{"error":{"message":"x","code":"refresh_token_reused"}}"#;
        assert_eq!(judge(401, reused), Outcome::Refused("refresh_token_reused".to_owned()));
        // The operator has configured something wrong: the login is as good as before.
        assert_eq!(
            judge(401, r#"{"error":"invalid_client"}"#),
            Outcome::Failed("401 Unauthorized, invalid_client".to_owned())
        );
        assert_eq!(judge(404, "<html>"), Outcome::Failed("404 Not Found".to_owned()));
        assert!(matches!(judge(429, ""), Outcome::Unavailable(_)));
        assert!(matches!(judge(503, grant), Outcome::Unavailable(_)), "of a proxy on the way");
        let long = format!(r#"{{"error":"{}"}}"#, "x".repeat(MAX_CODE + 1));
        assert_eq!(judge(400, &long), Outcome::Failed("400 Bad Request".to_owned()));
    }
}
