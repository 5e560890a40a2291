//! Transfer of shards between peers: serving, and fetching with verification while the shard streams.
//!
//! The fetching node writes only verified groups: at most one group of bad data is ever read. Verified groups stay
//! on disk, and an interrupted transfer resumes after them.

use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt};

use crate::base::{ErrorKind, Fault, NodeId};
use crate::model::catalog::{Catalog, ShardWriter};
use crate::model::shard::{GROUP, Leaf, group_len, groups};
use crate::model::{ModelError, ShardEntry};
use crate::net::{Channel, NetHandle, Stream};
use crate::node::blocking::blocking;
use crate::wire::WireError;
use crate::wire::frame::{read_frame, write_frame};
use crate::wire::shard::{REPLY_LIMITS, REQUEST_LIMITS, ShardReply, ShardRequest, ShardStart};

/// Deadline of a group of 1 MiB: 35 KB/s, slower than any useful link.
const GROUP_DEADLINE: Duration = Duration::from_secs(30);
/// Deadline of the reply: the peer may first hash a shard of many GiB.
const REPLY_DEADLINE: Duration = Duration::from_secs(120);

/// Deadline of the request after a peer opened a stream.
const REQUEST_DEADLINE: Duration = Duration::from_secs(5);
/// Pause that a busy reply asks of a peer.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// Longest pause that a peer's busy reply can cause.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(5);

/// Sends a busy reply to the request on this stream.
pub(crate) async fn reply_busy(mut stream: Stream) {
    let reply = ShardReply::Busy { millis: RETRY_AFTER.as_millis() as u32 };
    let replied = async {
        within(REQUEST_DEADLINE, read_frame::<_, ShardRequest>(&mut stream, REQUEST_LIMITS)).await?;
        within(REQUEST_DEADLINE, write_frame(&mut stream, &reply, &[], REPLY_LIMITS)).await
    };
    if let Err(fault) = replied.await {
        tracing::debug!(%fault, "a busy reply could not be sent");
    }
    let _ = stream.close().await;
}

/// Sends a shard to the peer that requested it on this stream.
pub(crate) async fn serve_shard(catalog: Catalog, peer: NodeId, mut stream: Stream) {
    if let Err(fault) = try_serve_shard(&catalog, &mut stream).await {
        tracing::debug!(%peer, %fault, "a shard was not served");
    }
    let _ = stream.close().await;
}

async fn try_serve_shard(catalog: &Catalog, stream: &mut Stream) -> Result<(), Fault> {
    let request = within(REQUEST_DEADLINE, read_frame::<_, ShardRequest>(stream, REQUEST_LIMITS)).await?;
    let Some(request) = request else { return Ok(()) };
    let shard = request.header.shard;
    let opened = blocking({
        let catalog = catalog.clone();
        move || Ok((catalog.open_shard(&shard).map_err(fault)?, catalog.shard_leaves(&shard).map_err(fault)?))
    })
    .await;
    let (mut file, leaves) = match opened {
        Ok(opened) => opened,
        Err(fault) => {
            let reply = ShardReply::Refused(fault);
            return within(GROUP_DEADLINE, write_frame(stream, &reply, &[], REPLY_LIMITS)).await;
        }
    };
    let size = file.metadata().map_err(|error| Fault::new(ErrorKind::Io, error))?.len();
    let body = leaves.concat();
    within(GROUP_DEADLINE, write_frame(stream, &ShardReply::Found { size }, &body, REPLY_LIMITS)).await?;
    let start = within(GROUP_DEADLINE, read_frame::<_, ShardStart>(stream, REQUEST_LIMITS)).await?;
    let Some(start) = start else { return Ok(()) };
    for group in start.header.from_group..groups(size) {
        let (bytes, again) = blocking(move || read_group(file, size, group)).await?;
        file = again;
        let written = async { stream.write_all(&bytes).await.map_err(WireError::Stream) };
        within(GROUP_DEADLINE, written).await?;
    }
    within(GROUP_DEADLINE, async { stream.flush().await.map_err(WireError::Stream) }).await
}

type Group = (Vec<u8>, std::fs::File);

fn read_group(mut file: std::fs::File, size: u64, group: u64) -> Result<Group, Fault> {
    let failed = |error| Fault::new(ErrorKind::Io, format!("a shard could not be read: {error}"));
    // At most GROUP, 1 MiB.
    let mut bytes = vec![0; group_len(size, group) as usize];
    file.seek(SeekFrom::Start(group * GROUP)).map_err(failed)?;
    file.read_exact(&mut bytes).map_err(failed)?;
    Ok((bytes, file))
}

