//! What is put on record, and for how long.

use thaw_client::types::AuditAction;

use super::super::*;
use super::{Bed, SOON, login, login_of};

async fn records(vault: &Vault, provider: Option<&str>) -> Vec<AuditRecord> {
    let query = AuditQuery { user: "u1".to_owned(), provider: provider.map(str::to_owned), limit: 1000, cursor: None };
    vault.audit(&query).await.unwrap().items
}

async fn actions(vault: &Vault) -> Vec<AuditAction> {
    records(vault, None).await.iter().rev().map(|record| record.action).collect()
}

#[tokio::test]
async fn each_change_use_and_refusal_is_on_record_without_a_secret() {
    use AuditAction as A;
    let bed = Bed::new();
    let vault = bed.open().await;
    let by = Asker { uid: Some(1000), pid: Some(7) };
    vault.put("u1", &bed.provider, &login("sk-one"), by).await.unwrap();
    let loan =
        |version| Loan { user: "u1".to_owned(), execution: "e-1".to_owned(), version, fingerprint: String::new() };
    vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap();
    vault.note_use(&loan(1), "openai");
    let back = async |version, secret: &Credentials| {
        vault.write_back(&loan(version), &bed.provider, secret, true).await.unwrap()
    };
    back(1, &login_of("other@example.test", "sk-four")).await;
    back(1, &login("sk-two")).await;
    vault.rotate_user_key("u1", by).await.unwrap();
    let mut empty = Credentials::default();
    empty.files.insert("auth.json".to_owned(), thaw_client::types::Secret::new("{}".to_owned()));
    back(3, &empty).await;
    vault.checkout("u1", &bed.provider, SOON).await.unwrap_err();
    vault.remove("u1", "openai", by).await.unwrap();
    vault.remove_user("u1", by).await.unwrap();
    vault.put("u2", &bed.provider, &login("sk-other"), by).await.unwrap();
    let expected = [
        A::Stored,
        A::Used,
        A::NotTaken,
        A::Renewed,
        A::KeyRotated,
        A::Refused,
        A::UseRefused,
        A::Removed,
        A::AllRemoved,
    ];
    assert_eq!(actions(&vault).await, expected);
    let all = records(&vault, None).await;
    let first = all.last().unwrap();
    assert_eq!(
        (first.version, first.peer_uid, first.peer_pid, first.user.as_str()),
        (Some(1), Some(1000), Some(7), "u1")
    );
    assert_eq!(all[all.len() - 2].execution.as_deref(), Some("e-1"));
    assert!(!format!("{all:?}").contains("sk-"));
    assert_eq!(records(&vault, Some("other")).await, []);
    assert_eq!(records(&vault, Some("openai")).await.len(), all.len() - 2, "two are about everything of the user");
    // The next daemon has them too.
    drop(vault);
    let vault = bed.open().await;
    assert_eq!(records(&vault, None).await, all);
}

#[tokio::test]
async fn a_page_ends_where_the_next_one_begins() {
    let bed = Bed::new();
    let vault = bed.open().await;
    let loan = Loan { user: "u1".to_owned(), execution: "e-1".to_owned(), version: 1, fingerprint: String::new() };
    (0..7).for_each(|_| vault.note_use(&loan, "openai"));
    let mut query = AuditQuery { user: "u1".to_owned(), provider: None, limit: 3, cursor: None };
    let mut pages = Vec::new();
    loop {
        let page = vault.audit(&query).await.unwrap();
        pages.push(page.items.len());
        // One that is noted meanwhile shifts nothing.
        vault.note_use(&loan, "openai");
        query.cursor = page.next_cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, [3, 3, 1]);
}

#[tokio::test]
async fn the_oldest_records_go_first_by_number_and_by_age() {
    let mut bed = Bed::new();
    bed.audit = Bounds { records: 5, ..bed.audit };
    let vault = bed.open().await;
    let loan =
        |version| Loan { user: "u1".to_owned(), execution: "e-1".to_owned(), version, fingerprint: String::new() };
    for version in 1..=20 {
        vault.note_use(&loan(version), "openai");
        vault.write_uses().await;
    }
    let kept: Vec<_> = records(&vault, None).await.iter().filter_map(|record| record.version).collect();
    assert_eq!(kept, [20, 19, 18, 17, 16]);
    drop(vault);
    bed.audit = Bounds { age: Duration::from_millis(1), ..bed.audit };
    let vault = bed.open().await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    vault.note_use(&loan(21), "openai");
    tokio::time::sleep(Duration::from_millis(10)).await;
    assert_eq!(records(&vault, None).await, []);
}

#[tokio::test]
async fn uses_that_cannot_be_written_are_bounded_and_those_of_late_are_kept() {
    let bed = Bed::new();
    let vault = bed.open().await;
    vault.store.pool().close().await;
    let loan =
        |version| Loan { user: "u1".to_owned(), execution: "e-1".to_owned(), version, fingerprint: String::new() };
    (0..audit::MAX_UNWRITTEN as u64 + 10).for_each(|version| vault.note_use(&loan(version), "openai"));
    let query = AuditQuery { user: "u1".to_owned(), provider: None, limit: 1, cursor: None };
    vault.audit(&query).await.unwrap_err();
    assert_eq!(vault.audit.unwritten(), (audit::MAX_UNWRITTEN, Some(10)));
}

#[tokio::test]
async fn a_database_from_before_the_records_is_brought_up_to_date() {
    let bed = Bed::new();
    let vault = bed.open().await;
    vault.put("u1", &bed.provider, &login("sk-one"), Asker::default()).await.unwrap();
    for sql in [
        "DROP TABLE egress_allocations",
        "DROP TABLE sandboxes",
        "DROP TABLE vault_audit",
        "DROP TABLE vault_refreshes",
        "DELETE FROM thawd_schema WHERE version > 1",
    ] {
        sqlx::query(sql).execute(vault.store.pool()).await.unwrap();
    }
    drop(vault);
    let vault = bed.open().await;
    assert!(vault.checkout("u1", &bed.provider, SOON).await.unwrap().is_some());
    assert_eq!(records(&vault, None).await, []);
}
