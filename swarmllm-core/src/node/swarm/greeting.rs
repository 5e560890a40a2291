//! Greets candidates: nodes known by gossip alone that a plan or a pull could use.
//!
//! A peer can invent nodes and announce anything for them. A plan therefore uses only nodes that answered a hello; it greets
//! others in parallel, each within a short deadline. A node that does not answer counts as failed for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::oneshot;

use crate::base::{ModelId, NodeId};
use crate::net::NetHandle;
use crate::node::shared::SharedState;
use crate::node::swarm::announcer::Announcer;
use crate::node::swarm::registry::KnownNode;

/// Deadline of dial and hello of one candidate.
const DEADLINE: Duration = Duration::from_secs(2);
/// Candidates greeted in parallel, and in all for one plan: 4 rounds of 2 s if none of them answers.
const PARALLEL: usize = 16;
pub(crate) const MAX_CANDIDATES: usize = 64;
/// Addresses tried per candidate. The dial ends with the greeting.
const MAX_ADDRESSES: usize = 4;
/// Greeted holders of a model that make background greetings unnecessary, and candidates of one background greeting.
const ENOUGH: usize = 8;
const BACKGROUND_CANDIDATES: usize = 4;
/// Concurrent greetings: with 16 dials each, half of the 64 dials that may run.
pub(crate) const MAX_GREETINGS: usize = 2;

/// A node known by gossip alone.
struct Candidate {
    node: NodeId,
    addresses: Vec<String>,
    /// The peer that relayed its announcement.
    via: NodeId,
}

/// Candidates for the model, except recently failed nodes. Relaying peers alternate: a peer that invents many candidates
/// delays those of each other peer by one place.
fn candidates(shared: &SharedState, model: ModelId, most: usize) -> Vec<Candidate> {
    let (known, failed) = (shared.registry.snapshot(), shared.coordinator.failures.now());
    let new = known.iter().filter(|(node, _)| !failed.contains(*node) && **node != shared.id);
    let candidate = |(node, announced): (&NodeId, &KnownNode)| {
        let via = announced.via()?;
        announced.holding(model)?;
        let addresses = announced.addresses.iter().take(MAX_ADDRESSES).cloned().collect();
        Some(Candidate { node: *node, addresses, via })
    };
    round_robin(new.filter_map(candidate)).take(most).collect()
}

/// The first candidate of each relaying peer, then the second of each, and so on.
fn round_robin(candidates: impl Iterator<Item = Candidate>) -> impl Iterator<Item = Candidate> {
    let mut counts: HashMap<NodeId, usize> = HashMap::new();
    let mut rounds: Vec<(usize, Candidate)> = candidates
        .map(|candidate| {
            let round = counts.entry(candidate.via).or_default();
            *round += 1;
            (*round, candidate)
        })
        .collect();
    rounds.sort_by_key(|(round, _)| *round);
    rounds.into_iter().map(|(_, candidate)| candidate)
}

/// Whether the model has candidates.
pub(crate) fn has_candidates(shared: &SharedState, model: ModelId) -> bool {
    !candidates(shared, model, 1).is_empty()
}

/// Greets candidates for the model; returns how many answered. Takes at most 8 s after it gets its permit. Dropped, the
/// greeting continues in the background: the silent nodes it finds need not be found again by the next plan.
pub(crate) async fn greet(shared: &Arc<SharedState>, model: ModelId) -> usize {
    let (reply, answered) = oneshot::channel();
    let (work, stopping) = (shared.clone(), shared.tasks.stopping());
    shared.tasks.spawn("greeting", async move {
        let greets = async {
            // Never fails: nobody closes the semaphore.
            let Ok(_permit) = work.greetings.acquire().await else { return 0 };
            greet_some(&work, model, MAX_CANDIDATES, PARALLEL).await
        };
        let _ = reply.send(stopping.run_until_cancelled(greets).await.unwrap_or(0));
    });
    answered.await.unwrap_or(0)
}

/// Greets a few candidates in the background for later plans, if few holders of the model have been greeted.
pub(crate) fn greet_in_background(shared: &Arc<SharedState>, model: ModelId) {
    let known = shared.registry.snapshot();
    let holds = |known: &&KnownNode| known.greeted() && known.holding(model).is_some();
    let greeted = known.values().filter(holds).count();
    if greeted >= ENOUGH || !has_candidates(shared, model) {
        return;
    }
    let Ok(permit) = shared.greetings.clone().try_acquire_owned() else { return };
    let (work, stopping) = (shared.clone(), shared.tasks.stopping());
    shared.tasks.spawn("greeting", async move {
        stopping.run_until_cancelled(greet_some(&work, model, BACKGROUND_CANDIDATES, BACKGROUND_CANDIDATES)).await;
        drop(permit);
    });
}

async fn greet_some(shared: &Arc<SharedState>, model: ModelId, most: usize, at_once: usize) -> usize {
    let Some(net) = &shared.net else { return 0 };
    let hellos = candidates(shared, model, most).into_iter().map(|candidate| async move {
        let greeted = tokio::time::timeout(DEADLINE, greet_one(&shared.announcer, net, &candidate)).await;
        let answered = greeted == Ok(true);
        if !answered {
            shared.coordinator.failures.failed(candidate.node);
        }
        answered
    });
    let answers = futures::stream::iter(hellos).buffer_unordered(at_once);
    answers.filter(|answered| std::future::ready(*answered)).count().await
}

/// The relaying peer is accountable for the addresses: an invented node may name any.
async fn greet_one(announcer: &Announcer, net: &NetHandle, candidate: &Candidate) -> bool {
    let Candidate { node, addresses, via } = candidate;
    let met = match net.try_reported(*node, addresses, *via).await {
        Ok(()) => announcer.hello(*node).await.map_err(|fault| fault.to_string()),
        Err(error) => Err(error.to_string()),
    };
    met.inspect_err(|reason| tracing::debug!(peer = %node, reason, "a candidate did not answer")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_invented_candidates_delay_those_of_other_peers_by_one() {
        let candidate =
            |node, via| Candidate { node: NodeId([node; 32]), addresses: Vec::new(), via: NodeId([via; 32]) };
        let invented = (0..200).map(|node| candidate(node, 1));
        let all = invented.chain([candidate(201, 2), candidate(202, 3), candidate(203, 2)]);
        let first: Vec<u8> = round_robin(all).take(PARALLEL).map(|candidate| candidate.node.0[0]).collect();
        assert_eq!(first[..5], [0, 201, 202, 1, 203]);
        assert_eq!(first.len(), PARALLEL);
    }
}
