//! Finds holders of a model that this node has not heard of, through the swarm's table.
//!
//! Announcements reach who is there when they are made; who came later looks a model up under its id or its name. What
//! the table says is never believed: each provider is asked itself, by a hello.

use std::sync::Arc;

use futures::future::join_all;

use crate::base::{Hash, ModelId, NodeId};
use crate::net::NetHandle;
use crate::node::announcer::hello;
use crate::node::shared::Shared;

/// Providers of one key that are asked.
const MAX_ASKED: usize = 16;
/// Keeps the hash of a name apart from every other use of BLAKE3.
const NAME_CONTEXT: &str = "swarmllm 2026-11 model name";

/// The table's key of a model.
pub(crate) fn key_of(model: ModelId) -> Hash {
    Hash(*model.as_bytes())
}

/// The table's key of a model's name.
pub(crate) fn key_of_name(name: &str) -> Hash {
    Hash(blake3::derive_key(NAME_CONTEXT, name.as_bytes()))
}

/// Looks for who announced `key`, says hello to those that are new, and gives how many answered.
pub(crate) async fn seek(shared: &Arc<Shared>, key: Hash) -> usize {
    let Some(net) = &shared.net else { return 0 };
    let providers = match net.find_providers(key).await {
        Ok(providers) => providers,
        Err(error) => {
            tracing::debug!(%error, "the swarm's table could not be asked");
            return 0;
        }
    };
    let known = shared.registry.snapshot();
    let strangers = providers.into_iter().filter(|node| !known.contains_key(node)).take(MAX_ASKED);
    let met = join_all(strangers.map(|node| meet(shared, net, node))).await;
    met.into_iter().filter(|met| *met).count()
}

async fn meet(shared: &Shared, net: &NetHandle, node: NodeId) -> bool {
    let met = match net.ensure_connected(node, &[]).await {
        Ok(()) => hello(shared, node).await.map_err(|fault| fault.to_string()),
        Err(error) => Err(error.to_string()),
    };
    met.inspect_err(|reason| tracing::debug!(peer = %node, reason, "a provider could not be asked")).is_ok()
}
