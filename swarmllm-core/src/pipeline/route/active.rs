//! The session's current route: which messages are accepted on it, and which host is at fault when it fails. Pure.

use crate::base::{ErrorKind, Fault, LayerRange, ModelId, NodeId, SessionId};
use crate::pipeline::link::message::{ANSWERING_STAGE, Message};
use crate::pipeline::link::request::is_loss;
use crate::pipeline::link::router::{RouteHosts, SessionStage};
use crate::pipeline::route::StageReport;
use crate::pipeline::route::losses::HostLoss;
use crate::pipeline::route::search::RouteFailure;
use crate::pipeline::route::{OpenRoute, Route, RouteStage};
use crate::wire::control::{Host, Opened};

/// The current route.
pub struct ActiveRoute {
    /// Number of the route within the session.
    pub epoch: u32,
    /// Its stages, in order, with the standbys that replicate them.
    pub stages: Vec<RouteStage>,
    /// Microseconds of a token, predicted by the plan.
    pub predicted_us: u64,
    /// Most rows of a step.
    pub max_rows: u32,
    /// Tokens whose KV every stage has.
    pub cached: u32,
    /// Positions that every stage grants.
    pub context: u32,
    /// All nodes that were asked to open a stage.
    pub nodes: Vec<NodeId>,
    /// The model.
    model: ModelId,
    /// The coordinator.
    local: NodeId,
}

/// Class of a message to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageClass {
    /// An answer of the last stage.
    Answer,
    /// A stage of the route failed.
    Failed,
    /// A standby failed.
    StandbyFailed,
    /// A message of an earlier route.
    Stale,
    /// A message of a peer that may not send it.
    Foreign,
}

impl ActiveRoute {
    /// The active route of an opened one, and the reports of its stages, without steps.
    pub fn new(open: OpenRoute, local: NodeId) -> (Self, Vec<StageReport>) {
        let OpenRoute { epoch, route, opened, standby_replies, nodes, .. } = open;
        let report = |(stage, opened): (&RouteStage, &Opened)| StageReport {
            stage: stage.planned(),
            standby: stage.standby.as_ref().map(|host| host.node),
            epoch,
            load_ms: opened.load_ms,
            prefill_us: 0,
            decode_us: Vec::new(),
        };
        let reports = route.stages.iter().zip(&opened).map(report).collect();
        let max_rows = opened.iter().map(|opened| opened.max_rows).min().unwrap_or(1);
        let cached = opened.iter().map(|opened| opened.cached).min().unwrap_or(0);
        let context = opened.iter().map(|opened| opened.context).min().unwrap_or(0);
        // A standby with less KV or shorter steps cannot replicate its stage.
        let replicates = |opened: &Opened| opened.max_rows >= max_rows && opened.cached >= cached;
        let Route { model, mut stages, token_us: predicted_us } = route;
        let standby_replies = standby_replies.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        for (stage, opened) in stages.iter_mut().zip(standby_replies) {
            stage.standby.take_if(|_| !opened.is_some_and(replicates));
        }
        (ActiveRoute { epoch, predicted_us, max_rows, cached, context, nodes, stages, model, local }, reports)
    }

    /// Keeps the step size of an exact answer: hosts that admit longer steps than those before change nothing, for this
    /// recovery nor for the next. Returns the rows of a chunk, or `None` where these hosts admit only shorter steps,
    /// which would change low bits of the result.
    pub fn keep_step_size(&mut self, before: &ActiveRoute, exact: bool) -> Option<u32> {
        let chunk = if exact { before.max_rows } else { self.max_rows };
        self.max_rows = self.max_rows.min(chunk);
        (self.max_rows == chunk).then_some(chunk)
    }

    /// The host of a stage.
    pub fn host(&self, stage: usize) -> Option<NodeId> {
        self.stages.get(stage).map(|stage| stage.host.node)
    }

    /// The stages of a session at peers.
    pub fn peer_stages(&self, session: SessionId) -> Vec<(NodeId, SessionStage)> {
        let epoch = self.epoch;
        let place = |(stage, node)| (node, SessionStage { session, epoch, stage });
        let hosts = (0..).zip(self.stages.iter().map(|stage| stage.host.node));
        hosts.filter(|(_, node)| *node != self.local).map(place).collect()
    }

