//! One image, one inode? No: containers of one image, and the host, have no file system in common, so that what one does
//! to a file that it may only read is of no consequence to another.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use base64::Engine;
use thawd::container::{Process, Sandbox, Stdio};

use crate::house::{Address, House, run, script};
use crate::support::{Program, Value};

/// Files of an image that all its containers have, and devices that all containers have.
const FILES: [&std::ffi::CStr; 3] = [c"/etc/passwd", c"/usr/bin/busybox", c"/etc"];
const DEVICES: [&std::ffi::CStr; 6] =
    [c"/dev/null", c"/dev/zero", c"/dev/full", c"/dev/random", c"/dev/urandom", c"/dev/tty"];
/// Under the null device too.
const MASKED: &std::ffi::CStr = c"/proc/interrupts";

fn n(number: i32) -> Value {
    number.into()
}

/// A program that pauses in its middle, until it is told to go on.
struct Paused {
    process: Process,
    program: Program,
    go_on: OwnedFd,
    stdout: OwnedFd,
}

/// Where a program pauses: it says so, and waits for its input to end.
fn pause(program: &mut Program) {
    program.call(libc::SYS_write, &[n(2), Value::Data(b"!".to_vec()), n(1)]);
    program.call(libc::SYS_read, &[n(0), Value::Data(vec![0]), n(1)]);
}

impl Paused {
    async fn start(sandbox: &Sandbox, program: Program) -> Self {
        let (stdin, go_on) = std::io::pipe().unwrap();
        let (stdout, stdout_writer) = std::io::pipe().unwrap();
        let (said, stderr_writer) = std::io::pipe().unwrap();
        let file = base64::engine::general_purpose::STANDARD.encode(program.elf());
        let name = format!("/tmp/program-{}", file.len());
        let text = format!("echo {file} | base64 -d > {name} && chmod 700 {name} && exec {name}");
        let stdio = Stdio::Three([stdin.as_fd(), stdout_writer.as_fd(), stderr_writer.as_fd()]);
        let process = sandbox.start(&script(&text).encode().unwrap(), &stdio).await.unwrap();
        drop((stdin, stdout_writer, stderr_writer));
        let paused = tokio::task::spawn_blocking(move || {
            let mut one = [0];
            File::from(OwnedFd::from(said)).read_exact(&mut one).unwrap();
            one
        });
        assert_eq!(paused.await.unwrap(), *b"!");
        Self { process, program, go_on: go_on.into(), stdout: stdout.into() }
    }

    /// Lets it come to its end; the results of all its calls.
    async fn results(self) -> Vec<i64> {
        drop(self.go_on);
        let bytes = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            File::from(self.stdout).read_to_end(&mut bytes).unwrap();
            bytes
        });
        let bytes = bytes.await.unwrap();
        self.process.ended().await.unwrap();
        self.program.results(&bytes)
    }
}

/// Watches `files`, pauses, and looks at what it has seen; then uses each of them itself, and looks again.
fn watcher(files: &[&std::ffi::CStr]) -> Program {
    let mut program = Program::default();
    let watch = program.call(libc::SYS_inotify_init1, &[n(libc::IN_NONBLOCK)]);
    for file in files {
        let mask = n((libc::IN_OPEN | libc::IN_ACCESS | libc::IN_CLOSE) as i32);
        program.call(libc::SYS_inotify_add_watch, &[Value::Result(watch), (*file).into(), mask]);
    }
    pause(&mut program);
    let look = [Value::Result(watch), Value::Data(vec![0; 4096]), n(4096)];
    program.call(libc::SYS_read, &look);
    for file in files {
        program.call(libc::SYS_open, &[(*file).into(), n(libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY)]);
    }
    program.call(libc::SYS_read, &look);
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn inotify_shows_nothing_of_another_container_or_the_host() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let (one, other) = (house.sandbox("s-1").await, house.sandbox("s-2").await);
    let watched: Vec<_> = FILES.into_iter().chain(DEVICES).collect();
    let paused = Paused::start(&one, watcher(&watched)).await;
    // Another tenant of the image uses the same files, and the host the same devices.
    let used =
        run(&other, "cat /etc/passwd; ls /etc; busybox true; head -c 1 /dev/zero /dev/urandom > /dev/null").await;
    assert!(used.stdout.contains("root:"), "{used:?}");
    for device in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"] {
        File::open(device).unwrap().read_exact(&mut [0; 0]).unwrap();
    }
    let results = paused.results().await;
    let (watches, rest) = results.split_at(1 + watched.len());
    assert!(watches.iter().all(|result| *result >= 0), "{results:?}");
    assert_eq!(rest[2], -i64::from(libc::EAGAIN), "nothing of others: {results:?}");
    // /dev/tty cannot be opened without a terminal.
    let own = rest.last().unwrap();
    assert!(*own >= 16 * (watched.len() as i64 - 1), "what it does itself, it sees: {results:?}");
    drop((one, other));
    house.close().await;
}

