//! What a session sends, chooses and refuses, step by step.

use std::sync::Arc;

use super::*;
use crate::base::ModelId;
use crate::engine::constraint::{Constraint, Lexicon};
use crate::engine::sample::SamplingParams;
use crate::pipeline::draft::DraftToken;
use proptest::prelude::*;

const VOCAB: u32 = 100;
const EOS: u32 = 99;

fn session(prompt: usize, max_tokens: u32, max_rows: u32) -> Session {
    let sampling = SamplingParams { temperature: 0.0, ..Default::default() };
    let prompt = (0..prompt as u32).collect();
    let (chunk, cached, guess) = (max_rows, 0, Guess::Never);
    let params = SessionParams {
        prompt,
        max_tokens,
        max_rows,
        chunk,
        vocab: VOCAB,
        cached,
        guess,
        learnt: LearntOfGuesses::default(),
    };
    Session::new(params, Sampler::new(sampling, VOCAB).unwrap(), Box::new(|token| token == EOS))
}

/// What a step takes where there is one stage and nothing between.
fn took(micros: u32) -> Took {
    Took { round: micros, gap: micros, busy: micros, computed: micros, guessing: 0 }
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
fn the_prompt_goes_in_chunks_and_only_its_last_row_wants_logits() {
    let actions = session(10, 4, 4).start();
    assert_eq!(steps(&actions), [(0, 0, 4, 4), (1, 4, 4, 4), (2, 8, 2, 1)]);
}

#[test]
fn chunks_in_flight_are_bounded() {
    let mut session = session(MAX_CHUNKS_IN_FLIGHT + 2, 1, 1);
    assert_eq!(session.start().len(), MAX_CHUNKS_IN_FLIGHT);
    assert_eq!(steps(&session.on_logits(0, &[], took(1))).len(), 1);
}

#[test]
fn a_token_is_emitted_and_sent_at_the_next_position() {
    let mut session = session(3, 8, 16);
    session.start();
    let actions = session.on_logits(0, &[row(42)], took(1));
    assert_eq!(actions[0], Action::Emit(Sampled { token: 42, logprob: 0.0, alternatives: Vec::new() }));
    assert_eq!(steps(&actions), [(1, 3, 1, 0)]);
}

#[test]
fn it_ends_at_the_limit_and_at_an_end_token() {
    let mut one = session(3, 1, 16);
    one.start();
    assert_eq!(one.on_logits(0, &[row(42)], took(1)).last(), Some(&Action::End(End::Length)));
    let mut two = session(3, 9, 16);
    two.start();
    assert_eq!(two.on_logits(0, &[row(EOS)], took(1)), [Action::End(End::Stop)]);
    assert!(two.generated().is_empty());
}

#[test]
fn stages_that_have_less_room_than_was_asked_for_end_the_answer_there() {
    let mut session = session(3, 9, 16);
    session.start();
    session.limit(2);
    session.limit(5);
    assert!(session.on_logits(0, &[row(42)], took(1)).iter().all(|action| !matches!(action, Action::End(_))));
    assert_eq!(session.on_logits(1, &[row(43)], took(1)).last(), Some(&Action::End(End::Length)));
}

#[test]
fn answers_out_of_turn_and_foreign_tokens_fail_the_session_once() {
    for (step, rows) in [(1, vec![row(1)]), (0, vec![]), (0, vec![row(1), row(1)]), (0, vec![row(VOCAB)])] {
        let mut session = session(3, 9, 16);
        session.start();
        let actions = session.on_logits(step, &rows, took(1));
        assert!(matches!(actions.as_slice(), [Action::Fail(fault)] if fault.kind() == ErrorKind::BadFrame));
        assert!(session.on_logits(0, &[row(1)], took(1)).is_empty());
        assert!(session.stop(End::Cancelled).is_empty());
    }
}

#[test]
fn what_is_cached_is_not_sent_again_but_the_last_token_always_is() {
    let with = |cached| {
        let params = SessionParams { cached, ..session(10, 4, 8).params };
        let mut session = Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), never());
        steps(&session.start())
    };
    assert_eq!(with(4), [(0, 4, 6, 5)]);
    assert_eq!(with(10), [(0, 9, 1, 0)]);
}

