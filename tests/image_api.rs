//! Images through the API: an archive is uploaded and run, the store is checked and cleared, and an image goes; each only
//! for those who may decide what others run.
#![allow(clippy::unwrap_used, reason = "tests")]

#[allow(dead_code, unused_imports, reason = "used in part")]
mod registry;
mod support;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{Daemon, command, eventually};
use thaw_client::types::{DaemonEventKind, ExecutionRequest, Job, JobState};

/// The layout of the image `test` as an OCI archive.
fn archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_dir_all(".", support::layouts().join("test")).unwrap();
    archive.into_inner().unwrap()
}

/// Waits for a job that an answer tells of.
async fn ended(daemon: &Daemon, answer: &support::Answer) -> Job {
    assert_eq!(answer.status, 202, "{}", answer.text());
    let job: Job = serde_json::from_slice(&answer.body).unwrap();
    let answer = daemon.http(&format!("GET /v1/jobs/{}?wait=60s", job.id), &[], b"").await;
    serde_json::from_slice(&answer.body).unwrap()
}

async fn names(daemon: &Daemon) -> Vec<String> {
    daemon.client.images().await.unwrap().into_iter().map(|image| image.name).collect()
}

fn uploads(daemon: &Daemon) -> usize {
    std::fs::read_dir(daemon.path("state/uploads")).unwrap().count()
}

