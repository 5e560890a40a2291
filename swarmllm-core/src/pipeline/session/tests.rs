//! What a session sends, samples and refuses, step by step.

use std::sync::Arc;

use super::*;
use crate::base::ModelId;
use crate::engine::constraint::{Constraint, ConstraintCompiler};
use crate::engine::sample::SamplingParams;
use crate::pipeline::session::speculation::{DraftModel, DraftToken};
use proptest::prelude::*;

const VOCAB: u32 = 100;
const EOS: u32 = 99;

fn session(prompt: usize, max_tokens: u32, max_rows: u32) -> Session {
    let sampling = SamplingParams { temperature: 0.0, ..Default::default() };
    let prompt = (0..prompt as u32).collect();
    let (chunk, cached, speculation) = (max_rows, 0, Speculation::Off);
    let params = SessionParams {
        prompt,
        max_tokens,
        max_rows,
        chunk,
        vocab: VOCAB,
        cached,
        speculation,
        stats: SpeculationStats::default(),
    };
    Session::new(params, Sampler::new(sampling, VOCAB).unwrap(), Box::new(|token| token == EOS))
}

/// Timing of a step at one stage without a network.
fn timing(micros: u32) -> StepTiming {
    StepTiming { round: micros, gap: micros, busy: micros, computed: micros, drafting: 0 }
}

fn row(token: u32) -> LogitRow {
    LogitRow::Top { lse: 0.0, ids: vec![token], logits: vec![0.0] }
}

fn steps(actions: &[Action]) -> Vec<(u32, u32, usize, u32)> {
    let step = |action: &Action| match action {
        Action::Step { step, pos, tokens, want_from, .. } => Some((*step, *pos, tokens.len(), *want_from)),
        _ => None,
    };
    actions.iter().filter_map(step).collect()
}

#[test]
fn the_prompt_goes_in_chunks_with_logits_of_its_last_row() {
    let actions = session(10, 4, 4).start();
    assert_eq!(steps(&actions), [(0, 0, 4, 4), (1, 4, 4, 4), (2, 8, 2, 1)]);
}

#[test]
fn chunks_in_flight_are_bounded() {
    let mut session = session(MAX_CHUNKS_IN_FLIGHT + 2, 1, 1);
    assert_eq!(session.start().len(), MAX_CHUNKS_IN_FLIGHT);
    assert_eq!(steps(&session.on_logits(0, &[], timing(1))).len(), 1);
}

#[test]
fn a_token_is_emitted_and_sent_at_the_next_position() {
    let mut session = session(3, 8, 16);
    session.start();
    let actions = session.on_logits(0, &[row(42)], timing(1));
    assert_eq!(actions[0], Action::Emit(SampledToken { token: 42, logprob: 0.0, alternatives: Vec::new() }));
    assert_eq!(steps(&actions), [(1, 3, 1, 0)]);
}

#[test]
fn it_ends_at_the_limit_and_at_an_end_token() {
    let mut one = session(3, 1, 16);
    one.start();
    assert_eq!(one.on_logits(0, &[row(42)], timing(1)).last(), Some(&Action::End(SessionEnd::Length)));
    let mut two = session(3, 9, 16);
    two.start();
    assert_eq!(two.on_logits(0, &[row(EOS)], timing(1)), [Action::End(SessionEnd::Stop)]);
    assert!(two.generated().is_empty());
}

#[test]
fn stages_with_less_context_end_the_answer_earlier() {
    let mut session = session(3, 9, 16);
    session.start();
    session.limit(2);
    session.limit(5);
    assert!(session.on_logits(0, &[row(42)], timing(1)).iter().all(|action| !matches!(action, Action::End(_))));
    assert_eq!(session.on_logits(1, &[row(43)], timing(1)).last(), Some(&Action::End(SessionEnd::Length)));
}

#[test]
fn malformed_answers_fail_the_session_once() {
    for (step, rows) in [(1, vec![row(1)]), (0, vec![]), (0, vec![row(1), row(1)]), (0, vec![row(VOCAB)])] {
        let mut session = session(3, 9, 16);
        session.start();
        let actions = session.on_logits(step, &rows, timing(1));
        assert!(matches!(actions.as_slice(), [Action::Fail(fault)] if fault.kind() == ErrorKind::BadFrame));
        assert!(session.on_logits(0, &[row(1)], timing(1)).is_empty());
        assert!(session.stop(SessionEnd::Cancelled).is_empty());
    }
}

