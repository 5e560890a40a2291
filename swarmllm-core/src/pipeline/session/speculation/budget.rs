//! The budget of speculation: how much time an answer may still lose by it, in plain tokens.
//!
//! A window adds the tokens that it gained and subtracts the time that it took. No window is sent whose possible loss exceeds
//! the budget. So an answer loses at most what is added without a gain: an initial amount, and a little with each plain token.

/// Budget of a model's first answer, in plain tokens; also the largest budget or debt that an answer leaves to the next.
pub(super) const INITIAL_BUDGET: f64 = 1.0;
/// What each plain token adds.
pub(super) const ALLOWANCE: f64 = 0.005;
/// A possible loss counts with its probability, and at least with this one: a long series of hits may end.
pub(super) const MIN_LOSS_PROBABILITY: f64 = 0.25;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(super) struct SpeculationBudget {
    tokens: f64,
    limit: f64,
}

impl SpeculationBudget {
    /// A budget of `tokens` plain tokens that grows to at most `limit`.
    pub fn new(tokens: f64, limit: f64) -> Self {
        Self { tokens, limit }
    }

    /// Adds a gain, or subtracts a loss.
    pub fn add(&mut self, tokens: f64) {
        self.tokens = (self.tokens + tokens).min(self.limit);
    }

    /// Adds the allowance of a plain token.
    pub fn add_plain_token(&mut self) {
        self.add(ALLOWANCE);
    }

    /// Whether a loss with this probability is covered.
    pub fn covers(&self, loss: f64, probability: f64) -> bool {
        loss * probability.max(MIN_LOSS_PROBABILITY) <= self.tokens
    }

    /// The budget behind a loss with the least probability.
    pub fn left_after(&self, loss: f64) -> f64 {
        self.tokens - loss * MIN_LOSS_PROBABILITY
    }

    /// Initial budget of the next answer.
    pub fn carried_over(&self) -> f64 {
        self.tokens.clamp(-INITIAL_BUDGET, INITIAL_BUDGET)
    }
}
