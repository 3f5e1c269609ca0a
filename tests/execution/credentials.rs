//! Credentials reach the one execution that they are for.

use std::collections::BTreeMap;

use thaw_client::types::{Credentials, ExecutionRequest, Secret};

use crate::support::{Daemon, eventually, open_files, shell};

const MARKER: &str = "sk-marker-5f1c";

fn with_file(mut request: ExecutionRequest, content: &str) -> ExecutionRequest {
    let files = BTreeMap::from([("token".to_owned(), Secret::new(content.to_owned()))]);
    let mut credentials = Credentials::default();
    credentials.files = files;
    request.credentials = Some(credentials);
    request
}

#[tokio::test]
async fn programs_beside_the_credentials_can_be_run() {
    // CLIs keep hooks, plugins and downloaded tools in the directory of their credentials.
    let daemon = Daemon::start(|setup| setup).await;
    let script = "cd ~/.test && printf '#!/bin/sh\necho ran\n' > hook && chmod +x hook && ./hook";
    assert_eq!(daemon.sh(script).await.exited(0).text(), "ran\n");
    daemon.stop().await;
}

#[tokio::test]
async fn a_file_lies_on_a_tmpfs_of_its_own_for_the_user_alone() {
    let daemon = Daemon::start(|setup| setup).await;
    let script = "stat -c '%u %g %a' ~/.test ~/.test/token; cat ~/.test/token; echo; grep /.test /proc/self/mountinfo";
    let outcome = daemon.run(&with_file(shell(script), MARKER)).await.exited(0);
    let lines: Vec<&str> = outcome.text().lines().collect();
    assert_eq!(lines[..3], ["1000 1000 700", "1000 1000 600", MARKER]);
    let fields: Vec<&str> = lines[3].split(' ').collect();
    assert_eq!((lines.len(), fields[4]), (4, "/home/runtime/.test"), "one mount, the directory: {}", lines[3]);
    for flag in ["nosuid", "nodev", "rw"] {
        assert!(fields[5].split(',').any(|have| have == flag), "{flag}: {}", lines[3]);
    }
    let (_, kind) = lines[3].split_once(" - ").unwrap();
    assert!(kind.starts_with("tmpfs ") && kind.contains("size=1024k"), "{kind}");
    daemon.stop().await;
}

#[tokio::test]
async fn the_directory_may_lie_deeper_below_home() {
    let daemon = Daemon::start(|setup| setup.provider("credentials.dir", ".config/test/account")).await;
    let script = "cd ~; stat -c '%n %u %g %a' .config .config/test .config/test/account .config/test/account/token; \
                  cat .config/test/account/token; touch .config/own && grep -c 'account .*tmpfs' /proc/self/mountinfo";
    let outcome = daemon.run(&with_file(shell(script), MARKER)).await.exited(0);
    let own = "1000 1000 700";
    let wanted = format!(
        ".config {own}\n.config/test {own}\n.config/test/account {own}\n.config/test/account/token 1000 1000 600\n{MARKER}1\n"
    );
    assert_eq!(outcome.text(), wanted);
    daemon.stop().await;
}

#[tokio::test]
async fn the_file_can_be_renewed_the_way_the_clis_do_it() {
    let daemon = Daemon::start(|setup| setup).await;
    let script = "cd ~/.test && echo new > token.tmp && mv token.tmp token && cat token && echo more >> token && \
                  wc -l < token && cp /bin/busybox . && ./busybox true";
    let outcome = daemon.run(&with_file(shell(script), MARKER)).await;
    assert_eq!(outcome.text(), "new\n2\n");
    assert!(outcome.exit.code != Some(0), "its size is limited and nothing can be executed there");
    daemon.stop().await;
}

#[tokio::test]
async fn a_variable_is_in_the_commands_environment_only() {
    let daemon = Daemon::start(|setup| setup).await;
    let mut request = shell("echo $TEST_TOKEN; ls -A ~/.test | wc -l; tr '\\0' ' ' < /proc/$$/cmdline; true");
    let mut credentials = Credentials::default();
    credentials.env = BTreeMap::from([("TEST_TOKEN".to_owned(), Secret::new(MARKER.to_owned()))]);
    request.credentials = Some(credentials);
    let outcome = daemon.run(&request).await.exited(0);
    let (values, command_line) = outcome.text().rsplit_once('\n').unwrap();
    assert_eq!(values, format!("{MARKER}\n0"));
    assert!(command_line.starts_with("/bin/sh -c echo $TEST_TOKEN"), "{command_line}");
    assert!(!command_line.contains(MARKER));
    daemon.stop().await;
}

#[tokio::test]
async fn without_credentials_the_directory_is_empty_and_writable() {
    let daemon = Daemon::start(|setup| setup).await;
    let outcome = daemon.sh("ls -A ~/.test; stat -c '%u %a' ~/.test; echo x > ~/.test/own && cat ~/.test/own").await;
    assert_eq!(outcome.exited(0).text(), "1000 700\nx\n");
    daemon.stop().await;
}

#[tokio::test]
async fn nothing_of_a_credential_stays() {
    let daemon = Daemon::start(|setup| setup).await;
    daemon.run(&with_file(shell("cat ~/.test/token"), MARKER)).await.exited(0);
    daemon.settled().await;
    // Output that is kept is in unnamed files, which are deleted from the start.
    let mounts = || open_files(daemon.pid()).iter().filter(|file| !file.contains("(deleted)")).count();
    let before = mounts();
    for _ in 0..5 {
        let outcome = daemon.run(&with_file(shell("cat ~/.test/token >/dev/null"), MARKER)).await;
        outcome.exited(0);
    }
    daemon.settled().await;
    eventually("the mounts' descriptors are closed", || async { (mounts() <= before).then_some(()) }).await;
    // The next one in line sees nothing of it.
    let outcome = daemon.sh(&format!("grep -r {MARKER} /home /tmp /dev/shm 2>/dev/null; true")).await.exited(0);
    assert_eq!(outcome.text(), "");
    assert!(!daemon.log().contains(MARKER));
    daemon.stop().await;
}
