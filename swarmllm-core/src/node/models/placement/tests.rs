//! Placement among nodes on loopback.

use std::time::Instant;

use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::base::SessionId;
use crate::engine::echo::EchoStage;
use crate::engine::{CutRules, Embedder, Engine, EngineError, Stage, StageConfig};
use crate::model::manifest::tests::small_model;
use crate::model::{Catalog, EmbeddingSource, StageSource};
use crate::node::{ImportOptions, Node};
use crate::pipeline::host::slots::SlotOwner;
use crate::pipeline::host::stages::{SlotLease, SlotRequest, StageKey};
use crate::wire::prefix::Prefix;

const LAYERS: u32 = 4;
const CLOSING: Duration = Duration::from_secs(5);
/// Deadline of every expected event.
const SOON: Duration = Duration::from_secs(30);

/// An engine that takes one byte of memory per layer and computes nothing useful.
struct OneByteEngine;

impl Engine for OneByteEngine {
    fn name(&self) -> &'static str {
        "idle"
    }

    fn cuts(&self, _: &Manifest) -> Result<CutRules, EngineError> {
        Ok(CutRules::any())
    }

    fn memory(&self, _: &Manifest, layers: LayerRange, _: bool, _: &StageConfig) -> u64 {
        layers.len().into()
    }

    fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
        let vocab = source.head.then_some(source.manifest.vocab);
        Ok(Box::new(EchoStage::new(7, source.layers, source.manifest.width, vocab, config.clone())))
    }

    fn load_embedder(&self, _: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> {
        Err(EngineError::Gone)
    }
}

