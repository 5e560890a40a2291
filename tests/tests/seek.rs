//! Who comes after an announcement finds its holder all the same: by the swarm's table, or by what its peers tell it.

use std::time::Duration;

use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::Parts;
use swarmllm_tests::cluster::{Carrier, Member, answer, await_plan, join, lonely_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::{eventually, in_time};

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";

#[tokio::test(flavor = "multi_thread")]
async fn a_late_comer_pulls_from_and_asks_a_holder_that_announced_before_it_came() {
    let network = lonely_network();
    let (hub, holder) = (Member::start(&network, Carrier::Tcp).await, Member::start(&network, Carrier::Quic).await);
    // Imported before anyone is there to hear of it, so that no gossip is under way: the hub is told by the hello.
    let model = holder.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    join(&holder.node, &hub.node.addresses(), Carrier::Tcp).await;
    eventually("the hub has heard of it", || hub.node.models().iter().any(|info| info.id == model)).await;
    let late = Member::start(&network, Carrier::Tcp).await;
    join(&late.node, &hub.node.addresses(), Carrier::Tcp).await;
    // The hub may not have named the holder yet, nor put it into its table; or the holder is known and just being dialled.
    let not_yet = [ErrorKind::ModelNotFound, ErrorKind::PeerUnreachable, ErrorKind::PeerLost];
    let pulled = in_time("a pull", async {
        loop {
            match late.node.pull(MODEL.name(), Parts::Coordinator, None).await {
                Ok(info) => return info,
                Err(error) => assert!(not_yet.contains(&error.kind()), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(pulled.id, model, "the holder is found by the model's name");
    await_plan(&late.node, model).await;
    let completion = answer(&late.node, model, TEXT, 8).await.expect("the holder answers");
    assert_eq!(completion.route[0].node, holder.node.id());
    for member in [late, hub, holder] {
        member.stop().await;
    }
}
