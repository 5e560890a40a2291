//! A simulated coordinator's session. What it decides is the real thing: [`Session`], [`Way`], [`Tried`],
//! [`Watch`]; what is here carries it out, as the runner does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use futures::FutureExt;

use super::host::Ask;
use super::model::{MODEL, WIDTH, embed};
use super::swarm::{Event, Micros, SECOND, Sabotage, Swarm, unreachable};
use super::truth::Request;
use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::pipeline::draft::{Horizon, Took};
use crate::pipeline::links::{CoordinatorInbox, Delivery, SessionStage};
use crate::pipeline::message::Message;
use crate::pipeline::prefix::Namer;
use crate::pipeline::route::{OpenRoute, RELEASE_DEADLINE, RELEASES, Route};
use crate::pipeline::search::{Blame, Next, Search, Tried};
use crate::pipeline::session::{Action, End, Session};
use crate::pipeline::watch::{ANSWERS, Watch};
use crate::pipeline::way::{Heard, Shape, Way, usable};
use crate::wire::codec::Codec;
use crate::wire::control::Opened;
use crate::wire::job::StepHeader;
use crate::wire::prefix::Prefix;
use routes::asked;

mod routes;

/// As in the runner and the finder of routes.
const STALL: Micros = 120 * SECOND;
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Micros = SECOND;

/// What a coordinator waits for.
pub enum Timer {
    Begin,
    /// A stage is being opened: is its host there?
    Loading {
        epoch: u32,
        stage: usize,
        misses: u32,
    },
    /// Its host cannot be dialled.
    Undialled {
        epoch: u32,
        stage: usize,
    },
    LookAgain,
    /// Stand-bys are waited for no longer.
    Enough {
        epoch: u32,
    },
    /// An answer is late.
    Late {
        late: Instant,
    },
    /// Who did not say that it is there before may have done so by now.
    Asked {
        late: Instant,
        mute: Vec<NodeId>,
    },
    Stall,
    /// A step could not be sent.
    Unsent {
        fault: Fault,
    },
    Cancel,
}

/// Where a talk is.
enum Phase {
    Waiting,
    Opening { epoch: u32, route: Route, replies: BTreeMap<usize, Option<Result<Opened, Fault>>> },
    Running,
    Over,
}

/// See the module.
pub struct Talk {
    pub node: usize,
    pub id: SessionId,
    pub request: Request,
    pub began: Micros,
    pub ended: Option<(Micros, Result<End, Fault>)>,
    /// What was said, with its log-probabilities.
    pub said: Vec<(u32, f32)>,
    /// Rows of a chunk on the first route.
    pub chunk: u32,
    /// Who refused this session without having been harmed.
    pub refused: Vec<NodeId>,
    pub epochs: u32,
    /// Of its later routes, how many had not to compute all again.
    pub kept: u32,
    /// Times that stand-bys took over.
    pub taken: u32,
    /// Whether its coordinator is dead.
    pub died: bool,
    session: Option<Session>,
    tried: Tried,
    search: Option<Search>,
    phase: Phase,
    way: Option<Way>,
    watch: Watch,
    sent: VecDeque<Micros>,
    answered: Micros,
    inbox: Option<CoordinatorInbox>,
    /// Peers that were lost, or to which a link broke only.
    losses: VecDeque<(NodeId, bool)>,
    turn: u32,
    /// All who were ever asked.
    asked: BTreeSet<NodeId>,
}

impl Talk {
    pub fn new(index: usize, node: usize, request: Request, now: Instant) -> Self {
        Self {
            node,
            id: SessionId([index as u8; 16]),
            request,
            began: 0,
            ended: None,
            said: Vec::new(),
            chunk: 1,
            refused: Vec::new(),
            epochs: 0,
            kept: 0,
            taken: 0,
            died: false,
            session: None,
            tried: Tried::default(),
            search: None,
            phase: Phase::Waiting,
            way: None,
            watch: Watch::new(now),
            sent: VecDeque::new(),
            answered: 0,
            inbox: None,
            losses: VecDeque::new(),
            turn: 0,
            asked: BTreeSet::new(),
        }
    }

