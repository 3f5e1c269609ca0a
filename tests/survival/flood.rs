//! Output that comes faster than it is kept: whoever reads it misses nothing, whatever becomes of the daemon and of its
//! connection meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thaw_client::client::{Client, EventStream};
use thaw_client::types::{Encoding, Event, ExecutionRequest, ExitReason};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::support::{Daemon, eventually, in_bed, shell};

const LINE: &str = "a line of some length, again and again\n";

fn mebibytes() -> usize {
    if in_bed() { 8 } else { 64 }
}

/// Numbered blocks of a mebibyte, which is more than may be kept. On standard error there is a line for each.
fn flood() -> ExecutionRequest {
    let script = format!(
        "yes '{}' | head -c {} > /tmp/block; i=0; \
         while [ $i -lt {} ]; do echo block $i; echo error $i >&2; cat /tmp/block; i=$((i+1)); done; exit 5",
        LINE.trim_end(),
        1 << 20,
        mebibytes()
    );
    ExecutionRequest { timeout_ms: Some(300_000), ..shell(&script) }
}

fn expected() -> Vec<u8> {
    let block: Vec<u8> = LINE.bytes().cycle().take(1 << 20).collect();
    (0..mebibytes()).flat_map(|number| [format!("block {number}\n").into_bytes(), block.clone()].concat()).collect()
}

fn expected_errors() -> Vec<u8> {
    (0..mebibytes()).flat_map(|number| format!("error {number}\n").into_bytes()).collect()
}

/// What has been read of an execution.
#[derive(Debug, Default)]
struct Seen {
    out: Vec<u8>,
    err: Vec<u8>,
    code: Option<i32>,
    last: u64,
}

impl Seen {
    fn add(&mut self, sequence: u64, event: Event) {
        assert_eq!(sequence, self.last + 1, "{event:?}");
        self.last = sequence;
        match event {
            Event::Stdout(output) => {
                assert_ne!(output.encoding, Some(Encoding::Base64));
                self.out.extend(output.data.into_bytes());
            }
            Event::Stderr(output) => self.err.extend(output.data.into_bytes()),
            Event::Exit(exit) => self.code = exit.code,
            Event::Gap(gap) => panic!("{gap:?}"),
            _ => {}
        }
    }

    fn check(&self) {
        assert_eq!(self.code, Some(5));
        assert!(self.out == expected(), "{} bytes of {}", self.out.len(), expected().len());
        assert_eq!(self.err, expected_errors());
    }
}

/// Reads to the end, at most so much at a time if it is `slow`; tells how much it has.
async fn read(mut stream: EventStream, slow: bool, progress: Arc<AtomicU64>) -> Seen {
    let mut seen = Seen::default();
    let mut pause_at = 1 << 18;
    while let Some(event) = stream.next().await {
        let (sequence, event) = event.unwrap();
        seen.add(sequence, event);
        progress.store(seen.out.len() as u64, Ordering::Release);
        if slow && seen.out.len() > pause_at {
            pause_at += 1 << 18;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    seen
}

/// Waits until `progress` has passed each part, and kills and restarts the daemon then.
async fn restart_at(daemon: &mut Daemon, progress: &AtomicU64, parts: &[usize]) {
    for part in parts {
        let wanted = (mebibytes() * part / 8) << 20;
        eventually("so much has been read", || async {
            (progress.load(Ordering::Acquire) >= wanted as u64).then_some(())
        })
        .await;
        daemon.kill();
        // Long enough for a command to write everything, if nobody held it up.
        tokio::time::sleep(Duration::from_millis(150)).await;
        daemon.launch().await;
    }
}

fn patient(daemon: &Daemon) -> Client {
    daemon.client.clone().with_resume_tries(50)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_output_arrives_although_the_daemon_is_killed_in_the_middle() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    for parts in [&[4][..], &[1, 3, 5, 7]] {
        let progress = Arc::new(AtomicU64::new(0));
        let stream = patient(&daemon).execute_stream(&flood()).await.unwrap();
        let reader = tokio::spawn(read(stream, false, Arc::clone(&progress)));
        restart_at(&mut daemon, &progress, parts).await;
        reader.await.unwrap().check();
    }
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_of_two_readers_gets_all_output_across_a_restart() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    let (fast, slow) = (Arc::new(AtomicU64::new(0)), Arc::default());
    let client = patient(&daemon);
    let stream = client.execute_stream(&flood()).await.unwrap();
    let second = client.events(stream.execution().unwrap(), None).await.unwrap();
    let readers =
        [tokio::spawn(read(stream, false, Arc::clone(&fast))), tokio::spawn(read(second, true, Arc::clone(&slow)))];
    restart_at(&mut daemon, &fast, &[4]).await;
    for reader in readers {
        reader.await.unwrap().check();
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_output_arrives_although_its_reader_is_away_now_and_then() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    for background in [false, true] {
        let request = ExecutionRequest { background, ..flood() };
        let mut stream = daemon.client.execute_stream(&request).await.unwrap();
        let id = stream.execution().unwrap().to_owned();
        let mut seen = Seen::default();
        let mut away_at = 1 << 20;
        while let Some(event) = stream.next().await {
            let (sequence, event) = event.unwrap();
            seen.add(sequence, event);
            if seen.out.len() > away_at && seen.code.is_none() {
                away_at += mebibytes() << 17;
                drop(stream);
                tokio::time::sleep(Duration::from_millis(50)).await;
                stream = daemon.client.events(&id, Some(seen.last)).await.unwrap();
            }
        }
        seen.check();
    }
    daemon.stop().await;
}

/// Reads the body of an answer that was opened by hand, as far as it comes; `None` when nothing could be read.
async fn body(mut stream: UnixStream, at_most: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        bytes.extend_from_slice(&buffer[..length]);
        if bytes.len() > at_most {
            break;
        }
    }
    let begin = crate::support::header_end(&bytes)?;
    assert!(bytes.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&bytes[..begin]));
    // Chunks, of which the last may be cut off.
    let (mut rest, mut body) = (&bytes[begin..], Vec::new());
    while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16).unwrap();
        let chunk = &rest[end + 2..];
        body.extend_from_slice(&chunk[..size.min(chunk.len())]);
        if size == 0 || chunk.len() < size + 2 {
            break;
        }
        rest = &chunk[size + 2..];
    }
    Some(body)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raw_output_arrives_across_breaks_and_a_restart() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    let request = serde_json::to_vec(&flood()).unwrap();
    let headers = [("content-type", "application/json"), ("accept", "application/octet-stream")];
    let stream = daemon.open("POST /v1/executions", &headers, &request).await;
    let id = eventually("it runs", || async { daemon.client.executions().await.unwrap().pop() }).await.id;
    let mut all = body(stream, 3 << 20).await.unwrap();
    let mut turn = 0;
    while all.len() < expected().len() {
        turn += 1;
        if turn == 2 {
            daemon.kill();
            daemon.launch().await;
        }
        let stream = daemon.open(&format!("GET /v1/executions/{id}/stdout?offset={}", all.len()), &[], b"").await;
        all.extend(body(stream, (mebibytes() / 4) << 20).await.unwrap());
    }
    assert!(all == expected(), "{} bytes of {}", all.len(), expected().len());
    let exit = eventually("it ends", || async { daemon.client.execution(&id).await.unwrap().exit }).await;
    assert_eq!(exit.code, Some(5));
    daemon.stop().await;
}

