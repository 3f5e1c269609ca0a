//! Requests that wait for a container: in turns, told so, with a deadline, and never in the way of others.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use support::{Daemon, Outcome, Setup, eventually, shell};
use thaw_client::client::{ClientError, EventStream};
use thaw_client::types::{Event, ExecutionRequest, ExecutionState, Exit, ExitReason, Pool, PoolChange, Problem};

const JSON: (&str, &str) = ("content-type", "application/json");

/// One place, nothing pooled.
fn one_place(setup: Setup) -> Setup {
    setup.pool(0).set("container.max", 1)
}

fn by(user: &str, script: &str) -> ExecutionRequest {
    ExecutionRequest { user: user.to_owned(), ..shell(script) }
}

/// Takes the only place until it is cancelled.
async fn occupy(daemon: &Daemon) -> String {
    let mut request = by("occupant", "sleep 1000");
    request.background = true;
    let id = daemon.client.create(&request).await.unwrap().id;
    eventually("it runs", || async {
        let execution = daemon.client.execution(&id).await.unwrap();
        (execution.state == ExecutionState::Running).then_some(())
    })
    .await;
    id
}

/// Waits until so many are queued, and returns them in the order in which they came.
async fn queued(daemon: &Daemon, count: usize) -> Vec<(String, usize)> {
    eventually("they are queued", || async {
        let mut all = daemon.client.executions().await.unwrap();
        all.retain(|execution| execution.state == ExecutionState::Queued);
        all.reverse();
        (all.len() == count)
            .then(|| all.into_iter().map(|execution| (execution.id, execution.queue_position.unwrap())).collect())
    })
    .await
}

fn problem(error: ClientError) -> Problem {
    match error {
        ClientError::Problem(problem) => *problem,
        error => panic!("{error}"),
    }
}

/// Reads a stream that begins with `queued` and ends without having run.
async fn never_ran(mut stream: EventStream) -> Exit {
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event.unwrap().1);
    }
    assert!(matches!(events[0], Event::Queued(_)), "{events:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::Started(_))), "{events:?}");
    let Some(Event::Exit(exit)) = events.pop() else { panic!("{events:?}") };
    exit
}

