//! Nodes in one process over loopback.

use std::future::Future;
use std::net::TcpListener;
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use tokio::runtime::Handle;

use super::*;
use crate::base::{ErrorKind, Event, Hash, NodeId};
use crate::identity::Keypair;
use crate::rt::{EventBus, TaskSet};

mod crowd;
mod private;
mod relayed;

const TCP: &str = "/ip4/127.0.0.1/tcp/0";
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
/// Far above any expected duration: only a hang fails.
const PATIENCE: Duration = Duration::from_secs(60);

struct TestNode {
    net: NetHandle,
    incoming: Incoming,
    tasks: TaskSet,
    events: EventBus,
}

fn config(listen: &[&str]) -> NetConfig {
    NetConfig {
        network: "test".into(),
        listen: listen.iter().map(|text| text.to_string()).collect(),
        mdns: false,
        ..NetConfig::default()
    }
}

async fn node_with(config: NetConfig) -> TestNode {
    let (events, tasks) = (EventBus::new(), TaskSet::new(Handle::current()));
    let key = Keypair::generate().unwrap();
    let (net, incoming) = start(config, &key, events.clone(), tasks.clone()).await.unwrap();
    assert_eq!(net.local(), key.node_id());
    TestNode { net, incoming, tasks, events }
}

async fn node(listen: &str) -> TestNode {
    node_with(config(&[listen])).await
}

