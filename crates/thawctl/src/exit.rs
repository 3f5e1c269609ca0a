//! The exit code of `thawctl run`: the command's own, else docker's and timeout(1)'s habits.

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

/// What to tell about an execution that did not end well. The exit code of a command speaks for itself; that of a
/// prompt's CLI does not.
pub(super) fn complaint(exit: &Exit, is_prompt: bool) -> Option<String> {
    let what = match exit.reason {
        ExitReason::Exited if exit.success || !is_prompt => return None,
        ExitReason::Exited => match (exit.signal, exit.code) {
            (Some(signal), _) => format!("the provider's CLI was killed by signal {signal}"),
            (None, Some(0)) => "the provider's CLI reports a failure".to_owned(),
            (None, Some(code)) => format!("the provider's CLI failed with exit code {code}"),
            (None, None) => "the provider's CLI failed".to_owned(),
        },
        ExitReason::Timeout => format!("timed out after {} ms", exit.duration_ms),
        ExitReason::Cancelled => "cancelled".to_owned(),
        ExitReason::Oom => {
            format!("out of memory: the container reached its limit (peak {} bytes)", exit.memory_peak_bytes)
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
        let failed = exit(ExitReason::Exited, Some(3), None, false);
        assert_eq!(complaint(&failed, false), None);
        assert!(complaint(&failed, true).unwrap().contains("exit code 3"));
        let detailed =
            Exit { detail: Some("401 Unauthorized".into()), ..exit(ExitReason::Exited, Some(0), None, false) };
        assert_eq!(complaint(&detailed, true).unwrap(), "the provider's CLI reports a failure: 401 Unauthorized");
        assert_eq!(complaint(&exit(ExitReason::Killed, None, Some(15), false), false).unwrap(), "killed by signal 15");
        assert!(complaint(&exit(ExitReason::Timeout, None, None, false), false).unwrap().contains("7 ms"));
    }
}
