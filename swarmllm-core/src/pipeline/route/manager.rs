//! The routes of one session: which route is tried next, in which epoch, the requests to its hosts, the end of the
//! search, and the releases. Without IO: events in, actions out; time is an argument.
//!
//! Every attempt to open a route has its own epoch, so that late frames and releases of an earlier route never affect a
//! later one.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use super::opening::{AttemptResult, OpenAttempt, Place, ProbeOutcome, check_shape};
use crate::base::{ErrorKind, Fault, NodeId};
use crate::pipeline::link::router::SessionStage;
use crate::pipeline::route::search::{MAX_SEARCH, RouteAttempts, RouteFailure, RouteSearch, SearchStep};
use crate::pipeline::route::{OpenParams, OpenRoute, Route};
use crate::wire::control::{Host, OpenSession, Opened};
use crate::wire::prefix::Prefix;

/// Time that a session waits for a lost host to reconnect where there is no other route.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Purpose of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchPurpose {
    /// To open the route.
    Open,
    /// To know whether a route avoids a host that is silent while it loads.
    AvoidLoading { epoch: u32, place: Place },
    /// To know whether a route avoids the hosts that the probe with this number found silent.
    AvoidSilent { probe: u32 },
}

/// Outcome of a host, remembered for later sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It refused to open a stage.
    Refused(ErrorKind),
    /// It failed or sent malformed data.
    Failed,
    /// It had no room.
    Full,
    /// It did its part of a complete answer.
    Worked,
}

/// An action for a session's routes.
#[derive(Debug, Clone, PartialEq)]
pub enum RouteAction {
    /// Find a route without these nodes, within `timeout`; [`RouteEvent::Found`] answers.
    Find { purpose: SearchPurpose, without: Vec<NodeId>, timeout: Duration },
    /// An attempt begins; keep these stages at peers alive until it ends. Earlier losses do not concern its route.
    BeginAttempt { epoch: u32, stages: Vec<(NodeId, SessionStage)> },
    /// Connect to a peer; [`RouteEvent::Connected`] answers.
    Connect { epoch: u32, place: Place, host: Host },
    /// Ask a host to open a stage; [`RouteEvent::Replied`] answers.
    Open { place: Place, node: NodeId, open: Box<OpenSession> },
    /// Probe a peer that opens a stage; [`RouteEvent::Probed`] answers.
    Probe { place: Place, node: NodeId, stage: SessionStage },
    /// The attempt ended; drop its unanswered requests.
    EndAttempt,
    /// Tell these nodes to end the session's stages of this and earlier routes. They may keep the KV of the prefix
    /// `keep`.
    Release { epoch: u32, nodes: Vec<NodeId>, keep: Prefix },
    /// Record the outcome of a host.
    Record { node: NodeId, verdict: Verdict },
}

/// An event for the routes of a session.
#[derive(Debug)]
pub enum RouteEvent {
    /// The result of a search.
    Found { purpose: SearchPurpose, found: Result<Route, Fault> },
    /// The result of a connection.
    Connected { epoch: u32, place: Place, connected: Result<(), Fault> },
    /// The reply of a host to the request for a stage.
    Replied { epoch: u32, place: Place, reply: Result<Opened, Fault> },
    /// Whether a peer that opens a stage is silent.
    Probed { epoch: u32, place: Place, silent: bool },
    /// A peer lost its last connection.
    Lost(NodeId),
    /// The time of `wake_at` has come.
    Wake,
}

/// See the module.
pub struct RouteManager {
    params: OpenParams,
    local: NodeId,
    attempts: RouteAttempts,
    search: Option<RouteSearch>,
    state: State,
    /// All nodes that were ever asked.
    asked: BTreeSet<NodeId>,
    /// Prefix hashes of the text, for the hosts.
    prefix: Prefix,
    actions: VecDeque<RouteAction>,
    #[cfg(test)]
    pub(in crate::pipeline) mutant: Option<super::mutant::Mutant>,
}

enum State {
    Idle,
    Finding,
    /// No route was found; the next search begins then.
    Pausing(Instant),
    Opening(Box<OpenAttempt>),
}

