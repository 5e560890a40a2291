//! The second half of `make bench`: our node beside llama.cpp's own server, on the same file, threads and prompts.
//!
//! The server is asked over HTTP on loopback, our node through the library: that is what a program would do with each.
//! Every round asks both once, in turn, each time another piece of the text; ratios are taken within a round, and the
//! median of the rounds is printed and added to the report. The path of the server's binary is the first argument;
//! `BENCH_PARTS` names the parts to measure (of `one guess many gap prefix hog split far overlap drift candle 1b`), all where it
//! is not set. `drift` has no other side: it counts how often answers that need not be exact differ from those that are; and the
//! other side of `candle` is our node with llama.cpp.

mod far;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::future::join_all;
use swarmllm_core::base::{ErrorKind, ModelId};
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{
    ChatMessage, ChatRequest, Codec, Delta, GenerateOptions, GenerateRequest, Generation, KvCache, Node, NodeBuilder,
    Parts, Prompt,
};
use swarmllm_tests::cluster::{Carrier, Member, await_plan, builder, join, lonely_network, stage_parts};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::prompts::{edits, harbour_log};
use swarmllm_tests::server::LlamaServer;
use swarmllm_tests::synthetic;
use swarmllm_tests::whole::Whole;
use tempfile::TempDir;

/// Positions of a session: the longest prompt and its answer fit.
const CONTEXT: u32 = 2304;
/// Sessions at once.
const SESSIONS: u32 = 8;
/// Tokens decoded for one figure, and the prompt before them.
const DECODE: u32 = 96;
const SHORT: usize = 64;
/// Rounds, unless `BENCH_ROUNDS` says otherwise.
const ROUNDS: usize = 5;

type Figures = BTreeMap<String, f64>;

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default).max(1)
}

/// Parts that are measured with the server beside, on each test model.
const WITH_SERVER: [&str; 10] = ["one", "guess", "drift", "candle", "many", "gap", "prefix", "hog", "split", "overlap"];

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

/// Seconds until the first token, and from it to each later one.
struct Times {
    first: f64,
    gaps: Vec<f64>,
    rest: f64,
    /// Tokens of the answer: fewer than asked for where the model ended it.
    tokens: u32,
    /// Seconds that all stages together compute for a token, in the median; 0 where nobody says.
    compute: f64,
}

impl Times {
    fn of(begun: Instant, came: &[Instant], tokens: u32) -> Self {
        let first = *came.first().expect("an answer has a token");
        let gaps = came.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let rest = (*came.last().unwrap_or(&first) - first).as_secs_f64();
        Times { first: (first - begun).as_secs_f64(), gaps, rest, tokens, compute: 0.0 }
    }

    /// Seconds of one decoded token.
    fn token(&self) -> f64 {
        self.rest / f64::from(self.tokens.max(2) - 1)
    }
}

/// llama.cpp's compute threads spin for some 200 ms after their last step: whoever is asked next gets quiet cores.
const PAUSE: Duration = Duration::from_millis(500);

/// Tokens with which the test models end an answer: kept out, as they are of the server's answers, so that all are of
/// full length.
const ENDS: [u32; 4] = [0, 1, 2, 106];

/// Someone who can be asked.
#[derive(Clone)]
enum Asked {
    Server(Arc<LlamaServer>),
    Ours { node: Node, model: ModelId, guess: bool, exact: bool, wire: Codec },
}

impl Asked {
    async fn ask(&self, prompt: &[u32], tokens: u32) -> Times {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        match self {
            Self::Server(server) => {
                let (server, prompt) = (server.clone(), prompt.to_vec());
                let came = tokio::task::spawn_blocking(move || server.complete(&prompt, tokens)).await;
                let came = came.expect("no panic");
                Times::of(begun, &came, came.len() as u32)
            }
            Self::Ours { node, model, guess, exact, wire } => {
                let mut sampling = SamplingParams::greedy();
                sampling.logit_bias = ENDS.map(|end| (end, SamplingParams::BAN)).into();
                let options = GenerateOptions {
                    max_tokens: Some(tokens),
                    sampling,
                    exact: *exact,
                    guess: *guess,
                    wire: *wire,
                    ..GenerateOptions::default()
                };
                let prompt = Prompt::Tokens(prompt.to_vec());
                let request = GenerateRequest { model: model.to_string(), prompt, options };
                read(node.generate(request).await.expect("the swarm answers"), begun).await
            }
        }
    }