/// Opens each of `files` for reading and locks it; then pauses with the locks.
fn locker(files: &[&std::ffi::CStr]) -> Program {
    let mut program = Program::default();
    for file in files {
        let opened = program.call(libc::SYS_open, &[(*file).into(), n(libc::O_RDONLY)]);
        program.call(libc::SYS_flock, &[Value::Result(opened), n(libc::LOCK_EX | libc::LOCK_NB)]);
    }
    pause(&mut program);
    program
}

/// Checks that everything was opened and locked.
fn assert_locked(results: &[i64], files: usize) {
    let (calls, _) = results.split_at(2 * files);
    for call in calls.chunks(2) {
        assert!(call[0] >= 0 && call[1] == 0, "{results:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_in_one_container_holds_up_nobody_else() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let (one, other) = (house.sandbox("s-1").await, house.sandbox("s-2").await);
    // Nobody opens /dev/tty without a terminal. What is masked is the null device once more.
    let all: Vec<_> = FILES.into_iter().chain(DEVICES.into_iter().take(5)).collect();
    for locked in [&all[..], &[MASKED]] {
        let first = Paused::start(&one, locker(locked)).await;
        let second = Paused::start(&other, locker(locked)).await;
        for device in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"] {
            let file = File::open(device).unwrap();
            file.try_lock().unwrap_or_else(|error| panic!("{device} of the host: {error}"));
        }
        for paused in [first, second] {
            assert_locked(&paused.results().await, locked.len());
        }
    }
    drop((one, other));
    house.close().await;
}

/// Device numbers of the file systems that a process sees, and where they are mounted.
fn file_systems(process: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::<_, BTreeSet<_>>::new();
    for line in std::fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap().lines() {
        let fields: Vec<_> = line.split(' ').collect();
        // A container's own control group, which is all that it can see of that file system.
        if fields[4] != "/sys/fs/cgroup" {
            found.entry(fields[2].to_owned()).or_default().insert(fields[4].to_owned());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn no_file_system_of_a_container_is_anybody_elses() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let (one, other) = (house.sandbox("s-1").await, house.sandbox("s-2").await);
    let seen = [&one, &other].map(|sandbox| file_systems(&house.init_of(sandbox).to_string()));
    let host = file_systems("self");
    for (device, places) in &seen[0] {
        assert!(!seen[1].contains_key(device), "{places:?} is the other container's too: {seen:?}");
        assert!(!host.contains_key(device), "{places:?} is the host's too: {host:?}");
    }
    let root =
        run(&one, "grep ' / ' /proc/self/mounts; stat -c '%u:%g %a %F %t:%T' /dev/null /dev/tty; echo x > /dev/null")
            .await;
    let lines: Vec<_> = root.stdout.lines().collect();
    assert!(lines[0].starts_with("thawd-image-") && lines[0].contains(" overlay ro,"), "{root:?}");
    assert_eq!(lines[1..], ["0:0 666 character special file 1:3", "0:0 666 character special file 5:0"], "{root:?}");
    drop((one, other));
    house.close().await;
}

/// The same through descriptors: what a command is started with is not the host's either.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_command_reads_for_nothing_is_its_containers_own() {
    let (_dir, address) = Address::new();
    let house = House::open(&address);
    let lease = house.containers.lease().unwrap();
    let container = house.containers.create(house.template.clone(), lease).await.unwrap();
    let null = File::from(container.null_input().unwrap());
    null.try_lock().unwrap();
    File::open("/dev/null").unwrap().try_lock().expect("the host's is another file");
    assert_eq!((&null).read(&mut [0; 8]).unwrap(), 0);
    drop((null, container));
    house.close().await;
}
