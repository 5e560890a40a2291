//! The present route of a session: whose word on it counts, and whom to blame where it broke. Pure.

use crate::base::{ErrorKind, Fault, LayerRange, ModelId, NodeId, SessionId};
use crate::pipeline::job::StageReport;
use crate::pipeline::links::{Hosts, SessionStage};
use crate::pipeline::losses::Loss;
use crate::pipeline::message::{ANSWERING, Message};
use crate::pipeline::route::{OpenRoute, Route, RouteStage};
use crate::pipeline::search::{Blame, is_loss};
use crate::wire::control::{Host, Opened};

/// The present route, as every step needs it.
pub struct Way {
    /// Which of the session's routes.
    pub epoch: u32,
    /// Its stages, in order, with the stand-bys that follow them.
    pub stages: Vec<RouteStage>,
    /// Microseconds of a token, by the plan.
    pub predicted_us: u64,
    /// Rows of a step at most.
    pub max_rows: u32,
    /// Tokens that every stage has.
    pub cached: u32,
    /// Positions that every stage grants.
    pub context: u32,
    /// All who were asked for something.
    pub nodes: Vec<NodeId>,
    /// The model.
    model: ModelId,
    /// The coordinator.
    local: NodeId,
}

/// What a message is to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// The last stage's answer.
    Answer,
    /// A stage of the route could not do its work.
    Failed,
    /// Who follows a stage cannot.
    Unfollowed,
    /// Of an earlier route.
    Late,
    /// From a peer that has no say in this.
    Foreign,
}

impl Way {
    /// The way over a route that is open, and the reports of its stages, which have computed nothing.
    pub fn new(open: OpenRoute, local: NodeId) -> (Self, Vec<StageReport>) {
        let OpenRoute { epoch, route, opened, following, nodes, .. } = open;
        let report = |(stage, opened): (&RouteStage, &Opened)| StageReport {
            stage: stage.planned(),
            stand_by: stage.stand_by.as_ref().map(|host| host.node),
            epoch,
            load_ms: opened.load_ms,
            prefill_us: 0,
            decode_us: Vec::new(),
        };
        let reports = route.stages.iter().zip(&opened).map(report).collect();
        let max_rows = opened.iter().map(|opened| opened.max_rows).min().unwrap_or(1);
        let cached = opened.iter().map(|opened| opened.cached).min().unwrap_or(0);
        let context = opened.iter().map(|opened| opened.context).min().unwrap_or(0);
        // Who lacks the beginning, or takes shorter steps, cannot follow.
        let follows = |opened: &Opened| opened.max_rows >= max_rows && opened.cached >= cached;
        let Route { model, mut stages, token_us: predicted_us } = route;
        let following = following.iter().map(Option::as_ref).chain(std::iter::repeat(None));
        for (stage, opened) in stages.iter_mut().zip(following) {
            stage.stand_by.take_if(|_| !opened.is_some_and(follows));
        }
        (Way { epoch, predicted_us, max_rows, cached, context, nodes, stages, model, local }, reports)
    }

    /// Keeps the length of steps where an answer is exact: hosts that admit longer ones than those of the route before
    /// change nothing, for this recovery nor for the next. Gives the rows of a chunk; nothing where these hosts admit only
    /// shorter steps, which would not be the same to the last bit.
    pub fn follow(&mut self, before: &Way, exact: bool) -> Option<u32> {
        let chunk = if exact { before.max_rows } else { self.max_rows };
        self.max_rows = self.max_rows.min(chunk);
        (self.max_rows == chunk).then_some(chunk)
    }

    /// The host of a stage.
    pub fn host(&self, stage: usize) -> Option<NodeId> {
        self.stages.get(stage).map(|stage| stage.host.node)
    }

    /// The stages of a session at peers.
    pub fn places(&self, session: SessionId) -> Vec<(NodeId, SessionStage)> {
        let epoch = self.epoch;
        let place = |(stage, node)| (node, SessionStage { session, epoch, stage });
        let hosts = (0..).zip(self.stages.iter().map(|stage| stage.host.node));
        hosts.filter(|(_, node)| *node != self.local).map(place).collect()
    }

    /// Who has a say in it over the network.
    pub fn hosts(&self, longest: usize) -> Hosts {
        let follow =
            self.stages.iter().zip(0..).filter_map(|(stage, index)| Some((stage.stand_by.as_ref()?.node, index)));
        let parts = self.stages.iter().map(|stage| stage.host.node).zip(0..).chain(follow).collect();
        Hosts { epoch: self.epoch, parts, last: self.last(), longest }
    }

