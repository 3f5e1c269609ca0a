//! Ends of executions: what ends a command, and the `exit` event that follows.

use std::time::{Duration, Instant};

use super::place::Place;
use super::{Handle, StartError};
use crate::container::Exited;
use crate::output::{Noted, Recovered};
use crate::provider::Verdict;
use thaw_client::types::{Exit, ExitReason};
use thaw_os::cgroup::Usage;

/// Most of a program's name that is told when it does not start, characters.
const MAX_NAMED: usize = 128;

/// Names the program where it is told why that did not start.
pub(super) fn naming(program: &str, why: &str) -> String {
    let name: String = program.chars().take(MAX_NAMED).collect();
    let text = why.replace("the command", &format!("{name:?}"));
    // A habit of shells and of `docker exec sh -c`.
    let is_line = program.contains(' ');
    if is_line { text + "; a command and its arguments are separate words" } else { text }
}

/// Why the command has to end. The numbers are stored in the log's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    Timeout,
    StartTimeout,
    Cancelled,
    Shutdown,
}

impl Stop {
    const ALL: [Self; 4] = [Self::Timeout, Self::StartTimeout, Self::Cancelled, Self::Shutdown];

    /// The reason that a log has recorded.
    pub(super) fn noted(noted: Noted) -> Option<Self> {
        Self::ALL.into_iter().find(|stop| *stop as u8 == noted.reason)
    }

    /// The decision of an earlier daemon and its time, by the clock of [`super::clock::now`].
    pub(super) fn recovered(recovered: &Recovered) -> Option<(Self, Duration)> {
        let noted = recovered.stop?;
        Some((Self::noted(noted)?, noted.at))
    }

    /// Reason in the `exit` event.
    pub(super) fn reason(self) -> ExitReason {
        match self {
            Self::Timeout | Self::StartTimeout => ExitReason::Timeout,
            Self::Cancelled => ExitReason::Cancelled,
            Self::Shutdown => ExitReason::Killed,
        }
    }
}

impl Stop {
    fn detail(self, handle: &Handle) -> Option<String> {
        match self {
            Self::Timeout => Some(format!("not finished within {} ms", handle.timeout.as_millis())),
            Self::StartTimeout => Some(format!(
                "no output within the start timeout of {} ms; too little memory makes a CLI hang like this",
                handle.start_timeout.unwrap_or_default().as_millis()
            )),
            Self::Cancelled => None,
            Self::Shutdown => Some("the daemon was stopped".to_owned()),
        }
    }
}

/// How the command ended.
#[derive(Debug, Clone, Copy)]
pub(super) enum End {
    /// The command ended with this wait status.
    Status(i32),
    /// The command could not be executed; the code is the one of shells.
    NotStarted(i32),
    /// The container ended with the command in it.
    Vanished,
    /// A prestarted CLI has given its whole answer; it would wait for another prompt.
    Answered,
}

impl End {
    /// Whether the command ended by itself, so that it has finished its writes.
    pub(super) fn is_orderly(&self) -> bool {
        match self {
            Self::Status(status) => libc::WIFEXITED(*status),
            Self::Answered => true,
            Self::NotStarted(_) | Self::Vanished => false,
        }
    }
}

/// The `exit` event of an execution whose command never ran.
pub(super) fn never_ran(error: &StartError, received: Instant) -> Exit {
    Exit {
        code: None,
        signal: None,
        reason: match error {
            StartError::Cancelled => ExitReason::Cancelled,
            StartError::Stopped => ExitReason::Killed,
            StartError::Left => ExitReason::Cancelled,
            StartError::Claim(error) if error.is_shortage() => ExitReason::Refused,
            _ => ExitReason::Lost,
        },
        success: false,
        detail: Some(error.to_string()),
        duration_ms: received.elapsed().as_millis() as u64,
        cpu_ms: 0,
        memory_peak_bytes: 0,
        collected: None,
        request_id: None,
        at: None,
    }
}

/// A command whose output has been read to the end.
pub(super) struct Finished<'a> {
    pub(super) container: &'a Place,
    /// What a command in a sandbox has used itself; the container's usage is everybody's.
    pub(super) exited: Option<Exited>,
    /// Usage of the container before the claim.
    pub(super) baseline: &'a Usage,
    pub(super) since: Instant,
    /// Verdict from the decoded output.
    pub(super) verdict: Option<Verdict>,
}

