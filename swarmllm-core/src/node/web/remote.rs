//! A model's file on the web, or its parts as one file. Positions count through all parts; nothing is merged.

use futures::stream::{self, StreamExt, TryStreamExt};
use reqwest::Response;

use crate::base::Fault;
use crate::model::ModelError;
use crate::model::catalog::RangeSource;
use crate::model::gguf::{Gguf, MAX_PARTS, PartJoiner, PartName, PartRanges, SplitError};
use crate::model::manifest::FilePiece;
use crate::model::shard::GROUP;
use crate::node::blocking::blocking;
use crate::node::models::transfer::fault;
use crate::node::web::client::{Client, Probe, Version};
use crate::node::web::error::WebError;
use crate::node::web::reader::Reader;

/// Parts whose versions and headers are fetched in parallel. Each header takes at most 68 MiB of memory.
const PARALLEL: usize = 4;
/// First request of a later part's header in bytes; such a header mostly lists tensors only.
const LATER_HEADER: u64 = 64 * 1024;

/// A file in its current version.
pub(super) type Part = (Client, Version);

/// A model on a server that supports ranges.
#[derive(Clone)]
pub(super) struct Remote {
    /// At least one.
    first: Part,
    more: Vec<Part>,
    ranges: PartRanges,
    /// Name scheme of the parts; `None` for a single file.
    name: Option<PartName>,
}

/// An opened model file.
pub(super) enum Opened {
    /// The server supports ranges.
    Ranges(Remote),
    /// Whole files only: this response, with its length in bytes.
    Whole(Response, u64),
}

impl Remote {
    /// Probes the file, or all parts of its model.
    pub async fn open(client: Client) -> Result<Opened, WebError> {
        let Some(name) = client.part_name() else {
            return Ok(match client.probe().await? {
                Probe::Ranges(version) => Opened::Ranges(Remote::of((client, version), Vec::new(), None)?),
                Probe::Whole(response, len) => Opened::Whole(response, len),
            });
        };
        if name.count() > MAX_PARTS {
            let (part, given) = (client.shown(), name.count());
            return Err(split(&client, SplitError::TooMany { part, given, max: MAX_PARTS }));
        }
        let probe = |number| {
            let client = client.sibling(&name.with_number(number));
            async move {
                let found = client.probe().await.and_then(|probe| match probe {
                    Probe::Ranges(version) => Ok(version),
                    Probe::Whole(..) => Err(WebError::WholeOnly { host: client.host() }),
                });
                let part = client.shown();
                found.map(|version| (client, version)).map_err(|error| WebError::Part { part, error: Box::new(error) })
            }
        };
        // Results in order, so the error names the first missing part.
        let first = probe(1).await?;
        let more = stream::iter(2..=name.count()).map(probe).buffered(PARALLEL).try_collect().await?;
        Ok(Opened::Ranges(Remote::of(first, more, Some(name))?))
    }

    fn of(first: Part, more: Vec<Part>, name: Option<PartName>) -> Result<Remote, WebError> {
        let lens = [&first].into_iter().chain(&more).map(|(_, version)| version.len);
        let ranges = PartRanges::of(lens).ok_or_else(|| split(&first.0, SplitError::TooLarge { what: "bytes" }))?;
        Ok(Remote { first, more, ranges, name })
    }

    /// Client of the file or of the first part.
    pub fn client(&self) -> &Client {
        &self.first.0
    }

    /// Identity of the model's bytes in their current version. The key does not depend on the part that was named. The
    /// length is the first part's, whose header is read first.
    pub fn origin(&self) -> RangeSource {
        let (client, version) = &self.first;
        let key = *blake3::hash(client.address().as_bytes()).as_bytes();
        let mut digest = version.digest(&key);
        if self.name.is_some() {
            let mut hasher = blake3::Hasher::new_keyed(&key);
            hasher.update(&digest);
            for (_, version) in &self.more {
                hasher.update(&version.digest(&key));
            }
            digest = *hasher.finalize().as_bytes();
        }
        RangeSource { label: client.shown(), key, version: digest, len: version.len }
    }

    /// A reader over all parts as one.
    pub fn reader(&self) -> Reader {
        let parts = [&self.first].into_iter().chain(&self.more).cloned().collect();
        Reader::new(parts, self.ranges.clone())
    }

    /// The header of the file or of the first part, and the bytes received after it with their position.
    pub async fn first_header(&self) -> Result<(Gguf, (u64, bytes::Bytes)), WebError> {
        header(&self.first, GROUP).await
    }

    /// Joins the headers of all parts with the first.
    pub async fn whole_header(&self, first: Gguf) -> Result<Gguf, WebError> {
        let Some(name) = &self.name else { return Ok(first) };
        let client = self.client();
        let shown = |number| name.with_number(number);
        let mut join = PartJoiner::new(first, &shown(1)).map_err(|error| split(client, error))?;
        if join.count() != name.count() {
            let (part, found, expected) = (shown(1), join.count(), name.count());
            return Err(split(client, SplitError::Count { part, found, expected }));
        }
        let next = |part: Part| async move { header(&part, LATER_HEADER).await };
        let mut headers = std::pin::pin!(stream::iter(self.more.clone()).map(next).buffered(PARALLEL));
        for number in 2..=name.count() {
            let Some(next) = headers.next().await else { break };
            join.add(next?.0, &shown(number)).map_err(|error| split(client, error))?;
        }
        join.finish().map_err(|error| split(client, error))
    }
}

/// Fetches a file's header: `first` bytes, doubled until the header parses.
async fn header(part: &Part, first: u64) -> Result<(Gguf, (u64, bytes::Bytes)), WebError> {
    let (client, version) = part;
    let len = version.len;
    let ranges =
        PartRanges::of([len].into_iter()).ok_or_else(|| split(client, SplitError::TooLarge { what: "bytes" }))?;
    let mut reader = Reader::new(vec![part.clone()], ranges);
    let (mut bytes, mut wanted) = (Vec::new(), first);
    loop {
        while (bytes.len() as u64) < wanted.min(len) {
            let position = bytes.len() as u64;
            // Fits: at most `GROUP`.
            let piece = FilePiece { at: 0, position, len: (wanted.min(len) - position).min(GROUP) as usize };
            bytes.extend(reader.group(&[piece], piece.len).await?);
        }
        let path = client.shown().into();
        let read = move || match Gguf::read_prefix(&bytes, len) {
            Ok(header) => Ok((header, bytes)),
            Err(source) => Err(fault(ModelError::Gguf { path, source })),
        };
        match blocking(read).await? {
            (Some(header), bytes) => {
                let tail = header.after_header(&bytes);
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