#[tokio::test]
async fn a_reader_that_never_comes_back_is_waited_for_and_then_not_any_more() {
    // Less than the flood is anywhere, so that something has to be dropped in the end.
    let change = |setup: crate::support::Setup| {
        setup.pool(1).set("execution.reconnect_grace_ms", 2500).set("execution.output_bytes", 2 << 20)
    };
    let mut daemon = Daemon::start(change).await;
    let request = ExecutionRequest { background: true, ..flood() };
    let mut stream = daemon.client.execute_stream(&request).await.unwrap();
    let id = stream.execution().unwrap().to_owned();
    stream.next().await.unwrap().unwrap();
    drop(stream);
    // The wait is one wait, whoever the daemon is.
    let begun = std::time::Instant::now();
    let mut restarts = 0;
    let exit = loop {
        if let Some(exit) = daemon.client.execution(&id).await.unwrap().exit {
            break exit;
        }
        tokio::time::sleep(Duration::from_millis(700)).await;
        assert!(begun.elapsed() < crate::support::PATIENCE, "it waits anew in each daemon");
        daemon.kill();
        daemon.launch().await;
        restarts += 1;
    };
    assert_eq!((exit.reason, exit.code), (ExitReason::Exited, Some(5)));
    assert!(restarts >= 2, "it did not wait for its reader");
    let mut stream = daemon.client.events(&id, None).await.unwrap();
    // What was dropped is said, wherever in the stream that is.
    let mut gaps = 0;
    while let Some(event) = stream.next().await {
        gaps += u32::from(matches!(event.unwrap().1, Event::Gap(_)));
    }
    assert!(gaps > 0, "the flood is more than is kept");
    daemon.stop().await;
}

#[tokio::test]
async fn what_fits_is_kept_however_small_its_pieces_are() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("execution.output_bytes", 1 << 20)).await;
    // Each line is a write of its own, and there is nobody who reads.
    let lines = 20_000;
    let script = format!("i=0; while [ $i -lt {lines} ]; do echo line $i; i=$((i+1)); done");
    let id = daemon.client.create(&shell(&script)).await.unwrap().id;
    eventually("it ends", || async { daemon.client.execution(&id).await.unwrap().exit }).await;
    let outcome = crate::support::Outcome::of(daemon.client.events(&id, None).await.unwrap()).await.exited(0);
    let expected: String = (0..lines).map(|line| format!("line {line}\n")).collect();
    assert!(outcome.text() == expected, "{} bytes of {}", outcome.stdout.len(), expected.len());
    daemon.stop().await;
}
