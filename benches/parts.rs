//! What the parts of a claim cost, each on its own; `benches/thawd` measures the whole.
//!
//! `make bench-parts`, as root: the control groups are real ones.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::process::{Command as Program, Stdio};
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use thaw_client::types::{Credentials, Delta, Event, ExecutionRequest, Secret};
use thaw_os::cgroup::Hierarchy;
use thawd::container::Command;
use thawd::egress::Policy;
use thawd::execution::{Cursor, Log, LogLimits, Patience, Spools, Stream};
use thawd::provider::{self, Dialect, DialectParser, PromptSpec};
use thawd::{store, vault};

const REQUEST: &str = r#"{"provider": "openai", "user": "u1", "prompt": "What is 3*67?", "credentials":
    {"files": {"auth.json": "{\"tokens\": {\"access_token\": \"x\"}}"}}, "labels": {"run": "1"}}"#;

/// One word of an answer as claude prints it.
const CLAUDE: &str = concat!(
    r#"{"type":"stream_event","event":{"delta":{"text":"word ","type":"text_delta"},"index":0,"#,
    r#""type":"content_block_delta"},"parent_tool_use_id":null}"#,
    "\n"
);

const LIMITS: LogLimits = LogLimits {
    bytes: 1 << 20,
    fast: 128 << 10,
    large: 1 << 20,
    patience: Patience { stall: Duration::from_secs(1), away: Duration::from_secs(1) },
};

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    group.bench_function("parse", |bencher| {
        bencher.iter(|| serde_json::from_str::<ExecutionRequest>(black_box(REQUEST)).unwrap());
    });
    let providers = provider::load_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("providers")).unwrap();
    let files = ["auth.json"];
    group.bench_function("codex's command", |bencher| {
        let spec = PromptSpec { prompt: "What is 3*67?", credential_files: &files, ..PromptSpec::default() };
        bencher.iter(|| providers["openai"].invocation(black_box(&spec)).unwrap());
    });
    let command = Command {
        argv: ["codex", "exec", "--json", "-m", "gpt-5-codex", "-"].map(str::to_owned).to_vec(),
        env: (0..16).map(|number| (format!("NAME_{number}"), "value".to_owned())).collect(),
        with_host_name: Vec::new(),
        cwd: "/home/runtime".to_owned(),
        user: 1000,
        group: 1000,
        groups: Vec::new(),
        rlimits: Vec::new(),
    };
    group.bench_function("encode for thaw-init", |bencher| bencher.iter(|| black_box(&command).encode().unwrap()));
    let policy = Policy::new(&["api.openai.com:443", "*.openai.com:443"], BTreeMap::new(), Vec::new()).unwrap();
    group.bench_function("egress decision", |bencher| bencher.iter(|| policy.decide(black_box("api.openai.com"), 443)));
    group.finish();
}

