//! What the manifest check refuses, and a small model for tests of other modules.

use std::io::Cursor;

use proptest::prelude::*;

use super::check::kind_of;
use super::*;
use crate::base::ErrorKind;
use crate::model::gguf::tests::{TestTensor, file, tensor};
use crate::model::gguf::{Gguf, GgufError, ShapeFault};

const F32: u32 = 0;

/// GGUF bytes of a small model with `width` 8 and `vocab` 16. Equal arguments give equal bytes; models of one `seed`
/// have equal layers.
pub(crate) fn small_model(name: &str, layers: u32, tied: bool, common: bool, seed: u64) -> Vec<u8> {
    let facts = [
        Fact::string("general.architecture", "llama"),
        Fact::string("general.name", name),
        Fact::u32("llama.block_count", layers),
        Fact::u32("llama.context_length", 64),
        Fact::u32("llama.embedding_length", 8),
        Fact::strings("tokenizer.ggml.tokens", &["a", "b"]),
    ];
    let part = |name: &str, dims: &[u64], number: u64| tensor(name, dims, F32, seed * 1000 + number);
    let mut tensors: Vec<TestTensor> =
        vec![part("output_norm.weight", &[8], 1), part("token_embd.weight", &[8, 16], 2)];
    tensors.extend((!tied).then(|| part("output.weight", &[8, 16], 3)));
    tensors.extend(common.then(|| part("rope_freqs.weight", &[3], 4)));
    for layer in (0..layers).rev() {
        let number = 10 + u64::from(layer) * 2;
        tensors.push(part(&format!("blk.{layer}.attn_norm.weight"), &[7], number));
        tensors.push(part(&format!("blk.{layer}.ffn_up.weight"), &[8, 24], number + 1));
    }
    file(&facts, &tensors, 32)
}

fn split(bytes: &[u8]) -> Sharding {
    Sharding::new(&Gguf::read(&mut Cursor::new(bytes)).unwrap()).unwrap()
}

fn manifest() -> Manifest {
    split(&small_model("small", 3, false, true, 1)).manifest
}

#[test]
fn a_model_is_split_into_metadata_embedding_common_layers_and_head() {
    use ShardKind::*;
    let Sharding { manifest, metadata, tensor_offsets } = split(&small_model("small", 3, false, true, 1));
    let kinds: Vec<ShardKind> = manifest.shards.iter().map(|shard| shard.kind).collect();
    assert_eq!(kinds, [Metadata, Embedding, Common, Layer(0), Layer(1), Layer(2), Head]);
    let layer = manifest.shard(Layer(1)).unwrap();
    let places: Vec<(&str, u64, u64)> =
        layer.tensors.iter().map(|tensor| (tensor.name.as_str(), tensor.offset, tensor.size)).collect();
    assert_eq!(places, [("blk.1.attn_norm.weight", 0, 28), ("blk.1.ffn_up.weight", 32, 768)]);
    assert_eq!((layer.size, layer.weight), (800, 1));
    assert_eq!((manifest.width, manifest.vocab, manifest.context, manifest.tied), (8, 16, 64, false));
    assert_eq!(tensor_offsets.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 1, 2, 2, 2, 2]);
    let keys: Vec<&str> = manifest.facts.iter().map(|fact| fact.key.as_str()).collect();
    assert_eq!(keys, ["general.architecture", "llama.block_count", "llama.context_length", "llama.embedding_length"]);
    let again = Gguf::read(&mut Cursor::new(&metadata)).unwrap();
    assert_eq!((again.facts.len(), again.tensors.len()), (6, 0));
    assert!(split(&small_model("small", 1, true, false, 1)).manifest.tied);
}

#[test]
fn format_1_decodes_to_the_model_and_its_name() {
    let manifest = manifest();
    let old = encode_format_1(&manifest, "a name");
    assert!(matches!(Manifest::decode(&old), Err(ManifestError::Format { found: 1, known: 2 })));
    assert_eq!(decode_format_1(&old).unwrap(), Some((manifest.clone(), "a name".to_owned())));
    assert_eq!(decode_format_1(&manifest.encode()).unwrap(), None);
}

