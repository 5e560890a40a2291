use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::engine::constraint::{Constraint, ConstraintCompiler};

fn reduced(row: &[f32], reduce: Reduce) -> LogitRow {
    let Reduce::Top(k) = reduce else { return LogitRow::Full(row.to_vec()) };
    let mut best = Vec::new();
    top(row, k as usize, &mut best);
    LogitRow::Top {
        lse: log_sum_exp(row),
        ids: best.iter().map(|candidate| candidate.token).collect(),
        logits: best.iter().map(|candidate| candidate.logit).collect(),
    }
}

fn sampler(params: &SamplingParams, vocab: usize) -> Sampler {
    Sampler::new(params.clone(), vocab as u32).unwrap()
}

prop_compose! {
    /// Parameters that allow a reduced row, and some that need the full row.
    fn params()(
        temperature in prop_oneof![Just(0.0f32), 0.1f32..3.0],
        top_k in 0u32..20,
        typical_p in prop_oneof![Just(1.0f32), 0.0f32..=1.0],
        top_p in 0.0f32..=1.0,
        min_p in prop_oneof![Just(0.0f32), 0.0f32..=0.5],
        repeat_penalty in prop_oneof![Just(1.0f32), 0.5f32..2.0],
        repeat_last_n in 0u32..8,
        presence_penalty in prop_oneof![Just(0.0f32), -1.0f32..2.0],
        frequency_penalty in prop_oneof![Just(0.0f32), -1.0f32..2.0],
        // Tokens below 1: every row has them.
        bias in prop_oneof![Just(None), prop_oneof![Just(-100.0f32), -5.0f32..=0.0, -5.0f32..5.0].prop_map(Some)],
        seed: u64,
    ) -> SamplingParams {
        SamplingParams {
            temperature, top_k, typical_p, top_p, min_p, repeat_penalty, repeat_last_n, presence_penalty,
            frequency_penalty, logit_bias: bias.map(|bias| (0, bias)).into_iter().collect(), seed: Some(seed),
        }
    }
}

proptest! {
    #[test]
    fn a_reduced_row_gives_the_full_rows_token(
        params in params(),
        // Few distinct values, so that ties are common.
        row in prop::collection::vec((-6i8..=6).prop_map(|value| f32::from(value) / 2.0), 2..80),
        more in 0u32..4,
        alternatives in 0u32..6,
        steps in 1usize..12,
    ) {
        let sampler = || sampler(&params, row.len()).with_alternatives(alternatives);
        let (mut full, mut short) = (sampler(), sampler());
        let reduce = match short.reduce() {
            Reduce::Top(k) => Reduce::Top(k + more),
            other => other,
        };
        for _ in 0..steps {
            let expected = full.sample(&LogitRow::Full(row.clone())).unwrap();
            prop_assert_eq!(&short.sample(&reduced(&row, reduce)).unwrap(), &expected);
            full.accept(expected.token);
            short.accept(expected.token);
        }
    }

    #[test]
    fn top_k_equals_a_full_sort(
        row in prop::collection::vec((-20i8..=20).prop_map(f32::from), 0..200),
        k in 0usize..220,
    ) {
        let mut sorted: Vec<Candidate> =
            row.iter().enumerate().map(|(token, &logit)| Candidate { token: token as u32, logit }).collect();
        sorted.sort_by(rank);
        sorted.truncate(k);
        let mut best = Vec::new();
        top(&row, k, &mut best);
        prop_assert_eq!(best, sorted);
    }

    #[test]
    fn greedy_chooses_the_first_largest_logit(row in prop::collection::vec((-9i8..=9).prop_map(f32::from), 1..50)) {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let expected = row.iter().position(|&logit| logit == max).unwrap() as u32;
        let mut greedy = sampler(&SamplingParams::greedy(), row.len());
        prop_assert_eq!(greedy.sample(&LogitRow::Full(row)).unwrap().token, expected);
    }

    #[test]
    fn no_row_makes_the_sampler_panic(
        params in params(),
        lse: f32,
        ids in prop::collection::vec(0u32..12, 0..24),
        logits in prop::collection::vec(any::<f32>(), 0..24),
    ) {
        let mut sampler = sampler(&params, 10);
        sampler.accept(3);
        if let Ok(sampled) = sampler.sample(&LogitRow::Full(logits.clone())) {
            prop_assert!(sampled.token < 10);
        }
        if let Ok(sampled) = sampler.sample(&LogitRow::Top { lse, ids, logits }) {
            prop_assert!(sampled.token < 10);
        }
    }
}

