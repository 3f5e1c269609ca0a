//! What is asked for while the daemon dies, and what must come of it.

use thaw_client::types::{Credentials, Event, ExecutionRequest, ExitReason, Secret};

use super::strict::Seen;
use crate::support::{bytes, command, prompt, shell};

/// Lines that a long command counts.
const LINES: u64 = 300;

/// A CLI that speaks claude's dialect, a word for each of 40 lines, with the size of its prompt at the end.
const MANIFEST: &str = r#"
name = "talk"
image = "test"
home = "/home/runtime"
pool_target = 2
egress = []
[command]
argv = ["sh", "-c", "SCRIPT"]
prompt = "stdin"
dialect = "claude-stream-json"
[models]
default = "one"
allowed = ["one"]
[credentials]
dir = ".talk"
required = false
tmpfs_mib = 1
[resources.idle]
memory_mib = 64
cpu = 0.1
[resources.run]
memory_mib = 128
cpu = 1.0
"#;

const TALK_SCRIPT: &str = r#"
size=$(wc -c); i=0
say() { echo '{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"'$1' "}}}'; }
while [ $i -lt 40 ]; do say word$i; i=$((i+1)); sleep 0.005; done
say $size
echo '{"type":"result","subtype":"success","is_error":false,"result":"x"}'
"#;

/// A CLI that waits already started, speaks claude's protocol, and asks something of the daemon before each of its words. It
/// says whether each answer was the one to its last question, how long its prompt was, and what credential it was handed.
const WAITING: &str = r#"
name = "wait"
image = "test"
home = "/home/runtime"
pool_target = 1
egress = []
[command]
argv = ["sh", "-c", "COLD"]
prompt = "stdin"
dialect = "claude-stream-json"
[models]
default = "one"
allowed = ["one"]
[credentials]
dir = ".wait"
env = ["WAIT_TOKEN"]
tmpfs_mib = 1
[prestart]
protocol = "claude-stream-json"
argv = ["sh", "-c", "CLI", "{model}"]
quiet_ms = 50
memory_mib = 8
credentials = [{ credential = "env:WAIT_TOKEN", by = "environment" }]
[resources.idle]
memory_mib = 64
cpu = 0.1
[resources.run]
memory_mib = 128
cpu = 1.0
"#;

/// Questions that it asks.
const QUESTIONS: usize = 25;

/// Longer than what its pipe holds.
const QUESTION_BYTES: usize = 100_000;

const WAITING_CLI: &str = r#"
say() { echo '{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"'"$1"' "}}}'; }
while read -r line; do case $line in
*'"initialize"'*) echo '{"type":"control_response","response":{"subtype":"success","request_id":"initialize"}}' ;;
*update_environment_variables*) given=${line#*WAIT_TOKEN\":\"}; given=${given%%\"*} ;;
*'"user"'*) break ;;
esac; done
size=${line#*\"content\":\"}; size=${size%%\"*}; i=0; wrong=0
while [ $i -lt QUESTIONS ]; do
    echo '{"type":"control_request","request_id":"r'$i'","request":{"subtype":"can_use_tool"}}'
    read -r answer
    case $answer in *'"request_id":"r'$i'"'*) ;; *) wrong=$((wrong + 1)) ;; esac
    say word$i
    i=$((i + 1)); sleep 0.005
done
say "$wrong ${#size} $given"
echo '{"type":"result","subtype":"success","is_error":false,"result":"x"}'
while read -r line; do say "$line"; done
"#;

const COLD_CLI: &str = r#"
size=$(wc -c)
echo '{"type":"result","subtype":"success","is_error":false,"result":"cold '$((size))' '$WAIT_TOKEN'"}'
"#;

/// The manifest of the provider `wait`.
pub fn wait() -> String {
    let cli = WAITING_CLI.replace("QUESTIONS", &QUESTIONS.to_string());
    let text = WAITING.replace("\"COLD\"", &toml::Value::from(COLD_CLI).to_string());
    text.replace("\"CLI\"", &toml::Value::from(cli).to_string())
}

/// What the CLI that waits says to whoever asks it.
fn lines_of_wait(token: &str) -> String {
    let say = |word: &str| {
        let delta =
            r#"{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":""#;
        format!("{delta}{word} \"}}}}}}\n")
    };
    let ask = |number| {
        format!(
            "{{\"type\":\"control_request\",\"request_id\":\"r{number}\",\"request\":{{\"subtype\":\"can_use_tool\"}}}}\n"
        )
    };
    let asked: String = (0..QUESTIONS).map(|number| ask(number) + &say(&format!("word{number}"))).collect();
    let result = r#"{"type":"result","subtype":"success","is_error":false,"result":"x"}"#;
    format!("{asked}{}{result}\n", say(&format!("0 {QUESTION_BYTES} {token}")))
}

/// The manifest of the provider `talk`.
pub fn talk() -> String {
    MANIFEST.replace("\"SCRIPT\"", &toml::Value::from(TALK_SCRIPT).to_string())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Short,
    Counting,
    Burst,
    Flood,
    Secret,
    Talk,
    Prestarted,
    TimeLimit,
    NoProgram,
}

pub const KINDS: [Kind; 9] = [
    Kind::Short,
    Kind::Counting,
    Kind::Burst,
    Kind::Flood,
    Kind::Secret,
    Kind::Talk,
    Kind::Prestarted,
    Kind::TimeLimit,
    Kind::NoProgram,
];

/// How often a flood says the same.
const FLOOD: usize = 14;

