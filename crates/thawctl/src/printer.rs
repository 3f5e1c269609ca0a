//! Writes the events of an execution: the answer's text, raw output, or JSON lines.

use std::io::{self, Write};
use std::time::Instant;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

use super::exit::{Limit, Who};
use super::{exit, fold, one_line};
use thaw_client::time::Timestamp;
use thaw_client::types::{Encoding, Event, Exit, Output};

/// How much of the end of a CLI's stderr is kept to be shown when a prompt fails, bytes.
const TAIL: usize = 4096;

/// What is written for an execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// The text of the answer to a prompt.
    Answer,
    /// The bytes that the command wrote, each to its own stream.
    Raw,
    /// Each event as one line of JSON.
    Json,
}

/// How the events of one execution are told.
#[derive(Debug, Clone)]
pub(super) struct Style {
    pub(super) mode: Mode,
    /// Who writes.
    pub(super) who: Who,
    /// Timings and the container on stderr.
    pub(super) verbose: bool,
    /// The time of its event before each line.
    pub(super) timestamps: bool,
    /// Where the time limit comes from.
    pub(super) limit: Limit,
}

/// Writes events as they come; flushed after each one.
pub(super) struct Printer<O, E> {
    out: O,
    err: E,
    style: Style,
    began: Instant,
    first_output_ms: Option<u128>,
    wrote_answer: bool,
    at_line_start: bool,
    /// Whether the next byte of standard output and of standard error begins a line, for their timestamps.
    begins: [bool; 2],
    tail: Vec<u8>,
    /// Events that were dropped before we read them.
    missing: u64,
}

impl<O: Write, E: Write> Printer<O, E> {
    /// Begins now, for the timings of `verbose`: when the request is sent.
    pub(super) fn new(out: O, err: E, style: Style) -> Self {
        Self {
            out,
            err,
            style,
            began: Instant::now(),
            first_output_ms: None,
            wrote_answer: false,
            at_line_start: true,
            begins: [true; 2],
            tail: Vec::new(),
            missing: 0,
        }
    }

    /// Whether a part of what was asked for was dropped before it could be read.
    pub(super) fn is_incomplete(&self) -> bool {
        self.missing > 0
    }

    /// Writes one event with its sequence number.
    pub(super) fn event(&mut self, id: u64, event: &Event) -> io::Result<()> {
        if self.first_output_ms.is_none() && matches!(event, Event::Stdout(_) | Event::Stderr(_) | Event::Delta(_)) {
            self.first_output_ms = Some(self.began.elapsed().as_millis());
        }
        if let Event::Gap(gap) = event {
            self.missing += (gap.to + 1).saturating_sub(gap.from);
        }
        if self.style.mode == Mode::Json {
            let mut line = serde_json::to_value(event)?;
            line["id"] = id.into();
            writeln!(self.out, "{line}")?;
            self.out.flush()?;
        }
        match event {
            Event::Queued(queued) if self.style.mode != Mode::Json => {
                self.note(&format!("waiting for a container, number {} in the queue", queued.position))
            }
            Event::Started(started) if self.style.verbose => {
                let path = serde_json::to_string(&started.path)?;
                self.note(&format!(
                    "started {} in container {} path={} prestarted={} claim_us={}",
                    started.execution,
                    started.container,
                    path.trim_matches('"'),
                    started.prestarted,
                    started.claim_us
                ))
            }
            Event::Stdout(output) if self.style.mode == Mode::Raw => {
                let text = self.stamped(0, bytes(output)?, event.at());
                write_flushed(&mut self.out, &text)
            }
            Event::Stderr(output) if self.style.mode == Mode::Raw => {
                let text = self.stamped(1, bytes(output)?, event.at());
                write_flushed(&mut self.err, &text)
            }
            Event::Stderr(output) if self.style.mode == Mode::Answer => {
                self.tail.extend_from_slice(&bytes(output)?);
                self.tail.drain(..self.tail.len().saturating_sub(TAIL));
                Ok(())
            }
            Event::Delta(delta) if self.style.mode == Mode::Answer && !delta.text.is_empty() => {
                self.wrote_answer = true;
                self.at_line_start = delta.text.ends_with('\n');
                let text = self.stamped(0, delta.text.clone().into_bytes(), event.at());
                write_flushed(&mut self.out, &text)
            }
            Event::Gap(gap) if self.style.mode != Mode::Json => self.note(&format!(
                "gap: events {} to {} are lost: the daemon's log was full before we read them",
                gap.from, gap.to
            )),
            Event::Exit(exit) => self.exit(exit),
            _ => Ok(()),
        }
    }

