//! A talk's routes: found by the real [`plan`], opened at every host and stand-by, and looked for again.

use std::collections::BTreeSet;

use super::{PATIENCE, Phase, Timer, namer};
use crate::base::{ErrorKind, Fault, LayerRange, NodeId};
use crate::pipeline::hops::Told;
use crate::pipeline::plan::{Candidate, Plan, PlanRequest, plan};
use crate::pipeline::route::{OpenRoute, Route, STAND_BY_WAIT};
use crate::pipeline::search::{self, Blame, Next};
use crate::pipeline::sim::host::{Ask, memory, place};
use crate::pipeline::sim::model::MODEL;
use crate::pipeline::sim::swarm::{Micros, SECOND, Sabotage, Swarm, unreachable};
use crate::pipeline::stand_by;
use crate::pipeline::watch::ANSWERS;
use crate::wire::control::{Host, OpenSession, Opened};
use crate::wire::prefix::Prefix;

/// As in the finder of routes.
const OPEN_DEADLINE: Micros = 180 * SECOND;
const WHILE_LOADING: Micros = SECOND / 2;
const MISSES: u32 = 5;

/// Who is asked to open a route's stages, or to stand by them.
pub(super) fn asked(route: &Route) -> Vec<(usize, NodeId)> {
    let mains = route.plan.stages.iter().enumerate().map(|(stage, planned)| (stage, planned.node));
    let stand_by = |stage: usize| Some((place(stage as u32, true), route.stand_by(stage)?.node));
    mains.chain((0..route.plan.stages.len()).filter_map(stand_by)).collect()
}

fn host(node: NodeId) -> Host {
    Host { node, addresses: Vec::new() }
}

impl Swarm {
    /// The best route by what the coordinator knows.
    pub(super) fn find(&mut self, talk: usize, lost: &[NodeId]) -> Result<Route, Fault> {
        let one = &self.talks[talk];
        let without = one.tried.without(lost);
        let known = &self.nodes[one.node].known;
        let all = known.iter().copied().chain([one.node]);
        let candidates = self.candidates(one.node, all.filter(|node| !without.contains(&self.nodes[*node].id)));
        let plan = self.plan(&candidates)?;
        self.check_plan(&plan, &candidates);
        let weights = vec![1; plan.stages.len()];
        let stand_bys = match self.talks[talk].request.stand_by {
            true => self.with_request(&candidates, |request| stand_by::choose(request, &plan.stages)),
            false => Vec::new(),
        };
        let stand_bys = stand_bys.into_iter().map(|node| node.map(host)).collect();
        Ok(Route { addresses: vec![Vec::new(); plan.stages.len()], weights, stand_bys, plan })
    }

