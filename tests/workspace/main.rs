//! Files that go with a request into `/workspace`, and those that come back.
#![allow(clippy::unwrap_used, reason = "tests")]

mod hostile;
mod prestarted;
mod program;
#[path = "../support/mod.rs"]
mod support;
mod survival;

use std::io::Read;

use support::{Daemon, HostImage, Outcome, shell};
use thaw_client::client::ClientError;
use thaw_client::content::Content;
use thaw_client::types::{ClaimPath, Collected, ExecutionRequest, FileKind, NewFile, Problem};
use thaw_image::Store;

/// A request with files, and paths to collect.
fn with(script: &str, files: &[(&str, &str)], collect: &[&str]) -> ExecutionRequest {
    ExecutionRequest {
        files: files.iter().map(|(path, text)| ((*path).to_owned(), NewFile::new(*text))).collect(),
        collect: collect.iter().map(|path| (*path).to_owned()).collect(),
        ..shell(script)
    }
}

fn collected(outcome: &Outcome) -> &Collected {
    outcome.exit.collected.as_ref().unwrap_or_else(|| panic!("{:?}", outcome.exit))
}

fn problems(outcome: &Outcome) -> Vec<(&str, &str)> {
    collected(outcome).problems.iter().map(|one| (one.path.as_str(), one.problem.as_str())).collect()
}

async fn file(daemon: &Daemon, outcome: &Outcome, path: &str) -> String {
    let bytes = daemon.client.file(&outcome.started.execution, path).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Path, kind, mode and size of everything that was collected.
async fn listed(daemon: &Daemon, outcome: &Outcome) -> Vec<(String, FileKind, String, u64)> {
    let files = daemon.client.files(&outcome.started.execution).await.unwrap();
    files.into_iter().map(|file| (file.path, file.kind, file.mode, file.bytes)).collect()
}

async fn refused(daemon: &Daemon, request: &ExecutionRequest) -> Problem {
    match daemon.client.create(request).await.unwrap_err() {
        ClientError::Problem(problem) => *problem,
        other => panic!("{other}"),
    }
}

/// A repository with a mistake in it, and what is to find and mend it.
const REPOSITORY: [(&str, &str); 2] =
    [("repo/add.sh", "echo $(($1 - $2))\n"), ("repo/test.sh", "[ \"$(sh add.sh 2 3)\" = 5 ] && echo passed\n")];
const MEND: &str = "set -e; pwd; cp -r repo before; cd repo; sed -i 's/-/+/' add.sh; sh test.sh; cd ..; \
                    mkdir out; diff -u before/add.sh repo/add.sh > out/mend.diff || [ $? = 1 ]";

async fn mends_a_repository(daemon: &Daemon, request: &ExecutionRequest, path: ClaimPath) {
    let outcome = daemon.run(request).await.exited(0);
    assert_eq!(outcome.started.path, path);
    assert_eq!(outcome.text(), "/workspace\npassed\n", "{}", outcome.errors());
    let diff = file(daemon, &outcome, "out/mend.diff").await;
    assert!(diff.contains("\n-echo $(($1 - $2))\n") && diff.contains("\n+echo $(($1 + $2))\n"), "{diff}");
    let listed = listed(daemon, &outcome).await;
    let size = diff.len() as u64;
    assert_eq!(
        listed,
        [
            ("out".to_owned(), FileKind::Directory, "755".to_owned(), 0),
            ("out/mend.diff".to_owned(), FileKind::File, "644".to_owned(), size)
        ]
    );
    assert_eq!((collected(&outcome).entries, problems(&outcome)), (2, vec![]));
    let archive = daemon.client.archive(&outcome.started.execution).await.unwrap();
    assert_eq!(archive.len() as u64, collected(&outcome).bytes);
    let mut archive = tar::Archive::new(archive.as_slice());
    let mut entries = archive.entries().unwrap();
    assert_eq!(entries.next().unwrap().unwrap().path().unwrap().to_str(), Some("out"));
    let mut entry = entries.next().unwrap().unwrap();
    assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (1000, 1000));
    let mut text = String::new();
    entry.read_to_string(&mut text).unwrap();
    assert_eq!(text, diff);
    assert!(entries.next().is_none());
}

#[tokio::test]
async fn a_repository_goes_in_and_a_diff_comes_back() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    let request = with(MEND, &REPOSITORY, &["out"]);
    mends_a_repository(&daemon, &request, ClaimPath::Warm).await;
    // Nothing of it is left for others, and nothing of it is in the log.
    let outcome = daemon.sh("ls -A /workspace; pwd; touch /workspace/x && echo writable").await.exited(0);
    assert_eq!(outcome.text(), "/home/runtime\nwritable\n");
    assert!(outcome.exit.collected.is_none());
    let log = daemon.log();
    assert!(!log.contains("add.sh") && !log.contains("mend"), "{log}");
    daemon.stop().await;

    let daemon = Daemon::start(|setup| setup.pool(0)).await;
    mends_a_repository(&daemon, &request, ClaimPath::Cold).await;
    // An image without a provider, which has this user by itself.
    let image = ExecutionRequest { provider: String::new(), image: Some("test".to_owned()), ..request };
    let argv = vec!["sh".to_owned(), "-c".to_owned(), MEND.to_owned()];
    mends_a_repository(&daemon, &ExecutionRequest { command: Some(argv), ..image }, ClaimPath::Cold).await;
    daemon.stop().await;
}

