//! Nodes to which nobody can connect, reached through a relay.

use super::*;

/// A node that carries circuits.
async fn relay() -> (NetHandle, TaskSet, String) {
    let relay = node_with(NetConfig { relay: true, ..config(&[TCP]) }).await;
    let address = address(&relay);
    let (net, tasks) = echo(relay);
    (net, tasks, address)
}

/// A node that knows this relay; it listens at `listen`.
async fn behind(relay: &str, listen: &[&str]) -> TestNode {
    node_with(NetConfig { bootstrap: vec![relay.to_owned()], ..config(listen) }).await
}

/// The node's address over a circuit, when it has one.
async fn circuit(node: &TestNode) -> String {
    let mut found = None;
    until("a reservation", || {
        found = node.net.addresses().into_iter().find(|address| address.contains("/p2p-circuit/"));
        found.is_some()
    })
    .await;
    found.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_listen_nowhere_talk_through_a_relay_that_both_know() {
    let (relay_net, _relay, at) = relay().await;
    let (hidden, asker) = (behind(&at, &[]).await, behind(&at, &[]).await);
    let address = circuit(&hidden).await;
    let id = hidden.net.local();
    let (hidden_net, _hidden) = echo(hidden);
    soon("a circuit", asker.net.ensure_connected(id, &[address])).await.unwrap();
    let mut stream = soon("a stream", asker.net.open(id, Channel::Control)).await.unwrap();
    soon("a long echo", round_trip(&mut stream, &vec![7; 3 << 20])).await;
    let how = |net: &NetHandle, peer| net.peers().lookup(peer).and_then(|info| info.transport);
    assert_eq!(how(&asker.net, id), Some(TransportKind::Relay));
    assert_eq!(how(&hidden_net, asker.net.local()), Some(TransportKind::Relay));
    assert_eq!(how(&asker.net, relay_net.local()), Some(TransportKind::Tcp));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_becomes_a_direct_connection_where_there_is_a_way() {
    let (_relay_net, _relay, at) = relay().await;
    // One can be connected to, if one knows where: the hidden one is told over the circuit.
    let (hidden, open) = (behind(&at, &[]).await, behind(&at, &[TCP]).await);
    let address = circuit(&hidden).await;
    let id = hidden.net.local();
    soon("a circuit", open.net.ensure_connected(id, &[address])).await.unwrap();
    let direct = || open.net.peers().lookup(id).is_some_and(|info| info.transport == Some(TransportKind::Tcp));
    until("a direct connection", direct).await;
    let (_hidden_net, _hidden) = echo(hidden);
    let mut stream = soon("a stream", open.net.open(id, Channel::Control)).await.unwrap();
    soon("an echo", round_trip(&mut stream, b"hello")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_reached_from_outside_needs_no_relay() {
    let (_relay_net, _relay, at) = relay().await;
    let open = behind(&at, &[TCP]).await;
    circuit(&open).await;
    until("the try", || open.net.addresses().iter().all(|address| !address.contains("/p2p-circuit/"))).await;
    assert!(!open.net.addresses().is_empty());
    // The try's own connection does not stay beside the first.
    let peers = open.net.peers().snapshot();
    assert!(peers.iter().all(|peer| peer.connected), "{peers:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_comes_back_is_asked_for_a_reservation_again() {
    let (relay_net, relay_tasks, at) = relay().await;
    let port = at.split('/').nth(4).unwrap().to_owned();
    let at = format!("/ip4/127.0.0.1/tcp/{port}");
    let hidden = behind(&at, &[]).await;
    circuit(&hidden).await;
    soon("the relay's end", relay_net.shutdown()).await;
    drop((relay_net, relay_tasks));
    until("the reservation's end", || hidden.net.addresses().is_empty()).await;
    let again = node_with(NetConfig { relay: true, ..config(&[&at]) }).await;
    let circuit = circuit(&hidden).await;
    assert!(circuit.contains(&peer_text(&again)), "{circuit}");
}

fn peer_text(node: &TestNode) -> String {
    address(node).rsplit('/').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_bootstrap_peer_is_trusted_to_carry() {
    let (_relay_net, _relay, at) = relay().await;
    let hidden = node_with(config(&[])).await;
    soon("a connection", hidden.net.dial(&at)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(hidden.net.addresses().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_not_asked_to_carries_nothing() {
    let plain = node(TCP).await;
    let hidden = behind(&address(&plain), &[]).await;
    until("a connection", || hidden.net.peers().connected() == [plain.net.local()]).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(hidden.net.addresses().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_circuits_of_a_private_swarm_are_enciphered_with_its_key_too() {
    let key = crate::identity::SwarmKey::generate().unwrap();
    let private = |listen: &[&str]| NetConfig { key: Some(key.clone()), ..config(listen) };
    let relay = node_with(NetConfig { relay: true, ..private(&[TCP]) }).await;
    let known = || NetConfig { bootstrap: vec![address(&relay)], ..private(&[]) };
    let (hidden, asker) = (node_with(known()).await, node_with(known()).await);
    let circuit = circuit(&hidden).await;
    let id = hidden.net.local();
    let (_hidden_net, _hidden) = echo(hidden);
    soon("a circuit", asker.net.ensure_connected(id, &[circuit])).await.unwrap();
    let mut stream = soon("a stream", asker.net.open(id, Channel::Control)).await.unwrap();
    soon("an echo", round_trip(&mut stream, b"hello")).await;
}
