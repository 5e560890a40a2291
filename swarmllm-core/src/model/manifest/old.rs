//! Manifests as earlier versions wrote them, read so that their models stay known.

use serde::Deserialize;

use super::{Fact, Manifest, ManifestError, ShardEntry};

/// What follows the format's number in the layout that had a name in it.
#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
struct Format1 {
    name: String,
    architecture: String,
    layers: u32,
    width: u32,
    vocab: u32,
    context: u32,
    tied: bool,
    alignment: u32,
    facts: Vec<Fact>,
    shards: Vec<ShardEntry>,
}

/// A manifest of format 1 as one of today's, with the name that was in it; `None` for bytes of another format.
pub(crate) fn decode_format_1(bytes: &[u8]) -> Result<Option<(Manifest, String)>, ManifestError> {
    let Ok((1, rest)) = postcard::take_from_bytes::<u32>(bytes) else { return Ok(None) };
    let old: Format1 =
        postcard::from_bytes(rest).map_err(|error| ManifestError::Encoding { reason: error.to_string() })?;
    let manifest = Manifest {
        format: Manifest::FORMAT,
        architecture: old.architecture,
        layers: old.layers,
        width: old.width,
        vocab: old.vocab,
        context: old.context,
        tied: old.tied,
        alignment: old.alignment,
        facts: old.facts,
        shards: old.shards,
    };
    manifest.check()?;
    Ok(Some((manifest, old.name)))
}

/// The bytes of format 1 that an earlier version wrote for this model.
#[cfg(test)]
pub(crate) fn encode_format_1(manifest: &Manifest, name: &str) -> Vec<u8> {
    let manifest = manifest.clone();
    let old = Format1 {
        name: name.to_owned(),
        architecture: manifest.architecture,
        layers: manifest.layers,
        width: manifest.width,
        vocab: manifest.vocab,
        context: manifest.context,
        tied: manifest.tied,
        alignment: manifest.alignment,
        facts: manifest.facts,
        shards: manifest.shards,
    };
    postcard::to_stdvec(&(1u32, old)).unwrap()
}
