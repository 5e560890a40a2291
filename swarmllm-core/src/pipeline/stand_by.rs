//! Stand-bys: hosts that follow a stage of an answer, so that one can go on where the stage's own host is lost.
//!
//! A stand-by is loaded and admitted as the stage itself, and gets a copy of every step from the stage before (of the first
//! stage's from the coordinator). It computes them, passes nothing on, and so holds the KV that its stage holds. It costs
//! what the stage costs, and nobody ever waits for it: one that is slow, or to which the way is slow, gets no more copies,
//! and has then as much of the text as came.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::base::NodeId;
use crate::pipeline::links::Outlet;
use crate::pipeline::message::Message;
use crate::pipeline::plan::{Candidate, PlanRequest, PlanStage};
use crate::rt::TaskSet;

/// Steps that may wait to be sent to a stand-by: those of the first second, while the way to it is opened.
const COPIES: usize = 256;
/// Numbers that they may have together: 64 MiB.
const FLOATS: usize = 16 * 1024 * 1024;

/// The best stand-by of each stage of a plan, with the memory for it: hosts without a stage first, then the quick and near.
/// Pure.
pub fn choose(request: &PlanRequest, stages: &[PlanStage]) -> Vec<Option<NodeId>> {
    let need = |stage: &PlanStage| (request.memory)(stage.layers, stage.head);
    let is_loaded = |host: &Candidate, stage: &PlanStage| host.loaded.contains(&(stage.layers, stage.head));
    let host_of = |node: NodeId| request.candidates.iter().find(|candidate| candidate.node == node);
    let mut taken: HashMap<NodeId, u64> = HashMap::new();
    for stage in stages {
        let loaded = host_of(stage.node).is_some_and(|host| is_loaded(host, stage));
        *taken.entry(stage.node).or_default() += if loaded { 0 } else { need(stage) };
    }
    let mut chosen = Vec::with_capacity(stages.len());
    for stage in stages {
        let weight = (request.weight)(stage.layers, stage.head);
        let room = |host: &Candidate| {
            let free = host.free_memory.saturating_sub(taken.get(&host.node).copied().unwrap_or(0));
            is_loaded(host, stage) || free >= need(stage)
        };
        let holds = |host: &&Candidate| host.node != stage.node && host.holds(stage.layers, stage.head) && room(host);
        let rank = |host: &&Candidate| {
            let time = weight.saturating_mul(host.pace_ns).saturating_add(u64::from(host.rtt_us) * 1000);
            (taken.contains_key(&host.node), time, host.node)
        };
        let best = request.candidates.iter().filter(holds).min_by_key(rank);
        if let Some(host) = best {
            *taken.entry(host.node).or_default() += if is_loaded(host, stage) { 0 } else { need(stage) };
        }
        chosen.push(best.map(|host| host.node));
    }
    chosen
}

/// What sends copies to a stand-by, without ever being waited for.
pub struct Copies {
    queue: Option<mpsc::Sender<(Message, OwnedSemaphorePermit)>>,
    /// What is left of [`FLOATS`].
    room: Arc<Semaphore>,
}

impl Copies {
    /// Copies to this stand-by, if there is one. They end when this is dropped, and when one cannot be sent.
    pub fn to(outlet: Option<Outlet>, tasks: &TaskSet) -> Self {
        let room = Arc::new(Semaphore::new(FLOATS));
        let Some(mut outlet) = outlet else { return Self { queue: None, room } };
        let (queue, mut copies) = mpsc::channel::<(Message, OwnedSemaphorePermit)>(COPIES);
        tasks.spawn("copies", async move {
            while let Some((message, _room)) = copies.recv().await {
                if let Err(fault) = outlet.send(message).await {
                    tracing::debug!(%fault, "a stand-by gets no more copies");
                    return;
                }
            }
        });
        Self { queue: Some(queue), room }
    }

    /// Sends a copy of a step; of one that does not fit, and from then on, none.
    pub fn send(&mut self, message: &Message) {
        let (Some(queue), Message::Step { hidden, .. }) = (&self.queue, message) else { return };
        let floats = hidden.len().try_into().unwrap_or(u32::MAX);
        let room = self.room.clone().try_acquire_many_owned(floats).ok();
        if room.is_none_or(|room| queue.try_send((message.clone(), room)).is_err()) {
            self.queue = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::{LayerRange, ModelId};
    use crate::engine::CutRules;
    use crate::pipeline::hops::Told;

    fn host(name: u8, layers: (u32, u32), head: bool) -> Candidate {
        Candidate {
            node: NodeId([name; 32]),
            layers: vec![LayerRange::new(layers.0, layers.1)],
            head,
            rtt_us: u32::from(name),
            pace_ns: 1000,
            free_memory: 10,
            loaded: Vec::new(),
        }
    }

    fn chosen(candidates: &[Candidate], stages: &[(u8, u32, u32)]) -> Vec<Option<u8>> {
        let (memory, weight) = (|layers: LayerRange, _| u64::from(layers.len()), |_, _| 1);
        let (model, cuts) = (ModelId([0; 32]), CutRules::free());
        let told = &Told::new();
        let request = PlanRequest { model, layers: 8, cuts: &cuts, candidates, memory: &memory, weight: &weight, told };
        let stage = |(name, start, end): &(u8, u32, u32)| PlanStage {
            node: NodeId([*name; 32]),
            layers: LayerRange::new(*start, *end),
            head: *end == 8,
        };
        let stages: Vec<PlanStage> = stages.iter().map(stage).collect();
        choose(&request, &stages).into_iter().map(|node| node.map(|node| node.0[0])).collect()
    }

    #[test]
    fn each_stage_has_another_host_that_holds_it_and_has_room_if_there_is_one() {
        let all = [host(1, (0, 4), false), host(2, (4, 8), true), host(3, (0, 8), true), host(4, (0, 8), false)];
        assert_eq!(chosen(&all, &[(1, 0, 4), (2, 4, 8)]), [Some(3), Some(3)], "the fourth has no head");
        assert_eq!(chosen(&all[..2], &[(1, 0, 4), (2, 4, 8)]), [None, None]);
        let small = Candidate { free_memory: 5, ..host(3, (0, 8), true) };
        assert_eq!(chosen(&[small], &[(1, 0, 4), (2, 4, 8)]), [Some(3), None], "two do not fit");
        let loaded = Candidate { free_memory: 0, loaded: vec![(LayerRange::new(4, 8), true)], ..host(3, (0, 8), true) };
        assert_eq!(chosen(&[loaded], &[(1, 0, 4), (2, 4, 8)]), [None, Some(3)]);
    }

    #[test]
    fn who_has_a_stage_already_stands_by_only_where_nobody_else_can() {
        let all = [host(1, (0, 8), true), host(2, (0, 8), true), host(9, (0, 4), false)];
        assert_eq!(chosen(&all, &[(1, 0, 4), (2, 4, 8)]), [Some(9), Some(1)]);
    }
}
