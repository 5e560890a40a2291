//! A model's file on the web, or its parts as one: positions count through all parts, and nothing is merged.

use futures::stream::{self, StreamExt, TryStreamExt};
use reqwest::Response;

use crate::base::Fault;
use crate::model::ModelError;
use crate::model::catalog::Origin;
use crate::model::gguf::{Gguf, Join, MAX_PARTS, PartName, Places, SplitError};
use crate::model::manifest::Piece;
use crate::model::shard::GROUP;
use crate::node::blocking::blocking;
use crate::node::models::transfer::fault;
use crate::node::web::client::{Client, Found, Version};
use crate::node::web::error::WebError;
use crate::node::web::reader::Reader;

/// Parts that are asked at once for their versions and headers. A header of each may be in memory, of at most 68 MiB.
const AT_ONCE: usize = 4;
/// Bytes that are asked for first of a part behind the first one, which mostly names tensors only.
const HEAD: u64 = 64 * 1024;

/// One file as it is now.
pub(super) type Part = (Client, Version);

/// A model on a server that gives ranges.
#[derive(Clone)]
pub(super) struct Remote {
    /// At least one.
    first: Part,
    more: Vec<Part>,
    places: Places,
    /// How the parts are named, where there are several.
    name: Option<PartName>,
}

/// How a model can be had.
pub(super) enum Opened {
    /// By ranges.
    Ranges(Remote),
    /// As a whole only, which this answer is, of so many bytes.
    Whole(Response, u64),
}

impl Remote {
    /// Asks for the first byte of the file, or of all parts of the model that it is a part of.
    pub async fn open(client: Client) -> Result<Opened, WebError> {
        let Some(name) = client.part_name() else {
            return Ok(match client.probe().await? {
                Found::Parts(version) => Opened::Ranges(Remote::of((client, version), Vec::new(), None)?),
                Found::Whole(response, len) => Opened::Whole(response, len),
            });
        };
        if name.count() > MAX_PARTS {
            let (part, given) = (client.shown(), name.count());
            return Err(split(&client, SplitError::TooMany { part, given, max: MAX_PARTS }));
        }
        let probe = |number| {
            let client = client.sibling(&name.of(number));
            async move {
                let found = client.probe().await.and_then(|found| match found {
                    Found::Parts(version) => Ok(version),
                    Found::Whole(..) => Err(WebError::WholeOnly { host: client.host() }),
                });
                let part = client.shown();
                found.map(|version| (client, version)).map_err(|error| WebError::Part { part, error: Box::new(error) })
            }
        };
        // One after another from the first on, so that a refusal names the first part that is missing.
        let first = probe(1).await?;
        let more = stream::iter(2..=name.count()).map(probe).buffered(AT_ONCE).try_collect().await?;
        Ok(Opened::Ranges(Remote::of(first, more, Some(name))?))
    }

    fn of(first: Part, more: Vec<Part>, name: Option<PartName>) -> Result<Remote, WebError> {
        let lens = [&first].into_iter().chain(&more).map(|(_, version)| version.len);
        let places = Places::of(lens).ok_or_else(|| split(&first.0, SplitError::TooLarge { what: "bytes" }))?;
        Ok(Remote { first, more, places, name })
    }

    /// The file, or the first part.
    pub fn client(&self) -> &Client {
        &self.first.0
    }

    /// Names the model's bytes as they are now, under the same key whichever part was named. Its length is the first
    /// part's, whose header comes first.
    pub fn origin(&self) -> Origin {
        let (client, version) = &self.first;
        let key = *blake3::hash(client.address().as_bytes()).as_bytes();
        let mut now = version.digest(&key);
        if self.name.is_some() {
            let mut hasher = blake3::Hasher::new_keyed(&key);
            hasher.update(&now);
            for (_, version) in &self.more {
                hasher.update(&version.digest(&key));
            }
            now = *hasher.finalize().as_bytes();
        }
        Origin { shown: client.shown(), key, version: now, len: version.len }
    }

    /// Reads all parts as one.
    pub fn reader(&self) -> Reader {
        let parts = [&self.first].into_iter().chain(&self.more).cloned().collect();
        Reader::new(parts, self.places.clone())
    }

    /// The header of the file, or of the first part, and bytes that came with it.
    pub async fn first_header(&self) -> Result<(Gguf, (u64, bytes::Bytes)), WebError> {
        header(&self.first, GROUP).await
    }

    /// The header of all parts together, from that of the first.
    pub async fn whole_header(&self, first: Gguf) -> Result<Gguf, WebError> {
        let Some(name) = &self.name else { return Ok(first) };
        let client = self.client();
        let shown = |number| name.of(number);
        let mut join = Join::new(first, &shown(1)).map_err(|error| split(client, error))?;
        if join.count() != name.count() {
            let (part, found, expected) = (shown(1), join.count(), name.count());
            return Err(split(client, SplitError::Count { part, found, expected }));
        }
        let next = |part: Part| async move { header(&part, HEAD).await };
        let mut headers = std::pin::pin!(stream::iter(self.more.clone()).map(next).buffered(AT_ONCE));
        for number in 2..=name.count() {
            let Some(next) = headers.next().await else { break };
            join.add(next?.0, &shown(number)).map_err(|error| split(client, error))?;
        }
        join.finish().map_err(|error| split(client, error))
    }
}

/// Fetches a file's beginning until the header is whole; `ask` bytes first, and each time twice as many before the header
/// is tried again.
async fn header(part: &Part, ask: u64) -> Result<(Gguf, (u64, bytes::Bytes)), WebError> {
    let (client, version) = part;
    let len = version.len;
    let places = Places::of([len].into_iter()).ok_or_else(|| split(client, SplitError::TooLarge { what: "bytes" }))?;
    let mut reader = Reader::new(vec![part.clone()], places);
    let (mut bytes, mut wanted) = (Vec::new(), ask);
    loop {
        while (bytes.len() as u64) < wanted.min(len) {
            let position = bytes.len() as u64;
            // At most `GROUP`, so it fits any usize.
            let piece = Piece { at: 0, position, len: (wanted.min(len) - position).min(GROUP) as usize };
            bytes.extend(reader.group(&[piece], piece.len).await?);
        }
        let path = client.shown().into();
        let read = move || match Gguf::read_prefix(&bytes, len) {
            Ok(header) => Ok((header, bytes)),
            Err(source) => Err(fault(ModelError::Gguf { path, source })),
        };
        match blocking(read).await? {
            (Some(header), bytes) => {
                let tail = header.behind(&bytes);
                return Ok((header, tail));
            }
            (None, read) => bytes = read,
        }
        wanted = wanted.saturating_mul(2);
    }
}

fn split(client: &Client, source: SplitError) -> WebError {
    let fault: Fault = fault(ModelError::Split { path: client.shown().into(), source });
    fault.into()
}
