//! The program of the image `unified`, run as it is against the offline upstream: three providers, what it says when
//! it cannot answer, streaming, proxies, memory; and its image, if the static program was built (`make unified`).
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

#[path = "support/programs.rs"]
mod programs;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Provider, variable of the key, variable of the base URL, path of the API below the upstream, default model.
const PROVIDERS: [(&str, &str, &str, &str, &str); 3] = [
    ("openai", "OPENAI_API_KEY", "OPENAI_BASE_URL", "/v1", "gpt-5-codex"),
    ("anthropic", "ANTHROPIC_API_KEY", "ANTHROPIC_BASE_URL", "", "claude-sonnet-4-5"),
    ("google", "GOOGLE_API_KEY", "GOOGLE_GEMINI_BASE_URL", "", "gemini-2.5-flash"),
];

/// The upstream in a process of its own, ended with the test.
struct Upstream {
    child: Child,
    address: String,
}

impl Upstream {
    fn start(token_delay_ms: u32) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_thawd")).with_file_name("examples").join("offline-upstream");
        let mut child = Command::new(&program)
            .args(["--token-delay-ms", &token_delay_ms.to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}; cargo builds it with the tests", program.display()));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening ").expect("its first line").to_owned();
        Upstream { child, address }
    }

    /// The last request that it got.
    fn last_request(&self) -> Value {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        stream.write_all(b"GET /__requests HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str::<Value>(body).unwrap()["items"].as_array().unwrap().last().unwrap().clone()
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program with an empty environment.
fn program() -> Command {
    let mut command = Command::new(programs::unified());
    command.env_clear().stdin(Stdio::null());
    command
}

/// The program, asking `provider` at `upstream`.
fn asking(provider: (&str, &str, &str, &str, &str), upstream: &str, prompt: &str) -> Command {
    let (name, key, base, path, _) = provider;
    let mut command = program();
    command.env("PROVIDER", name).env(key, "sk-test-key").env("PROMPT", prompt);
    command.env(base, format!("http://{upstream}{path}"));
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Asserts that it failed with `code` and one line on standard error, and returns that line.
fn failed(output: &Output, code: i32) -> String {
    let line = text(&output.stderr).to_owned();
    assert_eq!(output.status.code(), Some(code), "{line}");
    assert_eq!(line.matches('\n').count(), 1, "one line: {line:?}");
    assert!(line.starts_with("thaw-unified: ") && !line.contains("sk-test-key"), "{line}");
    line
}

#[test]
fn all_three_providers_answer() {
    let upstream = Upstream::start(0);
    for provider in PROVIDERS {
        let output = asking(provider, &upstream.address, "3*67").env("USER_ID", "jane").output().unwrap();
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("201", ""), "{provider:?}");
        assert!(output.status.success());
        let asked = upstream.last_request();
        assert_eq!((asked["model"].as_str(), asked["prompt"].as_str()), (Some(provider.4), Some("3*67")));
        assert!(asked["credential"]["sha256"].is_string());

        let mut other_model = asking(provider, &upstream.address, "6*7");
        assert_eq!(text(&other_model.env("MODEL", "some-model-1").output().unwrap().stdout), "42");
        assert_eq!(upstream.last_request()["model"], "some-model-1");
    }
}

#[test]
fn the_prompt_may_come_on_standard_input() {
    let upstream = Upstream::start(0);
    let mut command = asking(PROVIDERS[1], &upstream.address, "");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all("12×12\n".as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "144");
    assert!(upstream.last_request()["headers"].to_string().contains("anthropic-version"));
}

#[test]
fn tokens_are_written_as_they_come() {
    let upstream = Upstream::start(400);
    for provider in PROVIDERS {
        let mut child = asking(provider, &upstream.address, "3*67").stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let mut piece = [0; 16];
        let count = stdout.read(&mut piece).unwrap();
        assert_eq!(&piece[..count], b"20", "{provider:?}");
        let first = Instant::now();
        let count = stdout.read(&mut piece).unwrap();
        assert_eq!(&piece[..count], b"1");
        assert!(first.elapsed() > Duration::from_millis(200), "the pieces came together");
        assert!(child.wait().unwrap().success());
    }
}

#[test]
fn what_is_missing_is_said_in_one_line() {
    assert!(failed(&program().output().unwrap(), 64).contains("PROVIDER is not set"));
    let unknown = program().env("PROVIDER", "meta").output().unwrap();
    assert!(failed(&unknown, 64).contains("none of openai, anthropic or google"));
    for (name, key, ..) in PROVIDERS {
        let output = program().env("PROVIDER", name).env("PROMPT", "3*67").output().unwrap();
        assert!(failed(&output, 78).contains(&format!("no credential: give {key}")));
        let output = program().env("PROVIDER", name).env(key, "sk-test-key").output().unwrap();
        assert!(failed(&output, 64).contains("no prompt"));
    }
}

#[test]
fn refusals_and_failures_are_told_apart() {
    // Time for each piece to leave before the connection is cut.
    let upstream = Upstream::start(50);
    for provider in PROVIDERS {
        let run = |prompt: &str| asking(provider, &upstream.address, prompt).output().unwrap();
        assert!(failed(&run("misbehave:401"), 77).contains("the credential was refused: HTTP 401: "));
        assert!(failed(&run("misbehave:429"), 75).contains("try again later: HTTP 429: "));
        assert!(failed(&run("misbehave:500"), 70).contains("the provider failed: HTTP 500: "));
        let cut = run("1000*1000 misbehave:cut");
        assert!(failed(&cut, 76).contains("the answer is not whole: "));
        assert!(text(&cut.stdout).starts_with("10"), "what came is there");
    }
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let output = asking(PROVIDERS[0], &free, "3*67").output().unwrap();
    assert!(failed(&output, 69).contains("cannot reach the provider: "));
}

#[test]
fn debugging_tells_what_happens_but_not_the_key() {
    let upstream = Upstream::start(0);
    let output = asking(PROVIDERS[0], &upstream.address, "3*67").env("DEBUG", "1").output().unwrap();
    let debug = text(&output.stderr);
    assert_eq!(text(&output.stdout), "201");
    assert!(debug.contains("HTTP 200") && debug.contains("done after 2 pieces"), "{debug}");
    assert!(!debug.contains("sk-test-key") && !debug.contains("3*67"), "{debug}");
}

/// A proxy that reads one request and answers it with `answer`; returns what it was asked.
fn proxy(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut lines = String::new();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while !lines.ends_with("\r\n\r\n") && reader.read_line(&mut lines).unwrap() > 0 {}
        stream.write_all(answer.as_bytes()).unwrap();
        lines
    });
    (url, thread)
}

