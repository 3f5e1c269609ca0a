use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Cursor, Limits, Log, Patience, Stream};
use crate::output::spool::Spools;
use thaw_client::types::{Delta, Event, Exit, ExitReason};

fn limits(bytes: usize) -> Limits {
    let patience = Patience { stall: Duration::from_secs(1), away: Duration::from_secs(60) };
    Limits { bytes, fast: 128 << 10, large: 1 << 20, patience }
}

fn log(bytes: usize) -> Log {
    Log::new(limits(bytes), Spools::default().files().unwrap()).unwrap()
}

fn delta(text: &str) -> Event {
    Event::Delta(Delta { text: text.to_owned(), at: None })
}

fn exit() -> Event {
    Event::Exit(Exit {
        code: Some(0),
        signal: None,
        reason: ExitReason::Exited,
        success: true,
        detail: None,
        duration_ms: 1,
        cpu_ms: 1,
        memory_peak_bytes: 1,
        collected: None,
        request_id: None,
        at: None,
    })
}

#[test]
fn events_are_numbered_from_one_and_resumable() {
    let log = log(1 << 20);
    for text in ["a", "b", "c"] {
        log.push(&delta(text));
    }
    let all: Vec<u64> = log.read(None, 0, 10).iter().map(|event| event.sequence).collect();
    assert_eq!(all, [1, 2, 3]);
    let rest = log.read(None, 2, 10);
    let data: serde_json::Value = serde_json::from_str(&rest[0].event.data).unwrap();
    assert_eq!((rest.len(), rest[0].sequence, data["text"].as_str()), (1, 3, Some("c")));
    assert!(data["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{data}");
    assert!(log.read(None, 3, 10).is_empty());
    for future in [99, u64::MAX] {
        assert!(log.read(None, future, 10).is_empty(), "a number from the future is no reason to panic");
    }
}

#[test]
fn the_limit_trims_the_oldest_and_says_so() {
    let log = log(1000);
    for index in 0..100 {
        log.push(&delta(&format!("{index:0100}")));
    }
    let events = log.read(None, 0, 1000);
    assert_eq!(events[0].event.name, "gap");
    let gap: serde_json::Value = serde_json::from_str(&events[0].event.data).unwrap();
    assert_eq!(gap["from"], 1);
    assert_eq!(gap["to"], events[0].sequence);
    assert_eq!(events[1].sequence, events[0].sequence + 1);
    assert_eq!(events.last().unwrap().sequence, 100);
    assert!(events.len() < 10, "{} events held", events.len());
    let resumed = log.read(None, events[0].sequence, 1000);
    assert_eq!(resumed[0].sequence, events[1].sequence, "no second gap after the first was read");
}

#[test]
fn a_read_is_bounded_in_bytes_but_never_empty() {
    let log = log(16 << 20);
    log.push(&delta(&"x".repeat(2 * super::READ_BYTES)));
    for _ in 0..64 {
        log.push(&delta(&"y".repeat(super::READ_BYTES / 4)));
    }
    assert_eq!(log.read(None, 0, 64).len(), 1, "a large event comes alone");
    assert_eq!(log.read(None, 1, 64).len(), 3);
}

#[tokio::test]
async fn readers_wait_for_events_and_end_with_exit() {
    let log = Arc::new(log(1 << 20));
    let reader = tokio::spawn({
        let log = Arc::clone(&log);
        async move {
            let (mut after, mut names) = (0, Vec::new());
            loop {
                let events = log.next(None, after, 2).await;
                let Some(last) = events.last() else { return names };
                after = last.sequence;
                names.extend(events.iter().map(|event| event.event.name));
            }
        }
    });
    for text in ["a", "b", "c"] {
        log.push(&delta(text));
        tokio::task::yield_now().await;
    }
    log.push(&exit());
    log.push(&delta("too late"));
    assert_eq!(reader.await.unwrap(), ["delta", "delta", "delta", "exit"]);
}

/// 1 KiB of standard output or standard error, each shown to somebody before the next.
fn write(log: &Log, stream: Stream, times: usize) {
    for _ in 0..times {
        log.push_output(stream, &[b'x'; 1024]);
        let number = log.lock().number();
        log.read(None, number - 1, 1);
    }
}

fn waits(log: &Log) -> bool {
    log.waits_until(false).is_some()
}

#[test]
fn a_reader_of_one_stream_misses_nothing_of_the_other() {
    let log = log(64 << 10);
    let err = log.join();
    let mut cursor = Cursor::new(Stream::Stderr, 0);
    log.read_output(Some(err), &mut cursor).unwrap();
    write(&log, Stream::Stdout, 20);
    assert!(!waits(&log), "there is nothing that it wants");
    write(&log, Stream::Stderr, 1);
    assert!(waits(&log), "what it wants is behind all that");
    log.read_output(Some(err), &mut cursor).unwrap();
    log.read_output(Some(err), &mut cursor).unwrap();
    assert!(!waits(&log), "now it is read");
}

#[tokio::test(start_paused = true)]
async fn a_command_waits_for_the_slowest_and_for_nobody_that_stalls() {
    let log = log(64 << 10);
    let (fast, slow) = (log.join(), log.join());
    log.read(Some(slow), 0, 64);
    write(&log, Stream::Stdout, 20);
    log.read(Some(fast), 20, 64);
    let (begun, seen) = (Instant::now(), log.moves());
    log.read(Some(slow), 1, 64);
    log.progress(seen, log.waits_until(false).unwrap()).await;
    assert_eq!(begun.elapsed(), Duration::ZERO, "it moved");
    log.progress(log.moves(), log.waits_until(false).unwrap()).await;
    assert_eq!(begun.elapsed(), Duration::from_secs(1));
    assert!(!waits(&log), "it has stalled");
    log.read(Some(slow), 2, 64);
    assert!(waits(&log), "it reads again");
    assert!(log.waits_until(true).is_none(), "a command that ends may write more");
    log.leave(slow);
    let until = log.waits_until(false).unwrap();
    assert_eq!(until - begun, Duration::from_secs(61), "it may come back");
    tokio::time::sleep_until(until).await;
    assert!(!waits(&log));
}

#[test]
fn places_that_are_still_to_come_hold_up_nobody_and_let_nobody_pass() {
    let log = log(64 << 10);
    let (reader, dreamer) = (log.join(), log.join());
    log.read(Some(reader), 0, 64);
    log.read(Some(dreamer), u64::MAX, 64);
    let mut cursor = Cursor::new(Stream::Stdout, u64::MAX);
    log.read_output(Some(dreamer), &mut cursor).unwrap();
    write(&log, Stream::Stdout, 20);
    log.read_output(Some(dreamer), &mut cursor).unwrap();
    assert!(waits(&log), "who waits for the future has read nothing");
    log.read(Some(reader), 20, 64);
    assert!(!waits(&log));
}

#[test]
fn small_pieces_that_nobody_has_seen_are_one_event() {
    let files = Spools::default().files().unwrap();
    let copy = crate::output::spool::Files {
        journal: Arc::clone(&files.journal),
        output: files.output.each_ref().map(Arc::clone),
    };
    let log = Log::new(limits(1 << 20), files).unwrap();
    let put = |stream, count| (0..count).for_each(|_| log.push_output(stream, b"ab"));
    put(Stream::Stdout, 1000);
    put(Stream::Stderr, 10);
    assert_eq!(log.read(None, 0, 1).len(), 1);
    put(Stream::Stderr, 10);
    assert_eq!(log.read(None, 0, 99).len(), 2);
    put(Stream::Stderr, 10);
    let same = |log: &Log| {
        let events = log.read(None, 0, 99);
        let lengths: Vec<_> = events.iter().map(|event| (event.event.name, event.event.data.len() - 43)).collect();
        assert_eq!(lengths, [("stdout", 2000), ("stderr", 40), ("stderr", 20)], "what was shown stays as it was");
    };
    same(&log);
    same(&Log::recover(limits(1 << 20), copy).unwrap().0);
}

#[test]
fn the_next_daemon_waits_for_the_readers_of_this_one() {
    let files = Spools::default().files().unwrap();
    let copy = || crate::output::spool::Files {
        journal: Arc::clone(&files.journal),
        output: files.output.each_ref().map(Arc::clone),
    };
    let first = Log::new(limits(64 << 10), copy()).unwrap();
    let reader = first.join();
    first.note_submitted();
    first.read(Some(reader), 0, 64);
    write(&first, Stream::Stdout, 17);
    assert!(waits(&first));
    assert_eq!(first.note_stop(3).reason, 3);
    assert_eq!(first.note_stop(2).reason, 3, "the first counts");
    let (second, recovered) = Log::recover(limits(64 << 10), copy()).unwrap();
    let alone_since = second.alone_since().unwrap();
    assert_eq!(recovered.stop.unwrap().reason, 3);
    assert!(waits(&second), "its reader is away");
    let (third, again) = Log::recover(limits(64 << 10), copy()).unwrap();
    assert_eq!((again.stop, third.alone_since()), (recovered.stop, Some(alone_since)), "no wait begins anew");
    let back = third.join();
    third.read(Some(back), 17, 64);
    assert!(!waits(&third) && third.alone_since().is_none());
    third.leave(back);
    let (fourth, _) = Log::recover(limits(64 << 10), copy()).unwrap();
    assert!(!waits(&fourth), "it had taken everything");
    assert!(fourth.alone_since().is_some());
}
