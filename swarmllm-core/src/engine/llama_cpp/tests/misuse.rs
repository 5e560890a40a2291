//! Invalid input is refused, and the stage stays usable.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use super::{Chain, TestModel, bits, config, gemma3, run, smollm2, tokens};
use crate::base::LayerRange;
use crate::engine::llama_cpp::LlamaCpp;
use crate::engine::{Engine, EngineError, KvType, Row, Stage, StageConfig, StepOptions};
use crate::model::{Manifest, StageSource};

fn refused(cut: &TestModel, source: StageSource) -> EngineError {
    let _ = cut;
    match LlamaCpp::new().load_stage(source, &config()) {
        Ok(_) => panic!("the stage was loaded"),
        Err(error) => error,
    }
}

fn with_manifest(source: &StageSource, change: impl FnOnce(&mut Manifest)) -> StageSource {
    let mut manifest = Manifest::clone(&source.manifest);
    change(&mut manifest);
    StageSource { manifest: Arc::new(manifest), ..source.clone() }
}

/// Replaces the value of a fact.
fn with_fact(source: &StageSource, key: &str, ty: u32, raw: &[u8]) -> StageSource {
    with_manifest(source, |manifest| {
        let key = format!("{}.{key}", manifest.architecture);
        manifest.facts.retain(|fact| fact.key != key);
        manifest.facts.push(crate::model::Fact { key, ty, raw: raw.to_vec() });
    })
}

fn row(slot: u32, pos: u32) -> Row {
    Row { slot, pos, want: true }
}

fn invalid_steps(width: usize) -> Vec<(Vec<f32>, Vec<Row>, &'static str)> {
    let ones = |rows: usize| vec![1.0; rows * width];
    let with = |value: f32| {
        let mut hidden = ones(2);
        hidden[width + 3] = value;
        hidden
    };
    vec![
        (vec![], vec![], "Rows"),
        (ones(129), (0..129).map(|pos| row(0, pos)).collect(), "Rows"),
        (with(f32::NAN), vec![row(0, 4), row(0, 5)], "NotFinite"),
        (with(f32::NEG_INFINITY), vec![row(0, 4), row(0, 5)], "NotFinite"),
        (ones(1), vec![row(0, 5)], "Position"),
        (ones(1), vec![row(0, 3)], "Position"),
        (ones(2), vec![row(0, 4), row(0, 4)], "Position"),
        (ones(1), vec![row(1, u32::MAX)], "Position"),
        (ones(1), vec![row(4, 0)], "Slot"),
        (ones(1), vec![row(u32::MAX, 0)], "Slot"),
        (ones(2), vec![row(0, 4)], "Shape"),
        (vec![1.0; width - 1], vec![row(0, 4)], "Shape"),
    ]
}

fn name_of(error: &EngineError) -> String {
    format!("{error:?}").split([' ', '{']).next().unwrap_or_default().to_owned()
}

fn misuse(stage: &mut dyn Stage, width: usize) {
    let mut out = Vec::new();
    for (hidden, rows, wanted) in invalid_steps(width) {
        let error = stage.step(&hidden, &rows, &mut out).expect_err(wanted);
        assert_eq!(name_of(&error), wanted);
    }
    assert_eq!(stage.truncate(0, 5), Err(EngineError::Position { given: 5, expected: 4 }));
    assert!(matches!(stage.truncate(9, 0), Err(EngineError::Slot { .. })));
    stage.release(9);
}

#[test]
fn refused_steps_do_not_affect_later_ones() {
    for (cut, cuts) in [(smollm2(), [15]), (gemma3(), [9])] {
        let Some(cut) = cut else { continue };
        let engine = LlamaCpp::new();
        let text = tokens(8, 9, cut.manifest.vocab);
        let mut plain = Chain::load(&engine, &cut, &cuts, &config());
        let mut misused = Chain::load(&engine, &cut, &cuts, &config());
        for chain in [&mut plain, &mut misused] {
            chain.step(&run(0, 0, &text[..4]));
        }
        let width = cut.manifest.width as usize;
        misused.stages.iter_mut().for_each(|stage| misuse(stage.as_mut(), width));
        let fed = run(0, 4, &text[4..]);
        assert!(bits(&plain.step(&fed)) == bits(&misused.step(&fed)));
    }
}

