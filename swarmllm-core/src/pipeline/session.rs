//! One session of the coordinator, without IO: events in, actions out. Time and chance are arguments.
//!
//! The session owns the token history, the sampler and the positions that its stages hold. It sends the prompt in
//! chunks, a bounded number of them ahead of their confirmations so that stages overlap, then one token a step: the very
//! step shapes of a whole model's run, so that the text is the same. Where it may guess, a step has the token and guesses
//! behind it, and may be followed by steps of further guesses before it is answered; what comes after the first wrong guess
//! is rewound by the next step, and answers to it are passed over. Where the answer is under a constraint, a
//! guide says before each choice which tokens may come; it takes one token after the other, so that nothing is guessed.
//!
//! A session may also only read: its prompt's states are pooled to an embedding, and nothing is generated.
//!
//! Where its stages are lost it goes on with others: all that is known of the text is sent again, in the steps in which a
//! plain run computes it where it is to be exact, and what was under way counts no more.

mod guesser;

use std::collections::VecDeque;

use crate::base::{ErrorKind, Fault};
use crate::engine::constraint::{ConstraintError, Guide};
use crate::engine::sample::{LogitRow, Sampled, Sampler};
use crate::engine::{Reduce, WANTED_ROWS};
use crate::pipeline::draft::{Draft, DraftLearnt, Drafted, Horizon, Learnt, MAX_GUESSES, Took};
use crate::pipeline::pool::{Pool, Pooling};
use crate::wire::job::{MAX_BODY_BYTES, Want};

use guesser::{Guesser, Next};

/// Chunks of a prefill that may be under way at once. Two per stage keep a chain of stages busy; more only queue up.
pub const MAX_CHUNKS_IN_FLIGHT: usize = 8;

/// Bytes of full rows of logits that one step brings back, a quarter of what a frame may hold: 32 of 262,144 tokens.
const FULL_ROWS_BYTES: usize = MAX_BODY_BYTES / 4;

/// What a session is to do.
#[derive(Debug, Clone)]
pub struct SessionParams {
    /// The prompt; not empty.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most; at least 1.
    pub max_tokens: u32,
    /// Rows of one step at most; the least of all stages.
    pub max_rows: u32,
    /// Rows of a chunk of the prompt; at most `max_rows`.
    pub chunk: u32,
    /// Logits per row of the model.
    pub vocab: u32,
    /// Tokens of the prompt whose KV every stage has; less than the prompt.
    pub cached: u32,
    /// How to guess ahead.
    pub guess: Guess,
    /// What earlier answers have learnt of guesses.
    pub learnt: LearntOfGuesses,
}

/// What was learnt of guesses from what repeats itself, and of a draft model's.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LearntOfGuesses {
    /// Of what repeats itself.
    pub repeats: Learnt,
    /// Of the draft model's; nothing where there is none, or it failed.
    pub draft: Option<DraftLearnt>,
}

/// Where guesses come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guess {
    /// Nothing is guessed.
    Never,
    /// From what followed the last time when the text was like now.
    Repeats,
    /// From that, or from a draft model, which the runner asks.
    Draft(Draft),
}

/// Why a session ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The model ended its answer, a stop text was met, or a constraint admits nothing more.
    Stop,
    /// The token limit was reached.
    Length,
    /// The caller wanted no more.
    Cancelled,
}

/// What the runner has to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send these tokens as rows from `pos` on; logits are wanted from row `want_from` on. The first `certain` tokens of the
    /// text will not change.
    Step { step: u32, pos: u32, tokens: Vec<u32>, want_from: u32, want: Want, certain: u32 },
    /// Ask the draft model how the text goes on; [`Session::on_guesses`] takes the answer.
    Guess(Horizon),
    /// Let the draft model go on behind this text, whose last tokens it made: until the session's next question or its end.
    Foresee { text: Vec<u32>, most: usize },
    /// A token was chosen.
    Emit(Sampled),
    /// The session is over; release its stages.
    End(End),
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
    /// What is read before more is chosen: the prompt and, of a session that got other stages, what was said on the
    /// earlier ones.
    known: Vec<u32>,
    /// From here on what is known goes one token a step, as it was generated.
    singly_from: usize,
    /// Known tokens sent so far.
    sent: usize,
    next_step: u32,
    /// Steps under way, in their order.
    in_flight: VecDeque<Flight>,
    guesser: Option<Guesser>,
    /// What takes the states of a session that only reads.
    pool: Option<Pool>,
    over: bool,
}

