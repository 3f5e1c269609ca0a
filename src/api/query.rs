//! Query parameters that a path does not have: refused everywhere, since who sends one expects it to do something.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use axum::extract::{MatchedPath, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::ParameterIn;

use super::filter::LABEL;
use super::{ApiError, openapi};

/// The query parameters of each path, as the API's description has them.
static KNOWN: LazyLock<BTreeMap<String, BTreeSet<String>>> = LazyLock::new(|| {
    let mut known = BTreeMap::<String, BTreeSet<String>>::new();
    for (path, item) in openapi::described().paths.paths {
        let names = known.entry(path).or_default();
        let operations = [item.get, item.put, item.post, item.delete, item.patch];
        for parameter in operations.into_iter().flatten().flat_map(|one| one.parameters.unwrap_or_default()) {
            if parameter.parameter_in == ParameterIn::Query {
                // Each of its properties is a parameter of its own.
                let is_labels = parameter.name == "labels";
                names.insert(if is_labels { format!("{LABEL}NAME") } else { parameter.name });
            }
        }
    }
    known
});

/// Refuses a request with a parameter that its path does not have, or with one twice.
pub async fn check(request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let query = request.uri().query().unwrap_or_default();
    // What matches no path is told so.
    match path.map_or(Ok(()), |path| verdict(path, query)) {
        Ok(()) => next.run(request).await,
        Err(detail) => ApiError::new(StatusCode::BAD_REQUEST, "invalid_query", detail).into_response(),
    }
}

/// The one path whose query is not ours: it is the provider's, and is passed on as it is.
const FREE: &str = "/v1/logins/{id}/callback";

fn verdict(path: &str, query: &str) -> Result<(), String> {
    if path == FREE {
        return Ok(());
    }
    let none = BTreeSet::new();
    let known = KNOWN.get(path).unwrap_or(&none);
    let mut seen = BTreeSet::new();
    for (name, _) in form_urlencoded::parse(query.as_bytes()) {
        let is_label = name.strip_prefix(LABEL).is_some_and(|name| !name.is_empty());
        let pattern = if is_label { "label.NAME" } else { &*name };
        if !known.contains(pattern) {
            let known = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            let takes = if known.is_empty() { "no query parameters".to_owned() } else { format!("only {known}") };
            let shown: String = name.chars().take(64).collect();
            return Err(format!("there is no query parameter `{shown}` here: this path takes {takes}"));
        }
        if !seen.insert(name.clone()) {
            return Err(format!("the query parameter `{name}` is given more than once"));
        }
    }
    Ok(())
}
