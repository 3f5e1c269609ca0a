//! No room on the disk, and a disk that cannot be written.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use thaw_client::client::ClientError;

use crate::support::{Daemon, eventually, shell};
use crate::{Counting, Mount, RECOVERY};

/// Fills a file system to the last byte; the file that does it.
fn fill(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("filler");
    let mut file = fs::File::create(&path).unwrap();
    let block = vec![1; 4096];
    let error = loop {
        if let Err(error) = file.write_all(&block) {
            break error;
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    path
}

/// Imports an archive of the test image into the daemon's store.
fn import(daemon: &Daemon, name: &str) -> Output {
    let archive = daemon.path("test.tar");
    let layout = crate::support::layouts().join("test");
    crate::run("tar", &["-C", layout.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    let mut command = Command::new(super::support::programs::thawctl());
    command.args(["image", "import"]).arg(archive).args(["--name", name, "--store"]);
    command.arg(daemon.path("state/images")).output().unwrap()
}

fn entries(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[tokio::test]
async fn a_disk_that_fills_up_stops_nothing_that_runs() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(2));
    let state = Mount::tmpfs(daemon.path("state"), "size=64m");
    let run = Mount::tmpfs(daemon.path("run"), "size=1m");
    daemon.launch().await;
    daemon.settled().await;
    let counting = Counting::start(&daemon, 200).await;
    let fillers = [fill(&daemon.path("state")), fill(&daemon.path("run"))];
    for round in 0..6 {
        // More than were warm: what is created now does without the disk, too.
        let outcome = daemon.sh(&format!("echo {round}; head -c 1000000 /dev/zero > /tmp/file")).await.exited(0);
        assert_eq!(outcome.text(), format!("{round}\n"));
    }
    let refused = import(&daemon, "again");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("No space left on device"), "{said}");
    assert_eq!(entries(&daemon.path("state/images/tmp")), 0, "nothing half done stays");
    assert_eq!(daemon.client.images().await.unwrap().len(), 1);
    counting.assert_complete(&daemon).await;
    for filler in fillers {
        fs::remove_file(filler).unwrap();
    }
    let taken = import(&daemon, "again");
    assert!(taken.status.success(), "{taken:?}");
    assert_eq!(daemon.client.images().await.unwrap().len(), 2);
    daemon.settled().await;
    drop((state, run));
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_that_starts_on_a_full_disk_says_so_and_fills_its_pool_once_there_is_room() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(1));
    let state = Mount::tmpfs(daemon.path("state"), "size=8m");
    let filler = fill(&daemon.path("state"));
    let said = daemon.refused().await;
    assert!(said.contains("state/images/version: No space left on device"), "{said}");
    // Enough for what the store needs to begin with, but not for the image.
    fs::File::options().write(true).open(&filler).unwrap().set_len((8 << 20) - (128 << 10)).unwrap();
    daemon.begin(fs::File::create(daemon.path("daemon.log")).unwrap(), &[]);
    let reason = eventually("it says what is missing", || async {
        let pools = daemon.client.pools().await.ok()?;
        pools.into_iter().find_map(|pool| pool.last_error)
    })
    .await;
    assert!(reason.contains("No space left on device") && reason.contains("image `test`"), "{reason}");
    let unready = daemon.client.readyz().await.unwrap_err().to_string();
    assert!(unready.contains("No space left on device"), "{unready}");
    let refused = match daemon.client.create(&shell("true")).await.unwrap_err() {
        ClientError::Problem(problem) => problem,
        other => panic!("{other}"),
    };
    assert_eq!((refused.status, refused.code.as_str(), refused.retryable), (503, "provider_not_ready", true));
    assert!(refused.detail.contains("No space left on device"), "{}", refused.detail);
    assert_eq!(entries(&daemon.path("state/images/tmp")), 0, "nothing half unpacked stays");
    fs::remove_file(filler).unwrap();
    let begun = Instant::now();
    while daemon.pool().await.warm == 0 {
        assert!(begun.elapsed() < RECOVERY, "{:?}", daemon.pool().await);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    daemon.sh("echo fine").await.exited(0);
    drop(state);
    daemon.stop().await;
}

#[tokio::test]
async fn a_file_system_without_free_files_is_told_apart() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(1));
    let state = Mount::tmpfs(daemon.path("state"), "nr_inodes=4");
    let said = daemon.refused().await;
    assert!(said.contains("No space left on device") && said.contains("state/"), "{said}");
    state.remount("nr_inodes=0");
    daemon.launch().await;
    daemon.settled().await;
    drop(state);
    daemon.stop().await;
}

#[tokio::test]
async fn a_state_directory_that_becomes_read_only_stops_nothing_but_new_images() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(2));
    let state = Mount::tmpfs(daemon.path("state"), "size=64m");
    daemon.launch().await;
    daemon.settled().await;
    let counting = Counting::start(&daemon, 200).await;
    state.remount("ro");
    for _ in 0..4 {
        daemon.sh("echo served").await.exited(0);
    }
    let mut request = shell("echo served");
    (request.provider, request.image) = (String::new(), Some("test".to_owned()));
    daemon.run(&request).await.exited(0);
    let refused = import(&daemon, "again");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("read-only file system"), "{said}");
    counting.assert_complete(&daemon).await;
    state.remount("rw");
    assert!(import(&daemon, "again").status.success());
    daemon.settled().await;
    drop(state);
    daemon.stop().await;
}

#[tokio::test]
async fn a_daemon_does_not_start_on_a_read_only_state_directory_and_says_why() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(1));
    let state = Mount::tmpfs(daemon.path("state"), "size=64m");
    state.remount("ro");
    let said = daemon.refused().await;
    assert!(said.contains("read-only file system") && said.contains("/state"), "{said}");
    assert!(!daemon.socket().exists(), "nothing is left of it");
    state.remount("rw");
    daemon.launch().await;
    daemon.settled().await;
    drop(state);
    daemon.stop().await;
}

#[tokio::test]
async fn a_log_that_cannot_be_written_costs_nothing_but_the_log() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(1));
    daemon.begin(fs::OpenOptions::new().write(true).open("/dev/full").unwrap(), &[]);
    daemon.ready().await;
    daemon.settled().await;
    daemon.sh("echo fine").await.exited(0);
    daemon.settled().await;
    daemon.stop().await;
}