#[test]
fn a_manifest_survives_an_encoding_round_trip() {
    let manifest = manifest();
    assert_eq!(Manifest::decode(&manifest.encode()).unwrap(), manifest);
    assert!(!manifest.encode().is_empty());
}

#[test]
fn a_non_canonical_encoding_is_refused() {
    let good = manifest().encode();
    let trailing = [&good[..], &[0]].concat();
    assert!(matches!(Manifest::decode(&trailing), Err(ManifestError::NotCanonical)));
    // The first byte is the format, 2; an overlong varint encodes the same number.
    let overlong = [&[0x82, 0x00], &good[1..]].concat();
    assert!(matches!(Manifest::decode(&overlong), Err(ManifestError::NotCanonical)));
    assert!(matches!(Manifest::decode(&[]), Err(ManifestError::Encoding { .. })));
    let long = vec![0; limits::BYTES + 1];
    assert!(matches!(Manifest::decode(&long), Err(ManifestError::Limit { .. })));
    for len in 0..good.len() {
        assert!(Manifest::decode(&good[..len]).is_err(), "{len}");
    }
}

#[test]
fn a_manifest_out_of_bounds_or_contradicting_its_facts_is_refused() {
    type Change = fn(&mut Manifest);
    let cases: [(&str, Change); 12] = [
        ("format", |m| m.format = 3),
        ("architecture", |m| m.architecture = "gemma3".into()),
        ("architecture with a slash", |m| m.architecture = "a/b".into()),
        ("layers", |m| m.layers = 2),
        ("no layers", |m| m.layers = 0),
        ("many layers", |m| m.layers = u32::MAX),
        ("width", |m| m.width = 16),
        ("vocab", |m| m.vocab = 15),
        ("context", |m| m.context = 65),
        ("alignment", |m| m.alignment = 24),
        ("tied", |m| m.tied = true),
        ("a foreign fact", |m| m.facts.push(Fact::u32("tokenizer.ggml.bos_token_id", 1))),
    ];
    for (what, change) in cases {
        let mut manifest = manifest();
        change(&mut manifest);
        let error = Manifest::decode(&manifest.encode()).expect_err(what);
        assert!(matches!(error.kind(), ErrorKind::BadManifest | ErrorKind::BadGguf), "{what}: {error}");
    }
}

#[test]
fn malformed_duplicate_and_foreign_facts_are_refused() {
    let with = |fact| {
        let mut manifest = manifest();
        manifest.facts.push(fact);
        Manifest::decode(&manifest.encode()).unwrap_err()
    };
    assert!(matches!(with(Fact::u32("llama.block_count", 3)), ManifestError::ForeignFact { .. }));
    assert!(matches!(with(Fact::u32("llamas.x", 3)), ManifestError::ForeignFact { .. }));
    let short = Fact { key: "llama.x".into(), ty: 4, raw: vec![0; 3] };
    assert!(matches!(with(short), ManifestError::Fact(GgufError::Value { .. })));
    let large = Fact { key: "llama.x".into(), ty: 8, raw: vec![0; limits::FACT_BYTES] };
    assert!(matches!(with(large), ManifestError::Limit { .. }));
    let mut manifest = manifest();
    manifest.facts.remove(1);
    assert!(matches!(manifest.check(), Err(ManifestError::Fact(GgufError::MissingKey { .. }))));
}

