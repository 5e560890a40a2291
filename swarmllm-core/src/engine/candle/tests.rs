//! Tests on tiny models with random weights. The tests package compares a real model with candle's own.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::Candle;
use crate::base::{LayerRange, ShardId};
use crate::engine::{CutRules, Embedder, Engine, EngineError, KvType, Row, Stage, StageConfig, StepOptions};
use crate::model::{EmbeddingSource, Fact, Manifest, ShardEntry, ShardKind, SourceTensor, StageSource, TensorEntry};

const LAYERS: u32 = 3;
const WIDTH: u32 = 64;
const VOCAB: u32 = 70;
const HEADS: u32 = 4;
const KV_HEADS: u32 = 2;
const INNER: u32 = 128;
/// Window of windowed layers, in positions.
const WINDOW: u32 = 4;

const ARCHITECTURES: [&str; 4] = ["llama", "qwen2", "qwen3", "gemma3"];

/// A random model in one file.
struct Model {
    manifest: Manifest,
    tensors: Vec<SourceTensor>,
}

fn u32_fact(key: &str, value: u32) -> Fact {
    Fact::u32(&format!("llama.{key}"), value)
}

fn f32_fact(key: &str, value: f32) -> Fact {
    Fact::f32(&format!("llama.{key}"), value)
}

/// Pseudo-random numbers, equal in each run.
fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 24) as f32 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// Head size: its share of the width, or twice that if the architecture specifies it.
fn head(architecture: &str) -> u32 {
    match architecture {
        "llama" | "qwen2" => WIDTH / HEADS,
        _ => 2 * WIDTH / HEADS,
    }
}

/// Names, shapes and types of the tensors.
fn wanted(architecture: &str) -> Vec<(String, Vec<u32>, u32)> {
    let head = head(architecture);
    let (all, all_kv) = (HEADS * head, KV_HEADS * head);
    let mut wanted = vec![
        ("token_embd.weight".to_owned(), vec![WIDTH, VOCAB], 8),
        ("output_norm.weight".to_owned(), vec![WIDTH], 0),
    ];
    if architecture == "llama" {
        wanted.push(("rope_freqs.weight".to_owned(), vec![head / 2], 0));
    }
    for layer in 0..LAYERS {
        let mut add = |name: &str, dims: &[u32], ty| wanted.push((format!("blk.{layer}.{name}"), dims.to_vec(), ty));
        add("attn_norm.weight", &[WIDTH], 0);
        add("attn_q.weight", &[WIDTH, all], 3);
        add("attn_k.weight", &[WIDTH, all_kv], 8);
        add("attn_v.weight", &[WIDTH, all_kv], 1);
        add("attn_output.weight", &[all, WIDTH], 3);
        add("ffn_norm.weight", &[WIDTH], 0);
        add("ffn_gate.weight", &[WIDTH, INNER], 2);
        add("ffn_up.weight", &[WIDTH, INNER], 0);
        add("ffn_down.weight", &[INNER, WIDTH], 6);
        if architecture == "qwen2" {
            add("attn_q.bias", &[all], 0);
            add("attn_k.bias", &[all_kv], 0);
            add("attn_v.bias", &[all_kv], 0);
        }
        if matches!(architecture, "qwen3" | "gemma3") {
            add("attn_q_norm.weight", &[head], 0);
            add("attn_k_norm.weight", &[head], 0);
        }
        if architecture == "gemma3" {
            add("post_attention_norm.weight", &[WIDTH], 0);
            add("post_ffw_norm.weight", &[WIDTH], 0);
        }
    }
    wanted
}

impl Model {
    /// A llama.
    fn new() -> Self {
        Self::of("llama")
    }

    fn every() -> impl Iterator<Item = Self> {
        ARCHITECTURES.into_iter().map(Self::of)
    }

