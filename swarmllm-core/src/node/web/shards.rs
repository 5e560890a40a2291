//! Shards of a known model out of its GGUF on the web: the header says where they lie, their ids whether they came.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::OnceCell;

use crate::base::{ErrorKind, Fault};
use crate::model::catalog::{Catalog, WholeWriter};
use crate::model::gguf::Gguf;
use crate::model::manifest::{Cut, Piece};
use crate::model::shard::{GROUP, group_len};
use crate::model::{Manifest, ModelError, ShardEntry, ShardKind};
use crate::node::fetch::Source;
use crate::node::transfer::{Taken, blocking, fault};
use crate::node::web::client::{Client, Found, Version};
use crate::node::web::error::WebError;
use crate::node::web::reader::Reader;

/// A file on the web, looked at when the first shard is wanted.
pub(super) struct WebFile {
    client: Client,
    /// What was found then, for all shards of the pull.
    plan: OnceCell<Result<Arc<Plan>, Fault>>,
}

/// Where the shards lie.
struct Plan {
    version: Version,
    cut: Cut,
    /// Bytes that came with the header, and where they begin.
    tail: (u64, Bytes),
}

impl Source for WebFile {
    fn take<'a>(
        &'a self,
        catalog: &'a Catalog,
        manifest: &'a Arc<Manifest>,
        entry: &'a ShardEntry,
        taken: &'a Taken,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let plan = self.plan.get_or_init(async || self.look(manifest).await.map_err(Fault::from)).await.clone()?;
            let writer = open(catalog, entry).await?;
            let resumed = writer.here();
            taken(resumed);
            match self.fill(&plan, writer, entry, taken).await {
                // What lay here may have been the bad part.
                Err(fault) if resumed > 0 && fault.kind() == ErrorKind::ShardCorrupt => {
                    let writer = open(catalog, entry).await?;
                    Ok(self.fill(&plan, writer, entry, taken).await?)
                }
                filled => filled,
            }
        })
    }
}

impl WebFile {
    pub fn new(client: Client) -> Self {
        Self { client, plan: OnceCell::new() }
    }

    /// Reads the header, and sees whether it is that of the model.
    async fn look(&self, manifest: &Arc<Manifest>) -> Result<Arc<Plan>, WebError> {
        let Found::Parts(version) = self.client.probe().await? else {
            return Err(WebError::WholeOnly { host: self.client.host() });
        };
        let mut reader = Reader::new(self.client.clone(), version.clone());
        let (len, mut bytes) = (version.len, Vec::new());
        let (header, bytes) = loop {
            let position = bytes.len() as u64;
            // At most `GROUP`, so it fits any usize.
            let piece = Piece { at: 0, position, len: group_len(len, position / GROUP) as usize };
            bytes.extend(reader.group(&[piece], piece.len).await?);
            let path = self.client.shown().into();
            let read = move || match Gguf::read_prefix(&bytes, len) {
                Ok(header) => Ok((header, bytes)),
                Err(source) => Err(fault(ModelError::Gguf { path, source })),
            };
            match blocking(read).await? {
                (Some(header), bytes) => break (header, bytes),
                (None, read) => bytes = read,
            }
        };
        let tail = header.behind(&bytes);
        let cut = Cut::new(&header, &manifest.name).ok().and_then(|cut| named_as(cut, manifest));
        let other = || WebError::OtherModel { host: self.client.host(), model: manifest.id() };
        Ok(Arc::new(Plan { version, cut: cut.ok_or_else(other)?, tail }))
    }

    async fn fill(&self, plan: &Plan, mut writer: WholeWriter, entry: &ShardEntry, taken: &Taken) -> Result<(), Fault> {
        let index = plan.cut.manifest.shards.iter().position(|shard| shard.kind == entry.kind);
        let index = index.ok_or_else(|| Fault::new(ErrorKind::Internal, "a shard is not of its model"))?;
        let mut reader = Reader::new(self.client.clone(), plan.version.clone());
        reader.plan(&plan.cut, &[index], plan.tail.clone());
        while writer.next_len() > 0 {
            // At most `GROUP`, so it fits any usize.
            let (number, len) = (writer.next_group(), writer.next_len() as usize);
            let group = match entry.kind {
                // It is made of the header.
                ShardKind::Metadata => {
                    let begin = (number * GROUP) as usize;
                    plan.cut.metadata.get(begin..begin + len).unwrap_or_default().to_vec()
                }
                _ => reader.group(&plan.cut.pieces(index, number), len).await?,
            };
            writer = blocking(move || writer.write_group(&group).map(|()| writer).map_err(fault)).await?;
            taken(len as u64);
        }
        blocking(move || writer.finish().map_err(fault)).await
    }
}

async fn open(catalog: &Catalog, entry: &ShardEntry) -> Result<WholeWriter, Fault> {
    let (catalog, entry) = (catalog.clone(), entry.clone());
    blocking(move || catalog.whole_writer(&entry).map_err(fault)).await
}

/// The cut, where it is of the model in all but the ids of shards, which it does not know.
fn named_as(mut cut: Cut, manifest: &Manifest) -> Option<Cut> {
    for (ours, theirs) in cut.manifest.shards.iter_mut().zip(&manifest.shards) {
        ours.id = theirs.id;
    }
    (cut.manifest == *manifest).then_some(cut)
}
