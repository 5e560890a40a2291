//! Optimisations change how answers are computed, never which answers are allowed.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use swarmllm_core::base::{ErrorKind, ModelId};
use swarmllm_core::node::{
    Codec, Completion, Constraint, GenerateOptions, GenerateRequest, ImportOptions, KvType, Node, Parts, Prompt,
};
use swarmllm_tests::cluster::{
    Cluster, Member, THREADS, Transport, answer, await_plan, builder, greedy, join, stop_all, unique_network,
};
use swarmllm_tests::files::shards;
use swarmllm_tests::models::TestModel;
use swarmllm_tests::padded::padded;
use swarmllm_tests::prompts::harbour_log;
use swarmllm_tests::reference::ReferenceModel;
use swarmllm_tests::slow_link::delayed;
use swarmllm_tests::{eventually, in_time};
use tempfile::TempDir;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";

fn fast(tokens: u32) -> GenerateOptions {
    GenerateOptions { exact: false, ..greedy(tokens) }
}

async fn ask(node: &Node, model: ModelId, prompt: Prompt, options: GenerateOptions) -> Completion {
    let request = GenerateRequest { model: model.to_string(), prompt, options };
    in_time("an answer", async { node.generate(request).await?.finish().await }).await.expect("the swarm answers")
}

fn alike(one: &[u32], two: &[u32]) -> usize {
    one.iter().zip(two).take_while(|(one, two)| one == two).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_prefix_is_reused_with_identical_answers() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let whole = ReferenceModel::load(&MODEL.path(), THREADS);
    let log = whole.tokenize(&harbour_log(60));
    let (first, mut second) = (log[..700].to_vec(), log[..640].to_vec());
    second.extend(whole.tokenize(TEXT));
    let expected = whole.greedy(&second, 24);
    let idle = || cluster.hosts.iter().all(|host| host.node.status().sessions == 0);
    let cold = ask(cluster.node(), cluster.model, Prompt::Tokens(first.clone()), greedy(4)).await;
    assert_eq!(cold.cached_tokens, 0);
    eventually("the slots are free again", idle).await;
    // Exact: the one full chunk of 512 rows is cached, and the rest has the shapes of the plain run.
    let warm = ask(cluster.node(), cluster.model, Prompt::Tokens(second.clone()), greedy(24)).await;
    assert_eq!((warm.cached_tokens, &warm.tokens), (512, &expected));
    eventually("the slots are free again", idle).await;
    // KV of an exact session is not reused by a fast one, nor vice versa.
    let fast_one = ask(cluster.node(), cluster.model, Prompt::Tokens(second.clone()), fast(24)).await;
    assert_eq!(fast_one.cached_tokens, 0);
    eventually("the slots are free again", idle).await;
    // The answer is part of the cached text: the next turn of a conversation starts after it.
    let mut turn = [second.as_slice(), &fast_one.tokens].concat();
    turn.extend(whole.tokenize("And then?"));
    let next = ask(cluster.node(), cluster.model, Prompt::Tokens(turn), fast(4)).await;
    let kept = (second.len() + fast_one.tokens.len() - 1) as u32;
    assert!(next.cached_tokens >= kept - 16 && next.cached_tokens <= kept, "{} of {kept}", next.cached_tokens);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cached_kv_is_private_to_its_coordinator_and_evictable() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 1).await;
    let network = cluster.node().status().network;
    let other = Member::start(&network, Transport::Tcp).await;
    other.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    swarmllm_tests::cluster::join(&other.node, &cluster.hosts[0].node.addresses(), Transport::Tcp).await;
    await_plan(&other.node, cluster.model).await;
    let idle = || cluster.hosts[0].node.status().sessions == 0;
    let log = Prompt::Text(harbour_log(6));
    let first = ask(cluster.node(), cluster.model, log.clone(), fast(4)).await;
    eventually("the slot is free again", idle).await;
    let foreign = ask(&other.node, cluster.model, log.clone(), fast(4)).await;
    assert_eq!(foreign.cached_tokens, 0, "another coordinator does not hit the cache");
    eventually("the slot is free again", idle).await;
    let again = ask(cluster.node(), cluster.model, log.clone(), fast(4)).await;
    assert!(again.cached_tokens > 0 && again.tokens == first.tokens);
    eventually("the slot is free again", idle).await;
    // More texts than slots: each gets a slot, and the oldest is evicted.
    for number in 0..4 {
        ask(cluster.node(), cluster.model, Prompt::Text(format!("{number}. {}", harbour_log(3))), fast(2)).await;
        eventually("the slot is free again", idle).await;
    }
    assert_eq!(ask(cluster.node(), cluster.model, log, fast(2)).await.cached_tokens, 0);
    cluster.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batched_sessions_match_single_ones_up_to_rounding() {
    const SESSIONS: usize = 6;
    let dir = TempDir::new().expect("a temporary directory");
    let node = builder(dir.path(), &unique_network(), Transport::Tcp).sessions(SESSIONS as u32);
    let member = Member { node: node.start().await.expect("a node starts"), dir };
    let model = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&member.node, model).await;
    let texts: Vec<String> = (0..SESSIONS).map(|number| format!("Day {number} in the harbour. {TEXT}")).collect();
    let options = GenerateOptions { speculate: false, ..fast(32) };
    let asks = texts.iter().map(|text| ask(&member.node, model, Prompt::Text(text.clone()), options.clone()));
    let together: Vec<Completion> = futures::future::join_all(asks).await;
    let mut same = 0;
    for (text, shared) in texts.iter().zip(&together) {
        let alone = answer(&member.node, model, text, 32).await.expect("it answers");
        same += alike(&alone.tokens, &shared.tokens);
    }
    let share = same as f64 / (32 * SESSIONS) as f64;
    eprintln!("{:.1} % of the tokens before the first difference", 100.0 * share);
    assert!(share > 0.4, "rows were mixed up: {share}");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn speculation_on_repetitive_text_changes_no_token() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let line = "one two three four five six seven eight nine ten, ";
    // Short enough for one chunk in both modes: otherwise rounding differs before any speculation.
    let prompt = Prompt::Text(line.repeat(5));
    let exact = ask(cluster.node(), cluster.model, prompt.clone(), greedy(96)).await;
    let guessed = ask(cluster.node(), cluster.model, prompt, fast(96)).await;
    assert_eq!((exact.draft_tokens, exact.accepted_tokens), (0, 0), "exact answers use no speculation");
    assert!(guessed.accepted_tokens > 30, "{} of {}", guessed.accepted_tokens, guessed.draft_tokens);
    assert_eq!(guessed.tokens, exact.tokens, "rounding does not change a text with clear margins");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_prompt_does_not_stall_a_running_answer() {
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    let model = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&member.node, model).await;
    let options = GenerateOptions { speculate: false, ..fast(120) };
    let request =
        |prompt: String, options| GenerateRequest { model: model.to_string(), prompt: Prompt::Text(prompt), options };
    let mut running = member.node.generate(request(TEXT.to_owned(), options)).await.expect("it answers");
    running.next().await.expect("the answer continues").expect("the answer continues");
    let begun = Instant::now();
    let long = member.node.generate(request(harbour_log(40), fast(1))).await.expect("it answers");
    let long = tokio::spawn(async move { long.finish().await.map(|done| (done, begun.elapsed())) });
    let (mut last, mut worst) = (Instant::now(), Duration::ZERO);
    while let Some(Ok(_)) = running.next().await {
        if !long.is_finished() {
            worst = worst.max(last.elapsed());
        }
        last = Instant::now();
    }
    let (done, prefill) = in_time("the long prompt", long).await.expect("no panic").expect("it answers");
    assert!(done.prompt_tokens > 600, "{} tokens are a long prompt", done.prompt_tokens);
    assert!(worst < prefill / 3, "the answer stalled for {worst:?} of a prefill of {prefill:?}");
    member.stop().await;
}

