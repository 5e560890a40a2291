//! Examination of headers, with engines that tests control.

use std::io::Cursor;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::base::LayerRange;
use crate::engine::echo::EchoEmbedder;
use crate::engine::{CutRules, Embedder, EngineError, Stage, StageConfig};
use crate::model::gguf::tests::{file, tensor};
use crate::model::tokenizer::byte_symbols;
use crate::model::{EmbeddingSource, Fact, StageSource};
use crate::node::{ModelActError, Node, Parts, Preset};

/// An engine for one architecture. Loads nothing.
struct OneArchitecture {
    name: &'static str,
    architecture: &'static str,
    /// Bytes of a stage per position of its sessions.
    needs: u64,
}

impl Engine for OneArchitecture {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cuts(&self, manifest: &Manifest) -> Result<CutRules, EngineError> {
        let (engine, architecture) = (self.name, manifest.architecture.clone());
        match architecture == self.architecture {
            true => Ok(CutRules::any()),
            false => Err(EngineError::UnsupportedArchitecture {
                engine,
                architecture,
                certified: self.architecture.to_owned(),
            }),
        }
    }

    fn memory(&self, _: &Manifest, _: LayerRange, _: bool, config: &StageConfig) -> u64 {
        self.needs * u64::from(config.context) * u64::from(config.max_sessions)
    }

    fn load_stage(&self, _: StageSource, _: &StageConfig) -> Result<Box<dyn Stage>, EngineError> {
        Err(EngineError::Gone)
    }

    fn load_embedder(&self, _: EmbeddingSource) -> Result<Arc<dyn Embedder>, EngineError> {
        Ok(Arc::new(EchoEmbedder::new(1, 8, 4)))
    }
}

const BEST: &str = "llama.cpp";
const OTHER: &str = "candle";

fn engines(best: &'static str, other: &'static str) -> Vec<Arc<dyn Engine>> {
    let engine = |name, architecture| Arc::new(OneArchitecture { name, architecture, needs: 0 });
    vec![engine(BEST, best), engine(OTHER, other)]
}

/// A model of one layer with this kind of tokenizer and this template.
fn model(architecture: &str, tokenizer: &str, template: Option<&str>) -> Vec<u8> {
    let own = |key: &str, value| Fact::u32(&format!("{architecture}.{key}"), value);
    let mut facts = vec![
        Fact::string("general.architecture", architecture),
        own("block_count", 1),
        own("context_length", 64),
        own("embedding_length", 8),
        Fact::string("tokenizer.ggml.model", tokenizer),
        Fact::strings("tokenizer.ggml.tokens", &["<unk>", "<s>", "</s>", "a"]),
        Fact::i32s("tokenizer.ggml.token_type", &[2, 3, 3, 1]),
        Fact::f32s("tokenizer.ggml.scores", &[0.0, 0.0, 0.0, -1.0]),
    ];
    facts.extend(template.map(|template| Fact::string("tokenizer.chat_template", template)));
    let tensors = [
        tensor("token_embd.weight", &[8, 4], 0, 1),
        tensor("blk.0.ffn_up.weight", &[8, 24], 0, 2),
        tensor("output_norm.weight", &[8], 0, 3),
    ];
    file(&facts, &tensors, 32)
}

fn report(file: &[u8], all: Vec<Arc<dyn Engine>>, wanted: Option<&str>, asks: bool) -> ImportReport {
    let header = Gguf::read(&mut Cursor::new(file)).unwrap();
    let manifest = Sharding::new(&header).unwrap().manifest;
    ImportReport::of(&manifest, Some(&header.facts), &Engines { all, wanted: wanted.map(str::to_owned) }, asks)
}

const TEMPLATE: &str = "{{ messages[0].content }}";

#[test]
fn a_refusal_has_every_engines_reason_and_the_best_engines_kind() {
    let file = model("gemma4", "llama", Some(TEMPLATE));
    let found = report(&file, engines("llama", "qwen3"), None, true);
    assert!(found.refuses());
    let engines: Vec<&Subject> = found.findings.iter().map(|finding| &finding.subject).collect();
    assert_eq!(engines, [&Subject::Engine(BEST.to_owned()), &Subject::Engine(OTHER.to_owned())]);
    let fault = found.fault();
    assert_eq!(fault.kind(), ErrorKind::UnsupportedArchitecture);
    for reason in ["gemma4", "certified on "] {
        assert!(fault.message().contains(reason), "{fault}");
    }
}

