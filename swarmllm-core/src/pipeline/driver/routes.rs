//! The routes of one session: which is tried next, in which epoch, who is asked for what, when the search ends, and who is
//! released. Without IO: events in, actions out; time is an argument.
//!
//! Every attempt to open a route has an epoch of its own, so that what belongs to an earlier one, a late frame or the order
//! to end it, never meets a later one.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::opening::{Ending, Opening, Place, Silence, check};
use crate::base::{ErrorKind, Fault, NodeId};
use crate::pipeline::links::SessionStage;
use crate::pipeline::route::{OpenParams, OpenRoute, Route};
use crate::pipeline::search::{Blame, LONGEST_LOOK, Next, Search, Tried};
use crate::wire::control::{Host, OpenSession, Opened};
use crate::wire::prefix::Prefix;

/// Time that a session waits for a route where a host is lost and there is no other: a connection may come back.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// What a route is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be opened.
    Next,
    /// To know whether there is one without a host that is silent while it loads.
    Loading { epoch: u32, place: Place },
    /// To know whether there is one without hosts that are silent, as that question with this number found.
    Silent { question: u32 },
}

/// What is remembered of a host for the sessions to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It did not open a stage.
    Refused(ErrorKind),
    /// It failed or lied.
    Failed,
    /// It had no more room.
    Full,
    /// It did its part of a whole answer.
    Worked,
}

/// What is to be done for a session's routes.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteAction {
    /// Look for a route without these nodes, for so long at most; [`RouteEvent::Found`] answers.
    Find { purpose: Purpose, without: Vec<NodeId>, longest: Duration },
    /// An attempt begins; these stages at peers are to be kept until it ends. What was lost before is no loss of its route.
    Attempt { epoch: u32, stages: Vec<(NodeId, SessionStage)> },
    /// Connect to a peer; [`RouteEvent::Connected`] answers.
    Connect { epoch: u32, place: Place, host: Host },
    /// Ask a host to open a stage; [`RouteEvent::Replied`] answers.
    Open { place: Place, node: NodeId, open: Box<OpenSession> },
    /// Ask a peer that opens a stage whether it is there; [`RouteEvent::Probed`] answers.
    Probe { place: Place, node: NodeId, stage: SessionStage },
    /// The attempt is over: what is not answered yet is needed no more.
    Settled,
    /// Tell these nodes to end the session's stages of this route and earlier ones. What they may keep is named.
    Release { epoch: u32, nodes: Vec<NodeId>, keep: Prefix },
    /// Remember this of a host.
    Note { node: NodeId, verdict: Verdict },
}

/// What happens to the routes of a session.
#[derive(Debug)]
pub enum RouteEvent {
    /// A route was found, or why none was.
    Found { purpose: Purpose, found: Result<Route, Fault> },
    /// A peer is connected, or why not.
    Connected { epoch: u32, place: Place, connected: Result<(), Fault> },
    /// A host has opened its stage, or why not.
    Replied { epoch: u32, place: Place, reply: Result<Opened, Fault> },
    /// Whether a peer that opens a stage is silent.
    Probed { epoch: u32, place: Place, silent: bool },
    /// A peer lost its last connection.
    Lost(NodeId),
    /// Time has passed.
    Time,
}

/// See the module.
pub struct RouteManager {
    params: OpenParams,
    local: NodeId,
    tried: Tried,
    search: Option<Search>,
    state: State,
    /// All who were ever asked.
    asked: BTreeSet<NodeId>,
    /// The text that hosts are told of.
    prefix: Prefix,
    actions: VecDeque<RouteAction>,
    #[cfg(test)]
    pub(in crate::pipeline) mutant: Option<super::Mutant>,
}

enum State {
    Idle,
    Finding,
    /// No route was found; it is looked for again then.
    Pausing(Instant),
    Opening(Box<Opening>),
}

/// What came of an event: the route that is open, or why there is none.
pub type Routed = Option<Result<OpenRoute, Fault>>;