#[test]
fn a_step_that_is_cancelled_while_running_changes_nothing() {
    for cut in [smollm2(), gemma3()] {
        let Some(cut) = cut else { continue };
        let engine = LlamaCpp::new();
        let text = tokens(9, 70, cut.manifest.vocab);
        let mut plain = Chain::load(&engine, &cut, &[], &config());
        let mut misused = Chain::load(&engine, &cut, &[], &config());
        for chain in [&mut plain, &mut misused] {
            chain.step(&run(0, 0, &text[..4]));
        }
        // Two sessions that need two calls: if the second call is cancelled, the first is rolled back.
        let rows: Vec<Row> = (4..60).map(|pos| row(0, pos)).chain([row(2, 0)]).collect();
        let rows: Vec<Row> = rows.into_iter().map(|row| Row { want: false, ..row }).collect();
        let mut hidden = Vec::new();
        misused.embedder.embed(&text[4..61], &mut hidden).expect("tokens of the vocabulary");
        let mut met = 0;
        for asks in [0, 1, 20, 200, 100_000] {
            let asked = AtomicU32::new(0);
            let cancelled = || asked.fetch_add(1, SeqCst) >= asks;
            let options = StepOptions { cancelled: Some(&cancelled), ..StepOptions::default() };
            let given_up = misused.stages[0].compute(&hidden, &rows, options, &mut Vec::new());
            if asks < 100_000 {
                assert_eq!(given_up, Err(EngineError::Cancelled), "after {asks} nodes");
            }
            met = asked.into_inner();
        }
        // The second but last node of both calls is in the second call.
        misused.truncate(0, 4);
        misused.stages[0].release(2);
        let asked = AtomicU32::new(0);
        let cancelled = || asked.fetch_add(1, SeqCst) + 2 >= met;
        let options = StepOptions { cancelled: Some(&cancelled), ..StepOptions::default() };
        let given_up = misused.stages[0].compute(&hidden, &rows, options, &mut Vec::new());
        assert_eq!(given_up, Err(EngineError::Cancelled));

        let fed = run(0, 4, &text[4..60]);
        assert!(bits(&plain.step(&fed)) == bits(&misused.step(&fed)));
        let other = run(2, 0, &text[..9]);
        assert!(bits(&plain.step(&other)) == bits(&misused.step(&other)));
    }
}

#[test]
fn too_many_output_rows_are_refused() {
    let Some(cut) = smollm2() else { return };
    let mut stage = LlamaCpp::new().load_stage(cut.all(), &config()).expect("a stage");
    let hidden = vec![1.0; 65 * cut.manifest.width as usize];
    let rows: Vec<Row> = (0..65).map(|pos| row(0, pos)).collect();
    let mut out = Vec::new();
    assert_eq!(stage.step(&hidden, &rows, &mut out), Err(EngineError::Rows { rows: 65, max: 64 }));
    assert_eq!(stage.step(&hidden[..64 * cut.manifest.width as usize], &rows[..64], &mut out), Ok(()));
    assert_eq!(out.len(), 64 * cut.manifest.vocab as usize);
}

#[test]
fn a_full_context_is_refused_until_the_session_is_released() {
    let Some(cut) = smollm2() else { return };
    let config = StageConfig {
        context: 100,
        max_sessions: 2,
        max_rows: 64,
        threads: 2,
        kv: KvType::Full,
        ..StageConfig::default()
    };
    let mut stage = LlamaCpp::new().load_stage(cut.stage(LayerRange::new(0, 2), false), &config).expect("a stage");
    let width = cut.manifest.width as usize;
    let fill = |slot: u32, from: u32, count: u32| -> (Vec<f32>, Vec<Row>) {
        (vec![0.5; count as usize * width], (from..from + count).map(|pos| row(slot, pos)).collect())
    };
    let mut out = Vec::new();
    for (slot, from, count) in [(0, 0, 64), (0, 64, 36), (1, 0, 64)] {
        let (hidden, rows) = fill(slot, from, count);
        assert_eq!(stage.step(&hidden, &rows, &mut out), Ok(()));
    }
    let (hidden, rows) = fill(0, 100, 1);
    assert_eq!(stage.step(&hidden, &rows, &mut out), Err(EngineError::ContextFull { context: 100 }));
    stage.release(0);
    let (hidden, rows) = fill(0, 0, 64);
    assert_eq!(stage.step(&hidden, &rows, &mut out), Ok(()));
}

