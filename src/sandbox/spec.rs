//! What a sandbox is asked to be: checked, and compared with one that exists.

use std::collections::BTreeMap;

use super::SandboxError;
use thaw_client::types::{
    LABELS_RULE, SandboxChange, SandboxLifecycle, SandboxRequest, SandboxStorage, USER_RULE, are_labels, is_user,
    is_variable,
};

/// Longest name, bytes.
pub const MAX_NAME: usize = 63;

/// Names and values of all variables of a sandbox together, bytes.
pub const MAX_ENV_BYTES: usize = 64 * 1024;

/// Longest time of a lifecycle, seconds: a year.
pub const MAX_LIFECYCLE_S: u64 = 31_536_000;

/// Whether this may be the name of a sandbox.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_NAME).contains(&name.len()) && !name.starts_with('-') && name.bytes().all(plain)
}

fn invalid(field: &'static str, problem: impl Into<String>) -> SandboxError {
    SandboxError::InvalidField { field, problem: problem.into() }
}

/// Checks everything but whether the template exists.
///
/// # Errors
/// [`SandboxError::InvalidField`].
pub fn check(request: &SandboxRequest) -> Result<(), SandboxError> {
    if !is_user(&request.user) {
        return Err(invalid("user", USER_RULE));
    }
    if request.name.as_deref().is_some_and(|name| !is_name(name)) {
        let rule = "must be 1 to 63 characters of a-z, 0-9 and -, beginning with a letter or a digit";
        return Err(invalid("name", rule));
    }
    check_env(&request.env)?;
    check_labels(&request.labels)?;
    check_lifecycle(&request.lifecycle, request.storage.is_some())
}

fn check_env(env: &BTreeMap<String, String>) -> Result<(), SandboxError> {
    for (name, value) in env {
        if !is_variable(name) {
            return Err(invalid("env", "has a name that is empty or contains `=` or a NUL character"));
        }
        if value.contains('\0') {
            return Err(invalid("env", format!("has a NUL character in the value of {name:?}, where a value ends")));
        }
    }
    if env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > MAX_ENV_BYTES {
        return Err(invalid("env", format!("has more than {MAX_ENV_BYTES} bytes of names and values")));
    }
    Ok(())
}

/// Checks a change.
///
/// # Errors
/// [`SandboxError::InvalidField`].
pub fn check_change(change: &SandboxChange, has_storage: bool) -> Result<(), SandboxError> {
    change.labels.as_ref().map_or(Ok(()), check_labels)?;
    change.env.as_ref().map_or(Ok(()), check_env)?;
    change.lifecycle.as_ref().map_or(Ok(()), |lifecycle| check_lifecycle(lifecycle, has_storage))
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), SandboxError> {
    if are_labels(labels) { Ok(()) } else { Err(invalid("labels", LABELS_RULE)) }
}

fn check_lifecycle(lifecycle: &SandboxLifecycle, has_storage: bool) -> Result<(), SandboxError> {
    let SandboxLifecycle { freeze_after_s, stop_after_s, destroy_after_s, keep_active } = *lifecycle;
    for (field, seconds) in [
        ("lifecycle.freeze_after_s", freeze_after_s),
        ("lifecycle.stop_after_s", stop_after_s),
        ("lifecycle.destroy_after_s", destroy_after_s),
    ] {
        if seconds.is_some_and(|seconds| !(1..=MAX_LIFECYCLE_S).contains(&seconds)) {
            return Err(invalid(field, format!("must be from 1 to {MAX_LIFECYCLE_S}")));
        }
    }
    if keep_active && freeze_after_s.is_some() {
        let problem =
            "says that idleness does not freeze it, and `lifecycle.freeze_after_s` says when it does: leave one out";
        return Err(invalid("lifecycle.keep_active", problem));
    }
    if keep_active && stop_after_s.is_some() {
        let problem =
            "says that idleness does not stop it, and `lifecycle.stop_after_s` says when it does: leave one out";
        return Err(invalid("lifecycle.keep_active", problem));
    }
    if stop_after_s.is_some() && !has_storage {
        let problem = "goes with `storage`: without it, all files would be lost; `lifecycle.destroy_after_s` ends it";
        return Err(invalid("lifecycle.stop_after_s", problem));
    }
    Ok(())
}

