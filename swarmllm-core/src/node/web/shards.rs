//! Shards of a known model out of its GGUF on the web: the header says where they lie, their ids whether they came.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::OnceCell;

use crate::base::{ErrorKind, Fault};
use crate::model::catalog::{Catalog, WholeWriter};
use crate::model::manifest::Cut;
use crate::model::shard::GROUP;
use crate::model::{Manifest, ShardEntry, ShardKind};
use crate::node::blocking::blocking;
use crate::node::models::fetch::Source;
use crate::node::models::transfer::{Taken, fault};
use crate::node::web::client::Client;
use crate::node::web::error::WebError;
use crate::node::web::remote::{Opened, Remote};

/// A file on the web, looked at when the first shard is wanted.
pub(super) struct WebFile {
    client: Client,
    /// What was found then, for all shards of the pull.
    plan: OnceCell<Result<Arc<Plan>, Fault>>,
}

/// Where the shards lie.
struct Plan {
    remote: Remote,
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

    /// One whose header was read and found to be the model's.
    pub fn opened(remote: Remote, cut: Cut, tail: (u64, Bytes)) -> Self {
        let client = remote.client().clone();
        Self { client, plan: OnceCell::new_with(Some(Ok(Arc::new(Plan { remote, cut, tail })))) }
    }

    /// Reads the header, and sees whether it is that of the model.
    async fn look(&self, manifest: &Arc<Manifest>) -> Result<Arc<Plan>, WebError> {
        let Opened::Ranges(remote) = Remote::open(self.client.clone()).await? else {
            return Err(WebError::WholeOnly { host: self.client.host() });
        };
        let (first, tail) = remote.first_header().await?;
        let header = remote.whole_header(first).await?;
        let cut = Cut::new(&header).ok().filter(|cut| cut.fits(manifest));
        let other = || WebError::OtherModel { host: self.client.host(), model: manifest.id() };
        Ok(Arc::new(Plan { remote, cut: cut.ok_or_else(other)?, tail }))
    }

    async fn fill(&self, plan: &Plan, mut writer: WholeWriter, entry: &ShardEntry, taken: &Taken) -> Result<(), Fault> {
        let index = plan.cut.manifest.shards.iter().position(|shard| shard.kind == entry.kind);
        let index = index.ok_or_else(|| Fault::new(ErrorKind::Internal, "a shard is not of its model"))?;
        let mut reader = plan.remote.reader();
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
