//! What makes answers fast changes how they are computed, never what they may say.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use swarmllm_core::base::{ErrorKind, ModelId};
use swarmllm_core::node::{
    Codec, Completion, Constraint, GenerateOptions, GenerateRequest, ImportOptions, KvCache, Node, Parts, Prompt,
};
use swarmllm_tests::cluster::{
    Carrier, Cluster, Member, THREADS, answer, await_plan, builder, greedy, join, lonely_network, stop_all,
};
use swarmllm_tests::files::shards;
use swarmllm_tests::models::TestModel;
use swarmllm_tests::padded::padded;
use swarmllm_tests::prompts::harbour_log;
use swarmllm_tests::relay::delayed;
use swarmllm_tests::whole::Whole;
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
async fn a_prompt_that_begins_alike_is_not_computed_again_and_answered_bit_by_bit_as_if_it_were() {
    let cluster = Cluster::start(MODEL, Carrier::Tcp, 2).await;
    let whole = Whole::load(&MODEL.path(), THREADS);
    let log = whole.tokenize(&harbour_log(60));
    let (first, mut second) = (log[..700].to_vec(), log[..640].to_vec());
    second.extend(whole.tokenize(TEXT));
    let expected = whole.greedy(&second, 24);
    let idle = || cluster.hosts.iter().all(|host| host.node.status().sessions == 0);
    let cold = ask(cluster.node(), cluster.model, Prompt::Tokens(first.clone()), greedy(4)).await;
    assert_eq!(cold.cached_tokens, 0);
    eventually("the slots are free again", idle).await;
    // Exact: the one whole chunk of 512 rows is there, and the rest has the shape of the plain run.
    let warm = ask(cluster.node(), cluster.model, Prompt::Tokens(second.clone()), greedy(24)).await;
    assert_eq!((warm.cached_tokens, &warm.tokens), (512, &expected));
    eventually("the slots are free again", idle).await;
    // What an exact session left is not a fast one's, nor the other way round.
    let fast_one = ask(cluster.node(), cluster.model, Prompt::Tokens(second.clone()), fast(24)).await;
    assert_eq!(fast_one.cached_tokens, 0);
    eventually("the slots are free again", idle).await;
    // The answer belongs to the text that is kept: the next turn of a conversation begins behind it.
    let mut turn = [second.as_slice(), &fast_one.tokens].concat();
    turn.extend(whole.tokenize("And then?"));
    let next = ask(cluster.node(), cluster.model, Prompt::Tokens(turn), fast(4)).await;
    let kept = (second.len() + fast_one.tokens.len() - 1) as u32;
    assert!(next.cached_tokens >= kept - 16 && next.cached_tokens <= kept, "{} of {kept}", next.cached_tokens);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kv_is_kept_for_its_own_coordinator_only_and_gives_way_to_others() {
    let cluster = Cluster::start(MODEL, Carrier::Tcp, 1).await;
    let network = cluster.node().status().network;
    let other = Member::start(&network, Carrier::Tcp).await;
    other.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    swarmllm_tests::cluster::join(&other.node, &cluster.hosts[0].node.addresses(), Carrier::Tcp).await;
    await_plan(&other.node, cluster.model).await;
    let idle = || cluster.hosts[0].node.status().sessions == 0;
    let log = Prompt::Text(harbour_log(6));
    let first = ask(cluster.node(), cluster.model, log.clone(), fast(4)).await;
    eventually("the slot is free again", idle).await;
    let foreign = ask(&other.node, cluster.model, log.clone(), fast(4)).await;
    assert_eq!(foreign.cached_tokens, 0, "a stranger learns nothing of what was asked before");
    eventually("the slot is free again", idle).await;
    let again = ask(cluster.node(), cluster.model, log.clone(), fast(4)).await;
    assert!(again.cached_tokens > 0 && again.tokens == first.tokens);
    eventually("the slot is free again", idle).await;
    // More texts than slots: each finds room, and the oldest is gone.
    for number in 0..4 {
        ask(cluster.node(), cluster.model, Prompt::Text(format!("{number}. {}", harbour_log(3))), fast(2)).await;
        eventually("the slot is free again", idle).await;
    }
    assert_eq!(ask(cluster.node(), cluster.model, log, fast(2)).await.cached_tokens, 0);
    cluster.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_that_share_steps_say_what_each_says_alone_up_to_rounding() {
    const SESSIONS: usize = 6;
    let dir = TempDir::new().expect("a temporary directory");
    let node = builder(dir.path(), &lonely_network(), Carrier::Tcp).sessions(SESSIONS as u32);
    let member = Member { node: node.start().await.expect("a node starts"), dir };
    let model = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&member.node, model).await;
    let texts: Vec<String> = (0..SESSIONS).map(|number| format!("Day {number} in the harbour. {TEXT}")).collect();
    let options = GenerateOptions { guess: false, ..fast(32) };
    let asks = texts.iter().map(|text| ask(&member.node, model, Prompt::Text(text.clone()), options.clone()));
    let together: Vec<Completion> = futures::future::join_all(asks).await;
    let mut same = 0;
    for (text, shared) in texts.iter().zip(&together) {
        let alone = answer(&member.node, model, text, 32).await.expect("it answers");
        same += alike(&alone.tokens, &shared.tokens);
    }
    let share = same as f64 / (32 * SESSIONS) as f64;
    eprintln!("{:.1} % of the tokens before the first difference", 100.0 * share);
    assert!(share > 0.4, "rows went astray: {share}");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_repeats_itself_is_guessed_and_said_as_without_guesses() {
    let cluster = Cluster::start(MODEL, Carrier::Tcp, 2).await;
    let line = "one two three four five six seven eight nine ten, ";
    // Short enough to be one chunk in either mode: else rounding differs before anything is guessed.
    let prompt = Prompt::Text(line.repeat(5));
    let exact = ask(cluster.node(), cluster.model, prompt.clone(), greedy(96)).await;
    let guessed = ask(cluster.node(), cluster.model, prompt, fast(96)).await;
    assert_eq!((exact.guessed_tokens, exact.right_guesses), (0, 0), "an exact answer is never guessed");
    assert!(guessed.right_guesses > 30, "{} of {}", guessed.right_guesses, guessed.guessed_tokens);
    assert_eq!(guessed.tokens, exact.tokens, "a text that is this certain is not changed by rounding");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_prompt_does_not_stall_an_answer_that_is_under_way() {
    let member = Member::start(&lonely_network(), Carrier::Tcp).await;
    let model = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&member.node, model).await;
    let options = GenerateOptions { guess: false, ..fast(120) };
    let request =
        |prompt: String, options| GenerateRequest { model: model.to_string(), prompt: Prompt::Text(prompt), options };
    let mut running = member.node.generate(request(TEXT.to_owned(), options)).await.expect("it answers");
    running.next().await.expect("it goes on").expect("it goes on");
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
    assert!(worst < prefill / 3, "the answer stood still for {worst:?} of the {prefill:?} of a prefill");
    member.stop().await;
}

/// Of so many texts, the part of the tokens that come before the first difference.
async fn likeness(model: TestModel, wire: Codec) -> f64 {
    const TEXTS: usize = 6;
    const TOKENS: u32 = 32;
    let cluster = Cluster::start(model, Carrier::Tcp, 3).await;
    let (plain, mut same) = (GenerateOptions { guess: false, ..fast(TOKENS) }, 0);
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
async fn states_that_are_rounded_on_the_way_say_nearly_the_same_and_never_where_it_is_to_be_exact() {
    for model in [MODEL, TestModel::Gemma3] {
        for wire in [Codec::Bf16, Codec::Int8] {
            let share = likeness(model, wire).await;
            eprintln!(
                "{}, {}: {:.0} % of the tokens before the first difference",
                model.name(),
                wire.name(),
                100.0 * share
            );
            // A difference comes after some 25 tokens; where numbers go astray, with the first.
            assert!(share > 0.15, "numbers went astray: {share}");
        }
    }
    let exact = GenerateOptions { wire: Codec::Int8, ..greedy(4) };
    assert_eq!(exact.check().map_err(|fault| fault.kind()), Err(ErrorKind::InvalidArgument));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_keeps_8_bits_answers_nearly_the_same_and_refuses_what_is_to_be_exact() {
    let directory = TempDir::new().expect("a directory");
    let small = builder(directory.path(), &lonely_network(), Carrier::Tcp).kv(KvCache::Q8).start().await;
    let small = Member { node: small.expect("a node starts"), dir: directory };
    let full = Member::start(&lonely_network(), Carrier::Tcp).await;
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

/// One way between nodes that are so far apart that a token's time is mostly travelling, however busy the machine is.
const WAY: Duration = Duration::from_millis(150);

/// A node that holds `gguf` and a far one that can only ask it, and the draft model at the latter.
async fn far_apart(gguf: &Path, draft: &Path) -> (Member, Member, ModelId, ModelId) {
    let network = lonely_network();
    let (host, asker) = (Member::start(&network, Carrier::Tcp).await, Member::start(&network, Carrier::Tcp).await);
    host.import(gguf, "far", Parts::All).await;
    let id = asker.import(gguf, "far", Parts::Coordinator).await;
    let draft = asker.import(draft, "draft", Parts::All).await;
    join(&asker.node, &[delayed(&host.node.addresses()[0], WAY)], Carrier::Tcp).await;
    await_plan(&asker.node, id).await;
    (host, asker, id, draft)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_model_saves_steps_and_changes_nothing_whichever_vocabulary_is_padded_further() {
    let dir = TempDir::new().expect("a directory");
    let (short, long) = (MODEL.path(), padded(&MODEL.path(), 64, dir.path()));
    let prompt = || Prompt::Text(TEXT.to_owned());
    for (model, draft) in [(&short, &long), (&long, &short)] {
        let (host, asker, model, draft) = far_apart(model, draft).await;
        let told = || GenerateOptions { logprobs: Some(1), ..fast(16) };
        let plain = ask(&asker.node, model, prompt(), GenerateOptions { guess: false, ..told() }).await;
        let with = || GenerateOptions { draft: Some(draft.to_string()), ..told() };
        let drafted = ask(&asker.node, model, prompt(), with()).await;
        // The draft is the very model, so that each guess is right, up to the rounding of sums.
        let same = alike(&plain.tokens, &drafted.tokens);
        assert!(same >= 12, "the same but for rounding: {} and {}", plain.text, drafted.text);
        assert_eq!(drafted.completion_tokens, plain.completion_tokens);
        let (made, right) = (drafted.guessed_tokens, drafted.right_guesses);
        assert!(made >= 1 && right * 2 >= made, "{right} of {made}");
        let likely = |done: &Completion| done.logprobs.clone().expect("they were asked for");
        for (one, two) in likely(&plain).iter().zip(&likely(&drafted)).take(same) {
            assert!((one.chosen.logprob - two.chosen.logprob).abs() < 0.1, "{one:?} {two:?}");
        }
        // Cancelled in the middle of a window; the next answer is not harmed.
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
async fn a_draft_model_that_does_not_fit_is_refused() {
    let cluster = Cluster::start(MODEL, Carrier::Tcp, 2).await;
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
    assert_eq!(refused(formed).await, ErrorKind::InvalidArgument, "nothing is guessed under a constraint");
    let parts = |parts| ImportOptions { parts: Some(vec![parts]), ..ImportOptions::default() };
    let gemma = TestModel::Gemma3.path();
    let other = node.import(&gemma, parts(Parts::Coordinator)).await.expect("it is imported").id;
    assert_eq!(refused(with(&other.to_string())).await, ErrorKind::InvalidArgument, "another vocabulary");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_model_that_cannot_be_loaded_fails_who_asked_for_it_and_nobody_else() {
    let dir = TempDir::new().expect("a directory");
    let member = Member::start(&lonely_network(), Carrier::Tcp).await;
    let model = member.import(&MODEL.path(), "target", Parts::All).await;
    let before: Vec<PathBuf> = shards(member.dir.path()).into_iter().map(|(path, _)| path).collect();
    let draft = member.import(&padded(&MODEL.path(), 64, dir.path()), "draft", Parts::All).await;
    let mut of_draft = shards(member.dir.path());
    of_draft.retain(|(path, _)| !before.contains(path));
    // That of a layer in the middle: they are of one size, between the embedding and what is small.
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
