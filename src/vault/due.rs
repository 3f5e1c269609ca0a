//! When a login has to be renewed, and pauses after what failed.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::login_file::ASSUMED_LIFETIME_MS;
use super::rows::Credential;

/// Time that an access token must outlast the execution that gets it.
const MARGIN: Duration = Duration::from_secs(30);

/// First and longest pause after a renewal that failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Failures that are remembered: more than that, and the oldest are forgotten.
const MAX_FAILURES: usize = 10_000;

/// Whether an access token lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// For long enough.
    Fresh,
    /// For this execution; it is time for a new one.
    Soon,
    /// Not for as long as the execution may take.
    Now,
}

/// How long an access token has left, milliseconds; negative when it is over.
pub fn left_ms(row: &Credential, now_ms: i64) -> i64 {
    end_ms(row).saturating_sub(now_ms)
}

fn end_ms(row: &Credential) -> i64 {
    row.facts.expires_at_ms.unwrap_or_else(|| row.updated_at_ms.saturating_add(ASSUMED_LIFETIME_MS))
}

/// Whether the login has to be renewed for an execution that may take `lasting`. Of a token that lives for a short time,
/// half of that is enough: no renewal would give more for long.
pub fn due(row: &Credential, now_ms: i64, lasting: Duration, ahead: Duration) -> Due {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    let span = end_ms(row).saturating_sub(row.updated_at_ms).max(0);
    let must = ms(lasting.saturating_add(MARGIN)).min(span / 2);
    let soon = must.saturating_add(ms(ahead)).min(span / 4 * 3);
    match left_ms(row, now_ms) {
        left if left <= must => Due::Now,
        left if left <= soon => Due::Soon,
        _ => Due::Fresh,
    }
}

#[derive(Debug, Clone)]
struct Failure {
    until: Instant,
    pause: Duration,
    reason: String,
}

/// Renewals that failed, by user and provider.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<(String, String), Failure>>);

impl Failures {
    /// Why it is not tried again yet.
    pub fn pausing(&self, user: &str, provider: &str) -> Option<String> {
        let failures = self.lock();
        let failure = failures.get(&(user.to_owned(), provider.to_owned()))?;
        (failure.until > Instant::now()).then(|| failure.reason.clone())
    }

    /// It has failed once more.
    pub fn note(&self, user: &str, provider: &str, reason: &str) {
        let mut failures = self.lock();
        if failures.len() >= MAX_FAILURES {
            let oldest = failures.iter().min_by_key(|(_, failure)| failure.until).map(|(key, _)| key.clone());
            oldest.and_then(|key| failures.remove(&key));
        }
        let key = (user.to_owned(), provider.to_owned());
        let pause = failures.get(&key).map_or(FIRST_PAUSE, |before| (before.pause * 2).min(LONGEST_PAUSE));
        failures.insert(key, Failure { until: Instant::now() + pause, pause, reason: reason.to_owned() });
    }

    /// It has succeeded, or there is another login.
    pub fn forget(&self, user: &str, provider: &str) {
        self.lock().remove(&(user.to_owned(), provider.to_owned()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Failure>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use thaw_client::types::{CredentialKind, Credentials};

    use super::*;
    use crate::vault::names::Names;
    use crate::vault::rows::Facts;

    fn row(updated_at_ms: i64, expires_at_ms: Option<i64>) -> Credential {
        Credential {
            provider: "p".to_owned(),
            version: 1,
            key_id: String::new(),
            names: Names::of(&Credentials::default()),
            sealed: Vec::new(),
            facts: Facts {
                kind: CredentialKind::Login,
                account: None,
                fingerprint: String::new(),
                expires_at_ms,
                renewable: true,
            },
            refused: None,
            renewed_by: None,
            created_at_ms: 0,
            updated_at_ms,
            used_at_ms: None,
            refreshed_at_ms: None,
        }
    }

    #[test]
    fn a_token_lasts_for_the_execution_or_half_of_its_life() {
        let (minute, hour) = (60_000, 3_600_000);
        let ahead = Duration::from_secs(300);
        let of = |row: &Credential, now_ms, lasting| due(row, now_ms, Duration::from_secs(lasting), ahead);
        // Of eight hours.
        let long = row(0, Some(8 * hour));
        assert_eq!(of(&long, 7 * hour, 30), Due::Fresh);
        assert_eq!(of(&long, 8 * hour - 5 * minute, 30), Due::Soon);
        assert_eq!(of(&long, 8 * hour - minute, 30), Due::Now);
        assert_eq!(of(&long, 7 * hour, 3600), Due::Now, "it would be over before its execution");
        // Of two seconds.
        let short = row(0, Some(2000));
        assert_eq!(of(&short, 100, 30), Due::Fresh);
        assert_eq!(of(&short, 600, 30), Due::Soon);
        assert_eq!(of(&short, 1000, 30), Due::Now);
        assert_eq!(of(&row(5000, Some(4000)), 5000, 30), Due::Now, "stored when it was over");
        // One that does not say.
        assert_eq!(of(&row(0, None), 10 * minute, 30), Due::Fresh);
        assert_eq!(of(&row(0, None), hour, 30), Due::Now);
        assert_eq!(left_ms(&short, 2500), -500);
    }

    #[test]
    fn pauses_grow_and_failures_are_bounded() {
        let failures = Failures::default();
        assert_eq!(failures.pausing("u", "p"), None);
        for _ in 0..10 {
            failures.note("u", "p", "why");
        }
        assert_eq!(failures.pausing("u", "p").as_deref(), Some("why"));
        assert_eq!(failures.lock()[&("u".to_owned(), "p".to_owned())].pause, LONGEST_PAUSE);
        failures.forget("u", "p");
        assert_eq!(failures.pausing("u", "p"), None);
        (0..MAX_FAILURES + 5).for_each(|user| failures.note(&user.to_string(), "p", "why"));
        assert_eq!(failures.lock().len(), MAX_FAILURES);
    }
}
