//! How many warm containers there are: by demand, by request, and never at the expense of claims.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Daemon, Outcome, Setup, eventually, in_bed, shell};
use thaw_client::types::{ClaimPath, List, Pool, PoolChange};

const JSON: (&str, &str) = ("content-type", "application/json");

/// Scaling on, with windows of seconds.
fn scaling(setup: Setup) -> Setup {
    setup
        .set("pool.scaling", true)
        .set("pool.hit_window_seconds", 5)
        .set("pool.scale_down_idle_seconds", 2)
        .set("pool.scale_down_idle", 1)
        .set("pool.min", 2)
        .set("pool.max", 6)
        .pool(3)
}

async fn put(daemon: &Daemon, provider: &str, change: &Value) -> support::Answer {
    daemon.http(&format!("PUT /v1/pools/{provider}"), &[JSON], change.to_string().as_bytes()).await
}

async fn changed(daemon: &Daemon, change: PoolChange) -> Pool {
    daemon.client.change_pool::<Pool>("test", &change).await.unwrap().remove(0)
}

fn target(target: usize) -> PoolChange {
    PoolChange { target: Some(target), ..PoolChange::default() }
}

fn series(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn misses_grow_a_pool_and_idleness_shrinks_it() {
    let daemon = Arc::new(Daemon::start(scaling).await);
    let pool = daemon.pool().await;
    assert_eq!((pool.target, pool.min, pool.max, pool.scaling, pool.reason), (3, 2, 6, true, None));
    let mut tasks = Vec::new();
    for _ in 0..12 {
        let daemon = Arc::clone(&daemon);
        tasks.push(tokio::spawn(async move { daemon.sh("sleep 1").await.exited(0).started.path }));
    }
    let grown = eventually("it grows", || async {
        let pool = daemon.pool().await;
        (pool.target > 3).then_some(pool)
    })
    .await;
    let reason = grown.reason.unwrap();
    assert!(reason.starts_with("up from 3 to 4") && reason.contains("found a warm container"), "{reason}");
    let mut cold = 0;
    for task in tasks {
        cold += usize::from(task.await.unwrap() == ClaimPath::Cold);
    }
    assert!(cold >= 5, "{cold} were cold");
    eventually("it is as small as it may be", || async {
        let pool = daemon.pool().await;
        (pool.target == 2 && pool.warm == 2).then_some(())
    })
    .await;
    let pool = daemon.pool().await;
    assert!(pool.reason.unwrap().contains("were idle for 2 s, more than 1"));
    daemon.settled().await;
    let log = daemon.log();
    assert!(log.contains("pool scaled up") && log.contains("pool scaled down"));
    let metrics = daemon.client.metrics().await.unwrap();
    let up = r#"thawd_pool_scalings_total{provider="test",direction="up",reason="hit_rate"}"#;
    let down = r#"thawd_pool_scalings_total{provider="test",direction="down",reason="idle"}"#;
    assert!(series(&metrics, up).unwrap() >= 1.0 && series(&metrics, down).unwrap() >= 1.0, "{metrics}");
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test]
async fn a_queue_grows_a_pool() {
    // A share of 0 % is always reached: the queue alone decides.
    let setup = |setup: Setup| scaling(setup).set("pool.scale_up_hit_percent", 0).set("container.max", 6);
    let daemon = Arc::new(Daemon::start(setup).await);
    let mut tasks = Vec::new();
    for _ in 0..16 {
        let daemon = Arc::clone(&daemon);
        let mut request = shell("sleep 1");
        request.queue_timeout_ms = Some(60_000);
        tasks.push(tokio::spawn(async move { drop(daemon.run(&request).await.exited(0)) }));
    }
    let reason = eventually("it grows", || async {
        let pool = daemon.pool().await;
        (pool.target == 6).then(|| pool.reason.unwrap())
    })
    .await;
    assert!(reason.contains("requests were waiting, more than 3"), "{reason}");
    for task in tasks {
        task.await.unwrap();
    }
    let metrics = daemon.client.metrics().await.unwrap();
    let up = r#"thawd_pool_scalings_total{provider="test",direction="up",reason="queue"}"#;
    assert!(series(&metrics, up).unwrap() >= 1.0, "{metrics}");
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test]
async fn a_request_changes_a_pool() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("container.max", 10)).await;
    let pool = changed(&daemon, target(4)).await;
    assert_eq!((pool.target, pool.min, pool.max, pool.scaling), (4, 4, 4, false));
    assert_eq!(pool.reason.unwrap(), "set to 4 by request");
    assert_eq!(daemon.settled().await.len(), 4);
    assert_eq!(changed(&daemon, target(2)).await.target, 2);
    assert_eq!(daemon.settled().await.len(), 2);
    let bounds = PoolChange { min: Some(3), max: Some(5), ..PoolChange::default() };
    let pool = changed(&daemon, bounds).await;
    assert_eq!((pool.target, pool.min, pool.max, pool.scaling), (3, 3, 5, true), "moved into its bounds");
    let off = PoolChange { scaling: Some(false), ..PoolChange::default() };
    let pool = changed(&daemon, off).await;
    assert_eq!((pool.target, pool.scaling), (3, false));
    assert_eq!(changed(&daemon, target(0)).await.target, 0);
    assert_eq!(daemon.settled().await.len(), 0);
    let answer = daemon.http("GET /v1/pools/test", &[], b"").await;
    let list: List<Pool> = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, list.items[0].target), (200, 0));
    daemon.stop().await;
}

