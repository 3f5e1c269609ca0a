//! A daemon that is killed within a claim, and a keeper that does not know of the execution: nothing but the kernel tells
//! whose the container is.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrUnix, SocketType, connect,
    recvmsg, sendmsg, socket,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::support::{Daemon, PATIENCE, eventually, shell};

/// A keeper's client, as a daemon is one.
struct Talk(OwnedFd);

impl Talk {
    /// With what it keeps: keys.
    fn begin(run_dir: &Path) -> (Self, Vec<Value>) {
        let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(run_dir.join("keeper.sock")).unwrap()).unwrap();
        let this = Self(socket);
        let mut keys = Vec::new();
        loop {
            let reply = this.hear();
            if reply == json!("done") {
                return (this, keys);
            }
            keys.extend(reply["item"].get("key").cloned());
        }
    }

    fn hear(&self) -> Value {
        let mut buffer = vec![0; 65536];
        // Descriptors that nobody has room for are closed.
        let mut ancillary = RecvAncillaryBuffer::default();
        let received =
            recvmsg(&self.0, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::empty()).unwrap();
        serde_json::from_slice(&buffer[..received.bytes]).unwrap()
    }

    fn say(&self, request: &Value) {
        let body = request.to_string();
        let mut ancillary = SendAncillaryBuffer::default();
        sendmsg(&self.0, &[IoSlice::new(body.as_bytes())], &mut ancillary, SendFlags::empty()).unwrap();
    }
}

async fn dies_within_a_claim(tell: impl FnOnce(&Talk, &str)) {
    let mut daemon = Daemon::prepare(|setup| setup.pool(1));
    daemon.spawn(&[("THAWD_DIE_AT", "claim.noted")]);
    daemon.ready().await;
    let [container] = daemon.settled().await.try_into().unwrap();
    // The command is in the container, which is still frozen.
    daemon.client.create(&shell("echo of another user")).await.unwrap_err();
    tokio::time::timeout(PATIENCE, daemon.ended()).await.unwrap();
    let (talk, keys) = Talk::begin(&daemon.path("run"));
    let ids = keys.iter().filter_map(|key| key["execution"].as_str().map(str::to_owned));
    let executions: Vec<String> = ids.collect();
    let [execution] = executions.try_into().unwrap();
    tell(&talk, &execution);
    drop(talk);
    daemon.launch().await;
    let warm = daemon.settled().await;
    assert!(warm.iter().all(|other| other.id != container.id), "it is handed out to somebody else");
    daemon.gone(&container).await;
    assert!(daemon.client.execution(&execution).await.is_err(), "nobody knows of it");
    assert_eq!(daemon.sh("echo served").await.exited(0).text(), "served\n");
    daemon.settled().await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_container_whose_execution_was_not_kept_serves_nobody_else() {
    dies_within_a_claim(|talk, execution| talk.say(&json!({"drop": {"key": {"execution": execution}}}))).await;
}

#[tokio::test]
async fn a_container_whose_execution_cannot_be_read_serves_nobody_else() {
    dies_within_a_claim(|talk, execution| {
        talk.say(&json!({"put": {"key": {"execution": execution}, "note": "of another version"}}));
    })
    .await;
}

#[tokio::test]
async fn what_a_newer_daemon_keeps_stays_where_it_is() {
    let mut daemon = Daemon::start(|setup| setup.pool(1)).await;
    daemon.settled().await;
    daemon.kill();
    // Another kind, a known one with more to it, and one that is no object.
    let newer = [json!({"volume": "v-01"}), json!({"container": {"id": "c-01", "half": 2}}), json!(["vault", 7])];
    {
        let (talk, _) = Talk::begin(&daemon.path("run"));
        for key in &newer {
            talk.say(&json!({"put": {"key": key, "note": "of a newer version"}}));
        }
    }
    for _ in 0..2 {
        daemon.launch().await;
        daemon.settled().await;
        // Another keeper is told everything, that too.
        let keeper = daemon.keeper().expect("there is a keeper");
        kill_process(Pid::from_raw(keeper.pid).unwrap(), Signal::KILL).unwrap();
        eventually("another keeper has taken its place", || async {
            daemon.keeper().filter(|next| next.pid != keeper.pid && daemon.log().contains("taken its place"))
        })
        .await;
        daemon.sh("echo it has been told").await.exited(0);
        daemon.settled().await;
        daemon.kill();
    }
    let (talk, keys) = Talk::begin(&daemon.path("run"));
    assert!(newer.iter().all(|key| keys.contains(key)), "{keys:?}");
    drop(talk);
    daemon.launch().await;
    daemon.stop().await;
}
