//! The API's description, `/openapi.json`; `docs/openapi.json` is the committed copy that a test compares with.

mod examples;
mod finish;

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;

use self::finish::Answers;
use super::{
    about, credential_check, credentials, egress, executions, feed, files, image_pull, image_use, image_verbs, lists,
    logins, metrics, output, pools, sandbox_archive, sandbox_files, sandboxes, status, stdin,
};
use thaw_client::types;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "thawd",
        description = "Container supervisor: executions in frozen warm containers.\n\nJSON is snake_case; times are RFC 3339, durations integers with their unit in the name. An unknown field or query parameter is refused. Every error is an RFC 9457 problem with a stable `code`. A request may bring an `X-Request-Id` of 1 to 128 characters, which its answer repeats.\n\nClients must ignore fields, events and codes that they do not know: docs/compatibility.md says what may change in `/v1`."
    ),
    servers((url = "http://localhost", description = "The daemon's Unix socket, /run/thawd/thawd.sock; the host is a formality")),
    tags(
        (name = "executions", description = "Runs of a command or of a provider's CLI, each in a container of its own"),
        (name = "sandboxes", description = "Containers of users that live on between commands"),
        (name = "pools", description = "Warm containers"),
        (name = "containers", description = "Containers that exist"),
        (name = "providers", description = "What can be asked"),
        (name = "images", description = "What containers are made from"),
        (name = "egress", description = "Addresses with which users go out"),
        (name = "vault", description = "Credentials of users that the daemon keeps"),
        (name = "daemon", description = "The daemon itself"),
    ),
    paths(
        executions::create,
        executions::list,
        executions::get,
        executions::events,
        executions::cancel,
        executions::delete,
        executions::stats,
        stdin::send,
        output::stdout,
        output::stderr,
        files::files,
        files::archive,
        sandboxes::create,
        sandboxes::list,
        sandboxes::get,
        sandboxes::change,
        sandboxes::delete,
        sandboxes::freeze,
        sandboxes::stop,
        sandboxes::wake,
        sandboxes::named,
        sandboxes::put,
        sandbox_files::read,
        sandbox_files::put,
        sandbox_files::remove,
        sandbox_files::list,
        sandbox_files::stat,
        sandbox_files::make_directory,
        sandbox_files::rename,
        sandbox_archive::read,
        sandbox_archive::put,
        pools::list,
        pools::get,
        pools::change,
        about::version,
        feed::stream,
        lists::containers,
        lists::providers,
        lists::images,
        logins::create,
        logins::list,
        logins::get,
        logins::stream,
        logins::callback,
        logins::code,
        logins::cancel,
        credentials::list,
        credentials::remove_all,
        credentials::get,
        credentials::put,
        credentials::remove,
        credential_check::check,
        credentials::audit,
        credentials::rotate_user_key,
        credentials::status,
        credentials::rotate_master_key,
        egress::identities,
        egress::identity,
        egress::of_user,
        egress::allocate,
        egress::release,
        image_use::use_image,
        image_verbs::delete,
        image_verbs::import,
        image_pull::pull,
        image_verbs::prune,
        image_verbs::verify,
        image_verbs::jobs,
        image_verbs::job,
        status::healthz,
        status::readyz,
        metrics::metrics,
    ),
    components(schemas(types::Event, types::DaemonEvent)),
    modifiers(&Answers)
)]
struct Document;

/// The description, as far as its types say it.
pub fn described() -> OpenApi {
    Document::openapi()
}

/// The description as pretty-printed JSON with a final newline.
///
/// # Errors
/// None in practice: the document is plain data.
pub fn document() -> Result<String, serde_json::Error> {
    let mut document = serde_json::to_value(described())?;
    finish::constrain(&mut document);
    examples::add(&mut document);
    serde_json::to_string_pretty(&document).map(|json| json + "\n")
}

/// `GET /openapi.json`
pub async fn serve() -> Result<impl IntoResponse, super::ApiError> {
    let json = document().map_err(|error| {
        super::ApiError::new(axum::http::StatusCode::INTERNAL_SERVER_ERROR, "openapi", error.to_string())
    })?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    #[test]
    fn the_committed_description_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
        let current = super::document().unwrap();
        if std::env::var_os("THAWD_UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &current).unwrap();
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            committed == current,
            "run: THAWD_UPDATE_GOLDEN=1 cargo test --lib openapi, and review docs/openapi.json"
        );
    }

    fn operations() -> Vec<(String, Value)> {
        let document: Value = serde_json::from_str(&super::document().unwrap()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let operations = paths.iter().flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().iter();
            methods.map(move |(method, operation)| (format!("{method} {path}"), operation.clone()))
        });
        operations.collect()
    }

    #[test]
    fn every_operation_has_a_name_of_its_own_and_a_summary() {
        let mut names = BTreeSet::new();
        for (what, operation) in operations() {
            let name = operation["operationId"].as_str().unwrap();
            let verbs = ["get", "list", "create", "delete", "change", "cancel", "read", "stream", "put", "check"];
            let verbs = [
                &verbs[..],
                &[
                    "build", "import", "prune", "pull", "verify", "replace", "login", "rotate", "freeze", "stop",
                    "wake", "move", "send",
                ],
            ]
            .concat();
            let verb = verbs.iter().find_map(|verb| name.strip_prefix(verb));
            let is_camel = verb.is_some_and(|noun| noun.starts_with(|first: char| first.is_ascii_uppercase()));
            assert!(is_camel, "{what}: operation_id {name:?} must be a verb and a noun, as in listExecutions");
            assert!(names.insert(name.to_owned()), "{name} twice");
            let described = |value: &Value| value.as_str().is_some_and(|text| !text.is_empty());
            assert!(described(&operation["summary"]), "{what}");
            for (status, response) in operation["responses"].as_object().unwrap() {
                assert!(described(&response["description"]), "{what}: {status}");
            }
        }
        assert!(names.len() > 15, "{names:?}");
    }

    #[test]
    fn every_json_that_goes_in_or_comes_out_has_an_example() {
        let mut missing = Vec::new();
        for (what, operation) in operations() {
            let id = operation["operationId"].as_str().unwrap();
            let has = |content: &Value| !content["application/json"]["examples"].is_null();
            let body = &operation["requestBody"]["content"];
            if !body["application/json"].is_null() && !has(body) {
                missing.push(format!("{what}: the request of {id}"));
            }
            for (status, response) in operation["responses"].as_object().unwrap() {
                let content = &response["content"];
                if !content["application/json"].is_null() && !has(content) {
                    missing.push(format!("{what}: answer {status} of {id}"));
                }
            }
        }
        assert!(missing.is_empty(), "src/api/openapi/examples.rs has none for {missing:#?}");
    }

    #[test]
    fn names_of_users_follow_one_rule() {
        let document: Value = serde_json::from_str(&super::document().unwrap()).unwrap();
        let pattern = thaw_client::types::USER_PATTERN;
        assert_eq!(document["components"]["schemas"]["ExecutionRequest"]["properties"]["user"]["pattern"], pattern);
        let parameters = document["paths"]["/v1/executions"]["get"]["parameters"].as_array().unwrap();
        let user = parameters.iter().find(|parameter| parameter["name"] == "user").unwrap();
        assert_eq!(user["schema"]["pattern"], pattern);
    }
}
