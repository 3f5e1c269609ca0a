//! The query of a list of executions, and of a wait.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::StatusCode;

use super::ApiError;
use super::lookup::is_id;
use thaw_client::types::{ExecutionFilter, ExecutionState, SandboxFilter, SandboxState, USER_RULE, is_user};

/// How the name of a parameter begins that asks for a label.
pub const LABEL: &str = "label.";

/// Most that a list gives at once when `limit` is asked for.
pub const MAX_PAGE: usize = 1000;

/// Longest name of a provider, characters: that of its file's.
const MAX_PROVIDER: usize = 32;

/// Longest `wait`.
pub const MAX_WAIT: Duration = Duration::from_secs(300);

/// The states, by their names in the API.
const STATES: [(&str, ExecutionState); 4] = [
    ("pending", ExecutionState::Pending),
    ("queued", ExecutionState::Queued),
    ("running", ExecutionState::Running),
    ("exited", ExecutionState::Exited),
];

/// Query parameters of a list of executions, as they are described.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by utoipa only; `parse` takes each by itself, for the sake of its errors")]
pub struct Parameters {
    /// Only this user's.
    #[param(pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$", max_length = 128)]
    user: Option<String>,
    /// Only those in this state.
    state: Option<ExecutionState>,
    /// Only this provider's; `image` for commands in an image.
    #[param(pattern = "^[a-z0-9-]+$", max_length = 32)]
    provider: Option<String>,
    /// Only those with these labels: each property is a parameter of its own, named `label.` and the label's name
    /// (`label.team=red`).
    #[param(style = Form, explode, value_type = Option<BTreeMap<String, String>>)]
    labels: Option<BTreeMap<String, String>>,
    /// Only those that were created then or later (RFC 3339).
    #[param(format = DateTime, value_type = Option<String>)]
    since: Option<String>,
    /// Most to be listed; all of them when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before this one.
    #[param(pattern = "^[a-z0-9-]+$", max_length = 64)]
    cursor: Option<String>,
}

/// Query parameters of a list of sandboxes, as they are described.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by utoipa only; `parse_sandboxes` takes each by itself, for the sake of its errors")]
pub struct SandboxParameters {
    /// Only this user's.
    #[param(pattern = r"^[A-Za-z0-9_@|+:/=-]+(\.[A-Za-z0-9_@|+:/=-]+)*$", max_length = 128)]
    user: Option<String>,
    /// Only those in this state.
    state: Option<SandboxState>,
    /// Only those with these labels: each property is a parameter of its own, named `label.` and the label's name
    /// (`label.team=red`).
    #[param(style = Form, explode, value_type = Option<BTreeMap<String, String>>)]
    labels: Option<BTreeMap<String, String>>,
    /// Most to be listed; all of them when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before this one.
    #[param(pattern = "^[a-z0-9-]+$", max_length = 64)]
    cursor: Option<String>,
}

fn wrong(detail: String) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", detail)
}

/// A name of a user that is asked for.
///
/// # Errors
/// 400 `invalid_query`.
pub fn user(value: &str) -> Result<String, ApiError> {
    if is_user(value) { Ok(value.to_owned()) } else { Err(wrong(format!("`user` {USER_RULE}"))) }
}

/// A name of a provider that is asked for.
///
/// # Errors
/// 400 `invalid_query`.
pub fn provider(value: &str) -> Result<String, ApiError> {
    if is_id(value) && value.len() <= MAX_PROVIDER {
        return Ok(value.to_owned());
    }
    Err(wrong("`provider` must be the name of a provider, or `image`".to_owned()))
}

fn limit(value: &str) -> Result<usize, ApiError> {
    let limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
    limit.ok_or_else(|| wrong(format!("`limit` must be from 1 to {MAX_PAGE}")))
}

