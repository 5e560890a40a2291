//! One attempt to open a route: who is asked, what was answered, and who says nothing while it loads. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::base::{ErrorKind, Fault, NodeId};
use crate::pipeline::route::{OpenParams, Route, STAND_BY_WAIT};
use crate::wire::control::{Host, OpenSession, Opened};
use crate::wire::prefix::Prefix;

/// How often a host that loads a stage is asked whether it is there.
const WHILE_LOADING: Duration = Duration::from_millis(500);
/// How often in a row a host may miss that where no route does without it.
const MISSES: u32 = 5;

/// A stage of a route, or the stand-by of that stage. The stages come before all stand-bys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub stands_by: bool,
    pub stage: u32,
}

/// What a silent host leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silence {
    /// The host is waited for.
    Bears,
    /// The host is waited for unless another route does without it.
    Avoidable,
    /// The host has failed to open its stage.
    Ends,
}

/// How an attempt ended.
pub(super) enum Ending {
    /// All stages are open; of each stand-by what it said, if it is there.
    Opened { opened: Vec<Opened>, following: Vec<Option<Opened>> },
    /// Hosts did not open their stages.
    Failed(Vec<(NodeId, Fault)>),
}

/// See the module.
pub(super) struct Opening {
    pub epoch: u32,
    pub route: Route,
    /// Peers that were lost since the attempt began.
    pub lost: BTreeSet<NodeId>,
    asked: BTreeMap<Place, Asked>,
    /// Until when stand-bys are waited for, once all stages are open.
    enough: Option<Instant>,
}

/// A host that is asked to open a stage.
struct Asked {
    host: Host,
    reply: Option<Result<Opened, Fault>>,
    /// How often in a row it did not say that it is there.
    misses: u32,
    /// When it is asked whether it is there; nothing before its stage is asked for, and while it is being asked.
    probe: Option<Instant>,
}

impl Opening {
    pub fn new(epoch: u32, route: Route) -> Self {
        let asked = |host| Asked { host, reply: None, misses: 0, probe: None };
        let place = |stands_by, stage| Place { stands_by, stage };
        let hosts = (0..).zip(&route.stages).map(|(index, stage)| (place(false, index), asked(stage.host.clone())));
        let stand_bys = (0..).zip(&route.stages);
        let stand_bys =
            stand_bys.filter_map(|(index, stage)| Some((place(true, index), asked(stage.stand_by.clone()?))));
        let all = hosts.chain(stand_bys);
        Self { epoch, asked: all.collect(), route, lost: BTreeSet::new(), enough: None }
    }

    /// The places, with their hosts.
    pub fn places(&self) -> impl Iterator<Item = (Place, &Host)> {
        self.asked.iter().map(|(place, asked)| (*place, &asked.host))
    }

    /// The host that is asked for a place.
    pub fn host(&self, place: Place) -> Option<&Host> {
        self.asked.get(&place).map(|asked| &asked.host)
    }