impl RouteManager {
    /// A manager that has tried nothing, at the coordinator `local`.
    pub fn new(params: OpenParams, local: NodeId) -> Self {
        Self {
            params,
            local,
            tried: Tried::default(),
            search: None,
            state: State::Idle,
            asked: BTreeSet::new(),
            prefix: Prefix::default(),
            actions: VecDeque::new(),
            #[cfg(test)]
            mutant: None,
        }
    }

    /// What a session asks of every host.
    pub fn params(&self) -> &OpenParams {
        &self.params
    }

    /// The coordinator.
    pub fn local(&self) -> NodeId {
        self.local
    }

    /// Opens the first route or, where a host of it fails, another. Hosts are told how the text begins.
    pub fn open(&mut self, route: Route, prefix: Prefix) {
        self.prefix = prefix;
        self.attempt(route);
    }

    /// Opens another route than one whose hosts have failed: that on which stand-bys take their place, if there is one.
    /// The session needs so many positions by now. Where there is no route and hosts may return, it waits for them; the error
    /// says why the last route failed.
    pub fn reopen(
        &mut self,
        blame: Blame,
        takeover: Option<Route>,
        (prefix, least): (Prefix, u32),
        now: Instant,
    ) -> Routed {
        self.prefix = prefix;
        self.params.least = least.min(self.params.context);
        self.search = Some(self.tried.search(blame, now, PATIENCE));
        match takeover {
            Some(route) => self.decide(Ok(route), now),
            None => {
                self.find();
                None
            }
        }
    }

    /// What is to be done next.
    pub fn next_action(&mut self) -> Option<RouteAction> {
        self.actions.pop_front()
    }

