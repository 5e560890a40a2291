//! A step of a session in flight.

/// A sent step without its answer.
pub(super) struct StepInFlight {
    pub step: u32,
    /// Rows whose logits are wanted.
    pub wanted: u32,
    /// Tokens of a decode step; empty for input. The first one is final, or a draft token in a chained window; all
    /// others are draft tokens.
    pub window: Vec<u32>,
    /// Whether no other step was in flight at sending.
    pub alone: bool,
    /// Of a window of draft tokens alone, chained behind the window before: the number of windows planned in flight.
    pub chained: Option<usize>,
    /// Whether it follows a rejected draft token; its answer is ignored.
    pub stale: bool,
    /// Whether a draft model was asked for its draft tokens.
    pub from_draft_model: bool,
}

impl StepInFlight {
    /// Number of draft tokens.
    pub fn draft_tokens(&self) -> usize {
        self.window.len().saturating_sub(usize::from(self.chained.is_none()))
    }
}