/// No truncation and no penalties.
fn plain(seed: u64) -> SamplingParams {
    SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: Some(seed), ..SamplingParams::default() }
}

fn counts(params: &SamplingParams, row: &[f32], draws: u32) -> Vec<u32> {
    let mut sampler = sampler(params, row.len());
    let mut counts = vec![0; row.len()];
    for _ in 0..draws {
        counts[sampler.sample(&LogitRow::Full(row.to_vec())).unwrap().token as usize] += 1;
    }
    counts
}

#[test]
fn tokens_are_drawn_with_their_softmax_probability() {
    const DRAWS: u32 = 20_000;
    let row = [0.0f32, 1.0, -1.0, 2.0, 0.5, -3.0, 1.5, 0.25];
    for temperature in [0.5f32, 1.0, 2.0] {
        let weights: Vec<f64> = row.iter().map(|&logit| f64::from(logit / temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let counts = counts(&SamplingParams { temperature, ..plain(11) }, &row, DRAWS);
        let chi2: f64 = weights
            .iter()
            .zip(&counts)
            .map(|(weight, &count)| {
                let expected = weight / total * f64::from(DRAWS);
                (f64::from(count) - expected).powi(2) / expected
            })
            .sum();
        // 7 degrees of freedom: a fair sampler exceeds this once in a thousand seeds, and this seed is fixed.
        assert!(chi2 < 24.3, "chi-square {chi2} at temperature {temperature}: {counts:?}");
    }
}

#[test]
fn top_k_top_p_and_min_p_keep_the_documented_tokens() {
    // Probabilities 0.5, 0.25, 0.125, 0.125.
    let row = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
    let drawn = |params: SamplingParams| -> Vec<bool> {
        counts(&params, &row, 400).into_iter().map(|count| count > 0).collect()
    };
    assert_eq!(drawn(plain(1)), [true, true, true, true]);
    assert_eq!(drawn(SamplingParams { top_k: 3, ..plain(1) }), [true, true, true, false]);
    assert_eq!(drawn(SamplingParams { top_p: 0.7, ..plain(1) }), [true, true, false, false]);
    assert_eq!(drawn(SamplingParams { top_p: 0.0, ..plain(1) }), [true, false, false, false]);
    assert_eq!(drawn(SamplingParams { min_p: 0.3, ..plain(1) }), [true, true, false, false]);
    assert_eq!(drawn(banned(&[(0, -100.0)])), [false, true, true, true]);
    // top-p applies to the tokens that top-k left: 0.5 of 0.75 is two thirds.
    assert_eq!(drawn(SamplingParams { top_k: 2, top_p: 0.66, ..plain(1) }), [true, false, false, false]);
}

/// [`plain`] with these biases.
fn banned(biases: &[(u32, f32)]) -> SamplingParams {
    SamplingParams { logit_bias: biases.iter().copied().collect(), ..plain(1) }
}

#[test]
fn typical_sampling_keeps_tokens_of_nearly_the_expected_surprise() {
    // Surprises in bits: 1, 2, 3, 4, 4. The entropy is 1.875: the second token is nearest, then the first.
    let row = [0.5f32, 0.25, 0.125, 0.0625, 0.0625].map(f32::ln);
    let drawn = |typical_p, min_p| -> Vec<bool> {
        counts(&SamplingParams { typical_p, min_p, ..plain(1) }, &row, 600).into_iter().map(|count| count > 0).collect()
    };
    assert_eq!(drawn(1.0, 0.0), [true; 5]);
    assert_eq!(drawn(0.0, 0.0), [false, true, false, false, false]);
    assert_eq!(drawn(0.2, 0.0), [false, true, false, false, false]);
    assert_eq!(drawn(0.3, 0.0), [true, true, false, false, false]);
    assert_eq!(drawn(0.8, 0.0), [true, true, true, false, false]);
    // min-p applies to the remaining tokens: the best of them is the second.
    assert_eq!(drawn(0.2, 1.0), [false, true, false, false, false]);
    // The kept tokens are drawn in their original proportions.
    let counts = counts(&SamplingParams { typical_p: 0.3, ..plain(7) }, &row, 6000);
    assert!((1850..2150).contains(&counts[1]), "{counts:?}");
}

#[test]
fn a_bias_raises_lowers_and_bans() {
    let row = LogitRow::Full(vec![1.0, 0.5, 0.0, -20.0]);
    let greedy = |biases: &[(u32, f32)]| {
        let params = SamplingParams { temperature: 0.0, ..banned(biases) };
        sampler(&params, 4).sample(&row)
    };
    assert_eq!(greedy(&[]).unwrap().token, 0);
    assert_eq!(greedy(&[(3, 30.0)]).unwrap().token, 3);
    assert_eq!(greedy(&[(0, -0.75)]).unwrap().token, 1);
    assert_eq!(greedy(&[(0, -100.0), (1, -100.0), (2, -100.0)]).unwrap().token, 3);
    assert_eq!(greedy(&[(0, -100.0), (1, -100.0), (2, -100.0), (3, -100.0)]), Err(SampleError::AllBanned));
    // The reported probability is the model's.
    let raised = greedy(&[(3, 30.0)]).unwrap();
    assert!(raised.logprob < -20.0, "{raised:?}");
    let unbanned = sampler(&banned(&[(0, -99.0)]), 1).sample(&LogitRow::Full(vec![0.0]));
    assert_eq!(unbanned.unwrap().token, 0);
}

#[test]
fn a_mask_restricts_the_choice_and_needs_a_full_row() {
    let compiler =
        ConstraintCompiler::from_texts(vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()], Vec::new()).unwrap();
    let mut guide = Arc::new(compiler).compile(&Constraint::Regex("[bc]".to_owned())).unwrap();
    let allowed = guide.allowed().unwrap();
    let row = LogitRow::Full(vec![9.0, 1.0, 2.0]);
    let mut greedy = sampler(&SamplingParams::greedy(), 3).with_alternatives(1);
    let sampled = greedy.sample_within(&row, Some(&allowed)).unwrap();
    assert_eq!(sampled.token, 2);
    let reduced = LogitRow::Top { lse: 9.0, ids: vec![0], logits: vec![9.0] };
    assert!(matches!(greedy.sample_within(&reduced, Some(&allowed)), Err(SampleError::TooFew { .. })));
    let mut none = sampler(&banned(&[(1, -100.0), (2, -100.0)]), 3);
    assert_eq!(none.sample_within(&row, Some(&allowed)), Err(SampleError::AllBanned));
    let mut drawn = sampler(&plain(3), 3);
    let tokens: Vec<u32> = (0..50).map(|_| drawn.sample_within(&row, Some(&allowed)).unwrap().token).collect();
    assert!(tokens.iter().all(|token| *token > 0) && tokens.contains(&1) && tokens.contains(&2), "{tokens:?}");
}

#[test]
fn under_a_constraint_probabilities_are_among_allowed_tokens() {
    let compiler =
        ConstraintCompiler::from_texts(vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()], Vec::new()).unwrap();
    let mut guide = Arc::new(compiler).compile(&Constraint::Regex("[bc]".to_owned())).unwrap();
    let allowed = guide.allowed().unwrap();
    let row = LogitRow::Full([0.9f32, 0.075, 0.025].map(f32::ln).to_vec());
    // A bias and a temperature change the draw, never the reported probabilities.
    let params = SamplingParams { logit_bias: BTreeMap::from([(2, 5.0)]), ..SamplingParams::greedy() };
    let sampled = sampler(&params, 3).with_alternatives(3).sample_within(&row, Some(&allowed)).unwrap();
    let reported: Vec<(u32, f32)> =
        sampled.alternatives.iter().map(|(token, logprob)| (*token, logprob.exp())).collect();
    assert_eq!(sampled.token, 2);
    assert!((sampled.logprob.exp() - 0.25).abs() < 1e-6, "{sampled:?}");
    assert_eq!(reported.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [1, 2], "{reported:?}");
    assert!((reported[0].1 - 0.75).abs() < 1e-6 && (reported[1].1 - 0.25).abs() < 1e-6, "{reported:?}");
    let free = sampler(&params, 3).with_alternatives(1).sample(&row).unwrap();
    assert_eq!(free.alternatives[0].0, 0, "without a constraint the probabilities are the model's");
}

