//! Can containers reach the hosts of their providers: a command in a container of each asks its proxy for them. Where an
//! image has no bash, this machine tries, from which the proxy connects too.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::time::Duration;

use super::{Check, Status};
use thaw_client::client::{Client, ClientError};
use thaw_client::types::{Credentials, Event, ExecutionRequest, Provider};

/// Longest time for a connection from this machine.
const CONNECT: Duration = Duration::from_secs(3);
/// Longest time for all hosts of one provider.
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest wait for a container.
const QUEUE: Duration = Duration::from_secs(5);
/// User whose executions these are.
const USER: &str = "thawctl-doctor";
/// Says `HOST STATUS-LINE` for each host: bash opens the connection to the proxy by itself. A host that says nothing within
/// five seconds has an empty status line.
const SCRIPT: &str = r#"
proxy=${https_proxy#http://}; proxy=${proxy%/}
for host; do
  exec 3<> "/dev/tcp/${proxy%:*}/${proxy##*:}" || { echo "$host no connection to the proxy"; continue; }
  printf 'CONNECT %s HTTP/1.1\r\nHost: %s\r\n\r\n' "$host" "$host" >&3
  line=; IFS= read -r -t 5 line <&3
  echo "$host ${line%$'\r'}"
  exec 3>&-
done
"#;

/// Tries all hosts that the providers which have their image name.
pub(super) async fn check(client: &Client, providers: &[Provider]) -> Check {
    let (mut inside, mut outside, mut refused) = (0, 0, Vec::new());
    for provider in providers.iter().filter(|provider| provider.ready) {
        let hosts: Vec<&str> =
            provider.egress.iter().map(String::as_str).filter(|host| !host.starts_with('*')).collect();
        if hosts.is_empty() {
            continue;
        }
        let name = &provider.name;
        match answers(client, name, &hosts).await {
            Ok(answers) => {
                inside += hosts.len();
                let answer = |host: &&str| answers.get(*host).map_or("", String::as_str);
                let closed = hosts.iter().filter(|host| !is_open(answer(host)));
                refused.extend(closed.map(|host| format!("{host} for {name} ({})", explained(answer(host)))));
            }
            Err(_) => {
                outside += hosts.len();
                refused.extend(
                    from_here(&hosts).await.into_iter().map(|(host, why)| format!("{host} for {name} ({why})")),
                );
            }
        }
    }
    let reached = match (inside, outside) {
        (0, 0) => "none are needed".to_owned(),
        (inside, 0) => format!("{inside} can be reached from containers"),
        (0, outside) => format!("{outside} can be reached from here"),
        (inside, outside) => format!("{inside} can be reached from containers, {outside} from here"),
    };
    let (status, found) = match refused.is_empty() {
        true => (Status::Ok, reached),
        false => (Status::Warn, format!("not reached: {}", refused.join(", "))),
    };
    let fix = "Let this machine resolve and reach them, or give the provider a `base_url` that it can.";
    Check::new("hosts of providers", status, found, fix)
}

/// The hosts that this machine cannot reach, and why.
async fn from_here(hosts: &[&str]) -> Vec<(String, String)> {
    let tried = hosts.iter().map(|host| {
        let host = (*host).to_owned();
        tokio::task::spawn_blocking(move || connects(&host).err().map(|why| (host, why)))
    });
    let mut unreachable = Vec::new();
    for task in tried.collect::<Vec<_>>() {
        unreachable.extend(task.await.ok().flatten());
    }
    unreachable
}

fn connects(host: &str) -> Result<(), String> {
    let addresses = host.to_socket_addrs().map_err(|error| error.to_string())?;
    let mut last = "no address".to_owned();
    for address in addresses {
        match std::net::TcpStream::connect_timeout(&address, CONNECT) {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}

/// Whether a proxy's answer to CONNECT opens a tunnel (RFC 9110, section 9.3.6).
fn is_open(answer: &str) -> bool {
    answer.strip_prefix("HTTP/1.1 2").is_some()
}

fn explained(answer: &str) -> &str {
    match answer.split_once(' ') {
        _ if answer.is_empty() => "no answer",
        Some((version, status)) if version.starts_with("HTTP/") => status,
        _ => answer,
    }
}

/// What the proxy of a new container of the provider answers, by host.
async fn answers(client: &Client, provider: &str, hosts: &[&str]) -> Result<BTreeMap<String, String>, String> {
    let command = ["bash", "-c", SCRIPT, "doctor"].into_iter().chain(hosts.iter().copied());
    let request = ExecutionRequest {
        provider: provider.to_owned(),
        user: USER.to_owned(),
        command: Some(command.map(str::to_owned).collect()),
        credentials: Some(Credentials::default()),
        timeout_ms: Some(PATIENCE.as_millis() as u64),
        queue_timeout_ms: Some(QUEUE.as_millis() as u64),
        ..Default::default()
    };
    let said = |error: ClientError| error.to_string();
    let mut stream = client.execute_stream(&request).await.map_err(said)?;
    let mut output = String::new();
    while let Some(event) = stream.next().await {
        match event.map_err(said)?.1 {
            Event::Stdout(piece) => output += &piece.data,
            Event::Exit(exit) if exit.success => break,
            Event::Exit(exit) => return Err(exit.detail.unwrap_or_else(|| format!("{:?}", exit.reason))),
            _ => {}
        }
    }
    Ok(parsed(&output))
}

fn parsed(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(host, answer)| (host.to_owned(), answer.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hosts_that_cannot_be_reached_from_here_are_named() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap().to_string();
        assert!(from_here(&[&open]).await.is_empty());
        drop(listener);
        assert_eq!(from_here(&[&open]).await[0].0, open);
    }

    #[test]
    fn only_a_tunnel_is_a_way_out_and_everything_else_is_said() {
        let answers = parsed("a:443 HTTP/1.1 200 OK\nb:443 HTTP/1.1 502 Bad Gateway\nc:443 \n");
        assert!(is_open(&answers["a:443"]) && !is_open(&answers["b:443"]) && !is_open(&answers["c:443"]));
        assert_eq!((explained(&answers["b:443"]), explained(&answers["c:443"])), ("502 Bad Gateway", "no answer"));
    }
}