    /// Tokens per second of several sessions together.
    async fn crowd(&self, prompts: &[Vec<u32>], tokens: u32) -> f64 {
        let begun = Instant::now();
        let answers = join_all(prompts.iter().map(|prompt| self.ask(prompt, tokens))).await;
        let tokens: u32 = answers.iter().map(|times| times.tokens).sum();
        // Each question begins with the pause.
        f64::from(tokens) / (begun.elapsed() - PAUSE).as_secs_f64()
    }
}

/// Reads an answer to its end.
async fn read(mut generation: Generation, begun: Instant) -> Times {
    let mut came = Vec::new();
    loop {
        match generation.next().await {
            Some(Ok(Delta::Text(_))) => came.push(Instant::now()),
            Some(Ok(Delta::Done(done))) => {
                came.push(Instant::now());
                if done.guessed_tokens > 0 {
                    println!("    {} of {} guesses were right", done.right_guesses, done.guessed_tokens);
                }
                let compute: u64 = done.route.iter().map(|stage| stage.decode_us).sum();
                return Times { compute: compute as f64 / 1e6, ..Times::of(begun, &came, done.completion_tokens) };
            }
            other => panic!("the answer broke off: {other:?}"),
        }
    }
}

/// The text that prompts are cut from, never twice the same piece.
struct Text {
    tokens: Vec<u32>,
    next: usize,
}

impl Text {
    fn cut(&mut self, length: usize) -> Vec<u32> {
        self.next = (self.next + 37) % (self.tokens.len() - length);
        self.tokens[self.next..self.next + length].to_vec()
    }
}

/// Both sides of a comparison.
struct Sides {
    server: Asked,
    crowd_server: Asked,
    ours: Asked,
}

impl Sides {
    async fn start(binary: &std::path::Path, path: &std::path::Path, name: &str) -> (Sides, Member) {
        let server = LlamaServer::start(binary, path, threads(), 1, CONTEXT);
        let crowd = LlamaServer::start(binary, path, threads(), SESSIONS, CONTEXT);
        let member = node(&lonely_network(), threads()).await;
        let model = member.import(path, name, Parts::All).await;
        await_plan(&member.node, model).await;
        let ours = Asked::Ours { node: member.node.clone(), model, guess: false, exact: false, wire: Codec::F32 };
        let sides = Sides { server: Asked::Server(server.into()), crowd_server: Asked::Server(crowd.into()), ours };
        (sides, member)
    }
}

async fn node(network: &str, threads: u32) -> Member {
    start(network, |builder| builder.threads(threads)).await
}

/// A node with the bench's settings and more.
async fn start(network: &str, more: impl Fn(NodeBuilder) -> NodeBuilder) -> Member {
    let dir = TempDir::new().expect("a temporary directory");
    let builder = builder(dir.path(), network, Carrier::Tcp).threads(threads()).context(CONTEXT).sessions(SESSIONS);
    Member { node: more(builder).start().await.expect("a node starts"), dir }
}

/// Adds the median of the rounds and prints it.
fn tell(figures: &mut Figures, name: &str, goal: &str, values: Vec<f64>) {
    let value = median(values);
    println!("{name:<34}{value:>9.3}   {goal}");
    figures.insert(name.to_owned(), value);
}

async fn one_session(sides: &Sides, text: &mut Text, figures: &mut Figures, suffix: &str) {
    let (mut decode, mut first) = (Vec::new(), Vec::new());
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        let prompt = text.cut(SHORT);
        let server = sides.server.ask(&prompt, DECODE).await;
        let ours = sides.ours.ask(&prompt, DECODE).await;
        // The first round loads stages and fills caches.
        if round > 0 {
            decode.push(server.token() / ours.token());
            first.push(ours.first / server.first);
        }
    }
    tell(figures, &format!("decode{suffix}_vs_server"), ">= 1", decode);
    tell(figures, &format!("ttft{suffix}_vs_server"), "<= 1", first);
    for length in [512, 2048] {
        let mut prefill = Vec::new();
        for _ in 0..number("BENCH_ROUNDS", ROUNDS).min(if length > 512 { 3 } else { ROUNDS }) {
            let prompt = text.cut(length);
            let server = sides.server.ask(&prompt, 2).await;
            prefill.push(server.first / sides.ours.ask(&prompt, 2).await.first);
        }
        tell(figures, &format!("prefill{length}{suffix}_vs_server"), ">= 1", prefill);
    }
    // The server is compiled for this very processor, our library for all of its kind.
    let native = ["decode", "prefill512"].map(|what| figures[&format!("{what}{suffix}_vs_server")]);
    tell(figures, &format!("portable_vs_native{suffix}"), ">= 0.95", vec![native[0].min(native[1])]);
}

