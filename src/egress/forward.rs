//! Handles one request: a tunnel for `CONNECT`, a forwarded message for everything else.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Bytes, Incoming};
use hyper::ext::ReasonPhrase;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::{PathAndQuery, Scheme};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::TokioIo;

use super::dial::{Dialed, Purpose};
use super::identity::{Identity, Way};
use super::meter::Metered;
use super::metrics::Outcome;
use super::refusal::Refusal;
use super::shared::{BUFFER_BYTES, Shared};
use super::slot::Slot;
use super::target::{Host, split_authority};
use super::upstream::ProxyError;

/// Body of an answer: the proxy's own text, or the upstream's as it arrives.
pub(super) type ProxyBody = Either<Full<Bytes>, Incoming>;

/// Buffer per direction of a tunnel, bytes: one TLS record.
const TUNNEL_BYTES: usize = 16 * 1024;

/// Most that is read of a refused request's body, bytes, and for how long. If the proxy closed while the client still
/// writes, a reset would destroy the answer.
const DRAIN_BYTES: usize = 1024 * 1024;
const DRAIN_TIME: Duration = Duration::from_secs(2);

/// Headers that belong to one connection (RFC 9110 section 7.6.1), besides those that `Connection` names and all
/// that start with `proxy-`.
const HOP_BY_HOP: [HeaderName; 5] =
    [header::CONNECTION, HeaderName::from_static("keep-alive"), header::TE, header::TRANSFER_ENCODING, header::UPGRADE];

/// Answers one request, counts it and logs it.
pub(super) async fn answer(shared: &Arc<Shared>, slot: &Arc<Slot>, request: Request<Incoming>) -> Response<ProxyBody> {
    let connect = request.method() == Method::CONNECT;
    // Charge before deciding: a refusal costs the daemon as much as a served request.
    shared.account.budget.request().await;
    let result = if !slot.is_served() {
        let (connections, waited) = (shared.limits.connections, shared.limits.place_timeout.as_secs());
        Err((Refusal::TooManyConnections { connections, waited }, Some(request)))
    } else if connect {
        tunnel(shared, slot, request).await.map_err(|refusal| (refusal, None))
    } else {
        match prepare(shared, &request).await {
            Ok(target) => exchange(shared, slot, request, target).await.map_err(|refusal| (refusal, None)),
            Err(refusal) => Err((refusal, Some(request))),
        }
    };
    match result {
        Ok(response) => {
            shared.account.count(Outcome::Allowed);
            response
        }
        Err((refusal, unread)) => {
            shared.refused(&refusal);
            // A client that waits for "100 Continue" sends no body before it has the answer.
            if let Some(request) = unread.filter(|request| !request.headers().contains_key(header::EXPECT)) {
                drain(request.into_body()).await;
            }
            // After a refused CONNECT the client may already send TLS, which is no HTTP request.
            refused(&refusal, connect || !slot.is_served())
        }
    }
}

/// Opens the upstream connection, answers 200, then copies bytes in both directions.
async fn tunnel(
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
    mut request: Request<Incoming>,
) -> Result<Response<ProxyBody>, Refusal> {
    let headers = request.headers();
    if headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get(header::CONTENT_LENGTH).is_some_and(|length| length != "0")
    {
        return Err(Refusal::Malformed("a CONNECT request has no body"));
    }
    one_host(headers)?;
    if request.uri().scheme().is_some() {
        return Err(Refusal::Malformed("CONNECT needs host:port, not a URL"));
    }
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    let (host, port) = split_authority(authority).map_err(Refusal::Malformed)?;
    let port = port.ok_or(Refusal::Malformed("CONNECT needs host:port"))?;
    let budget = &shared.account.budget;
    let dialed = shared.dialer.dial((host, port), Purpose::Tunnel, shared.route(), budget).await?;
    tracing::debug!(target: "egress", container = %shared.container, host, port, "tunnel opened");

    let Dialed { stream, through, .. } = dialed;
    let mut upstream = Metered::new(stream, Arc::clone(&shared.account));
    let activity = upstream.activity();
    let idle = shared.limits.idle_timeout;
    let upgrade = hyper::upgrade::on(&mut request);
    let slot = Arc::clone(slot);
    shared.spawn(async move {
        let (_slot, _through) = (slot, through);
        // An error means that the client went away before the tunnel began.
        let Ok(client) = upgrade.await else { return };
        let mut client = TokioIo::new(client);
        tokio::select! {
            // Either end closing or failing is the normal end of a tunnel.
            _ = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut upstream, TUNNEL_BYTES, TUNNEL_BYTES) => {}
            () = activity.idle(idle) => {}
        }
    });
    Ok(Response::new(Either::Left(Full::default())))
}

