//! Somebody who can write to the database, and has no key, makes a credential unusable and nothing else.

use sqlx::Row;

use super::super::*;
use super::{Bed, SOON, login, text};

/// Runs SQL as somebody else would.
async fn sql(vault: &Arc<Vault>, text: &str) {
    sqlx::query(sqlx::AssertSqlSafe(text.to_owned())).execute(vault.store.pool()).await.unwrap();
}

async fn bytes(vault: &Arc<Vault>, column: &str, table: &str, user: &str) -> Vec<u8> {
    let sql = format!("SELECT {column} FROM {table} WHERE user_name = '{user}'");
    let row = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_one(vault.store.pool()).await.unwrap();
    row.try_get(0).unwrap()
}

async fn set(vault: &Arc<Vault>, column: &str, table: &str, user: &str, value: &[u8]) {
    let sql = format!("UPDATE {table} SET {column} = $1 WHERE user_name = '{user}'");
    sqlx::query(sqlx::AssertSqlSafe(sql)).bind(value).execute(vault.store.pool()).await.unwrap();
    // The daemon would notice at its next start; here it looks at once.
    vault.cache().forget(user);
}

/// The code of the error for the user.
async fn error(vault: &Arc<Vault>, bed: &Bed, user: &str) -> String {
    vault.cache().forget(user);
    let error = vault.checkout(user, &bed.provider, SOON).await.unwrap_err();
    assert!(matches!(error, VaultError::Broken { .. } | VaultError::BrokenUser { .. }), "{error}");
    error.to_string()
}

/// The user gets his own secret.
async fn is_well(vault: &Arc<Vault>, bed: &Bed, user: &str) {
    vault.cache().forget(user);
    let out = vault.checkout(user, &bed.provider, SOON).await.unwrap().unwrap();
    assert!(text(&out).contains(&format!("sk-of-{user}")));
}

async fn two_users(bed: &Bed) -> Arc<Vault> {
    let vault = bed.open().await;
    for user in ["u1", "u2"] {
        vault.put(user, &bed.provider, &login(&format!("sk-of-{user}")), Asker::default()).await.unwrap();
    }
    vault
}

#[tokio::test]
async fn each_changed_byte_breaks_that_record_alone() {
    let bed = Bed::new();
    let vault = two_users(&bed).await;
    let mut tried = 0;
    for (column, table) in [("sealed", "user_cli_auth"), ("wrapped_key", "vault_users"), ("entries", "vault_users")] {
        let original = bytes(&vault, column, table, "u1").await;
        for at in 0..original.len() {
            let mut changed = original.clone();
            changed[at] ^= 0x41;
            set(&vault, column, table, "u1", &changed).await;
            error(&vault, &bed, "u1").await;
            tried += 1;
        }
        for length in [0, 1, 11, 12, 27, original.len() - 1] {
            set(&vault, column, table, "u1", &original[..length]).await;
            error(&vault, &bed, "u1").await;
        }
        is_well(&vault, &bed, "u2").await;
        set(&vault, column, table, "u1", &original).await;
        is_well(&vault, &bed, "u1").await;
    }
    assert!(tried > 200, "{tried} bytes");
}

#[tokio::test]
async fn what_a_record_belongs_to_cannot_be_changed() {
    let bed = Bed::new();
    let vault = two_users(&bed).await;
    for (change, back) in [
        ("user_cli_auth SET version = 2", "user_cli_auth SET version = 1"),
        ("user_cli_auth SET name = 'env:OPENAI_API_KEY'", "user_cli_auth SET name = 'file:auth.json'"),
        ("vault_users SET revision = 7", "vault_users SET revision = 1"),
    ] {
        sql(&vault, &format!("UPDATE {change} WHERE user_name = 'u1'")).await;
        error(&vault, &bed, "u1").await;
        is_well(&vault, &bed, "u2").await;
        sql(&vault, &format!("UPDATE {back} WHERE user_name = 'u1'")).await;
        is_well(&vault, &bed, "u1").await;
    }
}

#[tokio::test]
async fn swapped_records_are_refused_for_both() {
    let bed = Bed::new();
    let vault = two_users(&bed).await;
    for table in ["user_cli_auth", "vault_users"] {
        let swap = [("u1", "x"), ("u2", "u1"), ("x", "u2")];
        for (from, to) in swap {
            sql(&vault, &format!("UPDATE {table} SET user_name = '{to}' WHERE user_name = '{from}'")).await;
        }
        error(&vault, &bed, "u1").await;
        error(&vault, &bed, "u2").await;
        for (from, to) in swap {
            sql(&vault, &format!("UPDATE {table} SET user_name = '{to}' WHERE user_name = '{from}'")).await;
        }
        is_well(&vault, &bed, "u1").await;
        is_well(&vault, &bed, "u2").await;
    }
}

#[tokio::test]
async fn an_earlier_record_is_refused_and_so_is_one_that_is_gone() {
    let bed = Bed::new();
    let vault = two_users(&bed).await;
    sql(&vault, "CREATE TABLE kept AS SELECT * FROM user_cli_auth WHERE user_name = 'u1'").await;
    vault.put("u1", &bed.provider, &login("sk-of-u1-second"), Asker::default()).await.unwrap();
    sql(&vault, "DELETE FROM user_cli_auth WHERE user_name = 'u1'").await;
    assert!(error(&vault, &bed, "u1").await.contains("its record is gone"));
    sql(&vault, "INSERT INTO user_cli_auth SELECT * FROM kept").await;
    assert!(error(&vault, &bed, "u1").await.contains("an earlier one"));
    is_well(&vault, &bed, "u2").await;
    // Storing it anew mends it.
    vault.put("u1", &bed.provider, &login("sk-of-u1-third"), Asker::default()).await.unwrap();
    is_well(&vault, &bed, "u1").await;
    // One that was removed does not come back.
    vault.remove("u1", "openai", Asker::default()).await.unwrap();
    sql(&vault, "INSERT INTO user_cli_auth SELECT * FROM kept").await;
    assert!(error(&vault, &bed, "u1").await.contains("it was removed"));
    // Nor does a user: the key is gone.
    vault.remove_user("u1", Asker::default()).await.unwrap();
    sql(&vault, "INSERT INTO user_cli_auth SELECT * FROM kept").await;
    vault.cache().forget("u1");
    assert!(vault.checkout("u1", &bed.provider, SOON).await.unwrap().is_none());
}

#[tokio::test]
async fn a_user_whose_key_is_broken_can_begin_anew() {
    let bed = Bed::new();
    let vault = two_users(&bed).await;
    set(&vault, "wrapped_key", "vault_users", "u1", b"nothing of the kind").await;
    assert!(error(&vault, &bed, "u1").await.contains("remove them (DELETE) and store them anew"));
    assert!(vault.put("u1", &bed.provider, &login("sk-of-u1"), Asker::default()).await.is_err());
    assert!(vault.rotate_master_key().await.is_ok(), "nothing is to be wrapped anew");
    assert_eq!(vault.remove_user("u1", Asker::default()).await.unwrap(), Some(1));
    vault.put("u1", &bed.provider, &login("sk-of-u1"), Asker::default()).await.unwrap();
    is_well(&vault, &bed, "u1").await;
}
