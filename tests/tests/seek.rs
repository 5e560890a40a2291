//! A node that joins after an announcement still finds the holder: through the DHT, or through its peers.

use std::time::Duration;

use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::Parts;
use swarmllm_tests::cluster::{Member, Transport, answer, await_plan, join, unique_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::{eventually, in_time};

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";

#[tokio::test(flavor = "multi_thread")]
async fn a_late_node_finds_a_holder_announced_before_it_joined() {
    let network = unique_network();
    let (hub, holder) = (Member::start(&network, Transport::Tcp).await, Member::start(&network, Transport::Quic).await);
    // Imported before any connection, so that no gossip is in flight: the hub learns it from the hello.
    let model = holder.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    join(&holder.node, &hub.node.addresses(), Transport::Tcp).await;
    eventually("the hub has heard of it", || hub.node.models().iter().any(|info| info.id == model)).await;
    let late = Member::start(&network, Transport::Tcp).await;
    join(&late.node, &hub.node.addresses(), Transport::Tcp).await;
    // The hub may not have reported the holder or stored it in the DHT yet; or the holder is being dialled.
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
