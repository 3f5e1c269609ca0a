//! The daemon answers as `docs/openapi.json` says: every operation is asked, well and badly, and each answer has a status,
//! a media type and a body that the description has.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::{Answer, Daemon, Outcome, shell};

/// What is wrong with `value` as an instance of `schema`: the part of JSON Schema that utoipa uses.
fn mismatch(document: &Value, schema: &Value, value: &Value) -> Option<String> {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = document.pointer(reference.strip_prefix('#').unwrap()).unwrap_or_else(|| panic!("{reference}"));
        return mismatch(document, target, value).map(|problem| format!("{reference}: {problem}"));
    }
    if let Some(choices) = schema["oneOf"].as_array() {
        let problems: Vec<_> = choices.iter().filter_map(|choice| mismatch(document, choice, value)).collect();
        return (problems.len() + 1 != choices.len()).then(|| format!("{value} is not exactly one of: {problems:?}"));
    }
    let types = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        Value::Array(several) => several.iter().map(|one| one.as_str().unwrap()).collect(),
        Value::Null => return None,
        other => panic!("type {other}"),
    };
    let has = |name: &str| match name {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("type {other}"),
    };
    if !types.into_iter().any(has) {
        return Some(format!("{value} is no {}", schema["type"]));
    }
    if schema["enum"].as_array().is_some_and(|allowed| !value.is_null() && !allowed.contains(value)) {
        return Some(format!("{value} is none of {}", schema["enum"]));
    }
    if value.as_f64().zip(schema["minimum"].as_f64()).is_some_and(|(value, minimum)| value < minimum) {
        return Some(format!("{value} is below {}", schema["minimum"]));
    }
    let inside = |place: &str, problem: Option<String>| problem.map(|problem| format!("{place}: {problem}"));
    if let Some(items) = value.as_array() {
        return items.iter().find_map(|item| inside("an item", mismatch(document, &schema["items"], item)));
    }
    let fields = value.as_object()?;
    let required = schema["required"].as_array().into_iter().flatten();
    if let Some(missing) = required.map(|name| name.as_str().unwrap()).find(|name| !fields.contains_key(*name)) {
        return Some(format!("{missing} is missing in {value}"));
    }
    fields.iter().find_map(|(name, field)| {
        match schema["properties"].get(name).or_else(|| schema.get("additionalProperties")) {
            Some(schema) => inside(name, mismatch(document, schema, field)),
            None => Some(format!("{name} is not described")),
        }
    })
}

/// The document, and what was asked so far.
struct Contract {
    document: Value,
    asked: BTreeSet<(String, String, u16)>,
}

impl Contract {
    /// Compares an answer with what is described for `method` and `path`.
    fn check(&mut self, method: &str, path: &str, answer: &Answer) {
        let operation = &self.document["paths"][path][method.to_lowercase()];
        let what = format!("{method} {path}: {}", answer.status);
        let response = &operation["responses"][answer.status.to_string()];
        assert!(response.is_object(), "{what} is not described: {}", answer.text());
        if answer.status == 204 {
            assert!(answer.body.is_empty() && response["content"].is_null(), "{what}");
            self.asked.insert((method.to_owned(), path.to_owned(), answer.status));
            return;
        }
        let media_type = answer.header("content-type").unwrap();
        let media_type = media_type.split(';').next().unwrap();
        let content = response["content"].get(media_type);
        let content = content.unwrap_or_else(|| panic!("{what}: {media_type} is not described: {response}"));
        if media_type.ends_with("json") {
            let body: Value = serde_json::from_slice(&answer.body).unwrap();
            let problem = mismatch(&self.document, &content["schema"], &body);
            assert_eq!(problem, None, "{what}: {body}");
        }
        if media_type == "text/event-stream" {
            self.check_events(&answer.text());
        }
        self.asked.insert((method.to_owned(), path.to_owned(), answer.status));
    }

    /// Each event with its name is one of the kinds of `Event`.
    fn check_events(&self, stream: &str) {
        let schema = json!({ "$ref": "#/components/schemas/Event" });
        let mut events = 0;
        for block in stream.split("\n\n") {
            let field = |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            let (Some(name), Some(data)) = (field("event"), field("data")) else { continue };
            let event = json!({ "event": name, "data": serde_json::from_str::<Value>(data).unwrap() });
            assert_eq!(mismatch(&self.document, &schema, &event), None, "{event}");
            events += 1;
        }
        assert!(events >= 2, "{stream}");
    }
}

