//! Two daemons on one state directory.

use std::path::PathBuf;

use crate::Counting;
use crate::support::{Daemon, eventually};

fn text(path: PathBuf) -> String {
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_second_daemon_on_the_same_directories_is_refused_whatever_else_differs() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let counting = Counting::start(&daemon, 100).await;
    let before = daemon.settled_beside(1).await;
    // Another socket, another control group: only the directories are the same.
    for key in ["state", "run"] {
        let directory = text(daemon.path(key));
        let mut second = Daemon::prepare(|setup| setup.set(&format!("paths.{key}_dir"), directory.clone()));
        std::fs::create_dir_all(second.path("run")).unwrap();
        let said = second.refused().await;
        assert!(said.contains("another daemon") && said.contains(&directory), "{said}");
        assert!(said.contains(&format!("`paths.{key}_dir`")), "it says what to do: {said}");
        assert!(!second.socket().exists(), "nothing is left of it");
    }
    counting.assert_complete(&daemon).await;
    assert_eq!(daemon.settled().await[0].id, before[0].id, "its containers were not touched");
    daemon.sh("echo fine").await.exited(0);
    // One that was killed does not keep the next one out.
    let spawner = daemon.spawner().unwrap();
    daemon.kill();
    daemon.launch().await;
    // This machine's PID 1 reaps it when it gets to it.
    eventually("its spawner is gone", || async { (!spawner.exists()).then_some(()) }).await;
    daemon.settled().await;
    daemon.sh("echo fine").await.exited(0);
    daemon.stop().await;
}