#[test]
fn cached_tokens_are_not_sent_but_the_last_token_is() {
    let with = |cached| {
        let params = SessionParams { cached, ..session(10, 4, 8).params };
        let mut session = Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), never());
        steps(&session.start())
    };
    assert_eq!(with(4), [(0, 4, 6, 5)]);
    assert_eq!(with(10), [(0, 9, 1, 0)]);
}

#[test]
fn tokens_behind_a_stop_text_are_dropped() {
    let mut session = session(3, 8, 16);
    session.start();
    session.on_logits(0, &[row(42)], timing(1));
    session.on_logits(1, &[row(43)], timing(1));
    assert_eq!(session.stop_after(1), [Action::End(SessionEnd::Stop)]);
    assert_eq!(session.generated(), [42]);
    assert_eq!(session.computed(), [0, 1, 2]);
}

/// Position, rows and first wanted row of each step, and the embedding.
type Read = (Vec<(u32, usize, u32)>, Result<Vec<f32>, Fault>);

/// An embedding session of 150 tokens in chunks of 64 at most; returns its steps and its embedding.
fn read(pooling: Pooling, state: impl Fn(u32) -> Vec<f32>) -> Read {
    let mut session = session(150, 0, 512).pooled(Pool::new(pooling, 2));
    let mut queue: VecDeque<Action> = session.start().into();
    let mut steps = Vec::new();
    loop {
        match queue.pop_front().expect("a session reports its end") {
            Action::Step { step, pos, tokens, want_from, want, .. } => {
                assert_eq!(want, RowOutput::State);
                steps.push((pos, tokens.len(), want_from));
                let wanted = &tokens[want_from as usize..];
                let rows: Vec<LogitRow> = wanted.iter().map(|token| LogitRow::Full(state(*token))).collect();
                queue.extend(session.on_logits(step, &rows, timing(1)));
            }
            Action::End(SessionEnd::Stop) => return (steps, Ok(session.embedding().unwrap())),
            Action::Fail(fault) => return (steps, Err(fault)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn an_embedding_session_pools_each_state_once_and_generates_nothing() {
    // Of 150 tokens the first 100 point one way, the last 50 another.
    let state = |token: u32| if token < 100 { vec![1.5, 0.0] } else { vec![0.0, 4.0] };
    let (steps, mean) = read(Pooling::Mean, state);
    assert_eq!(steps, [(0, 64, 0), (64, 64, 0), (128, 22, 0)]);
    assert_eq!(mean.unwrap(), [0.6, 0.8]);
    let (steps, last) = read(Pooling::Last, state);
    assert_eq!((steps, last.unwrap()), (vec![(0, 150, 149)], vec![0.0, 1.0]));
}

#[test]
fn a_state_of_another_width_fails_an_embedding_session() {
    let (_, refused) = read(Pooling::Mean, |token| vec![1.0; if token == 70 { 3 } else { 2 }]);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::BadFrame);
}

/// A session of digits under a constraint: token 1 is `1`; `EOS` ends it.
fn guided(constraint: &str, max_tokens: u32) -> Session {
    let mut words: Vec<Vec<u8>> = (0..VOCAB).map(|_| Vec::new()).collect();
    (1..=9).for_each(|digit: u8| words[digit as usize] = vec![b'0' + digit]);
    let compiler = Arc::new(ConstraintCompiler::from_texts(words, vec![EOS]).unwrap());
    let guide = compiler.compile(&Constraint::Regex(constraint.to_owned())).unwrap();
    let params = SessionParams { speculation: Speculation::NGrams, ..session(3, max_tokens, 16).params };
    let sampler = Sampler::new(SamplingParams::greedy(), VOCAB).unwrap();
    Session::new(params, sampler, Box::new(|token| token == EOS)).guided(guide)
}

/// Answers every step with a full row that prefers `EOS` and then smaller digits; returns the text and how it ended.
fn follow(mut session: Session) -> (Vec<u32>, Action) {
    let row = LogitRow::Full((0..VOCAB).map(|token| if token == EOS { 0.0 } else { -(token as f32) }).collect());
    let mut queue: VecDeque<Action> = session.start().into();
    let mut generated = Vec::new();
    loop {
        match queue.pop_front().expect("a session reports its end") {
            Action::Step { step, tokens, want, want_from, .. } => {
                assert_eq!(
                    (want, tokens.len() as u32 - want_from),
                    (RowOutput::Full, 1),
                    "the full row, and no draft token"
                );
                queue.extend(session.on_logits(step, std::slice::from_ref(&row), timing(1)));
            }
            Action::Emit(sampled) => generated.push(sampled.token),
            end => return (generated, end),
        }
    }
}

#[test]
fn a_satisfied_constraint_ends_the_answer() {
    assert_eq!(follow(guided("[3-9][1-9]{2}", 9)), (vec![3, 1, 1], Action::End(SessionEnd::Stop)));
    // A constraint satisfied at the limit ends in a stop.
    assert_eq!(follow(guided("[3-9][1-9]{2}", 3)), (vec![3, 1, 1], Action::End(SessionEnd::Stop)));
    assert_eq!(follow(guided("[3-9][1-9]{2}", 2)), (vec![3, 1], Action::End(SessionEnd::Length)));
    // Where the constraint allows an end, the answer ends as soon as the model does.
    assert_eq!(follow(guided("2[1-9]*", 9)), (vec![2], Action::End(SessionEnd::Stop)));
    assert_eq!(follow(guided("2?", 9)), (vec![], Action::End(SessionEnd::Stop)));
}

#[test]
fn a_constraint_without_an_allowed_token_fails_the_session() {
    let (generated, end) = follow(guided("1[1-9]a", 9));
    assert_eq!(generated, [1, 1]);
    assert!(matches!(&end, Action::Fail(fault) if fault.kind() == ErrorKind::InvalidArgument), "{end:?}");
}

fn never() -> Box<dyn Fn(u32) -> bool + Send + Sync> {
    Box::new(|_| false)
}

/// A session with this draft model; returns the text, the draft counts and the number of steps.
fn drafted(draft: impl FnMut(&[u32], usize) -> Option<Vec<u32>>) -> (Vec<u32>, (u32, u32), usize) {
    let (generated, counts, steps, drafted_ahead) = drafted_over(0, draft);
    assert!(drafted_ahead.is_empty(), "without network time there is no time to draft ahead");
    (generated, counts, steps)
}

/// A text to draft ahead behind, and the most tokens.
type DraftedAhead = (Vec<u32>, usize);

/// The same over stages with `travel` microseconds of network time, with the drafts ahead.
fn drafted_over(
    travel: u32,
    mut draft: impl FnMut(&[u32], usize) -> Option<Vec<u32>>,
) -> (Vec<u32>, (u32, u32), usize, Vec<DraftedAhead>) {
    let params = SessionParams {
        speculation: Speculation::Draft(DraftModel { model: ModelId([9; 32]), weight: 100 }),
        ..session(1, 60, 64).params
    };
    let mut session = Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), never());
    let mut queue: VecDeque<Action> = session.start().into();
    let (mut generated, mut steps, mut drafted_ahead) = (Vec::new(), 0, Vec::new());
    loop {
        match queue.pop_front().expect("a session reports its end") {
            Action::Step { step, tokens, want_from, .. } => {
                steps += 1;
                // The answering model counts.
                let next = tokens[want_from as usize..].iter().map(|token| row((token + 1) % 90));
                let (computed, next) = (timing(1000 + tokens.len() as u32), next.collect::<Vec<_>>());
                let round = computed.round + travel;
                queue.extend(session.on_logits(step, &next, StepTiming { round, gap: round, ..computed }));
            }
            Action::DraftAhead { text, max_tokens } => drafted_ahead.push((text, max_tokens)),
            Action::Draft(limits) => {
                let draft = draft(&session.text(), limits.max_tokens);
                let sure = |token| DraftToken { token, probability: 0.95 };
                let continuation = |tokens: Vec<u32>| DraftContinuation {
                    made: tokens.len(),
                    tokens: tokens.into_iter().map(sure).collect(),
                    read: 0,
                };
                queue.extend(session.on_draft(draft.map(continuation)));
            }
            Action::Emit(sampled) => generated.push(sampled.token),
            Action::End(SessionEnd::Length) => return (generated, session.draft_counts(), steps, drafted_ahead),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_draft_model_drafts_ahead_within_the_network_time() {
    let counting = |text: &[u32], max_tokens: usize| {
        let last = text.last().copied().unwrap_or_default();
        Some((last + 1..).take(max_tokens).collect::<Vec<u32>>())
    };
    let (generated, _, _, drafted_ahead) = drafted_over(9000, counting);
    let text: Vec<u32> = (0..=60).collect();
    assert_eq!(generated, text[1..]);
    assert!(!drafted_ahead.is_empty());
    for (behind, max_tokens) in drafted_ahead {
        assert_eq!(behind, text[..behind.len()], "draft tokens are taken to be accepted");
        assert!(max_tokens > 1 && behind.len() + max_tokens <= text.len(), "{} and {max_tokens}", behind.len());
    }
    // A draft token takes a tenth of the 1,001 microseconds of a step, so there is time for two, and for none.
    let some = drafted_over(220, counting).3;
    assert!(!some.is_empty() && some.iter().all(|(_, max_tokens)| *max_tokens == 2), "{some:?}");
    assert!(drafted_over(150, counting).3.is_empty());
    let silent = |_: &[u32], _: usize| Some(Vec::new());
    assert!(drafted_over(9000, silent).3.is_empty(), "there is no window to draft ahead behind");
}

#[test]
fn draft_tokens_save_steps_and_never_change_the_text() {
    let counting = |text: &[u32], max_tokens: usize| {
        let last = text.last().copied().unwrap_or_default();
        Some((last + 1..).take(max_tokens).map(|token| token % 90).collect())
    };
    let plain: Vec<u32> = (1..=60).collect();
    let (generated, (proposed, accepted), steps) = drafted(counting);
    assert_eq!((generated, proposed > 30, accepted), (plain.clone(), true, proposed));
    assert!(steps < 30, "{steps}");
    let (generated, (proposed, accepted), steps) = drafted(|_, max_tokens| Some(vec![7; max_tokens]));
    assert_eq!(generated, plain);
    assert!(proposed > 0 && accepted <= 1 && steps >= 58, "{proposed} {accepted} {steps}");
    for nothing in [Some(Vec::new()), None, Some(vec![VOCAB; 31])] {
        let (generated, (proposed, _), steps) = drafted(|_, _| nothing.clone());
        assert_eq!((generated, proposed, steps), (plain.clone(), 0, 60), "{nothing:?}");
    }
}

/// A model that counts modulo `period`: predictable after one period.
fn counts(period: u32, tokens: u32, speculation: bool, costs: fn(usize) -> u32) -> (Vec<u32>, usize) {
    let params = SessionParams {
        prompt: vec![0],
        max_tokens: tokens,
        max_rows: 64,
        chunk: 64,
        vocab: VOCAB,
        cached: 0,
        speculation: if speculation { Speculation::NGrams } else { Speculation::Off },
        stats: SpeculationStats::default(),
    };
    let mut session = Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), never());
    let mut queue: VecDeque<Action> = session.start().into();
    let (mut generated, mut steps) = (Vec::new(), 0);
    while let Some(action) = queue.pop_front() {
        match action {
            Action::Step { step, tokens, want_from, pos, .. } => {
                assert_eq!(pos as usize, generated.len(), "each step begins with the last final token");
                steps += 1;
                let rows: Vec<LogitRow> =
                    tokens[want_from as usize..].iter().map(|token| row((token + 1) % period)).collect();
                queue.extend(session.on_logits(step, &rows, timing(costs(rows.len()))));
            }
            Action::Emit(sampled) => generated.push(sampled.token),
            Action::End(end) => assert_eq!(end, SessionEnd::Length),
            Action::Fail(fault) => panic!("{fault}"),
            Action::Draft(_) | Action::DraftAhead { .. } => panic!("this session has no draft model"),
        }
    }
    (generated, steps)
}

#[test]
fn speculation_saves_steps_and_never_changes_the_text() {
    let cheap = |rows: usize| 1000 + 10 * rows as u32;
    let (plain, slow) = counts(7, 300, false, cheap);
    let (speculated, fast) = counts(7, 300, true, cheap);
    assert_eq!(speculated, plain);
    assert_eq!(slow, 300);
    assert!(fast < 40, "{fast}");
    // Where a row costs as much as a token, speculation stops once each length is measured.
    let (speculated, even) = counts(7, 900, true, |rows| 1000 * rows as u32);
    assert_eq!(speculated, counts(7, 900, false, cheap).0);
    assert!(even > 600, "{even}");
}

#[test]
fn a_window_never_brings_back_more_full_rows_than_a_frame_holds() {
    let vocab = 1 << 20;
    let max_draft_tokens = |sampling| {
        let params = SessionParams { vocab, max_tokens: 100, max_rows: 512, ..session(1, 1, 64).params };
        Session::new(params, Sampler::new(sampling, vocab).unwrap(), never()).max_draft_tokens()
    };
    let every = SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, ..SamplingParams::greedy() };
    // Rows of 4 MiB, of which 32 MiB are allowed.
    assert_eq!((max_draft_tokens(SamplingParams::greedy()), max_draft_tokens(every)), (MAX_DRAFT_TOKENS, 7));
}

/// A chain of stages on machines of their own, with time in microseconds.
struct Chain {
    stages: usize,
    /// One-way latency between two of them.
    link: u64,
    /// Time to compute a step of this many rows at one of them.
    cost: fn(usize) -> u64,
}

impl Chain {
    /// A model that generates `text[position + 1]` behind `position`: the text of the session, and its time.
    fn generate(&self, text: &[u32], speculation: Speculation) -> (Vec<u32>, u64) {
        let max_tokens = text.len() as u32 - 1;
        let params = SessionParams { prompt: vec![text[0]], max_tokens, speculation, ..session(1, 1, 64).params };
        let mut session = Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), never());
        let mut free = vec![0; self.stages];
        // Steps in flight: times of sending and answer, number, position, rows.
        let mut under_way: VecDeque<(u64, u64, u32, usize, usize)> = VecDeque::new();
        let (mut now, mut answered, mut generated) = (0, 0, Vec::new());
        let mut actions = session.start();
        loop {
            for action in actions {
                match action {
                    Action::Step { step, pos, tokens, .. } => {
                        let mut at = now;
                        for free in &mut free {
                            at = (at + self.link).max(*free) + (self.cost)(tokens.len());
                            *free = at;
                        }
                        under_way.push_back((now, at + self.link, step, pos as usize, tokens.len()));
                    }
                    Action::Emit(sampled) => generated.push(sampled.token),
                    Action::End(_) => return (generated, now),
                    other => panic!("{other:?}"),
                }
            }
            let (sent, arrives, step, pos, len) = under_way.pop_front().expect("a session reports its end");
            now = arrives;
            let rows: Vec<LogitRow> =
                (pos..pos + len).map(|at| row(text.get(at + 1).copied().unwrap_or_default())).collect();
            let timing = StepTiming {
                round: (now - sent) as u32,
                gap: (now - answered) as u32,
                busy: (self.cost)(len) as u32,
                computed: (self.cost)(len) as u32,
                drafting: 0,
            };
            answered = now;
            actions = session.on_logits(step, &rows, timing);
        }
    }
}

