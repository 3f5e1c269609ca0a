//! An authorisation server that insists on what real ones do: a code works once, with the redirect that it was issued for and
//! the verifier of its challenge (PKCE, RFC 7636, `plain`); a device code only after its user has entered it (RFC 8628).
//!
//! What its token endpoint gives is the file that claude keeps.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};

/// What it has issued.
#[derive(Debug, Default)]
pub struct Issued {
    /// Codes that were not used yet: redirect and challenge.
    codes: BTreeMap<String, (String, String)>,
    /// User codes, and whether the user has entered them.
    devices: BTreeMap<String, bool>,
    /// Number of the login that was issued last.
    pub last: u32,
    /// Requests that were refused, by path.
    pub refused: Vec<String>,
}

pub struct AuthServer {
    pub port: u16,
    state: Arc<Mutex<Issued>>,
}

impl AuthServer {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<Mutex<Issued>>::default();
        std::thread::spawn({
            let state = Arc::clone(&state);
            move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || answer(stream, &state));
                }
            }
        });
        Self { port, state }
    }

    pub fn state(&self) -> MutexGuard<'_, Issued> {
        self.state.lock().unwrap()
    }

    /// What a browser does with the address: the user agrees, and the provider sends the browser on. Returns where to.
    pub fn agree(&self, url: &str) -> String {
        let path = url.strip_prefix(&format!("http://auth.test:{}", self.port)).unwrap_or_else(|| panic!("{url}"));
        let answer = get(self.port, path);
        let location = answer.lines().find_map(|line| line.strip_prefix("Location: "));
        location.unwrap_or_else(|| panic!("{answer}")).trim().to_owned()
    }

    /// The user enters a code.
    pub fn enter(&self, code: &str) {
        let known = self.state().devices.get_mut(code).map(|entered| *entered = true);
        assert!(known.is_some(), "{code} was never issued");
    }
}

/// One request by hand; the whole answer.
pub fn get(port: u16, target: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// The fields of a form or a query.
fn fields(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), decoded(value))).collect()
}

fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push(char::from(u8::from_str_radix(&part[..2], 16).unwrap()));
        out.push_str(&part[2..]);
    }
    out
}

fn answer(mut stream: TcpStream, state: &Mutex<Issued>) {
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
    let target = head.split(' ').nth(1).unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut state = state.lock().unwrap();
    let (status, headers, text) = match path {
        "/authorize" => authorize(&mut state, &fields(query)),
        "/token" => token(&mut state, &fields(&body)),
        "/usercode" => {
            let code = format!("WXYZ-{:05}", state.devices.len() + 12345);
            state.devices.insert(code.clone(), false);
            ("200 OK", String::new(), code)
        }
        "/device" => match state.devices.get(&fields(&body)["user_code"]) {
            Some(true) => issue(&mut state),
            _ => ("403 Forbidden", String::new(), "authorization_pending".to_owned()),
        },
        _ => ("404 Not Found", String::new(), String::new()),
    };
    if status.starts_with('4') && path != "/device" {
        state.refused.push(path.to_owned());
    }
    let length = text.len();
    let _ = write!(stream, "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{text}");
}

type Reply = (&'static str, String, String);

fn authorize(state: &mut Issued, asked: &BTreeMap<String, String>) -> Reply {
    let needed = ["client_id", "redirect_uri", "code_challenge", "state"];
    if let Some(missing) = needed.into_iter().find(|name| asked.get(*name).is_none_or(String::is_empty)) {
        return ("400 Bad Request", String::new(), format!("{missing} is missing"));
    }
    let code = format!("code-9c41f7-{}", state.codes.len() + 1);
    let redirect = asked["redirect_uri"].clone();
    state.codes.insert(code.clone(), (redirect.clone(), asked["code_challenge"].clone()));
    let location = format!("Location: {redirect}?code={code}&state={}\r\n", asked["state"]);
    ("302 Found", location, String::new())
}

fn token(state: &mut Issued, asked: &BTreeMap<String, String>) -> Reply {
    let of = |name: &str| asked.get(name).cloned().unwrap_or_default();
    let expected = (of("redirect_uri"), of("code_verifier"));
    // Used up, whether or not the rest is right.
    match state.codes.remove(&of("code")) {
        Some(issued) if issued == expected && of("grant_type") == "authorization_code" => issue(state),
        _ => ("400 Bad Request", String::new(), "invalid_grant".to_owned()),
    }
}

fn issue(state: &mut Issued) -> Reply {
    state.last += 1;
    let number = state.last;
    let text = format!(
        r#"{{"claudeAiOauth":{{"accessToken":"a-{number}","refreshToken":"r-{number}","expiresAt":4102444800000,"scopes":["user:inference"]}}}}"#
    );
    ("200 OK", String::new(), text)
}
