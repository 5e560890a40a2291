//! Says hello to nodes that are known by gossip alone, where a plan or a pull wants them.
//!
//! Anybody can make up nodes and announce for them whatever a plan likes best. So a plan counts on those that have answered a
//! hello, and greets others several at once, each within a short time. Who does not answer counts as failed for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio::sync::oneshot;

use crate::base::{ModelId, NodeId};
use crate::net::NetHandle;
use crate::node::shared::Shared;
use crate::node::swarm::directory::Announced;

/// Time for the dial and the hello of one candidate.
const DEADLINE: Duration = Duration::from_secs(2);
/// Candidates that are greeted at once, and for one plan in all: 4 rounds of 2 s where none of them answers.
const AT_ONCE: usize = 16;
pub(crate) const MOST: usize = 64;
/// Addresses that are tried of each. The dial ends with the greeting.
const MOST_ADDRESSES: usize = 4;
/// Greeted holders of a model beside whom nobody is greeted in the background, and those that are so at once.
const ENOUGH: usize = 8;
const IN_BACKGROUND: usize = 4;
/// Greetings that run at once: with 16 dials each, half of the dials that may be under way (64).
pub(crate) const TURNS: usize = 2;

/// A node that is known by gossip alone.
struct Candidate {
    node: NodeId,
    addresses: Vec<String>,
    /// The peer that passed its announcement on.
    via: NodeId,
}

/// Candidates for the model, without those that failed a short while ago. The peers that passed them on take turns: who makes up
/// many delays what others tell by one each.
fn candidates(shared: &Shared, model: ModelId, most: usize) -> Vec<Candidate> {
    let (known, failed) = (shared.registry.snapshot(), shared.coordinator.failures.now());
    let new = known.iter().filter(|(node, _)| !failed.contains(*node) && **node != shared.id);
    let candidate = |(node, announced): (&NodeId, &Announced)| {
        let via = announced.via()?;
        announced.holding(model)?;
        let addresses = announced.addresses.iter().take(MOST_ADDRESSES).cloned().collect();
        Some(Candidate { node: *node, addresses, via })
    };
    in_turns(new.filter_map(candidate)).take(most).collect()
}

/// One of each peer that passed some on, then the second of each, and so on.
fn in_turns(candidates: impl Iterator<Item = Candidate>) -> impl Iterator<Item = Candidate> {
    let mut told: HashMap<NodeId, usize> = HashMap::new();
    let mut turns: Vec<(usize, Candidate)> = candidates
        .map(|candidate| {
            let turn = told.entry(candidate.via).or_default();
            *turn += 1;
            (*turn, candidate)
        })
        .collect();
    turns.sort_by_key(|(turn, _)| *turn);
    turns.into_iter().map(|(_, candidate)| candidate)
}

/// Whether there are candidates for the model.
pub(crate) fn any(shared: &Shared, model: ModelId) -> bool {
    !candidates(shared, model, 1).is_empty()
}

/// Says hello to candidates for the model; gives how many answered. Takes 8 s at most, beside what waits for its turn. Goes on
/// where nobody waits for it any more, so that who does not answer is found out once and not by each plan anew.
pub(crate) async fn greet(shared: &Arc<Shared>, model: ModelId) -> usize {
    let (told, answered) = oneshot::channel();
    let (work, stopping) = (shared.clone(), shared.tasks.stopping());
    shared.tasks.spawn("greeting", async move {
        let greets = async {
            // Nobody closes the turns, so that one comes.
            let Ok(_turn) = work.greetings.acquire().await else { return 0 };
            greet_some(&work, model, MOST, AT_ONCE).await
        };
        let _ = told.send(stopping.run_until_cancelled(greets).await.unwrap_or(0));
    });
    answered.await.unwrap_or(0)
}

/// The same in the background to a few of them, where few holders of the model have been greeted: for the plans to come.
pub(crate) fn greet_in_background(shared: &Arc<Shared>, model: ModelId) {
    let known = shared.registry.snapshot();
    let holds = |known: &&Announced| known.greeted() && known.holding(model).is_some();
    let greeted = known.values().filter(holds).count();
    if greeted >= ENOUGH || !any(shared, model) {
        return;
    }
    let Ok(turn) = shared.greetings.clone().try_acquire_owned() else { return };
    let (work, stopping) = (shared.clone(), shared.tasks.stopping());
    shared.tasks.spawn("greeting", async move {
        stopping.run_until_cancelled(greet_some(&work, model, IN_BACKGROUND, IN_BACKGROUND)).await;
        drop(turn);
    });
}

async fn greet_some(shared: &Arc<Shared>, model: ModelId, most: usize, at_once: usize) -> usize {
    let Some(net) = &shared.net else { return 0 };
    let hellos = candidates(shared, model, most).into_iter().map(|candidate| async move {
        let greeted = tokio::time::timeout(DEADLINE, greet_one(shared, net, &candidate)).await;
        let answered = greeted == Ok(true);
        if !answered {
            shared.coordinator.failures.failed(candidate.node);
        }
        answered
    });
    let answers = futures::stream::iter(hellos).buffer_unordered(at_once);
    answers.filter(|answered| std::future::ready(*answered)).count().await
}

/// Its addresses count as told by who passed them on: a node that is made up may name any.
async fn greet_one(shared: &Arc<Shared>, net: &NetHandle, candidate: &Candidate) -> bool {
    let Candidate { node, addresses, via } = candidate;
    let met = match net.try_as_told(*node, addresses, *via).await {
        Ok(()) => shared.announcer.hello(*node).await.map_err(|fault| fault.to_string()),
        Err(error) => Err(error.to_string()),
    };
    met.inspect_err(|reason| tracing::debug!(peer = %node, reason, "a candidate did not answer")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_makes_up_many_candidates_delays_what_others_tell_by_one_each() {
        let candidate =
            |node, via| Candidate { node: NodeId([node; 32]), addresses: Vec::new(), via: NodeId([via; 32]) };
        let made_up = (0..200).map(|node| candidate(node, 1));
        let told = made_up.chain([candidate(201, 2), candidate(202, 3), candidate(203, 2)]);
        let first: Vec<u8> = in_turns(told).take(AT_ONCE).map(|candidate| candidate.node.0[0]).collect();
        assert_eq!(first[..5], [0, 201, 202, 1, 203]);
        assert_eq!(first.len(), AT_ONCE);
    }
}