#[test]
fn both_kinds_of_proxying_are_used() {
    let refusal = "HTTP/1.1 403 Forbidden\r\ncontent-type: text/plain\r\ncontent-length: 24\r\nconnection: close\r\n\r\n\
        thawd: egress is refused";
    let (url, asked) = proxy(refusal);
    let output = asking(PROVIDERS[0], "upstream.test:80", "3*67").env("HTTP_PROXY", &url).output().unwrap();
    assert!(failed(&output, 69).contains("thawd: egress is refused"), "the proxy's word, not the provider's");
    assert!(asked.join().unwrap().starts_with("POST http://upstream.test/v1/responses HTTP/1.1\r\n"));

    let (url, asked) = proxy(refusal);
    let mut command = program();
    command.env("PROVIDER", "anthropic").env("ANTHROPIC_API_KEY", "sk-test-key").env("PROMPT", "3*67");
    failed(&command.env("HTTPS_PROXY", &url).output().unwrap(), 69);
    let asked = asked.join().unwrap();
    assert!(asked.starts_with("CONNECT api.anthropic.com:443 HTTP/1.1\r\n"), "{asked}");
    assert!(!asked.contains("sk-test-key"), "the key is for the other end of the tunnel");
}

#[test]
fn through_a_tunnel_it_speaks_tls_and_only_tls() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut lines = String::new();
        while !lines.ends_with("\r\n\r\n") && reader.read_line(&mut lines).unwrap() > 0 {}
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        let mut hello = [0; 6];
        reader.read_exact(&mut hello).unwrap();
        // An alert: handshake_failure (RFC 8446, section 6).
        stream.write_all(&[21, 3, 3, 0, 2, 2, 40]).unwrap();
        hello
    });
    let mut command = program();
    command.env("PROVIDER", "google").env("GOOGLE_API_KEY", "sk-test-key").env("PROMPT", "3*67");
    let line = failed(&command.env("HTTPS_PROXY", &url).output().unwrap(), 69);
    assert!(line.to_lowercase().contains("handshake"), "{line}");
    let hello = server.join().unwrap();
    assert_eq!((hello[0], hello[1], hello[5]), (22, 3, 1), "a ClientHello");
}

