//! Examples for each operation, of the types that it takes and gives: what no longer fits a type does not build.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use thaw_client::time::Timestamp;
use thaw_client::types::{
    AuditAction, AuditRecord, CheckMethod, CheckOutcome, ClaimPath, Container, ContainerState, Credential,
    CredentialCheck, CredentialKind, CredentialState, Credentials, DaemonVersion, EgressAllocation, EgressIdentity,
    EgressKind, EgressRequest, EgressState, Execution, ExecutionRequest, ExecutionState, ExecutionStats, Exit,
    ExitReason, FileMove, Image, ImagePrune, Job, JobKind, JobState, LimitsInForce, List, Login, LoginMethod,
    LoginState, NamedSandboxRequest, NewDirectory, Page, Pool, PoolChange, PoolMemory, Problem, Provider, Sandbox,
    SandboxChange, SandboxFile, SandboxFileKind, SandboxLifecycle, SandboxReason, SandboxRequest, SandboxState,
    SandboxStorage, Secret, Stage, StdinTaken, Unpacked, Usage, UserKey, Vault,
};

/// Tuesday morning.
const CREATED: u64 = 1_796_004_900_123;

/// Adds them.
pub fn add(document: &mut Value) {
    document["components"]["schemas"]["Problem"]["examples"] = json!([problem()]);
    let Some(paths) = document["paths"].as_object_mut() else { return };
    for operation in paths.values_mut().filter_map(Value::as_object_mut).flat_map(|methods| methods.values_mut()) {
        let id = operation["operationId"].as_str().unwrap_or_default().to_owned();
        let requests = requests(&id);
        if !requests.is_empty() {
            operation["requestBody"]["content"]["application/json"]["examples"] = named(requests);
        }
        for (_, response) in operation["responses"].as_object_mut().into_iter().flatten() {
            let Some(content) = response.get_mut("content").and_then(Value::as_object_mut) else { continue };
            for (media_type, content) in content {
                let example = match media_type.as_str() {
                    "application/json" => answer(&id),
                    "text/event-stream" if id == "streamLogin" => Some(json!(login_events())),
                    "text/event-stream" => Some(json!(EVENTS)),
                    _ => None,
                };
                if let Some(example) = example {
                    content["examples"] = named(vec![("example", example)]);
                }
            }
        }
    }
}