/// Result of a search that ended with an event: an open route, or the fault.
pub type Routed = Option<Result<OpenRoute, Fault>>;

impl RouteManager {
    /// A manager without attempts, at the coordinator `local`.
    pub fn new(params: OpenParams, local: NodeId) -> Self {
        Self {
            params,
            local,
            attempts: RouteAttempts::default(),
            search: None,
            state: State::Idle,
            asked: BTreeSet::new(),
            prefix: Prefix::default(),
            actions: VecDeque::new(),
            #[cfg(test)]
            mutant: None,
        }
    }

    /// Parameters that the session sends to every host.
    pub fn params(&self) -> &OpenParams {
        &self.params
    }

    /// The coordinator.
    pub fn local(&self) -> NodeId {
        self.local
    }

    /// Opens the first route or, if a host of it fails, another. `prefix` is sent to the hosts.
    pub fn open(&mut self, route: Route, prefix: Prefix) {
        self.prefix = prefix;
        self.begin_attempt(route);
    }

    /// Opens a route in place of one whose hosts failed: the takeover by standbys, if there is one. The session now
    /// needs `least` positions. Where no route exists and hosts may return, it waits for them. The error is the failure
    /// of the last route.
    pub fn reopen(
        &mut self,
        failure: RouteFailure,
        takeover: Option<Route>,
        (prefix, least): (Prefix, u32),
        now: Instant,
    ) -> Routed {
        self.prefix = prefix;
        self.params.least = least.min(self.params.context);
        self.search = Some(self.attempts.begin_search(failure, now, PATIENCE));
        match takeover {
            Some(route) => self.on_found(Ok(route), now),
            None => {
                self.find();
                None
            }
        }
    }

    /// The next action.
    pub fn next_action(&mut self) -> Option<RouteAction> {
        self.actions.pop_front()
    }

    /// When [`RouteEvent::Wake`] is due.
    pub fn wake_at(&self) -> Option<Instant> {
        match &self.state {
            State::Idle | State::Finding => None,
            State::Pausing(until) => Some(*until),
            State::Opening(attempt) => attempt.wake_at(),
        }
    }

    /// Handles an event.
    pub fn on(&mut self, event: RouteEvent, now: Instant) -> Routed {
        match event {
            RouteEvent::Found { purpose: SearchPurpose::Open, found } => {
                return matches!(self.state, State::Finding).then(|| self.on_found(found, now)).flatten();
            }
            RouteEvent::Found { purpose: SearchPurpose::AvoidLoading { epoch, place }, found } => {
                self.on_alternative(epoch, place, found.is_ok(), now);
            }
            RouteEvent::Found { purpose: SearchPurpose::AvoidSilent { .. }, .. } => {}
            RouteEvent::Connected { epoch, place, connected } => self.connected(epoch, place, connected, now),
            RouteEvent::Replied { epoch, place, reply } => self.replied(epoch, place, reply),
            RouteEvent::Probed { epoch, place, silent } => self.probed(epoch, place, silent, now),
            RouteEvent::Lost(peer) => {
                if let State::Opening(attempt) = &mut self.state {
                    attempt.lost.insert(peer);
                }
            }
            RouteEvent::Wake => self.on_wake(now),
        }
        self.end_attempt(now)
    }

    /// Starts a search for a route that avoids these nodes as well.
    pub fn search_without(&mut self, nodes: &[NodeId], purpose: SearchPurpose) {
        let without = self.attempts.without(nodes);
        self.actions.push_back(RouteAction::Find { purpose, without, timeout: MAX_SEARCH });
    }

    /// Abandons the current attempt, if there is one.
    pub fn abandon(&mut self) {
        if let State::Opening(attempt) = std::mem::replace(&mut self.state, State::Idle) {
            self.actions.push_back(RouteAction::EndAttempt);
            self.release(attempt.epoch, &attempt.route.nodes(), &Prefix::default());
        }
    }

