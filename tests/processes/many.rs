//! Many commands in one container, at once and one after another.

use std::time::Duration;

use thaw_wire::MAX_PROCESSES;
use thawd::container::{Command, ContainerError, Rlimit};

use crate::house::{Address, House, Run, run, script};
use crate::support::PATIENCE;

/// Of twenty, the one that has a terminal.
const TERMINAL: usize = 3;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_commands_at_once_and_a_thousand_one_after_another_each_have_their_own_end() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let mut long = Vec::new();
    for number in 0..20 {
        // The first uses the processor, the second memory; each has an output and an exit code of its own.
        let work = match number {
            0 => "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done;",
            1 => "x=$(head -c 20000000 /dev/zero | tr '\\0' x);",
            _ => "",
        };
        let text = format!(
            "echo begin {number}; {work} until [ -e go ]; do sleep 0.05; done; echo end {number}; \
             echo error {number} >&2; exit {}",
            100 + number
        );
        long.push(match number {
            TERMINAL => Run::in_terminal(&sandbox, &script(&text)).await,
            _ => Run::start(&sandbox, &script(&text)).await,
        });
    }
    for run in &long {
        run.process.started().await.unwrap();
    }
    for number in 0..1000 {
        let ended = run(&sandbox, &format!("echo short {number}; exit {}", number % 100)).await;
        assert_eq!((ended.code(), ended.stdout), (number % 100, format!("short {number}\n")));
    }
    // One is killed, one has a time limit: the others notice nothing of it.
    long[5].process.signal(libc::SIGKILL).unwrap();
    assert!(tokio::time::timeout(Duration::from_millis(50), long[6].process.ended()).await.is_err(), "it goes on");
    long[6].process.signal(libc::SIGTERM).unwrap();
    for number in [5, 6] {
        tokio::time::timeout(PATIENCE, long[number].process.ended()).await.unwrap().unwrap().unwrap();
    }
    assert_eq!(run(&sandbox, "touch go").await.code(), 0);
    let mut used = Vec::new();
    for (number, run) in long.into_iter().enumerate() {
        let ended = run.ended().await;
        used.push((ended.exited.cpu, ended.exited.max_rss_bytes));
        match number {
            5 => assert_eq!((ended.signal(), ended.stdout.as_str()), (libc::SIGKILL, "begin 5\n")),
            6 => assert_eq!((ended.signal(), ended.stdout.as_str()), (libc::SIGTERM, "begin 6\n")),
            // What it shows: both streams, with the ends of lines of a terminal.
            TERMINAL => {
                let shown = format!("begin {number}\r\nend {number}\r\nerror {number}\r\n");
                assert_eq!((ended.code(), ended.stdout), (100 + number as i32, shown));
            }
            _ => {
                assert_eq!(ended.stdout, format!("begin {number}\nend {number}\n"));
                assert_eq!(ended.stderr, format!("error {number}\n"));
                assert_eq!(ended.code(), 100 + number as i32);
            }
        }
    }
    // What each has used is its own.
    let (first, second, quiet) = (used[0], used[1], used[10]);
    assert!(second.1 > quiet.1 + (15 << 20), "memory of the second: {used:?}");
    assert!(first.0 > Duration::ZERO && first.1 < 15 << 20, "the first: {used:?}");
    drop(sandbox);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_has_a_user_groups_and_limits_of_its_own() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let command = script("id -u; id -g; id -G; ulimit -n; ulimit -Hn");
    let ended = Run::start(&sandbox, &command).await.ended().await;
    assert_eq!(ended.stdout, "1000\n1000\n1000\n512\n512\n");
    let nofile = |soft, hard| Rlimit { resource: libc::RLIMIT_NOFILE, soft, hard };
    let other = Command { user: 7, group: 8, groups: vec![29, 44], rlimits: vec![nofile(20, 30)], ..command.clone() };
    let ended = Run::start(&sandbox, &other).await.ended().await;
    assert_eq!(ended.stdout, "7\n8\n8 29 44\n20\n30\n");
    // Nobody gets more than the container has.
    let more = Command { rlimits: vec![nofile(513, 513)], ..command };
    let run = Run::start(&sandbox, &more).await;
    let error = run.process.started().await.unwrap_err();
    assert!(matches!(&error, ContainerError::Start { errno: libc::EPERM, .. }), "{error:?}");
    assert!(error.to_string().contains("resource limit"), "{error}");
    drop(sandbox);
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_commands_than_thaw_init_watches_are_refused_and_the_others_go_on() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let mut running = Vec::new();
    for _ in 0..MAX_PROCESSES {
        let run = Run::start(&sandbox, &script("exec sleep 1000")).await;
        run.process.started().await.unwrap();
        running.push(run);
    }
    let refused = Run::start(&sandbox, &script("true")).await;
    let error = refused.process.started().await.unwrap_err();
    assert!(error.to_string().contains(&format!("{MAX_PROCESSES} run in this container already")), "{error}");
    running[7].process.signal(libc::SIGTERM).unwrap();
    running.remove(7).ended().await;
    assert_eq!(run(&sandbox, "echo room").await.stdout, "room\n");
    drop(sandbox);
    for run in running {
        assert_eq!(run.process.ended().await.unwrap(), None, "they end with their container");
    }
    house.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_is_frozen_takes_commands_and_runs_them_when_it_thaws() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let before = run(&sandbox, "echo before").await;
    sandbox.freeze().await.unwrap();
    assert!(sandbox.is_frozen().unwrap());
    let waiting = Run::start(&sandbox, &script("echo after")).await;
    assert!(tokio::time::timeout(Duration::from_millis(100), waiting.process.started()).await.is_err());
    sandbox.thaw().unwrap();
    assert_eq!((before.stdout.as_str(), waiting.ended().await.stdout.as_str()), ("before\n", "after\n"));
    // It is never listed as an execution's.
    let [listed] = house.containers.list().try_into().unwrap();
    assert_eq!(listed.execution, None);
    drop(sandbox);
    house.close().await;
}
