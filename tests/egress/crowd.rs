//! More connections than there are places.

use std::time::{Duration, Instant};

use thawd::egress::Limits;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::bed::{Bed, PATIENCE, echo, listen, tunnel, unlimited};

#[tokio::test]
async fn the_connection_limit_answers_503_and_recovers() {
    let (port, _) = echo().await;
    let target = format!("upstream.test:{port}");
    let place_timeout = Duration::from_millis(1500);
    let bed = Bed::with(&[&target], Limits { connections: 2, place_timeout, ..unlimited() });
    let mut held = vec![tunnel(&bed, &target).await, tunnel(&bed, &target).await];
    assert_eq!(bed.proxy.usage().open, 2);
    let begun = Instant::now();
    let answer = bed.ask(&format!("CONNECT {target} HTTP/1.1\r\n\r\n")).await;
    assert_eq!(answer.status, 503);
    assert!(begun.elapsed() >= place_timeout, "{:?}", begun.elapsed());
    assert!(answer.body.contains("already has 2 connections") && answer.body.contains("within 1 s"), "{answer:?}");
    assert_eq!(bed.metric("thawd_egress_connections_total{decision=\"limited\"}"), 1);

    // One that waits gets the place that becomes free.
    let mut waiting = bed.connect().await;
    waiting.send(&format!("CONNECT {target} HTTP/1.1\r\n\r\n")).await;
    timeout(PATIENCE, async {
        while bed.metric("thawd_egress_connections_waiting") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    held.pop();
    assert_eq!(waiting.head().await.0, 200);
    assert_eq!(bed.metric("thawd_egress_connections_waiting"), 0);
}

#[tokio::test]
async fn a_connection_that_is_kept_alive_for_nothing_gives_its_place_to_one_that_waits() {
    let bed = Bed::with(&[], Limits { connections: 1, ..unlimited() });
    let request = "GET http://forbidden.test/ HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut idle = bed.connect().await;
    // As long as nobody waits, it is kept.
    for _ in 0..3 {
        idle.send(request).await;
        assert!(!idle.answer().await.head.contains("connection: close"));
    }
    let begun = Instant::now();
    let mut second = bed.connect().await;
    second.send(request).await;
    assert_eq!(second.answer().await.status, 403);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert!(idle.is_closed().await);
    // One that has not been asked anything yet keeps its place.
    drop(second);
    let mut silent = bed.connect().await;
    let mut third = bed.connect().await;
    third.send(request).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    silent.send(request).await;
    let answer = silent.answer().await;
    assert_eq!(answer.status, 403);
    assert!(answer.head.contains("connection: close"), "{answer:?}");
    assert_eq!(third.answer().await.status, 403);
}

/// Opens `count` tunnels at once to an upstream that holds each for `hold`, and returns how many of them worked.
async fn tunnels(bed: &Bed, port: u16, count: usize) -> usize {
    let mut clients = JoinSet::new();
    for _ in 0..count {
        let proxy = bed.port;
        clients.spawn(async move {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", proxy)).await.unwrap();
            let request = format!("CONNECT upstream.test:{port} HTTP/1.1\r\nHost: x\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
            answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("held")
        });
    }
    clients.join_all().await.into_iter().filter(|worked| *worked).count()
}

async fn holding(hold: Duration) -> u16 {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                tokio::time::sleep(hold).await;
                let _ = stream.write_all(b"held").await;
            });
        }
    });
    port
}

#[tokio::test]
async fn two_hundred_tunnels_at_once_all_get_their_turn() {
    let port = holding(Duration::from_millis(300)).await;
    let bed = Bed::with(&["upstream.test:*"], Limits { connections: 64, ..unlimited() });
    assert_eq!(tunnels(&bed, port, 200).await, 200);
    assert_eq!(bed.metric("thawd_egress_connections_total{decision=\"allowed\"}"), 200);
    assert_eq!(bed.metric("thawd_egress_connections_total{decision=\"limited\"}"), 0);
}

#[tokio::test]
async fn those_that_find_no_room_in_the_line_wait_in_the_kernel() {
    let port = holding(Duration::from_millis(20)).await;
    let bed = Bed::with(&["upstream.test:*"], Limits { connections: 2, waiting: 3, ..unlimited() });
    let watched = async {
        let mut most = (0, 0);
        loop {
            let waiting = bed.metric("thawd_egress_connections_waiting");
            most = (most.0.max(waiting), most.1.max(bed.proxy.usage().open));
            if bed.metric("thawd_egress_connections_total{decision=\"allowed\"}") == 60 {
                return most;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (worked, (waiting, open)) = tokio::join!(tunnels(&bed, port, 60), watched);
    assert_eq!(worked, 60);
    assert!(waiting <= 3 && open <= 5, "{waiting} waited, {open} were open");
    assert!(waiting > 0, "some waited");
}

#[tokio::test]
async fn who_waits_is_served_in_order_and_costs_no_request() {
    let (port, _) = echo().await;
    let target = format!("upstream.test:{port}");
    let bed = Bed::with(&[&target], Limits { connections: 1, ..unlimited() });
    let first = tunnel(&bed, &target).await;
    // They say nothing yet, and one leaves.
    let (mut second, third, mut fourth) = (bed.connect().await, bed.connect().await, bed.connect().await);
    timeout(PATIENCE, async {
        while bed.proxy.usage().open < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    drop(third);
    drop(first);
    let connect = format!("CONNECT {target} HTTP/1.1\r\n\r\n");
    fourth.send(&connect).await;
    second.send(&connect).await;
    assert_eq!(second.head().await.0, 200);
    assert_eq!(bed.proxy.usage().allowed, 2, "the fourth waits, although it spoke first");
    drop(second);
    assert_eq!(fourth.head().await.0, 200);
}
