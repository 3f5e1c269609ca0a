//! Connects through somebody else's proxy: HTTP CONNECT (RFC 9110, section 9.3.6), also within TLS, and SOCKS 5 (RFC 1928).
//!
//! The proxy resolves the name. What it answers is told apart: whether the proxy could not be reached or does not let us in,
//! which is about the identity, or whether the destination could not be, which is about the request.

use std::fmt;
use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use zeroize::Zeroizing;

use thaw_client::config::{ProxyKind, ProxyUrl};

/// Most that is buffered of a proxy's answer, bytes.
const ANSWER_BYTES: usize = 64 * 1024;

/// A connection to a destination.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection that leads through a proxy.
pub(super) type Boxed = Box<dyn Stream>;

/// User name and password at a proxy.
pub struct Login {
    user: String,
    password: Zeroizing<String>,
}

impl Login {
    /// As the configuration has it.
    pub fn new(user: String, password: Zeroizing<String>) -> Self {
        Self { user, password }
    }

    /// As HTTP's Basic scheme wants it (RFC 7617).
    fn basic(&self) -> Option<HeaderValue> {
        let pair = Zeroizing::new(format!("{}:{}", self.user, *self.password));
        let coded = Zeroizing::new(format!("Basic {}", BASE64_STANDARD.encode(pair.as_bytes())));
        let mut value = HeaderValue::from_str(&coded).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("user", &self.user).finish_non_exhaustive()
    }
}

/// A proxy that connections go through.
#[derive(Debug)]
pub struct ProxyServer {
    url: ProxyUrl,
    login: Option<Login>,
    /// For an `https` proxy: whom to trust.
    tls: Option<Arc<ClientConfig>>,
}

/// Why a connection through a proxy failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProxyError {
    /// The proxy could not be reached, or gave no sense.
    #[error("{0}")]
    Proxy(String),
    /// The proxy does not let us in.
    #[error("it refuses the user name and password")]
    Login,
    /// The proxy cannot or will not connect to the destination.
    #[error("{0}")]
    Destination(String),
}

impl ProxyServer {
    /// A proxy; `tls` has to be there for one that speaks TLS.
    pub fn new(url: ProxyUrl, login: Option<Login>, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { url, login, tls }
    }

    /// Where it is.
    pub fn url(&self) -> &ProxyUrl {
        &self.url
    }

    /// Whether it wants plain requests with a whole URL, rather than a tunnel for each.
    pub(super) fn forwards(&self) -> bool {
        self.url.kind != ProxyKind::Socks5
    }

    /// What a plain request carries to be let in.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        self.login.as_ref().and_then(Login::basic)
    }

    /// Speaks with the proxy over `stream`, as far as that comes before any destination: TLS, if it is one of those.
    pub(super) async fn greet(&self, stream: TcpStream) -> Result<Boxed, ProxyError> {
        let Some(config) = self.tls.as_ref().filter(|_| self.url.kind == ProxyKind::Https) else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(self.url.host.clone())
            .map_err(|_| ProxyError::Proxy("its name is none that a certificate could have".to_owned()))?;
        let stream = TlsConnector::from(Arc::clone(config)).connect(name, stream).await;
        stream.map(|stream| Box::new(stream) as Boxed).map_err(|error| ProxyError::Proxy(format!("TLS: {error}")))
    }

    /// Opens a tunnel to `host` (IPv6 in brackets) over `stream`, which leads to the proxy.
    pub(super) async fn tunnel(&self, stream: TcpStream, host: &str, port: u16) -> Result<Boxed, ProxyError> {
        match self.url.kind {
            ProxyKind::Socks5 => self.socks(stream, host, port).await,
            ProxyKind::Http | ProxyKind::Https => {
                let stream = self.greet(stream).await?;
                connect(stream, &format!("{host}:{port}"), self.authorization()).await
            }
        }
    }

    async fn socks(&self, stream: TcpStream, host: &str, port: u16) -> Result<Boxed, ProxyError> {
        use tokio_socks::tcp::Socks5Stream;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let opened = match &self.login {
            Some(login) => {
                Socks5Stream::connect_with_password_and_socket(stream, (host, port), &login.user, &login.password).await
            }
            None => Socks5Stream::connect_with_socket(stream, (host, port)).await,
        };
        opened.map(|stream| Box::new(stream) as Boxed).map_err(socks_error)
    }
}

fn socks_error(error: tokio_socks::Error) -> ProxyError {
    use tokio_socks::Error::{
        AddressTypeNotSupported, CommandNotSupported, ConnectionNotAllowedByRuleset, ConnectionRefused,
        GeneralSocksServerFailure, HostUnreachable, NetworkUnreachable, NoAcceptableAuthMethods, PasswordAuthFailure,
        TtlExpired,
    };
    match error {
        PasswordAuthFailure(_) | NoAcceptableAuthMethods => ProxyError::Login,
        GeneralSocksServerFailure
        | ConnectionNotAllowedByRuleset
        | NetworkUnreachable
        | HostUnreachable
        | ConnectionRefused
        | TtlExpired
        | CommandNotSupported
        | AddressTypeNotSupported => ProxyError::Destination(error.to_string()),
        other => ProxyError::Proxy(other.to_string()),
    }
}

/// Sends CONNECT and returns what is behind it.
async fn connect(stream: Boxed, authority: &str, login: Option<HeaderValue>) -> Result<Boxed, ProxyError> {
    let garbage = |error: hyper::Error| ProxyError::Proxy(format!("it gave no valid HTTP response: {error}"));
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(ANSWER_BYTES)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(garbage)?;
    let uri: Uri = authority.parse().map_err(|_| ProxyError::Destination("it cannot be sent to a proxy".to_owned()))?;
    let mut request = Request::new(Empty::new());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() = uri;
    let host = HeaderValue::from_str(authority).map_err(|_| ProxyError::Destination("no valid host".to_owned()))?;
    request.headers_mut().insert(HOST, host);
    if let Some(login) = login {
        request.headers_mut().insert(PROXY_AUTHORIZATION, login);
    }
    let mut connection = std::pin::pin!(connection.with_upgrades());
    let mut exchange = std::pin::pin!(async {
        let response = sender.send_request(request).await.map_err(garbage)?;
        refusal(response.status()).map_or(Ok(()), Err)?;
        hyper::upgrade::on(response).await.map_err(garbage)
    });
    let upgraded = tokio::select! {
        biased;
        done = &mut exchange => done?,
        // It ends with the upgrade, or with an error that the exchange tells.
        _ = &mut connection => exchange.await?,
    };
    Ok(Box::new(TokioIo::new(upgraded)))
}

/// What a status other than success says: who is to blame.
pub(super) fn refusal(status: StatusCode) -> Option<ProxyError> {
    match status {
        status if status.is_success() => None,
        // tinyproxy says 401 where RFC 9110 has 407.
        StatusCode::PROXY_AUTHENTICATION_REQUIRED | StatusCode::UNAUTHORIZED => Some(ProxyError::Login),
        status => Some(ProxyError::Destination(format!("the proxy answered {status}"))),
    }
}

/// Reads a failed connection to the proxy itself.
pub(super) fn unreachable(error: &io::Error) -> ProxyError {
    ProxyError::Proxy(format!("cannot connect to it: {error}"))
}
