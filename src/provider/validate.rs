//! Checks of a manifest that go beyond its shape.

use std::collections::BTreeMap;

use super::{
    manifest::{Condition, PromptVia, Provider, ResourceClass},
    template::{matches, names},
};

/// Name under which executions of an image without a provider appear in listings, metrics and policies.
const RESERVED_NAME: &str = "image";

/// A key whose value cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{key}` {problem}")]
pub struct Invalid {
    /// The key, dotted as in the file.
    pub key: String,
    /// What is wrong and what to write; completes the sentence that the key begins.
    pub problem: String,
}

pub(super) fn invalid<T>(key: impl Into<String>, problem: impl Into<String>) -> Result<T, Invalid> {
    Err(Invalid { key: key.into(), problem: problem.into() })
}

impl Provider {
    /// Checks everything that can be checked without running the CLI. [`super::load_dir`] calls this.
    ///
    /// # Errors
    /// The first key whose value cannot work.
    pub fn validate(&self) -> Result<(), Invalid> {
        let name_char = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(1..=32).contains(&self.name.len()) || !self.name.chars().all(name_char) {
            return invalid("name", "must be 1 to 32 characters of a-z, 0-9 and -");
        }
        if self.name == RESERVED_NAME {
            return invalid(
                "name",
                format!("is {RESERVED_NAME:?}, which stands for executions without a provider; choose another"),
            );
        }
        if self.image.is_empty() || !self.image.chars().all(|c| name_char(c) || "._/:".contains(c)) {
            return invalid("image", "must be an image's name: a-z, 0-9 and any of - . _ / :");
        }
        if !self.home.starts_with('/') || self.home == "/" || !plain_path(&self.home[1..]) {
            return invalid("home", "must be an absolute path without `.` and `..`, such as /home/runtime");
        }
        if self.pids_max < 2 {
            return invalid("pids_max", "must be at least 2: the container's first process and one more");
        }
        for pattern in &self.egress {
            if let Some(problem) = egress_problem(pattern) {
                return invalid("egress", format!("has {pattern:?}, {problem}"));
            }
        }
        self.validate_command()?;
        self.validate_models()?;
        self.validate_credentials()?;
        self.validate_additions()?;
        self.validate_login()?;
        if let Some(prestart) = &self.prestart {
            prestart.validate(self)?;
        }
        validate_class("resources.idle", &self.resources.idle)?;
        validate_class("resources.run", &self.resources.run)?;
        if self.resources.run.cpu_period < self.resources.idle.cpu_period {
            // The kernel's refill timer keeps the period that it was armed with; a shorter new period does not shorten
            // it.
            let problem = "must not be shorter than that of `resources.idle`: a claim could be throttled for that long";
            return invalid("resources.run.cpu_period_ms", problem);
        }
        Ok(())
    }

    fn validate_command(&self) -> Result<(), Invalid> {
        let argv = &self.command.argv;
        let Some(program) = argv.first() else { return Ok(()) };
        if program.is_empty() || names(program).next().is_some() {
            return invalid("command.argv", "must begin with a program, without placeholders");
        }
        let known: &[&str] = &["model", "effort", "prompt", "args"];
        for element in argv {
            check_text("command.argv", element)?;
            check_placeholders("command.argv", element, known)?;
            if element.contains("{args}") && element != "{args}" {
                return invalid("command.argv", "must have `{args}` as an element of its own");
            }
        }
        let count =
            |wanted: &str| argv.iter().flat_map(|element| names(element)).filter(|name| *name == wanted).count();
        if count("args") > 1 {
            return invalid("command.argv", "has `{args}` more than once");
        }
        let adds_args = self.efforts.values().any(|effort| !effort.args.is_empty())
            || self.when.iter().any(|when| !when.args.is_empty());
        if adds_args && count("args") == 0 {
            return invalid("command.argv", "needs an element `{args}`: `efforts` or `when` add arguments");
        }
        match (self.command.prompt, count("prompt")) {
            (PromptVia::Stdin, 0) | (PromptVia::Argument | PromptVia::ArgumentOrStdin, 1) => Ok(()),
            (PromptVia::Stdin, _) => invalid("command.argv", "has `{prompt}`, which needs `prompt = \"argument\"`"),
            (PromptVia::Argument | PromptVia::ArgumentOrStdin, _) => {
                invalid("command.argv", "needs `{prompt}` exactly once, for `prompt = \"argument\"`")
            }
        }
    }

    fn validate_models(&self) -> Result<(), Invalid> {
        if self.command.argv.is_empty() {
            return Ok(());
        }
        if self.models.default.is_empty() {
            return invalid("models.default", "must name a model");
        }
        let targets = self.models.aliases.iter().map(|(alias, model)| (format!("models.aliases.{alias}"), model));
        for (key, model) in targets.chain([("models.default".to_owned(), &self.models.default)]) {
            if !self.models.allowed.iter().any(|pattern| matches(pattern, model)) {
                return invalid(key, format!("is {model:?}, which `models.allowed` does not match"));
            }
        }
        Ok(())
    }

