//! The coordinator's side of a session: opens its stages, drives [`Session`], watches for what can go wrong.
//!
//! A host that is lost, fails or falls silent costs time, not the answer: the session gets another route
//! ([`Finder`]) and goes on with it. What was said stays said; in the exact mode the new stages compute what is known of
//! the text in the very steps of the old ones, so that what follows is what would have followed.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::base::{ErrorKind, Event, Fault, ModelId, NodeId, SessionId};
use crate::engine::{Embedder, WANTED_ROWS};
use crate::ledger::price;
use crate::net::NetHandle;
use crate::pipeline::draft::{Horizon, Took};
use crate::pipeline::drafter::Drafting;
use crate::pipeline::job::{Coordinator, Job, Limits, Outcome, StageReport, TokenSink, late};
use crate::pipeline::links::{CoordinatorInbox, Delivery, Outlet};
use crate::pipeline::losses::{Loss, Losses};
use crate::pipeline::message::Message;
use crate::pipeline::plan::Plan;
use crate::pipeline::pool::{Pool, Pooling};
use crate::pipeline::prefix::{EXACT_BLOCK, Namer};
use crate::pipeline::route::{Finder, OpenRoute, Route};
use crate::pipeline::search::{Blame, is_loss};
use crate::pipeline::session::{Action, End, LearntOfGuesses, Session, SessionParams};
use crate::pipeline::speeds::Seen;
use crate::pipeline::stand_by::Copies;
use crate::pipeline::watch::{Absent, Watch};
use crate::pipeline::way::{Heard, Shape, Way, usable};
use crate::wire::codec::Codec;
use crate::wire::control::Host;
use crate::wire::job::{LogitsHeader, StepHeader};
use crate::wire::prefix::Prefix;

/// No answer from the chain for so long means that a stage hangs; a dead one is noticed by its connection long before.
const STALL_DEADLINE: Duration = Duration::from_secs(120);
/// Time that a session waits for a route where a host is lost and there is no other: a connection may come back.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a route around silent hosts is looked for where there is none.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// A session whose stages are open, and which has computed nothing.
pub struct Begun {
    finder: Finder,
    open: OpenRoute,
    inbox: CoordinatorInbox,
    losses: Losses,
    began: Instant,
    opened_in: Duration,
}

impl Begun {
    /// The route that was opened.
    pub fn plan(&self) -> &Plan {
        &self.open.route.plan
    }
}

/// Opens a session's stages on this route or, where a host of it fails, on another. Where the error comes nothing stays
/// open, and the session's id is used up. Not cancel-safe: use `job.cancel`. What it gives is to be [`run`].
pub async fn open(coordinator: &Coordinator, job: &Job, route: Route) -> Result<Begun, Result<End, Fault>> {
    let began = Instant::now();
    let inbox = coordinator.links.register_coordinator(job.session);
    let mut finder = Finder::new(coordinator.clone(), job.routes.clone(), job.terms());
    let prefix = coordinator.namer.of(job.codec).name(job.model, job.exact, &job.prompt);
    match job.limits().bound(finder.open(route, &prefix, PATIENCE)).await {
        Ok((open, losses)) => Ok(Begun { finder, open, inbox, losses, began, opened_in: began.elapsed() }),
        Err(end) => {
            finder.abandon();
            Err(end)
        }
    }
}

/// Runs a session to its end and releases its stages, whatever happens. Not cancel-safe: use `job.cancel`.
pub async fn run<S: TokenSink>(coordinator: &Coordinator, job: Job, begun: Begun, sink: &mut S) -> Outcome {
    let Begun { finder, open, inbox, losses, began, opened_in } = begun;
    let mut drive = Drive::new(coordinator, job, finder, open, began);
    let end = drive.run(inbox, losses, sink).await;
    let keep = if end.is_ok() { drive.keep() } else { Prefix::default() };
    drive.finder.end(drive.way.epoch, &drive.way.nodes, &keep);
    if end.is_ok() {
        // Computed, most likely, and needed no more. Of a route that failed, what was not answered is not paid.
        drive.sent.iter().for_each(|sent| drive.owe(sent));
        let worked = drive.way.nodes.iter().filter(|host| drive.way.has_part(**host));
        worked.for_each(|host| coordinator.failures.worked(*host));
    }
    coordinator.tabs.end();
    drive.learn();
    drive.outcome(end, opened_in)
}

