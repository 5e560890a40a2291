//! Timing of an answered step.

/// Timing of a step, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepTiming {
    /// From its sending to its answer.
    pub round: u32,
    /// From the answer before to this one.
    pub gap: u32,
    /// Compute time of the slowest stage.
    pub busy: u32,
    /// Compute time of all stages together.
    pub computed: u32,
    /// Time of the draft model before its sending; part of `round`.
    pub drafting: u32,
}

impl StepTiming {
    /// The same without the time of the draft model.
    pub fn without_drafting(self) -> Self {
        let Self { round, gap, drafting, .. } = self;
        Self { round: round.saturating_sub(drafting), gap: gap.saturating_sub(drafting), drafting: 0, ..self }
    }
}
