//! Keys are changed while everything goes on.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::*;
use super::{Bed, SOON, login, text};

/// Puts a new master key before those that are in the file; returns the file as it was.
fn put_before(bed: &Bed) -> String {
    let before = std::fs::read_to_string(&bed.key).unwrap();
    std::fs::write(&bed.key, format!("{}\n{before}", STANDARD.encode(*crypto::new_key()))).unwrap();
    before
}

#[tokio::test]
async fn the_master_key_is_changed_user_by_user_and_can_be_interrupted() {
    let bed = Bed::new();
    let vault = bed.open().await;
    for number in 0..150 {
        vault
            .put(&format!("u{number}"), &bed.provider, &login(&format!("sk-{number}")), Asker::default())
            .await
            .unwrap();
    }
    let first = vault.status().await.unwrap().master_key;
    let old = put_before(&bed);
    drop(vault);

    // As if a rotation had ended half-way: some are wrapped with the new one, others with the old one.
    let vault = bed.open().await;
    let second = vault.status().await.unwrap();
    assert_ne!(second.master_key, first);
    assert_eq!((second.users, second.users_under_other_master_keys), (150, 150));
    for user in rows::under_other_master_keys(&vault.store, &second.master_key, "", 60).await.unwrap() {
        let mut fresh = user.clone();
        fresh.master_key.clone_from(&second.master_key);
        let key = seal::unwrap(&vault.keys(), &user).unwrap();
        let wrapped = seal::wrap(&vault.keys(), &fresh, &key).unwrap();
        assert!(rows::rewrap(&vault.store, &user, &wrapped, &second.master_key).await.unwrap());
    }
    drop(vault);
    let vault = bed.open().await;
    assert_eq!(vault.status().await.unwrap().users_under_other_master_keys, 90);
    for number in [0, 75, 149] {
        let out = vault.checkout(&format!("u{number}"), &bed.provider, SOON).await.unwrap().unwrap();
        assert!(text(&out).contains(&format!("sk-{number}")));
    }
    let done = vault.rotate_master_key().await.unwrap();
    assert_eq!((done.master_key == second.master_key, done.users_under_other_master_keys), (true, 0));

    // The old one is needed no more.
    let new = std::fs::read_to_string(&bed.key).unwrap().replace(&old, "");
    std::fs::write(&bed.key, new).unwrap();
    drop(vault);
    let vault = bed.open().await;
    assert!(text(&vault.checkout("u149", &bed.provider, SOON).await.unwrap().unwrap()).contains("sk-149"));
    // And opens nothing any more.
    drop(vault);
    std::fs::write(&bed.key, old).unwrap();
    let error = bed.try_open().await.unwrap_err();
    assert!(error.to_string().contains("150 users' keys are wrapped with the master key"), "{error}");
}

#[tokio::test]
async fn a_rotation_without_the_old_key_changes_nothing() {
    let bed = Bed::new();
    let vault = bed.open().await;
    vault.put("u1", &bed.provider, &login("sk-one"), Asker::default()).await.unwrap();
    std::fs::write(&bed.key, STANDARD.encode(*crypto::new_key())).unwrap();
    let error = vault.rotate_master_key().await.unwrap_err();
    assert!(matches!(error, VaultError::UnknownMasterKey { users: 1, .. }), "{error}");
    assert!(text(&vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap()).contains("sk-one"));
}

#[tokio::test]
async fn a_user_gets_a_new_key_and_the_others_keep_theirs() {
    let bed = Bed::new();
    let vault = bed.open().await;
    vault.put("u1", &bed.provider, &login("sk-one"), Asker::default()).await.unwrap();
    vault.put("u2", &bed.provider, &login("sk-two"), Asker::default()).await.unwrap();
    let key = async |user: &str| rows::user(&vault.store, user).await.unwrap().unwrap().user.key_id;
    let before = (key("u1").await, key("u2").await);
    let shown = vault.describe("u1", "openai").await.unwrap().unwrap();
    let rotated = vault.rotate_user_key("u1", Asker::default()).await.unwrap().unwrap();
    assert_eq!((rotated.credentials, rotated.key == before.0, rotated.key == key("u1").await), (1, false, true));
    assert_eq!(key("u2").await, before.1);
    let after = vault.describe("u1", "openai").await.unwrap().unwrap();
    assert_eq!((after.fingerprint, after.updated_at), (shown.fingerprint, shown.updated_at), "it is the same secret");
    assert!(text(&vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap()).contains("sk-one"));
    assert!(vault.rotate_user_key("u3", Asker::default()).await.unwrap().is_none());
}
