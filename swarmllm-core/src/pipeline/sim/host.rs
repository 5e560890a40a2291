//! A simulated node as a host: it admits sessions, computes their steps in turn and passes results on. Whose message is
//! whose is decided by the real [`Links`], what a stage admits by the real [`Turns`].

use std::collections::{BTreeMap, BTreeSet};

use futures::FutureExt;

use super::model::{Layers, VOCAB, WIDTH};
use super::swarm::{Event, MILLI, Micros, Sabotage, Swarm, unreachable};
use crate::base::{ErrorKind, Fault, LayerRange, NodeId, SessionId};
use crate::engine::StepJob;
use crate::pipeline::driver::Place;
use crate::pipeline::links::{Agreed, Links, Opening, SessionStage, StageInbox};
use crate::pipeline::message::Message;
use crate::pipeline::search::is_loss;
use crate::pipeline::stages::SLOT_WAIT;
use crate::pipeline::turns::Turns;
use crate::rt::TaskSet;
use crate::wire::control::{OpenSession, Opened};
use crate::wire::job::StepHeader;
use crate::wire::prefix::Prefix;

/// How often a session that waits for a slot looks for one.
const SLOT_POLL: Micros = 100 * MILLI;
/// KV of ended sessions that a node keeps.
const KEPT: usize = 3;

/// A request between nodes.
pub enum Ask {
    /// Opens a stage, for a session; its host may have begun.
    Open { asker: usize, open: Box<OpenSession>, opening: Option<Opening> },
    /// Ends a session.
    Release { session: SessionId, epoch: u32, keep: Prefix },
}

/// What a node is, whatever happens to it.
#[derive(Clone)]
pub struct Facts {
    /// Layers held, merged.
    pub layers: Vec<LayerRange>,
    pub head: bool,
    pub memory: u64,
    /// Sessions that each stage admits.
    pub slots: usize,
    pub max_rows: u32,
    /// Microseconds for a row and a layer.
    pub pace: Micros,
    /// Time that loading a stage takes at most.
    pub load: Micros,
    /// The step that its engine fails at, counted from its start.
    pub fails_at: Option<u64>,
}

/// Which layers a stage computes, and whether the head.
type Kind = (LayerRange, bool);

/// A session that waits for its stage to be loaded.
struct Loading {
    ticket: u64,
    from: usize,
    wire: u32,
    asker: usize,
    open: OpenSession,
    opening: Opening,
}

/// A session at a stage.
struct Serving {
    turns: Turns,
    inbox: StageInbox,
    layers: Layers,
    computing: Option<(StepHeader, StepJob)>,
    /// Whether a result could not be sent, which its task is about to find out.
    stuck: bool,
    /// Whether copies still go to the stand-by of the next stage.
    copies: bool,
}

/// The KV of a session that has ended, or whose route has broken.
struct Kept {
    coordinator: NodeId,
    kind: Kind,
    text: Left,
    layers: Layers,
}

/// What its KV is of.
enum Left {
    Named(Prefix),
    /// So many positions, for a later route than that.
    Broken {
        session: SessionId,
        epoch: u32,
        held: u32,
    },
}

/// A simulated node.
pub struct Node {
    pub id: NodeId,
    pub facts: Facts,
    /// Counts its starts.
    pub life: u32,
    pub alive: bool,
    /// Whether, not being alive, its machine is off too.
    pub dark: bool,
    pub frozen: bool,
    /// What would happen to it if it were not frozen.
    pub waiting: Vec<Event>,
    /// Peers whose announcement it has.
    pub known: BTreeSet<usize>,
    pub links: Links,
    loading: Vec<Loading>,
    serving: BTreeMap<(SessionId, u32, u32), Serving>,
    kept: Vec<Kept>,
    busy_until: Micros,
    steps: u64,
    /// Whether its engine has failed.
    pub failed: bool,
    tickets: u64,
}

fn place_of(open: &OpenSession) -> Place {
    Place { stands_by: open.stands_by, stage: open.stage }
}

fn order(key: SessionStage) -> (SessionId, u32, u32) {
    (key.session, key.epoch, key.stage)
}

/// Bytes that a stage takes.
pub fn memory(layers: LayerRange, head: bool) -> u64 {
    10 * u64::from(layers.len()) + if head { 5 } else { 0 }
}

impl Node {
    pub fn new(index: usize, facts: Facts, tasks: &TaskSet) -> Self {
        let id = NodeId([index as u8; 32]);
        Self {
            id,
            facts,
            life: 0,
            alive: true,
            dark: false,
            frozen: false,
            waiting: Vec::new(),
            known: BTreeSet::new(),
            links: Links::new(id, None, tasks.clone()),
            loading: Vec::new(),
            serving: BTreeMap::new(),
            kept: Vec::new(),
            busy_until: 0,
            steps: 0,
            failed: false,
            tickets: 0,
        }
    }

