//! Names, as the proxy looks them up: in a network with a name server of the test's own.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use thawd::egress::{Limits, Policy};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

use crate::bed::{Bed, echo, unlimited};

/// Runs an ignored test of this file where the host's resolver asks 127.0.0.1 and has a search list.
fn inside(test: &str) {
    let scratch = tempfile::tempdir().unwrap();
    for (name, text) in [
        ("resolv.conf", "nameserver 127.0.0.1\nsearch corp.test\noptions timeout:5 attempts:1\n"),
        ("nsswitch.conf", "hosts: files dns\n"),
        ("hosts", "127.0.0.1 localhost\n127.0.0.1 In-Hosts.test short\n"),
    ] {
        std::fs::write(scratch.path().join(name), text).unwrap();
    }
    let script = "ip link set lo up; for file in resolv.conf nsswitch.conf hosts; do \
                  mount --bind \"$FILES/$file\" \"/etc/$file\"; done; exec \"$0\" --exact \"$1\" --ignored --nocapture";
    let status = Command::new("unshare")
        .args(["--net", "--mount", "sh", "-ec", script])
        .arg(std::env::current_exe().unwrap())
        .arg(format!("names::{test}"))
        .env("FILES", scratch.path())
        .status()
        .unwrap();
    assert!(status.success());
}

/// A name server for these names, each answered after a time; returns what it is asked for.
async fn serve(zone: BTreeMap<&'static str, Vec<Ipv4Addr>>, delay: Duration) -> Arc<Mutex<Vec<String>>> {
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:53").await.unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut packet = [0; 512];
        loop {
            let (length, from) = socket.recv_from(&mut packet).await.unwrap();
            let (name, answer) = reply(&packet[..length], &zone);
            log.lock().unwrap().push(name);
            let socket = Arc::clone(&socket);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let _ = socket.send_to(&answer, from).await;
            });
        }
    });
    asked
}

/// The name that a query is about, and the answer to it (RFC 1035, section 4).
fn reply(query: &[u8], zone: &BTreeMap<&'static str, Vec<Ipv4Addr>>) -> (String, Vec<u8>) {
    let (mut labels, mut at) = (Vec::new(), 12);
    while query[at] != 0 {
        let length = usize::from(query[at]);
        labels.push(String::from_utf8(query[at + 1..=at + length].to_vec()).unwrap());
        at += 1 + length;
    }
    let name = labels.join(".");
    let (kind, end) = (query[at + 2], at + 5);
    let addresses = zone.get(name.as_str());
    let records = addresses.filter(|_| kind == 1).map(Vec::as_slice).unwrap_or_default();
    let code = if addresses.is_some() { 0 } else { 3 };
    let mut answer = query[..2].to_vec();
    answer.extend([0x81, 0x80 | code, 0, 1, 0, records.len() as u8, 0, 0, 0, 0]);
    answer.extend(&query[12..end]);
    for address in records {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend(address.octets());
    }
    (name, answer)
}

fn bed(limits: Limits) -> Bed {
    let policy = Policy::new(&["*:*"], BTreeMap::new(), vec!["127.0.0.0/8".parse().unwrap()]).unwrap();
    Bed::serve(policy, limits)
}

async fn connect(bed: &Bed, name: &str, port: u16) -> (u16, String) {
    let mut client = bed.connect().await;
    client.send(&format!("CONNECT {name}:{port} HTTP/1.1\r\n\r\n")).await;
    let (status, head) = client.head().await;
    (status, if status == 200 { head } else { client.answer_body(&head).await })
}

const HOME: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[test]
fn names_are_looked_up_as_they_are_and_not_below_the_hosts_domain() {
    inside("absolute");
}

