//! Split equals whole, to the bit.

use super::recipe::{Recipe, count};
use super::whole::Whole;
use super::{Chain, Cut, bits, config, gemma3, greedy, run, smollm2, tokens};
use crate::base::LayerRange;
use crate::engine::llama_cpp::LlamaCpp;
use crate::engine::llama_cpp::stage::faults;
use crate::engine::{Engine, EngineError, KvCache, StageConfig, Terms};

/// Prefill in chunks of `chunk`, then greedy decoding: all logits are compared.
fn assert_equal(whole: &mut Whole, chain: &mut Chain, prompt: &[u32], chunk: usize, decode: usize, vocab: u32) {
    let mut pos = 0;
    let mut last = 0;
    for part in prompt.chunks(chunk) {
        let fed = run(0, pos, part);
        let (want, got) = (whole.step(&fed), chain.step(&fed));
        assert!(bits(&want) == bits(&got), "prefill at {pos} differs");
        pos += part.len() as u32;
        last = greedy(&want[want.len() - vocab as usize..]);
    }
    for _ in 0..decode {
        let fed = run(0, pos, &[last]);
        let (want, got) = (whole.step(&fed), chain.step(&fed));
        assert!(bits(&want) == bits(&got), "decoding at {pos} differs");
        pos += 1;
        last = greedy(&want);
    }
}

fn chains_equal_the_whole(cut: &Cut, chains: &[&[u32]]) {
    let engine = LlamaCpp::new();
    let config = config();
    let prompt = tokens(7, 150, cut.manifest.vocab);
    for cuts in chains {
        let mut whole = Whole::load(&cut.path, &config, None);
        let mut chain = Chain::load(&engine, cut, cuts, &config);
        assert_equal(&mut whole, &mut chain, &prompt, 60, 12, cut.manifest.vocab);
    }
}

#[test]
fn one_two_and_three_stages_of_smollm2_equal_the_whole_model_to_the_bit() {
    let Some(cut) = smollm2() else { return };
    chains_equal_the_whole(&cut, &[&[], &[15], &[1, 20]]);
}

#[test]
fn one_two_and_three_stages_of_gemma3_equal_the_whole_model_to_the_bit() {
    let Some(cut) = gemma3() else { return };
    chains_equal_the_whole(&cut, &[&[], &[9], &[5, 11]]);
}

#[test]
fn states_equal_the_whole_models_to_the_bit_and_only_wanted_ones_are_given() {
    for (cut, cuts) in [(smollm2(), [15]), (gemma3(), [9])] {
        let Some(cut) = cut else { continue };
        let (vocab, width) = (cut.manifest.vocab, cut.manifest.width as usize);
        let mut whole = Whole::load(&cut.path, &config(), None);
        let mut chain = Chain::load(&LlamaCpp::new(), &cut, &cuts, &config());
        let text = tokens(17, 50, vocab);
        let states = chain.states(&run(0, 0, &text));
        assert!(bits(&whole.states(&run(0, 0, &text))) == bits(&states));
        chain.release(0);
        let mut fed = run(0, 0, &text);
        fed.iter_mut().take(49).for_each(|row| row.want = false);
        let last = chain.states(&fed);
        assert_eq!(last.len(), width);
        // Of one row the last layer's products are those of another shape.
        let near = last.iter().zip(&states[49 * width..]).all(|(one, other)| (one - other).abs() < 0.05);
        assert!(near, "{last:?}");
        fed.iter_mut().for_each(|row| (row.pos, row.want) = (row.pos + 50, false));
        assert!(chain.states(&fed).is_empty());
    }
}

