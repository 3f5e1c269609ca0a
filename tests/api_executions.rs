//! What a controller does with executions besides starting and reading them: finds, awaits, counts and deletes them, and
//! asks for the same one twice.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Answer, Daemon, Outcome, eventually, shell};
use thaw_client::time::Timestamp;
use thaw_client::types::{Execution, ExecutionFilter, ExecutionRequest, ExecutionState, ExitReason};

const JSON: (&str, &str) = ("content-type", "application/json");

/// The executions that a query finds, newest first.
async fn found(daemon: &Daemon, query: &str) -> Vec<String> {
    let answer = daemon.http(&format!("GET /v1/executions{query}"), &[], b"").await;
    assert_eq!(answer.status, 200, "{query}: {}", answer.text());
    let page: Value = serde_json::from_slice(&answer.body).unwrap();
    page["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

fn of(user: &str, label: &str, script: &str) -> ExecutionRequest {
    let labels = [("team".to_owned(), label.to_owned()), ("job of".to_owned(), "night & day".to_owned())].into();
    ExecutionRequest { user: user.to_owned(), labels, ..shell(script) }
}

#[tokio::test]
async fn executions_are_found_by_what_they_are_newest_first() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let alice = "auth0|5f7c8ec7c33c6c004bbafe82";
    let mut ids = Vec::new();
    for (user, label) in [(alice, "red"), ("bob@example.org", "red"), (alice, "blue")] {
        ids.push(daemon.run(&of(user, label, "true")).await.exited(0).started.execution);
    }
    let since = daemon.client.execution(&ids[2]).await.unwrap().created_at.unwrap();
    let running = daemon.client.create(&of(alice, "red", "sleep 1000")).await.unwrap().id;
    ids.push(running.clone());
    let some = |indices: &[usize]| indices.iter().map(|index| ids[*index].clone()).collect::<Vec<_>>();
    for (query, expected) in [
        (String::new(), some(&[3, 2, 1, 0])),
        ("?user=auth0%7C5f7c8ec7c33c6c004bbafe82".to_owned(), some(&[3, 2, 0])),
        ("?user=bob@example.org".to_owned(), some(&[1])),
        ("?user=nobody".to_owned(), vec![]),
        ("?state=running".to_owned(), some(&[3])),
        ("?state=exited&label.team=red".to_owned(), some(&[1, 0])),
        ("?label.job+of=night+%26+day&label.team=blue".to_owned(), some(&[2])),
        ("?label.team=".to_owned(), vec![]),
        ("?provider=test&limit=2".to_owned(), some(&[3, 2])),
        ("?provider=other".to_owned(), vec![]),
        (format!("?since={since}"), some(&[3, 2])),
        ("?since=2999-01-01T00:00:00Z".to_owned(), vec![]),
        (format!("?cursor={}", ids[2]), some(&[1, 0])),
    ] {
        assert_eq!(found(&daemon, &query).await, expected, "{query}");
    }
    // Page after page; one that is deleted or started meanwhile shifts nothing.
    let mut filter = ExecutionFilter { limit: Some(1), ..ExecutionFilter::default() };
    let mut read = Vec::new();
    loop {
        let page = daemon.client.executions_where::<Execution>(&filter).await.unwrap();
        assert_eq!(page.items.len(), 1);
        read.push(page.items[0].id.clone());
        if read.len() == 2 {
            daemon.client.delete(&read[1]).await.unwrap();
            daemon.run(&of("carol", "red", "true")).await.exited(0);
        }
        filter.cursor = page.next_cursor;
        if filter.cursor.is_none() {
            break;
        }
    }
    assert_eq!(read, some(&[3, 2, 1, 0]));
    for query in [
        "?state=ended",
        "?limit=0",
        "?limit=x",
        "?since=today",
        "?cursor=%2F",
        "?label=red",
        "?label.=red",
        "?labels=a",
    ] {
        let problem = daemon.http(&format!("GET /v1/executions{query}"), &[], b"").await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_query"), "{query}");
    }
    daemon.client.cancel(&running).await.unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn times_are_told_and_a_wait_ends_with_the_execution() {
    let mut daemon = Daemon::start(|setup| setup.pool(1).set("container.max", 1)).await;
    daemon.settled().await;
    let before = Timestamp::now();
    let first = daemon.client.create(&shell("sleep 0.7; echo done")).await.unwrap();
    assert_eq!((first.state, first.queued_ms, first.ended_at), (ExecutionState::Running, 0, None));
    assert!(first.created_at.unwrap() >= before && first.started_at.unwrap() >= first.created_at.unwrap());
    assert_eq!(first.created_at.unwrap().unix_ms(), first.created_at_ms);
    // There is one place: the second one waits for the first.
    let second = tokio::spawn({
        let client = daemon.client.clone();
        async move { Outcome::of(client.execute_stream(&shell("true")).await.unwrap()).await }
    });
    let asked = Instant::now();
    let as_it_was = daemon.client.execution_after(&first.id, Duration::from_millis(50)).await.unwrap();
    assert_eq!(as_it_was.state, ExecutionState::Running, "the wait was over before");
    let ended = daemon.client.execution_after(&first.id, Duration::from_secs(60)).await.unwrap();
    assert!(asked.elapsed() < Duration::from_secs(30), "it came with the end, not with the end of the wait");
    let (started_at, ended_at) = (ended.started_at.unwrap(), ended.ended_at.unwrap());
    assert_eq!(ended.state, ExecutionState::Exited);
    assert!(ended_at.unix_ms() - started_at.unix_ms() >= 700, "{started_at} {ended_at}");
    assert_eq!(ended.exit.as_ref().unwrap().at, ended.ended_at);
    let outcome = second.await.unwrap().exited(0);
    let waited = daemon.client.execution(&outcome.started.execution).await.unwrap();
    assert!(waited.queued_ms >= 100, "{} ms", waited.queued_ms);
    // Every event says when.
    let all = support::collect(daemon.client.events(&first.id, None).await.unwrap()).await;
    let times: Vec<_> = all.iter().map(|(_, event)| event.at().unwrap()).collect();
    assert!(times.is_sorted() && times[0] == started_at && *times.last().unwrap() == ended_at, "{all:?}");
    // The next daemon says the same.
    let known = |list: Vec<Execution>| {
        let times = list.into_iter().map(|one| (one.id, one.created_at, one.started_at, one.ended_at, one.queued_ms));
        times.collect::<Vec<_>>()
    };
    let told = known(daemon.client.executions().await.unwrap());
    daemon.kill();
    daemon.launch().await;
    assert_eq!(known(daemon.client.executions().await.unwrap()), told);
    let again = support::collect(daemon.client.events(&first.id, None).await.unwrap()).await;
    assert_eq!(again.iter().map(|(_, event)| event.at().unwrap()).collect::<Vec<_>>(), times);
    daemon.stop().await;
}

#[tokio::test]
async fn a_deleted_execution_is_gone_with_its_output() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    let marker = "a-secret-of-the-user";
    let running = daemon.client.create(&shell(&format!("echo {marker}; sleep 1000"))).await.unwrap().id;
    let problem = daemon.http(&format!("DELETE /v1/executions/{running}"), &[], b"").await.problem();
    assert_eq!((problem.status, problem.code.as_str(), problem.retryable), (409, "still_running", false));
    let script = format!("echo {marker} | tee kept; head -c 3000000 /dev/zero");
    let request = ExecutionRequest { collect: vec!["kept".to_owned()], ..shell(&script) };
    let outcome = daemon.run(&request).await.exited(0);
    let id = outcome.started.execution;
    // A container that is created or destroyed meanwhile has open files too.
    daemon.settled_beside(1).await;
    let files = || support::open_files(daemon.pid()).len();
    let keeper = daemon.keeper().unwrap().pid;
    let (before, kept) = (files(), support::open_files(keeper).len());
    daemon.client.delete(&id).await.unwrap();
    for path in ["", "/events", "/stdout", "/stats", "/files", "/archive"] {
        let problem = daemon.http(&format!("GET /v1/executions/{id}{path}"), &[], b"").await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (404, "not_found"), "{path}");
    }
    assert_eq!(daemon.http(&format!("DELETE /v1/executions/{id}"), &[], b"").await.status, 404);
    assert_eq!(found(&daemon, "").await, std::slice::from_ref(&running));
    eventually("its four files are closed here", || async { (files() <= before - 4).then_some(()) }).await;
    eventually("and at the keeper", || async { (support::open_files(keeper).len() == kept - 4).then_some(()) }).await;
    daemon.kill();
    daemon.launch().await;
    assert_eq!(found(&daemon, "").await, std::slice::from_ref(&running), "the next daemon does not know it either");
    // One that somebody still reads: the reader learns that the rest is gone.
    daemon.client.cancel(&running).await.unwrap();
    daemon.client.execution_after(&running, Duration::from_secs(60)).await.unwrap();
    daemon.client.delete(&running).await.unwrap();
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_an_execution_uses_is_told_while_it_runs_and_afterwards() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let id =
        daemon.client.create(&shell("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; sleep 1000")).await.unwrap().id;
    let busy = eventually("it has used something", || async {
        let stats = daemon.client.stats(&id).await.unwrap();
        (stats.cpu_ms > 20).then_some(stats)
    })
    .await;
    let usage = busy.usage.unwrap();
    assert_eq!((busy.state, busy.execution.as_str()), (ExecutionState::Running, id.as_str()));
    assert!(busy.run_ms > 0 && usage.memory_limit_bytes > 0 && busy.memory_peak_bytes > 0, "{busy:?}");
    daemon.client.cancel(&id).await.unwrap();
    let exit = daemon.client.execution_after(&id, Duration::from_secs(60)).await.unwrap().exit.unwrap();
    let ended = daemon.client.stats(&id).await.unwrap();
    assert_eq!((ended.state, ended.cpu_ms, ended.run_ms), (ExecutionState::Exited, exit.cpu_ms, exit.duration_ms));
    assert!(ended.usage.is_none() && ended.cpu_ms >= busy.cpu_ms);
    daemon.stop().await;
}