    /// The host that answers.
    fn last(&self) -> Option<NodeId> {
        self.stages.last().map(|stage| stage.host.node)
    }

    /// The stand-by of the first stage.
    pub fn first_stand_by(&self) -> Option<&Host> {
        self.stages.first()?.stand_by.as_ref()
    }

    /// The peers that have stages, and what the ledger prices those by.
    pub fn paid(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        let all = self.stages.iter().map(|stage| (stage.host.node, stage.weight));
        all.filter(|(node, _)| *node != self.local)
    }

    /// The peers that follow, and what the ledger prices their stages by.
    pub fn following(&self) -> impl Iterator<Item = (NodeId, u64)> + '_ {
        let all = self.stages.iter().filter_map(|stage| Some((stage.stand_by.as_ref()?.node, stage.weight)));
        all.filter(|(node, _)| *node != self.local)
    }

    /// This node follows no stage any more; with a stage, only that.
    pub fn unfollow(&mut self, node: NodeId, stage: Option<u32>) {
        for (index, other) in self.stages.iter_mut().enumerate() {
            if stage.is_none_or(|stage| stage as usize == index) {
                other.stand_by.take_if(|host| host.node == node);
            }
        }
    }

    /// The route on which stand-bys take the place of hosts that are gone; nothing where one of those has none.
    pub fn takeover(&self, gone: &[NodeId]) -> Option<Route> {
        let (mut stages, mut taken) = (self.stages.clone(), false);
        for stage in &mut stages {
            stage.stand_by.take_if(|host| gone.contains(&host.node));
            if gone.contains(&stage.host.node) {
                (stage.host, taken) = (stage.stand_by.take()?, true);
            }
        }
        taken.then_some(Route { model: self.model, stages, token_us: self.predicted_us })
    }

    /// Those who were asked, and have no part in it: they have less of the text than the others, take shorter steps, or did not
    /// open in time.
    pub fn unused(&self) -> Vec<NodeId> {
        self.nodes.iter().copied().filter(|node| !self.has_part(*node)).collect()
    }

    /// Whether it has a stage, or follows one.
    pub fn has_part(&self, node: NodeId) -> bool {
        let is_here = |host: &Host| host.node == node;
        self.stages.iter().any(|stage| is_here(&stage.host) || stage.stand_by.as_ref().is_some_and(is_here))
    }

    /// Whether a loss may take something from it.
    pub fn is_concerned(&self, loss: Loss) -> bool {
        match loss {
            Loss::Peer(peer) => self.has_part(peer),
            Loss::Link(peer) => self.host(0) == Some(peer),
        }
    }

    /// What a message from this node is to the session.
    pub fn hears(&self, from: NodeId, message: &Message) -> Heard {
        match message {
            message if message.epoch() != self.epoch => Heard::Late,
            Message::Logits { .. } if self.last() == Some(from) => Heard::Answer,
            Message::Failed { stage, .. } if self.is_stand_by(*stage, from) => Heard::Unfollowed,
            Message::Failed { stage, .. } if self.has_stage(*stage, from) => Heard::Failed,
            _ => Heard::Foreign,
        }
    }

    /// Whether the stage is this node's. Of another's it has no say: it may have been asked to follow that, and was not taken.
    fn has_stage(&self, stage: u32, node: NodeId) -> bool {
        let answers = stage == ANSWERING && self.last() == Some(node);
        answers || self.host(stage as usize) == Some(node)
    }

    fn is_stand_by(&self, stage: u32, node: NodeId) -> bool {
        let stand_by = self.stages.get(stage as usize).and_then(|stage| stage.stand_by.as_ref());
        stand_by.is_some_and(|host| host.node == node)
    }

    /// A stage could not do its work: because of the next one, because of its host, because of what the one before or
    /// itself made of it, or because of what was asked, which would be asked of others too. The coordinator is here: it is
    /// never out of its own reach, nor does it send itself bad frames.
    pub fn failed(&self, from: NodeId, stage: u32, fault: Fault) -> Blame {
        let text = match stage {
            ANSWERING => format!("the answer of peer {}: {fault}", from.short()),
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
        Blame { nodes, may_return, fault }
    }

    /// An answer was none: who answers is the last stage.
    pub fn wrong(&self, fault: Fault) -> Blame {
        let last = self.last().filter(|node| *node != self.local);
        Blame { nodes: last.into_iter().collect(), may_return: false, fault }
    }

    /// A peer or the link to it was lost, of which the route may have no need; a stand-by that is lost follows no more.
    ///
    /// `broken` says whether steps are under way on a link that has ended.
    pub fn lose(&mut self, loss: Loss, broken: bool) -> Option<Blame> {
        match loss {
            Loss::Peer(peer) => {
                self.unfollow(peer, None);
                self.lost(peer)
            }
            Loss::Link(peer) => self.link_broke(peer, broken),
        }
    }

    /// A peer's connection is gone, of whom the route may have no need.
    pub fn lost(&self, peer: NodeId) -> Option<Blame> {
        let stage = self.stages.iter().find(|stage| stage.host.node == peer)?;
        Some(Blame { nodes: vec![peer], may_return: true, fault: peer_lost(peer, stage.layers) })
    }

    /// A link broke. Steps that were under way on it to the first stage are lost, though its host may be there. Where the link
    /// is one of an earlier route, whose loss was told twice, this route has lost nothing.
    pub fn link_broke(&self, peer: NodeId, broken: bool) -> Option<Blame> {
        let concerned = self.host(0) == Some(peer) && broken;
        self.lost(peer).filter(|_| concerned)
    }
}