fn cursor(value: String) -> Result<String, ApiError> {
    if is_id(&value) {
        Ok(value)
    } else {
        Err(wrong("`cursor` must be the `next_cursor` of the page before".to_owned()))
    }
}

/// Reads the query of a list of sandboxes. That there is no other parameter, and none twice, was checked.
///
/// # Errors
/// 400 `invalid_query`.
pub fn parse_sandboxes(query: &str) -> Result<SandboxFilter, ApiError> {
    let mut filter = SandboxFilter::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "user" => filter.user = Some(user(&value)?),
            "state" => {
                let state = SandboxState::ALL.into_iter().find(|state| state.name() == value);
                let known = || SandboxState::ALL.map(SandboxState::name).join(", ");
                filter.state = Some(state.ok_or_else(|| wrong(format!("`state` must be one of {}", known())))?);
            }
            "limit" => filter.limit = Some(limit(&value)?),
            "cursor" => filter.cursor = Some(cursor(value.into_owned())?),
            label => {
                let label = label.strip_prefix(LABEL).unwrap_or_default().to_owned();
                filter.labels.insert(label, value.into_owned());
            }
        }
    }
    Ok(filter)
}

/// Reads the query of a list of executions. That there is no other parameter, and none twice, was checked.
///
/// # Errors
/// 400 `invalid_query`.
pub fn parse(query: &str) -> Result<ExecutionFilter, ApiError> {
    let mut filter = ExecutionFilter::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "user" => filter.user = Some(user(&value)?),
            "state" => {
                let state = STATES.iter().find(|(name, _)| *name == value);
                let known = || STATES.map(|(name, _)| name).join(", ");
                filter.state = Some(state.ok_or_else(|| wrong(format!("`state` must be one of {}", known())))?.1);
            }
            "provider" => filter.provider = Some(provider(&value)?),
            "since" => {
                let hint = "`since` is no time (a `+` in it has to be written %2B)";
                filter.since = Some(value.parse().map_err(|error| wrong(format!("{hint}: {error}")))?);
            }
            "limit" => filter.limit = Some(limit(&value)?),
            "cursor" => filter.cursor = Some(cursor(value.into_owned())?),
            label => {
                let label = label.strip_prefix(LABEL).unwrap_or_default().to_owned();
                filter.labels.insert(label, value.into_owned());
            }
        }
    }
    Ok(filter)
}

/// Most audit records that are given at once when no `limit` is asked for.
const AUDIT_PAGE: usize = 100;

/// Query parameters of a list of audit records, as they are described.
#[derive(Debug, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "read by utoipa only; `audit` takes each by itself, for the sake of its errors")]
pub struct AuditParameters {
    /// Only those about this provider.
    #[param(pattern = "^[a-z0-9-]+$", max_length = 32)]
    provider: Option<String>,
    /// Most to be listed; 100 when absent.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<usize>,
    /// The `next_cursor` of the page before this one.
    #[param(pattern = "^[a-z0-9-]+$", max_length = 64)]
    cursor: Option<String>,
}

/// Which audit records are asked for.
#[derive(Debug)]
pub struct Audit {
    /// About this provider.
    pub provider: Option<String>,
    /// At most so many.
    pub limit: usize,
    /// Behind this one.
    pub cursor: Option<String>,
}

/// Reads the query of a list of audit records. That there is no other parameter, and none twice, was checked.
///
/// # Errors
/// 400 `invalid_query`.
pub fn audit(query: &str) -> Result<Audit, ApiError> {
    let filter = parse(query)?;
    Ok(Audit { provider: filter.provider, limit: filter.limit.unwrap_or(AUDIT_PAGE), cursor: filter.cursor })
}