/// Thousands of processes take longer than the provider's usual time where each is slow, as in the bed.
fn with_time(request: ExecutionRequest) -> ExecutionRequest {
    ExecutionRequest { timeout_ms: Some(180_000), ..request }
}

pub fn request(kind: Kind, token: &str) -> ExecutionRequest {
    match kind {
        Kind::Short => shell("echo short; echo err >&2; exit 5"),
        Kind::Counting => shell(&format!(
            "i=0; while [ $i -lt {LINES} ]; do echo out $i; echo err $i >&2; i=$((i+1)); sleep 0.002; done; exit 6"
        )),
        // More than the pipe holds, and less than the log.
        Kind::Burst => with_time(shell("i=0; while [ $i -lt 2000 ]; do printf '%d:%0200d\\n' $i $i; i=$((i+1)); done")),
        // Faster than it is read, and more than anybody may be behind.
        Kind::Flood => with_time(shell(&format!(
            "i=0; while [ $i -lt 2000 ]; do printf '%d:%0200d\\n' $i $i; i=$((i+1)); done > /tmp/flood; \
             i=0; while [ $i -lt {FLOOD} ]; do cat /tmp/flood; i=$((i+1)); done"
        ))),
        Kind::Secret => ExecutionRequest {
            credentials: Some(Credentials {
                files: [("token".to_owned(), Secret::new(token.to_owned()))].into(),
                env: Default::default(),
            }),
            ..shell("sleep 0.02; cat ~/.test/token; ls -A ~/.test | wc -l; ls -A /tmp | wc -l")
        },
        Kind::Talk => prompt("talk", &"x".repeat(200_000)),
        Kind::Prestarted => with_time(ExecutionRequest {
            credentials: Some(Credentials {
                files: Default::default(),
                env: [("WAIT_TOKEN".to_owned(), Secret::new(token.trim().to_owned()))].into(),
            }),
            ..prompt("wait", &"x".repeat(QUESTION_BYTES))
        }),
        Kind::TimeLimit => ExecutionRequest { timeout_ms: Some(150), ..shell("echo begun; sleep 1000") },
        Kind::NoProgram => command(["/no/such/program"]),
    }
}

fn answer(seen: &Seen) -> String {
    let deltas = seen.events.iter().filter_map(|(_, event)| match event {
        Event::Delta(delta) => Some(delta.text.as_str()),
        _ => None,
    });
    deltas.collect()
}

pub fn check(kind: Kind, token: &str, seen: &Seen) {
    let out = String::from_utf8(bytes(&seen.events, false)).unwrap();
    let err = String::from_utf8(bytes(&seen.events, true)).unwrap();
    let Some((_, Event::Exit(exit))) = seen.events.last() else { panic!("{seen:?}") };
    let starts = seen.events.iter().filter(|(_, event)| matches!(event, Event::Started(_))).count();
    let context = || format!("{kind:?} {} {exit:?}\n{err}", seen.id);
    // One that had only been told that it waits has nothing yet that could go on (docs/operating.md).
    let waited = seen.events.iter().any(|(_, event)| matches!(event, Event::Queued(_)));
    if starts == 0 && waited && exit.reason == ExitReason::Lost {
        return;
    }
    assert_eq!(starts, 1, "{}", context());
    let ended = |reason, code| assert_eq!((exit.reason, exit.code), (reason, code), "{}", context());
    match kind {
        Kind::Short => {
            ended(ExitReason::Exited, Some(5));
            assert_eq!((&*out, &*err), ("short\n", "err\n"), "{}", context());
        }
        Kind::Counting => {
            ended(ExitReason::Exited, Some(6));
            let lines = |word| (0..LINES).map(|number| format!("{word} {number}\n")).collect::<String>();
            assert!(out == lines("out") && err == lines("err"), "{} {out}", context());
        }
        Kind::Burst | Kind::Flood => {
            ended(ExitReason::Exited, Some(0));
            let expected: String = (0..2000).map(|number| format!("{number}:{number:0200}\n")).collect();
            let expected = expected.repeat(if kind == Kind::Flood { FLOOD } else { 1 });
            assert!(out == expected, "{}: {} bytes of {}", context(), out.len(), expected.len());
        }
        Kind::Secret => {
            ended(ExitReason::Exited, Some(0));
            assert_eq!(out, format!("{token}1\n0\n"), "its own credential and nobody else's: {}", context());
        }
        Kind::Talk => {
            ended(ExitReason::Exited, Some(0));
            assert!(exit.success, "{}", context());
            let words: String = (0..40).map(|number| format!("word{number} ")).collect();
            assert_eq!(answer(seen), words + "200000 ", "{}", context());
        }
        Kind::Prestarted => {
            ended(ExitReason::Exited, Some(0));
            assert!(exit.success, "{}", context());
            let token = token.trim();
            if seen.is_prestarted() {
                let words: String = (0..QUESTIONS).map(|number| format!("word{number} ")).collect();
                assert_eq!(answer(seen), format!("{words}0 {QUESTION_BYTES} {token} "), "{}", context());
                assert!(out == lines_of_wait(token), "byte for byte: {} {out}", context());
            } else {
                assert_eq!(answer(seen), format!("cold {QUESTION_BYTES} {token}"), "{}", context());
            }
        }
        Kind::TimeLimit => {
            assert_eq!(exit.reason, ExitReason::Timeout, "{}", context());
            assert_eq!(out, "begun\n", "{}", context());
        }
        Kind::NoProgram => {
            ended(ExitReason::Exited, Some(127));
            assert_eq!(err.matches("thawd:").count(), 1, "{}", context());
        }
    }
}
