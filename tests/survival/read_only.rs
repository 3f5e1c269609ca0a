//! A state directory that cannot be written any more: its file system was remounted after an error, or is full of them.

use std::fs;

use thaw_client::client::ClientError;

use crate::support::{self, Daemon, eventually, shell};

/// What the daemon finds in a mount namespace of its own.
fn read_only(daemon: &Daemon) -> String {
    let state = daemon.path("state");
    let state = state.to_str().unwrap();
    format!("mount --bind {state} {state}; mount -o remount,bind,ro {state}")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_directory_that_cannot_be_written_serves_the_images_that_are_there() {
    let mut daemon = Daemon::start(|setup| setup.pool(2)).await;
    let before = daemon.settled().await;
    daemon.sh("echo before").await.exited(0);
    daemon.settled().await;
    daemon.kill();

    // Another provider, whose image has never been unpacked.
    let layouts = daemon.path("layouts");
    for (name, is_named) in [("test", "test"), ("other", "other")] {
        copy(&support::layouts().join("test"), &layouts.join(name));
        let index = layouts.join(name).join("index.json");
        let text = fs::read_to_string(&index).unwrap().replace("\"test\"", &format!("\"{is_named}\""));
        fs::write(&index, text).unwrap();
    }
    let config = daemon.path("thawd.toml");
    let mut table: toml::Table = fs::read_to_string(&config).unwrap().parse().unwrap();
    let paths = table["paths"].as_table_mut().unwrap();
    paths.insert("layouts_dir".to_owned(), layouts.to_str().unwrap().into());
    fs::write(&config, table.to_string()).unwrap();
    let manifest = fs::read_to_string(daemon.path("providers/test.toml")).unwrap();
    let mut manifest: toml::Table = manifest.parse().unwrap();
    for key in ["name", "image"] {
        manifest.insert(key.to_owned(), "other".into());
    }
    manifest.insert("pool_target".to_owned(), 0.into());
    fs::write(daemon.path("providers/other.toml"), manifest.to_string()).unwrap();

    daemon.spawn_within(&read_only(&daemon));
    daemon.ready().await;
    assert!(daemon.log().contains("the state directory is on a read-only file system"), "{}", daemon.log());
    // What was warm is adopted, and what is used is replaced.
    let after = daemon.settled().await;
    assert!(after.iter().any(|container| before.iter().any(|other| other.id == container.id)), "{after:?}");
    for _ in 0..4 {
        assert_eq!(daemon.sh("echo served").await.exited(0).text(), "served\n");
    }
    daemon.settled().await;
    let reason = eventually("the other image cannot be unpacked", || async {
        let pools = daemon.client.pools().await.unwrap();
        pools.into_iter().find(|pool| pool.provider == "other")?.last_error
    })
    .await;
    assert!(reason.contains("read-only file system") && reason.contains("restart thawd"), "{reason}");
    let request = thaw_client::types::ExecutionRequest { provider: "other".to_owned(), ..shell("true") };
    let refused = daemon.client.create(&request).await.unwrap_err();
    assert!(matches!(&refused, ClientError::Problem(problem) if problem.status == 503), "{refused:?}");
    assert!(refused.to_string().contains("read-only file system"), "{refused}");
    daemon.kill();

    // Once it can be written again, everything is as ever.
    daemon.launch().await;
    let outcome = daemon.run(&request).await.exited(0);
    assert_eq!(outcome.text(), "");
    daemon.stop().await;
}

#[tokio::test]
async fn a_state_directory_that_was_never_used_and_cannot_be_written_is_refused_with_what_to_do() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(1));
    fs::create_dir(daemon.path("state")).unwrap();
    daemon.spawn_within(&read_only(&daemon));
    let status = daemon.ended().await;
    assert!(!status.success());
    assert!(daemon.log().contains("read-only file system"), "{}", daemon.log());
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