/// In what `asked` differs from what a sandbox is, in words; `None` if it does not. Values of variables are not in it.
pub fn difference(is: &SandboxRequest, asked: &SandboxRequest) -> Option<String> {
    let mut parts = Vec::new();
    if is.template != asked.template {
        parts.push(format!("`template` is {:?}, not {:?}", is.template, asked.template));
    }
    for (what, is, asked) in [("env", &is.env, &asked.env), ("labels", &is.labels, &asked.labels)] {
        let all: std::collections::BTreeSet<_> = is.keys().chain(asked.keys()).collect();
        let other: Vec<_> = all.into_iter().filter(|name| is.get(*name) != asked.get(*name)).collect();
        if !other.is_empty() {
            parts.push(format!("`{what}` differ in {other:?}"));
        }
    }
    let times = |lifecycle: &SandboxLifecycle| serde_json::to_string(lifecycle).unwrap_or_default();
    if is.lifecycle != asked.lifecycle {
        parts.push(format!("`lifecycle` is {}, not {}", times(&is.lifecycle), times(&asked.lifecycle)));
    }
    if is.storage != asked.storage {
        let size = |storage: Option<SandboxStorage>| {
            storage
                .and_then(|storage| storage.size_bytes)
                .map_or("absent".to_owned(), |bytes| format!("of {bytes} bytes"))
        };
        parts.push(format!("`storage` is {}, not {}", size(is.storage), size(asked.storage)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(json: &str) -> SandboxRequest {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn each_field_has_a_rule() {
        let longest = format!(r#"{{"user":"u","template":"t","name":"{}"}}"#, "n".repeat(MAX_NAME));
        for good in [
            r#"{"user":"u","template":"t"}"#,
            r#"{"user":"auth0|5f","template":"t","name":"0-dev","env":{"A b":""},"labels":{"x":"y"}}"#,
            r#"{"user":"u","template":"t","lifecycle":{"freeze_after_s":1,"destroy_after_s":31536000}}"#,
            r#"{"user":"u","template":"t","lifecycle":{"keep_active":true,"destroy_after_s":5}}"#,
            &longest,
        ] {
            check(&request(good)).unwrap();
        }
        let long_name = format!(r#"{{"user":"u","template":"t","name":"{}"}}"#, "n".repeat(MAX_NAME + 1));
        let large_env = format!(r#"{{"user":"u","template":"t","env":{{"A":"{}"}}}}"#, "v".repeat(MAX_ENV_BYTES));
        for (bad, field) in [
            (r#"{"user":"a b","template":"t"}"#, "`user`"),
            (r#"{"user":"","template":"t"}"#, "`user`"),
            (r#"{"user":"u","template":"t","name":""}"#, "`name`"),
            (r#"{"user":"u","template":"t","name":"-a"}"#, "`name`"),
            (r#"{"user":"u","template":"t","name":"A"}"#, "`name`"),
            (r#"{"user":"u","template":"t","name":"a/b"}"#, "`name`"),
            (&long_name, "`name`"),
            (r#"{"user":"u","template":"t","env":{"":"x"}}"#, "`env`"),
            (r#"{"user":"u","template":"t","env":{"A=B":"x"}}"#, "`env`"),
            (r#"{"user":"u","template":"t","env":{"A":"x\u0000"}}"#, "`env`"),
            (&large_env, "`env`"),
            (r#"{"user":"u","template":"t","labels":{"":"x"}}"#, "`labels`"),
            (r#"{"user":"u","template":"t","lifecycle":{"freeze_after_s":0}}"#, "`lifecycle.freeze_after_s`"),
            (r#"{"user":"u","template":"t","lifecycle":{"destroy_after_s":31536001}}"#, "`lifecycle.destroy_after_s`"),
            (
                r#"{"user":"u","template":"t","lifecycle":{"keep_active":true,"freeze_after_s":5}}"#,
                "`lifecycle.keep_active`",
            ),
            (
                r#"{"user":"u","template":"t","storage":{},"lifecycle":{"keep_active":true,"stop_after_s":5}}"#,
                "`lifecycle.keep_active`",
            ),
            (r#"{"user":"u","template":"t","lifecycle":{"stop_after_s":5}}"#, "`lifecycle.stop_after_s`"),
            (r#"{"user":"u","template":"t","storage":{},"lifecycle":{"stop_after_s":0}}"#, "`lifecycle.stop_after_s`"),
        ] {
            let error = check(&request(bad)).unwrap_err().to_string();
            assert!(error.starts_with(field), "{bad}: {error}");
        }
    }

    #[test]
    fn a_difference_is_named_and_no_value_of_a_variable_told() {
        let is = request(r#"{"user":"u","template":"a","env":{"KEY":"hush","B":"1"},"labels":{"x":"1"}}"#);
        assert_eq!(difference(&is, &is), None);
        let asked = request(
            r#"{"user":"u","template":"b","env":{"KEY":"other","B":"1"},"labels":{"y":"1"},"lifecycle":{"freeze_after_s":5},
               "storage":{"size_bytes":7}}"#,
        );
        let said = difference(&is, &asked).unwrap();
        let expected = "`template` is \"a\", not \"b\"; `env` differ in [\"KEY\"]; `labels` differ in [\"x\", \"y\"]; \
                        `lifecycle` is {}, not {\"freeze_after_s\":5}; `storage` is absent, not of 7 bytes";
        assert_eq!(said, expected);
    }
}