#[test]
fn alternatives_are_the_best_tokens_of_the_models_row() {
    let row = [0.5f32, 0.25, 0.125, 0.125].map(f32::ln);
    let params = SamplingParams { presence_penalty: 2.0, temperature: 0.0, ..banned(&[(1, -100.0)]) };
    let mut sampler = sampler(&params, 4).with_alternatives(3);
    sampler.accept(0);
    let sampled = sampler.sample(&LogitRow::Full(row.to_vec())).unwrap();
    assert_eq!(sampled.token, 2);
    let tokens: Vec<u32> = sampled.alternatives.iter().map(|(token, _)| *token).collect();
    assert_eq!(tokens, [0, 1, 2]);
    for ((_, logprob), want) in sampled.alternatives.iter().zip([0.5f32, 0.25, 0.125]) {
        assert!((logprob.exp() - want).abs() < 1e-6, "{sampled:?}");
    }
}

#[test]
fn penalties_apply_within_the_window() {
    let row = LogitRow::Full(vec![1.0, 0.9, -0.5]);
    let params = SamplingParams { repeat_penalty: 2.0, repeat_last_n: 2, ..SamplingParams::greedy() };
    let mut sampler = sampler(&params, 3);
    let chosen: Vec<u32> = (0..5)
        .map(|_| {
            let token = sampler.sample(&row).unwrap().token;
            sampler.accept(token);
            token
        })
        .collect();
    // 0 is best; then 0 is halved; then both are; and after two tokens 0, token 1 has left the window of two.
    assert_eq!(chosen, [0, 1, 0, 0, 1]);
}

