//! What work costs. A credit is a million active parameters applied to one token.
//!
//! A stage's weight is the sum of its shards' (`ceil(active parameters / 1e6)`, in the manifest, so that nobody can claim
//! another one); a row costs its weight where its output is wanted, as in decoding, and a quarter of it where it only
//! passes through, as in a prompt: prompts are computed many rows at once, at a multiple of the speed.
//!
//! Sums are kept in thousandths, integers only, and rounded up where they are paid.

/// What a row without output costs, in thousandths of one with output.
pub const PREFILL_MILLI: u64 = 250;
const MILLI: u64 = 1000;

/// Thousandths of a credit for a step: `rows` of a stage of this weight, of which `wanted` have an output. As both sides
/// know these numbers, both come to the same sum; numbers from a peer cannot overflow it.
pub fn milli(weight: u64, rows: u32, wanted: u32) -> u64 {
    let wanted = u64::from(wanted.min(rows));
    let passing = u64::from(rows) - wanted;
    weight.saturating_mul(wanted * MILLI + passing * PREFILL_MILLI)
}

/// Whole credits that pay for so many thousandths.
pub fn credits(milli: u64) -> u64 {
    milli.div_ceil(MILLI)
}

/// Thousandths that so many credits pay for.
pub fn paid(credits: u64) -> u64 {
    credits.saturating_mul(MILLI)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_costs_a_quarter_and_its_last_row_the_whole() {
        // 63 rows at a quarter and one at the whole, of 10 million parameters: 10 * (63 * 0.25 + 1) = 167.5.
        assert_eq!(milli(10, 64, 1), 167_500);
        assert_eq!((credits(167_500), credits(0), credits(1), credits(1000)), (168, 0, 1, 1));
    }

    #[test]
    fn no_numbers_overflow() {
        assert_eq!(milli(u64::MAX, u32::MAX, 0), u64::MAX);
        assert_eq!(milli(1, 1, u32::MAX), 1000);
        assert_eq!(paid(u64::MAX), u64::MAX);
    }
}
