//! `thawctl login`: a user logs in to a provider, and thawd keeps what comes of it. The provider sends the user's browser to a
//! port of this machine, where thawctl listens; what comes there is handed to thawd, whose CLI waits for it in a container.

use std::io::{self, BufRead, IsTerminal};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::format::Format;
use super::request::current_user;
use super::{CtlError, complain, one_line, print, set, view};
use thaw_client::client::Client;
use thaw_client::types::{Login, LoginAnswer, LoginMethod, LoginRequest, LoginState, Secret};

/// Longest head of the browser's request, bytes.
const MAX_HEAD: usize = 16 << 10;

/// Time for that head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Nothing came of the login.
const FAILED: u8 = 1;

/// Exit code of a login that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// Arguments of `thawctl login`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The address that it prints is for a browser on any machine. Where the provider then sends the browser to a port of this \
machine, thawctl listens there. If the browser runs on another machine, its page cannot be loaded: paste its address here. \
Ctrl-C cancels the login.")]
pub(super) struct Args {
    /// Provider, see `thawctl providers`
    #[arg(add = super::completion::providers())]
    provider: String,
    /// Whose credential it becomes; yours otherwise
    #[arg(long, short)]
    user: Option<String>,
    /// What you have to do: callback (open an address here) or device (open an address anywhere and enter a code); the
    /// provider's first way otherwise
    #[arg(long, value_parser = method)]
    method: Option<LoginMethod>,
    /// Only print the address, although a browser could be opened
    #[arg(long)]
    no_browser: bool,
}

fn method(text: &str) -> Result<LoginMethod, String> {
    match text {
        "callback" => Ok(LoginMethod::Callback),
        "device" => Ok(LoginMethod::Device),
        "browser" => Ok(LoginMethod::Browser),
        _ => Err("it is callback or device".to_owned()),
    }
}

pub(super) async fn login(client: &Client, args: Args, format: &Format) -> Result<u8, CtlError> {
    let user = args.user.unwrap_or_else(current_user);
    say(&format!("starting the login of {user} to {}", args.provider));
    let mut interrupt = signal(SignalKind::interrupt())?;
    let request = LoginRequest { provider: args.provider, user, method: args.method };
    let begun = tokio::select! {
        begun = client.begin_login::<Login>(&request) => begun?,
        // The daemon gives it up when we are gone.
        _ = interrupt.recv() => return Ok(INTERRUPTED),
    };
    let mut events = client.login_events(&begun.id).await?;
    let callback = Callback::listen(begun.redirect.as_deref()).await;
    invite(&begun, &callback, args.no_browser);
    let mut pasted = if begun.redirect.is_some() { lines() } else { mpsc::channel(1).1 };
    let mut last = begun.state;
    loop {
        tokio::select! {
            event = events.next() => match event? {
                None => return Err(CtlError::Usage("the daemon stopped in the middle of the login: begin again".to_owned())),
                Some(login) => {
                    if login.state == LoginState::Exchanging && last != login.state {
                        say("the answer is there; the provider's CLI fetches the credential");
                    }
                    last = login.state;
                    if login.state.is_ended() {
                        return end(&login, format);
                    }
                }
            },
            stream = callback.accept() => {
                // One after the other: there is one browser.
                if let Err(error) = callback.serve(stream?, client, &begun.id).await {
                    complain(&format!("a request of a browser: {error}"));
                }
            }
            Some(line) = pasted.recv() => {
                if let Err(error) = answer(client, &begun.id, line).await {
                    complain(&error.to_string());
                }
            }
            _ = interrupt.recv() => {
                client.cancel_login(&begun.id).await?;
                return Ok(INTERRUPTED);
            }
        }
    }
}

/// Says how far it is, where it disturbs no output.
fn say(text: &str) {
    eprintln!("{}", one_line(text));
}

fn invite(login: &Login, callback: &Callback, no_browser: bool) {
    let url = login.url.as_deref().unwrap_or_default();
    let has_screen = set("DISPLAY").is_some() || set("WAYLAND_DISPLAY").is_some();
    let opened = !no_browser && has_screen && open(url);
    say(if opened {
        "a browser opens this address; if none does, open it:"
    } else {
        "open this address in a browser:"
    });
    eprintln!("\n  {}\n", one_line(url));
    if let Some(code) = &login.code {
        say("and enter this code there:");
        eprintln!("\n  {}\n", one_line(code));
    }
    match (&login.redirect, &callback.refused) {
        (None, _) => {}
        (Some(redirect), None) => {
            say(&format!("waiting for the browser at {redirect}"));
            say("if it runs on another machine: paste the address of the page that could not be loaded, and Enter");
        }
        (Some(redirect), Some(error)) => {
            say(&format!("cannot listen at {redirect} ({error})"));
            say("paste the address of the page that the browser is sent to, and Enter");
        }
    }
}

fn open(url: &str) -> bool {
    let mut command = Command::new("xdg-open");
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().is_ok()
}

