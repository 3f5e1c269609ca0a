//! The real CLIs use their tools: what their model asks for is done in the container, and what it gets back is what came
//! of it, byte for byte. Each CLI in a container that was frozen empty, and in one where it waited already started.

use serde_json::{Value, json};
use thaw_client::types::{ClaimPath, Credentials, ExecutionRequest, NewFile, Secret, Stage};

use super::support::{Daemon, Outcome, eventually, prompt};
use super::{PROVIDERS, Upstream, answer, daemon, late_credentials};

/// A registry of npm packages with one package in it.
const REGISTRY: &str = r#"import base64, hashlib, http.server, io, json, tarfile
packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w:gz") as archive:
    for name, content in (("package.json", b'{"name": "thing", "version": "1.0.0"}'), ("index.js", b"module.exports = 6 * 7")):
        entry = tarfile.TarInfo("package/" + name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
tarball = packed.getvalue()
integrity = "sha512-" + base64.b64encode(hashlib.sha512(tarball).digest()).decode()
version = {"name": "thing", "version": "1.0.0",
           "dist": {"tarball": "http://127.0.0.1:8124/thing.tgz", "integrity": integrity}}
thing = {"name": "thing", "dist-tags": {"latest": "1.0.0"}, "versions": {"1.0.0": version}}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = {"/thing.tgz": tarball, "/thing": json.dumps(thing).encode()}.get(self.path)
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")
http.server.ThreadingHTTPServer(("127.0.0.1", 8124), Handler).serve_forever()
"#;

/// One call, and what it is to give: a shell command's output exactly, or a part of what another tool says.
enum Wanted {
    Printed(&'static str),
    Contains(&'static str),
}

use Wanted::{Contains, Printed};

const NOTES: &str = "/home/runtime/work/notes.txt";

/// What a model does in a day, in one conversation, turn by turn. claude keeps the directory that a command went to, the
/// others do not: `~` is the same for all.
fn day() -> Vec<Vec<(Value, Wanted)>> {
    let run = |command: &str, prints: &'static str| (json!({"run": command}), Printed(prints));
    vec![
        vec![run("mkdir work && cd work && echo hi > file; cat file; pwd", "hi\n/home/runtime/work")],
        // Side by side.
        vec![run("sleep 0.2; echo one", "one"), run("echo two", "two")],
        vec![(json!({"write": {"path": NOTES, "content": "eins\nzwei – €\ndrei\n"}}), Contains(""))],
        vec![(json!({"read": NOTES}), Contains("zwei – €"))],
        vec![(json!({"edit": {"path": NOTES, "old": "zwei – €", "new": "two"}}), Contains(""))],
        vec![(json!({"search": {"pattern": "t.o", "path": NOTES}}), Contains("two"))],
        vec![run(
            "sha256sum < ~/work/notes.txt",
            "78045e699d63eeb1bf6ee45b215885f6ccb0a850c32953e46bc1622fb4ef52a6  -",
        )],
        // A server in the background is there for the next command, once this one saw it answer and ended. It has a session
        // of its own, since codex ends what a command leaves behind in the one that it made.
        vec![run(
            "cd ~/work && git init -q repo && cd repo && echo 1 > a && git add a && \
             git commit -qm first && git update-server-info && cd .. && \
             { setsid python3 -m http.server --bind 127.0.0.1 8123 > ~/server.log 2>&1 & } && \
             until curl -s http://127.0.0.1:8123/file; do sleep 0.1; done",
            "hi",
        )],
        vec![run("curl -sS http://127.0.0.1:8123/file", "hi")],
        vec![run(
            "cd ~/work && git clone -q http://127.0.0.1:8123/repo/.git copy && cd copy && \
             echo 2 > a && git commit -qam second && git log --format='%an %s'",
            "Agent second\nAgent first",
        )],
        vec![run(
            "python3 -c 'import sqlite3, ssl; print(sqlite3.connect(\":memory:\").execute(\"select 6 * 7\").fetchone()[0])'",
            "42",
        )],
        vec![(json!({"write": {"path": "/home/runtime/work/registry.py", "content": REGISTRY}}), Contains(""))],
        vec![run(
            "cd ~/work && { python3 registry.py > ~/registry.log 2>&1 & } && \
             mkdir app && cd app && until curl -s http://127.0.0.1:8124/thing > /dev/null; do sleep 0.1; done && \
             npm install --silent --no-audit --registry http://127.0.0.1:8124 thing > /dev/null && \
             node -p 'require(\"thing\")'; kill $!",
            "42",
        )],
    ]
}

/// What the command printed, without what each CLI writes around it for its model.
fn printed<'a>(provider: &str, text: &'a str) -> &'a str {
    let between = |begin: &str, ends: &[&str]| {
        let rest = text.split_once(begin).unwrap_or_else(|| panic!("{provider}: {text}")).1;
        ends.iter().fold(rest, |rest, end| rest.split_once(end).map_or(rest, |(before, _)| before))
    };
    match provider {
        "openai" => between("\nOutput:\n", &[]).trim_end_matches('\n'),
        "google" => between(
            "<untrusted_context>\nOutput: ",
            &["\nExit Code: ", "\nBackground PIDs: ", "\nProcess Group PGID: "],
        ),
        _ => between("", &["\n\n<system-reminder>"]),
    }
}

async fn run_script(daemon: &Daemon, upstream: &Upstream, provider: &str, turns: &Value) -> Outcome {
    let text = format!("What is 3*67? Answer with the number only.\nsteps: {turns}");
    let credentials = Some(late_credentials(upstream, provider).await);
    // Many turns at half a CPU, on a busy machine.
    let request = ExecutionRequest { credentials, timeout_ms: Some(300_000), ..prompt(provider, &text) };
    daemon.run(&request).await
}

/// The tool results that came back, turn by turn, of the requests that `provider` made since the last time.
async fn results(upstream: &Upstream) -> Vec<Vec<(String, bool)>> {
    let requests = upstream.get("/__requests").await;
    upstream.forget().await;
    let items = requests["items"].as_array().unwrap().iter();
    let conversation = items.filter(|request| request["tools"].as_array().is_some_and(|tools| !tools.is_empty()));
    let of = |request: &Value| {
        let results = request["tool_results"].as_array().unwrap().iter();
        results.map(|one| (one["text"].as_str().unwrap().to_owned(), one["error"] == json!(true))).collect()
    };
    conversation.map(of).filter(|results: &Vec<_>| !results.is_empty()).collect()
}

async fn works_a_day(daemon: &Daemon, upstream: &Upstream, provider: &str) -> Outcome {
    let day = day();
    let turns: Vec<Vec<&Value>> = day.iter().map(|turn| turn.iter().map(|(step, _)| step).collect()).collect();
    let outcome = run_script(daemon, upstream, provider, &json!(turns)).await;
    let results = results(upstream).await;
    let stdout = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert_eq!(results.len(), day.len(), "{provider}: {:?}\n{results:#?}\n{stdout}", outcome.exit);
    for (turn, got) in day.iter().zip(&results) {
        assert_eq!(got.len(), turn.len(), "{provider}: {got:?}");
        for ((step, wanted), (text, error)) in turn.iter().zip(got) {
            assert!(!error, "{provider}: {step}: {text}");
            match wanted {
                Printed(wanted) => assert_eq!(printed(provider, text), *wanted, "{provider}: {step}: {text}"),
                Contains(part) => assert!(text.contains(part), "{provider}: {step}: {text}"),
            }
        }
    }
    assert_eq!(answer(&outcome).trim(), "201", "{provider}: {:?}", outcome.exit);
    assert!(outcome.exit.success && outcome.exit.code == Some(0), "{provider}: {:?}", outcome.exit);
    outcome
}

/// A tool that fails, and one that says a lot: both come back, and the CLI goes on.
async fn survives_a_failure_and_a_flood(daemon: &Daemon, upstream: &Upstream, provider: &str) {
    let turns = json!([[{"think": "Hm."}, {"run": "echo broken >&2; exit 3"}], [{"run": "seq 1 30000"}]]);
    let outcome = run_script(daemon, upstream, provider, &turns).await;
    let results = results(upstream).await;
    assert_eq!(results.len(), 2, "{provider}: {:?}", outcome.exit);
    let failed = &results[0][0].0;
    assert!(failed.contains("broken") && failed.contains('3'), "{provider}: {failed}");
    let flood = &results[1][0].0;
    // codex and gemini keep both ends of it, claude the beginning and a file with all of it.
    assert!(flood.contains("1\n2\n3\n"), "{provider}: {flood}");
    assert!(flood.contains("29999\n30000") || flood.contains("tool-results/"), "{provider}: {flood}");
    assert_eq!(answer(&outcome).trim(), "201", "{provider}: {:?}", outcome.exit);
    assert!(outcome.exit.success, "{provider}: {:?}", outcome.exit);
}

/// A prompt of `bytes` bytes arrives as it is.
async fn takes_a_long_prompt(daemon: &Daemon, upstream: &Upstream, provider: &str, bytes: usize) -> Outcome {
    let line = "The quick brown fox jumps over the lazy dog – 0123456789 € und so fort.\n";
    let mut text = line.repeat(bytes / line.len());
    text.push_str("What is 3*67? Answer with the number only.");
    let credentials = Some(late_credentials(upstream, provider).await);
    let request = ExecutionRequest { credentials, timeout_ms: Some(120_000), ..prompt(provider, &text) };
    let outcome = daemon.run(&request).await;
    let stdout = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert_eq!(answer(&outcome).trim(), "201", "{provider}: {:?} {stdout:.2000}", outcome.exit);
    let requests = upstream.get("/__requests").await;
    upstream.forget().await;
    let mut prompts = requests["items"].as_array().unwrap().iter().filter(|request| request["prompt_bytes"].is_u64());
    let whole = json!(sha256(&text));
    assert!(prompts.any(|request| request["prompt_sha256"] == whole), "{provider}: {requests:.2000}");
    outcome
}

fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cli_works_with_its_tools_in_a_container_that_was_frozen() {
    let upstream = Upstream::start();
    let daemon = daemon(&upstream, |setup, name| setup.set(&format!("provider.{name}.pool_target"), 1)).await;
    for provider in PROVIDERS {
        let outcome = works_a_day(&daemon, &upstream, provider).await;
        assert!(outcome.started.path == ClaimPath::Warm && !outcome.started.prestarted, "{:?}", outcome.started);
        survives_a_failure_and_a_flood(&daemon, &upstream, provider).await;
        let outcome = takes_a_long_prompt(&daemon, &upstream, provider, 600_000).await;
        assert!(!outcome.started.prestarted, "{:?}", outcome.started);
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cli_works_with_its_tools_when_it_waited_already_started() {
    let upstream = Upstream::start();
    let daemon = daemon(&upstream, |setup, name| {
        setup.set(&format!("provider.{name}.pool_target"), 0).set(&format!("provider.{name}.prestarted"), 1)
    })
    .await;
    let waits = async |provider: &str| {
        eventually("it waits already started", || async {
            let pools = daemon.client.pools().await.unwrap();
            let mut of = pools.iter().filter(|pool| pool.provider == provider && pool.stage == Stage::Prestarted);
            of.any(|pool| pool.warm == 1).then_some(())
        })
        .await;
    };
    for provider in PROVIDERS {
        waits(provider).await;
        let outcome = works_a_day(&daemon, &upstream, provider).await;
        assert!(outcome.started.prestarted, "{:?}", outcome.started);
        waits(provider).await;
        let outcome = takes_a_long_prompt(&daemon, &upstream, provider, 600_000).await;
        assert!(outcome.started.prestarted, "{:?}", outcome.started);
    }
    daemon.stop().await;
}

/// What the native claude does not take once it runs is served by one that is started with it, with tools all the same.
#[tokio::test(flavor = "multi_thread")]
async fn claude_takes_every_kind_of_credential() {
    let upstream = Upstream::start();
    let daemon = daemon(&upstream, |setup, name| {
        let prestarted = u32::from(name == "anthropic");
        setup.set(&format!("provider.{name}.pool_target"), 0).set(&format!("provider.{name}.prestarted"), prestarted)
    })
    .await;
    let file = upstream.credentials("anthropic").await;
    let env = |name: &str| Credentials {
        files: Default::default(),
        env: [(name.to_owned(), Secret::new("sk-ant-offline".to_owned()))].into(),
    };
    for (credentials, late) in [
        (file, true),
        (env("CLAUDE_CODE_OAUTH_TOKEN"), true),
        (env("ANTHROPIC_API_KEY"), false),
        (env("ANTHROPIC_AUTH_TOKEN"), false),
    ] {
        eventually("claude waits already started", || async {
            let pools = daemon.client.pools().await.unwrap();
            pools.iter().any(|pool| pool.stage == Stage::Prestarted && pool.warm == 1).then_some(())
        })
        .await;
        let text = r#"What is 3*67? steps: [[{"run": "echo hi > file; cat file"}]]"#;
        let kind = format!("{:?} {:?}", credentials.files.keys(), credentials.env.keys());
        let credentials = Some(credentials);
        let request = ExecutionRequest { credentials, timeout_ms: Some(120_000), ..prompt("anthropic", text) };
        let outcome = daemon.run(&request).await;
        assert_eq!(outcome.started.prestarted, late, "{kind}");
        assert_eq!(answer(&outcome).trim(), "201", "{kind}: {:?}", outcome.exit);
        let results = results(&upstream).await;
        assert_eq!(printed("anthropic", &results[0][0].0), "hi", "{kind}");
    }
    daemon.stop().await;
}

/// What it makes in `/workspace` comes back: in a container that was frozen empty (a variable cannot be handed over late),
/// and where it waited already started. claude cannot be moved there once it runs, and is asked from its home.
#[tokio::test(flavor = "multi_thread")]
async fn each_cli_gives_back_the_file_that_it_made() {
    let upstream = Upstream::start();
    let daemon = daemon(&upstream, |setup, name| {
        setup.set(&format!("provider.{name}.pool_target"), 1).set(&format!("provider.{name}.prestarted"), 1)
    })
    .await;
    for (provider, prestarted) in PROVIDERS.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        eventually("both wait", || async {
            let pools = daemon.client.pools().await.unwrap();
            pools.iter().filter(|pool| pool.provider == provider).all(|pool| pool.warm == 1).then_some(())
        })
        .await;
        let is_moved = !(prestarted && provider == "anthropic");
        let run = "cat /workspace/given > /workspace/made; echo more >> /workspace/made; pwd; cat /workspace/made";
        let text = format!("What is 3*67? Answer with the number only.\nsteps: {}", json!([[{"run": run}]]));
        let request = ExecutionRequest {
            credentials: Some(late_credentials(&upstream, provider).await),
            timeout_ms: Some(120_000),
            env: if prestarted { Default::default() } else { [("EXTRA".to_owned(), "1".to_owned())].into() },
            files: [("given".to_owned(), NewFile::new("given\n"))].into(),
            collect: vec!["made".to_owned()],
            workdir: (!is_moved).then(|| "/home/runtime".to_owned()),
            ..prompt(provider, &text)
        };
        let outcome = daemon.run(&request).await;
        let how = format!("{provider} prestarted={prestarted}");
        assert!(outcome.started.path == ClaimPath::Warm, "{how}: {:?}", outcome.started);
        assert_eq!(outcome.started.prestarted, prestarted, "{how}");
        let results = results(&upstream).await;
        assert_eq!(results.len(), 1, "{how}: {:?} {}", outcome.exit, String::from_utf8_lossy(&outcome.stdout));
        let place = if is_moved { "/workspace" } else { "/home/runtime" };
        assert_eq!(printed(provider, &results[0][0].0), format!("{place}\ngiven\nmore"), "{how}");
        assert_eq!(answer(&outcome).trim(), "201", "{how}: {:?}", outcome.exit);
        let made = daemon.client.file(&outcome.started.execution, "made").await.unwrap();
        assert_eq!(String::from_utf8(made).unwrap(), "given\nmore\n", "{how}");
    }
    daemon.stop().await;
}

/// A picture of one pixel (PNG).
const PIXEL: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8BQDwAEhQGAhKmMIQAAAABJRU5ErkJggg==";

/// A picture that a tool looks at comes to the model as it is, in the form of its API.
#[tokio::test(flavor = "multi_thread")]
async fn each_cli_shows_its_model_a_picture() {
    use base64::Engine as _;
    use sha2::{Digest as _, Sha256};
    let picture = base64::engine::general_purpose::STANDARD.decode(PIXEL).unwrap();
    let digest: String = Sha256::digest(&picture).iter().map(|byte| format!("{byte:02x}")).collect();
    let upstream = Upstream::start();
    let daemon = daemon(&upstream, |setup, name| setup.set(&format!("provider.{name}.pool_target"), 1)).await;
    for provider in PROVIDERS {
        let step = match provider {
            "openai" => json!({"tool": {"name": "view_image", "input": {"path": "/workspace/pixel.png"}}}),
            _ => json!({"read": "/workspace/pixel.png"}),
        };
        let text = format!("What is 3*67? Answer with the number only.\nsteps: {}", json!([[step]]));
        let request = ExecutionRequest {
            credentials: Some(late_credentials(&upstream, provider).await),
            timeout_ms: Some(120_000),
            files: [("pixel.png".to_owned(), NewFile::new(picture.clone()))].into(),
            ..prompt(provider, &text)
        };
        let outcome = daemon.run(&request).await;
        assert_eq!(answer(&outcome).trim(), "201", "{provider}: {:?}", outcome.exit);
        let requests = upstream.get("/__requests").await;
        upstream.forget().await;
        let images: Vec<&Value> =
            requests["items"].as_array().unwrap().iter().filter_map(|one| one["images"].get(0)).collect();
        let shown = images.iter().any(|image| image["media_type"] == "image/png" && image["sha256"] == json!(digest));
        assert!(shown, "{provider}: {images:?}\n{}", String::from_utf8_lossy(&outcome.stdout));
    }
    daemon.stop().await;
}
