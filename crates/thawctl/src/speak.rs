//! The daemon's complaints about a request, in the words of the command line.

use serde::Serialize;

use super::CtlError;
use super::table::bytes;
use thaw_client::client::ClientError;
use thaw_client::types::{ExecutionRequest, Problem};

/// Fields of a request, and what gives them here.
const FIELDS: [(&str, &str); 18] = [
    ("forced_env", "--force-env"),
    ("timeout_ms", "--timeout"),
    ("queue_timeout_ms", "--queue-timeout"),
    ("memory_bytes", "--memory"),
    ("cpus", "--cpus"),
    ("entrypoint", "--entrypoint"),
    ("workdir", "--workdir"),
    ("env", "--env"),
    ("labels", "--label"),
    ("user", "--user"),
    ("model", "--model"),
    ("effort", "--effort"),
    ("image", "--image"),
    ("stdin", "-i"),
    ("credentials", "--file or --credential-env"),
    ("prompt", "a prompt"),
    ("command", "a command after `--`"),
    ("provider", "a provider"),
];

/// What a refused `run` is told as.
pub(super) fn run_error(error: ClientError, request: &ExecutionRequest) -> CtlError {
    match error {
        ClientError::Problem(problem) if problem.code == "body_too_large" => {
            CtlError::Usage(format!("{}; {}", size(request), problem.detail))
        }
        ClientError::Problem(mut problem) => {
            problem.detail = translated(&problem);
            ClientError::Problem(problem).into()
        }
        ClientError::Broken(cause) => {
            CtlError::Usage(format!("the connection to the daemon broke while the request was sent: {cause}"))
        }
        other => other.into(),
    }
}

fn translated(problem: &Problem) -> String {
    let mut text = problem.detail.clone();
    let mut is_time = false;
    for (field, option) in FIELDS {
        let quoted = format!("`{field}`");
        is_time |= field.ends_with("_ms") && text.contains(&quoted);
        text = text.replace(&quoted, option);
    }
    match problem.code == "invalid_field" {
        true if is_time => numbers(&text, |ms| format!("{} s", ms as f64 / 1e3)),
        true if problem.detail.contains("`memory_bytes`") => numbers(&text, bytes),
        _ => text,
    }
}

/// Numbers as people write them, wherever one stands.
fn numbers(text: &str, written: impl Fn(u64) -> String) -> String {
    let word = |word: &str| {
        let digits = word.trim_end_matches(',');
        digits.parse().map_or_else(|_| word.to_owned(), |number| written(number) + &word[digits.len()..])
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

/// How large a request is, and what of it.
pub(super) fn size(request: &ExecutionRequest) -> String {
    let all = json_bytes(request);
    let (what, part) = match (&request.prompt, &request.stdin) {
        (Some(prompt), _) => ("the prompt", json_bytes(prompt)),
        (None, Some(stdin)) => ("standard input", json_bytes(stdin)),
        (None, None) => return format!("the request has {}", bytes(all)),
    };
    format!("the request has {}, {} of it {what}", bytes(all), bytes(part))
}

/// Length of its JSON, which is not kept: there are secrets in it.
pub(super) fn json_bytes(value: &impl Serialize) -> u64 {
    let mut count = Count(0);
    // Counting does not fail, and a request can always be written.
    let _ = serde_json::to_writer(&mut count, value);
    count.0
}

struct Count(u64);

impl std::io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: &str, detail: &str) -> String {
        let problem = Problem {
            kind: "about:blank".into(),
            title: String::new(),
            status: 400,
            detail: detail.into(),
            code: code.into(),
            retryable: false,
            request_id: None,
        };
        run_error(ClientError::Problem(Box::new(problem)), &ExecutionRequest::default()).to_string()
    }

    #[test]
    fn fields_are_told_as_options_and_milliseconds_as_seconds() {
        let said = told("invalid_field", "`timeout_ms` must be from 1 to 3600000");
        assert_eq!(said, "--timeout must be from 0.001 s to 3600 s (invalid_field)");
        let said = told("invalid_field", "`memory_bytes` must be from 16777216 to 134217728, the class's");
        assert_eq!(said, "--memory must be from 16.0 MiB to 128.0 MiB, the class's (invalid_field)");
        assert!(told("only_with_prompt", "`model` goes with `prompt`, not with `command`").starts_with("--model goes"));
        assert!(told("invalid_field", "`labels` must be at most 32").contains("--label must be at most 32 ("));
    }

    #[test]
    fn a_request_that_is_too_large_is_told_with_its_size() {
        let prompt = Some("x".repeat(2 << 20));
        let request = ExecutionRequest { prompt, ..ExecutionRequest::default() };
        assert!(size(&request).contains("2.0 MiB, 2.0 MiB of it the prompt"), "{}", size(&request));
        assert_eq!(json_bytes(&"abc"), 5);
    }
}
