//! The coordinator's state of one session, without IO: events in, actions out. Time and randomness are arguments.
//!
//! The session owns the token history, the sampler and the positions that its stages hold. It sends the prompt in
//! chunks. The number of unconfirmed chunks is bounded, and more than one lets the stages overlap. Then it sends one
//! token a step. These are the step shapes of a run of the whole model, so the text is the same. With speculation a
//! step carries the last token and draft tokens behind it, and steps of further draft tokens may follow before it is
//! answered. The next step rewinds what lies behind the first rejected draft token; answers to those steps are ignored.
//! Under a constraint, a guide says before each choice which tokens are allowed; it takes one token at a time, so
//! nothing is speculated.
//!
//! An embedding session only pools the states of its prompt and generates nothing.
//!
//! A session that loses its stages continues on others: it sends the whole known text again, in exact mode in the steps
//! in which a plain run computes it. Steps in flight on the lost route are discarded.

pub mod chunking;
pub mod drafter;
pub mod limits;
pub mod pooling;
pub mod prefix;
pub mod speculation;
mod speculator;
mod step;

use std::collections::VecDeque;

use crate::base::{ErrorKind, Fault};
use crate::engine::constraint::{ConstraintError, Guide};
use crate::engine::sample::{LogitRow, SampledToken, Sampler};
use crate::engine::{MAX_OUTPUT_ROWS, Reduce};
use crate::pipeline::link::message::MAX_CHUNKS_IN_FLIGHT;
use crate::pipeline::session::pooling::{Pool, Pooling};
use crate::pipeline::session::speculation::{DraftContinuation, DraftLimits, MAX_DRAFT_TOKENS, StepTiming};
use crate::wire::job::{MAX_BODY_BYTES, RowOutput};

pub use speculation::{Speculation, SpeculationStats};
use speculator::{NextWindow, Speculator};
use step::StepInFlight;

/// Bytes of full logit rows that one step may return, a quarter of the largest frame: 32 rows of 262,144 tokens.
const FULL_ROWS_BYTES: usize = MAX_BODY_BYTES / 4;

/// Parameters of one session.
#[derive(Debug, Clone)]
pub struct SessionParams {
    /// The prompt; not empty.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; at least 1.
    pub max_tokens: u32,
    /// Most rows of one step: the minimum over all stages.
    pub max_rows: u32,
    /// Rows of a chunk of the prompt; at most `max_rows`.
    pub chunk: u32,
    /// Logits per row of the model.
    pub vocab: u32,
    /// Prompt tokens whose KV every stage has; fewer than the prompt.
    pub cached: u32,
    /// Source of draft tokens.
    pub speculation: Speculation,
    /// Speculation statistics of earlier answers.
    pub stats: SpeculationStats,
}

/// How a session ended without a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionEnd {
    /// The model ended its answer, a stop text matched, or the constraint allows no further token.
    Stop,
    /// The token limit was reached.
    Length,
    /// The caller cancelled.
    Cancelled,
}

/// An action for the runner.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send these tokens as rows from `pos` on, with logits of the rows from `want_from` on. The first `committed` tokens
    /// of the text are final.
    Step { step: u32, pos: u32, tokens: Vec<u32>, want_from: u32, want: RowOutput, committed: u32 },
    /// Ask the draft model to continue the text; [`Session::on_draft`] takes the result.
    Draft(DraftLimits),
    /// Let the draft model continue behind this text, which ends with its own draft tokens, until the next `Draft` or
    /// the end of the session.
    DraftAhead { text: Vec<u32>, max_tokens: usize },
    /// A token was sampled.
    Emit(SampledToken),
    /// The session ended; release its stages.
    End(SessionEnd),
    /// The session failed; release its stages.
    Fail(Fault),
}

/// The state of one session.
pub struct Session {
    params: SessionParams,
    sampler: Sampler,
    guide: Option<Guide>,
    is_end: Box<dyn Fn(u32) -> bool + Send + Sync>,
    generated: Vec<u32>,
    /// Tokens that the stages compute before the next one is sampled: the prompt and, after a change of stages, the
    /// tokens generated on earlier ones.
    input: Vec<u32>,
    /// From this position on, `input` goes one token a step, as it was generated.
    single_tokens_from: usize,
    /// Tokens of `input` sent so far.
    sent: usize,
    next_step: u32,
    /// Unanswered steps, in the order of sending.
    in_flight: VecDeque<StepInFlight>,
    speculator: Option<Speculator>,
    /// Pools the states of an embedding session.
    pool: Option<Pool>,
    over: bool,
}

