//! The price of work. One credit is a million active parameters applied to one token.
//!
//! A stage's weight is the sum of its shards' weights: `ceil(active parameters / 1e6)`, stated in the manifest, so no peer
//! can claim another. A row with an output, as in decoding, costs the weight. A row without one, as in a prompt, costs a
//! quarter: prompts are computed many rows at once, at a multiple of the speed.
//!
//! Sums are integers in thousandths of a credit (milli), rounded up when paid.

/// Price of a row without output, in thousandths of the price of a row with output.
pub const PREFILL_MILLI: u64 = 250;
const MILLI: u64 = 1000;

/// Price of a step in thousandths of a credit: `rows` rows of a stage of this weight, of which `wanted` have an output.
/// Both sides know these numbers and compute the same sum. Saturates, so numbers from a peer cannot overflow it.
pub fn step_cost(weight: u64, rows: u32, wanted: u32) -> u64 {
    let wanted = u64::from(wanted.min(rows));
    let passing = u64::from(rows) - wanted;
    weight.saturating_mul(wanted * MILLI + passing * PREFILL_MILLI)
}

/// Whole credits that cover an amount in thousandths.
pub fn milli_to_credits(milli: u64) -> u64 {
    milli.div_ceil(MILLI)
}

/// Thousandths in an amount of credits.
pub fn credits_to_milli(credits: u64) -> u64 {
    credits.saturating_mul(MILLI)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompt_rows_cost_a_quarter_except_the_last() {
        // 63 rows at a quarter and one at the full price, with 10 million parameters: 10 * (63 * 0.25 + 1) = 167.5.
        assert_eq!(step_cost(10, 64, 1), 167_500);
        assert_eq!([167_500, 0, 1, 1000].map(milli_to_credits), [168, 0, 1, 1]);
    }

    #[test]
    fn no_numbers_overflow() {
        assert_eq!(step_cost(u64::MAX, u32::MAX, 0), u64::MAX);
        assert_eq!(step_cost(1, 1, u32::MAX), 1000);
        assert_eq!(credits_to_milli(u64::MAX), u64::MAX);
    }
}
