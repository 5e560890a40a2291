//! Access checks of requests, before any route.
//!
//! A web page can make a browser send requests to this server. The `Host` check stops pages that rebind their name, the
//! `Origin` check stops all foreign pages, and the required content type makes browsers send a preflight request, which is
//! refused.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::ServerConfig;
use super::reject::Reject;

/// Paths without information, which need no key.
const OPEN_PATHS: [&str; 2] = ["/", "/healthz"];
/// Names of this machine, which cannot be rebound.
const OWN_HOSTS: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];
/// Headers of each response: responses are not pages, and must not be cached.
const FIXED_HEADERS: [(header::HeaderName, HeaderValue); 2] = [
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
];

/// Requirements of requests.
#[derive(Debug)]
pub(super) struct Policy {
    /// Allowed hosts, in lower case, without port.
    hosts: Vec<String>,
    /// Whether the server listens on all interfaces. Any literal address is then its own, and cannot be rebound.
    any_address: bool,
    /// Digest of the API key. Digests are compared in constant time.
    key: Option<blake3::Hash>,
}

impl Policy {
    pub(super) fn new(config: &ServerConfig, bound: &[SocketAddr]) -> Self {
        let own = OWN_HOSTS.iter().map(|host| host.to_string());
        let bound_hosts = bound.iter().map(|address| host_text(address.ip()));
        let configured = config.allowed_hosts.iter().map(|host| host.to_ascii_lowercase());
        Self {
            hosts: own.chain(bound_hosts).chain(configured).collect(),
            any_address: bound.iter().any(|address| address.ip().is_unspecified()),
            key: config.api_key.as_ref().map(|key| blake3::hash(key.as_bytes())),
        }
    }

    /// Checks the head of a request.
    pub(super) fn check(&self, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), Reject> {
        let authority = self.check_host(uri, headers)?;
        check_origin(authority, headers)?;
        self.check_key(uri, headers)?;
        match *method {
            Method::POST => check_content(headers),
            _ => Ok(()),
        }
    }

    fn check_host<'a>(&self, uri: &'a Uri, headers: &'a HeaderMap) -> Result<&'a str, Reject> {
        let foreign = |host: &str| {
            let message = format!("the host `{host}` is not allowed; use localhost, or add it to the allowed hosts");
            Reject::new(StatusCode::FORBIDDEN, "foreign_host", message)
        };
        let mut named = headers.get_all(header::HOST).iter();
        let host = match (named.next().map(HeaderValue::to_str), named.next()) {
            (Some(Ok(host)), None) => host,
            _ => return Err(foreign("")),
        };
        let in_uri = uri.authority().map(|authority| authority.as_str());
        for authority in [Some(host), in_uri].into_iter().flatten() {
            if !without_port(authority).is_some_and(|name| self.serves(name)) {
                return Err(foreign(authority));
            }
        }
        Ok(host)
    }

    fn serves(&self, host: &str) -> bool {
        let literal = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        self.any_address && literal.is_ok() || self.hosts.iter().any(|own| own.eq_ignore_ascii_case(host))
    }

    fn check_key(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), Reject> {
        let Some(key) = self.key.filter(|_| !OPEN_PATHS.contains(&uri.path())) else { return Ok(()) };
        let given = headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes).and_then(bearer);
        match given {
            Some(given) if blake3::hash(given) == key => Ok(()),
            Some(_) => Err(Reject::new(StatusCode::UNAUTHORIZED, "invalid_api_key", "the API key is wrong")),
            None => {
                let message = "an API key is required: send it as `Authorization: Bearer <key>`";
                Err(Reject::new(StatusCode::UNAUTHORIZED, "missing_api_key", message))
            }
        }
    }
}

/// Browsers send `Origin` with every request that may change state; only the server's own origin is allowed.
fn check_origin(authority: &str, headers: &HeaderMap) -> Result<(), Reject> {
    for origin in headers.get_all(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or("?");
        let from = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        if !from.is_some_and(|from| from.eq_ignore_ascii_case(authority)) {
            let message = format!("pages of `{origin}` may not use this server");
            return Err(Reject::new(StatusCode::FORBIDDEN, "foreign_origin", message));
        }
    }
    Ok(())
}

fn check_content(headers: &HeaderMap) -> Result<(), Reject> {
    let refuse = |message| Err(Reject::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message));
    let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or("");
    let media = content.split(';').next().unwrap_or("").trim();
    if !media.eq_ignore_ascii_case("application/json") {
        return refuse("the body must be JSON: send `Content-Type: application/json`");
    }
    match headers.get(header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => refuse("a compressed body is not accepted: send it plain"),
        _ => Ok(()),
    }
}

/// The key of an `Authorization` header.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
}

/// The host of `host`, `host:port`, `[v6]` or `[v6]:port`.
fn without_port(authority: &str) -> Option<&str> {
    if authority.starts_with('[') {
        let (host, rest) = authority.split_at(authority.find(']')? + 1);
        return (rest.is_empty() || rest.starts_with(':')).then_some(host);
    }
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    port.bytes().all(|digit| digit.is_ascii_digit()).then_some(host)
}

fn host_text(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => format!("[{v6}]"),
    }
}

/// The outermost layer: checks the head of a request, and sets the headers of the response. The request id is set by hand:
/// `tower-http`'s layer would need a trait implementation that is longer.
pub(super) async fn guard(State(policy): State<Arc<Policy>>, request: Request, next: Next) -> Response {
    let mut response = match policy.check(request.method(), request.uri(), request.headers()) {
        Ok(()) => next.run(request).await,
        Err(reject) => reject.into_response(),
    };
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&format!("req_{:032x}", rand::random::<u128>())) {
        headers.insert("x-request-id", id);
    }
    for (name, value) in FIXED_HEADERS {
        headers.entry(name).or_insert(value);
    }
    response
}
