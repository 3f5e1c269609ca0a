//! Lines as the real CLIs printed them, cut down to what matters.

use super::*;

fn parse(dialect: Dialect, output: &str) -> (Vec<String>, Verdict) {
    let mut parser = DialectParser::new(dialect);
    let deltas = parser.push(output.as_bytes());
    (deltas, parser.finish())
}

fn success() -> Verdict {
    Verdict { success: Some(true), error: None }
}

fn error(verdict: Verdict) -> String {
    assert_eq!(verdict.success, Some(false));
    verdict.error.expect("a failure has a reason")
}

const CODEX: &str = r#"{"type":"thread.started","thread_id":"01a1"}
{"type":"item.completed","item":{"id":"item_0","type":"error","message":"Model metadata for `gpt-5-codex` not found."}}
{"type":"turn.started"}
{"type":"item.completed","item":{"id":"item_1","type":"agent_message","text":"201"}}
{"type":"turn.completed","usage":{"input_tokens":11,"output_tokens":2}}
"#;

const CLAUDE: &str = r#"{"type":"system","subtype":"init","model":"claude-sonnet-4-5"}
{"type":"stream_event","event":{"type":"message_start","message":{"content":[]}},"parent_tool_use_id":null}
{"type":"stream_event","event":{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}},"parent_tool_use_id":null}
{"type":"stream_event","event":{"delta":{"text":"20","type":"text_delta"},"index":0,"type":"content_block_delta"},"parent_tool_use_id":null}
{"type":"stream_event","event":{"delta":{"text":"9","type":"text_delta"},"index":0,"type":"content_block_delta"},"parent_tool_use_id":"toolu_1"}
{"type":"stream_event","event":{"delta":{"text":"1","type":"text_delta"},"index":0,"type":"content_block_delta"},"parent_tool_use_id":null}
{"type":"assistant","message":{"role":"assistant","content":[{"type":"text","text":"201"}]},"parent_tool_use_id":null}
{"duration_api_ms":364,"is_error":false,"subtype":"success","result":"201","type":"result"}
"#;

const GEMINI: &str = r#"{"type":"init","session_id":"fe62","model":"gemini-2.5-flash"}
{"type":"message","role":"user","content":"3*67"}
{"type":"message","role":"assistant","content":"20","delta":true}
{"type":"message","role":"assistant","content":"1","delta":true}
{"type":"result","status":"success","stats":{"total_tokens":13,"output_tokens":2}}
"#;

#[test]
fn answers_are_read() {
    assert_eq!(parse(Dialect::CodexExecJson, CODEX), (vec!["201".into()], success()));
    assert_eq!(parse(Dialect::ClaudeStreamJson, CLAUDE), (vec!["20".into(), "1".into()], success()));
    assert_eq!(parse(Dialect::GeminiStreamJson, GEMINI), (vec!["20".into(), "1".into()], success()));
}

#[test]
fn output_may_be_cut_anywhere() {
    for (dialect, output) in
        [(Dialect::CodexExecJson, CODEX), (Dialect::ClaudeStreamJson, CLAUDE), (Dialect::GeminiStreamJson, GEMINI)]
    {
        for size in [1, 7, 64] {
            let mut parser = DialectParser::new(dialect);
            let text: String = output.as_bytes().chunks(size).flat_map(|chunk| parser.push(chunk)).collect();
            assert_eq!((text.as_str(), parser.finish()), ("201", success()), "{dialect:?} by {size}");
        }
    }
}

#[test]
fn a_delta_is_handed_out_with_its_newline_and_not_before() {
    let mut parser = DialectParser::new(Dialect::GeminiStreamJson);
    let line = br#"{"type":"message","role":"assistant","content":"20","delta":true}"#;
    assert!(parser.push(line).is_empty());
    assert_eq!(parser.push(b"\n"), ["20"]);
}

#[test]
fn codex_failures() {
    let refused = r#"{"type":"turn.started"}
{"type":"error","message":"unexpected status 401 Unauthorized: Incorrect API key provided"}
{"type":"turn.failed","error":{"message":"unexpected status 401 Unauthorized: Incorrect API key provided"}}
"#;
    assert!(error(parse(Dialect::CodexExecJson, refused).1).contains("401 Unauthorized"));
    // Killed while it waited for the network, after 30 s.
    let waiting = r#"{"type":"turn.started"}
{"type":"error","message":"Reconnecting... waiting for network (Connection failed: error sending request)"}
"#;
    assert!(error(parse(Dialect::CodexExecJson, waiting).1).contains("waiting for network"));
    // A message may come before the failure.
    let cut = CODEX.replace("turn.completed", "turn.failed");
    let (deltas, verdict) = parse(Dialect::CodexExecJson, &cut);
    assert_eq!(deltas, ["201"]);
    assert_eq!(verdict.success, Some(false));
}