#[test]
fn an_architecture_that_is_not_certified_is_refused() {
    let Some(cut) = smollm2() else { return };
    let source = with_manifest(&cut.all(), |manifest| manifest.architecture = "mamba".to_owned());
    assert!(matches!(LlamaCpp::new().cuts(&source.manifest), Err(EngineError::UnsupportedArchitecture { .. })));
    assert!(matches!(refused(&cut, source), EngineError::UnsupportedArchitecture { .. }));
}

#[test]
fn missing_unknown_duplicate_and_misshapen_tensors_are_refused() {
    for cut in [smollm2(), gemma3()] {
        let Some(cut) = cut else { continue };
        let source = cut.stage(LayerRange::new(2, 4), false);
        for index in 0..source.tensors.len() {
            let mut missing = source.clone();
            missing.tensors.remove(index);
            assert!(matches!(refused(&cut, missing), EngineError::BadModel { .. }));
            let mut doubled = source.clone();
            doubled.tensors.push(source.tensors[index].clone());
            assert!(matches!(refused(&cut, doubled), EngineError::BadModel { .. }));
            let mut turned = source.clone();
            turned.tensors[index].entry.dims.push(2);
            assert!(matches!(refused(&cut, turned), EngineError::BadModel { .. }));
            let mut retyped = source.clone();
            retyped.tensors[index].entry.ty = 9999;
            assert!(matches!(refused(&cut, retyped), EngineError::BadModel { .. }));
            let mut resized = source.clone();
            resized.tensors[index].entry.size -= 1;
            assert!(matches!(refused(&cut, resized), EngineError::BadModel { .. }));
        }
        let mut unknown = source.clone();
        unknown.tensors[0].entry.name = "blk.2.attn_q.scale".to_owned();
        assert!(matches!(refused(&cut, unknown), EngineError::BadModel { .. }));
    }
}

#[test]
fn a_truncated_shard_is_a_load_error() {
    let Some(cut) = smollm2() else { return };
    let mut source = cut.stage(LayerRange::new(2, 4), false);
    source.tensors[3].file = Arc::new(tempfile::tempfile().expect("a file"));
    assert!(matches!(refused(&cut, source), EngineError::Load { .. }));
}