#[tokio::test]
async fn an_image_is_uploaded_run_checked_and_removed() {
    let daemon = Daemon::start(|setup| setup.pool(1).set("image.max_unpacked_bytes", 64 << 20)).await;
    daemon.settled().await;
    let mut events =
        daemon.client.daemon_events(vec![("kind".to_owned(), "job_started,job_ended".to_owned())]).await.unwrap();
    let import = "POST /v1/images/import?name=mine%2Ftools:1";
    let job = ended(&daemon, &daemon.http(import, &[("content-type", "application/x-tar")], &archive()).await).await;
    assert_eq!(job.state, JobState::Succeeded, "{job:?}");
    let image = job.image.unwrap();
    let test = daemon.client.images().await.unwrap().into_iter().find(|image| image.name == "test").unwrap();
    assert_eq!((image.name.as_str(), &image.digest, image.layers), ("mine/tools:1", &test.digest, test.layers));
    assert_eq!(names(&daemon).await, ["mine/tools:1", "test"], "the daemon's list and the store are one");
    assert_eq!(uploads(&daemon), 0, "the archive is gone");
    for (kind, success) in [(DaemonEventKind::JobStarted, None), (DaemonEventKind::JobEnded, Some(true))] {
        let event = events.next().await.unwrap();
        assert_eq!((event.kind, event.success, event.job.as_ref()), (kind, success, Some(&job.id)));
    }
    let run = ExecutionRequest {
        provider: String::new(),
        image: Some(image.name),
        ..command(["/bin/sh", "-c", "echo it runs"])
    };
    assert_eq!(daemon.run(&run).await.exited(0).text(), "it runs\n");
    let checked = ended(&daemon, &daemon.http("POST /v1/images/verify", &[], b"").await).await.verification.unwrap();
    assert!(checked.damage.is_empty() && checked.images == 1 && checked.files > 0, "both names mean one: {checked:?}");
    // One that a pool starts containers from stays; the other name goes.
    let in_use = daemon.http("DELETE /v1/images/mine%2Ftools:1", &[], b"").await;
    assert_eq!(in_use.status, 204, "another name has the same image: {}", in_use.text());
    let problem = daemon.http("DELETE /v1/images/test", &[], b"").await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (409, "image_in_use"));
    assert_eq!(names(&daemon).await, ["test"]);
    let pruned = daemon.http("POST /v1/images/prune", &[], b"").await;
    assert_eq!((pruned.status, pruned.text().as_str()), (200, r#"{"removed":[],"freed_bytes":0}"#));
    let jobs: Value = serde_json::from_slice(&daemon.http("GET /v1/jobs", &[], b"").await.body).unwrap();
    assert_eq!(jobs["items"].as_array().unwrap().len(), 2);
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_no_image_fails_and_leaves_nothing() {
    let daemon = Daemon::start(|setup| setup.pool(0).set("image.max_unpacked_bytes", 1 << 20)).await;
    let import = "POST /v1/images/import?name=x";
    let job = ended(&daemon, &daemon.http(import, &[], b"this is no archive").await).await;
    assert_eq!(job.state, JobState::Failed);
    assert!(job.detail.is_some_and(|detail| !detail.is_empty()) && job.image.is_none());
    for (request, body, status, code) in [
        (import, &b""[..], 400, "invalid_archive"),
        (import, &[0; (1 << 20) + 1], 413, "body_too_large"),
        ("DELETE /v1/images/none", b"", 404, "not_found"),
        ("DELETE /v1/images/..%2Fx", b"", 400, "invalid_image_name"),
        ("GET /v1/jobs/j-none", b"", 404, "not_found"),
        ("POST /v1/images/import?names=x", b"", 400, "invalid_query"),
        ("POST /v1/images/import?name=..%2Fx", b"x", 400, "invalid_image_name"),
    ] {
        let problem = daemon.http(request, &[], body).await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (status, code), "{request}: {}", problem.detail);
    }
    // A client that goes away in the middle.
    let stream =
        support::open(&daemon.socket(), import, &[("content-length", "100000"), ("x-request-id", "r")], b"").await;
    eventually("it has begun", || async { (uploads(&daemon) == 1).then_some(()) }).await;
    drop(stream);
    eventually("it is gone", || async { (uploads(&daemon) == 0).then_some(()) }).await;
    assert!(names(&daemon).await.iter().all(|name| name == "test"));
    daemon.stop().await;
}

#[tokio::test]
async fn an_upload_needs_a_signature_where_images_do() {
    use base64::Engine;
    use minisign::KeyPair;
    let sign = |keys: &KeyPair| {
        let made = minisign::sign(Some(&keys.pk), &keys.sk, std::io::Cursor::new(archive()), None, None).unwrap();
        let encoded = base64::prelude::BASE64_STANDARD.encode(made.into_string());
        form_urlencoded::byte_serialize(encoded.as_bytes()).collect::<String>()
    };
    let [known, other] = [(); 2].map(|()| KeyPair::generate_unencrypted_keypair().unwrap());
    let keys = vec![toml::Value::from(known.pk.to_base64())];
    let daemon =
        Daemon::start(|setup| setup.pool(0).set("image.require_signature", true).set("image.public_keys", keys)).await;
    let long = format!("&signature={}", "A".repeat(2052));
    for (query, code) in
        [("", "signature_required"), ("&signature=%21", "invalid_signature"), (&long, "invalid_signature")]
    {
        let request = format!("POST /v1/images/import?name=mine{query}");
        let problem = daemon.http(&request, &[], &archive()).await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (400, code), "{}", problem.detail);
    }
    let import = |signature| format!("POST /v1/images/import?name=mine&signature={signature}");
    let job = ended(&daemon, &daemon.http(&import(sign(&other)), &[], &archive()).await).await;
    assert_eq!(job.state, JobState::Failed);
    assert!(job.detail.is_some_and(|detail| detail.contains("no good signature by any known key")));
    assert_eq!((names(&daemon).await.contains(&"mine".to_owned()), uploads(&daemon)), (false, 0));
    let job = ended(&daemon, &daemon.http(&import(sign(&known)), &[], &archive()).await).await;
    assert_eq!(job.state, JobState::Succeeded, "{job:?}");
    assert!(names(&daemon).await.contains(&"mine".to_owned()));
    daemon.stop().await;
    // A signature that nothing can check is not passed over.
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    let problem = daemon.http(&import(sign(&known)), &[], &archive()).await.problem();
    assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_signature"), "{}", problem.detail);
    daemon.stop().await;
}

