//! Peer exchange: a node with few peers asks each new peer for others, once, and dials them.
//!
//! The DHT (Kademlia) also searches for neighbours while its table has few entries, and connects a small swarm fully. A DHT
//! query returns entries near some id from the asked peer's table; peer exchange returns the peers that it is connected to,
//! in one round trip, even if a table is empty, full or slow. Named peers are untrusted: a wrong address is a failed dial.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, NodeId};
use crate::net::{NetHandle, PeerInfo};
use crate::pipeline::link::request::{request, unexpected};
use crate::wire::announce::Announcement;
use crate::wire::control::{Host, MAX_PEER_ADDRESSES, MAX_PEERS, Reply, Request, check_peers};

/// Connected peers beyond which a node asks for no others.
const ENOUGH: usize = 16;
/// Deadline of a reply.
const DEADLINE: Duration = Duration::from_secs(10);
/// Least time between two requests to a peer. All dials of an exchange end within it.
const INTERVAL: Duration = Duration::from_secs(60);
/// Most peers asked within that time, under any churn.
const MAX_ASKED: usize = 64;
/// Most dials per answer.
const MAX_DIALS: usize = 16;
/// Concurrent dials over all exchanges; the rest of the dial budget is for other dials.
const MAX_PARALLEL_DIALS: usize = 4;

/// Times of requests per peer, and permits to dial.
pub(crate) struct PeerExchange {
    asked: Mutex<HashMap<NodeId, Instant>>,
    permits: Semaphore,
}

impl PeerExchange {
    pub fn new() -> Self {
        Self { asked: Mutex::default(), permits: Semaphore::new(MAX_PARALLEL_DIALS) }
    }

    /// Whether to ask this peer now; if so, records it as asked.
    fn begin(&self, peer: NodeId, now: Instant) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, when| now.duration_since(*when) < INTERVAL);
        let new = asked.len() < MAX_ASKED && !asked.contains_key(&peer);
        if new {
            asked.insert(peer, now);
        }
        new
    }

    /// Asks a peer for others and dials them, if this node has few. Ends when the node stops.
    pub async fn ask(&self, net: &NetHandle, peer: NodeId, stopping: &CancellationToken) {
        if knows_enough(net) || !self.begin(peer, Instant::now()) {
            return;
        }
        let work = async {
            match request_peers(net, peer).await {
                Ok(hosts) => self.dial(net, peer, hosts).await,
                Err(fault) => tracing::debug!(%peer, %fault, "a peer named no others"),
            }
        };
        let _ = stopping.run_until_cancelled(tokio::time::timeout(INTERVAL, work)).await;
    }

    async fn dial(&self, net: &NetHandle, namer: NodeId, hosts: Vec<Host>) {
        let mut known: HashSet<NodeId> = net.peers().connected().into_iter().chain([net.local()]).collect();
        let new = hosts.into_iter().filter(|host| known.insert(host.node)).take(MAX_DIALS);
        let dials = futures::stream::iter(new).for_each_concurrent(MAX_PARALLEL_DIALS, |host| async move {
            // Never fails: nobody closes the semaphore.
            let Ok(_permit) = self.permits.acquire().await else { return };
            if knows_enough(net) {
                return;
            }
            if let Err(error) = net.ensure_reported(host.node, &host.addresses, namer).await {
                tracing::debug!(peer = %host.node, %namer, %error, "a named peer could not be reached");
            }
        });
        dials.await;
    }
}

/// Peers to name to `asker`: connected ones, in the order of ids from the asker's id on, which spreads askers over all
/// peers.
pub(crate) fn peers_for(asker: NodeId, known: Vec<PeerInfo>) -> Vec<Host> {
    let host = |peer: PeerInfo| {
        let short = peer.addresses.into_iter().filter(|text| text.len() <= Announcement::MAX_TEXT);
        Host { node: peer.node, addresses: short.take(MAX_PEER_ADDRESSES).collect() }
    };
    let others = known.into_iter().filter(|peer| peer.connected && peer.identified && peer.node != asker);
    let (behind, before): (Vec<Host>, Vec<Host>) = others.map(host).partition(|peer| peer.node > asker);
    let dialable = behind.into_iter().chain(before).filter(|peer| !peer.addresses.is_empty());
    dialable.take(MAX_PEERS).collect()
}

fn knows_enough(net: &NetHandle) -> bool {
    net.peers().connected().len() >= ENOUGH
}

