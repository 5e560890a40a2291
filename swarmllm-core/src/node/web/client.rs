//! HTTP client of one file: requests ranges and validates each response before its body is read.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Response, StatusCode, Url};

use crate::base::{ErrorKind, Fault};
use crate::model::gguf::PartName;
use crate::node::web::address::{self, WebSource, check, shown};
use crate::node::web::error::WebError;
use crate::node::web::throttle::Throttle;
use crate::node::web::timeouts::Timeouts;

/// Most redirects of a request. Hubs redirect to their storage, which may redirect again.
const MAX_REDIRECTS: usize = 5;
/// Most characters of a server's text quoted in an error.
const MAX_QUOTED: usize = 80;

/// Client for one file. Clones share connections and rate limit.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    token: Option<HeaderValue>,
    throttle: Arc<Throttle>,
    pub timeouts: Timeouts,
}

/// Version of a file on a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub len: u64,
    etag: Option<String>,
    modified: Option<String>,
}

impl Version {
    /// Validator for `If-Range`: unique to this version.
    fn validator(&self) -> Option<&str> {
        // A weak tag may be shared by files with different bytes.
        self.etag.as_deref().filter(|tag| !tag.starts_with("W/")).or(self.modified.as_deref())
    }

    /// Digest of this version of a file.
    pub fn digest(&self, file: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(file);
        hasher.update(&self.len.to_le_bytes()).update(self.validator().unwrap_or_default().as_bytes());
        *hasher.finalize().as_bytes()
    }

    fn of(len: u64, headers: &HeaderMap) -> Self {
        Self { len, etag: text(headers, &header::ETAG), modified: text(headers, &header::LAST_MODIFIED) }
    }

    /// Whether a response's headers belong to another version. A range response repeats the file's tag, but not always the
    /// date if a date was the validator.
    fn differs(&self, headers: &HeaderMap) -> bool {
        let other = Version::of(self.len, headers);
        match self.validator() == self.etag.as_deref() {
            true => other.etag != self.etag,
            false => other.modified.is_some() && other.modified != self.modified,
        }
    }
}

/// How a server provides a file.
pub(super) enum Probe {
    /// By ranges, in this version.
    Ranges(Version),
    /// Whole files only: this response, with its length in bytes.
    Whole(Response, u64),
}

