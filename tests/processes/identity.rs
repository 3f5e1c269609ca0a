//! thaw-init is out of reach for every user of an image, root included, and forgets what it was told.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use thaw_wire::INIT_ID;
use thawd::container::{Command, ContainerError, Sandbox};

use crate::house::{Address, House, Run, run, script};
use crate::support::{PATIENCE, Process, Program, Value};

fn n(number: i32) -> Value {
    number.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn root_of_an_image_cannot_reach_thaw_init() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let none = Value::Data(vec![0; 16]);
    let calls = [
        ("limit its open files", libc::SYS_prlimit64, vec![n(1), n(libc::RLIMIT_NOFILE as i32), none.clone(), n(0)]),
        ("signal it", libc::SYS_kill, vec![n(1), n(0)]),
        ("renice it", libc::SYS_setpriority, vec![n(0), n(1), n(10)]),
        ("pin it", libc::SYS_sched_setaffinity, vec![n(1), n(8), Value::Data(1u64.to_ne_bytes().to_vec())]),
        ("trace it", libc::SYS_ptrace, vec![n(16), n(1), n(0), n(0)]),
        ("become it", libc::SYS_setuid, vec![n(INIT_ID as i32)]),
    ];
    let mut program = Program::default();
    for (_, number, arguments) in &calls {
        program.call(*number, arguments);
    }
    let mut command = script(program.request().command.unwrap().last().unwrap());
    (command.user, command.group) = (0, 0);
    let stdout = bytes(&sandbox, &command).await;
    for ((what, ..), result) in calls.iter().zip(program.results(&stdout)) {
        assert_eq!(result, -i64::from(libc::EPERM), "{what}");
    }
    command.argv[2] = "id -u; ls -d /proc/1; grep Cap /proc/self/status".to_owned();
    let ended = Run::start(&sandbox, &command).await.ended().await;
    let lines: Vec<_> = ended.stdout.lines().collect();
    assert_eq!((lines[0], lines.len()), ("0", 6), "{ended:?}");
    assert!(lines[1..].iter().all(|line| line.ends_with("\t0000000000000000")), "no capability in any set: {ended:?}");
    assert!(ended.stderr.contains("No such file"), "{ended:?}");
    // And nobody is started as it.
    for (user, group, groups) in [(INIT_ID, 0, vec![]), (0, INIT_ID, vec![]), (0, 0, vec![5, INIT_ID])] {
        let command = Command { user, group, groups, ..script("true") };
        let refused = Run::start(&sandbox, &command).await.process.started().await;
        assert!(matches!(refused, Err(ContainerError::Start { errno: libc::EPERM, .. })), "{refused:?}");
    }
    assert_eq!(run(&sandbox, "echo still there").await.stdout, "still there\n");
    drop(sandbox);
    house.close().await;
}

async fn bytes(sandbox: &Sandbox, command: &Command) -> Vec<u8> {
    let Run { process, stdout, .. } = Run::start(sandbox, command).await;
    let read = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        File::from(stdout).read_to_end(&mut bytes).unwrap();
        bytes
    });
    tokio::time::timeout(PATIENCE, process.ended()).await.unwrap().unwrap().unwrap();
    read.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thaw_init_that_cannot_listen_ends_its_container_instead_of_spinning() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let running = Run::start(&sandbox, &script("exec sleep 1000")).await;
    running.process.started().await.unwrap();
    let init = house.init_of(&sandbox);
    // What root of an image could do before: no descriptor may be polled any more.
    prlimit(Pid::from_raw(init), Resource::Nofile, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
    running.process.signal(libc::SIGWINCH).unwrap();
    let ended = tokio::time::timeout(PATIENCE, running.process.ended()).await.expect("it is told");
    assert_eq!(ended.unwrap(), None, "the container ended");
    let process = Process::now(init);
    drop(sandbox);
    house.close().await;
    assert!(process.is_none_or(|process| !process.exists()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_refused_leaves_nothing_in_memory() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let init = house.init_of(&sandbox);
    // Put together here, so that it stands nowhere else.
    let secret = ["sk", "of", "a", "refused", "command"].join("-");
    let with_secret = |command: Command| {
        let mut command = command;
        command.env.push(("KEY".to_owned(), secret.clone()));
        command
    };
    let refused = [
        Command { user: INIT_ID, ..script("true") },
        Command { cwd: "/no/such/place".to_owned(), ..script("true") },
        Command { argv: vec!["no-such-program".to_owned()], ..script("true") },
    ];
    for command in refused {
        Run::start(&sandbox, &with_secret(command)).await.process.started().await.unwrap_err();
        assert!(!holds(init, secret.as_bytes()));
    }
    let ran = Run::start(&sandbox, &with_secret(script("echo $KEY"))).await.ended().await;
    assert_eq!(ran.stdout, format!("{secret}\n"));
    assert!(!holds(init, secret.as_bytes()));
    assert!(holds(init, b"/usr/local/sbin:/usr/local/bin"), "its memory was read");
    drop(sandbox);
    house.close().await;
}

/// Whether a process has these bytes in its memory.
fn holds(pid: i32, wanted: &[u8]) -> bool {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let mut memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().filter(|line| !line.contains("[v")).any(|line| {
        let (from, to) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let address = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; usize::try_from(address(to) - address(from)).unwrap()];
        memory.seek(SeekFrom::Start(address(from))).unwrap();
        memory.read_exact(&mut bytes).is_ok() && bytes.windows(wanted.len()).any(|window| window == wanted)
    })
}
