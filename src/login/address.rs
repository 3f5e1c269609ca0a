//! The address that a user opens to log in: where the provider sends the browser, and the state that it has to bring.

use reqwest::Url;

use crate::provider::LOGIN_PORT;

/// Where the browser is sent: a port of the loopback, on the user's machine as in the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// The address as the provider has it.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Its path.
    pub path: String,
}

/// What an address asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What the user opens.
    pub url: String,
    /// Where the browser is sent.
    pub redirect: Redirect,
    /// What it has to bring with it.
    pub state: String,
}

/// Reads the address that a CLI has printed. With a `template`, the provider is to send the browser there instead of where
/// the address says; `port` stands for `{port}` in it.
pub fn read(url: &str, template: Option<&str>, port: Option<u16>) -> Result<Asked, &'static str> {
    let mut url = Url::parse(url).map_err(|_| "it is no address")?;
    if let Some(template) = template {
        let port = port.ok_or("the CLI listens on no port")?;
        let redirect = template.replace(LOGIN_PORT, &port.to_string());
        let pairs: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        url.query_pairs_mut().clear().extend_pairs(pairs.iter().map(|(name, value)| {
            let value = if name == "redirect_uri" { &redirect } else { value };
            (name, value)
        }));
    }
    let parameter =
        |wanted: &str| url.query_pairs().find(|(name, _)| name == wanted).map(|(_, value)| value.into_owned());
    let redirect = parameter("redirect_uri").ok_or("it has no redirect_uri")?;
    let state = parameter("state").filter(|state| !state.is_empty()).ok_or("it has no state")?;
    Ok(Asked { redirect: loopback(&redirect)?, state, url: url.into() })
}

fn loopback(address: &str) -> Result<Redirect, &'static str> {
    let url = Url::parse(address).map_err(|_| "its redirect_uri is no address")?;
    let is_loopback = matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    match url.port() {
        Some(port) if is_loopback && url.scheme() == "http" => {
            Ok(Redirect { address: address.to_owned(), port, path: url.path().to_owned() })
        }
        _ => Err("its redirect_uri is no port of the loopback"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_redirect_is_that_of_the_address_or_of_the_manifest() {
        // As codex prints it.
        let codex = "https://auth.openai.com/oauth/authorize?response_type=code&client_id=app_x&redirect_uri=http%3A%2F%2F127.0.0.1%3A1455%2Fauth%2Fcallback&state=abc_-1&scope=openid+profile";
        let asked = read(codex, None, None).unwrap();
        let address = "http://127.0.0.1:1455/auth/callback".to_owned();
        assert_eq!(asked.redirect, Redirect { address, port: 1455, path: "/auth/callback".to_owned() });
        assert_eq!((asked.url.as_str(), asked.state.as_str()), (codex, "abc_-1"));
        // As claude prints it: for a code that no `auth login` takes.
        let claude = "https://claude.com/cai/oauth/authorize?code=true&redirect_uri=https%3A%2F%2Fplatform.claude.com%2Foauth%2Fcode%2Fcallback&scope=org%3Acreate_api_key+user%3Aprofile&state=s";
        let template = Some("http://localhost:{port}/callback");
        let asked = read(claude, template, Some(40123)).unwrap();
        assert_eq!((asked.redirect.port, asked.redirect.path.as_str()), (40123, "/callback"));
        assert_eq!(
            asked.url,
            "https://claude.com/cai/oauth/authorize?code=true&redirect_uri=http%3A%2F%2Flocalhost%3A40123%2Fcallback&scope=org%3Acreate_api_key+user%3Aprofile&state=s"
        );
        assert_eq!(read(claude, template, None), Err("the CLI listens on no port"));
        for (url, why) in [
            (claude, "no port of the loopback"),
            ("https://a.test/?state=s", "no redirect_uri"),
            ("https://a.test/?redirect_uri=http%3A%2F%2Flocalhost%3A1%2F", "no state"),
            ("https://a.test/?redirect_uri=http%3A%2F%2Flocalhost%2F&state=s", "no port"),
            ("https://a.test/?redirect_uri=http%3A%2F%2F10.0.0.1%3A1%2F&state=s", "no port of the loopback"),
            ("not an address", "no address"),
        ] {
            assert!(read(url, None, None).unwrap_err().contains(why), "{url}");
        }
    }
}