#[test]
fn the_check_finds_what_is_wrong() {
    let document = json!({ "components": { "schemas": { "A": {
        "type": "object", "required": ["a"], "properties": {
            "a": { "type": "integer", "minimum": 0 }, "b": { "type": ["string", "null"] },
            "c": { "oneOf": [{ "type": "null" }, { "$ref": "#/components/schemas/A" }] },
            "d": { "type": "array", "items": { "type": "string", "enum": ["x", "y"] } },
            "e": { "type": "object", "additionalProperties": { "type": "string" } } } } } } });
    let schema = json!({ "$ref": "#/components/schemas/A" });
    let check = |value: Value| mismatch(&document, &schema, &value);
    let good = json!({ "a": 1, "b": null, "c": { "a": 2, "c": null }, "d": ["x", "y"], "e": { "k": "v" } });
    assert_eq!(check(good), None);
    for bad in [
        json!([]),
        json!({}),
        json!({ "a": -1 }),
        json!({ "a": 1.5 }),
        json!({ "a": 1, "b": 2 }),
        json!({ "a": 1, "c": {} }),
        json!({ "a": 1, "d": ["z"] }),
        json!({ "a": 1, "e": { "k": 1 } }),
        json!({ "a": 1, "f": 1 }),
    ] {
        assert!(check(bad.clone()).is_some(), "{bad}");
    }
}

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("accept", "text/event-stream");
const KEY: (&str, &str) = ("idempotency-key", "k1");
const RAW: (&str, &str) = ("accept", "application/octet-stream");

