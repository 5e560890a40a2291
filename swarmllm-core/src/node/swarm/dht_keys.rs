//! Keys of models in the DHT.

use crate::base::{Hash, ModelId};

/// Domain separation of the BLAKE3 hash of a name.
const NAME_CONTEXT: &str = "swarmllm 2026-11 model name";

/// DHT key of a model.
pub(crate) fn dht_key(model: ModelId) -> Hash {
    Hash(*model.as_bytes())
}

/// DHT key of a model's name, in any case.
pub(crate) fn dht_key_of_name(name: &str) -> Hash {
    Hash(blake3::derive_key(NAME_CONTEXT, name.to_lowercase().as_bytes()))
}