/// The share of tokens before the first difference, over several texts.
async fn likeness(model: TestModel, wire: Codec) -> f64 {
    const TEXTS: usize = 6;
    const TOKENS: u32 = 32;
    let cluster = Cluster::start(model, Transport::Tcp, 3).await;
    let (plain, mut same) = (GenerateOptions { speculate: false, ..fast(TOKENS) }, 0);
    for number in 0..TEXTS {
        let prompt = || Prompt::Text(format!("Day {number} in the harbour. {TEXT}"));
        let rounded = GenerateOptions { wire, ..plain.clone() };
        let other = ask(cluster.node(), cluster.model, prompt(), rounded).await;
        let one = ask(cluster.node(), cluster.model, prompt(), plain.clone()).await;
        assert_eq!(
            (other.cached_tokens, one.cached_tokens),
            (0, 0),
            "KV of rounded states is not taken for the other's"
        );
        same += alike(&one.tokens, &other.tokens);
    }
    cluster.stop().await;
    same as f64 / (TEXTS * TOKENS as usize) as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn rounded_states_barely_change_answers_and_are_never_exact() {
    for model in [MODEL, TestModel::Gemma3] {
        for wire in [Codec::Bf16, Codec::Int8] {
            let share = likeness(model, wire).await;
            eprintln!(
                "{}, {}: {:.0} % of the tokens before the first difference",
                model.name(),
                wire.name(),
                100.0 * share
            );
            // Rounding differs after about 25 tokens; corrupt values differ at the first.
            assert!(share > 0.15, "values are corrupt: {share}");
        }
    }
    let exact = GenerateOptions { wire: Codec::Int8, ..greedy(4) };
    assert_eq!(exact.check().map_err(|fault| fault.kind()), Err(ErrorKind::InvalidArgument));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_keeps_8_bits_answers_nearly_the_same_and_refuses_what_is_to_be_exact() {
    let directory = TempDir::new().expect("a directory");
    let small = builder(directory.path(), &unique_network(), Transport::Tcp).kv(KvType::Q8).start().await;
    let small = Member { node: small.expect("a node starts"), dir: directory };
    let full = Member::start(&unique_network(), Transport::Tcp).await;
    let model = small.import(&MODEL.path(), "smol", Parts::All).await;
    assert_eq!(full.import(&MODEL.path(), "smol", Parts::All).await, model);
    let prompt = || Prompt::Text("The lighthouse keeper wrote: today the".to_owned());
    let exact = GenerateOptions { exact: true, ..fast(4) };
    let request = GenerateRequest { model: model.to_string(), prompt: prompt(), options: exact };
    let refused = small.node.generate(request).await.map(drop);
    assert_eq!(refused.expect_err("8 bits are not exact").kind(), ErrorKind::Unsupported);
    let (one, other) =
        (ask(&small.node, model, prompt(), fast(16)).await, ask(&full.node, model, prompt(), fast(16)).await);
    assert!(alike(&one.tokens, &other.tokens) >= 4, "{} and {}", one.text, other.text);
    assert!(small.node.status().memory_used < full.node.status().memory_used);
    small.stop().await;
    full.stop().await;
}

/// One-way delay between distant nodes: dominates the time of a token even on a busy machine.
const WAY: Duration = Duration::from_millis(150);

/// A host of `gguf`, and a distant coordinator without layers that has the draft model.
async fn far_apart(gguf: &Path, draft: &Path) -> (Member, Member, ModelId, ModelId) {
    let network = unique_network();
    let (host, asker) = (Member::start(&network, Transport::Tcp).await, Member::start(&network, Transport::Tcp).await);
    host.import(gguf, "far", Parts::All).await;
    let id = asker.import(gguf, "far", Parts::Coordinator).await;
    let draft = asker.import(draft, "draft", Parts::All).await;
    join(&asker.node, &[delayed(&host.node.addresses()[0], WAY)], Transport::Tcp).await;
    await_plan(&asker.node, id).await;
    (host, asker, id, draft)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_model_saves_steps_with_either_vocabulary_padded() {
    let dir = TempDir::new().expect("a directory");
    let (short, long) = (MODEL.path(), padded(&MODEL.path(), 64, dir.path()));
    let prompt = || Prompt::Text(TEXT.to_owned());
    for (model, draft) in [(&short, &long), (&long, &short)] {
        let (host, asker, model, draft) = far_apart(model, draft).await;
        let with_logprobs = || GenerateOptions { logprobs: Some(1), ..fast(16) };
        let plain = ask(&asker.node, model, prompt(), GenerateOptions { speculate: false, ..with_logprobs() }).await;
        let with = || GenerateOptions { draft: Some(draft.to_string()), ..with_logprobs() };
        let drafted = ask(&asker.node, model, prompt(), with()).await;
        // The draft model is the model itself, so every draft token is accepted up to rounding.
        let same = alike(&plain.tokens, &drafted.tokens);
        assert!(same >= 12, "the same but for rounding: {} and {}", plain.text, drafted.text);
        assert_eq!(drafted.completion_tokens, plain.completion_tokens);
        let (made, right) = (drafted.draft_tokens, drafted.accepted_tokens);
        assert!(made >= 1 && right * 2 >= made, "{right} of {made}");
        let likely = |done: &Completion| done.logprobs.clone().expect("they were asked for");
        for (one, two) in likely(&plain).iter().zip(&likely(&drafted)).take(same) {
            assert!((one.chosen.logprob - two.chosen.logprob).abs() < 0.1, "{one:?} {two:?}");
        }
        // Cancelled within a draft window; the next answer is unaffected.
        let request = GenerateRequest { model: model.to_string(), prompt: prompt(), options: with() };
        let mut cut = asker.node.generate(request).await.expect("the swarm answers");
        cut.next().await.expect("a first piece").expect("the swarm answers");
        drop(cut);
        eventually("the session ends", || host.node.status().sessions == 0).await;
        let again = ask(&asker.node, model, prompt(), with()).await;
        assert!(alike(&plain.tokens, &again.tokens) >= 12, "{}", again.text);
        stop_all([host, asker]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incompatible_draft_model_is_refused() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let node = cluster.node();
    let prompt = || Prompt::Text(TEXT.to_owned());
    let with = |draft: &str| GenerateOptions { draft: Some(draft.to_owned()), ..fast(24) };
    let refused = |options| async move {
        let request = GenerateRequest { model: cluster.model.to_string(), prompt: prompt(), options };
        node.generate(request).await.map(|_| ()).expect_err("it does not fit").kind()
    };
    assert_eq!(refused(with("no-such-model")).await, ErrorKind::ModelNotFound);
    let exact = GenerateOptions { exact: true, ..with("smol") };
    assert_eq!(refused(exact).await, ErrorKind::InvalidArgument);
    let form = Some(Constraint::Regex("[a-z ]*".to_owned()));
    let formed = GenerateOptions { constraint: form, ..with("smol") };
    assert_eq!(refused(formed).await, ErrorKind::InvalidArgument, "no speculation under a constraint");
    let parts = |parts| ImportOptions { parts: Some(vec![parts]), ..ImportOptions::default() };
    let gemma = TestModel::Gemma3.path();
    let other = node.import(&gemma, parts(Parts::Coordinator)).await.expect("it is imported").id;
    assert_eq!(refused(with(&other.to_string())).await, ErrorKind::InvalidArgument, "another vocabulary");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_draft_model_fails_only_its_own_request() {
    let dir = TempDir::new().expect("a directory");
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    let model = member.import(&MODEL.path(), "target", Parts::All).await;
    let before: Vec<PathBuf> = shards(member.dir.path()).into_iter().map(|(path, _)| path).collect();
    let draft = member.import(&padded(&MODEL.path(), 64, dir.path()), "draft", Parts::All).await;
    let mut of_draft = shards(member.dir.path());
    of_draft.retain(|(path, _)| !before.contains(path));
    // The shard of a middle layer: all layers have the same size, below the embedding and above the small shards.
    std::fs::write(&of_draft[of_draft.len() / 2].0, [0; 64]).expect("it can be written");
    let request = |draft| GenerateRequest {
        model: model.to_string(),
        prompt: Prompt::Text(TEXT.to_owned()),
        options: GenerateOptions { draft, ..fast(4) },
    };
    let fault = member.node.generate(request(Some(draft.to_string()))).await.map(|_| ()).expect_err("it is damaged");
    assert!([ErrorKind::ShardCorrupt, ErrorKind::ShardMissing].contains(&fault.kind()), "{fault:?}");
    let done = member.node.generate(request(None)).await.expect("the node answers").finish().await.expect("to its end");
    assert_eq!(done.completion_tokens, 4);
    member.stop().await;
}
