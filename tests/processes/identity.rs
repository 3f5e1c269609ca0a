//! thaw-init is out of reach for every user of an image, root included, and forgets what it was told.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};

use rustix::process::{Pid, Resource, Rlimit, Uid, prlimit};
use rustix::thread::set_thread_res_uid;
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

#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_changes_of_itself_ends_with_it() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let sandbox = house.sandbox("s-1").await;
    let init = house.init_of(&sandbox);
    let settings = |pid: i32| {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let stat = read("stat");
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        let status = read("status");
        let of_status =
            |line: &&str| ["Umask", "Sig", "Cap", "NoNew", "Seccomp"].iter().any(|name| line.starts_with(name));
        let lines: Vec<&str> = status.lines().filter(of_status).collect();
        // Priority, nice value, policy (proc_pid_stat(5), fields 18, 19 and 41).
        let scheduling = (fields[15], fields[16], fields[38]);
        format!("{} {scheduling:?} {} {} {lines:?}", read("timerslack_ns"), read("oom_score_adj"), read("limits"))
    };
    let before = settings(init);
    // It is not dumpable: its files are not its own, but the container's root's, whom nobody lets near it either.
    let map = fs::read_to_string(format!("/proc/{init}/uid_map")).unwrap();
    let root: u32 = map.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(format!("/proc/{init}/mem")).unwrap()), root);

    let lower = |resource: i32| vec![n(0), n(resource), Value::Data([7u64, 7].map(u64::to_ne_bytes).concat()), n(0)];
    let mut changing = Program::default();
    for (number, arguments) in [
        (libc::SYS_umask, vec![n(0)]),
        (libc::SYS_prctl, vec![n(libc::PR_SET_TIMERSLACK), n(1), n(0), n(0), n(0)]),
        (libc::SYS_prctl, vec![n(libc::PR_SET_DUMPABLE), n(0), n(0), n(0), n(0)]),
        (libc::SYS_setpriority, vec![n(0), n(0), n(7)]),
        (libc::SYS_personality, vec![n(0x2_0000)]),
        (libc::SYS_sched_setscheduler, vec![n(0), n(libc::SCHED_BATCH), Value::Data(vec![0; 4])]),
        (libc::SYS_ioprio_set, vec![n(1), n(0), n(3 << 13)]),
        (libc::SYS_prlimit64, lower(libc::RLIMIT_NPROC as i32)),
        (libc::SYS_prlimit64, lower(libc::RLIMIT_SIGPENDING as i32)),
        // Ignored from now on: struct sigaction with SIG_IGN (rt_sigaction(2)).
        (
            libc::SYS_rt_sigaction,
            vec![n(libc::SIGTERM), Value::Data([1u64, 0, 0, 0].map(u64::to_ne_bytes).concat()), n(0), n(8)],
        ),
        (libc::SYS_rt_sigprocmask, vec![n(libc::SIG_BLOCK), Value::Data(vec![0xff; 8]), n(0), n(8)]),
    ] {
        changing.call(number, &arguments);
    }
    let command = script(changing.request().command.unwrap().last().unwrap());
    let results = changing.results(&bytes(&sandbox, &command).await);
    assert!(results.iter().all(|result| *result >= 0), "it may do all of that to itself: {results:?}");
    assert_eq!(results[0], 0o22);
    assert_eq!(settings(init), before, "thaw-init is as it was");

    let mut reading = Program::default();
    reading.call(libc::SYS_umask, &[n(0)]);
    reading.call(libc::SYS_prctl, &[n(libc::PR_GET_TIMERSLACK), n(0), n(0), n(0), n(0)]);
    reading.call(libc::SYS_prctl, &[n(libc::PR_GET_DUMPABLE), n(0), n(0), n(0), n(0)]);
    reading.call(libc::SYS_getpriority, &[n(0), n(0)]);
    reading.call(libc::SYS_personality, &[n(-1)]);
    reading.call(libc::SYS_sched_getscheduler, &[n(0)]);
    reading.call(libc::SYS_ioprio_get, &[n(1), n(0)]);
    let command = script(reading.request().command.unwrap().last().unwrap());
    let results = reading.results(&bytes(&sandbox, &command).await);
    assert_eq!(results, [0o22, 50_000, 1, 20, 0, 0, 0], "the next command begins as the first did");
    let status = run(&sandbox, "exec cat /proc/self/status").await.stdout;
    for set in ["SigBlk", "SigIgn"] {
        let line = status.lines().find(|line| line.starts_with(set)).unwrap();
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
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
    // What root of an image could do before: no descriptor may be polled any more. Whoever owns the user namespace may.
    let map = fs::read_to_string(format!("/proc/{init}/uid_map")).unwrap();
    let owner: u32 = map.split_whitespace().nth(1).unwrap().parse().unwrap();
    set_thread_res_uid(Uid::ROOT, Uid::from_raw(owner), Uid::ROOT).unwrap();
    let limited = prlimit(Pid::from_raw(init), Resource::Nofile, Rlimit { current: Some(0), maximum: Some(0) });
    set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).unwrap();
    limited.unwrap();
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