/// End of a command, before the `exit` event is written.
#[derive(Debug, Clone)]
pub(super) struct Ended {
    pub(super) container: String,
    pub(super) exit: Exit,
    pub(super) used: Usage,
}

impl Ended {
    /// The same, with the reason for which the request was not made a second time.
    pub(super) fn because(mut self, error: &StartError) -> Self {
        tracing::warn!(%error, "the execution is not asked again");
        let said = self.exit.detail.take().unwrap_or_else(|| "the provider refused the access token".to_owned());
        self.exit.detail = Some(format!("{said}; it was not asked again: {error}"));
        self
    }

    /// Adds the usage of the execution's first command.
    pub(super) fn after(mut self, first: &Self) -> Self {
        self.exit = after(self.exit, &first.exit);
        self.used = self.used.and(&first.used);
        self
    }
}

/// The end of an execution that had a command before this one.
pub(super) fn after(exit: Exit, first: &Exit) -> Exit {
    Exit {
        duration_ms: exit.duration_ms + first.duration_ms,
        cpu_ms: exit.cpu_ms + first.cpu_ms,
        memory_peak_bytes: exit.memory_peak_bytes.max(first.memory_peak_bytes),
        ..exit
    }
}

/// Works out the `exit` event and the usage.
pub(super) fn conclude(handle: &Handle, finished: Finished<'_>, end: End, stop: Option<Stop>) -> Ended {
    let Finished { container, exited, baseline, since, verdict } = finished;
    let usage = container.usage().unwrap_or_else(|error| {
        tracing::warn!(%error, "no usage figures");
        *baseline
    });
    let mut used = usage.since(baseline);
    let mut memory_peak_bytes = usage.memory_peak_bytes;
    if container.own().is_none() {
        // Of one that was killed with its sandbox nothing is known.
        let (cpu, rss) = exited.map_or((Duration::ZERO, 0), |exited| (exited.cpu, exited.max_rss_bytes));
        used.cpu_us = u64::try_from(cpu.as_micros()).unwrap_or(u64::MAX);
        (used.throttled_us, used.memory_peak_bytes, memory_peak_bytes) = (0, rss, rss);
    }
    let oom = used.oom_kills > 0;
    let (code, signal) = match end {
        End::Status(status) if libc::WIFEXITED(status) => (Some(libc::WEXITSTATUS(status)), None),
        End::Status(status) => (None, Some(libc::WTERMSIG(status))),
        End::NotStarted(code) => (Some(code), None),
        // The process did not exit; the code is that of a CLI that ends after one answer.
        End::Answered => (Some(i32::from(verdict.as_ref().is_none_or(|verdict| verdict.success != Some(true)))), None),
        // The daemon killed everything, thaw-init included, so nothing could report the signal.
        End::Vanished if stop.is_some() => (None, Some(libc::SIGKILL)),
        End::Vanished => (None, None),
    };
    let limit_mib = container.limits().memory_bytes >> 20;
    let (reason, mut detail) = match (stop, end) {
        (Some(stop), _) => (stop.reason(), stop.detail(handle)),
        (None, _) if oom && code != Some(0) => {
            (ExitReason::Oom, Some(format!("the memory limit of {limit_mib} MiB was exceeded")))
        }
        (None, End::NotStarted(_)) => (ExitReason::Exited, Some("the command could not be executed".to_owned())),
        (None, End::Vanished) => match container.why_ended() {
            Some((why, true)) => (ExitReason::Killed, Some(why)),
            Some((why, false)) => (ExitReason::Lost, Some(why)),
            None => (ExitReason::Lost, Some("the container ended unexpectedly".to_owned())),
        },
        (None, End::Status(_)) if signal.is_some() => (ExitReason::Killed, None),
        (None, _) => (ExitReason::Exited, None),
    };
    let mut success = reason == ExitReason::Exited && code == Some(0);
    if let Some(verdict) = verdict
        && reason == ExitReason::Exited
    {
        // Where the CLI's JSON has a verdict, the verdict decides: an exit code of 0 alone proves nothing then.
        success = verdict.success.unwrap_or(success) && code == Some(0);
        if !success {
            detail = verdict.error.or(detail);
        }
    }
    let exit = Exit {
        code,
        signal,
        reason,
        success,
        detail,
        duration_ms: since.elapsed().as_millis() as u64,
        cpu_ms: used.cpu_us / 1000,
        memory_peak_bytes,
        collected: None,
        request_id: None,
        at: None,
    };
    Ended { container: container.id().to_owned(), exit, used }
}
