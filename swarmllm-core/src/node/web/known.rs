//! Import of a file whose header matches a known model: only the wanted shards are read. Missing shards are stored and held
//! shards are compared by id, since only the weights show whether the file is of that model. If no layer is wanted, the
//! smallest layer is compared. Other shards are not read; there the file may differ from the model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use crate::base::{ErrorKind, ModelId, Progress};
use crate::model::catalog::{Catalog, HeaderIngest};
use crate::model::gguf::Gguf;
use crate::model::manifest::Sharding;
use crate::model::shard::{group_len, groups};
use crate::model::{Manifest, ModelError, ShardEntry, ShardKind};
use crate::node::api::request::ImportOptions;
use crate::node::blocking::blocking;
use crate::node::models::fetch::Source;
use crate::node::models::transfer::{OnBytes, fault};
use crate::node::web::error::WebError;
use crate::node::web::remote::Remote;
use crate::node::web::shards::WebFile;

/// Outcome of the import.
pub(super) enum KnownImport {
    /// The file is of this known model; all wanted shards are held.
    Done(ModelId),
    /// The file is of an unknown model and must be read whole.
    Other(Box<HeaderIngest>, Box<Gguf>),
}

/// Imports the model if its header matches a known model. Cancel-safe: received bytes are kept for the next import.
pub(super) async fn import(
    catalog: &Catalog,
    remote: &Remote,
    (ingest, header, tail): (HeaderIngest, Gguf, &(u64, Bytes)),
    options: &ImportOptions,
) -> Result<KnownImport, WebError> {
    let (shown, name, stem) = (remote.client().shown(), options.name.clone(), remote.client().stem());
    let look = move || {
        let sharding =
            Sharding::new(&header).map_err(|source| fault(ModelError::Sharding { path: shown.into(), source }))?;
        ingest.check_alias((&header, &sharding), name.as_deref(), stem.as_deref()).map_err(fault)?;
        Ok((ingest.matching_model(&sharding), ingest, header, sharding))
    };
    let (known, ingest, header, sharding) = blocking(look).await?;
    let Some(manifest) = known else { return Ok(KnownImport::Other(Box::new(ingest), Box::new(header))) };
    let file = File { catalog, remote, sharding: &sharding, tail, manifest: &manifest };
    if !file.fetch_wanted(options).await? {
        return Ok(KnownImport::Other(Box::new(ingest), Box::new(header)));
    }
    let (model, name, stem) = (manifest.id(), options.name.clone(), remote.client().stem());
    let finish = move || ingest.finish_known(model, (&header, &sharding), name.as_deref(), stem.as_deref());
    blocking(move || finish().map_err(fault)).await?;
    Ok(KnownImport::Done(model))
}

/// The file, and the model that its header matches.
struct File<'a> {
    catalog: &'a Catalog,
    remote: &'a Remote,
    sharding: &'a Sharding,
    tail: &'a (u64, Bytes),
    manifest: &'a Arc<Manifest>,
}

impl File<'_> {
    /// Fetches missing wanted shards and compares held ones; false if the weights are another model's.
    async fn fetch_wanted(&self, options: &ImportOptions) -> Result<bool, WebError> {
        let shards = || self.manifest.shards.iter().enumerate();
        let wanted: Vec<(usize, &ShardEntry)> = shards().filter(|(_, shard)| options.keeps(shard.kind)).collect();
        let (held, mut missing): (Vec<_>, Vec<_>) =
            wanted.iter().copied().partition(|(_, shard)| self.catalog.has(&shard.id));
        let (done, total) = (AtomicU64::new(0), wanted.iter().map(|(_, shard)| shard.size).sum());
        let reported = options.clone();
        let on_bytes: OnBytes = Arc::new(move |bytes| {
            let done = (done.fetch_add(bytes, Ordering::Relaxed) + bytes).min(total);
            reported.report_progress(Progress { done, total });
        });
        on_bytes(0);
        // Only weights distinguish models with equal headers. If no layer is wanted, compare the smallest.
        let lone = shards().filter(|(_, shard)| is_layer(shard)).min_by_key(|(_, shard)| shard.size);
        let lone = lone.filter(|_| !wanted.iter().any(|(_, shard)| is_layer(shard)));
        for (index, shard) in held.into_iter().chain(lone) {
            if !self.matches_shard(index, shard, &on_bytes).await? {
                return Ok(false);
            }
        }
        let entries: Vec<ShardEntry> = wanted.iter().map(|(_, shard)| (*shard).clone()).collect();
        let catalog = self.catalog.clone();
        let _reserved = blocking(move || catalog.reserve_shards(&entries).map_err(fault)).await?;
        // Layers first: a mismatch then shows early.
        missing.sort_by_key(|(_, shard)| !is_layer(shard));
        let source = WebFile::opened(self.remote.clone(), self.sharding.clone(), self.tail.clone());
        for (_, shard) in missing {
            match source.fetch_shard(self.catalog, self.manifest, shard, &on_bytes).await {
                Ok(()) => {}
                Err(fault) if fault.kind() == ErrorKind::ShardCorrupt => return Ok(false),
                Err(fault) => return Err(fault.into()),
            }
        }
        // Last: a file of another model must not change the wanted parts of this model.
        let (catalog, model, options) = (self.catalog.clone(), self.manifest.id(), options.clone());
        blocking(move || catalog.record_requested(model, &|kind| options.keeps(kind)).map_err(fault)).await?;
        Ok(true)
    }

    /// Whether the file contains this shard of the model.
    async fn matches_shard(&self, index: usize, shard: &ShardEntry, on_bytes: &OnBytes) -> Result<bool, WebError> {
        let (mut hasher, mut reader) = (blake3::Hasher::new(), self.remote.reader());
        reader.plan(self.sharding, &[index], self.tail.clone());
        for number in 0..groups(shard.size) {
            // Fits: at most `GROUP`.
            let group =
                reader.group(&self.sharding.pieces(index, number), group_len(shard.size, number) as usize).await?;
            hasher.update(&group);
            on_bytes(group.len() as u64);
        }
        Ok(*hasher.finalize().as_bytes() == shard.id.0)
    }
}

fn is_layer(shard: &ShardEntry) -> bool {
    matches!(shard.kind, ShardKind::Layer(_))
}