#[tokio::test]
async fn an_archive_goes_in_with_modes_and_links() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (path, mode, text) in
        [("bin/run", 0o755, "#!/bin/sh\necho ran\n"), ("secret", 0o600, "s"), ("over", 0o644, "old")]
    {
        let mut header = tar::Header::new_gnu();
        header.set_size(text.len() as u64);
        header.set_mode(mode);
        // Nobody's in there: files are the user's, whoever packed them.
        header.set_uid(4_000_000);
        builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, "link", "bin/run").unwrap();
    let packed = builder.into_inner().unwrap().finish().unwrap();
    let tool = NewFile { mode: 0o755, ..NewFile::new("#!/bin/sh\necho tool\n") };
    let raw = NewFile::new(vec![0_u8, 255]);
    let request = ExecutionRequest {
        archive: Some(Content::from(packed)),
        files: [("tool".to_owned(), tool), ("raw".to_owned(), raw), ("over".to_owned(), NewFile::new("new"))].into(),
        ..shell(
            "./link; ./tool; cat over; echo; od -An -tx1 raw; stat -c '%a %u:%g %n' bin bin/run secret; rm -r bin secret",
        )
    };
    let outcome = daemon.run(&request).await.exited(0);
    assert_eq!(
        outcome.text(),
        "ran\ntool\nnew\n 00 ff\n755 1000:1000 bin\n755 1000:1000 bin/run\n600 1000:1000 secret\n",
        "{}",
        outcome.errors()
    );
    daemon.stop().await;
}

#[tokio::test]
async fn the_directory_to_start_in_can_be_another() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let request =
        ExecutionRequest { workdir: Some("/tmp".to_owned()), ..with("pwd; cat /workspace/a", &[("a", "b")], &[]) };
    assert_eq!(daemon.run(&request).await.exited(0).text(), "/tmp\nb");
    let request = ExecutionRequest { workdir: Some("/workspace/d".to_owned()), ..with("pwd", &[("d/a", "b")], &[]) };
    assert_eq!(daemon.run(&request).await.exited(0).text(), "/workspace/d\n");
    daemon.stop().await;
}