    /// The same node after a new start of its process.
    pub fn reborn(&self, index: usize, tasks: &TaskSet) -> Self {
        let facts = Facts { fails_at: None, ..self.facts.clone() };
        Self { life: self.life + 1, ..Self::new(index, facts, tasks) }
    }

    /// Whether it holds what a stage needs.
    pub fn holds(&self, layers: LayerRange, head: bool) -> bool {
        self.facts.layers.iter().any(|held| held.covers(layers)) && (self.facts.head || !head)
    }

    /// Sessions whose KV is not free.
    pub fn sessions(&self) -> Vec<SessionId> {
        let loading = self.loading.iter().map(|one| one.open.session);
        self.serving.keys().map(|key| key.0).chain(loading).collect()
    }

    /// Stages in use, once for each session in them.
    pub fn in_use(&self) -> Vec<Kind> {
        let loading = self.loading.iter().map(|one| (one.open.layers, one.open.head));
        let serving = self.serving.values().map(|one| (one.turns.open().layers, one.turns.open().head));
        loading.chain(serving).collect()
    }

    /// Bytes that a new stage may take.
    pub fn free_memory(&self) -> u64 {
        let used: BTreeSet<(u32, u32, bool)> =
            self.in_use().iter().map(|(layers, head)| (layers.start, layers.end, *head)).collect();
        let used: u64 = used.into_iter().map(|(start, end, head)| memory(LayerRange::new(start, end), head)).sum();
        self.facts.memory.saturating_sub(used)
    }

    /// Keeps the KV of a session that is over: of the text that its coordinator named, or for its next route.
    fn leave(&mut self, serving: Serving, named: Prefix) {
        let Serving { turns, layers, .. } = serving;
        let OpenSession { coordinator, session, epoch, layers: range, head, .. } = turns.open().clone();
        let named = named.within(turns.held());
        let text = match named.ids.is_empty() {
            true => Left::Broken { session, epoch, held: turns.lasting() },
            false => Left::Named(named),
        };
        self.kept.push(Kept { coordinator: coordinator.node, kind: (range, head), text, layers });
        let first = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..first);
    }

    /// The KV kept that begins most like a prompt, cut to what they share.
    fn reuse(&mut self, open: &OpenSession, sabotage: Option<Sabotage>) -> Option<(Layers, u32)> {
        let kind = (open.layers, open.head);
        let common = |kept: &Kept| match &kept.text {
            _ if kept.coordinator != open.coordinator.node || kept.kind != kind => 0,
            Left::Named(text) if sabotage == Some(Sabotage::Names) => text.block.min(open.context / 2),
            Left::Named(text) => text.common(&open.prefix),
            Left::Broken { session, epoch, held } if *session == open.session && *epoch < open.epoch => *held,
            Left::Broken { .. } => 0,
        };
        let (at, cached) = self.kept.iter().map(common).enumerate().max_by_key(|(_, common)| *common)?;
        if cached == 0 {
            return None;
        }
        let mut layers = self.kept.swap_remove(at).layers;
        layers.truncate(cached).unwrap();
        Some((layers, cached))
    }
}

impl Swarm {
    pub fn asked(&mut self, from: usize, to: usize, wire: u32, until: Micros, ask: Ask) {
        match ask {
            Ask::Open { asker, open, opening } => {
                let (epoch, place) = (open.epoch, place_of(&open));
                if let Err(fault) = self.asked_to_open(from, to, wire, until, asker, *open, opening) {
                    self.note(|| format!("{to} refuses session {asker} epoch {epoch}: {fault}"));
                    self.reply(to, from, wire, asker, epoch, place, Err(fault));
                }
            }
            Ask::Release { session, epoch, keep } => {
                let coordinator = self.nodes[from].id;
                self.end_session(to, session, epoch, coordinator, &keep);
            }
        }
    }

    pub fn end_session(&mut self, node: usize, session: SessionId, epoch: u32, coordinator: NodeId, keep: &Prefix) {
        self.nodes[node].links.end_session(session, epoch, coordinator, keep);
        self.turns(node);
    }

