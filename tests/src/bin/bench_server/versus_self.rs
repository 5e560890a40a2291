//! A node against itself in other configurations.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use swarmllm_core::base::{ErrorKind, ModelId};
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{
    ChatMessage, ChatRequest, GenerateOptions, GenerateRequest, Generation, KvType, Node, Parts, Prompt,
};
use swarmllm_tests::cluster::{Member, Transport, await_plan, builder, join, stage_parts, unique_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::prompts::edits;
use swarmllm_tests::synthetic;
use tempfile::TempDir;

use crate::subject::{PAUSE, Subject, Text, node, read};
use crate::{CONTEXT, DECODE, Figures, ROUNDS, SESSIONS, SHORT, number, record, threads};

/// The 95th percentile of token gaps during another session's long prefill, relative to the idle median.
async fn under_prefill(subject: &Subject, text: &mut Text) -> f64 {
    let idle = subject.ask(&text.cut(SHORT), DECODE).await;
    let (answer, prompt) = (text.cut(SHORT), text.cut(2048));
    let running = subject.ask(&answer, 600);
    let arriving = async {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        subject.ask(&prompt, 1).await;
        (begun.elapsed() - PAUSE).as_secs_f64()
    };
    let (times, arrival) = tokio::join!(running, arriving);
    let (mut at, mut gaps) = (times.first, Vec::new());
    for gap in times.gaps {
        at += gap;
        if (PAUSE.as_secs_f64()..PAUSE.as_secs_f64() + arrival).contains(&at) {
            gaps.push(gap);
        }
    }
    let (usual, late) = (of_hundred(&mut gaps, 50), of_hundred(&mut gaps, 95));
    let mut idle = idle.gaps;
    let (idle_usual, idle_late) = (of_hundred(&mut idle, 50), of_hundred(&mut idle, 95));
    let [usual_ms, late_ms, idle_ms, idle_late_ms] = [usual, late, idle_usual, idle_late].map(|gap| gap * 1e3);
    println!(
        "    gaps of {usual_ms:.1} ms, 95 % below {late_ms:.1}, while a prompt takes {arrival:.1} s; else {idle_ms:.1}, \
         {idle_late_ms:.1}"
    );
    late / idle_usual
}

/// A percentile; infinity without values.
fn of_hundred(values: &mut [f64], share: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * share / 100).copied().unwrap_or(f64::INFINITY)
}

/// Median of the gap ratio over several prompts.
pub async fn gap_under_prefill(subject: &Subject, text: &mut Text, figures: &mut Figures, name: &str) {
    let mut gaps = Vec::new();
    for _ in 0..number("BENCH_ROUNDS", ROUNDS) {
        gaps.push(under_prefill(subject, text).await);
    }
    record(figures, name, "<= 2", gaps);
}

/// Time to first token of the second of two prompts with 512 common tokens, relative to the first.
async fn shared_prefix(subject: &Subject, text: &mut Text) -> f64 {
    let shared = text.cut(512);
    let with = |tail: Vec<u32>| [shared.clone(), tail].concat();
    let cold = subject.ask(&with(text.cut(16)), 2).await.first;
    tokio::time::sleep(Duration::from_millis(50)).await;
    subject.ask(&with(text.cut(16)), 2).await.first / cold
}

/// Median over three prompts.
pub async fn prefix_reuse(subject: &Subject, text: &mut Text, figures: &mut Figures) {
    let mut reuse = Vec::new();
    for _ in 0..3 {
        reuse.push(shared_prefix(subject, text).await);
    }
    record(figures, "prefix_reuse_fraction", "<= 0.05", reuse);
}

/// Decode speedup by speculation for an answer of at most `tokens`.
async fn speedup(begin: impl AsyncFn(GenerateOptions) -> Generation, tokens: u32) -> f64 {
    let token = async |speculate| {
        let sampling = SamplingParams::greedy();
        let options = GenerateOptions { max_tokens: Some(tokens), sampling, speculate, ..GenerateOptions::default() };
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        read(begin(options).await, begun).await.token()
    };
    let plain = token(false).await;
    plain / token(true).await
}

