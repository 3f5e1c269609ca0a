//! Session with a registry for one repository: authentication, and documents of bounded size.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::secrets::RegistryAuth;
use oci_client::token_cache::RegistryTokenType;
use oci_client::{Client, Reference, RegistryOperation};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;
use tokio::sync::Mutex;

use super::auth::{Challenge, Login, challenge};
use super::error::shortened;
use super::{Options, RegistryError};
use thaw_client::types::Secret;

/// Longest time for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence of a registry within an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Largest answer of a token service, and largest part of an error text that is read, bytes. Tokens are a few KiB.
const ANSWER_BYTES: u64 = 256 * 1024;
/// Lifetime of a token that declares none (distribution specification, "Token Authentication").
const TOKEN_SECONDS: u64 = 60;

/// A session. It gets a new token before the old one expires.
pub(super) struct Session {
    /// Client that follows redirects; like any reqwest client, without credentials to another host.
    http: reqwest::Client,
    /// Client that follows no redirects: a demand for a password must come from the registry itself.
    direct: reqwest::Client,
    base: String,
    pub(super) reference: Reference,
    operation: RegistryOperation,
    login: Option<Login>,
    plain_http: bool,
    authorities: Vec<Vec<u8>>,
    grant: Mutex<Option<Arc<Grant>>>,
}

/// What the registry has granted, until it expires.
pub(super) struct Grant {
    pub(super) client: Client,
    kind: GrantKind,
    until: Option<Instant>,
}

enum GrantKind {
    Nobody,
    Basic(Login),
    Bearer(Secret),
}

/// A document as received.
pub(super) struct Document {
    pub(super) bytes: Vec<u8>,
    pub(super) headers: HeaderMap,
}

impl Session {
    /// Prepares a session; sends nothing yet.
    pub(super) fn new(
        reference: &Reference,
        operation: RegistryOperation,
        options: &Options,
    ) -> Result<Self, RegistryError> {
        // An error means that a provider is installed already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let registry = reference.resolve_registry();
        let plain_http = options.plain_http || (is_loopback(registry) && options.authorities.is_empty());
        let authorities: Result<Vec<_>, _> =
            options.authorities.iter().map(|one| reqwest::Certificate::from_der(one)).collect();
        let authorities = authorities.map_err(|error| RegistryError::network(registry, error))?;
        let client = |redirects| {
            reqwest::Client::builder()
                .redirect(redirects)
                .tls_certs_merge(authorities.clone())
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .user_agent(USER_AGENT)
                .build()
                .map_err(|error| RegistryError::network(registry, error))
        };
        Ok(Session {
            http: client(reqwest::redirect::Policy::limited(5))?,
            direct: client(reqwest::redirect::Policy::none())?,
            base: format!("{}://{registry}", if plain_http { "http" } else { "https" }),
            reference: reference.clone(),
            operation,
            login: options.login.clone(),
            plain_http,
            authorities: options.authorities.clone(),
            grant: Mutex::new(None),
        })
    }

    /// Name of the registry, for messages.
    pub(super) fn registry(&self) -> &str {
        self.reference.resolve_registry()
    }

    /// The current grant. Asks the registry if there is none or it is about to expire.
    pub(super) async fn grant(&self) -> Result<Arc<Grant>, RegistryError> {
        let mut grant = self.grant.lock().await;
        if let Some(grant) = grant.as_ref().filter(|grant| grant.until.is_none_or(|until| Instant::now() < until)) {
            return Ok(Arc::clone(grant));
        }
        let fresh = Arc::new(self.ask().await?);
        *grant = Some(Arc::clone(&fresh));
        Ok(fresh)
    }

    async fn ask(&self) -> Result<Grant, RegistryError> {
        let registry = self.registry();
        let response = self.direct.get(format!("{}/v2/", self.base)).send().await;
        let response = response.map_err(|error| RegistryError::network(registry, error))?;
        let (kind, until) = match response.status() {
            // The registry demands nothing, so no login is sent.
            StatusCode::OK => (GrantKind::Nobody, None),
            StatusCode::UNAUTHORIZED => self.answer(&response).await?,
            _ => return Err(self.status("the registry", response).await),
        };
        self.with_client(kind, until).await
    }

    /// Makes a request that shows whether access is granted, and authenticates if the registry demands it only now.
    /// Returns whether another try is worthwhile. Registries with public and private repositories decide for each
    /// resource.
    pub(super) async fn may_try_again(&self, method: Method, path: &str) -> Result<bool, RegistryError> {
        let grant = self.grant().await?;
        let url = format!("{}/v2/{}/{path}", self.base, self.reference.repository());
        let response = grant.sign(self.direct.request(method, url)).send().await;
        let response = response.map_err(|error| RegistryError::network(self.registry(), error))?;
        match response.status() {
            StatusCode::UNAUTHORIZED => Ok(self.renewed(&grant, &response).await?.is_some()),
            // Another request has authenticated meanwhile.
            status => Ok(status.is_success() || status.is_redirection()),
        }
    }