async fn soon<T>(what: &str, act: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, act).await.unwrap_or_else(|_| panic!("{what} timed out"))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    soon(what, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

fn address(node: &TestNode) -> String {
    node.net.addresses().first().expect("a listener").clone()
}

/// Echoes every control stream until the node is gone.
fn echo(mut node: TestNode) -> (NetHandle, TaskSet) {
    let (net, tasks) = (node.net.clone(), node.tasks.clone());
    let spawner = tasks.clone();
    tasks.spawn("echo", async move {
        while let Some((_, stream)) = node.incoming.control.recv().await {
            spawner.spawn("echo stream", async move {
                let (mut reader, mut writer) = stream.split();
                let _ = futures::io::copy(&mut reader, &mut writer).await;
                let _ = writer.close().await;
            });
        }
    });
    (net, tasks)
}

async fn round_trip(stream: &mut Stream, bytes: &[u8]) {
    let mut back = vec![0; bytes.len()];
    let (mut reader, mut writer) = stream.split();
    let write = async {
        writer.write_all(bytes).await.unwrap();
        writer.flush().await.unwrap();
    };
    futures::join!(write, async { reader.read_exact(&mut back).await.unwrap() });
    assert!(back == bytes);
}

async fn streams_work_over(listen: &str, transport: TransportKind) {
    let (a, b) = (node(listen).await, node(listen).await);
    let target = address(&b);
    assert!(target.contains("/p2p/") && !target.contains("/0/"), "{target}");
    let b_id = b.net.local();
    assert_eq!(soon("a connection", a.net.dial(&target)).await, Ok(b_id));
    let (b_net, _tasks) = echo(b);
    for channel in [Channel::Control, Channel::Control] {
        let mut stream = soon("a stream", a.net.open(b_id, channel)).await.unwrap();
        soon("an echo", round_trip(&mut stream, b"hello")).await;
        soon("a long echo", round_trip(&mut stream, &vec![7; 3 << 20])).await;
    }
    until("a round-trip time", || a.net.peers().lookup(b_id).is_some_and(|info| info.rtt.is_some())).await;
    let info = a.net.peers().lookup(b_id).unwrap();
    assert!(info.connected && info.identified);
    assert_eq!(info.transport, Some(transport));
    assert_eq!(info.agent.as_deref(), Some(NetConfig::default().agent.as_str()));
    assert!(info.addresses.contains(&target), "{:?}", info.addresses);
    until("the other side's registry", || b_net.peers().connected() == [a.net.local()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_work_over_tcp() {
    streams_work_over(TCP, TransportKind::Tcp).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_work_over_quic() {
    streams_work_over(QUIC, TransportKind::Quic).await;
}

#[tokio::test]
async fn each_channel_has_its_own_queue() {
    let (a, mut b) = (node(TCP).await, node(TCP).await);
    let b_id = a.net.dial(&address(&b)).await.unwrap();
    let mut kept = Vec::new();
    for channel in Channel::ALL {
        let mut stream = a.net.open(b_id, channel).await.unwrap();
        stream.write_all(channel.name().as_bytes()).await.unwrap();
        stream.close().await.unwrap();
        kept.push(stream);
    }
    for (channel, queue) in
        Channel::ALL.into_iter().zip([&mut b.incoming.control, &mut b.incoming.stage, &mut b.incoming.shard])
    {
        let (from, mut stream) = soon("a stream", queue.recv()).await.unwrap();
        let mut said = String::new();
        soon("its end", stream.read_to_string(&mut said)).await.unwrap();
        assert_eq!((from, said.as_str()), (a.net.local(), channel.name()));
    }
}

#[tokio::test]
async fn a_node_listens_on_tcp_and_quic_and_reports_actual_ports() {
    let node = node_with(config(&[TCP, QUIC])).await;
    let addresses = node.net.addresses();
    assert_eq!(addresses.len(), 2, "{addresses:?}");
    let peer = address::peer_of(&node.net.local()).unwrap();
    for address in &addresses {
        assert!(address.ends_with(&format!("/p2p/{peer}")), "{address}");
        assert_ne!(address::port(&address.parse().unwrap()), 0);
    }
}

#[tokio::test]
async fn a_node_without_listeners_can_dial() {
    let (a, b) = (node_with(config(&[])).await, node(TCP).await);
    assert!(a.net.addresses().is_empty());
    assert_eq!(a.net.dial(&address(&b)).await, Ok(b.net.local()));
}

#[tokio::test]
async fn a_dns_name_is_resolved_on_dial() {
    let (a, b) = (node_with(config(&[])).await, node(TCP).await);
    let named = address(&b).replace("/ip4/127.0.0.1/", "/dns4/localhost/");
    assert_eq!(soon("a connection", a.net.dial(&named)).await, Ok(b.net.local()));
    let absent = "/dns4/absent.invalid/tcp/1";
    assert!(matches!(soon("an error", a.net.dial(absent)).await, Err(NetError::Unreachable { .. })));
}

#[tokio::test]
async fn connects_and_disconnects_are_reported_once_per_side() {
    let (a, b) = (node(TCP).await, node(TCP).await);
    let (a_id, b_id) = (a.net.local(), b.net.local());
    let (mut connects, mut disconnects) = (a.net.connects(), a.net.disconnects());
    let mut b_connects = b.net.connects();
    let mut events = a.events.subscribe();
    a.net.dial(&address(&b)).await.unwrap();
    a.net.ensure_connected(b_id, &[address(&b)]).await.unwrap();
    assert_eq!(soon("a connect", connects.recv()).await, Ok(b_id));
    assert_eq!(soon("a connect", b_connects.recv()).await, Ok(a_id));
    let mut stream = a.net.open(b_id, Channel::Stage).await.unwrap();
    soon("the end of a node", b.net.shutdown()).await;
    assert_eq!(soon("a disconnect", disconnects.recv()).await, Ok(b_id));
    assert!(connects.try_recv().is_err() && disconnects.try_recv().is_err());
    assert_eq!(soon("an event", events.next()).await, Some(Event::PeerConnected { node: b_id }));
    assert_eq!(soon("an event", events.next()).await, Some(Event::PeerDisconnected { node: b_id }));
    let mut byte = [0];
    let end = soon("the end of a stream", stream.read(&mut byte)).await;
    assert!(matches!(end, Ok(0) | Err(_)));
    assert_eq!(a.net.open(b_id, Channel::Control).await.unwrap_err(), NetError::NotConnected { node: b_id });
    assert!(a.net.peers().lookup(b_id).is_some_and(|info| !info.connected && !info.addresses.is_empty()));
}

/// A node whose runtime ends without closing connections: peers see the same as of a killed process, except that the system
/// closes its sockets.
#[tokio::test]
async fn a_killed_peer_is_detected() {
    for listen in [TCP, QUIC] {
        let a = node(listen).await;
        let target = address(&a);
        let mut disconnects = a.net.disconnects();
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let b = node(TCP).await;
            b.net.dial(&target).await.unwrap();
            let _ = sender.send(b.net.local());
            std::future::pending::<()>().await;
            drop(b);
        });
        let b_id = soon("a connection", receiver).await.unwrap();
        until("the peer", || a.net.peers().connected() == [b_id]).await;
        runtime.shutdown_background();
        assert_eq!(soon("a disconnect", disconnects.recv()).await, Ok(b_id), "{listen}");
    }
}

/// Forwards bytes between a client and `port` until frozen; then keeps both ends open without forwarding.
async fn freezable_wire(port: u16) -> (u16, tokio::sync::watch::Sender<bool>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let local = listener.local_addr().unwrap().port();
    let (freeze, mut frozen) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
            _ = frozen.changed() => {}
        }
        // Both ends stay open.
        std::future::pending::<()>().await;
        drop((client, server));
    });
    (local, freeze)
}