#[test]
fn stages_that_keep_8_bits_equal_the_whole_that_does_and_take_about_half_of_the_memory() {
    for (cut, cuts) in [(smollm2(), [15]), (gemma3(), [9])] {
        let Some(cut) = cut else { continue };
        let (vocab, engine) = (cut.manifest.vocab, LlamaCpp::new());
        let small = StageConfig { kv: KvCache::Q8, ..config() };
        let mut whole = Whole::load(&cut.path, &small, None);
        let mut chain = Chain::load(&engine, &cut, &cuts, &small);
        assert_equal(&mut whole, &mut chain, &tokens(7, 150, vocab), 60, 12, vocab);
        for stage in &mut chain.stages {
            let state = stage.snapshot(0).unwrap();
            stage.restore(1, 162, &state).unwrap();
        }
        assert!(bits(&chain.step(&run(0, 162, &[5]))) == bits(&chain.step(&run(1, 162, &[5]))), "a snapshot differs");

        // Of a context so long that KV is nearly all there is.
        let layers = LayerRange::new(0, cut.manifest.layers);
        let memory = |kv| {
            let config = StageConfig { context: 1 << 20, kv, ..config() };
            let short = StageConfig { context: 256, ..config.clone() };
            let of = |config| engine.memory(&cut.manifest, layers, true, config);
            (of(&config) - of(&short)) as f64
        };
        let ratio = memory(KvCache::Q8) / memory(KvCache::Full);
        assert!((ratio - 34.0 / 64.0).abs() < 1e-6, "{ratio}");
    }
}

#[test]
fn heads_that_are_no_whole_blocks_are_not_kept_in_8_bits() {
    let directory = tempfile::tempdir().expect("a directory");
    let cut = Recipe::new("llama", 2)
        .with(count("attention.key_length", 24))
        .with(count("attention.value_length", 24))
        .with(count("rope.dimension_count", 24))
        .write(&directory);
    let small = StageConfig { kv: KvCache::Q8, ..config() };
    let refused = LlamaCpp::new().load_stage(cut.all(), &small).map(|_| ());
    assert!(matches!(&refused, Err(EngineError::Load { reason, .. }) if reason.contains("24")), "{refused:?}");
}

/// The numbers that llama.cpp itself tells of its buffers are not within reach; that what is told before loading is what
/// the loaded stage says, and that it grows with sessions, is.
#[test]
fn the_memory_that_is_told_before_loading_counts_the_kv_of_every_session() {
    let Some(cut) = smollm2() else { return };
    let engine = LlamaCpp::new();
    let layers = LayerRange::new(0, 10);
    let told = |sessions| {
        let config = StageConfig { max_sessions: sessions, context: 2048, ..config() };
        let told = engine.memory(&cut.manifest, layers, false, &config);
        let loaded = engine.load_stage(cut.stage(layers, false), &config).unwrap().spec().memory;
        assert!(loaded <= told && told < loaded + (8 << 20), "{told} {loaded}");
        told
    };
    // 10 layers, 2,048 positions, 3 heads of 64 keys and 64 values, 2 bytes each.
    assert_eq!(told(8) - told(2), 6 * 10 * 2048 * 3 * (64 + 64) * 2);
}

/// Beyond 512 cells llama.cpp splits the attention of a single row between threads, and Gemma's window slides.
fn a_long_text_equals_the_whole(cut: &Cut, cuts: &[u32]) {
    let engine = LlamaCpp::new();
    let config = StageConfig { max_rows: 512, threads: 2, ..config() };
    let mut whole = Whole::load(&cut.path, &config, None);
    let mut chain = Chain::load(&engine, cut, cuts, &config);
    let prompt = tokens(11, 700, cut.manifest.vocab);
    let mut pos = 0;
    for part in prompt.chunks(350) {
        let mut fed = run(0, pos, part);
        let last = fed.len() - 1;
        fed.iter_mut().take(last).for_each(|row| row.want = false);
        assert!(bits(&whole.step(&fed)) == bits(&chain.step(&fed)), "prefill at {pos} differs");
        pos += part.len() as u32;
    }
    for token in tokens(12, 8, cut.manifest.vocab) {
        let fed = run(0, pos, &[token]);
        assert!(bits(&whole.step(&fed)) == bits(&chain.step(&fed)), "decoding at {pos} differs");
        pos += 1;
    }
}