#[test]
fn a_model_that_one_allowed_engine_runs_is_accepted() {
    let file = model("llama", "llama", Some(TEMPLATE));
    let found = report(&file, engines("gemma4", "llama"), None, true);
    assert_eq!((found.refuses(), found.findings.len(), found.warnings()), (false, 1, vec![]));
    assert!(report(&file, engines("gemma4", "llama"), Some(BEST), true).refuses());
    assert_eq!(report(&file, engines("gemma4", "llama"), Some(OTHER), true).findings, []);
    assert_eq!(report(&file, engines("llama", "llama"), Some("vllm"), true).fault().kind(), ErrorKind::Unsupported);
    assert!(report(&file, Vec::new(), None, true).refuses(), "without an engine nothing runs");
}

#[test]
fn an_unknown_tokenizer_refuses_only_nodes_that_coordinate() {
    let file = model("llama", "rwkv", Some(TEMPLATE));
    let asking = report(&file, engines("llama", ""), None, true);
    assert!(asking.refuses() && asking.fault().message().contains("rwkv"), "{asking}");
    assert_eq!(asking.fault().kind(), ErrorKind::BadTokenizer);
    let computing = report(&file, engines("llama", ""), None, false);
    assert!(!computing.refuses());
    assert!(computing.warnings().iter().any(|warning| warning.contains("rwkv")), "{computing:?}");
}

#[test]
fn a_missing_or_unreadable_template_only_warns() {
    for template in [None, Some("{% for %}")] {
        let found = report(&model("llama", "llama", template), engines("llama", "llama"), None, true);
        assert!(!found.refuses());
        let warnings = found.warnings();
        assert!(warnings.len() == 1 && warnings[0].contains("cannot chat"), "{warnings:?}");
    }
}

