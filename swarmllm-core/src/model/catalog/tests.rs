//! Tests of the catalogue on real files in temporary directories.

mod names;
mod parts;

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::*;
use crate::base::{ErrorKind, Progress};
use crate::model::gguf::Gguf;
use crate::model::manifest::tests::small_model;
use crate::model::shard::{GROUP, ShardError};
use crate::model::{Fact, ShardEntry};

fn quiet(_: Progress) {}

struct Bench {
    dir: TempDir,
    catalog: Catalog,
}

impl Bench {
    fn new() -> Bench {
        let dir = TempDir::new().unwrap();
        let catalog = Catalog::open(&dir.path().join("data")).unwrap();
        Bench { dir, catalog }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn import(&self, bytes: &[u8]) -> ModelId {
        self.catalog.import(&self.file("model.gguf", bytes), None, &mut quiet).unwrap()
    }

    fn reopen(&self) -> Catalog {
        Catalog::open(&self.data()).unwrap()
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn files(&self, part: &str) -> Vec<PathBuf> {
        list(&self.data().join(part))
    }

    fn shard_path(&self, shard: &ShardId) -> PathBuf {
        self.data().join("shards").join(shard.to_string())
    }
}

fn list(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn small(name: &str, seed: u64) -> Vec<u8> {
    small_model(name, 3, false, true, seed)
}

fn entry(catalog: &Catalog, model: ModelId, kind: ShardKind) -> ShardEntry {
    catalog.manifest(model).unwrap().shard(kind).unwrap().clone()
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

/// Asserts that the sources have every tensor of the file, with equal bytes.
fn assert_tensors_equal(catalog: &Catalog, model: ModelId, gguf_path: &Path) {
    let mut original = fs::File::open(gguf_path).unwrap();
    let gguf = Gguf::read(&mut original).unwrap();
    let manifest = catalog.manifest(model).unwrap();
    let mut tensors = catalog.stage_source(model, LayerRange::new(0, manifest.layers), true).unwrap().tensors;
    if !manifest.tied {
        tensors.push(catalog.embedding_source(model).unwrap().tensor);
    }
    assert_eq!(tensors.len(), gguf.tensors.len());
    for tensor in tensors {
        let before = gguf.tensor(&tensor.entry.name).unwrap();
        assert_eq!((before.ty, &before.dims), (tensor.entry.ty, &tensor.entry.dims));
        let (mut expected, mut found) = (vec![0; before.size as usize], vec![0; before.size as usize]);
        original.seek(SeekFrom::Start(gguf.data_offset + before.offset)).unwrap();
        original.read_exact(&mut expected).unwrap();
        tensor.read_exact_at(0, &mut found).unwrap();
        assert!(found == expected, "{}", before.name);
        assert!(tensor.read_exact_at(before.size - 1, &mut [0; 2]).is_err());
    }
}

#[test]
fn an_imported_models_shards_have_the_files_bytes() {
    let bench = Bench::new();
    let path = bench.file("model.gguf", &small("small", 1));
    let mut seen = Vec::new();
    let model = bench.catalog.import(&path, None, &mut |progress| seen.push(progress)).unwrap();
    assert_eq!(bench.files("shards").len(), 7);
    assert_eq!(bench.files("partial"), Vec::<PathBuf>::new());
    assert_tensors_equal(&bench.catalog, model, &path);
    let held = bench.catalog.holding(model);
    assert_eq!(held, Held { layers: vec![LayerRange::new(0, 3)], metadata: true, embedding: true, head: true });
    assert!(seen.windows(2).all(|pair| pair[0].done < pair[1].done));
    assert!(seen.last().is_some_and(|last| last.done == last.total));
    for (path, shard) in bench.files("shards").iter().map(|path| (path, path.file_name().unwrap().to_str().unwrap())) {
        assert_eq!(blake3::hash(&fs::read(path).unwrap()).to_string(), shard);
    }
    let facts = bench.catalog.metadata(model).unwrap();
    assert_eq!(facts, Gguf::read(&mut fs::File::open(&path).unwrap()).unwrap().facts);
}

#[test]
fn importing_twice_or_elsewhere_gives_the_same_model() {
    let (one, two) = (Bench::new(), Bench::new());
    let model = one.import(&small("small", 1));
    assert_eq!(one.import(&small("small", 1)), model);
    assert_eq!(two.import(&small("small", 1)), model);
    assert_ne!(two.import(&small("small", 2)), model);
    assert_eq!(one.catalog.models().len(), 1);
}

#[test]
fn a_partial_import_gives_the_same_model_and_writes_only_those_parts() {
    let (whole, part) = (Bench::new(), Bench::new());
    let bytes = small("small", 1);
    let model = whole.import(&bytes);
    let keep = |kind| matches!(kind, ShardKind::Common | ShardKind::Layer(1));
    let path = part.file("model.gguf", &bytes);
    assert_eq!(part.catalog.import_parts(&path, None, &keep, &mut quiet).unwrap(), model);
    assert_eq!(part.files("shards").len(), 2);
    assert_eq!(part.catalog.holding(model).layers, [LayerRange::new(1, 2)]);
    assert!(part.catalog.stage_source(model, LayerRange::new(1, 2), false).is_ok());
    let missing = |result: Result<(), ModelError>| match result {
        Err(error @ ModelError::PartMissing { part, .. }) => {
            assert_eq!(error.kind(), ErrorKind::ShardMissing);
            part
        }
        other => panic!("{other:?}"),
    };
    let source = |start, end, head| part.catalog.stage_source(model, LayerRange::new(start, end), head).map(drop);
    assert_eq!(missing(source(0, 2, false)), ShardKind::Layer(0));
    assert_eq!(missing(source(1, 2, true)), ShardKind::Head);
    assert_eq!(missing(part.catalog.embedding_source(model).map(drop)), ShardKind::Embedding);
    assert_eq!(missing(part.catalog.metadata(model).map(drop)), ShardKind::Metadata);
}

#[test]
fn layers_need_the_common_tensors_and_a_tied_head_the_embedding() {
    let bench = Bench::new();
    let path = bench.file("a.gguf", &small_model("a", 2, true, true, 1));
    let only = |wanted: ShardKind| move |kind| kind == wanted;
    let add = |kind| bench.catalog.import_parts(&path, None, &only(kind), &mut quiet).unwrap();
    let model = add(ShardKind::Layer(0));
    assert_eq!(bench.catalog.holding(model).layers, []);
    add(ShardKind::Common);
    assert_eq!(bench.catalog.holding(model).layers, [LayerRange::new(0, 1)]);
    add(ShardKind::Head);
    assert!(!bench.catalog.holding(model).head);
    add(ShardKind::Embedding);
    assert!(bench.catalog.holding(model).head);
}

#[test]
fn a_stage_source_has_layers_common_tensors_and_what_the_head_needs() {
    let bench = Bench::new();
    let names = |model, layers: (u32, u32), head| {
        let source = bench.catalog.stage_source(model, LayerRange::new(layers.0, layers.1), head).unwrap();
        source.tensors.into_iter().map(|tensor| tensor.entry.name).collect::<Vec<_>>()
    };
    let tied = bench.import(&small_model("tied", 2, true, false, 1));
    assert_eq!(names(tied, (0, 1), false), ["blk.0.attn_norm.weight", "blk.0.ffn_up.weight"]);
    let head = names(tied, (1, 2), true);
    assert_eq!(head, ["token_embd.weight", "blk.1.attn_norm.weight", "blk.1.ffn_up.weight", "output_norm.weight"]);
    let free = bench.import(&small("free", 2));
    let head = names(free, (2, 2), true);
    assert_eq!(head, ["rope_freqs.weight", "output_norm.weight", "output.weight"]);
    for (start, end, head) in [(0, 4, true), (2, 1, false), (1, 1, false), (7, 7, true)] {
        let error = bench.catalog.stage_source(free, LayerRange::new(start, end), head).unwrap_err();
        assert!(matches!(error, ModelError::Layers { count: 3, .. }), "{start}..{end}");
    }
}

#[test]
fn an_imported_model_survives_reopening() {
    let bench = Bench::new();
    let model = bench.import(&small("small", 1));
    let again = bench.reopen();
    assert_eq!(again.models(), bench.catalog.models());
    assert_eq!(again.holding(model), bench.catalog.holding(model));
    assert!(again.metadata(model).is_ok());
}

#[test]
fn a_corrupt_shard_is_refused_and_no_longer_held() {
    let bench = Bench::new();
    let model = bench.import(&small("small", 1));
    let shard = entry(&bench.catalog, model, ShardKind::Layer(1));
    flip(&bench.shard_path(&shard.id), 13);
    let mut changes = bench.catalog.changes();
    changes.mark_unchanged();
    let error = bench.catalog.stage_source(model, LayerRange::new(0, 3), false).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShardCorrupt, "{error}");
    assert!(!bench.catalog.has(&shard.id));
    assert!(changes.has_changed().unwrap());
    let layers = bench.catalog.holding(model).layers;
    assert_eq!(layers, [LayerRange::new(0, 1), LayerRange::new(2, 3)]);
    let error = bench.catalog.stage_source(model, LayerRange::new(0, 3), false).unwrap_err();
    assert!(matches!(error, ModelError::PartMissing { part: ShardKind::Layer(1), .. }));
    bench.import(&small("small", 1));
    assert!(bench.catalog.stage_source(model, LayerRange::new(0, 3), false).is_ok());
}

#[test]
fn a_damaged_embedding_or_metadata_is_refused_too() {
    let bench = Bench::new();
    let model = bench.import(&small("small", 1));
    for kind in [ShardKind::Embedding, ShardKind::Metadata] {
        flip(&bench.shard_path(&entry(&bench.catalog, model, kind).id), 1);
    }
    assert_eq!(bench.catalog.embedding_source(model).unwrap_err().kind(), ErrorKind::ShardCorrupt);
    assert_eq!(bench.catalog.metadata(model).unwrap_err().kind(), ErrorKind::ShardCorrupt);
}

#[test]
fn verify_finds_damage_after_the_first_use() {
    let bench = Bench::new();
    let model = bench.import(&small("small", 1));
    let shard = entry(&bench.catalog, model, ShardKind::Head);
    bench.catalog.open_shard(&shard.id).unwrap();
    assert_eq!(bench.catalog.verify(model).unwrap(), []);
    flip(&bench.shard_path(&shard.id), 0);
    assert_eq!(bench.catalog.verify(model).unwrap(), [shard.id]);
    assert!(!bench.catalog.holding(model).head);
}

#[test]
fn a_truncated_or_deleted_shard_is_not_held() {
    let bench = Bench::new();
    let model = bench.import(&small("small", 1));
    let [short, gone] = [ShardKind::Layer(0), ShardKind::Head].map(|kind| entry(&bench.catalog, model, kind));
    let file = fs::OpenOptions::new().write(true).open(bench.shard_path(&short.id)).unwrap();
    file.set_len(short.size - 1).unwrap();
    fs::remove_file(bench.shard_path(&gone.id)).unwrap();
    assert!(matches!(bench.catalog.open_shard(&gone.id), Err(ModelError::ShardMissing { .. })));
    assert!(matches!(bench.catalog.open_shard(&short.id), Err(ModelError::Damaged { .. })));
    let again = bench.reopen();
    assert!(!again.has(&short.id) && !again.has(&gone.id));
    assert_eq!(again.holding(model).layers, [LayerRange::new(1, 3)]);
}

#[test]
fn shared_shards_stay_when_one_model_is_removed() {
    let bench = Bench::new();
    let one = bench.import(&small("one", 1));
    let two = bench.import(&small("two", 1));
    assert_ne!(one, two);
    // Only the metadata differs.
    assert_eq!(bench.files("shards").len(), 8);
    bench.catalog.remove(one).unwrap();
    // Manifest, provenance and names.
    assert_eq!((bench.files("shards").len(), bench.files("models").len()), (7, 3));
    assert_eq!(bench.catalog.verify(two).unwrap(), []);
    assert!(bench.catalog.holding(two).head && bench.catalog.holding(one) == Held::default());
    bench.catalog.remove(two).unwrap();
    assert_eq!((bench.files("shards").len(), bench.files("models").len()), (0, 0));
    assert_eq!(bench.catalog.remove(two).unwrap_err().kind(), ErrorKind::ModelNotFound);
    assert_eq!(bench.reopen().models().len(), 0);
}

#[test]
fn a_full_disk_is_reported_and_leaves_the_catalogue_unchanged() {
    let bench = Bench::new();
    let kept = bench.import(&small("kept", 9));
    let before = (bench.files("shards"), bench.files("models"), bench.files("partial"));
    let bytes = small("small", 1);
    let path = bench.file("model.gguf", &bytes);
    let mut failures = 0;
    // The import writes less than twice the file, including the manifest.
    for space in (0..2 * bytes.len()).step_by(97) {
        files::faults::set_space(Some(space));
        let result = bench.catalog.import(&path, None, &mut quiet);
        files::faults::set_space(None);
        let Err(error) = result else { break };
        failures += 1;
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{space}: {error}");
        assert_eq!((bench.files("shards"), bench.files("models"), bench.files("partial")), before);
        assert_eq!(bench.catalog.verify(kept).unwrap(), []);
    }
    assert!(failures > 10);
    assert_eq!(bench.catalog.models().len(), 2);
    assert!(bench.files("shards").len() > before.0.len());
}

#[test]
fn opening_removes_leftovers_of_an_interrupted_import() {
    let bench = Bench::new();
    let mut left = bench.catalog.layout().temporary().unwrap();
    left.write(b"half a shard").unwrap();
    std::mem::forget(left);
    assert_eq!(bench.files("partial").len(), 1);
    bench.reopen();
    assert_eq!(bench.files("partial").len(), 0);
}

#[test]
fn a_file_that_is_not_a_model_is_refused_and_changes_nothing() {
    let bench = Bench::new();
    let import = |path: &Path| bench.catalog.import(path, None, &mut quiet).unwrap_err();
    let bytes = small("small", 1);
    assert_eq!(import(&bench.file("a", b"not a model")).kind(), ErrorKind::BadGguf);
    assert_eq!(import(&bench.file("b", &bytes[..bytes.len() - 1])).kind(), ErrorKind::BadGguf);
    let header = crate::model::gguf::write_header(&[Fact::string("general.architecture", "x")], &[], 32);
    let error = import(&bench.file("c", &header));
    assert!(error.kind() == ErrorKind::BadGguf && error.to_string().contains("x.block_count"), "{error}");
    assert_eq!(import(bench.dir.path()).kind(), ErrorKind::InvalidArgument);
    let error = import(&bench.dir.path().join("absent.gguf"));
    assert!(error.kind() == ErrorKind::Io && error.to_string().contains("absent.gguf"), "{error}");
    for part in ["models", "shards", "partial"] {
        assert_eq!(bench.files(part).len(), 0, "{part}");
    }
}

#[test]
fn a_malformed_or_unexpected_manifest_is_refused() {
    let (from, to) = (Bench::new(), Bench::new());
    let model = from.import(&small("small", 1));
    let bytes = from.catalog.manifest(model).unwrap().encode();
    let refuse = |bytes: &[u8], expect| to.catalog.add_manifest(bytes, expect).unwrap_err();
    assert!(matches!(refuse(&bytes, ModelId([0; 32])), ModelError::Manifest(ManifestError::WrongId { .. })));
    let junk = [7; 40];
    let error = refuse(&junk, ModelId(*blake3::hash(&junk).as_bytes()));
    assert_eq!(error.kind(), ErrorKind::BadManifest, "{error}");
    assert_eq!(to.files("models").len(), 0);
    let changes = to.catalog.changes();
    to.catalog.add_manifest(&bytes, model).unwrap();
    assert!(changes.has_changed().unwrap());
    assert_eq!(to.catalog.holding(model), Held::default());
    assert_eq!(to.reopen().models().len(), 1);
}

#[test]
fn a_damaged_manifest_is_skipped_and_the_others_work() {
    let bench = Bench::new();
    let bad = bench.import(&small("bad", 1));
    let good = bench.import(&small("good", 2));
    flip(&bench.data().join("models").join(format!("{bad}.manifest")), 40);
    fs::write(bench.data().join("models").join("notes.txt"), b"not ours").unwrap();
    let again = bench.reopen();
    assert_eq!(again.models().iter().map(|(id, _)| *id).collect::<Vec<_>>(), [good]);
    assert!(again.holding(good).head);
    bench.import(&small("bad", 1));
    assert_eq!(bench.reopen().models().len(), 2);
}

/// A model whose only layer has more than three groups, with the layer's bytes and leaves.
fn large() -> (Bench, ModelId, ShardEntry, Vec<u8>, Arc<[Leaf]>) {
    use crate::model::gguf::tests::{file, tensor};
    let facts = [
        Fact::string("general.architecture", "llama"),
        Fact::u32("llama.block_count", 1),
        Fact::u32("llama.context_length", 64),
        Fact::u32("llama.embedding_length", 8),
    ];
    let tensors = [
        tensor("token_embd.weight", &[8, 16], 0, 1),
        tensor("blk.0.ffn_up.weight", &[8, 3 * 32 * 1024 + 5], 0, 2),
        tensor("output_norm.weight", &[8], 0, 3),
    ];
    let bench = Bench::new();
    let model = bench.import(&file(&facts, &tensors, 32));
    let shard = entry(&bench.catalog, model, ShardKind::Layer(0));
    let bytes = fs::read(bench.shard_path(&shard.id)).unwrap();
    let leaves = bench.catalog.shard_leaves(&shard.id).unwrap();
    assert_eq!(leaves.len(), 4);
    (bench, model, shard, bytes, leaves)
}

/// A catalogue that knows the model and holds nothing of it.
fn receiver(from: &Bench, model: ModelId) -> Bench {
    let bench = Bench::new();
    bench.catalog.add_manifest(&from.catalog.manifest(model).unwrap().encode(), model).unwrap();
    bench
}

fn write_rest(mut writer: ShardWriter, bytes: &[u8]) {
    for group in bytes.chunks(GROUP as usize).skip(writer.next_group() as usize) {
        writer.write_group(group).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn a_shard_received_group_by_group_is_held_once_complete() {
    let (from, model, shard, bytes, leaves) = large();
    let to = receiver(&from, model);
    let mut writer = to.catalog.shard_writer(&shard, leaves.to_vec()).unwrap();
    assert_eq!((writer.next_group(), writer.groups(), writer.next_len()), (0, 4, GROUP));
    writer.write_group(&bytes[..GROUP as usize]).unwrap();
    assert!(!to.catalog.has(&shard.id));
    write_rest(writer, &bytes);
    assert!(to.catalog.has(&shard.id) && to.files("partial").is_empty());
    assert!(to.catalog.stage_source(model, LayerRange::new(0, 1), false).is_ok());
    assert!(to.reopen().has(&shard.id));
}

#[test]
fn a_bad_group_is_refused_without_touching_the_good_ones() {
    let (from, model, shard, bytes, leaves) = large();
    let to = receiver(&from, model);
    let mut writer = to.catalog.shard_writer(&shard, leaves.to_vec()).unwrap();
    writer.write_group(&bytes[..GROUP as usize]).unwrap();
    let mut bad = bytes[GROUP as usize..2 * GROUP as usize].to_vec();
    bad[77] ^= 0x10;
    let error = writer.write_group(&bad).unwrap_err();
    assert!(matches!(error, ModelError::Shard(ShardError::Group { group: 1, .. })));
    assert_eq!((error.kind(), writer.next_group()), (ErrorKind::ShardCorrupt, 1));
    assert!(writer.write_group(&bytes[GROUP as usize..]).is_err());
    write_rest(writer, &bytes);
    assert!(to.catalog.open_shard(&shard.id).is_ok());
}

#[test]
fn an_interrupted_transfer_resumes_after_the_last_good_group() {
    let (from, model, shard, bytes, leaves) = large();
    let to = receiver(&from, model);
    let writer = |catalog: &Catalog| catalog.shard_writer(&shard, leaves.to_vec()).unwrap();
    let mut first = writer(&to.catalog);
    for group in bytes.chunks(GROUP as usize).take(3) {
        first.write_group(group).unwrap();
    }
    assert!(matches!(first.finish(), Err(ModelError::Unfinished { written: 3, groups: 4, .. })));
    assert_eq!(writer(&to.reopen()).next_group(), 3);
    let partial = to.data().join("partial").join(shard.id.to_string());
    flip(&partial, GROUP as usize + 5);
    assert_eq!(writer(&to.catalog).next_group(), 1);
    assert_eq!(fs::metadata(&partial).unwrap().len(), GROUP);
    fs::write(&partial, [&bytes[..], b"and more"].concat()).unwrap();
    let resumed = writer(&to.catalog);
    assert_eq!(resumed.next_group(), 4);
    resumed.finish().unwrap();
    assert_eq!(fs::read(to.shard_path(&shard.id)).unwrap(), bytes);
}

#[test]
fn a_damaged_shard_is_repaired_from_its_first_bad_group() {
    let (bench, model, shard, bytes, leaves) = large();
    bench.catalog.forget_verified(&shard.id);
    flip(&bench.shard_path(&shard.id), 2 * GROUP as usize);
    assert!(matches!(bench.catalog.open_shard(&shard.id), Err(ModelError::Damaged { .. })));
    let writer = bench.catalog.shard_writer(&shard, leaves.to_vec()).unwrap();
    assert_eq!(writer.next_group(), 2);
    write_rest(writer, &bytes);
    assert_eq!(bench.catalog.verify(model).unwrap(), []);
    assert!(bench.catalog.has(&shard.id));
}

#[test]
fn a_full_disk_while_receiving_loses_no_written_group() {
    let (from, model, shard, bytes, leaves) = large();
    let to = receiver(&from, model);
    let mut writer = to.catalog.shard_writer(&shard, leaves.to_vec()).unwrap();
    writer.write_group(&bytes[..GROUP as usize]).unwrap();
    let second = &bytes[GROUP as usize..2 * GROUP as usize];
    files::faults::set_space(Some(10));
    let error = writer.write_group(second).unwrap_err();
    files::faults::set_space(None);
    assert_eq!(error.kind(), ErrorKind::DiskFull);
    writer.write_group(second).unwrap();
    write_rest(writer, &bytes);
    assert!(to.catalog.open_shard(&shard.id).is_ok());
}

#[test]
fn a_shard_has_one_writer_and_needs_its_own_leaves() {
    let (from, model, shard, _, leaves) = large();
    let to = receiver(&from, model);
    let writer = to.catalog.shard_writer(&shard, leaves.to_vec()).unwrap();
    assert!(matches!(to.catalog.shard_writer(&shard, leaves.to_vec()), Err(ModelError::Busy { .. })));
    drop(writer);
    let mut bad = leaves.to_vec();
    bad[3][0] ^= 1;
    let error = to.catalog.shard_writer(&shard, bad).unwrap_err();
    assert!(matches!(error, ModelError::Shard(ShardError::Root { .. })));
    assert!(to.catalog.shard_writer(&shard, leaves.to_vec()).is_ok());
}

#[test]
fn smollm2_is_split_with_every_byte_in_place() {
    let Some(path) = std::env::var_os("SWARMLLM_TEST_SMOLLM2").map(PathBuf::from) else {
        eprintln!("skipped: SWARMLLM_TEST_SMOLLM2 is not set");
        return;
    };
    let bench = Bench::new();
    let model = bench.catalog.import(&path, None, &mut quiet).unwrap();
    let manifest = bench.catalog.manifest(model).unwrap();
    assert_eq!((manifest.layers, manifest.width, manifest.vocab, manifest.tied), (30, 576, 49152, true));
    assert_eq!((manifest.shards.len(), bench.files("shards").len()), (33, 33));
    let largest = bench.files("shards").iter().map(|path| fs::metadata(path).unwrap().len()).max().unwrap();
    assert_eq!(largest, entry(&bench.catalog, model, ShardKind::Embedding).size);
    assert_tensors_equal(&bench.catalog, model, &path);
    assert_eq!(bench.catalog.import(&path, None, &mut quiet).unwrap(), model);
    assert_eq!(bench.catalog.verify(model).unwrap(), []);
}

#[test]
fn gemma3_is_split_with_every_byte_in_place() {
    let Some(path) = std::env::var_os("SWARMLLM_TEST_GEMMA3").map(PathBuf::from) else {
        eprintln!("skipped: SWARMLLM_TEST_GEMMA3 is not set");
        return;
    };
    let bench = Bench::new();
    let model = bench.catalog.import(&path, None, &mut quiet).unwrap();
    let manifest = bench.catalog.manifest(model).unwrap();
    assert_eq!((manifest.architecture.as_str(), manifest.layers, manifest.vocab), ("gemma3", 18, 262_144));
    assert_tensors_equal(&bench.catalog, model, &path);
}

#[test]
fn a_shard_of_an_unknown_or_removed_model_is_refused() {
    let (from, model, shard, bytes, leaves) = large();
    let to = Bench::new();
    let error = to.catalog.shard_writer(&shard, leaves.to_vec()).unwrap_err();
    assert!(matches!(error, ModelError::Unlisted { .. }));
    let to = receiver(&from, model);
    let mut writer = to.catalog.shard_writer(&shard, leaves.to_vec()).unwrap();
    bytes.chunks(GROUP as usize).for_each(|group| writer.write_group(group).unwrap());
    to.catalog.remove(model).unwrap();
    assert!(matches!(writer.finish(), Err(ModelError::Unlisted { .. })));
    assert!(!to.catalog.has(&shard.id) && to.files("shards").is_empty() && to.files("partial").is_empty());
}

#[test]
fn concurrent_imports_and_removals_leave_whole_models() {
    let bench = Bench::new();
    let [one, two] = ["one", "two"].map(|name| bench.file(name, &small(name, 1)));
    let import = |path: &Path| bench.catalog.import(path, None, &mut quiet).unwrap();
    let kept = import(&two);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..20).for_each(|_| bench.catalog.remove(import(&one)).unwrap()));
        scope.spawn(|| (0..20).for_each(|_| assert_eq!(import(&two), kept)));
    });
    assert_eq!(bench.catalog.models().len(), 1);
    assert!(bench.catalog.holding(kept).head);
    assert_eq!(bench.catalog.verify(kept).unwrap(), []);
    assert_eq!(bench.reopen().holding(kept), bench.catalog.holding(kept));
    assert_eq!((bench.files("shards").len(), bench.files("partial").len()), (7, 0));
}
