//! Files of a sandbox from outside: frozen or not, as its user, and never more than its own.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use thaw_client::client::Upload;
use thaw_client::types::{FileMove, NewDirectory, Sandbox, SandboxFileKind, SandboxState};
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use super::{created, inside, now, problem, run, usual};
use crate::support::{Answer, Daemon, eventually};

/// Asks for something of a sandbox's files.
async fn ask(daemon: &Daemon, sandbox: &Sandbox, request: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let (method, rest) = request.split_once(' ').unwrap();
    daemon.http(&format!("{method} /v1/sandboxes/{}/{rest}", sandbox.id), headers, body).await
}

async fn get(daemon: &Daemon, sandbox: &Sandbox, path: &str) -> String {
    let content = daemon.client.read_sandbox_file(&sandbox.id, path).await.unwrap_or_else(|error| panic!("{error}"));
    String::from_utf8(content.whole().await.unwrap()).unwrap()
}

async fn put(daemon: &Daemon, sandbox: &Sandbox, path: &str, text: &str) {
    let content = Upload::Whole(text.into());
    daemon.client.put_sandbox_file(&sandbox.id, path, content, None).await.unwrap_or_else(|error| panic!("{error}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_go_in_and_come_out_while_it_is_frozen_and_it_stays_so() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    run(&daemon, &sandbox, "echo from inside > /tmp/out; mkdir /tmp/d; chmod 700 /tmp/d").await;
    let _: Sandbox =
        eventually("it can be frozen", || async { daemon.client.freeze_sandbox(&sandbox.id).await.ok() }).await;
    assert_eq!(get(&daemon, &sandbox, "/tmp/out").await, "from inside\n");
    put(&daemon, &sandbox, "/tmp/d/in", "from outside\n").await;
    let found = daemon.client.stat_sandbox_file(&sandbox.id, "/tmp/d/in").await.unwrap();
    assert_eq!((found.uid, found.gid, &*found.mode, found.bytes), (1000, 1000, "644", 13));
    let new = NewDirectory { path: "/tmp/a/b".to_owned(), parents: true, mode: Some("750".to_owned()) };
    daemon.client.make_sandbox_directory(&sandbox.id, &new).await.unwrap();
    let what = FileMove { from: "/tmp/d/in".to_owned(), to: "/tmp/a/b/in".to_owned(), overwrite: false };
    daemon.client.move_sandbox_file(&sandbox.id, &what).await.unwrap();
    let listed = daemon.client.sandbox_files(&sandbox.id, "/tmp/a").await.unwrap();
    assert_eq!(
        listed.iter().map(|file| (&*file.name, file.kind)).collect::<Vec<_>>(),
        [("b", SandboxFileKind::Directory)]
    );
    daemon.client.remove_sandbox_file(&sandbox.id, "/tmp/d", false).await.unwrap();
    let archive = daemon.client.read_sandbox_archive(&sandbox.id, "/tmp/a").await.unwrap().whole().await.unwrap();
    put(&daemon, &sandbox, "/tmp/a/b/later", "x").await;
    daemon.client.remove_sandbox_file(&sandbox.id, "/tmp/a", true).await.unwrap();
    let unpacked = daemon.client.put_sandbox_archive(&sandbox.id, "/tmp", Upload::Whole(archive)).await.unwrap();
    assert_eq!(unpacked.entries, 3);
    assert_eq!(now(&daemon, &sandbox).await.state, SandboxState::Frozen);
    assert!(daemon.container(sandbox.container.as_ref().unwrap()).await.frozen);
    let seen = run(
        &daemon,
        &sandbox,
        "cat /tmp/a/b/in; stat -c '%u %g %a' /tmp/a/b /tmp/a/b/in; ls /tmp; echo more >> /tmp/a/b/in",
    )
    .await;
    assert_eq!(seen.text(), "from outside\n1000 1000 750\n1000 1000 644\na\nout\n", "{}", seen.errors());
    assert_eq!(get(&daemon, &sandbox, "/tmp/a/b/in").await, "from outside\nmore\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_conditions_are_those_of_http() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    let new = ask(&daemon, &sandbox, "PUT files?path=/tmp/f&mode=600", &[("if-none-match", "*")], b"0123456789").await;
    assert_eq!((new.status, new.json()["mode"].as_str()), (201, Some("600")));
    let tag = new.json()["etag"].as_str().unwrap().to_owned();
    let whole = ask(&daemon, &sandbox, "GET files?path=/tmp/f", &[], b"").await;
    assert_eq!((whole.status, &*whole.body, whole.header("etag")), (200, &b"0123456789"[..], Some(tag.clone())));
    assert_eq!(
        (whole.header("content-length").as_deref(), whole.header("accept-ranges").as_deref()),
        (Some("10"), Some("bytes"))
    );
    let part = |range: &'static str| {
        let (daemon, sandbox) = (&daemon, &sandbox);
        async move { ask(daemon, sandbox, "GET files?path=/tmp/f", &[("range", range)], b"").await }
    };
    for (range, body, content_range) in [
        ("bytes=2-4", &b"234"[..], "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-1", b"9", "bytes 9-9/10"),
    ] {
        let answer = part(range).await;
        assert_eq!(
            (answer.status, &*answer.body, answer.header("content-range")),
            (206, body, Some(content_range.to_owned()))
        );
    }
    let beyond = part("bytes=10-").await;
    assert_eq!((beyond.status, beyond.header("content-range").as_deref()), (416, Some("bytes */10")));
    assert_eq!(beyond.problem().code, "range_beyond_end");
    assert_eq!(part("bytes=1-2,4-5").await.problem().code, "invalid_header");
    let get = |name: &'static str, value: String| {
        let (daemon, sandbox) = (&daemon, &sandbox);
        async move { ask(daemon, sandbox, "GET files?path=/tmp/f", &[("range", "bytes=0-0"), (name, &value)], b"").await }
    };
    assert_eq!(get("if-range", tag.clone()).await.status, 206);
    assert_eq!(get("if-range", "\"other\"".to_owned()).await.status, 200);
    assert_eq!(get("if-none-match", tag.clone()).await.status, 304);
    let head = ask(&daemon, &sandbox, "HEAD files?path=/tmp/f", &[], b"").await;
    assert_eq!((head.status, head.header("content-length").as_deref(), head.body.len()), (200, Some("10"), 0));
    // Two that have read the same: one of them is told.
    let first = ask(&daemon, &sandbox, "PUT files?path=/tmp/f", &[("if-match", &tag)], b"first").await;
    assert_eq!((first.status, first.json()["mode"].as_str()), (200, Some("600")), "its mode stays");
    let second = ask(&daemon, &sandbox, "PUT files?path=/tmp/f", &[("if-match", &tag)], b"second").await;
    assert_eq!((second.status, second.problem().code.as_str()), (412, "file_changed"));
    let there = ask(&daemon, &sandbox, "PUT files?path=/tmp/f", &[("if-none-match", "*")], b"third").await;
    assert_eq!(there.status, 412);
    let delete = ask(&daemon, &sandbox, "DELETE files?path=/tmp/f", &[("if-match", &tag)], b"").await;
    assert_eq!(delete.status, 412);
    assert_eq!(super::files::get(&daemon, &sandbox, "/tmp/f").await, "first");
    // What a command does changes it too.
    let tag = ask(&daemon, &sandbox, "GET files/stat?path=/tmp/f", &[], b"").await.json()["etag"]
        .as_str()
        .unwrap()
        .to_owned();
    run(&daemon, &sandbox, "echo x >> /tmp/f").await;
    assert_eq!(ask(&daemon, &sandbox, "PUT files?path=/tmp/f", &[("if-match", &tag)], b"y").await.status, 412);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_has_its_code_and_changes_nothing() {
    let daemon =
        Daemon::start(|setup| usual(setup).set("sandbox.file_entries", 50).set("sandbox.file_bytes", 1 << 20)).await;
    let sandbox = created(&daemon, "{}").await;
    let script = "mkfifo /tmp/pipe; mkdir /tmp/full /tmp/many; echo x > /tmp/full/x; ln -s /etc/shadow /tmp/up; \
                  ln -s loop /tmp/loop; echo secret > /tmp/closed; chmod 000 /tmp/closed; \
                  i=0; while [ $i -lt 60 ]; do : > /tmp/many/$i; i=$((i+1)); done";
    assert_eq!(run(&daemon, &sandbox, script).await.exit.code, Some(0));
    for (request, status, code) in [
        ("GET files?path=/tmp/none", 404, "no_such_file"),
        ("GET files?path=/tmp", 409, "not_a_file"),
        ("GET files?path=/tmp/pipe", 409, "not_a_file"),
        ("GET files?path=/dev/null", 409, "not_a_file"),
        ("GET files?path=/tmp/loop", 400, "invalid_file"),
        ("GET files?path=/tmp/closed", 403, "file_forbidden"),
        ("GET files?path=/proc/1/status", 403, "file_forbidden"),
        ("GET files?path=/proc/uptime", 403, "file_forbidden"),
        ("GET files?path=/proc/self/root/etc/passwd", 404, "no_such_file"),
        ("GET files?path=tmp/x", 400, "invalid_file"),
        ("GET files", 400, "invalid_query"),
        ("GET files?path=/tmp&other=1", 400, "invalid_query"),
        ("GET files/list?path=/tmp/pipe", 409, "not_a_directory"),
        ("GET files/list?path=/tmp&limit=0", 400, "invalid_query"),
        ("GET files/list?path=/tmp&cursor=%25", 400, "invalid_query"),
        ("GET files/stat?path=/tmp/none", 404, "no_such_file"),
        ("GET archive?path=/tmp/none", 404, "no_such_file"),
        ("GET archive?path=/tmp/many", 409, "not_packable"),
        ("GET archive?path=/tmp/closed", 409, "not_packable"),
        ("GET archive?path=/proc", 403, "file_forbidden"),
        ("PUT files?path=/tmp", 409, "not_a_file"),
        ("PUT files?path=/tmp/pipe", 409, "not_a_file"),
        ("PUT files?path=/tmp/no/x", 404, "no_such_file"),
        ("PUT files?path=/etc/x", 403, "file_forbidden"),
        ("PUT files?path=/proc/sys/kernel/hostname", 403, "file_forbidden"),
        ("PUT files?path=/tmp/x&mode=888", 400, "invalid_query"),
        ("PUT files?path=/tmp/x&mode=4755", 400, "invalid_query"),
        ("PUT archive?path=/tmp/none", 404, "no_such_file"),
        ("PUT archive?path=/tmp", 400, "invalid_file"),
        ("DELETE files?path=/tmp/none", 404, "no_such_file"),
        ("DELETE files?path=/tmp/full", 409, "directory_not_empty"),
        ("DELETE files?path=/tmp", 403, "file_forbidden"),
        ("DELETE files?path=/", 400, "invalid_file"),
        ("DELETE files?path=/tmp/many&recursive=true", 413, "file_too_large"),
    ] {
        let body =
            if request.starts_with("PUT") { &b"not a tar archive, but long enough to be read as one"[..] } else { b"" };
        let answer = ask(&daemon, &sandbox, request, &[], body).await;
        assert_eq!((answer.status, answer.problem().code.as_str()), (status, code), "{request}: {}", answer.text());
    }
    for (request, body, status, code) in [
        ("POST files/mkdir", r#"{"path":"/tmp/full"}"#, 409, "file_exists"),
        ("POST files/mkdir", r#"{"path":"/tmp/x","mode":"rwx"}"#, 400, "invalid_field"),
        ("POST files/mkdir", r#"{"path":"/tmp/no/x"}"#, 404, "no_such_file"),
        ("POST files/mkdir", r#"{"path":"/tmp/x","mod":"7"}"#, 400, "unknown_field"),
        ("POST files/move", r#"{"from":"/tmp/none","to":"/tmp/x"}"#, 404, "no_such_file"),
        ("POST files/move", r#"{"from":"/tmp/pipe","to":"/tmp/full"}"#, 409, "file_exists"),
        ("POST files/move", r#"{"from":"/tmp/full","to":"/tmp/many","overwrite":true}"#, 409, "directory_not_empty"),
        ("POST files/move", r#"{"from":"/tmp/full","to":"/dev/shm/full"}"#, 409, "other_file_system"),
    ] {
        let answer = ask(&daemon, &sandbox, request, &[], body.as_bytes()).await;
        assert_eq!(
            (answer.status, answer.problem().code.as_str()),
            (status, code),
            "{request} {body}: {}",
            answer.text()
        );
    }
    let large = ask(&daemon, &sandbox, "PUT files?path=/tmp/large", &[], &vec![b'x'; (1 << 20) + 1]).await;
    assert_eq!((large.status, large.problem().code.as_str()), (413, "file_too_large"));
    let none = Sandbox { id: "s-none".to_owned(), ..sandbox.clone() };
    assert_eq!(ask(&daemon, &none, "GET files?path=/tmp", &[], b"").await.problem().code, "not_found");
    assert_eq!(run(&daemon, &sandbox, "ls -A /tmp").await.text(), "closed\nfull\nloop\nmany\npipe\nup\n");
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    assert_eq!(ask(&daemon, &sandbox, "GET files?path=/tmp", &[], b"").await.problem().code, "sandbox_gone");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_sandbox_says_so_and_keeps_what_was_there() {
    let daemon = Daemon::start(|setup| usual(setup).set("container.ephemeral_bytes", 4 << 20)).await;
    let sandbox = created(&daemon, "{}").await;
    put(&daemon, &sandbox, "/tmp/f", "kept").await;
    let full = ask(&daemon, &sandbox, "PUT files?path=/tmp/f", &[], &vec![b'x'; 8 << 20]).await;
    assert_eq!((full.status, full.problem().code.as_str()), (507, "sandbox_full"));
    assert_eq!(get(&daemon, &sandbox, "/tmp/f").await, "kept");
    assert_eq!(run(&daemon, &sandbox, "ls -A /tmp").await.text(), "f\n");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_breaks_off_has_nothing_made_and_too_many_at_once_are_refused() {
    let daemon = Daemon::start(|setup| usual(setup).set("sandbox.file_calls", 1)).await;
    let sandbox = created(&daemon, "{}").await;
    put(&daemon, &sandbox, "/tmp/f", "kept").await;
    let before = now(&daemon, &sandbox).await.used_at;
    tokio::time::sleep(Duration::from_millis(20)).await;
    let target = format!("PUT /v1/sandboxes/{}/files?path=/tmp/f", sandbox.id);
    let mut open = daemon.open(&target, &[("content-length", "1000000")], b"").await;
    open.write_all(b"a part").await.unwrap();
    eventually("it is under way", || async { (now(&daemon, &sandbox).await.used_at != before).then_some(()) }).await;
    let refused = ask(&daemon, &sandbox, "GET files?path=/tmp/f", &[], b"").await;
    assert_eq!((refused.status, refused.problem().code.as_str()), (503, "too_many_file_calls"));
    drop(open);
    let kept = eventually("its place is free", || async {
        let answer = ask(&daemon, &sandbox, "GET files?path=/tmp/f", &[], b"").await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(kept.body, b"kept");
    eventually("nothing is left beside", || async {
        (run(&daemon, &sandbox, "ls -A /tmp").await.text() == "f\n").then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_for_files_keeps_a_sandbox_from_being_idle() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, r#"{"lifecycle":{"freeze_after_s":1}}"#).await;
    let target = format!("PUT /v1/sandboxes/{}/files?path=/tmp/f", sandbox.id);
    let mut stream = daemon.open(&target, &[("content-length", "4")], b"").await;
    stream.write_all(b"ab").await.unwrap();
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let state = now(&daemon, &sandbox).await.state;
    stream.write_all(b"cd").await.unwrap();
    assert_eq!(state, SandboxState::Active);
    super::becomes(&daemon, &sandbox, SandboxState::Frozen).await;
    assert_eq!(get(&daemon, &sandbox, "/tmp/f").await, "abcd");
    daemon.stop().await;
}

/// Sends this many bytes in pieces.
fn zeros(bytes: u64) -> Upload {
    let (pieces, waiting) = mpsc::channel::<io::Result<Bytes>>(2);
    tokio::spawn(async move {
        let piece = Bytes::from(vec![0; 1 << 20]);
        for _ in 0..bytes >> 20 {
            if pieces.send(Ok(piece.clone())).await.is_err() {
                return;
            }
        }
    });
    Upload::Pieces(waiting)
}

/// Memory of a process that is its own, bytes.
fn own_memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gibibyte_passes_in_bounded_memory() {
    const SIZE: u64 = 1 << 30;
    let daemon = Daemon::start(|setup| usual(setup).set("container.ephemeral_bytes", 2i64 << 30)).await;
    let sandbox = created(&daemon, "{}").await;
    put(&daemon, &sandbox, "/tmp/first", "everything is loaded by now").await;
    let before = own_memory(daemon.pid());
    let mut most = 0;
    let client = daemon.client.clone();
    let id = sandbox.id.clone();
    let sending =
        tokio::spawn(async move { client.put_sandbox_file(&id, "/tmp/large", zeros(SIZE), None).await.unwrap() });
    while !sending.is_finished() {
        most = most.max(own_memory(daemon.pid()));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(sending.await.unwrap().bytes, SIZE);
    let mut content = daemon.client.read_sandbox_archive(&sandbox.id, "/tmp/large").await.unwrap();
    let mut came = 0;
    while let Some(piece) = content.next().await.unwrap() {
        came += piece.len() as u64;
        most = most.max(own_memory(daemon.pid()));
    }
    assert_eq!(came, SIZE + 512 + 1024, "with its header and the end");
    assert!(most < before + (64 << 20), "{most} bytes, {before} before");
    daemon.client.remove_sandbox_file(&sandbox.id, "/tmp/large", false).await.unwrap();
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_command_that_swaps_directories_for_links_gets_nothing() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, "{}").await;
    let secret = daemon.path("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("f"), "of the host").unwrap();
    let secret = secret.to_str().unwrap();
    let script = format!(
        "mkdir /tmp/real; echo inside > /tmp/real/f; ln -s {secret} /tmp/abs; ln -s ../../../../../..{secret} /tmp/up; \
         ln -s /proc/1/root{secret} /tmp/magic; cd /tmp; \
         while :; do for l in abs up magic; do mv real aside; mv $l real; mv real $l; mv aside real; done; done"
    );
    let hostile = daemon.client.create(&inside(&sandbox, &script)).await.unwrap();
    let mut read = 0;
    for round in 0..300 {
        let answer = ask(&daemon, &sandbox, "GET files?path=/tmp/real/f", &[], b"").await;
        match answer.status {
            200 => read += usize::from(answer.body == b"inside\n"),
            // Gone at that moment, or a link that leads nowhere.
            400 | 404 | 409 => {}
            other => panic!("{other}: {}", answer.text()),
        }
        assert!(!answer.text().contains("of the host"), "round {round}");
        ask(&daemon, &sandbox, "PUT files?path=/tmp/real/new", &[], b"made").await;
    }
    assert!(read > 0, "the race is no test otherwise");
    let left: Vec<_> = std::fs::read_dir(secret).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["f"], "nothing was made there");
    daemon.client.cancel(&hostile.id).await.unwrap();
    let unknown = problem(daemon.client.stat_sandbox_file("s-none", "/").await);
    assert_eq!(unknown.code, "not_found");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thawctl_cp_copies_as_docker_does() {
    let daemon = Daemon::start(usual).await;
    let sandbox = created(&daemon, r#"{"name":"dev"}"#).await;
    let here = daemon.path("here");
    std::fs::create_dir_all(here.join("src/deep")).unwrap();
    std::fs::write(here.join("src/deep/f"), "deep").unwrap();
    std::fs::write(here.join("one"), "one").unwrap();
    std::os::unix::fs::symlink("deep/f", here.join("src/link")).unwrap();
    let cp = async |from: &str, to: &str| {
        let mut command = tokio::process::Command::new(crate::support::programs::thawctl());
        command.arg("--socket").arg(daemon.socket()).args(["cp", from, to]).current_dir(&here);
        let output = command.output().await.unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let good = async |from: &str, to: &str| assert_eq!(cp(from, to).await, (0, String::new()), "{from} {to}");
    let name = "u1/dev";
    good("one", &format!("{name}:/tmp/renamed")).await;
    good("one", &format!("{name}:/tmp")).await;
    good("src", &format!("{name}:/tmp")).await;
    good("src", &format!("{name}:/tmp/new")).await;
    good("src/.", &format!("{name}:/tmp/new")).await;
    let seen =
        run(&daemon, &sandbox, "cd /tmp; find . -type f -o -type l | sort; cat one src/link; stat -c %u src/deep/f")
            .await;
    assert_eq!(seen.text(), "./new/deep/f\n./new/link\n./one\n./renamed\n./src/deep/f\n./src/link\nonedeep1000\n");
    good(&format!("{name}:/tmp/src"), "back").await;
    good(&format!("{name}:/tmp/src"), "back").await;
    good(&format!("{name}:/tmp/src/."), "back").await;
    good(&format!("{name}:/tmp/one"), "two").await;
    good(&format!("{name}:/tmp/src/link"), "kept").await;
    let read = |path: &str| std::fs::read_to_string(here.join(path)).unwrap();
    assert_eq!([read("back/deep/f"), read("back/src/deep/f"), read("two")], ["deep", "deep", "one"]);
    assert_eq!(std::fs::read_link(here.join("kept")).unwrap().to_str(), Some("deep/f"));
    for (from, to, says) in [
        ("none", "u1/dev:/tmp", "none"),
        ("u1/dev:/tmp/none", "x", "is not there"),
        ("one", "u1/dev:/tmp/none/x", "is not there"),
        ("one", "u1/dev:/etc/x", "sandbox's user"),
        ("one", "two", "SANDBOX:PATH"),
        ("u1/dev:/tmp/one", "u1/dev:/tmp/two", "thawctl cp A:PATH -"),
    ] {
        let (code, errors) = cp(from, to).await;
        assert!(code == 125 && errors.contains(says), "{from} {to}: {code} {errors}");
    }
    daemon.stop().await;
}