#[test]
fn after_a_stop_text_only_what_was_seen_counts() {
    let mut session = session(3, 8, 16);
    session.start();
    session.on_logits(0, &[row(42)], took(1));
    session.on_logits(1, &[row(43)], took(1));
    assert_eq!(session.stop_after(1), [Action::End(End::Stop)]);
    assert_eq!(session.generated(), [42]);
    assert_eq!(session.computed(), [0, 1, 2]);
}

/// Position, rows and first wanted row of each step, and the embedding.
type Read = (Vec<(u32, usize, u32)>, Result<Vec<f32>, Fault>);

/// A session that reads 150 tokens in chunks of 64 at most; gives its steps and its embedding.
fn read(pooling: Pooling, state: impl Fn(u32) -> Vec<f32>) -> Read {
    let mut session = session(150, 0, 512).reading(Pool::new(pooling, 2));
    let mut queue: VecDeque<Action> = session.start().into();
    let mut steps = Vec::new();
    loop {
        match queue.pop_front().expect("a session says how it ends") {
            Action::Step { step, pos, tokens, want_from, want, .. } => {
                assert_eq!(want, Want::State);
                steps.push((pos, tokens.len(), want_from));
                let wanted = &tokens[want_from as usize..];
                let rows: Vec<LogitRow> = wanted.iter().map(|token| LogitRow::Full(state(*token))).collect();
                queue.extend(session.on_logits(step, &rows, took(1)));
            }
            Action::End(End::Stop) => return (steps, Ok(session.embedding().unwrap())),
            Action::Fail(fault) => return (steps, Err(fault)),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_session_that_reads_pools_each_state_once_and_generates_nothing() {
    // Of 150 tokens the first 100 point one way, the last 50 another.
    let state = |token: u32| if token < 100 { vec![1.5, 0.0] } else { vec![0.0, 4.0] };
    let (steps, mean) = read(Pooling::Mean, state);
    assert_eq!(steps, [(0, 64, 0), (64, 64, 0), (128, 22, 0)]);
    assert_eq!(mean.unwrap(), [0.6, 0.8]);
    let (steps, last) = read(Pooling::Last, state);
    assert_eq!((steps, last.unwrap()), (vec![(0, 150, 149)], vec![0.0, 1.0]));
}

#[test]
fn a_state_of_another_width_fails_a_session_that_reads() {
    let (_, refused) = read(Pooling::Mean, |token| vec![1.0; if token == 70 { 3 } else { 2 }]);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::BadFrame);
}

/// A session of digits under a constraint: token 1 is `1`; `EOS` ends it.
fn guided(constraint: &str, max_tokens: u32) -> Session {
    let mut words: Vec<Vec<u8>> = (0..VOCAB).map(|_| Vec::new()).collect();
    (1..=9).for_each(|digit: u8| words[digit as usize] = vec![b'0' + digit]);
    let lexicon = Arc::new(Lexicon::from_words(words, vec![EOS]).unwrap());
    let guide = lexicon.compile(&Constraint::Regex(constraint.to_owned())).unwrap();
    let params = SessionParams { guess: Guess::Repeats, ..session(3, max_tokens, 16).params };
    let sampler = Sampler::new(SamplingParams::greedy(), VOCAB).unwrap();
    Session::new(params, sampler, Box::new(|token| token == EOS)).guided(guide)
}

/// Answers every step with a full row that likes `EOS` best and then the smaller digits; gives what was said and how
/// it ended.
fn follow(mut session: Session) -> (Vec<u32>, Action) {
    let row = LogitRow::Full((0..VOCAB).map(|token| if token == EOS { 0.0 } else { -(token as f32) }).collect());
    let mut queue: VecDeque<Action> = session.start().into();
    let mut said = Vec::new();
    loop {
        match queue.pop_front().expect("a session says how it ends") {
            Action::Step { step, tokens, want, want_from, .. } => {
                assert_eq!((want, tokens.len() as u32 - want_from), (Want::Full, 1), "the full row, and no guess");
                queue.extend(session.on_logits(step, std::slice::from_ref(&row), took(1)));
            }
            Action::Emit(sampled) => said.push(sampled.token),
            end => return (said, end),
        }
    }
}

#[test]
fn a_constraint_is_followed_to_its_end_and_ends_the_answer_there() {
    assert_eq!(follow(guided("[3-9][1-9]{2}", 9)), (vec![3, 1, 1], Action::End(End::Stop)));
    // Whole at the limit is whole.
    assert_eq!(follow(guided("[3-9][1-9]{2}", 3)), (vec![3, 1, 1], Action::End(End::Stop)));
    assert_eq!(follow(guided("[3-9][1-9]{2}", 2)), (vec![3, 1], Action::End(End::Length)));
    // Where it may end, it ends as soon as the model wants.
    assert_eq!(follow(guided("2[1-9]*", 9)), (vec![2], Action::End(End::Stop)));
    assert_eq!(follow(guided("2?", 9)), (vec![], Action::End(End::Stop)));
}

#[test]
fn where_no_token_continues_the_answer_it_fails() {
    let (said, end) = follow(guided("1[1-9]a", 9));
    assert_eq!(said, [1, 1]);
    assert!(matches!(&end, Action::Fail(fault) if fault.kind() == ErrorKind::InvalidArgument), "{end:?}");
}

fn never() -> Box<dyn Fn(u32) -> bool + Send + Sync> {
    Box::new(|_| false)
}

/// A session whose draft model guesses so.
fn drafted(guess: impl FnMut(&[u32], usize) -> Option<Vec<u32>>) -> (Vec<u32>, (u32, u32), usize) {
    let (said, counts, steps, foreseen) = drafted_over(0, guess);
    assert!(foreseen.is_empty(), "no step travels, so that there is no time for it");
    (said, counts, steps)
}

/// A text that a draft model is to go on behind, and with how many tokens at most.
type Foreseen = (Vec<u32>, usize);

/// The same over stages whose steps travel for so long, with what the draft model is to guess meanwhile.
fn drafted_over(
    travel: u32,
    mut guess: impl FnMut(&[u32], usize) -> Option<Vec<u32>>,
) -> (Vec<u32>, (u32, u32), usize, Vec<Foreseen>) {
    let params = SessionParams {
        guess: Guess::Draft(Draft { model: ModelId([9; 32]), weight: 100 }),
        ..session(1, 60, 64).params
    };
    let mut session = Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), never());
    let mut queue: VecDeque<Action> = session.start().into();
    let (mut said, mut steps, mut foreseen) = (Vec::new(), 0, Vec::new());
    loop {
        match queue.pop_front().expect("a session says how it ends") {
            Action::Step { step, tokens, want_from, .. } => {
                steps += 1;
                // The answering model counts.
                let next = tokens[want_from as usize..].iter().map(|token| row((token + 1) % 90));
                let (computed, next) = (took(1000 + tokens.len() as u32), next.collect::<Vec<_>>());
                let round = computed.round + travel;
                queue.extend(session.on_logits(step, &next, Took { round, gap: round, ..computed }));
            }
            Action::Foresee { text, most } => foreseen.push((text, most)),
            Action::Guess(horizon) => {
                let guesses = guess(&session.text(), horizon.most);
                let sure = |token| DraftToken { token, chance: 0.95 };
                let drafted = |tokens: Vec<u32>| Drafted {
                    made: tokens.len(),
                    tokens: tokens.into_iter().map(sure).collect(),
                    read: 0,
                };
                queue.extend(session.on_guesses(guesses.map(drafted)));
            }
            Action::Emit(sampled) => said.push(sampled.token),
            Action::End(End::Length) => return (said, session.guesses(), steps, foreseen),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_draft_model_goes_on_behind_its_guesses_while_they_travel_as_far_as_there_is_time() {
    let counting = |text: &[u32], most: usize| {
        let last = text.last().copied().unwrap_or_default();
        Some((last + 1..).take(most).collect::<Vec<u32>>())
    };
    let (said, _, _, foreseen) = drafted_over(9000, counting);
    let text: Vec<u32> = (0..=60).collect();
    assert_eq!(said, text[1..]);
    assert!(!foreseen.is_empty());
    for (behind, most) in foreseen {
        assert_eq!(behind, text[..behind.len()], "what was guessed is taken to be right");
        assert!(most > 1 && behind.len() + most <= text.len(), "{} and {most}", behind.len());
    }
    // A token of the draft takes a tenth of the 1,001 microseconds of a step: so there is time for two, and for none.
    let some = drafted_over(220, counting).3;
    assert!(!some.is_empty() && some.iter().all(|(_, most)| *most == 2), "{some:?}");
    assert!(drafted_over(150, counting).3.is_empty());
    let silent = |_: &[u32], _: usize| Some(Vec::new());
    assert!(drafted_over(9000, silent).3.is_empty(), "it has nothing to go on behind");
}

#[test]
fn a_draft_models_guesses_save_steps_where_they_are_right_and_never_change_what_is_said() {
    let counting = |text: &[u32], most: usize| {
        let last = text.last().copied().unwrap_or_default();
        Some((last + 1..).take(most).map(|token| token % 90).collect())
    };
    let plain: Vec<u32> = (1..=60).collect();
    let (said, (made, right), steps) = drafted(counting);
    assert_eq!((said, made > 30, right), (plain.clone(), true, made));
    assert!(steps < 30, "{steps}");
    let (said, (made, right), steps) = drafted(|_, most| Some(vec![7; most]));
    assert_eq!(said, plain);
    assert!(made > 0 && right <= 1 && steps >= 58, "{made} {right} {steps}");
    for nothing in [Some(Vec::new()), None, Some(vec![VOCAB; 31])] {
        let (said, (made, _), steps) = drafted(|_, _| nothing.clone());
        assert_eq!((said, made, steps), (plain.clone(), 0, 60), "{nothing:?}");
    }
}

/// A model that counts modulo `period`: guessable once it has gone round.
fn counts(period: u32, tokens: u32, guess: bool, costs: fn(usize) -> u32) -> (Vec<u32>, usize) {
    let params = SessionParams {
        prompt: vec![0],
        max_tokens: tokens,
        max_rows: 64,
        chunk: 64,
        vocab: VOCAB,
        cached: 0,
        guess: if guess { Guess::Repeats } else { Guess::Never },
        learnt: LearntOfGuesses::default(),
    };
    let mut session = Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), never());
    let mut queue: VecDeque<Action> = session.start().into();
    let (mut said, mut steps) = (Vec::new(), 0);
    while let Some(action) = queue.pop_front() {
        match action {
            Action::Step { step, tokens, want_from, pos, .. } => {
                assert_eq!(pos as usize, said.len(), "each step begins behind what is certain");
                steps += 1;
                let rows: Vec<LogitRow> =
                    tokens[want_from as usize..].iter().map(|token| row((token + 1) % period)).collect();
                queue.extend(session.on_logits(step, &rows, took(costs(rows.len()))));
            }
            Action::Emit(sampled) => said.push(sampled.token),
            Action::End(end) => assert_eq!(end, End::Length),
            Action::Fail(fault) => panic!("{fault}"),
            Action::Guess(_) | Action::Foresee { .. } => panic!("there is no draft model"),
        }
    }
    (said, steps)
}

#[test]
fn guesses_change_how_many_steps_are_taken_and_never_what_is_said() {
    let cheap = |rows: usize| 1000 + 10 * rows as u32;
    let (plain, slow) = counts(7, 300, false, cheap);
    let (guessed, fast) = counts(7, 300, true, cheap);
    assert_eq!(guessed, plain);
    assert_eq!(slow, 300);
    assert!(fast < 40, "{fast}");
    // Where a row costs what a token costs, guessing stops as soon as that is known of each length.
    let (guessed, even) = counts(7, 900, true, |rows| 1000 * rows as u32);
    assert_eq!(guessed, counts(7, 900, false, cheap).0);
    assert!(even > 600, "{even}");
}

#[test]
fn a_window_never_brings_back_more_full_rows_than_a_frame_holds() {
    let vocab = 1 << 20;
    let most = |sampling| {
        let params = SessionParams { vocab, max_tokens: 100, max_rows: 512, ..session(1, 1, 64).params };
        Session::new(params, Sampler::new(sampling, vocab).unwrap(), never()).most_guesses()
    };
    let every = SamplingParams { temperature: 1.0, top_k: 0, top_p: 1.0, ..SamplingParams::greedy() };
    // Rows of 4 MiB, of which 32 MiB are let through.
    assert_eq!((most(SamplingParams::greedy()), most(every)), (MAX_GUESSES, 7));
}

/// Stages on machines of their own, one behind the other, as time goes by in microseconds.
struct Chain {
    stages: usize,
    /// One way between two of them.
    link: u64,
    /// To compute a step of so many rows at one of them.
    cost: fn(usize) -> u64,
}

impl Chain {
    /// A model that says `text[position + 1]` behind `position`: what is said of it, and how long that takes.
    fn say(&self, text: &[u32], guess: Guess) -> (Vec<u32>, u64) {
        let max_tokens = text.len() as u32 - 1;
        let params = SessionParams { prompt: vec![text[0]], max_tokens, guess, ..session(1, 1, 64).params };
        let mut session = Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), never());
        let mut free = vec![0; self.stages];
        // Steps under way: when sent and answered, their number, where they begin, their rows.
        let mut under_way: VecDeque<(u64, u64, u32, usize, usize)> = VecDeque::new();
        let (mut now, mut answered, mut said) = (0, 0, Vec::new());
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
                    Action::Emit(sampled) => said.push(sampled.token),
                    Action::End(_) => return (said, now),
                    other => panic!("{other:?}"),
                }
            }
            let (sent, arrives, step, pos, len) = under_way.pop_front().expect("a session says how it ends");
            now = arrives;
            let rows: Vec<LogitRow> =
                (pos..pos + len).map(|at| row(text.get(at + 1).copied().unwrap_or_default())).collect();
            let took = Took {
                round: (now - sent) as u32,
                gap: (now - answered) as u32,
                busy: (self.cost)(len) as u32,
                computed: (self.cost)(len) as u32,
                guessing: 0,
            };
            answered = now;
            actions = session.on_logits(step, &rows, took);
        }
    }
}