    fn validate_credentials(&self) -> Result<(), Invalid> {
        let spec = &self.credentials;
        if !plain_path(&spec.dir) {
            return invalid("credentials.dir", "must be relative to `home`, without `.` and `..`, such as .codex");
        }
        for file in &spec.files {
            if !plain_path(file) || file.contains('/') {
                return invalid("credentials.files", format!("has {file:?}, which is not a plain file name"));
            }
        }
        for (key, name) in spec
            .formats
            .keys()
            .map(|name| ("credentials.formats", name))
            .chain(spec.file_aliases.values().map(|name| ("credentials.file_aliases", name)))
        {
            if !spec.files.contains(name) {
                return invalid(key, format!("names {name:?}, which `credentials.files` does not have"));
            }
        }
        if let Some(alias) = spec.file_aliases.keys().find(|alias| alias.is_empty() || spec.files.contains(alias)) {
            return invalid("credentials.file_aliases", format!("has {alias:?}, which must be another name of a file"));
        }
        for name in &spec.env {
            check_variable("credentials.env", name)?;
            if self.env.contains_key(name) {
                return invalid("credentials.env", format!("has {name}, which `env` sets already"));
            }
        }
        self.validate_refresh()?;
        if spec.required && !self.command.argv.is_empty() && spec.files.is_empty() && spec.env.is_empty() {
            return invalid(
                "credentials",
                "names neither files nor variables; say `required = false` if none is needed",
            );
        }
        Ok(())
    }

    fn validate_additions(&self) -> Result<(), Invalid> {
        check_env("env", &self.env, &[])?;
        for (alias, name) in &self.aliases {
            check_variable("aliases", alias)?;
            check_variable("aliases", name)?;
            if alias == name || self.aliases.contains_key(name) || self.credentials.env.contains(alias) {
                return invalid("aliases", format!("has {alias}, which is a variable that the CLI knows by that name"));
            }
        }
        for (name, effort) in &self.efforts {
            let key = format!("efforts.{name}");
            check_args(&key, &effort.args, &["model", "effort"])?;
            check_env(&key, &effort.env, &["model", "effort"])?;
        }
        for when in &self.when {
            let (names, known, kind) = match &when.credential {
                None => (&[] as &[String], None, ""),
                Some(Condition::File(name)) => (self.credentials.files.as_slice(), Some(name), "files"),
                Some(Condition::Env(name)) => (self.credentials.env.as_slice(), Some(name), "env"),
            };
            if let Some(name) = known
                && name != "*"
                && !names.contains(name)
            {
                return invalid("when.credential", format!("names {name:?}, which `credentials.{kind}` does not have"));
            }
            let known: &[&str] =
                if when.base_url == Some(true) { &["model", "effort", "base_url"] } else { &["model", "effort"] };
            check_args("when", &when.args, known)?;
            check_env("when", &when.env, known)?;
        }
        Ok(())
    }
}

fn validate_class(key: &str, class: &ResourceClass) -> Result<(), Invalid> {
    // Written in the positive, so that NaN fails too.
    if !(class.cpu >= 0.01 && class.cpu <= 1024.0) {
        return invalid(format!("{key}.cpu"), "must be between 0.01 and 1024");
    }
    if class.cpu_burst.is_some_and(|burst| !(burst >= class.cpu && burst <= 1024.0)) {
        return invalid(format!("{key}.cpu_burst"), "must be between `cpu` and 1024");
    }
    // The kernel's smallest quota.
    if class.cpu * class.cpu_period.as_secs_f64() < 0.000_999 {
        return invalid(format!("{key}.cpu_period_ms"), "is too short: `cpu` of it must be at least 1 ms");
    }
    Ok(())
}

/// Whether a path is relative and each component is a plain name.
fn plain_path(path: &str) -> bool {
    path.split('/').all(|part| {
        !part.is_empty() && part != "." && part != ".." && part.len() <= 255 && !part.chars().any(char::is_control)
    })
}

fn egress_problem(pattern: &str) -> Option<&'static str> {
    let Some((host, port)) = pattern.rsplit_once(':') else { return Some("which lacks a port, as in host:443") };
    if !port.parse::<u16>().is_ok_and(|port| port > 0) {
        return Some("whose port is not between 1 and 65535");
    }
    let name = host.strip_prefix("*.").unwrap_or(host);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
    };
    (!name.split('.').all(label)).then_some("whose host is neither a name, an IPv4 address, nor *.domain")
}

pub(super) fn check_args(key: &str, args: &[String], known: &[&str]) -> Result<(), Invalid> {
    for arg in args {
        check_text(key, arg)?;
        check_placeholders(key, arg, known)?;
    }
    Ok(())
}

pub(super) fn check_env(key: &str, env: &BTreeMap<String, String>, known: &[&str]) -> Result<(), Invalid> {
    for (name, value) in env {
        check_variable(key, name)?;
        check_text(key, value)?;
        check_placeholders(key, value, known)?;
    }
    Ok(())
}

pub(super) fn check_placeholders(key: &str, text: &str, known: &[&str]) -> Result<(), Invalid> {
    match names(text).find(|name| !known.contains(name)) {
        None => Ok(()),
        Some("base_url") => invalid(key, "uses {base_url}, which only a `when` block with `base_url = true` has"),
        Some(name) => invalid(key, format!("uses the placeholder {{{name}}}, which is not known there")),
    }
}

pub(super) fn check_text(key: &str, text: &str) -> Result<(), Invalid> {
    if text.contains('\0') { invalid(key, "holds a NUL character") } else { Ok(()) }
}

fn check_variable(key: &str, name: &str) -> Result<(), Invalid> {
    if name.is_empty() || name.contains(['=', '\0']) {
        return invalid(key, format!("has {name:?}; a variable's name must not be empty or contain `=` or NUL"));
    }
    let upper = name.to_ascii_uppercase();
    if upper == "HOME" || (upper.ends_with("_PROXY") && upper != "NO_PROXY") {
        return invalid(key, format!("sets {name}, which is the daemon's to set"));
    }
    Ok(())
}
