//! Our node beside itself: one way of computing an answer against another.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::future::join_all;
use swarmllm_core::base::{ErrorKind, ModelId};
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{
    ChatMessage, ChatRequest, GenerateOptions, GenerateRequest, Generation, KvCache, Node, Parts, Prompt,
};
use swarmllm_tests::cluster::{Carrier, Member, await_plan, builder, join, lonely_network, stage_parts};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::prompts::edits;
use swarmllm_tests::synthetic;
use tempfile::TempDir;

use crate::asked::{Asked, PAUSE, Text, node, read};
use crate::{CONTEXT, DECODE, Figures, ROUNDS, SESSIONS, SHORT, number, tell, threads};

/// Gaps between the tokens of an answer while a long prompt of another session is computed, over the usual gap.
async fn under_prefill(asked: &Asked, text: &mut Text) -> f64 {
    let idle = asked.ask(&text.cut(SHORT), DECODE).await;
    let (answer, prompt) = (text.cut(SHORT), text.cut(2048));
    let running = asked.ask(&answer, 600);
    let arriving = async {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        asked.ask(&prompt, 1).await;
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

/// The value below which so many of a hundred are; without end where there are none.
fn of_hundred(values: &mut [f64], share: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() * share / 100).copied().unwrap_or(f64::INFINITY)
}

/// The same of several prompts: the median.
pub async fn gap_under_prefill(asked: &Asked, text: &mut Text, figures: &mut Figures, name: &str) {
    let mut gaps = Vec::new();
    for _ in 0..number("BENCH_ROUNDS", ROUNDS) {
        gaps.push(under_prefill(asked, text).await);
    }
    tell(figures, name, "<= 2", gaps);
}

/// The second of two prompts that share 512 tokens, over the first, in time to the first token.
async fn shared_prefix(asked: &Asked, text: &mut Text) -> f64 {
    let shared = text.cut(512);
    let with = |tail: Vec<u32>| [shared.clone(), tail].concat();
    let cold = asked.ask(&with(text.cut(16)), 2).await.first;
    tokio::time::sleep(Duration::from_millis(50)).await;
    asked.ask(&with(text.cut(16)), 2).await.first / cold
}

/// The same of three prompts: the median.
pub async fn prefix_reuse(asked: &Asked, text: &mut Text, figures: &mut Figures) {
    let mut reuse = Vec::new();
    for _ in 0..3 {
        reuse.push(shared_prefix(asked, text).await);
    }
    tell(figures, "prefix_reuse_fraction", "<= 0.05", reuse);
}

/// How much sooner an answer of at most `tokens` is there with guesses than without.
async fn speedup(begin: impl AsyncFn(GenerateOptions) -> Generation, tokens: u32) -> f64 {
    let token = async |guess| {
        let sampling = SamplingParams::greedy();
        let options = GenerateOptions { max_tokens: Some(tokens), sampling, guess, ..GenerateOptions::default() };
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        read(begin(options).await, begun).await.token()
    };
    let plain = token(false).await;
    plain / token(true).await
}

/// How much faster texts are repeated with one word changed, with guesses than without: for each request.
pub async fn edited(ours: &Asked) -> Vec<f64> {
    let Asked::Ours { node, model, .. } = ours else { return Vec::new() };
    let mut speedups = Vec::new();
    for request in edits() {
        let begin = async |options: GenerateOptions| {
            let messages = vec![ChatMessage { role: "user".to_owned(), content: request.clone() }];
            let chat =
                ChatRequest { model: model.to_string(), messages, options: options.clone(), ..ChatRequest::default() };
            let generation = match node.chat(chat).await {
                // The server takes this form where a model has none.
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

/// The same for the synthetic model that walks, which says what follows each token whatever it is told: of each text of
/// `tokens` that it is to repeat, one token is another.
pub async fn walked(ours: &Asked, tokens: u32) -> Vec<f64> {
    let Asked::Ours { node, model, .. } = ours else { return Vec::new() };
    let mut speedups = Vec::new();
    for begin in (1..=5).map(|nth| 4000 * nth) {
        let mut prompt: Vec<u32> = synthetic::walk(begin, tokens as usize).collect();
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

/// A coordinator without layers, and two hosts with a half of the model each.
async fn split_in_two(model: TestModel, threads: u32) -> (Vec<Member>, ModelId) {
    let network = lonely_network();
    let coordinator = node(&network, threads).await;
    let id = coordinator.import(&model.path(), model.name(), Parts::Coordinator).await;
    let cut = model.cut(2);
    let mut hosts = Vec::new();
    for index in 0..cut.len() {
        let host = node(&network, threads).await;
        host.import(&model.path(), model.name(), stage_parts(&cut, index)).await;
        for other in hosts.iter().chain([&coordinator]) {
            join(&other.node, &host.node.addresses(), Carrier::Tcp).await;
        }
        hosts.push(host);
    }
    await_plan(&coordinator.node, id).await;
    hosts.insert(0, coordinator);
    (hosts, id)
}

/// The prompt over two hosts with a thread each, against one node with one thread: how much of the second core is of use.
pub async fn overlap(model: TestModel, text: &mut Text, figures: &mut Figures) {
    let (members, id) = split_in_two(model, 1).await;
    let alone = node(&lonely_network(), 1).await;
    let whole = alone.import(&model.path(), model.name(), Parts::All).await;
    await_plan(&alone.node, whole).await;
    let (single, split) = (Asked::of(&alone.node, whole), Asked::of(&members[0].node, id));
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
        tell(figures, &format!("split2_prefill{length}_speedup"), "<= 2", ratio);
    }
}

/// Two hosts with a half each, against one node with everything; the same cores.
pub async fn halves(ours: &Asked, model: TestModel, text: &mut Text, figures: &mut Figures) {
    let (members, id) = split_in_two(model, threads()).await;
    let split = Asked::of(&members[0].node, id);
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
    tell(figures, "split2_vs_single", ">= 0.95", one);
    tell(figures, "split2_exact_vs_single", ">= 0.95", exact);
    tell(figures, "split2_batch8_vs_single", ">= 1", eight);
}

/// Answers of which drift is told: so many prompts, and tokens of each.
const DRIFT_PROMPTS: usize = 24;

const DRIFT_TOKENS: u32 = 64;

/// The tokens of greedy answers, `together` of them at a time.
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

/// Where answers part from the exact ones, over the positions that were compared: up to there, since what comes behind has
/// another past.
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

/// How often a position of an answer differs from the exact one: in shared steps, with guesses, and with KV in 8 bits.
pub async fn drift(ours: &Asked, path: &Path, text: &mut Text, figures: &mut Figures, suffix: &str) {
    let Asked::Ours { node, model, .. } = ours else { return };
    let options = |exact, guess| GenerateOptions {
        max_tokens: Some(DRIFT_TOKENS),
        sampling: SamplingParams::greedy(),
        exact,
        guess,
        ..GenerateOptions::default()
    };
    let prompts: Vec<Vec<u32>> = (0..DRIFT_PROMPTS).map(|_| text.cut(SHORT * 2)).collect();
    let exact = answers(node, *model, &prompts, &options(true, false), 1).await;
    let shared = answers(node, *model, &prompts, &options(false, false), SESSIONS as usize).await;
    let guessed = answers(node, *model, &prompts, &options(false, true), 1).await;
    let dir = TempDir::new().expect("a temporary directory");
    let small =
        builder(dir.path(), &lonely_network(), Carrier::Tcp).threads(threads()).context(CONTEXT).kv(KvCache::Q8);
    let small = Member { node: small.start().await.expect("a node starts"), dir };
    let id = small.import(path, "small", Parts::All).await;
    let q8 = answers(&small.node, id, &prompts, &options(false, false), 1).await;
    for (name, other) in [("fast_drift", shared), ("guess_drift", guessed), ("kv_q8_drift", q8)] {
        tell(figures, &format!("{name}{suffix}"), "told", vec![parted(&exact, &other)]);
    }
    small.stop().await;
}

/// A node that computes with candle, beside the one with llama.cpp.
pub async fn candle(llama_cpp: &Asked, path: &Path, text: &mut Text, figures: &mut Figures, suffix: &str) {
    let dir = TempDir::new().expect("a temporary directory");
    let builder = builder(dir.path(), &lonely_network(), Carrier::Tcp).threads(threads()).context(CONTEXT);
    let member = Member { node: builder.engine("candle").start().await.expect("a node starts"), dir };
    let model = member.import(path, "candle", Parts::All).await;
    await_plan(&member.node, model).await;
    let candle = Asked::of(&member.node, model);
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
    tell(figures, &format!("candle_decode{suffix}_vs_llama_cpp"), "told", decode);
    tell(figures, &format!("candle_prefill512{suffix}_vs_llama_cpp"), "told", prefill);
    member.stop().await;
}