    fn of(architecture: &str) -> Self {
        let wanted = wanted(architecture);
        let (mut bytes, mut entries) = (Vec::new(), Vec::new());
        for (seed, (name, dims, ty)) in (1..).zip(wanted) {
            let data = tensor_bytes(seed, &name, &dims, ty);
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            let (offset, size) = (bytes.len() as u64, data.len() as u64);
            bytes.extend(data);
            let dims = dims.into_iter().map(u64::from).collect();
            entries.push(TensorEntry { name, ty, dims, offset, size });
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let file = Arc::new(file);
        let source = |entry: TensorEntry| SourceTensor { offset: entry.offset, entry, file: file.clone() };
        Self { manifest: manifest(architecture), tensors: entries.into_iter().map(source).collect() }
    }

    fn source(&self, start: u32, end: u32, head: bool) -> StageSource {
        let belongs = |name: &str| match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, _)) => (start..end).contains(&layer.parse().unwrap()),
            None => head || name == "rope_freqs.weight",
        };
        let tensors = self.tensors.iter().filter(|tensor| belongs(&tensor.entry.name)).cloned().collect();
        StageSource { manifest: Arc::new(self.manifest.clone()), layers: LayerRange::new(start, end), head, tensors }
    }

    fn stage(&self, start: u32, end: u32) -> Box<dyn Stage> {
        Candle::new().load_stage(self.source(start, end, end == LAYERS), &config()).unwrap()
    }

    fn chain(&self, cuts: &[u32]) -> Vec<Box<dyn Stage>> {
        let bounds: Vec<u32> = [0].into_iter().chain(cuts.iter().copied()).chain([LAYERS]).collect();
        bounds.windows(2).map(|pair| self.stage(pair[0], pair[1])).collect()
    }

    fn embedder(&self) -> Arc<dyn Embedder> {
        let manifest = Arc::new(self.manifest.clone());
        Candle::new().load_embedder(EmbeddingSource { manifest, tensor: self.tensors[0].clone() }).unwrap()
    }

    fn refusal(&self, change: impl FnOnce(&mut StageSource)) -> EngineError {
        let mut source = self.source(0, LAYERS, true);
        change(&mut source);
        Candle::new().load_stage(source, &config()).err().expect("the model was taken")
    }
}

fn manifest(architecture: &str) -> Manifest {
    let key = |key: &str| format!("{architecture}.{key}");
    let mut facts = vec![
        Fact::u32(&key("attention.head_count"), HEADS),
        Fact::u32(&key("attention.head_count_kv"), KV_HEADS),
        Fact::u32(&key("attention.key_length"), head(architecture)),
        Fact::u32(&key("feed_forward_length"), INNER),
        Fact::f32(&key("attention.layer_norm_rms_epsilon"), 1e-5),
        Fact::f32(&key("rope.freq_base"), 10_000.0),
    ];
    if architecture == "gemma3" {
        facts.push(Fact::u32(&key("attention.sliding_window"), WINDOW));
        // Layers 0 and 2 have a window.
        facts.push(Fact::u32(&key("attention.sliding_window_pattern"), 2));
        facts.push(Fact::f32(&key("rope.freq_base_swa"), 1_000.0));
        facts.push(Fact::f32(&key("rope.scaling.factor"), 8.0));
        facts.push(Fact::f32(&key("final_logit_softcapping"), 3.0));
    }
    Manifest {
        format: Manifest::FORMAT,
        architecture: architecture.to_owned(),
        layers: LAYERS,
        width: WIDTH,
        vocab: VOCAB,
        context: 4096,
        tied: true,
        alignment: 32,
        facts,
        shards: Vec::new(),
    }
}

fn tensor_bytes(seed: u64, name: &str, dims: &[u32], ty: u32) -> Vec<u8> {
    let count = dims.iter().product::<u32>() as usize;
    let mut values = noise(seed, count);
    if name.contains("norm") || name.contains("freqs") {
        values.iter_mut().for_each(|value| *value += 1.0);
    }
    let dtype = match ty {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        _ => GgmlDType::Q8_0,
    };
    let shape: Vec<usize> = dims.iter().rev().map(|&dim| dim as usize).collect();
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu).unwrap();
    QTensor::quantize(&tensor, dtype).unwrap().data().unwrap().into_owned()
}

