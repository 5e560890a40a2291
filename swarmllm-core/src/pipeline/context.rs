//! The context of a stage where no context is set: how many positions its sessions have in the memory that there is. Pure.

use std::fmt;

/// Positions below which no context shrinks by itself: a prompt's chunk. In it four sessions of SmolLM2-135M take 45 MiB of
/// KV, at 22.5 KiB a token.
pub const LEAST_CONTEXT: u32 = 512;
/// Part of the memory that a stage's weights leave free, which the KV of its sessions may take where no context is set: half, so
/// that another model has room beside it.
const KV_SHARE: u64 = 2;
/// To within so many positions a context is made to fit; engines round up to them.
const CONTEXT_STEP: u32 = 256;

/// Settings of a host that can still be lowered, so that its stages take less memory. Shows what may be advised where memory is
/// short: more of it, and these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Savings {
    /// Whether a stage may have fewer sessions.
    pub sessions: bool,
    /// Whether they may have a shorter context.
    pub context: bool,
}

impl Savings {
    /// Of a host whose stages have so many sessions of so many positions.
    pub fn of(sessions: u32, context: u32) -> Self {
        Self { sessions: sessions > 1, context: context > LEAST_CONTEXT }
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

/// What a stage's context follows from, where no context is set.
pub struct Growth<'a> {
    /// Positions where memory neither asks for fewer nor allows more.
    pub usual: u32,
    /// The model's own.
    pub own: u32,
    /// Bytes that nothing takes.
    pub unused: u64,
    /// Bytes that the stage may take: the unused ones, and those of stages that can be unloaded.
    pub free: u64,
    /// Bytes of the stage with a context.
    pub memory: &'a dyn Fn(u32) -> u64,
}

impl Growth<'_> {
    /// Positions of each session. They grow from the usual ones to the model's own as far as the KV takes its share of what
    /// the weights leave unused, and shrink as far as the stage must to fit at all, down to [`LEAST_CONTEXT`].
    pub fn context(&self) -> u32 {
        if (self.memory)(self.usual) > self.free {
            return self.longest(LEAST_CONTEXT.min(self.usual), self.usual, self.free);
        }
        let bare = (self.memory)(1);
        let most = bare.saturating_add(self.unused.saturating_sub(bare) / KV_SHARE);
        match (self.memory)(self.own) <= most {
            true => self.own,
            false => self.longest(self.usual, self.own, most),
        }
    }

    /// The longest context from `fits` on with which the stage takes at most so many bytes, where with `exceeds` it takes
    /// more; `fits` where there is none.
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

/// The contexts that plans may count on, longest first, where hosts shrink theirs to what fits: `usual`, and each half of the
/// one before down to [`LEAST_CONTEXT`].
pub fn planned(usual: u32) -> impl Iterator<Item = u32> {
    let half = |context: &u32| (*context > LEAST_CONTEXT).then(|| (context / 2).max(LEAST_CONTEXT));
    std::iter::successors(Some(usual), half)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weights of 1,000 bytes and 4 for each position of a session.
    fn memory(context: u32) -> u64 {
        1000 + 4 * u64::from(context)
    }

    fn context(own: u32, unused: u64, free: u64) -> u32 {
        Growth { usual: own.min(4096), own, unused, free, memory: &memory }.context()
    }

    #[test]
    fn a_context_grows_to_the_model_s_own_as_far_as_half_of_the_unused_memory_allows() {
        assert_eq!(context(32_768, 1_000_000, 1_000_000), 32_768, "the model's own");
        let cut = context(131_072, 201_000, 201_000);
        assert!((25_000 - CONTEXT_STEP..=25_001).contains(&cut), "half of 200,000 bytes are 25,000 positions: {cut}");
        assert_eq!(context(131_072, 18_000, 18_000), 4096, "no less than the usual one that fits");
        assert_eq!(context(131_072, 0, 18_000), 4096, "nor where others must be unloaded for it");
    }

    #[test]
    fn a_context_shrinks_to_what_fits_and_never_below_the_least() {
        let cut = context(131_072, 9_000, 9_000);
        assert!((2000 - CONTEXT_STEP..=2000).contains(&cut), "8,000 bytes are 2,000 positions: {cut}");
        assert_eq!(context(131_072, 0, 0), LEAST_CONTEXT, "what does not fit is for the memory's bound to refuse");
        assert_eq!(context(256, 0, 0), 256, "nor more than the model has");
        for free in 0..20_000 {
            let found = context(131_072, free, free);
            assert!(memory(found) <= free || found == LEAST_CONTEXT, "{found} positions in {free} bytes");
        }
    }

    #[test]
    fn only_what_can_still_be_lowered_is_advised_where_memory_is_short() {
        let advice = |sessions, context| Savings::of(sessions, context).to_string();
        assert_eq!(advice(4, 4096), "more `memory`, fewer `sessions` or a shorter `context`");
        assert_eq!(advice(2, LEAST_CONTEXT), "more `memory` or fewer `sessions`");
        assert_eq!(advice(1, LEAST_CONTEXT + 1), "more `memory` or a shorter `context`");
        assert_eq!(advice(1, LEAST_CONTEXT), "more `memory`");
    }

    #[test]
    fn plans_count_on_the_usual_context_first_then_on_its_halves() {
        assert_eq!(planned(4096).collect::<Vec<_>>(), [4096, 2048, 1024, 512]);
        assert_eq!(planned(700).collect::<Vec<_>>(), [700, 512]);
        assert_eq!(planned(256).collect::<Vec<_>>(), [256], "a model that has no more");
    }
}
