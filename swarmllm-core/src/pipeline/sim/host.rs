//! A simulated node as a host: it admits sessions, computes their steps in order and forwards results. The real
//! [`SessionRouter`] assigns messages, and the real [`StageSession`] validates steps.

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt;

use super::model::{Layers, VOCAB, WIDTH};
use super::swarm::{Event, MILLI, Micros, Mutation, Swarm, unreachable};
use crate::base::{ErrorKind, Fault, LayerRange, NodeId, SessionId};
use crate::engine::StepJob;
use crate::pipeline::host::stage_session::StageSession;
use crate::pipeline::host::stages::SLOT_WAIT;
use crate::pipeline::link::message::Message;
use crate::pipeline::link::request::is_loss;
use crate::pipeline::link::router::{SessionRouter, SessionStage, StageAgreement, StageInbox, StageReservation};
use crate::pipeline::route::opening::Place;
use crate::rt::TaskSet;
use crate::wire::control::{OpenSession, Opened};
use crate::wire::job::StepHeader;
use crate::wire::prefix::Prefix;

/// How often a session that waits for a slot polls for one.
const SLOT_POLL: Micros = 100 * MILLI;
/// Ended sessions whose KV a node keeps.
const MAX_RETAINED: usize = 3;

/// A request between nodes.
pub enum HostRequest {
    /// Opens a stage for a session; `reservation` is set once the host has begun.
    Open { asker: usize, open: Box<OpenSession>, reservation: Option<StageReservation> },
    /// Ends a session.
    Release { session: SessionId, epoch: u32, keep: Prefix },
}

/// Properties of a node that survive restarts.
#[derive(Clone)]
pub struct NodeSpec {
    /// Layers held, merged.
    pub layers: Vec<LayerRange>,
    pub head: bool,
    pub memory: u64,
    /// Sessions that each stage admits.
    pub slots: usize,
    pub max_rows: u32,
    /// Microseconds per row and layer.
    pub pace: Micros,
    /// Longest time to load a stage.
    pub load: Micros,
    /// The step at which its engine fails, counted from its start.
    pub fails_at: Option<u64>,
}

/// Layers of a stage, and whether it computes the head.
type Kind = (LayerRange, bool);

/// A session that waits for its stage to be loaded.
struct Loading {
    ticket: u64,
    from: usize,
    connection: u32,
    asker: usize,
    open: OpenSession,
    reservation: StageReservation,
}

/// A session at a stage.
struct Serving {
    stage_session: StageSession,
    inbox: StageInbox,
    layers: Layers,
    computing: Option<(StepHeader, StepJob)>,
    /// Whether a result could not be sent, which is reported later.
    stuck: bool,
    /// Whether copies still go to the standby of the next stage.
    copies: bool,
}

/// KV of a session that has ended, or whose route failed.
struct RetainedKv {
    coordinator: NodeId,
    kind: Kind,
    text: RetainedText,
    layers: Layers,
}

/// The text of retained KV.
enum RetainedText {
    Named(Prefix),
    /// The first `held` positions, for a later route of the session.
    Broken {
        session: SessionId,
        epoch: u32,
        held: u32,
    },
}

/// A simulated node.
pub struct Node {
    pub id: NodeId,
    pub spec: NodeSpec,
    /// Counts its starts.
    pub incarnation: u32,
    pub alive: bool,
    /// Whether the machine of a dead node is off as well.
    pub powered_off: bool,
    pub frozen: bool,
    /// Events that wait for its thaw.
    pub waiting: Vec<Event>,
    /// Peers whose announcement it has.
    pub known: BTreeSet<usize>,
    pub router: SessionRouter,
    loading: Vec<Loading>,
    serving: BTreeMap<(SessionId, u32, u32), Serving>,
    retained: Vec<RetainedKv>,
    busy_until: Micros,
    steps: u64,
    /// Whether its engine has failed.
    pub failed: bool,
    tickets: u64,
}