/// Where rows cost as much as steps, only chained windows gain anything.
const DEAR: fn(usize) -> u64 = |rows| 10_000 * rows as u64;

#[test]
fn windows_are_chained_over_idle_stages_in_a_repetitive_text() {
    let repeats: Vec<u32> = (0..400).map(|at| at % 23).collect();
    let far = Chain { stages: 3, link: 10_000, cost: DEAR };
    let (plain, slow) = far.generate(&repeats, Speculation::Off);
    let (speculated, fast) = far.generate(&repeats, Speculation::NGrams);
    assert_eq!((&speculated, plain.as_slice()), (&plain, &repeats[1..]));
    // A round takes 70 ms, a stage 10 ms of it.
    assert!(fast * 3 < slow, "{fast} of {slow}");
    // A single nearby stage has no idle time.
    let near = Chain { stages: 1, link: 100, cost: DEAR };
    let (plain, slow) = near.generate(&repeats, Speculation::Off);
    let (speculated, even) = near.generate(&repeats, Speculation::NGrams);
    assert_eq!(speculated, plain);
    assert!(even < slow * 110 / 100, "{even} of {slow}");
}

#[test]
fn windows_that_are_mostly_rejected_cost_little() {
    // Each pair of tokens occurred before, each time with another continuation.
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 30
    };
    let text: Vec<u32> = (0..600).map(|_| next()).collect();
    let far = Chain { stages: 3, link: 10_000, cost: DEAR };
    let (plain, slow) = far.generate(&text, Speculation::Off);
    let (speculated, even) = far.generate(&text, Speculation::NGrams);
    assert_eq!(speculated, plain);
    assert!(even < slow * 110 / 100, "{even} of {slow}");
}

