//! Speculation: draft tokens, and how many of them are worth their rows. Pure.
//!
//! [`NGrams`] proposes the continuation of the last n-gram match in the text; [`NGramPolicy`] says how many of its
//! tokens pay. The longer the match, the more often its continuation is right; hit rates are measured on every token of
//! the text, speculated or not. The stages compute a window of draft tokens in one step. The coordinator samples row
//! after row and accepts draft tokens while they equal the sample, so speculation changes the speed and never the text.
//! (Prompt lookup decoding, Saxena 2023; the verification is that of Leviathan et al. 2023 for a draft of probability
//! 1.)
//!
//! A window may be chained behind another before that is answered, so that idle stages have work.
//!
//! The cost of a window is no simple function of its rows: llama.cpp computes some numbers of rows by other kernels
//! than others, and an accelerator prepares each number once. So each length is measured before it is judged, twice
//! where nothing was known of it (`WindowCosts`). [`SpeculationHistory`] keeps the measurements for the next answers.
//!
//! An estimate may be wrong. So draft tokens are paid from a `SpeculationBudget`, which gains what they save and loses
//! what they waste: an answer without repetitions is at most a token or two slower than without speculation.
//!
//! The tokens of a draft model have a policy of their own ([`DraftPolicy`]), because the draft model states a
//! probability for each.

mod budget;
mod costs;
mod draft_policy;
mod history;
mod ngram_policy;
mod ngrams;
mod timing;

pub use draft_policy::{DraftContinuation, DraftLimits, DraftModel, DraftPolicy, DraftStats, DraftToken};
pub use history::SpeculationHistory;
pub use ngram_policy::{MAX_DRAFT_TOKENS, NGramMatch, NGramPolicy, NGramStats, WindowPlan};
pub use ngrams::NGrams;
pub use timing::StepTiming;

/// Speculation statistics: of n-gram matches, and of a draft model.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SpeculationStats {
    /// Of n-gram matches.
    pub ngrams: NGramStats,
    /// Of the draft model; `None` without one, or where it failed.
    pub draft: Option<DraftStats>,
}

/// Source of draft tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speculation {
    /// No speculation.
    Off,
    /// The continuation of the last n-gram match in the text.
    NGrams,
    /// N-gram matches or a draft model, which the runner asks.
    Draft(DraftModel),
}