fn output(criterion: &mut Criterion) {
    let spools = Spools::new().expect("run it as root");
    let mut group = criterion.benchmark_group("output");
    group.bench_function("log: push and read a word", |bencher| {
        let log = Log::new(LIMITS, spools.files().unwrap()).unwrap();
        let mut after = 0;
        bencher.iter(|| {
            log.push(&Event::Delta(Delta { text: "word ".to_owned(), at: None }));
            after = log.read(None, after, 64).last().map_or(after, |event| event.sequence);
        });
    });
    let chunk = Bytes::from(vec![b'x'; 64 << 10]);
    group.throughput(Throughput::Bytes(chunk.len() as u64));
    group.bench_function("log: push and read 64 KiB as bytes", |bencher| {
        let log = Log::new(LIMITS, spools.files().unwrap()).unwrap();
        let mut cursor = Cursor::new(Stream::Stdout, 0);
        bencher.iter(|| {
            log.push_output(Stream::Stdout, &chunk);
            log.read_output(None, &mut cursor).unwrap()
        });
    });
    group.bench_function("log: push and read 64 KiB as an event", |bencher| {
        let log = Log::new(LIMITS, spools.files().unwrap()).unwrap();
        let mut after = 0;
        bencher.iter(|| {
            log.push_output(Stream::Stdout, &chunk);
            after = log.read(None, after, 64).last().map_or(after, |event| event.sequence);
        });
    });
    let lines = CLAUDE.repeat(100);
    group.throughput(Throughput::Bytes(lines.len() as u64));
    group.bench_function("claude's dialect, 100 lines", |bencher| {
        bencher.iter_batched_ref(
            || DialectParser::new(Dialect::ClaudeStreamJson),
            |parser| parser.push(black_box(lines.as_bytes())),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

fn cgroups(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("cgroup");
    let name = format!("thawd-parts-{}", std::process::id());
    let hierarchy = Hierarchy::prepare("/", &name).expect("run it as root, on cgroup v2 or a hybrid host");
    group.bench_function("create and remove", |bencher| {
        bencher.iter(|| {
            let cgroup = hierarchy.create("a", 64 << 20, 64).unwrap();
            hierarchy.remove(&cgroup).unwrap();
        });
    });
    let cgroup = hierarchy.create("b", 64 << 20, 64).unwrap();
    let mut sleeper = Program::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
    let procs = hierarchy.layout().core().join(hierarchy.relative_path("b")).join("cgroup.procs");
    fs::write(procs, sleeper.id().to_string()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    group.bench_function("freeze, confirmed, and thaw", |bencher| {
        bencher.iter(|| {
            runtime.block_on(cgroup.freeze()).unwrap();
            cgroup.thaw().unwrap();
        });
    });
    cgroup.kill().unwrap();
    sleeper.wait().unwrap();
    runtime.block_on(cgroup.wait_empty()).unwrap();
    hierarchy.remove(&cgroup).unwrap();
    hierarchy.remove_base();
    group.finish();
}

/// What a claim pays for a credential that the request does not bring, with the credentials of 1,000 users beside it.
fn vault(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    vault::init(&key).unwrap();
    let source = vault::KeySource::find(Some(&key), &[], Duration::ZERO, Path::new("/nonexistent")).unwrap();
    let file = folder.path().join("store.db");
    let database = store::Settings { url: None, file, connections: 1, timeout: Duration::from_secs(5) };
    let settings = vault::Settings {
        max_credential_bytes: 64 << 10,
        cache_bytes: 64 << 20,
        audit: vault::Bounds { age: Duration::from_secs(3600), records: 1000 },
        refresh_ahead: Duration::from_secs(300),
        refresh_timeout: Duration::from_secs(5),
    };
    let vault = runtime.block_on(vault::Vault::open(source, &database, settings)).unwrap();
    let providers = provider::load_dir(&Path::new(env!("CARGO_MANIFEST_DIR")).join("providers")).unwrap();
    let mut login = Credentials::default();
    let tokens =
        format!(r#"{{"claudeAiOauth":{{"accessToken":"{0}","refreshToken":"{0}","scopes":["a"]}}}}"#, "x".repeat(400));
    login.files = BTreeMap::from([(".credentials.json".to_owned(), Secret::new(tokens))]);
    for number in 0..1000 {
        let user = format!("u{number}");
        runtime.block_on(vault.put(&user, &providers["anthropic"], &login, vault::Asker::default())).unwrap();
    }
    criterion.bench_function("vault: a user's login", |bencher| {
        bencher.iter(|| {
            runtime
                .block_on(vault.checkout(black_box("u500"), &providers["anthropic"], Duration::ZERO))
                .unwrap()
                .unwrap()
        });
    });
    criterion.bench_function("vault: nothing is stored", |bencher| {
        bencher.iter(|| {
            runtime.block_on(vault.checkout(black_box("nobody"), &providers["anthropic"], Duration::ZERO)).unwrap()
        });
    });
}

criterion_group!(parts, requests, output, cgroups, vault);
criterion_main!(parts);