/// Destination of a plain request, connected.
struct Target {
    upstream: Dialed,
    host: String,
    port: u16,
    /// Host and port as in the request, the host in its normal form.
    authority: String,
    /// Whether the request's body is chunked; otherwise its length is known or it has none.
    chunked: bool,
}

/// Reads the request's destination and connects to it. Does not read the body.
async fn prepare(shared: &Shared, request: &Request<Incoming>) -> Result<Target, Refusal> {
    let uri = request.uri();
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP => {}
        Some(scheme) if *scheme == Scheme::HTTPS => {
            let authority = uri.authority().map_or("", |authority| authority.as_str());
            let (host, port) = split_authority(authority).map_err(Refusal::Malformed)?;
            return Err(Refusal::PlainHttps { authority: format!("{host}:{}", port.unwrap_or(443)) });
        }
        Some(_) => return Err(Refusal::Malformed("only http URLs are forwarded")),
        None => {
            return Err(Refusal::Malformed("this is a forward proxy: the request line must carry a whole http URL"));
        }
    }
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let (host, port) = split_authority(authority).map_err(Refusal::Malformed)?;
    // The normal form of the host is also what the upstream gets as Host.
    let host = Host::parse(host).map_err(Refusal::Malformed)?.to_string();
    let authority = port.map_or_else(|| host.clone(), |port| format!("{host}:{port}"));
    let port = port.unwrap_or(80);
    one_host(request.headers())?;
    let chunked = is_chunked(request.headers())?;
    let budget = &shared.account.budget;
    let upstream = shared.dialer.dial((&host, port), Purpose::Request, shared.route(), budget).await?;
    tracing::debug!(target: "egress", container = %shared.container, host, port, "request forwarded");
    Ok(Target { upstream, host, port, authority, chunked })
}

/// Sends the request over an upstream connection of its own; returns when the head of the answer has arrived.
async fn exchange(
    shared: &Arc<Shared>,
    slot: &Arc<Slot>,
    request: Request<Incoming>,
    target: Target,
) -> Result<Response<ProxyBody>, Refusal> {
    let Target { upstream, host, port, authority, chunked } = target;
    let invalid = |reason: String| Refusal::Upstream { host: host.clone(), port, reason };
    let Dialed { stream, through, wants_url } = upstream;
    let mut request = outgoing(request, &authority, chunked).map_err(Refusal::Malformed)?;
    let identity = through.as_ref().map(|(identity, _)| Arc::clone(identity)).filter(|_| wants_url);
    if let Some(identity) = &identity {
        address_to_proxy(&mut request, &authority, identity).map_err(Refusal::Malformed)?;
    }

    let upstream = Metered::new(stream, Arc::clone(&shared.account));
    let activity = upstream.activity();
    let idle = shared.limits.idle_timeout;
    let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
        .max_buf_size(BUFFER_BYTES)
        .handshake(TokioIo::new(upstream))
        .await
        .map_err(|error| invalid(error.to_string()))?;
    let driver = {
        let (slot, activity) = (Arc::clone(slot), Arc::clone(&activity));
        async move {
            let (_slot, _through) = (slot, through);
            tokio::select! {
                // The error reaches the task that waits for the response or reads its body.
                _ = connection => {}
                () = activity.idle(idle) => {}
            }
        }
    };
    shared.spawn(driver);

    let response = sender.send_request(request).await.map_err(|error| {
        if activity.is_idle(idle) { Refusal::Timeout { host: host.clone(), port } } else { invalid(error.to_string()) }
    })?;
    if let Some(identity) = identity.filter(|_| response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED) {
        // Not the container's business: it would ask a person for a password that is the operator's.
        let reason = ProxyError::Login.to_string();
        identity.failed(&reason, false);
        let (identity, reason) = (identity.name().to_owned(), format!("its proxy: {reason}"));
        return Err(Refusal::Identity { identity, host, port, reason });
    }
    incoming(response).map_err(|reason| invalid(reason.to_owned()))
}

/// Gives a request the form that a proxy wants: the whole URL, and the identity's user name and password.
fn address_to_proxy(request: &mut Request<Incoming>, authority: &str, identity: &Identity) -> Result<(), &'static str> {
    let path = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    *request.uri_mut() = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(authority)
        .path_and_query(path)
        .build()
        .map_err(|_| "the URL cannot be sent to a proxy")?;
    if let Way::Proxy(proxy) = identity.way()
        && let Some(login) = proxy.authorization()
    {
        request.headers_mut().insert(header::PROXY_AUTHORIZATION, login);
    }
    Ok(())
}