    /// The text with the event's time before each line of its stream, if that is wanted.
    fn stamped(&mut self, stream: usize, text: Vec<u8>, at: Option<Timestamp>) -> Vec<u8> {
        let Some(at) = at.filter(|_| self.style.timestamps) else { return text };
        let mut stamped = Vec::with_capacity(text.len());
        for line in text.split_inclusive(|byte| *byte == b'\n') {
            if self.begins[stream] {
                stamped.extend(format!("{at} ").into_bytes());
            }
            stamped.extend(line);
            self.begins[stream] = line.ends_with(b"\n");
        }
        stamped
    }

    /// Ends the answer's last line, so that a prompt or a message does not follow on it.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.at_line_start {
            return Ok(());
        }
        self.at_line_start = true;
        write_flushed(&mut self.out, b"\n")
    }

    fn exit(&mut self, exit: &Exit) -> io::Result<()> {
        self.finish()?;
        let complaint = exit::complaint(exit, self.style.who, &self.style.limit);
        if self.style.verbose {
            self.note(&summary(exit, self.first_output_ms))?;
        }
        if let Some(complaint) = &complaint {
            self.note(complaint)?;
        }
        if self.style.mode == Mode::Answer && complaint.is_some() && !self.tail.is_empty() {
            // What it wrote may hold anything but text.
            let tail = fold::stacks(&String::from_utf8_lossy(&self.tail));
            write_flushed(&mut self.err, tail.as_bytes())?;
        }
        if self.is_incomplete() {
            let ended = exit.code.map_or_else(String::new, |code| format!("; the command itself exited with {code}"));
            return self.note(&format!("gap: {} events are missing, the output is incomplete{ended}", self.missing));
        }
        if complaint.is_none() && self.style.mode == Mode::Answer && exit.success && !self.wrote_answer {
            return self.note("no answer text could be read from the CLI's output; --raw shows that output");
        }
        Ok(())
    }

    fn note(&mut self, message: &str) -> io::Result<()> {
        writeln!(self.err, "thawctl: {}", one_line(message))
    }
}

fn summary(exit: &Exit, first_output_ms: Option<u128>) -> String {
    let number = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    format!(
        "exit code={} signal={} reason={} success={} duration_ms={} first_output_ms={} cpu_ms={} memory_peak_bytes={}",
        number(exit.code.map(|code| code.to_string())),
        number(exit.signal.map(|signal| signal.to_string())),
        format!("{:?}", exit.reason).to_lowercase(),
        exit.success,
        exit.duration_ms,
        number(first_output_ms.map(|ms| ms.to_string())),
        exit.cpu_ms,
        exit.memory_peak_bytes
    )
}

pub(super) fn bytes(output: &Output) -> io::Result<Vec<u8>> {
    match output.encoding {
        None => Ok(output.data.as_bytes().to_vec()),
        Some(Encoding::Base64) => BASE64_STANDARD
            .decode(&output.data)
            .map_err(|e| io::Error::other(format!("the daemon sent output that is not base64: {e}"))),
    }
}

