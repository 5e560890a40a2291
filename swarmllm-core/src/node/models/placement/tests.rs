//! Nodes that fetch by themselves, on loopback.

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
use crate::pipeline::slots::Owner;
use crate::pipeline::stages::{Claim, Lease, StageKey};
use crate::wire::prefix::Prefix;

const LAYERS: u32 = 4;
const CLOSING: Duration = Duration::from_secs(5);
/// Time within which anything here happens.
const SOON: Duration = Duration::from_secs(30);

/// Takes one byte of memory for a layer, and computes nothing of use.
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

    fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
        let vocab = source.head.then_some(source.manifest.vocab);
        Ok(Box::new(EchoStage::new(7, source.layers, source.manifest.width, vocab, config.clone())))
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
    eventually("two halves are held", all).await;
    assert!(holds(&nodes[2]).is_empty(), "who is not allowed to fetches nothing");
    for node in nodes.iter().chain([&source]) {
        node.shutdown(CLOSING).await;
    }
}

/// A session that computes a whole model at a node, for as long as what it gives is there.
async fn compute(node: &Node, model: ModelId) -> Lease {
    let key = StageKey { model, layers: LayerRange::new(0, LAYERS), head: true, engine: Idle.name().to_owned() };
    let owner = Owner { coordinator: node.id(), session: SessionId([1; 16]), epoch: 0 };
    let claim = Claim { owner, least: 8, prefix: &Prefix::default(), over: &CancellationToken::new() };
    node.shared().serving.stages().acquire(key, claim).await.unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_all_its_holders_compute_gets_one_more_if_that_lasts() {
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
    tokio::time::sleep(ROUND * 2 * LASTS as u32).await;
    assert!(holds(&third).is_empty(), "the other holder is free");
    let other = compute(&holders[1], model.id).await;
    eventually("it is fetched", || holds(&third) == [LayerRange::new(0, LAYERS)]).await;
    drop((one, other));
    for node in holders.iter().chain([&third]) {
        node.shutdown(CLOSING).await;
    }
}

#[test]
fn demand_counts_once_it_has_lasted_and_ends_at_once() {
    let mut view = View::default();
    let mut told = |wanted| view.demand(wanted);
    assert!((1..LASTS).all(|_| told(4) == HOLDERS));
    assert_eq!((told(5), told(3), told(9)), (4, 3, 3));
    assert_eq!(told(HOLDERS), HOLDERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_fetched_beyond_the_disk_that_is_allowed() {
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

/// Puts the first half of a model into a data directory, as placement or the host brought it, from another one's shards. Gives the
/// bytes of the first layer and of the head.
fn bring(from: &TempDir, to: &TempDir, model: ModelId, by_host: bool) -> [u64; 2] {
    let shards = from.path().join("data").join("shards");
    let to = Catalog::open(&to.path().join("data")).unwrap();
    let manifest = std::fs::read(from.path().join("data").join("models").join(format!("{model}.manifest"))).unwrap();
    let manifest = to.add_manifest(&manifest, model).unwrap();
    match by_host {
        true => to.note_wanted(model, &|_| true).unwrap(),
        false => to.note_placed(model, &|_| true).unwrap(),
    }
    for entry in manifest.stage_shards(LayerRange::new(0, LAYERS / 2), false) {
        let mut writer = to.whole_writer(entry).unwrap();
        writer.write_group(&std::fs::read(shards.join(entry.id.to_string())).unwrap()).unwrap();
        writer.finish().unwrap();
    }
    [ShardKind::Layer(0), ShardKind::Head].map(|kind| manifest.shard(kind).unwrap().size)
}

/// A swarm in which the first half of a model has five holders and the second half one. Three hold by placement, with
/// so much room beside it.
async fn lopsided(name: &str, room: impl Fn([u64; 2]) -> u64) -> (Vec<TempDir>, Vec<Node>, ModelId) {
    let network = format!("placer-{name}-{}", std::process::id());
    let dirs: Vec<TempDir> = (0..5).map(|_| TempDir::new().unwrap()).collect();
    let file = dirs[0].path().join("model.gguf");
    std::fs::write(&file, small_model("small", LAYERS, false, true, 1)).unwrap();
    let mut nodes = vec![node(&dirs[0], &network, 0, None).await];
    let model = nodes[0].import(&file, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap();
    for (index, dir) in dirs.iter().enumerate().skip(1) {
        let sizes = bring(&dirs[0], dir, model.id, index == 1);
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
    eventually("one half is given up for the other", moved).await;
    tokio::time::sleep(4 * ROUND).await;
    assert!(holders(first) >= 2 && holders(second) >= 2, "{} {}", holders(first), holders(second));
    assert_eq!(holds(&nodes[1]), [first], "what the host brought stays");
    for node in &nodes {
        node.shutdown(CLOSING).await;
    }
    // It is so on the disk too, though who was there longer may have begun to move once more.
    let kept = |dir: &TempDir| Catalog::open(&dir.path().join("data")).unwrap().holding(model).layers;
    let kept: Vec<Vec<LayerRange>> = dirs.iter().map(kept).collect();
    assert_eq!((&kept[0][..], &kept[1][..]), (&[LayerRange::new(0, LAYERS)][..], &[first][..]));
    assert!(kept[2..].iter().any(|held| *held == [second]), "{kept:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_enough_others_hold_is_given_up_for_what_is_short_once_that_has_come() {
    a_half_is_moved("both", |[layer, head]| 2 * layer + head).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_there_is_no_room_for_both_the_old_goes_before_the_new_comes() {
    a_half_is_moved("either", |[layer, head]| layer + head).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_host_discards_is_not_fetched_again_until_it_asks() {
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
    eventually("all is fetched", || holds(&placing) == [LayerRange::new(0, LAYERS)]).await;
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