impl Session {
    /// A session that has not started. `is_end` says which tokens end an answer; these are not emitted.
    pub fn new(params: SessionParams, sampler: Sampler, is_end: Box<dyn Fn(u32) -> bool + Send + Sync>) -> Self {
        let in_flight = VecDeque::with_capacity(MAX_CHUNKS_IN_FLIGHT);
        let speculator = Speculator::new(&params.prompt, params.speculation, params.stats);
        // The last token of a prompt is always computed, for its logits.
        let sent = (params.cached as usize).min(params.prompt.len().saturating_sub(1));
        Self {
            input: params.prompt.clone(),
            single_tokens_from: usize::MAX,
            params,
            sampler,
            guide: None,
            is_end,
            generated: Vec::new(),
            sent,
            next_step: 0,
            in_flight,
            speculator,
            pool: None,
            over: false,
        }
    }

    /// Makes this an embedding session, which pools the states of the prompt. The mean needs all states, so nothing may
    /// be cached.
    pub fn pooled(mut self, pool: Pool) -> Self {
        (self.pool, self.speculator) = (Some(pool), None);
        self
    }

    /// Holds the answer to a constraint, without speculation.
    pub fn guided(mut self, guide: Guide) -> Self {
        (self.guide, self.speculator) = (Some(guide), None);
        self
    }

    /// Starts: sends the first chunks of the prompt.
    pub fn start(&mut self) -> Vec<Action> {
        for token in &self.params.prompt {
            self.sampler.accept(*token);
        }
        self.send_input()
    }

    /// Takes the answer to step `step` and its timing.
    pub fn on_logits(&mut self, step: u32, rows: &[LogitRow], timing: StepTiming) -> Vec<Action> {
        if self.over {
            return Vec::new();
        }
        let answered = self.in_flight.pop_front();
        let Some(answered) = answered.filter(|next| next.step == step && next.wanted as usize == rows.len()) else {
            let text = format!("step {step} was answered out of turn or with {} rows", rows.len());
            return self.fail(ErrorKind::BadFrame, text);
        };
        match answered {
            answered @ StepInFlight { stale: true, .. } => {
                self.speculator.iter_mut().for_each(|speculator| speculator.on_stale(&answered, timing));
                Vec::new()
            }
            StepInFlight { wanted: 0, .. } => self.send_input(),
            _ if self.pool.is_some() => self.pool_states(rows),
            answered => self.verify(&answered, rows, timing),
        }
    }

    /// Continues on other stages, which hold the first `cached` tokens of the text. Steps in flight are lost; sampled
    /// tokens stay. `single_tokens` says whether generated tokens are sent one a step, as they were generated.
    pub fn resume(&mut self, cached: u32, max_rows: u32, chunk: u32, single_tokens: bool) -> Vec<Action> {
        self.over = false;
        (self.params.max_rows, self.params.chunk) = (max_rows, chunk);
        self.input = self.text();
        self.single_tokens_from = if single_tokens { self.params.prompt.len() } else { usize::MAX };
        self.sent = (cached as usize).min(self.input.len().saturating_sub(1));
        (self.next_step, self.in_flight) = (0, VecDeque::with_capacity(MAX_CHUNKS_IN_FLIGHT));
        self.pool.iter_mut().for_each(Pool::restart);
        self.send_input()
    }

    /// The stages have room for `max_tokens` tokens of the answer, the generated ones included.
    pub fn limit(&mut self, max_tokens: u32) {
        self.params.max_tokens = self.params.max_tokens.min(max_tokens);
    }

    /// Ends the session early.
    pub fn stop(&mut self, end: SessionEnd) -> Vec<Action> {
        if self.over {
            return Vec::new();
        }
        self.over = true;
        vec![Action::End(end)]
    }

    /// A stage, a link or a deadline failed.
    pub fn on_fault(&mut self, fault: Fault) -> Vec<Action> {
        if self.over {
            return Vec::new();
        }
        self.over = true;
        vec![Action::Fail(fault)]
    }

