//! The callback of a login: checked, and then fetched from the CLI's own page inside of its container, as the user's browser
//! would.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::header::{CONNECTION, HOST, LOCATION};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use reqwest::Url;
use tokio_util::task::AbortOnDropHandle;
use zeroize::Zeroizing;

use super::address::Redirect;
use super::error::LoginError;
use crate::container::Reach;

/// Longest query of a callback, bytes: those of the three providers have up to 1000.
pub const MAX_QUERY: usize = 8 << 10;

/// Time for the CLI's page, which answers once it has fetched the credential: claude gives that 15 s.
const PAGE_TIMEOUT: Duration = Duration::from_secs(30);

/// Largest page that is read, bytes.
const MAX_PAGE: usize = 256 << 10;

/// What a user brings back as the query of a callback: it may be the whole address, or what stands behind its `?`.
pub fn query_of(text: &str) -> Zeroizing<String> {
    let text = text.trim();
    let text = text.split_once('#').map_or(text, |(before, _)| before);
    Zeroizing::new(text.split_once('?').map_or(text, |(_, query)| query).to_owned())
}

/// Checks that a query is a callback of the login with this `state`.
pub fn check(query: &str, state: &str) -> Result<(), LoginError> {
    if query.len() > MAX_QUERY {
        return Err(LoginError::NoCallback("its query is longer than 8192 bytes"));
    }
    if !query.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(LoginError::NoCallback("its query has spaces or other characters that no address has"));
    }
    let (mut states, mut has_answer) = (Vec::new(), false);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "state" => states.push(Zeroizing::new(value.into_owned())),
            "code" | "error" => has_answer |= !value.is_empty(),
            _ => {}
        }
    }
    match states.as_slice() {
        [one] if **one == state => {}
        _ => return Err(LoginError::State),
    }
    if !has_answer {
        return Err(LoginError::NoCallback("it has neither `code` nor `error`"));
    }
    Ok(())
}

/// Fetches the CLI's page with the query as it is; and, if the CLI sends the browser on to the path `follow` of its own, that
/// page too. What it says is for nobody: it may hold tokens.
pub async fn forward(
    reach: &Reach,
    redirect: &Redirect,
    query: Zeroizing<String>,
    follow: Option<&str>,
) -> Result<StatusCode, String> {
    let target = Zeroizing::new(format!("{}?{}", redirect.path, *query));
    let (status, location) = fetch(reach, redirect.port, &target).await?;
    let next = location.as_ref().and_then(|location| own_page(redirect, location)).filter(|page| {
        let path = page.split_once('?').map_or(page.as_str(), |(path, _)| path);
        follow == Some(path)
    });
    if let Some(next) = next {
        fetch(reach, redirect.port, &next).await?;
    }
    Ok(status)
}

/// Path and query of a page of the CLI's own.
fn own_page(redirect: &Redirect, location: &str) -> Option<Zeroizing<String>> {
    let base = Url::parse(&redirect.address).ok()?;
    let url = base.join(location).ok()?;
    let is_own =
        url.port() == Some(redirect.port) && matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    is_own.then(|| Zeroizing::new(format!("{}{query}", url.path())))
}

type Location = Option<Zeroizing<String>>;

async fn fetch(reach: &Reach, port: u16, target: &str) -> Result<(StatusCode, Location), String> {
    let fetched = tokio::time::timeout(PAGE_TIMEOUT, async {
        let stream = reach.connect(port).await.map_err(|error| format!("nobody takes it inside: {error}"))?;
        let said = |error: hyper::Error| format!("the CLI's page: {error}");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(said)?;
        let request = Request::get(target).header(HOST, format!("localhost:{port}")).header(CONNECTION, "close");
        let request = request.body(Empty::<Bytes>::new()).map_err(|_| "the query cannot be sent".to_owned())?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(async move {
            // Whoever waits for the answer is told.
            let _ = connection.await;
        }));
        let response = sender.send_request(request).await.map_err(said)?;
        let (head, body) = response.into_parts();
        let location = head.headers.get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.map(|text| Zeroizing::new(text.to_owned()));
        // To its end, so that the CLI is not cut off; what is too long is left.
        let _ = Limited::new(body, MAX_PAGE).collect().await;
        Ok((head.status, location))
    });
    fetched.await.map_err(|_| format!("the CLI's page did not answer within {} s", PAGE_TIMEOUT.as_secs()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_has_the_state_of_its_login_once() {
        assert!(check("code=c%2F1&state=s%2F1&scope=a+b", "s/1").is_ok());
        assert!(check("error=access_denied&state=s", "s").is_ok());
        for query in ["code=c", "code=c&state=", "code=c&state=t", "code=c&state=s&state=t", "code=c&state=s&state=s"] {
            assert!(matches!(check(query, "s"), Err(LoginError::State)), "{query}");
        }
        for query in ["state=s", "code=&state=s", "code=c&state=s\r\nX: y", "code=c &state=s", "code=\u{e9}&state=s"] {
            assert!(matches!(check(query, "s"), Err(LoginError::NoCallback(_))), "{query}");
        }
        let long = format!("state=s&code={}", "x".repeat(MAX_QUERY));
        assert!(matches!(check(&long, "s"), Err(LoginError::NoCallback(_))));
        assert!(check(&long[..MAX_QUERY], "s").is_ok());
    }

    #[test]
    fn a_user_brings_the_address_or_its_query() {
        for text in ["http://127.0.0.1:1455/auth/callback?code=c&state=s#x", " code=c&state=s\n", "?code=c&state=s"] {
            assert_eq!(&**query_of(text), "code=c&state=s", "{text}");
        }
    }

    #[test]
    fn only_a_page_of_the_clis_own_is_followed() {
        let address = "http://localhost:1455/auth/callback".to_owned();
        let redirect = Redirect { address, port: 1455, path: "/auth/callback".to_owned() };
        let page = |location: &str| own_page(&redirect, location).map(|page| page.to_string());
        assert_eq!(page("/success?id_token=x").as_deref(), Some("/success?id_token=x"));
        assert_eq!(page("http://127.0.0.1:1455/success").as_deref(), Some("/success"));
        for other in ["https://platform.claude.com/ok", "http://localhost:1456/success", "http://10.0.0.1:1455/success"]
        {
            assert_eq!(page(other), None, "{other}");
        }
    }
}
