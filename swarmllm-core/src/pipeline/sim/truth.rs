//! What a simulated swarm must and must not do.

use std::collections::BTreeMap;

use super::chance::Chance;
use super::host::memory;
use super::model::{END, Layers, VOCAB, embed, liked};
use super::swarm::{Micros, SECOND, Swarm};
use crate::base::{LayerRange, ModelId, NodeId};
use crate::engine::sample::{LogitRow, Sampler, SamplingParams};
use crate::engine::{Reduce, Row, StepJob, StepOutput};
use crate::pipeline::draft::{Draft, DraftToken, Drafted, Took};
use crate::pipeline::plan::{Candidate, Plan};
use crate::pipeline::search::MAX_ATTEMPTS;
use crate::pipeline::session::{Action, End, Guess, LearntOfGuesses, Session, SessionParams};
use crate::wire::job::Want;

/// After the last thing that befalls a swarm, and the question, each answer is there within this time.
const HANGS: Micros = 60 * SECOND;
/// A node to which nothing has happened for so long has been known since.
const SETTLED: Micros = 5 * SECOND;

/// What is asked of a swarm.
#[derive(Clone)]
pub struct Request {
    pub prompt: Vec<u32>,
    pub max_tokens: u32,
    pub exact: bool,
    pub stand_by: bool,
    guess: Guess,
    sampling: SamplingParams,
    /// What the answer will be, for a draft model.
    plain: Vec<u32>,
}

impl Request {
    pub fn of(chance: &mut Chance, layers: u32) -> Self {
        let prompt = (0..chance.between(1, 50) as u32)
            .map(|pos| if chance.one_in(8) { chance.below(VOCAB.into()) as u32 } else { liked(pos) })
            .collect();
        let exact = chance.one_in(2);
        let guess = match chance.below(3) {
            _ if exact => Guess::Never,
            0 => Guess::Never,
            1 => Guess::Repeats,
            _ => Guess::Draft(Draft { model: ModelId([9; 32]), weight: 100 }),
        };
        let sampling = match chance.one_in(3) {
            true => SamplingParams { seed: Some(chance.draw()), repeat_penalty: 1.1, ..SamplingParams::default() },
            false => SamplingParams::greedy(),
        };
        let max_tokens = chance.between(1, 60) as u32;
        let stand_by = chance.one_in(2);
        let request = Self { prompt, max_tokens, exact, stand_by, guess, sampling, plain: Vec::new() };
        let plain = match guess {
            Guess::Draft(_) => request.answer(layers, 1).into_iter().map(|(token, _)| token).collect(),
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
            guess: self.guess,
            learnt: LearntOfGuesses::default(),
        };
        let sampler = Sampler::new(self.sampling.clone(), VOCAB).unwrap();
        Session::new(params, sampler, Box::new(|token| token == END))
    }

    /// A draft model that is right most of the time, and now and then fails.
    pub fn draft(&self, text: &[u32], most: usize, chance: &mut Chance) -> Option<Drafted> {
        let said = text.len().saturating_sub(self.prompt.len());
        let mut right = |token: &u32| if chance.one_in(6) { chance.below(VOCAB.into()) as u32 } else { *token };
        let likely = |token| DraftToken { token, chance: 0.8 };
        let tokens: Vec<_> = self.plain.iter().skip(said).take(most).map(&mut right).map(likely).collect();
        let drafted = Drafted { made: tokens.len(), tokens, read: 0 };
        (!chance.one_in(50)).then_some(drafted)
    }

    /// What the whole model says on one machine where nothing fails, with steps of these rows at most.
    pub fn answer(&self, layers: u32, rows: u32) -> Vec<(u32, f32)> {
        let mut model = Layers::new(LayerRange::new(0, layers), true, rows);
        let mut session = Self { guess: Guess::Never, ..self.clone() }.session(rows, 0);
        let mut queue: std::collections::VecDeque<Action> = session.start().into();
        let mut said = Vec::new();
        loop {
            match queue.pop_front().unwrap() {
                Action::Step { step, pos, tokens, want_from, want, .. } => {
                    let answer = self.compute(&mut model, pos, &tokens, want_from, want);
                    let took = Took { round: 1, gap: 1, busy: 1, computed: 1, guessing: 0 };
                    queue.extend(session.on_logits(step, &answer, took));
                }
                Action::Emit(sampled) => said.push((sampled.token, sampled.logprob)),
                Action::End(_) => return said,
                other => panic!("{other:?}"),
            }
        }
    }