#[tokio::test]
async fn the_daemon_says_what_it_is_and_allows() {
    let daemon = Daemon::start(|setup| {
        setup.pool(0).set("container.max", 7).set("execution.max_per_user", 3).set("api.max_body_bytes", 4096)
    })
    .await;
    let version = daemon.client.version().await.unwrap();
    assert_eq!(version.version, env!("CARGO_PKG_VERSION"));
    assert!(version.features.contains(&"idempotency_key".to_owned()) && version.features.is_sorted());
    let limits = version.limits;
    assert_eq!((limits.max_containers, limits.max_executions_per_user, limits.max_body_bytes), (7, 3, 4096));
    assert_eq!((limits.max_user_characters, limits.max_page, limits.max_wait_ms), (128, 1000, 300_000));
    daemon.stop().await;
}

async fn post(daemon: &Daemon, key: &str, headers: &[(&str, &str)], body: &ExecutionRequest) -> Answer {
    let headers = [&[JSON, ("idempotency-key", key)], headers].concat();
    daemon.http("POST /v1/executions", &headers, &serde_json::to_vec(body).unwrap()).await
}

fn id(answer: &Answer) -> String {
    answer.header("location").unwrap_or_else(|| panic!("{}", answer.text())).rsplit('/').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_request_with_a_key_is_carried_out_once() {
    let mut daemon = Daemon::start(|setup| setup.pool(1).set("execution.max_per_user", 2)).await;
    daemon.settled().await;
    let request = of("u1", "red", "echo once");
    let first = post(&daemon, "k 1", &[], &request).await;
    assert_eq!((first.status, first.header("idempotency-replayed")), (201, None));
    let same = id(&first);
    for headers in [&[][..], &[("accept", "text/event-stream")], &[("accept", "application/octet-stream")]] {
        let again = post(&daemon, "k 1", headers, &request).await;
        assert_eq!((id(&again), again.header("idempotency-replayed").as_deref()), (same.clone(), Some("true")));
        match headers {
            [] => assert_eq!(again.status, 201),
            [(_, "text/event-stream")] => {
                assert!(again.text().contains("event: started") && again.text().contains("event: exit"))
            }
            _ => assert_eq!(again.text(), "once\n"),
        }
    }
    // In another order the fields mean the same; another request is another request; another user has keys of their own.
    let mut body = serde_json::to_value(&request).unwrap();
    let reordered: String = {
        let fields = body.as_object().unwrap().iter().rev();
        let fields: Vec<_> = fields.map(|(name, value)| format!("{} : {value}", json!(name))).collect();
        format!("{{ {} }}", fields.join(" , "))
    };
    let again = daemon.http("POST /v1/executions", &[JSON, ("idempotency-key", "k 1")], reordered.as_bytes()).await;
    assert_eq!(id(&again), same);
    body["labels"]["team"] = json!("blue");
    let other: ExecutionRequest = serde_json::from_value(body).unwrap();
    let problem = post(&daemon, "k 1", &[], &other).await.problem();
    assert_eq!((problem.status, problem.code.as_str(), problem.retryable), (422, "idempotency_key_reused", false));
    assert!(problem.kind.ends_with("#idempotency_key_reused"), "{}", problem.kind);
    assert_ne!(
        id(&post(&daemon, "k 1", &[], &ExecutionRequest { user: "u2".to_owned(), ..request.clone() }).await),
        same
    );
    for bad in ["", &"k".repeat(256), "a\tb"] {
        let problem = post(&daemon, bad, &[], &request).await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_idempotency_key"), "{bad:?}");
    }
    let twice = post(&daemon, "k 1", &[("idempotency-key", "k 2")], &request).await.problem();
    assert_eq!(twice.code, "invalid_idempotency_key");
    // What was refused has not used up its key.
    let wrong = ExecutionRequest { timeout_ms: Some(0), ..request.clone() };
    assert_eq!(post(&daemon, "k 3", &[], &wrong).await.status, 400);
    assert_eq!(post(&daemon, "k 3", &[], &request).await.status, 201);
    // The next daemon knows the keys; a deleted execution takes its key along.
    daemon.kill();
    daemon.launch().await;
    assert_eq!(id(&post(&daemon, "k 1", &[], &request).await), same);
    assert_eq!(post(&daemon, "k 1", &[], &other).await.status, 422);
    daemon.client.delete(&same).await.unwrap();
    let anew = post(&daemon, "k 1", &[], &other).await;
    assert_eq!((anew.status, anew.header("idempotency-replayed")), (201, None));
    assert_ne!(id(&anew), same);
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_request_that_comes_again_while_the_first_is_under_way_joins_it() {
    let mut daemon =
        Daemon::start(|setup| setup.pool(1).set("container.max", 1).set("execution.max_per_user", 40)).await;
    daemon.settled().await;
    // Both at once, many times over: nobody runs twice.
    let request = of("u1", "red", "echo $$; sleep 0.2");
    let all: Vec<_> = (0..20)
        .map(|_| {
            let (socket, body) = (daemon.socket(), serde_json::to_vec(&request).unwrap());
            tokio::spawn(async move {
                Answer::to(&socket, "POST /v1/executions", &[JSON, ("idempotency-key", "together")], &body).await
            })
        })
        .collect();
    let (mut ids, mut replayed) = (BTreeSet::new(), 0);
    for answer in all {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 201, "{}", answer.text());
        replayed += usize::from(answer.header("idempotency-replayed").is_some());
        ids.insert(id(&answer));
    }
    assert_eq!((ids.len(), replayed), (1, 19));
    assert_eq!(found(&daemon, "").await.len(), 1);
    // While it waits for the only place; its client goes away, and the one that joined it gets an execution.
    let blocker = daemon.client.create(&shell("sleep 1000")).await.unwrap().id;
    let body = serde_json::to_vec(&of("u1", "red", "echo late")).unwrap();
    let headers = [JSON, ("idempotency-key", "queued")];
    let first = daemon.open("POST /v1/executions", &headers, &body).await;
    eventually("it waits", || async { (found(&daemon, "?state=queued").await.len() == 1).then_some(()) }).await;
    let second = tokio::spawn({
        let (socket, body) = (daemon.socket(), body.clone());
        async move { Answer::to(&socket, "POST /v1/executions", &headers, &body).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(found(&daemon, "?state=queued").await.len(), 1, "it joined");
    drop(first);
    daemon.client.cancel(&blocker).await.unwrap();
    let answer = second.await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    let ended = daemon.client.execution_after(&id(&answer), Duration::from_secs(60)).await.unwrap();
    assert_eq!(ended.exit.unwrap().reason, ExitReason::Exited);
    // One that runs when the daemon is killed is joined at the next one.
    let request = of("u1", "red", "sleep 1; echo survived");
    let running = id(&post(&daemon, "over the restart", &[], &request).await);
    daemon.kill();
    daemon.launch().await;
    let joined = post(&daemon, "over the restart", &[("accept", "application/octet-stream")], &request).await;
    assert_eq!((id(&joined), joined.text().as_str()), (running, "survived\n"));
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_happens_in_the_daemon_is_streamed_to_whoever_watches() {
    use thaw_client::types::{ClaimPath, DaemonEventKind as Kind};
    let mut daemon = Daemon::start(|setup| setup.pool(1).set("container.max", 1)).await;
    daemon.settled().await;
    let begun = Timestamp::now();
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let mut all = daemon.client.daemon_events(Vec::new()).await.unwrap();
    let mut of_bob = daemon.client.daemon_events(vec![pair("user", "bob")]).await.unwrap();
    let mut ends = daemon.client.daemon_events(vec![pair("kind", "execution_exited,execution_deleted")]).await.unwrap();
    let first = daemon.client.create(&of("alice", "red", "sleep 0.5")).await.unwrap().id;
    let second = daemon.client.create(&of("bob", "red", "exit 3")).await.unwrap().id;
    daemon.client.execution_after(&second, Duration::from_secs(60)).await.unwrap();
    daemon.client.delete(&second).await.unwrap();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|(kind, _)| *kind != Kind::ExecutionDeleted) {
        let event = all.next().await.unwrap();
        assert!(event.at >= begun && event.provider.as_deref() == Some("test"), "{event:?}");
        match event.kind {
            Kind::ExecutionStarted => assert!(
                event.path
                    == Some(if event.execution.as_ref() == Some(&first) {
                        ClaimPath::Warm
                    } else {
                        event.path.unwrap()
                    })
            ),
            Kind::ExecutionExited => {
                let failed = event.execution.as_ref() == Some(&second);
                assert_eq!((event.reason, event.success), (Some(ExitReason::Exited), Some(!failed)), "{event:?}");
            }
            Kind::ExecutionQueued => assert_eq!(event.position, Some(1)),
            _ => {}
        }
        seen.push((event.kind, event.execution.unwrap_or_default()));
    }
    seen.retain(|(_, execution)| !execution.is_empty());
    let expected = [
        (Kind::ExecutionStarted, &first),
        (Kind::ExecutionQueued, &second),
        (Kind::ExecutionExited, &first),
        (Kind::ExecutionStarted, &second),
        (Kind::ExecutionExited, &second),
        (Kind::ExecutionDeleted, &second),
    ];
    assert_eq!(seen.iter().map(|(kind, id)| (*kind, id)).collect::<Vec<_>>(), expected);
    for kind in [Kind::ExecutionQueued, Kind::ExecutionStarted, Kind::ExecutionExited, Kind::ExecutionDeleted] {
        assert_eq!(of_bob.next().await.unwrap().kind, kind, "of bob");
    }
    for (kind, id) in
        [(Kind::ExecutionExited, &first), (Kind::ExecutionExited, &second), (Kind::ExecutionDeleted, &second)]
    {
        let event = ends.next().await.unwrap();
        assert_eq!((event.kind, event.execution.as_ref()), (kind, Some(id)));
    }
    // Pools are told of too.
    let change = daemon.http("PUT /v1/pools/test", &[JSON], br#"{"target":0}"#).await;
    assert_eq!(change.status, 200, "{}", change.text());
    loop {
        let event = all.next().await.unwrap();
        if event.kind == Kind::PoolChanged {
            assert_eq!((event.provider.as_deref(), event.target), (Some("test"), Some(0)), "{event:?}");
            break;
        }
    }
    // What is kept can be had later; each has an id to go on from.
    let mut again =
        daemon.client.daemon_events(vec![pair("since", &begun.to_string()), pair("user", "alice")]).await.unwrap();
    assert_eq!(again.next().await.unwrap().kind, Kind::ExecutionStarted);
    // The next daemon has other events: who comes back is told that some may be missing, and goes on.
    daemon.kill();
    daemon.launch().await;
    daemon.settled().await;
    let third = daemon.client.create(&of("alice", "red", "true")).await.unwrap().id;
    assert_eq!(all.next().await.unwrap().kind, Kind::Gap);
    loop {
        let event = all.next().await.unwrap();
        if event.kind == Kind::ExecutionStarted {
            assert_eq!(event.execution.as_ref(), Some(&third));
            break;
        }
    }
    for (request, headers, code) in [
        ("GET /v1/events?kind=nothing", &[][..], "invalid_query"),
        ("GET /v1/events?since=now", &[], "invalid_query"),
        (
            "GET /v1/events?since=2026-11-30T02:15:00Z",
            &[("last-event-id", "01kb9w3v0v6p7x2c4m5n8q9r0s-1")],
            "invalid_query",
        ),
        ("GET /v1/events", &[("last-event-id", "7")], "invalid_last_event_id"),
    ] {
        assert_eq!(daemon.http(request, headers, b"").await.problem().code, code, "{request}");
    }
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn the_commands_of_the_page_about_the_api_work() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/api.md")).unwrap();
    let blocks: Vec<_> =
        page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect();
    assert!(blocks.len() >= 8, "{}", blocks.len());
    let script = format!("set -eu -o pipefail\n{}", blocks.concat());
    let done = tokio::process::Command::new("bash")
        .args(["-xc", &script])
        .env("THAWD_SOCKET", daemon.socket())
        .output()
        .await
        .unwrap();
    assert!(
        done.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    daemon.stop().await;
}
