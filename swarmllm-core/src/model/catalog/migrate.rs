//! Migration of data directories from manifest format 1, which contained the model's name. Names are now separate files.
//!
//! The model's id changes, its shards do not, so nothing is lost or fetched again. New files are durable before old ones
//! are removed; after a crash the next opening continues.

use std::fs;
use std::path::Path;

use super::files::{Layout, check_id, read_bounded, remove_if_exists};
use super::names::Names;
use super::provenance::ProvenanceTable;
use crate::base::ModelId;
use crate::model::manifest::decode_format_1;
use crate::model::{Manifest, ModelError};

/// Replaces manifests of format 1. Unreadable ones stay where they are.
pub(super) fn manifests(layout: &Layout) -> Result<(), ModelError> {
    for (id, path) in layout.manifests()? {
        match old(&path, id) {
            Ok(None) => {}
            Ok(Some((manifest, name))) => {
                // A full disk must not prevent opening the other models; the next opening tries again.
                if let Err(error) = replace(layout, (id, &path), &manifest, &name) {
                    tracing::warn!(path = %path.display(), %error, "could not migrate a manifest of an earlier version");
                }
            }
            Err(error) => tracing::warn!(path = %path.display(), %error, "a manifest of an earlier version is damaged"),
        }
    }
    Ok(())
}

fn old(path: &Path, id: ModelId) -> Result<Option<(Manifest, String)>, ModelError> {
    let bytes = read_bounded(path)?;
    let Some(old) = decode_format_1(&bytes)? else { return Ok(None) };
    check_id(&bytes, id)?;
    Ok(Some(old))
}

fn replace(layout: &Layout, (old, path): (ModelId, &Path), manifest: &Manifest, name: &str) -> Result<(), ModelError> {
    let model = manifest.id();
    // Models that differed only in name are one model now, and either may have been migrated already. The names become
    // aliases: a model has only one hint, so all others would be lost. If two models had one name, both keep it as an
    // alias, which stays ambiguous until the host moves or removes it.
    let mut names = Names::read(&layout.names(&model))?;
    names.merge(&Names::new(Some(name), None));
    layout.prepare(&names.encode())?.persist(&layout.names(&model))?;
    let mut table = ProvenanceTable::read(&layout.provenance(&old))?;
    if layout.manifest(&model).exists() {
        table = table.stronger(&ProvenanceTable::read(&layout.provenance(&model))?, manifest);
    }
    layout.prepare(&table.encode())?.persist(&layout.provenance(&model))?;
    if layout.pin(&old).exists() {
        layout.prepare(&[])?.persist(&layout.pin(&model))?;
    }
    let used = fs::metadata(path).and_then(|metadata| metadata.modified());
    layout.prepare(&manifest.encode())?.persist(&layout.manifest(&model))?;
    if let Ok(used) = used {
        // The time of last use. Losing it only affects the order of eviction.
        let _ = fs::File::options().append(true).open(layout.manifest(&model)).and_then(|file| file.set_modified(used));
    }
    layout.sync_models()?;
    // The manifest goes first: while it exists, the other files apply to its shards.
    for gone in [path.to_owned(), layout.pin(&old), layout.provenance(&old)] {
        remove_if_exists(&gone)?;
    }
    layout.sync_models()?;
    tracing::info!(%old, %model, name, "migrated a manifest of an earlier version");
    Ok(())
}
