//! Routes of a simulated session, found by the real [`plan`] from what its coordinator knows.

use crate::base::{ErrorKind, Fault, LayerRange, NodeId};
use crate::pipeline::plan::{Candidate, Plan, PlanRequest, ReportedRoundTrips, plan, standby};
use crate::pipeline::route::{Route, RouteStage};
use crate::pipeline::sim::host::memory;
use crate::pipeline::sim::model::MODEL;
use crate::pipeline::sim::swarm::Swarm;
use crate::wire::control::Host;

fn host(node: NodeId) -> Host {
    Host { node, addresses: Vec::new() }
}

impl Swarm {
    /// The best route without these nodes.
    pub(super) fn find(&mut self, index: usize, without: &[NodeId]) -> Result<Route, Fault> {
        let one = &self.sessions[index];
        let known = &self.nodes[one.node].known;
        let all = known.iter().copied().chain([one.node]);
        let candidates = self.candidates(one.node, all.filter(|node| !without.contains(&self.nodes[*node].id)));
        let plan = self.plan(&candidates)?;
        self.check_plan(&plan, &candidates);
        let standbys = match self.sessions[index].request.standby {
            true => self.with_request(&candidates, |request| standby::choose_standbys(request, &plan.stages)),
            false => Vec::new(),
        };
        let standbys = standbys.into_iter().map(|node| node.map(host)).chain(std::iter::repeat(None));
        let stage = |(planned, standby)| RouteStage::new(planned, Vec::new(), 1, standby);
        let stages = plan.stages.iter().copied().zip(standbys).map(stage).collect();
        Ok(Route { model: plan.model, stages, token_us: plan.token_us })
    }

    pub fn candidates(&self, coordinator: usize, nodes: impl Iterator<Item = usize>) -> Vec<Candidate> {
        let candidate = |index: usize| {
            let node = &self.nodes[index];
            Candidate {
                node: node.id,
                layers: node.spec.layers.clone(),
                head: node.spec.head,
                rtt_us: self.rtt(coordinator, index) as u32,
                ns_per_unit: node.spec.pace * 1000,
                free_memory: if index == coordinator { node.free_memory() } else { node.spec.memory },
                loaded: if index == coordinator { node.in_use() } else { Vec::new() },
            }
        };
        nodes.map(candidate).collect()
    }

    pub fn plan(&self, candidates: &[Candidate]) -> Result<Plan, Fault> {
        self.with_request(candidates, plan).map_err(|error| Fault::new(ErrorKind::NoPlan, error))
    }

    fn with_request<T>(&self, candidates: &[Candidate], ask: impl FnOnce(&PlanRequest) -> T) -> T {
        let weight = |layers: LayerRange, head: bool| u64::from(layers.len()) + u64::from(head);
        let request = PlanRequest {
            model: MODEL,
            layers: self.layers,
            cuts: &self.cuts,
            candidates,
            memory: &memory,
            weight: &weight,
            round_trips: &ReportedRoundTrips::new(),
        };
        ask(&request)
    }
}