#[test]
fn a_logprob_is_that_of_the_models_row() {
    let row = [0.5f32, 0.25, 0.25].map(f32::ln);
    let params = SamplingParams { presence_penalty: 2.0, ..SamplingParams::greedy() };
    let mut sampler = sampler(&params, 3);
    sampler.accept(0);
    let sampled = sampler.sample(&LogitRow::Full(row.to_vec())).unwrap();
    assert_eq!(sampled.token, 1);
    assert!((sampled.logprob - 0.25f32.ln()).abs() < 1e-6);
}

#[test]
fn the_draws_of_a_seed_never_change() {
    let mut draws = DrawStream::new(42);
    let drawn: Vec<u64> = (0..4).map(|_| (draws.next() * 1e9) as u64).collect();
    assert_eq!(drawn, [101_172_191, 73_132_535, 835_104_916, 528_530_940]);
}

#[test]
fn the_reduction_is_the_smallest_that_decides() {
    let reduce = |params: SamplingParams| sampler(&params, 1000).reduce();
    let penalty = |repeat_penalty, top_k| SamplingParams { repeat_penalty, top_k, ..SamplingParams::default() };
    assert_eq!(reduce(SamplingParams::greedy()), Reduce::Top(1));
    assert_eq!(reduce(SamplingParams::default()), Reduce::Top(40));
    assert_eq!(reduce(penalty(1.1, 40)), Reduce::Top(104));
    assert_eq!(reduce(penalty(1.1, 0)), Reduce::Full);
    assert_eq!(reduce(penalty(0.9, 40)), Reduce::Full);
    assert_eq!(reduce(penalty(1.0, 900)), Reduce::Full);
    assert_eq!(reduce(plain(0)), Reduce::Full);
    // A lowering bias may displace one token, a raising bias may bring in any.
    let bias = |bias| SamplingParams { logit_bias: [(7, bias), (8, -100.0)].into(), ..SamplingParams::default() };
    assert_eq!(reduce(bias(-1.0)), Reduce::Top(42));
    assert_eq!(reduce(bias(0.5)), Reduce::Full);
    let reported = |alternatives| sampler(&SamplingParams::greedy(), 1000).with_alternatives(alternatives).reduce();
    assert_eq!(
        (reported(0), reported(5), reported(99)),
        (Reduce::Top(1), Reduce::Top(5), Reduce::Top(MAX_ALTERNATIVES))
    );
}

