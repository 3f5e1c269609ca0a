//! Lists in pages, and what is asked of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ExecutionState;
use crate::time::Timestamp;

/// A part of a list: `{"items": […], "next_cursor": "…"}`.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Page<T> {
    /// The resources.
    pub items: Vec<T>,
    /// What to ask for as `cursor` to get the next part; absent at the end of the list.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Which executions to list: those that fit everything that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecutionFilter {
    /// Whose.
    pub user: Option<String>,
    /// In which state.
    pub state: Option<ExecutionState>,
    /// Of which provider; `image` for commands in an image.
    pub provider: Option<String>,
    /// With these labels.
    pub labels: BTreeMap<String, String>,
    /// Created then or later.
    pub since: Option<Timestamp>,
    /// Most to be listed at once; all when absent.
    pub limit: Option<usize>,
    /// Where the page before this one ended.
    pub cursor: Option<String>,
}

impl ExecutionFilter {
    /// As the query of a request, by name.
    pub fn query(&self) -> Vec<(String, String)> {
        let state = self.state.and_then(|state| serde_json::to_value(state).ok()?.as_str().map(str::to_owned));
        let single = [
            ("user", self.user.clone()),
            ("state", state),
            ("provider", self.provider.clone()),
            ("since", self.since.map(|since| since.to_string())),
            ("limit", self.limit.map(|limit| limit.to_string())),
            ("cursor", self.cursor.clone()),
        ];
        let single = single.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        single.chain(self.labels.iter().map(|(name, value)| (format!("label.{name}"), value.clone()))).collect()
    }
}
