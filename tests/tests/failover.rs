//! Hosts are killed and frozen during answers: the text continues unchanged.

use std::time::{Duration, Instant};

use swarmllm_core::base::{ErrorKind, Event};
use swarmllm_core::node::{
    Completion, Delta, GenerateError, GenerateOptions, GenerateRequest, Generation, Node, Prompt,
};
use swarmllm_tests::cluster::{Cluster, Transport, answer, greedy};
use swarmllm_tests::in_time;
use swarmllm_tests::models::TestModel;
use swarmllm_tests::process::{ProcessCluster, signal};
use swarmllm_tests::prompts::ANSWER;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";
const MIDDLE: usize = 1;
const LAST: usize = 2;

/// A streamed answer with the delay before each token.
struct Streamed {
    completion: Completion,
    text: String,
    tokens: Vec<u32>,
    gaps: Vec<Duration>,
}

async fn begin(node: &Node, model: &str, options: GenerateOptions) -> Generation {
    let options = GenerateOptions { logprobs: Some(0), ..options };
    let request = GenerateRequest { model: model.to_owned(), prompt: Prompt::Text(TEXT.to_owned()), options };
    node.generate(request).await.expect("the swarm answers")
}

/// Reads an answer; calls `meddle` with the number of tokens before each token.
async fn stream(mut generation: Generation, mut meddle: impl FnMut(usize)) -> Result<Streamed, GenerateError> {
    let (mut text, mut tokens, mut gaps, mut before) = (String::new(), Vec::new(), Vec::new(), Instant::now());
    meddle(0);
    loop {
        match in_time("a piece of an answer", generation.next()).await.expect("an answer has an end")? {
            Delta::Text(more) => text.push_str(&more),
            Delta::Token(token) => {
                tokens.push(token.chosen.token);
                gaps.push(std::mem::replace(&mut before, Instant::now()).elapsed());
                meddle(tokens.len());
            }
            Delta::Done(completion) => return Ok(Streamed { completion: *completion, text, tokens, gaps }),
        }
    }
}

/// Three stages; the last two have a second host.
async fn with_spares(transport: Transport) -> ProcessCluster {
    let mut cluster = ProcessCluster::start(MODEL, transport, 3).await;
    for stage in [MIDDLE, LAST] {
        cluster.add_spare(&MODEL.path(), MODEL.name(), stage).await;
    }
    cluster
}

/// Interval of tokens at which a host is killed, to limit the test time; 1 tests every position.
fn every() -> usize {
    std::env::var("SWARMLLM_TEST_FAILOVER_EVERY").ok().and_then(|text| text.parse().ok()).unwrap_or(9).max(1)
}