#[test]
fn a_resumed_session_sends_its_text_in_exact_steps_or_chunks() {
    let lost = || {
        let mut session = session(10, 8, 4);
        session.start();
        session.on_logits(0, &[], timing(1));
        session.on_logits(1, &[], timing(1));
        (2..5).for_each(|step| drop(session.on_logits(step, &[row(40 + step)], timing(1))));
        assert_eq!(session.generated(), [42, 43, 44]);
        session
    };
    let mut exact = lost();
    let again = steps(&exact.resume(0, 4, 4, true));
    assert_eq!(again, [(0, 0, 4, 4), (1, 4, 4, 4), (2, 8, 2, 2), (3, 10, 1, 1), (4, 11, 1, 1), (5, 12, 1, 0)]);
    (0..5).for_each(|step| assert!(exact.in_prefill() && exact.on_logits(step, &[], timing(1)).is_empty()));
    let resumed = exact.on_logits(5, &[row(45)], timing(1));
    assert!(matches!(&resumed[0], Action::Emit(sampled) if sampled.token == 45));
    assert_eq!((steps(&resumed), exact.generated()), (vec![(6, 13, 1, 0)], [42, 43, 44, 45].as_slice()));
    let mut fast = lost();
    assert_eq!(steps(&fast.resume(0, 8, 8, false)), [(0, 0, 8, 8), (1, 8, 5, 4)]);
    assert_eq!(fast.computed(), lost().computed(), "all tokens but the last");
    let mut kept = lost();
    assert_eq!(steps(&kept.resume(11, 8, 8, false)), [(0, 11, 2, 1)]);
    // Lost again before any answer, and lost within the prompt.
    assert_eq!(steps(&kept.resume(0, 8, 8, true)).len(), 5);
    let mut early = session(10, 8, 4);
    early.start();
    assert_eq!(steps(&early.resume(0, 4, 4, true)), [(0, 0, 4, 4), (1, 4, 4, 4), (2, 8, 2, 1)]);
    // A session that failed at a malformed answer continues on honest stages.
    assert!(matches!(early.on_logits(0, &[row(1)], timing(1)).as_slice(), [Action::Fail(_)]));
    assert_eq!(steps(&early.resume(0, 4, 4, true)).len(), 3);
    assert!(early.on_logits(0, &[], timing(1)).is_empty() && !early.is_over());
}