fn end(login: &Login, format: &Format) -> Result<u8, CtlError> {
    if matches!(format, Format::Json) {
        print(&format!("{}\n", serde_json::to_string_pretty(login).unwrap_or_default()))?;
    }
    if login.state == LoginState::Done {
        let credential = login.credential.as_ref();
        let account = credential.and_then(|one| one.account.as_ref()).map(|account| format!(" of {account}"));
        let state = credential.map(|one| format!(": {}", view::word(&one.state))).unwrap_or_default();
        say(&format!("stored {} for {}{}{state}", login.provider, login.user, account.unwrap_or_default()));
        return Ok(0);
    }
    let reason = login.reason.map(|reason| view::word(&reason)).unwrap_or_default();
    complain(&format!("the login failed ({reason}): {}", login.detail.as_deref().unwrap_or_default()));
    Ok(FAILED)
}

async fn answer(client: &Client, id: &str, code: Secret) -> Result<(), CtlError> {
    let _: Login = client.answer_login(id, &LoginAnswer { code }).await?;
    Ok(())
}

/// Lines that are pasted; a thread of its own reads them, and ends with the process.
fn lines() -> mpsc::Receiver<Secret> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        for line in io::stdin().lock().lines().map_while(Result::ok) {
            if !line.trim().is_empty() && sender.blocking_send(Secret::new(line)).is_err() {
                return;
            }
        }
        // What is no terminal may be empty from the beginning: then there is only the browser.
        if io::stdin().is_terminal() {
            say("no more is read; waiting for the browser");
        }
    });
    lines
}

/// Where the provider sends the browser.
struct Callback {
    listeners: Vec<TcpListener>,
    /// Path that is a callback.
    path: String,
    /// Why nobody listens.
    refused: Option<io::Error>,
}

impl Callback {
    /// Listens at the port of the address, on both loopbacks as far as they are free.
    async fn listen(redirect: Option<&str>) -> Self {
        let mut this = Self { listeners: Vec::new(), path: String::new(), refused: None };
        let Some((port, path)) = redirect.and_then(parts) else { return this };
        this.path = path;
        let mut refused = None;
        for address in ["127.0.0.1", "::1"] {
            match TcpListener::bind((address, port)).await {
                Ok(listener) => this.listeners.push(listener),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        this.refused = refused.filter(|_| this.listeners.is_empty());
        this
    }

    /// The next connection; never, when nobody listens.
    async fn accept(&self) -> io::Result<TcpStream> {
        let accepted = match self.listeners.as_slice() {
            [] => std::future::pending().await,
            [one] => one.accept().await,
            [one, other, ..] => tokio::select! {
                accepted = one.accept() => accepted,
                accepted = other.accept() => accepted,
            },
        };
        accepted.map(|(stream, _)| stream)
    }

    /// Answers one request: a callback is handed on, everything else is not found.
    async fn serve(&self, mut stream: TcpStream, client: &Client, id: &str) -> Result<(), CtlError> {
        let head = tokio::time::timeout(HEAD_TIMEOUT, head(&mut stream)).await.unwrap_or_else(|_| Ok(String::new()))?;
        let (status, text) = match query(&head, &self.path) {
            None => ("404 Not Found", "There is nothing here: this port waits for the end of a login.".to_owned()),
            Some(query) => match answer(client, id, Secret::new(query.to_owned())).await {
                Ok(()) => ("200 OK", "thawd has it. Go back to the terminal; this page can be closed.".to_owned()),
                Err(error) => ("400 Bad Request", format!("thawd did not take it: {error}")),
            },
        };
        let page = page(&text);
        let length = page.len();
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {length}\r\n\
             Cache-Control: no-store\r\nReferrer-Policy: no-referrer\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await?;
        Ok(stream.write_all(page.as_bytes()).await?)
    }
}

/// Port and path of an address such as `http://127.0.0.1:1455/auth/callback`.
fn parts(address: &str) -> Option<(u16, String)> {
    let (authority, path) = address.strip_prefix("http://")?.split_once('/')?;
    let port = authority.rsplit_once(':')?.1.parse().ok()?;
    Some((port, format!("/{}", path.split('?').next().unwrap_or_default())))
}

async fn head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|part| part == b"\r\n\r\n") && head.len() < MAX_HEAD {
        match stream.read(&mut buffer).await? {
            0 => break,
            length => head.extend_from_slice(&buffer[..length]),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The query of a request for the callback's path.
fn query<'a>(head: &'a str, path: &str) -> Option<&'a str> {
    let target = head.strip_prefix("GET ")?.split(' ').next()?;
    let (asked, query) = target.split_once('?')?;
    (asked == path).then_some(query)
}

fn page(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!("<!doctype html><title>thawctl login</title><p>{text}</p>\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_is_a_request_for_its_path() {
        assert_eq!(parts("http://127.0.0.1:1455/auth/callback"), Some((1455, "/auth/callback".to_owned())));
        assert_eq!(parts("http://localhost:8/"), Some((8, "/".to_owned())));
        for other in ["https://localhost:8/", "http://localhost/x", "http://localhost:8", ""] {
            assert_eq!(parts(other), None, "{other}");
        }
        let head = "GET /auth/callback?code=c&state=s HTTP/1.1\r\nHost: localhost\r\n\r\n";
        assert_eq!(query(head, "/auth/callback"), Some("code=c&state=s"));
        for head in [
            "GET /favicon.ico HTTP/1.1\r\n\r\n",
            "POST /auth/callback?x HTTP/1.1\r\n\r\n",
            "GET /auth/callback HTTP/1.1",
        ] {
            assert_eq!(query(head, "/auth/callback"), None, "{head}");
        }
        assert!(page("a <b> & c").contains("a &lt;b> &amp; c"));
    }
}
