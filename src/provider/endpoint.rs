//! Where the logins of a provider are renewed, and by whom: manifest and configuration together.

use thaw_client::config::{RefreshPolicy, token_url_problem};

use super::manifest::{FileFormat, Provider};
use super::refresh::Encoding;
use super::validate::{Invalid, invalid};

/// Where a login is renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint<'a> {
    /// Address.
    pub url: &'a str,
    /// Id of the CLI.
    pub client_id: &'a str,
    /// How it is asked.
    pub encoding: Encoding,
    /// Name of the file that holds the login.
    pub file: &'a str,
    /// What is in it.
    pub format: FileFormat,
}

impl Provider {
    /// Who renews logins.
    pub fn refresh_policy(&self) -> RefreshPolicy {
        let refresh = &self.credentials.refresh;
        let default = if self.endpoint().is_some() { RefreshPolicy::RefreshAhead } else { RefreshPolicy::Exclusive };
        refresh.policy.unwrap_or(default)
    }

    /// Where logins are renewed, if that is known.
    pub fn endpoint(&self) -> Option<Endpoint<'_>> {
        let refresh = &self.credentials.refresh;
        let (url, client_id) = (refresh.token_url.as_deref()?, refresh.client_id.as_deref()?);
        let (file, format) = self.credentials.formats.first_key_value()?;
        Some(Endpoint { url, client_id, encoding: refresh.encoding, file, format: *format })
    }

    /// Takes over what an operator has configured. Where the CLI is sent to another upstream, the maker's token endpoint
    /// is not asked unless it is named again.
    ///
    /// # Errors
    /// The daemon is to renew logins, and the manifest does not say how.
    pub fn set_refresh(
        &mut self,
        policy: Option<RefreshPolicy>,
        token_url: Option<&str>,
        has_base_url: bool,
    ) -> Result<(), Invalid> {
        let refresh = &mut self.credentials.refresh;
        match token_url {
            Some(url) => refresh.token_url = Some(url.to_owned()),
            None if has_base_url && refresh.token_url.take().is_some() => {
                refresh.policy = refresh.policy.filter(|policy| *policy != RefreshPolicy::RefreshAhead);
            }
            None => {}
        }
        refresh.policy = policy.or(refresh.policy);
        self.validate_refresh()
    }

    pub(super) fn validate_refresh(&self) -> Result<(), Invalid> {
        let refresh = &self.credentials.refresh;
        if let Some(problem) = refresh.token_url.as_deref().and_then(token_url_problem) {
            return invalid("credentials.refresh.token_url", problem);
        }
        if refresh.client_id.as_ref().is_some_and(String::is_empty) {
            return invalid("credentials.refresh.client_id", "must not be empty");
        }
        if (refresh.token_url.is_some() || refresh.policy == Some(RefreshPolicy::RefreshAhead))
            && self.credentials.formats.len() != 1
        {
            let problem = "needs one file with a format in `credentials.formats`: the one that holds the login";
            return invalid("credentials.refresh", problem);
        }
        if refresh.policy == Some(RefreshPolicy::RefreshAhead) && self.endpoint().is_none() {
            let problem = "is \"refresh-ahead\", which needs `token_url` and `client_id`; with a `base_url`, name \
                           `token_url` in the provider's section too";
            return invalid("credentials.refresh.policy", problem);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &str = r#"
        name = "p"
        image = "i"
        home = "/home/runtime"
        egress = []
        [credentials]
        dir = ".p"
        files = ["token"]
        required = false
        tmpfs_mib = 1
        [resources.idle]
        memory_mib = 64
        cpu = 0.1
        [resources.run]
        memory_mib = 64
        cpu = 0.1
        "#;

    fn provider(credentials: &str) -> Provider {
        let manifest = MANIFEST.replace("tmpfs_mib = 1", &format!("tmpfs_mib = 1\n{credentials}"));
        toml::from_str(&manifest).unwrap()
    }

    const ENDPOINT: &str = "formats = { token = \"claude-credentials\" }
        refresh = { token_url = \"https://a.test/token\", client_id = \"c\" }";

    #[test]
    fn the_daemon_renews_where_it_is_told_how() {
        use RefreshPolicy as P;
        let policy = |credentials: &str, policy, url, has_base_url| {
            let mut provider = provider(credentials);
            provider.validate().map_err(|error| error.to_string())?;
            provider.set_refresh(policy, url, has_base_url).map_err(|error| error.to_string())?;
            Ok::<_, String>((provider.refresh_policy(), provider.endpoint().map(|endpoint| endpoint.url.to_owned())))
        };
        let at = |url: &str| Some(url.to_owned());
        assert_eq!(policy("", None, None, false), Ok((P::Exclusive, None)));
        assert_eq!(policy("refresh = { policy = \"shared\" }", None, None, false), Ok((P::Shared, None)));
        assert_eq!(policy(ENDPOINT, None, None, false), Ok((P::RefreshAhead, at("https://a.test/token"))));
        assert_eq!(policy(ENDPOINT, Some(P::Shared), None, false), Ok((P::Shared, at("https://a.test/token"))));
        // Another upstream has no token endpoint that is known.
        assert_eq!(policy(ENDPOINT, None, None, true), Ok((P::Exclusive, None)));
        let named = policy(ENDPOINT, None, Some("http://127.0.0.1:7/t"), true);
        assert_eq!(named, Ok((P::RefreshAhead, at("http://127.0.0.1:7/t"))));
        for (credentials, asked, url, why) in [
            ("", Some(P::RefreshAhead), None, "needs one file with a format"),
            (ENDPOINT, None, Some("http://a.test/"), "[::1] only"),
            ("refresh = { token_url = \"https://a.test/\" }", None, None, "needs one file with a format"),
            (&*ENDPOINT.replace("\"c\"", "\"\""), None, None, "must not be empty"),
        ] {
            let error = policy(credentials, asked, url, false).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let error = policy(ENDPOINT, Some(P::RefreshAhead), None, true).unwrap_err();
        assert!(error.contains("name `token_url` in the provider's section"), "{error}");
    }
}