/// The steps of an exact answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Tokens of its prompt.
    pub prompt: u32,
    /// Rows of each of the prompt's chunks; what was generated goes singly.
    pub chunk: u32,
}

/// How many tokens of a text of this length need not be computed again, where every stage has the KV of the first
/// `cached`: not the last, whose logits are wanted, and in the exact mode whole steps.
pub fn usable(cached: u32, text: u32, exact: Option<Shape>) -> u32 {
    let most = cached.min(text.saturating_sub(1));
    match exact {
        Some(Shape { prompt, chunk }) if most < prompt => most / chunk.max(1) * chunk,
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

    /// A way over one layer at each of these hosts, each of which admits steps of so many rows, and 8 times as many positions.
    fn way(epoch: u32, hosts: &[(u8, u32)]) -> Way {
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
        Way::new(
            OpenRoute { epoch, route, opened, following: Vec::new(), nodes: Vec::new(), lost: BTreeSet::new() },
            LOCAL,
        )
        .0
    }

    fn blamed(way: &Way, from: u8, stage: u32, kind: ErrorKind) -> (Vec<NodeId>, bool) {
        let blame = way.failed(node(from), stage, Fault::new(kind, "so"));
        (blame.nodes, blame.may_return)
    }

    #[test]
    fn who_is_to_blame_is_the_next_where_it_is_lost_both_sides_of_a_bad_frame_and_else_who_failed() {
        let way = way(0, &[(1, 8), (2, 8), (3, 8)]);
        assert_eq!(blamed(&way, 1, 0, ErrorKind::PeerLost), (vec![node(2)], true));
        assert_eq!(
            blamed(&way, 3, 2, ErrorKind::PeerLost),
            (vec![node(3)], true),
            "behind the last is the coordinator"
        );
        assert_eq!(blamed(&way, 2, 1, ErrorKind::BadFrame), (vec![node(1), node(2)], false));
        assert_eq!(blamed(&way, 2, 1, ErrorKind::EngineFailed), (vec![node(2)], false));
        assert_eq!(blamed(&way, 2, 1, ErrorKind::NoCredit), (vec![], false));
        assert_eq!(blamed(&way, 2, 1, ErrorKind::Overloaded), (vec![node(2)], true), "it may have room again");
        // Who speaks for another's stage speaks for itself.
        assert_eq!(blamed(&way, 1, 1, ErrorKind::PeerLost), (vec![node(1)], true));
    }

    #[test]
    fn a_coordinator_that_fails_as_a_host_goes_on_without_itself_and_is_never_lost_to_itself() {
        let way = way(0, &[(1, 8), (0, 8), (2, 8)]);
        assert_eq!(blamed(&way, 0, 1, ErrorKind::EngineFailed), (vec![LOCAL], false));
        assert_eq!(blamed(&way, 1, 0, ErrorKind::PeerLost), (vec![node(1)], true));
        assert_eq!(blamed(&way, 0, 1, ErrorKind::BadFrame), (vec![node(1)], false));
    }

    #[test]
    fn an_exact_answer_keeps_the_length_of_its_steps_or_has_no_other_way() {
        let first = way(0, &[(1, 8)]);
        let mut longer = way(1, &[(2, 16)]);
        assert_eq!((longer.follow(&first, true), longer.max_rows), (Some(8), 8));
        assert_eq!(way(2, &[(3, 8)]).follow(&longer, true), Some(8));
        assert_eq!(way(2, &[(3, 4)]).follow(&longer, true), None);
        assert_eq!(way(2, &[(3, 4)]).follow(&longer, false), Some(4));
    }

    #[test]
    fn a_session_has_the_positions_that_the_least_of_its_stages_grants() {
        assert_eq!(way(0, &[(1, 16), (2, 8), (3, 32)]).context, 64);
    }

    #[test]
    fn a_stand_by_takes_the_place_of_its_stage_and_no_other_place() {
        let host = |name: u8| Some(Host { node: node(name), addresses: vec![format!("at {name}")] });
        let mut way = way(0, &[(1, 8), (2, 8), (3, 8)]);
        (way.stages[1].stand_by, way.stages[2].stand_by) = (host(4), host(1));
        let hosts = |route: &Route| route.stages.iter().map(|stage| stage.host.node.0[0]).collect::<Vec<_>>();
        let stand_bys = |route: &Route| route.stages.iter().map(|stage| stage.stand_by.clone()).collect::<Vec<_>>();
        let taken = way.takeover(&[node(2)]).unwrap();
        assert_eq!((hosts(&taken), stand_bys(&taken)), (vec![1, 4, 3], vec![None, None, host(1)]));
        assert_eq!(taken.stages[1].host.addresses, ["at 4"]);
        assert_eq!(way.takeover(&[node(2), node(3)]).map(|route| hosts(&route)), Some(vec![1, 4, 1]));
        assert_eq!(way.takeover(&[node(1)]).map(|route| hosts(&route)), None, "nobody follows the first");
        assert_eq!(way.takeover(&[node(2), node(4)]).map(|route| hosts(&route)), None, "its stand-by is gone as well");
        assert_eq!(way.takeover(&[node(9)]).map(|route| hosts(&route)), None, "it has no stage");
        let failed = |from, stage| {
            let (session, fault) = (crate::base::SessionId([1; 16]), Fault::new(ErrorKind::Internal, "so"));
            way.hears(node(from), &Message::Failed { session, epoch: 0, stage, fault })
        };
        assert_eq!((failed(1, 2), failed(1, 0), failed(4, 1)), (Heard::Unfollowed, Heard::Failed, Heard::Unfollowed));
        assert_eq!(failed(1, 1), Heard::Foreign, "it has a stage, and no say in this one");
        assert_eq!((failed(3, ANSWERING), failed(1, ANSWERING)), (Heard::Failed, Heard::Foreign));
        way.unfollow(node(1), None);
        assert_eq!(way.takeover(&[node(3)]).map(|route| hosts(&route)), None);
    }

    #[test]
    fn who_was_asked_and_cannot_follow_has_no_part_in_the_route() {
        let host = |name: u8| Some(Host { node: node(name), addresses: Vec::new() });
        let opened = |cached, max_rows| Opened { width: 1, vocab: None, max_rows, cached, context: 64, load_ms: 0 };
        let stage = |(name, stand_by): (u8, u8)| {
            let planned = PlanStage { node: node(name), layers: LayerRange::new(0, 1), head: false };
            RouteStage::new(planned, Vec::new(), 1, host(stand_by))
        };
        let stages = [(1, 3), (2, 4), (6, 1), (7, 5)].map(stage).to_vec();
        let route = Route { model: ModelId([1; 32]), stages, token_us: 0 };
        let (opened, following) =
            (vec![opened(8, 8); 4], vec![Some(opened(7, 8)), Some(opened(8, 8)), Some(opened(8, 4)), None]);
        let nodes = (1..=7).map(node).collect();
        let way = Way::new(OpenRoute { epoch: 0, route, opened, following, nodes, lost: BTreeSet::new() }, LOCAL).0;
        assert_eq!(way.unused(), [node(3), node(5)], "the first has a stage, if it cannot follow the third");
    }

    #[test]
    fn a_link_that_broke_concerns_the_route_where_steps_to_its_first_stage_are_under_way_on_it() {
        let mut way = way(0, &[(1, 8), (2, 8)]);
        let mut loses = |name, broken| way.lose(Loss::Link(node(name)), broken).is_some();
        assert_eq!((loses(1, true), loses(1, false), loses(2, true)), (true, false, false));
    }

    #[test]
    fn only_the_last_stage_of_this_route_answers() {
        let way = way(3, &[(1, 8), (2, 8)]);
        let failed = |epoch| Message::Failed {
            session: crate::base::SessionId([1; 16]),
            epoch,
            stage: 0,
            fault: Fault::new(ErrorKind::Internal, "so"),
        };
        assert_eq!(way.hears(node(1), &failed(3)), Heard::Failed);
        assert_eq!(way.hears(node(1), &failed(2)), Heard::Late);
        assert_eq!(way.hears(node(9), &failed(3)), Heard::Foreign);
    }
}
