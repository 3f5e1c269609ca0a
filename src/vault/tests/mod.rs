//! The vault on a real database: what is stored, what is refused, and what happens when somebody changes the rows.

mod ahead;
mod audit;
mod keys;
mod model;
mod tampering;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use thaw_client::types::{CredentialState, Secret};

use super::*;

/// Nobody waits for a turn.
pub const SOON: Duration = Duration::ZERO;

/// A vault in a folder of its own.
pub struct Bed {
    pub folder: tempfile::TempDir,
    pub key: PathBuf,
    pub provider: Provider,
    pub audit: Bounds,
}

/// A login with this access token, as codex keeps it.
pub fn login(token: &str) -> Credentials {
    login_of("u@example.test", token)
}

/// The same of an account.
pub fn login_of(account: &str, token: &str) -> Credentials {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let identity = format!("{}.{}.{}", part("{}"), part(&format!(r#"{{"email":"{account}"}}"#)), part("signature"));
    file(format!(r#"{{"tokens":{{"id_token":"{identity}","access_token":"{token}","refresh_token":"r"}}}}"#))
}

/// The file of codex.
fn file(text: String) -> Credentials {
    let mut credentials = Credentials::default();
    credentials.files = BTreeMap::from([("auth.json".to_owned(), Secret::new(text))]);
    credentials
}

pub fn text(checkout: &Checkout) -> String {
    checkout.credentials.files["auth.json"].expose().to_owned()
}

impl Bed {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let key = folder.path().join("key");
        init(&key).unwrap();
        std::fs::create_dir(folder.path().join("state")).unwrap();
        let mut provider = crate::provider::load_dir(Path::new("providers")).unwrap().remove("openai").unwrap();
        // The CLI renews its logins, and gets whole files.
        provider.set_refresh(Some(RefreshPolicy::Exclusive), None, false).unwrap();
        let audit = Bounds { age: Duration::from_secs(3600), records: 1_000_000 };
        Self { folder, key, provider, audit }
    }

    pub fn database(&self) -> store::Settings {
        let file = self.folder.path().join("state/store.db");
        store::Settings { url: None, file, connections: 2, timeout: Duration::from_secs(20) }
    }

    pub async fn try_open(&self) -> Result<Arc<Vault>, VaultError> {
        let state = self.folder.path().join("state");
        let source = KeySource::find(Some(&self.key), &[], Duration::ZERO, &state).unwrap();
        let settings = Settings {
            max_credential_bytes: 64 << 10,
            cache_bytes: 1 << 20,
            audit: self.audit,
            refresh_ahead: Duration::from_secs(300),
            refresh_timeout: Duration::from_secs(5),
        };
        Vault::open(source, &self.database(), settings).await
    }

    pub async fn open(&self) -> Arc<Vault> {
        self.try_open().await.unwrap()
    }
}

#[tokio::test]
async fn what_is_stored_is_handed_out_again_also_by_the_next_daemon() {
    let bed = Bed::new();
    let vault = bed.open().await;
    assert!(vault.checkout("u1", &bed.provider, SOON).await.unwrap().is_none());
    let (shown, is_new) = vault.put("u1", &bed.provider, &login("sk-one"), Asker::default()).await.unwrap();
    assert!(is_new && shown.state == CredentialState::Valid && shown.version == 1 && shown.files == ["auth.json"]);
    assert!(shown.last_used_at.is_none());
    let (again, is_new) = vault.put("u1", &bed.provider, &login("sk-two"), Asker::default()).await.unwrap();
    assert!(!is_new && again.version == 2 && again.created_at == shown.created_at);
    assert_ne!(again.fingerprint, shown.fingerprint);
    let out = vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap();
    assert!(text(&out).contains("sk-two") && out.version == 2);
    assert!(vault.checkout("u2", &bed.provider, SOON).await.unwrap().is_none());
    assert!(vault.describe("u1", "openai").await.unwrap().unwrap().last_used_at.is_some(), "at once");
    vault.write_uses().await;
    assert!(vault.describe("u1", "openai").await.unwrap().unwrap().last_used_at.is_some(), "and afterwards");
    drop(vault);

    let vault = bed.open().await;
    assert!(text(&vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap()).contains("sk-two"));
    assert!(vault.list("u1").await.unwrap()[0].last_used_at.is_some());
    assert!(
        vault.remove("u1", "openai", Asker::default()).await.unwrap()
            && !vault.remove("u1", "openai", Asker::default()).await.unwrap()
    );
    assert!(vault.checkout("u1", &bed.provider, SOON).await.unwrap().is_none());
    let (anew, is_new) = vault.put("u1", &bed.provider, &login("sk-three"), Asker::default()).await.unwrap();
    assert!(is_new && anew.version == 3, "no version is used twice: {}", anew.version);
    assert_eq!(vault.remove_user("u1", Asker::default()).await.unwrap(), Some(1));
    assert_eq!(vault.remove_user("u1", Asker::default()).await.unwrap(), None);
    let status = vault.status().await.unwrap();
    assert_eq!((status.users, status.credentials, status.users_under_other_master_keys), (0, 0, 0));
}

#[tokio::test]
async fn nothing_of_a_secret_is_in_the_database_in_the_clear() {
    let bed = Bed::new();
    let vault = bed.open().await;
    let marker = "sk-marker-7d1e5b";
    vault.put("u1", &bed.provider, &login(marker), Asker::default()).await.unwrap();
    vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap();
    vault.rotate_user_key("u1", Asker::default()).await.unwrap();
    let mut looked = 0;
    for entry in std::fs::read_dir(bed.folder.path().join("state")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        looked += bytes.len();
        assert!(!bytes.windows(marker.len()).any(|window| window == marker.as_bytes()));
    }
    assert!(looked > 4096, "there is a database");
    let shown = serde_json::to_string(&vault.list("u1").await.unwrap()).unwrap();
    assert!(!shown.contains(marker) && !format!("{vault:?}").contains(marker));
}

#[tokio::test]
async fn what_a_cli_renewed_replaces_only_what_it_had() {
    let bed = Bed::new();
    let vault = bed.open().await;
    vault.put("u1", &bed.provider, &login("sk-one"), Asker::default()).await.unwrap();
    let first = vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap();
    let by = async |execution: &str, version, secret: &Credentials, settled| {
        let loan = Loan { user: "u1".to_owned(), execution: execution.to_owned(), version, fingerprint: String::new() };
        vault.write_back(&loan, &bed.provider, secret, settled).await.unwrap()
    };
    let back = async |version, secret: &Credentials| by(&format!("e-{version}"), version, secret, true).await;
    assert_eq!(back(first.version, &login("sk-one")).await, WrittenBack::Unchanged);
    assert_eq!(back(first.version, &login("sk-two")).await, WrittenBack::Stored);
    // Another run had the same version and comes later: what it has is older than what is stored.
    assert_eq!(by("e-other", first.version, &login("sk-late"), true).await, WrittenBack::Overtaken);
    // The same run renews it once more.
    assert_eq!(back(first.version, &login("sk-three")).await, WrittenBack::Stored);
    let second = vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap();
    assert!(text(&second).contains("sk-three") && second.version == 3);

    // Nobody puts another account, or a key, in the place of the user's login.
    assert_eq!(back(3, &login_of("other@example.test", "sk-four")).await, WrittenBack::Foreign);
    assert_eq!(back(3, &file(r#"{"OPENAI_API_KEY":"sk-four"}"#.to_owned())).await, WrittenBack::Foreign);

    let blank = file("{}".to_owned());
    assert_eq!(back(2, &blank).await, WrittenBack::Overtaken);
    assert_eq!(by("e-3", 3, &blank, false).await, WrittenBack::Unfinished);
    assert_eq!(back(3, &blank).await, WrittenBack::Refused);
    let shown = vault.describe("u1", "openai").await.unwrap().unwrap();
    assert_eq!((shown.state, shown.version), (CredentialState::Refused, 4));
    assert!(shown.reason.unwrap().contains("neither `OPENAI_API_KEY` nor `tokens`"));
    let error = vault.checkout("u1", &bed.provider, SOON).await.unwrap_err();
    assert!(matches!(error, VaultError::Refused { .. }), "{error}");
    vault.put("u1", &bed.provider, &login("sk-new"), Asker::default()).await.unwrap();
    assert!(text(&vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap()).contains("sk-new"));
    vault.remove("u1", "openai", Asker::default()).await.unwrap();
    assert_eq!(back(5, &login("sk-gone")).await, WrittenBack::Overtaken, "a removed one does not come back");
}

#[tokio::test]
async fn many_changes_at_once_are_one_after_the_other() {
    let bed = Bed::new();
    let vault = bed.open().await;
    let tasks = (0..20).map(|number| {
        let (vault, provider) = (Arc::clone(&vault), bed.provider.clone());
        tokio::spawn(async move {
            vault.put("u1", &provider, &login(&format!("sk-{number}")), Asker::default()).await.unwrap().1
        })
    });
    let mut new = 0;
    for task in tasks.collect::<Vec<_>>() {
        new += usize::from(task.await.unwrap());
    }
    assert_eq!(new, 1);
    let out = vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap();
    assert_eq!(out.version, 20);
}

#[tokio::test]
async fn what_a_cli_renewed_is_taken_back_although_the_user_has_got_a_new_key() {
    let bed = Bed::new();
    let vault = bed.open().await;
    vault.put("u1", &bed.provider, &login("sk-one"), Asker::default()).await.unwrap();
    let out = vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap();
    vault.rotate_user_key("u1", Asker::default()).await.unwrap().unwrap();
    let (user, execution) = ("u1".to_owned(), "e-1".to_owned());
    let loan = Loan { user, execution, version: out.version, fingerprint: out.fingerprint.clone() };
    let back = vault.write_back(&loan, &bed.provider, &login("sk-two"), true).await.unwrap();
    assert_eq!(back, WrittenBack::Stored);
    assert!(text(&vault.checkout("u1", &bed.provider, SOON).await.unwrap().unwrap()).contains("sk-two"));
}