#[test]
fn a_long_text_of_smollm2_equals_the_whole_model_to_the_bit() {
    let Some(cut) = smollm2() else { return };
    a_long_text_equals_the_whole(&cut, &[10]);
}

#[test]
fn a_long_text_of_gemma3_beyond_its_window_equals_the_whole_model_to_the_bit() {
    let Some(cut) = gemma3() else { return };
    a_long_text_equals_the_whole(&cut, &[7]);
}

fn interleaved_sessions_equal_the_whole(cut: &Cut, cuts: &[u32]) {
    let engine = LlamaCpp::new();
    let vocab = cut.manifest.vocab;
    let mut whole = Whole::load(&cut.path, &config(), None);
    let mut chain = Chain::load(&engine, cut, cuts, &config());
    let texts = [tokens(1, 40, vocab), tokens(2, 25, vocab)];
    let mut steps = vec![run(0, 0, &texts[0][..20]), run(1, 0, &texts[1][..11])];
    for turn in 0..8 {
        steps.push(run(0, 20 + turn, &texts[0][20 + turn as usize..][..1]));
        steps.push(run(1, 11 + turn, &texts[1][11 + turn as usize..][..1]));
    }
    // Both in one step: a row each, then a prefill beside a row.
    steps.push([run(1, 19, &texts[1][19..20]), run(0, 28, &texts[0][28..29])].concat());
    steps.push([run(0, 29, &texts[0][29..36]), run(1, 20, &texts[1][20..21])].concat());
    for (index, step) in steps.iter().enumerate() {
        // A stage computes the rows of each session by themselves.
        let runs = step.chunk_by(|one, next| one.slot == next.slot);
        let expected: Vec<f32> = runs.flat_map(|run| whole.step(run)).collect();
        assert!(bits(&expected) == bits(&chain.step(step)), "step {index} differs");
    }
}

#[test]
fn interleaved_and_batched_sessions_equal_the_whole_model_given_the_same_steps() {
    for (cut, cuts) in [(smollm2(), [15]), (gemma3(), [9])] {
        let Some(cut) = cut else { continue };
        interleaved_sessions_equal_the_whole(&cut, &cuts);
    }
}

#[test]
fn neighbouring_slots_are_computed_at_once_and_each_gets_its_own_rows() {
    for (cut, cuts) in [(smollm2(), [15]), (gemma3(), [9])] {
        let Some(cut) = cut else { continue };
        let engine = LlamaCpp::new();
        let vocab = cut.manifest.vocab;
        let mut whole = Whole::load(&cut.path, &config(), None);
        let mut chain = Chain::load(&engine, &cut, &cuts, &config());
        let mut alone = Chain::load(&engine, &cut, &cuts, &config());
        let lengths = [21_u32, 34, 9, 16];
        let texts: Vec<Vec<u32>> =
            (0..).zip(lengths).map(|(seed, len)| tokens(seed, len as usize + 12, vocab)).collect();
        for (slot, (text, len)) in (0..).zip(texts.iter().zip(lengths)) {
            let prompt = run(slot, 0, &text[..len as usize]);
            for chain in [&mut chain, &mut alone] {
                chain.step(&prompt);
            }
            whole.step(&prompt);
        }
        // A row of each, then windows of three rows of three sessions: the whole model is given the same steps.
        let part = |slot: usize, from: u32, rows: u32| {
            let at = (lengths[slot] + from) as usize;
            run(slot as u32, lengths[slot] + from, &texts[slot][at..at + rows as usize])
        };
        let steps = [
            (0..4).map(|slot| part(slot, 0, 1)).collect::<Vec<_>>(),
            (1..4).map(|slot| part(slot, 1, 3)).collect(),
            vec![part(0, 1, 1), part(1, 4, 1)],
        ];
        for step in steps {
            let together = chain.step(&step.concat());
            assert!(bits(&whole.step(&step.concat())) == bits(&together), "as the whole model, given the same step");
            for (rows, given) in step.iter().zip(together.chunks(step[0].len() * vocab as usize)) {
                let apart = alone.step(rows);
                let mean = |values: &mut dyn Iterator<Item = f32>| values.sum::<f32>() / apart.len() as f32;
                let drift = mean(&mut apart.iter().zip(given).map(|(a, b)| (a - b).abs()));
                let size = mean(&mut apart.iter().map(|a| a.abs()));
                assert!(drift < size / 8.0, "the rows of slot {} are another's: {drift} of {size}", rows[0].slot);
            }
        }
    }
}