/// A step under way.
struct Flight {
    step: u32,
    /// Rows of which logits are wanted.
    wanted: u32,
    /// Of an answer, its tokens: the first is certain or, where it follows another step, a guess; the others are guesses.
    window: Vec<u32>,
    /// Whether nothing else was under way when it was sent.
    alone: bool,
    /// Where it is of guesses alone, behind those of the step before: how many windows were to be under way.
    chained: Option<usize>,
    /// Whether it follows a wrong guess: its answer says nothing.
    stale: bool,
    /// Whether a draft model was asked for its guesses.
    drafted: bool,
}

impl Flight {
    /// Guesses among its tokens.
    fn guesses(&self) -> usize {
        self.window.len().saturating_sub(usize::from(self.chained.is_none()))
    }
}

impl Session {
    /// A session that has not begun. `is_end` says which tokens end an answer; they are not emitted.
    pub fn new(params: SessionParams, sampler: Sampler, is_end: Box<dyn Fn(u32) -> bool + Send + Sync>) -> Self {
        let in_flight = VecDeque::with_capacity(MAX_CHUNKS_IN_FLIGHT);
        let guesser = Guesser::new(&params);
        // The last token of a prompt is always computed: its logits are wanted.
        let sent = (params.cached as usize).min(params.prompt.len().saturating_sub(1));
        Self {
            known: params.prompt.clone(),
            singly_from: usize::MAX,
            params,
            sampler,
            guide: None,
            is_end,
            generated: Vec::new(),
            sent,
            next_step: 0,
            in_flight,
            guesser,
            pool: None,
            over: false,
        }
    }

    /// Only reads: pools the states of the prompt. For a mean nothing may be cached, since all of them are needed.
    pub fn reading(mut self, pool: Pool) -> Self {
        (self.pool, self.guesser) = (Some(pool), None);
        self
    }

    /// Holds the answer to a constraint. Nothing is guessed then.
    pub fn guided(mut self, guide: Guide) -> Self {
        (self.guide, self.guesser) = (Some(guide), None);
        self
    }

    /// Begins: the first chunks of the prompt.
    pub fn start(&mut self) -> Vec<Action> {
        for token in &self.params.prompt {
            self.sampler.accept(*token);
        }
        self.fill()
    }

    /// The answer to step `step`, and what it took.
    pub fn on_logits(&mut self, step: u32, rows: &[LogitRow], took: Took) -> Vec<Action> {
        if self.over {
            return Vec::new();
        }
        let flight = self.in_flight.pop_front();
        let Some(flight) = flight.filter(|flight| flight.step == step && flight.wanted as usize == rows.len()) else {
            let text = format!("step {step} was answered out of turn or with {} rows", rows.len());
            return self.fail(ErrorKind::BadFrame, text);
        };
        match flight {
            flight @ Flight { stale: true, .. } => {
                self.guesser.iter_mut().for_each(|guesser| guesser.wasted(&flight, took));
                Vec::new()
            }
            Flight { wanted: 0, .. } => self.fill(),
            _ if self.pool.is_some() => self.read(rows),
            flight => self.choose(&flight, rows, took),
        }
    }

    /// Goes on with other stages, which have the first `cached` tokens of the text: what was under way is lost, what was
    /// chosen stays. `singly` says whether what was generated is sent in the steps in which it was generated.
    pub fn resume(&mut self, cached: u32, max_rows: u32, chunk: u32, singly: bool) -> Vec<Action> {
        self.over = false;
        (self.params.max_rows, self.params.chunk) = (max_rows, chunk);
        self.known = self.text();
        self.singly_from = if singly { self.params.prompt.len() } else { usize::MAX };
        self.sent = (cached as usize).min(self.known.len().saturating_sub(1));
        (self.next_step, self.in_flight) = (0, VecDeque::with_capacity(MAX_CHUNKS_IN_FLIGHT));
        self.pool.iter_mut().for_each(Pool::restart);
        self.fill()
    }