#[test]
fn codex_retries_do_not_count_when_the_turn_succeeds() {
    let retried = CODEX.replace(
        "{\"type\":\"turn.started\"}",
        "{\"type\":\"turn.started\"}\n{\"type\":\"error\",\"message\":\"Reconnecting... 1/5\"}",
    );
    assert_eq!(parse(Dialect::CodexExecJson, &retried).1, success());
}

#[test]
fn claude_says_success_and_means_failure() {
    let refused = r#"{"type":"system","subtype":"api_retry","attempt":1,"error_status":401,"error":"authentication_failed"}
{"type":"assistant","message":{"model":"<synthetic>","content":[{"type":"text","text":"Not logged in"}]},"error":"authentication_failed"}
{"is_error":true,"subtype":"success","api_error_status":401,"result":"Not logged in · Please run /login","type":"result"}
"#;
    let (deltas, verdict) = parse(Dialect::ClaudeStreamJson, refused);
    assert!(deltas.is_empty(), "an error text is not an answer");
    assert_eq!(error(verdict), "Not logged in · Please run /login");

    let limit = r#"{"type":"result","subtype":"error_max_turns","is_error":false}"#;
    assert_eq!(error(parse(Dialect::ClaudeStreamJson, limit).1), "claude ended with error_max_turns");

    let killed: String = refused.lines().take(1).map(|line| format!("{line}\n")).collect();
    assert!(error(parse(Dialect::ClaudeStreamJson, &killed).1).contains("authentication_failed 401"));
}

#[test]
fn gemini_lies() {
    // 0.61 leaves with 145.
    let refused = r#"{"type":"message","role":"user","content":"3*67"}
{"type":"result","status":"error","error":{"type":"unknown","message":"[API Error: 401]"},"stats":{"output_tokens":0}}
"#;
    assert_eq!(error(parse(Dialect::GeminiStreamJson, refused).1), "[API Error: 401]");
    // 0.11 leaves with 0 and says success.
    let lie = r#"{"type":"message","role":"user","content":"3*67"}
{"type":"result","status":"success","stats":{"total_tokens":0,"output_tokens":0}}
"#;
    assert!(error(parse(Dialect::GeminiStreamJson, lie).1).contains("no answer"));
    // A dead token: nothing on standard output at all, everything on standard error.
    assert!(error(parse(Dialect::GeminiStreamJson, "").1).contains("standard error"));
    // Tools were used and nothing was said: that is an answer.
    let silent = r#"{"type":"result","status":"success","stats":{"output_tokens":7}}"#;
    assert_eq!(parse(Dialect::GeminiStreamJson, silent).1, success());
}

#[test]
fn separate_messages_are_paragraphs() {
    let two = CODEX.replace(
        "{\"type\":\"turn.completed\"",
        "{\"type\":\"item.completed\",\"item\":{\"type\":\"agent_message\",\"text\":\"Done.\"}}\n{\"type\":\"turn.completed\"",
    );
    assert_eq!(parse(Dialect::CodexExecJson, &two).0.concat(), "201\n\nDone.");
    let twice = CLAUDE.repeat(2);
    assert_eq!(parse(Dialect::ClaudeStreamJson, &twice).0.concat(), "201\n\n201");
}

#[test]
fn claude_may_fall_back_to_a_whole_message() {
    let start = r#"{"type":"stream_event","event":{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}}"#;
    let delta = |text: &str| {
        format!(
            r#"{{"type":"stream_event","event":{{"type":"content_block_delta","delta":{{"type":"text_delta","text":"{text}"}}}}}}"#
        )
    };
    let whole = r#"{"type":"assistant","message":{"model":"claude-sonnet-4-5","content":[{"type":"thinking","thinking":"hm"},{"type":"text","text":"You said: one"}]}}"#;
    let read = |lines: &[&str]| parse(Dialect::ClaudeStreamJson, &format!("{}\n", lines.join("\n"))).0.concat();
    assert_eq!(read(&[whole]), "You said: one", "nothing was streamed");
    assert_eq!(read(&[start, &delta("You "), whole]), "You said: one", "only the rest is handed out");
    assert_eq!(read(&[start, &delta("You say "), whole]), "You say \n\nYou said: one", "the second try differs");
    assert_eq!(read(&[start, &delta("You said: one"), whole]), "You said: one");
}

