//! What one container can make the daemon do, and what the others have of it meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use thawd::egress::{Limits, Total};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::bed::{Bed, echo, tunnel, unlimited};

/// Asks on a few kept-alive connections, one request behind the other, until told to stop; returns the number of answers.
async fn flood(port: u16, request: &str, stop: &Arc<AtomicBool>) -> usize {
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (request, stop) = (request.repeat(10).into_bytes(), Arc::clone(stop));
        clients.spawn(async move {
            let (mut read, mut write) = TcpStream::connect(("127.0.0.1", port)).await.unwrap().into_split();
            let asking = tokio::spawn(async move { while write.write_all(&request).await.is_ok() {} });
            let (mut answers, mut buffer) = (0, vec![0; 65_536]);
            while !stop.load(SeqCst) {
                let wait = tokio::time::timeout(Duration::from_millis(50), read.read(&mut buffer));
                let Ok(Ok(bytes)) = wait.await else { continue };
                if bytes == 0 {
                    break;
                }
                answers += buffer[..bytes].windows(9).filter(|window| window == b"HTTP/1.1 ").count();
            }
            asking.abort();
            answers
        });
    }
    clients.join_all().await.into_iter().sum()
}

const REFUSED: &str = "GET http://forbidden.test/ HTTP/1.1\r\nHost: x\r\n\r\n";

/// Lets `attack` go on for so long.
async fn during<T>(time: Duration, stop: &Arc<AtomicBool>, attack: impl Future<Output = T>) -> T {
    let ending = async {
        tokio::time::sleep(time).await;
        stop.store(true, SeqCst);
    };
    tokio::join!(attack, ending).0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_refused_ones_too_pass_at_the_rate_of_the_container() {
    let stop = Arc::new(AtomicBool::new(false));
    for (requests_per_second, least, most) in [(20, 130, 190), (0, 1000, usize::MAX)] {
        let bed = Bed::with(&[], Limits { requests_per_second, ..unlimited() });
        stop.store(false, SeqCst);
        let begun = Instant::now();
        let answers = during(Duration::from_secs(2), &stop, flood(bed.port, REFUSED, &stop)).await;
        let late = begun.elapsed().saturating_sub(Duration::from_secs(2)).as_secs_f64();
        // Five seconds' worth at once, then two seconds of it, and one request of each connection.
        let most = most.saturating_add((late * 20.0) as usize);
        assert!((least..most).contains(&answers), "{requests_per_second}: {answers}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_daemon_spends_no_more_time_on_a_container_than_configured() {
    let stop = Arc::new(AtomicBool::new(false));
    let mut used = Vec::new();
    for cpu_percent in [5, 0] {
        let bed = Bed::with(&[], Limits { cpu_percent, ..unlimited() });
        stop.store(false, SeqCst);
        let answers = during(Duration::from_secs(3), &stop, flood(bed.port, REFUSED, &stop)).await;
        assert!(answers > 0);
        used.push(bed.proxy.usage().cpu_seconds);
        let counted = bed.number("thawd_egress_cpu_seconds_total");
        assert!((used[used.len() - 1] - counted).abs() < 0.05, "{counted} in the metrics: {used:?}");
        let held_back = bed.number("thawd_egress_held_back_seconds_total");
        assert_eq!(held_back > 1.0, cpu_percent == 5, "{held_back}");
    }
    // A second's worth at once and three seconds of it: 0.2 s, and what each connection was at.
    assert!(used[0] > 0.1 && used[0] < 0.4, "{used:?}");
    assert!(used[1] > 2.0 * used[0], "without a limit it takes what there is: {used:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_container_that_connects_without_end_does_not_hold_up_another() {
    let (port, count) = echo().await;
    let target = format!("upstream.test:{port}");
    let (greedy, modest) = Bed::two(&["upstream.test:*"], unlimited(), Total::new(100, 0));
    let stop = Arc::new(AtomicBool::new(false));
    let attack = async {
        let mut clients = JoinSet::new();
        for _ in 0..50 {
            let (port, request, stop) = (greedy.port, format!("CONNECT {target} HTTP/1.1\r\n\r\n"), Arc::clone(&stop));
            clients.spawn(async move {
                while !stop.load(SeqCst) {
                    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let _ = stream.write_all(request.as_bytes()).await;
                    let _ = stream.read(&mut [0; 64]).await;
                }
            });
        }
        clients.join_all().await;
    };
    let victim = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            let begun = Instant::now();
            drop(tunnel(&modest, &target).await);
            slowest = slowest.max(begun.elapsed());
        }
        stop.store(true, SeqCst);
        slowest
    };
    let begun = Instant::now();
    let ((), slowest) = tokio::join!(attack, victim);
    // Its turn comes after one of the other's, a hundredth of a second each; 50 of those wait all the time.
    assert!(slowest < Duration::from_millis(250), "{slowest:?}");
    let most = 100.0 + 100.0 * begun.elapsed().as_secs_f64() + 2.0;
    let connected = count.load(SeqCst);
    assert!(connected > 100 && (connected as f64) < most, "{connected} of {most}");
}