fn place_of(open: &OpenSession) -> Place {
    Place { is_standby: open.is_standby, stage: open.stage }
}

fn sort_key(key: SessionStage) -> (SessionId, u32, u32) {
    (key.session, key.epoch, key.stage)
}

/// Bytes of a stage.
pub fn memory(layers: LayerRange, head: bool) -> u64 {
    10 * u64::from(layers.len()) + if head { 5 } else { 0 }
}

impl Node {
    pub fn new(index: usize, spec: NodeSpec, tasks: &TaskSet) -> Self {
        let id = NodeId([index as u8; 32]);
        Self {
            id,
            spec,
            incarnation: 0,
            alive: true,
            powered_off: false,
            frozen: false,
            waiting: Vec::new(),
            known: BTreeSet::new(),
            router: SessionRouter::new(id, None, tasks.clone()),
            loading: Vec::new(),
            serving: BTreeMap::new(),
            retained: Vec::new(),
            busy_until: 0,
            steps: 0,
            failed: false,
            tickets: 0,
        }
    }

    /// The same node after a restart of its process.
    pub fn restarted(&self, index: usize, tasks: &TaskSet) -> Self {
        let spec = NodeSpec { fails_at: None, ..self.spec.clone() };
        Self { incarnation: self.incarnation + 1, ..Self::new(index, spec, tasks) }
    }

    /// Whether it holds what a stage needs.
    pub fn holds(&self, layers: LayerRange, head: bool) -> bool {
        self.spec.layers.iter().any(|held| held.covers(layers)) && (self.spec.head || !head)
    }

    /// Sessions that hold KV.
    pub fn sessions(&self) -> Vec<SessionId> {
        let loading = self.loading.iter().map(|one| one.open.session);
        self.serving.keys().map(|key| key.0).chain(loading).collect()
    }

    /// Stages in use, once per session.
    pub fn in_use(&self) -> Vec<Kind> {
        let loading = self.loading.iter().map(|one| (one.open.layers, one.open.head));
        let serving = self.serving.values().map(|one| (one.stage_session.open().layers, one.stage_session.open().head));
        loading.chain(serving).collect()
    }

    /// Free bytes for a new stage.
    pub fn free_memory(&self) -> u64 {
        let used: BTreeSet<(u32, u32, bool)> =
            self.in_use().iter().map(|(layers, head)| (layers.start, layers.end, *head)).collect();
        let used: u64 = used.into_iter().map(|(start, end, head)| memory(LayerRange::new(start, end), head)).sum();
        self.spec.memory.saturating_sub(used)
    }

    /// Keeps the KV of an ended session: of the prefix that its coordinator named, or for its next route.
    fn leave(&mut self, serving: Serving, named: Prefix) {
        let Serving { stage_session, layers, .. } = serving;
        let OpenSession { coordinator, session, epoch, layers: range, head, .. } = stage_session.open().clone();
        let named = named.within(stage_session.held());
        let text = match named.ids.is_empty() {
            true => RetainedText::Broken { session, epoch, held: stage_session.reusable() },
            false => RetainedText::Named(named),
        };
        self.retained.push(RetainedKv { coordinator: coordinator.node, kind: (range, head), text, layers });
        let first = self.retained.len().saturating_sub(MAX_RETAINED);
        self.retained.drain(..first);
    }

    /// Takes the kept KV with the longest common prefix with a prompt, truncated to it.
    fn reuse(&mut self, open: &OpenSession, mutation: Option<Mutation>) -> Option<(Layers, u32)> {
        let kind = (open.layers, open.head);
        let common = |kept: &RetainedKv| match &kept.text {
            _ if kept.coordinator != open.coordinator.node || kept.kind != kind => 0,
            RetainedText::Named(text) if mutation == Some(Mutation::WrongPrefixes) => text.block.min(open.context / 2),
            RetainedText::Named(text) => text.common(&open.prefix),
            RetainedText::Broken { session, epoch, held } if *session == open.session && *epoch < open.epoch => *held,
            RetainedText::Broken { .. } => 0,
        };
        let (at, cached) = self.retained.iter().map(common).enumerate().max_by_key(|(_, common)| *common)?;
        if cached == 0 {
            return None;
        }
        let mut layers = self.retained.swap_remove(at).layers;
        layers.truncate(cached).unwrap();
        Some((layers, cached))
    }
}