#[tokio::test]
async fn a_wrong_change_is_refused_and_changes_nothing() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("container.max", 10)).await;
    for (change, code, says) in [
        (json!({}), "nothing_to_change", "`target`"),
        (json!({ "target": 11 }), "invalid_pool", "the host's limit (`container.max`) is 10"),
        (json!({ "max": 11 }), "invalid_pool", "`max` is 11"),
        (json!({ "min": 6, "max": 5 }), "invalid_pool", "`min` is 6, which is more than `max`, 5"),
        (json!({ "target": 7, "min": 2, "max": 5 }), "invalid_pool", "`target` is 7, which is not between"),
        (json!({ "prestarted": 1 }), "no_prestarted_pool", "[prestart]"),
        (json!({ "prestarted": 11 }), "invalid_pool", "`prestarted` is 11"),
        (json!({ "target": 2, "prestarted": 1 }), "no_prestarted_pool", "[prestart]"),
        (json!({ "targt": 2 }), "unknown_field", "`target`"),
        (json!({ "target": -1 }), "invalid_field", "`target`"),
        (json!({ "target": "many" }), "invalid_field", "`target`"),
    ] {
        let problem = put(&daemon, "test", &change).await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (400, code), "{change}");
        assert!(problem.detail.contains(says), "{change}: {problem:?}");
    }
    for provider in ["nobody", "a%2Fb", "%ff"] {
        let problem = put(&daemon, provider, &json!({ "target": 2 })).await.problem();
        assert_eq!((problem.status, problem.code.as_str(), problem.retryable), (404, "not_found", false));
    }
    let pool = daemon.pool().await;
    assert_eq!((pool.target, pool.scaling, pool.reason), (1, false, None));
    daemon.stop().await;
}