async fn node(dir: &TempDir) -> Node {
    let builder = Node::builder().data_dir(dir.path().join("data")).preset(Preset::Offline);
    builder.engines(engines("llama", "llama")).start().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_refuses_before_reading_weights_unless_anyway_is_set() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, model("gemma4", "llama", None)).unwrap();
    let node = node(&dir).await;
    let read = Arc::new(Mutex::new(0));
    let seen = read.clone();
    let progress: crate::node::ProgressFn = Arc::new(move |_| *seen.lock().unwrap() += 1);
    let options = ImportOptions { progress: Some(progress), ..ImportOptions::default() };
    let error: ModelActError = node.import(&path, options.clone()).await.unwrap_err();
    assert_eq!((error.kind(), *read.lock().unwrap()), (ErrorKind::UnsupportedArchitecture, 0));
    let report = error.report().unwrap();
    assert_eq!((report.architecture.as_str(), report.findings.len()), ("gemma4", 3));
    assert!(node.models().is_empty());
    assert_eq!(&node.examine(&path, options.clone()).await.unwrap(), report);
    assert!(node.models().is_empty(), "an examination stores nothing");
    let imported = node.import(&path, ImportOptions { anyway: true, ..options }).await.unwrap();
    assert_eq!((imported.warnings.len(), node.models().len()), (3, 1));
    assert_eq!(imported.findings, report.findings);
    assert!(*read.lock().unwrap() > 0);
    node.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_imported_anyway_is_listed_as_unable_to_run() {
    let dir = TempDir::new().unwrap();
    let import = async |node: &Node, architecture: &str, tokenizer: &str| {
        let path = dir.path().join("model.gguf");
        std::fs::write(&path, model(architecture, tokenizer, Some(TEMPLATE))).unwrap();
        node.import(&path, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap()
    };
    let first = node(&dir).await;
    let sound = import(&first, "llama", "llama").await;
    let unknown = import(&first, "gemma4", "llama").await;
    let mute = import(&first, "llama", "rwkv").await;
    first.shutdown(Duration::ZERO).await;
    // A node started after the imports reports the same.
    let again = node(&dir).await;
    let listed = again.models();
    let of = |id| listed.iter().find(|model| model.id == id).unwrap();
    assert!(of(sound.id).ready && of(sound.id).refusal().is_none());
    for (id, reason) in [(unknown.id, "gemma4"), (mute.id, "rwkv")] {
        let refusal = of(id).refusal().unwrap();
        assert!(!of(id).ready && refusal.contains(reason), "{refusal}");
        assert!(of(id).warnings.iter().any(|warning| warning.contains(reason)));
    }
    assert_eq!(of(unknown.id).findings, unknown.findings);
    again.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_model_without_enough_memory_for_a_plan_is_not_ready() {
    /// Memory for the model's context with one session.
    const ENOUGH: u64 = 64;
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, model("llama", "llama", None)).unwrap();
    let node = async |name: &str, sessions, memory| {
        let builder = Node::builder().data_dir(dir.path().join(name)).preset(Preset::Offline);
        let engine = Arc::new(OneArchitecture { name: BEST, architecture: "llama", needs: 1 });
        builder.engines(vec![engine]).sessions(sessions).memory(memory).start().await.unwrap()
    };
    let short = async |name: &str, sessions| {
        let node = node(name, sessions, ENOUGH - 1).await;
        let imported = node.import(&path, ImportOptions::default()).await.unwrap();
        let listed = node.models().remove(0);
        assert!(!listed.ready && listed.refusal().is_none(), "the model may be ready later");
        assert_eq!((&imported.findings, &imported.warnings), (&listed.findings, &listed.warnings));
        let found = listed.findings.into_iter().find(|finding| finding.subject == Subject::Memory).unwrap();
        assert!(listed.warnings.contains(&found.reason), "{:?}", listed.warnings);
        let refused = node.plan(&listed.id.to_string()).await.unwrap_err();
        assert_eq!(refused.kind(), found.kind);
        assert!(refused.to_string().ends_with(&found.reason), "{refused}");
        node.shutdown(Duration::ZERO).await;
        ["`memory`", "`sessions`", "`context`"].map(|setting| found.reason.contains(setting))
    };
    assert_eq!(short("one", 1).await, [true, false, false], "64 positions are the least");
    assert_eq!(short("four", 4).await, [true, true, false]);
    let enough = node("one", 1, ENOUGH).await;
    let listed = enough.models().remove(0);
    assert!(listed.ready && listed.findings.iter().all(|finding| finding.subject != Subject::Memory));
    enough.plan(&listed.id.to_string()).await.unwrap();
    enough.shutdown(Duration::ZERO).await;
}

#[test]
fn defects_of_a_tokenizer_only_warn() {
    let words = byte_symbols();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let facts = [
        Fact::string("tokenizer.ggml.model", "gpt2"),
        Fact::strings("tokenizer.ggml.tokens", &words),
        Fact::strings("tokenizer.ggml.merges", &[]),
        Fact::u32("tokenizer.ggml.eos_token_id", 999_999),
    ];
    let found = tokenizer_findings(&facts, true);
    let subjects: Vec<&str> = found.iter().map(|finding| finding.subject.name()).collect();
    assert_eq!(subjects, ["pre_tokenizer", "special_token"], "{found:?}");
    assert!(found.iter().all(|finding| !finding.refuses));
    assert!(found[1].reason.contains("999999") && found[1].reason.contains("eos_token_id"), "{found:?}");
    let report = ImportReport { architecture: "llama".to_owned(), findings: found };
    assert_eq!((report.refuses(), report.warnings().len()), (false, 2));
}

#[test]
fn a_report_serialises_to_json() {
    let found = report(&model("gemma4", "llama", None), engines("llama", "llama"), None, true);
    let json = serde_json::to_value(&found).unwrap();
    assert_eq!((&json["architecture"], &json["refuses"]), (&"gemma4".into(), &true.into()));
    let first = &json["findings"][0];
    assert_eq!((&first["subject"], &first["engine"]), (&"engine".into(), &BEST.into()));
    assert_eq!((&first["kind"], &first["refuses"]), (&"UnsupportedArchitecture".into(), &true.into()));
    let last = &json["findings"][2];
    assert_eq!((&last["subject"], &last["engine"]), (&"template".into(), &serde_json::Value::Null));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sound_model_is_imported_without_warnings() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, model("llama", "llama", Some(TEMPLATE))).unwrap();
    let node = node(&dir).await;
    let options = ImportOptions { parts: Some(vec![Parts::All]), ..ImportOptions::default() };
    assert_eq!(node.import(&path, options).await.unwrap().warnings, Vec::<String>::new());
    node.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_examined_without_a_node_or_data_directory() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, model("gemma4", "llama", None)).unwrap();
    let node = node(&dir).await;
    for data in ["data", "nowhere"] {
        let builder = Node::builder().data_dir(dir.path().join(data)).engines(engines("llama", "llama"));
        let found = builder.examine(&path, ImportOptions::default()).await.unwrap();
        assert_eq!(found, node.examine(&path, ImportOptions::default()).await.unwrap(), "{data}");
        assert!(found.refuses());
    }
    assert!(!dir.path().join("nowhere").exists(), "no directory is created");
    let elsewhere = Node::builder().examine(&dir.path().join("none.gguf"), ImportOptions::default()).await;
    assert_eq!(elsewhere.unwrap_err().kind(), ErrorKind::Io);
    node.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonexistent_layers_are_refused_with_the_models_layer_count() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, model("llama", "llama", Some(TEMPLATE))).unwrap();
    let node = node(&dir).await;
    let read = Arc::new(Mutex::new(0));
    let seen = read.clone();
    let progress: crate::node::ProgressFn = Arc::new(move |_| *seen.lock().unwrap() += 1);
    let keep =
        |parts| ImportOptions { parts: Some(parts), progress: Some(progress.clone()), ..ImportOptions::default() };
    let stage = |start, end| Parts::Stage { layers: LayerRange::new(start, end), head: true };
    for (start, end) in [(0, 99), (0, 2), (1, 2), (1, 1), (5, 2), (7, u32::MAX)] {
        let options = keep(vec![Parts::Coordinator, stage(start, end)]);
        let imported = node.import(&path, options.clone()).await.unwrap_err();
        for error in [imported, node.examine(&path, options).await.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{start}..{end}: {error}");
            assert!(error.to_string().contains(&format!("layers {start}..{end} ")), "{error}");
            assert!(error.to_string().contains("has 1 layers (0..1, the end excluded)"), "{error}");
        }
    }
    let error = node.import(&path, keep(Vec::new())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    assert!(error.to_string().contains("`parts`"), "{error}");
    assert_eq!((*read.lock().unwrap(), node.models().len()), (0, 0), "no weight is read");
    let known = node.import(&path, keep(vec![stage(0, 1)])).await.unwrap();
    assert_eq!(known.held, [LayerRange::new(0, 1)]);
    for (start, end) in [(0, 99), (5, 2)] {
        let pulled = node.pull("model", stage(start, end), None).await.unwrap_err();
        assert!(pulled.to_string().contains("has 1 layers"), "{pulled}");
        assert_eq!(node.discard("model", stage(start, end)).await.unwrap_err(), pulled);
    }
    node.shutdown(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ambiguous_name_means_the_only_model_that_can_run() {
    let dir = TempDir::new().unwrap();
    let import = async |node: &Node, architecture: &str, tokenizer: &str| {
        let path = dir.path().join("chatty.gguf");
        std::fs::write(&path, model(architecture, tokenizer, Some(TEMPLATE))).unwrap();
        node.import(&path, ImportOptions { anyway: true, ..ImportOptions::default() }).await.unwrap().id
    };
    let node = node(&dir).await;
    let unknown = import(&node, "gemma4", "llama").await;
    let mute = import(&node, "llama", "rwkv").await;
    assert_eq!(node.resolve("chatty").unwrap_err().kind(), ErrorKind::InvalidArgument, "neither model can run");
    let sound = import(&node, "llama", "llama").await;
    for text in ["chatty", "CHAT"] {
        assert_eq!(node.resolve(text).unwrap(), sound, "{text}");
        assert_eq!(crate::node::models::fetch::find(node.shared(), text).await.unwrap(), sound, "{text}");
        let changed = [
            node.discard(text, Parts::All).await.map(drop),
            node.pin(text, true).await,
            node.add_alias(text, "mine").await.map(drop),
        ];
        for error in changed.map(Result::unwrap_err) {
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "changes need an unambiguous name: {error}");
        }
    }
    assert_eq!(
        (node.resolve(&unknown.to_string()).unwrap(), node.resolve(&mute.to_string()).unwrap()),
        (unknown, mute)
    );
    node.add_alias(&unknown.to_string(), "chat").await.unwrap();
    assert_eq!(node.resolve("chat").unwrap(), unknown, "a whole alias means its model");
    node.shutdown(Duration::ZERO).await;
}
