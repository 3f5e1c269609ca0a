//! Who renews logins, and the address where that is done.

use serde::{Deserialize, Serialize};

/// Who renews the logins of a provider's users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RefreshPolicy {
    /// The daemon, before they are over. An execution gets a file without the refresh token.
    RefreshAhead,
    /// The CLI. A login that it would renew goes to one execution at a time.
    Exclusive,
    /// The CLI. A login goes to all executions at once: for refresh tokens that can be used more than once.
    Shared,
}

/// What is wrong with the address of a token endpoint. What is sent there is secret: in the clear it stays on this host.
pub fn token_url_problem(text: &str) -> Option<String> {
    let wrong = |what: &str| Some(format!("{what}: write it as https://HOST[:PORT]/PATH"));
    match reqwest::Url::parse(text) {
        Err(error) => wrong(&format!("is no address ({error})")),
        Ok(url) if !["http", "https"].contains(&url.scheme()) => wrong("must begin with https://"),
        Ok(url) if url.host_str().is_none_or(str::is_empty) => wrong("names no host"),
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            wrong("holds a user or a password, which a token endpoint is not asked with")
        }
        Ok(url) if url.scheme() == "http" && !is_loopback(&url) => {
            wrong("begins with http://, which is for 127.0.0.1 and [::1] only")
        }
        Ok(_) => None,
    }
}

fn is_loopback(url: &reqwest::Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::token_url_problem;

    #[test]
    fn a_secret_is_not_sent_over_a_network_in_the_clear() {
        for good in ["https://auth.test/oauth/token", "http://127.0.0.1:8080/token", "http://[::1]/token"] {
            assert_eq!(token_url_problem(good), None, "{good}");
        }
        for (bad, why) in [
            ("auth.test/token", "is no address"),
            ("ftp://auth.test/token", "must begin with https://"),
            ("http://auth.test/token", "[::1] only"),
            ("http://10.0.0.7/token", "[::1] only"),
            ("https://user:secret@auth.test/", "a user or a password"),
        ] {
            let problem = token_url_problem(bad).unwrap();
            assert!(problem.contains(why) && !problem.contains("secret@"), "{problem}");
        }
    }
}
