//! Under which keys models stand in the swarm's table.

use crate::base::{Hash, ModelId};

/// Keeps the hash of a name apart from every other use of BLAKE3.
const NAME_CONTEXT: &str = "swarmllm 2026-11 model name";

/// The table's key of a model.
pub(crate) fn key_of(model: ModelId) -> Hash {
    Hash(*model.as_bytes())
}

/// The table's key of a model's name, whatever its case.
pub(crate) fn key_of_name(name: &str) -> Hash {
    Hash(blake3::derive_key(NAME_CONTEXT, name.to_lowercase().as_bytes()))
}