#[test]
fn shards_out_of_order_missing_or_too_many_are_refused() {
    let with = |change: fn(&mut Vec<ShardEntry>)| {
        let mut manifest = manifest();
        change(&mut manifest.shards);
        Manifest::decode(&manifest.encode()).unwrap_err()
    };
    assert!(matches!(with(|s| s.swap(3, 4)), ManifestError::ShardOrder { index: 3, .. }));
    assert!(matches!(with(|s| s.truncate(6)), ManifestError::ShardCount { given: 6, .. }));
    assert!(matches!(with(|s| s.push(s[6].clone())), ManifestError::ShardCount { given: 8, .. }));
    assert!(matches!(with(|s| drop(s.remove(0))), ManifestError::ShardOrder { index: 0, .. }));
    assert!(matches!(with(|s| drop(s.remove(4))), ManifestError::ShardOrder { index: 4, .. }));
    assert!(matches!(with(|s| s.insert(3, s[2].clone())), ManifestError::ShardOrder { index: 3, .. }));
    assert!(matches!(with(Vec::clear), ManifestError::ShardCount { .. } | ManifestError::Limit { .. }));
    assert!(matches!(with(|s| s[6].tensors.clear()), ManifestError::EmptyShard { kind: ShardKind::Head }));
    assert!(matches!(with(|s| s[3].size += 1), ManifestError::ShardSum { what: "size", .. }));
    assert!(matches!(with(|s| s[3].weight += 1), ManifestError::ShardSum { what: "weight", .. }));
    assert!(matches!(with(|s| s[0].weight = 1), ManifestError::ShardSum { what: "weight", .. }));
    assert!(matches!(with(|s| s[0].size = u64::MAX), ManifestError::Limit { .. }));
    assert!(matches!(with(|s| s[0].tensors = s[1].tensors.clone()), ManifestError::ShardSum { .. }));
}

