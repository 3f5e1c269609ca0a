//! Makes the request of `thawctl run` from its arguments, files and environment.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::run_args::Args;
use super::{CtlError, env_file, files, stdin};
use thaw_client::types::{Credentials, ExecutionRequest, Secret};

/// Longest user name that the API takes, characters.
const USER_MAX: usize = 64;

/// Builds the request; reads stdin when the prompt is `-`.
pub(super) fn build(args: Args) -> Result<ExecutionRequest, CtlError> {
    let prompt = match args.prompt {
        Some(dash) if dash == "-" => Some(read_prompt()?),
        prompt => prompt,
    };
    let stdin = match (args.interactive, &prompt) {
        (true, _) => Some(stdin::read_all()?.into()),
        (false, None) => {
            stdin::refuse_unread()?;
            None
        }
        // It was the prompt, or the CLI gets one from the arguments.
        (false, Some(_)) => None,
    };
    let mut env = env_file::read(&args.env_file)?;
    env.extend(args.env);
    let command = (!args.command.is_empty()).then_some(args.command);
    let mut collect = args.collect;
    if args.output.is_some() && collect.is_empty() {
        collect.push(".".to_owned());
    }
    Ok(ExecutionRequest {
        provider: args.provider.unwrap_or_default(),
        image: args.image,
        user: args.user.unwrap_or_else(current_user),
        prompt,
        command,
        model: args.model,
        effort: args.effort,
        credentials: credentials(&args.file, args.credential_env)?,
        env,
        stdin,
        files: Default::default(),
        archive: files::pack(&args.put)?,
        collect,
        workdir: args.workdir,
        timeout_ms: args.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        queue_timeout_ms: args.queue_timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        background: args.detach,
        labels: args.label.into_iter().collect(),
    })
}

fn read_prompt() -> Result<String, CtlError> {
    let mut prompt = String::new();
    std::io::stdin()
        .read_to_string(&mut prompt)
        .map_err(|e| CtlError::Usage(format!("cannot read the prompt from stdin: {e}; it must be UTF-8 text")))?;
    Ok(prompt)
}

pub(super) fn credentials(files: &[(String, PathBuf)], env: Vec<String>) -> Result<Option<Credentials>, CtlError> {
    if files.is_empty() && env.is_empty() {
        return Ok(None);
    }
    let mut credentials = Credentials::default();
    for (name, path) in files {
        credentials.files.insert(name.clone(), read_secret(path)?);
    }
    for name in env {
        // The error of `var` would show the value.
        let value = std::env::var(&name).map_err(|_| {
            CtlError::Usage(format!("--credential-env {name}: the variable must be set, and be UTF-8 text; export it"))
        })?;
        credentials.env.insert(name, Secret::new(value));
    }
    Ok(Some(credentials))
}

fn read_secret(path: &Path) -> Result<Secret, CtlError> {
    std::fs::read_to_string(path)
        .map(Secret::new)
        .map_err(|e| CtlError::Usage(format!("cannot read the credential file {}: {e}", path.display())))
}

/// The name of the user who runs us, as the API wants it; by number when `/etc/passwd` does not know it. The
/// environment is not asked: it keeps the old name under su.
pub(super) fn current_user() -> String {
    let uid = rustix::process::getuid().as_raw();
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    user_name(&passwd, uid).unwrap_or_else(|| format!("uid-{uid}"))
}

fn user_name(passwd: &str, uid: u32) -> Option<String> {
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then_some(name)
    })?;
    let allowed = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' };
    let name: String = name.to_lowercase().chars().map(allowed).take(USER_MAX).collect();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str =
        "root:x:0:0:root:/root:/bin/sh\nJane.Doe:x:1000:1000::/home/jane:/bin/sh\nbroken\n:x:7:7::/:\n";

    #[test]
    fn the_user_is_named_as_the_api_wants_it() {
        assert_eq!(user_name(PASSWD, 0).as_deref(), Some("root"));
        assert_eq!(user_name(PASSWD, 1000).as_deref(), Some("jane-doe"));
        assert_eq!(user_name(PASSWD, 1), None);
        assert_eq!(user_name(PASSWD, 7), None);
        assert_eq!(user_name(&format!("{}:x:1:", "a".repeat(99)), 1).unwrap().len(), USER_MAX);
    }

    #[test]
    fn errors_name_the_file_or_variable() {
        let error = credentials(&[("a".into(), "/nonexistent/a.json".into())], Vec::new()).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/a.json"));
        let error = credentials(&[], vec!["THAWCTL_NO_SUCH_VARIABLE".into()]).unwrap_err();
        assert!(error.to_string().contains("THAWCTL_NO_SUCH_VARIABLE"));
        assert!(credentials(&[], Vec::new()).unwrap().is_none());
    }
}
