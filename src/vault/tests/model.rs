//! Random changes, renewals, rotations and restarts, and beside them what has to come out.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::super::*;
use super::{Bed, SOON, login, text};

/// Changes that are tried. More are a matter of patience: `THAWD_VAULT_STEPS=100000`.
const STEPS: u32 = 600;

/// Numbers that look random and are the same each time (xorshift64, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What a user should have: version and content.
type Model = BTreeMap<String, (u64, String)>;

#[tokio::test]
async fn whatever_is_done_in_whatever_order_the_vault_has_what_was_stored_last() {
    let steps = std::env::var("THAWD_VAULT_STEPS").ok().and_then(|text| text.parse().ok()).unwrap_or(STEPS);
    let bed = Bed::new();
    let mut vault = bed.open().await;
    let (mut model, mut last) = (Model::new(), BTreeMap::<String, u64>::new());
    let mut numbers = Numbers(0x5eed_1234_abcd_9876);
    for step in 0..steps {
        let user = format!("u{}", numbers.below(5));
        let secret = format!("sk-{step}");
        let mut stored = |model: &mut Model, user: &str, secret: &str| {
            let version = last.entry(user.to_owned()).or_default();
            *version += 1;
            model.insert(user.to_owned(), (*version, secret.to_owned()));
        };
        match numbers.below(12) {
            0..3 => {
                vault.put(&user, &bed.provider, &login(&secret), Asker::default()).await.unwrap();
                stored(&mut model, &user, &secret);
            }
            3..6 => {
                // A CLI renews what it has, or what it had some time ago.
                let has = model.get(&user).map_or(0, |(version, _)| *version);
                let version = has.saturating_sub(numbers.below(2));
                let loan =
                    Loan { user: user.clone(), execution: format!("e-{step}"), version, fingerprint: String::new() };
                let back = vault.write_back(&loan, &bed.provider, &login(&secret), true).await.unwrap();
                let is_current = has > 0 && version == has;
                assert_eq!(back == WrittenBack::Stored, is_current, "step {step}: {back:?}");
                if is_current {
                    stored(&mut model, &user, &secret);
                }
            }
            6 => assert_eq!(
                vault.remove(&user, "openai", Asker::default()).await.unwrap(),
                model.remove(&user).is_some()
            ),
            7 => {
                let count = vault.remove_user(&user, Asker::default()).await.unwrap();
                assert_eq!(count.unwrap_or_default(), u64::from(model.remove(&user).is_some()), "step {step}");
                // The key is gone, and with it everything that could be taken for something later.
                last.remove(&user);
            }
            8 => {
                if vault.rotate_user_key(&user, Asker::default()).await.unwrap().is_some() {
                    let content = model[&user].1.clone();
                    stored(&mut model, &user, &content);
                }
            }
            9 => {
                let before = std::fs::read_to_string(&bed.key).unwrap();
                let newest: String = before.lines().filter(|line| !line.starts_with('#')).take(1).collect();
                std::fs::write(&bed.key, format!("{}\n{newest}\n", STANDARD.encode(*crypto::new_key()))).unwrap();
                assert_eq!(vault.rotate_master_key().await.unwrap().users_under_other_master_keys, 0);
            }
            10 => {
                // Killed: nothing is written at the end.
                drop(vault);
                vault = bed.open().await;
            }
            _ => vault.write_uses().await,
        }
        let out = vault.checkout(&user, &bed.provider, SOON).await.unwrap();
        let out = out.map(|out| (out.version, text(&out)));
        let wanted =
            model.get(&user).map(|(version, secret)| (*version, login(secret).files["auth.json"].expose().to_owned()));
        assert_eq!(out, wanted, "step {step}");
    }
    let status = vault.status().await.unwrap();
    assert_eq!(status.credentials, model.len() as u64);
}
