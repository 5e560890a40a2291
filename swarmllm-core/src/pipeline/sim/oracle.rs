//! The oracle: requests, their expected answers, and the invariants of a simulated swarm.

use std::collections::BTreeMap;

use super::host::memory;
use super::model::{END, Layers, VOCAB, embed, liked};
use super::rng::Rng;
use super::swarm::{Micros, SECOND, Swarm};
use crate::base::{LayerRange, ModelId, NodeId};
use crate::engine::sample::{LogitRow, Sampler, SamplingParams};
use crate::engine::{Reduce, Row, StepJob, StepOutput};
use crate::pipeline::plan::{Candidate, Plan};
use crate::pipeline::route::search::MAX_ATTEMPTS;
use crate::pipeline::session::speculation::{DraftContinuation, DraftModel, DraftToken, StepTiming};
use crate::pipeline::session::{Action, Session, SessionEnd, SessionParams, Speculation, SpeculationStats};
use crate::wire::job::RowOutput;

/// Time within which each request must end, after the last fault and its own start.
const HANGS: Micros = 60 * SECOND;
/// A node without faults for this long is known to the others.
const SETTLED: Micros = 5 * SECOND;

/// One generation requested of a swarm.
#[derive(Clone)]
pub struct SimRequest {
    pub prompt: Vec<u32>,
    pub max_tokens: u32,
    pub exact: bool,
    pub standby: bool,
    speculation: Speculation,
    sampling: SamplingParams,
    /// The expected answer, for the draft model.
    plain: Vec<u32>,
}

impl SimRequest {
    pub fn of(rng: &mut Rng, layers: u32) -> Self {
        let prompt = (0..rng.between(1, 50) as u32)
            .map(|pos| if rng.one_in(8) { rng.below(VOCAB.into()) as u32 } else { liked(pos) })
            .collect();
        let exact = rng.one_in(2);
        let speculation = match rng.below(3) {
            _ if exact => Speculation::Off,
            0 => Speculation::Off,
            1 => Speculation::NGrams,
            _ => Speculation::Draft(DraftModel { model: ModelId([9; 32]), weight: 100 }),
        };
        let sampling = match rng.one_in(3) {
            true => SamplingParams { seed: Some(rng.draw()), repeat_penalty: 1.1, ..SamplingParams::default() },
            false => SamplingParams::greedy(),
        };
        let max_tokens = rng.between(1, 60) as u32;
        let standby = rng.one_in(2);
        let request = Self { prompt, max_tokens, exact, standby, speculation, sampling, plain: Vec::new() };
        let plain = match speculation {
            Speculation::Draft(_) => request.answer(layers, 1).into_iter().map(|(token, _)| token).collect(),
            _ => Vec::new(),
        };
        Self { plain, ..request }
    }

    pub fn session(&self, rows: u32, cached: u32) -> Session {
        let params = SessionParams {
            prompt: self.prompt.clone(),
            max_tokens: self.max_tokens,
            max_rows: rows,
            chunk: rows,
            vocab: VOCAB,
            cached,
            speculation: self.speculation,
            stats: SpeculationStats::default(),
        };
        let sampler = Sampler::new(self.sampling.clone(), VOCAB).unwrap();
        Session::new(params, sampler, Box::new(|token| token == END))
    }

    /// A draft model that is right most of the time, and fails now and then.
    pub fn draft(&self, text: &[u32], max_tokens: usize, rng: &mut Rng) -> Option<DraftContinuation> {
        let emitted = text.len().saturating_sub(self.prompt.len());
        let mut right = |token: &u32| if rng.one_in(6) { rng.below(VOCAB.into()) as u32 } else { *token };
        let likely = |token| DraftToken { token, probability: 0.8 };
        let tokens: Vec<_> = self.plain.iter().skip(emitted).take(max_tokens).map(&mut right).map(likely).collect();
        let drafted = DraftContinuation { made: tokens.len(), tokens, read: 0 };
        (!rng.one_in(50)).then_some(drafted)
    }

    /// The answer of the whole model on one machine without faults, with steps of at most this many rows.
    pub fn answer(&self, layers: u32, rows: u32) -> Vec<(u32, f32)> {
        let mut model = Layers::new(LayerRange::new(0, layers), true, rows);
        let mut session = Self { speculation: Speculation::Off, ..self.clone() }.session(rows, 0);
        let mut queue: std::collections::VecDeque<Action> = session.start().into();
        let mut emitted = Vec::new();
        loop {
            match queue.pop_front().unwrap() {
                Action::Step { step, pos, tokens, want_from, want, .. } => {
                    let answer = self.compute(&mut model, pos, &tokens, want_from, want);
                    let timing = StepTiming { round: 1, gap: 1, busy: 1, computed: 1, drafting: 0 };
                    queue.extend(session.on_logits(step, &answer, timing));
                }
                Action::Emit(sampled) => emitted.push((sampled.token, sampled.logprob)),
                Action::End(_) => return emitted,
                other => panic!("{other:?}"),
            }
        }
    }

