//! The real CLIs log in: in a container, with a stand-in for the three providers' authorisation servers behind their real
//! names. It ends TLS with an authority of the test's own, which the container is made to trust.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use thaw_client::types::{Credential, ExecutionRequest, Login, LoginMethod, LoginRequest, LoginState};
use toml::Table;

use super::support::{Daemon, eventually};
use super::{PROVIDERS, layouts};

/// The names that the CLIs ask while they log in.
const HOSTS: [&str; 7] = [
    "auth.openai.com",
    "chatgpt.com",
    "platform.claude.com",
    "api.anthropic.com",
    "oauth2.googleapis.com",
    "www.googleapis.com",
    "cloudcode-pa.googleapis.com",
];

/// What the providers know.
#[derive(Debug, Default)]
struct Issued {
    /// Codes that were not used yet: redirect, and challenge if there is one.
    codes: BTreeMap<String, (String, Option<String>)>,
    /// Whether the user has entered the code of a device.
    entered: bool,
    /// Requests, by host and path.
    requests: Vec<String>,
    /// What was wrong with a request for a token.
    refused: Vec<String>,
}

struct Providers {
    address: String,
    authority: String,
    state: Arc<Mutex<Issued>>,
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).current_dir(folder).output();
    let output = output.expect("openssl is missing: run tests/deps");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

impl Providers {
    fn start(folder: &Path) -> Self {
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let authority =
            ["req", "-x509", "-subj", "/CN=test authority", "-days", "2", "-keyout", "ca.key", "-out", "ca.crt"];
        openssl(folder, &[&authority[..], &key[..]].concat());
        let request = ["req", "-subj", "/CN=auth.openai.com", "-keyout", "server.key", "-out", "server.csr"];
        openssl(folder, &[&request[..], &key[..]].concat());
        let names = HOSTS.map(|host| format!("DNS:{host}")).join(",");
        std::fs::write(folder.join("extensions"), format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\n"))
            .unwrap();
        let sign = ["x509", "-req", "-in", "server.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"];
        let rest = ["-days", "2", "-extfile", "extensions", "-out", "server.crt"];
        openssl(folder, &[&sign[..], &rest[..]].concat());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config =
            rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let chain = vec![CertificateDer::from_pem_file(folder.join("server.crt")).unwrap()];
        let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).unwrap();
        let config = Arc::new(config.with_no_client_auth().with_single_cert(chain, key).unwrap());
        // A loopback address of this test's own, so that the port is free.
        let address = format!("127.77.{}.1", std::process::id() % 250);
        let listener = TcpListener::bind((address.as_str(), 443)).unwrap();
        let state = Arc::<Mutex<Issued>>::default();
        std::thread::spawn({
            let state = Arc::clone(&state);
            move || {
                for stream in listener.incoming().flatten() {
                    let (config, state) = (Arc::clone(&config), Arc::clone(&state));
                    std::thread::spawn(move || serve(stream, config, &state));
                }
            }
        });
        let authority = std::fs::read_to_string(folder.join("ca.crt")).unwrap();
        Self { address, authority, state }
    }

    fn state(&self) -> MutexGuard<'_, Issued> {
        self.state.lock().unwrap()
    }

    /// The user agrees to what the address asks for; returns the query that the browser is sent on with.
    fn agree(&self, url: &str) -> String {
        let url = reqwest::Url::parse(url).unwrap();
        let asked: BTreeMap<String, String> = url.query_pairs().into_owned().collect();
        let challenge = asked.get("code_challenge").cloned();
        assert!(challenge.is_none() || asked["code_challenge_method"] == "S256", "{asked:?}");
        let mut state = self.state();
        let code = format!("ac-{}", state.codes.len() + 1);
        state.codes.insert(code.clone(), (asked["redirect_uri"].clone(), challenge));
        format!("code={code}&state={}&scope=openid", asked["state"])
    }
}

fn serve(stream: TcpStream, config: Arc<rustls::ServerConfig>, state: &Mutex<Issued>) {
    let Ok(connection) = rustls::ServerConnection::new(config) else { return };
    let mut stream = rustls::StreamOwned::new(connection, stream);
    loop {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let field = |name: &str| {
            let lower = format!("{name}: ");
            head.lines().find_map(|line| {
                line.to_ascii_lowercase().starts_with(&lower).then(|| line[lower.len()..].trim().to_owned())
            })
        };
        let mut body = vec![0; field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
        if stream.read_exact(&mut body).is_err() {
            return;
        }
        let host = field("host").unwrap_or_default();
        let target = head.split(' ').nth(1).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default();
        let (status, answer) = answer(&mut state.lock().unwrap(), &host, path, &fields(&body));
        let text = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: keep-alive\r\n\r\n",
            text.len()
        );
        if stream.write_all(head.as_bytes()).is_err() || stream.write_all(text.as_bytes()).is_err() {
            return;
        }
    }
}