/// A session under way.
struct Drive<'a> {
    coordinator: &'a Coordinator,
    job: Facts,
    session: Session,
    finder: Finder,
    way: Way,
    /// The stages of the present route, behind those of earlier ones.
    stages: Vec<StageReport>,
    watch: Watch,
    /// What goes to the first stage.
    outlet: Outlet,
    /// What goes to its stand-by.
    copies: Copies,
    /// Tokens of the prompt that the first route did not compute.
    cached: u32,
    began: Instant,
    first_token: Option<Duration>,
    drafting: Drafting,
    /// The steps under way.
    sent: VecDeque<Sent>,
    /// Microseconds of each step of the answer on the present route, from its sending to its answer.
    rounds: Vec<u32>,
    /// When the last answer came.
    answered: Instant,
    /// What a draft model took for guesses that have not been sent yet.
    guessing: Duration,
    /// Tokens that the sink has taken.
    emitted: usize,
}

/// A step under way.
struct Sent {
    /// When it was sent, or what guessing took before that.
    begun: Instant,
    /// What of that a draft model guessed for it.
    guessing: Duration,
    rows: u32,
    /// Rows whose output is wanted.
    wanted: u32,
}

/// What of the job the drive still needs.
struct Facts {
    session: SessionId,
    model: ModelId,
    exact: bool,
    codec: Codec,
    namer: Namer,
    /// The draft model.
    draft: Option<ModelId>,
    /// Whether the states of all tokens are needed, so that nothing may be cached.
    needs_all: bool,
    /// Whether it only reads, and needs no room for an answer.
    reads: bool,
    /// Tokens of the prompt.
    prompt: usize,
    /// Bytes of the longest answer to a step.
    longest: usize,
    embedder: Arc<dyn Embedder>,
    limits: Limits,
}

/// What a session waits for.
enum Happens {
    Cancelled,
    /// A message of the route; nothing where there were more than the session has room for.
    Came(Option<Delivery>),
    /// The sink has room, or fails.
    Room(Result<(), Fault>),
    Lost(Loss),
    /// The deadline is over.
    Late,
    /// Hosts are not there.
    Absent(Broken),
    Stalled,
}

/// Why the present route is of no use any more.
type Broken = Blame;

/// How a session ended.
type Ended = Result<End, Fault>;

impl<'a> Drive<'a> {
    fn new(coordinator: &'a Coordinator, job: Job, finder: Finder, open: OpenRoute, began: Instant) -> Self {
        let (way, stages) = Way::new(open, coordinator.links.local());
        finder.dismiss(way.epoch, &way.unused(), false);
        let (outlet, copies) = (outlet(coordinator, &way), copies(coordinator, &way));
        let guess = job.guess();
        let facts = Facts {
            session: job.session,
            model: job.model,
            exact: job.exact,
            codec: job.codec,
            namer: coordinator.namer.of(job.codec),
            draft: job.drafter.as_ref().map(|drafter| drafter.draft().model),
            needs_all: job.pooling == Some(Pooling::Mean),
            reads: job.pooling.is_some(),
            prompt: job.prompt.len(),
            longest: longest_answer(job.vocab, job.embedder.width()),
            embedder: job.embedder,
            limits: Limits { deadline: job.deadline, cancel: job.cancel },
        };
        coordinator.links.set_hosts(facts.session, way.hosts(facts.longest));
        let cached = facts.usable(&way, way.max_rows, facts.prompt);
        let left = job.prompt.len() - cached as usize;
        let chunk = match facts.exact {
            true => way.max_rows,
            false => coordinator.overlap.chunk(job.model, left, way.stages.len(), way.max_rows),
        };
        let params = SessionParams {
            chunk,
            max_tokens: job.max_tokens.min(way.context.saturating_sub(job.prompt.len() as u32)),
            prompt: job.prompt,
            max_rows: way.max_rows,
            vocab: job.vocab,
            cached,
            learnt: LearntOfGuesses {
                repeats: coordinator.lessons.of(job.model),
                draft: facts.draft.map(|draft| coordinator.lessons.of_draft(job.model, draft)).unwrap_or_default(),
            },
            guess,
        };
        let session = Session::new(params, job.sampler, job.is_end);
        let session = match (job.guide, job.pooling) {
            (_, Some(pooling)) => session.reading(Pool::new(pooling, facts.embedder.width())),
            (Some(guide), None) => session.guided(guide),
            (None, None) => session,
        };
        Self {
            coordinator,
            job: facts,
            session,
            finder,
            way,
            stages,
            watch: Watch::new(Instant::now()),
            outlet,
            copies,
            cached,
            began,
            first_token: None,
            drafting: Drafting::new(job.drafter, coordinator.tasks.clone()),
            sent: VecDeque::new(),
            rounds: Vec::new(),
            answered: Instant::now(),
            guessing: Duration::ZERO,
            emitted: 0,
        }
    }