impl Swarm {
    pub fn asked(&mut self, from: usize, to: usize, connection: u32, until: Micros, ask: HostRequest) {
        match ask {
            HostRequest::Open { asker, open, reservation } => {
                let (epoch, place) = (open.epoch, place_of(&open));
                if let Err(fault) = self.asked_to_open(from, to, connection, until, asker, *open, reservation) {
                    self.note(|| format!("{to} refuses session {asker} epoch {epoch}: {fault}"));
                    self.reply(to, from, connection, asker, epoch, place, Err(fault));
                }
            }
            HostRequest::Release { session, epoch, keep } => {
                let coordinator = self.nodes[from].id;
                self.end_session(to, session, epoch, coordinator, &keep);
            }
        }
    }

    pub fn end_session(&mut self, node: usize, session: SessionId, epoch: u32, coordinator: NodeId, keep: &Prefix) {
        self.nodes[node].router.end_session(session, epoch, coordinator, keep);
        self.process_inboxes(node);
    }

    #[expect(clippy::too_many_arguments, reason = "a request is all of this")]
    fn asked_to_open(
        &mut self,
        from: usize,
        to: usize,
        connection: u32,
        until: Micros,
        asker: usize,
        open: OpenSession,
        reservation: Option<StageReservation>,
    ) -> Result<(), Fault> {
        let coordinator = open.coordinator.node;
        let reservation = match reservation {
            Some(reservation) if reservation.over().is_cancelled() => {
                return Err(Fault::new(ErrorKind::Cancelled, "the session has ended"));
            }
            Some(reservation) => reservation,
            None => {
                if let Some(earlier) = open.epoch.checked_sub(1) {
                    self.end_session(to, open.session, earlier, coordinator, &Prefix::default());
                }
                let key = SessionStage { session: open.session, epoch: open.epoch, stage: open.stage };
                self.nodes[to].router.reserve(key, coordinator)?
            }
        };
        let node = &self.nodes[to];
        let kind = (open.layers, open.head);
        let used = node.in_use();
        let others = used.iter().filter(|other| **other == kind).count();
        if !node.holds(open.layers, open.head) || self.cuts.violation(open.layers).is_some() {
            return Err(Fault::new(ErrorKind::ShardMissing, "the requested layers are not here"));
        }
        if others == 0 && memory(open.layers, open.head) > node.free_memory() {
            return Err(Fault::new(ErrorKind::OutOfMemory, "the stage does not fit"));
        }
        if others >= node.spec.slots {
            let (until, again) = (until.min(self.now + SLOT_WAIT.as_micros() as Micros), self.now + SLOT_POLL);
            if again > until {
                return Err(Fault::new(ErrorKind::Overloaded, "all sessions are in use"));
            }
            let incarnation = node.incarnation;
            let ask = HostRequest::Open { asker, open: Box::new(open), reservation: Some(reservation) };
            self.at(again, Event::Waited { node: to, incarnation, from, connection, until, ask });
            return Ok(());
        }
        let duration = if others > 0 { 0 } else { self.rng.below(self.nodes[to].spec.load + 1) };
        let node = &mut self.nodes[to];
        node.tickets += 1;
        let (ticket, incarnation) = (node.tickets, node.incarnation);
        node.loading.push(Loading { ticket, from, connection, asker, open, reservation });
        self.at(self.now + duration, Event::Loaded { node: to, incarnation, ticket });
        Ok(())
    }

