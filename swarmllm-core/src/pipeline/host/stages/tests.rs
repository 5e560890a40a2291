//! The stage table, with an engine whose stages take one byte per position, layer and session.

use tempfile::TempDir;

use super::loader::gpu_share;
use super::*;
use crate::base::SessionId;
use crate::engine::echo::EchoStage;
use crate::engine::{CutRules, Embedder, EngineError, KvType, Stage};
use crate::model::manifest::Manifest;
use crate::model::manifest::tests::small_model;
use crate::model::{EmbeddingSource, StageSource};

/// Layers of the model.
const LAYERS: u32 = 4;

/// The echo engine, for any architecture.
struct Positions;

impl Engine for Positions {
    fn name(&self) -> &'static str {
        "positions"
    }

    fn cuts(&self, _: &Manifest) -> Result<CutRules, EngineError> {
        Ok(CutRules::any())
    }

    fn memory(&self, _: &Manifest, layers: LayerRange, _: bool, config: &StageConfig) -> u64 {
        u64::from(layers.len()) * u64::from(config.context) * u64::from(config.max_sessions)
    }

    fn load_stage(&self, source: StageSource, config: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
        Ok(Box::new(EchoStage::new(7, source.layers, source.manifest.width, None, config.clone())))
    }

    fn load_embedder(&self, _: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> {
        Err(EngineError::Gone)
    }
}

/// A model that was trained for more positions than any test uses.
fn model_file() -> Vec<u8> {
    let (mut bytes, key) = (small_model("small", LAYERS, false, true, 1), b"llama.context_length");
    let at = bytes.windows(key.len()).position(|part| part == key).unwrap() + key.len() + size_of::<u32>();
    bytes[at..at + size_of::<u32>()].copy_from_slice(&8192_u32.to_le_bytes());
    bytes
}

/// The table of a node that holds a model.
pub(in crate::pipeline) struct Bench {
    pub table: StageTable,
    model: ModelId,
    _dir: TempDir,
}

impl Bench {
    /// A table for `max_sessions` sessions of `context` positions in `memory` bytes.
    pub fn new(max_sessions: u32, context: u32, memory: u64) -> Self {
        let dir = TempDir::new().unwrap();
        let (file, catalog) = (dir.path().join("model.gguf"), Catalog::open(&dir.path().join("data")).unwrap());
        std::fs::write(&file, model_file()).unwrap();
        let model = catalog.import(&file, None, &mut |_| {}).unwrap();
        let tasks = TaskSet::new(tokio::runtime::Handle::current());
        let (kv, gpu_layers) = (KvType::Full, 0);
        let stage = StageConfig { context, max_sessions, max_rows: 8, threads: 1, kv, gpu_layers, keep_awake: false };
        let limits = StageLimits { stage, grows: false, memory };
        let table = StageTable::new(vec![Arc::new(Positions)], catalog, limits, EventBus::new(), tasks);
        Self { table, model, _dir: dir }
    }

    pub fn key(&self) -> StageKey {
        let engine = Positions.name().to_owned();
        StageKey { model: self.model, layers: LayerRange::new(0, LAYERS), head: true, engine }
    }

    /// A session of the whole model.
    async fn open(&self, session: u8) -> Result<SlotLease, Fault> {
        Ok(self.table.acquire(self.key(), request(session, &CancellationToken::new())).await?.0)
    }
}

fn request(session: u8, over: &CancellationToken) -> SlotRequest<'_> {
    static NOTHING: Prefix = Prefix { block: 0, ids: Vec::new() };
    let owner = SlotOwner { coordinator: NodeId([1; 32]), session: SessionId([session; 16]), epoch: 0 };
    SlotRequest { owner, least: 1, prefix: &NOTHING, over }
}

#[tokio::test]
async fn an_evicted_stage_is_unloaded_with_its_last_holder() {
    const MEMORY: u64 = LAYERS as u64 * 8 * 2;
    let bench = Bench::new(2, 8, MEMORY);
    let (table, key, over) = (&bench.table, bench.key(), CancellationToken::new());
    let lease = bench.open(1).await.unwrap();
    let manifest = table.inner.catalog.manifest(bench.model).unwrap();
    let second = table.find_or_wait(&Positions, &manifest, &key, &request(2, &over)).await.unwrap();
    table.inner.entries.lock().evict(&key);
    drop(lease);
    while second.holds() > 1 {
        tokio::time::sleep(UNLOAD_POLL).await;
    }
    assert_eq!(table.memory_used(), MEMORY, "the stage is held");
    drop(second);
    assert_eq!(table.memory_used(), 0, "and its memory is free without another stage's load");
    table.unloaded().await;
}

#[tokio::test]
async fn a_memory_refusal_advises_only_settings_that_can_be_lowered() {
    let refused = async |sessions, context| {
        let fault = Bench::new(sessions, context, 10).open(1).await.err().unwrap();
        assert_eq!(fault.kind(), ErrorKind::OutOfMemory, "{fault}");
        ["`memory`", "`sessions`", "`context`"].map(|setting| fault.to_string().contains(setting))
    };
    assert_eq!(refused(4, 4096).await, [true, true, true]);
    assert_eq!(refused(1, 4096).await, [true, false, true]);
    assert_eq!(refused(1, 512).await, [true, false, false]);
}

#[test]
fn stages_share_the_accelerators_layers_within_the_nodes_limit() {
    let layers = LayerRange::new(4, 10);
    let share = |budget, used: &[u32], head| gpu_share(budget, used.iter().copied(), layers, head);
    assert_eq!((share(u32::MAX, &[], false), share(u32::MAX, &[7], true)), (6, 7));
    assert_eq!((share(10, &[7], true), share(10, &[7, 3], true), share(10, &[7, 9], true)), (3, 0, 0));
    assert_eq!(share(0, &[], true), 0);
}
