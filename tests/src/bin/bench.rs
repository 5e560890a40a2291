//! `make bench`: the cost of splitting a model, against a bare llama.cpp loop over the original file in the same run.
//!
//! Each round first alternates between the bare loop and the single node, then measures every other arrangement once, so
//! that background load affects all equally. Ratios and differences are computed within a round; the median over rounds is
//! printed and written as JSON.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use swarmllm_core::base::{LayerRange, ModelId, NodeId};
use swarmllm_core::engine::CutRules;
use swarmllm_core::node::{Delta, GenerateRequest, Node, Parts, Prompt};
use swarmllm_core::pipeline::plan::{Candidate, PlanRequest, plan};
use swarmllm_tests::cluster::{
    CONTEXT, Cluster, Member, SHUTDOWN_DEADLINE, Transport, await_plan, builder, greedy, join, stage_parts,
    unique_network,
};
use swarmllm_tests::eventually;
use swarmllm_tests::models::TestModel;
use swarmllm_tests::process::{Process, ProcessCluster};
use swarmllm_tests::prompts::harbour_log;
use swarmllm_tests::reference::ReferenceModel;
use tempfile::TempDir;

/// Tokens decoded per measurement.
const DECODE: u32 = 128;
/// Prompt length of the decode measurement.
const SHORT: usize = 64;
/// Prompt length of the prefill measurement.
const PREFILL: usize = 512;
/// Default number of rounds; `BENCH_ROUNDS` overrides it.
const ROUNDS: usize = 7;
/// Turns of the bare loop and of the single node in one round.
const TURNS: usize = 3;
/// Number of timed node starts.
const STARTS: usize = 9;
/// Time for an idle node to settle before its memory is read.
const SETTLE: Duration = Duration::from_secs(2);

/// Measurements of one arrangement in one round, in seconds.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Time to first token with a prompt of [`PREFILL`] tokens.
    prefill: f64,
    /// Time to first token with a prompt of [`SHORT`] tokens.
    first: f64,
    /// Time per decoded token.
    token: f64,
    /// Compute of all stages per decoded token; the rest is communication.
    compute: f64,
}

/// The prompts as tokens.
struct Work {
    short: Vec<u32>,
    long: Vec<u32>,
}

/// A measured implementation.
enum Runner {
    Bare,
    Swarm { node: Node, model: ModelId },
}

/// A named arrangement and the owner of its resources.
struct Arrangement {
    name: String,
    runner: Runner,
    _alive: Box<dyn std::any::Any>,
}

fn threads() -> u32 {
    let given = std::env::var("BENCH_THREADS").ok().and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32))
}

/// The measured model: the small one unless `BENCH_MODEL` is set.
fn measured() -> TestModel {
    let named = |name: String| {
        let known = [TestModel::Gemma3, TestModel::OneBillion].into_iter().find(|model| model.name() == name);
        known.unwrap_or_else(|| panic!("BENCH_MODEL is {name}; use gemma3 or 1b"))
    };
    std::env::var("BENCH_MODEL").map_or(TestModel::SmolLm2, named)
}

