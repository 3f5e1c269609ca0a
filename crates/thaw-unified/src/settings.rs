//! What to ask and whom, from the environment.

use std::io::Read;

use super::{Api, Failure};
use thaw_client::types::Secret;

/// Longest prompt, bytes: it is in memory twice (as it is, and as JSON), and 32 MiB must do.
const PROMPT_LIMIT: u64 = 4 * 1024 * 1024;

/// One question.
#[derive(Debug)]
pub struct Settings {
    /// Whom to ask.
    pub api: Api,
    /// The provider's name of the model.
    pub model: String,
    /// What to ask.
    pub prompt: String,
    /// Who asks, as the caller calls them.
    pub user: Option<String>,
    /// The credential.
    pub key: Secret,
    /// Where the API is, without a slash at its end.
    pub base_url: String,
    /// Whether to tell on stderr what happens.
    pub debug: bool,
}

impl Settings {
    /// Reads the variables with `variable`, and the prompt from `stdin` if there is no `PROMPT`.
    ///
    /// # Errors
    /// [`Failure::Usage`] or [`Failure::NoCredential`]; no text holds a value that could be secret.
    pub fn read(variable: impl Fn(&str) -> Option<String>, stdin: impl Read) -> Result<Self, Failure> {
        let get = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let usage = |text: String| Failure::Usage(text);
        let provider = get("PROVIDER").ok_or_else(|| usage(format!("PROVIDER is not set: give {}", Api::NAMES)))?;
        let api = Api::named(provider.trim())
            .ok_or_else(|| usage(format!("PROVIDER is {:?}, which is none of {}", clipped(&provider), Api::NAMES)))?;
        let model = get("MODEL").unwrap_or_else(|| api.default_model().to_owned());
        // It becomes a part of Google's URL.
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:/@".contains(c);
        if model.len() > 128 || !model.chars().all(plain) || model.contains("..") {
            return Err(usage("MODEL has characters that no model's name has".to_owned()));
        }
        let key = api.key_variables().iter().find_map(|name| get(name)).map(|key| key.trim().to_owned());
        let key = Secret::new(key.ok_or(Failure::NoCredential(api.key_variables()[0]))?);
        if !key.expose().bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(usage(format!("{} has characters that no key has", api.key_variables()[0])));
        }
        let base_url = get(api.base_url_variable()).unwrap_or_else(|| api.default_base_url().to_owned());
        if !base_url.starts_with("https://") && !base_url.starts_with("http://") {
            return Err(usage(format!("{} must begin with https:// or http://", api.base_url_variable())));
        }
        let prompt = match get("PROMPT") {
            Some(prompt) => prompt,
            None => prompt_of(stdin)?,
        };
        Ok(Self {
            api,
            model,
            prompt,
            user: get("USER_ID"),
            key,
            base_url: base_url.trim_end_matches('/').to_owned(),
            debug: get("DEBUG").is_some_and(|value| !matches!(value.as_str(), "0" | "false" | "no" | "off")),
        })
    }
}

fn prompt_of(stdin: impl Read) -> Result<String, Failure> {
    let mut prompt = String::new();
    stdin
        .take(PROMPT_LIMIT + 1)
        .read_to_string(&mut prompt)
        .map_err(|error| Failure::Usage(format!("cannot read the prompt from standard input: {error}")))?;
    if prompt.len() as u64 > PROMPT_LIMIT {
        return Err(Failure::Usage(format!("the prompt is longer than {PROMPT_LIMIT} bytes")));
    }
    if prompt.trim().is_empty() {
        return Err(Failure::Usage("no prompt: set PROMPT, or write it to standard input".to_owned()));
    }
    Ok(prompt)
}

fn clipped(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)], stdin: &str) -> Result<Settings, Failure> {
        let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        Settings::read(get, stdin.as_bytes())
    }

    #[test]
    fn a_provider_and_a_key_are_enough() {
        let settings = read(&[("PROVIDER", "google"), ("GEMINI_API_KEY", " k\n")], "3*67\n").unwrap();
        assert_eq!((settings.api, settings.model.as_str()), (Api::Google, "gemini-2.5-flash"));
        assert_eq!((settings.prompt.as_str(), settings.key.expose()), ("3*67\n", "k"));
        assert_eq!(settings.base_url, "https://generativelanguage.googleapis.com");
        assert!(!settings.debug && settings.user.is_none());
        assert!(!format!("{settings:?}").contains("\"k\""));
    }

    #[test]
    fn what_is_missing_is_named() {
        let line = |variables: &[(&str, &str)], stdin: &str| read(variables, stdin).unwrap_err().line(None);
        assert_eq!(line(&[], ""), "PROVIDER is not set: give openai, anthropic or google");
        assert!(line(&[("PROVIDER", "meta")], "").contains("\"meta\", which is none of openai"));
        assert_eq!(line(&[("PROVIDER", "openai")], "x"), "no credential: give OPENAI_API_KEY");
        let other_key = [("PROVIDER", "anthropic"), ("OPENAI_API_KEY", "k")];
        assert_eq!(read(&other_key, "x").unwrap_err(), Failure::NoCredential("ANTHROPIC_API_KEY"));
        let key = [("PROVIDER", "openai"), ("OPENAI_API_KEY", "k")];
        assert!(line(&key, " \n").starts_with("no prompt"));
        for (name, value) in [("MODEL", "a b"), ("MODEL", "../x"), ("OPENAI_BASE_URL", "ftp://x")] {
            assert!(line(&[key[0], key[1], (name, value)], "x").starts_with(name), "{value}");
        }
        assert!(line(&[key[0], ("OPENAI_API_KEY", "two words")], "x").starts_with("OPENAI_API_KEY"));
    }

    #[test]
    fn a_prompt_that_would_not_fit_is_refused() {
        let key = [("PROVIDER", "openai"), ("OPENAI_API_KEY", "k")];
        let most = "x".repeat(PROMPT_LIMIT as usize);
        assert!(read(&key, &most).is_ok());
        assert!(read(&key, &format!("{most}x")).is_err());
    }
}
