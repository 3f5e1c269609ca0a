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
            thawd::client::ClientError::Problem(problem) => {
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