    pub fn candidates(&self, coordinator: usize, nodes: impl Iterator<Item = usize>) -> Vec<Candidate> {
        let candidate = |index: usize| {
            let node = &self.nodes[index];
            Candidate {
                node: node.id,
                layers: node.facts.layers.clone(),
                head: node.facts.head,
                rtt_us: self.rtt(coordinator, index) as u32,
                pace_ns: node.facts.pace * 1000,
                free_memory: if index == coordinator { node.free_memory() } else { node.facts.memory },
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
            told: &Told::new(),
        };
        ask(&request)
    }

    /// Opens all stages at once, and their stand-bys.
    pub(super) fn attempt(&mut self, talk: usize, route: Route) {
        let one = &mut self.talks[talk];
        let (attempt, from) = (one.tried.attempt(), one.node);
        one.epochs = attempt + 1;
        let epoch = if self.sabotage == Some(Sabotage::Epochs) { 0 } else { attempt };
        one.turn += 1;
        let stages = route.plan.stages.clone();
        let mains = stages.iter().enumerate().map(|(stage, planned)| (stage, false, planned.node));
        let stand_bys = (0..stages.len()).filter_map(|stage| Some((stage, true, route.stand_by(stage)?.node)));
        let asked: Vec<(usize, bool, NodeId)> = mains.chain(stand_bys).collect();
        one.asked.extend(asked.iter().map(|(_, _, node)| *node));
        let replies = asked.iter().map(|(stage, stands_by, _)| (place(*stage as u32, *stands_by), None)).collect();
        one.phase = Phase::Opening { epoch, route: route.clone(), replies };
        let prefix = namer(from).name(MODEL, self.talks[talk].request.exact, &self.talks[talk].named());
        self.note(|| {
            let route: Vec<_> = stages.iter().map(|stage| format!("{} at {}", stage.layers, stage.node.0[0])).collect();
            let stand_bys: Vec<_> = asked.iter().filter(|one| one.1).map(|one| (one.0, one.2.0[0])).collect();
            format!("talk {talk} at {from} opens epoch {epoch}: {}; stand-bys {stand_bys:?}", route.join(", "))
        });
        for (stage, stands_by, node) in asked {
            let open = self.order_of(talk, epoch, &route, (stage, stands_by), prefix.clone());
            let (to, stage) = (self.node(node), place(stage as u32, stands_by));
            if from != to && self.connect(from, to).is_none() {
                let after = self.dial(from, to);
                self.set(talk, after, Timer::Undialled { epoch, stage });
                continue;
            }
            self.ask(from, to, OPEN_DEADLINE, Ask::Open { talk, open: Box::new(open), opening: None });
            self.set(talk, WHILE_LOADING, Timer::Loading { epoch, stage, misses: 0 });
        }
    }

    fn order_of(
        &self,
        talk: usize,
        epoch: u32,
        route: &Route,
        (stage, stands_by): (usize, bool),
        prefix: Prefix,
    ) -> OpenSession {
        let stages = &route.plan.stages;
        let one = &self.talks[talk];
        let local = self.nodes[one.node].id;
        OpenSession {
            session: one.id,
            epoch,
            model: MODEL,
            engine: String::new(),
            layers: stages[stage].layers,
            head: stages[stage].head,
            stage: stage as u32,
            context: one.request.prompt.len() as u32 + one.request.max_tokens,
            least: one.request.prompt.len() as u32 + 1,
            exact: one.request.exact,
            prefix,
            next: host(stages.get(stage + 1).filter(|_| !stands_by).map_or(local, |next| next.node)),
            copy: route.stand_by(stage + 1).filter(|_| !stands_by).cloned(),
            stands_by,
            coordinator: host(local),
            previous: stage.checked_sub(1).map_or(local, |before| stages[before].node),
        }
    }

    /// Whether a host that loads a stage is there is asked now and then.
    pub(super) fn while_loading(&mut self, talk: usize, epoch: u32, stage: usize, misses: u32) {
        let Phase::Opening { epoch: present, route, replies } = &self.talks[talk].phase else { return };
        if *present != epoch || replies.get(&stage).is_none_or(Option::is_some) {
            return;
        }
        let Some(host) = asked(route).into_iter().find(|(place, _)| *place == stage).map(|(_, node)| node) else {
            return;
        };
        let (from, to) = (self.talks[talk].node, self.node(host));
        let there = from == to || self.answers(from, to);
        let misses = if there { 0 } else { misses + 1 };
        if misses >= MISSES || (misses > 0 && self.find(talk, &[host]).is_ok()) {
            return self.replied(talk, epoch, stage, Err(unreachable(to)));
        }
        let after = WHILE_LOADING + if there { 0 } else { ANSWERS.as_micros() as Micros };
        self.set(talk, after, Timer::Loading { epoch, stage, misses });
    }

    pub fn replied(&mut self, talk: usize, epoch: u32, stage: usize, reply: Result<Opened, Fault>) {
        let Phase::Opening { epoch: present, replies, .. } = &mut self.talks[talk].phase else { return };
        if *present != epoch || replies.get(&stage).is_none_or(Option::is_some) {
            return;
        }
        replies.insert(stage, Some(reply));
        self.enough_of(talk, epoch, false);
    }

    pub(super) fn enough(&mut self, talk: usize, epoch: u32) {
        if matches!(&self.talks[talk].phase, Phase::Opening { epoch: present, .. } if *present == epoch) {
            self.enough_of(talk, epoch, true);
        }
    }

    /// Goes on where all stages have answered, and their stand-bys have or are waited for no longer.
    fn enough_of(&mut self, talk: usize, epoch: u32, enough: bool) {
        let Phase::Opening { route, replies, .. } = &self.talks[talk].phase else { return };
        let count = route.plan.stages.len();
        let mains = || replies.range(..count).map(|(_, reply)| reply);
        if mains().any(Option::is_none) {
            return;
        }
        let good = mains().flatten().all(Result::is_ok);
        if good && !enough && replies.values().any(Option::is_none) {
            let after = STAND_BY_WAIT.as_micros() as Micros;
            return self.set(talk, after, Timer::Enough { epoch });
        }
        let phase = std::mem::replace(&mut self.talks[talk].phase, Phase::Waiting);
        let Phase::Opening { epoch, route, mut replies } = phase else { return };
        let (mut opened, mut failed) = (Vec::new(), Vec::new());
        let following = (0..count).map(|stage| replies.remove(&place(stage as u32, true)).flatten());
        let following = following.map(|reply| reply.and_then(Result::ok)).collect();
        for (stage, reply) in route.plan.stages.iter().zip(replies.into_values().flatten()) {
            match reply {
                Ok(one) => opened.push(one),
                Err(fault) => failed.push((stage.node, fault)),
            }
        }
        let nodes: Vec<NodeId> = asked(&route).into_iter().map(|(_, node)| node).collect();
        let refused = failed.iter().filter(|(_, fault)| !search::is_loss(fault.kind())).map(|(node, _)| *node);
        self.talks[talk].refused.extend(refused);
        let Some(blame) = Blame::unopened(failed, self.talks[talk].tried.goes_on()) else {
            return self.opened(talk, OpenRoute { epoch, route, opened, following, nodes, lost: BTreeSet::new() });
        };
        self.release(talk, epoch, &nodes, &Prefix::default());
        let now = self.instant();
        let one = &mut self.talks[talk];
        match &mut one.search {
            Some(search) => one.tried.blame(blame, search, now),
            None => one.search = Some(one.tried.search(blame, now, PATIENCE)),
        }
        self.look(talk);
    }

    /// Looks for another route.
    pub(super) fn look(&mut self, talk: usize) {
        let Some(mut search) = self.talks[talk].search.take() else { return };
        let found = self.find(talk, search.lost());
        let now = self.instant();
        let one = &mut self.talks[talk];
        let next = one.tried.next(&mut search, found.is_ok(), now);
        let cause = search.cause.clone();
        one.search = Some(search);
        match (next, found) {
            (Next::Attempt, Ok(route)) => self.attempt(talk, route),
            (Next::LookAgain, _) => self.set(talk, search::LOOK_AGAIN.as_micros() as Micros, Timer::LookAgain),
            _ => self.finish(talk, Err(cause)),
        }
    }
}
