//! Imports of files of known models, and partial imports of unknown models.

use super::*;

/// Bytes of the embedding.
const EMBEDDING: usize = 9 * MIB / 8;
/// Bytes of a layer: its norm, padding, its matrix.
const LAYER: usize = 5 * MIB / 4 + 32;
/// Bytes that every import requests: the first byte, and the group with the header.
const HEADER: usize = 1 + MIB;

fn only(parts: Parts) -> ImportOptions {
    ImportOptions { parts: Some(vec![parts]), ..ImportOptions::default() }
}

/// Imports from a server; also returns the bytes of the file that were requested.
async fn import(bench: &Bench, server: &Server, options: ImportOptions) -> (ModelId, usize) {
    let before = server.asked().len();
    let model = bench.import_with(server.url().as_str(), &options).await.unwrap();
    assert_eq!(bench.files("partial"), []);
    assert_eq!(bench.catalog.verify(model).unwrap(), []);
    (model, server.bytes_asked(before))
}

/// A bench that knows a model's manifest from the swarm and holds no shard.
fn informed(bytes: &[u8]) -> (Bench, ModelId) {
    let (bench, other) = (Bench::new(), Bench::new());
    let model = other.local(bytes);
    let manifest = other.catalog.manifest(model).unwrap().encode();
    bench.catalog.add_manifest(&manifest, model).unwrap();
    (bench, model)
}

#[tokio::test]
async fn only_wanted_shards_of_a_known_model_are_read() {
    let bytes = tiny(1);
    let server = Server::good(bytes.clone()).await;
    let bench = Bench::new();
    let (model, asked) = import(&bench, &server, only(layers(1, 2))).await;
    assert!(asked + MIB > bytes.len(), "every byte of an unknown model is read: {asked} of {}", bytes.len());
    let reports = Arc::new(Mutex::new(Vec::new()));
    let seen = reports.clone();
    let progress: crate::node::ProgressFn = Arc::new(move |progress: Progress| seen.lock().unwrap().push(progress));
    let options = ImportOptions { progress: Some(progress), name: Some("mine".to_owned()), ..only(layers(1, 3)) };
    let (again, asked) = import(&bench, &server, options).await;
    assert!(again == model && asked <= HEADER + 2 * LAYER, "{asked} of {}", bytes.len());
    assert_eq!(bench.catalog.holding(model).layers, [LayerRange::new(1, 3)]);
    assert_eq!(bench.catalog.names(model), ["mine", "tiny"]);
    let reports = reports.lock().unwrap().clone();
    assert_eq!((reports[0].done, reports[0].total), (0, 2 * LAYER as u64));
    assert_eq!(reports.last().unwrap().done, 2 * LAYER as u64);
    let (again, asked) = import(&bench, &server, only(layers(1, 3))).await;
    assert!(again == model && asked <= HEADER + 2 * LAYER, "{asked}: held wanted shards are compared");
    let (again, asked) = import(&bench, &server, ImportOptions::default()).await;
    assert!(again == model && asked <= bytes.len() + HEADER, "{asked} of {}", bytes.len());
    assert_like_local(&bench, model, &bytes);
}

#[tokio::test]
async fn a_model_known_from_the_swarm_needs_wanted_shards_and_a_layer() {
    let bytes = tiny(1);
    let server = Server::good(bytes.clone()).await;
    let (bench, model) = informed(&bytes);
    let (found, asked) = import(&bench, &server, only(Parts::Coordinator)).await;
    assert!(
        found == model && asked <= HEADER + EMBEDDING + LAYER,
        "{asked}: a layer distinguishes models with equal headers"
    );
    assert!(bench.catalog.holding(model).embedding && bench.catalog.holding(model).layers.is_empty());
    let (bench, _) = informed(&bytes);
    let (found, asked) = import(&bench, &server, only(layers(0, 1))).await;
    assert!(found == model && asked <= HEADER + LAYER, "{asked}");
}

#[tokio::test]
async fn equal_headers_with_other_weights_are_another_model() {
    let (one, two) = (tiny(1), tiny(2));
    let other = Bench::new().local(&two);
    let server = Server::good(two.clone()).await;
    for options in [only(Parts::Coordinator), only(layers(1, 2)), ImportOptions::default()] {
        let whole = Bench::new();
        let (informed, model) = informed(&one);
        assert_eq!(whole.local(&one), model);
        for bench in [whole, informed] {
            let (found, asked) = import(&bench, &server, options.clone()).await;
            assert!(found == other && asked + MIB > two.len(), "{asked} of {}", two.len());
            assert_eq!(bench.catalog.verify(model).unwrap(), [], "the other model damages nothing");
            // With two models of equal headers, the weights decide each time.
            let (found, _) = import(&bench, &server, options.clone()).await;
            assert_eq!(found, other);
        }
    }
}

