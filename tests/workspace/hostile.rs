//! What a command may leave to be collected.

use super::support::{Daemon, command};
use super::{collected, file, listed, problems, with};
use thaw_client::types::{ExecutionRequest, FileKind};

#[tokio::test]
async fn odd_things_are_named_and_links_stay_links() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let script = "mkfifo pipe; mkdir -p sub/dir; echo in > sub/dir/f; ln -s /etc/passwd abs; ln -s ../../../etc out; \
                  ln -s sub/dir in; ln -s loop loop; ln /workspace/sub/dir/f hard; chmod 000 sub/dir/f; \
                  printf 'a\\nb' > \"$(printf 'new\\nline')\"; : > \"$(printf '\\377\\376')\"; : > ' '; : > ./-rf; \
                  ln -s /proc/self/fd/0 magic; chmod 0 sub; echo done";
    let outcome = daemon.run(&with(script, &[], &["."])).await.exited(0);
    assert_eq!(outcome.text(), "done\n", "{}", outcome.errors());
    let told = problems(&outcome);
    assert!(told.len() == 1 && told[0].0 == "pipe" && told[0].1.contains("FIFO"), "{told:?}");
    let listed = listed(&daemon, &outcome).await;
    let kind = |path: &str| listed.iter().find(|one| one.0 == path).map(|one| one.1);
    for link in ["abs", "out", "in", "loop", "magic"] {
        assert_eq!(kind(link), Some(FileKind::Link), "{link}: {listed:?}");
    }
    // The user's own permissions do not keep the user's files from the user.
    assert_eq!(kind("sub/dir/f"), Some(FileKind::File), "{listed:?}");
    assert_eq!(file(&daemon, &outcome, "sub/dir/f").await, "in\n");
    assert_eq!(file(&daemon, &outcome, "new\nline").await, "a\nb");
    assert_eq!(kind("-rf"), Some(FileKind::File));
    let files = daemon.client.files(&outcome.started.execution).await.unwrap();
    let odd = files.iter().find(|file| file.path_base64.is_some()).unwrap();
    assert_eq!((odd.path.as_str(), odd.path_base64.as_deref()), ("\u{fffd}\u{fffd}", Some("//4=")));
    let target = files.iter().find(|file| file.path == "abs").unwrap().target.clone();
    assert_eq!(target.as_deref(), Some("/etc/passwd"));
    // Through a link nothing is found, wherever it leads.
    let wanted = ["abs", "out/passwd", "in/f", "loop/x", "pipe"];
    let outcome = daemon.run(&with(script, &[], &wanted)).await.exited(0);
    let told: Vec<&str> = problems(&outcome).iter().map(|one| one.0).collect();
    assert_eq!(told, ["in/f", "loop/x", "out/passwd", "pipe"]);
    assert_eq!(collected(&outcome).entries, 1);
    daemon.stop().await;
}

#[tokio::test]
async fn too_much_is_cut_off_and_the_rest_comes() {
    let daemon = Daemon::start(|setup| {
        setup
            .pool(1)
            .set("execution.collect_bytes", 1 << 20)
            .set("execution.collect_entries", 100)
            .set("container.ephemeral_inodes", 120_000)
            .provider("resources.run.memory_mib", 256)
    })
    .await;
    let script = "truncate -s 1099511627776 sparse; head -c 700000 /dev/zero > big; head -c 700000 /dev/zero > big2; echo s > small";
    let outcome = daemon.run(&with(script, &[], &["."])).await.exited(0);
    let told = problems(&outcome);
    assert_eq!(told.iter().map(|one| one.0).collect::<Vec<_>>(), ["big2", "sparse"], "{told:?}");
    assert!(told[1].1.contains("1099511627776 bytes") && told[1].1.contains("1048576"), "{told:?}");
    assert_eq!(file(&daemon, &outcome, "small").await, "s\n");
    assert!(collected(&outcome).bytes <= 1 << 20);
    // A crowd: what is within the limit comes.
    let script = "awk 'BEGIN { for (i = 0; i < 100000; i++) { f = \"f\" i; printf \"\" > f; close(f) } }'; ls | wc -l";
    let request = ExecutionRequest { timeout_ms: Some(300_000), ..with(script, &[], &["."]) };
    let outcome = daemon.run(&request).await.exited(0);
    assert_eq!(outcome.text(), "100000\n", "{}", outcome.errors());
    assert_eq!((collected(&outcome).entries, problems(&outcome).len()), (100, 1));
    assert!(problems(&outcome)[0].1.contains("100 files"), "{:?}", problems(&outcome));
    // Directories without end.
    let script = "i=0; while [ $i -lt 200 ]; do mkdir d && cd d || exit 1; i=$((i + 1)); done";
    let outcome = daemon.run(&with(script, &[], &["."])).await.exited(0);
    assert_eq!((collected(&outcome).entries, problems(&outcome).len()), (64, 1));
    assert!(problems(&outcome)[0].1.contains("64 directories"), "{:?}", problems(&outcome));
    daemon.stop().await;
}

#[tokio::test]
async fn what_was_collected_counts_for_what_is_kept() {
    let daemon = Daemon::start(|setup| {
        setup.pool(1).set("execution.output_bytes", 1 << 20).set("execution.retained_bytes", 3 << 20)
    })
    .await;
    let request = with("head -c 1000000 /dev/urandom > big", &[], &["."]);
    let mut ids = Vec::new();
    for _ in 0..4 {
        ids.push(daemon.run(&request).await.exited(0).started.execution);
    }
    let kept: Vec<String> = daemon.client.executions().await.unwrap().into_iter().rev().map(|one| one.id).collect();
    assert_eq!(kept, ids[1..], "three archives of 1 MB fit into 3 MiB");
    daemon.stop().await;
}

#[tokio::test]
async fn nobody_looks_into_what_is_anothers() {
    let daemon = Daemon::start(|setup| setup.pool(2)).await;
    let outcome = daemon.run(&with("echo mine > a; pwd", &[("b", "given")], &["."])).await.exited(0);
    assert_eq!(file(&daemon, &outcome, "b").await, "given");
    let next = daemon.run(&with("ls -A; ls -A /tmp", &[], &["."])).await.exited(0);
    assert_eq!((next.text(), collected(&next).entries), ("", 0));
    // The host's own files cannot be named.
    for path in ["/etc/passwd", "../../etc/passwd", "/workspace/../etc/passwd", "/proc/self/environ"] {
        let request = ExecutionRequest { collect: vec![path.to_owned()], ..command(["true"]) };
        assert_eq!(super::refused(&daemon, &request).await.code, "invalid_field", "{path}");
    }
    daemon.stop().await;
}
