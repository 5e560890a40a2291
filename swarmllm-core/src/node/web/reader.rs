//! Reads groups of shards out of a file on the web, or out of parts that stand for one, with as few questions as the order of the groups allows.

use std::ops::Range;

use bytes::{Buf, Bytes};
use reqwest::Response;

use crate::base::{ErrorKind, Fault};
use crate::model::gguf::Places;
use crate::model::manifest::{Cut, Piece};
use crate::node::web::client::{Client, Retries};
use crate::node::web::error::WebError;
use crate::node::web::patience::Patience;
use crate::node::web::remote::Part;

/// Bytes that are read over rather than asked around: less than comes in the time of a question.
const GAP: u64 = 64 * 1024;
/// Bytes that an answer must have given for its end to count as the first failure again: so few that a bad line gets on,
/// and enough to bound the questions for a group.
const PROGRESS: usize = 64 * 1024;

/// A file on the web, or parts as one.
pub(super) struct Reader {
    /// At least one.
    parts: Vec<Part>,
    places: Places,
    patience: Patience,
    /// Stretches of the file that follow one another in what will be read.
    runs: Vec<Range<u64>>,
    /// Bytes that are here already, and where they begin.
    tail: (u64, Bytes),
    open: Option<Open>,
}

/// An answer under way.
struct Open {
    response: Response,
    client: Client,
    /// The first byte of `rest`.
    at: u64,
    end: u64,
    rest: Bytes,
}

impl Reader {
    pub fn new(parts: Vec<Part>, places: Places) -> Self {
        let patience = parts.first().map(|(client, _)| client.patience).unwrap_or_default();
        Self { parts, places, patience, runs: Vec::new(), tail: (0, Bytes::new()), open: None }
    }

    /// Says which shards will be read, in order, and what of the file is here already.
    pub fn plan(&mut self, cut: &Cut, shards: &[usize], tail: (u64, Bytes)) {
        self.tail = tail;
        self.runs.clear();
        for (shard, positions) in shards.iter().filter_map(|at| cut.manifest.shards.get(*at).zip(cut.sources.get(*at)))
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

    /// A group of `len` bytes with these pieces of the file in it, and zeros between. Goes on behind the last byte where
    /// an answer ends early.
    pub async fn group(&mut self, pieces: &[Piece], len: usize) -> Result<Vec<u8>, WebError> {
        let mut group = vec![0; len];
        let mut retries = Retries::new(&self.patience);
        let (mut left, mut since) = (self.patience.group, 0);
        for piece in pieces {
            let outside = || Fault::new(ErrorKind::Internal, "a piece lies outside of its group");
            let slot = group.get_mut(piece.at..).and_then(|rest| rest.get_mut(..piece.len)).ok_or_else(outside)?;
            let mut empty = &mut *slot;
            let mut position = piece.position;
            while !empty.is_empty() {
                match self.more(position, empty.len(), &mut left).await {
                    Ok(bytes) => {
                        let (filled, rest) = empty.split_at_mut(bytes.len());
                        filled.copy_from_slice(&bytes);
                        position += bytes.len() as u64;
                        empty = rest;
                        since += bytes.len();
                    }
                    // Its deadline has passed: the next question would have none.
                    Err(error) if left.is_zero() => return Err(error),
                    Err(error) => {
                        if std::mem::take(&mut since) >= PROGRESS {
                            retries = Retries::new(&self.patience);
                        }
                        retries.after(error).await?;
                    }
                }
            }
        }
        Ok(group)
    }

    /// Some bytes from `position` on, at least one and at most `most`. After an error the next question is a new one.
    async fn more(&mut self, position: u64, most: usize, left: &mut std::time::Duration) -> Result<Bytes, WebError> {
        let known = position.checked_sub(self.tail.0).and_then(|at| usize::try_from(at).ok());
        if let Some(here) = known.filter(|at| *at < self.tail.1.len()).map(|at| self.tail.1.slice(at..)) {
            return Ok(here.slice(..most.min(here.len())));
        }
        let reaches = |open: &Open| position < open.end && follows(open.at, position);
        let mut open = match self.open.take().filter(reaches) {
            Some(open) => open,
            None => self.ask(position, most).await?,
        };
        loop {
            // Bytes between what was read and what is wanted are read over.
            let over = (position - open.at).min(open.rest.len() as u64);
            open.rest.advance(over as usize);
            open.at += over;
            if !open.rest.is_empty() {
                let piece = open.rest.split_to(most.min(open.rest.len()));
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

    /// Asks for all that follows `position` in what will be read.
    async fn ask(&self, position: u64, most: usize) -> Result<Open, WebError> {
        let run = self.runs.iter().find(|run| run.contains(&position));
        let end = run.map_or_else(|| position.saturating_add(most as u64), |run| run.end);
        let found = self.places.find(position).and_then(|(part, place)| Some((self.parts.get(part)?, place)));
        let outside = || Fault::new(ErrorKind::Internal, "a piece lies outside of the file");
        let ((client, version), place) = found.ok_or_else(outside)?;
        // What follows in the next part is another question.
        let end = end.min(place.end);
        let response = client.part(&(position - place.start..end - place.start), version).await?;
        Ok(Open { response, client: client.clone(), at: position, end, rest: Bytes::new() })
    }
}

/// Whether `next` comes so soon behind `end` that it is read in one go.
fn follows(end: u64, next: u64) -> bool {
    next.checked_sub(end).is_some_and(|gap| gap <= GAP)
}
