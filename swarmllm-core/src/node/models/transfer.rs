//! Shards between peers: giving one away, and taking one verified while it streams.
//!
//! The taker writes nothing that it has not checked: at most one group of bad data is ever read. What is verified stays
//! on disk, so that an interrupted transfer goes on where it stopped.

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

/// A group of 1 MiB takes at most this long: 35 KB/s, slower than any link worth using.
const GROUP_DEADLINE: Duration = Duration::from_secs(30);
/// The giver may have to hash a shard of many GiB before it answers.
const REPLY_DEADLINE: Duration = Duration::from_secs(120);

/// A peer that opens a stream asks within this time.
const ASK_DEADLINE: Duration = Duration::from_secs(5);
/// A peer that was told to come back does so after this time.
const COME_BACK: Duration = Duration::from_millis(500);
/// Longest that a giver can make us wait before we ask again.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Tells a peer that asks on this stream to come back.
pub(crate) async fn refuse_busy(mut stream: Stream) {
    let reply = ShardReply::Busy { millis: COME_BACK.as_millis() as u32 };
    let told = async {
        within(ASK_DEADLINE, read_frame::<_, ShardRequest>(&mut stream, REQUEST_LIMITS)).await?;
        within(ASK_DEADLINE, write_frame(&mut stream, &reply, &[], REPLY_LIMITS)).await
    };
    if let Err(fault) = told.await {
        tracing::debug!(%fault, "a peer could not be told to come back");
    }
    let _ = stream.close().await;
}

/// Gives a shard to a peer that asked on this stream.
pub(crate) async fn give(catalog: Catalog, peer: NodeId, mut stream: Stream) {
    if let Err(fault) = try_give(&catalog, &mut stream).await {
        tracing::debug!(%peer, %fault, "a shard was not given");
    }
    let _ = stream.close().await;
}

async fn try_give(catalog: &Catalog, stream: &mut Stream) -> Result<(), Fault> {
    let asked = within(ASK_DEADLINE, read_frame::<_, ShardRequest>(stream, REQUEST_LIMITS)).await?;
    let Some(asked) = asked else { return Ok(()) };
    let shard = asked.header.shard;
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

/// How a giver answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gave {
    /// The whole shard.
    All,
    /// Nothing yet: it may be asked again after this time.
    Busy(Duration),
}

/// Takes a shard from a peer. `taken` is told the bytes of each group as it is verified. Cancel-safe: what is verified
/// is kept.
pub(crate) async fn take(
    net: &NetHandle,
    catalog: &Catalog,
    peer: NodeId,
    entry: &ShardEntry,
    taken: &(dyn Fn(u64) + Send + Sync),
) -> Result<Gave, Fault> {
    let mut stream = net.open(peer, Channel::Shard).await.map_err(|error| Fault::new(error.kind(), error))?;
    let request = ShardRequest { shard: entry.id };
    within(GROUP_DEADLINE, write_frame(&mut stream, &request, &[], REQUEST_LIMITS)).await?;
    let reply = within(REPLY_DEADLINE, read_frame::<_, ShardReply>(&mut stream, REPLY_LIMITS)).await?;
    let Some(reply) = reply else { return Err(silent(peer)) };
    match reply.header {
        ShardReply::Refused(fault) => return Err(fault),
        ShardReply::Busy { millis } => {
            return Ok(Gave::Busy(Duration::from_millis(millis.into()).clamp(COME_BACK, LONGEST_WAIT)));
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
    taken((writer.next_group() * GROUP).min(entry.size));
    let start = ShardStart { from_group: writer.next_group() };
    within(GROUP_DEADLINE, write_frame(&mut stream, &start, &[], REQUEST_LIMITS)).await?;
    while writer.next_group() < writer.groups() {
        writer = take_group(&mut stream, writer, taken).await?;
    }
    blocking(move || writer.finish().map_err(fault)).await?;
    Ok(Gave::All)
}

async fn take_group(
    stream: &mut Stream,
    mut writer: ShardWriter,
    taken: &(dyn Fn(u64) + Send + Sync),
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
    taken(len);
    Ok(writer)
}

fn parse_leaves(body: &[u8]) -> Vec<Leaf> {
    // A body that is not a multiple of 32 gives too few leaves, which the verifier refuses.
    body.chunks_exact(32).filter_map(|leaf| leaf.try_into().ok()).collect()
}

fn wrong_size(peer: NodeId, entry: &ShardEntry, size: u64) -> Fault {
    let text = format!("peer {} offers {size} bytes for shard {} of {}", peer.short(), entry.id.short(), entry.size);
    Fault::new(ErrorKind::ShardCorrupt, text)
}

fn silent(peer: NodeId) -> Fault {
    Fault::new(ErrorKind::PeerLost, format!("peer {} closed without an answer", peer.short()))
}

async fn within<T>(deadline: Duration, work: impl Future<Output = Result<T, WireError>>) -> Result<T, Fault> {
    match tokio::time::timeout(deadline, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error @ WireError::Stream(_))) => Err(Fault::new(ErrorKind::PeerLost, error)),
        Ok(Err(error)) => Err(Fault::new(ErrorKind::BadFrame, error)),
        Err(_) => Err(Fault::new(ErrorKind::Timeout, format!("the peer did not go on within {deadline:?}"))),
    }
}

pub(crate) fn fault(error: ModelError) -> Fault {
    Fault::new(error.kind(), error)
}

/// Shares a closure that is told about progress.
pub(crate) type Taken = Arc<dyn Fn(u64) + Send + Sync>;
