//! What one container may make of its way out, as configured in `[egress.limits]`.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::{Duration, Instant};

use support::{Daemon, Outcome, PATIENCE, Setup};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const MB: usize = 1_000_000;

/// An HTTP server on loopback: `GET` gets 3 MB, `POST` is read to its end, and whatever else is held open.
async fn upstream() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // A client that breaks off is none of our business.
            tokio::spawn(async move { drop(serve(stream).await) });
        }
    });
    port
}

async fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let mut head = Vec::new();
    while support::header_end(&head).is_none() {
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    let mut left = length.unwrap_or(0) - (head.len() - support::header_end(&head).unwrap()).min(length.unwrap_or(0));
    let mut buffer = vec![0; 65_536];
    while left > 0 {
        left -= stream.read(&mut buffer).await?.min(left);
    }
    let answer = if text.starts_with("get") { 3 * MB } else { 2 };
    stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {answer}\r\n\r\n").as_bytes()).await?;
    stream.write_all(&vec![b'x'; answer]).await
}

async fn daemon(port: u16, change: impl FnOnce(Setup) -> Setup) -> Daemon {
    let egress = vec![toml::Value::String(format!("upstream.test:{port}"))];
    let resolve = toml::Table::from_iter([("upstream.test".to_owned(), vec!["127.0.0.1"].into())]);
    let daemon =
        Daemon::start(|setup| change(setup.pool(1).provider("egress", egress).set("egress.resolve", resolve))).await;
    daemon.settled().await;
    daemon
}

async fn timed(daemon: &Daemon, script: &str) -> (Outcome, Duration) {
    daemon.settled().await;
    let begun = Instant::now();
    (daemon.sh(script).await.exited(0), begun.elapsed())
}