fn truncation_is_as_if_never_computed(cut: &Cut, cuts: &[u32]) {
    let engine = LlamaCpp::new();
    let vocab = cut.manifest.vocab;
    let mut whole = Whole::load(&cut.path, &config(), None);
    let mut chain = Chain::load(&engine, cut, cuts, &config());
    let prompt = run(0, 0, &tokens(3, 30, vocab));
    assert!(bits(&whole.step(&prompt)) == bits(&chain.step(&prompt)));
    let text = tokens(4, 6, vocab);
    let guess = run(0, 30, &text);
    let first = chain.step(&guess);
    assert!(bits(&whole.step(&guess)) == bits(&first));
    whole.truncate(0, 32);
    chain.truncate(0, 32);
    let replay = run(0, 32, &text[2..]);
    assert!(bits(&whole.step(&replay)) == bits(&chain.step(&replay)), "a cut back session goes on like the whole's");
    chain.truncate(0, 30);
    assert!(bits(&first) == bits(&chain.step(&guess)), "a replayed step gives what it gave");
    chain.release(0);
    assert!(chain.stages.iter_mut().all(|stage| stage.truncate(0, 1).is_err()), "a released session holds nothing");
}

#[test]
fn a_session_that_is_cut_back_goes_on_as_if_the_rest_had_never_been() {
    for (cut, cuts) in [(smollm2(), [10, 20]), (gemma3(), [5, 11])] {
        let Some(cut) = cut else { continue };
        truncation_is_as_if_never_computed(&cut, &cuts);
    }
}

#[test]
fn a_shared_step_that_fails_leaves_each_session_what_it_had() {
    let Some(cut) = gemma3() else { return };
    let engine = LlamaCpp::new();
    let vocab = cut.manifest.vocab;
    let [mut plain, mut failed] = [0, 1].map(|_| Chain::load(&engine, &cut, &[], &config()));
    let mut held = [0_u32; 2];
    // One call of both sessions that fails, then two calls of one step of which the second does.
    for (turn, (rows, calls)) in
        [([20, 9], None), ([1, 1], Some(0)), ([4, 2], Some(1)), ([1, 1], None)].iter().enumerate()
    {
        let steps: Vec<_> = (0..2)
            .map(|slot| run(slot as u32, held[slot], &tokens(7 + 2 * turn as u32 + slot as u32, rows[slot], vocab)))
            .collect();
        if let Some(calls) = *calls {
            faults::fail_after(calls);
            assert!(matches!(failed.try_step(&steps.concat()), Err(EngineError::Step { .. })));
        }
        for (slot, step) in steps.iter().enumerate() {
            assert!(bits(&plain.step(step)) == bits(&failed.step(step)), "each session goes on where it was");
            held[slot] += rows[slot] as u32;
        }
    }
}

fn a_snapshot_moves_a_session(cut: &Cut, cuts: &[u32], length: usize, threads: u32) {
    let engine = LlamaCpp::new();
    let config = StageConfig { max_rows: 512, threads, ..config() };
    let vocab = cut.manifest.vocab;
    let mut from = Chain::load(&engine, cut, cuts, &config);
    let mut to = Chain::load(&engine, cut, cuts, &config);
    let mut prompt = run(1, 0, &tokens(5, length, vocab));
    prompt.iter_mut().for_each(|row| row.want = false);
    for part in prompt.chunks(512) {
        from.step(part);
    }
    for (from, to) in from.stages.iter_mut().zip(&mut to.stages) {
        let state = from.snapshot(1).expect("a snapshot");
        to.restore(3, length as u32, &state).expect("a restored session");
    }
    for (turn, token) in (0..6).zip(tokens(6, 6, vocab)) {
        let pos = length as u32 + turn;
        let (here, there) = (from.step(&run(1, pos, &[token])), to.step(&run(3, pos, &[token])));
        assert!(bits(&here) == bits(&there), "position {pos} differs after the move");
    }
}

