//! One audit record, and which records are asked for.

use std::sync::{Mutex, PoisonError};

use thaw_client::types::{AuditAction, AuditRecord};

use super::rows::{now_ms, rfc3339};

/// Longest reason that is kept, bytes: texts of providers come into it.
const MAX_DETAIL: usize = 512;

/// The process that asked for a change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Asker {
    /// Its user, by uid.
    pub uid: Option<u32>,
    /// Its id.
    pub pid: Option<i32>,
}

/// A record as it is kept.
#[derive(Debug, Clone)]
pub struct Record {
    /// Sorts by time.
    pub id: String,
    /// Unix milliseconds.
    pub at_ms: i64,
    /// Whose.
    pub user: String,
    /// For which provider; none for everything of the user.
    pub provider: Option<String>,
    /// What happened.
    pub action: AuditAction,
    /// Which version.
    pub version: Option<u64>,
    /// Which execution.
    pub execution: Option<String>,
    /// Why.
    pub detail: Option<String>,
    /// Who asked.
    pub by: Asker,
}

impl Record {
    /// Something that happened to a credential just now.
    pub fn new(action: AuditAction, user: &str, provider: &str) -> Self {
        let provider = Some(provider.to_owned());
        let user = user.to_owned();
        let (at_ms, by) = (now_ms(), Asker::default());
        Self { id: next_id(), at_ms, user, provider, action, version: None, execution: None, detail: None, by }
    }

    /// The same to everything of a user.
    pub fn of_user(action: AuditAction, user: &str) -> Self {
        Self { provider: None, ..Self::new(action, user, "") }
    }

    /// With the version.
    pub fn version(self, version: u64) -> Self {
        Self { version: Some(version), ..self }
    }

    /// With the execution.
    pub fn execution(self, execution: &str) -> Self {
        Self { execution: Some(execution.to_owned()), ..self }
    }

    /// With a reason, on one line and of bounded length.
    pub fn detail(self, detail: impl Into<String>) -> Self {
        let detail: String = detail.into();
        let mut detail = detail.replace(char::is_control, " ");
        while detail.len() > MAX_DETAIL {
            detail.pop();
        }
        Self { detail: Some(detail), ..self }
    }

    /// With who asked for it.
    pub fn by(self, by: Asker) -> Self {
        Self { by, ..self }
    }

    /// As shown by the API.
    pub fn shown(self) -> AuditRecord {
        AuditRecord {
            id: self.id,
            at: rfc3339(self.at_ms),
            user: self.user,
            provider: self.provider,
            action: self.action,
            version: self.version,
            execution: self.execution,
            detail: self.detail,
            peer_uid: self.by.uid,
            peer_pid: self.by.pid,
        }
    }
}

/// An id that sorts behind all before it, also within a millisecond.
fn next_id() -> String {
    static IDS: Mutex<Option<ulid::Generator>> = Mutex::new(None);
    let mut ids = IDS.lock().unwrap_or_else(PoisonError::into_inner);
    // The random part overflows after 2^80 of them within a millisecond.
    let id = ids.get_or_insert_with(ulid::Generator::new).generate().unwrap_or_else(|_| ulid::Ulid::new());
    format!("a-{}", id.to_string().to_lowercase())
}

/// Which records are asked for.
#[derive(Debug, Clone)]
pub struct Query {
    /// Whose.
    pub user: String,
    /// For which provider; all when absent.
    pub provider: Option<String>,
    /// Most at once.
    pub limit: usize,
    /// Id of the last record of the page before.
    pub cursor: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_one_line_of_bounded_length() {
        let record = Record::new(AuditAction::Refused, "u1", "openai").detail(format!("a\nb\u{1b}{}", "é".repeat(400)));
        let detail = record.detail.unwrap();
        assert!(detail.starts_with("a b é") && detail.len() <= MAX_DETAIL && detail.len() > MAX_DETAIL - 2);
    }

    #[test]
    fn ids_sort_by_time_also_within_a_millisecond() {
        let ids: Vec<String> = (0..1000).map(|_| next_id()).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
    }
}