    /// Ends the session after its first `tokens` generated tokens: the caller found a stop text in the last of them.
    pub fn stop_after(&mut self, tokens: usize) -> Vec<Action> {
        self.generated.truncate(tokens);
        self.stop(SessionEnd::Stop)
    }

    /// Speculation statistics; `None` without speculation.
    pub fn speculation_stats(&self) -> Option<SpeculationStats> {
        self.speculator.as_ref().map(Speculator::stats)
    }

    /// Draft tokens proposed and accepted.
    pub fn draft_counts(&self) -> (u32, u32) {
        self.speculator.as_ref().map_or((0, 0), Speculator::counts)
    }

    /// The embedding of the prompt, of an embedding session that has ended.
    pub fn embedding(&self) -> Option<Vec<f32>> {
        self.pool.as_ref().map(Pool::vector)
    }

    /// The text whose KV every stage has: all but the last token, which is not computed.
    pub fn computed(&self) -> Vec<u32> {
        let mut text = self.text();
        let computed = text.len() - usize::from(!self.generated.is_empty());
        text.truncate(if self.sent < self.input.len() { self.sent.min(computed) } else { computed });
        text
    }

    /// Prompt tokens that were sent.
    pub fn prompt_sent(&self) -> &[u32] {
        &self.params.prompt[..self.sent.min(self.params.prompt.len())]
    }

