//! Reads groups of shards from a file on the web, or from its parts, with as few requests as the order of the groups allows.

use std::ops::Range;

use bytes::{Buf, Bytes};
use reqwest::Response;

use crate::base::{ErrorKind, Fault};
use crate::model::gguf::PartRanges;
use crate::model::manifest::{FilePiece, Sharding};
use crate::node::web::client::{Client, Retries};
use crate::node::web::error::WebError;
use crate::node::web::remote::Part;
use crate::node::web::timeouts::Timeouts;

/// Longest gap to read and discard instead of a new request: less than arrives in one round trip.
const MAX_GAP: u64 = 64 * 1024;
/// Bytes after which a broken response resets the retries: few enough for a bad link to progress, enough to bound the
/// requests of a group.
const PROGRESS: usize = 64 * 1024;

/// A file on the web, or its parts as one.
pub(super) struct Reader {
    /// At least one.
    parts: Vec<Part>,
    ranges: PartRanges,
    timeouts: Timeouts,
    /// Contiguous ranges of the planned reads.
    runs: Vec<Range<u64>>,
    /// Bytes received with the header, with their position.
    tail: (u64, Bytes),
    open: Option<Open>,
}

/// A response being read.
struct Open {
    response: Response,
    client: Client,
    /// Position of the first byte of `rest`.
    at: u64,
    end: u64,
    rest: Bytes,
}

impl Reader {
    pub fn new(parts: Vec<Part>, ranges: PartRanges) -> Self {
        let timeouts = parts.first().map(|(client, _)| client.timeouts).unwrap_or_default();
        Self { parts, ranges, timeouts, runs: Vec::new(), tail: (0, Bytes::new()), open: None }
    }

    /// Sets the shards to read, in order, and the bytes already received.
    pub fn plan(&mut self, sharding: &Sharding, shards: &[usize], tail: (u64, Bytes)) {
        self.tail = tail;
        self.runs.clear();
        for (shard, positions) in
            shards.iter().filter_map(|at| sharding.manifest.shards.get(*at).zip(sharding.tensor_offsets.get(*at)))
        {
            for (tensor, position) in shard.tensors.iter().zip(positions) {
                let end = position.saturating_add(tensor.size);
                match self.runs.last_mut() {
                    Some(run) if follows(run.end, *position) => run.end = end,
                    _ => self.runs.push(*position..end),
                }
            }
        }
    }

    /// Reads a group of `len` bytes: these pieces of the file, with zeros between. Resumes after the last byte if a response
    /// breaks.
    pub async fn group(&mut self, pieces: &[FilePiece], len: usize) -> Result<Vec<u8>, WebError> {
        let mut group = vec![0; len];
        let mut retries = Retries::new(&self.timeouts);
        let (mut left, mut since) = (self.timeouts.group, 0);
        for piece in pieces {
            let outside = || Fault::new(ErrorKind::Internal, "a piece lies outside of its group");
            let slot = group.get_mut(piece.at..).and_then(|rest| rest.get_mut(..piece.len)).ok_or_else(outside)?;
            let mut empty = &mut *slot;
            let mut position = piece.position;
            while !empty.is_empty() {
                match self.read_some(position, empty.len(), &mut left).await {
                    Ok(bytes) => {
                        let (filled, rest) = empty.split_at_mut(bytes.len());
                        filled.copy_from_slice(&bytes);
                        position += bytes.len() as u64;
                        empty = rest;
                        since += bytes.len();
                    }
                    // The deadline of the group has passed.
                    Err(error) if left.is_zero() => return Err(error),
                    Err(error) => {
                        if std::mem::take(&mut since) >= PROGRESS {
                            retries = Retries::new(&self.timeouts);
                        }
                        retries.after(error).await?;
                    }
                }
            }
        }
        Ok(group)
    }

    /// Reads 1 to `max` bytes from `position`. After an error the next call sends a new request.
    async fn read_some(
        &mut self,
        position: u64,
        max: usize,
        left: &mut std::time::Duration,
    ) -> Result<Bytes, WebError> {
        let known = position.checked_sub(self.tail.0).and_then(|at| usize::try_from(at).ok());
        if let Some(here) = known.filter(|at| *at < self.tail.1.len()).map(|at| self.tail.1.slice(at..)) {
            return Ok(here.slice(..max.min(here.len())));
        }
        let reaches = |open: &Open| position < open.end && follows(open.at, position);
        let mut open = match self.open.take().filter(reaches) {
            Some(open) => open,
            None => self.request(position, max).await?,
        };
        loop {
            // Discard the gap before the position.
            let gap = (position - open.at).min(open.rest.len() as u64);
            open.rest.advance(gap as usize);
            open.at += gap;
            if !open.rest.is_empty() {
                let piece = open.rest.split_to(max.min(open.rest.len()));
                open.at += piece.len() as u64;
                self.open = Some(open);
                return Ok(piece);
            }
            let missing = open.end - open.at;
            let chunk = open.client.chunk(&mut open.response, left).await?;
            open.rest = chunk.ok_or_else(|| WebError::Short { host: open.client.host(), missing })?;
            if open.rest.len() as u64 > missing {
                return Err(open.client.malformed("more bytes", (open.rest.len() as u64 - missing).to_string()));
            }
        }
    }

    /// Requests the planned range that contains `position`, from there on.
    async fn request(&self, position: u64, max: usize) -> Result<Open, WebError> {
        let run = self.runs.iter().find(|run| run.contains(&position));
        let end = run.map_or_else(|| position.saturating_add(max as u64), |run| run.end);
        let found = self.ranges.find(position).and_then(|(part, place)| Some((self.parts.get(part)?, place)));
        let outside = || Fault::new(ErrorKind::Internal, "a piece lies outside of the file");
        let ((client, version), place) = found.ok_or_else(outside)?;
        // The next part needs its own request.
        let end = end.min(place.end);
        let response = client.range(&(position - place.start..end - place.start), version).await?;
        Ok(Open { response, client: client.clone(), at: position, end, rest: Bytes::new() })
    }
}

/// Whether `next` is close enough after `end` to read both in one response.
fn follows(end: u64, next: u64) -> bool {
    next.checked_sub(end).is_some_and(|gap| gap <= MAX_GAP)
}