    fn compute(&self, model: &mut Layers, pos: u32, tokens: &[u32], want_from: u32, want: RowOutput) -> Vec<LogitRow> {
        let row = |index: u32| Row { slot: 0, pos: pos + index, want: index >= want_from };
        let reduce = match want {
            RowOutput::Top { k } => Reduce::Top(k),
            RowOutput::Full | RowOutput::State => Reduce::Full,
        };
        let rows = (0..tokens.len() as u32).map(row).collect();
        let job = StepJob { hidden: embed(tokens), rows, reduce, exact: self.exact, rewind: false };
        match model.compute(job).unwrap() {
            StepOutput::Logits(rows) => rows,
            StepOutput::Hidden(_) => Vec::new(),
        }
    }
}

impl Swarm {
    /// Checks that a plan is a chain of all layers in legal stages, on nodes that hold them and have room.
    pub fn check_plan(&mut self, plan: &Plan, candidates: &[Candidate]) {
        let mut next = 0;
        let mut taken: BTreeMap<NodeId, u64> = BTreeMap::new();
        for (index, stage) in plan.stages.iter().enumerate() {
            let Some(host) = candidates.iter().find(|candidate| candidate.node == stage.node) else {
                return self.wrong(|| format!("a plan has a node outside the candidates: {plan:?}"));
            };
            let last = index + 1 == plan.stages.len();
            let holds = host.layers.iter().any(|held| held.covers(stage.layers)) && (host.head || !stage.head);
            if stage.layers.start != next || stage.head != last || !holds || self.cuts.violation(stage.layers).is_some()
            {
                return self.wrong(|| format!("a plan has an impossible stage {index}: {plan:?}"));
            }
            let is_loaded = host.loaded.contains(&(stage.layers, stage.head));
            *taken.entry(stage.node).or_default() += if is_loaded { 0 } else { memory(stage.layers, stage.head) };
            if taken[&stage.node] > host.free_memory {
                return self.wrong(|| format!("a plan asks more memory of {:?} than it has: {plan:?}", stage.node));
            }
            next = stage.layers.end;
        }
        if next != self.layers {
            self.wrong(|| format!("a plan ends before the model does: {plan:?}"));
        }
    }

    /// Checks that the answer is the expected one, or a prefix of it where no other route existed.
    pub fn check_end(&mut self, session: usize) {
        let one = &self.sessions[session];
        let Some((_, end)) = &one.ended else { return };
        let rows = if one.request.exact { one.chunk } else { 16 };
        let (emitted, plain) = (&one.emitted, one.request.answer(self.layers, rows));
        let whole = matches!(end, Ok(SessionEnd::Stop | SessionEnd::Length));
        let right = if whole { *emitted == plain } else { plain.starts_with(emitted) };
        let kind = end.as_ref().err().map(crate::base::Fault::kind);
        if !right {
            let (emitted, plain) = (format!("{emitted:?}"), format!("{plain:?}"));
            return self.wrong(|| format!("session {session} answered {emitted}\n  in place of {plain}"));
        }
        let reasoned = one.shorter || one.epochs >= MAX_ATTEMPTS;
        if let Some(kind) = kind
            && !reasoned
            && let Ok(plan) = self.plan(&self.usable_nodes(session))
        {
            self.wrong(|| format!("session {session} ended in {kind:?} where there was {plan:?}"));
        }
    }

    /// Nodes that a session could have used all the time: without faults, and without a refusal.
    fn usable_nodes(&self, session: usize) -> Vec<Candidate> {
        let one = &self.sessions[session];
        let since = one.began.saturating_sub(SETTLED);
        let among = |all: &[(Micros, usize)], node: usize| {
            all.iter().any(|(when, which)| *which == node && *when >= since.max(1))
        };
        // A frozen coordinator has missed all events.
        let faulty = |node: usize| among(&self.faults, node) || among(&self.thawed, one.node);
        let cut = |node: usize| {
            self.connections.iter().any(|(pair, connection)| connection.cut && (pair.0 == node || pair.1 == node))
        };
        let usable_nodes = |node: &usize| {
            let here = *node == one.node || self.nodes[one.node].known.contains(node);
            let well = *node == one.node || (!faulty(*node) && !cut(*node) && self.answers(one.node, *node));
            here && well && !self.nodes[*node].failed && !one.refused.contains(&self.nodes[*node].id)
        };
        self.candidates(one.node, (0..self.nodes.len()).filter(usable_nodes))
    }

    /// Checks after the last event that each request ended in time, and that no KV is left.
    pub fn check_after(&mut self) {
        for session in 0..self.sessions.len() {
            let one = &self.sessions[session];
            let bound = self.last_fault.max(one.began) + HANGS;
            match &one.ended {
                Some((when, _)) if *when <= bound => {}
                None if one.died => {}
                _ => return self.wrong(|| format!("session {session} hangs")),
            }
        }
        for node in 0..self.nodes.len() {
            let left = self.nodes[node].sessions();
            if self.nodes[node].alive && !left.is_empty() {
                return self.wrong(|| format!("node {node} still has KV of {left:?}"));
            }
        }
    }
}