    /// Authenticates as a refusal demands; `None` if it demands nothing, or does not come from the registry itself.
    async fn renewed(&self, stale: &Arc<Grant>, refusal: &Response) -> Result<Option<Arc<Grant>>, RegistryError> {
        let is_own = Url::parse(&self.base).is_ok_and(|base| base.origin() == refusal.url().origin());
        if !is_own || !refusal.headers().contains_key(WWW_AUTHENTICATE) {
            return Ok(None);
        }
        let mut grant = self.grant.lock().await;
        if let Some(other) = grant.as_ref().filter(|other| !Arc::ptr_eq(other, stale)) {
            return Ok(Some(Arc::clone(other)));
        }
        let (kind, until) = self.answer(refusal).await?;
        let fresh = Arc::new(self.with_client(kind, until).await?);
        *grant = Some(Arc::clone(&fresh));
        Ok(Some(fresh))
    }

    async fn with_client(&self, kind: GrantKind, until: Option<Instant>) -> Result<Grant, RegistryError> {
        let registry = self.registry();
        let client = Client::try_from(ClientConfig {
            protocol: if self.plain_http { ClientProtocol::Http } else { ClientProtocol::Https },
            // One PUT for each blob: every registry supports that.
            use_monolithic_push: true,
            read_timeout: Some(READ_TIMEOUT),
            connect_timeout: Some(CONNECT_TIMEOUT),
            user_agent: USER_AGENT,
            extra_root_certificates: self
                .authorities
                .iter()
                .map(|data| Certificate { encoding: CertificateEncoding::Der, data: data.clone() })
                .collect(),
            ..ClientConfig::default()
        });
        let client = client.map_err(|error| RegistryError::from_client(registry, "the registry", error))?;
        match &kind {
            GrantKind::Nobody => {}
            GrantKind::Bearer(token) => {
                client.store_auth_if_needed(registry, &RegistryAuth::Bearer(token.expose().to_owned())).await;
            }
            GrantKind::Basic(Login { user, password }) => {
                let (user, password) = (user.clone(), password.expose().to_owned());
                client.store_auth_if_needed(registry, &RegistryAuth::Basic(user.clone(), password.clone())).await;
                // Otherwise the client would ask the registry for its demands again. A check for a blob counts as
                // pulling.
                for operation in [RegistryOperation::Pull, RegistryOperation::Push] {
                    let basic = RegistryTokenType::Basic(user.clone(), password.clone());
                    client.tokens.insert(&self.reference, operation, basic).await;
                }
            }
        }
        Ok(Grant { client, kind, until })
    }

    /// Gets the grant that a registry's demand asks for.
    async fn answer(&self, response: &Response) -> Result<(GrantKind, Option<Instant>), RegistryError> {
        let refused =
            |reason: &str| RegistryError::Refused { registry: self.registry().to_owned(), reason: reason.to_owned() };
        let values = response.headers().get_all(WWW_AUTHENTICATE);
        match challenge(values.iter().filter_map(|value| value.to_str().ok())) {
            None => Err(refused("it asks for a kind of login that thawctl does not have")),
            Some(Challenge::Basic) => match &self.login {
                Some(login) => Ok((GrantKind::Basic(login.clone()), None)),
                None => Err(refused("it wants a login: give --username, or run `docker login` once")),
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                let (token, seconds) = self.token(&realm, service.as_deref(), scope.as_deref()).await?;
                // Renewed after four fifths of the lifetime, so that the last request with the token still arrives in
                // time.
                let until = Instant::now() + Duration::from_secs(seconds) * 4 / 5;
                Ok((GrantKind::Bearer(token), Some(until)))
            }
        }
    }