    /// Which peers may send messages of this route.
    pub fn hosts(&self, max_answer_bytes: usize) -> RouteHosts {
        let standbys =
            self.stages.iter().zip(0..).filter_map(|(stage, index)| Some((stage.standby.as_ref()?.node, index)));
        let stages = self.stages.iter().map(|stage| stage.host.node).zip(0..).chain(standbys).collect();
        RouteHosts { epoch: self.epoch, stages, answering: self.last(), max_answer_bytes }
    }

    /// The host of the last stage.
    fn last(&self) -> Option<NodeId> {
        self.stages.last().map(|stage| stage.host.node)
    }

    /// The standby of the first stage.
    pub fn first_standby(&self) -> Option<&Host> {
        self.stages.first()?.standby.as_ref()
    }

    /// Peers with stages, and the weights by which the ledger prices these.
    pub fn paid_hosts(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        let all = self.stages.iter().map(|stage| (stage.host.node, stage.weight));
        all.filter(|(node, _)| *node != self.local)
    }

    /// Standby peers, and the weights of their stages.
    pub fn paid_standbys(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        let all = self.stages.iter().filter_map(|stage| Some((stage.standby.as_ref()?.node, stage.weight)));
        all.filter(|(node, _)| *node != self.local)
    }

    /// Removes a node as standby of all stages, or of this one.
    pub fn drop_standby(&mut self, node: NodeId, stage: Option<u32>) {
        for (index, other) in self.stages.iter_mut().enumerate() {
            if stage.is_none_or(|stage| stage as usize == index) {
                other.standby.take_if(|host| host.node == node);
            }
        }
    }

    /// The route with standbys in place of hosts that are gone; `None` where one of these has no standby, or none is
    /// part of the route.
    pub fn takeover(&self, gone: &[NodeId]) -> Option<Route> {
        let (mut stages, mut taken) = (self.stages.clone(), false);
        for stage in &mut stages {
            stage.standby.take_if(|host| gone.contains(&host.node));
            if gone.contains(&stage.host.node) {
                (stage.host, taken) = (stage.standby.take()?, true);
            }
        }
        taken.then_some(Route { model: self.model, stages, token_us: self.predicted_us })
    }

    /// Nodes that were asked and have no part in the route: their KV is shorter than the others', their steps are, or
    /// they did not open in time.
    pub fn unused(&self) -> Vec<NodeId> {
        self.nodes.iter().copied().filter(|node| !self.includes(*node)).collect()
    }

    /// Whether the node computes or replicates a stage.
    pub fn includes(&self, node: NodeId) -> bool {
        let is_here = |host: &Host| host.node == node;
        self.stages.iter().any(|stage| is_here(&stage.host) || stage.standby.as_ref().is_some_and(is_here))
    }

    /// Whether a loss may affect the route.
    pub fn is_affected_by(&self, loss: HostLoss) -> bool {
        match loss {
            HostLoss::Peer(peer) => self.includes(peer),
            HostLoss::PeerLink(peer) => self.host(0) == Some(peer),
        }
    }

    /// Class of a message from this node.
    pub fn classify(&self, from: NodeId, message: &Message) -> MessageClass {
        match message {
            message if message.epoch() != self.epoch => MessageClass::Stale,
            Message::Logits { .. } if self.last() == Some(from) => MessageClass::Answer,
            Message::Failed { stage, .. } if self.is_standby_of(*stage, from) => MessageClass::StandbyFailed,
            Message::Failed { stage, .. } if self.has_stage(*stage, from) => MessageClass::Failed,
            _ => MessageClass::Foreign,
        }
    }

    /// Whether this node computes the stage. A node has no say in other stages: it may have been asked to replicate
    /// one, and was not taken.
    fn has_stage(&self, stage: u32, node: NodeId) -> bool {
        let answers = stage == ANSWERING_STAGE && self.last() == Some(node);
        answers || self.host(stage as usize) == Some(node)
    }

    fn is_standby_of(&self, stage: u32, node: NodeId) -> bool {
        let standby = self.stages.get(stage as usize).and_then(|stage| stage.standby.as_ref());
        standby.is_some_and(|host| host.node == node)
    }

