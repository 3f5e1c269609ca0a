//! Tool calls that a prompt asks for: `steps: [[{"run": "ls"}], [{"run": "make"}, {"read": "/workspace/log"}]]`, one
//! inner list for each turn, its calls side by side. What stands before it is answered when they are done.
//!
//! Which turn it is, is read off the conversation, so that nothing is remembered between requests.

use serde::Deserialize;
use serde_json::Value;

/// Where a script begins in a prompt.
const MARK: &str = "steps:";
/// How much of a tool's result is kept, bytes.
const RESULT_BYTES: usize = 1 << 20;

/// One part of a turn.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// A shell command.
    Run(String),
    Read(String),
    Write {
        path: String,
        content: String,
    },
    Edit {
        path: String,
        old: String,
        new: String,
    },
    Search {
        pattern: String,
        path: String,
    },
    /// A tool by the name that the CLI gives it.
    Tool {
        name: String,
        input: Value,
    },
    /// Text before the calls of the turn.
    Say(String),
    /// A thought before them.
    Think(String),
}

/// A tool that is called.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    pub id: String,
    pub name: String,
    /// An object, or text for a tool that takes text.
    pub input: Value,
}

/// What the model says in one turn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Reply {
    pub thoughts: Vec<String>,
    pub tokens: Vec<String>,
    pub calls: Vec<ToolCall>,
}

/// What a tool gave.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ToolResult {
    pub text: String,
    /// Whether the CLI calls it a failure.
    pub error: bool,
}

impl ToolResult {
    pub fn new(mut text: String, error: bool) -> Self {
        if let Some(end) = (0..=RESULT_BYTES).rev().find(|&at| text.is_char_boundary(at)) {
            text.truncate(end);
        }
        Self { text, error }
    }
}

/// The steps of each turn.
pub type Turns = Vec<Vec<Step>>;

/// A prompt in its two parts; of the script, if there is one, the turns, or what is wrong with it.
pub fn split(prompt: &str) -> (&str, Option<Result<Turns, String>>) {
    let Some(at) = prompt.rfind(MARK) else { return (prompt, None) };
    let mut values = serde_json::Deserializer::from_str(&prompt[at + MARK.len()..]).into_iter();
    let steps = match values.next() {
        Some(Ok(steps)) => Ok(steps),
        Some(Err(error)) => Err(error.to_string()),
        None => Err("nothing follows".to_owned()),
    };
    (prompt[..at].trim_end(), Some(steps))
}

/// Makes a turn of steps; `call` turns one into name and input of a tool that was offered.
pub fn reply(
    turn: usize,
    steps: &[Step],
    call: impl Fn(&Step) -> Result<(String, Value), String>,
) -> Result<Reply, String> {
    let mut reply = Reply::default();
    for step in steps {
        match step {
            Step::Say(text) => reply.tokens.push(text.clone()),
            Step::Think(text) => reply.thoughts.push(text.clone()),
            step => {
                let (name, input) = match step {
                    Step::Tool { name, input } => (name.clone(), input.clone()),
                    step => call(step)?,
                };
                let id = format!("call_{turn}_{}", reply.calls.len());
                reply.calls.push(ToolCall { id, name, input });
            }
        }
    }
    Ok(reply)
}

/// The turn that the id of a call belongs to.
pub fn turn_of(id: &str) -> Option<usize> {
    id.strip_prefix("call_")?.split('_').next()?.parse().ok()
}

/// Which of `wanted` is among the tools that were offered.
pub fn offered<'a>(names: &[String], wanted: &[&'a str]) -> Result<&'a str, String> {
    let found = wanted.iter().find(|name| names.iter().any(|offered| offered == *name));
    found.copied().ok_or_else(|| format!("none of {} is offered, but {}", wanted.join(", "), names.join(", ")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_prompt_is_split_at_its_script() {
        let (question, steps) =
            split("What is 3*67?\nsteps: [[{\"run\": \"ls 2*3\"}, {\"say\": \"x\"}], []]\nand more");
        assert_eq!(question, "What is 3*67?");
        let steps = steps.unwrap().unwrap();
        assert_eq!(steps, [vec![Step::Run("ls 2*3".into()), Step::Say("x".into())], vec![]]);
        assert_eq!(split("no script").1, None);
        assert!(split("steps: [[{\"fly\": 1}]]").1.unwrap().unwrap_err().contains("fly"));
        assert!(split("steps:").1.unwrap().is_err());
    }

    #[test]
    fn calls_are_numbered_by_turn() {
        let steps = [Step::Think("hm".into()), Step::Run("a".into()), Step::Run("b".into())];
        let reply = reply(2, &steps, |_| Ok(("shell".into(), json!({})))).unwrap();
        let ids: Vec<_> = reply.calls.iter().map(|call| call.id.as_str()).collect();
        assert_eq!(ids, ["call_2_0", "call_2_1"]);
        assert_eq!(turn_of("call_2_1"), Some(2));
        assert_eq!(turn_of("toolu_x"), None);
    }

    #[test]
    fn a_tool_that_was_not_offered_is_named() {
        let names = ["a".to_owned(), "b".to_owned()];
        assert_eq!(offered(&names, &["c", "b"]), Ok("b"));
        assert_eq!(offered(&names, &["c", "d"]).unwrap_err(), "none of c, d is offered, but a, b");
    }
}
