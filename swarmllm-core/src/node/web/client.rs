//! Asks a server for a file or a part of it, and looks hard at the answer before a byte of it is read.

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
use crate::node::web::patience::Patience;
use crate::node::web::throttle::Throttle;

/// Redirects of one question. Hubs lead to a store of theirs, and that perhaps to another one.
const REDIRECTS: usize = 5;
/// Bytes of what a server said that an error tells again.
const TOLD: usize = 80;

/// Asks for one file.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    url: Url,
    token: Option<HeaderValue>,
    throttle: Arc<Throttle>,
    pub patience: Patience,
}

/// Which file a server has at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub len: u64,
    etag: Option<String>,
    modified: Option<String>,
}

impl Version {
    /// What parts of the file can be asked for by: something that no two versions share.
    fn validator(&self) -> Option<&str> {
        // A weak tag is the same for files of the same meaning, not of the same bytes.
        self.etag.as_deref().filter(|tag| !tag.starts_with("W/")).or(self.modified.as_deref())
    }

    /// Tells versions of a file apart.
    pub fn digest(&self, file: &[u8; 32]) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(file);
        hasher.update(&self.len.to_le_bytes()).update(self.validator().unwrap_or_default().as_bytes());
        *hasher.finalize().as_bytes()
    }

    fn of(len: u64, headers: &HeaderMap) -> Self {
        Self { len, etag: text(headers, &header::ETAG), modified: text(headers, &header::LAST_MODIFIED) }
    }

    /// Whether an answer's headers speak of another version. A part comes with the tag of its file, but where a date has
    /// been asked by, not always with the date.
    fn differs(&self, headers: &HeaderMap) -> bool {
        let other = Version::of(self.len, headers);
        match self.validator() == self.etag.as_deref() {
            true => other.etag != self.etag,
            false => other.modified.is_some() && other.modified != self.modified,
        }
    }
}

/// How a server gives the file.
pub(super) enum Found {
    /// In parts, of this version.
    Parts(Version),
    /// As a whole only, which this answer is, of so many bytes.
    Whole(Response, u64),
}

