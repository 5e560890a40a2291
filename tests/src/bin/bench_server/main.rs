//! The second half of `make bench`: a node against llama.cpp's server with the same file, threads and prompts, and against
//! itself in other configurations.
//!
//! The server is called over HTTP on loopback, the node through the library, as a program would use each. Every round calls
//! both once, each time with another piece of the text. Ratios are computed within a round; the median over rounds is
//! printed and added to the report. The first argument is the path of the server's binary; without it, only the parts
//! without the server are measured.
//!
//! `BENCH_PARTS` selects parts, by default all: `one many hog pair` with the server, `gap 1b` with and without it,
//! `guess drift candle prefix split overlap far pinned pair-guess pair-draft pair-split pair-kv pair-pinned` without it.
//! `drift` counts how often inexact answers differ from exact ones; `candle` compares with a llama.cpp node. `BENCH_PROMPTS`
//! selects the prompts of the pair from `edit code prose chat`, by default all.

mod pair;
mod pinned;
mod subject;
mod versus_self;
mod versus_server;
mod wan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use swarmllm_tests::models::TestModel;
use swarmllm_tests::synthetic;

use crate::subject::{Subject, Text, text_of};
use crate::versus_server::Sides;

/// Context length of sessions; the longest prompt and its answer fit.
const CONTEXT: u32 = 2304;
/// Concurrent sessions.
const SESSIONS: u32 = 8;
/// Tokens decoded per measurement, and the length of the prompt before them.
const DECODE: u32 = 96;
const SHORT: usize = 64;
/// Tokens of a page that the counting model repeats; other models do not repeat that much correctly.
const PAGE: u32 = 384;
/// Default number of rounds; `BENCH_ROUNDS` overrides it.
const ROUNDS: usize = 5;

type Figures = BTreeMap<String, f64>;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default).max(1)
}

/// Whether a part is selected.
fn is_selected(part: &str) -> bool {
    std::env::var("BENCH_PARTS").map_or(true, |parts| parts.split([' ', ',']).any(|named| named == part))
}

fn threads() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    number("BENCH_THREADS", cores) as u32
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Adds the median of the rounds to the figures and prints it.
fn record(figures: &mut Figures, name: &str, goal: &str, values: Vec<f64>) {
    let value = median(values);
    println!("{name:<34}{value:>9.3}   {goal}");
    figures.insert(name.to_owned(), value);
}

#[tokio::main]
async fn main() {
    let mut figures = Figures::new();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [pinned::FAR, model, network] => return pinned::far(named(model), network).await,
        [pinned::NEAR, model] => {
            pinned::near(named(model), &mut figures).await;
            return report(&figures);
        }
        _ => {}
    }
    let server = arguments.first().map(PathBuf::from);
    println!("{} threads; each figure is followed by its goal", threads());
    if is_selected("far") {
        let model = TestModel::SmolLm2;
        let mut text = text_of(&model.path());
        wan::far(model, &mut text, &mut figures).await;
        wan::narrow(model, &mut text, &mut figures).await;
    }
    for (model, suffix) in [(TestModel::SmolLm2, ""), (TestModel::Gemma3, "_gemma3")] {
        if ["one", "many", "hog", "gap", "guess", "drift", "candle", "prefix", "split", "overlap"]
            .into_iter()
            .any(is_selected)
        {
            small(model, suffix, server.as_deref(), &mut figures).await;
        }
    }
    if is_selected("pinned") {
        pinned::measure_apart(TestModel::SmolLm2);
    }
    if is_selected("pair-pinned") && TestModel::Coder15.is_there() {
        pinned::measure_apart(TestModel::Coder15);
    }
    pair::pair(server.as_deref(), &mut figures).await;
    if is_selected("1b") {
        let (ours, _member) = Subject::ours(&synthetic::one_billion_counting(&synthetic_models()), "walker-1b").await;
        record(&mut figures, "ngram_edit_1b_q4k_speedup", ">= 3", versus_self::counting_speedups(&ours, DECODE).await);
        record(
            &mut figures,
            "ngram_edit_page_1b_q4k_speedup",
            ">= 3",
            versus_self::counting_speedups(&ours, PAGE).await,
        );
        let mut text = text_of(&TestModel::SmolLm2.path());
        versus_self::gap_under_prefill(&ours, &mut text, &mut figures, "gap_under_prefill_1b_q4k").await;
    }
    if let Some(server) = server.filter(|_| is_selected("1b")) {
        let path = synthetic::one_billion_q4_k(&synthetic_models());
        let (ours, _member) = Subject::ours(&path, "synthetic-1b").await;
        let mut text = text_of(&TestModel::SmolLm2.path());
        versus_server::one_billion(&Sides::start(&server, &path, ours), &path, &mut text, &mut figures).await;
    }
    report(&figures);
}