#[tokio::test]
async fn every_operation_answers_as_it_is_described() {
    let document: Value = serde_json::from_str(include_str!("../docs/openapi.json")).unwrap();
    let mut contract = Contract { document, asked: BTreeSet::new() };
    let daemon = Daemon::start(|setup| {
        setup
            .pool(1)
            .set("container.max", 2)
            .set("execution.output_bytes", 64 << 10)
            .set("execution.retained_bytes", 1 << 20)
            .set("execution.max_per_user", 2)
            .set("api.max_body_bytes", 4096)
            .set("egress.identity.one.bind", "127.0.0.9")
    })
    .await;
    daemon.settled().await;
    // Answers that have fields which are absent otherwise: one that runs, one that ended, one that dropped output.
    let running = daemon.client.create(&shell("echo a; sleep 1000")).await.unwrap().id;
    let ended = daemon.sh("head -c 300000 /dev/zero; exit 3").await.started.execution;

    let create = |request: Value| request.to_string().into_bytes();
    let command = |extra: Value| {
        let mut request = json!({ "provider": "test", "user": "u2", "command": ["echo", "x"], "labels": { "a": "b" } });
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        create(request)
    };
    let executions = "/v1/executions";
    let sandboxes = "/v1/sandboxes";
    let named = "/v1/users/{user}/sandboxes/{name}";
    let logins = "/v1/logins";
    let its = |rest: &str| format!("{sandboxes}/s{rest}");
    let gone = format!("{executions}/{ended}/stdout?offset=0");
    let one = |id: &str, rest: &str| format!("{executions}/{id}{rest}");
    type Ask<'a> = (&'a str, &'a str, String, &'a [(&'a str, &'a str)], Vec<u8>, u16);
    let none = Vec::new;
    let asks: Vec<Ask<'_>> = vec![
        ("GET", "/healthz", "/healthz".into(), &[], none(), 200),
        ("GET", "/readyz", "/readyz".into(), &[], none(), 200),
        ("GET", "/metrics", "/metrics".into(), &[], none(), 200),
        ("GET", "/v1/containers", "/v1/containers".into(), &[], none(), 200),
        ("GET", "/v1/providers", "/v1/providers".into(), &[], none(), 200),
        ("GET", "/v1/images", "/v1/images".into(), &[], none(), 200),
        ("GET", "/v1/pools", "/v1/pools".into(), &[], none(), 200),
        ("GET", "/v1/pools/{provider}", "/v1/pools/test".into(), &[], none(), 200),
        ("GET", "/v1/pools/{provider}", "/v1/pools/nobody".into(), &[], none(), 404),
        ("GET", "/v1/pools/{provider}", "/v1/pools/%ff".into(), &[], none(), 404),
        ("PUT", "/v1/pools/{provider}", "/v1/pools/test".into(), &[JSON], create(json!({ "target": 1 })), 200),
        ("PUT", "/v1/pools/{provider}", "/v1/pools/test".into(), &[JSON], create(json!({})), 400),
        ("PUT", "/v1/pools/{provider}", "/v1/pools/nobody".into(), &[JSON], create(json!({ "target": 1 })), 404),
        ("PUT", "/v1/pools/{provider}", "/v1/pools/test".into(), &[JSON], vec![b' '; 4097], 413),
        ("POST", executions, executions.into(), &[JSON], command(json!({})), 201),
        ("POST", executions, executions.into(), &[JSON, EVENTS], command(json!({})), 200),
        ("POST", executions, executions.into(), &[JSON, RAW], command(json!({})), 200),
        ("POST", executions, executions.into(), &[JSON, KEY], command(json!({})), 201),
        ("POST", executions, executions.into(), &[JSON, KEY], command(json!({ "labels": {} })), 422),
        ("POST", executions, executions.into(), &[JSON], command(json!({ "command": [] })), 400),
        ("POST", executions, executions.into(), &[JSON], vec![b' '; 4097], 413),
        (
            "POST",
            executions,
            executions.into(),
            &[JSON],
            command(json!({ "command": ["sleep", "1000"], "background": true })),
            201,
        ),
        ("POST", executions, executions.into(), &[JSON], command(json!({ "queue_timeout_ms": 0 })), 503),
        ("GET", executions, executions.into(), &[], none(), 200),
        ("GET", "/v1/executions/{id}", one(&running, ""), &[], none(), 200),
        ("GET", "/v1/executions/{id}", one(&ended, ""), &[], none(), 200),
        ("GET", "/v1/executions/{id}", one("E", ""), &[], none(), 400),
        ("GET", "/v1/executions/{id}", one("e", ""), &[], none(), 404),
        ("GET", "/v1/executions/{id}", one(&ended, "?wait=30s"), &[], none(), 200),
        ("GET", "/v1/executions/{id}", one(&ended, "?wait=x"), &[], none(), 400),
        ("GET", executions, format!("{executions}?state=running&label.a=b&limit=1"), &[], none(), 200),
        ("GET", executions, format!("{executions}?limit=0"), &[], none(), 400),
        ("GET", "/v1/executions/{id}/stats", one(&ended, "/stats"), &[], none(), 200),
        ("GET", "/v1/executions/{id}/stats", one(&running, "/stats"), &[], none(), 200),
        ("GET", "/v1/executions/{id}/stats", one("e", "/stats"), &[], none(), 404),
        ("GET", "/v1/executions/{id}/stats", one("E", "/stats"), &[], none(), 400),
        ("GET", "/v1/version", "/v1/version".into(), &[], none(), 200),
        ("POST", "/v1/images/prune", "/v1/images/prune".into(), &[], none(), 200),
        ("POST", "/v1/images/verify", "/v1/images/verify".into(), &[], none(), 202),
        ("POST", "/v1/images/import", "/v1/images/import".into(), &[], none(), 400),
        ("POST", "/v1/images/pull", "/v1/images/pull".into(), &[JSON], create(json!({ "reference": "//" })), 400),
        ("DELETE", "/v1/images/{name}", "/v1/images/none".into(), &[], none(), 404),
        ("GET", "/v1/jobs", "/v1/jobs".into(), &[], none(), 200),
        ("GET", "/v1/jobs/{id}", "/v1/jobs/j-none".into(), &[], none(), 404),
        ("GET", "/v1/events", "/v1/events?kind=x".into(), &[], none(), 400),
        ("GET", "/v1/events", "/v1/events".into(), &[("last-event-id", "x")], none(), 400),
        ("DELETE", "/v1/executions/{id}", one(&running, ""), &[], none(), 409),
        ("DELETE", "/v1/executions/{id}", one("e", ""), &[], none(), 404),
        ("DELETE", "/v1/executions/{id}", one("E", ""), &[], none(), 400),
        ("GET", "/v1/executions/{id}/events", one(&ended, "/events"), &[], none(), 200),
        ("GET", "/v1/executions/{id}/events", one(&ended, "/events"), &[("last-event-id", "x")], none(), 400),
        ("GET", "/v1/executions/{id}/events", one("e", "/events"), &[], none(), 404),
        ("GET", "/v1/executions/{id}/stdout", one(&ended, "/stdout?offset=299999"), &[], none(), 200),
        ("GET", "/v1/executions/{id}/stdout", one(&ended, "/stdout?from=1"), &[], none(), 400),
        ("GET", "/v1/executions/{id}/stdout", one("e", "/stdout"), &[], none(), 404),
        ("POST", "/v1/executions/{id}/stdin", one(&running, "/stdin"), &[], none(), 409),
        ("POST", "/v1/executions/{id}/stdin", one("e", "/stdin"), &[], none(), 404),
        ("POST", "/v1/executions/{id}/stdin", one(&running, "/stdin?eof=2"), &[], none(), 400),
        ("GET", "/v1/executions/{id}/stdout", gone, &[], none(), 410),
        ("GET", "/v1/executions/{id}/stderr", one(&ended, "/stderr"), &[], none(), 200),
        ("GET", "/v1/executions/{id}/stderr", one("E", "/stderr"), &[], none(), 400),
        ("GET", "/v1/executions/{id}/stderr", one("e", "/stderr"), &[], none(), 404),
        ("GET", "/v1/executions/{id}/archive", one(&ended, "/archive"), &[], none(), 404),
        ("GET", "/v1/executions/{id}/archive", one("E", "/archive"), &[], none(), 400),
        ("GET", "/v1/executions/{id}/files", one(&ended, "/files?path=a"), &[], none(), 404),
        ("GET", "/v1/executions/{id}/files", one("E", "/files?path=a"), &[], none(), 400),
        ("POST", "/v1/images/use", "/v1/images/use".into(), &[JSON], create(json!({})), 400),
        ("POST", "/v1/images/use", "/v1/images/use".into(), &[JSON], vec![b' '; 4097], 413),
        ("POST", sandboxes, sandboxes.into(), &[JSON], create(json!({ "template": "nobody", "user": "u2" })), 400),
        ("POST", sandboxes, sandboxes.into(), &[JSON], vec![b' '; 4097], 413),
        ("GET", sandboxes, sandboxes.into(), &[], none(), 200),
        ("GET", sandboxes, format!("{sandboxes}?limit=0"), &[], none(), 400),
        ("GET", "/v1/sandboxes/{id}", its(""), &[], none(), 404),
        ("GET", "/v1/sandboxes/{id}", format!("{sandboxes}/S"), &[], none(), 400),
        ("PATCH", "/v1/sandboxes/{id}", its(""), &[JSON], create(json!({})), 404),
        ("PATCH", "/v1/sandboxes/{id}", its(""), &[JSON], create(json!({ "name": "x" })), 400),
        ("DELETE", "/v1/sandboxes/{id}", its(""), &[], none(), 404),
        ("POST", "/v1/sandboxes/{id}/freeze", its("/freeze"), &[], none(), 404),
        ("POST", "/v1/sandboxes/{id}/stop", its("/stop"), &[], none(), 404),
        ("POST", "/v1/sandboxes/{id}/wake", its("/wake"), &[], none(), 404),
        ("GET", "/v1/sandboxes/{id}/files", its("/files?path=/tmp"), &[], none(), 404),
        ("PUT", "/v1/sandboxes/{id}/files", its("/files?path=/tmp/x"), &[], none(), 404),
        ("DELETE", "/v1/sandboxes/{id}/files", its("/files?path=/tmp/x"), &[], none(), 404),
        ("GET", "/v1/sandboxes/{id}/files/list", its("/files/list?path=/tmp"), &[], none(), 404),
        ("GET", "/v1/sandboxes/{id}/files/stat", its("/files/stat?path=/tmp"), &[], none(), 404),
        ("POST", "/v1/sandboxes/{id}/files/mkdir", its("/files/mkdir"), &[JSON], create(json!({ "path": "/x" })), 404),
        ("POST", "/v1/sandboxes/{id}/files/move", its("/files/move"), &[JSON], create(json!({ "from": "/x" })), 400),
        ("GET", "/v1/sandboxes/{id}/archive", its("/archive?path=/tmp"), &[], none(), 404),
        ("PUT", "/v1/sandboxes/{id}/archive", its("/archive?path=/tmp"), &[], none(), 404),
        ("GET", named, "/v1/users/u2/sandboxes/dev".into(), &[], none(), 404),
        ("GET", named, "/v1/users/u2/sandboxes/DEV".into(), &[], none(), 400),
        ("PUT", named, "/v1/users/u2/sandboxes/dev".into(), &[JSON], create(json!({ "template": "nobody" })), 400),
        (
            "POST",
            executions,
            executions.into(),
            &[JSON],
            create(json!({ "sandbox": "s", "user": "u2", "command": ["x"] })),
            404,
        ),
        // Without a master key there is no vault, and no logins.
        ("POST", logins, logins.into(), &[JSON], create(json!({ "provider": "test", "user": "u1" })), 409),
        ("POST", logins, logins.into(), &[JSON], create(json!({ "provider": "test" })), 400),
        ("GET", logins, logins.into(), &[], none(), 409),
        ("GET", "/v1/logins/{id}", "/v1/logins/l-1".into(), &[], none(), 409),
        ("GET", "/v1/logins/{id}", "/v1/logins/L".into(), &[], none(), 400),
        ("DELETE", "/v1/logins/{id}", "/v1/logins/l-1".into(), &[], none(), 409),
        ("GET", "/v1/logins/{id}/events", "/v1/logins/l-1/events".into(), &[], none(), 409),
        ("GET", "/v1/logins/{id}/callback", "/v1/logins/l-1/callback?state=s&any=thing".into(), &[], none(), 409),
        ("POST", "/v1/logins/{id}/code", "/v1/logins/l-1/code".into(), &[JSON], create(json!({ "code": "x" })), 409),
        ("POST", "/v1/logins/{id}/code", "/v1/logins/l-1/code".into(), &[JSON], create(json!({})), 400),
        ("POST", "/v1/logins/{id}/code", "/v1/logins/l-1/code".into(), &[JSON], vec![b' '; (64 << 10) + 1], 413),
        ("GET", "/v1/egress/identities", "/v1/egress/identities".into(), &[], none(), 200),
        ("GET", "/v1/egress/identities/{name}", "/v1/egress/identities/one".into(), &[], none(), 200),
        ("GET", "/v1/egress/identities/{name}", "/v1/egress/identities/two".into(), &[], none(), 404),
        ("GET", "/v1/egress/identities/{name}", "/v1/egress/identities/TWO".into(), &[], none(), 400),
        ("PUT", "/v1/users/{user}/egress", "/v1/users/u1/egress".into(), &[JSON], create(json!({})), 200),
        (
            "PUT",
            "/v1/users/{user}/egress",
            "/v1/users/u1/egress".into(),
            &[JSON],
            create(json!({ "identity": "two" })),
            400,
        ),
        ("GET", "/v1/users/{user}/egress", "/v1/users/u1/egress".into(), &[], none(), 200),
        ("DELETE", "/v1/users/{user}/egress", "/v1/users/u1/egress".into(), &[], none(), 204),
        ("DELETE", "/v1/users/{user}/egress", "/v1/users/u1/egress".into(), &[], none(), 404),
        ("GET", "/v1/vault", "/v1/vault".into(), &[], none(), 409),
        ("POST", "/v1/vault/rotate-key", "/v1/vault/rotate-key".into(), &[], none(), 409),
        ("GET", "/v1/users/{user}/audit", "/v1/users/u1/audit".into(), &[], none(), 409),
        ("GET", "/v1/users/{user}/credentials", "/v1/users/u1/credentials".into(), &[], none(), 409),
        ("DELETE", "/v1/users/{user}/credentials", "/v1/users/u1/credentials".into(), &[], none(), 409),
        ("POST", "/v1/users/{user}/rotate-key", "/v1/users/u1/rotate-key".into(), &[], none(), 409),
        ("GET", "/v1/users/{user}/credentials/{provider}", "/v1/users/u1/credentials/test".into(), &[], none(), 409),
        (
            "PUT",
            "/v1/users/{user}/credentials/{provider}",
            "/v1/users/u1/credentials/test".into(),
            &[JSON],
            create(json!({ "files": { "token": "x" } })),
            409,
        ),
        ("DELETE", "/v1/users/{user}/credentials/{provider}", "/v1/users/u1/credentials/test".into(), &[], none(), 409),
        (
            "POST",
            "/v1/users/{user}/credentials/{provider}/check",
            "/v1/users/u1/credentials/test/check".into(),
            &[],
            none(),
            409,
        ),
        ("POST", "/v1/executions/{id}/cancel", one("E", "/cancel"), &[], none(), 400),
        ("POST", "/v1/executions/{id}/cancel", one("e", "/cancel"), &[], none(), 404),
        ("POST", "/v1/executions/{id}/cancel", one(&running, "/cancel"), &[], none(), 202),
        ("DELETE", "/v1/executions/{id}", one(&ended, ""), &[], none(), 204),
    ];
    for (method, path, target, headers, body, status) in asks {
        let answer = daemon.http(&format!("{method} {target}"), headers, &body).await;
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.text());
        contract.check(method, path, &answer);
        if status == 201 || answer.header("location").is_some() {
            // One after the other: there are two places, and what is in the background keeps one.
            let id = answer.header("location").unwrap().rsplit('/').next().unwrap().to_owned();
            if !body.windows(4).any(|part| part == b"1000") {
                Outcome::of(daemon.client.events(&id, None).await.unwrap()).await.exited(0);
                support::eventually("its place is free", || async { (daemon.pool().await.claimed == 1).then_some(()) })
                    .await;
            }
        }
    }
    let described = contract.document["paths"].as_object().unwrap().iter();
    let described =
        described.flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(move |method| (method, path)));
    for (method, path) in described {
        let asked = contract.asked.iter().any(|(had, at, _)| had.to_lowercase() == *method && at == path);
        assert!(asked, "{method} {path} was not asked");
    }
    daemon.stop().await;
}