async fn request_peers(net: &NetHandle, peer: NodeId) -> Result<Vec<Host>, Fault> {
    let Reply::Peers(hosts) = request(net, peer, &Request::Peers, DEADLINE).await? else {
        return Err(unexpected(peer));
    };
    check_peers(&hosts).map_err(|error| Fault::new(ErrorKind::BadFrame, error))?;
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tempfile::TempDir;
    use tokio::net::TcpListener;

    use super::*;
    use crate::identity::Keypair;
    use crate::net::{self, Incoming, NetConfig};
    use crate::node::Node;
    use crate::pipeline::link::request::{read_request, write_reply};
    use crate::rt::{EventBus, TaskSet};

    const LISTEN: &str = "/ip4/127.0.0.1/tcp/0";
    const CLOSING: Duration = Duration::from_secs(5);
    /// Deadline of every expected event.
    const SOON: Duration = Duration::from_secs(30);
    /// Wait that shows that nothing happens.
    const QUIET: Duration = Duration::from_millis(500);

    async fn node(dir: &TempDir, network: &str) -> Node {
        let builder = Node::builder().data_dir(dir.path().join("data")).network(network).mdns(false);
        builder.listen(vec![LISTEN.to_owned()]).serve(false).start().await.unwrap()
    }

    fn network(name: &str) -> String {
        format!("exchange-{name}-{}", std::process::id())
    }

    async fn eventually(what: &str, so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !so() {
            assert!(begun.elapsed() < SOON, "{what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn stranger(seed: u8) -> NodeId {
        Keypair::from_seed(&[seed; 32]).node_id()
    }

    fn host(node: NodeId, address: &str) -> Host {
        Host { node, addresses: vec![address.to_owned()] }
    }

    /// A peer's network without a node. It is not connected to the peers that it names, so neither the DHT nor gossip leads
    /// to them.
    struct NamingPeer {
        net: NetHandle,
        asked: Arc<AtomicUsize>,
        tasks: TaskSet,
    }

    impl Drop for NamingPeer {
        fn drop(&mut self) {
            self.tasks.abort();
        }
    }

    impl NamingPeer {
        async fn start(network: &str, names: Vec<Host>) -> Self {
            let listen = vec![LISTEN.to_owned()];
            let config = NetConfig { network: network.to_owned(), listen, mdns: false, ..NetConfig::default() };
            let tasks = TaskSet::new(tokio::runtime::Handle::current());
            let key = Keypair::generate().unwrap();
            let (net, incoming) = net::start(config, &key, EventBus::new(), tasks.clone()).await.unwrap();
            let asked = Arc::new(AtomicUsize::new(0));
            tasks.spawn("naming-peer", Self::serve(incoming, names, asked.clone()));
            Self { net, asked, tasks }
        }

        async fn serve(mut incoming: Incoming, names: Vec<Host>, asked: Arc<AtomicUsize>) {
            while let Some((_, mut stream)) = incoming.control.recv().await {
                let reply = match read_request(&mut stream).await {
                    Ok(Some(Request::Hello(greeting))) => Reply::Hello(greeting),
                    Ok(Some(Request::Peers)) => {
                        asked.fetch_add(1, Ordering::Relaxed);
                        Reply::Peers(names.clone())
                    }
                    _ => continue,
                };
                let _ = write_reply(&mut stream, &reply).await;
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_newcomer_connects_to_the_peers_that_its_only_peer_names() {
        let (network, dirs) = (network("newcomer"), [TempDir::new().unwrap(), TempDir::new().unwrap()]);
        let (newcomer, other) = (node(&dirs[0], &network).await, node(&dirs[1], &network).await);
        let namer = NamingPeer::start(&network, vec![host(other.id(), &other.addresses()[0])]).await;
        newcomer.connect(&namer.net.addresses()[0]).await.unwrap();
        let peers = newcomer.shared().net.as_ref().unwrap().peers();
        eventually("the named peer is connected", || peers.connected().contains(&other.id())).await;
        for node in [newcomer, other] {
            node.shutdown(CLOSING).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_without_a_model_names_its_peers_except_the_asker() {
        let (network, dirs) = (network("named"), [TempDir::new().unwrap(), TempDir::new().unwrap()]);
        let (known, asked) = (node(&dirs[0], &network).await, node(&dirs[1], &network).await);
        known.connect(&asked.addresses()[0]).await.unwrap();
        let asker = NamingPeer::start(&network, Vec::new()).await;
        asker.net.dial(&asked.addresses()[0]).await.unwrap();
        let peers = asked.shared().net.as_ref().unwrap().peers();
        eventually("both peers are connected", || peers.connected().len() == 2).await;
        let named = request_peers(&asker.net, asked.id()).await.unwrap();
        assert_eq!(named, [host(known.id(), &known.addresses()[0])]);
        for node in [known, asked] {
            node.shutdown(CLOSING).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn wrong_addresses_cost_a_bounded_number_of_dials() {
        let (network, dir) = (network("wrong"), TempDir::new().unwrap());
        let newcomer = node(&dir, &network).await;
        let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let deaf_at = format!("/ip4/127.0.0.1/tcp/{}", deaf.local_addr().unwrap().port());
        // These bytes encode no point of the curve.
        let no_key = NodeId([2; 32]);
        let mut names = vec![host(newcomer.id(), &deaf_at), host(no_key, &deaf_at)];
        names.extend([host(stranger(0), "nowhere"), host(stranger(0), &deaf_at), host(stranger(1), "")]);
        names.extend((2..).map(|seed| host(stranger(seed), &deaf_at)).take(MAX_PEERS - names.len()));
        let namer = NamingPeer::start(&network, names).await;
        let dials = Arc::new(AtomicUsize::new(0));
        let counted = dials.clone();
        namer.tasks.spawn("deaf", async move {
            while let Ok((stream, _)) = deaf.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                drop(stream);
            }
        });
        newcomer.connect(&namer.net.addresses()[0]).await.unwrap();
        // Of the first sixteen other nodes, three lack an address or a valid key.
        let (shared, id) = (newcomer.shared(), namer.net.local());
        eventually("all named peers are dialled", || dials.load(Ordering::Relaxed) >= MAX_DIALS - 3).await;
        shared.peer_exchange.ask(shared.net.as_ref().unwrap(), id, &shared.tasks.stopping()).await;
        tokio::time::sleep(QUIET).await;
        assert_eq!(dials.load(Ordering::Relaxed), MAX_DIALS - 3);
        assert_eq!(namer.asked.load(Ordering::Relaxed), 1);
        assert_eq!(shared.net.as_ref().unwrap().peers().connected(), [id]);
        newcomer.shutdown(CLOSING).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_beyond_the_limits_is_refused() {
        let network = network("bounds");
        let names = (0..).map(|seed| host(stranger(seed), LISTEN)).take(MAX_PEERS + 1).collect();
        let (namer, asker) = (NamingPeer::start(&network, names).await, NamingPeer::start(&network, Vec::new()).await);
        asker.net.dial(&namer.net.addresses()[0]).await.unwrap();
        let refused = request_peers(&asker.net, namer.net.local()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BadFrame);
    }

    #[test]
    fn requests_are_limited_per_peer_and_in_total() {
        let (exchange, start) = (PeerExchange::new(), Instant::now());
        assert!(exchange.begin(stranger(0), start));
        assert!(!exchange.begin(stranger(0), start + INTERVAL / 2));
        let begun = (1..).take(MAX_ASKED).filter(|seed| exchange.begin(stranger(*seed), start)).count();
        assert_eq!(begun, MAX_ASKED - 1);
        assert!(exchange.begin(stranger(0), start + INTERVAL));
    }

    #[test]
    fn named_peers_are_connected_and_dialable() {
        let id = |name: u8| NodeId([name; 32]);
        let peer = |name: u8| PeerInfo {
            node: id(name),
            addresses: vec![LISTEN.to_owned(); MAX_PEER_ADDRESSES + 1],
            connected: true,
            identified: true,
            rtt: None,
            transport: None,
            agent: None,
        };
        let named =
            |asker: u8, known| peers_for(id(asker), known).into_iter().map(|host| host.node).collect::<Vec<_>>();
        assert_eq!(named(2, vec![peer(1), peer(2), peer(3)]), [id(3), id(1)]);
        let gone = PeerInfo { connected: false, ..peer(1) };
        let hidden = PeerInfo { addresses: vec!["x".repeat(Announcement::MAX_TEXT + 1)], ..peer(2) };
        assert!(named(9, vec![gone, hidden, PeerInfo { identified: false, ..peer(3) }]).is_empty());
        let all = peers_for(id(9), (10..100).map(peer).collect());
        assert_eq!(all.len(), MAX_PEERS);
        assert!(check_peers(&all).is_ok());
    }
}
