//! Logins that are captured: stand-ins for the three CLIs, which behave as those do, on a real loopback of a real container;
//! and a real authorisation server.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::json;
use thaw_client::types::{
    AuditAction, Credential, Login, LoginMethod, LoginReason, LoginRequest, LoginState, Problem, Secret,
};
use toml::Table;

use super::auth_server::{AuthServer, get};
use super::{ahead, prepare, request, shown};
use crate::support::{Daemon, Setup, eventually, programs, shell};

/// A CLI that logs in. Its first argument says as which one.
///
/// - `codex`: a port of its own choosing, which is always the same; goes on after a wrong state; ends only when its page
///   `/success` was fetched; fails when a callback comes twice.
/// - `claude`: any port, and an address that has another redirect; is over after a wrong state.
/// - `gemini`: speaks a protocol, gives its address to a browser only, answers with an error although it has logged in, writes
///   its file in two pieces, and never ends.
/// - `device`: a code that the user enters elsewhere.
/// - `broken`: says something, and ends.
const CLI: &str = r#"
export KIND=$1 AUTH=$2 VERIFIER=v-$(head -c 16 /dev/urandom | sha256sum | cut -c1-32) STATE=s-$(head -c 16 /dev/urandom | sha256sum | cut -c1-16)
mkdir -p /tmp/cli && cd /tmp/cli || exit 9
case $KIND in
broken) printf '\033[31mthe moon is in the wrong quarter\033[0m\n' >&2; exit 7 ;;
device)
    code=$(wget -q -O - $AUTH/usercode) || exit 8
    printf '1. Open this link\n   \033[94m%s/enter\033[0m\n2. Enter this one-time code (it is good for 15 minutes)\n   \033[94m%s\033[0m\n' $AUTH $code
    until wget -q -O answer --post-data "user_code=$code" $AUTH/device; do sleep 0.2; done
    umask 077; mv answer ~/.test/token; exit 0 ;;
codex) PORT=1455 ;;
claude) PORT=$((20000 + $$ * 7 % 9000)) ;;
gemini) PORT=18085 ;;
esac
export REDIRECT=http%3A%2F%2F127.0.0.1%3A$PORT%2Fcallback
[ $KIND = claude ] && export REDIRECT=http%3A%2F%2Flocalhost%3A$PORT%2Fcallback
cat > handler <<'EOF'
#!/bin/sh
read -r method target version
while read -r line && [ ${#line} -gt 1 ]; do :; done
query=${target#*\?} path=${target%%\?*}
reply() { printf 'HTTP/1.1 %s\r\nContent-Length: 0\r\nConnection: close\r\n' "$1"; [ -n "$2" ] && printf 'Location: %s\r\n' "$2"; printf '\r\n'; }
param() { echo "$query" | tr '&' '\n' | sed -n "s/^$1=//p"; }
leave() { echo $1 > exit.tmp; mv exit.tmp exit; }
if [ "$path" = /success ]; then reply '200 OK'; leave 0; exit; fi
if [ "$path" != /callback ]; then reply '404 Not Found'; exit; fi
if [ "$(param state)" != "$STATE" ]; then reply '400 Bad Request'; [ $KIND = claude ] && leave 1; exit; fi
if [ -n "$(param error)" ]; then echo "OAuth callback error: $(param error)" >&2; reply '400 Bad Request'; leave 1; exit; fi
if ! mkdir used; then reply '400 Bad Request'; leave 1; exit; fi
umask 077
if ! wget -q -O answer --post-data "grant_type=authorization_code&code=$(param code)&redirect_uri=$REDIRECT&code_verifier=$VERIFIER" $AUTH/token; then
    echo "token exchange failed" >&2; reply '500 Internal Server Error'; leave 1; exit
fi
case $KIND in
codex) mv answer ~/.test/token; reply '302 Found' '/success?id_token=secret' ;;
claude) mv answer ~/.test/token; reply '302 Found' https://platform.test/oauth/code/success; leave 0 ;;
gemini) head -c 40 answer > ~/.test/token; sleep 0.7; tail -c +41 answer >> ~/.test/token; reply '301 Moved Permanently' https://developers.test/ ;;
esac
EOF
chmod 755 handler
nc -ll -p $PORT -e /tmp/cli/handler &
asked=$REDIRECT
[ $KIND = claude ] && asked=https%3A%2F%2Fplatform.test%2Foauth%2Fcode%2Fcallback
URL="$AUTH/authorize?response_type=code&client_id=client-1&redirect_uri=$asked&code_challenge=$VERIFIER&code_challenge_method=plain&state=$STATE"
case $KIND in
codex) printf 'Starting local login server on http://localhost:1455.\nIf your browser did not open, navigate to this URL:\n\n%s\n' "$URL" >&2 ;;
claude) printf 'Opening browser to sign in…\nIf the browser did not open, visit: %s\n' "$URL" ;;
gemini)
    read -r line; case $line in *initialize*) echo '{"jsonrpc":"2.0","id":0,"result":{}}' ;; *) exit 41 ;; esac
    read -r line; case $line in *authenticate*) xdg-open "$URL" ;; *) exit 41 ;; esac
    until [ -e ~/.test/token ]; do sleep 0.1; done
    echo '{"jsonrpc":"2.0","id":1,"error":{"message":"loadCodeAssist failed"}}'
    while read -r line; do :; done ;;