    pub fn loaded(&mut self, index: usize, ticket: u64) {
        let mutation = self.mutation;
        let node = &mut self.nodes[index];
        let Some(at) = node.loading.iter().position(|one| one.ticket == ticket) else { return };
        let Loading { from, connection, asker, open, reservation, .. } = node.loading.swap_remove(at);
        let (epoch, place, max_rows) = (open.epoch, place_of(&open), node.spec.max_rows);
        let key = SessionStage { session: open.session, epoch, stage: open.stage };
        let (session, coordinator) = (open.session, open.coordinator.node);
        let reply = reservation
            .register(StageAgreement {
                previous: open.previous,
                next: open.next.node,
                width: WIDTH,
                max_rows,
                is_standby: open.is_standby,
            })
            .map(|inbox| {
                let fresh = || (Layers::new(open.layers, open.head, max_rows), 0);
                let (layers, cached) = node.reuse(&open, mutation).unwrap_or_else(fresh);
                let vocab = open.head.then_some(VOCAB);
                let context = open.context;
                let stage_session = StageSession::new(open, WIDTH, cached);
                node.serving.insert(
                    sort_key(key),
                    Serving { stage_session, inbox, layers, computing: None, stuck: false, copies: true },
                );
                Opened { width: WIDTH, vocab, max_rows, cached, context, load_ms: 0 }
            });
        let taken = from == index || self.stands(index, from, connection);
        self.reply(index, from, connection, asker, epoch, place, reply);
        if !taken {
            // As a node does whose reply cannot be delivered.
            self.end_session(index, session, epoch, coordinator, &Prefix::default());
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a reply is all of this")]
    fn reply(
        &mut self,
        from: usize,
        to: usize,
        connection: u32,
        asker: usize,
        epoch: u32,
        place: Place,
        reply: Result<Opened, Fault>,
    ) {
        let when = self.now + self.one_way(from, to);
        self.at(when, Event::Reply { to, from, connection, asker, epoch, place, reply });
    }

    /// Delivers a stage frame; the node's router assigns it.
    pub fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let (session, step) = (message.session(), matches!(message, Message::Step { .. }));
        let id = self.nodes[from].id;
        self.nodes[to].router.deliver(id, message);
        match step {
            true => self.process_inboxes(to),
            false => self.on_answer(session),
        }
    }

    /// The last connection to a peer is gone.
    pub fn disconnected(&mut self, node: usize, peer: usize) {
        let id = self.nodes[peer].id;
        self.nodes[node].known.remove(&peer);
        self.nodes[node].router.disconnected(id);
        self.process_inboxes(node);
        self.lost(node, peer, true);
    }

    /// A link and its connection are gone, and another connection stands.
    pub fn broke(&mut self, node: usize, peer: usize) {
        let id = self.nodes[peer].id;
        self.nodes[node].router.link_broke(id);
        self.process_inboxes(node);
        self.lost(node, peer, false);
    }

    /// Processes the inboxes of all sessions at a node.
    pub fn process_inboxes(&mut self, node: usize) {
        let keys: Vec<_> = self.nodes[node].serving.keys().copied().collect();
        for (session, epoch, stage) in keys {
            self.process_inbox(node, SessionStage { session, epoch, stage });
        }
    }

    fn process_inbox(&mut self, index: usize, key: SessionStage) {
        loop {
            let node = &mut self.nodes[index];
            let (id, now) = (node.id, self.now);
            let Some(serving) = node.serving.get_mut(&sort_key(key)) else { return };
            if serving.inbox.over().is_cancelled() {
                return self.end_stage(index, key);
            }
            if serving.computing.is_some() || serving.stuck {
                return;
            }
            let (from, message) = match serving.inbox.next().now_or_never() {
                None => return,
                Some(None) => return self.end_stage(index, key),
                Some(Some(delivery)) => delivery,
            };
            let fault = match message {
                Message::Failed { fault, .. } if from == id => fault,
                _ if !serving.stage_session.admits(from) => continue,
                Message::Failed { fault, .. } => fault,
                Message::Logits { .. } => continue,
                Message::Step { header, hidden } => match serving.stage_session.job(&header, hidden, 0) {
                    Err(fault) => fault,
                    Ok(job) => {
                        let rows = u64::from(header.rows) * u64::from(serving.stage_session.open().layers.len());
                        let duration = node.spec.pace * rows;
                        node.busy_until = node.busy_until.max(now) + duration;
                        serving.computing = Some((header, job));
                        let (when, incarnation) = (node.busy_until, node.incarnation);
                        return self.at(when, Event::Computed { node: index, incarnation, key, duration });
                    }
                },
            };
            return self.fail_stage(index, key, fault);
        }
    }

    pub fn computed(&mut self, index: usize, key: SessionStage, duration: Micros) {
        let node = &mut self.nodes[index];
        let Some(serving) = node.serving.get_mut(&sort_key(key)) else { return };
        let Some((header, job)) = serving.computing.take() else { return };
        node.steps += 1;
        if node.spec.fails_at == Some(node.steps) {
            node.failed = true;
            self.mark_fault(index);
            return self.fail_stage(index, key, Fault::new(ErrorKind::EngineFailed, "the engine failed"));
        }
        let output = match serving.layers.compute(job) {
            Ok(output) => output,
            Err(error) => return self.fail_stage(index, key, Fault::new(error.kind(), error)),
        };
        let Some(message) = serving.stage_session.done(header, output, duration as u32) else {
            return self.process_inbox(index, key);
        };
        let open = serving.stage_session.open();
        let (next, copy) = (open.next.node, open.copy.as_ref().map(|host| host.node));
        let is_step = matches!(message, Message::Step { .. });
        if let Some(copy) = copy.filter(|_| serving.copies && is_step) {
            let to = self.node(copy);
            if self.send(index, to, message.clone()).is_err() {
                self.nodes[index].serving.entry(sort_key(key)).and_modify(|serving| serving.copies = false);
            }
        }
        let to = self.node(next);
        match self.send(index, to, message) {
            Ok(()) => self.process_inbox(index, key),
            Err(when) => {
                let node = &mut self.nodes[index];
                node.serving.entry(sort_key(key)).and_modify(|serving| serving.stuck = true);
                let incarnation = node.incarnation;
                self.at(when, Event::Unsent { node: index, incarnation, key, to });
            }
        }
    }

    pub fn unsent(&mut self, index: usize, key: SessionStage, to: usize) {
        if self.nodes[index].serving.contains_key(&sort_key(key)) {
            self.fail_stage(index, key, unreachable(to));
        }
    }

    fn fail_stage(&mut self, index: usize, key: SessionStage, fault: Fault) {
        let Some(serving) = self.nodes[index].serving.remove(&sort_key(key)) else { return };
        self.note(|| format!("{index} fails stage {} of epoch {}: {fault}", key.stage, key.epoch));
        let (coordinator, lost) = (serving.stage_session.open().coordinator.node, is_loss(fault.kind()));
        let message = serving.stage_session.failed(fault);
        if lost {
            self.nodes[index].leave(serving, Prefix::default());
        }
        let to = self.node(coordinator);
        let _ = self.send(index, to, message);
    }

    /// Ends the stage of a session; the KV of the named prefix is kept.
    fn end_stage(&mut self, index: usize, key: SessionStage) {
        let node = &mut self.nodes[index];
        let Some(serving) = node.serving.remove(&sort_key(key)) else { return };
        let (named, dropped) = serving.inbox.end();
        let notice =
            dropped.map(|fault| (serving.stage_session.open().coordinator.node, serving.stage_session.failed(fault)));
        node.leave(serving, named);
        self.note(|| format!("{index} ends stage {} of epoch {}", key.stage, key.epoch));
        if let Some((coordinator, message)) = notice {
            let to = self.node(coordinator);
            let _ = self.send(index, to, message);
        }
    }
}
