//! The daemon kills itself at each named step of creating, claiming, running and destroying.

use std::time::Duration;

use super::left::{no_stranger, nothing_left};
use super::load::{KINDS, Kind, check, request, talk, wait};
use super::strict::{NotAccepted, Strict};
use crate::support::{Daemon, PATIENCE, in_bed};

/// Requests until one is answered, and checks what comes of it: it is read by one daemon or by several.
async fn until_accepted(strict: Strict, kind: Kind) {
    let token = format!("token-of-{kind:?}\n");
    loop {
        match strict.run(&request(kind, &token), false).await {
            Ok(seen) => return check(kind, &token, &seen),
            Err(NotAccepted::Broken) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(NotAccepted::Refused(status, why)) => {
                assert!(matches!(status, 409 | 429 | 503), "{status} {why}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    }
}

async fn dies_at(daemon: &mut Daemon, step: &str) {
    daemon.spawn(&[("THAWD_DIE_AT", step)]);
    // Whether it serves for a while or not even that depends on the step.
    let strict = Strict::new(&daemon.socket());
    // Two that go to prestarted CLIs, so that two are prestarted in their place.
    let kinds = KINDS.into_iter().chain([Kind::Prestarted]);
    let clients: Vec<_> = kinds.map(|kind| tokio::spawn(until_accepted(strict.clone(), kind))).collect();
    let status =
        tokio::time::timeout(PATIENCE, daemon.ended()).await.unwrap_or_else(|_| panic!("{step} is never reached"));
    assert!(!status.success(), "{step}: {status}");
    daemon.launch().await;
    no_stranger(daemon).await;
    for client in clients {
        client.await.unwrap_or_else(|error| panic!("after {step}: {error}"));
    }
    nothing_left(daemon).await;
    // As it is, for the next step: what is warm then is what this one left.
    daemon.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dying_at_each_step_loses_and_leaves_nothing() {
    let mut daemon = Daemon::prepare(|setup| {
        setup
            .pool(2)
            .add_provider(&talk())
            .add_provider(&wait())
            .set("provider.wait.prestarted", 2)
            .set("execution.reconnect_grace_ms", 20_000)
            .set("log.filter", "thawd=info")
    });
    for step in thawd::failpoints::ALL {
        // The first container at all, and one in the middle of everything.
        let counts: &[u32] = match step {
            _ if in_bed() => &[1],
            "create.prestarted" => &[1, 2],
            _ => &[1, 3],
        };
        for count in counts {
            // Once the pools are full nothing is created until something is claimed, so that each step is reached.
            dies_at(&mut daemon, &format!("{step}:{count}")).await;
        }
    }
    daemon.launch().await;
    daemon.stop().await;
}
