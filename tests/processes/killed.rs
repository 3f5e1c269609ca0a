//! A holder of a container that is killed by SIGKILL: the next one goes on with all of its commands.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command as Program, Stdio as ChildStdio};
use std::sync::Arc;
use std::time::Duration;

use thawd::container::{Process, Sandbox, Stdio, Terminal};
use thawd::keeper::Key;

use crate::house::{self, Address, House, SIZE, run, script, text};
use crate::support::PATIENCE;

const COMMANDS: usize = 20;

/// Commands one after another that the first holder runs beside those, and that the next one does. All of their reports
/// lie behind that of one whose end nobody is told of, of which there may be 1024 (`MAX_LEFT`).
const HALF: i32 = 200;

/// One that has used a lot of memory, and ends while there is no holder.
const LARGE: usize = 12;

/// Those that have a terminal: one ends while nobody is told of it, one goes on.
const WITH_TERMINAL: [usize; 2] = [3, 13];

fn text_of(number: usize) -> String {
    let wait = match number {
        0..8 => "",
        LARGE => "x=$(head -c 20000000 /dev/zero | tr '\\0' x); until [ -e go ]; do sleep 0.05; done;",
        _ => "until [ -e go ]; do sleep 0.05; done;",
    };
    format!("echo begin {number}; {wait} echo end {number}; exit {number}")
}

async fn begin(house: &House, sandbox: &Sandbox, number: usize) -> Process {
    let command = script(&text_of(number)).encode().unwrap();
    let tag = sandbox.next_tag();
    let keep = |fd: &dyn AsFd| {
        let fds = vec![Arc::new(fd.as_fd().try_clone_to_owned().unwrap())];
        house.keeper.put(Key::Unknown(format!(r#"{{"command":{number}}}"#)), format!("{tag} {number}"), fds);
    };
    // Told first, done then.
    if WITH_TERMINAL.contains(&number) {
        let (ours, theirs) = sandbox.terminal(1000, SIZE).unwrap();
        keep(&ours);
        sandbox.start(&command, &Stdio::Terminal([theirs.as_fd()])).await.unwrap()
    } else {
        let (reader, writer) = std::io::pipe().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        keep(&reader);
        sandbox.start(&command, &Stdio::Three([null.as_fd(), writer.as_fd(), writer.as_fd()])).await.unwrap()
    }
}

/// The holder that is killed: this program, started once more by the test below.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "is started by another test"]
async fn the_one_that_is_killed() {
    let Ok(dir) = std::env::var("THAWD_TEST_HOLDER") else { return };
    let house = House::open(&Address::at(Path::new(&dir)));
    let sandbox = house.sandbox("s-1").await;
    let mut running = Vec::new();
    for number in 0..COMMANDS {
        running.push(begin(&house, &sandbox, number).await);
    }
    // Those that end are told of by nobody; the reports of others pass over them.
    for round in 0.. {
        assert_eq!(run(&sandbox, &format!("exit {}", round % 100)).await.code(), round % 100);
        println!("\nround {round} in {}", sandbox.id());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_after_a_killed_holder_goes_on_with_every_command() {
    let (_dir, address) = Address::new();
    let mut child = Program::new(std::env::current_exe().unwrap())
        .args(["--exact", "killed::the_one_that_is_killed", "--ignored", "--nocapture"])
        .env("THAWD_TEST_HOLDER", address.dir())
        .stdout(ChildStdio::piped())
        .spawn()
        .unwrap();
    let mut container = String::new();
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        if let Some(id) = line.unwrap().strip_prefix(&format!("round {HALF} in ")) {
            container = id.to_owned();
            break;
        }
    }
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(!container.is_empty(), "the holder ended before: {status}");

    let mut house = House::open(&address);
    let mut found = Vec::new();
    for (key, kept) in std::mem::take(&mut house.kept) {
        let (tag, number) = kept.note.split_once(' ').unwrap();
        let fd = kept.fds[0].try_clone().unwrap();
        found.push((number.parse::<usize>().unwrap(), tag.parse::<u32>().unwrap(), fd));
        drop(kept);
        house.keeper.forget(&key);
    }
    found.sort_by_key(|(number, ..)| *number);
    assert_eq!(found.len(), COMMANDS);
    let tags: Vec<u32> = found.iter().map(|(_, tag, _)| *tag).collect();
    let orphan = house.orphans.remove(&container).unwrap();
    assert!(orphan.may_be_claimed());
    let (sandbox, processes) = orphan.into_sandbox(("s-1", "u1"), 0, house::egress(), &tags).unwrap();

    // Nothing that is new is taken for something old.
    assert!(tags.iter().all(|tag| *tag < sandbox.next_tag()));
    assert_eq!(run(&sandbox, "echo new; exit 77").await.code(), 77);
    for round in HALF..2 * HALF {
        let ended = run(&sandbox, &format!("echo short {round}; exit {}", round % 100)).await;
        assert_eq!((ended.code(), ended.stdout), (round % 100, format!("short {round}\n")));
    }
    processes[9].signal(libc::SIGKILL).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), processes[10].ended()).await.is_err());
    processes[10].signal(libc::SIGTERM).unwrap();
    for process in &processes[9..11] {
        tokio::time::timeout(PATIENCE, process.ended()).await.unwrap().unwrap().unwrap();
    }
    run(&sandbox, "touch go").await;
    for (process, (number, _, output)) in processes.into_iter().zip(found) {
        let exited = tokio::time::timeout(PATIENCE, process.ended()).await.unwrap().unwrap().unwrap();
        let status = exited.status;
        assert_eq!(exited.max_rss_bytes > 15 << 20, number == LARGE, "its own memory: {number} {exited:?}");
        let (expected, end) = match number {
            9 => (libc::SIGKILL, String::new()),
            10 => (libc::SIGTERM, String::new()),
            _ => ((number as i32) << 8, format!("end {number}\n")),
        };
        assert_eq!(status, expected, "{number}");
        let shown = if WITH_TERMINAL.contains(&number) { screen(output).await } else { text(output).await };
        assert_eq!(shown.replace('\r', ""), format!("begin {number}\n{end}"));
    }
    drop(sandbox);
    house.close().await;
}

/// What a terminal shows to its end, which is an error (EIO).
async fn screen(terminal: OwnedFd) -> String {
    let terminal = Terminal::adopt(terminal);
    let read = tokio::task::spawn_blocking(move || {
        let (mut shown, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(length @ 1..) = rustix::io::read(&terminal, &mut buffer) {
            shown.extend_from_slice(&buffer[..length]);
        }
        String::from_utf8(shown).unwrap()
    });
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap()
}