#[tokio::test]
async fn bytes_pass_at_the_rate_of_the_container_in_both_directions() {
    let port = upstream().await;
    let get = format!("wget -q -O - http://upstream.test:{port}/ | wc -c");
    let head = format!(
        "POST http://upstream.test:{port}/ HTTP/1.1\\r\\nconnection: close\\r\\ncontent-length: 3000000\\r\\n\\r\\n"
    );
    let post = format!("(printf '{head}'; head -c 3000000 /dev/zero) | nc 127.0.0.1 3128 | head -n 1");
    // Two at once share it: 6 MB.
    let both = format!("({get}) & {get}; wait");
    for (mbit, least) in [(8, [2.0, 2.0, 5.0]), (0, [0.0; 3])] {
        let daemon = daemon(port, |setup| setup.set("egress.limits.run_mbit_per_second", mbit)).await;
        for ((script, expected), least) in
            [(&get, "3000000\n"), (&post, "HTTP/1.1 200 OK\r\n"), (&both, "3000000\n3000000\n")].into_iter().zip(least)
        {
            let (outcome, took) = timed(&daemon, script).await;
            assert_eq!(outcome.text(), expected);
            // A second's worth, 1 MB, passes at once.
            let most = if mbit == 0 { PATIENCE.as_secs_f64() } else { least * 2.0 + 5.0 };
            let took = took.as_secs_f64();
            assert!(took >= least - 0.1 && took < most, "{mbit} Mbit/s, {script}: {took} s");
        }
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_client_in_a_container_that_closes_its_sending_half_gets_its_answer() {
    let port = upstream().await;
    let daemon = daemon(port, |setup| setup.set("egress.limits.run_mbit_per_second", 0)).await;
    let request = format!("POST http://upstream.test:{port}/ HTTP/1.1\\r\\ncontent-length: 1\\r\\n\\r\\nx");
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do printf '{request}' | nc 127.0.0.1 3128 | head -n 1; \
         wget -q -O - http://upstream.test:{port}/ | wc -c; done"
    );
    let (outcome, _) = timed(&daemon, &script).await;
    assert_eq!(outcome.text(), "HTTP/1.1 200 OK\r\n3000000\n".repeat(10));
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_cannot_open_tunnels_is_told_what_to_use_instead() {
    let port = upstream().await;
    let daemon = daemon(port, |setup| setup).await;
    let (outcome, _) = timed(&daemon, &format!("wget -O - https://upstream.test:{port}/ || true")).await;
    assert!(outcome.errors().contains("400 https needs a tunnel (CONNECT): use curl"), "{}", outcome.errors());
    let script = format!(
        "printf 'GET https://upstream.test:{port}/ HTTP/1.1\\r\\n\\r\\n' | nc 127.0.0.1 3128; \
         printf 'GET https://upstream.test/ HTTP/1.1\\r\\n\\r\\n' | nc 127.0.0.1 3128"
    );
    let (outcome, _) = timed(&daemon, &script).await;
    for authority in [format!("CONNECT upstream.test:{port}, as curl"), "CONNECT upstream.test:443, as curl".into()] {
        assert!(outcome.text().contains(&authority), "{}", outcome.text());
    }
    daemon.stop().await;
}

/// CPU time that the daemon's process has used, seconds.
fn cpu_seconds(daemon: &Daemon) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", daemon.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
    ticks as f64 / 100.0
}

async fn median_of_claims(daemon: &Daemon) -> Duration {
    let mut times = Vec::new();
    for _ in 0..9 {
        daemon.settled().await;
        let begun = Instant::now();
        daemon.sh("true").await.exited(0);
        times.push(begun.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

#[tokio::test]
async fn a_container_that_floods_the_proxy_gets_its_share_and_claims_keep_their_pace() {
    let daemon = daemon(1, |setup| setup.pool(2)).await;
    let quiet = median_of_claims(&daemon).await;
    // Without a pause, on sixteen connections, one request behind the other.
    let flood = "R=$(printf 'GET http://forbidden.test/ HTTP/1.1\\r\\nHost: x\\r\\n\\r'); \
                 for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16; do yes \"$R\" | nc 127.0.0.1 3128 > /tmp/$i & done; \
                 sleep 5; cat /tmp/* | grep -c 'HTTP/1.1 403'";
    let request = support::shell(flood);
    let attack = daemon.client.create(&request).await.unwrap();
    tokio::time::sleep(Duration::from_millis(700)).await;
    let (begun, before) = (Instant::now(), cpu_seconds(&daemon));
    let beside = median_of_claims(&daemon).await;
    let left = Duration::from_secs(3).saturating_sub(begun.elapsed());
    tokio::time::sleep(left).await;
    let used = cpu_seconds(&daemon) - before;
    let share = used / begun.elapsed().as_secs_f64();
    // A fifth of a CPU for the flood; claims, creating and clearing away are in it too.
    assert!(share < 0.6, "{share} of a CPU");
    assert!(beside < quiet * 2 + Duration::from_millis(50), "{beside:?} beside it, {quiet:?} without");
    let outcome = Outcome::of(daemon.client.events(&attack.id, None).await.unwrap()).await.exited(0);
    let answers: u64 = outcome.text().trim().parse().unwrap();
    // 250 at once and 50 in each of some five seconds.
    assert!((200..700).contains(&answers), "{answers}");
    println!("claims: {quiet:?} quiet, {beside:?} beside a flood; the daemon used {share:.2} CPUs; {answers} answers");
    daemon.stop().await;
}

#[tokio::test]
async fn each_limit_is_the_configured_one() {
    let port = upstream().await;
    let daemon = daemon(port, |setup| {
        let setup = setup.set("egress.limits.connections", 2).set("egress.limits.header_bytes", 8192);
        let setup = setup.set("egress.limits.place_timeout_seconds", 1);
        setup.set("egress.limits.header_timeout_seconds", 1).set("egress.limits.idle_timeout_seconds", 2)
    })
    .await;
    let connect = format!("CONNECT upstream.test:{port} HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n");
    // Two tunnels are open; the third connection waits and is then told that it is one too many. What keeps them open
    // dies with the container.
    let script = format!(
        "for i in 1 2; do (printf '{connect}'; sleep 60) | nc 127.0.0.1 3128 > /tmp/tunnel$i & done; \
         until [ -s /tmp/tunnel1 ] && [ -s /tmp/tunnel2 ]; do sleep 0.02; done; \
         printf '{connect}' | nc 127.0.0.1 3128 | head -n 1"
    );
    let (outcome, _) = timed(&daemon, &script).await;
    assert!(outcome.text().starts_with("HTTP/1.1 503 "), "connections: {}", outcome.text());
    let script = "(printf 'GET http://upstream.test/ HTTP/1.1\\r\\nx: '; head -c 9000 /dev/zero | tr '\\0' x; \
                  printf '\\r\\n\\r\\n') | nc 127.0.0.1 3128 | head -n 1";
    let (outcome, _) = timed(&daemon, script).await;
    assert!(outcome.text().starts_with("HTTP/1.1 431 "), "header_bytes: {}", outcome.text());
    // What feeds it goes on, and dies with the container when the other end has closed.
    let fed = |text: &str| format!("mkfifo /tmp/f; (printf '{text}'; sleep 20) > /tmp/f & nc 127.0.0.1 3128 < /tmp/f");
    let (_, took) = timed(&daemon, &fed("GET http://")).await;
    assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(15), "header_timeout_seconds: {took:?}");
    let (outcome, took) = timed(&daemon, &fed(&connect)).await;
    assert!(outcome.text().starts_with("HTTP/1.1 200 "), "{}", outcome.text());
    assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(15), "idle_timeout_seconds: {took:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_limit_that_cannot_be_is_refused_by_name() {
    for (key, value) in [
        ("connections", 0),
        ("waiting", 0),
        ("place_timeout_seconds", 0),
        ("header_bytes", 100),
        ("header_timeout_seconds", 0),
        ("connect_timeout_seconds", 100_000),
        ("idle_timeout_seconds", 0),
        ("lookups", 0),
    ] {
        let key = format!("egress.limits.{key}");
        let said = Daemon::prepare(|setup| setup.set(&key, value)).refused().await;
        assert!(said.contains(&format!("`{key}` must be from")), "{said}");
    }
}