#[tokio::test]
async fn what_fails_is_tried_again_later_and_later() {
    // The image is there, but a container of it cannot be created: its home is no directory of the image.
    let setup = |setup: Setup| setup.pool(0).provider("home", "/home/nobody-has-made-this");
    let daemon = Daemon::start(setup).await;
    changed(&daemon, target(2)).await;
    let pool = eventually("it fails", || async {
        let pool = daemon.pool().await;
        pool.last_error.is_some().then_some(pool)
    })
    .await;
    assert_eq!(pool.warm, 0);
    eventually("three failures", || async { (daemon.log().matches("cannot be filled").count() >= 3).then_some(()) })
        .await;
    let log = daemon.log();
    let pauses: Vec<u64> = log
        .lines()
        .filter(|line| line.contains("cannot be filled"))
        .filter_map(|line| line.split("pause_ms=").nth(1)?.split(' ').next()?.parse().ok())
        .collect();
    assert!(pauses.is_sorted() && pauses[0] == 500 && *pauses.last().unwrap() >= 1000, "{pauses:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_pool_that_others_need_more_gives_way() {
    // Six places; `other` takes five of them, and could spare three.
    let other = "name = \"other\"\nimage = \"test\"\nhome = \"/home/runtime\"\npool_target = 5\negress = []\n\
                 [credentials]\ndir = \".test\"\nfiles = [\"token\"]\nrequired = false\ntmpfs_mib = 1\n\
                 [resources.idle]\nmemory_mib = 64\ncpu = 0.1\n[resources.run]\nmemory_mib = 128\ncpu = 0.5\n";
    let setup = |setup: Setup| {
        setup
            .pool(0)
            .add_provider(other)
            .set("container.max", 6)
            .set("pool.scaling", true)
            .set("provider.other.pool_min", 2)
            .set("provider.other.pool_max", 5)
    };
    let daemon = Arc::new(Daemon::start(setup).await);
    let warm = |count: usize| {
        let daemon = Arc::clone(&daemon);
        async move {
            eventually("so many are warm", || async {
                let pools = daemon.client.pools().await.unwrap();
                (pools.iter().find(|pool| pool.provider == "other").unwrap().warm == count).then_some(())
            })
            .await;
        }
    };
    warm(5).await;
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let daemon = Arc::clone(&daemon);
        tasks.push(tokio::spawn(async move { daemon.sh("sleep 2").await.exited(0) }));
    }
    warm(2).await;
    let mut request = shell("true");
    request.queue_timeout_ms = Some(200);
    let stream = daemon.client.execute_stream(&request).await.unwrap();
    drop(stream);
    for task in tasks {
        task.await.unwrap();
    }
    warm(5).await;
    daemon.client.pools().await.unwrap();
    Arc::into_inner(daemon).unwrap().stop().await;
}

/// Claims one after the other without a pause: refilling has to keep up all the same.
#[tokio::test]
async fn claims_without_end_do_not_starve_a_pool() {
    let (size, claims) = if in_bed() { (4, 20) } else { (10, 150) };
    let daemon = Daemon::start(|setup| setup.pool(size)).await;
    daemon.settled().await;
    let begun = Instant::now();
    for _ in 0..claims {
        daemon.sh("echo hello").await.exited(0);
    }
    let pool = daemon.pool().await;
    println!("{claims} claims in {:?}, {} of them warm", begun.elapsed(), pool.hits);
    assert!(pool.hits > size as u64 * 2, "only {} of {claims} were warm: nothing was refilled", pool.hits);
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_burst_as_large_as_the_pool_is_all_warm() {
    let size = if in_bed() { 8 } else { 100 };
    let daemon = Arc::new(Daemon::start(|setup| setup.pool(size).set("container.max", size * 2 + 10)).await);
    daemon.settled().await;
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..size {
        let daemon = Arc::clone(&daemon);
        tasks.push(tokio::spawn(async move {
            let stream = daemon.client.execute_stream(&support::command(["/bin/echo", "hello"])).await.unwrap();
            Outcome::of(stream).await.exited(0).started.path
        }));
    }
    for task in tasks {
        assert_eq!(task.await.unwrap(), ClaimPath::Warm);
    }
    println!("{size} claims at once in {:?}", begun.elapsed());
    daemon.settled().await;
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test]
async fn a_silent_command_does_not_hold_a_pool_up() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("pool.refill_low_water_percent", 0)).await;
    daemon.settled().await;
    let mut request = shell("sleep 1000");
    request.background = true;
    let begun = Instant::now();
    let id = daemon.client.create(&request).await.unwrap().id;
    daemon.settled_beside(1).await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    daemon.client.cancel(&id).await.unwrap();
    daemon.stop().await;
}