/// The fields of a form or of JSON.
fn fields(body: &[u8]) -> BTreeMap<String, String> {
    match serde_json::from_slice::<Value>(body) {
        Ok(Value::Object(fields)) => {
            let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            fields.iter().map(|(name, value)| (name.clone(), text(value))).collect()
        }
        _ => form_urlencoded::parse(body).into_owned().collect(),
    }
}

fn jwt() -> String {
    let claims = json!({"email": "user@example.com", "exp": 4_102_444_800_u64, "sub": "u", "aud": "x",
        "https://api.openai.com/auth": {"chatgpt_account_id": "acct_1", "chatgpt_plan_type": "plus",
            "chatgpt_user_id": "user_1", "organization_id": "org_1", "project_id": "proj_1"}});
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part(r#"{"alg":"none","typ":"JWT"}"#), part(&claims.to_string()), part("signature"))
}

fn answer(state: &mut Issued, host: &str, path: &str, asked: &BTreeMap<String, String>) -> (&'static str, Value) {
    state.requests.push(format!("{host}{path}"));
    let of = |name: &str| asked.get(name).map(String::as_str).unwrap_or_default();
    match (host, path) {
        ("auth.openai.com", "/api/accounts/deviceauth/usercode") => {
            ("200 OK", json!({"device_auth_id": "d1", "user_code": "WXYZ-12345", "interval": "1"}))
        }
        ("auth.openai.com", "/api/accounts/deviceauth/token") if state.entered => {
            let verifier = "v".repeat(64);
            let challenge = challenge(&verifier);
            let redirect = "https://auth.openai.com/deviceauth/callback".to_owned();
            state.codes.insert("device-code".to_owned(), (redirect, Some(challenge.clone())));
            let code =
                json!({"authorization_code": "device-code", "code_challenge": challenge, "code_verifier": verifier});
            ("200 OK", code)
        }
        ("auth.openai.com", "/api/accounts/deviceauth/token") => ("403 Forbidden", json!({})),
        // codex asks for a key too, and does without.
        ("auth.openai.com", "/oauth/token") if of("grant_type") != "authorization_code" => {
            ("400 Bad Request", json!({"error": "invalid_request"}))
        }
        ("auth.openai.com", "/oauth/token") => {
            exchange(state, asked, || json!({"id_token": jwt(), "access_token": jwt(), "refresh_token": "rt-1"}))
        }
        ("platform.claude.com", "/v1/oauth/token") => exchange(state, asked, || {
            json!({"access_token": "sk-ant-oat01-1", "refresh_token": "sk-ant-ort01-1", "expires_in": 28800,
                "token_type": "Bearer", "scope": "user:inference user:profile",
                "account": {"uuid": "a1", "email_address": "user@example.com"}, "organization": {"uuid": "o1", "name": "o"}})
        }),
        ("api.anthropic.com", "/api/oauth/profile") => (
            "200 OK",
            json!({"account": {"uuid": "a1", "email": "user@example.com", "has_claude_max": true},
                "organization": {"uuid": "o1", "organization_type": "claude_max", "rate_limit_tier": null}}),
        ),
        ("oauth2.googleapis.com", "/token") => exchange(state, asked, || {
            json!({"access_token": "ya29.1", "refresh_token": "1//1", "expires_in": 3599, "token_type": "Bearer",
                "scope": "https://www.googleapis.com/auth/cloud-platform", "id_token": jwt()})
        }),
        ("oauth2.googleapis.com", "/tokeninfo") => ("200 OK", json!({"expires_in": 3599, "email": "user@example.com"})),
        ("www.googleapis.com", "/oauth2/v2/userinfo") => ("200 OK", json!({"email": "user@example.com", "id": "1"})),
        _ => ("404 Not Found", json!({"error": "not found"})),
    }
}

fn challenge(verifier: &str) -> String {
    URL_SAFE_NO_PAD.encode(Sha256::digest(verifier))
}

/// Takes a code, once, with its redirect and the verifier of its challenge.
fn exchange(
    state: &mut Issued,
    asked: &BTreeMap<String, String>,
    tokens: impl FnOnce() -> Value,
) -> (&'static str, Value) {
    let of = |name: &str| asked.get(name).map(String::as_str).unwrap_or_default();
    let issued = state.codes.remove(of("code"));
    let wrong = match &issued {
        None => Some("no such code".to_owned()),
        Some((redirect, _)) if redirect != of("redirect_uri") => Some(format!("another redirect: {asked:?}")),
        Some((_, Some(expected))) if *expected != challenge(of("code_verifier")) => Some("another verifier".to_owned()),
        Some(_) => None,
    };
    match wrong {
        None => ("200 OK", tokens()),
        Some(wrong) => {
            state.refused.push(wrong);
            ("400 Bad Request", json!({"error": "invalid_grant"}))
        }
    }
}

/// The manifest as it is shipped, but that the container trusts the test's authority while it logs in.
fn manifest(name: &str, authority: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("providers").join(format!("{name}.toml"));
    let mut manifest: Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
    for way in manifest["login"].as_array_mut().unwrap() {
        let way = way.as_table_mut().unwrap();
        let script = format!("cat > /tmp/ca.pem <<'EOF'\n{authority}EOF\nexec \"$0\" \"$@\"");
        let argv = way["argv"].as_array_mut().unwrap();
        let whole = [vec!["sh".into(), "-c".into(), script.into()], std::mem::take(argv)].concat();
        *argv = whole;
        let env = way.entry("env").or_insert_with(|| Table::new().into()).as_table_mut().unwrap();
        for variable in ["CODEX_CA_CERTIFICATE", "NODE_EXTRA_CA_CERTS"] {
            env.insert(variable.to_owned(), "/tmp/ca.pem".into());
        }
    }
    manifest.to_string()
}

async fn ended(daemon: &Daemon, login: &Login) -> Login {
    let mut events = daemon.client.login_events(&login.id).await.unwrap();
    while let Some(login) = events.next().await.unwrap() {
        if login.state.is_ended() {
            return login;
        }
    }
    panic!("the stream ended first");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_cli_logs_in_and_the_next_execution_has_the_login() {
    let scratch = tempfile::tempdir_in("/var/tmp").unwrap();
    let providers = Providers::start(scratch.path());
    let key = super::refused::vault_key(scratch.path());
    let layouts = layouts();
    let daemon = Daemon::start(|mut setup| {
        let names = HOSTS.map(|host| (host.to_owned(), vec![providers.address.clone()].into()));
        setup.clear_providers();
        setup = setup
            .set("paths.layouts_dir", layouts.to_str().unwrap())
            .set("egress.resolve", Table::from_iter(names))
            .set("vault.key_file", key)
            .set("queue.timeout_ms", 120_000)
            .set("queue.max_timeout_ms", 120_000);
        for name in PROVIDERS {
            setup = setup
                .add_provider(&manifest(name, &providers.authority))
                .set(&format!("provider.{name}.pool_target"), 1);
        }
        setup
    })
    .await;
    eventually("the pools are full", || async {
        let pools = daemon.client.pools().await.unwrap();
        pools.iter().all(|pool| pool.warm == 1).then_some(())
    })
    .await;
    for (provider, method, file, token) in [
        ("openai", LoginMethod::Callback, ".codex/auth.json", "rt-1"),
        ("anthropic", LoginMethod::Callback, ".claude/.credentials.json", "sk-ant-ort01-1"),
        ("google", LoginMethod::Callback, ".gemini/oauth_creds.json", "1//1"),
        ("openai", LoginMethod::Device, ".codex/auth.json", "rt-1"),
    ] {
        let request = LoginRequest { provider: provider.to_owned(), user: "u1".to_owned(), method: Some(method) };
        let login: Login = daemon
            .client
            .begin_login(&request)
            .await
            .unwrap_or_else(|error| panic!("{provider} {method:?}: {error}\n{}", daemon.log()));
        let url = login.url.clone().unwrap();
        let begun = std::time::Instant::now();
        if method == LoginMethod::Device {
            assert_eq!(login.code.as_deref(), Some("WXYZ-12345"), "{login:?}");
            providers.state().entered = true;
        } else {
            let query = providers.agree(&url);
            let path = format!("GET /v1/logins/{}/callback?{query}", login.id);
            let taken = daemon.http(&path, &[], b"").await;
            assert_eq!(taken.status, 202, "{provider}: {}", taken.text());
            // What comes twice is not passed on: codex would fail.
            assert_eq!(daemon.http(&path, &[], b"").await.status, 409);
        }
        let last = ended(&daemon, &login).await;
        println!("{provider} {method:?}: {:?} from the callback to the end", begun.elapsed());
        {
            let state = providers.state();
            assert!(state.refused.is_empty(), "{provider}: {:?}", state.refused);
            assert_eq!(last.state, LoginState::Done, "{provider} {method:?}: {last:?}\n{url}\n{:?}", state.requests);
        }
        let credential: Credential = last.credential.unwrap();
        let has_account = credential.account.as_deref() == Some("user@example.com");
        assert!(has_account || provider == "anthropic", "{provider}: {credential:?}");
        // As the CLI finds it; the refresh token of a login that thawd renews stays in the vault.
        let command = Some(vec!["cat".to_owned(), format!("/home/runtime/{file}")]);
        let request = ExecutionRequest {
            provider: provider.to_owned(),
            user: "u1".to_owned(),
            command,
            ..ExecutionRequest::default()
        };
        let outcome = daemon.run(&request).await.exited(0);
        let text = outcome.text();
        assert!(text.contains("access"), "{provider}: {text}");
        assert_eq!(text.contains(token), provider == "google", "{provider}: {text}");
    }
    eventually("no container of a login is left", || async {
        daemon.containers().await.iter().all(|container| container.login.is_none()).then_some(())
    })
    .await;
    daemon.stop().await;
}