/// A peer's answer to a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FetchOutcome {
    /// The whole shard.
    All,
    /// The peer is busy; retry after this time.
    Busy(Duration),
}

/// Fetches a shard from a peer. Reports the bytes of each verified group to `on_bytes`. Cancel-safe: verified groups are
/// kept.
pub(crate) async fn fetch_shard(
    net: &NetHandle,
    catalog: &Catalog,
    peer: NodeId,
    entry: &ShardEntry,
    on_bytes: &(dyn Fn(u64) + Send + Sync),
) -> Result<FetchOutcome, Fault> {
    let mut stream = net.open(peer, Channel::Shard).await.map_err(|error| Fault::new(error.kind(), error))?;
    let request = ShardRequest { shard: entry.id };
    within(GROUP_DEADLINE, write_frame(&mut stream, &request, &[], REQUEST_LIMITS)).await?;
    let reply = within(REPLY_DEADLINE, read_frame::<_, ShardReply>(&mut stream, REPLY_LIMITS)).await?;
    let Some(reply) = reply else { return Err(closed_without_reply(peer)) };
    match reply.header {
        ShardReply::Refused(fault) => return Err(fault),
        ShardReply::Busy { millis } => {
            return Ok(FetchOutcome::Busy(Duration::from_millis(millis.into()).clamp(RETRY_AFTER, MAX_RETRY_AFTER)));
        }
        ShardReply::Found { size } if size != entry.size => return Err(wrong_size(peer, entry, size)),
        ShardReply::Found { .. } => {}
    }
    let leaves = parse_leaves(&reply.body);
    let mut writer = blocking({
        let (catalog, entry) = (catalog.clone(), entry.clone());
        move || catalog.shard_writer(&entry, leaves).map_err(fault)
    })
    .await?;
    on_bytes((writer.next_group() * GROUP).min(entry.size));
    let start = ShardStart { from_group: writer.next_group() };
    within(GROUP_DEADLINE, write_frame(&mut stream, &start, &[], REQUEST_LIMITS)).await?;
    while writer.next_group() < writer.groups() {
        writer = fetch_group(&mut stream, writer, on_bytes).await?;
    }
    blocking(move || writer.finish().map_err(fault)).await?;
    Ok(FetchOutcome::All)
}

async fn fetch_group(
    stream: &mut Stream,
    mut writer: ShardWriter,
    on_bytes: &(dyn Fn(u64) + Send + Sync),
) -> Result<ShardWriter, Fault> {
    // At most GROUP, 1 MiB: the size was checked against the manifest's.
    let mut bytes = vec![0; writer.next_len() as usize];
    let read = async { stream.read_exact(&mut bytes).await.map_err(WireError::Stream) };
    within(GROUP_DEADLINE, read).await?;
    let len = bytes.len() as u64;
    let writer = blocking(move || {
        writer.write_group(&bytes).map_err(fault)?;
        Ok(writer)
    })
    .await?;
    on_bytes(len);
    Ok(writer)
}

fn parse_leaves(body: &[u8]) -> Vec<Leaf> {
    // A body whose length is no multiple of 32 yields too few leaves; the verifier refuses them.
    body.chunks_exact(32).filter_map(|leaf| leaf.try_into().ok()).collect()
}

fn wrong_size(peer: NodeId, entry: &ShardEntry, size: u64) -> Fault {
    let text = format!("peer {} offers {size} bytes for shard {} of {}", peer.short(), entry.id.short(), entry.size);
    Fault::new(ErrorKind::ShardCorrupt, text)
}

fn closed_without_reply(peer: NodeId) -> Fault {
    Fault::new(ErrorKind::PeerLost, format!("peer {} closed the stream without a reply", peer.short()))
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, WireError>>) -> Result<T, Fault> {
    match tokio::time::timeout(deadline, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error @ WireError::Stream(_))) => Err(Fault::new(ErrorKind::PeerLost, error)),
        Ok(Err(error)) => Err(Fault::new(ErrorKind::BadFrame, error)),
        Err(_) => Err(Fault::new(ErrorKind::Timeout, format!("the peer made no progress within {deadline:?}"))),
    }
}

pub(crate) fn fault(error: ModelError) -> Fault {
    Fault::new(error.kind(), error)
}

/// Progress callback: called with the number of bytes received.
pub(crate) type OnBytes = Arc<dyn Fn(u64) + Send + Sync>;
