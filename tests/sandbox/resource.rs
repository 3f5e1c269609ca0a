//! The resource: created, got, listed, changed, deleted, each once.

use std::collections::BTreeSet;

use thaw_client::types::{
    ContainerState, Sandbox, SandboxChange, SandboxFilter, SandboxLifecycle, SandboxReason, SandboxRequest,
    SandboxState,
};

use super::{all, created, now, problem, run, usual, wanted};
use crate::support::Daemon;

#[tokio::test(flavor = "multi_thread")]
async fn one_is_created_out_of_a_warm_container_listed_changed_and_deleted() {
    let daemon = Daemon::start(usual).await;
    let warm: BTreeSet<String> = daemon.settled().await.into_iter().map(|container| container.id).collect();
    let sandbox = created(&daemon, r#"{"name":"dev","labels":{"team":"red"},"env":{"KEY":"hush"}}"#).await;
    assert!(sandbox.id.starts_with("s-"));
    assert_eq!((sandbox.state, sandbox.reason), (SandboxState::Active, SandboxReason::Created));
    assert_eq!((sandbox.name.as_deref(), &*sandbox.user, &*sandbox.template), (Some("dev"), "u1", "test"));
    assert_eq!(sandbox.env, ["KEY"], "names, and no values");
    let id = sandbox.container.clone().unwrap();
    assert!(warm.contains(&id), "it was warm");
    let container = daemon.container(&id).await;
    assert_eq!((container.state, container.frozen), (ContainerState::Claimed, false));
    assert_eq!((container.sandbox.clone(), container.user.clone()), (Some(sandbox.id.clone()), Some("u1".to_owned())));
    let by_name: Sandbox = daemon.client.named_sandbox("u1", "dev").await.unwrap();
    assert_eq!(by_name.id, sandbox.id);

    let other = created(&daemon, "{}").await;
    assert_eq!(other.name, None);
    let list = |filter: SandboxFilter| {
        let client = &daemon.client;
        async move {
            let page = client.sandboxes_where::<Sandbox>(&filter).await.unwrap();
            (page.items.into_iter().map(|one| one.id).collect::<Vec<_>>(), page.next_cursor)
        }
    };
    let both = vec![other.id.clone(), sandbox.id.clone()];
    assert_eq!(list(SandboxFilter::default()).await, (both.clone(), None), "newest first");
    let red = SandboxFilter { labels: [("team".to_owned(), "red".to_owned())].into(), ..Default::default() };
    assert_eq!(list(red).await.0, std::slice::from_ref(&sandbox.id));
    let of_other = SandboxFilter { user: Some("u2".to_owned()), ..Default::default() };
    assert!(list(of_other).await.0.is_empty());
    let active = SandboxFilter { state: Some(SandboxState::Active), ..Default::default() };
    assert_eq!(list(active).await.0, both);
    let first = SandboxFilter { limit: Some(1), ..Default::default() };
    let (page, cursor) = list(first.clone()).await;
    assert_eq!(page, both[..1]);
    let (page, cursor) = list(SandboxFilter { cursor, ..first }).await;
    assert_eq!((page.as_slice(), cursor), (&both[1..], None));

    let lifecycle = SandboxLifecycle { destroy_after_s: Some(7200), ..Default::default() };
    let change = SandboxChange {
        labels: Some([("a".to_owned(), "b".to_owned())].into()),
        lifecycle: Some(lifecycle),
        env: None,
    };
    let changed: Sandbox = daemon.client.change_sandbox(&sandbox.id, &change).await.unwrap();
    assert_eq!((changed.labels["a"].as_str(), changed.labels.len(), changed.lifecycle), ("b", 1, lifecycle));
    let nothing: Sandbox = daemon.client.change_sandbox(&sandbox.id, &SandboxChange::default()).await.unwrap();
    assert_eq!((nothing.labels, nothing.lifecycle), (changed.labels, lifecycle), "what is absent stays");

    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    daemon.gone(&container).await;
    let gone = now(&daemon, &sandbox).await;
    assert_eq!((gone.state, gone.reason, gone.container), (SandboxState::Gone, SandboxReason::Requested, None));
    let refused = problem(daemon.client.change_sandbox::<Sandbox>(&sandbox.id, &SandboxChange::default()).await);
    assert_eq!((refused.status, &*refused.code), (409, "sandbox_gone"));
    assert!(refused.detail.contains("somebody deleted it"), "{}", refused.detail);
    // Its name is free, and whoever deletes it again has it forgotten.
    let again = created(&daemon, r#"{"name":"dev"}"#).await;
    let by_name: Sandbox = daemon.client.named_sandbox("u1", "dev").await.unwrap();
    assert_eq!(by_name.id, again.id);
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    assert_eq!(problem(daemon.client.sandbox::<Sandbox>(&sandbox.id).await).code, "not_found");
    assert_eq!(problem(daemon.client.delete_sandbox(&sandbox.id).await).code, "not_found");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn get_or_create_gives_one_however_many_come() {
    let daemon = Daemon::start(usual).await;
    let path = "PUT /v1/users/u1/sandboxes/dev";
    let body = br#"{"template":"test","env":{"KEY":"hush"},"labels":{"x":"1"}}"#;
    let answers = futures_util::future::join_all((0..20).map(|_| daemon.http(path, &[], body))).await;
    let new = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!((new, answers.iter().filter(|answer| answer.status == 200).count()), (1, 19));
    let ids: BTreeSet<String> = answers.iter().map(|answer| answer.json()["id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(all(&daemon).await.len(), 1);
    let other = daemon.http(path, &[], br#"{"template":"test","env":{"KEY":"hidden"},"labels":{"x":"2"}}"#).await;
    assert_eq!((other.status, other.json()["code"].as_str()), (409, Some("sandbox_differs")));
    let detail = other.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains(r#"`env` differ in ["KEY"]"#) && detail.contains(r#"`labels` differ in ["x"]"#),
        "{detail}"
    );
    assert!(!detail.contains("hush") && !detail.contains("hidden"), "{detail}");
    for (bad, code) in [
        (&br#"{"template":"test","name":"other"}"#[..], "unknown_field"),
        (br#"{"template":"test","user":"u2"}"#, "unknown_field"),
        (br#"{}"#, "missing_field"),
    ] {
        assert_eq!(daemon.http(path, &[], bad).await.json()["code"], code);
    }
    // Another user's has nothing to do with it.
    let theirs = daemon.http("PUT /v1/users/u%402/sandboxes/dev", &[], body).await;
    assert_eq!((theirs.status, theirs.json()["user"].as_str()), (201, Some("u@2")));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_with_its_key_creates_nothing_whichever_daemon_gets_it() {
    let mut daemon = Daemon::start(usual).await;
    let body = br#"{"template":"test","user":"u1","name":"dev"}"#;
    let post = "POST /v1/sandboxes";
    let key = [("idempotency-key", "k-1")];
    let first = daemon.http(post, &key, body).await;
    let second = daemon.http(post, &key, body).await;
    daemon.kill();
    daemon.launch().await;
    let third = daemon.http(post, &key, body).await;
    assert_eq!([first.status, second.status, third.status], [201; 3]);
    assert_eq!(
        (first.header("idempotency-replayed"), second.header("idempotency-replayed").as_deref()),
        (None, Some("true"))
    );
    assert_eq!(third.header("idempotency-replayed").as_deref(), Some("true"));
    assert_eq!((&first.json()["id"], &first.json()["id"]), (&second.json()["id"], &third.json()["id"]));
    let other = daemon.http(post, &key, br#"{"template":"test","user":"u1","name":"two"}"#).await;
    assert_eq!((other.status, other.json()["code"].as_str()), (422, Some("idempotency_key_reused")));
    let of_other = daemon.http(post, &key, br#"{"template":"test","user":"u2","name":"two"}"#).await;
    assert_eq!(of_other.status, 201, "a key is a user's own");
    let taken = daemon.http(post, &[], body).await;
    assert_eq!((taken.status, taken.json()["code"].as_str()), (409, Some("name_taken")));
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_no_more_than_the_limits_say() {
    let daemon = Daemon::start(|setup| usual(setup).set("sandbox.max", 3).set("sandbox.max_per_user", 2)).await;
    let of = |user: &str| SandboxRequest { user: user.to_owned(), ..wanted("{}") };
    let create = |user: &str| {
        let request = of(user);
        let client = &daemon.client;
        async move { client.create_sandbox::<Sandbox>(&request, None).await }
    };
    let first = create("u1").await.unwrap();
    create("u1").await.unwrap();
    let refused = problem(create("u1").await);
    assert_eq!((refused.status, &*refused.code, refused.retryable), (429, "sandbox_user_limit", true));
    create("u2").await.unwrap();
    let refused = problem(create("u2").await);
    assert_eq!((refused.status, &*refused.code, refused.retryable), (503, "sandbox_limit", true));
    daemon.client.delete_sandbox(&first.id).await.unwrap();
    create("u2").await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_gone_is_forgotten_after_a_while() {
    let daemon = Daemon::start(|setup| usual(setup).set("sandbox.retained", 1)).await;
    let mut sandboxes = Vec::new();
    for _ in 0..3 {
        sandboxes.push(created(&daemon, "{}").await);
    }
    for sandbox in &sandboxes {
        daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    }
    crate::support::eventually("two are forgotten", || async { (all(&daemon).await.len() == 1).then_some(()) }).await;
    assert_eq!(all(&daemon).await[0].id, sandboxes[2].id, "the oldest first");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_mistake_is_named_and_makes_nothing() {
    let daemon = Daemon::start(usual).await;
    for (body, code, about) in [
        (r#"{"template":"test","user":"u1","volumes":[]}"#, "unknown_field", "volumes"),
        (r#"{"template":"test","user":"u1","image":"test"}"#, "unknown_field", "image"),
        (r#"{"template":"test","user":"u1","lifecycle":{"stop_after_s":5}}"#, "invalid_field", "stop_after_s"),
        (r#"{"template":"test"}"#, "missing_field", "user"),
        (r#"{"user":"u1"}"#, "missing_field", "template"),
        (r#"{"template":"nobody","user":"u1"}"#, "unknown_template", "nobody"),
        (r#"{"template":"test","user":"u 1"}"#, "invalid_field", "`user`"),
        (r#"{"template":"test","user":"u1","name":"A"}"#, "invalid_field", "`name`"),
        (r#"{"template":"test","user":"u1","env":{"A=B":""}}"#, "invalid_field", "`env`"),
        (r#"{"template":"test","user":"u1","lifecycle":{"freeze_after_s":0}}"#, "invalid_field", "freeze_after_s"),
    ] {
        let answer = daemon.http("POST /v1/sandboxes", &[], body.as_bytes()).await;
        assert_eq!((answer.status, answer.json()["code"].as_str()), (400, Some(code)), "{body}");
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains(about), "{body}: {detail}");
    }
    for (request, status) in [
        ("GET /v1/sandboxes?provider=test", 400),
        ("GET /v1/sandboxes?state=running", 400),
        ("GET /v1/sandboxes/s-none", 404),
        ("POST /v1/sandboxes/s-none/freeze", 404),
        ("POST /v1/sandboxes/s-none/wake", 404),
        ("DELETE /v1/sandboxes/s-none", 404),
        ("GET /v1/users/u1/sandboxes/none", 404),
        ("GET /v1/users/u1/sandboxes/A", 400),
        ("PUT /v1/sandboxes", 405),
    ] {
        assert_eq!(daemon.http(request, &[], b"").await.status, status, "{request}");
    }
    assert!(all(&daemon).await.is_empty());
    // A container that cannot be had leaves nothing either.
    daemon.stop().await;
    let daemon = Daemon::start(|setup| setup.pool(0).set("container.max", 1).set("queue.timeout_ms", 200)).await;
    let only = created(&daemon, "{}").await;
    let refused = problem(daemon.client.create_sandbox::<Sandbox>(&wanted(r#"{"name":"x"}"#), None).await);
    assert_eq!((refused.status, refused.retryable), (503, true), "{}", refused.code);
    assert_eq!(all(&daemon).await.len(), 1);
    assert_eq!(run(&daemon, &only, "echo here").await.text(), "here\n");
    daemon.stop().await;
}