    #[expect(clippy::too_many_arguments, reason = "a request is all of this")]
    fn asked_to_open(
        &mut self,
        from: usize,
        to: usize,
        wire: u32,
        until: Micros,
        asker: usize,
        open: OpenSession,
        opening: Option<Opening>,
    ) -> Result<(), Fault> {
        let coordinator = open.coordinator.node;
        let opening = match opening {
            Some(opening) if opening.over().is_cancelled() => {
                return Err(Fault::new(ErrorKind::Cancelled, "the session has ended"));
            }
            Some(opening) => opening,
            None => {
                if let Some(earlier) = open.epoch.checked_sub(1) {
                    self.end_session(to, open.session, earlier, coordinator, &Prefix::default());
                }
                let key = SessionStage { session: open.session, epoch: open.epoch, stage: open.stage };
                self.nodes[to].links.begin(key, coordinator)?
            }
        };
        let node = &self.nodes[to];
        let kind = (open.layers, open.head);
        let used = node.in_use();
        let others = used.iter().filter(|other| **other == kind).count();
        if !node.holds(open.layers, open.head) || self.cuts.refuses(open.layers).is_some() {
            return Err(Fault::new(ErrorKind::ShardMissing, "what was asked for is not here"));
        }
        if others == 0 && memory(open.layers, open.head) > node.free_memory() {
            return Err(Fault::new(ErrorKind::OutOfMemory, "the stage does not fit"));
        }
        if others >= node.facts.slots {
            let (until, again) = (until.min(self.now + SLOT_WAIT.as_micros() as Micros), self.now + SLOT_POLL);
            if again > until {
                return Err(Fault::new(ErrorKind::Overloaded, "all sessions are in use"));
            }
            let life = node.life;
            let ask = Ask::Open { asker, open: Box::new(open), opening: Some(opening) };
            self.at(again, Event::Waited { node: to, life, from, wire, until, ask });
            return Ok(());
        }
        let took = if others > 0 { 0 } else { self.chance.below(self.nodes[to].facts.load + 1) };
        let node = &mut self.nodes[to];
        node.tickets += 1;
        let (ticket, life) = (node.tickets, node.life);
        node.loading.push(Loading { ticket, from, wire, asker, open, opening });
        self.at(self.now + took, Event::Loaded { node: to, life, ticket });
        Ok(())
    }

