//! Private swarms.

use super::*;
use crate::identity::SwarmKey;

async fn private_node(key: Option<&SwarmKey>) -> TestNode {
    let config = NetConfig { key: key.cloned(), dial_deadline: Duration::from_secs(3), ..config(&[TCP, QUIC]) };
    node_with(config).await
}

#[tokio::test]
async fn a_private_swarm_uses_tcp_only() {
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
async fn nodes_without_the_key_cannot_complete_a_handshake() {
    let (key, other) = (SwarmKey::generate().unwrap(), SwarmKey::generate().unwrap());
    let inside = private_node(Some(&key)).await;
    let target = address(&inside);
    for (outside, key_used) in [(private_node(Some(&other)).await, "another key"), (private_node(None).await, "no key")]
    {
        let refused = soon("a refusal", outside.net.dial(&target)).await.unwrap_err();
        assert!(matches!(refused.kind(), ErrorKind::PeerUnreachable | ErrorKind::Timeout), "{key_used}: {refused}");
        let back = soon("a refusal", inside.net.dial(&address(&outside))).await.unwrap_err();
        assert!(matches!(back.kind(), ErrorKind::PeerUnreachable | ErrorKind::Timeout), "{key_used}: {back}");
        assert!(inside.net.peers().snapshot().is_empty() && outside.net.peers().snapshot().is_empty(), "{key_used}");
    }
}