esac
until [ -e exit ]; do sleep 0.05; done
exit $(cat exit)
"#;

/// As the manifest of google does it: a program that a browser would be writes the address down.
const BROWSER: &str = r#"
mkdir -p /tmp/login
printf '#!/bin/sh\nprintf "%%s\\n" "$1" > /tmp/login/url\n' > /tmp/login/xdg-open
chmod 755 /tmp/login/xdg-open
(while [ ! -s /tmp/login/url ]; do sleep 0.1; done; cat /tmp/login/url >&2) &
export PATH=/tmp/login:$PATH
"#;

fn way(server: &AuthServer, kind: &str) -> Table {
    let auth = format!("http://auth.test:{}", server.port);
    let script = if kind == "gemini" { format!("{BROWSER}{CLI}") } else { CLI.to_owned() };
    let method = if kind == "device" { "device" } else { "callback" };
    let url = if kind == "device" { format!("{auth}/enter") } else { format!("{auth}/authorize?") };
    let mut way = Table::from_iter([
        ("method".to_owned(), method.into()),
        ("argv".to_owned(), vec!["sh", "-c", &script, "cli", kind, &auth].into()),
        ("url".to_owned(), url.into()),
        ("file".to_owned(), "token".into()),
    ]);
    let mut set = |key: &str, value: toml::Value| drop(way.insert(key.to_owned(), value));
    match kind {
        "codex" => set("follow", "/success".into()),
        "claude" => set("redirect", "http://localhost:{port}/callback".into()),
        "gemini" => {
            set("input", vec![r#"{"id":0,"method":"initialize"}"#, r#"{"id":1,"method":"authenticate"}"#].into());
            set("until", "file".into());
        }
        "device" => set("code", "*-*".into()),
        _ => {}
    }
    way
}

fn provider(server: &AuthServer, kinds: &[&str], setup: Setup) -> Setup {
    let formats = Table::from_iter([("token".to_owned(), "claude-credentials".into())]);
    let addresses = Table::from_iter([("auth.test".to_owned(), vec!["127.0.0.1"].into())]);
    let ways: Vec<toml::Value> = kinds.iter().map(|kind| way(server, kind).into()).collect();
    setup
        .provider("credentials.formats", formats)
        .provider("egress", vec![format!("auth.test:{}", server.port)])
        .provider("login", ways)
        .set("egress.resolve", addresses)
}

async fn daemon(server: &AuthServer, kinds: &[&str]) -> Daemon {
    super::with_vault(|setup| provider(server, kinds, setup)).await
}

fn of(user: &str) -> LoginRequest {
    LoginRequest { provider: "test".to_owned(), user: user.to_owned(), method: None }
}

async fn begin(daemon: &Daemon, user: &str) -> Login {
    daemon.client.begin_login(&of(user)).await.unwrap()
}

/// The query that the browser is sent on with.
fn query(redirect: &str) -> &str {
    redirect.split_once('?').unwrap().1
}

async fn callback(daemon: &Daemon, login: &Login, query: &str) -> u16 {
    request(daemon, &format!("GET /v1/logins/{}/callback?{query}", login.id), "").await.status
}

async fn problem(daemon: &Daemon, login: &Login, query: &str) -> Problem {
    request(daemon, &format!("GET /v1/logins/{}/callback?{query}", login.id), "").await.problem()
}

/// Follows it to its end; returns the states on the way, and the last one.
async fn ended(daemon: &Daemon, id: &str) -> (Vec<LoginState>, Login) {
    let mut events = daemon.client.login_events(id).await.unwrap();
    let mut states = Vec::new();
    while let Some(login) = events.next().await.unwrap() {
        states.push(login.state);
        if login.state.is_ended() {
            return (states, login);
        }
    }
    panic!("it did not end: {states:?}");
}

/// Nothing is left of its container.
async fn gone(daemon: &Daemon) {
    eventually("the login's container is gone", || async {
        daemon.containers().await.iter().all(|container| container.login.is_none()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn each_kind_of_cli_logs_in_and_the_next_execution_has_the_login() {
    let server = AuthServer::start();
    for (number, kind) in (1..).zip(["codex", "claude", "gemini"]) {
        let daemon = daemon(&server, &[kind]).await;
        let login = begin(&daemon, "u1").await;
        assert_eq!((login.state, login.method), (LoginState::Code, LoginMethod::Callback));
        let redirect = login.redirect.clone().unwrap();
        assert!(redirect.starts_with("http://") && redirect.ends_with("/callback"), "{redirect}");
        let containers = daemon.containers().await;
        let its: Vec<_> = containers.iter().filter(|one| one.login.as_deref() == Some(&*login.id)).collect();
        assert_eq!((its.len(), its[0].user.as_deref()), (1, Some("u1")), "{kind}");
        assert!(shown_or_none(&daemon, "u1").await.is_none(), "nothing yet");
        let sent_to = server.agree(login.url.as_deref().unwrap());
        assert!(sent_to.starts_with(&redirect), "{kind}: {sent_to}");
        assert_eq!(callback(&daemon, &login, query(&sent_to)).await, 202, "{kind}");
        // Twice is once: codex would fail although it has logged in.
        let again = problem(&daemon, &login, query(&sent_to)).await;
        assert_eq!((again.status, again.code.as_str()), (409, "login_not_now"), "{kind}");
        let (states, done) = ended(&daemon, &login.id).await;
        assert_eq!(done.state, LoginState::Done, "{kind}: {done:?}");
        assert!(states.len() <= 2 && done.url.is_none() && done.redirect.is_none(), "{states:?} {done:?}");
        gone(&daemon).await;
        let stored = shown(&daemon, "u1").await;
        assert_eq!(done.credential.unwrap().fingerprint, stored.fingerprint);
        assert_eq!(stored.version, 1);
        // And as the file that the CLI wrote.
        let found = daemon.sh("cat ~/.test/token; stat -c %a ~/.test/token").await.exited(0);
        let wanted = format!("\"accessToken\":\"a-{number}\",\"refreshToken\":\"r-{number}\"");
        assert!(found.text().contains(&wanted) && found.text().ends_with("600\n"), "{kind}: {}", found.text());
        assert!(server.state().refused.is_empty(), "{kind}: {:?}", server.state().refused);
        assert!(ahead::actions(&daemon).await.contains(&AuditAction::Stored));
        // Nothing of it is told.
        let log = daemon.log();
        for secret in ["code-9c41f7", "id_token", "accessToken", "\"a-"] {
            assert!(!log.contains(secret), "{kind}: {secret} in {log}");
        }
        daemon.stop().await;
    }
}

async fn shown_or_none(daemon: &Daemon, user: &str) -> Option<Credential> {
    let all: Vec<Credential> = daemon.client.credentials(user).await.unwrap();
    all.into_iter().next()
}

#[tokio::test]
async fn a_callback_of_another_login_is_not_passed_on() {
    let server = AuthServer::start();
    // One wrong state would end it.
    let daemon = daemon(&server, &["claude"]).await;
    let (one, two) = (begin(&daemon, "u1").await, begin(&daemon, "u2").await);
    let sent_to = server.agree(one.url.as_deref().unwrap());
    let other = server.agree(two.url.as_deref().unwrap());
    for (query, status, code) in [
        (query(&other), 400, "login_state"),
        ("code=x&state=", 400, "login_state"),
        ("code=x", 400, "login_state"),
        ("", 400, "login_state"),
        (&*format!("code=x&{0}&{0}", state_of(&sent_to)), 400, "login_state"),
        (state_of(&sent_to), 400, "invalid_callback"),
        (&*format!("{}&code={}", state_of(&sent_to), "x".repeat(9000)), 400, "invalid_callback"),
    ] {
        let problem = problem(&daemon, &one, query).await;
        assert_eq!((problem.status, problem.code.as_str()), (status, code), "{query}");
        assert!(!problem.detail.contains("code-"), "{}", problem.detail);
    }
    // By hand, as the address of the page that could not be loaded.
    for (login, address) in [(&one, &sent_to), (&two, &other)] {
        let answer = thaw_client::types::LoginAnswer { code: Secret::new(format!(" {address}\n")) };
        let _: Login = daemon.client.answer_login(&login.id, &answer).await.unwrap();
        assert_eq!(ended(&daemon, &login.id).await.1.state, LoginState::Done);
    }
    let (first, second) = (shown(&daemon, "u1").await, shown(&daemon, "u2").await);
    assert_ne!(first.fingerprint, second.fingerprint);
    let late = problem(&daemon, &one, query(&sent_to)).await;
    assert_eq!(late.code, "login_not_now");
    let nobody = request(&daemon, "GET /v1/logins/l-none/callback?state=x&code=y", "").await;
    assert_eq!(nobody.status, 404);
    daemon.stop().await;
}

fn state_of(sent_to: &str) -> &str {
    query(sent_to).split('&').find(|pair| pair.starts_with("state=")).unwrap()
}

#[tokio::test]
async fn a_user_enters_the_code_of_a_device_elsewhere() {
    let server = AuthServer::start();
    let daemon = daemon(&server, &["codex", "device"]).await;
    let login: Login =
        daemon.client.begin_login(&LoginRequest { method: Some(LoginMethod::Device), ..of("u1") }).await.unwrap();
    assert_eq!(login.url.as_deref(), Some(&*format!("http://auth.test:{}/enter", server.port)));
    let code = login.code.clone().unwrap();
    assert!(login.redirect.is_none() && code.starts_with("WXYZ-"), "{login:?}");
    assert_eq!(problem(&daemon, &login, "code=x&state=y").await.code, "login_takes_nothing");
    server.enter(&code);
    let (states, done) = ended(&daemon, &login.id).await;
    assert_eq!(done.state, LoginState::Done, "{states:?} {done:?}");
    assert_eq!(shown(&daemon, "u1").await.version, 1);
    gone(&daemon).await;
    daemon.stop().await;
}

#[tokio::test]
async fn one_login_of_a_user_at_a_time_and_so_many_of_all() {
    let server = AuthServer::start();
    let daemon = super::with_vault(|setup| provider(&server, &["codex"], setup).set("login.max", 2)).await;
    let one = begin(&daemon, "u1").await;
    let refused = async |user: &str| {
        let answer = request(&daemon, "POST /v1/logins", &json!({"provider": "test", "user": user}).to_string()).await;
        answer.problem()
    };
    let pending = refused("u1").await;
    assert_eq!((pending.status, pending.code.as_str()), (409, "login_pending"));
    assert!(pending.detail.contains(&one.id), "{}", pending.detail);
    let two = begin(&daemon, "u2").await;
    let full = refused("u3").await;
    assert_eq!((full.status, full.code.as_str(), full.retryable), (503, "login_limit", true));
    // Cancelled: the container is gone, nothing is stored, and the next one may begin.
    assert_eq!(request(&daemon, &format!("DELETE /v1/logins/{}", one.id), "").await.status, 204);
    let (_, last) = ended(&daemon, &one.id).await;
    assert_eq!((last.state, last.reason), (LoginState::Failed, Some(LoginReason::Cancelled)));
    let again = begin(&daemon, "u1").await;
    assert_ne!(again.id, one.id);
    let listed: Vec<Login> = daemon.client.logins().await.unwrap();
    assert_eq!(listed.iter().map(|login| &login.id).collect::<Vec<_>>(), [&again.id, &two.id, &one.id]);
    // What has ended is forgotten when it is deleted once more.
    daemon.client.cancel_login(&one.id).await.unwrap();
    assert_eq!(request(&daemon, &format!("GET /v1/logins/{}", one.id), "").await.status, 404);
    assert_eq!(request(&daemon, &format!("DELETE /v1/logins/{}", one.id), "").await.status, 404);
    for login in [&again, &two] {
        daemon.client.cancel_login(&login.id).await.unwrap();
    }
    gone(&daemon).await;
    assert!(shown_or_none(&daemon, "u1").await.is_none());
    daemon.stop().await;
}

#[tokio::test]
async fn what_does_not_come_to_an_end_says_why() {
    let server = AuthServer::start();
    let daemon = daemon(&server, &["codex"]).await;
    // The user has said no.
    let login = begin(&daemon, "u1").await;
    let sent_to = server.agree(login.url.as_deref().unwrap());
    assert_eq!(callback(&daemon, &login, &format!("error=access_denied&{}", state_of(&sent_to))).await, 202);
    let (_, failed) = ended(&daemon, &login.id).await;
    assert_eq!((failed.state, failed.reason), (LoginState::Failed, Some(LoginReason::Refused)), "{failed:?}");
    let detail = failed.detail.unwrap();
    assert!(detail.contains("OAuth callback error: access_denied"), "{detail}");
    // The code was used by somebody else.
    let login = begin(&daemon, "u1").await;
    let sent_to = server.agree(login.url.as_deref().unwrap());
    let stolen = query(&sent_to).replace("code=code-9c41f7-", "code=other-");
    assert_eq!(callback(&daemon, &login, &stolen).await, 202);
    let (_, failed) = ended(&daemon, &login.id).await;
    assert!(failed.detail.as_ref().unwrap().contains("token exchange failed"), "{failed:?}");
    assert!(shown_or_none(&daemon, "u1").await.is_none());
    daemon.stop().await;
}

#[tokio::test]
async fn a_login_has_its_time() {
    let server = AuthServer::start();
    // Enough to begin on a busy machine.
    let daemon = super::with_vault(|setup| provider(&server, &["codex"], setup).set("login.timeout_seconds", 8)).await;
    let login = begin(&daemon, "u1").await;
    let (_, failed) = ended(&daemon, &login.id).await;
    assert_eq!(failed.reason, Some(LoginReason::Expired));
    assert!(failed.detail.unwrap().contains("login.timeout_seconds") && failed.ended_at.is_some());
    gone(&daemon).await;
    assert!(shown_or_none(&daemon, "u1").await.is_none());
    daemon.stop().await;
}

#[tokio::test]
async fn what_cannot_be_begun_is_refused_and_leaves_nothing() {
    let server = AuthServer::start();
    let daemon = daemon(&server, &["broken"]).await;
    let ask = async |body: serde_json::Value| request(&daemon, "POST /v1/logins", &body.to_string()).await.problem();
    for (body, status, code, about) in [
        (json!({"provider": "none", "user": "u1"}), 400, "unknown_provider", "test"),
        (json!({"provider": "test", "user": ".."}), 400, "invalid_field", "user"),
        (json!({"provider": "test", "user": "u1", "method": "device"}), 400, "unknown_login_method", "callback"),
        (json!({"provider": "test", "user": "u1", "method": "browser"}), 400, "unknown_login_method", "no browser"),
        (json!({"provider": "test", "user": "u1", "more": 1}), 400, "unknown_field", "more"),
        (json!({"provider": "test", "user": "u1"}), 502, "login_failed", "the moon is in the wrong quarter"),
    ] {
        let problem = ask(body).await;
        assert_eq!((problem.status, problem.code.as_str()), (status, code), "{}", problem.detail);
        assert!(problem.detail.contains(about), "{}", problem.detail);
    }
    assert!(daemon.client.logins::<Login>().await.unwrap().is_empty());
    gone(&daemon).await;
    daemon.stop().await;
    let daemon = super::with_vault(|setup| setup).await;
    let answer = request(&daemon, "POST /v1/logins", r#"{"provider": "test", "user": "u1"}"#).await;
    assert_eq!(answer.problem().code, "no_login");
    daemon.stop().await;
    let daemon = Daemon::start(|setup| setup).await;
    for (method, path) in [("POST", "/v1/logins"), ("GET", "/v1/logins"), ("GET", "/v1/logins/l-1")] {
        let body = if method == "POST" { r#"{"provider": "test", "user": "u1"}"# } else { "" };
        assert_eq!(request(&daemon, &format!("{method} {path}"), body).await.problem().code, "vault_off");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_login_ends_with_its_client_or_its_daemon_and_is_begun_again() {
    let server = AuthServer::start();
    let mut daemon = prepare(|setup| provider(&server, &["codex"], setup));
    daemon.launch().await;
    // Somebody who leaves before the answer; whether or not it has begun by then, nothing of it stays.
    let body = json!({"provider": "test", "user": "u1"}).to_string();
    let stream = daemon.open("POST /v1/logins", &[("content-type", "application/json")], body.as_bytes()).await;
    drop(stream);
    let begun = eventually("the login of one who left is over", || async {
        let answer = daemon.client.begin_login::<Login>(&of("u1")).await;
        if let Err(error) = &answer {
            // The answer may have been made before its client left: then it lives, and can be cancelled.
            let listed: Vec<Login> = daemon.client.logins().await.unwrap();
            for login in listed {
                let _ = daemon.client.cancel_login(&login.id).await;
            }
            assert!(error.to_string().contains("logging in"), "{error}");
        }
        answer.ok()
    })
    .await;
    daemon.kill();
    daemon.launch().await;
    gone(&daemon).await;
    assert!(daemon.client.logins::<Login>().await.unwrap().is_empty());
    assert_eq!(problem(&daemon, &begun, "code=x&state=y").await.status, 404);
    let login = begin(&daemon, "u1").await;
    let sent_to = server.agree(login.url.as_deref().unwrap());
    assert_eq!(callback(&daemon, &login, query(&sent_to)).await, 202);
    assert_eq!(ended(&daemon, &login.id).await.1.state, LoginState::Done);
    // One that is under way when the daemon stops in order.
    let login = begin(&daemon, "u2").await;
    let mut events = daemon.client.login_events(&login.id).await.unwrap();
    daemon.stop().await;
    let mut last = None;
    while let Ok(Some(login)) = events.next().await {
        last = Some(login);
    }
    assert_eq!(last.unwrap().reason, Some(LoginReason::Stopped));
}

/// `thawctl login`, with what it says on standard error.
fn thawctl(daemon: &Daemon) -> std::process::Child {
    let mut command = Command::new(programs::thawctl());
    command.arg("--socket").arg(daemon.socket()).args(["login", "test", "-u", "u1", "--no-browser"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The login that it has begun.
async fn pending(daemon: &Daemon) -> Login {
    eventually("the user can act", || async {
        let logins: Vec<Login> = daemon.client.logins().await.unwrap();
        logins.into_iter().find(|login| login.state == LoginState::Code)
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn thawctl_listens_where_the_browser_is_sent_or_takes_what_is_pasted() {
    let server = AuthServer::start();
    // Any port: this machine's own may be taken.
    let daemon = daemon(&server, &["claude"]).await;
    let child = thawctl(&daemon);
    let login = pending(&daemon).await;
    let sent_to = server.agree(login.url.as_deref().unwrap());
    let (authority, target) = sent_to.strip_prefix("http://localhost:").unwrap().split_once('/').unwrap();
    let port: u16 = authority.parse().unwrap();
    let page = eventually("thawctl listens", || async {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        Some(get(port, &format!("/{}", target.replace("state=", "state=x"))))
    })
    .await;
    assert!(page.starts_with("HTTP/1.1 400") && page.contains("did not take it"), "{page}");
    assert!(get(port, "/favicon.ico").starts_with("HTTP/1.1 404"));
    let page = get(port, &format!("/{target}"));
    assert!(page.starts_with("HTTP/1.1 200") && page.contains("Go back to the terminal"), "{page}");
    let done = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && said.contains("stored test for u1: valid"), "{said}");
    assert!(said.contains(login.url.as_deref().unwrap()) && !said.contains("code-9c41f7"), "{said}");

    let mut child = thawctl(&daemon);
    let login = pending(&daemon).await;
    let sent_to = server.agree(login.url.as_deref().unwrap());
    writeln!(child.stdin.as_mut().unwrap(), "{sent_to}").unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(shown(&daemon, "u1").await.version, 2);

    // Ctrl-C cancels it.
    let child = thawctl(&daemon);
    let login = pending(&daemon).await;
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(child.id() as i32).unwrap(),
        rustix::process::Signal::INT,
    )
    .unwrap();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(130));
    assert_eq!(ended(&daemon, &login.id).await.1.reason, Some(LoginReason::Cancelled));
    let mut run = shell("true");
    run.user = "u1".to_owned();
    daemon.run(&run).await.exited(0);
    daemon.stop().await;
}
