//! What comes out of a command comes out of the stream: all of it, in order, while the command runs.

use std::time::Duration;

use thaw_client::client::EventStream;
use thaw_client::types::{Encoding, Event, ExecutionState, ExitReason};

use crate::support::{Daemon, Outcome, command, in_bed, resident_bytes, shell};

/// Reads until a piece of standard output ends with `end`.
async fn read_until(stream: &mut EventStream, end: &str) -> Vec<(u64, Event)> {
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event.unwrap());
        if matches!(&events.last().unwrap().1, Event::Stdout(output) if output.data.ends_with(end)) {
            return events;
        }
    }
    panic!("{end:?} never came: {events:?}");
}

#[tokio::test]
async fn lines_arrive_while_the_command_runs() {
    let daemon = Daemon::start(|setup| setup).await;
    // It goes on for ever: what arrives before it is cancelled has not waited for its end.
    let script = "trap 'echo three; exit 0' TERM; echo one; sleep 0.3; echo two; while :; do sleep 0.1; done";
    let mut stream = daemon.client.execute_stream(&shell(script)).await.unwrap();
    let id = stream.execution().unwrap().to_owned();
    let mut events = read_until(&mut stream, "one\n").await;
    assert!(matches!(events[0].1, Event::Started(_)));
    events.extend(read_until(&mut stream, "two\n").await);
    assert_eq!(daemon.client.execution(&id).await.unwrap().state, ExecutionState::Running);
    daemon.client.cancel(&id).await.unwrap();
    events.extend(read_until(&mut stream, "three\n").await);
    while let Some(event) = stream.next().await {
        events.push(event.unwrap());
    }
    let outcome = Outcome::from_events(events).ended(ExitReason::Cancelled);
    assert_eq!(outcome.text(), "one\ntwo\nthree\n");
    daemon.stop().await;
}

#[tokio::test]
async fn standard_output_and_error_are_told_apart() {
    let daemon = Daemon::start(|setup| setup).await;
    let outcome = daemon.sh("for i in 1 2 3; do echo out $i; echo err $i >&2; done").await.exited(0);
    assert_eq!(outcome.text(), "out 1\nout 2\nout 3\n");
    assert_eq!(outcome.errors(), "err 1\nerr 2\nerr 3\n");
    let silent = daemon.run(&command(["true"])).await.exited(0);
    assert_eq!(silent.events.len(), 2, "started and exit only: {:?}", silent.events);
    daemon.stop().await;
}

#[tokio::test]
async fn bytes_that_are_no_text_arrive_as_they_are() {
    let daemon = Daemon::start(|setup| setup).await;
    let all = (0..=255u8).map(|byte| format!("\\{byte:03o}")).collect::<String>();
    let outcome = daemon.run(&command(["printf", &all])).await.exited(0);
    assert_eq!(outcome.stdout, (0..=255).collect::<Vec<u8>>());
    let encoded = outcome
        .events
        .iter()
        .any(|(_, event)| matches!(event, Event::Stdout(output) if output.encoding == Some(Encoding::Base64)));
    assert!(encoded);
    // What could break out of an event's frame: line ends of every kind, a field's name, an empty line.
    let tricky = "a\r\nb\rc\n\ndata: x\nid: 7\n\nevent: exit\n: comment\n\u{2028}\0end";
    let octal: String = tricky.bytes().map(|byte| format!("\\{byte:03o}")).collect();
    let outcome = daemon.run(&command(["printf", &octal])).await.exited(0);
    assert_eq!(outcome.text(), tricky);
    daemon.stop().await;
}

#[tokio::test]
async fn a_character_in_two_writes_is_one_character() {
    let daemon = Daemon::start(|setup| setup).await;
    let outcome = daemon.sh("printf 'a\\342'; sleep 0.2; printf '\\202'; sleep 0.2; printf '\\254b'").await.exited(0);
    assert_eq!(outcome.text(), "a€b");
    for (_, event) in &outcome.events {
        assert!(!matches!(event, Event::Stdout(output) if output.encoding.is_some()), "{event:?}");
    }
    let unfinished = daemon.sh("printf 'a\\342\\202'").await.exited(0);
    assert_eq!(unfinished.stdout, b"a\xe2\x82", "what is never completed is not lost");
    daemon.stop().await;
}

#[tokio::test]
async fn a_large_output_arrives_whole() {
    let mebibytes = if in_bed() { 8 } else { 64 };
    let daemon = Daemon::start(|setup| setup.set("execution.output_bytes", 160 << 20)).await;
    let lines = mebibytes * (1 << 20) / 16;
    // 16 bytes a line, so that the position of each is known.
    let mut request = shell(&format!(
        "seq -f %015.0f 1 {lines} 2>/dev/null || awk 'BEGIN {{ for (i = 1; i <= {lines}; i++) printf \"%015d\\n\", i }}'"
    ));
    request.timeout_ms = Some(300_000);
    let outcome = daemon.run(&request).await.exited(0);
    assert_eq!(outcome.stdout.len(), lines * 16);
    for (index, line) in outcome.stdout.chunks(16).enumerate() {
        assert_eq!(line, format!("{:015}\n", index + 1).as_bytes());
    }
    daemon.stop().await;
}

#[tokio::test]
async fn output_beyond_the_limit_is_trimmed_and_said_to_be() {
    let limit = 64 << 10;
    let daemon = Daemon::start(|setup| setup.set("execution.output_bytes", limit)).await;
    let before = resident_bytes(daemon.pid());
    let script = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); head -c 20000 /dev/zero | tr '\\0' x; done; echo; echo end";
    let mut request = shell(script);
    request.timeout_ms = Some(120_000);
    let id = daemon.client.create(&request).await.unwrap().id;
    loop {
        if daemon.client.execution(&id).await.unwrap().state == ExecutionState::Exited {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut stream = daemon.client.events(&id, None).await.unwrap();
    let (first, event) = stream.next().await.unwrap().unwrap();
    let Event::Gap(gap) = event else { panic!("no gap first: {event:?}") };
    assert_eq!((gap.from, gap.to), (1, first), "everything up to here is gone");
    let (mut expected, mut kept, mut last) = (first + 1, 0, None);
    while let Some(event) = stream.next().await {
        let (sequence, event) = event.unwrap();
        assert_eq!(sequence, expected);
        expected += 1;
        if let Event::Stdout(output) = &event {
            kept += output.data.len();
        }
        last = Some(event);
    }
    assert!(matches!(last, Some(Event::Exit(_))), "the exit is never trimmed");
    assert!(kept > 0 && kept <= limit as usize, "{kept} bytes kept");
    // Resuming behind the gap does not say it again.
    let (next, event) = daemon.client.events(&id, Some(first)).await.unwrap().next().await.unwrap().unwrap();
    assert_eq!(next, first + 1);
    assert!(!matches!(event, Event::Gap(_)));
    let grown = resident_bytes(daemon.pid()).saturating_sub(before);
    assert!(grown < 8 << 20, "8 MB of output grew the daemon by {grown} bytes");
    daemon.stop().await;
}
