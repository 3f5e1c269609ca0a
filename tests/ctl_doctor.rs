//! `thawctl doctor` asks for the hosts of providers where it matters: behind the proxy of a container.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::net::TcpListener;

use serde_json::Value;
use support::{Daemon, HostImage, eventually, programs};
use thaw_client::types::ContainerState;
use thaw_image::Store;

fn manifest(egress: &[&str]) -> String {
    format!(
        r#"
name = "app"
image = "app"
home = "/home/runtime"
pool_target = 1
egress = {egress:?}
[credentials]
dir = ".app"
required = false
tmpfs_mib = 1
[resources.idle]
memory_mib = 64
cpu = 0.5
[resources.run]
memory_mib = 128
cpu = 0.5
"#
    )
}

async fn hosts(daemon: &Daemon) -> (String, String) {
    let mut command = tokio::process::Command::new(programs::thawctl());
    let said =
        command.args(["doctor", "--format", "json"]).env("THAWD_SOCKET", daemon.socket()).output().await.unwrap();
    let checks: Vec<Value> = serde_json::from_slice(&said.stdout).unwrap_or_else(|error| panic!("{error}: {said:?}"));
    let check = checks.iter().find(|check| check["name"] == "hosts of providers").unwrap();
    (check["status"].as_str().unwrap().to_owned(), check["found"].as_str().unwrap().to_owned())
}

/// Nothing but one warm container is there.
async fn settled(daemon: &Daemon) {
    eventually("the pool is full", || async {
        let containers = daemon.containers().await;
        (containers.len() == 1 && containers[0].state == ContainerState::Warm).then_some(())
    })
    .await;
}

async fn daemon(program: &str, egress: &[&str]) -> Daemon {
    let mut resolve = toml::Table::new();
    for name in ["open.test", "closed.test"] {
        resolve.insert(name.to_owned(), vec![toml::Value::from("127.0.0.1")].into());
    }
    let mut daemon = Daemon::prepare(|mut setup| {
        setup.clear_providers();
        setup.add_provider(&manifest(egress)).set("egress.resolve", resolve)
    });
    let store = Store::open(&daemon.path("state/images")).unwrap();
    let image = HostImage::default().program(program).file("/home/runtime/.keep", b"");
    image.import(&store, &daemon.path(""), "app");
    daemon.launch().await;
    settled(&daemon).await;
    daemon
}

#[tokio::test]
async fn doctor_asks_for_the_hosts_of_providers_through_the_proxy_of_a_container() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // Only the daemon knows these names: from outside of a container there is no way.
    let open = format!("open.test:{port}");
    let good = daemon("/bin/bash", &[&open, "*.example.org:443"]).await;
    assert_eq!(hosts(&good).await, ("ok".to_owned(), "1 can be reached from containers".to_owned()));
    settled(&good).await;
    good.stop().await;

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let closed = format!("closed.test:{closed}");
    let bad = daemon("/bin/bash", &[&open, &closed]).await;
    let (status, found) = hosts(&bad).await;
    assert_eq!(status, "warn");
    assert!(found.contains(&format!("not reached: {closed} for app (502")), "{found}");
    settled(&bad).await;
    bad.stop().await;

    // Without bash this machine is asked, which does not know the name.
    let other = daemon("/bin/busybox", &[&open]).await;
    let (status, found) = hosts(&other).await;
    assert!(status == "warn" && found.starts_with(&format!("not reached: {open} for app (")), "{found}");
    settled(&other).await;
    other.stop().await;
}
