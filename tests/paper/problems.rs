//! `docs/problems.md` and `docs/openapi.json` against the source of the API.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::pages::{quoted, read, rows};

/// All source files of the API, and the one that names what is wrong with a request.
fn sources() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api");
    let mut names: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.is_file());
    names.sort();
    let texts = names.iter().map(|path| std::fs::read_to_string(path).unwrap());
    let product = texts.map(|text| text.split("#[cfg(test)]").next().unwrap().to_owned());
    product.collect::<Vec<_>>().join("\n").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Number of a name in `http::StatusCode`.
fn status(name: &str) -> u16 {
    match name {
        "BAD_REQUEST" => 400,
        "FORBIDDEN" => 403,
        "NOT_ACCEPTABLE" => 406,
        "REQUEST_TIMEOUT" => 408,
        "NOT_FOUND" => 404,
        "METHOD_NOT_ALLOWED" => 405,
        "CONFLICT" => 409,
        "GONE" => 410,
        "PRECONDITION_FAILED" => 412,
        "PAYLOAD_TOO_LARGE" => 413,
        "RANGE_NOT_SATISFIABLE" => 416,
        "UNPROCESSABLE_ENTITY" => 422,
        "TOO_MANY_REQUESTS" => 429,
        "INTERNAL_SERVER_ERROR" => 500,
        "BAD_GATEWAY" => 502,
        "SERVICE_UNAVAILABLE" => 503,
        "INSUFFICIENT_STORAGE" => 507,
        other => panic!("{other} is new: add it here and to docs/problems.md"),
    }
}

/// The codes in the source, with their status: `StatusCode::NAME, "code"`, and the forms that are short for 400.
fn in_source() -> BTreeMap<String, u16> {
    let source = sources();
    let mut codes = BTreeMap::new();
    let code = |text: &str| text.strip_prefix('"').and_then(|rest| rest.split('"').next()).map(str::to_owned);
    for part in source.split("StatusCode::").skip(1) {
        let Some((name, rest)) = part.split_once(", ") else { continue };
        if name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
            codes.extend(code(rest).map(|code| (code, status(name))));
        }
    }
    for part in source.split("invalid(").skip(1) {
        codes.extend(code(part).map(|code| (code, 400)));
    }
    let plan = read("src/execution/plan.rs");
    let function = plan.split_once("pub fn code(&self)").unwrap().1.split_once("\n    }\n").unwrap().0;
    for part in function.split("=> ").skip(1) {
        codes.extend(code(part).map(|code| (code, 400)));
    }
    codes
}

#[test]
fn every_problem_is_listed_with_its_status() {
    let source = in_source();
    assert!(source.len() > 35, "{source:?}");
    let mut listed = BTreeMap::new();
    for row in rows(&read("docs/problems.md"), 4) {
        let (number, code) = (row[0].parse::<u16>().unwrap(), quoted(&row[1])[0].to_owned());
        assert_eq!(row[2] == "yes", [429, 503].contains(&number), "{code}: what is retryable follows from the status");
        assert_eq!(listed.insert(code.clone(), number), None, "{code} twice");
    }
    assert_eq!(listed, source);
}

/// Methods and paths of the description.
fn described() -> BTreeSet<(String, String)> {
    let document: Value = serde_json::from_str(&read("docs/openapi.json")).unwrap();
    let mut all = BTreeSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        all.extend(methods.as_object().unwrap().keys().map(|method| (method.to_uppercase(), path.clone())));
    }
    all
}

#[test]
fn every_route_is_described() {
    let source = sources();
    let mut routes = BTreeSet::new();
    for part in source.split(".route(\"").skip(1) {
        let (path, rest) = part.split_once("\", ").unwrap();
        let handlers = rest.split(" .").next().unwrap();
        for method in ["get", "post", "put", "delete", "patch"] {
            if handlers.contains(&format!("{method}(")) {
                routes.insert((method.to_uppercase(), path.to_owned()));
            }
        }
    }
    assert!(routes.len() > 15, "{routes:?}");
    // The description does not describe itself.
    routes.remove(&("GET".to_owned(), "/openapi.json".to_owned()));
    assert_eq!(routes, described());
}

#[test]
fn routes_in_the_documentation_exist() {
    let described = described();
    let mut named = 0;
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").read_dir().unwrap();
    let docs = docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().to_string_lossy()));
    for page in docs.filter(|name| name.ends_with(".md")).chain(["README.md".to_owned()]) {
        for reference in quoted(&read(&page)) {
            let Some((method, path)) = reference.split_once(' ').filter(|(_, path)| path.starts_with("/v1/")) else {
                continue;
            };
            named += 1;
            let path = path.split('?').next().unwrap();
            let fits = |pattern: &str| {
                let (left, right) = (pattern.split('/'), path.split('/'));
                left.clone().count() == right.clone().count()
                    && left.zip(right).all(|(left, right)| left == right || left.starts_with('{'))
            };
            let known = described.iter().any(|(known, pattern)| known == method && fits(pattern));
            assert!(known, "{page}: {reference} is no route");
        }
    }
    assert!(named >= 2, "{named}");
}
