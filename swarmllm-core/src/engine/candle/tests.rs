//! On tiny models with random weights. That the numbers are candle's own is shown on a real one, in the tests package.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::Candle;
use crate::base::LayerRange;
use crate::engine::{Embedder, Engine, EngineError, Row, Stage, StageConfig};
use crate::model::{EmbeddingSource, Fact, Manifest, SourceTensor, StageSource, TensorEntry};

const LAYERS: u32 = 3;
const WIDTH: u32 = 64;
const VOCAB: u32 = 70;
const HEADS: u32 = 4;
const KV_HEADS: u32 = 2;
const INNER: u32 = 128;

/// A random model in one file.
struct Model {
    manifest: Manifest,
    tensors: Vec<SourceTensor>,
}

fn u32_fact(key: &str, value: u32) -> Fact {
    Fact { key: format!("llama.{key}"), ty: 4, raw: value.to_le_bytes().to_vec() }
}

fn f32_fact(key: &str, value: f32) -> Fact {
    Fact { key: format!("llama.{key}"), ty: 6, raw: value.to_le_bytes().to_vec() }
}

/// Numbers that are the same in every run.
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

impl Model {
    fn new() -> Self {
        let head = WIDTH / HEADS;
        let mut wanted = vec![
            ("token_embd.weight".to_owned(), vec![WIDTH, VOCAB], 8),
            ("output_norm.weight".to_owned(), vec![WIDTH], 0),
            ("rope_freqs.weight".to_owned(), vec![head / 2], 0),
        ];
        for layer in 0..LAYERS {
            let mut add =
                |name: &str, dims: &[u32], ty| wanted.push((format!("blk.{layer}.{name}.weight"), dims.to_vec(), ty));
            add("attn_norm", &[WIDTH], 0);
            add("attn_q", &[WIDTH, WIDTH], 3);
            add("attn_k", &[WIDTH, KV_HEADS * head], 8);
            add("attn_v", &[WIDTH, KV_HEADS * head], 1);
            add("attn_output", &[WIDTH, WIDTH], 3);
            add("ffn_norm", &[WIDTH], 0);
            add("ffn_gate", &[WIDTH, INNER], 2);
            add("ffn_up", &[WIDTH, INNER], 0);
            add("ffn_down", &[INNER, WIDTH], 6);
        }
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
        Self { manifest: manifest(), tensors: entries.into_iter().map(source).collect() }
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

fn manifest() -> Manifest {
    Manifest {
        format: Manifest::FORMAT,
        name: "noise".to_owned(),
        architecture: "llama".to_owned(),
        layers: LAYERS,
        width: WIDTH,
        vocab: VOCAB,
        context: 4096,
        tied: true,
        alignment: 32,
        facts: vec![
            u32_fact("attention.head_count", HEADS),
            u32_fact("attention.head_count_kv", KV_HEADS),
            u32_fact("feed_forward_length", INNER),
            f32_fact("attention.layer_norm_rms_epsilon", 1e-5),
            f32_fact("rope.freq_base", 10_000.0),
        ],
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
    StageConfig { context: 1024, max_sessions: 3, max_rows: 512, threads: 1 }
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

/// A prefill of the tokens but the last two, and then these one by one.
fn session(chain: &mut [Box<dyn Stage>], embedder: &dyn Embedder, slot: u32, tokens: &[u32]) -> Vec<f32> {
    let prompt = tokens.len() - 2;
    let mut logits = step(chain, embedder, &rows(slot, 0, prompt as u32), &tokens[..prompt]);
    for (pos, token) in tokens.iter().enumerate().skip(prompt) {
        logits.extend(step(chain, embedder, &rows(slot, pos as u32, 1), &[*token]));
    }
    logits
}

const TOKENS: [u32; 9] = [3, 1, 4, 15, 9, 26, 5, 35, 69];

#[test]
fn any_split_gives_the_bits_of_the_whole() {
    let model = Model::new();
    let embedder = model.embedder();
    let whole = session(&mut model.chain(&[]), &*embedder, 0, &TOKENS);
    assert_eq!(whole.len(), TOKENS.len() * VOCAB as usize);
    assert!(whole.iter().all(|logit| logit.is_finite()));
    for cuts in [&[1][..], &[2], &[1, 2]] {
        assert_eq!(session(&mut model.chain(cuts), &*embedder, 1, &TOKENS), whole, "cuts {cuts:?}");
    }
}

#[test]
fn a_session_does_not_depend_on_its_neighbours() {
    let model = Model::new();
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
fn a_truncated_or_released_session_continues_as_if_the_rest_had_never_been() {
    let model = Model::new();
    let embedder = model.embedder();
    let whole = session(&mut model.chain(&[1, 2]), &*embedder, 0, &TOKENS);
    let mut chain = model.chain(&[1, 2]);
    // Long enough that the KV grows past its first block.
    let long: Vec<u32> = (0..300).map(|index| index % VOCAB).collect();
    step(&mut chain, &*embedder, &rows(0, 0, 300), &long);
    chain.iter_mut().for_each(|stage| stage.release(0));
    assert_eq!(session(&mut chain, &*embedder, 0, &TOKENS), whole);

    step(&mut chain, &*embedder, &rows(0, 9, 2), &[5, 6]);
    chain.iter_mut().for_each(|stage| stage.truncate(0, 8).unwrap());
    let again = step(&mut chain, &*embedder, &rows(0, 8, 1), &TOKENS[8..]);
    assert_eq!(again, whole[8 * VOCAB as usize..]);
}

#[test]
fn a_session_that_grew_step_by_step_equals_one_with_room_from_the_start() {
    let model = Model::new();
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

#[test]
fn a_snapshot_moves_a_session_and_fits_no_other_stage() {
    let model = Model::new();
    let embedder = model.embedder();
    let (mut from, mut to) = (model.chain(&[1]), model.chain(&[1]));
    let whole = session(&mut from, &*embedder, 0, &TOKENS);
    step(&mut from, &*embedder, &rows(1, 0, 8), &TOKENS[..8]);
    // Of slot 0 only the first 8 positions, which were computed in other step shapes than those of slot 1.
    from.iter_mut().for_each(|stage| stage.truncate(0, 8).unwrap());
    let states: Vec<Vec<u8>> = from.iter_mut().map(|stage| stage.snapshot(0).unwrap()).collect();
    for (stage, state) in to.iter_mut().zip(&states) {
        stage.restore(2, 8, state).unwrap();
    }
    assert_eq!(step(&mut to, &*embedder, &rows(2, 8, 1), &TOKENS[8..]), whole[8 * VOCAB as usize..]);

    let state = &states[0];
    let refused = |result| matches!(result, Err(EngineError::Snapshot { .. }));
    assert!(refused(to[1].restore(0, 8, state)));
    assert!(refused(to[0].restore(0, 7, state)));
    assert!(refused(to[0].restore(0, 8, &state[..state.len() - 4])));
    assert!(refused(to[0].restore(0, 8, &[])));
    let mut poisoned = state.clone();
    let end = poisoned.len();
    poisoned[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(refused(to[0].restore(0, 8, &poisoned)));
    assert_eq!(to[0].restore(0, 1025, state), Err(EngineError::ContextFull { context: 1024 }));
    assert_eq!(to[0].snapshot(3), Err(EngineError::Slot { slot: 3, slots: 3 }));
}

#[test]
fn rows_of_the_embedding_are_those_of_the_whole_matrix() {
    let model = Model::new();
    let embedder = model.embedder();
    let bytes = tensor_bytes(1, "token_embd.weight", &[WIDTH, VOCAB], 8);
    let shape = (VOCAB as usize, WIDTH as usize);
    let storage = candle_core::quantized::QStorage::from_data(bytes.into(), &Device::Cpu, GgmlDType::Q8_0).unwrap();
    let matrix = QTensor::new(storage, shape).unwrap().dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
    // More tokens than are read at once.
    let tokens: Vec<u32> = (0..600).map(|index| (index * 11) % VOCAB).collect();
    let mut out = vec![1.0];
    embedder.embed(&tokens, &mut out).unwrap();
    let expected: Vec<f32> = tokens.iter().flat_map(|&token| matrix[token as usize].clone()).collect();
    assert_eq!(out, expected);
    assert_eq!(embedder.embed(&[VOCAB], &mut out), Err(EngineError::Token { token: VOCAB, vocab: VOCAB }));
}

#[test]
fn what_the_architecture_does_not_know_is_refused() {
    let model = Model::new();
    let bad = |error: EngineError, name: &str| match error {
        EngineError::BadModel { what, .. } => assert_eq!(what, name),
        other => panic!("{other}"),
    };
    let with_fact = |fact: Fact| model.refusal(|source| Arc::make_mut(&mut source.manifest).facts.insert(0, fact));
    bad(with_fact(u32_fact("attention.sliding_window", 4)), "llama.attention.sliding_window");
    bad(with_fact(u32_fact("expert_count", 4)), "llama.expert_count");
    bad(with_fact(f32_fact("rope.scaling.factor", 4.0)), "llama.rope.scaling.type");
    bad(with_fact(u32_fact("attention.head_count_kv", 3)), "llama.attention.head_count");
    bad(with_fact(u32_fact("rope.dimension_count", 8)), "llama.attention.key_length");
    bad(with_fact(f32_fact("attention.layer_norm_rms_epsilon", f32::NAN)), "llama.attention.layer_norm_rms_epsilon");
    bad(with_fact(u32_fact("rope.freq_base", 1)), "llama.rope.freq_base");

    let biased = |source: &mut StageSource| {
        let mut bias = source.tensors[0].clone();
        bias.entry.name = "blk.0.attn_q.bias".to_owned();
        source.tensors.push(bias);
    };
    bad(model.refusal(biased), "blk.0.attn_q.bias");
    let other = model.refusal(|source| Arc::make_mut(&mut source.manifest).architecture = "gemma3".to_owned());
    assert!(matches!(other, EngineError::UnsupportedArchitecture { .. }));
    let layers = model.refusal(|source| source.layers.end = LAYERS + 1);
    assert!(matches!(layers, EngineError::IllegalCut { .. }));
}

#[test]
fn tensors_that_would_make_candle_panic_are_refused_before() {
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
fn rows_of_odd_blocks_that_candle_cannot_multiply_are_refused() {
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
fn a_stage_holds_no_file_open_that_it_does_not_need() {
    // The files of a stage may be deleted once it is loaded.
    let model = Model::new();
    let source = model.source(0, LAYERS, true);
    let file: Arc<File> = source.tensors[0].file.clone();
    let held = Arc::strong_count(&file);
    let copies = source.tensors.len();
    let stage = Candle::new().load_stage(source, &config()).unwrap();
    assert_eq!(Arc::strong_count(&file), held - copies);
    drop(stage);
}
