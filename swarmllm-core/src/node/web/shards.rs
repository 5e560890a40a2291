//! Shards of a known model from its GGUF on the web. The header gives their positions; their ids verify them.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::OnceCell;

use crate::base::{ErrorKind, Fault};
use crate::model::catalog::{Catalog, WholeWriter};
use crate::model::manifest::Sharding;
use crate::model::shard::GROUP;
use crate::model::{Manifest, ShardEntry, ShardKind};
use crate::node::blocking::blocking;
use crate::node::models::fetch::Source;
use crate::node::models::transfer::{OnBytes, fault};
use crate::node::web::client::Client;
use crate::node::web::error::WebError;
use crate::node::web::remote::{Opened, Remote};

/// A file on the web, opened for the first shard.
pub(super) struct WebFile {
    client: Client,
    /// Result of opening, shared by all shards of the pull.
    plan: OnceCell<Result<Arc<Plan>, Fault>>,
}

/// Positions of the shards.
struct Plan {
    remote: Remote,
    sharding: Sharding,
    /// Bytes received with the header, with their position.
    tail: (u64, Bytes),
}

impl Source for WebFile {
    fn fetch_shard<'a>(
        &'a self,
        catalog: &'a Catalog,
        manifest: &'a Arc<Manifest>,
        entry: &'a ShardEntry,
        on_bytes: &'a OnBytes,
    ) -> BoxFuture<'a, Result<(), Fault>> {
        Box::pin(async move {
            let plan = self.plan.get_or_init(async || self.open(manifest).await.map_err(Fault::from)).await.clone()?;
            let writer = open(catalog, entry).await?;
            let resumed = writer.bytes_written();
            on_bytes(resumed);
            match self.fill(&plan, writer, entry, on_bytes).await {
                // The resumed bytes may have been corrupt: start again without them.
                Err(fault) if resumed > 0 && fault.kind() == ErrorKind::ShardCorrupt => {
                    let writer = open(catalog, entry).await?;
                    Ok(self.fill(&plan, writer, entry, on_bytes).await?)
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

    /// An opened file whose header matches the model.
    pub fn opened(remote: Remote, sharding: Sharding, tail: (u64, Bytes)) -> Self {
        let client = remote.client().clone();
        Self { client, plan: OnceCell::new_with(Some(Ok(Arc::new(Plan { remote, sharding, tail })))) }
    }

    /// Opens the file; its header must match the model.
    async fn open(&self, manifest: &Arc<Manifest>) -> Result<Arc<Plan>, WebError> {
        let Opened::Ranges(remote) = Remote::open(self.client.clone()).await? else {
            return Err(WebError::WholeOnly { host: self.client.host() });
        };
        let (first, tail) = remote.first_header().await?;
        let header = remote.whole_header(first).await?;
        let sharding = Sharding::new(&header).ok().filter(|sharding| sharding.fits(manifest));
        let other = || WebError::OtherModel { host: self.client.host(), model: manifest.id() };
        Ok(Arc::new(Plan { remote, sharding: sharding.ok_or_else(other)?, tail }))
    }

    async fn fill(
        &self,
        plan: &Plan,
        mut writer: WholeWriter,
        entry: &ShardEntry,
        on_bytes: &OnBytes,
    ) -> Result<(), Fault> {
        let index = plan.sharding.manifest.shards.iter().position(|shard| shard.kind == entry.kind);
        let index = index.ok_or_else(|| Fault::new(ErrorKind::Internal, "a shard is not of its model"))?;
        let mut reader = plan.remote.reader();
        reader.plan(&plan.sharding, &[index], plan.tail.clone());
        while writer.next_len() > 0 {
            // Fits: at most `GROUP`.
            let (number, len) = (writer.next_group(), writer.next_len() as usize);
            let group = match entry.kind {
                // Metadata is part of the header.
                ShardKind::Metadata => {
                    let begin = (number * GROUP) as usize;
                    plan.sharding.metadata.get(begin..begin + len).unwrap_or_default().to_vec()
                }
                _ => reader.group(&plan.sharding.pieces(index, number), len).await?,
            };
            writer = blocking(move || writer.write_group(&group).map(|()| writer).map_err(fault)).await?;
            on_bytes(len as u64);
        }
        blocking(move || writer.finish().map_err(fault)).await
    }
}

async fn open(catalog: &Catalog, entry: &ShardEntry) -> Result<WholeWriter, Fault> {
    let (catalog, entry) = (catalog.clone(), entry.clone());
    blocking(move || catalog.whole_writer(&entry).map_err(fault)).await
}
