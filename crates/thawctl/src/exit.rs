//! The exit code of `thawctl run`: the command's own, else docker's and timeout(1)'s habits.

use super::table::bytes;
use thaw_client::types::{Exit, ExitReason};

/// thawctl or the daemon failed, or the container broke.
pub(super) const FAILED: u8 = 125;
/// The execution's time limit passed.
const TIMEOUT: u8 = 124;
/// The reader of our output went away (128 + 13).
pub(super) const SIGPIPE: u8 = 141;
/// Interrupted (128 + 2).
pub(super) const SIGINT: u8 = 130;
/// Terminated (128 + 15).
pub(super) const SIGTERM: u8 = 143;
/// Killed without a signal named (128 + 9).
const KILLED: u8 = 137;
/// Cancelled without a signal named (128 + 2).
const CANCELLED: u8 = 130;
/// The CLI says that it failed although its exit code is 0.
const UNSUCCESSFUL: u8 = 1;

/// Exit code for an execution that ended so. `interrupted` is the signal that made us cancel it.
pub(super) fn code(exit: &Exit, interrupted: Option<u8>) -> u8 {
    let by_signal = exit.signal.and_then(|signal| u8::try_from(signal).ok()).map(|signal| signal.saturating_add(128));
    match exit.reason {
        ExitReason::Timeout => TIMEOUT,
        ExitReason::Lost | ExitReason::Refused => FAILED,
        ExitReason::Oom | ExitReason::Killed => by_signal.unwrap_or(KILLED),
        ExitReason::Cancelled => interrupted.map(|signal| 128 + signal).or(by_signal).unwrap_or(CANCELLED),
        ExitReason::Exited => match (by_signal, exit.code) {
            (Some(code), _) => code,
            (None, Some(0)) if exit.success => 0,
            (None, Some(0)) => UNSUCCESSFUL,
            (None, Some(code)) => u8::try_from(code).unwrap_or(FAILED),
            (None, None) => FAILED,
        },
    }
}

/// Where an execution's time limit comes from, as far as that is known here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Limit {
    /// `--timeout` of this run.
    Asked,
    /// The manifest of this provider.
    Manifest(String),
    /// The configuration, for commands in an image.
    Image,
    /// Somebody else started it.
    Unknown,
}

impl Limit {
    fn described(&self) -> String {
        match self {
            Self::Asked => "the limit is that of --timeout".to_owned(),
            Self::Manifest(provider) => format!(
                "the limit is that of [timeouts] in the manifest of {provider}, or execution.max_timeout_ms; \
                 --timeout SECONDS sets another one"
            ),
            Self::Image => {
                "the limit is image_run.timeout_seconds of the daemon's configuration; --timeout SECONDS sets \
                            another one"
                    .to_owned()
            }
            Self::Unknown => "--timeout of `thawctl run` sets the limit".to_owned(),
        }
    }
}

/// Who ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// The CLI that answers a prompt.
    Cli,
    /// A command whose exit code becomes ours.
    Command,
    /// A command whose exit code is shown nowhere else.
    ToldCommand,
}