    fn outcome(self, end: Result<End, Fault>, open: Duration) -> Outcome {
        let predicted_us = self.way.predicted_us;
        let Drive { session, stages, cached, first_token, began, .. } = self;
        let (tokens, guesses, embedding) = (session.generated().to_vec(), session.guesses(), session.embedding());
        let total = began.elapsed();
        Outcome { end, tokens, cached, guesses, embedding, stages, open, predicted_us, first_token, total }
    }

    /// The text whose KV hosts may keep. In the exact mode that is what was computed in whole chunks of the plain run's
    /// size.
    fn keep(&self) -> Prefix {
        let text = match self.job.exact {
            false => self.session.computed(),
            true if self.way.max_rows == EXACT_BLOCK => self.session.prompt_sent().to_vec(),
            true => Vec::new(),
        };
        self.job.namer.name(self.job.model, self.job.exact, &text)
    }

    /// Remembers what it has learnt of guesses, and what the stage whose rows took longest took, for the chunks of later
    /// prompts.
    fn learn(&self) {
        if let Some(learnt) = self.session.learnt() {
            let (lessons, model) = (&self.coordinator.lessons, self.job.model);
            lessons.learn(model, learnt.repeats);
            if let Some(draft) = self.job.draft {
                lessons.learn_draft(model, draft, learnt.draft);
            }
        }
        self.learn_speeds();
        if self.way.epoch > 0 {
            // What is computed again is not what a prompt of this length takes.
            return;
        }
        let Some(slowest) = self.stages.iter().max_by_key(|report| report.prefill_us) else { return };
        let rows = (self.session.prompt_sent().len() as u32).saturating_sub(self.cached);
        if !slowest.decode_us.is_empty() {
            let token_us = median(&slowest.decode_us);
            self.coordinator.overlap.learn(self.job.model, slowest.prefill_us, rows, token_us);
        }
    }

    /// Remembers how fast the hosts of the present route were. A step with guesses says nothing of a token.
    fn learn_speeds(&self) {
        let token_us = median(&self.rounds);
        if token_us == 0 || self.session.guesses().0 > 0 {
            return;
        }
        let peers = self.coordinator.net.as_ref().map(NetHandle::peers);
        let rtt = |node| peers.as_ref().and_then(|peers| peers.lookup(node)).and_then(|peer| peer.rtt);
        let seen = |(report, weight): (&StageReport, &u64)| Seen {
            node: report.stage.node,
            weight: *weight,
            told_us: median(&report.decode_us),
            rtt_us: rtt(report.stage.node).map_or(0, |rtt| rtt.as_micros().try_into().unwrap_or(u32::MAX)),
        };
        let present = self.stages.len() - self.way.stages.len();
        let stages: Vec<Seen> = self.stages[present..].iter().zip(&self.way.weights).map(seen).collect();
        self.coordinator.speeds.learn(self.job.model, &stages, token_us);
    }