    /// Gets a token for the repository from the registry's token service, and its lifetime in seconds.
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        asked: Option<&str>,
    ) -> Result<(Secret, u64), RegistryError> {
        let invalid = |reason: &str| RegistryError::Invalid {
            what: format!("the token service of {}", self.registry()),
            reason: reason.to_owned(),
        };
        let mut url = Url::parse(realm).map_err(|_| invalid("its address is no URL"))?;
        if url.scheme() != "https" && !(self.plain_http && url.scheme() == "http") {
            if self.login.is_some() {
                return Err(RegistryError::Unsafe {
                    registry: self.registry().to_owned(),
                    reason: "its token service is not reached by https".to_owned(),
                });
            }
            return Err(invalid("its address does not begin with https://"));
        }
        let actions = if self.operation == RegistryOperation::Push { "pull,push" } else { "pull" };
        let scope = format!("repository:{}:{actions}", self.reference.repository());
        // Further scopes that the registry demands, as far as they are for repositories.
        let more = asked.filter(|asked| *asked != scope && asked.starts_with("repository:"));
        url.query_pairs_mut()
            .extend_pairs(service.map(|service| ("service", service)))
            .append_pair("scope", &scope)
            .extend_pairs(more.map(|more| ("scope", more)));
        let mut request = self.direct.get(url);
        if let Some(Login { user, password }) = &self.login {
            request = request.basic_auth(user, Some(password.expose()));
        }
        let response = request.send().await.map_err(|error| RegistryError::network(self.registry(), error))?;
        if !response.status().is_success() {
            return Err(self.status("the token service", response).await);
        }
        let bytes = self.body(response, ANSWER_BYTES, "the answer of the token service").await?;
        // Without the parser's error text, which could quote the token.
        let answer: Value = serde_json::from_slice(&bytes).map_err(|_| invalid("its answer is no JSON"))?;
        let token = answer["token"].as_str().or_else(|| answer["access_token"].as_str()).unwrap_or_default();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid("its answer has no token"));
        }
        let seconds = answer["expires_in"].as_u64().unwrap_or(TOKEN_SECONDS).clamp(TOKEN_SECONDS, 3600);
        Ok((Secret::new(token.to_owned()), seconds))
    }

    /// Gets the manifest or index `name` (a tag or a digest).
    pub(super) async fn manifest(&self, name: &str, accept: &str, limit: u64) -> Result<Document, RegistryError> {
        let url = format!("{}/v2/{}/manifests/{name}", self.base, self.reference.repository());
        self.document(&url, &format!("manifest {name}"), accept, limit).await
    }

    /// Gets a blob that is a document.
    pub(super) async fn small_blob(&self, digest: &str, limit: u64) -> Result<Document, RegistryError> {
        let url = format!("{}/v2/{}/blobs/{digest}", self.base, self.reference.repository());
        self.document(&url, &format!("blob {digest}"), "*/*", limit).await
    }

    async fn document(&self, url: &str, what: &str, accept: &str, limit: u64) -> Result<Document, RegistryError> {
        let grant = self.grant().await?;
        let ask = async |grant: &Grant| {
            let request = grant.sign(self.http.get(url).header(ACCEPT, accept));
            request.send().await.map_err(|error| RegistryError::network(self.registry(), error))
        };
        let mut response = ask(&grant).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && let Some(fresh) = self.renewed(&grant, &response).await?
        {
            response = ask(&fresh).await?;
        }
        if !response.status().is_success() {
            return Err(self.status(&format!("{what} of {}", self.reference), response).await);
        }
        let headers = response.headers().clone();
        Ok(Document { bytes: self.body(response, limit, what).await?, headers })
    }

    async fn body(&self, response: Response, limit: u64, what: &str) -> Result<Vec<u8>, RegistryError> {
        let (mut bytes, mut chunks) = (Vec::new(), response.bytes_stream());
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| RegistryError::network(self.registry(), error))?;
            if bytes.len() as u64 + chunk.len() as u64 > limit {
                let reason = format!("has more than {limit} bytes");
                return Err(RegistryError::Invalid { what: what.to_owned(), reason });
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Converts an error status, with the registry's text.
    async fn status(&self, what: &str, response: Response) -> RegistryError {
        let (status, registry) = (response.status().as_u16(), self.registry().to_owned());
        let body = self.body(response, ANSWER_BYTES, what).await.unwrap_or_default();
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        // The registry's own format, or that of token services.
        let text = json["errors"][0]["message"].as_str().or_else(|| json["details"].as_str());
        let text = text.map_or_else(|| String::from_utf8_lossy(&body).into_owned(), str::to_owned);
        match status {
            401 | 403 => RegistryError::Refused { registry, reason: format!("{what}: {}", shortened(&text)) },
            404 => RegistryError::NotFound { what: what.to_owned() },
            _ => RegistryError::Status { registry, status, message: format!("{what}: {}", shortened(&text)) },
        }
    }
}

impl Grant {
    fn sign(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.kind {
            GrantKind::Nobody => request,
            GrantKind::Basic(Login { user, password }) => request.basic_auth(user, Some(password.expose())),
            GrantKind::Bearer(token) => request.bearer_auth(token.expose()),
        }
    }
}

impl Document {
    /// Media type declared by the registry, without parameters.
    pub(super) fn content_type(&self) -> Option<&str> {
        let value = self.headers.get(CONTENT_TYPE)?.to_str().ok()?;
        Some(value.split(';').next().unwrap_or(value).trim())
    }
}

const USER_AGENT: &str = concat!("thawctl/", env!("CARGO_PKG_VERSION"));

/// Whether a registry is on loopback, by docker's rule.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_loopback() {
        for yes in ["localhost", "localhost:5000", "127.0.0.1:5000", "127.9.9.9", "[::1]:5000"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["localhost.example.com", "docker.io", "10.0.0.1:5000", "127.0.0.1.example.com", "[fe80::1]:5000"] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
