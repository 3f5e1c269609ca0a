//! From what a user types to an execution: its id, the beginning of one, or the name that `run --name` gave.

use serde_json::Value;

use super::CtlError;
use super::format::plain;
use thaw_client::client::{Client, ClientError};

/// Characters of an id that tables show: `e-` and twelve more, of which ten tell the millisecond.
const SHORT: usize = 14;
/// Characters of a whole id: `e-` and a ULID.
const WHOLE: usize = 28;
/// Label that holds the name of an execution.
pub(super) const NAME_LABEL: &str = "name";
/// Most ids that an error names.
const NAMED: usize = 5;

/// The beginning of an id, as tables show it.
pub(super) fn short(id: &str) -> &str {
    id.get(..SHORT).unwrap_or(id)
}

/// All executions, newest first.
///
/// # Errors
/// Those of the client.
pub(super) async fn newest_first(client: &Client) -> Result<Vec<Value>, CtlError> {
    let mut items: Vec<Value> = client.list("/v1/executions").await?;
    items.sort_by_key(|item| std::cmp::Reverse(item["created_at_ms"].as_u64().unwrap_or_default()));
    Ok(items)
}

/// The ids of what was typed, in the same order.
///
/// # Errors
/// Those of the client; nothing or several executions fit.
pub(super) async fn resolve_all(client: &Client, typed: &[String]) -> Result<Vec<Result<String, CtlError>>, CtlError> {
    // Whole ids need no list, and the daemon says best what is wrong with them.
    if typed.iter().all(|text| is_whole(text)) {
        return Ok(typed.iter().map(|id| Ok(id.clone())).collect());
    }
    let items = newest_first(client).await?;
    Ok(typed.iter().map(|text| find(&items, text)).collect())
}

/// The same for one.
///
/// # Errors
/// Those of the client; nothing or several executions fit.
pub(super) async fn resolve(client: &Client, typed: &str) -> Result<String, CtlError> {
    if is_whole(typed) {
        return Ok(typed.to_owned());
    }
    find(&newest_first(client).await?, typed)
}

fn is_whole(text: &str) -> bool {
    text.len() == WHOLE && text.starts_with("e-")
}

fn find(items: &[Value], typed: &str) -> Result<String, CtlError> {
    let ids = |fits: &dyn Fn(&Value, &str) -> bool| -> Vec<String> {
        let all = items.iter().map(|item| (item, plain(item.get("id"))));
        all.filter(|(item, id)| fits(item, id)).map(|(_, id)| id).collect()
    };
    let exact = ids(&|_, id| id == typed);
    let named = ids(&|item, _| item["labels"][NAME_LABEL] == typed);
    // `e-` may be left out.
    let begins = ids(&|_, id| id.starts_with(typed) || id.strip_prefix("e-").is_some_and(|id| id.starts_with(typed)));
    let found = [exact, named, begins].into_iter().find(|found| !found.is_empty()).unwrap_or_default();
    match &found[..] {
        [] if !is_id(typed) => Err(ClientError::BadId(typed.to_owned()).into()),
        [] => Err(CtlError::Usage(format!(
            "there is no execution {typed:?}, and none whose id begins so; `thawctl ps --all` lists them"
        ))),
        [id] => Ok(id.clone()),
        several => {
            let more = if several.len() > NAMED { ", …" } else { "" };
            let ids = several.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
            Err(CtlError::Usage(format!(
                "{typed:?} fits {} executions: {ids}{more}; give more of the id",
                several.len()
            )))
        }
    }
}

fn is_id(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_id_a_name_or_a_unique_beginning_will_do() {
        let items = [
            json!({ "id": "e-01abc", "labels": { "name": "mine" } }),
            json!({ "id": "e-01abd" }),
            json!({ "id": "e-01ab", "labels": { "name": "twice" } }),
            json!({ "id": "e-02", "labels": { "name": "twice" } }),
        ];
        let found = |typed: &str| find(&items, typed).map_err(|error| error.to_string());
        assert_eq!(found("e-01abc").unwrap(), "e-01abc");
        assert_eq!(found("e-01ab").unwrap(), "e-01ab", "a whole id comes before the beginnings of others");
        assert_eq!(found("01abd").unwrap(), "e-01abd");
        assert_eq!(found("mine").unwrap(), "e-01abc");
        assert!(found("e-01a").unwrap_err().contains("fits 3 executions: e-01abc, e-01abd, e-01ab"));
        assert!(found("twice").unwrap_err().contains("e-01ab, e-02"));
        assert!(found("e-9").unwrap_err().contains("there is no execution \"e-9\""));
        assert!(found("../x").unwrap_err().contains("is no execution id"));
    }
}
