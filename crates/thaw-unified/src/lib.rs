//! `thaw-unified`, the one program of the image `unified`: asks OpenAI, Anthropic or Google by their APIs, without
//! any CLI, and writes the answer to standard output as it comes.
//!
//! It reads `PROVIDER` (`openai`, `anthropic`, `google`), `MODEL`, `PROMPT` (or standard input), `USER_ID` and the
//! provider's key from its environment, honours the usual proxy variables, and ends with a one-line reason on standard
//! error and the code of [`Failure::code`] when there is no whole answer. With `WARM_POOL=true` it waits to be told
//! to end.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod api;
mod failure;
mod settings;

use std::io::{self, IsTerminal as _, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use eventsource_stream::{EventStreamError, Eventsource as _};
use futures_util::StreamExt as _;
use reqwest::{Response, StatusCode};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

pub use api::Api;
pub use failure::Failure;
pub use settings::Settings;

use thaw_client::types::Secret;

/// How long a connection may take; the proxy of thawd's containers gives up after 10 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence of an upstream: reasoning models think for minutes without a word.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(300);
/// How much of an error's body is read, bytes.
const ERROR_BYTES: usize = 64 * 1024;

/// Runs the program: everything comes from the environment, arguments are ignored.
pub fn main() -> ExitCode {
    // One thread: there is one connection, and memory is to be small.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = match &runtime {
        Ok(runtime) => runtime.block_on(run()),
        Err(error) => Err(told(&Failure::Usage(format!("cannot set up I/O: {error}")), None)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, line)) => {
            // There is nobody left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "thaw-unified: {line}");
            ExitCode::from(code)
        }
    }
}

/// Exit code and reason; the key, if it is known by then, does not show up in the latter.
fn told(failure: &Failure, key: Option<&Secret>) -> (u8, String) {
    (failure.code(), failure.line(key.map(Secret::expose)))
}

async fn run() -> Result<(), (u8, String)> {
    let idle = std::env::var("WARM_POOL").is_ok_and(|value| value == "true");
    let settings = if idle {
        None
    } else {
        let settings = Settings::read(|name| std::env::var(name).ok(), io::stdin());
        Some(settings.map_err(|failure| told(&failure, None))?)
    };
    // As PID 1 of a container it would otherwise ignore both. Not before standard input has been read, which nothing
    // but a signal's own action would interrupt.
    let cannot_wait = |error| told(&Failure::Usage(format!("cannot wait for signals: {error}")), None);
    let mut terminate = signal(SignalKind::terminate()).map_err(cannot_wait)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot_wait)?;
    let Some(settings) = settings else {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        return Ok(());
    };
    let result = tokio::select! {
        result = ask(&settings) => result,
        _ = terminate.recv() => Err(Failure::Signal(15)),
        _ = interrupt.recv() => Err(Failure::Signal(2)),
    };
    result.map_err(|failure| told(&failure, Some(&settings.key)))
}

/// Asks, and writes the answer as it comes.
async fn ask(settings: &Settings) -> Result<(), Failure> {
    let began = Instant::now();
    let debug = |text: &str| {
        if settings.debug {
            // There is nobody left to tell when standard error is gone.
            let _ = writeln!(io::stderr(), "thaw-unified: {} ms: {text}", began.elapsed().as_millis());
        }
    };
    let tls = thaw_client::tls::client_config().map_err(|error| Failure::Network(format!("TLS: {error}")))?;
    let http = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        // The key goes to the host that was named, and nowhere else.
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(SILENCE_TIMEOUT)
        .user_agent(concat!("thaw-unified/", env!("CARGO_PKG_VERSION")))
        .build()?;
    debug(&format!("asking {:?} for {}", settings.api, settings.model));
    let response = settings.api.request(&http, settings)?.send().await?;
    debug(&format!("HTTP {}", response.status()));
    if !response.status().is_success() {
        return Err(refusal(response).await);
    }
    let mut events = response.bytes_stream().eventsource();
    let (mut out, mut pieces) = (io::stdout().lock(), 0_u32);
    while let Some(event) = events.next().await {
        let event = match event {
            Ok(event) => event,
            Err(EventStreamError::Transport(error)) => {
                return Err(Failure::Incomplete(format!("the connection broke: {}", failure::causes(error))));
            }
            Err(error) => return Err(Failure::Incomplete(format!("no event stream: {error}"))),
        };
        let Ok(data) = serde_json::from_str::<Value>(&event.data) else {
            debug("passed over an event that is not JSON");
            continue;
        };
        let step = settings.api.read(&data)?;
        if !step.text.is_empty() {
            pieces += 1;
            if pieces == 1 {
                debug("first piece of the answer");
            }
            let written = out.write_all(step.text.as_bytes()).and_then(|()| out.flush());
            written.map_err(|error| Failure::Output(error.to_string()))?;
        }
        if step.done {
            if out.is_terminal() {
                writeln!(out).map_err(|error| Failure::Output(error.to_string()))?;
            }
            debug(&format!("done after {pieces} pieces"));
            return Ok(());
        }
    }
    Err(Failure::Incomplete("the stream ended early".to_owned()))
}

/// What an answer that is none means.
async fn refusal(response: Response) -> Failure {
    let status = response.status();
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(Ok(chunk)) = chunks.next().await {
        body.extend_from_slice(&chunk[..chunk.len().min(ERROR_BYTES - body.len())]);
        if body.len() == ERROR_BYTES {
            break;
        }
    }
    classified(status, &body)
}

fn classified(status: StatusCode, body: &[u8]) -> Failure {
    // Google wraps its errors in an array when it does not stream.
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let json = if json.is_array() { &json[0] } else { &json };
    // A proxy on the way has no key to judge, and says so in plain text.
    let by_provider = json["error"].is_object();
    let text = if by_provider { api::message(json) } else { String::from_utf8_lossy(body).into_owned() };
    let text = format!("HTTP {}: {}", status.as_u16(), text.trim());
    match status.as_u16() {
        401 => Failure::Refused(text),
        403 if by_provider => Failure::Refused(text),
        // Google answers 400 to a key that it does not know.
        400 if text.contains("API key not valid") => Failure::Refused(text),
        // 529 is Anthropic's word for overloaded.
        429 | 503 | 529 => Failure::Busy(text),
        403 | 407 | 502 | 504 if !by_provider => Failure::Network(text),
        _ => Failure::Provider(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_apart() {
        let of = |status: u16, body: &str| classified(StatusCode::from_u16(status).unwrap(), body.as_bytes());
        let error = r#"{"error": {"message": "Incorrect API key provided."}}"#;
        assert_eq!(of(401, error), Failure::Refused("HTTP 401: Incorrect API key provided.".to_owned()));
        assert_eq!(of(401, "").code(), 77);
        assert_eq!(of(403, error).code(), 77);
        assert_eq!(of(403, "thawd: egress to x:443 is not allowed").code(), 69, "the proxy judged no key");
        assert_eq!(of(400, r#"[{"error": {"message": "API key not valid. Please"}}]"#).code(), 77);
        assert_eq!(of(400, error).code(), 70);
        assert_eq!((of(429, error).code(), of(529, error).code(), of(500, error).code()), (75, 75, 70));
        assert_eq!(of(307, "").code(), 70, "a redirect is not followed: the key would go elsewhere");
    }
}
