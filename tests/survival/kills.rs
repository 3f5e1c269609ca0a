//! The daemon is killed again and again, at random moments, under load. Nothing may be lost, repeated or left behind.
//!
//! `THAWD_KILLS` says how often (300), `THAWD_KILL_SEED` begins the same sequence of requests and pauses once more.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use thawd::types::{ContainerState, Credentials, Event, ExecutionRequest, ExitReason, Secret};

use super::strict::{NotAccepted, Seen, Strict};
use crate::support::{Daemon, bytes, eventually, open_files, prompt, shell};

/// Requests at the same time.
const WORKERS: u64 = 5;

/// Kills between two looks at everything while nothing runs.
const ROUND: u64 = 25;

/// Lines that a long command counts.
const LINES: u64 = 300;

/// A CLI that speaks claude's dialect, a word for each of 40 lines, with the size of its prompt at the end.
const TALK: &str = r#"
name = "talk"
image = "test"
home = "/home/runtime"
pool_target = 2
egress = []
[command]
argv = ["sh", "-c", "SCRIPT"]
prompt = "stdin"
dialect = "claude-stream-json"
[models]
default = "one"
allowed = ["one"]
[credentials]
dir = ".talk"
required = false
tmpfs_mib = 1
[resources.idle]
memory_mib = 64
cpu = 0.1
[resources.run]
memory_mib = 128
cpu = 1.0
"#;

const TALK_SCRIPT: &str = r#"
size=$(wc -c); i=0
say() { echo '{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"'$1' "}}}'; }
while [ $i -lt 40 ]; do say word$i; i=$((i+1)); sleep 0.005; done
say $size
echo '{"type":"result","subtype":"success","is_error":false,"result":"x"}'
"#;

/// SplitMix64 (Steele, Lea, Flood 2014): the same seed, the same requests.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Short,
    Counting,
    Burst,
    Secret,
    Talk,
    TimeLimit,
    NoProgram,
}

const KINDS: [Kind; 7] =
    [Kind::Short, Kind::Counting, Kind::Burst, Kind::Secret, Kind::Talk, Kind::TimeLimit, Kind::NoProgram];

fn request(kind: Kind, token: &str) -> ExecutionRequest {
    match kind {
        Kind::Short => shell("echo short; echo err >&2; exit 5"),
        Kind::Counting => shell(&format!(
            "i=0; while [ $i -lt {LINES} ]; do echo out $i; echo err $i >&2; i=$((i+1)); sleep 0.002; done; exit 6"
        )),
        // More than the pipe holds, and less than the log.
        Kind::Burst => shell("i=0; while [ $i -lt 2000 ]; do echo $i:$(printf '%0200d' $i); i=$((i+1)); done"),
        Kind::Secret => ExecutionRequest {
            credentials: Some(Credentials {
                files: [("token".to_owned(), Secret::new(token.to_owned()))].into(),
                env: Default::default(),
            }),
            ..shell("sleep 0.02; cat ~/.test/token; ls -A ~/.test | wc -l; ls -A /tmp | wc -l")
        },
        Kind::Talk => prompt("talk", &"x".repeat(200_000)),
        Kind::TimeLimit => ExecutionRequest { timeout_ms: Some(150), ..shell("echo begun; sleep 1000") },
        Kind::NoProgram => crate::support::command(["/no/such/program"]),
    }
}

