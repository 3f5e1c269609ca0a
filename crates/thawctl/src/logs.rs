//! `thawctl logs`: the output of an execution, from its beginning, its end, or an event on.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use super::format::Format;
use super::printer::{Mode, Printer, Style};
use super::{CtlError, exit, ids};
use thaw_client::client::{Client, ClientError, EventStream};
use thaw_client::time::{NoTime, Timestamp};
use thaw_client::types::{Encoding, Event, Output};

/// Silence after which `logs` without `--follow` takes it that all kept events were read: the API has no mark for
/// that, and the daemon sends what it keeps without a pause.
const QUIET: Duration = Duration::from_millis(300);

/// Longest time that `logs` without `--follow` goes on for an execution that writes without a pause.
const LONGEST: Duration = Duration::from_secs(5);

/// Arguments of `thawctl logs`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit code: 0, whatever the execution came to; with --exit-code that of the execution, as `thawctl run` would have ended; 125 \
when thawctl or the daemon failed, or a part of the output is missing (a gap), because it was more than the daemon keeps.")]
pub(super) struct Args {
    /// Id of the execution, the beginning of it, or its name; see `thawctl ps --all`
    #[arg(add = super::completion::executions())]
    id: String,
    /// Go on until the execution ends
    #[arg(long, short)]
    follow: bool,
    /// Start after the event of this sequence number, see --format json
    #[arg(long, value_name = "SEQ")]
    after: Option<u64>,
    /// Start with what came within this time (10m, 1h30m) or after this point in time (2026-11-30T02:15:00Z)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<Timestamp>,
    /// Write its time before each line
    #[arg(long, short)]
    timestamps: bool,
    /// Begin with the last N lines of the output
    #[arg(long, short = 'n', value_name = "N", value_parser = lines)]
    tail: Option<usize>,
    /// End with the exit code of the execution; waits for its end with --follow
    #[arg(long)]
    exit_code: bool,
    /// Write what a prompt's CLI wrote itself, instead of the answer's text
    #[arg(long)]
    raw: bool,
}

/// Arguments of `thawctl attach`.
#[derive(Debug, clap::Args)]
pub(super) struct AttachArgs {
    /// Id of the execution, the beginning of it, or its name; see `thawctl ps`
    #[arg(add = super::completion::executions())]
    id: String,
}

impl From<AttachArgs> for Args {
    /// From its beginning, to its end, and with its exit code.
    fn from(args: AttachArgs) -> Self {
        let (after, since, tail) = (None, None, None);
        Self { id: args.id, follow: true, after, since, timestamps: false, tail, exit_code: true, raw: false }
    }
}

/// A time before now, or a point in time.
pub(super) fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(by) = humantime::parse_duration(text) {
        return Ok(Timestamp::now().before(by));
    }
    text.parse().map_err(|error: NoTime| format!("must be a time such as 10m or 1h30m, or a point in time: {error}"))
}

/// A number of lines; docker's word for all of them is `all`.
fn lines(text: &str) -> Result<usize, String> {
    match text {
        "all" => Ok(usize::MAX),
        number => number.parse().map_err(|_| "must be a number of lines, or all".to_owned()),
    }
}

/// Prints the output and gives the exit code; what the execution came to is in `thawctl inspect`.
pub(super) async fn logs(client: &Client, args: &Args, format: &Format) -> Result<u8, CtlError> {
    format.no_template("logs")?;
    let id = ids::resolve(client, &args.id).await?;
    // Only prompts have a model.
    let is_prompt = client.execution(&id).await?.model.is_some();
    let mode = match format {
        _ if format.is_json() => Mode::Json,
        _ if args.raw || !is_prompt => Mode::Raw,
        _ => Mode::Answer,
    };
    let who = if is_prompt { exit::Who::Cli } else { exit::Who::ToldCommand };
    let style = Style { mode, who, verbose: false, timestamps: args.timestamps, limit: exit::Limit::Unknown };
    let mut printer = Printer::new(io::stdout(), io::stderr(), style);
    let mut events = Events { stream: client.events(&id, args.after).await?, began: Instant::now() };
    let mut code = None;
    let mut kept = match args.tail {
        Some(lines) => Some(events.kept(mode, lines).await?),
        None => None,
    };
    loop {
        let next = match kept.as_mut().and_then(VecDeque::pop_front) {
            Some(event) => Some(event),
            None if args.follow => events.stream.next().await.transpose()?,
            None => events.until_present().await?,
        };
        let Some((id, event)) = next else { break };
        // The end is told whenever it was.
        let is_old = args.since.is_some_and(|since| event.at().is_some_and(|at| at < since));
        if is_old && !matches!(event, Event::Exit(_)) {
            continue;
        }
        printer.event(id, &event)?;
        if let Event::Exit(exit) = &event {
            code = Some(exit::code(exit, None));
            break;
        }
    }
    printer.finish()?;
    if printer.is_incomplete() {
        return Ok(exit::FAILED);
    }
    match (args.exit_code, code) {
        (false, _) => Ok(0),
        (true, Some(code)) => Ok(code),
        (true, None) => {
            Err(CtlError::Usage(format!("{id} still runs, and has no exit code yet: wait for it with --follow")))
        }
    }
}