#[test]
fn a_snapshot_restored_in_another_stage_and_slot_goes_on_to_the_bit() {
    for (cut, cuts) in [(smollm2(), [15]), (gemma3(), [9])] {
        let Some(cut) = cut else { continue };
        a_snapshot_moves_a_session(&cut, &cuts, 40, 2);
        // Windowed layers restore only their window, to other cells than it had: beyond 512 cells llama.cpp splits the
        // attention of a row by cells between threads, so that only one thread gives the same bits there.
        a_snapshot_moves_a_session(&cut, &cuts, 700, 1);
    }
}

/// Gemma 3 has weights of types that llama.cpp repacks, where the processor has products for them.
#[test]
fn many_rows_that_need_not_keep_their_bits_are_computed_with_the_weights_as_they_stand_and_no_others() {
    const MANY: usize = 60;
    let Some(cut) = gemma3() else { return };
    let free = Terms { states: true, free: true, ..Terms::default() };
    let mut repacked = Whole::load(&cut.path, &config(), None);
    let mut plain = Whole::load_laid_out(&cut.path, &config(), None, false);
    let mut chain = Chain::load(&LlamaCpp::new(), &cut, &[9], &config());
    let vocab = cut.manifest.vocab;
    // llama.cpp's tensors are met in the first step.
    chain.compute(&run(1, 0, &tokens(7, 1, vocab)), free);
    let prompt = run(0, 0, &tokens(8, MANY, vocab));
    let (repacked, plain) = (repacked.states(&prompt), plain.states(&prompt));
    if bits(&repacked) == bits(&plain) {
        return eprintln!("SKIPPED: llama.cpp repacks nothing on this processor");
    }
    for _ in 0..2 {
        assert!(bits(&chain.compute(&prompt, free)) == bits(&plain), "free: the weights as they stand");
        chain.release(0);
        assert!(bits(&chain.states(&prompt)) == bits(&repacked), "exact: as llama.cpp computes by itself");
        chain.release(0);
    }
    let few = &prompt[..8];
    let usual = chain.states(few);
    chain.release(0);
    assert!(bits(&chain.compute(few, free)) == bits(&usual), "few rows: as llama.cpp computes by itself");
}

/// Another process, a failing disk or a file system of the network may take a shard's bytes away under a stage.
#[test]
fn a_shard_that_is_cut_short_under_a_loaded_stage_costs_it_the_second_layout_and_nothing_else() {
    let Some(cut) = gemma3() else { return };
    let free = Terms { states: true, free: true, ..Terms::default() };
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("model.gguf");
    std::fs::copy(&cut.path, &copy).expect("a copy");
    let engine = LlamaCpp::new();
    let mut short = Chain::load(&engine, &Cut::open(&copy), &[], &config());
    // Embeddings are read from the file too; here they come from the whole one.
    short.embedder = engine.load_embedder(cut.embedding()).expect("an embedding");
    let mut whole = Chain::load(&engine, &cut, &[], &config());
    let vocab = cut.manifest.vocab;
    // llama.cpp's tensors are met in the first step.
    short.compute(&run(1, 0, &tokens(7, 1, vocab)), free);
    std::fs::File::options().write(true).open(&copy).and_then(|file| file.set_len(0)).expect("cut short");
    let prompt = run(0, 0, &tokens(8, 60, vocab));
    for _ in 0..2 {
        assert!(bits(&short.compute(&prompt, free)) == bits(&whole.states(&prompt)));
        short.release(0);
        whole.release(0);
    }
}