async fn killed_hosts_change_no_token(transport: Transport, every: usize) {
    let mut cluster = with_spares(transport).await;
    let (node, model) = (cluster.coordinator.node.clone(), cluster.model.to_string());
    let plain = stream(begin(&node, &model, greedy(ANSWER)).await, |_| {}).await.expect("no host is lost");
    assert_eq!(plain.tokens.len(), ANSWER as usize);
    let mut delays: Vec<Duration> = Vec::new();
    for stage in [MIDDLE, LAST] {
        for after in (0..ANSWER as usize).step_by(every) {
            let generation = begin(&node, &model, greedy(ANSWER)).await;
            let victim = cluster.index_of(&generation.route().stages[stage].node.to_string());
            let kill = |tokens| {
                if tokens == after {
                    cluster.hosts[victim].kill();
                }
            };
            let streamed = stream(generation, kill).await;
            let where_ = format!("the host of stage {stage} was killed after {after} tokens");
            let streamed = streamed.unwrap_or_else(|error| panic!("{where_}: {error}"));
            assert_eq!(streamed.tokens, plain.tokens, "{where_}");
            assert_eq!((&streamed.text, &streamed.completion.text), (&plain.text, &plain.text), "{where_}");
            assert_eq!(streamed.completion.tokens, plain.tokens, "{where_}");
            // Before the first token the host may be lost before its stage is open; near the end, after its last step.
            let epochs: Vec<u32> = streamed.completion.route.iter().map(|stage| stage.epoch).collect();
            let as_expected = epochs.starts_with(&[0, 0, 0, 1, 1, 1]) || after == 0 || after + 2 >= ANSWER as usize;
            assert!(as_expected, "{where_}: the route has the stages of epochs {epochs:?}");
            delays.extend(streamed.gaps.iter().max().copied());
            cluster.restart(victim).await;
        }
    }
    delays.sort_unstable();
    let (median, p95) = (delays[delays.len() / 2], delays[(delays.len() * 95).div_ceil(100) - 1]);
    println!(
        "{} hosts were killed: the longest gap is {median:?} in the median, {p95:?} at most in 95 %",
        delays.len()
    );
    cluster.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_hosts_change_no_token_over_tcp() {
    killed_hosts_change_no_token(Transport::Tcp, every()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_hosts_change_no_token_over_quic() {
    // A restarted host is accepted only once its previous connection has timed out, which takes some seconds over QUIC.
    killed_hosts_change_no_token(Transport::Quic, 4 * every()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_with_its_kv_and_changes_no_token() {
    const AFTER: usize = 40;
    let mut cluster = with_spares(Transport::Tcp).await;
    let (node, model) = (cluster.coordinator.node.clone(), cluster.model.to_string());
    let plain = stream(begin(&node, &model, greedy(ANSWER)).await, |_| {}).await.expect("no host is lost");
    let followed = GenerateOptions { standby: true, ..greedy(ANSWER) };
    for stage in [MIDDLE, LAST] {
        let mut events = node.events();
        let generation = begin(&node, &model, followed.clone()).await;
        let victim = cluster.index_of(&generation.route().stages[stage].node.to_string());
        let kill = |tokens| {
            if tokens == AFTER {
                cluster.hosts[victim].kill();
            }
        };
        let streamed = stream(generation, kill).await.expect("the standby takes over");
        assert_eq!((&streamed.tokens, &streamed.text), (&plain.tokens, &plain.text), "stage {stage}");
        let kept = async {
            loop {
                if let Some(Event::GenerationRerouted { kept, .. }) = events.next().await {
                    return kept;
                }
            }
        };
        // At least the prompt and some of the answer; a slow standby may lag.
        let (kept, prompt) = (in_time("another route", kept).await, streamed.completion.prompt_tokens);
        assert!(kept > prompt, "stage {stage}: {kept} tokens were kept, the prompt has {prompt}");
        let route = &streamed.completion.route;
        let (lost, taken) = route.split_at(route.len() / 2);
        assert_eq!(lost[stage].standby, Some(taken[stage].node), "the standby is reported, and took over");
        println!(
            "stage {stage}: {kept} of {} tokens were kept, the longest gap was {:?}",
            prompt + AFTER as u32,
            streamed.gaps.iter().max()
        );
        cluster.restart(victim).await;
    }
    cluster.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_loss_during_recovery_changes_no_token() {
    let mut cluster = with_spares(Transport::Tcp).await;
    let (node, model) = (cluster.coordinator.node.clone(), cluster.model.to_string());
    let plain = stream(begin(&node, &model, greedy(ANSWER)).await, |_| {}).await.expect("no host is lost");
    let mut events = node.events();
    let generation = begin(&node, &model, greedy(ANSWER)).await;
    let first = cluster.index_of(&generation.route().stages[MIDDLE].node.to_string());
    // The two hosts of the middle stage: index 1 and its spare.
    let second = if first == MIDDLE { 3 } else { MIDDLE };
    let pid = cluster.hosts[first].pid();
    let kill = move |tokens| {
        if tokens == 40 {
            signal(pid, "KILL");
        }
    };
    let answer = tokio::spawn(stream(generation, kill));
    let rerouted = async { while !matches!(events.next().await, Some(Event::GenerationRerouted { epoch: 1, .. })) {} };
    in_time("another route", rerouted).await;
    cluster.hosts[second].signal("KILL");
    cluster.restart(first).await;
    let streamed = answer.await.expect("no panic").expect("the first host is back");
    assert_eq!((streamed.tokens, streamed.text), (plain.tokens, plain.text));
    assert!(streamed.completion.route.last().is_some_and(|stage| stage.epoch >= 2), "two were lost");
    cluster.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_host_is_replaced_or_waited_for() {
    let cluster = with_spares(Transport::Tcp).await;
    let (node, model) = (cluster.coordinator.node.clone(), cluster.model.to_string());
    let plain = stream(begin(&node, &model, greedy(ANSWER)).await, |_| {}).await.expect("no host is lost");
    let generation = begin(&node, &model, greedy(ANSWER)).await;
    let route = generation.route().clone();
    let frozen = cluster.index_of(&route.stages[MIDDLE].node.to_string());
    let freeze = |tokens| {
        if tokens == 20 {
            cluster.hosts[frozen].signal("STOP");
        }
    };
    let streamed = stream(generation, freeze).await.expect("another host takes over");
    assert_eq!((&streamed.tokens, &streamed.text), (&plain.tokens, &plain.text));
    assert_eq!(streamed.completion.route.last().map(|stage| stage.epoch), Some(1));
    // A new request is not blocked by the frozen host.
    let anew = in_time("an answer around the frozen host", stream(begin(&node, &model, greedy(ANSWER)).await, |_| {}));
    assert_eq!(anew.await.expect("the other host answers").tokens, plain.tokens);
    cluster.hosts[frozen].signal("CONT");
    // The only host of the first layers.
    let pid = cluster.hosts[0].pid();
    let freeze = |tokens| {
        if tokens == 20 {
            signal(pid, "STOP");
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(4));
                signal(pid, "CONT");
            });
        }
    };
    let streamed = stream(begin(&node, &model, greedy(ANSWER)).await, freeze).await.expect("the host resumes");
    assert_eq!((&streamed.tokens, &streamed.text), (&plain.tokens, &plain.text));
    assert!(streamed.gaps.iter().max() > Some(&Duration::from_secs(3)), "the answer waited for the host");
    cluster.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn losing_the_last_holder_is_an_error_with_the_partial_answer() {
    let mut cluster = ProcessCluster::start(MODEL, Transport::Tcp, 3).await;
    let (node, model) = (cluster.coordinator.node.clone(), cluster.model.to_string());
    let plain = stream(begin(&node, &model, greedy(ANSWER)).await, |_| {}).await.expect("no host is lost");
    let mut died = None;
    let kill = |tokens| {
        if tokens == 30 {
            cluster.hosts[MIDDLE].kill();
            died = Some(Instant::now());
        }
    };
    let error = stream(begin(&node, &model, greedy(ANSWER)).await, kill).await.err().expect("no host has the layers");
    assert!(died.is_some_and(|died| died.elapsed() < Duration::from_secs(20)), "within a bound");
    assert_eq!(error.kind(), ErrorKind::PeerLost, "{error}");
    let GenerateError::Interrupted { partial, .. } = error else { panic!("the partial answer is missing: {error}") };
    assert!(partial.tokens.len() >= 30 && plain.tokens.starts_with(&partial.tokens), "{:?}", partial.tokens);
    // A restarted host is found again with the same layers and id.
    cluster.restart(MIDDLE).await;
    let again = stream(begin(&node, &model, greedy(ANSWER)).await, |_| {}).await.expect("it is back");
    assert_eq!(again.tokens, plain.tokens);
    cluster.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_survives_the_restart_of_the_only_host_of_a_layer() {
    let mut cluster = ProcessCluster::start(MODEL, Transport::Tcp, 3).await;
    let (node, model) = (cluster.coordinator.node.clone(), cluster.model.to_string());
    let plain = stream(begin(&node, &model, greedy(ANSWER)).await, |_| {}).await.expect("no host is lost");
    let mut generation = begin(&node, &model, greedy(ANSWER)).await;
    let mut tokens = 0;
    while tokens < 30 {
        tokens += u32::from(matches!(generation.next().await, Some(Ok(Delta::Token(_)))));
    }
    cluster.hosts[MIDDLE].kill();
    cluster.restart(MIDDLE).await;
    let completion = in_time("the rest of the answer", generation.finish()).await.expect("it is back in time");
    assert_eq!(completion.tokens, plain.tokens);
    cluster.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn batched_speculative_answers_continue_after_a_loss() {
    const SESSIONS: usize = 4;
    let cluster = with_spares(Transport::Tcp).await;
    let (node, model) = (cluster.coordinator.node.clone(), cluster.model.to_string());
    let fast = GenerateOptions { exact: false, speculate: true, ..greedy(ANSWER) };
    let plain = stream(begin(&node, &model, fast.clone()).await, |_| {}).await.expect("no host is lost");
    let generations = futures::future::join_all((0..SESSIONS).map(|_| begin(&node, &model, fast.clone()))).await;
    let victim = cluster.index_of(&generations[0].route().stages[MIDDLE].node.to_string());
    let pid = cluster.hosts[victim].pid();
    let kill = |index| {
        move |tokens| {
            if index == 0 && tokens == 25 {
                signal(pid, "KILL");
            }
        }
    };
    let streams = generations.into_iter().enumerate().map(|(index, one)| stream(one, kill(index)));
    for streamed in futures::future::join_all(streams).await {
        let streamed = streamed.expect("another host takes over");
        assert_eq!(streamed.tokens, streamed.completion.tokens, "no token twice, none left out");
        // The text is recomputed as one prompt with other step shapes: rounding may change later tokens.
        let alike = streamed.tokens.iter().zip(&plain.tokens).take_while(|(ours, theirs)| ours == theirs).count();
        println!("{alike} of {ANSWER} tokens before the first difference from an undisturbed answer");
        assert_eq!((streamed.text, streamed.tokens.len()), (streamed.completion.text, ANSWER as usize));
    }
    cluster.coordinator.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_hands_its_answers_over_at_shutdown() {
    let mut cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let plain = answer(cluster.node(), cluster.model, TEXT, ANSWER).await.expect("no host is lost");
    let generation = begin(cluster.node(), &cluster.model.to_string(), greedy(ANSWER)).await;
    let spare = swarmllm_tests::cluster::Member::start(&cluster.node().status().network, Transport::Tcp).await;
    spare.import(&MODEL.path(), MODEL.name(), swarmllm_tests::cluster::stage_parts(&cluster.cut, 1)).await;
    swarmllm_tests::cluster::join(cluster.node(), &spare.node.addresses(), Transport::Tcp).await;
    let host = cluster.hosts.pop().expect("two hosts");
    let (streamed, dir) = tokio::join!(stream(generation, |_| {}), host.stop());
    assert_eq!(streamed.expect("the spare takes over").tokens, plain.tokens);
    drop(dir);
    spare.stop().await;
    cluster.stop().await;
}