    /// Its stages have room for so many tokens of the answer, those that were chosen included.
    pub fn limit(&mut self, max_tokens: u32) {
        self.params.max_tokens = self.params.max_tokens.min(max_tokens);
    }

    /// Ends the session early.
    pub fn stop(&mut self, end: End) -> Vec<Action> {
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

    /// Ends the session with its first `tokens` chosen tokens: the caller has seen an end in the last of them.
    pub fn stop_after(&mut self, tokens: usize) -> Vec<Action> {
        self.generated.truncate(tokens);
        self.stop(End::Stop)
    }

    /// What it has learnt of guesses; nothing where it makes none.
    pub fn learnt(&self) -> Option<LearntOfGuesses> {
        self.guesser.as_ref().map(Guesser::learnt)
    }

    /// Guesses that were made, and how many were right.
    pub fn guesses(&self) -> (u32, u32) {
        self.guesser.as_ref().map_or((0, 0), Guesser::counts)
    }

    /// The prompt's embedding, of a session that only reads and has come to its end.
    pub fn embedding(&self) -> Option<Vec<f32>> {
        self.pool.as_ref().map(Pool::vector)
    }

    /// The text whose KV every stage has: all but the last token, which was not computed.
    pub fn computed(&self) -> Vec<u32> {
        let mut text = self.text();
        let computed = text.len() - usize::from(!self.generated.is_empty());
        text.truncate(if self.sent < self.known.len() { self.sent.min(computed) } else { computed });
        text
    }

    /// The prompt's tokens that were sent.
    pub fn prompt_sent(&self) -> &[u32] {
        &self.params.prompt[..self.sent.min(self.params.prompt.len())]
    }

    /// Tokens chosen so far.
    pub fn generated(&self) -> &[u32] {
        &self.generated
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Whether the step that is answered next is one of text that was known.
    pub fn in_prefill(&self) -> bool {
        self.in_flight.front().is_none_or(|flight| flight.window.is_empty())
    }

    fn fail(&mut self, kind: ErrorKind, message: String) -> Vec<Action> {
        self.on_fault(Fault::new(kind, message))
    }

    /// Sends what is known, in chunks, while the window has room.
    fn fill(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while self.sent < self.known.len() && self.in_flight.len() < MAX_CHUNKS_IN_FLIGHT {
            let all_wanted = self.pool.as_ref().is_some_and(|pool| pool.pooling() == Pooling::Mean);
            let most = if all_wanted { self.params.chunk.min(WANTED_ROWS) } else { self.params.chunk };
            let (most, until) = match self.sent < self.singly_from {
                true => (most.max(1) as usize, self.singly_from),
                false => (1, usize::MAX),
            };
            let end = self.known.len().min(self.sent + most).min(until);
            let tokens = self.known[self.sent..end].to_vec();
            let last = end == self.known.len();
            let pos = self.sent as u32;
            self.sent = end;
            let wanted = if all_wanted { tokens.len() as u32 } else { u32::from(last) };
            actions.push(self.step(pos, tokens, wanted, Vec::new()));
        }
        actions
    }

    /// A step of which the logits of the last `wanted` rows are wanted.
    fn step(&mut self, pos: u32, tokens: Vec<u32>, wanted: u32, window: Vec<u32>) -> Action {
        let step = self.next_step;
        self.next_step += 1;
        let alone = self.in_flight.is_empty();
        self.in_flight.push_back(Flight { step, wanted, window, alone, chained: None, stale: false, drafted: false });
        let want_from = tokens.len() as u32 - wanted;
        let certain = (self.params.prompt.len() + self.generated.len()) as u32;
        Action::Step { step, pos, tokens, want_from, want: self.want(), certain }
    }

    fn want(&self) -> Want {
        match self.sampler.reduce() {
            _ if self.pool.is_some() => Want::State,
            _ if self.guide.is_some() => Want::Full,
            Reduce::Top(k) => Want::Top { k: k.min(self.params.vocab) },
            Reduce::Full | Reduce::Hidden | Reduce::State => Want::Full,
        }
    }

    /// Pools the states of a chunk.
    fn read(&mut self, rows: &[LogitRow]) -> Vec<Action> {
        let taken = self.pool.as_mut().map_or(Ok(()), |pool| rows.iter().try_for_each(|row| pool.take(row)));
        match taken {
            Err(reason) => self.fail(ErrorKind::BadFrame, reason),
            Ok(()) if self.sent == self.known.len() && self.in_flight.is_empty() => self.stop(End::Stop),
            Ok(()) => self.fill(),
        }
    }

    /// Chooses a token from each row for as long as what was guessed behind it is what was chosen.
    fn choose(&mut self, flight: &Flight, rows: &[LogitRow], took: Took) -> Vec<Action> {
        let first = flight.window.is_empty();
        let follows = self.in_flight.front().filter(|next| !next.stale).and_then(|next| next.window.first().copied());
        let guesses: Vec<u32> = flight.window.iter().skip(1).copied().chain(follows).collect();
        let (mut actions, mut right) = (Vec::new(), 0);
        for row in rows {
            match self.choose_from(row, &mut actions) {
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
            match guesses.get(right) {
                Some(guess) if self.generated.last() == Some(guess) => right += 1,
                _ => break,
            }
        }
        if let Some(guesser) = self.guesser.as_mut().filter(|_| !first) {
            // What lies behind the first wrong guess was not tried.
            guesser.took(flight, ((right + 1).min(guesses.len()), right), took);
        }
        if follows.is_none() || right < guesses.len() {
            self.in_flight.iter_mut().for_each(|flight| flight.stale = true);
        }
        actions.extend(self.go_on());
        actions
    }

    /// What the draft model goes on with; where it could not, it is not asked again.
    pub fn on_guesses(&mut self, guesses: Option<Drafted>) -> Vec<Action> {
        if self.over {
            return Vec::new();
        }
        let (most, vocab) = (self.most_guesses(), self.params.vocab);
        let drafted = guesses.map(|mut drafted| {
            // What is no token is no guess.
            let known = drafted.tokens.iter().take_while(|token| token.token < vocab).count();
            drafted.tokens.truncate(most.min(known));
            drafted
        });
        let picked = self.guesser.as_mut().map_or(0, |guesser| guesser.pick(drafted.as_ref()));
        let drafted = drafted.unwrap_or_default().tokens;
        let tokens: Vec<u32> = drafted.into_iter().take(picked).map(|token| token.token).collect();
        let mut actions = vec![self.window(tokens.clone())];
        self.in_flight.back_mut().into_iter().for_each(|flight| flight.drafted = true);
        actions.extend(self.foresee(tokens));
        actions
    }

    /// What the draft model is to make while its tokens are computed: what would follow where all are right.
    fn foresee(&self, guesses: Vec<u32>) -> Option<Action> {
        let room = (self.params.max_tokens as usize).saturating_sub(self.generated.len() + guesses.len());
        let most = self.guesser.as_ref()?.foresees().min(room);
        (most > 1).then(|| Action::Foresee { text: [self.text(), guesses].concat(), most })
    }

    /// The prompt and what was said.
    pub fn text(&self) -> Vec<u32> {
        [self.params.prompt.as_slice(), &self.generated].concat()
    }

    /// Chooses a token and says so, unless the answer ends with it; says whether it ends.
    fn choose_from(&mut self, row: &LogitRow, actions: &mut Vec<Action>) -> Result<Option<End>, Fault> {
        if self.is_complete()? {
            return Ok(Some(End::Stop));
        }
        let sampled = self.sample(row)?;
        let token = sampled.token;
        if (self.is_end)(token) {
            return Ok(Some(End::Stop));
        }
        self.accept(token)?;
        actions.push(Action::Emit(sampled));
        match self.generated.len() as u32 >= self.params.max_tokens {
            _ if self.is_complete()? => Ok(Some(End::Stop)),
            true => Ok(Some(End::Length)),
            false => Ok(None),
        }
    }

    fn accept(&mut self, token: u32) -> Result<(), Fault> {
        self.sampler.accept(token);
        self.generated.push(token);
        if let Some(guesser) = &mut self.guesser {
            guesser.hear(token);
        }
        self.guide.as_mut().map_or(Ok(()), |guide| guide.accept(token)).map_err(unfollowed)
    }

    /// Whether the answer is whole by its constraint, and nothing can follow.
    fn is_complete(&mut self) -> Result<bool, Fault> {
        self.guide.as_mut().map_or(Ok(false), Guide::is_complete).map_err(unfollowed)
    }

    /// Guesses that the next step may have.
    fn most_guesses(&self) -> usize {
        let room = (self.params.max_tokens as usize).saturating_sub(self.generated.len());
        let rows = match self.want() {
            Want::Full => room.min(FULL_ROWS_BYTES / (size_of::<f32>() * self.params.vocab.max(1) as usize)),
            _ => room,
        };
        MAX_GUESSES.min(rows.saturating_sub(1)).min((self.params.max_rows as usize).saturating_sub(1))
    }

    /// The steps that follow what is certain and what was guessed already; or the question for guesses.
    fn go_on(&mut self) -> Vec<Action> {
        // What is under way begins with the last certain token.
        let under_way = |flight: &Flight| if flight.stale { Vec::new() } else { flight.window.clone() };
        let mut ahead: Vec<u32> = self.in_flight.iter().flat_map(under_way).skip(1).collect();
        let mut windows = self.in_flight.iter().filter(|flight| !flight.stale).count();
        let most = self.most_guesses();
        let Some(guesser) = &mut self.guesser else { return vec![self.window(Vec::new())] };
        let (guesses, reach) = match guesser.next(most, windows == 0) {
            Next::Ask(horizon) => return vec![Action::Guess(horizon)],
            Next::Repeats { guesses, reach } => (guesses, reach),
        };
        let mut actions = Vec::new();
        if windows == 0 {
            ahead = guesses[..reach.guesses].to_vec();
            actions.push(self.window(ahead.clone()));
            windows = 1;
        }
        // Steps of guesses alone, for as long as the text is still thought to go on as what is under way.
        let rows = reach.guesses + 1;
        while windows < reach.windows && guesses.starts_with(&ahead) {
            let Some(window) = guesses.get(ahead.len()..ahead.len() + rows) else { break };
            let pos = self.next_pos() + 1 + ahead.len() as u32;
            ahead.extend(window);
            windows += 1;
            actions.push(self.window_at(pos, window.to_vec()));
            self.in_flight.back_mut().into_iter().for_each(|flight| flight.chained = Some(reach.windows));
        }
        actions
    }

    /// The position of the last token.
    fn next_pos(&self) -> u32 {
        (self.params.prompt.len() + self.generated.len() - 1) as u32
    }

    /// The step of the last token and guesses behind it.
    fn window(&mut self, guesses: Vec<u32>) -> Action {
        let tokens = self.generated.last().copied().into_iter().chain(guesses).collect();
        self.window_at(self.next_pos(), tokens)
    }

    /// A step of which all rows are wanted.
    fn window_at(&mut self, pos: u32, tokens: Vec<u32>) -> Action {
        let wanted = tokens.len() as u32;
        self.step(pos, tokens.clone(), wanted, tokens)
    }

    fn sample(&mut self, row: &LogitRow) -> Result<Sampled, Fault> {
        check_row(row, self.params.vocab).map_err(|text| Fault::new(ErrorKind::BadFrame, text))?;
        let allowed = self.guide.as_mut().map(Guide::allowed).transpose().map_err(unfollowed)?;
        let sampled = self.sampler.sample_within(row, allowed.as_ref());
        sampled.map_err(|error| Fault::new(error.kind(), error))
    }
}

fn unfollowed(error: ConstraintError) -> Fault {
    Fault::new(error.kind(), error)
}

/// A row from a peer must name tokens of the vocabulary.
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
