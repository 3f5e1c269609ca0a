//! A daemon that cannot start, or is another one than before: what an earlier one left.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use thaw_client::types::ExecutionRequest;

use crate::support::{Daemon, Outcome, eventually, shell};

/// Replaces a piece of the configuration or of a manifest for as long as `during` takes.
async fn with<T>(file: &Path, text: &str, during: impl AsyncFnOnce() -> T) -> T {
    let before = fs::read_to_string(file).unwrap();
    fs::write(file, text).unwrap();
    let outcome = during().await;
    fs::write(file, before).unwrap();
    outcome
}

async fn warm(daemon: &Daemon, claimed: usize) -> BTreeSet<String> {
    daemon.settled_beside(claimed).await.into_iter().map(|container| container.id).collect()
}

#[tokio::test]
async fn a_mistake_in_the_configuration_leaves_everything_to_the_daemon_that_has_none() {
    let mut daemon = Daemon::start(|setup| setup.pool(2)).await;
    daemon.settled().await;
    let script = "i=0; while ! [ -e /tmp/end ]; do i=$((i+1)); echo line $i; sleep 0.05; done";
    let request = ExecutionRequest {
        background: true,
        ..shell(&format!("({script}) & sleep 4; touch /tmp/end; wait; echo end"))
    };
    let started = daemon.client.create(&request).await.unwrap();
    let before = warm(&daemon, 1).await;
    daemon.kill();
    let (config, manifest) = (daemon.path("thawd.toml"), daemon.path("providers/test.toml"));
    let good = fs::read_to_string(&config).unwrap();
    let good_manifest = fs::read_to_string(&manifest).unwrap();
    for (file, text, said) in [
        (&config, format!("{good}\n[provider.test]\negress = [\"no port\"]\n"), "no port"),
        (&config, format!("{good}\n[provider.test]\nprestarted = 1\n"), "cannot be prestarted"),
        (&config, format!("{good}\n[provider.tset]\npool_target = 1\n"), "tset"),
        (&config, format!("{good}\n[image_run]\negress = [\"no port\"]\n"), "[image_run]"),
        (&manifest, good_manifest.replace("pids_max = 64", "pids_max = 1"), "pids_max"),
    ] {
        let refused = with(file, &text, async || daemon.refused().await).await;
        assert!(refused.contains(said), "{refused}");
    }
    daemon.launch().await;
    assert_eq!(warm(&daemon, 1).await, before, "the warm ones are still warm");
    let outcome = Outcome::of(daemon.client.events(&started.id, None).await.unwrap()).await.exited(0);
    assert!(outcome.text().ends_with("\nend\n"), "{}", outcome.text());
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_another_thaw_init_made_is_not_kept_warm() {
    let mut daemon = Daemon::start(|setup| setup.pool(2)).await;
    let before = warm(&daemon, 0).await;
    daemon.kill();
    daemon.launch().await;
    assert_eq!(warm(&daemon, 0).await, before, "nothing has changed");
    daemon.kill();
    // The same program with a byte behind its end: an upgrade.
    let init = daemon.path("thaw-init");
    let mut program = fs::read(Path::new(env!("CARGO_BIN_EXE_thawd")).with_file_name("thaw-init")).unwrap();
    program.push(0);
    fs::write(&init, program).unwrap();
    fs::set_permissions(&init, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let config = daemon.path("thawd.toml");
    let text = fs::read_to_string(&config).unwrap();
    let mut table: toml::Table = text.parse().unwrap();
    let paths = table["paths"].as_table_mut().unwrap();
    paths.insert("init_program".to_owned(), init.to_str().unwrap().into());
    fs::write(&config, table.to_string()).unwrap();
    daemon.launch().await;
    let after = eventually("the pool is made anew", || async {
        let after = warm(&daemon, 0).await;
        after.is_disjoint(&before).then_some(after)
    })
    .await;
    assert_eq!(after.len(), 2);
    assert!(daemon.log().contains("made from something else than today"), "{}", daemon.log());
    daemon.sh("echo served").await.exited(0);
    daemon.stop().await;
}

/// Known before a start as well: the check looks into the images that are there.
#[tokio::test]
async fn an_image_without_a_name_for_its_user_is_named_by_the_check_and_at_the_start() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let check = |daemon: &Daemon| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_thawd"));
        let output = command.arg("--config").arg(daemon.path("thawd.toml")).arg("--check-config").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let said = check(&daemon);
    assert!(said.contains("configuration ok") && !said.contains("no user of this number"), "{said}");
    // Its only user from now on is root.
    let images: Vec<_> = fs::read_dir(daemon.path("state/images/images")).unwrap().collect();
    let [image] = images.try_into().unwrap();
    let passwd = image.unwrap().path().join("rootfs/etc/passwd");
    fs::remove_file(&passwd).unwrap();
    fs::write(&passwd, "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    let said = check(&daemon);
    assert!(said.contains("provider `test`, image `test`, uid 1000") && said.contains("configuration ok"), "{said}");
    daemon.kill();
    daemon.launch().await;
    assert!(daemon.log().contains("has no user of this number"), "{}", daemon.log());
    daemon.stop().await;
}
