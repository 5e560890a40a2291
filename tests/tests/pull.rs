//! Models are fetched from several peers at once, also after the loss of a peer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use swarmllm_core::base::ModelId;
use swarmllm_core::node::{Node, Parts};
use swarmllm_tests::cluster::{Member, Transport, unique_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::slow_link::limited;
use swarmllm_tests::{eventually, in_time};

const MODEL: TestModel = TestModel::SmolLm2;
/// Bandwidth of the link to each source in bytes per second: the bottleneck.
const WIDTH: u32 = 16 << 20;

async fn source(network: &str) -> (Member, ModelId) {
    let member = Member::start(network, Transport::Tcp).await;
    let model = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    (member, model)
}

/// A node connected to these sources over slow links.
async fn asker(network: &str, sources: &[&Member]) -> Member {
    let member = Member::start(network, Transport::Tcp).await;
    for source in sources {
        let address = limited(&source.node.addresses()[0], WIDTH);
        in_time("connecting", member.node.connect(&address)).await.expect("the source is reached");
    }
    let all = || member.node.peers().iter().filter(|peer| !peer.holdings.is_empty()).count() == sources.len();
    eventually("all sources say what they hold", all).await;
    member
}

async fn pull(node: &Node, model: ModelId) -> Duration {
    let begun = Instant::now();
    let pulled = in_time("a pull", node.pull(&model.to_string(), Parts::All, None)).await.expect("it is held");
    assert!(pulled.has_head && pulled.held.len() == 1, "the pull is complete: {pulled:?}");
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sources_are_faster_than_one() {
    let network = unique_network();
    let ((a, model), (b, _)) = (source(&network).await, source(&network).await);
    let from_one = asker(&network, &[&a]).await;
    let one = pull(&from_one.node, model).await;
    from_one.stop().await;
    let from_two = asker(&network, &[&a, &b]).await;
    let two = pull(&from_two.node, model).await;
    let ratio = one.as_secs_f64() / two.as_secs_f64();
    println!("two sources give a model {ratio:.2} times as fast as one ({one:?}, {two:?})");
    // The links are the bottleneck; sequential fetches would yield 1.
    assert!(ratio > 1.5, "{ratio:.2}");
    for member in [from_two, a, b] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_continues_after_the_loss_of_a_source() {
    let network = unique_network();
    let ((a, model), (b, _)) = (source(&network).await, source(&network).await);
    let member = asker(&network, &[&a, &b]).await;
    let done = Arc::new(AtomicU64::new(0));
    let seen = done.clone();
    let progress = Arc::new(move |state: swarmllm_core::base::Progress| seen.store(state.done, Ordering::Relaxed));
    let pulling = member.node.pull(MODEL.name(), Parts::All, Some(progress));
    let lose = async {
        eventually("a third is there", || done.load(Ordering::Relaxed) > (30 << 20)).await;
        a.stop().await
    };
    let (pulled, _dir) = tokio::join!(in_time("a pull", pulling), lose);
    assert!(pulled.expect("the other source has it all").has_head);
    assert_eq!(member.node.models()[0].id, model);
    let again = pull(&member.node, model).await;
    assert!(again < Duration::from_secs(2), "nothing is fetched again: {again:?}");
    member.stop().await;
    b.stop().await;
}