async fn many_sessions(sides: &Sides, text: &mut Text, figures: &mut Figures) {
    let mut ratio = Vec::new();
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        let prompts: Vec<Vec<u32>> = (0..SESSIONS).map(|_| text.cut(SHORT)).collect();
        let server = sides.crowd_server.crowd(&prompts, DECODE).await;
        let ours = sides.ours.crowd(&prompts, DECODE).await;
        if round > 0 {
            println!("    8 sessions: {ours:.1} tok/s, the server {server:.1}");
            ratio.push(ours / server);
        }
    }
    tell(figures, "batch8_vs_server", ">= 1", ratio);
}

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
    gaps.sort_by(f64::total_cmp);
    let p95 = gaps.get(gaps.len() * 95 / 100).copied().unwrap_or(f64::INFINITY);
    p95 / median(idle.gaps)
}

/// The second of two prompts that share 512 tokens, over the first, in time to the first token.
async fn shared_prefix(asked: &Asked, text: &mut Text) -> f64 {
    let shared = text.cut(512);
    let with = |tail: Vec<u32>| [shared.clone(), tail].concat();
    let cold = asked.ask(&with(text.cut(16)), 2).await.first;
    tokio::time::sleep(Duration::from_millis(50)).await;
    asked.ask(&with(text.cut(16)), 2).await.first / cold
}

/// How much faster a text is repeated with one word changed, with guesses than without: for each of five requests.
async fn edited(ours: &Asked) -> Vec<f64> {
    let Asked::Ours { node, model, .. } = ours else { return Vec::new() };
    let mut speedups = Vec::new();
    for request in edits() {
        let token = async |guess| {
            let options = GenerateOptions {
                max_tokens: Some(DECODE),
                sampling: SamplingParams::greedy(),
                guess,
                ..GenerateOptions::default()
            };
            let messages = vec![ChatMessage { role: "user".to_owned(), content: request.clone() }];
            tokio::time::sleep(PAUSE).await;
            let begun = Instant::now();
            let chat = ChatRequest { model: model.to_string(), messages, options: options.clone() };
            let generation = match node.chat(chat).await {
                // The server takes this form where a model has none.
                Err(error) if error.kind() == ErrorKind::BadTemplate => {
                    let text = format!("<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n");
                    node.generate(GenerateRequest { model: model.to_string(), prompt: Prompt::Text(text), options })
                        .await
                }
                begun => begun,
            };
            read(generation.expect("the swarm answers"), begun).await.token()
        };
        let plain = token(false).await;
        speedups.push(plain / token(true).await);
    }
    speedups
}