fn config() -> StageConfig {
    StageConfig {
        context: 1024,
        max_sessions: 3,
        max_rows: 512,
        threads: 1,
        kv: KvType::Full,
        ..StageConfig::default()
    }
}

fn rows(slot: u32, pos: u32, count: u32) -> Vec<Row> {
    (pos..pos + count).map(|pos| Row { slot, pos, want: true }).collect()
}

/// One step through a chain: the logits of all rows.
fn step(chain: &mut [Box<dyn Stage>], embedder: &dyn Embedder, rows: &[Row], tokens: &[u32]) -> Vec<f32> {
    let (mut hidden, mut out) = (Vec::new(), Vec::new());
    embedder.embed(tokens, &mut hidden).unwrap();
    for stage in chain {
        stage.step(&hidden, rows, &mut out).unwrap();
        std::mem::swap(&mut hidden, &mut out);
    }
    hidden
}

/// A prefill of all but the last two tokens, then these one by one.
fn session(chain: &mut [Box<dyn Stage>], embedder: &dyn Embedder, slot: u32, tokens: &[u32]) -> Vec<f32> {
    let prompt = tokens.len() - 2;
    let mut logits = step(chain, embedder, &rows(slot, 0, prompt as u32), &tokens[..prompt]);
    for (pos, token) in tokens.iter().enumerate().skip(prompt) {
        logits.extend(step(chain, embedder, &rows(slot, pos as u32, 1), &[*token]));
    }
    logits
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

const TOKENS: [u32; 9] = [3, 1, 4, 15, 9, 26, 5, 35, 69];

#[test]
fn any_split_equals_the_whole_to_the_bit() {
    for model in Model::every() {
        let embedder = model.embedder();
        let whole = session(&mut model.chain(&[]), &*embedder, 0, &TOKENS);
        assert_eq!(whole.len(), TOKENS.len() * VOCAB as usize);
        assert!(whole.iter().all(|logit| logit.is_finite()));
        for cuts in [&[1][..], &[2], &[1, 2]] {
            let split = session(&mut model.chain(cuts), &*embedder, 1, &TOKENS);
            assert!(bits(&split) == bits(&whole), "{}, cuts {cuts:?}", model.manifest.architecture);
        }
    }
}

#[test]
fn a_session_does_not_depend_on_other_sessions() {
    for model in Model::every() {
        let embedder = model.embedder();
        let (first, second) = (&TOKENS[..6], [7, 7, 8, 60, 1, 2]);
        let alone: Vec<Vec<f32>> =
            [first, &second].map(|tokens| session(&mut model.chain(&[1]), &*embedder, 0, tokens)).into();

        let mut chain = model.chain(&[1]);
        // Rows of both sessions alternate in the prefill.
        let (mut mixed, mut tokens) = (Vec::new(), Vec::new());
        for pos in 0..4u32 {
            for (slot, text) in [(2, first), (0, &second[..])] {
                mixed.push(Row { slot, pos, want: true });
                tokens.push(text[pos as usize]);
            }
        }
        let vocab = VOCAB as usize;
        let mut logits = [Vec::new(), Vec::new()];
        let mut take = |given: Vec<f32>| {
            for (index, row) in given.chunks_exact(vocab).enumerate() {
                logits[index % 2].extend_from_slice(row);
            }
        };
        take(step(&mut chain, &*embedder, &mixed, &tokens));
        for pos in 4..6u32 {
            let pair = [Row { slot: 2, pos, want: true }, Row { slot: 0, pos, want: true }];
            take(step(&mut chain, &*embedder, &pair, &[first[pos as usize], second[pos as usize]]));
        }
        assert_eq!(logits.to_vec(), alone);
    }
}

#[test]
fn only_wanted_rows_give_logits_in_their_order() {
    let model = Model::new();
    let embedder = model.embedder();
    let all = step(&mut model.chain(&[]), &*embedder, &rows(0, 0, 4), &TOKENS[..4]);
    let mut some = rows(0, 0, 4);
    some[0].want = false;
    some[2].want = false;
    let given = step(&mut model.chain(&[]), &*embedder, &some, &TOKENS[..4]);
    let row = |index: usize| &all[index * VOCAB as usize..(index + 1) * VOCAB as usize];
    assert_eq!(given, [row(1), row(3)].concat());
    some.iter_mut().for_each(|row| row.want = false);
    assert!(step(&mut model.chain(&[]), &*embedder, &some, &TOKENS[..4]).is_empty());
}

#[test]
fn a_truncated_session_continues_as_if_it_had_been_shorter() {
    for model in Model::every() {
        let embedder = model.embedder();
        let whole = session(&mut model.chain(&[1, 2]), &*embedder, 0, &TOKENS);
        let mut chain = model.chain(&[1, 2]);
        // Long enough for the KV to grow beyond its first block.
        let long: Vec<u32> = (0..300).map(|index| index % VOCAB).collect();
        step(&mut chain, &*embedder, &rows(0, 0, 300), &long);
        chain.iter_mut().for_each(|stage| stage.release(0));
        assert_eq!(session(&mut chain, &*embedder, 0, &TOKENS), whole);

        step(&mut chain, &*embedder, &rows(0, 9, 2), &[5, 6]);
        chain.iter_mut().for_each(|stage| stage.truncate(0, 8).unwrap());
        let again = step(&mut chain, &*embedder, &rows(0, 8, 1), &TOKENS[8..]);
        assert_eq!(again, whole[8 * VOCAB as usize..]);
    }
}

#[test]
fn growing_the_kv_does_not_change_results() {
    for model in Model::every() {
        let embedder = model.embedder();
        let tokens: Vec<u32> = (0..262).map(|index| (index * 7) % VOCAB).collect();
        // The 256 cells of the first block are filled by the prefill, and the next token needs the second.
        let run = |grown: bool| {
            let mut chain = model.chain(&[]);
            if grown {
                step(&mut chain, &*embedder, &rows(0, 0, 262), &tokens);
                chain[0].truncate(0, 0).unwrap();
            }
            step(&mut chain, &*embedder, &rows(0, 0, 256), &tokens[..256]);
            (256..262).flat_map(|pos| step(&mut chain, &*embedder, &rows(0, pos, 1), &[tokens[pos as usize]])).collect()
        };
        let (fresh, grown): (Vec<f32>, Vec<f32>) = (run(false), run(true));
        assert_eq!(fresh, grown);
    }
}

#[test]
fn embedding_rows_equal_those_of_the_whole_matrix() {
    let model = Model::new();
    let embedder = model.embedder();
    let bytes = tensor_bytes(1, "token_embd.weight", &[WIDTH, VOCAB], 8);
    let shape = (VOCAB as usize, WIDTH as usize);
    let storage = candle_core::quantized::QStorage::from_data(bytes.into(), &Device::Cpu, GgmlDType::Q8_0).unwrap();
    let matrix = QTensor::new(storage, shape).unwrap().dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
    // More tokens than one read has.
    let tokens: Vec<u32> = (0..600).map(|index| (index * 11) % VOCAB).collect();
    let mut out = vec![1.0];
    embedder.embed(&tokens, &mut out).unwrap();
    let expected: Vec<f32> = tokens.iter().flat_map(|&token| matrix[token as usize].clone()).collect();
    assert_eq!(out, expected);
    assert_eq!(embedder.embed(&[VOCAB], &mut out), Err(EngineError::Token { token: VOCAB, vocab: VOCAB }));
}

#[test]
fn unknown_keys_and_tensors_are_refused() {
    let model = Model::new();
    let bad = |error: EngineError, name: &str| match error {
        EngineError::BadModel { what, .. } => assert_eq!(what, name),
        other => panic!("{other}"),
    };
    let with_fact = |fact: Fact| model.refusal(|source| Arc::make_mut(&mut source.manifest).facts.insert(0, fact));
    bad(with_fact(u32_fact("attention.sliding_window", 4)), "llama.attention.sliding_window");
    bad(with_fact(u32_fact("expert_count", 4)), "llama.expert_count");
    bad(with_fact(Fact::string("llama.rope.scaling.type", "yarn")), "llama.rope.scaling.type");
    bad(with_fact(f32_fact("rope.scaling.factor", 0.0)), "llama.rope.scaling.factor");
    bad(with_fact(u32_fact("attention.head_count_kv", 3)), "llama.attention.head_count");
    bad(with_fact(f32_fact("final_logit_softcapping", 30.0)), "llama.final_logit_softcapping");
    bad(with_fact(u32_fact("rope.dimension_count", 8)), "llama.attention.key_length");
    bad(with_fact(f32_fact("attention.layer_norm_rms_epsilon", f32::NAN)), "llama.attention.layer_norm_rms_epsilon");
    bad(with_fact(u32_fact("rope.freq_base", 1)), "llama.rope.freq_base");

    let biased = |source: &mut StageSource| {
        let mut bias = source.tensors[0].clone();
        bias.entry.name = "blk.0.attn_q.bias".to_owned();
        source.tensors.push(bias);
    };
    bad(model.refusal(biased), "blk.0.attn_q.bias");
    let other = model.refusal(|source| Arc::make_mut(&mut source.manifest).architecture = "gemma2".to_owned());
    assert!(matches!(other, EngineError::UnsupportedArchitecture { .. }));
    let layers = model.refusal(|source| source.layers.end = LAYERS + 1);
    assert!(matches!(layers, EngineError::IllegalCut { .. }));
}

#[test]
fn missing_tensors_are_refused() {
    for (architecture, tensor) in [
        ("qwen2", "blk.1.attn_k.bias"),
        ("qwen3", "blk.1.attn_q_norm.weight"),
        ("gemma3", "blk.1.post_ffw_norm.weight"),
    ] {
        let error = Model::of(architecture).refusal(|source| source.tensors.retain(|held| held.entry.name != tensor));
        assert!(matches!(&error, EngineError::BadModel { what, .. } if what == tensor), "{error}");
    }
}

/// The model's manifest with all tensors in one shard.
fn listed(model: &Model) -> Manifest {
    let tensors = model.tensors.iter().map(|tensor| tensor.entry.clone()).collect();
    let shard = ShardEntry { kind: ShardKind::Head, id: ShardId([0; 32]), size: 1, weight: 1, tensors };
    Manifest { shards: vec![shard], ..model.manifest.clone() }
}

#[test]
fn manifest_check_and_loader_refuse_the_same_tensors() {
    type Change = fn(&mut Vec<SourceTensor>, usize);
    for model in Model::every() {
        let architecture = model.manifest.architecture.clone();
        assert_eq!(Candle::new().cuts(&listed(&model)), Ok(CutRules::any()), "{architecture}");
        for at in 0..model.tensors.len() {
            let name = model.tensors[at].entry.name.clone();
            let changes: [(&str, Change); 4] = [
                ("missing", |tensors, at| drop(tensors.remove(at))),
                ("of an unknown type", |tensors, at| tensors[at].entry.ty = 16),
                ("of another shape", |tensors, at| tensors[at].entry.dims[0] += 32),
                ("not known", |tensors, at| tensors[at].entry.name.push('x')),
            ];
            for (what, change) in changes {
                let mut changed = Model { manifest: model.manifest.clone(), tensors: model.tensors.clone() };
                change(&mut changed.tensors, at);
                let loaded = Candle::new().load_stage(changed.source(0, LAYERS, true), &config()).is_ok();
                let admitted = Candle::new().cuts(&listed(&changed)).is_ok();
                assert_eq!(loaded, admitted, "{architecture}: {name} {what}");
                // RoPE factors are optional.
                assert!(!admitted || name == "rope_freqs.weight", "{architecture}: {name} {what}");
            }
        }
    }
}

#[test]
fn invalid_windows_are_refused() {
    let with_fact = |fact: Fact| {
        let key = fact.key.clone();
        let insert = |source: &mut StageSource| Arc::make_mut(&mut source.manifest).facts.insert(0, fact);
        let error = Model::of("gemma3").refusal(insert);
        assert!(matches!(&error, EngineError::BadModel { what, .. } if *what == key), "{error}");
    };
    with_fact(Fact::u32("gemma3.attention.sliding_window", 0));
    with_fact(Fact::bools("gemma3.attention.sliding_window_pattern", &[true; 2]));
    with_fact(Fact::string("gemma3.attention.sliding_window_pattern", "all"));
    with_fact(Fact::f32("gemma3.rope.freq_base_swa", f32::INFINITY));
    let windowless = |source: &mut StageSource| {
        Arc::make_mut(&mut source.manifest).facts.retain(|fact| fact.key != "gemma3.attention.sliding_window");
    };
    assert!(matches!(Model::of("gemma3").refusal(windowless), EngineError::BadModel { .. }));
}

#[test]
fn a_window_masks_earlier_positions_in_prefill_and_decode() {
    let model = Model::of("gemma3");
    let width = WIDTH as usize;
    // One layer, so that no other layer passes information on: 0 has a window, 1 has none.
    let outputs = |layer: u32, first: f32| {
        let mut stage = model.stage(layer, layer + 1);
        let mut hidden = noise(7, 9 * width);
        hidden[..width].fill(first);
        let (mut out, mut all) = (Vec::new(), Vec::new());
        stage.step(&hidden[..7 * width], &rows(0, 0, 7), &mut out).unwrap();
        all.append(&mut out);
        for pos in 7..9 {
            stage.step(&hidden[pos * width..(pos + 1) * width], &rows(0, pos as u32, 1), &mut out).unwrap();
            all.append(&mut out);
        }
        all
    };
    let differ = |layer: u32| {
        let (one, other) = (outputs(layer, 0.5), outputs(layer, -0.3));
        let pairs = one.chunks_exact(width).zip(other.chunks_exact(width));
        pairs.map(|(one, other)| bits(one) != bits(other)).collect::<Vec<bool>>()
    };
    assert_eq!(differ(0), [true, true, true, true, false, false, false, false, false]);
    assert_eq!(differ(1), [true; 9]);
}

#[test]
fn gemma_embeddings_are_scaled_by_the_root_of_the_width() {
    let (plain, scaled) = (Model::new(), Model::of("gemma3"));
    let (mut one, mut other) = (Vec::new(), Vec::new());
    plain.embedder().embed(&TOKENS, &mut one).unwrap();
    scaled.embedder().embed(&TOKENS, &mut other).unwrap();
    let expected: Vec<f32> = one.iter().map(|value| value * (WIDTH as f32).sqrt()).collect();
    assert_eq!(other, expected);
}

#[test]
fn tensors_that_would_make_candle_panic_are_refused() {
    let model = Model::new();
    let with_tensor = |change: fn(&mut SourceTensor)| {
        let error = model.refusal(|source| {
            let tensor = source.tensors.iter_mut().find(|tensor| tensor.entry.name == "blk.1.attn_q.weight");
            change(tensor.unwrap());
        });
        assert!(matches!(&error, EngineError::BadModel { what, .. } if what.contains("blk.1.attn_q")), "{error}");
    };
    with_tensor(|tensor| tensor.entry.ty = 9);
    with_tensor(|tensor| tensor.entry.ty = 4);
    with_tensor(|tensor| tensor.entry.ty = 12);
    with_tensor(|tensor| tensor.entry.size -= 1);
    with_tensor(|tensor| tensor.entry.dims = vec![WIDTH.into(), u64::MAX]);
    with_tensor(|tensor| tensor.entry.dims = Vec::new());
    with_tensor(|tensor| tensor.offset = u64::MAX - 1);
    with_tensor(|tensor| tensor.file = Arc::new(tempfile::tempfile().unwrap()));
    with_tensor(|tensor| tensor.entry.name = "blk.1.attn_q.weight2".to_owned());
}

#[test]
fn rows_with_odd_blocks_that_candle_cannot_multiply_are_refused() {
    let model = Model::new();
    let error = model.refusal(|source| {
        Arc::make_mut(&mut source.manifest).facts.insert(0, u32_fact("feed_forward_length", 96));
        for tensor in &mut source.tensors {
            let entry = &mut tensor.entry;
            let (dims, row_bytes) = match entry.name.as_str() {
                "blk.0.ffn_gate.weight" => ([WIDTH, 96], 2 * 18),
                "blk.0.ffn_up.weight" => ([WIDTH, 96], 4 * WIDTH),
                // Three blocks of Q5_0 to a row.
                "blk.0.ffn_down.weight" => ([96, WIDTH], 3 * 22),
                _ => continue,
            };
            entry.size = u64::from(row_bytes * dims[1]);
            entry.dims = dims.map(u64::from).into();
        }
    });
    assert!(matches!(&error, EngineError::BadModel { what, .. } if what == "blk.0.ffn_down.weight"), "{error}");
}

#[test]
fn a_refused_step_changes_nothing() {
    let model = Model::new();
    let embedder = model.embedder();
    let mut chain = model.chain(&[]);
    let mut out = Vec::new();
    let stage = &mut chain[0];
    let width = WIDTH as usize;
    let poisoned = vec![f32::INFINITY; width];
    assert_eq!(stage.step(&poisoned, &rows(0, 0, 1), &mut out), Err(EngineError::NotFinite { row: 0 }));
    let gap = EngineError::Position { given: 1, expected: 0 };
    assert_eq!(stage.step(&vec![0.0; width], &rows(0, 1, 1), &mut out), Err(gap));
    let after = session(&mut chain, &*embedder, 0, &TOKENS);
    assert_eq!(after, session(&mut model.chain(&[]), &*embedder, 0, &TOKENS));
}

#[test]
fn a_step_that_is_cancelled_while_running_changes_nothing() {
    let model = Model::new();
    let embedder = model.embedder();
    let mut chain = model.chain(&[]);
    for asks in 0..LAYERS {
        let left = std::sync::atomic::AtomicU32::new(asks);
        let cancelled = || left.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)).is_err();
        let options = StepOptions { cancelled: Some(&cancelled), ..StepOptions::default() };
        let hidden = vec![0.25; 3 * WIDTH as usize];
        let given_up = chain[0].compute(&hidden, &rows(0, 0, 3), options, &mut Vec::new());
        assert_eq!(given_up, Err(EngineError::Cancelled), "after {asks} layers");
    }
    let after = session(&mut chain, &*embedder, 0, &TOKENS);
    assert_eq!(after, session(&mut model.chain(&[]), &*embedder, 0, &TOKENS));
}

#[test]
fn a_loaded_stage_holds_no_file_open() {
    // The files of a loaded stage may be deleted.
    let model = Model::new();
    let source = model.source(0, LAYERS, true);
    let file: Arc<File> = source.tensors[0].file.clone();
    let held = Arc::strong_count(&file);
    let copies = source.tensors.len();
    let stage = Candle::new().load_stage(source, &config()).unwrap();
    assert_eq!(Arc::strong_count(&file), held - copies);
    drop(stage);
}