/// How long a request waits: `30s`, `500ms`, `2m`; a number alone is seconds.
///
/// # Errors
/// 400 `invalid_query`.
pub fn wait(query: &str) -> Result<Option<Duration>, ApiError> {
    let Some((_, value)) = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "wait") else {
        return Ok(None);
    };
    let digits = value.find(|c: char| !c.is_ascii_digit()).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let factor = match unit {
        "ms" => Some(1),
        "s" | "" => Some(1000),
        "m" => Some(60_000),
        _ => None,
    };
    let wait = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    match wait.map(Duration::from_millis) {
        Some(wait) if wait <= MAX_WAIT => Ok(Some(wait)),
        _ => {
            let most = MAX_WAIT.as_secs();
            Err(wrong(format!("`wait` must be a time of up to {most} s, written as 30s, 500ms or 2m")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_parameter_is_read_and_a_wrong_one_is_named() {
        let filter = parse(
            "user=auth0%7C5f&state=running&provider=openai&label.team=red&label.a+b=&since=2026-11-30T02:15:00Z&limit=7&cursor=e-1",
        )
        .unwrap();
        assert_eq!((filter.user.as_deref(), filter.state), (Some("auth0|5f"), Some(ExecutionState::Running)));
        assert_eq!((filter.provider.as_deref(), filter.limit), (Some("openai"), Some(7)));
        assert_eq!(filter.labels, [("a b".to_owned(), String::new()), ("team".to_owned(), "red".to_owned())].into());
        assert_eq!(filter.since.map(|since| since.to_string()).as_deref(), Some("2026-11-30T02:15:00.000Z"));
        // What the client writes is what is read.
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(filter.query()).finish();
        assert_eq!(parse(&query).unwrap(), filter);
        for (bad, about) in [
            ("state=ended", "`state`"),
            ("since=yesterday", "`since`"),
            ("since=2026-11-30T02:15:00+01:00", "%2B"),
            ("user=", "`user`"),
            ("user=a%20b", "`user`"),
            ("provider=", "`provider`"),
            ("limit=0", "`limit`"),
            ("limit=1001", "from 1 to 1000"),
            ("limit=", "`limit`"),
            ("cursor=", "`cursor`"),
            ("cursor=../x", "`cursor`"),
        ] {
            let problem = parse(bad).unwrap_err().problem();
            assert_eq!((problem.status, problem.code.as_str()), (400, "invalid_query"), "{bad}");
            assert!(problem.detail.contains(about), "{bad}: {}", problem.detail);
        }
    }

    #[test]
    fn sandboxes_are_asked_for_in_the_same_way() {
        let filter = parse_sandboxes("user=u&state=frozen&label.team=red&limit=7&cursor=s-1").unwrap();
        assert_eq!((filter.user.as_deref(), filter.state), (Some("u"), Some(SandboxState::Frozen)));
        let query = form_urlencoded::Serializer::new(String::new()).extend_pairs(filter.query()).finish();
        assert_eq!(parse_sandboxes(&query).unwrap(), filter);
        for (bad, about) in [
            ("state=running", "creating, active, frozen, stopped, broken, gone"),
            ("limit=0", "`limit`"),
            ("user=", "`user`"),
        ] {
            let problem = parse_sandboxes(bad).unwrap_err().problem();
            assert_eq!(problem.code, "invalid_query", "{bad}");
            assert!(problem.detail.contains(about), "{bad}: {}", problem.detail);
        }
    }

    #[test]
    fn a_wait_has_a_unit_and_an_end() {
        for (query, ms) in
            [("wait=30s", 30_000), ("wait=30", 30_000), ("wait=500ms", 500), ("wait=5m", 300_000), ("wait=0", 0)]
        {
            assert_eq!(wait(query).unwrap(), Some(Duration::from_millis(ms)), "{query}");
        }
        assert_eq!(wait("").unwrap(), None);
        for bad in
            ["wait=", "wait=s", "wait=-1", "wait=1h", "wait=301s", "wait=1.5s", "wait=99999999999999999999", "wait=6m"]
        {
            assert_eq!(wait(bad).unwrap_err().problem().code, "invalid_query", "{bad}");
        }
    }
}