fn series(metrics: &str, name: &str) -> Option<f64> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test]
async fn who_waits_is_told_and_served_when_a_place_is_free() {
    let daemon = Arc::new(Daemon::start(one_place).await);
    let occupant = occupy(&daemon).await;
    let mut stream = daemon.client.execute_stream(&by("a", "echo hello")).await.unwrap();
    let (_, first) = stream.next().await.unwrap().unwrap();
    let Event::Queued(told) = first else { panic!("{first:?}") };
    assert_eq!(told.position, 1);
    let id = stream.execution().unwrap().to_owned();
    assert_eq!(queued(&daemon, 1).await, [(id.clone(), 1)]);
    assert_eq!(daemon.pool().await.queued, 1);
    let metrics = daemon.client.metrics().await.unwrap();
    assert_eq!(series(&metrics, r#"thawd_queue_depth{provider="test"}"#), Some(1.0));
    daemon.client.cancel(&occupant).await.unwrap();
    // From the beginning, as another client would.
    let outcome = Outcome::of(daemon.client.events(&id, None).await.unwrap()).await.exited(0);
    assert_eq!(outcome.text(), "hello\n");
    assert!(matches!(outcome.events[0].1, Event::Queued(_)));
    assert_eq!(daemon.client.execution(&id).await.unwrap().queue_position, None);
    let metrics = daemon.client.metrics().await.unwrap();
    assert_eq!(series(&metrics, r#"thawd_queue_depth{provider="test"}"#), Some(0.0));
    let served = r#"thawd_queue_wait_seconds_count{provider="test",outcome="served"}"#;
    assert_eq!(series(&metrics, served), Some(1.0));
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test]
async fn a_deadline_ends_the_wait_with_503_and_a_time_to_come_back() {
    let daemon = Daemon::start(one_place).await;
    occupy(&daemon).await;
    let body = json!({ "provider": "test", "user": "a", "command": ["true"], "queue_timeout_ms": 300 });
    let begun = Instant::now();
    let answer = daemon.http("POST /v1/executions", &[JSON], body.to_string().as_bytes()).await;
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert_eq!((answer.status, answer.header("retry-after").as_deref()), (503, Some("5")));
    let problem = answer.problem();
    assert_eq!((problem.code.as_str(), problem.retryable), ("queue_timeout", true));
    assert!(problem.detail.contains("300 ms") && problem.detail.contains("limit of 1 containers"), "{problem:?}");
    assert_eq!(daemon.client.executions().await.unwrap().len(), 1, "nothing is kept of it");
    let metrics = daemon.client.metrics().await.unwrap();
    let timeout = r#"thawd_queue_wait_seconds_count{provider="test",outcome="timeout"}"#;
    assert_eq!(series(&metrics, timeout), Some(1.0));
    assert_eq!(series(&metrics, r#"thawd_refused_total{provider="test",reason="queue_timeout"}"#), Some(1.0));
    daemon.stop().await;
}

#[tokio::test]
async fn a_stream_that_waited_in_vain_ends_with_refused() {
    let daemon = Daemon::start(|setup| one_place(setup).set("queue.timeout_ms", 300)).await;
    occupy(&daemon).await;
    let stream = daemon.client.execute_stream(&by("a", "true")).await.unwrap();
    let id = stream.execution().unwrap().to_owned();
    let exit = never_ran(stream).await;
    assert_eq!((exit.reason, exit.success, exit.code), (ExitReason::Refused, false, None));
    assert!(exit.detail.unwrap().contains("no container became free"));
    // Its client knows the id, so it can still be asked for.
    let execution = daemon.client.execution(&id).await.unwrap();
    assert_eq!((execution.state, execution.exit.unwrap().reason), (ExecutionState::Exited, ExitReason::Refused));
    daemon.stop().await;
}

#[tokio::test]
async fn who_does_not_want_to_wait_is_refused_at_once() {
    let daemon = Daemon::start(one_place).await;
    occupy(&daemon).await;
    let request = ExecutionRequest { queue_timeout_ms: Some(0), ..by("a", "true") };
    let refused = problem(daemon.client.execute_stream(&request).await.unwrap_err());
    assert_eq!((refused.status, refused.code.as_str(), refused.retryable), (503, "container_limit", true));
    let too_long = ExecutionRequest { queue_timeout_ms: Some(60_001), ..by("a", "true") };
    let refused = problem(daemon.client.create(&too_long).await.unwrap_err());
    assert_eq!((refused.status, refused.code.as_str()), (400, "invalid_field"));
    assert!(refused.detail.contains("`queue_timeout_ms` must be at most 60000"), "{refused:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses_at_once() {
    let daemon = Daemon::start(|setup| one_place(setup).set("queue.max", 2)).await;
    occupy(&daemon).await;
    let mut streams = Vec::new();
    for user in ["a", "b"] {
        streams.push(daemon.client.execute_stream(&by(user, "true")).await.unwrap());
    }
    let body = json!({ "provider": "test", "user": "c", "command": ["true"] });
    let answer = daemon.http("POST /v1/executions", &[JSON], body.to_string().as_bytes()).await;
    assert_eq!((answer.status, answer.header("retry-after").as_deref()), (503, Some("5")));
    let refused = answer.problem();
    assert_eq!((refused.code.as_str(), refused.retryable), ("queue_full", true));
    assert!(refused.detail.contains("`queue.max`"), "{refused:?}");
    drop(streams);
    daemon.stop().await;
}

#[tokio::test]
async fn users_and_providers_take_turns() {
    let second = "name = \"other\"\nimage = \"test\"\nhome = \"/home/runtime\"\npool_target = 0\negress = []\n\
                  [credentials]\ndir = \".test\"\nfiles = [\"token\"]\nrequired = false\ntmpfs_mib = 1\n\
                  [resources.idle]\nmemory_mib = 64\ncpu = 0.1\n[resources.run]\nmemory_mib = 128\ncpu = 0.5\n";
    let daemon =
        Arc::new(Daemon::start(|setup| one_place(setup).add_provider(second).set("queue.timeout_ms", 60_000)).await);
    let occupant = occupy(&daemon).await;
    let mut streams = Vec::new();
    let requests = ["test/flood", "test/flood", "test/flood", "test/b", "other/c", "other/c"];
    for (number, name) in requests.into_iter().enumerate() {
        let (provider, user) = name.split_once('/').unwrap();
        let mut request = by(user, "true");
        provider.clone_into(&mut request.provider);
        streams.push(daemon.client.execute_stream(&request).await.unwrap());
        queued(&daemon, number + 1).await;
    }
    // As they will be served. Who is overtaken is told so a moment later.
    let positions = [1, 5, 6, 3, 2, 4];
    eventually("they know their places", || async {
        queued(&daemon, 6).await.into_iter().map(|(_, position)| position).eq(positions).then_some(())
    })
    .await;
    daemon.client.cancel(&occupant).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for (mut stream, position) in streams.into_iter().zip(positions) {
        let order = Arc::clone(&order);
        tasks.push(tokio::spawn(async move {
            while let Some(event) = stream.next().await {
                if let Event::Started(_) = event.unwrap().1 {
                    order.lock().unwrap().push(position);
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [1, 2, 3, 4, 5, 6], "served as foretold");
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test]
async fn cancelling_frees_the_place_in_the_queue() {
    let daemon = Daemon::start(one_place).await;
    occupy(&daemon).await;
    let first = daemon.client.execute_stream(&by("a", "true")).await.unwrap();
    let second = daemon.client.execute_stream(&by("b", "true")).await.unwrap();
    let ids = queued(&daemon, 2).await;
    assert_eq!(ids.iter().map(|(_, position)| *position).collect::<Vec<_>>(), [1, 2]);
    daemon.client.cancel(&ids[0].0).await.unwrap();
    assert_eq!(never_ran(first).await.reason, ExitReason::Cancelled);
    eventually("the other one moves up", || async {
        (queued(&daemon, 1).await == [(ids[1].0.clone(), 1)]).then_some(())
    })
    .await;
    drop(second);
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_the_queue() {
    let daemon = Daemon::start(|setup| one_place(setup).set("execution.disconnect_grace_ms", 300)).await;
    occupy(&daemon).await;
    let streaming = daemon.client.execute_stream(&by("a", "true")).await.unwrap();
    let body = json!({ "provider": "test", "user": "b", "command": ["true"], "background": true }).to_string();
    let waiting = daemon.open("POST /v1/executions", &[JSON], body.as_bytes()).await;
    let mut background = by("c", "true");
    background.background = true;
    let stays = daemon.client.execute_stream(&background).await.unwrap();
    let id = stays.execution().unwrap().to_owned();
    queued(&daemon, 3).await;
    drop((streaming, waiting, stays));
    // Who asked for background and knows its id stays, and is told its new place a moment after the others have left.
    let first = [(id.clone(), 1)];
    eventually("it is the first", || async { (queued(&daemon, 1).await == first).then_some(()) }).await;
    assert_eq!(daemon.pool().await.queued, 1);
    let metrics = daemon.client.metrics().await.unwrap();
    let left = r#"thawd_queue_wait_seconds_count{provider="test",outcome="left"}"#;
    assert_eq!(series(&metrics, left), Some(2.0));
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_comes_back_in_time_keeps_its_place_in_the_queue() {
    let daemon = Daemon::start(one_place).await;
    let occupant = occupy(&daemon).await;
    let stream = daemon.client.execute_stream(&by("a", "echo hello")).await.unwrap();
    let id = stream.execution().unwrap().to_owned();
    queued(&daemon, 1).await;
    for _ in 0..3 {
        drop(daemon.client.events(&id, None).await.unwrap());
    }
    drop(stream);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(queued(&daemon, 1).await, [(id.clone(), 1)]);
    let again = daemon.client.events(&id, None).await.unwrap();
    daemon.client.cancel(&occupant).await.unwrap();
    assert_eq!(Outcome::of(again).await.exited(0).text(), "hello\n");
    daemon.stop().await;
}

#[tokio::test]
async fn a_stop_ends_those_who_wait() {
    let daemon = Daemon::start(one_place).await;
    occupy(&daemon).await;
    let stream = daemon.client.execute_stream(&by("a", "true")).await.unwrap();
    let exit = tokio::spawn(never_ran(stream));
    queued(&daemon, 1).await;
    daemon.stop().await;
    assert_eq!(exit.await.unwrap().reason, ExitReason::Killed);
}

#[tokio::test]
async fn one_user_has_so_many_and_no_more() {
    let daemon = Daemon::start(|setup| setup.pool(0).set("execution.max_per_user", 2).set("container.max", 2)).await;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let mut request = by("a", "sleep 1000");
        request.background = true;
        ids.push(daemon.client.create(&request).await.unwrap().id);
    }
    let body = json!({ "provider": "test", "user": "a", "command": ["true"] }).to_string();
    let answer = daemon.http("POST /v1/executions", &[JSON], body.as_bytes()).await;
    assert_eq!((answer.status, answer.header("retry-after").as_deref()), (429, Some("1")));
    let refused = answer.problem();
    assert_eq!((refused.code.as_str(), refused.retryable, refused.status), ("user_limit", true, 429));
    assert!(refused.detail.contains("`execution.max_per_user`"), "{refused:?}");
    let metrics = daemon.client.metrics().await.unwrap();
    assert_eq!(series(&metrics, r#"thawd_refused_total{provider="test",reason="user_limit"}"#), Some(1.0));
    // Another user has a number of their own, and those that wait count.
    let waiting: Vec<_> = [
        daemon.client.execute_stream(&by("b", "true")).await.unwrap(),
        daemon.client.execute_stream(&by("b", "true")).await.unwrap(),
    ]
    .into();
    queued(&daemon, 2).await;
    let refused = problem(daemon.client.execute_stream(&by("b", "true")).await.unwrap_err());
    assert_eq!(refused.code, "user_limit");
    for id in &ids {
        daemon.client.cancel(id).await.unwrap();
    }
    for stream in waiting {
        Outcome::of(stream).await.exited(0);
    }
    daemon.run(&by("a", "true")).await.exited(0);
    daemon.stop().await;
}

#[tokio::test]
async fn a_crowd_is_served_bit_by_bit() {
    let (places, crowd) = if support::in_bed() { (3, 12) } else { (5, 40) };
    let setup = |setup: Setup| setup.pool(2).set("container.max", places).set("queue.timeout_ms", 60_000);
    let daemon = Arc::new(Daemon::start(setup).await);
    daemon.settled().await;
    let mut tasks = Vec::new();
    for number in 0..crowd {
        let daemon = Arc::clone(&daemon);
        tasks.push(tokio::spawn(async move {
            let outcome = daemon.run(&by(&format!("user-{}", number % 4), "echo served")).await.exited(0);
            assert_eq!(outcome.text(), "served\n");
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(daemon.settled().await.len(), 2, "and the pool is full again");
    assert_eq!(daemon.pool().await.queued, 0);
    Arc::into_inner(daemon).unwrap().stop().await;
}

#[tokio::test]
async fn images_wait_in_the_same_queue() {
    let daemon = Daemon::start(one_place).await;
    // Brings the image into the store.
    daemon.sh("true").await.exited(0);
    let occupant = occupy(&daemon).await;
    let request = ExecutionRequest {
        image: Some("test".to_owned()),
        user: "a".to_owned(),
        command: Some(vec!["/bin/echo".to_owned(), "hello".to_owned()]),
        ..ExecutionRequest::default()
    };
    let stream = daemon.client.execute_stream(&request).await.unwrap();
    queued(&daemon, 1).await;
    daemon.client.cancel(&occupant).await.unwrap();
    let outcome = Outcome::of(stream).await.exited(0);
    assert_eq!(outcome.text(), "hello\n");
    daemon.stop().await;
}

#[tokio::test]
async fn a_host_under_pressure_makes_requests_wait() {
    // More than any machine has, so that the limit is crossed for real.
    let daemon = Daemon::start(|setup| setup.pool(0).set("admission.min_available_bytes", 1_i64 << 50)).await;
    let change = PoolChange { target: Some(2), ..PoolChange::default() };
    daemon.client.change_pool::<Pool>("test", &change).await.unwrap();
    let pool = eventually("refilling pauses", || async {
        let pool = daemon.pool().await;
        pool.paused.is_some().then_some(pool)
    })
    .await;
    assert_eq!((pool.warm, pool.creating), (0, 0));
    let reason = pool.paused.unwrap();
    assert!(reason.contains("under pressure") && reason.contains("`admission.min_available_bytes`"), "{reason}");
    let request = ExecutionRequest { queue_timeout_ms: Some(300), ..by("a", "true") };
    let exit = never_ran(daemon.client.execute_stream(&request).await.unwrap()).await;
    assert_eq!(exit.reason, ExitReason::Refused);
    assert!(exit.detail.unwrap().contains("MiB of memory available"));
    let request = ExecutionRequest { queue_timeout_ms: Some(0), ..by("a", "true") };
    let refused = problem(daemon.client.create(&request).await.unwrap_err());
    assert_eq!((refused.status, refused.code.as_str(), refused.retryable), (503, "host_pressure", true));
    assert!(daemon.containers().await.is_empty());
    let metrics = daemon.client.metrics().await.unwrap();
    for what in ["claim", "refill"] {
        let name = format!(r#"thawd_admission_refused_total{{reason="memory",what="{what}"}}"#);
        assert!(series(&metrics, &name).unwrap() >= 1.0, "{metrics}");
    }
    assert!(daemon.log().contains("refilling paused"));
    daemon.stop().await;
}

/// Holds the image store, so that nothing can be unpacked.
fn hold_store(daemon: &Daemon) -> std::fs::File {
    let store = daemon.path("state/images");
    drop(thaw_image::Store::open(&store).unwrap());
    let lock = std::fs::File::options().create(true).append(true).open(store.join("lock")).unwrap();
    lock.lock().unwrap();
    lock
}

#[tokio::test]
async fn a_request_that_comes_while_the_image_is_unpacked_waits_like_any_other() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(1).set("queue.max", 2));
    let lock = hold_store(&daemon);
    daemon.spawn(&[]);
    eventually("it serves", || async { daemon.client.healthz().await.ok() }).await;
    // At once, if it does not want to wait.
    let mut impatient = by("a", "true");
    impatient.queue_timeout_ms = Some(0);
    let refused = problem(daemon.client.create(&impatient).await.unwrap_err());
    assert_eq!((refused.status, refused.code.as_str()), (503, "provider_not_ready"), "{refused:?}");
    // In vain, if that takes too long.
    impatient.queue_timeout_ms = Some(200);
    let refused = problem(daemon.client.create(&impatient).await.unwrap_err());
    assert_eq!((refused.status, refused.code.as_str()), (503, "queue_timeout"), "{refused:?}");
    assert!(refused.detail.contains("image is being unpacked"), "{refused:?}");
    // Else it is told that it waits, and served.
    let mut stream = daemon.client.execute_stream(&by("a", "echo served")).await.unwrap();
    let first = stream.next().await.unwrap().unwrap();
    assert!(matches!(&first.1, Event::Queued(told) if told.position == 1), "{first:?}");
    let _second = daemon.client.execute_stream(&by("b", "echo too")).await.unwrap();
    let full = problem(daemon.client.create(&by("c", "true")).await.unwrap_err());
    assert_eq!((full.status, full.code.as_str()), (503, "queue_full"), "{full:?}");
    drop(lock);
    let mut events = vec![first];
    events.extend(support::collect(stream).await);
    assert_eq!(Outcome::from_events(events).exited(0).text(), "served\n");
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_request_that_waits_for_an_image_that_cannot_be_unpacked_is_told_why() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(1).provider("image", "absent"));
    let lock = hold_store(&daemon);
    // There is something to be unpacked, which turns out to be nothing of use.
    let layout = daemon.path("layouts/absent");
    std::fs::create_dir_all(&layout).unwrap();
    std::fs::write(layout.join("index.json"), "{}").unwrap();
    std::fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
    let config = daemon.path("thawd.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let mut table: toml::Table = text.parse().unwrap();
    table["paths"]
        .as_table_mut()
        .unwrap()
        .insert("layouts_dir".to_owned(), daemon.path("layouts").to_str().unwrap().into());
    std::fs::write(&config, table.to_string()).unwrap();
    daemon.spawn(&[]);
    eventually("it serves", || async { daemon.client.healthz().await.ok() }).await;
    let client = daemon.client.clone();
    let asked = tokio::spawn(async move { client.create(&by("a", "true")).await });
    eventually("it waits or is refused", || async {
        let waits = !daemon.client.executions().await.unwrap().is_empty();
        (waits || asked.is_finished()).then_some(())
    })
    .await;
    drop(lock);
    let refused = problem(tokio::time::timeout(support::PATIENCE, asked).await.unwrap().unwrap().unwrap_err());
    assert_eq!((refused.status, refused.code.as_str()), (503, "provider_not_ready"), "{refused:?}");
    assert!(refused.detail.contains("absent"), "{refused:?}");
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.ended().await.success());
}