    /// When [`RouteEvent::Time`] is waited for.
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            State::Idle | State::Finding => None,
            State::Pausing(until) => Some(*until),
            State::Opening(opening) => opening.wake_at(),
        }
    }

    /// Something has happened.
    pub fn on(&mut self, event: RouteEvent, now: Instant) -> Routed {
        match event {
            RouteEvent::Found { purpose: Purpose::Next, found } => {
                return matches!(self.state, State::Finding).then(|| self.decide(found, now)).flatten();
            }
            RouteEvent::Found { purpose: Purpose::Loading { epoch, place }, found } => {
                self.may_avoid(epoch, place, found.is_ok(), now);
            }
            RouteEvent::Found { purpose: Purpose::Silent { .. }, .. } => {}
            RouteEvent::Connected { epoch, place, connected } => self.connected(epoch, place, connected, now),
            RouteEvent::Replied { epoch, place, reply } => self.replied(epoch, place, reply),
            RouteEvent::Probed { epoch, place, silent } => self.probed(epoch, place, silent, now),
            RouteEvent::Lost(peer) => {
                if let State::Opening(opening) = &mut self.state {
                    opening.lost.insert(peer);
                }
            }
            RouteEvent::Time => self.woken(now),
        }
        self.settle(now)
    }

    /// Looks whether there is a route without these nodes, too.
    pub fn look_without(&mut self, nodes: &[NodeId], purpose: Purpose) {
        let without = self.tried.without(nodes);
        self.actions.push_back(RouteAction::Find { purpose, without, longest: LONGEST_LOOK });
    }

    /// Gives up the attempt under way, if there is one.
    pub fn abandon(&mut self) {
        if let State::Opening(opening) = std::mem::replace(&mut self.state, State::Idle) {
            self.actions.push_back(RouteAction::Settled);
            self.release(opening.epoch, &opening.route.nodes(), &Prefix::default());
        }
    }

    /// Ends the session on the last of its routes, and once more at all who had to do with earlier ones: who was out of
    /// reach then, and has not noticed, would keep its KV.
    pub fn end(&mut self, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        self.abandon();
        #[cfg(test)]
        if self.mutant == Some(super::Mutant::ForgetsRelease) {
            return;
        }
        self.release(epoch, nodes, keep);
        let present = |node: &NodeId| nodes.contains(node) || *node == self.local;
        let others: Vec<NodeId> = self.asked.iter().copied().filter(|node| !present(node)).collect();
        // They may have opened a stage for an attempt that came to nothing.
        self.tell_release(self.tried.last_epoch().max(epoch), others, Prefix::default());
    }

    /// Tells all who have to do with a route to end the session; what of its KV may be kept is named in `keep`.
    pub fn release(&mut self, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        let all: BTreeSet<NodeId> = nodes.iter().copied().chain([self.local]).collect();
        self.tell_release(epoch, all.into_iter().collect(), keep.clone());
    }

    /// The same for nodes that have no part in a route which others have. Those that no route before had may keep what they had
    /// of the prompt; what others have is the session's own.
    pub fn dismiss(&mut self, epoch: u32, nodes: Vec<NodeId>, goes_on: bool) {
        let keep = if goes_on { Prefix::default() } else { self.prefix.clone() };
        self.tell_release(epoch, nodes, keep);
    }

    /// Remembers this of a host, for the sessions to come. The coordinator remembers nothing of itself.
    pub fn note(&mut self, node: NodeId, verdict: Verdict) {
        if node != self.local {
            self.actions.push_back(RouteAction::Note { node, verdict });
        }
    }

    fn tell_release(&mut self, epoch: u32, nodes: Vec<NodeId>, keep: Prefix) {
        if !nodes.is_empty() {
            self.actions.push_back(RouteAction::Release { epoch, nodes, keep });
        }
    }

    fn find(&mut self) {
        let Some(search) = &self.search else { return };
        let (without, longest) = (self.tried.without(search.lost()), self.tried.look(search));
        self.state = State::Finding;
        self.actions.push_back(RouteAction::Find { purpose: Purpose::Next, without, longest });
    }

    fn decide(&mut self, found: Result<Route, Fault>, now: Instant) -> Routed {
        let search = self.search.as_mut()?;
        match (self.tried.next(search, found.is_ok(), now), found) {
            (Next::Attempt, Ok(route)) => self.attempt(route),
            (Next::LookAgain, _) => self.state = State::Pausing(now + self.tried.pause()),
            _ => {
                self.state = State::Idle;
                return Some(Err(search.cause.clone()));
            }
        }
        None
    }

    /// Asks all stages at once, and stand-bys beside them.
    fn attempt(&mut self, route: Route) {
        let epoch = self.tried.attempt();
        #[cfg(test)]
        let epoch = if self.mutant == Some(super::Mutant::KeepsEpoch) { 0 } else { epoch };
        self.asked.extend(route.nodes());
        let opening = Opening::new(epoch, route);
        let (session, peers) = (self.params.session, opening.places().filter(|(_, host)| host.node != self.local));
        let stage = |place: Place| SessionStage { session, epoch, stage: place.stage };
        let stages = peers.map(|(place, host)| (host.node, stage(place))).collect();
        self.actions.push_back(RouteAction::Attempt { epoch, stages });
        for (place, host) in opening.places() {
            let open = || opening.order(place, &self.params, self.local, &self.prefix).map(Box::new);
            let action = match host.node == self.local {
                true => open().map(|open| RouteAction::Open { place, node: host.node, open }),
                false => Some(RouteAction::Connect { epoch, place, host: host.clone() }),
            };
            self.actions.extend(action);
        }
        self.state = State::Opening(Box::new(opening));
    }

    /// The attempt under way, if it is this one and waits for this place.
    fn opening(&mut self, epoch: u32, place: Place) -> Option<&mut Opening> {
        match &mut self.state {
            State::Opening(opening) if opening.epoch == epoch && opening.waits_for(place) => Some(opening),
            _ => None,
        }
    }

    /// A peer that is connected is asked for its stage.
    fn connected(&mut self, epoch: u32, place: Place, connected: Result<(), Fault>, now: Instant) {
        if let Err(fault) = connected {
            return self.replied(epoch, place, Err(fault));
        }
        let State::Opening(opening) = &mut self.state else { return };
        if opening.epoch != epoch || !opening.waits_for(place) {
            return;
        }
        let order = opening.order(place, &self.params, self.local, &self.prefix);
        let asked = order.map(Box::new).zip(opening.host(place).map(|host| host.node));
        opening.begins(place, now);
        self.actions.extend(asked.map(|(open, node)| RouteAction::Open { place, node, open }));
    }

    fn replied(&mut self, epoch: u32, place: Place, reply: Result<Opened, Fault>) {
        let params = &self.params;
        let State::Opening(opening) = &mut self.state else { return };
        let head = opening.route.stages.get(place.stage as usize).map(|stage| stage.head);
        let (true, Some(node), Some(head)) =
            (opening.epoch == epoch && opening.waits_for(place), opening.host(place).map(|host| host.node), head)
        else {
            return;
        };
        let reply = reply.and_then(|opened| check(&opened, node, head, params).map(|()| opened));
        let refused = reply.as_ref().err().filter(|_| !place.stands_by).map(Fault::kind);
        opening.replied(place, reply);
        refused.into_iter().for_each(|kind| self.note(node, Verdict::Refused(kind)));
    }

    fn probed(&mut self, epoch: u32, place: Place, silent: bool, now: Instant) {
        let Some(opening) = self.opening(epoch, place) else { return };
        let Some(node) = opening.host(place).map(|host| host.node) else { return };
        match opening.probed(place, silent, now) {
            Silence::Bears => {}
            Silence::Avoidable => self.look_without(&[node], Purpose::Loading { epoch, place }),
            Silence::Ends => self.replied(epoch, place, Err(silent_fault(node))),
        }
    }

    /// Whether there is a route without a host that is silent while it loads.
    fn may_avoid(&mut self, epoch: u32, place: Place, other: bool, now: Instant) {
        let Some(opening) = self.opening(epoch, place) else { return };
        let Some(node) = opening.host(place).map(|host| host.node) else { return };
        match other {
            true => self.replied(epoch, place, Err(silent_fault(node))),
            false => opening.begins(place, now),
        }
    }

    fn woken(&mut self, now: Instant) {
        let session = self.params.session;
        match &mut self.state {
            State::Pausing(until) if *until <= now => self.find(),
            State::Opening(opening) => {
                let epoch = opening.epoch;
                let probe = |(place, node): (Place, NodeId)| {
                    let stage = SessionStage { session, epoch, stage: place.stage };
                    RouteAction::Probe { place, node, stage }
                };
                self.actions.extend(opening.probes(now).into_iter().map(probe));
            }
            _ => {}
        }
    }

    /// Goes on where the attempt under way has ended.
    fn settle(&mut self, now: Instant) -> Routed {
        let State::Opening(opening) = &mut self.state else { return None };
        let ending = opening.ending(now)?;
        let State::Opening(opening) = std::mem::replace(&mut self.state, State::Idle) else { return None };
        let Opening { epoch, route, lost, .. } = *opening;
        self.actions.push_back(RouteAction::Settled);
        let nodes = route.nodes();
        match ending {
            Ending::Opened { opened, following } => {
                self.search = None;
                self.tried.opened(now);
                Some(Ok(OpenRoute { epoch, route, opened, following, nodes, lost }))
            }
            Ending::Failed(failed) => {
                self.release(epoch, &nodes, &Prefix::default());
                let blame = Blame::unopened(failed, self.tried.goes_on())?;
                match &mut self.search {
                    Some(search) => self.tried.blame(blame, search, now),
                    None => self.search = Some(self.tried.search(blame, now, PATIENCE)),
                }
                self.find();
                None
            }
        }
    }
}

fn silent_fault(node: NodeId) -> Fault {
    Fault::new(ErrorKind::PeerUnreachable, format!("peer {} does not answer", node.short()))
}