fn check(kind: Kind, token: &str, seen: &Seen) {
    let out = String::from_utf8(bytes(&seen.events, false)).unwrap();
    let err = String::from_utf8(bytes(&seen.events, true)).unwrap();
    let Some((_, Event::Exit(exit))) = seen.events.last() else { panic!("{seen:?}") };
    let starts = seen.events.iter().filter(|(_, event)| matches!(event, Event::Started(_))).count();
    let context = || format!("{kind:?} {} {exit:?}\n{err}", seen.id);
    assert_eq!(starts, 1, "{}", context());
    let ended = |reason, code| assert_eq!((exit.reason, exit.code), (reason, code), "{}", context());
    match kind {
        Kind::Short => {
            ended(ExitReason::Exited, Some(5));
            assert_eq!((&*out, &*err), ("short\n", "err\n"), "{}", context());
        }
        Kind::Counting => {
            ended(ExitReason::Exited, Some(6));
            let lines = |word| (0..LINES).map(|number| format!("{word} {number}\n")).collect::<String>();
            assert!(out == lines("out") && err == lines("err"), "{} {out}", context());
        }
        Kind::Burst => {
            ended(ExitReason::Exited, Some(0));
            let expected: String = (0..2000).map(|number| format!("{number}:{number:0200}\n")).collect();
            assert!(out == expected, "{}: {} bytes of {}", context(), out.len(), expected.len());
        }
        Kind::Secret => {
            ended(ExitReason::Exited, Some(0));
            assert_eq!(out, format!("{token}1\n0\n"), "its own credential and nobody else's: {}", context());
        }
        Kind::Talk => {
            ended(ExitReason::Exited, Some(0));
            assert!(exit.success, "{}", context());
            let deltas = seen.events.iter().filter_map(|(_, event)| match event {
                Event::Delta(delta) => Some(delta.text.as_str()),
                _ => None,
            });
            let words: String = (0..40).map(|number| format!("word{number} ")).collect();
            assert_eq!(deltas.collect::<String>(), words + "200000 ", "{}", context());
        }
        Kind::TimeLimit => {
            assert_eq!(exit.reason, ExitReason::Timeout, "{}", context());
            assert_eq!(out, "begun\n", "{}", context());
        }
        Kind::NoProgram => {
            ended(ExitReason::Exited, Some(127));
            assert_eq!(err.matches("thawd:").count(), 1, "{}", context());
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    executions: AtomicU64,
    bytes: AtomicU64,
    events: AtomicU64,
    reconnections: AtomicU64,
    unanswered: AtomicU64,
    refused: AtomicU64,
}

async fn work(strict: Strict, mut random: Random, counts: Arc<Counts>, pause: Arc<AtomicBool>) {
    while !pause.load(Ordering::Acquire) {
        let kind = KINDS[random.below(KINDS.len() as u64) as usize];
        let token = format!("token-{:x}\n", random.next());
        let stream = random.below(2) == 0;
        match strict.run(&request(kind, &token), stream).await {
            Ok(seen) => {
                check(kind, &token, &seen);
                let add = |counter: &AtomicU64, count: u64| counter.fetch_add(count, Ordering::Relaxed);
                add(&counts.executions, 1);
                add(&counts.events, seen.events.len() as u64);
                add(&counts.bytes, (bytes(&seen.events, false).len() + bytes(&seen.events, true).len()) as u64);
                add(&counts.reconnections, seen.reconnections);
            }
            Err(NotAccepted::Broken) => {
                counts.unanswered.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            Err(NotAccepted::Refused(status, why)) => {
                // Too much at once, or a daemon that is about to be killed; never because of the request.
                assert!(matches!(status, 409 | 429 | 503), "{status} {why}");
                counts.refused.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }
}

/// The names of the cgroups of containers.
fn cgroups(daemon: &Daemon) -> BTreeSet<String> {
    let directories = daemon.cgroups().into_iter().filter_map(|base| fs::read_dir(base).ok());
    let names = directories.flatten().flatten().filter(|entry| entry.path().is_dir());
    names.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| name != "keeper").collect()
}

/// Every cgroup belongs to a container that the daemon knows.
async fn no_stranger(daemon: &Daemon) {
    eventually("every cgroup is a known container's", || async {
        let before = cgroups(daemon);
        let known: BTreeSet<String> = daemon.containers().await.into_iter().map(|container| container.id).collect();
        let after = cgroups(daemon);
        // One that was removed meanwhile was known.
        before.intersection(&after).all(|name| known.contains(name)).then_some(())
    })
    .await;
}

/// Nothing runs, and nothing is left of what did. Returns the descriptors of the daemon and of the keeper, but for those
/// of the executions that are kept.
async fn nothing_left(daemon: &Daemon) -> (usize, usize) {
    eventually("what nobody was told of ends too", || async {
        let executions = daemon.client.executions().await.unwrap();
        executions.iter().all(|execution| execution.exit.is_some()).then_some(())
    })
    .await;
    let known = eventually("both pools are full, and nothing else is there", || async {
        let pools = daemon.client.pools().await.unwrap();
        let containers = daemon.containers().await;
        let full = pools.iter().all(|pool| pool.warm == pool.target && pool.creating == 0);
        let warm = containers.iter().all(|container| container.state == ContainerState::Warm && container.frozen);
        let wanted: usize = pools.iter().map(|pool| pool.target).sum();
        (full && warm && containers.len() == wanted).then_some(containers)
    })
    .await;
    let ids: BTreeSet<String> = known.iter().map(|container| container.id.clone()).collect();
    assert_eq!(cgroups(daemon), ids, "cgroups");
    let family: BTreeSet<i32> = known.iter().filter_map(|container| container.pid).collect();
    let keeper = daemon.keeper().expect("there is a keeper").pid;
    // Children of a daemon that was killed are for this machine's init to reap.
    eventually("nobody else is in the cgroups", || async {
        let all = crate::support::processes_in_cgroup(daemon.cgroup_name());
        all.iter().all(|process| family.contains(&process.pid) || process.pid == keeper).then_some(())
    })
    .await;
    let mounts = crate::support::mounts_below(daemon.path("").to_str().unwrap());
    assert!(mounts.is_empty(), "mounts: {mounts:?}");
    let mut files: Vec<_> = fs::read_dir(daemon.path("run")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    files.sort();
    assert_eq!(files, ["keeper.sock", "thawd.sock"], "run directory");
    let kept = daemon.client.executions().await.unwrap().len();
    let beside_output = |pid| open_files(pid).len().checked_sub(3 * kept).expect("each has three files");
    (beside_output(daemon.pid()), beside_output(keeper))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_nothing_is_lost_or_left() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let kills = number("THAWD_KILLS").unwrap_or(300);
    let seed = number("THAWD_KILL_SEED")
        .unwrap_or_else(|| rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_nsec as u64);
    println!("seed: THAWD_KILL_SEED={seed}");
    let mut random = Random(seed);
    let talk = TALK.replace("\"SCRIPT\"", &toml::Value::from(TALK_SCRIPT).to_string());
    let mut daemon = Daemon::start(|setup| {
        setup
            .pool(3)
            .add_provider(&talk)
            .set("container.max", 24)
            .set("execution.reconnect_grace_ms", 10_000)
            .set("execution.disconnect_grace_ms", 10_000)
            .set("execution.retention_seconds", 3600)
            .set("log.filter", "thawd=info")
    })
    .await;
    let counts = Arc::new(Counts::default());
    let mut baseline: Option<(usize, usize)> = None;
    let mut done = 0;
    while done < kills {
        let pause = Arc::new(AtomicBool::new(false));
        let strict = Strict::new(&daemon.socket());
        let workers: Vec<_> = (0..WORKERS)
            .map(|_| tokio::spawn(work(strict.clone(), Random(random.next()), Arc::clone(&counts), Arc::clone(&pause))))
            .collect();
        for _ in 0..ROUND.min(kills - done) {
            // From while it is still starting pools, to well within the load.
            tokio::time::sleep(Duration::from_micros(random.below(120_000))).await;
            if random.below(10) == 0
                && let Some(spawner) = daemon.spawner()
            {
                kill_process(Pid::from_raw(spawner.pid).unwrap(), Signal::KILL).unwrap();
            }
            daemon.kill();
            if random.below(8) == 0 {
                // What a container does meanwhile, it does alone.
                tokio::time::sleep(Duration::from_millis(random.below(100))).await;
            }
            daemon.launch().await;
            done += 1;
            no_stranger(&daemon).await;
            if let Some(failed) = workers.iter().find(|worker| worker.is_finished()) {
                assert!(!failed.is_finished(), "a worker failed after {done} kills");
            }
        }
        pause.store(true, Ordering::Release);
        for worker in workers {
            worker.await.unwrap();
        }
        let now = nothing_left(&daemon).await;
        let base = *baseline.get_or_insert(now);
        let slack = 6;
        assert!(now.0 <= base.0 + slack && now.1 <= base.1 + slack, "descriptors: {base:?}, now {now:?}");
        println!("{done} kills: {counts:?}, descriptors of daemon and keeper {now:?}");
    }
    let log = daemon.log();
    let sum = |name: &str| -> u64 {
        let numbers = log.lines().filter_map(|line| line.split(name).nth(1)?.split(' ').next()?.parse::<u64>().ok());
        numbers.sum()
    };
    println!(
        "kills {done}, executions gone on with {}, ended ones found {}, lost before they were accepted {}, warm containers adopted {}",
        sum("running="),
        sum("ended="),
        sum("lost="),
        sum("adopted="),
    );
    assert!(sum("running=") > 0 && sum("adopted=") > 0 && counts.reconnections.load(Ordering::Relaxed) > 0);
    daemon.stop().await;
}
