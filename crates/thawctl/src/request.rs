//! Makes the request of `thawctl run` from its arguments, files and environment.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::ids::NAME_LABEL;
use super::profile::Profile;
use super::run_args::Args;
use super::{CtlError, env_file, files, speak, stdin};
use thaw_client::client::Client;
use thaw_client::types::{Credentials, ExecutionRequest, Secret};

/// Longest user name that the API takes, characters.
const USER_MAX: usize = 64;

/// Requests from this size on are compared with the daemon's limit before they are sent, bytes: asking costs a round trip.
const LARGE: u64 = 256 << 10;

/// Builds the request; reads stdin when the prompt is `-`.
pub(super) fn build(mut args: Args, profile: &Profile) -> Result<ExecutionRequest, CtlError> {
    let (provider, prompt) = target(&mut args, profile)?;
    let prompt = match prompt {
        Some(dash) if dash == "-" => Some(read_prompt()?),
        Some(prompt) => {
            stdin::refuse_unread(stdin::Whose::Prompt)?;
            Some(prompt)
        }
        None => None,
    };
    let stdin = match (args.interactive, &prompt) {
        (true, Some(_)) => {
            return Err(CtlError::Usage("-i goes with a command: a prompt's CLI gets the prompt".to_owned()));
        }
        (true, None) => Some(stdin::read_all()?.into()),
        (false, None) => {
            stdin::refuse_unread(stdin::Whose::Command)?;
            None
        }
        (false, Some(_)) => None,
    };
    let mut env = env_file::read(&args.env_file)?;
    env.extend(args.env);
    let mut labels: BTreeMap<String, String> = args.label.into_iter().collect();
    if let Some(name) = args.name {
        labels.insert(NAME_LABEL.to_owned(), name);
    }
    let command = (!args.command.is_empty()).then_some(args.command);
    let mut collect = args.collect;
    if args.output.is_some() && collect.is_empty() {
        collect.push(".".to_owned());
    }
    let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let credentials = match provider.is_empty() || !(args.file.is_empty() && args.credential_env.is_empty()) {
        true => credentials(&args.file, args.credential_env)?,
        false => of_profile(profile, &provider)?,
    };
    Ok(ExecutionRequest {
        provider,
        sandbox: None,
        image: args.image,
        user: args.user.or_else(|| profile.user.clone()).unwrap_or_else(current_user),
        prompt,
        command,
        entrypoint: args.entrypoint.map(|program| vec![program]),
        model: args.model,
        effort: args.effort,
        credentials,
        env,
        forced_env: args.force_env.into_iter().collect(),
        stdin,
        stdin_open: false,
        files: Default::default(),
        archive: files::pack(&args.put)?,
        collect,
        workdir: args.workdir,
        memory_bytes: args.memory,
        cpus: args.cpus,
        timeout_ms: args.timeout.map(milliseconds),
        queue_timeout_ms: args.queue_timeout.map(milliseconds),
        background: args.detach,
        labels,
    })
}

/// The provider, and the prompt if there is one: the first word is a provider unless the profile names one and the word
/// stands alone.
fn target(args: &mut Args, profile: &Profile) -> Result<(String, Option<String>), CtlError> {
    if args.image.is_some() {
        return Ok((String::new(), None));
    }
    match (args.provider.take(), args.prompt.take(), args.command.is_empty(), &profile.provider) {
        (Some(provider), Some(prompt), ..) => Ok((provider, Some(prompt))),
        (Some(provider), None, false, _) => Ok((provider, None)),
        (Some(prompt), None, true, Some(provider)) => Ok((provider.clone(), Some(prompt))),
        (None, None, false, Some(provider)) => Ok((provider.clone(), None)),
        (Some(provider), None, true, None) => Err(CtlError::Usage(format!(
            "what to run? Give a prompt: thawctl run {provider} 'PROMPT', or a command: thawctl run {provider} -- CMD"
        ))),
        _ => Err(CtlError::Usage(
            "name a provider: thawctl run PROVIDER 'PROMPT', thawctl run PROVIDER -- CMD; `thawctl providers` lists them"
                .to_owned(),
        )),
    }
}

/// The credentials that the profile has for a provider.
fn of_profile(profile: &Profile, provider: &str) -> Result<Option<Credentials>, CtlError> {
    let files: Vec<_> = profile.credential_files.get(provider).cloned().unwrap_or_default().into_iter().collect();
    credentials(&files, profile.credential_env.get(provider).cloned().into_iter().collect())
}

/// Says how large a request is, and what the limit is, before all of it is sent.
pub(super) async fn check_size(client: &Client, request: &ExecutionRequest) -> Result<(), CtlError> {
    if speak::json_bytes(request) < LARGE {
        return Ok(());
    }
    // A daemon that does not tell its limit refuses the request by itself.
    let Ok(version) = client.get::<serde_json::Value>("/v1/version").await else { return Ok(()) };
    let limit = version["limits"]["max_body_bytes"].as_u64().unwrap_or(u64::MAX);
    if speak::json_bytes(request) > limit {
        let size = speak::size(request);
        return Err(CtlError::Usage(format!("{size}; the daemon takes {limit} bytes (api.max_body_bytes)")));
    }
    Ok(())
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
