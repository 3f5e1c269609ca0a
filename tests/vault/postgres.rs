//! The vault in PostgreSQL, which two daemons share. A server of the test's own, as Debian's package `postgresql` has it.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use thaw_client::types::UserKey;

use super::{MARKER, ahead, prepare, put, request, shown};
use crate::support::{Daemon, Mood, Setup, TokenServer, eventually};

/// A server that listens on a socket in a folder of its own.
struct Postgres {
    folder: tempfile::TempDir,
    server: Child,
}

impl Postgres {
    fn program(name: &str) -> PathBuf {
        let versions = std::fs::read_dir("/usr/lib/postgresql").expect("install the package postgresql");
        let mut found: Vec<_> = versions.map(|entry| entry.unwrap().path().join("bin").join(name)).collect();
        found.retain(|path| path.exists());
        found.sort();
        found.pop().expect("install the package postgresql")
    }

    /// A program of PostgreSQL, which refuses to run as root, as the user that its package made.
    fn command(name: &str) -> Command {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|line| line.starts_with("postgres:")).expect("install the package postgresql");
        let fields: Vec<&str> = line.split(':').collect();
        let mut command = Command::new(Self::program(name));
        command.uid(fields[2].parse().unwrap()).gid(fields[3].parse().unwrap()).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("thawd-pg-").tempdir_in("/var/tmp").unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        let data = folder.path().join("data");
        let made = Self::command("initdb").arg("-D").arg(&data).args(["-A", "trust", "-U", "thawd", "-N"]).status();
        assert!(made.unwrap().success());
        let mut command = Self::command("postgres");
        command.arg("-D").arg(&data).arg("-k").arg(folder.path()).args(["-c", "listen_addresses=", "-c", "fsync=off"]);
        let this = Self { server: command.spawn().unwrap(), folder };
        let socket = this.folder.path().join(".s.PGSQL.5432");
        eventually("it listens", || std::future::ready(socket.exists().then_some(()))).await;
        this
    }

    fn url(&self) -> String {
        format!("postgres:///postgres?user=thawd&host={}", self.folder.path().display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.server);
        // Fast shutdown (postgres(1)): it takes its processes with it.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let _ = self.server.wait();
    }
}

/// Daemons with one database and one master key.
async fn daemons(postgres: &Postgres, count: usize, change: impl Fn(Setup) -> Setup) -> Vec<Daemon> {
    let mut all: Vec<Daemon> = Vec::new();
    for number in 0..count {
        let id_start = 1_879_048_192 + 8_000_000 * number as i64;
        let setup = |setup: Setup| setup.set("store.url", postgres.url()).set("container.id_start", id_start).pool(1);
        let mut daemon = prepare(|given| change(setup(given)));
        if let Some(first) = all.first() {
            std::fs::copy(first.path("vault.key"), daemon.path("vault.key")).unwrap();
        }
        daemon.launch().await;
        all.push(daemon);
    }
    all
}