/// Speedup by speculation for each request to repeat a text with one word changed.
pub async fn edit_speedups(ours: &Subject) -> Vec<f64> {
    let Subject::Ours { node, model, .. } = ours else { return Vec::new() };
    let mut speedups = Vec::new();
    for request in edits() {
        let begin = async |options: GenerateOptions| {
            let messages = vec![ChatMessage { role: "user".to_owned(), content: request.clone() }];
            let chat =
                ChatRequest { model: model.to_string(), messages, options: options.clone(), ..ChatRequest::default() };
            let generation = match node.chat(chat).await {
                // llama.cpp's server uses this template for models without one.
                Err(error) if error.kind() == ErrorKind::BadTemplate => {
                    let text = format!("<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n");
                    node.generate(GenerateRequest { model: model.to_string(), prompt: Prompt::Text(text), options })
                        .await
                }
                begun => begun,
            };
            generation.expect("the swarm answers")
        };
        speedups.push(speedup(begin, DECODE).await);
    }
    speedups
}

/// Speedups by speculation for the synthetic counting model, which repeats each prompt of `tokens` tokens except for one
/// token.
pub async fn counting_speedups(ours: &Subject, tokens: u32) -> Vec<f64> {
    let Subject::Ours { node, model, .. } = ours else { return Vec::new() };
    let mut speedups = Vec::new();
    for begin in (1..=5).map(|nth| 4000 * nth) {
        let mut prompt: Vec<u32> = synthetic::counting_tokens(begin, tokens as usize).collect();
        prompt[tokens as usize / 2] = 1;
        prompt.push(begin);
        let ask = async |options: GenerateOptions| {
            let prompt = Prompt::Tokens(prompt.clone());
            let request = GenerateRequest { model: model.to_string(), prompt, options };
            node.generate(request).await.expect("the swarm answers")
        };
        speedups.push(speedup(ask, tokens).await);
    }
    speedups
}

/// A coordinator without layers, and two hosts with half of the model each.
async fn split_in_two(model: TestModel, threads: u32) -> (Vec<Member>, ModelId) {
    let network = unique_network();
    let coordinator = node(&network, threads).await;
    let id = coordinator.import(&model.path(), model.name(), Parts::Coordinator).await;
    let cut = model.cut(2);
    let mut hosts = Vec::new();
    for index in 0..cut.len() {
        let host = node(&network, threads).await;
        host.import(&model.path(), model.name(), stage_parts(&cut, index)).await;
        for other in hosts.iter().chain([&coordinator]) {
            join(&other.node, &host.node.addresses(), Transport::Tcp).await;
        }
        hosts.push(host);
    }
    await_plan(&coordinator.node, id).await;
    hosts.insert(0, coordinator);
    (hosts, id)
}

/// Prefill over two hosts with one thread each against one node with one thread: the use of the second core.
pub async fn overlap(model: TestModel, text: &mut Text, figures: &mut Figures) {
    let (members, id) = split_in_two(model, 1).await;
    let alone = node(&unique_network(), 1).await;
    let whole = alone.import(&model.path(), model.name(), Parts::All).await;
    await_plan(&alone.node, whole).await;
    let (single, split) = (Subject::of(&alone.node, whole), Subject::of(&members[0].node, id));
    for length in [512, 2048] {
        let mut ratio = Vec::new();
        for round in 0..=ROUNDS.min(3) {
            let prompt = text.cut(length);
            let one = single.ask(&prompt, 8).await.first;
            let halves = split.ask(&prompt, 8).await.first;
            if round > 0 {
                ratio.push(one / halves);
            }
        }
        record(figures, &format!("split2_prefill{length}_speedup"), "<= 2", ratio);
    }
}

/// Two hosts with half of the model each against one node with all of it, on the same cores.
pub async fn halves(ours: &Subject, model: TestModel, text: &mut Text, figures: &mut Figures) {
    let (members, id) = split_in_two(model, threads()).await;
    let split = Subject::of(&members[0].node, id);
    let (whole_exact, split_exact) = (ours.exact(), split.exact());
    let (mut one, mut exact, mut eight) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        let prompt = text.cut(SHORT);
        let single = ours.ask(&prompt, DECODE).await.token();
        let halves = split.ask(&prompt, DECODE).await.token();
        let prompt = text.cut(SHORT);
        let single_exact = whole_exact.ask(&prompt, DECODE).await.token();
        let halves_exact = split_exact.ask(&prompt, DECODE).await.token();
        let prompts: Vec<Vec<u32>> = (0..SESSIONS).map(|_| text.cut(SHORT)).collect();
        let (together, apart) = (ours.crowd(&prompts, DECODE).await, split.crowd(&prompts, DECODE).await);
        if round > 0 {
            println!(
                "    ms a token: one node {:.2}, halves {:.2}; exact {:.2}, {:.2}",
                single * 1e3,
                halves * 1e3,
                single_exact * 1e3,
                halves_exact * 1e3
            );
            one.push(single / halves);
            exact.push(single_exact / halves_exact);
            eight.push(apart / together);
        }
    }
    record(figures, "split2_vs_single", ">= 0.95", one);
    record(figures, "split2_exact_vs_single", ">= 0.95", exact);
    record(figures, "split2_batch8_vs_single", ">= 1", eight);
}