    /// The failure behind a fault that a stage reports. At fault is the next stage, the reporting host, both sides of a
    /// malformed frame, or nobody where the request itself is the cause. The coordinator is never unreachable to
    /// itself, nor does it send itself malformed frames.
    pub fn stage_failure(&self, from: NodeId, stage: u32, fault: Fault) -> RouteFailure {
        let text = match stage {
            ANSWERING_STAGE => format!("the answer of peer {}: {fault}", from.short()),
            stage => format!("stage {stage} at peer {}: {fault}", from.short()),
        };
        let fault = Fault::new(fault.kind(), text);
        let stage = Some(stage as usize).filter(|stage| self.host(*stage) == Some(from));
        let beside = |other: Option<usize>| other.and_then(|other| self.host(other));
        let is_peer = |node: &NodeId| *node != self.local;
        let (nodes, may_return) = match fault.kind() {
            kind if is_loss(kind) => {
                let next = beside(stage.map(|stage| stage + 1)).filter(is_peer);
                (vec![next.unwrap_or(from)], true)
            }
            ErrorKind::BadFrame => {
                let before = beside(stage.and_then(|stage| stage.checked_sub(1)));
                (before.into_iter().chain([from]).filter(is_peer).collect(), false)
            }
            ErrorKind::InvalidArgument | ErrorKind::ContextOverflow | ErrorKind::NoCredit => (Vec::new(), false),
            // There may be room again.
            ErrorKind::Overloaded => (vec![from], true),
            _ => (vec![from], false),
        };
        RouteFailure { nodes, may_return, fault }
    }

    /// The failure of a malformed answer, which is the last stage's.
    pub fn malformed_answer(&self, fault: Fault) -> RouteFailure {
        let last = self.last().filter(|node| *node != self.local);
        RouteFailure { nodes: last.into_iter().collect(), may_return: false, fault }
    }

    /// Handles the loss of a peer or of the link to it; returns a failure if the route needs it. A lost standby is
    /// dropped.
    ///
    /// `broken` says whether steps are in flight on a link that has ended.
    pub fn on_loss(&mut self, loss: HostLoss, broken: bool) -> Option<RouteFailure> {
        match loss {
            HostLoss::Peer(peer) => {
                self.drop_standby(peer, None);
                self.lost(peer)
            }
            HostLoss::PeerLink(peer) => self.link_broke(peer, broken),
        }
    }

    /// The failure by a lost peer, if it computes a stage.
    pub fn lost(&self, peer: NodeId) -> Option<RouteFailure> {
        let stage = self.stages.iter().find(|stage| stage.host.node == peer)?;
        Some(RouteFailure { nodes: vec![peer], may_return: true, fault: peer_lost(peer, stage.layers) })
    }

    /// The failure by a broken link to the first stage with steps in flight, which are lost even if its host is alive.
    /// A link of an earlier route, whose loss was reported twice, affects nothing.
    pub fn link_broke(&self, peer: NodeId, broken: bool) -> Option<RouteFailure> {
        let concerned = self.host(0) == Some(peer) && broken;
        self.lost(peer).filter(|_| concerned)
    }
}

/// Step shapes of an exact answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepShape {
    /// Tokens of the prompt.
    pub prompt: u32,
    /// Rows of each chunk of the prompt; generated tokens are single steps.
    pub chunk: u32,
}

/// Tokens of a text of `text` tokens that need no computation, where every stage has the KV of the first `cached`:
/// never the last, whose logits are wanted, and in exact mode only whole steps.
pub fn reusable(cached: u32, text: u32, exact: Option<StepShape>) -> u32 {
    let most = cached.min(text.saturating_sub(1));
    match exact {
        Some(StepShape { prompt, chunk }) if most < prompt => most / chunk.max(1) * chunk,
        _ => most,
    }
}