#[tokio::test]
async fn two_daemons_share_what_one_of_them_stored() {
    let postgres = Postgres::start().await;
    let daemons = daemons(&postgres, 2, |setup| setup).await;
    let [one, two] = daemons.as_slice() else { unreachable!() };
    put(one, "u1", "token-1").await;
    assert_eq!(two.sh("cat ~/.test/token").await.exited(0).text(), "token-1");
    put(one, "u1", "token-2").await;
    // At once: nothing is remembered from before.
    assert_eq!(two.sh("cat ~/.test/token").await.exited(0).text(), "token-2");
    two.sh("cd ~/.test && echo token-3 > token.tmp && mv token.tmp token").await.exited(0);
    assert_eq!(one.sh("cat ~/.test/token").await.exited(0).text(), "token-3\n");
    assert_eq!(shown(one, "u1").await.version, 3);
    let key: UserKey = two.client.rotate_user_key("u1").await.unwrap();
    assert_eq!(key.credentials, 1);
    assert_eq!(one.sh("cat ~/.test/token").await.exited(0).text(), "token-3\n");

    // Both change the same user, again and again: none is lost, and no version is given twice.
    let before = shown(one, "u1").await.version;
    let change = async |daemon: &Daemon| {
        for number in 0..10 {
            put(daemon, "u1", &format!("{MARKER}-{number}")).await;
        }
    };
    tokio::join!(change(one), change(two));
    assert_eq!(shown(two, "u1").await.version, before + 20);
    assert_eq!(one.sh("cat ~/.test/token").await.exited(0).text(), format!("{MARKER}-9"));
    // A name that PostgreSQL could not even be asked for.
    let body = r#"{"provider":"test","user":"a\u0000b","command":["true"]}"#;
    assert_eq!(request(one, "POST /v1/executions", body).await.problem().code, "invalid_field");
    assert_eq!(request(one, "DELETE /v1/users/u1/credentials", "").await.status, 204);
    assert_eq!(request(two, "GET /v1/users/u1/credentials/test", "").await.status, 404);
    for daemon in daemons {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn two_daemons_renew_a_login_one_at_a_time() {
    let postgres = Postgres::start().await;
    let server = TokenServer::start(Duration::from_secs(2));
    let daemons = daemons(&postgres, 2, |setup| ahead::provider(&server, setup)).await;
    let [one, two] = daemons.as_slice() else { unreachable!() };
    put(one, "u1", &server.login()).await;
    let mut run = crate::support::shell(&ahead::script(&server));
    run.user = "u1".to_owned();
    // Both need it at the same moment, round after round.
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(1200)).await;
        let runs = (0..12).map(|number| if number % 2 == 0 { one } else { two }).map(|daemon| daemon.run(&run));
        for outcome in futures_util::future::join_all(runs).await {
            assert!(outcome.exited(0).text().starts_with("answer to a-"));
        }
    }
    {
        let state = server.state();
        assert_eq!((&state.refused, &state.over), (&Vec::new(), &Vec::new()), "{state:?}");
        assert!(state.last > 4 && state.renewals + 1 == state.last, "{state:?}");
    }
    for daemon in daemons {
        daemon.stop().await;
    }
}

/// Kills one of two daemons, or both, again and again while logins are renewed.
async fn killed(rounds: usize) {
    let postgres = Postgres::start().await;
    let server = TokenServer::start(Duration::from_secs(2));
    let mut daemons = daemons(&postgres, 2, |setup| ahead::provider(&server, setup)).await;
    put(&daemons[0], "u1", &server.login()).await;
    let mut run = crate::support::shell(&ahead::script(&server));
    (run.user, run.background) = ("u1".to_owned(), true);
    for round in 0..rounds {
        // So that each round has to renew it, and whoever dies does so before, during or after that.
        server.state().mood = Mood::Slow(Duration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let mut begun = Vec::new();
        for daemon in daemons.iter().chain(&daemons) {
            let (client, run) = (daemon.client.clone(), run.clone());
            begun.push(tokio::spawn(async move { client.create(&run).await }));
        }
        tokio::time::sleep(Duration::from_millis(5 + 17 * (round as u64 % 12))).await;
        let doomed = [&[0][..], &[1], &[0, 1]][round % 3];
        doomed.iter().for_each(|number| daemons[*number].kill());
        begun.iter().for_each(tokio::task::JoinHandle::abort);
        for number in doomed {
            daemons[*number].launch().await;
        }
    }
    for daemon in &daemons {
        eventually("all have ended", || async { ahead::all_ended(daemon).await.then_some(()) }).await;
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    run.background = false;
    for daemon in &daemons {
        assert!(daemon.run(&run).await.exited(0).text().starts_with("answer to a-"));
    }
    {
        let state = server.state();
        assert!(state.refused.is_empty(), "used twice: {state:?}");
        assert!(state.last > 1 && state.renewals + 1 == state.last, "{state:?}");
    }
    for daemon in daemons {
        daemon.stop().await;
    }
}

#[tokio::test]
async fn no_token_is_lost_or_used_twice_although_two_daemons_are_killed() {
    killed(6).await;
}

#[tokio::test]
#[ignore = "takes minutes: cargo test --test vault -- --ignored two_daemons_are_killed_fifty_times"]
async fn no_token_is_lost_or_used_twice_although_two_daemons_are_killed_fifty_times() {
    killed(50).await;
}