    /// What the host of a place is asked for.
    pub fn order(&self, place: Place, params: &OpenParams, local: NodeId, prefix: &Prefix) -> Option<OpenSession> {
        let (index, stands_by) = (place.stage as usize, place.stands_by);
        let stage = self.route.stages.get(index)?;
        // Where they are is theirs to say.
        let named = |node| Host { node, addresses: Vec::new() };
        let stages = &self.route.stages;
        let node_of = |stage: usize| stages.get(stage).map(|stage| stage.host.node);
        let follower = stages.get(index + 1).and_then(|next| next.stand_by.as_ref());
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
            next: named(node_of(index + 1).filter(|_| !stands_by).unwrap_or(local)),
            copy: follower.filter(|_| !stands_by).map(|host| named(host.node)),
            stands_by,
            coordinator: named(local),
            previous: index.checked_sub(1).and_then(node_of).unwrap_or(local),
        })
    }

    /// The stage of a place is asked for: from now on its host is asked now and then whether it is there.
    pub fn begins(&mut self, place: Place, now: Instant) {
        if let Some(asked) = self.asked.get_mut(&place).filter(|asked| asked.reply.is_none()) {
            asked.probe = Some(now + WHILE_LOADING);
        }
    }

    /// Whether a reply for this place is waited for.
    pub fn waits_for(&self, place: Place) -> bool {
        self.asked.get(&place).is_some_and(|asked| asked.reply.is_none())
    }

    /// What was answered for a place that is waited for.
    pub fn replied(&mut self, place: Place, reply: Result<Opened, Fault>) {
        if let Some(asked) = self.asked.get_mut(&place) {
            (asked.reply, asked.probe) = (Some(reply), None);
        }
    }

    /// The hosts that are to be asked now whether they are there.
    pub fn probes(&mut self, now: Instant) -> Vec<(Place, NodeId)> {
        let due = |asked: &mut Asked| asked.probe.take_if(|probe| *probe <= now).is_some();
        let due = self.asked.iter_mut().filter_map(|(place, asked)| due(asked).then_some((*place, asked.host.node)));
        due.collect()
    }

    /// A host that loads says that it is there, or is silent.
    pub fn probed(&mut self, place: Place, silent: bool, now: Instant) -> Silence {
        let Some(asked) = self.asked.get_mut(&place).filter(|asked| asked.reply.is_none()) else {
            return Silence::Bears;
        };
        asked.misses = if silent { asked.misses + 1 } else { 0 };
        match asked.misses {
            0 => {
                asked.probe = Some(now + WHILE_LOADING);
                Silence::Bears
            }
            MISSES.. => Silence::Ends,
            _ => Silence::Avoidable,
        }
    }

    /// When something is to be done.
    pub fn wake_at(&self) -> Option<Instant> {
        self.asked.values().filter_map(|asked| asked.probe).chain(self.enough).min()
    }

    /// How the attempt ended, where it has: all stages were answered for, and their stand-bys were, or are waited for no
    /// longer.
    pub fn ending(&mut self, now: Instant) -> Option<Ending> {
        let stages = self.asked.iter().filter(|(place, _)| !place.stands_by);
        let replies: Option<Vec<_>> = stages.map(|(_, asked)| Some((asked.host.node, asked.reply.clone()?))).collect();
        let (opened, failed): (Vec<_>, Vec<_>) = replies?.into_iter().partition(|(_, reply)| reply.is_ok());
        if !failed.is_empty() {
            let fault = |(node, reply): (NodeId, Result<Opened, Fault>)| reply.err().map(|fault| (node, fault));
            return Some(Ending::Failed(failed.into_iter().filter_map(fault).collect()));
        }
        let waits = self.asked.values().any(|asked| asked.reply.is_none());
        if waits && now < *self.enough.get_or_insert(now + STAND_BY_WAIT) {
            return None;
        }
        let stands_by = |stage: usize| Place { stands_by: true, stage: stage as u32 };
        let follows = |stage| self.asked.get(&stands_by(stage))?.reply.clone()?.ok();
        Some(Ending::Opened {
            opened: opened.into_iter().filter_map(|(_, reply)| reply.ok()).collect(),
            following: (0..self.route.stages.len()).map(follows).collect(),
        })
    }
}

/// A host whose stage has another shape than the manifest says has another model, or lies.
pub(super) fn check(opened: &Opened, node: NodeId, head: bool, params: &OpenParams) -> Result<(), Fault> {
    let vocab_fits = !head || opened.vocab == Some(params.vocab);
    let no_room = opened.max_rows == 0 || opened.context < params.least || opened.cached > params.context;
    if opened.width != params.width || !vocab_fits || no_room {
        let text = format!("peer {} opened a stage of another shape than the model's", node.short());
        return Err(Fault::new(ErrorKind::BadFrame, text));
    }
    Ok(())
}