fn peer_lost(peer: NodeId, layers: LayerRange) -> Fault {
    let text = format!("peer {} with layers {layers} is gone", peer.short());
    Fault::new(ErrorKind::PeerLost, text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pipeline::plan::PlanStage;

    const LOCAL: NodeId = NodeId([0; 32]);

    fn node(name: u8) -> NodeId {
        NodeId([name; 32])
    }

    /// A route over one layer at each of these hosts, each of which admits steps of the given rows and 8 times as many
    /// positions.
    fn route_over(epoch: u32, hosts: &[(u8, u32)]) -> ActiveRoute {
        let stage = |(index, (name, _)): (usize, &(u8, u32))| PlanStage {
            node: node(*name),
            layers: LayerRange::new(index as u32, index as u32 + 1),
            head: index + 1 == hosts.len(),
        };
        let opened = |(_, max_rows): &(u8, u32)| Opened {
            width: 1,
            vocab: None,
            max_rows: *max_rows,
            cached: 0,
            context: 8 * *max_rows,
            load_ms: 0,
        };
        let stage = |host| RouteStage::new(stage(host), Vec::new(), 1, None);
        let stages = hosts.iter().enumerate().map(stage).collect();
        let route = Route { model: ModelId([1; 32]), stages, token_us: 0 };
        let opened = hosts.iter().map(opened).collect();
        ActiveRoute::new(
            OpenRoute { epoch, route, opened, standby_replies: Vec::new(), nodes: Vec::new(), lost: BTreeSet::new() },
            LOCAL,
        )
        .0
    }

    fn attributed(active: &ActiveRoute, from: u8, stage: u32, kind: ErrorKind) -> (Vec<NodeId>, bool) {
        let failure = active.stage_failure(node(from), stage, Fault::new(kind, "so"));
        (failure.nodes, failure.may_return)
    }

    #[test]
    fn a_fault_is_attributed_to_the_next_stage_both_sides_or_the_reporter() {
        let active = route_over(0, &[(1, 8), (2, 8), (3, 8)]);
        assert_eq!(attributed(&active, 1, 0, ErrorKind::PeerLost), (vec![node(2)], true));
        assert_eq!(
            attributed(&active, 3, 2, ErrorKind::PeerLost),
            (vec![node(3)], true),
            "the coordinator replicates the last stage"
        );
        assert_eq!(attributed(&active, 2, 1, ErrorKind::BadFrame), (vec![node(1), node(2)], false));
        assert_eq!(attributed(&active, 2, 1, ErrorKind::EngineFailed), (vec![node(2)], false));
        assert_eq!(attributed(&active, 2, 1, ErrorKind::NoCredit), (vec![], false));
        assert_eq!(attributed(&active, 2, 1, ErrorKind::Overloaded), (vec![node(2)], true), "there may be room again");
        // A host that reports another's stage is at fault itself.
        assert_eq!(attributed(&active, 1, 1, ErrorKind::PeerLost), (vec![node(1)], true));
    }

    #[test]
    fn a_coordinator_may_fail_as_a_host_and_is_never_lost() {
        let active = route_over(0, &[(1, 8), (0, 8), (2, 8)]);
        assert_eq!(attributed(&active, 0, 1, ErrorKind::EngineFailed), (vec![LOCAL], false));
        assert_eq!(attributed(&active, 1, 0, ErrorKind::PeerLost), (vec![node(1)], true));
        assert_eq!(attributed(&active, 0, 1, ErrorKind::BadFrame), (vec![node(1)], false));
    }

    #[test]
    fn an_exact_answer_keeps_its_step_size_or_has_no_route() {
        let first = route_over(0, &[(1, 8)]);
        let mut longer = route_over(1, &[(2, 16)]);
        assert_eq!((longer.keep_step_size(&first, true), longer.max_rows), (Some(8), 8));
        assert_eq!(route_over(2, &[(3, 8)]).keep_step_size(&longer, true), Some(8));
        assert_eq!(route_over(2, &[(3, 4)]).keep_step_size(&longer, true), None);
        assert_eq!(route_over(2, &[(3, 4)]).keep_step_size(&longer, false), Some(4));
    }

    #[test]
    fn the_context_is_the_minimum_over_the_stages() {
        assert_eq!(route_over(0, &[(1, 16), (2, 8), (3, 32)]).context, 64);
    }

    #[test]
    fn a_standby_takes_over_its_own_stage_only() {
        let host = |name: u8| Some(Host { node: node(name), addresses: vec![format!("at {name}")] });
        let mut active = route_over(0, &[(1, 8), (2, 8), (3, 8)]);
        (active.stages[1].standby, active.stages[2].standby) = (host(4), host(1));
        let hosts = |route: &Route| route.stages.iter().map(|stage| stage.host.node.0[0]).collect::<Vec<_>>();
        let standbys = |route: &Route| route.stages.iter().map(|stage| stage.standby.clone()).collect::<Vec<_>>();
        let taken = active.takeover(&[node(2)]).unwrap();
        assert_eq!((hosts(&taken), standbys(&taken)), (vec![1, 4, 3], vec![None, None, host(1)]));
        assert_eq!(taken.stages[1].host.addresses, ["at 4"]);
        assert_eq!(active.takeover(&[node(2), node(3)]).map(|route| hosts(&route)), Some(vec![1, 4, 1]));
        assert_eq!(active.takeover(&[node(1)]).map(|route| hosts(&route)), None, "the first stage has no standby");
        assert_eq!(
            active.takeover(&[node(2), node(4)]).map(|route| hosts(&route)),
            None,
            "its standby is gone as well"
        );
        assert_eq!(active.takeover(&[node(9)]).map(|route| hosts(&route)), None, "it has no stage");
        let failed = |from, stage| {
            let (session, fault) = (crate::base::SessionId([1; 16]), Fault::new(ErrorKind::Internal, "so"));
            active.classify(node(from), &Message::Failed { session, epoch: 0, stage, fault })
        };
        assert_eq!(
            (failed(1, 2), failed(1, 0), failed(4, 1)),
            (MessageClass::StandbyFailed, MessageClass::Failed, MessageClass::StandbyFailed)
        );
        assert_eq!(failed(1, 1), MessageClass::Foreign, "it computes another stage");
        assert_eq!(
            (failed(3, ANSWERING_STAGE), failed(1, ANSWERING_STAGE)),
            (MessageClass::Failed, MessageClass::Foreign)
        );
        active.drop_standby(node(1), None);
        assert_eq!(active.takeover(&[node(3)]).map(|route| hosts(&route)), None);
    }

    #[test]
    fn a_standby_that_cannot_replicate_has_no_part_in_the_route() {
        let host = |name: u8| Some(Host { node: node(name), addresses: Vec::new() });
        let opened = |cached, max_rows| Opened { width: 1, vocab: None, max_rows, cached, context: 64, load_ms: 0 };
        let stage = |(name, standby): (u8, u8)| {
            let planned = PlanStage { node: node(name), layers: LayerRange::new(0, 1), head: false };
            RouteStage::new(planned, Vec::new(), 1, host(standby))
        };
        let stages = [(1, 3), (2, 4), (6, 1), (7, 5)].map(stage).to_vec();
        let route = Route { model: ModelId([1; 32]), stages, token_us: 0 };
        let (opened, standby_replies) =
            (vec![opened(8, 8); 4], vec![Some(opened(7, 8)), Some(opened(8, 8)), Some(opened(8, 4)), None]);
        let nodes = (1..=7).map(node).collect();
        let active = ActiveRoute::new(
            OpenRoute { epoch: 0, route, opened, standby_replies, nodes, lost: BTreeSet::new() },
            LOCAL,
        )
        .0;
        assert_eq!(active.unused(), [node(3), node(5)], "node 1 computes a stage although it cannot replicate one");
    }

    #[test]
    fn a_broken_link_matters_with_steps_in_flight_to_the_first_stage() {
        let mut active = route_over(0, &[(1, 8), (2, 8)]);
        let mut loses = |name, broken| active.on_loss(HostLoss::PeerLink(node(name)), broken).is_some();
        assert_eq!((loses(1, true), loses(1, false), loses(2, true)), (true, false, false));
    }

    #[test]
    fn only_the_last_stage_of_this_route_answers() {
        let active = route_over(3, &[(1, 8), (2, 8)]);
        let failed = |epoch| Message::Failed {
            session: crate::base::SessionId([1; 16]),
            epoch,
            stage: 0,
            fault: Fault::new(ErrorKind::Internal, "so"),
        };
        assert_eq!(active.classify(node(1), &failed(3)), MessageClass::Failed);
        assert_eq!(active.classify(node(1), &failed(2)), MessageClass::Stale);
        assert_eq!(active.classify(node(9), &failed(3)), MessageClass::Foreign);
    }
}