#[test]
fn claude_answers_some_prompts_by_itself() {
    let local = r#"{"type":"assistant","message":{"model":"<synthetic>","content":[{"type":"text","text":"/help isn't available"}]}}
{"type":"result","subtype":"success","is_error":false,"result":"/help isn't available"}
"#;
    assert_eq!(parse(Dialect::ClaudeStreamJson, local), (vec!["/help isn't available".into()], success()));
}

#[test]
fn garbage_is_passed_over() {
    let mut noisy = b"Warning: something\n{\"type\":\n\xff\xfe\x00\n[1,2]\n42\n{\"type\":7}\n{}\n\n".to_vec();
    noisy.extend_from_slice(GEMINI.as_bytes());
    let mut parser = DialectParser::new(Dialect::GeminiStreamJson);
    assert_eq!(parser.push(&noisy), ["20", "1"]);
    assert_eq!(parser.finish(), success());
}

#[test]
fn a_line_that_never_ends_takes_no_memory() {
    let mut parser = DialectParser::new(Dialect::GeminiStreamJson);
    let block = vec![b'x'; 64 * 1024];
    for _ in 0..64 {
        assert!(parser.push(&block).is_empty());
    }
    assert!(parser.lines.has_skipped());
    assert!(parser.push(b"\n").is_empty());
    assert_eq!(parser.push(GEMINI.as_bytes()), ["20", "1"], "the next line is read again");
    assert_eq!(parser.finish(), success());
}