/// Where rows cost as much as steps, only windows that follow each other bring anything.
const DEAR: fn(usize) -> u64 = |rows| 10_000 * rows as u64;

#[test]
fn windows_follow_each_other_where_stages_would_wait_and_the_text_repeats_itself() {
    let repeats: Vec<u32> = (0..400).map(|at| at % 23).collect();
    let far = Chain { stages: 3, link: 10_000, cost: DEAR };
    let (plain, slow) = far.say(&repeats, Guess::Never);
    let (guessed, fast) = far.say(&repeats, Guess::Repeats);
    assert_eq!((&guessed, plain.as_slice()), (&plain, &repeats[1..]));
    // A step takes 70 ms to come round, a stage 10 ms of it.
    assert!(fast * 3 < slow, "{fast} of {slow}");
    // One stage that is near has no time to give away.
    let near = Chain { stages: 1, link: 100, cost: DEAR };
    let (plain, slow) = near.say(&repeats, Guess::Never);
    let (guessed, even) = near.say(&repeats, Guess::Repeats);
    assert_eq!(guessed, plain);
    assert!(even < slow * 110 / 100, "{even} of {slow}");
}

#[test]
fn windows_that_are_mostly_wrong_cost_little() {
    // Each pair of tokens was seen before, and each time something else follows.
    let mut state = 7_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 30
    };
    let text: Vec<u32> = (0..600).map(|_| next()).collect();
    let far = Chain { stages: 3, link: 10_000, cost: DEAR };
    let (plain, slow) = far.say(&text, Guess::Never);
    let (guessed, even) = far.say(&text, Guess::Repeats);
    assert_eq!(guessed, plain);
    assert!(even < slow * 110 / 100, "{even} of {slow}");
}