/// Events of one execution.
struct Events {
    stream: EventStream,
    began: Instant,
}

impl Events {
    /// The next event, or nothing once all that were kept have come.
    async fn until_present(&mut self) -> Result<Option<(u64, Event)>, ClientError> {
        if self.began.elapsed() > LONGEST {
            return Ok(None);
        }
        match tokio::time::timeout(QUIET, self.stream.next()).await {
            Ok(next) => next.transpose(),
            Err(_) => Ok(None),
        }
    }

    /// The events that are kept, of the output only as much as its last lines are.
    async fn kept(&mut self, mode: Mode, lines: usize) -> Result<VecDeque<(u64, Event)>, ClientError> {
        let mut kept = VecDeque::new();
        while let Some((id, event)) = self.until_present().await? {
            let is_last = matches!(event, Event::Exit(_));
            kept.push_back((id, event));
            if is_last {
                break;
            }
        }
        cut(&mut kept, mode, lines);
        Ok(kept)
    }
}

/// Leaves of the output's text the last lines.
fn cut(events: &mut VecDeque<(u64, Event)>, mode: Mode, lines: usize) {
    let (mut left, mut is_last) = (lines, true);
    for (_, event) in events.iter_mut().rev() {
        let Some(text) = text_of(event, mode) else { continue };
        let (from, ends) = beginning(&text, left, is_last);
        if !text.is_empty() {
            is_last = false;
        }
        left = left.saturating_sub(ends);
        if from > 0 {
            *event = match &*event {
                Event::Delta(delta) => {
                    let mut delta = delta.clone();
                    delta.text = String::from_utf8_lossy(&text[from..]).into_owned();
                    Event::Delta(delta)
                }
                Event::Stdout(cut) => Event::Stdout(output(&text[from..], cut.at)),
                Event::Stderr(cut) => Event::Stderr(output(&text[from..], cut.at)),
                other => other.clone(),
            };
            // Everything before is cut off whole.
            left = 0;
        }
    }
}

/// Where the last `left` lines of a text begin, and how many line ends there are behind that. The end of the very last
/// line counts for nothing.
fn beginning(text: &[u8], left: usize, is_last: bool) -> (usize, usize) {
    if left == 0 {
        return (text.len(), 0);
    }
    let body = if is_last { text.strip_suffix(b"\n").unwrap_or(text) } else { text };
    let mut ends = 0;
    for (at, byte) in body.iter().enumerate().rev() {
        if *byte == b'\n' {
            ends += 1;
            if ends == left {
                return (at + 1, ends);
            }
        }
    }
    (0, ends)
}

/// The bytes of an event that the mode writes.
fn text_of(event: &Event, mode: Mode) -> Option<Vec<u8>> {
    match (event, mode) {
        (Event::Delta(delta), Mode::Answer) => Some(delta.text.clone().into_bytes()),
        (Event::Stdout(output) | Event::Stderr(output), Mode::Raw | Mode::Json) => super::printer::bytes(output).ok(),
        _ => None,
    }
}

fn output(bytes: &[u8], at: Option<Timestamp>) -> Output {
    use base64::Engine;
    match std::str::from_utf8(bytes) {
        Ok(text) => Output { data: text.to_owned(), encoding: None, at },
        Err(_) => Output { data: base64::prelude::BASE64_STANDARD.encode(bytes), encoding: Some(Encoding::Base64), at },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(pieces: &[&[u8]], lines: usize) -> Vec<u8> {
        let mut events = pieces.iter().map(|piece| (1, Event::Stdout(output(piece, None)))).collect();
        cut(&mut events, Mode::Raw, lines);
        events.iter().flat_map(|(_, event)| text_of(event, Mode::Raw).unwrap()).collect()
    }

    #[test]
    fn the_last_lines_are_found_across_pieces() {
        assert_eq!(last(&[b"a\nb", b"b\nc\n"], 1), b"c\n");
        assert_eq!(last(&[b"a\nb", b"b\nc\n"], 2), b"bb\nc\n");
        assert_eq!(last(&[b"a\nb", b"b\nc\n"], 9), b"a\nbb\nc\n");
        assert_eq!(last(&[b"a\nb", b"b\nc\n"], 0), b"");
        assert_eq!(last(&[b"a\n", b"b"], 1), b"b");
        assert_eq!(last(&[b"a\n", b"b\n", b"c"], 2), b"b\nc");
        assert_eq!(last(&[b"x\n\xff\n"], 1), b"\xff\n");
    }
}