fn rounds() -> usize {
    std::env::var("BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS).max(1)
}

/// The median of each measurement.
fn middle(turns: &[Sample]) -> Sample {
    let of = |figure: fn(&Sample) -> f64| median(turns.iter().map(figure).collect());
    Sample {
        prefill: of(|turn| turn.prefill),
        first: of(|turn| turn.first),
        token: of(|turn| turn.token),
        compute: of(|turn| turn.compute),
    }
}

fn bare(whole: &ReferenceModel, work: &Work) -> Sample {
    let mut session = whole.session(CONTEXT);
    let start = Instant::now();
    session.feed(&work.long);
    let prefill = start.elapsed().as_secs_f64();
    session.clear();
    let start = Instant::now();
    let mut next = session.feed(&work.short);
    let first = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for _ in 1..DECODE {
        next = session.feed(&[next]);
    }
    let token = start.elapsed().as_secs_f64() / f64::from(DECODE - 1);
    Sample { prefill, first, token, compute: token }
}

/// Time to the first text, time from there to the end, and compute of a decode step in all stages.
async fn generate(node: &Node, model: ModelId, prompt: &[u32], tokens: u32) -> (Duration, Duration, Duration) {
    let prompt = Prompt::Tokens(prompt.to_vec());
    let start = Instant::now();
    let request = GenerateRequest { model: model.to_string(), prompt, options: greedy(tokens) };
    let mut generation = node.generate(request).await.expect("the swarm answers");
    let mut first = None;
    loop {
        match generation.next().await {
            Some(Ok(Delta::Text(_))) => drop(first.get_or_insert_with(Instant::now)),
            Some(Ok(Delta::Done(completion))) => {
                assert_eq!(completion.completion_tokens, tokens, "the answer has full length");
                let first = first.expect("the answer has text");
                let compute = completion.route.iter().map(|stage| stage.decode_us).sum();
                return (first - start, first.elapsed(), Duration::from_micros(compute));
            }
            other => panic!("the answer broke off: {other:?}"),
        }
    }
}

async fn swarm(node: &Node, model: ModelId, work: &Work) -> Sample {
    let (prefill, ..) = generate(node, model, &work.long, 2).await;
    let (first, rest, compute) = generate(node, model, &work.short, DECODE).await;
    let token = rest.as_secs_f64() / f64::from(DECODE - 1);
    Sample { prefill: prefill.as_secs_f64(), first: first.as_secs_f64(), token, compute: compute.as_secs_f64() }
}

async fn member(network: &str, transport: Transport) -> Member {
    let dir = TempDir::new().expect("a temporary directory");
    let node = builder(dir.path(), network, transport).threads(threads()).start().await.expect("a node starts");
    Member { node, dir }
}

async fn single() -> Arrangement {
    let member = member(&unique_network(), Transport::Tcp).await;
    let model = member.import(&measured().path(), measured().name(), Parts::All).await;
    await_plan(&member.node, model).await;
    let runner = Runner::Swarm { node: member.node.clone(), model };
    Arrangement { name: "single".into(), runner, _alive: Box::new(member) }
}

/// A coordinator without layers and `stages` hosts, all in this process.
async fn split(stages: u32, transport: Transport) -> Arrangement {
    let network = unique_network();
    let coordinator = member(&network, transport).await;
    let model = coordinator.import(&measured().path(), measured().name(), Parts::Coordinator).await;
    let cut = measured().cut(stages);
    let mut hosts = Vec::new();
    for index in 0..cut.len() {
        let host = member(&network, transport).await;
        host.import(&measured().path(), measured().name(), stage_parts(&cut, index)).await;
        join(&coordinator.node, &host.node.addresses(), transport).await;
        hosts.push(host);
    }
    await_plan(&coordinator.node, model).await;
    let runner = Runner::Swarm { node: coordinator.node.clone(), model };
    let name = format!("split{stages}_{}", transport.name());
    Arrangement { name, runner, _alive: Box::new(Cluster { coordinator, hosts, model, cut }) }
}

/// Like [`split`], with one process per host.
async fn split_processes(stages: u32, transport: Transport) -> Arrangement {
    let coordinator = member(&unique_network(), transport).await;
    let cluster = ProcessCluster::start_with(coordinator, measured(), transport, stages, threads()).await;
    let runner = Runner::Swarm { node: cluster.coordinator.node.clone(), model: cluster.model };
    Arrangement { name: format!("split{stages}_{}_processes", transport.name()), runner, _alive: Box::new(cluster) }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

/// Median over rounds of `figure(sample, reference)`.
fn over(samples: &[Sample], reference: &[Sample], figure: impl Fn(&Sample, &Sample) -> f64) -> f64 {
    median(samples.iter().zip(reference).map(|(sample, reference)| figure(sample, reference)).collect())
}

fn report(all: &[(String, Vec<Sample>)]) -> BTreeMap<String, f64> {
    let of = |name: &str| all.iter().find(|(known, _)| known == name).map(|(_, samples)| samples.as_slice());
    let (bare, single) = (of("bare").expect("measured"), of("single").expect("measured"));
    let mut figures = BTreeMap::new();
    println!(
        "\n{:<24}{:>14}{:>14}{:>12}{:>10}{:>10}{:>10}{:>12}{:>12}",
        "", "prefill tok/s", "decode tok/s", "first ms", "prefill", "decode", "first", "added ms", "on the way"
    );
    for (name, samples) in all {
        let prefill = over(samples, samples, |sample, _| PREFILL as f64 / sample.prefill);
        let decode = over(samples, samples, |sample, _| 1.0 / sample.token);
        let first = over(samples, samples, |sample, _| sample.first * 1e3);
        let ratios = [
            ("prefill512", over(samples, bare, |sample, bare| bare.prefill / sample.prefill)),
            ("decode", over(samples, bare, |sample, bare| bare.token / sample.token)),
            ("first_token", over(samples, bare, |sample, bare| bare.first / sample.first)),
        ];
        let added = over(samples, single, |sample, single| (sample.token - single.token) * 1e3);
        let communication = over(samples, samples, |sample, _| (sample.token - sample.compute) * 1e3);
        println!(
            "{name:<24}{prefill:>14.1}{decode:>14.1}{first:>12.2}{:>10.3}{:>10.3}{:>10.3}{added:>12.3}{communication:>12.3}",
            ratios[0].1, ratios[1].1, ratios[2].1
        );
        figures.insert(format!("prefill512_{name}_tokens_per_second"), prefill);
        figures.insert(format!("decode_{name}_tokens_per_second"), decode);
        figures.insert(format!("first_token_{name}_ms"), first);
        if name != "bare" {
            figures.extend(ratios.map(|(what, ratio)| (format!("{what}_{name}_ratio"), ratio)));
        }
        if name.starts_with("split") {
            figures.insert(format!("{name}_added_ms"), added);
            figures.insert(format!("{name}_on_the_way_ms"), communication);
        }
    }
    println!("prefill, decode, first: ratio to the bare loop (1 is as fast); added: per token over the single node");
    println!("on the way: time of a token without the compute of stages");
    figures
}

/// Start times of a node without a model, as a library and as a process, and the resident memory of the process.
async fn empty_node(figures: &mut BTreeMap<String, f64>) {
    let (mut starts, mut processes, mut resident) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..STARTS {
        let dir = TempDir::new().expect("a temporary directory");
        let begin = Instant::now();
        let node = builder(dir.path(), &unique_network(), Transport::Tcp).start().await.expect("a node starts");
        starts.push(begin.elapsed().as_secs_f64() * 1e3);
        node.shutdown(SHUTDOWN_DEADLINE).await;
        let dir = TempDir::new().expect("a temporary directory");
        let mut process = Process::start(dir.path(), &unique_network(), Transport::Tcp, &[]);
        processes.push(process.started_in.as_secs_f64() * 1e3);
        if resident.len() < STARTS / 3 {
            tokio::time::sleep(SETTLE).await;
            resident.extend(process.resident_kib().map(|kib| kib as f64 / 1024.0));
        }
        process.terminate();
    }
    let all = [("node_start_in_process_ms", starts), ("node_start_ms", processes), ("node_idle_mib", resident)];
    for (name, values) in all.into_iter().filter(|(_, values)| !values.is_empty()) {
        let value = median(values);
        println!("{name:<28}{value:>10.1}");
        figures.insert(name.to_owned(), value);
    }
}

/// Bytes over the loopback interface so far, if the system reports them.
fn loopback_bytes() -> Option<u64> {
    let table = std::fs::read_to_string("/proc/net/dev").ok()?;
    let line = table.lines().find_map(|line| line.trim().strip_prefix("lo:").map(str::to_owned))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Idle traffic of twenty nodes with one bootstrap node that has a model.
async fn idle_swarm(figures: &mut BTreeMap<String, f64>) {
    const NODES: usize = 20;
    const LISTEN: Duration = Duration::from_secs(30);
    let network = unique_network();
    let hub = Member::start(&network, Transport::Tcp).await;
    hub.import(&measured().path(), measured().name(), Parts::Coordinator).await;
    let mut members = Vec::new();
    for _ in 1..NODES {
        let dir = TempDir::new().expect("a temporary directory");
        let builder = builder(dir.path(), &network, Transport::Tcp).bootstrap(vec![hub.node.addresses()[0].clone()]);
        members.push((builder.start().await.expect("a node starts"), dir));
    }
    eventually("all nodes are connected", || {
        hub.node.peers().iter().filter(|peer| peer.connected).count() == NODES - 1
    })
    .await;
    tokio::time::sleep(5 * SETTLE).await;
    let Some(before) = loopback_bytes() else { return };
    tokio::time::sleep(LISTEN).await;
    let said = loopback_bytes().unwrap_or(before) - before;
    let value = said as f64 / LISTEN.as_secs_f64() / NODES as f64;
    println!("{:<28}{value:>10.1}", "idle_bytes_per_s");
    figures.insert("idle_bytes_per_s".to_owned(), value);
    for (node, _dir) in members {
        node.shutdown(SHUTDOWN_DEADLINE).await;
    }
    hub.stop().await;
}

/// Time of a plan over ten thousand nodes with ten of eighty layers each, at varied speeds and distances.
fn large_swarm(figures: &mut BTreeMap<String, f64>) {
    const NODES: u32 = 10_000;
    const LAYERS: u32 = 80;
    const HELD: u32 = 10;
    const TOLD: u32 = 16;
    let candidate = |index: u32| {
        let mut node = [0; 32];
        node[..4].copy_from_slice(&index.to_le_bytes());
        // Scattered by a multiplicative hash, the same in every run.
        let chance = |what: u32| index.wrapping_mul(2_654_435_761).rotate_left(what) >> 8;
        let start = chance(1) % (LAYERS - HELD + 1);
        Candidate {
            node: NodeId(node),
            layers: vec![LayerRange::new(start, start + HELD)],
            head: start + HELD == LAYERS,
            rtt_us: chance(5) % 100_000,
            ns_per_unit: u64::from(chance(9) % 100_000),
            free_memory: u64::from(chance(13) % 16) << 30,
            loaded: Vec::new(),
        }
    };
    let candidates: Vec<Candidate> = (0..NODES).map(candidate).collect();
    // Each node reports the maximum number of round-trip times.
    let near = |index: u32| {
        let others = (0..TOLD).map(|other| (index + 1 + other * (other + 1)) % NODES);
        let mut reported: Vec<_> = others.map(|other| (candidates[other as usize].node, index % 50_000 + 1)).collect();
        reported.sort_unstable();
        reported
    };
    let near: HashMap<NodeId, Vec<(NodeId, u32)>> =
        candidates.iter().zip(0..).map(|(candidate, index)| (candidate.node, near(index))).collect();
    let reported = near.iter().map(|(node, list)| (*node, &list[..])).collect();
    let cuts = CutRules::any();
    let (memory, weight) =
        (|range: LayerRange, _| u64::from(range.len()) << 30, |range: LayerRange, _| range.len().into());
    let request = PlanRequest {
        model: ModelId([1; 32]),
        layers: LAYERS,
        cuts: &cuts,
        candidates: &candidates,
        memory: &memory,
        weight: &weight,
        round_trips: &reported,
    };
    let mut times = Vec::new();
    for _ in 0..STARTS {
        let begin = Instant::now();
        let plan = plan(&request).expect("every layer has many holders");
        times.push(begin.elapsed().as_secs_f64() * 1e3);
        assert!(plan.stages.len() >= (LAYERS / HELD) as usize);
    }
    let value = median(times);
    println!("{:<28}{value:>10.1}", "plan_10000_nodes_ms");
    figures.insert("plan_10000_nodes_ms".to_owned(), value);
}

#[tokio::main]
async fn main() {
    let whole = ReferenceModel::load(&measured().path(), threads());
    let mut long = whole.tokenize(&harbour_log(60));
    assert!(long.len() >= PREFILL, "the log is long enough for the prompt");
    long.truncate(PREFILL);
    let work = Work { short: long[..SHORT].to_vec(), long };
    let bare_loop = Arrangement { name: "bare".into(), runner: Runner::Bare, _alive: Box::new(()) };
    let mut arrangements = vec![bare_loop, single().await];
    for stages in [2, 3] {
        for transport in Transport::ALL {
            arrangements.push(split(stages, transport).await);
        }
    }
    arrangements.push(split_processes(2, Transport::Tcp).await);
    let mut all: Vec<(String, Vec<Sample>)> = arrangements.iter().map(|one| (one.name.clone(), Vec::new())).collect();
    println!("{} threads, {} rounds and one to warm up, {}", threads(), rounds(), measured().name());
    for round in 0..=rounds() {
        // The bare loop and the single node alternate, so that their difference stands out from noise.
        let mut turns = vec![Vec::new(); arrangements.len()];
        let order = std::iter::repeat_n([0, 1], TURNS).flatten().chain(2..arrangements.len());
        for index in order {
            turns[index].push(match &arrangements[index].runner {
                Runner::Bare => bare(&whole, &work),
                Runner::Swarm { node, model } => swarm(node, *model, &work).await,
            });
        }
        // The first round loads stages and fills caches.
        if round > 0 {
            all.iter_mut().zip(&turns).for_each(|((_, samples), turns)| samples.push(middle(turns)));
        }
    }
    let mut figures = report(&all);
    drop(arrangements);
    empty_node(&mut figures).await;
    idle_swarm(&mut figures).await;
    large_swarm(&mut figures);
    let path = std::env::var_os("BENCH_JSON").map_or_else(|| PathBuf::from("target/bench.json"), PathBuf::from);
    let json = serde_json::to_string_pretty(&figures).expect("figures are plain numbers");
    std::fs::write(&path, json + "\n").expect("the report can be written");
    println!("written to {}", path.display());
}