#[tokio::test]
async fn images_are_changed_by_root_and_by_those_who_are_listed() {
    const LISTED: u32 = 64_011;
    let uids = vec![toml::Value::Integer(LISTED.into())];
    let daemon = Daemon::start(|setup| setup.pool(0).set("api.connections.image_uids", uids)).await;
    for path in [daemon.path(""), daemon.socket()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let ask = |uid: u32, method: &str, path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["--silent", "--unix-socket"]).arg(daemon.socket()).args(["-X", method]);
        curl.arg(format!("http://localhost{path}")).args(["--output", "-", "--write-out", "\n%{http_code}"]);
        let output = curl.uid(uid).gid(uid).current_dir(Path::new("/")).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.parse::<u16>().unwrap(), body.to_owned())
    };
    for (method, path) in [
        ("POST", "/v1/images/import"),
        ("POST", "/v1/images/pull"),
        ("POST", "/v1/images/use"),
        ("POST", "/v1/images/prune"),
        ("POST", "/v1/images/verify"),
        ("DELETE", "/v1/images/test"),
    ] {
        let (status, body) = ask(LISTED + 1, method, path);
        assert!(status == 403 && body.contains("forbidden_images"), "{method} {path}: {status} {body}");
    }
    assert_eq!(ask(LISTED + 1, "GET", "/v1/images").0, 200, "looking is for all");
    for uid in [LISTED, 0] {
        assert_eq!(ask(uid, "POST", "/v1/images/prune").0, 200, "{uid}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn an_image_is_pulled_from_a_registry_and_runs() {
    use registry::{PASSWORD, Registry};
    use thaw_client::types::Secret;
    use thaw_image::registry::{Login, Options, push, reference};
    let registry = Registry::with_password();
    let to = format!("{}/team/tools:1", registry.address);
    let login = Login { user: "jane".to_owned(), password: Secret::new(PASSWORD.to_owned()) };
    let options = Options { login: Some(login), ..Options::default() };
    let layout = support::layouts().join("test");
    let pushed = push(&layout, &reference(&to).unwrap(), &options, &thaw_image::progress::Quiet).await.unwrap();
    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    let pull = async |more: Value| {
        let mut body = serde_json::json!({ "reference": to, "username": "jane", "password": PASSWORD });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        daemon.http("POST /v1/images/pull", &[], body.to_string().as_bytes()).await
    };
    let job = ended(&daemon, &pull(serde_json::json!({})).await).await;
    assert_eq!(job.state, JobState::Succeeded, "{job:?}");
    let image = job.image.unwrap();
    assert_eq!((image.name.as_str(), &image.digest), ("tools", &pushed.digest));
    let run = ExecutionRequest {
        provider: String::new(),
        image: Some(image.name),
        ..command(["/bin/sh", "-c", "echo it runs"])
    };
    assert_eq!(daemon.run(&run).await.exited(0).text(), "it runs\n");
    // A name of one's own, though it is that of a verb: it can be removed again.
    for name in ["use", "pull", "import", "prune", "verify"] {
        let job = ended(&daemon, &pull(serde_json::json!({ "name": name })).await).await;
        assert_eq!(job.image.map(|image| image.name).as_deref(), Some(name), "{:?}", job.detail);
        assert_eq!(daemon.http(&format!("DELETE /v1/images/{name}"), &[], b"").await.status, 204);
    }
    assert!(!names(&daemon).await.iter().any(|name| name == "pull"));
    let wrong = ended(&daemon, &pull(serde_json::json!({ "password": "wrong" })).await).await;
    assert_eq!(wrong.state, JobState::Failed);
    assert!(wrong.detail.as_ref().is_some_and(|detail| detail.contains("refuses")), "{wrong:?}");
    assert_eq!(uploads(&daemon), 0);
    for (body, code, says) in [
        (serde_json::json!({ "reference": "//" }), "invalid_field", "reference"),
        (serde_json::json!({ "name": "../x" }), "invalid_image_name", "../x"),
        (serde_json::json!({ "username": null }), "invalid_field", "needs a `username`"),
        (serde_json::json!({ "password": null }), "invalid_field", "needs a `password`"),
        (serde_json::json!({ "ca": "none" }), "invalid_field", "PEM"),
        (serde_json::json!({ "ca": "none", "plain_http": true }), "invalid_field", "plain_http"),
        (serde_json::json!({ "platform": "arm64" }), "unknown_field", "platform"),
    ] {
        let problem = pull(body).await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (400, code), "{}", problem.detail);
        assert!(problem.detail.contains(says), "{}", problem.detail);
    }
    let large = pull(serde_json::json!({ "ca": "x".repeat(2 << 20) })).await.problem();
    assert_eq!((large.status, large.code.as_str()), (413, "body_too_large"));
    assert!(!daemon.log().contains(PASSWORD));
    daemon.stop().await;
}
