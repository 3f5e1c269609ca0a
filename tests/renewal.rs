//! Another image for a provider is taken over while its pool serves.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use support::{Daemon, HostImage, Setup, eventually, programs};
use thaw_client::client::ClientError;
use thaw_client::renewal::Renewal;
use thaw_client::types::{ClaimPath, ContainerState, ExecutionRequest, Problem, Stage};
use thaw_image::Store;

const MANIFEST: &str = r#"
name = "app"
image = "app"
home = "/home/runtime"
pool_target = 3
egress = []
[credentials]
dir = ".app"
required = false
tmpfs_mib = 1
[resources.idle]
memory_mib = 64
cpu = 0.5
[resources.run]
memory_mib = 128
cpu = 0.5
"#;

fn app(mut setup: Setup) -> Setup {
    setup.clear_providers();
    setup.add_provider(MANIFEST)
}

/// Brings an image of this version into the daemon's store; a broken one has no home for its user.
fn import(daemon: &Daemon, version: &str, is_broken: bool) {
    let store = Store::open(&daemon.path("state/images")).unwrap();
    let image = HostImage::default().program("/bin/busybox").file("/version", version.as_bytes());
    let image = image.env(&format!("VERSION={version}"));
    let image = if is_broken { image } else { image.file("/home/runtime/.keep", b"") };
    image.import(&store, &daemon.path(""), "app");
}

fn show(sleep: &str) -> ExecutionRequest {
    let script = format!("{sleep}busybox cat /version; echo \" $VERSION\"");
    let command = ["/bin/busybox", "sh", "-c", &script].map(str::to_owned).to_vec();
    ExecutionRequest { provider: "app".to_owned(), user: "u1".to_owned(), command: Some(command), ..Default::default() }
}

async fn full(daemon: &Daemon) -> BTreeSet<String> {
    eventually("the pool is full", || async {
        let pools = daemon.client.pools().await.unwrap();
        let containers = daemon.containers().await;
        let warm = containers.iter().filter(|container| container.state == ContainerState::Warm);
        let warm: BTreeSet<String> = warm.map(|container| container.id.clone()).collect();
        let target: usize = pools.iter().map(|pool| pool.target).sum();
        (pools.iter().all(|pool| pool.creating == 0) && warm.len() == target && containers.len() == target)
            .then_some(warm)
    })
    .await
}

