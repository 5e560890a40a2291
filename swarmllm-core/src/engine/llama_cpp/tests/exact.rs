//! Split models equal the whole model bit by bit.

use super::recipe::{Recipe, count};
use super::whole_model::WholeModel;
use super::{Chain, TestModel, bits, config, gemma3, greedy, run, smollm2, tokens};
use crate::base::LayerRange;
use crate::engine::llama_cpp::LlamaCpp;
use crate::engine::llama_cpp::stage::faults;
use crate::engine::{Engine, EngineError, KvType, StageConfig, StepOptions};

/// Prefill in chunks of `chunk` rows, then greedy decoding; compares all logits.
fn assert_equal(whole: &mut WholeModel, chain: &mut Chain, prompt: &[u32], chunk: usize, decode: usize, vocab: u32) {
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

fn chains_equal_the_whole(cut: &TestModel, chains: &[&[u32]]) {
    let engine = LlamaCpp::new();
    let config = config();
    let prompt = tokens(7, 150, cut.manifest.vocab);
    for cuts in chains {
        let mut whole = WholeModel::load(&cut.path, &config, None);
        let mut chain = Chain::load(&engine, cut, cuts, &config);
        assert_equal(&mut whole, &mut chain, &prompt, 60, 12, cut.manifest.vocab);
    }
}

#[test]
fn stages_of_smollm2_equal_the_whole_model_to_the_bit() {
    let Some(cut) = smollm2() else { return };
    chains_equal_the_whole(&cut, &[&[], &[15], &[1, 20]]);
}

#[test]
fn stages_of_gemma3_equal_the_whole_model_to_the_bit() {
    let Some(cut) = gemma3() else { return };
    chains_equal_the_whole(&cut, &[&[], &[9], &[5, 11]]);
}

#[test]
fn states_equal_the_whole_models_to_the_bit() {
    for (cut, cuts) in [(smollm2(), [15]), (gemma3(), [9])] {
        let Some(cut) = cut else { continue };
        let (vocab, width) = (cut.manifest.vocab, cut.manifest.width as usize);
        let mut whole = WholeModel::load(&cut.path, &config(), None);
        let mut chain = Chain::load(&LlamaCpp::new(), &cut, &cuts, &config());
        let text = tokens(17, 50, vocab);
        let states = chain.states(&run(0, 0, &text));
        assert!(bits(&whole.states(&run(0, 0, &text))) == bits(&states));
        chain.release(0);
        let mut fed = run(0, 0, &text);
        fed.iter_mut().take(49).for_each(|row| row.want = false);
        let last = chain.states(&fed);
        assert_eq!(last.len(), width);
        // With one row the last layer's products have another shape.
        let near = last.iter().zip(&states[49 * width..]).all(|(one, other)| (one - other).abs() < 0.05);
        assert!(near, "{last:?}");
        fed.iter_mut().for_each(|row| (row.pos, row.want) = (row.pos + 50, false));
        assert!(chain.states(&fed).is_empty());
    }
}

#[test]
fn stages_with_q8_kv_equal_the_whole_model_with_half_the_memory() {
    for (cut, cuts) in [(smollm2(), [15]), (gemma3(), [9])] {
        let Some(cut) = cut else { continue };
        let (vocab, engine) = (cut.manifest.vocab, LlamaCpp::new());
        let small = StageConfig { kv: KvType::Q8, ..config() };
        let mut whole = WholeModel::load(&cut.path, &small, None);
        let mut chain = Chain::load(&engine, &cut, &cuts, &small);
        assert_equal(&mut whole, &mut chain, &tokens(7, 150, vocab), 60, 12, vocab);

        // With a context so long that KV dominates.
        let layers = LayerRange::new(0, cut.manifest.layers);
        let memory = |kv| {
            let config = StageConfig { context: 1 << 20, kv, ..config() };
            let short = StageConfig { context: 256, ..config.clone() };
            let of = |config| engine.memory(&cut.manifest, layers, true, config);
            (of(&config) - of(&short)) as f64
        };
        let ratio = memory(KvType::Q8) / memory(KvType::Full);
        assert!((ratio - 34.0 / 64.0).abs() < 1e-6, "{ratio}");
    }
}

#[test]
fn q8_kv_is_refused_for_heads_that_are_not_whole_blocks() {
    let directory = tempfile::tempdir().expect("a directory");
    let cut = Recipe::new("llama", 2)
        .with(count("attention.key_length", 24))
        .with(count("attention.value_length", 24))
        .with(count("rope.dimension_count", 24))
        .write(&directory);
    let small = StageConfig { kv: KvType::Q8, ..config() };
    let refused = LlamaCpp::new().load_stage(cut.all(), &small).map(|_| ());
    assert!(matches!(&refused, Err(EngineError::Load { reason, .. }) if reason.contains("24")), "{refused:?}");
}

/// llama.cpp's buffer sizes are not accessible. The test checks that the estimate equals the loaded stage's memory and
/// grows with sessions.
#[test]
fn the_estimated_memory_counts_the_kv_of_every_session() {
    let Some(cut) = smollm2() else { return };
    let engine = LlamaCpp::new();
    let layers = LayerRange::new(0, 10);
    let estimated = |sessions| {
        let config = StageConfig { max_sessions: sessions, context: 2048, ..config() };
        let estimated = engine.memory(&cut.manifest, layers, false, &config);
        let loaded = engine.load_stage(cut.stage(layers, false), &config).unwrap().spec().memory;
        assert!(loaded <= estimated && estimated < loaded + (8 << 20), "{estimated} {loaded}");
        estimated
    };
    // 10 layers, 2,048 positions, 3 heads of 64 keys and 64 values, 2 bytes each.
    assert_eq!(estimated(8) - estimated(2), 6 * 10 * 2048 * 3 * (64 + 64) * 2);
}

/// Beyond 512 cells llama.cpp splits the attention of a single row between threads, and Gemma's window slides.
fn a_long_text_equals_the_whole(cut: &TestModel, cuts: &[u32]) {
    let engine = LlamaCpp::new();
    let config = StageConfig { max_rows: 512, threads: 2, ..config() };
    let mut whole = WholeModel::load(&cut.path, &config, None);
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
fn a_text_beyond_gemma3s_window_equals_the_whole_model_to_the_bit() {
    let Some(cut) = gemma3() else { return };
    a_long_text_equals_the_whole(&cut, &[7]);
}

fn interleaved_sessions_equal_the_whole(cut: &TestModel, cuts: &[u32]) {
    let engine = LlamaCpp::new();
    let vocab = cut.manifest.vocab;
    let mut whole = WholeModel::load(&cut.path, &config(), None);
    let mut chain = Chain::load(&engine, cut, cuts, &config());
    let texts = [tokens(1, 40, vocab), tokens(2, 25, vocab)];
    let mut steps = vec![run(0, 0, &texts[0][..20]), run(1, 0, &texts[1][..11])];
    for turn in 0..8 {
        steps.push(run(0, 20 + turn, &texts[0][20 + turn as usize..][..1]));
        steps.push(run(1, 11 + turn, &texts[1][11 + turn as usize..][..1]));
    }
    // Both sessions in one step: one row each, then a prefill beside one row.
    steps.push([run(1, 19, &texts[1][19..20]), run(0, 28, &texts[0][28..29])].concat());
    steps.push([run(0, 29, &texts[0][29..36]), run(1, 20, &texts[1][20..21])].concat());
    for (index, step) in steps.iter().enumerate() {
        // A stage computes the rows of each session separately.
        let runs = step.chunk_by(|one, next| one.slot == next.slot);
        let expected: Vec<f32> = runs.flat_map(|run| whole.step(run)).collect();
        assert!(bits(&expected) == bits(&chain.step(step)), "step {index} differs");
    }
}

#[test]
fn interleaved_and_batched_sessions_equal_the_whole_model() {
    for (cut, cuts) in [(smollm2(), [15]), (gemma3(), [9])] {
        let Some(cut) = cut else { continue };
        interleaved_sessions_equal_the_whole(&cut, &cuts);
    }
}

#[test]
fn neighbouring_slots_are_batched_and_get_their_own_rows() {
    for (cut, cuts) in [(smollm2(), [15]), (gemma3(), [9])] {
        let Some(cut) = cut else { continue };
        let engine = LlamaCpp::new();
        let vocab = cut.manifest.vocab;
        let mut whole = WholeModel::load(&cut.path, &config(), None);
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
        // One row of each session, then windows of three rows of three sessions, in the same steps as the whole model.
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

fn truncation_is_as_if_never_computed(cut: &TestModel, cuts: &[u32]) {
    let engine = LlamaCpp::new();
    let vocab = cut.manifest.vocab;
    let mut whole = WholeModel::load(&cut.path, &config(), None);
    let mut chain = Chain::load(&engine, cut, cuts, &config());
    let prompt = run(0, 0, &tokens(3, 30, vocab));
    assert!(bits(&whole.step(&prompt)) == bits(&chain.step(&prompt)));
    let text = tokens(4, 6, vocab);
    let draft = run(0, 30, &text);
    let first = chain.step(&draft);
    assert!(bits(&whole.step(&draft)) == bits(&first));
    whole.truncate(0, 32);
    chain.truncate(0, 32);
    let replay = run(0, 32, &text[2..]);
    assert!(bits(&whole.step(&replay)) == bits(&chain.step(&replay)), "a truncated session equals the whole model's");
    chain.truncate(0, 30);
    assert!(bits(&first) == bits(&chain.step(&draft)), "a replayed step gives the same result");
    chain.release(0);
    assert!(chain.stages.iter_mut().all(|stage| stage.truncate(0, 1).is_err()), "a released session holds nothing");
}

#[test]
fn a_truncated_session_continues_as_if_it_had_been_shorter() {
    for (cut, cuts) in [(smollm2(), [10, 20]), (gemma3(), [5, 11])] {
        let Some(cut) = cut else { continue };
        truncation_is_as_if_never_computed(&cut, &cuts);
    }
}

#[test]
fn a_failed_batch_leaves_each_session_unchanged() {
    let Some(cut) = gemma3() else { return };
    let engine = LlamaCpp::new();
    let vocab = cut.manifest.vocab;
    let [mut unpacked, mut failed] = [0, 1].map(|_| Chain::load(&engine, &cut, &[], &config()));
    let mut held = [0_u32; 2];
    // First the only call fails, then the second of two calls of a step.
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
            assert!(bits(&unpacked.step(step)) == bits(&failed.step(step)), "each session continues at its old length");
            held[slot] += rows[slot] as u32;
        }
    }
}

/// Gemma 3 has weights of types that llama.cpp repacks on most CPUs.
#[test]
fn only_inexact_steps_of_many_rows_use_unpacked_weights() {
    const MANY: usize = 60;
    let Some(cut) = gemma3() else { return };
    let inexact = StepOptions { states: true, allow_rounding: true, ..StepOptions::default() };
    let mut repacked = WholeModel::load(&cut.path, &config(), None);
    let mut unpacked = WholeModel::load_with_layout(&cut.path, &config(), None, false);
    let mut chain = Chain::load(&LlamaCpp::new(), &cut, &[9], &config());
    let vocab = cut.manifest.vocab;
    // llama.cpp's tensors are resolved in the first step.
    chain.compute(&run(1, 0, &tokens(7, 1, vocab)), inexact);
    let prompt = run(0, 0, &tokens(8, MANY, vocab));
    let (repacked, unpacked) = (repacked.states(&prompt), unpacked.states(&prompt));
    if bits(&repacked) == bits(&unpacked) {
        return eprintln!("SKIPPED: llama.cpp repacks nothing on this CPU");
    }
    for _ in 0..2 {
        assert!(bits(&chain.compute(&prompt, inexact)) == bits(&unpacked), "inexact steps use unpacked weights");
        chain.release(0);
        assert!(bits(&chain.states(&prompt)) == bits(&repacked), "exact steps use repacked weights");
        chain.release(0);
    }
    let few = &prompt[..8];
    let usual = chain.states(few);
    chain.release(0);
    assert!(bits(&chain.compute(few, inexact)) == bits(&usual), "few rows use repacked weights");
}

/// Another process, a failing disk or a network file system may remove a shard's bytes while a stage uses them.
#[test]
fn a_truncated_shard_costs_a_loaded_stage_only_the_second_layout() {
    let Some(cut) = gemma3() else { return };
    let inexact = StepOptions { states: true, allow_rounding: true, ..StepOptions::default() };
    let directory = tempfile::tempdir().expect("a directory");
    let copy = directory.path().join("model.gguf");
    std::fs::copy(&cut.path, &copy).expect("a copy");
    let engine = LlamaCpp::new();
    let mut short = Chain::load(&engine, &TestModel::open(&copy), &[], &config());
    // Embeddings are read from the file too; here they come from the intact file.
    short.embedder = engine.load_embedder(cut.embedding()).expect("an embedding");
    let mut whole = Chain::load(&engine, &cut, &[], &config());
    let vocab = cut.manifest.vocab;
    // llama.cpp's tensors are resolved in the first step.
    short.compute(&run(1, 0, &tokens(7, 1, vocab)), inexact);
    std::fs::File::options().write(true).open(&copy).and_then(|file| file.set_len(0)).expect("cut short");
    let prompt = run(0, 0, &tokens(8, 60, vocab));
    for _ in 0..2 {
        assert!(bits(&short.compute(&prompt, inexact)) == bits(&whole.states(&prompt)));
        short.release(0);
        whole.release(0);
    }
}