#[tokio::test]
async fn an_alias_of_another_model_is_refused_before_a_weight_is_fetched() {
    let server = Server::good(tiny(1)).await;
    let bench = Bench::new();
    let facts = [Fact::string("general.architecture", "llama"), Fact::u32("llama.block_count", 1)];
    let tensors = ["token_embd", "blk.0.ffn_up", "output_norm"].map(|part| (format!("{part}.weight"), part.len()));
    let tensors = tensors.map(|(name, seed)| tensor(&name, &[8, 16], 0, seed as u64));
    let facts = facts.into_iter().chain([Fact::u32("llama.context_length", 4), Fact::u32("llama.embedding_length", 8)]);
    let model = bench.local(&file(&facts.collect::<Vec<_>>(), &tensors, 32));
    bench.catalog.add_alias(model, "chat").unwrap();
    let options = ImportOptions { name: Some("chat".to_owned()), ..ImportOptions::default() };
    let error = bench.import_with(server.url().as_str(), &options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AliasTaken, "{error}");
    assert!(server.bytes_asked(0) <= HEADER, "{}", server.bytes_asked(0));
}

#[tokio::test]
async fn unwanted_shards_are_read_for_the_id_and_not_stored() {
    let bytes = tiny(1);
    // The header's group, the log of leaves, names, provenance and manifest.
    const BESIDE: u64 = (MIB + 64 * 1024) as u64;
    for ranges in [true, false] {
        let file = bytes.clone();
        let server = Server::start(move |asked| match ranges {
            true => Answer::of(&file, asked),
            false => Answer::whole(&file),
        })
        .await;
        let bench = Bench::new();
        let data = bench.dir.path().join("data");
        let most = Arc::new(Mutex::new((0, 0)));
        let seen = most.clone();
        let progress: crate::node::ProgressFn = Arc::new(move |progress: Progress| {
            let mut most = seen.lock().unwrap();
            *most = (most.0.max(used(&data)), progress.done);
        });
        let options = ImportOptions { progress: Some(progress), ..only(layers(1, 2)) };
        bench.import_with(server.url().as_str(), &options).await.unwrap();
        let (most, read) = *most.lock().unwrap();
        assert!(read as usize + MIB > bytes.len(), "{read} of {}", bytes.len());
        assert!(most >= LAYER as u64 && most <= LAYER as u64 + BESIDE, "{most}");
    }
}

/// Bytes of all files below a directory. A file that disappears meanwhile counts as empty.
fn used(dir: &std::path::Path) -> u64 {
    let entries = fs::read_dir(dir).unwrap().filter_map(Result::ok).map(|entry| entry.path());
    entries.map(|path| if path.is_dir() { used(&path) } else { fs::metadata(&path).map_or(0, |it| it.len()) }).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_examination_on_the_web_fetches_only_the_header() {
    let bytes = tiny(1);
    let dir = TempDir::new().unwrap();
    let builder = Node::builder().data_dir(dir.path()).preset(Preset::Offline).engines(Vec::new());
    let node = builder.start().await.unwrap();
    let server = Server::good(bytes.clone()).await;
    let report = node.examine_url(server.url(), ImportOptions::default()).await.unwrap();
    assert_eq!((report.architecture.as_str(), report.refuses()), ("llama", true));
    assert!(server.bytes_asked(0) <= HEADER, "{}", server.bytes_asked(0));
    let file = bytes.clone();
    let server = Server::start(move |_| Answer::whole(&file).cut(2 * MIB, Then::Hang)).await;
    assert_eq!(node.examine_url(server.url(), ImportOptions::default()).await.unwrap(), report);
    let outside = || only(layers(1, 99));
    for error in [
        node.examine_url(server.url(), outside()).await.unwrap_err(),
        node.import_url(server.url(), outside()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains("layers 1..99 do not all exist: the model has"), "{error}");
    }
    assert_eq!(fs::read_dir(dir.path().join("partial")).unwrap().count(), 0);
    node.shutdown(Duration::ZERO).await;
}