    /// Ends the session on its last route, and once more on all nodes of earlier routes: a node that was out of reach
    /// then would otherwise keep the KV.
    pub fn end(&mut self, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        self.abandon();
        #[cfg(test)]
        if self.mutant == Some(super::mutant::Mutant::ForgetsRelease) {
            return;
        }
        self.release(epoch, nodes, keep);
        let present = |node: &NodeId| nodes.contains(node) || *node == self.local;
        let others: Vec<NodeId> = self.asked.iter().copied().filter(|node| !present(node)).collect();
        // They may have opened a stage for a failed attempt.
        self.push_release(self.attempts.last_epoch().max(epoch), others, Prefix::default());
    }

    /// Tells these nodes and the coordinator to end the session; they may keep the KV of `keep`.
    pub fn release(&mut self, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        let all: BTreeSet<NodeId> = nodes.iter().copied().chain([self.local]).collect();
        self.push_release(epoch, all.into_iter().collect(), keep.clone());
    }

    /// Releases nodes that were asked and have no part in the open route. On the first route (`!resumed`) they may keep
    /// their KV of the prompt; later it is the session's own.
    pub fn dismiss(&mut self, epoch: u32, nodes: Vec<NodeId>, resumed: bool) {
        let keep = if resumed { Prefix::default() } else { self.prefix.clone() };
        self.push_release(epoch, nodes, keep);
    }

    /// Records the outcome of a host, for later sessions; nothing of the coordinator itself.
    pub fn record(&mut self, node: NodeId, verdict: Verdict) {
        if node != self.local {
            self.actions.push_back(RouteAction::Record { node, verdict });
        }
    }

    fn push_release(&mut self, epoch: u32, nodes: Vec<NodeId>, keep: Prefix) {
        if !nodes.is_empty() {
            self.actions.push_back(RouteAction::Release { epoch, nodes, keep });
        }
    }

    fn find(&mut self) {
        let Some(search) = &self.search else { return };
        let (without, timeout) = (self.attempts.without(search.lost()), self.attempts.search_timeout(search));
        self.state = State::Finding;
        self.actions.push_back(RouteAction::Find { purpose: SearchPurpose::Open, without, timeout });
    }

    fn on_found(&mut self, found: Result<Route, Fault>, now: Instant) -> Routed {
        let search = self.search.as_mut()?;
        match (self.attempts.next(search, found.is_ok(), now), found) {
            (SearchStep::Attempt, Ok(route)) => self.begin_attempt(route),
            (SearchStep::Retry, _) => self.state = State::Pausing(now + self.attempts.pause()),
            _ => {
                self.state = State::Idle;
                return Some(Err(search.cause.clone()));
            }
        }
        None
    }

    /// Requests all stages at once, and the standbys with them.
    fn begin_attempt(&mut self, route: Route) {
        let epoch = self.attempts.begin();
        #[cfg(test)]
        let epoch = if self.mutant == Some(super::mutant::Mutant::KeepsEpoch) { 0 } else { epoch };
        self.asked.extend(route.nodes());
        let attempt = OpenAttempt::new(epoch, route);
        let (session, peers) = (self.params.session, attempt.places().filter(|(_, host)| host.node != self.local));
        let stage = |place: Place| SessionStage { session, epoch, stage: place.stage };
        let stages = peers.map(|(place, host)| (host.node, stage(place))).collect();
        self.actions.push_back(RouteAction::BeginAttempt { epoch, stages });
        for (place, host) in attempt.places() {
            let open = || attempt.open_request(place, &self.params, self.local, &self.prefix).map(Box::new);
            let action = match host.node == self.local {
                true => open().map(|open| RouteAction::Open { place, node: host.node, open }),
                false => Some(RouteAction::Connect { epoch, place, host: host.clone() }),
            };
            self.actions.extend(action);
        }
        self.state = State::Opening(Box::new(attempt));
    }

    /// The current attempt, if it has this epoch and waits for this place.
    fn pending_attempt(&mut self, epoch: u32, place: Place) -> Option<&mut OpenAttempt> {
        match &mut self.state {
            State::Opening(attempt) if attempt.epoch == epoch && attempt.is_pending(place) => Some(attempt),
            _ => None,
        }
    }