#[tokio::test]
async fn a_frozen_peer_is_detected_although_its_connection_stays_open() {
    let (a, b) = (node_with(config(&[])).await, node(TCP).await);
    let (wire, freeze) = freezable_wire(address::port(&address(&b).parse().unwrap())).await;
    let mut disconnects = a.net.disconnects();
    let b_id = soon("a connection", a.net.dial(&format!("/ip4/127.0.0.1/tcp/{wire}"))).await.unwrap();
    let _stream = a.net.open(b_id, Channel::Stage).await.unwrap();
    freeze.send(true).unwrap();
    assert_eq!(soon("a disconnect", disconnects.recv()).await, Ok(b_id));
    assert_eq!(a.net.open(b_id, Channel::Stage).await.unwrap_err(), NetError::NotConnected { node: b_id });
    soon("the end", a.net.shutdown()).await;
    until("no task", || a.tasks.is_empty()).await;
}

#[tokio::test]
async fn the_dialling_side_learns_why_another_network_refuses() {
    for listen in [TCP, QUIC] {
        let a = node(listen).await;
        let b = node_with(NetConfig { network: "other".into(), ..config(&[listen]) }).await;
        let error = soon("an error", a.net.dial(&address(&b))).await.unwrap_err();
        let NetError::WrongNetwork { theirs, .. } = &error else { panic!("{error}") };
        assert!(theirs.contains("other"), "{theirs}");
        until("no connection", || a.net.peers().snapshot().is_empty() && b.net.peers().snapshot().is_empty()).await;
    }
}

#[tokio::test]
async fn a_dial_without_an_answer_is_unreachable() {
    let a = node(TCP).await;
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let target = format!("/ip4/127.0.0.1/tcp/{port}");
    let error = soon("an error", a.net.dial(&target)).await.unwrap_err();
    assert!(matches!(&error, NetError::Unreachable { address, .. } if *address == target), "{error}");
    assert_eq!(error.kind(), ErrorKind::PeerUnreachable);
    let stranger = Keypair::generate().unwrap().node_id();
    let error = soon("an error", a.net.ensure_connected(stranger, &[])).await.unwrap_err();
    assert!(matches!(error, NetError::Unreachable { .. }), "{error}");
    assert_eq!(a.net.open(stranger, Channel::Control).await.unwrap_err(), NetError::NotConnected { node: stranger });
}

#[tokio::test]
async fn a_silent_peer_is_a_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let a = node_with(NetConfig { dial_deadline: Duration::from_millis(300), ..config(&[]) }).await;
    let error = soon("an error", a.net.dial(&format!("/ip4/127.0.0.1/tcp/{port}"))).await.unwrap_err();
    assert!(matches!(error, NetError::Timeout { millis: 300, .. }), "{error}");
}

