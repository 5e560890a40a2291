//! The context of a stage where none is configured: how many positions fit each session into the available memory.
//! Pure.

use std::fmt;

/// Positions below which no context shrinks automatically: one chunk of a prompt. Four sessions of SmolLM2-135M take 45
/// MiB of KV with it, at 22.5 KiB a token.
pub const MIN_CONTEXT: u32 = 512;
/// Divisor of the memory that a stage's weights leave free: KV without a configured context may take half of it, so
/// that another model fits beside it.
const KV_DIVISOR: u64 = 2;
/// Precision of the search for a context, in positions; engines round up to it.
const CONTEXT_STEP: u32 = 256;

/// Settings of a host that can still be lowered to save memory. Displays the advice where memory is short: more memory,
/// and these settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Savings {
    /// Whether a stage can have fewer sessions.
    pub sessions: bool,
    /// Whether its sessions can have a shorter context.
    pub context: bool,
}

impl Savings {
    /// The savings of a host whose stages have `sessions` sessions of `context` positions.
    pub fn of(sessions: u32, context: u32) -> Self {
        Self { sessions: sessions > 1, context: context > MIN_CONTEXT }
    }
}

impl fmt::Display for Savings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.sessions, self.context) {
            (true, true) => "more `memory`, fewer `sessions` or a shorter `context`",
            (true, false) => "more `memory` or fewer `sessions`",
            (false, true) => "more `memory` or a shorter `context`",
            (false, false) => "more `memory`",
        })
    }
}

/// The inputs of a stage's context where none is configured.
pub struct ContextSizing<'a> {
    /// Positions where memory neither requires fewer nor allows more.
    pub usual: u32,
    /// Positions that the model was trained for.
    pub trained: u32,
    /// Bytes of the budget that no stage takes.
    pub unused: u64,
    /// Bytes that the stage may take: the unused bytes, and those of stages that can be unloaded.
    pub free: u64,
    /// Bytes of the stage with a given context.
    pub memory: &'a dyn Fn(u32) -> u64,
}

impl ContextSizing<'_> {
    /// Positions of each session. The context grows from the usual one to the trained one while the KV stays within its
    /// share of the memory that the weights leave unused. It shrinks where the stage does not fit otherwise, down to
    /// [`MIN_CONTEXT`].
    pub fn context(&self) -> u32 {
        if (self.memory)(self.usual) > self.free {
            return self.longest(MIN_CONTEXT.min(self.usual), self.usual, self.free);
        }
        let bare = (self.memory)(1);
        let most = bare.saturating_add(self.unused.saturating_sub(bare) / KV_DIVISOR);
        match (self.memory)(self.trained) <= most {
            true => self.trained,
            false => self.longest(self.usual, self.trained, most),
        }
    }

    /// The longest context from `fits` on with which the stage takes at most `most` bytes, given that it takes more
    /// with `exceeds`; `fits` where no longer context fits.
    fn longest(&self, mut fits: u32, mut exceeds: u32, most: u64) -> u32 {
        while exceeds - fits > CONTEXT_STEP {
            let middle = fits + (exceeds - fits) / 2;
            match (self.memory)(middle) <= most {
                true => fits = middle,
                false => exceeds = middle,
            }
        }
        fits
    }
}

/// The contexts that plans may assume, longest first, where hosts shrink theirs to fit: `usual`, then each half of the
/// previous context down to [`MIN_CONTEXT`].
pub fn planned(usual: u32) -> impl Iterator<Item = u32> {
    let half = |context: &u32| (*context > MIN_CONTEXT).then(|| (context / 2).max(MIN_CONTEXT));
    std::iter::successors(Some(usual), half)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1,000 bytes of weights, and 4 bytes for each position of a session.
    fn memory(context: u32) -> u64 {
        1000 + 4 * u64::from(context)
    }

    fn context(trained: u32, unused: u64, free: u64) -> u32 {
        ContextSizing { usual: trained.min(4096), trained, unused, free, memory: &memory }.context()
    }

    #[test]
    fn a_context_grows_within_half_of_the_unused_memory() {
        assert_eq!(context(32_768, 1_000_000, 1_000_000), 32_768, "the trained context");
        let cut = context(131_072, 201_000, 201_000);
        assert!((25_000 - CONTEXT_STEP..=25_001).contains(&cut), "half of 200,000 bytes are 25,000 positions: {cut}");
        assert_eq!(context(131_072, 18_000, 18_000), 4096, "at least the usual context, which fits");
        assert_eq!(context(131_072, 0, 18_000), 4096, "even where other stages must be unloaded for it");
    }

    #[test]
    fn a_context_shrinks_to_fit_and_never_below_the_minimum() {
        let cut = context(131_072, 9_000, 9_000);
        assert!((2000 - CONTEXT_STEP..=2000).contains(&cut), "8,000 bytes are 2,000 positions: {cut}");
        assert_eq!(context(131_072, 0, 0), MIN_CONTEXT, "the memory limit refuses a stage that does not fit");
        assert_eq!(context(256, 0, 0), 256, "never beyond the trained context");
        for free in 0..20_000 {
            let found = context(131_072, free, free);
            assert!(memory(found) <= free || found == MIN_CONTEXT, "{found} positions in {free} bytes");
        }
    }

    #[test]
    fn advice_names_only_settings_that_can_be_lowered() {
        let advice = |sessions, context| Savings::of(sessions, context).to_string();
        assert_eq!(advice(4, 4096), "more `memory`, fewer `sessions` or a shorter `context`");
        assert_eq!(advice(2, MIN_CONTEXT), "more `memory` or fewer `sessions`");
        assert_eq!(advice(1, MIN_CONTEXT + 1), "more `memory` or a shorter `context`");
        assert_eq!(advice(1, MIN_CONTEXT), "more `memory`");
    }

    #[test]
    fn plans_assume_the_usual_context_first_then_its_halves() {
        assert_eq!(planned(4096).collect::<Vec<_>>(), [4096, 2048, 1024, 512]);
        assert_eq!(planned(700).collect::<Vec<_>>(), [700, 512]);
        assert_eq!(planned(256).collect::<Vec<_>>(), [256], "a model trained for fewer positions");
    }
}
