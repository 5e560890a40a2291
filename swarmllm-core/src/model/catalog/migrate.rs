//! Data directories of earlier versions: manifests that had a name in them become today's, and the names lie beside them.
//!
//! The id of a model changes with that and its shards do not, so that nothing is lost and nothing is fetched again. New
//! files are durable before old ones go; a crash in between is gone on from by the next opening.

use std::fs;
use std::path::Path;

use super::files::{Layout, check_id, read_bounded, remove_if_there};
use super::marks::Marks;
use super::names::Names;
use crate::base::ModelId;
use crate::model::manifest::decode_format_1;
use crate::model::{Manifest, ModelError};

/// Replaces manifests of earlier formats. One that cannot be read is left where it is.
pub(super) fn manifests(layout: &Layout) -> Result<(), ModelError> {
    for (id, path) in layout.manifests()? {
        match old(&path, id) {
            Ok(None) => {}
            Ok(Some((manifest, name))) => {
                // A full disk must not keep the other models from being opened; the next opening tries again.
                if let Err(error) = replace(layout, (id, &path), &manifest, &name) {
                    tracing::warn!(path = %path.display(), %error, "a manifest of an earlier version was not replaced");
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
    // Models that differed only in their names are one now, of which either may have been replaced already. The names
    // become aliases: there is one hint to a model, so that as hints all but one would be lost. Where two models had one
    // name, both keep it as an alias; it is as ambiguous as it was, until the host moves or removes it.
    let mut names = Names::read(&layout.names(&model))?;
    names.merge(&Names::new(Some(name), None));
    layout.prepare(&names.encode())?.keep(&layout.names(&model))?;
    let mut marks = Marks::read(&layout.marks(&old))?;
    if layout.manifest(&model).exists() {
        marks = marks.stronger(&Marks::read(&layout.marks(&model))?, manifest);
    }
    layout.prepare(&marks.encode())?.keep(&layout.marks(&model))?;
    if layout.pin(&old).exists() {
        layout.prepare(&[])?.keep(&layout.pin(&model))?;
    }
    let used = fs::metadata(path).and_then(|metadata| metadata.modified());
    layout.prepare(&manifest.encode())?.keep(&layout.manifest(&model))?;
    if let Ok(used) = used {
        // Tells when the model was used last; that it is lost does no harm but to the order.
        let _ = fs::File::options().append(true).open(layout.manifest(&model)).and_then(|file| file.set_modified(used));
    }
    layout.sync_models()?;
    // The manifest first: as long as it is there the others say what holds for its shards.
    for gone in [path.to_owned(), layout.pin(&old), layout.marks(&old)] {
        remove_if_there(&gone)?;
    }
    layout.sync_models()?;
    tracing::info!(%old, %model, name, "a manifest of an earlier version was replaced");
    Ok(())
}