#[tokio::test]
async fn a_peer_with_the_wrong_id_is_refused() {
    let (a, b) = (node(TCP).await, node(TCP).await);
    let other = address::peer_of(&Keypair::generate().unwrap().node_id()).unwrap();
    let target = address::with_peer(&address(&b).parse().unwrap(), other).to_string();
    let error = soon("an error", a.net.dial(&target)).await.unwrap_err();
    assert!(matches!(error, NetError::WrongPeer { .. }), "{error}");
}

#[tokio::test]
async fn a_node_does_not_connect_to_itself() {
    for listen in [TCP, QUIC] {
        let a = node(listen).await;
        let named = address(&a);
        let bare = named.split("/p2p/").next().unwrap().to_string();
        for target in [named, bare] {
            let error = soon("an error", a.net.dial(&target)).await.unwrap_err();
            assert!(matches!(error, NetError::SelfDial { .. }), "{target}: {error}");
        }
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    for listen in [TCP, QUIC] {
        let a = node(listen).await;
        let taken = address(&a).split("/p2p/").next().unwrap().to_string();
        let (key, tasks) = (Keypair::generate().unwrap(), TaskSet::new(Handle::current()));
        let error = start(config(&[&taken]), &key, EventBus::new(), tasks.clone()).await.err().unwrap();
        assert_eq!(error, NetError::PortInUse { address: taken });
        until("no task", || tasks.is_empty()).await;
    }
}

#[tokio::test]
async fn an_address_of_another_machine_cannot_be_listened_on() {
    let (key, tasks) = (Keypair::generate().unwrap(), TaskSet::new(Handle::current()));
    let error = start(config(&["/ip4/192.0.2.1/tcp/4001"]), &key, EventBus::new(), tasks).await.err().unwrap();
    assert!(matches!(error, NetError::Listen { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_beyond_the_limit_are_refused() {
    let (a, b) = (node(TCP).await, node(TCP).await);
    let b_id = a.net.dial(&address(&b)).await.unwrap();
    let (b_net, _tasks) = echo(b);
    let opens = (0..MAX_STREAMS_PER_PEER).map(|_| a.net.open(b_id, Channel::Control));
    let opened = soon("all streams", futures::future::join_all(opens)).await;
    let mut streams: Vec<Stream> = opened.into_iter().map(|stream| stream.unwrap()).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        soon("an echo", round_trip(stream, &[number as u8; 1000])).await;
    }
    let refused = a.net.open(b_id, Channel::Control).await.unwrap_err();
    assert_eq!(refused, NetError::TooManyStreams { node: b_id, max: MAX_STREAMS_PER_PEER });
    assert_eq!(b_net.dropped().streams, 0);
    streams.clear();
    // The other side frees its permits when it has seen the resets.
    soon("a free permit", async {
        loop {
            if let Ok(mut stream) = a.net.open(b_id, Channel::Control).await
                && stream.write_all(b"x").await.is_ok()
                && stream.flush().await.is_ok()
                && stream.read_exact(&mut [0]).await.is_ok()
            {
                break;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn streams_beyond_the_queue_are_reset_and_counted() {
    let mut b = node(TCP).await;
    let (b_id, target) = (b.net.local(), address(&b));
    let openers = [node(TCP).await, node(TCP).await, node(TCP).await];
    let mut kept = Vec::new();
    for opener in &openers {
        opener.net.dial(&target).await.unwrap();
        for _ in 0..MAX_STREAMS_PER_PEER {
            kept.push(opener.net.open(b_id, Channel::Shard).await.unwrap());
        }
    }
    let over = (kept.len() - config::INCOMING_QUEUE) as u64;
    until("the count", || b.net.dropped().streams == over).await;
    let end = soon("a reset", kept.last_mut().unwrap().read(&mut [0])).await;
    assert!(matches!(end, Ok(0) | Err(_)));
    kept.clear();
    // The last opener has no stream left in the full queue.
    let a = &openers[2];
    // Other channels are not affected.
    let mut stream = a.net.open(b_id, Channel::Control).await.unwrap();
    stream.write_all(b"x").await.unwrap();
    stream.flush().await.unwrap();
    soon("a stream", b.incoming.control.recv()).await.unwrap();
}

#[tokio::test]
async fn gossip_reaches_indirect_peers_with_its_author() {
    let (a, mut hub, mut c) = (node(TCP).await, node(TCP).await, node(QUIC).await);
    a.net.dial(&address(&hub)).await.unwrap();
    hub.net.dial(&address(&c)).await.unwrap();
    let message = b"what I hold".to_vec();
    let a_net = a.net.clone();
    let publish = async {
        // Subscriptions propagate in the background; each message differs, so that none is a duplicate.
        for number in 0u32.. {
            a_net.publish([message.as_slice(), &number.to_le_bytes()].concat()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let receive = async {
        for incoming in [&mut hub.incoming, &mut c.incoming] {
            let Gossip { author, bytes, .. } = incoming.gossip.recv().await.unwrap();
            assert_eq!(author, a.net.local());
            assert!(bytes.starts_with(&message));
        }
    };
    soon("gossip", async {
        tokio::select! {
            () = publish => {}
            () = receive => {}
        }
    })
    .await;
}

#[tokio::test]
async fn gossip_up_to_the_maximum_length_is_delivered() {
    let (a, mut b) = (node(TCP).await, node(TCP).await);
    a.net.dial(&address(&b)).await.unwrap();
    let too_long = a.net.publish(vec![0; MAX_GOSSIP_BYTES + 1]).await.unwrap_err();
    assert!(matches!(too_long, NetError::TooLong { .. }), "{too_long}");
    let a_net = a.net.clone();
    let publish = async {
        for number in 0u8.. {
            a_net.publish(vec![number; MAX_GOSSIP_BYTES]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    soon("gossip", async {
        tokio::select! {
            () = publish => panic!("never received"),
            received = b.incoming.gossip.recv() => assert_eq!(received.unwrap().bytes.len(), MAX_GOSSIP_BYTES),
        }
    })
    .await;
}

#[tokio::test]
async fn a_provider_is_found_through_a_third_node() {
    let (a, hub, c) = (node(TCP).await, node(TCP).await, node(TCP).await);
    a.net.dial(&address(&hub)).await.unwrap();
    c.net.dial(&address(&hub)).await.unwrap();
    let key = Hash([9; 32]);
    soon("an announcement", a.net.provide(key)).await.unwrap();
    soon("a provider", async {
        while c.net.find_providers(key).await.unwrap() != [a.net.local()] {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(soon("an answer", c.net.find_providers(Hash([8; 32]))).await, Ok(Vec::new()));
}

#[tokio::test]
async fn a_bootstrap_address_is_redialled_after_a_disconnect() {
    let first = node(TCP).await;
    let target = address(&first).split("/p2p/").next().unwrap().to_string();
    let a = node_with(NetConfig { bootstrap: vec![target.clone()], ..config(&[]) }).await;
    let mut connects = a.net.connects();
    until("the first peer", || a.net.peers().connected() == [first.net.local()]).await;
    let _ = connects.try_recv();
    first.net.shutdown().await;
    until("no connection", || a.net.peers().connected().is_empty()).await;
    // Another node at the same address: a bootstrap address without a peer id accepts any node.
    let second = node(&target).await;
    assert_eq!(soon("the second peer", connects.recv()).await, Ok(second.net.local()));
}

#[tokio::test]
async fn a_full_node_refuses_connections_and_keeps_existing_ones() {
    let a = node_with(NetConfig { max_connections: 1, ..config(&[TCP]) }).await;
    let (b, c) = (node_with(config(&[])).await, node_with(config(&[])).await);
    let (target, a_id) = (address(&a), a.net.local());
    assert_eq!(soon("a connection", b.net.dial(&target)).await, Ok(a_id));
    let error = soon("an error", c.net.dial(&target)).await.unwrap_err();
    assert!(matches!(error, NetError::Unreachable { .. }), "{error}");
    assert_eq!(a.net.peers().connected(), [b.net.local()]);
    assert!(b.net.open(a_id, Channel::Control).await.is_ok());
}

#[tokio::test]
async fn simultaneous_dials_connect_both_nodes() {
    for listen in [TCP, QUIC] {
        let (a, b) = (node(listen).await, node(listen).await);
        let (to_a, to_b) = (address(&a), address(&b));
        let both = async { futures::join!(a.net.dial(&to_b), b.net.dial(&to_a)) };
        assert_eq!(soon("connections", both).await, (Ok(b.net.local()), Ok(a.net.local())));
    }
}

#[tokio::test]
async fn a_disconnected_node_can_be_connected_again() {
    let (a, b) = (node(TCP).await, node(TCP).await);
    let (b_id, mut disconnects) = (b.net.local(), a.net.disconnects());
    a.net.dial(&address(&b)).await.unwrap();
    a.net.disconnect(b_id).await.unwrap();
    assert_eq!(soon("a disconnect", disconnects.recv()).await, Ok(b_id));
    // Its address is still known.
    soon("a connection", a.net.ensure_connected(b_id, &[])).await.unwrap();
}

#[tokio::test]
async fn after_shutdown_no_task_runs_and_calls_return_closed() {
    let (a, b) = (node_with(config(&[TCP, QUIC])).await, node(QUIC).await);
    a.net.dial(&address(&b)).await.unwrap();
    let _stream = a.net.open(b.net.local(), Channel::Control).await.unwrap();
    let addresses = a.net.addresses();
    soon("the end", a.net.shutdown()).await;
    soon("the end, again", a.net.shutdown()).await;
    until("no task", || a.tasks.is_empty()).await;
    assert!(a.net.addresses().is_empty());
    assert_eq!(a.net.dial(&address(&b)).await, Err(NetError::Closed));
    assert_eq!(a.net.open(b.net.local(), Channel::Control).await.unwrap_err(), NetError::Closed);
    assert_eq!(a.net.publish(vec![1]).await, Err(NetError::Closed));
    assert!(a.net.connects().recv().await.is_err());
    until("no connection", || b.net.peers().connected().is_empty()).await;
    for target in addresses {
        assert!(soon("an error", b.net.dial(&target)).await.is_err(), "no listener remains");
    }
}

#[test]
fn a_dropped_network_leaves_no_task() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (a, b) = (node_with(config(&[TCP, QUIC])).await, node_with(config(&[TCP, QUIC])).await);
        for target in b.net.addresses() {
            a.net.dial(&target).await.unwrap();
        }
        assert!(Handle::current().metrics().num_alive_tasks() > 0);
        drop((a, b));
        until("no task", || Handle::current().metrics().num_alive_tasks() == 0).await;
    });
}

#[tokio::test]
async fn the_task_set_ends_the_network() {
    let (a, b) = (node(TCP).await, node(TCP).await);
    let mut disconnects = b.net.disconnects();
    a.net.dial(&address(&b)).await.unwrap();
    until("the peer", || b.net.peers().connected() == [a.net.local()]).await;
    assert!(a.tasks.shutdown(PATIENCE).await);
    assert_eq!(soon("a disconnect", disconnects.recv()).await, Ok(a.net.local()));
}

// --- foreign peers ----------------------------------------------------------------------------------------------------

mod foreign {
    //! libp2p peers with other protocols.

    use libp2p::swarm::NetworkBehaviour;
    use libp2p::{Multiaddr, Swarm, identify, identity, ping, swarm};

    #[derive(NetworkBehaviour)]
    pub struct OtherProtocol {
        identify: identify::Behaviour,
        ping: ping::Behaviour,
    }

    fn new<B: NetworkBehaviour>(behaviour: impl FnOnce(&identity::Keypair) -> B) -> Swarm<B> {
        let key = identity::Keypair::generate_ed25519();
        let transport = super::transport::build(
            &key,
            None,
            libp2p::relay::client::new(key.public().to_peer_id()).0,
            &std::sync::Arc::new(super::meter::Meter::new(None)),
            &super::peers::PeerTable::new().1,
        )
        .unwrap();
        let config = swarm::Config::with_tokio_executor().with_idle_connection_timeout(super::PATIENCE);
        let mut swarm = Swarm::new(transport, behaviour(&key), key.public().to_peer_id(), config);
        swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse::<Multiaddr>().unwrap()).unwrap();
        swarm
    }

    /// Supports identify and ping with another protocol version.
    pub fn other_protocol() -> Swarm<OtherProtocol> {
        new(|key| OtherProtocol {
            identify: identify::Behaviour::new(identify::Config::new("/other/7".into(), key.public())),
            ping: ping::Behaviour::default(),
        })
    }

    /// Connects without any protocol.
    pub fn silent() -> Swarm<swarm::dummy::Behaviour> {
        new(|_| swarm::dummy::Behaviour)
    }
}

/// Runs a foreign swarm; returns its listen address.
async fn run_foreign<B>(mut swarm: libp2p::Swarm<B>) -> String
where
    B: libp2p::swarm::NetworkBehaviour<ToSwarm: Send> + Send,
{
    let address = loop {
        if let libp2p::swarm::SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address.to_string();
        }
    };
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    address
}

#[tokio::test]
async fn a_peer_with_another_protocol_is_refused_with_its_name() {
    let a = node(TCP).await;
    let target = run_foreign(foreign::other_protocol()).await;
    let error = soon("an error", a.net.dial(&target)).await.unwrap_err();
    let NetError::NotSwarmllm { theirs, .. } = &error else { panic!("{error}") };
    assert_eq!(theirs, "/other/7");
    until("no connection", || a.net.peers().snapshot().is_empty()).await;
}

#[tokio::test]
async fn a_peer_that_never_identifies_gets_no_streams_and_is_disconnected() {
    let a = node_with(NetConfig { dial_deadline: Duration::from_millis(300), ..config(&[TCP]) }).await;
    let mut connects = a.net.connects();
    let mut swarm = foreign::silent();
    let target = address(&a).parse::<libp2p::Multiaddr>().unwrap();
    swarm.dial(target).unwrap();
    let mute = address::node_of(swarm.local_peer_id()).unwrap();
    let address = run_foreign(swarm).await;
    until("the peer", || a.net.peers().lookup(mute).is_some_and(|info| info.connected && !info.identified)).await;
    assert_eq!(
        a.net.open(mute, Channel::Control).await.unwrap_err(),
        NetError::NoChannel { node: mute, channel: Channel::Control }
    );
    let error = soon("an error", a.net.dial(&address)).await.unwrap_err();
    assert!(matches!(error, NetError::Timeout { .. } | NetError::NotSwarmllm { .. }), "{error}");
    until("no connection", || a.net.peers().snapshot().is_empty()).await;
    assert!(connects.try_recv().is_err(), "no connect is reported");
}

#[tokio::test]
async fn a_node_survives_garbage_bytes() {
    use std::io::Write;
    let (a, b) = (node(TCP).await, node(TCP).await);
    let port = address::port(&address(&a).parse().unwrap());
    for _ in 0..20 {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _ = socket.write_all(&[0xff; 4096]);
    }
    let _held: Vec<_> = (0..20).map(|_| std::net::TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert_eq!(soon("a connection", b.net.dial(&address(&a))).await, Ok(a.net.local()));
}

#[tokio::test]
async fn an_invalid_node_id_is_not_connected() {
    let a = node(TCP).await;
    // Not a point of the curve.
    let nobody = NodeId([2; 32]);
    assert!(address::peer_of(&nobody).is_none());
    assert_eq!(a.net.open(nobody, Channel::Stage).await.unwrap_err(), NetError::NotConnected { node: nobody });
}
