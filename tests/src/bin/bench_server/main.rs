//! The second half of `make bench`: our node beside llama.cpp's own server, on the same file, threads and prompts, and
//! beside itself.
//!
//! The server is asked over HTTP on loopback, our node through the library: that is what a program would do with each.
//! Every round asks both once, in turn, each time another piece of the text; ratios are taken within a round, and the
//! median of the rounds is printed and added to the report. The path of the server's binary is the first argument; without
//! one only what needs no server is measured.
//!
//! `BENCH_PARTS` names the parts to measure, all where it is not set: `one many hog pair` with the server, `gap 1b` with it
//! and without, `guess drift candle prefix split overlap far pinned pair-guess pair-draft pair-split pair-kv pair-pinned`
//! without. `drift` counts how often answers that need not be exact differ from those that are; the other side of `candle`
//! is our node with llama.cpp. `BENCH_PROMPTS` names those of `edit code prose chat` that the pair is asked, all where it is not set.

mod asked;
mod beside;
mod far;
mod own;
mod pair;
mod pinned;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use swarmllm_tests::models::TestModel;
use swarmllm_tests::synthetic;

use crate::asked::{Asked, Text, text_of};
use crate::beside::Sides;

/// Positions of a session: the longest prompt and its answer fit.
const CONTEXT: u32 = 2304;
/// Sessions at once.
const SESSIONS: u32 = 8;
/// Tokens decoded for one figure, and the prompt before them.
const DECODE: u32 = 96;
const SHORT: usize = 64;
/// Tokens of a page, which the model that walks repeats; the others do not get so far without losing themselves.
const PAGE: u32 = 384;
/// Rounds, unless `BENCH_ROUNDS` says otherwise.
const ROUNDS: usize = 5;

type Figures = BTreeMap<String, f64>;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default).max(1)
}

/// Whether a part is to be measured.
fn wanted(part: &str) -> bool {
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

/// Adds the median of the rounds and prints it.
fn tell(figures: &mut Figures, name: &str, goal: &str, values: Vec<f64>) {
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
    println!("{} threads; what is aimed at stands behind each figure", threads());
    if wanted("far") {
        let model = TestModel::SmolLm2;
        let mut text = text_of(&model.path());
        far::far(model, &mut text, &mut figures).await;
        far::narrow(model, &mut text, &mut figures).await;
    }
    for (model, suffix) in [(TestModel::SmolLm2, ""), (TestModel::Gemma3, "_gemma3")] {
        if ["one", "many", "hog", "gap", "guess", "drift", "candle", "prefix", "split", "overlap"]
            .into_iter()
            .any(wanted)
        {
            small(model, suffix, server.as_deref(), &mut figures).await;
        }
    }
    if wanted("pinned") {
        pinned::measure_apart(TestModel::SmolLm2);
    }
    if wanted("pair-pinned") && TestModel::Coder15.is_there() {
        pinned::measure_apart(TestModel::Coder15);
    }
    pair::pair(server.as_deref(), &mut figures).await;
    if wanted("1b") {
        let (ours, _member) = Asked::ours(&synthetic::one_billion_that_walks(&synthetic_models()), "walker-1b").await;
        tell(&mut figures, "ngram_edit_1b_q4k_speedup", ">= 3", own::walked(&ours, DECODE).await);
        tell(&mut figures, "ngram_edit_page_1b_q4k_speedup", ">= 3", own::walked(&ours, PAGE).await);
        let mut text = text_of(&TestModel::SmolLm2.path());
        own::gap_under_prefill(&ours, &mut text, &mut figures, "gap_under_prefill_1b_q4k").await;
    }
    if let Some(server) = server.filter(|_| wanted("1b")) {
        let path = synthetic::one_billion_q4_k(&synthetic_models());
        let (ours, _member) = Asked::ours(&path, "synthetic-1b").await;
        let mut text = text_of(&TestModel::SmolLm2.path());
        beside::one_billion(&Sides::start(&server, &path, ours), &path, &mut text, &mut figures).await;
    }
    report(&figures);
}

/// A test model by its name.
fn named(name: &str) -> TestModel {
    let all = [TestModel::SmolLm2, TestModel::Gemma3, TestModel::Coder15, TestModel::Coder05];
    all.into_iter().find(|model| model.name() == name).expect("a test model has this name")
}

/// The folder of the models that are made here: that of the others.
fn synthetic_models() -> PathBuf {
    TestModel::SmolLm2.path().parent().expect("a file is in a directory").to_owned()
}

/// The parts that are measured on a test model; on Gemma only some.
async fn small(model: TestModel, suffix: &str, server: Option<&Path>, figures: &mut Figures) {
    let path = model.path();
    let mut text = text_of(&path);
    let (ours, _member) = Asked::ours(&path, model.name()).await;
    let sides = server.map(|binary| Sides::start(binary, &path, ours.clone()));
    if let Some(sides) = sides.as_ref().filter(|_| wanted("one")) {
        beside::one_session(sides, &mut text, figures, suffix).await;
    }
    if wanted("guess") {
        tell(figures, &format!("ngram_edit{suffix}_speedup"), ">= 3", own::edited(&ours).await);
    }
    if wanted("drift") {
        own::drift(&ours, &path, &mut text, figures, suffix).await;
    }
    if wanted("candle") {
        own::candle(&ours, &path, &mut text, figures, suffix).await;
    }
    if model == TestModel::SmolLm2 {
        smallest(model, &ours, sides.as_ref(), &mut text, figures).await;
    }
}

/// The parts that are measured on the smallest model only, whose steps are shortest: so that all that is not compute shows.
async fn smallest(model: TestModel, ours: &Asked, sides: Option<&Sides>, text: &mut Text, figures: &mut Figures) {
    if let Some(sides) = sides.filter(|_| wanted("many")) {
        beside::many_sessions(sides, text, figures).await;
    }
    if wanted("gap") {
        own::gap_under_prefill(ours, text, figures, "gap_under_prefill").await;
    }
    if wanted("prefix") {
        own::prefix_reuse(ours, text, figures).await;
    }
    if let Some(sides) = sides {
        beside::side_by_side(sides, text, figures).await;
    }
    if wanted("split") {
        own::halves(ours, model, text, figures).await;
    }
    if wanted("overlap") {
        own::overlap(model, text, figures).await;
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
