//! Identities: connections through real proxies of others, and from an address of this host.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use thaw_client::config::{Config, DefaultRoute};
use thawd::egress::{Identity, Limits, Outside, Policy, Routes};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use super::bed::{Bed, PATIENCE, echo, listen, tunnel, unlimited};

/// A program of others that runs for as long as the value lives.
struct Running(Child);

impl Running {
    /// Starts it, and waits until something listens on the port.
    async fn start(command: &mut Command, port: u16) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let this = Self(child);
        tokio::time::timeout(PATIENCE, async {
            while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{command:?} does not listen on {port}"));
        this
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port that nobody uses at the moment.
async fn free_port() -> u16 {
    listen().await.1
}

/// tinyproxy, whose connections come from `from`, with a user name and password if it is to have one.
async fn tinyproxy(folder: &Path, from: &str, login: Option<(&str, &str)>) -> (Running, u16) {
    let port = free_port().await;
    let login = login.map(|(user, password)| format!("BasicAuth {user} {password}\n")).unwrap_or_default();
    let file = folder.join(format!("tinyproxy-{port}.conf"));
    let text =
        format!("Port {port}\nListen 127.0.0.1\nBind {from}\nTimeout 60\nMaxClients 50\nLogLevel Critical\n{login}");
    std::fs::write(&file, text).unwrap();
    (Running::start(Command::new("tinyproxy").args(["-d", "-c"]).arg(&file), port).await, port)
}

/// microsocks, whose connections come from `from`.
async fn microsocks(from: &str, login: Option<(&str, &str)>) -> (Running, u16) {
    let port = free_port().await;
    let mut command = Command::new("microsocks");
    command.args(["-i", "127.0.0.1", "-p", &port.to_string(), "-b", from]);
    if let Some((user, password)) = login {
        command.args(["-u", user, "-P", password]);
    }
    (Running::start(&mut command, port).await, port)
}

/// stunnel before the proxy at `to`; and the certificate that vouches for it.
async fn stunnel(folder: &Path, to: u16) -> (Running, u16, std::path::PathBuf) {
    let port = free_port().await;
    let (key, certificate) = (folder.join("key.pem"), folder.join("cert.pem"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout"])
        .args([&key, Path::new("-out"), &certificate])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let file = folder.join("stunnel.conf");
    let text = format!(
        "foreground = yes\npid =\n[proxy]\naccept = 127.0.0.1:{port}\nconnect = 127.0.0.1:{to}\ncert = {}\nkey = {}\n",
        certificate.display(),
        key.display()
    );
    std::fs::write(&file, text).unwrap();
    (Running::start(Command::new("stunnel").arg(&file), port).await, port, certificate)
}

/// A configuration, read as the daemon does.
fn config(text: &str) -> Config {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::load(file.path()).unwrap()
}

/// What a configuration with these sections makes of them.
fn identities(text: &str) -> Vec<Identity> {
    thawd::daemon::egress_identities(&config(text)).unwrap()
}

/// A container of user `u1`, whose default is `default`, with these identities.
fn container(sections: &str, default: &str, limits: Limits) -> (Bed, Arc<Routes>) {
    let route = match default {
        "direct" => DefaultRoute::Direct,
        "none" => DefaultRoute::None,
        name => DefaultRoute::Identity(name),
    };
    let routes = Arc::new(Routes::new(identities(sections), &route));
    let home: IpAddr = "127.0.0.1".parse().unwrap();
    let resolve = BTreeMap::from([("upstream.test".to_owned(), vec![home])]);
    let policy = Policy::new(&["upstream.test:*", "localhost:*", "127.0.0.1:*"], resolve, vec![]).unwrap();
    let bed = Bed::outside(policy, limits, |metrics| Outside {
        metrics,
        routes: Arc::clone(&routes),
        user: Some("u1".into()),
    });
    (bed, routes)
}

/// Tells each connection the address that it comes from, over HTTP and without.
async fn whoami() -> (u16, Arc<std::sync::atomic::AtomicUsize>) {
    let (listener, port) = listen().await;
    let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        loop {
            let (mut stream, from) = listener.accept().await.unwrap();
            counter.fetch_add(1, SeqCst);
            tokio::spawn(async move {
                let mut head = String::new();
                let mut reader = BufReader::new(&mut stream);
                // All of it: what is left unread when the connection is closed would reset it.
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).await.unwrap_or(0) > 0 {}
                let leaked = head.to_ascii_lowercase().contains("proxy-authorization");
                let body = format!("{} {leaked}", from.ip());
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (port, count)
}

async fn seen_by_request(bed: &Bed, host: &str, port: u16) -> String {
    let url = format!("http://{host}:{port}/path?query");
    let answer = bed.ask(&format!("GET {url} HTTP/1.1\r\nHost: ignored.test\r\nConnection: close\r\n\r\n")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    // tinyproxy leaves out the length, so that the body comes in chunks.
    let chunk = answer.body.split("\r\n").nth(1).map(str::to_owned);
    chunk.filter(|_| answer.head.contains("chunked")).unwrap_or(answer.body)
}

async fn seen_by_tunnel(bed: &Bed, host: &str, port: u16) -> String {
    let mut client = tunnel(bed, &format!("{host}:{port}")).await;
    client.send("GET / HTTP/1.1\r\nHost: x\r\n\r\n").await;
    client.answer().await.body
}

fn give(routes: &Routes, user: &str, name: &str) {
    routes.set(user, routes.choose(user, Some(name)).unwrap());
}

fn secret(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

#[tokio::test]
async fn each_kind_goes_out_with_its_own_address() {
    let folder = tempfile::tempdir().unwrap();
    let (_http, http) = tinyproxy(folder.path(), "127.0.0.11", None).await;
    let (_login, login) = tinyproxy(folder.path(), "127.0.0.12", Some(("paula", "s3cret-of-paula"))).await;
    let (_tls, tls, authority) = stunnel(folder.path(), http).await;
    let (_socks, socks) = microsocks("127.0.0.14", None).await;
    let (_socks_login, socks_login) = microsocks("127.0.0.15", Some(("paula", "s3cret-of-paula"))).await;
    let password = secret(folder.path(), "password", "s3cret-of-paula\n");
    let login_lines = format!("username = \"paula\"\npassword_file = {password:?}\n");
    let sections = format!(
        "[egress.identity.http]\nupstream = \"http://127.0.0.1:{http}\"\n\
         [egress.identity.login]\nupstream = \"http://127.0.0.1:{login}\"\n{login_lines}\
         [egress.identity.tls]\nupstream = \"https://localhost:{tls}\"\nca_file = {authority:?}\n\
         [egress.identity.socks]\nupstream = \"socks5://127.0.0.1:{socks}\"\n\
         [egress.identity.socks-login]\nupstream = \"socks5h://127.0.0.1:{socks_login}\"\n{login_lines}\
         [egress.identity.bind]\nbind = \"127.0.0.16\"\n"
    );
    let (bed, routes) = container(&sections, "direct", unlimited());
    let (port, _) = whoami().await;
    assert_eq!(seen_by_request(&bed, "upstream.test", port).await, "127.0.0.1 false", "before there is an identity");
    for (name, address) in [
        ("http", "127.0.0.11"),
        ("login", "127.0.0.12"),
        ("tls", "127.0.0.11"),
        ("socks", "127.0.0.14"),
        ("socks-login", "127.0.0.15"),
        ("bind", "127.0.0.16"),
    ] {
        give(&routes, "u1", name);
        // Neither the identity's password nor the container's own header gets to the destination.
        let expected = format!("{address} false");
        assert_eq!(seen_by_request(&bed, "upstream.test", port).await, expected, "{name}");
        assert_eq!(seen_by_tunnel(&bed, "upstream.test", port).await, expected, "{name}");
        if name != "bind" {
            // A name that the proxy resolves: this host's own is none that the policy would let through otherwise.
            assert_eq!(seen_by_tunnel(&bed, "localhost", port).await, expected, "{name}");
            // An HTTP proxy gets the request as it is, with a whole URL.
            assert_eq!(seen_by_request(&bed, "localhost", port).await, expected, "{name}");
        }
        let refused = bed.get(&format!("http://127.0.0.1:{port}/")).await;
        assert_eq!(refused.status, 403, "an address that is not public stays refused: {refused:?}");
        assert_eq!(bed.get("http://elsewhere.test/").await.status, 403, "the list holds");
        let health = routes.identity(name).unwrap().health();
        assert!(!health.is_down && health.opened >= 2 && health.failed == 0, "{name}: {health:?}");
    }
    routes.unset("u1");
    assert_eq!(seen_by_request(&bed, "upstream.test", port).await, "127.0.0.1 false", "given back");
}

#[tokio::test]
async fn bytes_pass_whoever_speaks_first() {
    let folder = tempfile::tempdir().unwrap();
    let (_http, http) = tinyproxy(folder.path(), "127.0.0.11", None).await;
    let (_socks, socks) = microsocks("127.0.0.14", None).await;
    let sections = format!(
        "[egress.identity.http]\nupstream = \"http://127.0.0.1:{http}\"\n\
         [egress.identity.socks]\nupstream = \"socks5://127.0.0.1:{socks}\"\n"
    );
    let (bed, routes) = container(&sections, "none", unlimited());
    let (echoes, _) = echo().await;
    // A server that greets, as ssh's does.
    let (greeter, greets) = listen().await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = greeter.accept().await.unwrap();
            let _ = stream.write_all(b"SSH-2.0-here\r\n").await;
        }
    });
    for name in ["http", "socks"] {
        give(&routes, "u1", name);
        assert_eq!(tunnel(&bed, &format!("upstream.test:{greets}")).await.line().await, "SSH-2.0-here\r\n", "{name}");
        let mut client = tunnel(&bed, &format!("upstream.test:{echoes}")).await;
        for round in 0..50 {
            let line = format!("{round} {}\n", "x".repeat(round * 100));
            client.send(&line).await;
            assert_eq!(client.line().await, line, "{name}");
        }
    }
}

/// Accepts connections and does this with each.
async fn bad<F: Future<Output = ()> + Send + 'static>(with: impl Fn(TcpStream) -> F + Send + 'static) -> u16 {
    let (listener, port): (TcpListener, u16) = listen().await;
    tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap().0;
            tokio::spawn(with(stream));
        }
    });
    port
}

async fn says(mut stream: TcpStream, text: &str) {
    let mut request = vec![0; 4096];
    let _ = stream.read(&mut request).await;
    let _ = stream.write_all(text.as_bytes()).await;
}

#[tokio::test]
async fn a_proxy_that_fails_is_told_and_never_gone_around() {
    let folder = tempfile::tempdir().unwrap();
    let (_login, login) = tinyproxy(folder.path(), "127.0.0.12", Some(("paula", "right"))).await;
    let (_socks, socks) = microsocks("127.0.0.14", Some(("paula", "right"))).await;
    let (_plain, plain) = tinyproxy(folder.path(), "127.0.0.11", None).await;
    let (_tls, tls, _) = stunnel(folder.path(), plain).await;
    let wrong = secret(folder.path(), "password", "wr0ng-secret");
    let login_lines = format!("username = \"paula\"\npassword_file = {wrong:?}\n");
    let hung = bad(|stream| async move {
        let _held = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let garbage = bad(|stream| async move { says(stream, "SSH-2.0-nothing\r\n\r\n").await }).await;
    let half = bad(|stream| async move { says(stream, "HTTP/1.1 200 Connection est").await }).await;
    let closes = bad(|stream| async move { drop(stream) }).await;
    let full =
        bad(|stream| async move { says(stream, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await }).await;
    let wants = "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n";
    let wants = bad(move |stream| async move { says(stream, wants).await }).await;
    let gone = free_port().await;
    let table = [
        ("gone", format!("upstream = \"http://127.0.0.1:{gone}\"\n"), "cannot connect to it", true),
        ("gone-socks", format!("upstream = \"socks5://127.0.0.1:{gone}\"\n"), "cannot connect to it", true),
        ("hung", format!("upstream = \"http://127.0.0.1:{hung}\"\n"), "did not answer in time", true),
        ("hung-tls", format!("upstream = \"https://127.0.0.1:{hung}\"\n"), "did not answer in time", true),
        ("hung-socks", format!("upstream = \"socks5://127.0.0.1:{hung}\"\n"), "did not answer in time", true),
        ("garbage", format!("upstream = \"http://127.0.0.1:{garbage}\"\n"), "no valid HTTP response", true),
        ("garbage-socks", format!("upstream = \"socks5://127.0.0.1:{garbage}\"\n"), "its proxy: ", true),
        ("half", format!("upstream = \"http://127.0.0.1:{half}\"\n"), "no valid HTTP response", true),
        ("closes", format!("upstream = \"http://127.0.0.1:{closes}\"\n"), "no valid HTTP response", true),
        ("full", format!("upstream = \"http://127.0.0.1:{full}\"\n"), "502 Bad Gateway", false),
        ("stranger", format!("upstream = \"https://localhost:{tls}\"\n"), "TLS: ", true),
        ("wants-login", format!("upstream = \"http://127.0.0.1:{wants}\"\n"), "refuses the user name", true),
        ("login", format!("upstream = \"http://127.0.0.1:{login}\"\n{login_lines}"), "refuses the user name", true),
        ("socks", format!("upstream = \"socks5://127.0.0.1:{socks}\"\n{login_lines}"), "refuses the user name", true),
        ("bind", "bind = \"192.0.2.77\"\n".to_owned(), "cannot use its address 192.0.2.77", true),
    ];
    let sections: String = table.iter().map(|(name, lines, ..)| format!("[egress.identity.{name}]\n{lines}")).collect();
    let limits = |connect_timeout| Limits { connect_timeout, ..unlimited() };
    // Only those that never answer use up their time.
    let (hasty, hasty_routes) = container(&sections, "direct", limits(Duration::from_secs(1)));
    let (patient, patient_routes) = container(&sections, "direct", limits(PATIENCE));
    let (port, count) = whoami().await;
    for (name, _, reason, is_its_fault) in &table {
        let (bed, routes) =
            if name.starts_with("hung") { (&hasty, &hasty_routes) } else { (&patient, &patient_routes) };
        give(routes, "u1", name);
        let target = format!("upstream.test:{port}");
        let tunnelled = bed.ask(&format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n")).await;
        assert_eq!(tunnelled.status, 502, "{name}: {tunnelled:?}");
        assert!(tunnelled.body.contains(reason) && tunnelled.body.contains(name), "{name}: {}", tunnelled.body);
        assert!(!tunnelled.body.contains("wr0ng"), "no password: {}", tunnelled.body);
        let health = routes.identity(name).unwrap().health();
        assert_eq!((health.failed > 0, health.opened), (*is_its_fault, 0), "{name}: {health:?}");
    }
    let (bed, routes) = (patient, patient_routes);
    // Plain requests are shown to the proxy as they are, and its refusal of the password is not the container's business.
    give(&routes, "u1", "wants-login");
    let answer = bed.get(&format!("http://localhost:{port}/")).await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(!answer.head.contains("proxy-authenticate") && answer.body.contains("refuses the user name"), "{answer:?}");
    assert_eq!(count.load(SeqCst), 0, "nothing came directly");
    // And what has worked before works again.
    routes.unset("u1");
    assert_eq!(seen_by_request(&bed, "upstream.test", port).await, "127.0.0.1 false");
}

#[tokio::test]
async fn who_has_none_and_must_have_one_stays_inside() {
    let (bed, routes) =
        container("[egress.identity.bind]\nbind = \"127.0.0.16\"\nmax_users = 1\n", "none", unlimited());
    let (port, count) = whoami().await;
    let refused = bed.get(&format!("http://upstream.test:{port}/")).await;
    assert_eq!((refused.status, count.load(SeqCst)), (403, 0));
    assert!(refused.body.contains("egress.default"), "{}", refused.body);
    assert_eq!(bed.metric("thawd_egress_connections_total{decision=\"no_route\"}"), 1);
    give(&routes, "u1", "bind");
    let held = tunnel(&bed, &format!("upstream.test:{port}")).await;
    // Given back, but a connection is open: nobody else gets the address before that has ended.
    assert!(routes.unset("u1"));
    assert!(routes.choose("u2", None).is_err());
    drop(held);
    tokio::time::timeout(PATIENCE, async {
        while routes.choose("u2", None).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    drop(bed);
}

#[tokio::test]
async fn a_probe_finds_a_proxy_that_went_away_and_came_back() {
    let folder = tempfile::tempdir().unwrap();
    let (running, port) = tinyproxy(folder.path(), "127.0.0.11", None).await;
    let sections = format!("[egress]\ndown_after = 2\n[egress.identity.one]\nupstream = \"http://127.0.0.1:{port}\"\n");
    let routes = Arc::new(Routes::new(identities(&sections), &DefaultRoute::Direct));
    let probing = tokio::spawn({
        let routes = Arc::clone(&routes);
        async move { routes.probe(Duration::from_millis(20), Duration::from_secs(5)).await }
    });
    let until = async |down: bool| {
        tokio::time::timeout(PATIENCE, async {
            while routes.identity("one").unwrap().health().is_down != down {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("never down={down}: {:?}", routes.identity("one").unwrap().health()));
    };
    until(false).await;
    drop(running);
    until(true).await;
    let back = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    until(false).await;
    drop(back);
    probing.abort();
}

#[tokio::test]
async fn wrong_files_are_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let open = folder.path().join("open");
    std::fs::write(&open, "password").unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o644)).unwrap();
    let empty = secret(folder.path(), "empty", "\n");
    let no_certificate = secret(folder.path(), "pem", "nothing");
    for (lines, word) in [
        (format!("upstream = \"http://a:1\"\nusername = \"u\"\npassword_file = {open:?}"), "0600"),
        (format!("upstream = \"http://a:1\"\nusername = \"u\"\npassword_file = {empty:?}"), "one line"),
        ("upstream = \"http://a:1\"\nusername = \"u\"\npassword_file = \"/nowhere\"".to_owned(), "No such file"),
        (format!("upstream = \"https://a:1\"\nca_file = {no_certificate:?}"), "ca_file"),
    ] {
        let config = config(&format!("[egress.identity.one]\n{lines}\n"));
        let error = thawd::daemon::egress_identities(&config).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains("`one`"), "{lines}: {error}");
    }
}