    /// Sends the request for a stage to a connected peer.
    fn connected(&mut self, epoch: u32, place: Place, connected: Result<(), Fault>, now: Instant) {
        if let Err(fault) = connected {
            return self.replied(epoch, place, Err(fault));
        }
        let State::Opening(attempt) = &mut self.state else { return };
        if attempt.epoch != epoch || !attempt.is_pending(place) {
            return;
        }
        let open_request = attempt.open_request(place, &self.params, self.local, &self.prefix);
        let asked = open_request.map(Box::new).zip(attempt.host(place).map(|host| host.node));
        attempt.start_probing(place, now);
        self.actions.extend(asked.map(|(open, node)| RouteAction::Open { place, node, open }));
    }

    fn replied(&mut self, epoch: u32, place: Place, reply: Result<Opened, Fault>) {
        let params = &self.params;
        let State::Opening(attempt) = &mut self.state else { return };
        let head = attempt.route.stages.get(place.stage as usize).map(|stage| stage.head);
        let (true, Some(node), Some(head)) =
            (attempt.epoch == epoch && attempt.is_pending(place), attempt.host(place).map(|host| host.node), head)
        else {
            return;
        };
        let reply = reply.and_then(|opened| check_shape(&opened, node, head, params).map(|()| opened));
        let refused = reply.as_ref().err().filter(|_| !place.is_standby).map(Fault::kind);
        attempt.replied(place, reply);
        refused.into_iter().for_each(|kind| self.record(node, Verdict::Refused(kind)));
    }

    fn probed(&mut self, epoch: u32, place: Place, silent: bool, now: Instant) {
        let Some(attempt) = self.pending_attempt(epoch, place) else { return };
        let Some(node) = attempt.host(place).map(|host| host.node) else { return };
        match attempt.probed(place, silent, now) {
            ProbeOutcome::Wait => {}
            ProbeOutcome::SeekAlternative => self.search_without(&[node], SearchPurpose::AvoidLoading { epoch, place }),
            ProbeOutcome::Fail => self.replied(epoch, place, Err(silent_fault(node))),
        }
    }

    /// Handles the search for a route that avoids a silent host: replaces the host if there is one.
    fn on_alternative(&mut self, epoch: u32, place: Place, found: bool, now: Instant) {
        let Some(attempt) = self.pending_attempt(epoch, place) else { return };
        let Some(node) = attempt.host(place).map(|host| host.node) else { return };
        match found {
            true => self.replied(epoch, place, Err(silent_fault(node))),
            false => attempt.start_probing(place, now),
        }
    }

    fn on_wake(&mut self, now: Instant) {
        let session = self.params.session;
        match &mut self.state {
            State::Pausing(until) if *until <= now => self.find(),
            State::Opening(attempt) => {
                let epoch = attempt.epoch;
                let probe = |(place, node): (Place, NodeId)| {
                    let stage = SessionStage { session, epoch, stage: place.stage };
                    RouteAction::Probe { place, node, stage }
                };
                self.actions.extend(attempt.due_probes(now).into_iter().map(probe));
            }
            _ => {}
        }
    }

    /// Ends the current attempt if it is complete.
    fn end_attempt(&mut self, now: Instant) -> Routed {
        let State::Opening(attempt) = &mut self.state else { return None };
        let result = attempt.result(now)?;
        let State::Opening(attempt) = std::mem::replace(&mut self.state, State::Idle) else { return None };
        let OpenAttempt { epoch, route, lost, .. } = *attempt;
        self.actions.push_back(RouteAction::EndAttempt);
        let nodes = route.nodes();
        match result {
            AttemptResult::Opened { opened, standby_replies } => {
                self.search = None;
                self.attempts.on_opened(now);
                Some(Ok(OpenRoute { epoch, route, opened, standby_replies, nodes, lost }))
            }
            AttemptResult::Failed(failed) => {
                self.release(epoch, &nodes, &Prefix::default());
                let failure = RouteFailure::unopened(failed, self.attempts.has_opened())?;
                match &mut self.search {
                    Some(search) => self.attempts.exclude(failure, search, now),
                    None => self.search = Some(self.attempts.begin_search(failure, now, PATIENCE)),
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