/// A test model by its name.
fn named(name: &str) -> TestModel {
    let all = [TestModel::SmolLm2, TestModel::Gemma3, TestModel::Coder15, TestModel::Coder05];
    all.into_iter().find(|model| model.name() == name).expect("a test model has this name")
}

/// The folder of synthetic models: that of the test models.
fn synthetic_models() -> PathBuf {
    TestModel::SmolLm2.path().parent().expect("a file is in a directory").to_owned()
}

/// The parts measured on a small test model; some on SmolLM2 only.
async fn small(model: TestModel, suffix: &str, server: Option<&Path>, figures: &mut Figures) {
    let path = model.path();
    let mut text = text_of(&path);
    let (ours, _member) = Subject::ours(&path, model.name()).await;
    let sides = server.map(|binary| Sides::start(binary, &path, ours.clone()));
    if let Some(sides) = sides.as_ref().filter(|_| is_selected("one")) {
        versus_server::one_session(sides, &mut text, figures, suffix).await;
    }
    if is_selected("guess") {
        record(figures, &format!("ngram_edit{suffix}_speedup"), ">= 3", versus_self::edit_speedups(&ours).await);
    }
    if is_selected("drift") {
        versus_self::drift(&ours, &path, &mut text, figures, suffix).await;
    }
    if is_selected("candle") {
        versus_self::candle(&ours, &path, &mut text, figures, suffix).await;
    }
    if model == TestModel::SmolLm2 {
        smallest(model, &ours, sides.as_ref(), &mut text, figures).await;
    }
}

/// The parts measured on the smallest model only: its steps are the shortest, so overhead shows most.
async fn smallest(model: TestModel, ours: &Subject, sides: Option<&Sides>, text: &mut Text, figures: &mut Figures) {
    if let Some(sides) = sides.filter(|_| is_selected("many")) {
        versus_server::many_sessions(sides, text, figures).await;
    }
    if is_selected("gap") {
        versus_self::gap_under_prefill(ours, text, figures, "gap_under_prefill").await;
    }
    if is_selected("prefix") {
        versus_self::prefix_reuse(ours, text, figures).await;
    }
    if let Some(sides) = sides {
        versus_server::side_by_side(sides, text, figures).await;
    }
    if is_selected("split") {
        versus_self::halves(ours, model, text, figures).await;
    }
    if is_selected("overlap") {
        versus_self::overlap(model, text, figures).await;
    }
}

/// Adds the figures to the report that the first half of the benchmark wrote.
fn report(figures: &Figures) {
    let path = std::env::var_os("BENCH_JSON").map_or_else(|| PathBuf::from("target/bench.json"), PathBuf::from);
    let known = std::fs::read_to_string(&path).ok().and_then(|text| serde_json::from_str::<Figures>(&text).ok());
    let mut all = known.unwrap_or_default();
    all.extend(figures.iter().map(|(name, value)| (name.clone(), *value)));
    let json = serde_json::to_string_pretty(&all).expect("figures are plain numbers");
    std::fs::write(&path, json + "\n").expect("the report can be written");
    println!("added to {}", path.display());
}