/// What to tell about an execution that did not end well. The exit code of a command speaks for itself where it is passed
/// on; that of a prompt's CLI does not.
pub(super) fn complaint(exit: &Exit, who: Who, limit: &Limit) -> Option<String> {
    let cli = if who == Who::Cli { "the provider's CLI" } else { "the command" };
    let what = match exit.reason {
        ExitReason::Exited if exit.success || who == Who::Command => return None,
        ExitReason::Exited => match (exit.signal, exit.code) {
            (Some(signal), _) => format!("{cli} was killed by signal {signal}"),
            (None, Some(0)) => format!("{cli} reports a failure"),
            (None, Some(code)) => format!("{cli} failed with exit code {code}"),
            (None, None) => format!("{cli} failed"),
        },
        // A CLI that never said anything has a limit of its own, and its own words.
        ExitReason::Timeout if exit.detail.as_ref().is_some_and(|detail| detail.contains("start timeout")) => {
            "timed out".to_owned()
        }
        ExitReason::Timeout => {
            return Some(format!("timed out after {:.1} s: {}", exit.duration_ms as f64 / 1e3, limit.described()));
        }
        ExitReason::Cancelled => "cancelled".to_owned(),
        ExitReason::Oom => {
            format!("out of memory: the container reached its limit (peak {})", bytes(exit.memory_peak_bytes))
        }
        ExitReason::Killed => exit.signal.map_or("killed".to_owned(), |signal| format!("killed by signal {signal}")),
        ExitReason::Lost => "the container broke".to_owned(),
        ExitReason::Refused => "not started; try again later".to_owned(),
    };
    Some(exit.detail.as_ref().map_or_else(|| what.clone(), |detail| format!("{what}: {detail}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: ExitReason, code: Option<i32>, signal: Option<i32>, success: bool) -> Exit {
        Exit {
            code,
            signal,
            reason,
            success,
            detail: None,
            duration_ms: 7,
            cpu_ms: 1,
            memory_peak_bytes: 2,
            collected: None,
            request_id: None,
            at: None,
        }
    }

    #[test]
    fn codes_follow_the_habits() {
        use ExitReason::*;
        let table = [
            (exit(Exited, Some(0), None, true), 0),
            (exit(Exited, Some(0), None, false), 1),
            (exit(Exited, Some(3), None, false), 3),
            (exit(Exited, Some(127), None, false), 127),
            (exit(Exited, None, Some(15), false), 143),
            (exit(Exited, None, None, false), 125),
            (exit(Timeout, None, Some(9), false), 124),
            (exit(Oom, None, Some(9), false), 137),
            (exit(Killed, None, None, false), 137),
            (exit(Cancelled, None, Some(15), false), 143),
            (exit(Cancelled, None, None, false), 130),
            (exit(Lost, None, Some(9), false), 125),
            (exit(Refused, None, None, false), 125),
        ];
        for (exit, expected) in table {
            assert_eq!(code(&exit, None), expected, "{exit:?}");
        }
    }

    #[test]
    fn our_own_cancelling_is_told_by_the_signal_that_we_got() {
        let cancelled = exit(ExitReason::Cancelled, None, Some(9), false);
        assert_eq!(code(&cancelled, Some(2)), 130);
        assert_eq!(code(&cancelled, Some(15)), 143);
        // It ended by itself before the cancel arrived.
        assert_eq!(code(&exit(ExitReason::Exited, Some(4), None, false), Some(2)), 4);
    }

    #[test]
    fn a_failed_command_speaks_by_its_exit_code_but_a_prompt_does_not() {
        let said = |exit: &Exit, who| complaint(exit, who, &Limit::Unknown);
        let failed = exit(ExitReason::Exited, Some(3), None, false);
        assert_eq!(said(&failed, Who::Command), None);
        assert_eq!(said(&failed, Who::ToldCommand).unwrap(), "the command failed with exit code 3");
        assert!(said(&failed, Who::Cli).unwrap().contains("CLI failed with exit code 3"));
        let detailed =
            Exit { detail: Some("401 Unauthorized".into()), ..exit(ExitReason::Exited, Some(0), None, false) };
        assert_eq!(said(&detailed, Who::Cli).unwrap(), "the provider's CLI reports a failure: 401 Unauthorized");
        assert_eq!(
            said(&exit(ExitReason::Killed, None, Some(15), false), Who::Command).unwrap(),
            "killed by signal 15"
        );
    }

    #[test]
    fn a_time_out_names_the_option_and_what_set_the_limit() {
        let late = exit(ExitReason::Timeout, None, None, false);
        let said = |limit| complaint(&late, Who::Command, &limit).unwrap();
        assert_eq!(said(Limit::Asked), "timed out after 0.0 s: the limit is that of --timeout");
        for (limit, key) in [
            (Limit::Manifest("openai".into()), "[timeouts] in the manifest of openai"),
            (Limit::Image, "image_run.timeout_seconds"),
            (Limit::Unknown, "thawctl run"),
        ] {
            let said = said(limit);
            assert!(said.contains("--timeout") && said.contains(key), "{said}");
        }
        let silent = Exit { detail: Some("no output within the start timeout of 20000 ms".into()), ..late.clone() };
        assert!(complaint(&silent, Who::Cli, &Limit::Asked).unwrap().contains("start timeout"));
    }
}