#[test]
fn a_redirect_is_not_followed() {
    let (other, _) = proxy("HTTP/1.1 200 OK\r\n\r\n");
    let answer =
        format!("HTTP/1.1 307 Temporary Redirect\r\nlocation: {other}/v1/responses\r\ncontent-length: 0\r\n\r\n");
    let (url, _) = proxy(answer.leak());
    let output = asking(PROVIDERS[0], url.strip_prefix("http://").unwrap(), "3*67").output().unwrap();
    assert!(failed(&output, 70).contains("HTTP 307"));
}

#[test]
fn a_warm_container_waits_and_ends_at_once_when_told_to() {
    let mut child = program().env("WARM_POOL", "true").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(child.try_wait().unwrap().is_none(), "it needs no variable to wait");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_signal_ends_it_in_the_middle_of_an_answer() {
    let upstream = Upstream::start(0);
    let mut command = asking(PROVIDERS[0], &upstream.address, "misbehave:stall");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
    assert!(failed(&child.wait_with_output().unwrap(), 143).contains("signal 15"));
}

/// The program that goes into the image; `make unified` builds it.
fn static_program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/static/thaw-unified")
}

#[test]
fn the_image_is_small_and_answers_from_its_own_root() {
    if !static_program().is_file() {
        eprintln!("skipped: the static program is not built (`make unified`)");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("images/unified");
    let options = thaw_image::build::BuildOptions::new(folder.path().join("layout"), folder.path().join("cache"));
    let report = thaw_image::build::build(&manifest, &options, &thaw_image::progress::Quiet).unwrap();
    eprintln!("unified: {} bytes unpacked, {} stored", report.unpacked_bytes(), report.compressed_bytes());
    assert!(report.unpacked_bytes() < 5_000_000, "{}", report.unpacked_bytes());
    let store = thaw_image::Store::open(&folder.path().join("store")).unwrap();
    let image = store.ensure(&options.layout_dir).unwrap();
    assert_eq!(image.config.entrypoint, ["/usr/local/bin/thaw-unified"]);

    // As uid 1000, with nothing but its own root: no library, no shell, no file of authorities.
    let upstream = Upstream::start(0);
    for (name, key, base, path, _) in PROVIDERS {
        let mut command = Command::new("chroot");
        command.args(["--userspec=1000:1000"]).arg(&image.rootfs).args(&image.config.entrypoint).env_clear();
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("PROVIDER", name).env(key, "sk-test-key");
        command.env("PROMPT", "3*67").env(base, format!("http://{}{path}", upstream.address));
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped in part: chroot needs root");
            return;
        }
        let output = command.output().unwrap();
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("201", ""), "{name}");
    }
}

#[test]
fn it_starts_in_milliseconds_and_needs_little_memory() {
    if !static_program().is_file() {
        eprintln!("skipped: the static program is not built (`make unified`)");
        return;
    }
    let upstream = Upstream::start(0);
    let mut times = Vec::new();
    for _ in 0..50 {
        let (name, key, base, path, _) = PROVIDERS[0];
        let mut command = Command::new(static_program());
        command.env_clear().env("PROVIDER", name).env(key, "sk-test-key").env("PROMPT", "3*67");
        command.env(base, format!("http://{}{path}", upstream.address));
        let begun = Instant::now();
        let output = command.output().unwrap();
        times.push(begun.elapsed());
        assert_eq!((text(&output.stdout), text(&output.stderr)), ("201", ""));
    }
    times.sort();
    eprintln!("from start to the end of an answer: median {:?}, most {:?}", times[25], times[49]);
    // It takes 3 ms; the limit is for machines that are slow and busy.
    assert!(times[25] < Duration::from_millis(100), "{times:?}");
    let limited = ["--data=33554432", "--"].map(str::to_owned);
    let mut command = Command::new("prlimit");
    command.args(limited).arg(static_program()).env("PROVIDER", "openai").env("OPENAI_API_KEY", "sk-test-key");
    command.env("PROMPT", "3*67").env("OPENAI_BASE_URL", format!("http://{}/v1", upstream.address));
    assert_eq!(text(&command.output().unwrap().stdout), "201", "with 32 MiB to write to");
}