#[tokio::test]
#[ignore = "run by names_are_looked_up_as_they_are_and_not_below_the_hosts_domain"]
async fn absolute() {
    let (port, count) = echo().await;
    let elsewhere = ["internal.wild.test.corp.test", "db.corp.test", "short.corp.test", "in-hosts.test.corp.test"];
    let mut zone: BTreeMap<_, _> = elsewhere.map(|name| (name, vec![HOME])).into();
    zone.insert("there.test", vec![HOME]);
    let asked = serve(zone, Duration::ZERO).await;
    let bed = bed(unlimited());
    for missing in ["internal.wild.test", "internal.wild.test.", "db"] {
        let (status, text) = connect(&bed, missing, port).await;
        assert_eq!(status, 502, "{missing}: {text}");
        assert!(text.contains("cannot resolve"), "{text}");
    }
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 0);
    for there in ["there.test", "THERE.test.", "in-hosts.test", "short", "localhost"] {
        assert_eq!(connect(&bed, there, port).await.0, 200, "{there}");
    }
    let asked = asked.lock().unwrap().clone();
    assert!(
        asked.iter().any(|name| name == "internal.wild.test") && asked.iter().any(|name| name == "db"),
        "{asked:?}"
    );
    assert!(asked.iter().all(|name| !name.contains("corp") && name != "short"), "{asked:?}");
}

#[test]
fn look_ups_of_a_container_wait_for_each_other_beyond_the_limit() {
    inside("slow");
}

#[tokio::test]
#[ignore = "run by look_ups_of_a_container_wait_for_each_other_beyond_the_limit"]
async fn slow() {
    let (port, _) = echo().await;
    let zone = ["a.test", "b.test", "c.test", "d.test"].map(|name| (name, vec![HOME])).into();
    let _asked = serve(zone, Duration::from_millis(500)).await;
    for (lookups, least, most) in [(2, 1000, 1900), (4, 500, 990)] {
        let bed = bed(Limits { lookups, ..unlimited() });
        let begun = Instant::now();
        let all = tokio::join!(
            connect(&bed, "a.test", port),
            connect(&bed, "b.test", port),
            connect(&bed, "c.test", port),
            connect(&bed, "d.test", port)
        );
        assert_eq!([all.0.0, all.1.0, all.2.0, all.3.0], [200; 4]);
        let took = begun.elapsed().as_millis();
        assert!((least..most).contains(&took), "{lookups}: {took} ms");
    }
}

#[test]
fn a_dead_first_address_costs_a_moment_and_eight_are_tried() {
    inside("dead");
}

#[tokio::test]
#[ignore = "run by a_dead_first_address_costs_a_moment_and_eight_are_tried"]
async fn dead() {
    // Behind the others: the resolver puts 127.0.0.1 first, which has more in common with where we come from.
    let alive = Ipv4Addr::new(127, 9, 9, 100);
    let listener = TcpListener::bind((alive, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut all = Vec::new();
        loop {
            all.push(listener.accept().await.unwrap());
        }
    });
    // Where a backlog is full, further packets are dropped: nobody says no.
    let lost = |last| Ipv4Addr::new(127, 9, 9, last);
    let mut held = Vec::new();
    for last in 1..=8 {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((lost(last), port).into()).unwrap();
        held.push((socket.listen(0).unwrap(), TcpStream::connect((lost(last), port)).await.unwrap()));
    }
    let mut many: Vec<Ipv4Addr> = (1..=7).map(lost).collect();
    many.push(alive);
    let mut too_many: Vec<Ipv4Addr> = (1..=8).map(lost).collect();
    too_many.push(alive);
    let zone = [("two.test", vec![lost(1), alive]), ("many.test", many), ("too-many.test", too_many)].into();
    let _asked = serve(zone, Duration::ZERO).await;
    let bed = bed(Limits { connect_timeout: Duration::from_secs(4), ..unlimited() });
    for (name, expected) in [("two.test", 200), ("many.test", 200), ("too-many.test", 504)] {
        let begun = Instant::now();
        let (status, text) = connect(&bed, name, port).await;
        assert_eq!(status, expected, "{name}: {text}");
        let most = if expected == 200 { 3 } else { 8 };
        assert!(begun.elapsed() < Duration::from_secs(most), "{name}: {:?}", begun.elapsed());
    }
    drop(held);
}