    /// Tokens generated so far.
    pub fn generated(&self) -> &[u32] {
        &self.generated
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether the next answer belongs to a step of `input`.
    pub fn in_prefill(&self) -> bool {
        self.in_flight.front().is_none_or(|step| step.window.is_empty())
    }

    fn fail(&mut self, kind: ErrorKind, message: String) -> Vec<Action> {
        self.on_fault(Fault::new(kind, message))
    }

    /// Sends input in chunks while fewer than [`MAX_CHUNKS_IN_FLIGHT`] steps are in flight.
    fn send_input(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.sent < self.input.len() && self.in_flight.len() < MAX_CHUNKS_IN_FLIGHT {
            let all_wanted = self.pool.as_ref().is_some_and(|pool| pool.pooling() == Pooling::Mean);
            let max = if all_wanted { self.params.chunk.min(MAX_OUTPUT_ROWS) } else { self.params.chunk };
            let (max, until) = match self.sent < self.single_tokens_from {
                true => (max.max(1) as usize, self.single_tokens_from),
                false => (1, usize::MAX),
            };
            let end = self.input.len().min(self.sent + max).min(until);
            let tokens = self.input[self.sent..end].to_vec();
            let last = end == self.input.len();
            let pos = self.sent as u32;
            self.sent = end;
            let wanted = if all_wanted { tokens.len() as u32 } else { u32::from(last) };
            actions.push(self.step(pos, tokens, wanted, Vec::new()));
        }
        actions
    }

    /// A step with logits of its last `wanted` rows.
    fn step(&mut self, pos: u32, tokens: Vec<u32>, wanted: u32, window: Vec<u32>) -> Action {
        let step = self.next_step;
        self.next_step += 1;
        let alone = self.in_flight.is_empty();
        self.in_flight.push_back(StepInFlight {
            step,
            wanted,
            window,
            alone,
            chained: None,
            stale: false,
            from_draft_model: false,
        });
        let want_from = tokens.len() as u32 - wanted;
        let committed = (self.params.prompt.len() + self.generated.len()) as u32;
        Action::Step { step, pos, tokens, want_from, want: self.want(), committed }
    }

    fn want(&self) -> RowOutput {
        match self.sampler.reduce() {
            _ if self.pool.is_some() => RowOutput::State,
            _ if self.guide.is_some() => RowOutput::Full,
            Reduce::Top(k) => RowOutput::Top { k: k.min(self.params.vocab) },
            Reduce::Full | Reduce::Hidden | Reduce::State => RowOutput::Full,
        }
    }

    /// Pools the states of a chunk.
    fn pool_states(&mut self, rows: &[LogitRow]) -> Vec<Action> {
        let taken = self.pool.as_mut().map_or(Ok(()), |pool| rows.iter().try_for_each(|row| pool.take(row)));
        match taken {
            Err(reason) => self.fail(ErrorKind::BadFrame, reason),
            Ok(()) if self.sent == self.input.len() && self.in_flight.is_empty() => self.stop(SessionEnd::Stop),
            Ok(()) => self.send_input(),
        }
    }

    /// Samples from each row while the sampled token equals the draft token behind it.
    fn verify(&mut self, answered: &StepInFlight, rows: &[LogitRow], timing: StepTiming) -> Vec<Action> {
        let is_input = answered.window.is_empty();
        let chained = self.in_flight.front().filter(|next| !next.stale).and_then(|next| next.window.first().copied());
        let draft_tokens: Vec<u32> = answered.window.iter().skip(1).copied().chain(chained).collect();
        let (mut actions, mut accepted) = (Vec::new(), 0);
        for row in rows {
            match self.sample_and_emit(row, &mut actions) {
                Ok(None) => {}
                Ok(Some(end)) => {
                    actions.extend(self.stop(end));
                    return actions;
                }
                Err(fault) => {
                    actions.extend(self.on_fault(fault));
                    return actions;
                }
            }
            match draft_tokens.get(accepted) {
                Some(token) if self.generated.last() == Some(token) => accepted += 1,
                _ => break,
            }
        }
        if let Some(speculator) = self.speculator.as_mut().filter(|_| !is_input) {
            // Tokens behind the first rejected one were not verified.
            let tried = (accepted + 1).min(draft_tokens.len());
            speculator.on_answer(answered, (tried, accepted), timing);
        }
        if chained.is_none() || accepted < draft_tokens.len() {
            self.in_flight.iter_mut().for_each(|step| step.stale = true);
        }
        actions.extend(self.next_windows());
        actions
    }

    /// Takes the result of the draft model. After `None`, a failure, it is not asked again.
    pub fn on_draft(&mut self, draft: Option<DraftContinuation>) -> Vec<Action> {
        if self.over {
            return Vec::new();
        }
        let (max, vocab) = (self.max_draft_tokens(), self.params.vocab);
        let draft = draft.map(|mut draft| {
            // An id outside the vocabulary ends the draft.
            let known = draft.tokens.iter().take_while(|token| token.token < vocab).count();
            draft.tokens.truncate(max.min(known));
            draft
        });
        let picked = self.speculator.as_mut().map_or(0, |speculator| speculator.pick(draft.as_ref()));
        let drafted = draft.unwrap_or_default().tokens;
        let tokens: Vec<u32> = drafted.into_iter().take(picked).map(|token| token.token).collect();
        let mut actions = vec![self.window(tokens.clone())];
        self.in_flight.back_mut().into_iter().for_each(|step| step.from_draft_model = true);
        actions.extend(self.draft_ahead(tokens));
        actions
    }

    /// The draft ahead, while the window is computed: the continuation if all its tokens are accepted.
    fn draft_ahead(&self, draft_tokens: Vec<u32>) -> Option<Action> {
        let room = (self.params.max_tokens as usize).saturating_sub(self.generated.len() + draft_tokens.len());
        let max_tokens = self.speculator.as_ref()?.max_ahead().min(room);
        (max_tokens > 1).then(|| Action::DraftAhead { text: [self.text(), draft_tokens].concat(), max_tokens })
    }

    /// The prompt and the generated tokens.
    pub fn text(&self) -> Vec<u32> {
        [self.params.prompt.as_slice(), &self.generated].concat()
    }

    /// Samples a token and emits it unless it ends the answer. Returns the end, if this is it.
    fn sample_and_emit(&mut self, row: &LogitRow, actions: &mut Vec<Action>) -> Result<Option<SessionEnd>, Fault> {
        if self.is_complete()? {
            return Ok(Some(SessionEnd::Stop));
        }
        let sampled = self.sample(row)?;
        let token = sampled.token;
        if (self.is_end)(token) {
            return Ok(Some(SessionEnd::Stop));
        }
        self.accept(token)?;
        actions.push(Action::Emit(sampled));
        match self.generated.len() as u32 >= self.params.max_tokens {
            _ if self.is_complete()? => Ok(Some(SessionEnd::Stop)),
            true => Ok(Some(SessionEnd::Length)),
            false => Ok(None),
        }
    }

    fn accept(&mut self, token: u32) -> Result<(), Fault> {
        self.sampler.accept(token);
        self.generated.push(token);
        if let Some(speculator) = &mut self.speculator {
            speculator.push(token);
        }
        self.guide.as_mut().map_or(Ok(()), |guide| guide.accept(token)).map_err(constraint_fault)
    }

    /// Whether the constraint is satisfied and allows no further token.
    fn is_complete(&mut self) -> Result<bool, Fault> {
        self.guide.as_mut().map_or(Ok(false), Guide::is_complete).map_err(constraint_fault)
    }

    /// Most draft tokens of the next step.
    fn max_draft_tokens(&self) -> usize {
        let room = (self.params.max_tokens as usize).saturating_sub(self.generated.len());
        let rows = match self.want() {
            RowOutput::Full => room.min(FULL_ROWS_BYTES / (size_of::<f32>() * self.params.vocab.max(1) as usize)),
            _ => room,
        };
        MAX_DRAFT_TOKENS.min(rows.saturating_sub(1)).min((self.params.max_rows as usize).saturating_sub(1))
    }

    /// The steps behind the final tokens and the draft tokens in flight, or the request to the draft model.
    fn next_windows(&mut self) -> Vec<Action> {
        // Windows in flight begin with the last final token.
        let valid = self.in_flight.iter().filter(|step| !step.stale);
        let mut windows = valid.clone().count();
        let mut ahead: Vec<u32> = valid.flat_map(|step| step.window.iter().copied()).skip(1).collect();
        let max = self.max_draft_tokens();
        let Some(speculator) = &mut self.speculator else { return vec![self.window(Vec::new())] };
        let (draft_tokens, plan) = match speculator.next(max, windows == 0) {
            NextWindow::AskDraftModel(limits) => return vec![Action::Draft(limits)],
            NextWindow::NGrams { draft_tokens, plan } => (draft_tokens, plan),
        };
        let mut actions = Vec::new();
        if windows == 0 {
            ahead = draft_tokens[..plan.length].to_vec();
            actions.push(self.window(ahead.clone()));
            windows = 1;
        }
        // Chained windows of draft tokens alone, while the n-gram match still predicts the tokens in flight.
        let rows = plan.length + 1;
        while windows < plan.windows && draft_tokens.starts_with(&ahead) {
            let Some(window) = draft_tokens.get(ahead.len()..ahead.len() + rows) else { break };
            let pos = self.next_pos() + 1 + ahead.len() as u32;
            ahead.extend(window);
            windows += 1;
            actions.push(self.window_at(pos, window.to_vec()));
            self.in_flight.back_mut().into_iter().for_each(|step| step.chained = Some(plan.windows));
        }
        actions
    }

    /// The position of the last token.
    fn next_pos(&self) -> u32 {
        (self.params.prompt.len() + self.generated.len() - 1) as u32
    }

    /// The step of the last token and the draft tokens behind it.
    fn window(&mut self, draft_tokens: Vec<u32>) -> Action {
        let tokens = self.generated.last().copied().into_iter().chain(draft_tokens).collect();
        self.window_at(self.next_pos(), tokens)
    }

    /// A step with logits of all rows.
    fn window_at(&mut self, pos: u32, tokens: Vec<u32>) -> Action {
        let wanted = tokens.len() as u32;
        self.step(pos, tokens.clone(), wanted, tokens)
    }

    fn sample(&mut self, row: &LogitRow) -> Result<SampledToken, Fault> {
        check_row(row, self.params.vocab).map_err(|text| Fault::new(ErrorKind::BadFrame, text))?;
        let allowed = self.guide.as_mut().map(Guide::allowed).transpose().map_err(constraint_fault)?;
        let sampled = self.sampler.sample_within(row, allowed.as_ref());
        sampled.map_err(|error| Fault::new(error.kind(), error))
    }
}

fn constraint_fault(error: ConstraintError) -> Fault {
    Fault::new(error.kind(), error)
}

/// Checks that a row from a peer names only tokens of the vocabulary.
fn check_row(row: &LogitRow, vocab: u32) -> Result<(), String> {
    match row {
        LogitRow::Full(logits) if logits.len() == vocab as usize => Ok(()),
        LogitRow::Full(logits) => Err(format!("{} logits for a vocabulary of {vocab}", logits.len())),
        LogitRow::Top { ids, .. } if ids.is_empty() => Err("no candidate".to_owned()),
        LogitRow::Top { ids, .. } => match ids.iter().find(|id| **id >= vocab) {
            Some(id) => Err(format!("token {id} is outside the vocabulary of {vocab}")),
            None => Ok(()),
        },
    }
}

#[cfg(test)]
mod tests;
