//! Nodes that fetch by themselves, on loopback.

use std::time::Instant;

use tempfile::TempDir;

use super::*;
use crate::engine::{CutRules, Embedder, Engine, EngineError, Stage, StageConfig};
use crate::model::manifest::tests::small_model;
use crate::model::{EmbeddingSource, StageSource};
use crate::node::{ImportOptions, Node};

const LAYERS: u32 = 4;
const CLOSING: Duration = Duration::from_secs(5);
/// Time within which anything here happens.
const SOON: Duration = Duration::from_secs(30);

/// Takes one byte of memory for a layer, and computes nothing.
struct Idle;

impl Engine for Idle {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn cuts(&self, _: &Manifest) -> Result<CutRules, EngineError> {
        Ok(CutRules::free())
    }

    fn memory(&self, _: &Manifest, layers: LayerRange, _: bool, _: &StageConfig) -> u64 {
        layers.len().into()
    }

    fn load_stage(&self, _: StageSource, _: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
        Err(EngineError::Gone)
    }

    fn load_embedder(&self, _: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> {
        Err(EngineError::Gone)
    }
}

/// A node with memory for so many layers.
async fn node(dir: &TempDir, network: &str, memory: u64, place: Option<u64>) -> Node {
    let builder = Node::builder()
        .data_dir(dir.path().join("data"))
        .network(network)
        .mdns(false)
        .listen(vec!["/ip4/127.0.0.1/tcp/0".to_owned()])
        .engines(vec![Arc::new(Idle)])
        .memory(memory);
    let builder = match place {
        Some(disk) => builder.place(disk),
        None => builder,
    };
    builder.start().await.unwrap()
}

async fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !so() {
        assert!(begun.elapsed() < SOON, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Makes a node know a model, as who wants to ask it does.
async fn learn(node: &Node, model: ModelId) {
    eventually("a source is known", || node.peers().iter().any(|peer| !peer.holdings.is_empty())).await;
    node.pull(&model.to_string(), Parts::Coordinator, None).await.unwrap();
}

fn on_disk(dir: &TempDir) -> u64 {
    let shards = std::fs::read_dir(dir.path().join("data").join("shards")).unwrap();
    shards.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

fn holds(node: &Node) -> Vec<LayerRange> {
    node.models().into_iter().flat_map(|model| model.held).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_may_share_a_model_out_among_themselves_and_others_fetch_nothing() {
    let network = format!("placer-{}", std::process::id());
    let dirs: Vec<TempDir> = (0..4).map(|_| TempDir::new().unwrap()).collect();
    let file = dirs[0].path().join("model.gguf");
    std::fs::write(&file, small_model("small", LAYERS, false, true, 1)).unwrap();
    // The first has all, and memory for nothing.
    let source = node(&dirs[0], &network, 0, None).await;
    let model = source.import(&file, ImportOptions::default()).await.unwrap();
    let disk = model.size;
    let nodes = [
        node(&dirs[1], &network, 2, Some(disk)).await,
        node(&dirs[2], &network, 2, Some(disk)).await,
        node(&dirs[3], &network, 4, None).await,
    ];
    for node in &nodes {
        node.connect(&source.addresses()[0]).await.unwrap();
    }
    nodes[1].connect(&nodes[0].addresses()[0]).await.unwrap();
    for node in &nodes {
        learn(node, model.id).await;
    }
    let all = || {
        let mut both = [holds(&nodes[0]), holds(&nodes[1])].concat();
        both.sort_unstable();
        both == [LayerRange::new(0, 2), LayerRange::new(2, 4)]
    };
    eventually("two halves are held", all).await;
    assert!(holds(&nodes[2]).is_empty(), "who is not allowed to fetches nothing");
    for node in nodes.iter().chain([&source]) {
        node.shutdown(CLOSING).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_beyond_the_disk_that_is_allowed() {
    let network = format!("placer-disk-{}", std::process::id());
    let dirs: Vec<TempDir> = (0..2).map(|_| TempDir::new().unwrap()).collect();
    let file = dirs[0].path().join("model.gguf");
    std::fs::write(&file, small_model("small", LAYERS, false, true, 1)).unwrap();
    let source = node(&dirs[0], &network, 0, None).await;
    let model = source.import(&file, ImportOptions::default()).await.unwrap();
    let disk = model.size * 3 / 4;
    let small = node(&dirs[1], &network, 4, Some(disk)).await;
    small.connect(&source.addresses()[0]).await.unwrap();
    learn(&small, model.id).await;
    eventually("something is fetched", || !holds(&small).is_empty()).await;
    tokio::time::sleep(4 * ROUND).await;
    let taken = on_disk(&dirs[1]);
    assert!(taken <= disk, "{taken} of {disk}");
    for node in [small, source] {
        node.shutdown(CLOSING).await;
    }
}
