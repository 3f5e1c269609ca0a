//! Logins whose refresh token works once, and an authorisation server that insists on it.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thaw_client::types::ExecutionRequest;

use super::{put, shown, with_vault};
use crate::support::{Daemon, Setup, eventually, shell};

/// How long an access token is good for.
const LIFETIME: Duration = Duration::from_secs(2);

/// Renews logins (`/renew/TOKEN`), and answers whoever has one (`/ask/TOKEN`).
struct Server {
    port: u16,
    state: Arc<Mutex<Issued>>,
}

#[derive(Default)]
struct Issued {
    /// Number of the login that was issued last.
    last: u32,
    /// Refresh tokens that came a second time.
    twice: Vec<String>,
    asked: u32,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// The login of this number, as claude keeps it.
fn login(number: u32) -> String {
    let expires = now_ms() + LIFETIME.as_millis() as u64;
    format!(
        r#"{{"claudeAiOauth":{{"accessToken":"a-{number}","refreshToken":"r-{number}","expiresAt":{expires},"scopes":["user:inference"]}}}}"#
    )
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(Issued { last: 1, ..Issued::default() }));
        std::thread::spawn({
            let state = Arc::clone(&state);
            move || listener.incoming().flatten().for_each(|stream| answer(stream, &state))
        });
        Self { port, state }
    }

    /// A provider whose CLI is a script: it renews a login that is over, and asks with what it has then.
    fn provider(&self, setup: Setup) -> Setup {
        let formats = toml::Table::from_iter([("token".to_owned(), "claude-credentials".into())]);
        let addresses = toml::Table::from_iter([("auth.test".to_owned(), vec!["127.0.0.1"].into())]);
        setup
            .provider("credentials.formats", formats)
            .provider("egress", vec![format!("auth.test:{}", self.port)])
            .set("egress.resolve", addresses)
            .set("queue.timeout_ms", 300_000)
            .set("queue.max_timeout_ms", 300_000)
    }

    fn request(&self) -> ExecutionRequest {
        let server = format!("http://auth.test:{}", self.port);
        let script = format!(
            r#"cd ~/.test
            of() {{ sed "s/.*\"$1\":\"*\([^,\"]*\).*/\1/" token; }}
            if [ $(of expiresAt) -le $(date +%s)000 ]; then
                wget -q -O token.tmp {server}/renew/$(of refreshToken) || {{ : > token; exit 1; }}
                mv token.tmp token
            fi
            wget -q -O - {server}/ask/$(of accessToken)"#
        );
        shell(&script)
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<Issued>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut state = state.lock().unwrap();
    let (status, body) = match path.rsplit('/').next().unwrap_or_default() {
        token if path.contains("/renew/") && token == format!("r-{}", state.last) => {
            state.last += 1;
            ("200 OK", login(state.last))
        }
        token if path.contains("/renew/") => {
            state.twice.push(token.to_owned());
            ("400 Bad Request", "invalid_grant".to_owned())
        }
        token if token.starts_with("a-") => {
            state.asked += 1;
            ("200 OK", format!("answer to {token}\n"))
        }
        _ => ("404 Not Found", String::new()),
    };
    let length = body.len();
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
}

#[tokio::test]
async fn many_runs_over_a_login_that_expires_every_two_seconds_all_succeed() {
    let server = Server::start();
    let daemon = with_vault(|setup| server.provider(setup)).await;
    put(&daemon, "u1", &login(1)).await;
    let request = server.request();
    let outcomes = futures_util::future::join_all((0..60).map(|_| daemon.run(&request))).await;
    for outcome in outcomes {
        assert!(outcome.exited(0).text().starts_with("answer to a-"));
    }
    // Once more, when it is over for sure: what is stored is the newest.
    tokio::time::sleep(LIFETIME).await;
    daemon.run(&request).await.exited(0);
    {
        let state = server.state.lock().unwrap();
        assert_eq!((state.asked, &state.twice), (61, &Vec::new()));
        assert!(state.last > 1, "it was renewed");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn no_login_is_lost_although_the_daemon_is_killed_again_and_again() {
    let server = Server::start();
    let mut daemon = with_vault(|setup| server.provider(setup)).await;
    put(&daemon, "u1", &login(1)).await;
    let mut request = server.request();
    request.background = true;
    for round in 0..12u64 {
        // Each is somewhere else between its claim and its end when the daemon dies.
        let mut begun = Vec::new();
        for _ in 0..3 {
            let (client, request) = (daemon.client.clone(), request.clone());
            begun.push(tokio::spawn(async move { client.create(&request).await }));
        }
        tokio::time::sleep(Duration::from_millis(20 + 41 * round)).await;
        daemon.kill();
        begun.iter().for_each(tokio::task::JoinHandle::abort);
        daemon.launch().await;
    }
    eventually("all have ended", || async { all_ended(&daemon).await.then_some(()) }).await;
    tokio::time::sleep(LIFETIME).await;
    request.background = false;
    assert!(daemon.run(&request).await.exited(0).text().starts_with("answer to a-"));
    let (last, twice) = {
        let state = server.state.lock().unwrap();
        (state.last, state.twice.clone())
    };
    assert!(twice.is_empty(), "used twice: {twice:?}; the last is {last}");
    assert!(last > 1);
    assert!(shown(&daemon, "u1").await.reason.is_none());
    daemon.stop().await;
}

async fn all_ended(daemon: &Daemon) -> bool {
    let executions = daemon.client.executions().await.unwrap();
    executions.iter().all(|execution| execution.exit.is_some())
}