    async fn run<S: TokenSink>(
        &mut self,
        mut inbox: CoordinatorInbox,
        mut losses: Losses,
        sink: &mut S,
    ) -> Result<End, Fault> {
        let mut actions = self.session.start();
        loop {
            let mut next = self.act(&mut actions, &mut losses, sink).await;
            if let Ok(None) = next {
                next = self.wait(&mut inbox, &mut losses, sink).await.map(|more| {
                    actions = more;
                    None
                });
            }
            match next {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(broken) => match self.recover(broken).await {
                    Ok((again, lost)) => {
                        (actions, losses) = (again, lost);
                        // The queue may have overflowed, and has nothing that is of use any more.
                        drop(inbox);
                        inbox = self.coordinator.links.register_coordinator(self.job.session);
                        self.coordinator.links.set_hosts(self.job.session, self.way.hosts(self.job.longest));
                    }
                    Err(end) => return end,
                },
            }
        }
    }

    /// Waits for the next thing that happens to the session, and does what follows.
    async fn wait<S: TokenSink>(
        &mut self,
        inbox: &mut CoordinatorInbox,
        losses: &mut Losses,
        sink: &S,
    ) -> Result<Vec<Action>, Broken> {
        match self.happens(inbox, losses, sink).await {
            Happens::Cancelled => Ok(self.session.stop(End::Cancelled)),
            Happens::Came(delivery) => self.on_delivery(delivery),
            Happens::Room(room) => {
                // What waited here for the reader took no host that long.
                self.sent.iter_mut().for_each(|sent| sent.begun = Instant::now());
                Ok(room.err().map(|fault| self.session.on_fault(fault)).unwrap_or_default())
            }
            Happens::Lost(loss) => self.on_loss(loss).map_or(Ok(Vec::new()), Err),
            Happens::Late => Ok(self.session.on_fault(late())),
            Happens::Absent(absent) => Err(absent),
            Happens::Stalled => {
                let text = format!("the stages gave no answer for {STALL_DEADLINE:?}");
                // Which of them it was nobody says; the next answer does without all of them where it can.
                self.remember_failed(&self.way.nodes);
                Ok(self.session.on_fault(Fault::new(ErrorKind::Timeout, text)))
            }
        }
    }

    /// The next thing that happens to the session. Where the sink has no room answers are left where they are, so that no step
    /// follows; all else is heard. What does not concern the route is passed over, and the hosts are watched all the while:
    /// others may come and go, or talk, as often as they like.
    async fn happens<S: TokenSink>(&self, inbox: &mut CoordinatorInbox, losses: &mut Losses, sink: &S) -> Happens {
        let (limits, reads) = (&self.job.limits, sink.has_room());
        let (mut absent, mut stalled) = (pin!(self.absent()), pin!(sleep(STALL_DEADLINE)));
        loop {
            tokio::select! {
                biased;
                () = limits.cancel.cancelled() => return Happens::Cancelled,
                delivery = inbox.next(), if reads => if self.is_concerned(delivery.as_ref()) {
                    return Happens::Came(delivery);
                },
                room = sink.room(), if !reads => return Happens::Room(room),
                loss = losses.next() => if self.way.is_concerned(loss) {
                    return Happens::Lost(loss);
                },
                () = limits.overdue() => return Happens::Late,
                blame = &mut absent => return Happens::Absent(blame),
                () = &mut stalled, if reads => return Happens::Stalled,
            }
        }
    }

    /// Whether what came, or that no more comes, is of the route.
    fn is_concerned(&self, delivery: Option<&Delivery>) -> bool {
        let Some((from, message)) = delivery else { return true };
        let heard = self.way.hears(*from, message);
        let concerned = !matches!(heard, Heard::Late | Heard::Foreign);
        if !concerned {
            tracing::debug!(session = %self.job.session, peer = %from, ?heard, "a message was dropped");
        }
        concerned
    }

    /// Waits until an answer is late and hosts have their stages no more, or do not even say that they are there, if there is
    /// a route without them.
    async fn absent(&self) -> Broken {
        let stages = self.way.places(self.job.session);
        let Some(net) = self.coordinator.net.as_ref().filter(|_| !stages.is_empty()) else {
            return std::future::pending().await;
        };
        loop {
            let blame = match self.watch.absent(net, &stages).await {
                Absent::Gone(nodes) => Blame::gone(nodes),
                Absent::Silent(nodes) if self.can_avoid(&nodes).await => Blame::silent(nodes),
                // They may come to themselves, or another may come.
                Absent::Silent(_) => None,
            };
            match blame {
                Some(blame) => return blame,
                None => sleep(LOOK_AGAIN).await,
            }
        }
    }

