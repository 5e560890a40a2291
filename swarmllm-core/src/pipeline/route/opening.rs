//! One attempt to open a route: the requests to its hosts, their replies, and hosts that fall silent while they load.
//! Pure; time is an argument.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::base::{ErrorKind, Fault, NodeId};
use crate::pipeline::route::{OpenParams, Route, STANDBY_WAIT};
use crate::wire::control::{Host, OpenSession, Opened};
use crate::wire::prefix::Prefix;

/// How often a host that loads a stage is probed.
const PROBE_INTERVAL: Duration = Duration::from_millis(500);
/// Missed probes in a row after which a host fails even where no route avoids it.
const MAX_MISSES: u32 = 5;

/// A stage of a route, or the standby of a stage. Stages sort before all standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub is_standby: bool,
    pub stage: u32,
}

/// Consequence of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProbeOutcome {
    /// Wait for the host.
    Wait,
    /// Wait for the host unless another route avoids it.
    SeekAlternative,
    /// The host has failed to open its stage.
    Fail,
}

/// Result of an attempt.
pub(super) enum AttemptResult {
    /// All stages are open; replies of the standbys in order of the stages.
    Opened { opened: Vec<Opened>, standby_replies: Vec<Option<Opened>> },
    /// These hosts did not open their stages.
    Failed(Vec<(NodeId, Fault)>),
}

/// See the module.
pub(super) struct OpenAttempt {
    pub epoch: u32,
    pub route: Route,
    /// Peers lost since the attempt began.
    pub lost: BTreeSet<NodeId>,
    requests: BTreeMap<Place, StageRequest>,
    /// When to stop waiting for standbys, once all stages are open.
    standby_deadline: Option<Instant>,
}

/// A request to open a stage.
struct StageRequest {
    host: Host,
    reply: Option<Result<Opened, Fault>>,
    /// Missed probes in a row.
    misses: u32,
    /// When the host is probed next; `None` before the request is sent and during a probe.
    probe: Option<Instant>,
}

impl OpenAttempt {
    pub fn new(epoch: u32, route: Route) -> Self {
        let request = |host| StageRequest { host, reply: None, misses: 0, probe: None };
        let place = |is_standby, stage| Place { is_standby, stage };
        let hosts = (0..).zip(&route.stages).map(|(index, stage)| (place(false, index), request(stage.host.clone())));
        let standbys = (0..).zip(&route.stages);
        let standbys =
            standbys.filter_map(|(index, stage)| Some((place(true, index), request(stage.standby.clone()?))));
        let all = hosts.chain(standbys);
        Self { epoch, requests: all.collect(), route, lost: BTreeSet::new(), standby_deadline: None }
    }

    /// The places and their hosts.
    pub fn places(&self) -> impl Iterator<Item = (Place, &Host)> {
        self.requests.iter().map(|(place, request)| (*place, &request.host))
    }

    /// The host of a place.
    pub fn host(&self, place: Place) -> Option<&Host> {
        self.requests.get(&place).map(|request| &request.host)
    }

    /// The request to the host of a place.
    pub fn open_request(
        &self,
        place: Place,
        params: &OpenParams,
        local: NodeId,
        prefix: &Prefix,
    ) -> Option<OpenSession> {
        let (index, is_standby) = (place.stage as usize, place.is_standby);
        let stage = self.route.stages.get(index)?;
        // Hosts announce their own addresses.
        let named = |node| Host { node, addresses: Vec::new() };
        let stages = &self.route.stages;
        let node_of = |stage: usize| stages.get(stage).map(|stage| stage.host.node);
        let follower = stages.get(index + 1).and_then(|next| next.standby.as_ref());
        Some(OpenSession {
            session: params.session,
            epoch: self.epoch,
            model: params.model,
            engine: params.engine.clone(),
            layers: stage.layers,
            head: stage.head,
            stage: place.stage,
            context: params.context,
            least: params.least,
            exact: params.exact,
            prefix: prefix.clone(),
            next: named(node_of(index + 1).filter(|_| !is_standby).unwrap_or(local)),
            copy: follower.filter(|_| !is_standby).map(|host| named(host.node)),
            is_standby,
            coordinator: named(local),
            previous: index.checked_sub(1).and_then(node_of).unwrap_or(local),
        })
    }

