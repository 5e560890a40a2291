//! Nodes without inbound reachability, connected through a relay.

use super::*;

/// A relay.
async fn relay() -> (NetHandle, TaskSet, String) {
    let relay = node_with(NetConfig { relay: true, ..config(&[TCP]) }).await;
    let address = address(&relay);
    let (net, tasks) = echo(relay);
    (net, tasks, address)
}

/// A node with this relay as its bootstrap peer and the listen addresses `listen`.
async fn behind(relay: &str, listen: &[&str]) -> TestNode {
    node_with(NetConfig { bootstrap: vec![relay.to_owned()], ..config(listen) }).await
}

/// Waits for the node's relayed address.
async fn relayed_address(node: &TestNode) -> String {
    let mut found = None;
    until("a reservation", || {
        found = node.net.addresses().into_iter().find(|address| address.contains("/p2p-circuit/"));
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_without_listeners_connect_through_a_common_relay() {
    let (relay_net, _relay, at) = relay().await;
    let (hidden, asker) = (behind(&at, &[]).await, behind(&at, &[]).await);
    let address = relayed_address(&hidden).await;
    let id = hidden.net.local();
    let (hidden_net, _hidden) = echo(hidden);
    soon("a relayed connection", asker.net.ensure_connected(id, &[address])).await.unwrap();
    let mut stream = soon("a stream", asker.net.open(id, Channel::Control)).await.unwrap();
    soon("a long echo", round_trip(&mut stream, &vec![7; 3 << 20])).await;
    let how = |net: &NetHandle, peer| net.peers().lookup(peer).and_then(|info| info.transport);
    assert_eq!(how(&asker.net, id), Some(TransportKind::Relay));
    assert_eq!(how(&hidden_net, asker.net.local()), Some(TransportKind::Relay));
    assert_eq!(how(&asker.net, relay_net.local()), Some(TransportKind::Tcp));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relayed_connection_is_upgraded_to_a_direct_one() {
    let (_relay_net, _relay, at) = relay().await;
    // The open node is reachable; the hidden node learns its address over the relayed connection.
    let (hidden, open) = (behind(&at, &[]).await, behind(&at, &[TCP]).await);
    let address = relayed_address(&hidden).await;
    let id = hidden.net.local();
    soon("a relayed connection", open.net.ensure_connected(id, &[address])).await.unwrap();
    let direct = || open.net.peers().lookup(id).is_some_and(|info| info.transport == Some(TransportKind::Tcp));
    until("a direct connection", direct).await;
    let (_hidden_net, _hidden) = echo(hidden);
    let mut stream = soon("a stream", open.net.open(id, Channel::Control)).await.unwrap();
    soon("an echo", round_trip(&mut stream, b"hello")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reachable_node_drops_its_reservations() {
    let (_relay_net, _relay, at) = relay().await;
    let open = behind(&at, &[TCP]).await;
    relayed_address(&open).await;
    until("the AutoNAT probe", || open.net.addresses().iter().all(|address| !address.contains("/p2p-circuit/"))).await;
    assert!(!open.net.addresses().is_empty());
    // The probe's connection does not stay beside the first.
    let peers = open.net.peers().snapshot();
    assert!(peers.iter().all(|peer| peer.connected), "{peers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reservation_is_renewed_when_the_relay_returns() {
    let (relay_net, relay_tasks, at) = relay().await;
    let port = at.split('/').nth(4).unwrap().to_owned();
    let at = format!("/ip4/127.0.0.1/tcp/{port}");
    let hidden = behind(&at, &[]).await;
    relayed_address(&hidden).await;
    soon("the relay's end", relay_net.shutdown()).await;
    drop((relay_net, relay_tasks));
    until("the reservation's end", || hidden.net.addresses().is_empty()).await;
    let again = node_with(NetConfig { relay: true, ..config(&[&at]) }).await;
    let relayed = relayed_address(&hidden).await;
    assert!(relayed.contains(&peer_text(&again)), "{relayed}");
}

fn peer_text(node: &TestNode) -> String {
    address(node).rsplit('/').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_bootstrap_peers_are_used_as_relays() {
    let (_relay_net, _relay, at) = relay().await;
    let hidden = node_with(config(&[])).await;
    soon("a connection", hidden.net.dial(&at)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(hidden.net.addresses().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_the_relay_option_grants_no_reservations() {
    let plain = node(TCP).await;
    let hidden = behind(&address(&plain), &[]).await;
    until("a connection", || hidden.net.peers().connected() == [plain.net.local()]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(hidden.net.addresses().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relayed_connections_of_a_private_swarm_use_its_key() {
    let key = crate::identity::SwarmKey::generate().unwrap();
    let private = |listen: &[&str]| NetConfig { key: Some(key.clone()), ..config(listen) };
    let relay = node_with(NetConfig { relay: true, ..private(&[TCP]) }).await;
    let known = || NetConfig { bootstrap: vec![address(&relay)], ..private(&[]) };
    let (hidden, asker) = (node_with(known()).await, node_with(known()).await);
    let relayed = relayed_address(&hidden).await;
    let id = hidden.net.local();
    let (_hidden_net, _hidden) = echo(hidden);
    soon("a relayed connection", asker.net.ensure_connected(id, &[relayed])).await.unwrap();
    let mut stream = soon("a stream", asker.net.open(id, Channel::Control)).await.unwrap();
    soon("an echo", round_trip(&mut stream, b"hello")).await;
}
