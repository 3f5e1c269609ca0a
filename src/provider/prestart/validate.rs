//! Checks of `[prestart]` that go beyond its shape.

use super::manifest::{HandOver, ModelMode, Prestart, Protocol};
use crate::provider::{
    manifest::{Condition, Provider},
    template::names,
    validate::{Invalid, check_args, check_env, check_placeholders, check_text, invalid},
};

impl Prestart {
    /// Checks this section against the rest of its manifest.
    pub(in crate::provider) fn validate(&self, provider: &Provider) -> Result<(), Invalid> {
        if provider.command.argv.is_empty() {
            return invalid("prestart", "needs `[command]`, for the prompts that cannot use a prestarted CLI");
        }
        self.validate_argv()?;
        check_env("prestart.env", &self.env, &["model"])?;
        for when in &self.when {
            if when.credential.is_some() {
                return invalid("prestart.when", "has `credential`, which is not known before the claim");
            }
            let known: &[&str] = if when.base_url == Some(true) { &["model", "base_url"] } else { &["model"] };
            check_args("prestart.when", &when.args, known)?;
            check_env("prestart.when", &when.env, known)?;
        }
        if let Some(effort) = self.efforts.iter().find(|effort| !provider.efforts.contains_key(*effort)) {
            return invalid("prestart.efforts", format!("has {effort:?}, which `efforts` does not have"));
        }
        self.validate_credentials(provider)
    }

    fn validate_argv(&self) -> Result<(), Invalid> {
        let key = "prestart.argv";
        if self.argv.first().is_none_or(|program| program.is_empty() || names(program).next().is_some()) {
            return invalid(key, "must begin with a program, without placeholders");
        }
        for element in &self.argv {
            check_text(key, element)?;
            check_placeholders(key, element, &["model", "args"])?;
            if element.contains("{args}") && element != "{args}" {
                return invalid(key, "must have `{args}` as an element of its own");
            }
        }
        let count = self.argv.iter().filter(|element| *element == "{args}").count();
        if count > 1 {
            return invalid(key, "has `{args}` more than once");
        }
        if count == 0 && self.when.iter().any(|when| !when.args.is_empty()) {
            return invalid(key, "needs an element `{args}`: `prestart.when` adds arguments");
        }
        let has_model = self.argv.iter().flat_map(|element| names(element)).any(|name| name == "model")
            || self.env.values().flat_map(|value| names(value)).any(|name| name == "model");
        if self.model == ModelMode::Fixed && !has_model {
            return invalid(key, "needs `{model}`, since the model is fixed");
        }
        if self.model == ModelMode::Late && self.protocol == Protocol::ClaudeStreamJson {
            return invalid("prestart.model", "must be \"fixed\": claude puts a late choice into the conversation");
        }
        Ok(())
    }

    fn validate_credentials(&self, provider: &Provider) -> Result<(), Invalid> {
        let key = "prestart.credentials";
        if self.credentials.is_empty() {
            return invalid(key, "names none: no prompt could use it");
        }
        for (at, late) in self.credentials.iter().enumerate() {
            let (known, name) = match &late.credential {
                Condition::File(name) => (&provider.credentials.files, name),
                Condition::Env(name) => (&provider.credentials.env, name),
            };
            if !known.contains(name) {
                return invalid(key, format!("names {name:?}, which `credentials` does not have"));
            }
            if self.credentials[..at].iter().any(|earlier| earlier.credential == late.credential) {
                return invalid(key, format!("names {name:?} twice"));
            }
            let file = matches!(late.credential, Condition::File(_));
            let possible = match (self.protocol, late.by) {
                (Protocol::CodexAppServer, HandOver::AuthJson) => file,
                (Protocol::CodexAppServer | Protocol::GeminiAcp, HandOver::ApiKey) => !file,
                (Protocol::ClaudeStreamJson, HandOver::Environment) => !file,
                (Protocol::ClaudeStreamJson | Protocol::GeminiAcp, HandOver::File) => file,
                _ => false,
            };
            if !possible {
                return invalid(
                    key,
                    format!("has {name:?} handed over in a way that `prestart.protocol` does not know"),
                );
            }
        }
        Ok(())
    }
}
