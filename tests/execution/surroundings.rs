//! What a command finds around it.

use crate::support::{Daemon, command, shell};

#[tokio::test]
async fn the_environment_is_made_of_the_image_the_daemon_and_the_request() {
    let daemon = Daemon::start(|setup| setup).await;
    let mut request = command(["env"]);
    request.env = [("GREETING", "hello = \"world\" \n2"), ("PATH", "/usr/bin"), ("EMPTY", "")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    let outcome = daemon.run(&request).await.exited(0);
    let text = outcome.text();
    for line in [
        "HOME=/home/runtime",
        "USER=runtime",
        "TMPDIR=/tmp",
        "GREETING=hello = \"world\" \n2",
        "PATH=/usr/bin",
        "EMPTY=",
        "HTTPS_PROXY=http://127.0.0.1:3128",
        "http_proxy=http://127.0.0.1:3128",
        "NODE_USE_ENV_PROXY=1",
        // Of the 128 MiB that a command may have.
        "NODE_OPTIONS=--max-old-space-size=64",
    ] {
        assert!(format!("\n{text}").contains(&format!("\n{line}\n")), "{line:?} in {text}");
    }
    let path = daemon.sh("echo $PATH").await;
    assert_eq!(path.text(), "/usr/local/bin:/usr/bin:/bin\n", "the image's own");
    for secret in ["CARGO", "RUST", "LISTEN_FDS", "NOTIFY_SOCKET"] {
        assert!(!text.contains(secret), "nothing of the daemon's environment: {text}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn the_container_itself_is_no_business_of_the_proxy() {
    let daemon = Daemon::start(|setup| setup).await;
    let own = daemon.sh("echo $NO_PROXY; echo $no_proxy; echo $HOSTNAME; hostname").await.exited(0);
    let container = &own.started.container;
    let expected = format!("localhost,127.0.0.1,::1,[::1],{container}\n");
    assert_eq!(own.text(), format!("{expected}{expected}{container}\n{container}\n"));
    let mut request = shell("echo $NO_PROXY; echo $no_proxy");
    request.env.insert("NO_PROXY".to_owned(), "corp.test, .corp.test".to_owned());
    let outcome = daemon.run(&request).await.exited(0);
    let container = &outcome.started.container;
    let expected = format!("corp.test,.corp.test,localhost,127.0.0.1,::1,[::1],{container}\n");
    assert_eq!(outcome.text(), expected.repeat(2), "the request's own, extended");
    daemon.stop().await;
}

#[tokio::test]
async fn variables_have_any_name_and_any_value() {
    let daemon = Daemon::start(|setup| setup).await;
    let given = [
        ("spring.datasource.url", "jdbc:x://y?a=b"),
        ("my-key", "=="),
        ("1", ""),
        (" ", " "),
        ("ü\n\t$(id)", "\u{1}\u{7f}\r\n\u{10ffff}\u{feff}"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut request = command(["cat", "/proc/self/environ"]);
    request.env = given.clone().into();
    let outcome = daemon.run(&request).await.exited(0);
    let seen: Vec<&[u8]> = outcome.stdout.split(|byte| *byte == 0).collect();
    for (name, value) in &given {
        assert!(seen.contains(&format!("{name}={value}").as_bytes()), "{name:?} in {}", outcome.text());
    }
    for (name, value) in [("", "x"), ("A=B", "x"), ("=", "x"), ("A\0", "x"), ("A", "x\0y")] {
        request.env = [(name.to_owned(), value.to_owned())].into();
        match daemon.client.create(&request).await.unwrap_err() {
            thaw_client::client::ClientError::Problem(problem) => {
                assert_eq!(problem.code, "invalid_field", "{name:?}");
                assert!(problem.detail.contains("`env`"), "{name:?}: {}", problem.detail);
            }
            other => panic!("{other}"),
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_command_starts_at_home_with_no_input() {
    let daemon = Daemon::start(|setup| setup).await;
    let outcome = daemon.sh("pwd; cat; readlink /proc/self/fd/0; id -un; umask; ulimit -c").await.exited(0);
    assert_eq!(outcome.text(), "/home/runtime\n/dev/null\nruntime\n0022\n0\n");
    daemon.stop().await;
}

#[tokio::test]
async fn standard_streams_can_be_opened_again() {
    let mut daemon = Daemon::prepare(|setup| {
        let manifest = r#"name = "reader"
            image = "test"
            home = "/home/runtime"
            pool_target = 1
            egress = []
            [command]
            argv = ["sh", "-c", "cat /dev/stdin; echo; cat /proc/self/fd/0 | wc -c"]
            [models]
            default = "m"
            allowed = ["m"]
            [credentials]
            dir = ".reader"
            required = false
            tmpfs_mib = 1
            [resources.idle]
            memory_mib = 64
            cpu = 0.1
            [resources.run]
            memory_mib = 128
            cpu = 0.5"#;
        setup.add_provider(manifest)
    });
    daemon.launch().await;
    let script = "echo a > /dev/stdout; echo b >> /dev/stderr; echo c | tee /dev/stderr; : < /dev/stdin; \
                  ln -s /dev/stdout /tmp/x.log && echo d >> /tmp/x.log; echo e > /proc/self/fd/2; echo f > /dev/fd/1; \
                  stat -L -c '%u %g %a' /dev/stdout";
    for _ in 0..2 {
        let outcome = daemon.sh(script).await.exited(0);
        assert_eq!((outcome.text(), outcome.errors()), ("a\nc\nd\nf\n1000 1000 600\n", "b\nc\ne\n"));
    }
    // Also without a provider.
    let image = thaw_client::types::ExecutionRequest {
        provider: String::new(),
        image: Some("test".to_owned()),
        ..shell(script)
    };
    let outcome = daemon.run(&image).await.exited(0);
    assert_eq!((outcome.text(), outcome.errors()), ("a\nc\nd\nf\n1000 1000 600\n", "b\nc\ne\n"));
    let outcome = daemon.run(&crate::support::prompt("reader", "some words")).await.exited(0);
    assert_eq!(outcome.text(), "some words\n0\n", "a prompt is read by its name, and is gone then");
    daemon.stop().await;
}

/// Processors that this process may use.
fn processors() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// What programs count processors by: the affinity, and two files.
const COUNT: &str = "nproc; grep -c '^cpu[0-9]' /proc/stat; grep -c '^processor' /proc/cpuinfo";

#[tokio::test]
async fn a_container_tells_of_its_own_memory_and_processors() {
    // 128 MiB, and half a processor with a burst of one.
    let daemon = Daemon::start(|setup| setup).await;
    let outcome = daemon.sh("grep -E 'MemTotal|MemAvailable|SwapTotal' /proc/meminfo").await.exited(0);
    let numbers: Vec<&str> = outcome.text().split_whitespace().filter(|word| word.parse::<u64>().is_ok()).collect();
    assert_eq!(numbers, ["131072", "131072", "0"], "{}", outcome.text());
    assert_eq!(daemon.sh(COUNT).await.exited(0).text(), "1\n1\n1\n");
    // ps tells when a process began by the time at which the machine did.
    let boot = |text: &str| text.lines().find_map(|line| line.strip_prefix("btime ")).unwrap().parse::<i64>().unwrap();
    let own = boot(&std::fs::read_to_string("/proc/stat").unwrap());
    let theirs = boot(daemon.sh("cat /proc/stat").await.exited(0).text());
    assert!((own - theirs).abs() <= 2, "{own} {theirs}");
    // Nothing of that can be changed.
    let script =
        "for f in /proc/meminfo /proc/stat /proc/cpuinfo; do echo x > $f || true; done 2>&1 | grep -c 'Read-only'";
    let refused = if processors() > 1 { "3\n" } else { "1\n" };
    let outcome = daemon.sh(script).await.exited(0);
    assert!(outcome.text() == refused || processors() == 1, "{}", outcome.text());
    daemon.stop().await;

    let daemon = Daemon::start(|setup| setup.set("container.limit_visible_cpus", false)).await;
    let all = processors();
    assert_eq!(daemon.sh("nproc").await.exited(0).text(), format!("{all}\n"), "all of them, if that is wanted");
    daemon.stop().await;

    let daemon = Daemon::start(|setup| {
        let setup = setup.set("image_run.memory_bytes", 96 << 20).set("image_run.cpu", 1.5);
        setup.set("image_run.cpu_burst", 1.5)
    })
    .await;
    let script = format!("{COUNT}; grep MemTotal /proc/meminfo");
    let image = thaw_client::types::ExecutionRequest {
        provider: String::new(),
        image: Some("test".to_owned()),
        ..shell(&script)
    };
    let outcome = daemon.run(&image).await.exited(0);
    let words: Vec<&str> = outcome.text().split_whitespace().collect();
    let two = all.min(2).to_string();
    assert_eq!((words[0], words[4]), (two.as_str(), "98304"), "{}", outcome.text());
    daemon.stop().await;
}

#[tokio::test]
async fn a_container_reads_its_own_limits_where_they_are_files() {
    let daemon = Daemon::start(|setup| setup).await;
    let v2 = crate::support::hierarchies().iter().all(|(_, controllers)| controllers.is_empty());
    let script = "ls /sys; [ -d /sys/fs/cgroup ] || exit 0; cd /sys/fs/cgroup; cat memory.max cpu.max pids.max; \
                  wc -l < cgroup.procs; \
                  for f in memory.max cgroup.procs cgroup.kill cgroup.freeze cgroup.subtree_control memory.pressure; do \
                  echo 1 > $f; done; mkdir x; ls -d */ ..";
    let outcome = daemon.sh(script).await;
    if v2 {
        let lines: Vec<&str> = outcome.text().lines().collect();
        assert_eq!(lines[..4], ["fs", "134217728", "50000 100000", "64"], "{}", outcome.text());
        assert!((1..=4).contains(&lines[4].parse::<u32>().unwrap()), "its own processes: {}", outcome.text());
        assert_eq!(outcome.errors().matches("Read-only file system").count(), 7, "{}", outcome.errors());
        assert!(!outcome.text().contains("c-"), "no other container: {}", outcome.text());
    } else {
        assert_eq!(outcome.text(), "", "{}", outcome.errors());
    }
    daemon.stop().await;
}

#[tokio::test]
async fn names_of_the_container_itself_are_known() {
    let daemon = Daemon::start(|setup| setup).await;
    let outcome = daemon.sh("cat /etc/hosts; echo x >> /etc/hosts || true").await.exited(0);
    let container = &outcome.started.container;
    let has = |address: &str, name: &str| {
        let mut lines = outcome.text().lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        lines.any(|words| words.first() == Some(&address) && words.contains(&name))
    };
    for address in ["127.0.0.1", "::1"] {
        assert!(has(address, "localhost") && has(address, container), "{address}: {}", outcome.text());
    }
    assert!(outcome.errors().contains("can't create /etc/hosts"), "{}", outcome.errors());
    daemon.stop().await;
}

#[tokio::test]
async fn devices_and_descriptors_have_their_usual_names() {
    let daemon = Daemon::start(|setup| setup).await;
    let script = "cat /dev/fd/3 3<<E\nthree\nE\necho x > /dev/shm/x && cat /dev/shm/x; head -c 3 /dev/zero | wc -c; \
                  echo gone > /dev/null; cp /usr/bin/busybox /dev/shm/ && /dev/shm/busybox echo ran";
    assert_eq!(daemon.sh(script).await.exited(0).text(), "three\nx\n3\nran\n");
    daemon.stop().await;
}

#[tokio::test]
async fn home_and_tmp_are_writable_and_fresh_each_time() {
    let daemon = Daemon::start(|setup| setup).await;
    for _ in 0..3 {
        let script = "ls -A ~ /tmp /dev/shm; for d in ~ /tmp /dev/shm; do \
                      echo x > $d/file && printf '#!/bin/sh\\necho ran\\n' > $d/run && chmod +x $d/run; done; ~/run; /tmp/run";
        let outcome = daemon.run(&shell(script)).await.exited(0);
        assert_eq!(outcome.text(), "/dev/shm:\n\n/home/runtime:\n.test\n\n/tmp:\nran\nran\n");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn arguments_arrive_exactly() {
    let daemon = Daemon::start(|setup| setup).await;
    let arguments = ["", " ", "a b", "$HOME", "`id`", "*", "\\n", "\"'", "ünïcödé €", "--", "new\nline"];
    let mut argv = vec!["sh", "-c", "for a; do printf '[%s]' \"$a\"; done", "sh"];
    argv.extend(arguments);
    let outcome = daemon.run(&command(argv)).await.exited(0);
    let expected: String = arguments.iter().map(|argument| format!("[{argument}]")).collect();
    assert_eq!(outcome.text(), expected);
    let long = "x".repeat(100_000);
    let outcome = daemon.run(&command(["sh", "-c", "echo ${#1}", "sh", &long])).await.exited(0);
    assert_eq!(outcome.text(), "100000\n");
    daemon.stop().await;
}
