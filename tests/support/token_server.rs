//! An authorisation server that insists on what real ones do: each refresh token works once, and access tokens end.
//!
//! `POST /token` renews (form or JSON, RFC 6749), `GET /ask/ACCESS_TOKEN` answers whoever has an access token that lasts.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What the token endpoint does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mood {
    /// Renews.
    Well,
    /// Answers so: status and body.
    Answers(&'static str, String),
    /// Renews, and answers only after this time.
    Slow(Duration),
}

/// What it has issued.
#[derive(Debug)]
pub struct Issued {
    /// Number of the login that was issued last.
    pub last: u32,
    /// When each was.
    at: BTreeMap<u32, Instant>,
    /// Refresh tokens that came a second time, or were never issued.
    pub refused: Vec<String>,
    /// Requests to the token endpoint.
    pub renewals: u32,
    /// Answers to access tokens.
    pub asked: u32,
    /// Access tokens that were over, or were never issued.
    pub over: Vec<String>,
    /// The last request to the token endpoint.
    pub request: String,
    pub mood: Mood,
    /// Access tokens up to this number are refused, however long they would last.
    pub revoked: u32,
}

pub struct TokenServer {
    pub port: u16,
    state: Arc<Mutex<Issued>>,
    lifetime: Duration,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

impl TokenServer {
    /// Starts one whose access tokens last so long. Login 1 is issued.
    pub fn start(lifetime: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(Issued {
            last: 1,
            at: BTreeMap::from([(1, Instant::now())]),
            refused: Vec::new(),
            renewals: 0,
            asked: 0,
            over: Vec::new(),
            request: String::new(),
            mood: Mood::Well,
            revoked: 0,
        }));
        std::thread::spawn({
            let state = Arc::clone(&state);
            move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || answer(stream, &state, lifetime));
                }
            }
        });
        Self { port, state, lifetime }
    }

    pub fn state(&self) -> MutexGuard<'_, Issued> {
        self.state.lock().unwrap()
    }

    /// The login that was issued last, as claude keeps it, and as if that had just been.
    pub fn login(&self) -> String {
        let mut state = self.state();
        let number = state.last;
        state.at.insert(number, Instant::now());
        let expires = now_ms() + self.lifetime.as_millis() as u64;
        format!(
            r#"{{"claudeAiOauth":{{"accessToken":"a-{number}","refreshToken":"r-{number}","expiresAt":{expires},"scopes":["user:inference"]}}}}"#
        )
    }

    /// Whether an access token was issued and lasts.
    pub fn is_good(&self, access: &str) -> bool {
        is_good(&self.state(), access, self.lifetime)
    }
}

fn answer(mut stream: TcpStream, state: &Mutex<Issued>, lifetime: Duration) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    if stream.read_exact(&mut body).is_err() {
        return;
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let (status, text, pause) = {
        let mut state = state.lock().unwrap();
        match path.strip_prefix("/ask/") {
            // One before the last lasts until its own end too.
            Some(access) if is_good(&state, access, lifetime) => {
                state.asked += 1;
                ("200 OK", format!("answer to {access}\n"), Duration::ZERO)
            }
            Some(access) => {
                state.over.push(access.to_owned());
                ("401 Unauthorized", String::new(), Duration::ZERO)
            }
            None if path == "/token" => token(&mut state, &head, &body, lifetime),
            None => ("404 Not Found", String::new(), Duration::ZERO),
        }
    };
    std::thread::sleep(pause);
    let length = text.len();
    let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{text}");
}

fn is_good(state: &Issued, access: &str, lifetime: Duration) -> bool {
    let number = access.strip_prefix("a-").and_then(|number| number.parse().ok());
    let number = number.filter(|number| *number > state.revoked);
    number.and_then(|number: u32| state.at.get(&number)).is_some_and(|at| at.elapsed() < lifetime)
}

fn token(state: &mut Issued, head: &str, body: &str, lifetime: Duration) -> (&'static str, String, Duration) {
    state.renewals += 1;
    state.request = format!("{head}{body}");
    let pause = match &state.mood {
        Mood::Answers(status, text) => return (status, text.clone(), Duration::ZERO),
        Mood::Slow(pause) => *pause,
        Mood::Well => Duration::ZERO,
    };
    let is_json = head.to_ascii_lowercase().contains("content-type: application/json");
    let field = |name: &str| match is_json {
        true => serde_json::from_str::<serde_json::Value>(body).unwrap()[name].as_str().unwrap_or_default().to_owned(),
        false => {
            body.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default().to_owned()
        }
    };
    let refresh = field("refresh_token");
    if field("grant_type") != "refresh_token"
        || field("client_id") != "client-1"
        || refresh != format!("r-{}", state.last)
    {
        state.refused.push(refresh);
        return ("400 Bad Request", r#"{"error":"invalid_grant"}"#.to_owned(), pause);
    }
    state.last += 1;
    let (number, seconds) = (state.last, lifetime.as_secs());
    state.at.insert(number, Instant::now());
    let text = format!(
        r#"{{"access_token":"a-{number}","refresh_token":"r-{number}","expires_in":{seconds},"token_type":"Bearer"}}"#
    );
    ("200 OK", text, pause)
}