#[test]
fn other_stages_compute_the_prompt_in_its_chunks_and_what_was_said_token_by_token_or_all_at_once() {
    let lost = || {
        let mut session = session(10, 8, 4);
        session.start();
        session.on_logits(0, &[], took(1));
        session.on_logits(1, &[], took(1));
        (2..5).for_each(|step| drop(session.on_logits(step, &[row(40 + step)], took(1))));
        assert_eq!(session.generated(), [42, 43, 44]);
        session
    };
    let mut exact = lost();
    let again = steps(&exact.resume(0, 4, 4, true));
    assert_eq!(again, [(0, 0, 4, 4), (1, 4, 4, 4), (2, 8, 2, 2), (3, 10, 1, 1), (4, 11, 1, 1), (5, 12, 1, 0)]);
    (0..5).for_each(|step| assert!(exact.in_prefill() && exact.on_logits(step, &[], took(1)).is_empty()));
    let goes_on = exact.on_logits(5, &[row(45)], took(1));
    assert!(matches!(&goes_on[0], Action::Emit(sampled) if sampled.token == 45));
    assert_eq!((steps(&goes_on), exact.generated()), (vec![(6, 13, 1, 0)], [42, 43, 44, 45].as_slice()));
    let mut fast = lost();
    assert_eq!(steps(&fast.resume(0, 8, 8, false)), [(0, 0, 8, 8), (1, 8, 5, 4)]);
    assert_eq!(fast.computed(), lost().computed(), "all but the last token");
    let mut kept = lost();
    assert_eq!(steps(&kept.resume(11, 8, 8, false)), [(0, 11, 2, 1)]);
    // Lost again before anything was answered, and lost in the prompt.
    assert_eq!(steps(&kept.resume(0, 8, 8, true)).len(), 5);
    let mut early = session(10, 8, 4);
    early.start();
    assert_eq!(steps(&early.resume(0, 4, 4, true)), [(0, 0, 4, 4), (1, 4, 4, 4), (2, 8, 2, 1)]);
    // A session that failed at an answer that was none goes on with honest stages.
    assert!(matches!(early.on_logits(0, &[row(1)], took(1)).as_slice(), [Action::Fail(_)]));
    assert_eq!(steps(&early.resume(0, 4, 4, true)).len(), 3);
    assert!(early.on_logits(0, &[], took(1)).is_empty() && !early.is_over());
}

