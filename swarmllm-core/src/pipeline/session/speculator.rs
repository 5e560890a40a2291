//! Speculates in an answer, by n-gram matches and by a draft model where there is one. Each has its own policy, because
//! the costs and hit rates of their windows are unrelated. At each token the source with the higher expected rate
//! continues.

use super::step::StepInFlight;
use crate::pipeline::session::speculation::{
    DraftContinuation, DraftLimits, DraftPolicy, NGramMatch, NGramPolicy, NGrams, Speculation, SpeculationStats,
    StepTiming, WindowPlan,
};

/// See the module.
pub(super) struct Speculator {
    /// The text by its n-grams.
    grams: NGrams,
    ngram_policy: NGramPolicy,
    /// The policy of the draft model, which the runner has.
    draft_policy: Option<DraftPolicy>,
    proposed: u32,
    accepted: u32,
}

/// The next window of an answer.
pub(super) enum NextWindow {
    /// Draft tokens of the n-gram match, and how to split them into windows.
    NGrams { draft_tokens: Vec<u32>, plan: WindowPlan },
    /// The draft model is asked.
    AskDraftModel(DraftLimits),
}

impl Speculator {
    /// The speculator of a session; `None` without speculation.
    pub fn new(prompt: &[u32], speculation: Speculation, stats: SpeculationStats) -> Option<Self> {
        let draft_policy = match speculation {
            Speculation::Off => return None,
            Speculation::NGrams => None,
            Speculation::Draft(draft) => Some(DraftPolicy::new(stats.draft.unwrap_or_default(), draft)),
        };
        let (grams, ngram_policy) = (NGrams::new(prompt), NGramPolicy::new(stats.ngrams));
        Some(Self { grams, ngram_policy, draft_policy, proposed: 0, accepted: 0 })
    }

    /// Takes the next token of the text, speculated or not.
    pub fn push(&mut self, token: u32) {
        if let Some((predicted, matched)) = self.grams.next() {
            self.ngram_policy.observe(matched, predicted == token);
        }
        self.grams.push(token);
    }

    /// The next window, of at most `max` draft tokens. The draft model is asked only with no step in flight (`idle`).
    pub fn next(&mut self, max: usize, idle: bool) -> NextWindow {
        let draft_tokens = self.grams.propose(max);
        let matched = self.grams.next().map_or(NGramMatch::Contiguous(0), |(_, matched)| matched);
        let plan = self.ngram_policy.plan(draft_tokens.len(), matched);
        let rate = self.ngram_policy.expected_rate(plan.length, matched);
        let draft = self.draft_policy.as_mut().filter(|_| idle && plan.windows == 1);
        // A retry of a draft model below the break-even rate happens only where no n-gram window pays either.
        let draft = draft.filter(|draft| plan.length == 0 || draft.rate() > rate);
        match draft.and_then(|draft| draft.ask(max)) {
            Some(limits) => NextWindow::AskDraftModel(limits),
            None => NextWindow::NGrams { draft_tokens, plan },
        }
    }

    /// Takes the result of the draft model; after `None`, a failure, it is not asked again. Returns how many of its tokens
    /// to send.
    pub fn pick(&mut self, draft: Option<&DraftContinuation>) -> usize {
        let Some((policy, draft)) = self.draft_policy.as_mut().zip(draft) else {
            self.draft_policy = None;
            return 0;
        };
        policy.pick(draft)
    }

    /// Most tokens that the draft model may draft ahead while its window is in flight.
    pub fn max_ahead(&self) -> usize {
        self.draft_policy.as_ref().map_or(0, DraftPolicy::max_ahead)
    }

    /// Takes the answer to a step. Of its draft tokens and those chained behind it, `tried` were verified and `accepted`
    /// accepted.
    pub fn on_answer(&mut self, step: &StepInFlight, (tried, accepted): (usize, usize), timing: StepTiming) {
        let own = step.window.len().saturating_sub(1);
        // The first token of a chained window was accepted, or the step would be stale.
        self.accepted += (accepted.min(own) + usize::from(step.chained.is_some())) as u32;
        self.proposed += step.draft_tokens() as u32;
        let plain = own == 0 && step.chained.is_none();
        match &mut self.draft_policy {
            Some(draft) if step.from_draft_model => draft.on_answer((tried, accepted), timing, step.alone),
            Some(draft) if plain && step.alone => draft.on_plain_answer(timing),
            _ => {}
        }
        if plain || !step.from_draft_model {
            let timing = timing.without_drafting();
            self.ngram_policy.on_answer(own, (tried, accepted), timing, step.alone, step.chained);
        }
    }

    /// Takes the answer to a stale step, computed in vain behind a rejected draft token.
    pub fn on_stale(&mut self, step: &StepInFlight, timing: StepTiming) {
        self.proposed += step.draft_tokens() as u32;
        self.ngram_policy.on_stale(timing.gap);
    }

    /// Draft tokens proposed and accepted.
    pub fn counts(&self) -> (u32, u32) {
        (self.proposed, self.accepted)
    }

    /// The statistics so far.
    pub fn stats(&self) -> SpeculationStats {
        let draft = self.draft_policy.as_ref().map(DraftPolicy::stats);
        SpeculationStats { ngrams: self.ngram_policy.stats(), draft }
    }
}
