//! Addresses of models on the web.

use std::fmt;

use reqwest::Url;

use crate::model::gguf::PartName;
use crate::node::web::error::WebError;

/// Default hub of `hf:` addresses.
pub const HUB: &str = "https://huggingface.co";
/// Scheme of addresses in a hub.
const HUB_SCHEME: &str = "hf:";
/// Default revision of an address in a hub.
const REVISION: &str = "main";
/// Most bytes of an address, as servers commonly accept.
const MAX_ADDRESS: usize = 4096;

/// A GGUF on the web, with its hub and token.
#[derive(Clone, PartialEq, Eq)]
pub struct WebSource {
    /// `https://…`, `http://…`, or `hf:owner/repo/path/file.gguf`, followed by `@revision` if it is not `main`. For a model
    /// in several files, any of them.
    pub address: String,
    /// Hub of `hf:` addresses, or a mirror. Default: [`HUB`].
    pub hub: String,
    /// Token for restricted files. Sent only to the address's own server, over `https:` or loopback. Default: none.
    pub token: Option<String>,
}

impl WebSource {
    /// A public file.
    pub fn new(address: impl Into<String>) -> Self {
        Self { address: address.into(), hub: HUB.to_owned(), token: None }
    }

    /// Whether a text is a web address rather than a path.
    pub fn is_address(text: &str) -> bool {
        [HUB_SCHEME, "https://", "http://"].iter().any(|scheme| text.starts_with(scheme))
    }

    /// Whether the address is in a hub.
    pub fn is_of_hub(&self) -> bool {
        self.address.starts_with(HUB_SCHEME)
    }

    /// URL of the file.
    pub(super) fn url(&self) -> Result<Url, WebError> {
        if self.address.len() > MAX_ADDRESS {
            return Err(refuse(&self.address, "it is longer than 4096 bytes"));
        }
        let url = match self.address.strip_prefix(HUB_SCHEME) {
            Some(path) => self.in_hub(path)?,
            None => parse(&self.address)?,
        };
        let is_safe = url.scheme() == "https" || is_loopback(&url);
        if self.token.is_some() && !is_safe {
            return Err(refuse(&shown(&url), "a token is sent over https only"));
        }
        Ok(url)
    }

    /// `owner/repo/path/file.gguf[@revision]`
    fn in_hub(&self, path_in_hub: &str) -> Result<Url, WebError> {
        let (file, revision) = path_in_hub.rsplit_once('@').unwrap_or((path_in_hub, REVISION));
        let parts: Vec<&str> = file.split('/').collect();
        let is_name = |part: &&str| !matches!(*part, "" | "." | "..");
        let [owner, repo, path @ ..] = parts.as_slice() else {
            return Err(refuse(&self.address, "expected hf:owner/repo/path/file.gguf"));
        };
        if path.is_empty() || !parts.iter().all(is_name) || !is_name(&revision) {
            return Err(refuse(&self.address, "expected hf:owner/repo/path/file.gguf"));
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
        let token = self.token.as_ref().map(|_| "(redacted)");
        f.debug_struct("WebSource").field("hub", &self.hub).field("token", &token).finish_non_exhaustive()
    }
}

/// Parses an acceptable address.
pub(super) fn parse(text: &str) -> Result<Url, WebError> {
    // An unparsable address may contain a password, so the error omits it.
    let url = Url::parse(text).map_err(|_| refuse("(unreadable)", "it is not a URL"))?;
    check(&url).map(|()| url.clone()).map_err(|reason| refuse(&shown(&url), reason))
}

/// Checks that an address is acceptable.
pub(super) fn check(url: &Url) -> Result<(), &'static str> {
    if !matches!(url.scheme(), "https" | "http") {
        return Err("only https and http are supported");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("it contains a user or password, which would be sent and logged with it");
    }
    if url.host_str().is_none_or(str::is_empty) { Err("it names no host") } else { Ok(()) }
}

/// An address for display, without its query, which may be a signature.
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

/// The file's name as a part of a model in several files.
pub(super) fn part_name(url: &Url) -> Option<PartName> {
    PartName::parse(url.path_segments()?.next_back()?)
}

/// The address of a file beside this one. `name` is percent-encoded.
pub(super) fn sibling(url: &Url, name: &str) -> Url {
    let mut sibling = url.clone();
    let folder = url.path().rsplit_once('/').map_or("", |(folder, _)| folder);
    sibling.set_path(&format!("{folder}/{name}"));
    sibling
}

/// The file's name without `.gguf` and part number.
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