    fn on_loss(&mut self, loss: Loss) -> Option<Broken> {
        let broken = !self.sent.is_empty() && self.outlet.has_ended();
        self.way.lose(loss, broken)
    }

    /// Remembers, for the sessions to come, a host that has ended its stage for want of room.
    fn remember_full(&self, host: NodeId, fault: &Fault) {
        if fault.kind() == ErrorKind::Overloaded && host != self.coordinator.links.local() {
            self.coordinator.failures.full(host);
        }
    }

    /// Remembers, for the sessions to come, hosts that failed or lied.
    fn remember_failed(&self, hosts: &[NodeId]) {
        let local = self.coordinator.links.local();
        hosts.iter().filter(|host| **host != local).for_each(|host| self.coordinator.failures.failed(*host));
    }

    async fn can_avoid(&self, nodes: &[NodeId]) -> bool {
        self.way.takeover(nodes).is_some() || self.finder.can_avoid(nodes).await
    }

    /// Another route: what is to be sent there, and what it loses from now on.
    async fn recover(&mut self, broken: Broken) -> Result<(Vec<Action>, Losses), Result<End, Fault>> {
        if broken.nodes.is_empty() {
            return Err(Err(broken.fault));
        }
        tracing::warn!(session = %self.job.session, fault = %broken.fault, "a route broke; looking for another");
        if !broken.may_return {
            self.remember_failed(&broken.nodes);
        }
        self.finder.release(self.way.epoch, &self.way.nodes, &Prefix::default());
        self.sent.clear();
        self.rounds.clear();
        self.guessing = Duration::ZERO;
        let (text, cause) = (self.session.text(), broken.fault.clone());
        let takeover = self.way.takeover(&broken.nodes);
        // What an exact answer has generated was computed in other steps than any prompt is.
        let named = if self.job.exact { &text[..self.job.prompt] } else { &text };
        let prefix = self.job.namer.name(self.job.model, self.job.exact, named);
        self.finder.needs(text.len() as u32 + u32::from(!self.job.reads));
        let open = self.job.limits.bound(self.finder.reopen(broken, takeover, &prefix, PATIENCE)).await;
        let (open, losses) = open.inspect_err(|_| self.finder.abandon())?;
        let (mut way, stages) = Way::new(open, self.coordinator.links.local());
        let chunk = way.follow(&self.way, self.job.exact);
        self.way = way;
        self.finder.dismiss(self.way.epoch, &self.way.unused(), true);
        self.outlet = outlet(self.coordinator, &self.way);
        self.copies = copies(self.coordinator, &self.way);
        self.stages.extend(stages);
        self.watch = Watch::new(Instant::now());
        self.answered = Instant::now();
        let Some(chunk) = chunk else { return Err(Err(cause)) };
        let (session, epoch) = (self.job.session, self.way.epoch);
        let cached = self.job.usable(&self.way, chunk, text.len());
        self.session.limit(self.way.context.saturating_sub(self.job.prompt as u32));
        self.coordinator.events.send(Event::GenerationRerouted { session, epoch, kept: cached, cause });
        Ok((self.session.resume(cached, self.way.max_rows, chunk, self.job.exact), losses))
    }

    fn on_delivery(&mut self, delivery: Option<Delivery>) -> Result<Vec<Action>, Broken> {
        let Some((from, message)) = delivery else {
            let text = "the last stage sent more than was asked";
            return Ok(self.session.on_fault(Fault::new(ErrorKind::BadFrame, text)));
        };
        match (self.way.hears(from, &message), message) {
            (Heard::Answer, Message::Logits { header, rows }) => {
                let decoded = self.record(&header);
                let sent = self.sent.pop_front();
                let took = self.took(&header, sent.as_ref());
                if decoded {
                    self.rounds.push(took.round);
                }
                let actions = self.session.on_logits(header.step, &rows, took);
                // An answer that is none is not paid.
                if !actions.iter().any(|action| matches!(action, Action::Fail(_))) {
                    sent.iter().for_each(|sent| self.owe(sent));
                }
                return Ok(actions);
            }
            (Heard::Failed, Message::Failed { stage, fault, .. }) => {
                self.remember_full(from, &fault);
                return Err(self.way.failed(from, stage, fault));
            }
            (Heard::Unfollowed, Message::Failed { stage, fault, .. }) => {
                tracing::debug!(peer = %from, %fault, "a stand-by follows no more");
                self.remember_full(from, &fault);
                self.way.unfollow(from, Some(stage));
                if stage == 0 {
                    self.copies = copies(self.coordinator, &self.way);
                }
            }
            // Passed over before.
            _ => {}
        }
        Ok(Vec::new())
    }