#[test]
fn values_outside_their_ranges_are_refused() {
    type Change = fn(&mut SamplingParams);
    let changes: [Change; 11] = [
        |params| params.temperature = f32::NAN,
        |params| params.temperature = -0.1,
        |params| params.top_p = 1.1,
        |params| params.min_p = -0.1,
        |params| params.repeat_penalty = 0.0,
        |params| params.presence_penalty = 2.1,
        |params| params.frequency_penalty = f32::INFINITY,
        |params| params.repeat_last_n = u32::MAX,
        |params| params.typical_p = 1.5,
        |params| params.logit_bias = [(1, f32::NAN)].into(),
        |params| params.logit_bias = [(1, 100.5)].into(),
    ];
    for change in changes {
        let mut params = SamplingParams::default();
        assert_eq!(params.check(), Ok(()));
        change(&mut params);
        assert!(matches!(Sampler::new(params, 10), Err(SampleError::OutOfRange { .. })));
    }
}

#[test]
fn too_many_biases_and_unknown_tokens_are_refused() {
    let many = |count: u32| SamplingParams { logit_bias: (0..count).map(|token| (token, 1.0)).collect(), ..plain(0) };
    let max = SamplingParams::MAX_BIASES;
    assert_eq!(many(max as u32 + 1).check(), Err(SampleError::TooManyBiases { given: max + 1, max }));
    assert_eq!(many(max as u32).check(), Ok(()));
    let foreign = Sampler::new(banned(&[(10, 1.0)]), 10).err();
    assert_eq!(foreign, Some(SampleError::BiasToken { token: 10, vocab: 10 }));
    assert_eq!(foreign.map(|error| error.kind()), Some(ErrorKind::InvalidArgument));
}

#[test]
fn impossible_rows_are_refused() {
    let params = SamplingParams { top_k: 3, ..SamplingParams::default() };
    let mut sampler = sampler(&params, 10);
    let top = |ids: &[u32], logits: &[f32]| LogitRow::Top { lse: 1.0, ids: ids.to_vec(), logits: logits.to_vec() };
    let mut refused = |row: LogitRow| sampler.sample(&row).unwrap_err();
    assert_eq!(refused(LogitRow::Full(vec![0.0; 9])), SampleError::Length { logits: 9, expected: 10 });
    assert_eq!(refused(LogitRow::Full(vec![f32::NAN; 10])), SampleError::NotFinite);
    assert_eq!(refused(top(&[1, 2], &[1.0, 0.5])), SampleError::TooFew { given: 2, needed: 3 });
    assert_eq!(refused(top(&[1, 2, 10], &[1.0, 0.5, 0.2])), SampleError::Token { token: 10, vocab: 10 });
    assert_eq!(refused(top(&[1, 2, 3], &[1.0, 0.5])), SampleError::Length { logits: 2, expected: 3 });
    assert_eq!(refused(top(&[1, 2, 3], &[1.0, f32::INFINITY, 0.2])), SampleError::NotFinite);
    let no_lse = LogitRow::Top { lse: f32::NAN, ids: vec![1, 2, 3], logits: vec![1.0, 0.5, 0.2] };
    assert_eq!(refused(no_lse), SampleError::NotFinite);
}

#[test]
fn missing_parameters_are_the_defaults() {
    let params: SamplingParams = serde_json::from_str(r#"{"temperature":0.1}"#).unwrap();
    assert_eq!(params, SamplingParams { temperature: 0.1, ..SamplingParams::default() });
}

#[test]
fn exp_is_accurate_and_log_sum_exp_detects_non_finite_logits() {
    for step in 0..=87_000 {
        let x = -(step as f32) / 1000.0;
        let (got, want) = (f64::from(exp_of_negative(x)), f64::from(x).exp());
        assert!((got - want).abs() <= want * 3e-7, "e^{x}: {got} {want}");
    }
    assert_eq!(exp_of_negative(0.0), 1.0);
    assert!(exp_of_negative(f32::NEG_INFINITY) < 1e-37);
    let mut row: Vec<f32> = (0..777).map(|index| (index as f32).sin() * 40.0).collect();
    let exact = row.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
    assert!((f64::from(log_sum_exp(&row)) - exact).abs() < 1e-5, "{exact}");
    for foreign in [f32::NAN, f32::INFINITY] {
        row[500] = foreign;
        assert!(!log_sum_exp(&row).is_finite());
    }
    assert!(!log_sum_exp(&[]).is_finite() && !log_sum_exp(&[f32::NEG_INFINITY; 3]).is_finite());
    assert_eq!(log_sum_exp(&[f32::NEG_INFINITY, 2.0]), 2.0);
}