    /// Its coordinator dies.
    pub fn die(&mut self) {
        (self.died, self.phase, self.inbox) = (true, Phase::Over, None);
    }

    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// The text whose beginning hosts may have of other sessions.
    fn named(&self) -> Vec<u32> {
        if self.request.exact { self.request.prompt.clone() } else { self.text() }
    }

    /// The text that is known.
    fn text(&self) -> Vec<u32> {
        self.session.as_ref().map_or_else(|| self.request.prompt.clone(), Session::text)
    }
}

fn namer(node: usize) -> Namer {
    Namer::new([node as u8; 32])
}

impl Swarm {
    pub fn timer(&mut self, talk: usize, turn: u32, timer: Timer) {
        let one = &self.talks[talk];
        if !self.nodes[one.node].alive || one.is_over() {
            return;
        }
        let present = one.turn == turn;
        match timer {
            Timer::Begin => self.begin(talk),
            Timer::Loading { epoch, stage, misses } => self.while_loading(talk, epoch, stage, misses),
            Timer::Undialled { epoch, stage } => {
                self.replied(talk, epoch, stage, Err(unreachable(stage)));
            }
            Timer::Cancel => self.cancel(talk),
            Timer::Enough { epoch } => self.enough(talk, epoch),
            _ if !present => {}
            Timer::LookAgain => self.look(talk),
            Timer::Late { late } => {
                let mute = self.mute(talk);
                let when = self.now + ANSWERS.as_micros() as Micros;
                self.at(when, Event::Timer { talk, turn, timer: Timer::Asked { late, mute } });
            }
            Timer::Asked { late, mute } => self.asked_whether_there(talk, late, &mute),
            Timer::Stall => {
                let fault = Fault::new(ErrorKind::Timeout, "the stages gave no answer");
                self.with_session(talk, |session| session.on_fault(fault));
            }
            Timer::Unsent { fault } => {
                let blame = self.talks[talk].way.as_ref().and_then(|way| way.host(0));
                self.recover(talk, Blame { nodes: blame.into_iter().collect(), may_return: true, fault });
            }
        }
    }

    fn set(&mut self, talk: usize, after: Micros, timer: Timer) {
        let turn = self.talks[talk].turn;
        self.at(self.now + after, Event::Timer { talk, turn, timer });
    }

    fn begin(&mut self, talk: usize) {
        let one = &mut self.talks[talk];
        one.began = self.now;
        one.inbox = Some(self.nodes[one.node].links.register_coordinator(one.id));
        match self.find(talk, &[]) {
            Ok(route) => self.attempt(talk, route),
            Err(fault) => self.finish(talk, Err(fault)),
        }
    }

    fn opened(&mut self, talk: usize, open: OpenRoute) {
        let now = self.instant();
        let one = &mut self.talks[talk];
        let node = &self.nodes[one.node];
        let (mut way, _) = Way::new(open, node.id);
        let exact = one.request.exact;
        one.search = None;
        one.tried.opened(now);
        (one.watch, one.answered) = (Watch::new(now), self.now);
        let actions = match (one.session.as_mut(), one.way.take()) {
            (Some(session), Some(before)) => {
                let chunk = way.follow(&before, exact);
                let (cached, rows) = (way.cached, way.max_rows);
                one.way = Some(way);
                let Some(chunk) = chunk else {
                    let fault = Fault::new(ErrorKind::Unsupported, "other hosts take shorter steps");
                    return self.finish(talk, Err(fault));
                };
                let shape = exact.then_some(Shape { prompt: one.request.prompt.len() as u32, chunk });
                let cached = usable(cached, session.text().len() as u32, shape);
                one.kept += u32::from(cached > 0);
                drop(one.inbox.take());
                one.inbox = Some(node.links.register_coordinator(one.id));
                session.resume(cached, rows, chunk, exact)
            }
            _ => {
                let prompt = one.request.prompt.len() as u32;
                let shape = exact.then_some(Shape { prompt, chunk: way.max_rows });
                let cached = usable(way.cached, prompt, shape);
                one.chunk = way.max_rows;
                let session = one.session.insert(one.request.session(way.max_rows, cached));
                one.way = Some(way);
                session.start()
            }
        };
        one.phase = Phase::Running;
        self.act(talk, actions);
        self.go_on(talk);
    }