    /// Takes the per-stage timings of an answer; called before the session sees it.
    /// Says whether the step was one of the answer.
    fn record(&mut self, header: &LogitsHeader) -> bool {
        let prefill = self.session.in_prefill();
        let earlier = self.stages.len() - self.way.stages.len();
        for (report, us) in self.stages.iter_mut().skip(earlier).zip(&header.compute_us) {
            match prefill {
                true => report.prefill_us += u64::from(*us),
                false => report.decode_us.push(*us),
            }
        }
        !prefill
    }

    /// Every peer of the route is owed for a step, and who follows for what it computed.
    fn owe(&self, sent: &Sent) {
        for (peer, weight) in &self.way.paid {
            let milli = price::milli(*weight, sent.rows, sent.wanted);
            self.coordinator.tabs.spend(*peer, self.job.session, sent.rows, milli);
        }
        for (peer, weight) in self.way.following() {
            self.coordinator.tabs.spend(peer, self.job.session, sent.rows, price::milli(weight, sent.rows, 0));
        }
    }

    /// What an answer took; steps are answered in their order.
    fn took(&mut self, header: &LogitsHeader, sent: Option<&Sent>) -> Took {
        let (now, micros) = (Instant::now(), |time: Duration| time.as_micros().try_into().unwrap_or(u32::MAX));
        let round = sent.map_or(Duration::ZERO, |sent| now - sent.begun);
        self.watch.heard(round, now);
        let round = micros(round);
        let gap = micros(now - std::mem::replace(&mut self.answered, now));
        let busy = header.compute_us.iter().copied().max().unwrap_or(round);
        let computed = header.compute_us.iter().fold(0, |all: u32, us| all.saturating_add(*us));
        Took { round, gap, busy, computed, guessing: sent.map_or(0, |sent| micros(sent.guessing)) }
    }

    /// Carries out what the session wants: steps first, so that the stages work while the token is looked at.
    async fn act<S: TokenSink>(
        &mut self,
        actions: &mut Vec<Action>,
        losses: &mut Losses,
        sink: &mut S,
    ) -> Result<Option<Ended>, Broken> {
        let mut stopped = Ok(None);
        while !actions.is_empty() {
            let batch = std::mem::take(actions);
            let (steps, rest): (Vec<Action>, Vec<Action>) =
                batch.into_iter().partition(|action| matches!(action, Action::Step { .. }));
            let guess = rest.iter().find_map(|action| match action {
                Action::Guess(horizon) => Some(*horizon),
                _ => None,
            });
            for step in steps {
                stopped = self.send(step, losses).await;
                if !matches!(stopped, Ok(None)) {
                    break;
                }
            }
            // The link, and sessions whose tokens came with this one, go first: stages wait for them, nobody does for text.
            tokio::task::yield_now().await;
            for action in rest {
                match action {
                    Action::Emit(sampled) => {
                        self.first_token.get_or_insert_with(|| self.began.elapsed());
                        self.emitted += 1;
                        if sink.token(sampled).await.is_break() {
                            // Tokens that were chosen behind it are not part of the answer.
                            self.session.stop_after(self.emitted);
                            return Ok(Some(Ok(End::Stop)));
                        }
                    }
                    Action::End(end) => return Ok(Some(Ok(end))),
                    // An answer that is none; what came before it is said.
                    Action::Fail(fault) if fault.kind() == ErrorKind::BadFrame => return Err(self.way.wrong(fault)),
                    Action::Fail(fault) => return Ok(Some(Err(fault))),
                    Action::Foresee { text, most } => self.drafting.foresee(text, most),
                    Action::Step { .. } | Action::Guess(_) => {}
                }
            }
            if !matches!(stopped, Ok(None)) {
                return stopped;
            }
            if let Some(horizon) = guess {
                actions.extend(self.guess(horizon).await);
            }
        }
        Ok(None)
    }