/// A sandbox from its creation to its end, and a command in it.
#[tokio::test]
async fn every_operation_on_a_sandbox_answers_as_it_is_described() {
    let document: Value = serde_json::from_str(include_str!("../docs/openapi.json")).unwrap();
    let mut contract = Contract { document, asked: BTreeSet::new() };
    let daemon = Daemon::start(|setup| setup.pool(1).set("sandbox.max", 2).set("sandbox.max_per_user", 1)).await;
    let sized = |user: &str, size: u64| {
        let storage = json!({ "size_bytes": size });
        json!({ "template": "test", "user": user, "name": "dev", "env": { "A": "b" }, "storage": storage }).to_string()
    };
    let body = |user: &str| sized(user, 32 << 20);
    let (collection, item) = ("/v1/sandboxes", "/v1/sandboxes/{id}");
    let named = "/v1/users/{user}/sandboxes/{name}";
    let key = [JSON, KEY];
    let made = daemon.http("POST /v1/sandboxes", &key, body("u1").as_bytes()).await;
    contract.check("POST", collection, &made);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let its = |rest: &str| format!("{collection}/{id}{rest}");
    let command = json!({ "sandbox": id, "user": "u1", "command": ["echo", "x"] }).to_string();
    let other = json!({ "template": "test", "labels": { "a": "b" } }).to_string();
    let asks = [
        ("POST", collection, collection.to_owned(), body("u1"), 409),
        ("POST", "/v1/executions", "/v1/executions".to_owned(), command, 201),
        ("GET", collection, format!("{collection}?user=u1&state=active&limit=1"), String::new(), 200),
        ("GET", item, its(""), String::new(), 200),
        ("PATCH", item, its(""), json!({ "labels": { "x": "y" } }).to_string(), 200),
        ("GET", named, "/v1/users/u1/sandboxes/dev".to_owned(), String::new(), 200),
        ("PUT", named, "/v1/users/u1/sandboxes/dev".to_owned(), other.clone(), 409),
        ("PUT", named, "/v1/users/u1/sandboxes/two".to_owned(), other.clone(), 429),
        ("PUT", named, "/v1/users/u2/sandboxes/dev".to_owned(), other.clone(), 201),
        ("PUT", named, "/v1/users/u2/sandboxes/dev".to_owned(), other.clone(), 200),
        ("PUT", named, "/v1/users/u3/sandboxes/dev".to_owned(), other, 503),
        ("POST", "/v1/sandboxes/{id}/wake", its("/wake"), String::new(), 200),
    ];
    for (method, path, target, body, status) in asks {
        let answer = daemon.http(&format!("{method} {target}"), &[JSON], body.as_bytes()).await;
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.text());
        contract.check(method, path, &answer);
    }
    let files = "/v1/sandboxes/{id}/files";
    let (make, rename) =
        (json!({ "path": "/tmp/d" }).to_string(), json!({ "from": "/tmp/f", "to": "/tmp/d/f" }).to_string());
    let (list, stat) = ("/v1/sandboxes/{id}/files/list", "/v1/sandboxes/{id}/files/stat");
    let (mkdir, mv) = ("/v1/sandboxes/{id}/files/mkdir", "/v1/sandboxes/{id}/files/move");
    for (method, path, target, body, status) in [
        ("PUT", files, its("/files?path=/tmp/f"), "content", 201),
        ("PUT", files, its("/files?path=/tmp/f"), "content", 200),
        ("PUT", files, its("/files?path=/etc/f"), "content", 403),
        ("GET", files, its("/files?path=/tmp/f"), "", 200),
        ("GET", files, its("/files?path=/tmp"), "", 409),
        ("GET", list, its("/files/list?path=/tmp&limit=1"), "", 200),
        ("GET", stat, its("/files/stat?path=/tmp/f"), "", 200),
        ("GET", stat, its("/files/stat?path=/tmp/none"), "", 404),
        ("POST", mkdir, its("/files/mkdir"), &make, 201),
        ("POST", mkdir, its("/files/mkdir"), &make, 409),
        ("POST", mv, its("/files/move"), &rename, 200),
        ("POST", mv, its("/files/move"), &rename, 404),
        ("GET", "/v1/sandboxes/{id}/archive", its("/archive?path=/tmp/d"), "", 200),
        ("PUT", "/v1/sandboxes/{id}/archive", its("/archive?path=/tmp/d"), "no archive", 400),
        ("DELETE", files, its("/files?path=/tmp/d"), "", 409),
        ("DELETE", files, its("/files?path=/tmp/d&recursive=true"), "", 204),
    ] {
        let answer = daemon.http(&format!("{method} {target}"), &[], body.as_bytes()).await;
        assert_eq!(answer.status, status, "{method} {target}: {}", answer.text());
        contract.check(method, path, &answer);
    }
    let other = daemon.http("POST /v1/sandboxes", &key, body("u1").replace("dev", "two").as_bytes()).await;
    assert_eq!(other.status, 422);
    contract.check("POST", collection, &other);
    // Once the command has ended.
    let frozen = support::eventually("it can be frozen", || async {
        let answer = daemon.http(&format!("POST {}", its("/freeze")), &[], b"").await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    contract.check("POST", "/v1/sandboxes/{id}/freeze", &frozen);
    let stopped = daemon.http(&format!("POST {}", its("/stop")), &[], b"").await;
    assert_eq!(stopped.status, 200, "{}", stopped.text());
    contract.check("POST", "/v1/sandboxes/{id}/stop", &stopped);
    let refused = daemon.http(&format!("POST {}", its("/freeze")), &[], b"").await;
    assert_eq!(refused.status, 409, "{}", refused.text());
    contract.check("POST", "/v1/sandboxes/{id}/freeze", &refused);
    for (target, status) in [(its(""), 204), (its("/wake"), 409)] {
        let (method, path) = if status == 204 { ("DELETE", item) } else { ("POST", "/v1/sandboxes/{id}/wake") };
        let answer = daemon.http(&format!("{method} {target}"), &[], b"").await;
        assert_eq!(answer.status, status, "{target}: {}", answer.text());
        contract.check(method, path, &answer);
    }
    let refused = daemon.http("POST /v1/sandboxes", &[JSON], sized("u1", 10 << 30).as_bytes()).await;
    assert_eq!(refused.status, 507, "{}", refused.text());
    contract.check("POST", collection, &refused);
    daemon.stop().await;
}