    /// Takes what has come for a talk, and waits for more.
    fn go_on(&mut self, talk: usize) {
        while self.talks[talk].is_running() {
            let one = &mut self.talks[talk];
            if let Some(delivery) = one.inbox.as_mut().and_then(|inbox| inbox.next().now_or_never()) {
                self.on_delivery(talk, delivery);
                continue;
            }
            let Some((peer, gone)) = one.losses.pop_front() else { break };
            let Some(way) = &mut one.way else { break };
            if gone {
                way.unfollow(peer, None);
            }
            let blame = if gone { way.lost(peer) } else { way.link_broke(peer, !one.sent.is_empty()) };
            if let Some(blame) = blame {
                self.recover(talk, blame);
            }
        }
        let one = &mut self.talks[talk];
        if one.is_running() {
            one.turn += 1;
            let late = one.watch.late_at();
            let when = self.micros(late);
            self.set(talk, when.saturating_sub(self.now), Timer::Late { late });
            self.set(talk, STALL, Timer::Stall);
        }
    }

    /// An answer may have come.
    pub fn hears(&mut self, session: SessionId) {
        let talk = session.0[0] as usize;
        if talk < self.talks.len() {
            self.go_on(talk);
        }
    }

    /// A peer has gone: talks hear of it, and what it was asked to open it will not.
    pub fn lost(&mut self, node: usize, peer: usize, gone: bool) {
        let id = self.nodes[peer].id;
        for talk in 0..self.talks.len() {
            if self.talks[talk].node != node || self.talks[talk].is_over() {
                continue;
            }
            self.talks[talk].losses.push_back((id, gone));
            if let Phase::Opening { epoch, route, replies } = &self.talks[talk].phase {
                let epoch = *epoch;
                let all = asked(route).into_iter();
                let open = all.filter(|(place, node)| *node == id && replies.get(place).is_some_and(Option::is_none));
                let fault = || Fault::new(ErrorKind::PeerLost, format!("node {peer} is gone"));
                for stage in open.map(|(stage, _)| stage).collect::<Vec<_>>() {
                    self.replied(talk, epoch, stage, Err(fault()));
                }
            }
            self.go_on(talk);
        }
    }

    fn on_delivery(&mut self, talk: usize, delivery: Option<Delivery>) {
        let Some((from, message)) = delivery else {
            let fault = Fault::new(ErrorKind::BadFrame, "the last stage sent more than was asked");
            return self.with_session(talk, |session| session.on_fault(fault));
        };
        let Some(way) = &self.talks[talk].way else { return };
        match (way.hears(from, &message), message) {
            (Heard::Answer, Message::Logits { header, rows }) => {
                let (now, instant) = (self.now, self.instant());
                let one = &mut self.talks[talk];
                let round = one.sent.pop_front().map_or(0, |sent| now - sent);
                one.watch.heard(Duration::from_micros(round), instant);
                let gap = (now - std::mem::replace(&mut one.answered, now)) as u32;
                let round = round as u32;
                let busy = header.compute_us.iter().copied().max().unwrap_or(round);
                let took = Took { round, gap, busy, computed: busy, guessing: 0 };
                self.with_session(talk, |session| session.on_logits(header.step, &rows, took));
            }
            (Heard::Failed, Message::Failed { stage, fault, .. }) => {
                let blame = way.failed(from, stage, fault);
                self.recover(talk, blame);
            }
            (Heard::Unfollowed, Message::Failed { stage, .. }) => {
                self.talks[talk].way.iter_mut().for_each(|way| way.unfollow(from, Some(stage)));
            }
            _ => {}
        }
    }