    fn compute(&self, model: &mut Layers, pos: u32, tokens: &[u32], want_from: u32, want: Want) -> Vec<LogitRow> {
        let row = |index: u32| Row { slot: 0, pos: pos + index, want: index >= want_from };
        let reduce = match want {
            Want::Top { k } => Reduce::Top(k),
            Want::Full | Want::State => Reduce::Full,
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
    /// A plan is a chain of all layers, on nodes that hold them and have room, in legal stages.
    pub fn check_plan(&mut self, plan: &Plan, candidates: &[Candidate]) {
        let mut next = 0;
        let mut taken: BTreeMap<NodeId, u64> = BTreeMap::new();
        for (index, stage) in plan.stages.iter().enumerate() {
            let Some(host) = candidates.iter().find(|candidate| candidate.node == stage.node) else {
                return self.wrong(|| format!("a plan has a node that is no candidate: {plan:?}"));
            };
            let last = index + 1 == plan.stages.len();
            let holds = host.layers.iter().any(|held| held.covers(stage.layers)) && (host.head || !stage.head);
            if stage.layers.start != next || stage.head != last || !holds || self.cuts.refuses(stage.layers).is_some() {
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

    /// What was said is what was to be said, or begins so and there was no other way.
    pub fn check_end(&mut self, session: usize) {
        let one = &self.sessions[session];
        let Some((_, end)) = &one.ended else { return };
        let rows = if one.request.exact { one.chunk } else { 16 };
        let (said, plain) = (&one.said, one.request.answer(self.layers, rows));
        let whole = matches!(end, Ok(End::Stop | End::Length));
        let right = if whole { *said == plain } else { plain.starts_with(said) };
        let kind = end.as_ref().err().map(crate::base::Fault::kind);
        if !right {
            let (said, plain) = (format!("{said:?}"), format!("{plain:?}"));
            return self.wrong(|| format!("session {session} said {said}\n  where it was to say {plain}"));
        }
        let reasoned = one.shorter || one.epochs >= MAX_ATTEMPTS;
        if let Some(kind) = kind
            && !reasoned
            && let Ok(plan) = self.plan(&self.sound(session))
        {
            self.wrong(|| format!("session {session} ended in {kind:?} where there was {plan:?}"));
        }
    }

    /// Nodes that a session could have had all the time: nothing has befallen them, and they have refused nothing.
    fn sound(&self, session: usize) -> Vec<Candidate> {
        let one = &self.sessions[session];
        let since = one.began.saturating_sub(SETTLED);
        let among = |all: &[(Micros, usize)], node: usize| {
            all.iter().any(|(when, which)| *which == node && *when >= since.max(1))
        };
        // A coordinator that has slept has heard of nothing meanwhile.
        let harmed = |node: usize| among(&self.touched, node) || among(&self.thawed, one.node);
        let cut = |node: usize| self.wires.iter().any(|(pair, wire)| wire.cut && (pair.0 == node || pair.1 == node));
        let sound = |node: &usize| {
            let here = *node == one.node || self.nodes[one.node].known.contains(node);
            let well = *node == one.node || (!harmed(*node) && !cut(*node) && self.answers(one.node, *node));
            here && well && !self.nodes[*node].failed && !one.refused.contains(&self.nodes[*node].id)
        };
        self.candidates(one.node, (0..self.nodes.len()).filter(sound))
    }

    /// When all is over: every question has had its answer in time, and no KV is left of it.
    pub fn check_after(&mut self) {
        for session in 0..self.sessions.len() {
            let one = &self.sessions[session];
            let bound = self.calm.max(one.began) + HANGS;
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