#[test]
fn a_session_that_reads_pools_anew_on_other_stages() {
    let mut session = session(150, 0, 64).reading(Pool::new(Pooling::Mean, 2));
    let (wrong, right) = (vec![LogitRow::Full(vec![0.0, 9.0]); 64], vec![LogitRow::Full(vec![3.0, 4.0]); 64]);
    session.start();
    session.on_logits(0, &wrong, took(1));
    assert_eq!(steps(&session.resume(0, 64, 64, false)), [(0, 0, 64, 0), (1, 64, 64, 0), (2, 128, 22, 0)]);
    session.on_logits(0, &right, took(1));
    session.on_logits(1, &right, took(1));
    assert_eq!(session.on_logits(2, &right[..22], took(1)), [Action::End(End::Stop)]);
    assert_eq!(session.embedding().unwrap(), [0.6, 0.8]);
}

/// What a model says behind a text: something that depends on all of it, and repeats itself often.
fn behind(text: &[u32]) -> u32 {
    let sum: u32 = text.iter().zip(1..).map(|(token, at)| token * (at % 3)).sum();
    if text.len() % 11 < 8 { text.len() as u32 % 5 } else { sum % 7 }
}

/// A stage that is lost after each of `lives` answers and then has the first half of what the one before had. Gives what
/// was said.
fn with_losses(guess: Guess, singly: bool, prompt: usize, lives: &[usize]) -> Vec<u32> {
    const TOKENS: u32 = 60;
    let params = SessionParams { guess, ..session(prompt, TOKENS, 8).params };
    let mut session = Session::new(params, Sampler::new(SamplingParams::greedy(), VOCAB).unwrap(), never());
    let (mut kv, mut said): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
    let mut queue: VecDeque<Action> = session.start().into();
    let (mut lives, mut answered, mut next_step) = (lives.iter(), 0, 0);
    let mut life = lives.next();
    loop {
        match queue.pop_front().expect("a session says how it ends") {
            Action::Step { .. } if life == Some(&answered) => {
                // Lost with all that is under way.
                queue.retain(|action| matches!(action, Action::Emit(_)));
                kv.truncate(if singly { 0 } else { kv.len() / 2 });
                let again = session.resume(kv.len() as u32, 8, 8, singly);
                kv.truncate(steps(&again)[0].1 as usize);
                queue.extend(again);
                (life, answered, next_step) = (lives.next(), 0, 0);
            }
            Action::Step { step, pos, tokens, want_from, .. } => {
                assert_eq!(step, next_step, "steps of a route count from 0");
                assert!(pos as usize <= kv.len(), "no position is left out");
                kv.truncate(pos as usize);
                let rows = tokens.iter().zip(0..).filter_map(|(token, at)| {
                    kv.push(*token);
                    (at >= want_from).then(|| row(behind(&kv)))
                });
                let rows: Vec<LogitRow> = rows.collect();
                (answered, next_step) = (answered + 1, next_step + 1);
                queue.extend(session.on_logits(step, &rows, took(1000 + 10 * tokens.len() as u32)));
            }
            Action::Emit(sampled) => said.push(sampled.token),
            Action::End(End::Length) => return said,
            other => panic!("{other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn losses_at_any_step_never_change_what_is_said(
        prompt in 1usize..40,
        lives in proptest::collection::vec(0usize..40, 0..6),
        guess in any::<bool>(),
        singly in any::<bool>(),
    ) {
        let mut text: Vec<u32> = (0..prompt as u32).collect();
        while text.len() < prompt + 60 {
            text.push(behind(&text));
        }
        let guess = if guess && !singly { Guess::Repeats } else { Guess::Never };
        let said = with_losses(guess, singly, prompt, &lives);
        prop_assert_eq!(said.as_slice(), &text[prompt..]);
    }

    #[test]
    fn windows_under_way_never_change_what_is_said(
        text in proptest::collection::vec(0u32..3, 2..200),
        stages in 1usize..5,
        link in 0u64..30_000,
        dear in any::<bool>(),
    ) {
        let chain = Chain { stages, link, cost: if dear { DEAR } else { |rows| 10_000 + 100 * rows as u64 } };
        let (said, _) = chain.say(&text, Guess::Repeats);
        prop_assert_eq!(said.as_slice(), &text[1..]);
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
                    queue.extend(session.on_logits(step, &rows, took(1)));
                }
                Action::Emit(_) => emitted += 1,
                Action::End(end) => prop_assert_eq!(end, End::Length),
                Action::Fail(fault) => prop_assert!(false, "{}", fault),
                Action::Guess { .. } | Action::Foresee { .. } => prop_assert!(false, "nothing is guessed"),
            }
        }
        prop_assert_eq!(emitted, max_tokens);
        prop_assert_eq!(next_pos, prompt as u32 + max_tokens - 1);
        prop_assert!(session.is_over());
    }
}
