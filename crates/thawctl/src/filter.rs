//! `--filter KEY=VALUE`, as docker has it: values of one key are alternatives, different keys must all fit.

use std::collections::BTreeMap;

use serde_json::Value;

use super::CtlError;
use super::fields::Fields;
use super::format::plain;

/// What items of a list have to fit.
#[derive(Debug, clap::Args)]
pub(super) struct Filters {
    /// Show only what fits, such as state=running, user=alice or label=K=V; may be repeated
    #[arg(long, short = 'f', value_name = "KEY=VALUE", value_parser = pair)]
    filter: Vec<(String, String)>,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !value.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must have the form KEY=VALUE".to_owned()),
    }
}

impl Filters {
    /// Whether one of these fields is asked for.
    pub(super) fn names(&self, fields: &[&str]) -> bool {
        self.filter.iter().any(|(key, _)| fields.contains(&word(key)))
    }

    /// Keeps what fits.
    ///
    /// # Errors
    /// A key that no item can have.
    pub(super) fn apply(&self, items: &mut Vec<Value>, fields: &Fields) -> Result<(), CtlError> {
        let mut by_key: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (key, value) in &self.filter {
            by_key.entry(word(key)).or_default().push(value);
        }
        for key in by_key.keys().filter(|key| **key != "label") {
            fields.check(&path(key), items).map_err(|problem| CtlError::Usage(format!("--filter: {problem}")))?;
        }
        items.retain(|item| {
            by_key.iter().all(|(key, values)| match *key {
                // Of labels all have to fit.
                "label" => values.iter().all(|wanted| has_label(item, wanted)),
                "id" => values.iter().any(|wanted| plain(item.get("id")).starts_with(*wanted)),
                key => {
                    let found = plain(Fields::find(item, &path(key)));
                    values.iter().any(|wanted| found == *wanted)
                }
            })
        });
        Ok(())
    }
}

/// docker's word for one of ours.
fn word(key: &str) -> &str {
    match key {
        "status" => "state",
        "exited" => "exit.code",
        "reason" => "exit.reason",
        other => other,
    }
}

fn path(key: &str) -> Vec<String> {
    key.split('.').map(str::to_owned).collect()
}

/// Whether an item has the label `K`, or `K` with the value `V` for `K=V`.
pub(super) fn has_label(item: &Value, wanted: &str) -> bool {
    let labels = item.get("labels").and_then(Value::as_object);
    match wanted.split_once('=') {
        Some((name, value)) => labels.and_then(|labels| labels.get(name)).is_some_and(|found| found == value),
        None => labels.is_some_and(|labels| labels.contains_key(wanted)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use thaw_client::types::Execution;

    fn kept(filters: &[&str]) -> Result<Vec<String>, CtlError> {
        let mut items = vec![
            json!({ "id": "e-1", "state": "running", "user": "a", "labels": { "k": "v", "l": "x" } }),
            json!({ "id": "e-2", "state": "exited", "user": "a", "exit": { "code": 3, "reason": "exited" } }),
            json!({ "id": "f-3", "state": "queued", "user": "b", "labels": { "k": "w" } }),
        ];
        let filter = filters.iter().map(|text| pair(text).map_err(CtlError::Usage)).collect::<Result<_, _>>()?;
        Filters { filter }.apply(&mut items, &Fields::of::<Execution>())?;
        Ok(items.iter().map(|item| plain(item.get("id"))).collect())
    }

    #[test]
    fn values_of_a_key_are_alternatives_and_keys_must_all_fit() {
        assert_eq!(kept(&["status=running", "status=queued"]).unwrap(), ["e-1", "f-3"]);
        assert_eq!(kept(&["state=running", "user=b"]).unwrap(), Vec::<String>::new());
        assert_eq!(kept(&["label=k"]).unwrap(), ["e-1", "f-3"]);
        assert_eq!(kept(&["label=k=v", "label=l"]).unwrap(), ["e-1"]);
        assert_eq!(kept(&["exited=3"]).unwrap(), ["e-2"]);
        assert_eq!(kept(&["id=e-"]).unwrap(), ["e-1", "e-2"]);
    }

    #[test]
    fn a_key_that_no_execution_has_is_refused() {
        let error = kept(&["ancestor=x"]).unwrap_err().to_string();
        assert!(error.contains("`.ancestor`") && error.contains(".provider"), "{error}");
        assert!(kept(&["running"]).is_err());
    }
}
