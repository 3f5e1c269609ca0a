//! What the types of the API do not say about it: answers that every path can give, and rules between fields.

use serde_json::{Map, Value, json};
use utoipa::Modify;
use utoipa::openapi::{Content, OpenApi, Ref, RefOr, ResponseBuilder};

use super::super::problem;

/// What an answer means that says no more about itself.
const MEANINGS: [(&str, &str); 15] = [
    ("200", "as asked"),
    ("201", "created"),
    ("202", "accepted; it is being done"),
    ("206", "a part of it"),
    ("400", "the request is wrong; see `code`"),
    ("403", "the user at the other end of the socket may not use this API (`forbidden_uid`)"),
    ("404", "there is nothing of this name (any more)"),
    ("408", "the body did not arrive in time"),
    ("409", "not in this state; see `code`"),
    ("412", "it is not as the request says"),
    ("413", "the body is too large"),
    ("500", "a defect, or for the operator; see `code`"),
    ("503", "try again after `Retry-After`; see `code`"),
    ("504", "it took too long"),
    ("507", "there is no room"),
];

/// What every path can answer.
const ALWAYS: [&str; 3] = ["400", "403", "503"];

/// Text without control characters.
const PRINTABLE: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f]*$";

/// Completes the answers: those that every path can give, their meanings, and the media type of errors.
pub struct Answers;

impl Modify for Answers {
    fn modify(&self, document: &mut OpenApi) {
        for path in document.paths.paths.values_mut() {
            let operations = [&mut path.get, &mut path.put, &mut path.post, &mut path.delete, &mut path.patch];
            for operation in operations.into_iter().flatten() {
                let responses = &mut operation.responses.responses;
                for status in ALWAYS {
                    let problem = || {
                        let content = Content::new(Some(Ref::from_schema_name("Problem")));
                        let response = ResponseBuilder::new().content(problem::MEDIA_TYPE, content);
                        RefOr::T(response.build())
                    };
                    responses.entry(status.to_owned()).or_insert_with(problem);
                }
                for (status, response) in responses {
                    let RefOr::T(response) = response else { continue };
                    if status.starts_with(['4', '5'])
                        && let Some(content) = response.content.shift_remove("application/json")
                    {
                        response.content.insert(problem::MEDIA_TYPE.to_owned(), content);
                    }
                    if response.description.is_empty() {
                        let meaning = MEANINGS.iter().find(|(of, _)| of == status);
                        response.description = meaning.map_or("", |(_, meaning)| meaning).to_owned();
                    }
                }
            }
        }
    }
}

/// A schema that fits what has all of these fields; null is as good as absent.
fn given(fields: &[&str]) -> Value {
    let properties: Map<String, Value> =
        fields.iter().map(|field| ((*field).to_owned(), json!({ "not": { "type": "null" } }))).collect();
    json!({ "required": fields, "properties": properties })
}

/// Adds what utoipa has no words for.
pub fn constrain(document: &mut Value) {
    let schemas = &mut document["components"]["schemas"];
    schemas["Archive"]["minLength"] = json!(1);
    schemas["ImagePull"]["dependentRequired"] = json!({ "username": ["password"], "password": ["username"] });
    let request = &mut schemas["ExecutionRequest"];
    // As negations, because generators of clients take `oneOf` beside `properties` for a choice between types.
    request["not"] = json!({ "anyOf": [
        given(&["provider", "image"]),
        { "allOf": [given(&["provider", "sandbox"]), { "not": given(&["prompt"]) }] },
        { "allOf": [given(&["prompt", "sandbox"]), { "not": given(&["provider"]) }] },
        { "not": { "anyOf": [given(&["provider"]), given(&["image"]), given(&["sandbox"])] } },
        given(&["sandbox", "image"]),
        { "allOf": [given(&["sandbox", "credentials"]), { "not": given(&["prompt"]) }] },
        given(&["sandbox", "entrypoint"]),
        given(&["sandbox", "archive"]),
        given(&["sandbox", "memory_bytes"]),
        given(&["sandbox", "cpus"]),
        given(&["sandbox", "queue_timeout_ms"]),
        given(&["sandbox", "files"]),
        given(&["sandbox", "collect"]),
        { "allOf": [given(&["sandbox", "model"]), { "not": given(&["prompt"]) }] },
        { "allOf": [given(&["sandbox", "effort"]), { "not": given(&["prompt"]) }] },
        { "allOf": [given(&["sandbox"]), { "not": { "anyOf": [given(&["command"]), given(&["prompt"])] } }] },
        given(&["prompt", "command"]),
        given(&["prompt", "image"]),
        given(&["provider", "entrypoint"]),
        { "allOf": [given(&["provider"]), { "not": { "anyOf": [given(&["prompt"]), given(&["command"])] } }] },
    ] });
    // Texts end at a NUL character, and names of variables at `=` too.
    for of in ["ExecutionRequest", "SandboxRequest", "NamedSandboxRequest", "SandboxChange"] {
        let labels = &mut schemas[of]["properties"]["labels"];
        labels["maxProperties"] = json!(32);
        labels["additionalProperties"] = json!({ "type": "string", "maxLength": 256, "pattern": PRINTABLE });
        labels["propertyNames"] = json!({ "minLength": 1, "maxLength": 64, "pattern": PRINTABLE });
    }
    for (of, variables) in [
        ("ExecutionRequest", "env"),
        ("ExecutionRequest", "forced_env"),
        ("SandboxRequest", "env"),
        ("NamedSandboxRequest", "env"),
    ] {
        let env = &mut schemas[of]["properties"][variables];
        env["additionalProperties"] = json!({ "type": "string", "pattern": "^[^\\u0000]*$" });
        env["propertyNames"] = json!({ "pattern": "^[^=\\u0000]+$" });
    }
    // Idleness either freezes it or does not.
    schemas["SandboxLifecycle"]["not"] = json!({ "allOf": [
        given(&["freeze_after_s"]),
        { "required": ["keep_active"], "properties": { "keep_active": { "const": true } } },
    ] });
    for path in ["/v1/executions", "/v1/sandboxes"] {
        for parameter in document["paths"][path]["get"]["parameters"].as_array_mut().into_iter().flatten() {
            if parameter["name"] == "labels" {
                parameter["schema"]["propertyNames"] = json!({ "pattern": "^label\\.." });
            }
        }
    }
}