#[test]
fn an_embedding_session_pools_anew_on_other_stages() {
    let mut session = session(150, 0, 64).pooled(Pool::new(Pooling::Mean, 2));
    let (wrong, right) = (vec![LogitRow::Full(vec![0.0, 9.0]); 64], vec![LogitRow::Full(vec![3.0, 4.0]); 64]);
    session.start();
    session.on_logits(0, &wrong, timing(1));
    assert_eq!(steps(&session.resume(0, 64, 64, false)), [(0, 0, 64, 0), (1, 64, 64, 0), (2, 128, 22, 0)]);
    session.on_logits(0, &right, timing(1));
    session.on_logits(1, &right, timing(1));
    assert_eq!(session.on_logits(2, &right[..22], timing(1)), [Action::End(SessionEnd::Stop)]);
    assert_eq!(session.embedding().unwrap(), [0.6, 0.8]);
}

/// The next token of a model: it depends on the whole text, and repeats itself often.
fn behind(text: &[u32]) -> u32 {
    let sum: u32 = text.iter().zip(1..).map(|(token, at)| token * (at % 3)).sum();
    if text.len() % 11 < 8 { text.len() as u32 % 5 } else { sum % 7 }
}

/// Runs a session whose stage is lost after each of `lives` answers; the next one has the first half of its KV. Returns
/// the text.
fn with_losses(speculation: Speculation, single_tokens: bool, prompt: usize, lives: &[usize]) -> Vec<u32> {
    const TOKENS: u32 = 60;
    let params = SessionParams { speculation, ..session(prompt, TOKENS, 8).params };
    let mut session = Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), never());
    let (mut kv, mut generated): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
    let mut queue: VecDeque<Action> = session.start().into();
    let (mut lives, mut answered, mut next_step) = (lives.iter(), 0, 0);
    let mut life = lives.next();
    loop {
        match queue.pop_front().expect("a session reports its end") {
            Action::Step { .. } if life == Some(&answered) => {
                // Lost with all steps in flight.
                queue.retain(|action| matches!(action, Action::Emit(_)));
                kv.truncate(if single_tokens { 0 } else { kv.len() / 2 });
                let again = session.resume(kv.len() as u32, 8, 8, single_tokens);
                kv.truncate(steps(&again)[0].1 as usize);
                queue.extend(again);
                (life, answered, next_step) = (lives.next(), 0, 0);
            }
            Action::Step { step, pos, tokens, want_from, .. } => {
                assert_eq!(step, next_step, "steps of a route count from 0");
                assert!(pos as usize <= kv.len(), "positions have no gap");
                kv.truncate(pos as usize);
                let rows = tokens.iter().zip(0..).filter_map(|(token, at)| {
                    kv.push(*token);
                    (at >= want_from).then(|| row(behind(&kv)))
                });
                let rows: Vec<LogitRow> = rows.collect();
                (answered, next_step) = (answered + 1, next_step + 1);
                queue.extend(session.on_logits(step, &rows, timing(1000 + 10 * tokens.len() as u32)));
            }
            Action::Emit(sampled) => generated.push(sampled.token),
            Action::End(SessionEnd::Length) => return generated,
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn losses_at_any_step_never_change_the_text(
        prompt in 1usize..40,
        lives in proptest::collection::vec(0usize..40, 0..6),
        speculation in any::<bool>(),
        single_tokens in any::<bool>(),
    ) {
        let mut text: Vec<u32> = (0..prompt as u32).collect();
        while text.len() < prompt + 60 {
            text.push(behind(&text));
        }
        let speculation = if speculation && !single_tokens { Speculation::NGrams } else { Speculation::Off };
        let generated = with_losses(speculation, single_tokens, prompt, &lives);
        prop_assert_eq!(generated.as_slice(), &text[prompt..]);
    }

    #[test]
    fn windows_in_flight_never_change_the_text(
        text in proptest::collection::vec(0u32..3, 2..200),
        stages in 1usize..5,
        link in 0u64..30_000,
        dear in any::<bool>(),
    ) {
        let chain = Chain { stages, link, cost: if dear { DEAR } else { |rows| 10_000 + 100 * rows as u64 } };
        let (generated, _) = chain.generate(&text, Speculation::NGrams);
        prop_assert_eq!(generated.as_slice(), &text[1..]);
    }

    #[test]
    fn every_position_is_sent_once_and_in_order(prompt in 1usize..60, max_tokens in 1u32..20, max_rows in 1u32..9) {
        let mut session = session(prompt, max_tokens, max_rows);
        let mut queue: VecDeque<Action> = session.start().into();
        let (mut next_pos, mut emitted) = (0u32, 0u32);
        while let Some(action) = queue.pop_front() {
            match action {
                Action::Step { step, pos, tokens, want_from, .. } => {
                    prop_assert_eq!(pos, next_pos);
                    next_pos += tokens.len() as u32;
                    let rows = if want_from < tokens.len() as u32 { vec![row(7)] } else { vec![] };
                    queue.extend(session.on_logits(step, &rows, timing(1)));
                }
                Action::Emit(_) => emitted += 1,
                Action::End(end) => prop_assert_eq!(end, SessionEnd::Length),
                Action::Fail(fault) => prop_assert!(false, "{}", fault),
                Action::Draft { .. } | Action::DraftAhead { .. } => prop_assert!(false, "this session does not speculate"),
            }
        }
        prop_assert_eq!(emitted, max_tokens);
        prop_assert_eq!(next_pos, prompt as u32 + max_tokens - 1);
        prop_assert!(session.is_over());
    }
}