/// The events of a short execution.
const EVENTS: &str = "\
id: 1
event: started
retry: 1000
data: {\"execution\":\"e-01kb9w3v0v6p7x2c4m5n8q9r0s\",\"container\":\"c-01kb9w2t4d5f6g7h8j9k0m1n2p\",\"path\":\"warm\",\"claim_us\":2900,\"at\":\"2026-11-30T02:15:00.126Z\"}

id: 2
event: delta
data: {\"text\":\"201\",\"at\":\"2026-11-30T02:15:02.013Z\"}

id: 3
event: exit
data: {\"code\":0,\"reason\":\"exited\",\"success\":true,\"duration_ms\":1950,\"cpu_ms\":310,\"memory_peak_bytes\":94371840,\"at\":\"2026-11-30T02:15:02.076Z\"}

";

fn key() -> Credentials {
    let mut credentials = Credentials::default();
    credentials.env.insert("OPENAI_API_KEY".to_owned(), Secret::new("sk-…".to_owned()));
    credentials
}

fn named(examples: Vec<(&str, Value)>) -> Value {
    examples.into_iter().map(|(name, value)| (name.to_owned(), json!({ "value": value }))).collect()
}

fn value(of: &impl Serialize) -> Value {
    // Plain data.
    serde_json::to_value(of).unwrap_or_default()
}

fn text(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn identity() -> EgressIdentity {
    EgressIdentity {
        name: "paris-1".to_owned(),
        kind: EgressKind::Http,
        upstream: text("proxy.example.com:3128"),
        bind: None,
        address: "198.51.100.7".parse().ok(),
        labels: BTreeMap::from([("city".to_owned(), "paris".to_owned())]),
        max_users: None,
        users: 20,
        state: EgressState::Up,
        since: Timestamp::from_unix_ms(CREATED),
        failures: 0,
        problem: None,
        opened: 1520,
        failed: 0,
    }
}

fn requests(operation: &str) -> Vec<(&'static str, Value)> {
    let labels = || BTreeMap::from([("team".to_owned(), "red".to_owned())]);
    match operation {
        "createExecution" => vec![
            (
                "prompt",
                value(&ExecutionRequest {
                    provider: "openai".to_owned(),
                    user: "auth0|5f7c8ec7c33c6c004bbafe82".to_owned(),
                    prompt: text("3*67"),
                    credentials: Some(key()),
                    labels: labels(),
                    ..ExecutionRequest::default()
                }),
            ),
            (
                "command",
                value(&ExecutionRequest {
                    provider: "openai".to_owned(),
                    user: "alice@example.org".to_owned(),
                    command: Some(vec!["node".to_owned(), "--version".to_owned()]),
                    timeout_ms: Some(10_000),
                    background: true,
                    ..ExecutionRequest::default()
                }),
            ),
            (
                "image",
                value(&ExecutionRequest {
                    image: text("workspace"),
                    user: "user_123".to_owned(),
                    command: Some(vec!["wc".to_owned(), "-l".to_owned()]),
                    stdin: Some("one\ntwo\n".into()),
                    ..ExecutionRequest::default()
                }),
            ),
        ],
        "pullImage" => vec![("tools", json!({ "reference": "registry.example.com/team/tools:1" }))],
        "createSandbox" => vec![(
            "named",
            value(&SandboxRequest {
                name: text("dev"),
                user: "alice@example.org".to_owned(),
                template: "openai".to_owned(),
                env: BTreeMap::from([("EDITOR".to_owned(), "vi".to_owned())]),
                labels: labels(),
                lifecycle: SandboxLifecycle { destroy_after_s: Some(86_400), ..SandboxLifecycle::default() },
                storage: Some(SandboxStorage { size_bytes: Some(1 << 30) }),
            }),
        )],
        "putSandbox" => vec![(
            "plain",
            value(&NamedSandboxRequest { template: "openai".to_owned(), ..NamedSandboxRequest::default() }),
        )],
        "changeSandbox" => {
            let lifecycle = Some(SandboxLifecycle { keep_active: true, ..SandboxLifecycle::default() });
            vec![("lifecycle", value(&SandboxChange { lifecycle, ..SandboxChange::default() }))]
        }
        "createSandboxDirectory" => {
            let path = "/home/agent/src".to_owned();
            vec![("nested", value(&NewDirectory { path, parents: true, ..NewDirectory::default() }))]
        }
        "moveSandboxFile" => {
            let (from, to) = ("/tmp/draft".to_owned(), "/tmp/report".to_owned());
            vec![("rename", value(&FileMove { from, to, overwrite: true }))]
        }
        "putImageToUse" => vec![("image", json!({ "image": "openai" }))],
        "createLogin" => vec![("openai", json!({ "provider": "openai", "user": "auth0|5f7c8ec7c33c6c004bbafe82" }))],
        "putLoginCode" => {
            vec![("address", json!({ "code": "http://127.0.0.1:1455/auth/callback?code=ac_…&state=Zk3…" }))]
        }
        "putUserEgress" => vec![
            ("any", value(&EgressRequest::default())),
            ("named", value(&EgressRequest { identity: text("paris-1") })),
        ],
        "putCredential" => vec![("key", value(&key()))],
        "changePools" => vec![
            ("fixed", value(&PoolChange { target: Some(20), ..PoolChange::default() })),
            ("scaling", value(&PoolChange { min: Some(10), max: Some(40), ..PoolChange::default() })),
        ],
        _ => Vec::new(),
    }
}

fn answer(operation: &str) -> Option<Value> {
    Some(match operation {
        "createExecution" => value(&execution(None)),
        "getExecution" | "cancelExecution" => value(&execution(Some(exit()))),
        "listExecutions" => {
            value(&Page { items: vec![execution(None)], next_cursor: text("e-01kb9w3v0v6p7x2c4m5n8q9r0s") })
        }
        "getExecutionStats" => value(&ExecutionStats {
            execution: "e-01kb9w3v0v6p7x2c4m5n8q9r0s".to_owned(),
            state: ExecutionState::Running,
            at: Timestamp::from_unix_ms(CREATED + 1000),
            container: text("c-01kb9w2t4d5f6g7h8j9k0m1n2p"),
            run_ms: 997,
            cpu_ms: 210,
            memory_peak_bytes: 94_371_840,
            usage: Some(usage()),
        }),
        "createSandbox" | "putSandbox" | "getSandbox" | "getNamedSandbox" | "changeSandbox" | "freezeSandbox"
        | "stopSandbox" | "wakeSandbox" => value(&sandbox()),
        "sendStdin" => value(&StdinTaken { bytes: 13, eof: false }),
        "putSandboxFile" | "getSandboxFile" | "moveSandboxFile" => value(&sandbox_file()),
        "createSandboxDirectory" => value(&SandboxFile {
            kind: SandboxFileKind::Directory,
            mode: "755".to_owned(),
            bytes: 0,
            etag: None,
            ..sandbox_file()
        }),
        "listSandboxFiles" => value(&Page { items: vec![sandbox_file()], next_cursor: text("cmVwb3J0") }),
        "putSandboxArchive" => value(&Unpacked { entries: 3 }),
        "listSandboxes" => value(&Page { items: vec![sandbox()], next_cursor: text("s-01kb9w3v0v6p7x2c4m5n8q9r0s") }),
        "listPools" | "getPools" | "changePools" => value(&List { items: vec![pool()] }),
        "listContainers" => value(&List { items: vec![container()] }),
        "listProviders" => value(&List {
            items: vec![Provider {
                name: "openai".to_owned(),
                image: "openai".to_owned(),
                default_model: "gpt-5.5".to_owned(),
                ready: true,
                credential_files: vec!["auth.json".to_owned()],
                credential_env: vec!["OPENAI_API_KEY".to_owned()],
                egress: vec!["api.openai.com:443".to_owned()],
                base_url: None,
                models: vec!["gpt-*".to_owned()],
                model_aliases: BTreeMap::new(),
                efforts: vec!["high".to_owned(), "low".to_owned()],
                default_timeout_ms: 30_000,
                model_timeouts_ms: BTreeMap::new(),
                effort_timeouts_ms: BTreeMap::from([("high".to_owned(), 900_000)]),
                image_digest: Some(format!("sha256:{}", "0123456789abcdef".repeat(4))),
                newer_image_digest: None,
            }],
        }),
        "listImages" => value(&List { items: vec![image()] }),
        "createLogin" | "getLogin" => value(&login(LoginState::Code)),
        "putLoginCode" | "getLoginCallback" => value(&login(LoginState::Exchanging)),
        "listLogins" => value(&List { items: vec![login(LoginState::Done)] }),
        "listCredentials" => value(&List { items: vec![credential()] }),
        "listEgressIdentities" => value(&List { items: vec![identity()] }),
        "getEgressIdentity" => value(&identity()),
        "getUserEgress" | "putUserEgress" => value(&EgressAllocation {
            user: "alice@example.org".to_owned(),
            identity: "paris-1".to_owned(),
            address: "198.51.100.7".parse().ok(),
            allocated_at: Timestamp::from_unix_ms(CREATED),
        }),
        "getCredential" | "putCredential" => value(&credential()),
        "checkCredential" => value(&CredentialCheck {
            outcome: CheckOutcome::Good,
            method: CheckMethod::Refresh,
            detail: None,
            execution: None,
            credential: credential(),
        }),
        "listAuditRecords" => {
            value(&Page { items: vec![audit_record()], next_cursor: text("a-01kb9w3v0v6p7x2c4m5n8q9r0s") })
        }
        "rotateUserKey" => value(&UserKey {
            user: "auth0|5f7c8ec7c33c6c004bbafe82".to_owned(),
            key: "k-01kb9w3v0v6p7x2c4m5n8q9r0s".to_owned(),
            credentials: 1,
        }),
        "getVault" | "rotateMasterKey" => value(&Vault {
            master_key: "3f1c0a9b7d2e4c58".to_owned(),
            users: 12,
            credentials: 17,
            users_under_other_master_keys: 0,
        }),
        "readFiles" => json!({ "items": [{ "path": "out/report.md", "kind": "file", "bytes": 1200, "mode": "0644" }] }),
        "putImageToUse" => json!({ "items": [{ "provider": "openai", "stage": "created", "outcome": "renewed" }] }),
        "importImage" | "pullImage" => value(&job(JobState::Running)),
        "getJob" => value(&job(JobState::Succeeded)),
        "listJobs" => value(&List { items: vec![job(JobState::Succeeded)] }),
        "verifyImages" => value(&Job { kind: JobKind::VerifyImages, ..job(JobState::Running) }),
        "pruneImages" => value(&ImagePrune { removed: vec![digest()], freed_bytes: 271_581_184 }),
        "getVersion" => value(&DaemonVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: text("0123456789abcdef0123456789abcdef01234567"),
            features: vec!["execution_filters".to_owned(), "idempotency_key".to_owned()],
            limits: LimitsInForce {
                max_body_bytes: 1 << 20,
                max_containers: 32,
                max_executions_per_user: 10,
                max_timeout_ms: 3_600_000,
                queue_timeout_ms: 30_000,
                max_queue_timeout_ms: 600_000,
                output_bytes: 16 << 20,
                retention_seconds: 600,
                max_retained: 1000,
                max_page: 1000,
                max_wait_ms: 300_000,
                max_user_characters: 128,
            },
        }),
        _ => return None,
    })
}

fn sandbox() -> Sandbox {
    Sandbox {
        id: "s-01kb9w3v0v6p7x2c4m5n8q9r0s".to_owned(),
        name: text("dev"),
        user: "alice@example.org".to_owned(),
        template: "openai".to_owned(),
        state: SandboxState::Active,
        reason: SandboxReason::Used,
        detail: None,
        since: Timestamp::from_unix_ms(CREATED + 90_000),
        created_at: Timestamp::from_unix_ms(CREATED),
        used_at: Timestamp::from_unix_ms(CREATED + 90_500),
        container: text("c-01kb9w2t4d5f6g7h8j9k0m1n2p"),
        commands: 0,
        env: vec!["EDITOR".to_owned()],
        labels: BTreeMap::from([("team".to_owned(), "red".to_owned())]),
        lifecycle: SandboxLifecycle { destroy_after_s: Some(86_400), ..SandboxLifecycle::default() },
        storage: Some(SandboxStorage { size_bytes: Some(1 << 30) }),
    }
}

fn sandbox_file() -> SandboxFile {
    SandboxFile {
        name: "report".to_owned(),
        name_base64: None,
        kind: SandboxFileKind::File,
        mode: "644".to_owned(),
        uid: 1000,
        gid: 1000,
        bytes: 1200,
        modified_at: Timestamp::from_unix_ms(CREATED),
        target: None,
        etag: text("\"2a.1f-4b0-6927b5f4.7541b40-6927b5f4.7541b40\""),
    }
}

fn execution(exit: Option<Exit>) -> Execution {
    Execution {
        id: "e-01kb9w3v0v6p7x2c4m5n8q9r0s".to_owned(),
        provider: "openai".to_owned(),
        sandbox: None,
        user: "auth0|5f7c8ec7c33c6c004bbafe82".to_owned(),
        model: text("gpt-5.5"),
        command: None,
        state: if exit.is_some() { ExecutionState::Exited } else { ExecutionState::Running },
        queue_position: None,
        container: text("c-01kb9w2t4d5f6g7h8j9k0m1n2p"),
        path: Some(ClaimPath::Warm),
        created_at_ms: CREATED,
        created_at: Some(Timestamp::from_unix_ms(CREATED)),
        started_at: Some(Timestamp::from_unix_ms(CREATED + 3)),
        ended_at: exit.as_ref().and_then(|exit| exit.at),
        queued_ms: 0,
        timeout_ms: 900_000,
        labels: BTreeMap::from([("team".to_owned(), "red".to_owned())]),
        request_id: text("r-01kb9w3v0t3e4r5t6y7z8a9b0c"),
        exit,
    }
}

fn exit() -> Exit {
    Exit {
        code: Some(0),
        signal: None,
        reason: ExitReason::Exited,
        success: true,
        detail: None,
        duration_ms: 1950,
        cpu_ms: 310,
        memory_peak_bytes: 94_371_840,
        collected: None,
        request_id: None,
        at: Some(Timestamp::from_unix_ms(CREATED + 1953)),
    }
}

fn usage() -> Usage {
    Usage {
        cpu_us: 210_000,
        cpu_limit: 1.0,
        memory_bytes: 81_788_928,
        memory_peak_bytes: 94_371_840,
        memory_limit_bytes: 536_870_912,
        periods: 9,
        throttled_periods: 1,
        throttled_us: 12_000,
        oom_kills: 0,
        network_out_bytes: 5321,
        network_in_bytes: 10_240,
    }
}

fn pool() -> Pool {
    Pool {
        provider: "openai".to_owned(),
        stage: Stage::Created,
        model: None,
        target: 10,
        min: 0,
        max: 20,
        scaling: true,
        reason: None,
        warm: 9,
        creating: 0,
        claimed: 1,
        queued: 0,
        hits: 812,
        misses: 3,
        paused: None,
        last_error: None,
        memory: PoolMemory { bytes: 9_437_184, bytes_per_container: 1_048_576, ..PoolMemory::default() },
    }
}

fn container() -> Container {
    Container {
        id: "c-01kb9w2t4d5f6g7h8j9k0m1n2p".to_owned(),
        provider: "openai".to_owned(),
        stage: Stage::Created,
        state: ContainerState::Claimed,
        execution: text("e-01kb9w3v0v6p7x2c4m5n8q9r0s"),
        sandbox: None,
        login: None,
        user: text("auth0|5f7c8ec7c33c6c004bbafe82"),
        claimed_at_ms: Some(CREATED + 2),
        usage: Some(usage()),
        pid: Some(31_415),
        created_at_ms: CREATED - 60_000,
        memory_bytes: 81_788_928,
        cpu_ms: 214,
        frozen: false,
        cgroup: "thawd.slice/thawd-containers.service/c-01kb9w2t4d5f6g7h8j9k0m1n2p".to_owned(),
    }
}

fn credential() -> Credential {
    let time = |ms| Timestamp::from_unix_ms(ms).to_string();
    Credential {
        user: "auth0|5f7c8ec7c33c6c004bbafe82".to_owned(),
        provider: "openai".to_owned(),
        kind: CredentialKind::ApiKey,
        files: Vec::new(),
        env: vec!["OPENAI_API_KEY".to_owned()],
        account: None,
        fingerprint: "9b4100f2c7de".to_owned(),
        version: 1,
        state: CredentialState::Valid,
        reason: None,
        created_at: time(CREATED),
        updated_at: time(CREATED),
        expires_at: None,
        last_used_at: None,
        last_refresh_at: None,
    }
}

fn login(state: LoginState) -> Login {
    let acts = state == LoginState::Code;
    Login {
        id: "l-01kb9w3v0v6p7x2c4m5n8q9r0s".to_owned(),
        provider: "openai".to_owned(),
        user: "auth0|5f7c8ec7c33c6c004bbafe82".to_owned(),
        method: LoginMethod::Callback,
        state,
        url: text("https://auth.openai.com/oauth/authorize?response_type=code&…").filter(|_| acts),
        code: None,
        redirect: text("http://127.0.0.1:1455/auth/callback").filter(|_| acts),
        created_at: Timestamp::from_unix_ms(CREATED),
        expires_at: Timestamp::from_unix_ms(CREATED + 900_000),
        ended_at: state.is_ended().then(|| Timestamp::from_unix_ms(CREATED + 42_000)),
        reason: None,
        detail: None,
        credential: state.is_ended().then(|| Credential { kind: CredentialKind::Login, ..credential() }),
    }
}

/// The events of a login.
fn login_events() -> String {
    let events = [LoginState::Code, LoginState::Exchanging, LoginState::Done].into_iter().zip(2..);
    let event = |(state, id)| {
        let login = value(&login(state));
        format!("id: {id}\nevent: {}\ndata: {login}\n\n", login["state"].as_str().unwrap_or_default())
    };
    events.map(event).collect()
}

fn audit_record() -> AuditRecord {
    AuditRecord {
        id: "a-01kb9w3v0v6p7x2c4m5n8q9r0s".to_owned(),
        at: Timestamp::from_unix_ms(CREATED).to_string(),
        user: "auth0|5f7c8ec7c33c6c004bbafe82".to_owned(),
        provider: text("openai"),
        action: AuditAction::Used,
        version: Some(1),
        execution: text("e-01kb9w3v0v6p7x2c4m5n8q9r0s"),
        detail: None,
        peer_uid: None,
        peer_pid: None,
    }
}

fn digest() -> String {
    format!("sha256:{}", "0123456789abcdef".repeat(4))
}

fn job(state: JobState) -> Job {
    let ended = state != JobState::Running;
    Job {
        id: "j-01kb9w3v0v6p7x2c4m5n8q9r0s".to_owned(),
        kind: JobKind::ImportImage,
        state,
        created_at: Timestamp::from_unix_ms(CREATED),
        ended_at: ended.then(|| Timestamp::from_unix_ms(CREATED + 2900)),
        stage: (!ended).then(|| "unpacking".to_owned()),
        done_bytes: 33_554_432,
        total_bytes: None,
        detail: None,
        image: ended.then(image),
        notes: Vec::new(),
        verification: None,
    }
}

fn image() -> Image {
    Image {
        name: "openai".to_owned(),
        digest: digest(),
        compressed_bytes: 98_566_144,
        unpacked_bytes: 271_581_184,
        unpacked_at_ms: CREATED - 86_400_000,
        layers: 3,
        notes: Vec::new(),
    }
}

fn problem() -> Problem {
    let code = "user_limit";
    Problem {
        kind: super::super::problem::kind(code),
        title: "Too Many Requests".to_owned(),
        status: 429,
        detail: "the user has 10 executions already, the most that one may have (`execution.max_per_user`)".to_owned(),
        code: code.to_owned(),
        retryable: true,
        request_id: text("r-01kb9w3v0t3e4r5t6y7z8a9b0c"),
    }
}
