//! Addresses of models on the web.

use std::fmt;

use reqwest::Url;

use crate::model::gguf::PartName;
use crate::node::web::error::WebError;

/// The hub that `hf:` addresses are of, where the host names none.
pub const HUB: &str = "https://huggingface.co";
/// What an address in a hub begins with.
const HUB_SCHEME: &str = "hf:";
/// The revision of an address in a hub that names none.
const REVISION: &str = "main";
/// Bytes of an address: what servers commonly accept.
const MAX_ADDRESS: usize = 4096;

/// A GGUF on the web, and how to come by it.
#[derive(Clone, PartialEq, Eq)]
pub struct WebSource {
    /// `https://…`, `http://…`, or `hf:owner/repo/path/file.gguf` with `@revision` behind it where it is not `main`. Of a
    /// model in several files any part.
    pub address: String,
    /// The hub, or a mirror of it, that `hf:` addresses are of. Default: [`HUB`].
    pub hub: String,
    /// A token for files that not everybody may have. Only the address's own server is told it, and only over `https:`
    /// or within this machine. Default: none.
    pub token: Option<String>,
}

impl WebSource {
    /// A file that everybody may have.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), hub: HUB.to_owned(), token: None }
    }

    /// Whether a text is an address of this sort, rather than a path.
    pub fn is_address(text: &str) -> bool {
        [HUB_SCHEME, "https://", "http://"].iter().any(|scheme| text.starts_with(scheme))
    }

    /// Whether it is a place in a hub.
    pub fn is_of_hub(&self) -> bool {
        self.address.starts_with(HUB_SCHEME)
    }

    /// Where the file lies.
    pub(super) fn url(&self) -> Result<Url, WebError> {
        if self.address.len() > MAX_ADDRESS {
            return Err(refuse(&self.address, "it is longer than 4096 bytes"));
        }
        let url = match self.address.strip_prefix(HUB_SCHEME) {
            Some(place) => self.in_hub(place)?,
            None => parse(&self.address)?,
        };
        let is_safe = url.scheme() == "https" || is_loopback(&url);
        if self.token.is_some() && !is_safe {
            return Err(refuse(&shown(&url), "a token is told over https only"));
        }
        Ok(url)
    }

    /// `owner/repo/path/file.gguf[@revision]`
    fn in_hub(&self, place: &str) -> Result<Url, WebError> {
        let (file, revision) = place.rsplit_once('@').unwrap_or((place, REVISION));
        let parts: Vec<&str> = file.split('/').collect();
        let is_name = |part: &&str| !matches!(*part, "" | "." | "..");
        let [owner, repo, path @ ..] = parts.as_slice() else {
            return Err(refuse(&self.address, "hf:owner/repo/path/file.gguf is needed"));
        };
        if path.is_empty() || !parts.iter().all(is_name) || !is_name(&revision) {
            return Err(refuse(&self.address, "hf:owner/repo/path/file.gguf is needed"));
        }
        let mut url = parse(&self.hub)?;
        let no_base = || refuse(&self.hub, "a hub is an https address");
        // Each part is escaped, the slashes in a revision too.
        url.path_segments_mut()
            .map_err(|()| no_base())?
            .pop_if_empty()
            .extend([owner, repo, "resolve", revision])
            .extend(path);
        Ok(url)
    }
}

impl From<&str> for WebSource {
    fn from(address: &str) -> Self {
        Self::new(address)
    }
}

impl From<String> for WebSource {
    fn from(address: String) -> Self {
        Self::new(address)
    }
}

impl fmt::Debug for WebSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = self.token.as_ref().map(|_| "(not told)");
        f.debug_struct("WebSource").field("hub", &self.hub).field("token", &token).finish_non_exhaustive()
    }
}

/// An address that we would ask at.
pub(super) fn parse(text: &str) -> Result<Url, WebError> {
    // What cannot be read may hold a password, so it is not told again.
    let url = Url::parse(text).map_err(|_| refuse("(unreadable)", "it is not a URL"))?;
    check(&url).map(|()| url.clone()).map_err(|reason| refuse(&shown(&url), reason))
}

/// Whether we would ask there.
pub(super) fn check(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "https" | "http") {
        return Err("only https and http are spoken");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it has a user or password in it, which would be told and logged with it");
    }
    if url.host_str().is_none_or(str::is_empty) { Err("it names no host") } else { Ok(()) }
}

/// An address for people: without its query, which may be a signature.
pub(super) fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host.trim_matches(['[', ']']).parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
        None => false,
    }
}

/// The name of the file as a part of a model in several files.
pub(super) fn part_name(url: &Url) -> Option<PartName> {
    PartName::parse(url.path_segments()?.next_back()?)
}

/// The address with another file name in the same place. `name` is escaped as it is in an address.
pub(super) fn sibling(url: &Url, name: &str) -> Url {
    let mut sibling = url.clone();
    let place = url.path().rsplit_once('/').map_or("", |(place, _)| place);
    sibling.set_path(&format!("{place}/{name}"));
    sibling
}

/// The file's name without `.gguf`, and without its number where it is a part.
pub(super) fn stem(url: &Url) -> Option<String> {
    if let Some(name) = part_name(url) {
        return Some(name.stem().to_owned());
    }
    let last = url.path_segments()?.next_back()?;
    let path = std::path::Path::new(last);
    Some(path.file_stem()?.to_str()?.to_owned())
}

fn refuse(given: &str, reason: &'static str) -> WebError {
    WebError::Address { given: given.chars().take(200).collect(), reason }
}