/// Turns the client's message into the proxy's: origin form, the Host that was checked, and nothing that concerned
/// the client's own connection.
fn outgoing(request: Request<Incoming>, authority: &str, chunked: bool) -> Result<Request<Incoming>, &'static str> {
    let (mut parts, body) = request.into_parts();
    let host = HeaderValue::from_str(authority).map_err(|_| "the host cannot be sent as a header")?;
    let path = match parts.uri.path_and_query() {
        // A URL without a path asks for the root. A URL with only a fragment looks like one without a path.
        Some(path) if path.as_str() != "/" => path.clone(),
        _ => PathAndQuery::from_static("/"),
    };

    remove_hop_by_hop(&mut parts.headers);
    // Not the client's Host: a server with several sites would then serve a site that was never checked.
    parts.headers.insert(header::HOST, host);
    parts.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    if chunked {
        // Set explicitly, since hyper would drop a GET's body of unknown length. Content-Length must not remain beside
        // Transfer-Encoding (request smuggling).
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if let Some(length) = parts.headers.get(header::CONTENT_LENGTH).cloned() {
        // Set once, also if the client sent the header twice.
        parts.headers.insert(header::CONTENT_LENGTH, length);
    }
    parts.uri = Uri::from(path);
    parts.version = Version::HTTP_11;
    Ok(Request::from_parts(parts, body))
}

/// Turns the upstream's message into the proxy's.
fn incoming(response: Response<Incoming>) -> Result<Response<ProxyBody>, &'static str> {
    let (mut parts, body) = response.into_parts();
    if parts.status == StatusCode::SWITCHING_PROTOCOLS {
        return Err("it switched protocols without being asked");
    }
    if is_chunked(&parts.headers).map_err(|_| "its transfer coding is not chunked")? {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
    remove_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    Ok(Response::from_parts(parts, Either::Right(body)))
}

/// Refuses a request with several Host headers (RFC 9112, section 3.2): client and upstream could each read another
/// one.
fn one_host(headers: &HeaderMap) -> Result<(), Refusal> {
    match headers.get_all(header::HOST).iter().nth(1) {
        Some(_) => Err(Refusal::Malformed("the Host header is given more than once")),
        None => Ok(()),
    }
}

/// Whether the body is chunked. Any other transfer coding is refused, since the proxy would have to decode it.
fn is_chunked(headers: &HeaderMap) -> Result<bool, Refusal> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(false),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(true),
        _ => Err(Refusal::TransferCoding),
    }
}

fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let mut names: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // The client must not remove the header that frames the body.
        .filter(|name| name != header::CONTENT_LENGTH)
        .collect();
    names.extend(headers.keys().filter(|name| name.as_str().starts_with("proxy-")).cloned());
    names.extend(HOP_BY_HOP);
    for name in names {
        headers.remove(name);
    }
}

/// Reads and discards the body of a refused request, up to [`DRAIN_BYTES`] and [`DRAIN_TIME`].
async fn drain(mut body: Incoming) {
    let read = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    };
    // Running out of time is as good as running out of bytes.
    let _ = tokio::time::timeout(DRAIN_TIME, read).await;
}

fn refused(refusal: &Refusal, close: bool) -> Response<ProxyBody> {
    let text = format!("thawd: {refusal}\n");
    let mut response = Response::new(Either::Left(Full::new(Bytes::from(text))));
    *response.status_mut() = refusal.status();
    response.extensions_mut().insert(ReasonPhrase::from_static(refusal.phrase()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    if close {
        self::close(&mut response);
    }
    response
}

/// Announces that the connection closes after this answer.
pub(super) fn close(response: &mut Response<ProxyBody>) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap()))
            .collect()
    }

    #[test]
    fn only_end_to_end_headers_remain() {
        let mut map = headers(&[
            ("connection", "close, X-Hop"),
            ("connection", "content-length,, te"),
            ("x-hop", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "Basic c2VjcmV0"),
            ("proxy-connection", "keep-alive"),
            ("proxy-anything", "x"),
            ("content-length", "3"),
            ("authorization", "Bearer token"),
            ("accept", "text/event-stream"),
        ]);
        remove_hop_by_hop(&mut map);
        let mut names: Vec<_> = map.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "authorization", "content-length"]);
    }

    #[test]
    fn chunked_is_the_only_transfer_coding() {
        assert!(!is_chunked(&headers(&[])).unwrap());
        assert!(is_chunked(&headers(&[("transfer-encoding", "Chunked")])).unwrap());
        for bad in ["gzip, chunked", "gzip", "chunked, chunked", "xchunked"] {
            assert!(is_chunked(&headers(&[("transfer-encoding", bad)])).is_err(), "{bad}");
        }
        assert!(is_chunked(&headers(&[("transfer-encoding", "gzip"), ("transfer-encoding", "chunked")])).is_err());
    }
}