impl Client {
    /// Blocks while it loads the machine's certificates.
    pub fn new(source: &WebSource, throttle: Arc<Throttle>, timeouts: Timeouts) -> Result<Client, WebError> {
        let url = source.url()?;
        // No settings from the environment, such as proxies. Redirects are followed and checked in `get`.
        let http = reqwest::Client::builder()
            .user_agent(concat!("swarmllm/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(timeouts.stall)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .build()
            // Most likely the machine has no trusted certificates.
            .map_err(|error| {
                Fault::new(ErrorKind::Unsupported, format!("HTTPS is not available here: {}", cause(&error)))
            })?;
        let token = source.token.as_ref().map(|token| secret(token)).transpose()?;
        Ok(Client { http, url, token, throttle, timeouts })
    }

    /// The file's address, for display.
    pub fn shown(&self) -> String {
        shown(&self.url)
    }

    /// The file's full address, which identifies the source.
    pub fn address(&self) -> &str {
        self.url.as_str()
    }

    /// The file's name without `.gguf`.
    pub fn stem(&self) -> Option<String> {
        address::stem(&self.url)
    }

    /// The file's name as a part of a model in several files.
    pub fn part_name(&self) -> Option<PartName> {
        address::part_name(&self.url)
    }

    /// A client for a file beside this one.
    pub fn sibling(&self, name: &str) -> Client {
        Client { url: address::sibling(&self.url, name), ..self.clone() }
    }

    /// The server's host name, for display.
    pub fn host(&self) -> String {
        self.url.host_str().unwrap_or_default().to_owned()
    }

    /// Requests the first byte to learn the file's length, version, and whether the server supports ranges.
    pub async fn probe(&self) -> Result<Probe, WebError> {
        let mut retries = Retries::new(&self.timeouts);
        loop {
            match self.try_probe().await {
                Err(error) => retries.after(error).await?,
                probed => return probed,
            }
        }
    }

    async fn try_probe(&self) -> Result<Probe, WebError> {
        let response = self.get(&(0..1), None).await?;
        let len = match response.status() {
            StatusCode::PARTIAL_CONTENT => self.check_range(&response, &(0..1))?,
            _ => return self.whole(response),
        };
        let version = Version::of(len, response.headers());
        match version.validator() {
            Some(_) => Ok(Probe::Ranges(version)),
            // Without a validator, ranges may come from different versions; one response cannot.
            None => self.whole(self.get(&(0..len), None).await?),
        }
    }

    fn whole(&self, response: Response) -> Result<Probe, WebError> {
        let is_whole = |len: &u64| match response.status() {
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT => self.check_range(&response, &(0..*len)).is_ok_and(|all| all == *len),
            _ => false,
        };
        match response.content_length().filter(is_whole) {
            Some(len) => Ok(Probe::Whole(response, len)),
            None => Err(self.malformed("a response", "no file of known length".to_owned())),
        }
    }

    /// Requests a range of a known version.
    pub async fn range(&self, range: &Range<u64>, version: &Version) -> Result<Response, WebError> {
        let response = self.get(range, version.validator()).await?;
        if version.differs(response.headers()) || response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(WebError::Changed { host: self.host() });
        }
        if response.status() != StatusCode::PARTIAL_CONTENT {
            // `If-Range`: a server sends the whole file if it is another version.
            let len = response.content_length();
            return Err(match len.is_some_and(|len| len != version.len) {
                true => WebError::Changed { host: self.host() },
                false => WebError::WholeOnly { host: self.host() },
            });
        }
        match self.check_range(&response, range)? {
            len if len == version.len => Ok(response),
            _ => Err(WebError::Changed { host: self.host() }),
        }
    }

    /// The next bytes of a response, delayed by the rate limit; `None` at the end. `left` is the remaining time and is
    /// reduced.
    pub async fn chunk(&self, response: &mut Response, left: &mut Duration) -> Result<Option<Bytes>, WebError> {
        let begun = tokio::time::Instant::now();
        let deadline = self.timeouts.stall.min(*left);
        let chunk = tokio::time::timeout(deadline, response.chunk()).await;
        *left = left.saturating_sub(begun.elapsed());
        let chunk = match chunk {
            Err(_) if left.is_zero() => {
                return Err(WebError::Stalled { host: self.host(), deadline: self.timeouts.group });
            }
            Err(_) => return Err(WebError::Stalled { host: self.host(), deadline }),
            Ok(chunk) => chunk.map_err(|error| self.unreachable(&error))?,
        };
        self.throttle.pass(chunk.as_ref().map_or(0, Bytes::len)).await;
        Ok(chunk)
    }

    /// Sends the request and follows redirects. Returns a response with an accepted status.
    async fn get(&self, range: &Range<u64>, if_range: Option<&str>) -> Result<Response, WebError> {
        let mut url = self.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let last = range.end.saturating_sub(1);
            let mut request = self.http.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
            request = request.header(header::RANGE, format!("bytes={}-{last}", range.start));
            if let Some(validator) = if_range {
                request = request.header(header::IF_RANGE, validator);
            }
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.url.origin()) {
                request = request.header(header::AUTHORIZATION, token.clone());
            }
            let deadline = self.timeouts.stall;
            let response = match tokio::time::timeout(deadline, request.send()).await {
                Err(_) => return Err(WebError::Stalled { host: self.host(), deadline }),
                Ok(response) => response.map_err(|error| self.unreachable(&error))?,
            };
            if !response.status().is_redirection() {
                return self.accept(response);
            }
            url = self.follow(&url, response.headers())?;
        }
        Err(WebError::Redirects { host: self.host(), max: MAX_REDIRECTS })
    }

    /// The target of a redirect.
    pub(super) fn follow(&self, from: &Url, headers: &HeaderMap) -> Result<Url, WebError> {
        let bad = |reason| WebError::BadRedirect { host: self.host(), reason };
        let location = text(headers, &header::LOCATION).ok_or_else(|| bad("without a location"))?;
        let to = from.join(&location).map_err(|_| bad("to an invalid address"))?;
        check(&to).map_err(|_| bad("to an unacceptable address"))?;
        if from.scheme() == "https" && to.scheme() != "https" {
            return Err(bad("to an unencrypted address"));
        }
        Ok(to)
    }

    fn accept(&self, response: Response) -> Result<Response, WebError> {
        match response.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE => {}
            status => return Err(WebError::Status { host: self.host(), status: status.as_u16() }),
        }
        match text(response.headers(), &header::CONTENT_ENCODING) {
            Some(encoding) if encoding != "identity" => Err(self.malformed("an encoding", encoding)),
            _ => Ok(response),
        }
    }

    /// Checks that a response is the requested range; returns the length of the whole file.
    fn check_range(&self, response: &Response, requested: &Range<u64>) -> Result<u64, WebError> {
        let content_range = text(response.headers(), &header::CONTENT_RANGE).unwrap_or_default();
        match parse_content_range(&content_range) {
            Some((range, len)) if range == *requested && range.end <= len => {
                let promised = response.content_length();
                let matches = promised.is_none_or(|promised| promised == range.end - range.start);
                matches.then_some(len).ok_or_else(|| self.malformed("a length", promised.unwrap_or(0).to_string()))
            }
            _ => Err(self.malformed("a range", content_range)),
        }
    }

    pub fn malformed(&self, what: &'static str, given: String) -> WebError {
        WebError::Malformed { host: self.host(), what, given: given.chars().take(MAX_QUOTED).collect() }
    }

    fn unreachable(&self, error: &reqwest::Error) -> WebError {
        WebError::Unreachable { host: self.host(), reason: cause(error) }
    }
}

/// The root cause of an error. The error's own text contains the address; the root cause does not.
fn cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if cause.is::<reqwest::Error>() { "the exchange failed".to_owned() } else { cause.to_string() }
}

/// `bytes A-B/LENGTH`
fn parse_content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, len) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    Some((first.parse().ok()?..end, len.parse().ok()?))
}

fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

fn secret(token: &str) -> Result<HeaderValue, WebError> {
    let refused = |_| Fault::new(ErrorKind::InvalidArgument, "the token contains invalid characters");
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(refused)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Bounded retries of one request.
pub(super) struct Retries {
    left: u32,
    pause: Duration,
}

impl Retries {
    pub fn new(timeouts: &Timeouts) -> Self {
        Self { left: timeouts.retries, pause: timeouts.pause }
    }

    /// Waits before the next retry; returns the error if a retry is useless or none is left.
    pub async fn after(&mut self, error: WebError) -> Result<(), WebError> {
        if self.left == 0 || !error.is_transient() {
            return Err(error);
        }
        tracing::warn!(%error, "a download is retried");
        tokio::time::sleep(self.pause).await;
        self.left -= 1;
        self.pause = self.pause.saturating_mul(2);
        Ok(())
    }
}