/// Decoding while another thread uses one core all the time.
async fn beside_a_busy_core(sides: &Sides, text: &mut Text) -> f64 {
    let over = Arc::new(AtomicBool::new(false));
    let seen = over.clone();
    let hog = std::thread::spawn(move || {
        while !seen.load(Ordering::Relaxed) {
            std::hint::black_box((0..10_000u64).fold(0, |sum, value| sum ^ value.wrapping_mul(31)));
        }
    });
    let prompt = text.cut(SHORT);
    let server = sides.server.ask(&prompt, DECODE).await.token();
    let ours = sides.ours.ask(&prompt, DECODE).await.token();
    over.store(true, Ordering::Relaxed);
    hog.join().expect("no panic");
    println!("    beside a busy core: {:.2} ms a token, the server {:.2}", ours * 1e3, server * 1e3);
    server / ours
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
async fn overlap(model: TestModel, text: &mut Text, figures: &mut Figures) {
    let (members, id) = split_in_two(model, 1).await;
    let alone = node(&lonely_network(), 1).await;
    let whole = alone.import(&model.path(), model.name(), Parts::All).await;
    await_plan(&alone.node, whole).await;
    let single = Asked::Ours { node: alone.node.clone(), model: whole, guess: false, exact: false, wire: Codec::F32 };
    let split = Asked::Ours { node: members[0].node.clone(), model: id, guess: false, exact: false, wire: Codec::F32 };
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
async fn halves(sides: &Sides, model: TestModel, text: &mut Text, figures: &mut Figures) {
    let (members, id) = split_in_two(model, threads()).await;
    let coordinator = &members[0];
    let split =
        |exact| Asked::Ours { node: coordinator.node.clone(), model: id, guess: false, exact, wire: Codec::F32 };
    let Asked::Ours { node: whole, model: whole_id, .. } = &sides.ours else { return };
    let whole_exact =
        Asked::Ours { node: whole.clone(), model: *whole_id, guess: false, exact: true, wire: Codec::F32 };
    let (mut one, mut exact, mut eight) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        let prompt = text.cut(SHORT);
        let single = sides.ours.ask(&prompt, DECODE).await.token();
        let halves = split(false).ask(&prompt, DECODE).await.token();
        let prompt = text.cut(SHORT);
        let single_exact = whole_exact.ask(&prompt, DECODE).await.token();
        let halves_exact = split(true).ask(&prompt, DECODE).await.token();
        let prompts: Vec<Vec<u32>> = (0..SESSIONS).map(|_| text.cut(SHORT)).collect();
        let (together, apart) = (sides.ours.crowd(&prompts, DECODE).await, split(false).crowd(&prompts, DECODE).await);
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
async fn drift(ours: &Asked, path: &std::path::Path, text: &mut Text, figures: &mut Figures, suffix: &str) {
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
async fn candle(sides: &Sides, path: &std::path::Path, text: &mut Text, figures: &mut Figures, suffix: &str) {
    let dir = TempDir::new().expect("a temporary directory");
    let builder = builder(dir.path(), &lonely_network(), Carrier::Tcp).threads(threads()).context(CONTEXT);
    let member = Member { node: builder.engine("candle").start().await.expect("a node starts"), dir };
    let model = member.import(path, "candle", Parts::All).await;
    await_plan(&member.node, model).await;
    let candle = Asked::Ours { node: member.node.clone(), model, guess: false, exact: false, wire: Codec::F32 };
    let (mut decode, mut prefill) = (Vec::new(), Vec::new());
    for round in 0..=ROUNDS.min(3) {
        let prompt = text.cut(SHORT);
        let ours = sides.ours.ask(&prompt, DECODE / 2).await.token();
        let other = candle.ask(&prompt, DECODE / 2).await.token();
        let prompt = text.cut(512);
        let our_prefill = sides.ours.ask(&prompt, 2).await.first;
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

/// Bytes per second that all threads together read from memory: the best of several passes over more than caches hold.
fn read_bandwidth() -> f64 {
    const BYTES: usize = 1 << 30;
    let buffer = vec![1_u64; BYTES / size_of::<u64>()];
    let pass = |_| {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for part in buffer.chunks(buffer.len().div_ceil(threads() as usize)) {
                // Several sums at once, so that adding them up is not what takes the time.
                scope.spawn(move || {
                    let mut sums = [0_u64; 16];
                    for words in part.chunks_exact(sums.len()) {
                        sums.iter_mut().zip(words).for_each(|(sum, word)| *sum = sum.wrapping_add(*word));
                    }
                    std::hint::black_box(sums)
                });
            }
        });
        BYTES as f64 / begun.elapsed().as_secs_f64()
    };
    (0..5).map(pass).fold(0.0, f64::max)
}

/// A model of a usual size, where memory bandwidth rules.
async fn one_billion(binary: &std::path::Path, figures: &mut Figures) {
    let small = TestModel::SmolLm2.path();
    let path = synthetic::one_billion_q4_k(small.parent().expect("a file is in a directory"));
    let mut text = text_of(&small);
    let (sides, _member) = Sides::start(binary, &path, "synthetic-1b").await;
    // Of its matrices all are read for each token: the embedding is the output matrix too.
    let bytes = std::fs::metadata(&path).expect("the model is there").len() as f64;
    let (mut decode, mut prefill, mut share) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        let prompt = text.cut(SHORT);
        let server = sides.server.ask(&prompt, 32).await.token();
        let ours = sides.ours.ask(&prompt, 32).await.token();
        let prompt = text.cut(512);
        let server_prefill = sides.server.ask(&prompt, 2).await.first;
        let our_prefill = sides.ours.ask(&prompt, 2).await.first;
        if round > 0 {
            println!(
                "    decode: {:.1} ms a token, the server {:.1}; prefill of 512: {our_prefill:.2} s, {server_prefill:.2}",
                ours * 1e3,
                server * 1e3
            );
            decode.push(server / ours);
            prefill.push(server_prefill / our_prefill);
            share.push(bytes / ours / read_bandwidth());
        }
    }
    tell(figures, "decode_1b_q4k_of_bandwidth", "told", share);
    tell(figures, "decode_1b_q4k_vs_server", ">= 1", decode);
    tell(figures, "prefill512_1b_q4k_vs_server", ">= 1.3", prefill);
}

/// The parts that take three rounds.
async fn side_by_side(sides: &Sides, text: &mut Text, figures: &mut Figures) {
    let (mut ours, mut server, mut reuse, mut hog) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        if wanted("gap") {
            ours.push(under_prefill(&sides.ours, text).await);
            server.push(under_prefill(&sides.crowd_server, text).await);
        }
        if wanted("prefix") {
            reuse.push(shared_prefix(&sides.ours, text).await);
        }
        if wanted("hog") {
            hog.push(beside_a_busy_core(sides, text).await);
        }
    }
    let measured = [
        ("gap_under_prefill", "<= 2", ours),
        ("gap_under_prefill_of_server", "", server),
        ("prefix_reuse_fraction", "<= 0.05", reuse),
        ("hog_decode_vs_server", ">= 1.5", hog),
    ];
    for (name, goal, values) in measured.into_iter().filter(|(_, _, values)| !values.is_empty()) {
        tell(figures, name, goal, values);
    }
}

fn text_of(path: &std::path::Path) -> Text {
    let whole = Whole::load(path, threads());
    Text { tokens: whole.tokenize(&harbour_log(400)), next: 0 }
}

#[tokio::main]
async fn main() {
    let binary = PathBuf::from(std::env::args().nth(1).expect("the first argument is llama-server's path"));
    let mut figures = Figures::new();
    println!("{} threads, against llama.cpp's server; what is aimed at stands behind each figure", threads());
    if wanted("far") {
        let model = TestModel::SmolLm2;
        let mut text = text_of(&model.path());
        far::far(model, &mut text, &mut figures).await;
        far::narrow(model, &mut text, &mut figures).await;
    }
    let beside = WITH_SERVER.iter().any(|part| wanted(part));
    for (model, suffix) in [(TestModel::SmolLm2, ""), (TestModel::Gemma3, "_gemma3")].into_iter().filter(|_| beside) {
        let mut text = text_of(&model.path());
        let (sides, _member) = Sides::start(&binary, &model.path(), model.name()).await;
        if wanted("one") {
            one_session(&sides, &mut text, &mut figures, suffix).await;
        }
        if wanted("guess") {
            tell(&mut figures, &format!("ngram_edit{suffix}_speedup"), ">= 3", edited(&sides.ours).await);
        }
        if wanted("drift") {
            drift(&sides.ours, &model.path(), &mut text, &mut figures, suffix).await;
        }
        if wanted("candle") {
            candle(&sides, &model.path(), &mut text, &mut figures, suffix).await;
        }
        if model == TestModel::Gemma3 {
            continue;
        }
        if wanted("many") {
            many_sessions(&sides, &mut text, &mut figures).await;
        }
        side_by_side(&sides, &mut text, &mut figures).await;
        if wanted("split") {
            halves(&sides, model, &mut text, &mut figures).await;
        }
        if wanted("overlap") {
            overlap(model, &mut text, &mut figures).await;
        }
    }
    if wanted("1b") {
        one_billion(&binary, &mut figures).await;
    }
    report(&figures);
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
