//! Egress identities from the API to the server that sees an address: executions, prestarted CLIs, sandboxes, restarts.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use support::{Daemon, Outcome, Setup, eventually, shell};
use thaw_client::types::{
    EgressAllocation, EgressIdentity, EgressState, ExecutionRequest, NamedSandboxRequest, Sandbox,
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

/// Tells each connection the address that it comes from.
async fn whoami() -> (u16, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = Arc::new(AtomicUsize::new(0));
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
                let body = from.ip().to_string();
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (port, count)
}

/// Three addresses of this host, and the server as the only destination.
fn three(setup: Setup, port: u16) -> Setup {
    let setup = ["11", "12", "13"]
        .into_iter()
        .fold(setup, |setup, last| setup.set(&format!("egress.identity.i{last}.bind"), format!("127.0.0.{last}")));
    setup
        .set("egress.identity.i13.max_users", 1)
        .set("egress.identity.i13.labels.city", "paris")
        .set("egress.resolve", toml::toml! { "upstream.test" = ["127.0.0.1"] })
        .provider("egress", vec![format!("upstream.test:{port}")])
        .pool(1)
}

fn asks(port: u16) -> String {
    format!("wget -q -O - http://upstream.test:{port}/")
}

async fn seen(daemon: &Daemon, user: &str, port: u16) -> String {
    let request = ExecutionRequest { user: user.to_owned(), ..shell(&asks(port)) };
    daemon.run(&request).await.exited(0).text().to_owned()
}

async fn allocate(daemon: &Daemon, user: &str, name: Option<&str>) -> EgressAllocation {
    daemon.client.allocate_egress(user, name).await.unwrap()
}

#[tokio::test]
async fn users_are_seen_with_their_own_addresses_and_keep_them_across_restarts() {
    let (port, _) = whoami().await;
    let mut daemon = Daemon::start(|setup| three(setup, port)).await;
    assert_eq!(seen(&daemon, "anna", port).await, "127.0.0.1", "as it comes");
    let given = allocate(&daemon, "anna", Some("i11")).await;
    assert_eq!((given.identity.as_str(), given.address), ("i11", "127.0.0.11".parse().ok()));
    allocate(&daemon, "auth0|bert", Some("i12")).await;
    for round in 0..2 {
        assert_eq!(seen(&daemon, "anna", port).await, "127.0.0.11", "round {round}");
        assert_eq!(seen(&daemon, "auth0|bert", port).await, "127.0.0.12", "round {round}");
        assert_eq!(seen(&daemon, "carl", port).await, "127.0.0.1", "round {round}");
        // The least used one, and the same one for who asks again.
        assert_eq!(allocate(&daemon, "dora", None).await.identity, "i13");
        assert_eq!(allocate(&daemon, "dora", None).await.identity, "i13");
        let again: EgressAllocation = daemon.client.user_egress("anna").await.unwrap();
        assert_eq!(again, given);
        daemon.kill();
        daemon.launch().await;
    }
    let all: Vec<EgressIdentity> = daemon.client.egress_identities().await.unwrap();
    let all: Vec<_> = all.iter().map(|one| (one.name.as_str(), one.users, one.state)).collect();
    assert_eq!(all, [("i11", 1, EgressState::Up), ("i12", 1, EgressState::Up), ("i13", 1, EgressState::Up)]);
    // What cannot be given is told, and nothing changes.
    let error = daemon.client.allocate_egress::<EgressAllocation>("anna", Some("i13")).await.unwrap_err().to_string();
    assert!(error.contains("max_users"), "{error}");
    let error = daemon.client.allocate_egress::<EgressAllocation>("anna", Some("i99")).await.unwrap_err().to_string();
    assert!(error.contains("i11, i12, i13"), "{error}");
    assert_eq!(seen(&daemon, "anna", port).await, "127.0.0.11");
    // Given back, and another one.
    daemon.client.release_egress("dora").await.unwrap();
    daemon.client.release_egress("dora").await.unwrap_err();
    allocate(&daemon, "anna", Some("i13")).await;
    assert_eq!(seen(&daemon, "anna", port).await, "127.0.0.13");
    daemon.stop().await;
}

#[tokio::test]
async fn what_runs_goes_out_anew_after_a_change_and_after_a_killed_daemon() {
    let (port, count) = whoami().await;
    let mut daemon = Daemon::start(|setup| three(setup, port).set("egress.default", "none")).await;
    // Asks once more whenever the next file is there.
    let ask = asks(port);
    let script = format!(
        "for step in 1 2 3 4; do while [ ! -e ~/$step ]; do sleep 0.05; done; \
         {{ {ask} 2>&1 || true; }} | tr '\\n' ' ' > ~/answer; echo >> ~/answer; cat ~/answer >> ~/log; done"
    );
    let named = NamedSandboxRequest { template: "test".to_owned(), ..NamedSandboxRequest::default() };
    let sandbox: Sandbox = daemon.client.ensure_sandbox("anna", "dev", &named).await.unwrap();
    let inside = |script: &str| ExecutionRequest {
        provider: String::new(),
        sandbox: Some(sandbox.id.clone()),
        user: "anna".to_owned(),
        ..shell(script)
    };
    let long = daemon.client.create(&ExecutionRequest { background: true, ..inside(&script) }).await.unwrap().id;
    let step = async |daemon: &Daemon, number: usize| {
        daemon.run(&inside(&format!("touch ~/{number}"))).await.exited(0);
        eventually("it has asked", || async {
            let log = daemon.run(&inside("cat ~/log 2> /dev/null; true")).await.exited(0);
            (log.text().lines().count() >= number).then(|| log.text().lines().last().unwrap().trim().to_owned())
        })
        .await
    };
    let first = step(&daemon, 1).await;
    assert!(first.contains("User has no egress identity"), "{first}");
    assert_eq!(count.load(SeqCst), 0, "no identity, and no way out without one");
    allocate(&daemon, "anna", Some("i11")).await;
    assert_eq!(step(&daemon, 2).await, "127.0.0.11");
    daemon.kill();
    daemon.launch().await;
    assert_eq!(step(&daemon, 3).await, "127.0.0.11");
    allocate(&daemon, "anna", Some("i12")).await;
    assert_eq!(step(&daemon, 4).await, "127.0.0.12");
    Outcome::of(daemon.client.events(&long, None).await.unwrap()).await.exited(0);
    daemon.client.delete_sandbox(&sandbox.id).await.unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn an_identity_that_left_the_configuration_is_not_replaced_by_another_way() {
    let (port, count) = whoami().await;
    let mut daemon = Daemon::start(|setup| three(setup, port)).await;
    allocate(&daemon, "anna", Some("i11")).await;
    daemon.kill();
    let mut config: toml::Table = std::fs::read_to_string(daemon.path("thawd.toml")).unwrap().parse().unwrap();
    config["egress"]["identity"].as_table_mut().unwrap().remove("i11");
    std::fs::write(daemon.path("thawd.toml"), config.to_string()).unwrap();
    daemon.launch().await;
    let request = ExecutionRequest { user: "anna".to_owned(), ..shell(&format!("{} 2>&1", asks(port))) };
    let outcome = daemon.run(&request).await;
    assert!(outcome.exit.code != Some(0) && outcome.text().contains("403"), "{outcome:?}");
    assert_eq!(count.load(SeqCst), 0);
    let left: EgressAllocation = daemon.client.user_egress("anna").await.unwrap();
    assert_eq!((left.identity.as_str(), left.address), ("i11", None));
    allocate(&daemon, "anna", None).await;
    assert!(seen(&daemon, "anna", port).await.starts_with("127.0.0.1"), "another one");
    daemon.stop().await;
}
