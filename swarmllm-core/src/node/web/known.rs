//! Import of a file whose header is a known model's: only what is wanted is read. What is missing is kept and what is held is
//! compared, each shard by its id, since only the weights tell whether the file is of that model. Where no layer is wanted, the
//! smallest one is compared. What is not wanted is not looked at: there the file may be another model's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::base::{ErrorKind, ModelId, Progress};
use crate::model::catalog::{Catalog, HeadIntake};
use crate::model::gguf::Gguf;
use crate::model::manifest::Cut;
use crate::model::shard::{group_len, groups};
use crate::model::{Manifest, ModelError, ShardEntry, ShardKind};
use crate::node::api::request::ImportOptions;
use crate::node::blocking::blocking;
use crate::node::models::fetch::Source;
use crate::node::models::transfer::{Taken, fault};
use crate::node::web::error::WebError;
use crate::node::web::remote::Remote;
use crate::node::web::shards::WebFile;

/// How the import ended.
pub(super) enum Known {
    /// The file is of this model, of which all that is wanted is here.
    Done(ModelId),
    /// The file is of a model that is not known yet; it has to be read as a whole.
    Other(Box<HeadIntake>, Box<Gguf>),
}

/// Imports the model if the header is a known one's. Cancel-safe: what came is kept, for the next import from there.
pub(super) async fn import(
    catalog: &Catalog,
    remote: &Remote,
    (intake, header, tail): (HeadIntake, Gguf, &(u64, Bytes)),
    options: &ImportOptions,
) -> Result<Known, WebError> {
    let (shown, name, stem) = (remote.client().shown(), options.name.clone(), remote.client().stem());
    let look = move || {
        let cut = Cut::new(&header).map_err(|source| fault(ModelError::Cut { path: shown.into(), source }))?;
        intake.check_alias((&header, &cut), name.as_deref(), stem.as_deref()).map_err(fault)?;
        Ok((intake.known(&cut), intake, header, cut))
    };
    let (known, intake, header, cut) = blocking(look).await?;
    let Some(manifest) = known else { return Ok(Known::Other(Box::new(intake), Box::new(header))) };
    let file = File { catalog, remote, cut: &cut, tail, manifest: &manifest };
    if !file.take(options).await? {
        return Ok(Known::Other(Box::new(intake), Box::new(header)));
    }
    let (model, name, stem) = (manifest.id(), options.name.clone(), remote.client().stem());
    let finish = move || intake.finish_known(model, (&header, &cut), name.as_deref(), stem.as_deref());
    blocking(move || finish().map_err(fault)).await?;
    Ok(Known::Done(model))
}

/// The file, and the model that it is of by its header.
struct File<'a> {
    catalog: &'a Catalog,
    remote: &'a Remote,
    cut: &'a Cut,
    tail: &'a (u64, Bytes),
    manifest: &'a Arc<Manifest>,
}

impl File<'_> {
    /// Takes what is wanted and not held, and compares what is held; `false` where the weights are another model's.
    async fn take(&self, options: &ImportOptions) -> Result<bool, WebError> {
        let shards = || self.manifest.shards.iter().enumerate();
        let wanted: Vec<(usize, &ShardEntry)> = shards().filter(|(_, shard)| options.keeps(shard.kind)).collect();
        let (held, mut missing): (Vec<_>, Vec<_>) =
            wanted.iter().copied().partition(|(_, shard)| self.catalog.has(&shard.id));
        let (done, total) = (AtomicU64::new(0), wanted.iter().map(|(_, shard)| shard.size).sum());
        let told = options.clone();
        let taken: Taken = Arc::new(move |bytes| {
            let done = (done.fetch_add(bytes, Ordering::Relaxed) + bytes).min(total);
            told.tell(Progress { done, total });
        });
        taken(0);
        // Only weights tell models of one header apart. Where no layer is wanted, the smallest does it.
        let lone = shards().filter(|(_, shard)| is_layer(shard)).min_by_key(|(_, shard)| shard.size);
        let lone = lone.filter(|_| !wanted.iter().any(|(_, shard)| is_layer(shard)));
        for (index, shard) in held.into_iter().chain(lone) {
            if !self.is_same(index, shard, &taken).await? {
                return Ok(false);
            }
        }
        let entries: Vec<ShardEntry> = wanted.iter().map(|(_, shard)| (*shard).clone()).collect();
        let catalog = self.catalog.clone();
        let _reserved = blocking(move || catalog.reserve_shards(&entries).map_err(fault)).await?;
        // Layers first: what is not of the model shows before much has come.
        missing.sort_by_key(|(_, shard)| !is_layer(shard));
        let source = WebFile::opened(self.remote.clone(), self.cut.clone(), self.tail.clone());
        for (_, shard) in missing {
            match source.take(self.catalog, self.manifest, shard, &taken).await {
                Ok(()) => {}
                Err(fault) if fault.kind() == ErrorKind::ShardCorrupt => return Ok(false),
                Err(fault) => return Err(fault.into()),
            }
        }
        // Last: a file that is another model's changes nothing of what is wanted of this one.
        let (catalog, model, options) = (self.catalog.clone(), self.manifest.id(), options.clone());
        blocking(move || catalog.note_wanted(model, &|kind| options.keeps(kind)).map_err(fault)).await?;
        Ok(true)
    }

    /// Whether the file has this shard of the model.
    async fn is_same(&self, index: usize, shard: &ShardEntry, taken: &Taken) -> Result<bool, WebError> {
        let (mut hasher, mut reader) = (blake3::Hasher::new(), self.remote.reader());
        reader.plan(self.cut, &[index], self.tail.clone());
        for number in 0..groups(shard.size) {
            // At most `GROUP`, so it fits any usize.
            let group = reader.group(&self.cut.pieces(index, number), group_len(shard.size, number) as usize).await?;
            hasher.update(&group);
            taken(group.len() as u64);
        }
        Ok(*hasher.finalize().as_bytes() == shard.id.0)
    }
}

fn is_layer(shard: &ShardEntry) -> bool {
    matches!(shard.kind, ShardKind::Layer(_))
}