/// A node with memory for `memory` layers.
async fn node(dir: &TempDir, network: &str, memory: u64, place: Option<u64>) -> Node {
    let builder = Node::builder()
        .data_dir(dir.path().join("data"))
        .network(network)
        .mdns(false)
        .listen(vec!["/ip4/127.0.0.1/tcp/0".to_owned()])
        .engines(vec![Arc::new(OneByteEngine)])
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

/// Makes a node know a model, as a coordinator does.
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
async fn nodes_with_placement_divide_a_model_and_others_fetch_nothing() {
    let network = format!("placer-{}", std::process::id());
    let dirs: Vec<TempDir> = (0..4).map(|_| TempDir::new().unwrap()).collect();
    let file = dirs[0].path().join("model.gguf");
    std::fs::write(&file, small_model("small", LAYERS, false, true, 1)).unwrap();
    // The first node holds all layers and has memory for none.
    let source = node(&dirs[0], &network, 0, None).await;
    let model = source.import(&file, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap();
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
    eventually("both halves are held", all).await;
    assert!(holds(&nodes[2]).is_empty(), "a node without placement fetches nothing");
    for node in nodes.iter().chain([&source]) {
        node.shutdown(CLOSING).await;
    }
}

/// A session that uses a whole model at a node until the lease is dropped.
async fn compute(node: &Node, model: ModelId) -> SlotLease {
    let key =
        StageKey { model, layers: LayerRange::new(0, LAYERS), head: true, engine: OneByteEngine.name().to_owned() };
    let owner = SlotOwner { coordinator: node.id(), session: SessionId([1; 16]), epoch: 0 };
    let claim = SlotRequest { owner, least: 8, prefix: &Prefix::default(), over: &CancellationToken::new() };
    node.shared().models.stages.acquire(key, claim).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_in_use_at_all_holders_gets_another_holder() {
    let network = format!("placer-demand-{}", std::process::id());
    let dirs: Vec<TempDir> = (0..3).map(|_| TempDir::new().unwrap()).collect();
    let file = dirs[0].path().join("model.gguf");
    std::fs::write(&file, small_model("small", LAYERS, false, true, 1)).unwrap();
    let all = u64::from(LAYERS);
    let holders = [node(&dirs[0], &network, all, None).await, node(&dirs[1], &network, all, None).await];
    let model = holders[0].import(&file, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap();
    holders[1].import(&file, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap();
    let third = node(&dirs[2], &network, all, Some(model.size)).await;
    for holder in &holders {
        third.connect(&holder.addresses()[0]).await.unwrap();
    }
    eventually("both holders are known", || third.peers().iter().filter(|peer| !peer.holdings.is_empty()).count() == 2)
        .await;
    learn(&third, model.id).await;
    let one = compute(&holders[0], model.id).await;
    tokio::time::sleep(ROUND * 2 * DEMAND_ROUNDS as u32).await;
    assert!(holds(&third).is_empty(), "the other holder is free");
    let other = compute(&holders[1], model.id).await;
    eventually("the third node fetches the model", || holds(&third) == [LayerRange::new(0, LAYERS)]).await;
    drop((one, other));
    for node in holders.iter().chain([&third]) {
        node.shutdown(CLOSING).await;
    }
}

#[test]
fn demand_counts_after_some_rounds_and_ends_at_once() {
    let mut history = ModelHistory::default();
    let mut demand = |wanted| history.demand(wanted);
    assert!((1..DEMAND_ROUNDS).all(|_| demand(4) == MIN_HOLDERS));
    assert_eq!((demand(5), demand(3), demand(9)), (4, 3, 3));
    assert_eq!(demand(MIN_HOLDERS), MIN_HOLDERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn placement_stays_within_the_disk_budget() {
    let network = format!("placer-disk-{}", std::process::id());
    let dirs: Vec<TempDir> = (0..2).map(|_| TempDir::new().unwrap()).collect();
    let file = dirs[0].path().join("model.gguf");
    std::fs::write(&file, small_model("small", LAYERS, false, true, 1)).unwrap();
    let source = node(&dirs[0], &network, 0, None).await;
    let model = source.import(&file, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap();
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

/// Copies the first half of a model from one data directory to another, as if placement or the host had fetched it. Returns
/// the bytes of the first layer and of the head.
fn copy_first_half(from: &TempDir, to: &TempDir, model: ModelId, by_host: bool) -> [u64; 2] {
    let shards = from.path().join("data").join("shards");
    let to = Catalog::open(&to.path().join("data")).unwrap();
    let manifest = std::fs::read(from.path().join("data").join("models").join(format!("{model}.manifest"))).unwrap();
    let manifest = to.add_manifest(&manifest, model).unwrap();
    match by_host {
        true => to.record_requested(model, &|_| true).unwrap(),
        false => to.record_placed(model, &|_| true).unwrap(),
    }
    for entry in manifest.stage_shards(LayerRange::new(0, LAYERS / 2), false) {
        let mut writer = to.whole_writer(entry).unwrap();
        writer.write_group(&std::fs::read(shards.join(entry.id.to_string())).unwrap()).unwrap();
        writer.finish().unwrap();
    }
    [ShardKind::Layer(0), ShardKind::Head].map(|kind| manifest.shard(kind).unwrap().size)
}

/// A swarm with five holders of a model's first half and one of its second. Three hold by placement; `room` gives their
/// further disk space.
async fn lopsided(name: &str, room: impl Fn([u64; 2]) -> u64) -> (Vec<TempDir>, Vec<Node>, ModelId) {
    let network = format!("placer-{name}-{}", std::process::id());
    let dirs: Vec<TempDir> = (0..5).map(|_| TempDir::new().unwrap()).collect();
    let file = dirs[0].path().join("model.gguf");
    std::fs::write(&file, small_model("small", LAYERS, false, true, 1)).unwrap();
    let mut nodes = vec![node(&dirs[0], &network, 0, None).await];
    let model = nodes[0].import(&file, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap();
    for (index, dir) in dirs.iter().enumerate().skip(1) {
        let sizes = copy_first_half(&dirs[0], dir, model.id, index == 1);
        nodes.push(node(dir, &network, 2, Some(on_disk(dir) + room(sizes))).await);
    }
    for (index, one) in nodes.iter().enumerate() {
        for other in &nodes[..index] {
            one.connect(&other.addresses()[0]).await.unwrap();
        }
    }
    (dirs, nodes, model.id)
}

async fn a_half_is_moved(name: &str, room: impl Fn([u64; 2]) -> u64) {
    let (dirs, nodes, model) = lopsided(name, room).await;
    let (first, second) = (LayerRange::new(0, 2), LayerRange::new(2, 4));
    let holders = |half| nodes.iter().filter(|node| holds(node).iter().any(|held| held.covers(half))).count();
    let moved = || nodes[2..].iter().any(|node| holds(node) == [second]);
    eventually("one half is evicted for the other", moved).await;
    tokio::time::sleep(4 * ROUND).await;
    assert!(holders(first) >= 2 && holders(second) >= 2, "{} {}", holders(first), holders(second));
    assert_eq!(holds(&nodes[1]), [first], "shards of the host stay");
    for node in &nodes {
        node.shutdown(CLOSING).await;
    }
    // The disks agree, though a node that ran longer may have begun another move.
    let stored = |dir: &TempDir| Catalog::open(&dir.path().join("data")).unwrap().holding(model).layers;
    let stored: Vec<Vec<LayerRange>> = dirs.iter().map(stored).collect();
    assert_eq!((&stored[0][..], &stored[1][..]), (&[LayerRange::new(0, LAYERS)][..], &[first][..]));
    assert!(stored[2..].iter().any(|held| *held == [second]), "{stored:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn abundant_layers_are_evicted_after_scarce_layers_are_fetched() {
    a_half_is_moved("both", |[layer, head]| 2 * layer + head).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_space_for_both_the_old_layers_are_evicted_first() {
    a_half_is_moved("either", |[layer, head]| layer + head).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discarded_layers_are_not_fetched_until_the_host_pulls_them() {
    let network = format!("placer-discard-{}", std::process::id());
    let dirs: Vec<TempDir> = (0..2).map(|_| TempDir::new().unwrap()).collect();
    let file = dirs[0].path().join("model.gguf");
    std::fs::write(&file, small_model("small", LAYERS, false, true, 1)).unwrap();
    let source = node(&dirs[0], &network, 0, None).await;
    let model = source.import(&file, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap();
    let name = model.id.to_string();
    let placing = node(&dirs[1], &network, u64::from(LAYERS), Some(2 * model.size)).await;
    placing.connect(&source.addresses()[0]).await.unwrap();
    learn(&placing, model.id).await;
    eventually("all layers are fetched", || holds(&placing) == [LayerRange::new(0, LAYERS)]).await;
    let layer = Parts::Stage { layers: LayerRange::new(1, 2), head: false };
    assert_eq!(placing.discard(&name, layer.clone()).await.unwrap().held.len(), 2);
    tokio::time::sleep(6 * ROUND).await;
    assert_eq!(holds(&placing).len(), 2);
    placing.pin(&name, true).await.unwrap();
    assert_eq!(placing.discard(&name, Parts::All).await.unwrap_err().kind(), crate::base::ErrorKind::InvalidArgument);
    assert_eq!(placing.pull(&name, layer, None).await.unwrap().held, [LayerRange::new(0, LAYERS)]);
    for node in [placing, source] {
        node.shutdown(CLOSING).await;
    }
}
