//! Real models of common size: whole, split and with a killed host they generate the tokens of llama.cpp.
//!
//! Ignored in a plain run, since the models are large and from third parties: `make bench` fetches them and runs the tests.

use swarmllm_core::node::{Delta, GenerateOptions, GenerateRequest, Node, Prompt};
use swarmllm_tests::cluster::{THREADS, Transport, ask, greedy};
use swarmllm_tests::in_time;
use swarmllm_tests::models::TestModel;
use swarmllm_tests::process::ProcessCluster;
use swarmllm_tests::reference::ReferenceModel;

const TEXT: &str =
    "// Sorts a list of words by their length, the longest first.\nfn sort_by_length(words: &mut Vec<String>) {\n";
/// Tokens of an answer, and the number of tokens after which a host is killed.
const TOKENS: u32 = 48;
const KILLED_AFTER: usize = 20;

/// The tokens of an answer; calls `meddle` with the number of tokens before each.
async fn tokens(node: &Node, model: &str, options: GenerateOptions, mut meddle: impl FnMut(usize)) -> Vec<u32> {
    let options = GenerateOptions { logprobs: Some(0), ..options };
    let request = GenerateRequest { model: model.to_owned(), prompt: Prompt::Text(TEXT.to_owned()), options };
    let mut generation = node.generate(request).await.expect("the swarm answers");
    let mut came = 0;
    loop {
        match in_time("a token", generation.next()).await.expect("an answer has an end").expect("the answer continues")
        {
            Delta::Token(_) => {
                came += 1;
                meddle(came);
            }
            Delta::Text(_) => {}
            Delta::Done(completion) => return completion.tokens,
        }
    }
}

async fn is_exact_for_every_split(model: TestModel) {
    if !model.is_there() {
        return println!("NOT RUN: {} is not there", model.name());
    }
    let expected = {
        let whole = ReferenceModel::load(&model.path(), THREADS);
        whole.greedy(&whole.tokenize(TEXT), TOKENS)
    };
    for stages in 1..=3 {
        let mut cluster = ProcessCluster::start(model, Transport::Tcp, stages).await;
        let (node, name) = (cluster.coordinator.node.clone(), cluster.model.to_string());
        assert_eq!(tokens(&node, &name, greedy(TOKENS), |_| {}).await, expected, "{stages} stages");
        if stages == 3 {
            cluster.add_spare(&model.path(), model.name(), 1).await;
            let route = ask(&node, cluster.model, TEXT, TOKENS).await.expect("the swarm answers");
            let victim = cluster.index_of(&route.route().stages[1].node.to_string());
            drop(route);
            let kill = |came| {
                if came == KILLED_AFTER {
                    cluster.hosts[victim].kill();
                }
            };
            assert_eq!(tokens(&node, &name, greedy(TOKENS), kill).await, expected, "a host was killed");
        }
        cluster.coordinator.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the real 0.5B: make bench"]
async fn the_0_5b_model_is_exact_for_every_split() {
    is_exact_for_every_split(TestModel::Coder05).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the real 1.5B: make bench"]
async fn the_1_5b_model_is_exact_for_every_split() {
    is_exact_for_every_split(TestModel::Coder15).await;
}