async fn refused(daemon: &Daemon, image: &str) -> Problem {
    match daemon.client.use_image(image).await.unwrap_err() {
        ClientError::Problem(problem) => *problem,
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_image_is_taken_over_under_load_and_executions_are_not_disturbed() {
    let mut daemon = Daemon::prepare(app);
    import(&daemon, "one", false);
    daemon.launch().await;
    let before = full(&daemon).await;
    assert_eq!(daemon.client.use_image("app").await.unwrap()[0].outcome, Renewal::Unchanged);
    assert_eq!(full(&daemon).await, before, "nothing is replaced for nothing");

    let long = daemon.client.create(&show("busybox sleep 3; ")).await.unwrap();
    // It is followed from here: the load may be more executions than are kept.
    let stream = daemon.client.events(&long.id, None).await.unwrap();
    let long = tokio::spawn(support::Outcome::of(stream));
    import(&daemon, "two", false);
    let daemon = Arc::new(daemon);
    let is_over = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (daemon, is_over) = (Arc::clone(&daemon), Arc::clone(&is_over));
            tokio::spawn(async move {
                let mut seen = Vec::new();
                while !is_over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    // Never refused: `run` would panic.
                    let outcome = daemon.run(&show("")).await.exited(0);
                    seen.push((begun, outcome.text().trim().to_owned(), outcome.started.path));
                }
                seen
            })
        })
        .collect();
    let renewed = daemon.client.use_image("app").await.unwrap();
    assert_eq!((renewed.len(), renewed[0].outcome, renewed[0].stage), (1, Renewal::Renewed, Stage::Created));
    let taken_over = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    eventually("no container waits that was begun before", || async {
        let containers = daemon.containers().await;
        let is_early = |one: &thaw_client::types::Container| one.created_at_ms <= taken_over;
        let waits =
            |one: &thaw_client::types::Container| matches!(one.state, ContainerState::Warm | ContainerState::Creating);
        // The first one of the new image is claimed before the others, so that it does not stay either.
        (!containers.iter().any(|one| waits(one) && is_early(one))).then_some(())
    })
    .await;
    let gone = Instant::now();
    for _ in 0..5 {
        assert_eq!(daemon.run(&show("")).await.exited(0).text(), "two two\n");
    }
    is_over.store(true, Ordering::Relaxed);
    let mut seen = Vec::new();
    for load in load {
        seen.extend(load.await.unwrap());
    }
    assert!(seen.len() > 5, "{seen:?}");
    for (begun, text, _) in &seen {
        // An old container may serve until the last is replaced, with the variables that were known when it was asked for.
        let is_whole = ["one one", "one two", "two one"].contains(&text.as_str()) && *begun < gone;
        assert!(is_whole || text == "two two", "{gone:?} {seen:?}");
    }
    assert!(full(&daemon).await.is_disjoint(&before));
    let outcome = daemon.run(&show("")).await.exited(0);
    assert_eq!((outcome.text(), outcome.started.path), ("two two\n", ClaimPath::Warm));
    // What ran then went on with what it had.
    let outcome = long.await.unwrap().exited(0);
    assert_eq!(outcome.text(), "one one\n");
    // The old image is nobody's any more.
    full(&daemon).await;
    let store = Store::open(&daemon.path("state/images")).unwrap();
    eventually("the old image can go", || async { (store.prune().unwrap().len() == 1).then_some(()) }).await;
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_load_that_keeps_the_pool_low_does_not_keep_an_image_from_being_taken_over() {
    let mut daemon = Daemon::prepare(app);
    import(&daemon, "one", false);
    daemon.launch().await;
    full(&daemon).await;
    let daemon = Arc::new(daemon);
    let is_over = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..2)
        .map(|_| {
            let (daemon, is_over) = (Arc::clone(&daemon), Arc::clone(&is_over));
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    daemon.run(&show("")).await.exited(0);
                }
            })
        })
        .collect();
    for version in ["two", "three", "four", "five"] {
        import(&daemon, version, false);
        // Claims hold a creation for 250 ms (`pool.refill_max_hold_ms`).
        let renewed = tokio::time::timeout(Duration::from_secs(3), daemon.client.use_image("app")).await;
        let renewed = renewed.unwrap_or_else(|_| panic!("version {version} waits behind the refills")).unwrap();
        assert_eq!(renewed[0].outcome, Renewal::Renewed);
        eventually("no container of an earlier image waits", || async {
            (daemon.run(&show("")).await.exited(0).text() == format!("{version} {version}\n")).then_some(())
        })
        .await;
    }
    is_over.store(true, Ordering::Relaxed);
    for load in load {
        load.await.unwrap();
    }
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_image_is_refused_and_the_old_one_serves_on() {
    let mut daemon = Daemon::prepare(app);
    import(&daemon, "one", false);
    daemon.launch().await;
    let before = full(&daemon).await;
    import(&daemon, "two", true);
    let problem = refused(&daemon, "app").await;
    assert_eq!((problem.status, problem.code.as_str()), (409, "image_refused"), "{}", problem.detail);
    assert!(problem.detail.contains("home/runtime") && problem.detail.contains("serves on"), "{}", problem.detail);
    assert_eq!(full(&daemon).await, before);
    let outcome = daemon.run(&show("")).await.exited(0);
    assert_eq!((outcome.text(), outcome.started.path), ("one one\n", ClaimPath::Warm));
    full(&daemon).await;
    // thawctl says the same, and takes a mended one.
    let thawctl = async || {
        let mut command = tokio::process::Command::new(programs::thawctl());
        command.args(["image", "use", "app"]).env("THAWD_SOCKET", daemon.socket()).output().await.unwrap()
    };
    let said = thawctl().await;
    assert_eq!(said.status.code(), Some(125), "{said:?}");
    assert!(String::from_utf8_lossy(&said.stderr).contains("serves on"), "{said:?}");
    import(&daemon, "three", false);
    let said = thawctl().await;
    assert!(
        said.status.success() && String::from_utf8_lossy(&said.stdout).contains("app created: renewed"),
        "{said:?}"
    );
    full(&daemon).await;
    assert_eq!(daemon.run(&show("")).await.exited(0).text(), "three three\n");
    assert_eq!(refused(&daemon, "none").await.status, 404);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_is_taken_over_when_there_is_no_free_place() {
    let mut daemon = Daemon::prepare(|setup| app(setup).set("container.max", 3));
    import(&daemon, "one", false);
    daemon.launch().await;
    let before = full(&daemon).await;
    assert_eq!(before.len(), 3);
    import(&daemon, "two", false);
    assert_eq!(daemon.client.use_image("app").await.unwrap()[0].outcome, Renewal::Renewed);
    eventually("all are replaced", || async { full(&daemon).await.is_disjoint(&before).then_some(()) }).await;
    assert_eq!(daemon.run(&show("")).await.exited(0).text(), "two two\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_in_the_middle_ends_with_the_new_image() {
    let mut daemon = Daemon::prepare(app);
    import(&daemon, "one", false);
    daemon.launch().await;
    let before = full(&daemon).await;
    let long = ExecutionRequest { background: true, ..show("busybox sleep 3; ") };
    let long = daemon.client.create(&long).await.unwrap();
    import(&daemon, "two", false);
    daemon.client.use_image("app").await.unwrap();
    daemon.kill();
    daemon.launch().await;
    let stream = daemon.client.events(&long.id, None).await.unwrap();
    assert_eq!(support::Outcome::of(stream).await.exited(0).text(), "one one\n");
    assert!(full(&daemon).await.is_disjoint(&before));
    assert_eq!(daemon.run(&show("")).await.exited(0).text(), "two two\n");
    daemon.stop().await;
}

/// A CLI that speaks gemini's protocol and answers with the version of its image; the broken one never does.
const CLI: &str = r#"
while read -r line; do case $line in
*'"initialize"'*) [ -e /mute ] || echo '{"jsonrpc":"2.0","id":0,"result":{}}' ;;
esac; done
"#;

#[tokio::test(flavor = "multi_thread")]
async fn prestarted_pools_take_it_over_and_refuse_a_cli_that_does_not_start() {
    let mut manifest: toml::Table = MANIFEST.parse().unwrap();
    let more: toml::Table = format!(
        r#"
        command = {{ argv = ["busybox", "true"] }}
        models = {{ default = "m", allowed = ["m"] }}
        [prestart]
        protocol = "gemini-acp"
        argv = ["busybox", "sh", "-c", {CLI:?}, "{{model}}"]
        memory_mib = 16
        ready_timeout_s = 3
        credentials = [{{ credential = "env:APP_TOKEN", by = "api-key" }}]
        "#
    )
    .parse()
    .unwrap();
    manifest.extend(more);
    manifest["credentials"].as_table_mut().unwrap().insert("env".to_owned(), vec!["APP_TOKEN"].into());
    let mut daemon = Daemon::prepare(|mut setup| {
        setup.clear_providers();
        setup.add_provider(&manifest.to_string()).set("provider.app.prestarted", 1)
    });
    import(&daemon, "one", false);
    daemon.launch().await;
    let before = full(&daemon).await;
    assert_eq!(before.len(), 4);
    // Its containers start, but not its CLI.
    let store = Store::open(&daemon.path("state/images")).unwrap();
    let image = HostImage::default().program("/bin/busybox").file("/home/runtime/.keep", b"").file("/mute", b"");
    image.import(&store, &daemon.path(""), "app");
    let problem = refused(&daemon, "app").await;
    assert!(problem.code == "image_refused" && problem.detail.contains("prestarted"), "{}", problem.detail);
    let prestarted = async || {
        let containers = daemon.containers().await;
        containers.iter().find(|one| one.stage == Stage::Prestarted && one.frozen).map(|one| one.id.clone())
    };
    let old = prestarted().await.unwrap();
    assert!(before.contains(&old));
    import(&daemon, "two", false);
    let renewed = daemon.client.use_image("app").await.unwrap();
    assert_eq!(renewed.iter().map(|one| one.outcome).collect::<Vec<_>>(), [Renewal::Renewed; 2], "{renewed:?}");
    eventually("another CLI waits", || async { prestarted().await.filter(|id| *id != old) }).await;
    assert!(full(&daemon).await.is_disjoint(&before));
    daemon.stop().await;
}