    /// Lets the session decide, and does as it says.
    fn with_session(&mut self, talk: usize, ask: impl FnOnce(&mut Session) -> Vec<Action>) {
        let actions = self.talks[talk].session.as_mut().map(ask).unwrap_or_default();
        self.act(talk, actions);
    }

    /// Steps first, as in the runner.
    fn act(&mut self, talk: usize, actions: Vec<Action>) {
        let (steps, rest): (Vec<Action>, Vec<Action>) =
            actions.into_iter().partition(|action| matches!(action, Action::Step { .. }));
        steps.into_iter().for_each(|step| self.send_step(talk, step));
        for action in rest {
            match action {
                Action::Emit(sampled) => self.talks[talk].said.push((sampled.token, sampled.logprob)),
                Action::End(end) => return self.finish(talk, Ok(end)),
                Action::Fail(fault) if fault.kind() == ErrorKind::BadFrame => {
                    let blame = self.talks[talk].way.as_ref().map(|way| way.wrong(fault));
                    return blame.into_iter().for_each(|blame| self.recover(talk, blame));
                }
                Action::Fail(fault) => return self.finish(talk, Err(fault)),
                Action::Guess(Horizon { most, .. }) => {
                    let text = self.talks[talk].text();
                    let guesses = self.talks[talk].request.draft(&text, most, &mut self.chance);
                    return self.with_session(talk, |session| session.on_guesses(guesses));
                }
                Action::Step { .. } | Action::Foresee { .. } => {}
            }
        }
    }

    fn send_step(&mut self, talk: usize, action: Action) {
        let Action::Step { step, pos, tokens, want_from, want, certain } = action else { return };
        let one = &mut self.talks[talk];
        let Some(way) = &one.way else { return };
        let header = StepHeader {
            session: one.id,
            epoch: way.epoch,
            stage: 0,
            step,
            pos,
            rows: tokens.len() as u32,
            width: WIDTH,
            codec: Codec::F32,
            want_from,
            want,
            certain: if self.sabotage == Some(Sabotage::Guesses) { u32::MAX } else { certain },
            compute_us: Vec::new(),
        };
        let (from, Some(host)) = (one.node, way.host(0)) else { return };
        one.sent.push_back(self.now);
        let copy = way.stand_bys.first().cloned().flatten();
        let to = self.node(host);
        let message = Message::Step { header, hidden: embed(&tokens) };
        if let Some(copy) = copy {
            let to = self.node(copy.node);
            if self.send(from, to, message.clone()).is_err() {
                self.talks[talk].way.iter_mut().for_each(|way| way.unfollow(copy.node, Some(0)));
            }
        }
        if let Err(when) = self.send(from, to, message) {
            let turn = self.talks[talk].turn + 1;
            self.at(when, Event::Timer { talk, turn, timer: Timer::Unsent { fault: unreachable(to) } });
        }
    }

    /// Hosts of the route that are connected and say nothing.
    fn mute(&self, talk: usize) -> Vec<NodeId> {
        let one = &self.talks[talk];
        let places = one.way.as_ref().map(|way| way.places(one.id)).unwrap_or_default();
        let mute = |peer: &NodeId| {
            let to = self.node(*peer);
            self.thinks_connected(one.node, to) && !self.answers(one.node, to)
        };
        places.into_iter().map(|(peer, _)| peer).filter(mute).collect()
    }

    /// Hosts of the route that say that they have their stages no more.
    fn gone(&self, talk: usize) -> Vec<NodeId> {
        let one = &self.talks[talk];
        let places = one.way.as_ref().map(|way| way.places(one.id)).unwrap_or_default();
        let coordinator = self.nodes[one.node].id;
        let gone = |(peer, key): &(NodeId, SessionStage)| {
            let to = self.node(*peer);
            self.answers(one.node, to) && !self.nodes[to].links.serves(*key, coordinator)
        };
        places.into_iter().filter(gone).map(|(peer, _)| peer).collect()
    }