    /// The request for a place is sent: its host is probed from now on.
    pub fn start_probing(&mut self, place: Place, now: Instant) {
        if let Some(request) = self.requests.get_mut(&place).filter(|request| request.reply.is_none()) {
            request.probe = Some(now + PROBE_INTERVAL);
        }
    }

    /// Whether the reply for this place is missing.
    pub fn is_pending(&self, place: Place) -> bool {
        self.requests.get(&place).is_some_and(|request| request.reply.is_none())
    }

    /// Records the reply for a place.
    pub fn replied(&mut self, place: Place, reply: Result<Opened, Fault>) {
        if let Some(request) = self.requests.get_mut(&place) {
            (request.reply, request.probe) = (Some(reply), None);
        }
    }

    /// The hosts whose probe is due.
    pub fn due_probes(&mut self, now: Instant) -> Vec<(Place, NodeId)> {
        let due = |request: &mut StageRequest| request.probe.take_if(|probe| *probe <= now).is_some();
        let due =
            self.requests.iter_mut().filter_map(|(place, request)| due(request).then_some((*place, request.host.node)));
        due.collect()
    }

    /// Records the probe of a host that loads.
    pub fn probed(&mut self, place: Place, silent: bool, now: Instant) -> ProbeOutcome {
        let Some(request) = self.requests.get_mut(&place).filter(|request| request.reply.is_none()) else {
            return ProbeOutcome::Wait;
        };
        request.misses = if silent { request.misses + 1 } else { 0 };
        match request.misses {
            0 => {
                request.probe = Some(now + PROBE_INTERVAL);
                ProbeOutcome::Wait
            }
            MAX_MISSES.. => ProbeOutcome::Fail,
            _ => ProbeOutcome::SeekAlternative,
        }
    }

    /// When the next probe or deadline is due.
    pub fn wake_at(&self) -> Option<Instant> {
        self.requests.values().filter_map(|request| request.probe).chain(self.standby_deadline).min()
    }

    /// The result, once all stages have replied, and the standbys have replied or their deadline has passed.
    pub fn result(&mut self, now: Instant) -> Option<AttemptResult> {
        let stages = self.requests.iter().filter(|(place, _)| !place.is_standby);
        let replies: Option<Vec<_>> =
            stages.map(|(_, request)| Some((request.host.node, request.reply.clone()?))).collect();
        let (opened, failed): (Vec<_>, Vec<_>) = replies?.into_iter().partition(|(_, reply)| reply.is_ok());
        if !failed.is_empty() {
            let fault = |(node, reply): (NodeId, Result<Opened, Fault>)| reply.err().map(|fault| (node, fault));
            return Some(AttemptResult::Failed(failed.into_iter().filter_map(fault).collect()));
        }
        let waits = self.requests.values().any(|request| request.reply.is_none());
        if waits && now < *self.standby_deadline.get_or_insert(now + STANDBY_WAIT) {
            return None;
        }
        let is_standby = |stage: usize| Place { is_standby: true, stage: stage as u32 };
        let reply_of = |stage| self.requests.get(&is_standby(stage))?.reply.clone()?.ok();
        Some(AttemptResult::Opened {
            opened: opened.into_iter().filter_map(|(_, reply)| reply.ok()).collect(),
            standby_replies: (0..self.route.stages.len()).map(reply_of).collect(),
        })
    }
}

/// Checks the shape of an opened stage. A host with another shape than the manifest's has another model, or lies.
pub(super) fn check_shape(opened: &Opened, node: NodeId, head: bool, params: &OpenParams) -> Result<(), Fault> {
    let vocab_fits = !head || opened.vocab == Some(params.vocab);
    let no_room = opened.max_rows == 0 || opened.context < params.least || opened.cached > params.context;
    if opened.width != params.width || !vocab_fits || no_room {
        let text = format!("peer {} opened a stage of another shape than the model's", node.short());
        return Err(Fault::new(ErrorKind::BadFrame, text));
    }
    Ok(())
}