fn write_flushed(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written to stdout and stderr for these events, given as the wire has them.
    fn printed(mode: Mode, is_prompt: bool, events: &[&str]) -> (Vec<u8>, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let who = if is_prompt { Who::Cli } else { Who::Command };
        let style = Style { mode, who, verbose: false, timestamps: false, limit: Limit::Unknown };
        let mut printer = Printer::new(&mut out, &mut err, style);
        for (id, event) in (1..).zip(events) {
            printer.event(id, &serde_json::from_str(event).unwrap()).unwrap();
        }
        printer.finish().unwrap();
        (out, String::from_utf8(err).unwrap())
    }

    const OUT: &str = r#"{"event":"stdout","data":{"data":"{json}\n"}}"#;
    const BYTES: &str = r#"{"event":"stdout","data":{"data":"/wD+","encoding":"base64"}}"#;
    const ERR: &str = r#"{"event":"stderr","data":{"data":"noise"}}"#;
    const DELTA: &str = r#"{"event":"delta","data":{"text":"201"}}"#;
    const GOOD: &str = r#"{"event":"exit","data":{"code":0,"reason":"exited","success":true,"duration_ms":1,"cpu_ms":1,"memory_peak_bytes":1}}"#;
    const BAD: &str = r#"{"event":"exit","data":{"code":0,"reason":"exited","success":false,"detail":"401\nno","duration_ms":1,"cpu_ms":1,"memory_peak_bytes":1}}"#;

    #[test]
    fn a_prompt_gives_its_answer_on_a_line_of_its_own() {
        assert_eq!(printed(Mode::Answer, true, &[OUT, ERR, DELTA, GOOD]), (b"201\n".to_vec(), String::new()));
    }

    #[test]
    fn a_failed_prompt_shows_one_line_and_then_the_end_of_stderr() {
        let (out, err) = printed(Mode::Answer, true, &[OUT, ERR, BAD]);
        assert_eq!(out, b"");
        assert_eq!(err, "thawctl: the provider's CLI reports a failure: 401 no\nnoise\n");
    }

    #[test]
    fn an_unknown_dialect_is_said() {
        let (out, err) = printed(Mode::Answer, true, &[OUT, GOOD]);
        assert!(out.is_empty() && err.contains("--raw"), "{err}");
    }

    #[test]
    fn waiting_is_said() {
        let queued = r#"{"event":"queued","data":{"position":3}}"#;
        let (out, err) = printed(Mode::Answer, true, &[queued, DELTA, GOOD]);
        assert_eq!(
            (out.as_slice(), err.as_str()),
            (&b"201\n"[..], "thawctl: waiting for a container, number 3 in the queue\n")
        );
    }

    #[test]
    fn what_is_missing_is_said_at_once_and_at_the_end() {
        let gap = r#"{"event":"gap","data":{"from":2,"to":4}}"#;
        for mode in [Mode::Answer, Mode::Raw, Mode::Json] {
            let (_, err) = printed(mode, true, &[OUT, gap, DELTA, GOOD]);
            assert!(
                err.ends_with(
                    "gap: 3 events are missing, the output is incomplete; the command itself exited with 0\n"
                )
            );
            assert_eq!(err.contains("gap: events 2 to 4 are lost"), mode != Mode::Json, "{err}");
        }
    }

    #[test]
    fn raw_output_comes_byte_by_byte() {
        let (out, err) = printed(Mode::Raw, false, &[OUT, BYTES, ERR, DELTA, GOOD]);
        assert_eq!((out.as_slice(), err.as_str()), (b"{json}\n\xff\x00\xfe".as_slice(), "noise"));
    }

    #[test]
    fn json_lines_carry_the_sequence_number() {
        let (out, _) = printed(Mode::Json, true, &[DELTA, GOOD]);
        let lines: Vec<serde_json::Value> =
            String::from_utf8(out).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines[0]["id"].as_u64(), lines[0]["event"].as_str()), (Some(1), Some("delta")));
        assert_eq!((lines[1]["id"].as_u64(), lines[1]["data"]["reason"].as_str()), (Some(2), Some("exited")));
    }

    #[test]
    fn the_kept_end_of_stderr_is_bounded() {
        let noise = format!(r#"{{"event":"stderr","data":{{"data":"{}"}}}}"#, "x".repeat(TAIL));
        let (_, err) = printed(Mode::Answer, true, &[&noise, &noise, ERR, BAD]);
        assert!(err.len() < TAIL + 200 && err.contains("noise"), "{}", err.len());
    }
}