#[test]
fn invalid_and_misplaced_tensors_are_refused() {
    let fault = |change: fn(&mut Vec<TensorEntry>)| {
        let mut manifest = manifest();
        change(&mut manifest.shards[3].tensors);
        match Manifest::decode(&manifest.encode()) {
            Err(ManifestError::Tensor { fault, kind: ShardKind::Layer(0), .. }) => fault,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(fault(|t| t[0].name.clear()), TensorFault::Name);
    assert_eq!(fault(|t| t[0].name = "blk.0.é".into()), TensorFault::Name);
    assert_eq!(fault(|t| t[0].name = format!("blk.0.{}", "x".repeat(64))), TensorFault::Name);
    assert_eq!(fault(|t| t[0].name = "blk.1.x".into()), TensorFault::Misplaced);
    assert_eq!(fault(|t| t[0].name = "blk.00.x".into()), TensorFault::Misplaced);
    assert_eq!(fault(|t| t[0].name = "rope.weight".into()), TensorFault::Misplaced);
    assert_eq!(fault(|t| t[1].name = t[0].name.clone()), TensorFault::Duplicate);
    assert_eq!(fault(|t| t[0].ty = 4), TensorFault::Type(4));
    assert_eq!(fault(|t| t[0].dims.clear()), TensorFault::Shape(ShapeFault::Axes(0)));
    assert_eq!(fault(|t| t[0].dims = vec![1 << 40; 3]), TensorFault::Shape(ShapeFault::Overflow));
    assert_eq!(fault(|t| t[0].size = 24), TensorFault::Size { given: 24, expected: 28 });
    assert_eq!(fault(|t| t[1].offset = 0), TensorFault::Offset { given: 0, expected: 32 });
    assert_eq!(fault(|t| t[1].offset = 64), TensorFault::Offset { given: 64, expected: 32 });
    assert_eq!(fault(|t| t[1].offset = u64::MAX), TensorFault::Offset { given: u64::MAX, expected: 32 });
}

#[test]
fn a_file_without_a_block_or_embedding_cannot_be_split() {
    let split = |facts: &[Fact], tensors: &[TestTensor]| {
        Sharding::new(&Gguf::read(&mut Cursor::new(file(facts, tensors, 32))).unwrap()).unwrap_err()
    };
    let facts = |layers| {
        [
            Fact::string("general.architecture", "llama"),
            Fact::u32("llama.block_count", layers),
            Fact::u32("llama.context_length", 64),
            Fact::u32("llama.embedding_length", 8),
        ]
    };
    let part = |name: &str| tensor(name, &[8], F32, 1);
    let embedding = || tensor("token_embd.weight", &[8, 16], F32, 2);
    assert!(matches!(split(&facts(1), &[]), ManifestError::MissingTensor { tensor: "token_embd.weight" }));
    assert!(matches!(split(&[], &[embedding()]), ManifestError::Fact(GgufError::MissingKey { .. })));
    let error = split(&facts(2), &[embedding(), part("blk.0.x"), part("output_norm.weight")]);
    assert!(matches!(error, ManifestError::EmptyShard { kind: ShardKind::Layer(1) }), "{error}");
    let error = split(&facts(2), &[embedding(), part("blk.0.x"), part("blk.1.x")]);
    assert!(matches!(error, ManifestError::MissingTensor { tensor: "output_norm.weight" }), "{error}");
    let error = split(&facts(1), &[embedding(), part("blk.0.x"), part("blk.1.x"), part("output_norm.weight")]);
    assert!(matches!(error, ManifestError::Tensor { fault: TensorFault::Misplaced, .. }), "{error}");
    let error = split(&facts(u32::MAX), &[embedding()]);
    assert!(matches!(error, ManifestError::Limit { .. }), "{error}");
    let narrow = tensor("token_embd.weight", &[4, 16], F32, 2);
    let error = split(&facts(1), &[narrow, part("blk.0.x"), part("output_norm.weight")]);
    assert!(matches!(error, ManifestError::Tensor { fault: TensorFault::NotEmbedding, .. }), "{error}");
}

#[test]
fn a_tensors_name_determines_its_shard() {
    assert_eq!(kind_of("blk.11.attn_q.weight", 12), Some(ShardKind::Layer(11)));
    assert_eq!(kind_of("blk.12.attn_q.weight", 12), None);
    assert_eq!(kind_of("blk.+1.attn_q.weight", 12), None);
    assert_eq!(kind_of("blk.1", 12), None);
    assert_eq!(kind_of("token_embd.weight", 12), Some(ShardKind::Embedding));
    assert_eq!(kind_of("token_embd_norm.weight", 12), Some(ShardKind::Common));
    assert_eq!(kind_of("output_norm.bias", 12), Some(ShardKind::Head));
    assert_eq!(kind_of("output.weight", 12), Some(ShardKind::Head));
    assert_eq!(kind_of("rope_freqs.weight", 12), Some(ShardKind::Common));
}

#[test]
fn weight_counts_only_the_experts_used_per_token() {
    let facts = [Fact::string("general.architecture", "moe"), Fact::u32("moe.expert_used_count", 2)];
    let entry = |name: &str, dims: &[u64]| TensorEntry {
        name: name.to_owned(),
        ty: F32,
        dims: dims.to_vec(),
        offset: 0,
        size: 0,
    };
    let experts = entry("blk.0.ffn_up_exps.weight", &[1000, 1000, 8]);
    let dense = entry("blk.0.attn_q.weight", &[1000, 500]);
    let weight = |tensors: &[TensorEntry], facts| super::check::weight(tensors, crate::model::gguf::Facts(facts));
    assert_eq!(weight(std::slice::from_ref(&experts), &facts), 2);
    assert_eq!(weight(&[experts.clone(), dense], &facts), 3);
    assert_eq!(weight(&[experts], &facts[..1]), 8);
}

proptest! {
    #[test]
    fn a_mutated_manifest_never_panics_and_decodes_only_if_canonical(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = manifest().encode();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(manifest) = Manifest::decode(&bytes) {
            prop_assert_eq!(manifest.encode(), bytes);
        }
    }

    #[test]
    fn random_bytes_are_never_a_manifest(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        prop_assert!(Manifest::decode(&bytes).is_err());
        let _ = Manifest::decode(&[&[2][..], &bytes].concat());
        let _ = decode_format_1(&[&[1][..], &bytes].concat());
    }
}