    pub fn loaded(&mut self, index: usize, ticket: u64) {
        let sabotage = self.sabotage;
        let node = &mut self.nodes[index];
        let Some(at) = node.loading.iter().position(|one| one.ticket == ticket) else { return };
        let Loading { from, wire, asker, open, opening, .. } = node.loading.swap_remove(at);
        let (epoch, place, max_rows) = (open.epoch, place_of(&open), node.facts.max_rows);
        let key = SessionStage { session: open.session, epoch, stage: open.stage };
        let (session, coordinator) = (open.session, open.coordinator.node);
        let reply = opening
            .register(Agreed {
                previous: open.previous,
                next: open.next.node,
                width: WIDTH,
                max_rows,
                stands_by: open.stands_by,
            })
            .map(|inbox| {
                let fresh = || (Layers::new(open.layers, open.head, max_rows), 0);
                let (layers, cached) = node.reuse(&open, sabotage).unwrap_or_else(fresh);
                let vocab = open.head.then_some(VOCAB);
                let context = open.context;
                let turns = Turns::new(open, WIDTH, cached);
                node.serving
                    .insert(order(key), Serving { turns, inbox, layers, computing: None, stuck: false, copies: true });
                Opened { width: WIDTH, vocab, max_rows, cached, context, load_ms: 0 }
            });
        let taken = from == index || self.stands(index, from, wire);
        self.reply(index, from, wire, asker, epoch, place, reply);
        if !taken {
            // As a node does whose reply is not taken.
            self.end_session(index, session, epoch, coordinator, &Prefix::default());
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a reply is all of this")]
    fn reply(
        &mut self,
        from: usize,
        to: usize,
        wire: u32,
        asker: usize,
        epoch: u32,
        place: Place,
        reply: Result<Opened, Fault>,
    ) {
        let when = self.now + self.trip(from, to);
        self.at(when, Event::Reply { to, from, wire, asker, epoch, place, reply });
    }

    /// A stage frame has come: the node's links say whose it is.
    pub fn deliver(&mut self, from: usize, to: usize, message: Message) {
        let (session, step) = (message.session(), matches!(message, Message::Step { .. }));
        let id = self.nodes[from].id;
        self.nodes[to].links.deliver(id, message);
        match step {
            true => self.turns(to),
            false => self.hears(session),
        }
    }

    /// A connection is gone, the last to that peer.
    pub fn disconnected(&mut self, node: usize, peer: usize) {
        let id = self.nodes[peer].id;
        self.nodes[node].known.remove(&peer);
        self.nodes[node].links.disconnected(id);
        self.turns(node);
        self.lost(node, peer, true);
    }

    /// A link is gone, and its connection, but not the last.
    pub fn broke(&mut self, node: usize, peer: usize) {
        let id = self.nodes[peer].id;
        self.nodes[node].links.broke(id);
        self.turns(node);
        self.lost(node, peer, false);
    }

    /// Goes on with every session at a node for which something has come.
    pub fn turns(&mut self, node: usize) {
        let keys: Vec<_> = self.nodes[node].serving.keys().copied().collect();
        for (session, epoch, stage) in keys {
            self.turn(node, SessionStage { session, epoch, stage });
        }
    }

    fn turn(&mut self, index: usize, key: SessionStage) {
        loop {
            let node = &mut self.nodes[index];
            let (id, now) = (node.id, self.now);
            let Some(serving) = node.serving.get_mut(&order(key)) else { return };
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
                _ if !serving.turns.admits(from) => continue,
                Message::Failed { fault, .. } => fault,
                Message::Logits { .. } => continue,
                Message::Step { header, hidden } => match serving.turns.job(&header, hidden, 0) {
                    Err(fault) => fault,
                    Ok(job) => {
                        let rows = u64::from(header.rows) * u64::from(serving.turns.open().layers.len());
                        let took = node.facts.pace * rows;
                        node.busy_until = node.busy_until.max(now) + took;
                        serving.computing = Some((header, job));
                        let (when, life) = (node.busy_until, node.life);
                        return self.at(when, Event::Computed { node: index, life, key, took });
                    }
                },
            };
            return self.fail_stage(index, key, fault);
        }
    }

    pub fn computed(&mut self, index: usize, key: SessionStage, took: Micros) {
        let node = &mut self.nodes[index];
        let Some(serving) = node.serving.get_mut(&order(key)) else { return };
        let Some((header, job)) = serving.computing.take() else { return };
        node.steps += 1;
        if node.facts.fails_at == Some(node.steps) {
            node.failed = true;
            self.touch(index);
            return self.fail_stage(index, key, Fault::new(ErrorKind::EngineFailed, "the engine failed"));
        }
        let output = match serving.layers.compute(job) {
            Ok(output) => output,
            Err(error) => return self.fail_stage(index, key, Fault::new(error.kind(), error)),
        };
        let Some(message) = serving.turns.done(header, output, took as u32) else { return self.turn(index, key) };
        let open = serving.turns.open();
        let (next, copy) = (open.next.node, open.copy.as_ref().map(|host| host.node));
        let is_step = matches!(message, Message::Step { .. });
        if let Some(copy) = copy.filter(|_| serving.copies && is_step) {
            let to = self.node(copy);
            if self.send(index, to, message.clone()).is_err() {
                self.nodes[index].serving.entry(order(key)).and_modify(|serving| serving.copies = false);
            }
        }
        let to = self.node(next);
        match self.send(index, to, message) {
            Ok(()) => self.turn(index, key),
            Err(when) => {
                let node = &mut self.nodes[index];
                node.serving.entry(order(key)).and_modify(|serving| serving.stuck = true);
                let life = node.life;
                self.at(when, Event::Unsent { node: index, life, key, to });
            }
        }
    }

    pub fn unsent(&mut self, index: usize, key: SessionStage, to: usize) {
        if self.nodes[index].serving.contains_key(&order(key)) {
            self.fail_stage(index, key, unreachable(to));
        }
    }

    fn fail_stage(&mut self, index: usize, key: SessionStage, fault: Fault) {
        let Some(serving) = self.nodes[index].serving.remove(&order(key)) else { return };
        self.note(|| format!("{index} fails stage {} of epoch {}: {fault}", key.stage, key.epoch));
        let (coordinator, lost) = (serving.turns.open().coordinator.node, is_loss(fault.kind()));
        let message = serving.turns.failed(fault);
        if lost {
            self.nodes[index].leave(serving, Prefix::default());
        }
        let to = self.node(coordinator);
        let _ = self.send(index, to, message);
    }

    /// The session is over: its KV goes, but for what its coordinator named.
    fn end_stage(&mut self, index: usize, key: SessionStage) {
        let node = &mut self.nodes[index];
        let Some(serving) = node.serving.remove(&order(key)) else { return };
        let (named, dropped) = serving.inbox.end();
        let told = dropped.map(|fault| (serving.turns.open().coordinator.node, serving.turns.failed(fault)));
        node.leave(serving, named);
        self.note(|| format!("{index} ends stage {} of epoch {}", key.stage, key.epoch));
        if let Some((coordinator, message)) = told {
            let to = self.node(coordinator);
            let _ = self.send(index, to, message);
        }
    }
}
