//! Swarms with a key.

use super::*;
use crate::identity::SwarmKey;

async fn private_node(key: Option<&SwarmKey>) -> TestNode {
    let config = NetConfig { key: key.cloned(), dial_deadline: Duration::from_secs(3), ..config(&[TCP, QUIC]) };
    node_with(config).await
}

#[tokio::test]
async fn the_nodes_of_a_private_swarm_meet_over_tcp_only() {
    let key = SwarmKey::generate().unwrap();
    let (a, b) = (private_node(Some(&key)).await, private_node(Some(&key)).await);
    assert!(b.net.addresses().iter().all(|address| address.contains("/tcp/")), "{:?}", b.net.addresses());
    let b_id = b.net.local();
    let target = address(&b);
    assert_eq!(soon("a connection", a.net.dial(&target)).await, Ok(b_id));
    let (_net, _tasks) = echo(b);
    let mut stream = soon("a stream", a.net.open(b_id, Channel::Control)).await.unwrap();
    soon("a long echo", round_trip(&mut stream, &vec![7; 3 << 20])).await;
    let refused = NetConfig { key: Some(key), ..config(&[QUIC]) };
    let started = start(refused, &Keypair::generate().unwrap(), EventBus::new(), TaskSet::new(Handle::current())).await;
    assert_eq!(started.err().unwrap().kind(), ErrorKind::InvalidConfig);
}

#[tokio::test]
async fn who_has_not_the_key_of_a_private_swarm_gets_no_further_than_its_port() {
    let (key, other) = (SwarmKey::generate().unwrap(), SwarmKey::generate().unwrap());
    let inside = private_node(Some(&key)).await;
    let target = address(&inside);
    for (outside, whose) in [(private_node(Some(&other)).await, "another key"), (private_node(None).await, "no key")] {
        let refused = soon("a refusal", outside.net.dial(&target)).await.unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::PeerUnreachable | ErrorKind::Timeout), "{whose}: {refused}");
        let back = soon("a refusal", inside.net.dial(&address(&outside))).await.unwrap_err();
        assert!(matches!(back.kind(), ErrorKind::PeerUnreachable | ErrorKind::Timeout), "{whose}: {back}");
        assert!(inside.net.peers().snapshot().is_empty() && outside.net.peers().snapshot().is_empty(), "{whose}");
    }
}
