//! What is on record about a user's credentials, asked for by the API and by thawctl.

use std::process::Command;

use thaw_client::types::{AuditAction, AuditRecord, Page};

use super::{MARKER, put, request, with_vault};
use crate::support::{Daemon, programs};

async fn page(daemon: &Daemon, query: &str) -> Page<AuditRecord> {
    let answer = request(daemon, &format!("GET /v1/users/u1/audit{query}"), "").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.text().contains(MARKER));
    serde_json::from_slice(&answer.body).unwrap()
}

#[tokio::test]
async fn who_stored_and_which_execution_used_a_credential_is_on_record() {
    let mut daemon = with_vault(|setup| setup).await;
    put(&daemon, "u1", MARKER).await;
    let mut run = crate::support::shell("cat ~/.test/token");
    run.user = "u1".to_owned();
    daemon.run(&run).await.exited(0);
    let execution = daemon.client.executions().await.unwrap()[0].id.clone();
    // What was noted is written before the next daemon comes.
    daemon.signal(rustix::process::Signal::TERM);
    daemon.ended().await;
    daemon.launch().await;
    let records = page(&daemon, "").await.items;
    assert_eq!(records.len(), 2, "{records:?}");
    assert_eq!((records[0].action, records[0].execution.as_ref()), (AuditAction::Used, Some(&execution)));
    assert_eq!((records[1].action, records[1].version, records[1].peer_uid), (AuditAction::Stored, Some(1), Some(0)));
    assert_eq!(records[1].peer_pid, Some(std::process::id() as i32));

    let first = page(&daemon, "?limit=1&provider=test").await;
    assert_eq!(first.items, records[..1]);
    let cursor = first.next_cursor.unwrap();
    assert_eq!(page(&daemon, &format!("?limit=1&cursor={cursor}")).await.items, records[1..]);
    assert!(page(&daemon, "?provider=other").await.items.is_empty());
    for (query, about) in
        [("limit=0", "`limit`"), ("limit=1001", "from 1 to 1000"), ("cursor=../x", "`cursor`"), ("a=b", "`a`")]
    {
        let problem = request(&daemon, &format!("GET /v1/users/u1/audit?{query}"), "").await.problem();
        assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_query"));
        assert!(problem.detail.contains(about), "{}", problem.detail);
    }

    let thawctl = |arguments: &[&str]| {
        let mut command = Command::new(programs::thawctl());
        let done = command.arg("--socket").arg(daemon.socket()).arg("credentials").args(arguments).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    };
    let table = thawctl(&["audit", "-u", "u1"]);
    assert!(table.contains("ACTION") && table.contains(&execution) && table.contains("stored"), "{table}");
    let one = thawctl(&["audit", "test", "-u", "u1", "-n", "1", "--format", "json"]);
    let one: Vec<AuditRecord> = serde_json::from_str(&one).unwrap();
    assert_eq!(one, records[..1]);
    daemon.stop().await;
}