#[tokio::test]
async fn files_come_back_however_it_ended() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let script = "echo one > a; sleep 60 & (while :; do echo x >> growing; done) & echo ready; wait";
    let request = ExecutionRequest { timeout_ms: Some(1500), ..with(script, &[], &["."]) };
    let outcome = daemon.run(&request).await.ended(thaw_client::types::ExitReason::Timeout);
    assert_eq!(file(&daemon, &outcome, "a").await, "one\n");
    // What a process wrote until it was killed, and not a byte after that.
    let growing = file(&daemon, &outcome, "growing").await;
    assert!(growing.starts_with("x\n") && growing.ends_with("x\n"), "{} bytes", growing.len());
    let outcome = daemon.run(&with("echo one > a; exit 3", &[], &["a"])).await.exited(3);
    assert_eq!(file(&daemon, &outcome, "a").await, "one\n");
    let request = ExecutionRequest { command: Some(vec!["no-such".to_owned()]), ..with("", &[("a", "in")], &["a"]) };
    let outcome = daemon.run(&request).await.exited(127);
    assert_eq!(file(&daemon, &outcome, "a").await, "in");
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let daemon = Daemon::start(|setup| setup.pool(1)).await;
    let outcome = daemon.run(&with("echo 1 > a; mkdir d; ln -s a l", &[], &["a", "missing", "d", "l"])).await.exited(0);
    assert_eq!(problems(&outcome), [("missing", "is not there")]);
    let id = &outcome.started.execution;
    for (path, status, code) in [
        (format!("/v1/executions/{id}/files?path=missing"), 404, "not_collected"),
        (format!("/v1/executions/{id}/files?path=d"), 409, "not_a_file"),
        (format!("/v1/executions/{id}/files?path=l"), 409, "not_a_file"),
        (format!("/v1/executions/{id}/files?path=../x"), 400, "invalid_query"),
        (format!("/v1/executions/{id}/files?pfad=a"), 400, "invalid_query"),
        ("/v1/executions/e-none/files".to_owned(), 404, "not_found"),
    ] {
        let answer = daemon.http_owned(format!("GET {path}")).await;
        let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
        assert_eq!((answer.status, body["code"].as_str()), (status, Some(code)), "{path}: {body}");
    }
    let answer = daemon.http_owned(format!("GET /v1/executions/{id}/files?path=/workspace/a")).await;
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"1\n"[..]));
    // Nothing was asked for, or it has not ended.
    let outcome = daemon.sh("true").await;
    let answer = daemon.http_owned(format!("GET /v1/executions/{}/archive", outcome.started.execution)).await;
    assert_eq!(answer.status, 404);
    let running = daemon.client.create(&with("sleep 60", &[], &["."])).await.unwrap();
    let answer = daemon.http_owned(format!("GET /v1/executions/{}/archive", running.id)).await;
    let body: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
    assert_eq!((answer.status, body["code"].as_str()), (409, Some("not_ended")), "{body}");
    daemon.client.cancel(&running.id).await.unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_put_starts_nothing() {
    let daemon = Daemon::start(|setup| {
        setup
            .pool(1)
            .set("execution.files_bytes", 4096)
            .set("execution.files_entries", 3)
            .set("container.ephemeral_bytes", 2 << 20)
            .set("container.ephemeral_inodes", 64)
    })
    .await;
    let before = daemon.settled().await;
    let large = "x".repeat(4097);
    for (files, words) in [
        (&[("../x", "")][..], ["../x", "`..`"]),
        (&[("/etc/x", "")], ["/etc/x", "not below"]),
        (&[("a", ""), ("a/b", "")], ["a/b", "no directory"]),
        (&[("a", large.as_str())], ["\"a\"", "execution.files_bytes"]),
        (&[("a", ""), ("b", ""), ("c", ""), ("d", "")], ["3", "execution.files_entries"]),
    ] {
        let problem = refused(&daemon, &with("true", files, &[])).await;
        assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_field"), "{}", problem.detail);
        assert!(words.iter().all(|word| problem.detail.contains(word)), "{}", problem.detail);
    }
    let problem = refused(&daemon, &with("true", &[], &["/home/runtime"])).await;
    assert!(problem.detail.contains("/home/runtime") && problem.detail.contains("not below"), "{}", problem.detail);
    // Nothing was used up for them.
    let ids =
        |containers: &[thaw_client::types::Container]| containers.iter().map(|one| one.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&daemon.settled().await), ids(&before));
    assert_eq!(daemon.client.executions().await.unwrap().len(), 0);
    daemon.stop().await;

    // Within the limits, but there is less room in a container.
    let daemon = Daemon::start(|setup| setup.pool(1).set("container.ephemeral_bytes", 1 << 20)).await;
    let large = "x".repeat(600_000);
    let request = with("true", &[("dir/large", &large), ("dir/small", "")], &[]);
    let request = ExecutionRequest { archive: Some(Content::from(gzipped("dir/first", &large))), ..request };
    let problem = refused(&daemon, &request).await;
    assert_eq!((problem.status, problem.code.as_str()), (400, "files_too_large"), "{}", problem.detail);
    assert!(problem.detail.contains("dir/large"), "{}", problem.detail);
    daemon.settled().await;
    daemon.stop().await;
}

fn gzipped(path: &str, text: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, path, text.as_bytes()).unwrap();
    builder.into_inner().unwrap().finish().unwrap()
}

#[tokio::test]
async fn an_image_that_has_something_there_keeps_it() {
    let mut daemon = Daemon::prepare(|setup| setup.pool(0));
    let store = Store::open(&daemon.path("state/images")).unwrap();
    let scratch = daemon.path("");
    let busybox = || HostImage::default().program("/bin/busybox");
    busybox().file("/workspace/theirs", b"theirs").import(&store, &scratch, "full");
    busybox().import(&store, &scratch, "bare");
    daemon.launch().await;
    let request = |image: &str, script: &str, collect: &[&str]| {
        let command = ["/bin/busybox", "sh", "-c", script].map(str::to_owned).to_vec();
        let (provider, image) = (String::new(), Some(image.to_owned()));
        ExecutionRequest { provider, image, command: Some(command), ..with("", &[], collect) }
    };
    let problem = refused(&daemon, &request("full", "true", &["."])).await;
    assert_eq!((problem.status, problem.code.as_str()), (400, "no_workspace"), "{}", problem.detail);
    let outcome = daemon.run(&request("full", "/bin/busybox cat /workspace/theirs; pwd", &[])).await.exited(0);
    assert_eq!(outcome.text(), "theirs/\n");
    // One that has nothing of the kind gets a place for it, as its root's.
    let outcome = daemon.run(&request("bare", "echo mine > mine; pwd", &["."])).await.exited(0);
    assert_eq!(outcome.text(), "/workspace\n", "{}", outcome.errors());
    assert_eq!(file(&daemon, &outcome, "mine").await, "mine\n");
    let outcome = daemon.run(&request("bare", "echo mine > /workspace/mine || pwd", &[])).await.exited(0);
    assert_eq!(outcome.text(), "/\n", "without files it is as the rest of the image");
    daemon.stop().await;
}