#[test]
fn facts_that_would_abort_llama_cpp_are_refused() {
    for cut in [smollm2(), gemma3()] {
        let Some(cut) = cut else { continue };
        let source = cut.stage(LayerRange::new(0, 2), false);
        let word = |value: u32| value.to_le_bytes();
        let float = |value: f32| value.to_le_bytes();
        let text = |text: &str| [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat();
        let mut bad = vec![
            ("block_count", 4, word(0).to_vec()),
            ("block_count", 4, word(513).to_vec()),
            ("block_count", 4, word(17).to_vec()),
            ("embedding_length", 4, word(1).to_vec()),
            ("embedding_length", 10, 576_u64.to_le_bytes().to_vec()),
            ("attention.head_count", 4, word(0).to_vec()),
            ("attention.head_count", 4, word(7).to_vec()),
            ("attention.head_count_kv", 4, word(0).to_vec()),
            ("attention.key_length", 4, word(65).to_vec()),
            ("attention.value_length", 4, word(32).to_vec()),
            ("feed_forward_length", 4, word(0).to_vec()),
            ("feed_forward_length", 4, word(1024).to_vec()),
            ("context_length", 4, word(0).to_vec()),
            ("attention.layer_norm_rms_epsilon", 6, float(f32::NAN).to_vec()),
            ("attention.layer_norm_rms_epsilon", 6, float(0.0).to_vec()),
            ("rope.dimension_count", 4, word(3).to_vec()),
            ("rope.freq_base", 6, float(-1.0).to_vec()),
            ("rope.scaling.type", 8, text("longrope")),
            ("rope.scaling.type", 8, text("nonsense")),
            ("rope.scaling.factor", 6, float(f32::INFINITY).to_vec()),
            ("expert_count", 4, word(8).to_vec()),
            ("expert_group_count", 4, word(1).to_vec()),
            ("nextn_predict_layers", 4, word(1).to_vec()),
            ("attention.causal", 7, vec![0]),
            ("attention.head_count", 9, [&word(4)[..], &word(2), &word(0), &word(9), &word(9)].concat()),
            ("attention.head_count", 9, vec![]),
        ];
        if cut.manifest.architecture == "gemma3" {
            bad.extend([
                ("attention.sliding_window", 4, word(0).to_vec()),
                ("attention.sliding_window_pattern", 4, word(1).to_vec()),
            ]);
        }
        for (key, ty, raw) in bad {
            let error = refused(&cut, with_fact(&source, key, ty, &raw));
            assert!(matches!(error, EngineError::BadModel { .. }), "{key} {raw:?}: {error:?}");
        }
    }
}

#[test]
fn a_gemma3_stage_without_a_windowed_layer_is_an_illegal_cut() {
    let Some(cut) = gemma3() else { return };
    let rules = LlamaCpp::new().cuts(&cut.manifest).expect("cut rules");
    assert_eq!(rules.must_contain, (0..18).filter(|layer| layer % 6 < 5).collect::<Vec<u32>>());
    let source = cut.stage(LayerRange::new(5, 6), false);
    assert!(matches!(refused(&cut, source), EngineError::IllegalCut { .. }));
}

#[test]
fn a_head_without_the_last_layer_and_an_empty_range_are_illegal() {
    let Some(cut) = smollm2() else { return };
    for (layers, head) in [((0, 2), true), ((3, 3), false), ((29, 31), false), ((31, 32), true)] {
        let source = cut.stage(LayerRange::new(layers.0, layers.1), head);
        assert!(matches!(refused(&cut, source), EngineError::IllegalCut { .. }), "{layers:?}");
    }
}

#[test]
fn a_configuration_that_llama_cpp_would_abort_on_is_refused() {
    let Some(cut) = smollm2() else { return };
    let good = config();
    for bad in [
        StageConfig { context: 0, ..good },
        StageConfig { max_sessions: 0, ..good },
        StageConfig { max_sessions: 257, ..good },
        StageConfig { max_rows: 0, ..good },
        StageConfig { threads: 0, ..good },
    ] {
        let loaded = LlamaCpp::new().load_stage(cut.stage(LayerRange::new(0, 1), false), &bad);
        assert!(matches!(loaded.err(), Some(EngineError::Load { .. })));
    }
    // Fewer rows than sessions, on which llama.cpp would abort.
    let odd = StageConfig {
        context: 9,
        max_sessions: 8,
        max_rows: 2,
        threads: 1,
        kv: KvType::Full,
        ..StageConfig::default()
    };
    let mut stage = LlamaCpp::new().load_stage(cut.all(), &odd).expect("a small stage");
    let hidden = vec![1.0; 2 * cut.manifest.width as usize];
    assert_eq!(stage.step(&hidden, &[row(0, 0), row(7, 0)], &mut Vec::new()), Ok(()));
}

#[test]
fn a_token_outside_the_vocabulary_is_refused() {
    let Some(cut) = smollm2() else { return };
    let embedder = LlamaCpp::new().load_embedder(cut.embedding()).expect("an embedder");
    let vocab = cut.manifest.vocab;
    assert_eq!(embedder.embed(&[1, vocab], &mut Vec::new()), Err(EngineError::Token { token: vocab, vocab }));
    assert_eq!(embedder.embed(&[vocab - 1], &mut Vec::new()), Ok(()));
}