/// Number of prompts of the drift measurement, and tokens per answer.
const DRIFT_PROMPTS: usize = 24;

const DRIFT_TOKENS: u32 = 64;

/// The tokens of greedy answers, in groups of `together` concurrent requests.
async fn answers(
    node: &Node,
    model: ModelId,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
    together: usize,
) -> Vec<Vec<u32>> {
    let mut all = Vec::new();
    for group in prompts.chunks(together) {
        let asked = group.iter().map(|prompt| async {
            let prompt = Prompt::Tokens(prompt.clone());
            let request = GenerateRequest { model: model.to_string(), prompt, options: options.clone() };
            let generation = node.generate(request).await.expect("it is asked");
            generation.finish().await.expect("the node answers").tokens
        });
        all.extend(join_all(asked).await);
    }
    all
}

/// Rate of first differences from the exact answers over compared positions. Positions after a difference do not count,
/// since their context differs.
fn parted(exact: &[Vec<u32>], other: &[Vec<u32>]) -> f64 {
    let (mut parted, mut compared) = (0, 0);
    for (exact, other) in exact.iter().zip(other) {
        let alike = exact.iter().zip(other).take_while(|(one, other)| one == other).count();
        let differs = alike < exact.len();
        parted += usize::from(differs);
        compared += alike + usize::from(differs);
    }
    parted as f64 / compared.max(1) as f64
}

/// Drift from exact answers: with batched steps, with speculation, and with 8-bit KV.
pub async fn drift(ours: &Subject, path: &Path, text: &mut Text, figures: &mut Figures, suffix: &str) {
    let Subject::Ours { node, model, .. } = ours else { return };
    let options = |exact, speculate| GenerateOptions {
        max_tokens: Some(DRIFT_TOKENS),
        sampling: SamplingParams::greedy(),
        exact,
        speculate,
        ..GenerateOptions::default()
    };
    let prompts: Vec<Vec<u32>> = (0..DRIFT_PROMPTS).map(|_| text.cut(SHORT * 2)).collect();
    let exact = answers(node, *model, &prompts, &options(true, false), 1).await;
    let shared = answers(node, *model, &prompts, &options(false, false), SESSIONS as usize).await;
    let guessed = answers(node, *model, &prompts, &options(false, true), 1).await;
    let dir = TempDir::new().expect("a temporary directory");
    let small =
        builder(dir.path(), &unique_network(), Transport::Tcp).threads(threads()).context(CONTEXT).kv(KvType::Q8);
    let small = Member { node: small.start().await.expect("a node starts"), dir };
    let id = small.import(path, "small", Parts::All).await;
    let q8 = answers(&small.node, id, &prompts, &options(false, false), 1).await;
    for (name, other) in [("fast_drift", shared), ("guess_drift", guessed), ("kv_q8_drift", q8)] {
        record(figures, &format!("{name}{suffix}"), "reported", vec![parted(&exact, &other)]);
    }
    small.stop().await;
}

/// A candle node against a llama.cpp node.
pub async fn candle(llama_cpp: &Subject, path: &Path, text: &mut Text, figures: &mut Figures, suffix: &str) {
    let dir = TempDir::new().expect("a temporary directory");
    let builder = builder(dir.path(), &unique_network(), Transport::Tcp).threads(threads()).context(CONTEXT);
    let member = Member { node: builder.engine("candle").start().await.expect("a node starts"), dir };
    let model = member.import(path, "candle", Parts::All).await;
    await_plan(&member.node, model).await;
    let candle = Subject::of(&member.node, model);
    let (mut decode, mut prefill) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS.min(3) {
        let prompt = text.cut(SHORT);
        let ours = llama_cpp.ask(&prompt, DECODE / 2).await.token();
        let other = candle.ask(&prompt, DECODE / 2).await.token();
        let prompt = text.cut(512);
        let our_prefill = llama_cpp.ask(&prompt, 2).await.first;
        let other_prefill = candle.ask(&prompt, 2).await.first;
        if round > 0 {
            decode.push(ours / other);
            prefill.push(our_prefill / other_prefill);
        }
    }
    record(figures, &format!("candle_decode{suffix}_vs_llama_cpp"), "reported", decode);
    record(figures, &format!("candle_prefill512{suffix}_vs_llama_cpp"), "reported", prefill);
    member.stop().await;
}