/// A daemon with the three providers of the image, ended with the test.
struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    fn start(upstream: &Upstream) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (place, port) = (folder.path(), upstream.address.rsplit(':').next().unwrap());
        let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
        let options = thaw_image::build::BuildOptions::new(place.join("layouts/unified"), place.join("cache"));
        std::fs::create_dir_all(&options.layout_dir).unwrap();
        let manifest = repository.join("images/unified");
        thaw_image::build::build(&manifest, &options, &thaw_image::progress::Quiet).unwrap();
        std::fs::create_dir(place.join("providers")).unwrap();
        let mut config = format!(
            "[api]\nsocket = \"{0}/run/thawd.sock\"\n[paths]\nstate_dir = \"{0}/state\"\n\
            layouts_dir = \"{0}/layouts\"\nrun_dir = \"{0}/run\"\nproviders_dir = \"{0}/providers\"\n\
            [cgroup]\nname = \"thawd-test-unified\"\n[egress.resolve]\n\"upstream.test\" = [\"127.0.0.1\"]\n",
            place.display()
        );
        for (name, ..) in PROVIDERS {
            let file = format!("unified-{name}.toml");
            std::fs::copy(repository.join("providers").join(&file), place.join("providers").join(&file)).unwrap();
            config += &format!(
                "[provider.unified-{name}]\npool_target = 1\nbase_url = \"http://upstream.test:{port}\"\n\
                egress = [\"upstream.test:{port}\"]\n"
            );
        }
        std::fs::write(place.join("thawd.toml"), config).unwrap();
        let log = std::fs::File::create(place.join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_thawd"))
            .arg("--config")
            .arg(place.join("thawd.toml"))
            .stderr(log)
            .spawn()
            .unwrap();
        Daemon { child, folder }
    }

    fn thawctl(&self, args: &[&str]) -> Output {
        let socket = self.folder.path().join("run/thawd.sock");
        let mut command = Command::new(programs::thawctl());
        for (_, key, ..) in PROVIDERS {
            command.env(key, "sk-test-key");
        }
        command.env("THAWD_SOCKET", socket).args(args).output().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn wait_until_warm(&self) {
        let began = Instant::now();
        loop {
            let pools = self.thawctl(&["--format", "json", "pools"]);
            let pools: Value = serde_json::from_slice(&pools.stdout).unwrap_or_default();
            let warm = |pool: &Value| pool["warm"].as_u64() >= Some(1);
            if pools.as_array().is_some_and(|pools| pools.len() == PROVIDERS.len() && pools.iter().all(warm)) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(30), "no warm containers: {pools}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ =
            rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

#[test]
fn all_three_answer_in_frozen_containers_of_32_mib() {
    if !static_program().is_file() || !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root and the static program (`make unified`)");
        return;
    }
    let upstream = Upstream::start(20);
    let daemon = Daemon::start(&upstream);
    daemon.wait_until_warm();
    for (name, key, ..) in PROVIDERS {
        let provider = format!("unified-{name}");
        let output = daemon.thawctl(&["run", "--verbose", &provider, "3*67", "--credential-env", key]);
        let told = text(&output.stderr);
        assert_eq!(text(&output.stdout), "201\n", "{name}: {told}\n{}", daemon.log());
        assert!(told.contains("path=warm"), "{told}");
        let peak = told.split("memory_peak_bytes=").nth(1).unwrap().split_whitespace().next().unwrap();
        assert!(peak.parse::<u64>().unwrap() < 32 << 20, "{told}");
    }
    let refused = daemon.thawctl(&["run", "unified-google", "misbehave:401", "--credential-env", "GOOGLE_API_KEY"]);
    assert_eq!(refused.status.code(), Some(77));
    assert!(text(&refused.stderr).contains("the credential was refused: HTTP 401"));
    assert!(!daemon.log().contains("sk-test-key"));
}