impl Client {
    /// Blocks on what the machine has of certificates.
    pub fn new(source: &WebSource, throttle: Arc<Throttle>, patience: Patience) -> Result<Client, WebError> {
        let url = source.url()?;
        // Of the environment nothing is taken, proxies neither; redirects are followed here, where they are looked at.
        let http = reqwest::Client::builder()
            .user_agent(concat!("swarmllm/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(patience.stall)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .no_proxy()
            .build()
            // Most likely the machine knows no authorities whose certificates it trusts.
            .map_err(|error| {
                Fault::new(ErrorKind::Unsupported, format!("HTTPS cannot be spoken here: {}", cause(&error)))
            })?;
        let token = source.token.as_ref().map(|token| secret(token)).transpose()?;
        Ok(Client { http, url, token, throttle, patience })
    }

    /// The file's address, for people.
    pub fn shown(&self) -> String {
        shown(&self.url)
    }

    /// The file's address with all that belongs to it, to tell sources apart.
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

    /// Asks for another file in the same place.
    pub fn sibling(&self, name: &str) -> Client {
        Client { url: address::sibling(&self.url, name), ..self.clone() }
    }

    /// The server, for people.
    pub fn host(&self) -> String {
        self.url.host_str().unwrap_or_default().to_owned()
    }

    /// Asks for the first byte, and learns from the answer how long the file is, which version it is, and whether parts
    /// of it can be had.
    pub async fn probe(&self) -> Result<Found, WebError> {
        let mut retries = Retries::new(&self.patience);
        loop {
            match self.try_probe().await {
                Err(error) => retries.after(error).await?,
                found => return found,
            }
        }
    }

    async fn try_probe(&self) -> Result<Found, WebError> {
        let response = self.get(&(0..1), None).await?;
        let len = match response.status() {
            StatusCode::PARTIAL_CONTENT => self.check_range(&response, &(0..1))?,
            _ => return self.whole(response),
        };
        let version = Version::of(len, response.headers());
        match version.validator() {
            Some(_) => Ok(Found::Parts(version)),
            // Parts of what cannot be named may be of different files: one answer for all of it is not.
            None => self.whole(self.get(&(0..len), None).await?),
        }
    }

    fn whole(&self, response: Response) -> Result<Found, WebError> {
        let is_whole = |len: &u64| match response.status() {
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT => self.check_range(&response, &(0..*len)).is_ok_and(|all| all == *len),
            _ => false,
        };
        match response.content_length().filter(is_whole) {
            Some(len) => Ok(Found::Whole(response, len)),
            None => Err(self.malformed("an answer", "no file whose length is told".to_owned())),
        }
    }

    /// The answer with a part of a known version.
    pub async fn part(&self, range: &Range<u64>, version: &Version) -> Result<Response, WebError> {
        let response = self.get(range, version.validator()).await?;
        if version.differs(response.headers()) || response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return Err(WebError::Changed { host: self.host() });
        }
        if response.status() != StatusCode::PARTIAL_CONTENT {
            // Asked for a part if it is still this file, a server gives the whole where it is another one.
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

    /// The next bytes of an answer, once the host's bound lets them pass. `left` is how long they may take, and becomes
    /// shorter.
    pub async fn chunk(&self, response: &mut Response, left: &mut Duration) -> Result<Option<Bytes>, WebError> {
        let begun = tokio::time::Instant::now();
        let deadline = self.patience.stall.min(*left);
        let chunk = tokio::time::timeout(deadline, response.chunk()).await;
        *left = left.saturating_sub(begun.elapsed());
        let chunk = match chunk {
            Err(_) if left.is_zero() => {
                return Err(WebError::Stalled { host: self.host(), deadline: self.patience.group });
            }
            Err(_) => return Err(WebError::Stalled { host: self.host(), deadline }),
            Ok(chunk) => chunk.map_err(|error| self.unreachable(&error))?,
        };
        self.throttle.pass(chunk.as_ref().map_or(0, Bytes::len)).await;
        Ok(chunk)
    }

    /// Follows redirects to the first other answer, which is a good one.
    async fn get(&self, range: &Range<u64>, if_range: Option<&str>) -> Result<Response, WebError> {
        let mut url = self.url.clone();
        for _ in 0..=REDIRECTS {
            let last = range.end.saturating_sub(1);
            let mut request = self.http.get(url.clone()).header(header::ACCEPT_ENCODING, "identity");
            request = request.header(header::RANGE, format!("bytes={}-{last}", range.start));
            if let Some(validator) = if_range {
                request = request.header(header::IF_RANGE, validator);
            }
            if let Some(token) = self.token.as_ref().filter(|_| url.origin() == self.url.origin()) {
                request = request.header(header::AUTHORIZATION, token.clone());
            }
            let deadline = self.patience.stall;
            let response = match tokio::time::timeout(deadline, request.send()).await {
                Err(_) => return Err(WebError::Stalled { host: self.host(), deadline }),
                Ok(response) => response.map_err(|error| self.unreachable(&error))?,
            };
            if !response.status().is_redirection() {
                return self.accept(response);
            }
            url = self.follow(&url, response.headers())?;
        }
        Err(WebError::Redirects { host: self.host(), max: REDIRECTS })
    }

    /// Where a redirect leads.
    pub(super) fn follow(&self, from: &Url, headers: &HeaderMap) -> Result<Url, WebError> {
        let astray = |reason| WebError::Astray { host: self.host(), reason };
        let location = text(headers, &header::LOCATION).ok_or_else(|| astray("nowhere"))?;
        let to = from.join(&location).map_err(|_| astray("what is no address"))?;
        check(&to).map_err(|_| astray("where we do not ask"))?;
        if from.scheme() == "https" && to.scheme() != "https" {
            return Err(astray("an address without encryption"));
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

    /// Whether an answer is the part that was asked for; gives the length of the whole file.
    fn check_range(&self, response: &Response, asked: &Range<u64>) -> Result<u64, WebError> {
        let told = text(response.headers(), &header::CONTENT_RANGE).unwrap_or_default();
        match parse_content_range(&told) {
            Some((range, len)) if range == *asked && range.end <= len => {
                let promised = response.content_length();
                let matches = promised.is_none_or(|promised| promised == range.end - range.start);
                matches.then_some(len).ok_or_else(|| self.malformed("a length", promised.unwrap_or(0).to_string()))
            }
            _ => Err(self.malformed("a part", told)),
        }
    }

    pub fn malformed(&self, what: &'static str, given: String) -> WebError {
        WebError::Malformed { host: self.host(), what, given: given.chars().take(TOLD).collect() }
    }

    fn unreachable(&self, error: &reqwest::Error) -> WebError {
        WebError::Unreachable { host: self.host(), reason: cause(error) }
    }
}

/// What happened. An error's own text has the address in it; its deepest cause has not.
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
    let refused = |_| Fault::new(ErrorKind::InvalidArgument, "the token has characters that no token has");
    let mut value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(refused)?;
    value.set_sensitive(true);
    Ok(value)
}

/// Counts how often one thing is asked for again.
pub(super) struct Retries {
    left: u32,
    pause: Duration,
}

impl Retries {
    pub fn new(patience: &Patience) -> Self {
        Self { left: patience.retries, pause: patience.pause }
    }

    /// Waits, so that it can be asked for again; or gives the error back where that is in vain, or was tried enough.
    pub async fn after(&mut self, error: WebError) -> Result<(), WebError> {
        if self.left == 0 || !error.may_pass() {
            return Err(error);
        }
        tracing::warn!(%error, "a download is tried again");
        tokio::time::sleep(self.pause).await;
        self.left -= 1;
        self.pause = self.pause.saturating_mul(2);
        Ok(())
    }
}
