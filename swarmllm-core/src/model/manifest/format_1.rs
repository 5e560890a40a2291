//! Manifests of format 1, read so that their models stay known.

use serde::Deserialize;

use super::{Fact, Manifest, ManifestError, ShardEntry};

/// Fields after the format number. Format 1 had the model's name in the manifest.
#[derive(Deserialize)]
#[cfg_attr(test, derive(serde::Serialize))]
struct ManifestFormat1 {
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

/// Converts a manifest of format 1 to the current format and returns its name; `None` for another format.
pub(crate) fn decode_format_1(bytes: &[u8]) -> Result<Option<(Manifest, String)>, ManifestError> {
    let Ok((1, rest)) = postcard::take_from_bytes::<u32>(bytes) else { return Ok(None) };
    let old: ManifestFormat1 =
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

/// Encodes this model in format 1.
#[cfg(test)]
pub(crate) fn encode_format_1(manifest: &Manifest, name: &str) -> Vec<u8> {
    let manifest = manifest.clone();
    let old = ManifestFormat1 {
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