    fn asked_whether_there(&mut self, talk: usize, late: Instant, before: &[NodeId]) {
        if let Some(blame) = Blame::gone(self.gone(talk)) {
            return self.recover(talk, blame);
        }
        let mut silent = self.mute(talk);
        silent.retain(|peer| before.contains(peer));
        silent.dedup();
        if silent.is_empty() {
            let late = self.talks[talk].watch.later(late, self.instant());
            let when = self.micros(late);
            return self.set(talk, when.saturating_sub(self.now), Timer::Late { late });
        }
        let taken = self.talks[talk].way.as_ref().and_then(|way| way.takeover(&silent));
        if (taken.is_some() || self.find(talk, &silent).is_ok())
            && let Some(blame) = Blame::silent(silent)
        {
            return self.recover(talk, blame);
        }
        let late = self.talks[talk].watch.late_at();
        self.set(talk, LOOK_AGAIN, Timer::Late { late });
    }

    /// The route is of no use any more.
    fn recover(&mut self, talk: usize, blame: Blame) {
        self.note(|| format!("talk {talk}: {} ({:?})", blame.fault, blame.nodes));
        if blame.nodes.is_empty() {
            return self.finish(talk, Err(blame.fault));
        }
        let now = self.instant();
        let one = &mut self.talks[talk];
        one.turn += 1;
        one.phase = Phase::Waiting;
        one.sent.clear();
        let takeover = one.way.as_ref().and_then(|way| way.takeover(&blame.nodes));
        let mut search = one.tried.search(blame, now, PATIENCE);
        let next = one.tried.next(&mut search, takeover.is_some(), now);
        one.search = Some(search);
        if let Some((epoch, nodes)) = one.way.as_ref().map(|way| (way.epoch, way.nodes.clone())) {
            self.release(talk, epoch, &nodes, &Prefix::default());
        }
        match takeover.filter(|_| next == Next::Attempt) {
            Some(route) => {
                self.talks[talk].taken += 1;
                self.attempt(talk, route);
            }
            None => self.look(talk),
        }
    }

    /// Tells every stage of a route to end the session.
    fn release(&mut self, talk: usize, epoch: u32, nodes: &[NodeId], keep: &Prefix) {
        let (session, from) = (self.talks[talk].id, self.talks[talk].node);
        let local = self.nodes[from].id;
        self.end_session(from, session, epoch, local, keep);
        let mut hosts: Vec<usize> = nodes.iter().map(|node| self.node(*node)).filter(|to| *to != from).collect();
        hosts.sort_unstable();
        hosts.dedup();
        let patience = (RELEASE_DEADLINE * RELEASES).as_micros() as Micros;
        for to in hosts {
            self.tell_release(from, to, self.now + patience, Ask::Release { session, epoch, keep: keep.clone() });
        }
    }

    fn cancel(&mut self, talk: usize) {
        if self.talks[talk].is_running() {
            return self.with_session(talk, |session| session.stop(End::Cancelled));
        }
        if let Phase::Opening { epoch, route, .. } = &self.talks[talk].phase {
            let (epoch, nodes) = (*epoch, asked(route).into_iter().map(|(_, node)| node).collect::<Vec<_>>());
            self.release(talk, epoch, &nodes, &Prefix::default());
        }
        self.finish(talk, Ok(End::Cancelled));
    }

    fn finish(&mut self, talk: usize, end: Result<End, Fault>) {
        self.note(|| format!("talk {talk} ends: {end:?}"));
        let one = &mut self.talks[talk];
        one.phase = Phase::Over;
        one.inbox = None;
        let computed = one.session.as_ref().filter(|_| end.is_ok() && !one.request.exact).map(Session::computed);
        let keep = namer(one.node).name(MODEL, one.request.exact, &computed.unwrap_or_default());
        one.ended = Some((self.now, end));
        if let Some((epoch, nodes)) = self.talks[talk].way.as_ref().map(|way| (way.epoch, way.nodes.clone())) {
            self.release(talk, epoch, &nodes, &keep);
            let others = self.talks[talk].asked.iter().copied().filter(|node| !nodes.contains(node));
            let others: Vec<NodeId> = others.collect();
            self.release(talk, epoch, &others, &Prefix::default());
        }
        self.check_end(talk);
    }
}