    /// Asks the draft model. A draft that fails ends the guessing, not the answer.
    async fn guess(&mut self, horizon: Horizon) -> Vec<Action> {
        let (text, limits) = (self.session.text(), self.job.limits.clone());
        let asked = tokio::select! {
            biased;
            () = limits.cancel.cancelled() => return self.session.stop(End::Cancelled),
            () = limits.overdue() => return self.session.on_fault(late()),
            asked = self.drafting.ask(&text, horizon) => asked,
        };
        let (guesses, guessing) = asked.unzip();
        self.guessing = guessing.unwrap_or_default();
        self.session.on_guesses(guesses)
    }

    /// Sends a step to the first stage, waiting for room on the way there. Meanwhile it hears what ends the session or its
    /// route: others may be slow to read what is before it.
    async fn send(&mut self, action: Action, losses: &mut Losses) -> Result<Option<Ended>, Broken> {
        let Action::Step { step, pos, tokens, want_from, want, certain } = action else { return Ok(None) };
        let embedder = &self.job.embedder;
        let mut hidden = Vec::new();
        embedder.embed(&tokens, &mut hidden).map_err(|error| Blame {
            nodes: Vec::new(),
            may_return: false,
            fault: Fault::new(error.kind(), error),
        })?;
        let header = StepHeader {
            session: self.job.session,
            epoch: self.way.epoch,
            stage: 0,
            step,
            pos,
            rows: tokens.len() as u32,
            width: embedder.width(),
            codec: self.job.codec,
            want_from,
            want,
            certain,
            compute_us: Vec::with_capacity(self.way.stages.len()),
        };
        let message = Message::Step { header, hidden };
        let (guessing, rows, now) = (std::mem::take(&mut self.guessing), tokens.len() as u32, Instant::now());
        let begun = now.checked_sub(guessing).unwrap_or(now);
        self.sent.push_back(Sent { begun, guessing, rows, wanted: rows.saturating_sub(want_from) });
        self.copies.send(&message);
        let Self { outlet, way, job, .. } = self;
        let sent = job.limits.bound(async { Ok(outlet.send(message).await) });
        match losses.bound(way, sent).await? {
            Ok(Ok(())) => Ok(None),
            Ok(Err(fault)) => {
                let nodes = self.way.host(0).into_iter().collect();
                Err(Blame { nodes, may_return: is_loss(fault.kind()), fault })
            }
            Err(end) => {
                // It was not sent, and nobody is owed for it.
                self.sent.pop_back();
                Ok(Some(end))
            }
        }
    }
}

impl Facts {
    /// How much of the KV that every stage has is of use, where chunks have so many rows.
    fn usable(&self, way: &Way, chunk: u32, text: usize) -> u32 {
        let shape = self.exact.then_some(Shape { prompt: self.prompt as u32, chunk });
        // Of a mean all states are needed, and they are not kept.
        if self.needs_all { 0 } else { usable(way.cached, text as u32, shape) }
    }
}

/// What sends steps to the first stage of a way.
fn outlet(coordinator: &Coordinator, way: &Way) -> Outlet {
    let node = way.host(0).unwrap_or(coordinator.links.local());
    coordinator.links.outlet(Host { node, addresses: way.first_addresses().to_vec() })
}

/// What sends copies to who follows the first stage of a way.
fn copies(coordinator: &Coordinator, way: &Way) -> Copies {
    let host = way.stand_bys.first().cloned().flatten();
    Copies::to(host.map(|host| coordinator.links.outlet(host)), &coordinator.tasks)
}

/// Bytes of the longest answer: so many rows of logits, or of states, in full.
fn longest_answer(vocab: u32, width: u32) -> usize {
    (WANTED_ROWS as usize).saturating_mul(vocab.max(width) as usize).saturating_mul(4)
}

/// The middle of some times; 0 of none.
fn median(micros: &[u32]) -> u32 {
    let mut sorted = micros.to_vec();
    sorted.sort_unstable();
    sorted.get(sorted.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests;