/// A line of each dialect with a tool's result of that size, and one with the whole answer.
fn long_lines(dialect: Dialect, size: usize) -> (String, String) {
    let text = "x".repeat(size);
    match dialect {
        Dialect::CodexExecJson => (
            format!(
                r#"{{"type":"item.completed","item":{{"type":"command_execution","aggregated_output":"{text}"}}}}"#
            ),
            format!(r#"{{"type":"item.completed","item":{{"type":"agent_message","text":"{text}"}}}}"#),
        ),
        Dialect::ClaudeStreamJson => (
            format!(r#"{{"type":"user","message":{{"content":[{{"type":"tool_result","content":"{text}"}}]}}}}"#),
            format!(r#"{{"is_error":false,"subtype":"success","result":"{text}","type":"result"}}"#),
        ),
        _ => (
            format!(r#"{{"type":"tool_result","tool_id":"1","status":"success","output":"{text}"}}"#),
            format!(r#"{{"type":"message","role":"assistant","content":"{text}","delta":true}}"#),
        ),
    }
}

const WHOLE: [(Dialect, &str); 3] =
    [(Dialect::CodexExecJson, CODEX), (Dialect::ClaudeStreamJson, CLAUDE), (Dialect::GeminiStreamJson, GEMINI)];

#[test]
fn a_long_line_that_is_not_the_answer_does_not_matter() {
    for (dialect, output) in WHOLE {
        let (tool, _) = long_lines(dialect, 3 << 20);
        let expected = parse(dialect, output);
        assert_eq!(parse(dialect, &format!("{tool}\n{output}")), expected, "{dialect:?}");
    }
}

#[test]
fn an_answer_in_a_line_that_is_too_long_is_no_success() {
    for (dialect, output) in WHOLE {
        let (_, answer) = long_lines(dialect, 1_200_000);
        // With and without a newline, and with the verdict behind it that codex and gemini have.
        let end = output.lines().last().unwrap();
        let end = if dialect == Dialect::ClaudeStreamJson { "" } else { end };
        for output in [format!("{answer}\n{end}\n"), format!("{answer}\n{end}")] {
            let (deltas, verdict) = parse(dialect, &output);
            assert_eq!(deltas.concat(), "", "{dialect:?}");
            assert_eq!(error(verdict), ANSWER_TOO_LONG, "{dialect:?}");
        }
        // One that fits is one.
        let (_, answer) = long_lines(dialect, 900_000);
        let (deltas, verdict) = parse(dialect, &format!("{answer}\n{end}\n"));
        assert_eq!((deltas.concat().len(), verdict), (900_000, success()), "{dialect:?}");
    }
}

#[test]
fn an_answer_that_was_streamed_is_complete_however_long_the_lines_are_that_repeat_it() {
    let text = "y".repeat(1_200_000);
    let start = r#"{"type":"stream_event","event":{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}}"#;
    let delta = |text: &str| {
        let delta = format!(r#"{{"type":"content_block_delta","delta":{{"type":"text_delta","text":"{text}"}}}}"#);
        format!(r#"{{"type":"stream_event","event":{delta}}}"#)
    };
    let message = format!(r#"{{"type":"assistant","message":{{"content":[{{"type":"text","text":"{text}"}}]}}}}"#);
    let result = format!(r#"{{"type":"result","subtype":"success","is_error":false,"result":"{text}"}}"#);
    let output = [start, &delta(&text[..600_000]), &delta(&text[600_000..]), &message, &result, ""].join("\n");
    let (deltas, verdict) = parse(Dialect::ClaudeStreamJson, &output);
    assert!(deltas.concat() == text, "{} bytes", deltas.concat().len());
    assert_eq!(verdict, success());
}

#[test]
fn what_could_not_be_read_is_said_of_a_failure() {
    let long = format!("{}\n", "x".repeat(2 * LINE_LIMIT));
    for (dialect, _) in WHOLE {
        assert!(error(parse(dialect, &long).1).contains("longer than 1 MiB"), "{dialect:?}");
    }
}

#[test]
fn a_verdict_may_lack_its_newline() {
    let output = GEMINI.trim_end();
    assert_eq!(parse(Dialect::GeminiStreamJson, output).1, success());
}

#[test]
fn long_errors_are_shortened() {
    let long = format!(r#"{{"type":"turn.failed","error":{{"message":"{}"}}}}"#, "é".repeat(5000));
    assert_eq!(error(parse(Dialect::CodexExecJson, &long).1).chars().count(), ERROR_CHARS);
}

#[test]
fn plain_output_says_nothing() {
    assert_eq!(parse(Dialect::Plain, GEMINI), (vec![], Verdict::default()));
}

#[test]
fn a_refused_token_is_told_until_something_was_said_or_done() {
    let refused = |dialect, output: &str| {
        let mut parser = DialectParser::new(dialect);
        parser.push(output.as_bytes());
        parser.was_refused()
    };
    let codex = |before: &str, message: &str| {
        let failed = format!(r#"{{"type":"turn.failed","error":{{"message":"{message}"}}}}"#);
        refused(Dialect::CodexExecJson, &format!("{{\"type\":\"turn.started\"}}\n{before}\n{failed}\n"))
    };
    let unauthorized = "unexpected status 401 Unauthorized: Incorrect API key provided, url: http://a.test/";
    let warning = r#"{"type":"item.completed","item":{"type":"error","message":"no metadata"}}"#;
    assert!(codex("", unauthorized) && codex(warning, unauthorized));
    assert!(codex("", "exceeded retry limit, last status: 401 Unauthorized"));
    assert!(codex("", "Your access token could not be refreshed. Please log out and sign in again."));
    assert!(!codex("", "exceeded retry limit, last status: 429 Too Many Requests"));
    for item in ["agent_message", "command_execution", "file_change", "mcp_tool_call"] {
        let item = format!(r#"{{"type":"item.started","item":{{"type":"{item}"}}}}"#);
        assert!(!codex(&item, unauthorized), "{item}");
    }
    assert!(!refused(Dialect::CodexExecJson, CODEX));

    let claude = |before: &str, end: &str| refused(Dialect::ClaudeStreamJson, &format!("{before}\n{end}\n"));
    let retry = r#"{"type":"system","subtype":"api_retry","error_status":401,"error":"authentication_failed"}"#;
    let end =
        r#"{"is_error":true,"subtype":"success","api_error_status":401,"result":"Not logged in","type":"result"}"#;
    let plain = r#"{"is_error":true,"subtype":"success","result":"Not logged in","type":"result"}"#;
    let synthetic =
        r#"{"type":"assistant","message":{"model":"<synthetic>","content":[]},"error":"authentication_failed"}"#;
    assert!(claude("", end) && claude(retry, end) && claude(synthetic, plain) && !claude("", plain));
    assert!(!claude(retry, ""), "it has not ended yet");
    assert!(!claude(retry, CLAUDE), "it went well in the end");
    for said in [
        r#"{"type":"stream_event","event":{"type":"message_start"}}"#,
        r#"{"type":"assistant","message":{"model":"claude-sonnet-4-5","content":[{"type":"tool_use"}]}}"#,
    ] {
        assert!(!claude(said, end), "{said}");
    }
    let gemini = r#"{"type":"result","status":"error","error":{"message":"[API Error: 401]"}}"#;
    assert!(!refused(Dialect::GeminiStreamJson, gemini));
}
