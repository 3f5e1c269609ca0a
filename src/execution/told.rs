//! What those who follow an execution, or the whole daemon, are told of its start and its end.

use std::time::Duration;

use super::Handle;
use super::state::{Assignment, Step};
use crate::failpoints;
use crate::output::Stream;
use thaw_client::time::Timestamp;
use thaw_client::types::{ClaimPath, DaemonEventKind, Event, Exit, Stage, Started};

/// Writes the `started` event.
pub(super) fn announce(handle: &Handle, container: &str, path: ClaimPath, prestarted: bool, claim: Duration) {
    handle.step(Step::Announce(Assignment { container: container.to_owned(), path }));
    let now = Timestamp::now();
    handle.times().starts(now);
    handle.log.push(&Event::Started(Started {
        execution: handle.id.clone(),
        container: container.to_owned(),
        path,
        prestarted,
        claim_us: claim.as_micros() as u64,
        request_id: handle.request_id.clone(),
        at: Some(now),
    }));
    handle.publish(DaemonEventKind::ExecutionStarted, |event| {
        event.at = now;
        event.container = Some(container.to_owned());
        event.path = Some(path);
        event.stage = Some(if prestarted { Stage::Prestarted } else { Stage::Created });
    });
}

/// Writes to standard error why the command could not be executed.
pub(super) fn say_why(handle: &Handle, detail: &str) {
    // An earlier daemon may have written it already.
    if handle.log.spool(Stream::Stderr).length() == 0 {
        handle.log.push_output(Stream::Stderr, format!("thawd: {detail}\n").as_bytes());
    }
}

/// Writes the last event. From then on only the log is kept.
pub(super) fn finish(handle: &Handle, mut exit: Exit) {
    let now = Timestamp::now();
    exit.request_id = handle.request_id.clone();
    exit.at = Some(now);
    handle.times().ends(now);
    if !handle.step(Step::End(exit.clone())) {
        return;
    }
    if let Some(stdin) = &handle.stdin {
        stdin.close("the execution has ended");
    }
    let (reason, success, detail) = (exit.reason, exit.success, exit.detail.clone());
    handle.log.push(&Event::Exit(exit));
    handle.publish(DaemonEventKind::ExecutionExited, |event| {
        event.at = now;
        event.container = handle.state().assignment().map(|its| its.container.clone());
        (event.reason, event.success, event.detail) = (Some(reason), Some(success), detail);
    });
    failpoints::at("end.written");
    if handle.is_kept() {
        handle.keep(None);
    }
}
