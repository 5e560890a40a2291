//! Peers name peers: who knows few asks each that it meets for others, once, and dials those.
//!
//! The swarm's table (Kademlia) searches for neighbours too, as long as it has few entries, and connects all of a small swarm.
//! It gives whom the asked peer has in its own table, near to some id; this gives whom that peer is connected to, in one round
//! trip, also where a table is empty, full or slow. What a peer names is never believed: a wrong address is a dial that fails.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, NodeId};
use crate::net::{NetHandle, PeerInfo};
use crate::pipeline::control::{request, unexpected};
use crate::wire::announce::Announcement;
use crate::wire::control::{Host, MAX_PEER_ADDRESSES, MAX_PEERS, Reply, Request, check_peers};

/// Peers with whom a node knows enough: it asks for no others.
const ENOUGH: usize = 16;
/// How long a peer may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);
/// A peer is asked again after this time at the earliest. All dials of an exchange have ended by then.
const AGAIN: Duration = Duration::from_secs(60);
/// Peers that are asked within that time, whoever comes and goes.
const MAX_ASKED: usize = 64;
/// Peers that are dialled because one peer has named them.
const MAX_DIALS: usize = 16;
/// Those that are dialled at once, whoever has named them: other dials want room as well.
const MAX_DIALS_AT_ONCE: usize = 4;

/// Who was asked when, and the turns to dial.
pub(crate) struct Exchange {
    asked: Mutex<HashMap<NodeId, Instant>>,
    turns: Semaphore,
}

impl Exchange {
    pub fn new() -> Self {
        Self { asked: Mutex::default(), turns: Semaphore::new(MAX_DIALS_AT_ONCE) }
    }

    /// Whether to ask this peer; if so, it counts as asked.
    fn begin(&self, peer: NodeId, now: Instant) -> bool {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.retain(|_, when| now.duration_since(*when) < AGAIN);
        let new = asked.len() < MAX_ASKED && !asked.contains_key(&peer);
        if new {
            asked.insert(peer, now);
        }
        new
    }

    /// Asks a peer for others and dials them, where this node knows few; until the node stops.
    pub async fn ask(&self, net: &NetHandle, peer: NodeId, stopping: &CancellationToken) {
        if knows_enough(net) || !self.begin(peer, Instant::now()) {
            return;
        }
        let work = async {
            match named_by(net, peer).await {
                Ok(hosts) => self.dial(net, peer, hosts).await,
                Err(fault) => tracing::debug!(%peer, %fault, "a peer named no others"),
            }
        };
        let _ = stopping.run_until_cancelled(tokio::time::timeout(AGAIN, work)).await;
    }

    async fn dial(&self, net: &NetHandle, teller: NodeId, hosts: Vec<Host>) {
        let mut known: HashSet<NodeId> = net.peers().connected().into_iter().chain([net.local()]).collect();
        let new = hosts.into_iter().filter(|host| known.insert(host.node)).take(MAX_DIALS);
        let dials = futures::stream::iter(new).for_each_concurrent(MAX_DIALS_AT_ONCE, |host| async move {
            // Nobody closes the turns, so that one comes.
            let Ok(_turn) = self.turns.acquire().await else { return };
            if knows_enough(net) {
                return;
            }
            if let Err(error) = net.ensure_as_told(host.node, &host.addresses, teller).await {
                tracing::debug!(peer = %host.node, %teller, %error, "a named peer could not be reached");
            }
        });
        dials.await;
    }
}

/// Whom this node names to `asker`, of those that it knows: some that are connected, beginning behind the asker in the order
/// of ids, so that not all askers are sent to the same few.
pub(crate) fn peers_for(asker: NodeId, known: Vec<PeerInfo>) -> Vec<Host> {
    let host = |peer: PeerInfo| {
        let short = peer.addresses.into_iter().filter(|text| text.len() <= Announcement::MAX_TEXT);
        Host { node: peer.node, addresses: short.take(MAX_PEER_ADDRESSES).collect() }
    };
    let others = known.into_iter().filter(|peer| peer.connected && peer.speaks && peer.node != asker);
    let (behind, before): (Vec<Host>, Vec<Host>) = others.map(host).partition(|peer| peer.node > asker);
    let dialable = behind.into_iter().chain(before).filter(|peer| !peer.addresses.is_empty());
    dialable.take(MAX_PEERS).collect()
}

fn knows_enough(net: &NetHandle) -> bool {
    net.peers().connected().len() >= ENOUGH
}

async fn named_by(net: &NetHandle, peer: NodeId) -> Result<Vec<Host>, Fault> {
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
    use crate::pipeline::control::{read_request, write_reply};
    use crate::rt::{EventBus, TaskSet};

    const LISTEN: &str = "/ip4/127.0.0.1/tcp/0";
    const CLOSING: Duration = Duration::from_secs(5);
    /// Time within which anything here happens.
    const SOON: Duration = Duration::from_secs(30);
    /// Time within which nothing happens where nothing is to.
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

    /// The network of a peer, without the node. It is connected to nobody whom it names, so that neither the table nor
    /// gossip leads to them.
    struct Teller {
        net: NetHandle,
        asked: Arc<AtomicUsize>,
        tasks: TaskSet,
    }

    impl Drop for Teller {
        fn drop(&mut self) {
            self.tasks.abort();
        }
    }

    impl Teller {
        async fn start(network: &str, names: Vec<Host>) -> Self {
            let listen = vec![LISTEN.to_owned()];
            let config = NetConfig { network: network.to_owned(), listen, mdns: false, ..NetConfig::default() };
            let tasks = TaskSet::new(tokio::runtime::Handle::current());
            let key = Keypair::generate().unwrap();
            let (net, incoming) = net::start(config, &key, EventBus::new(), tasks.clone()).await.unwrap();
            let asked = Arc::new(AtomicUsize::new(0));
            tasks.spawn("teller", Self::serve(incoming, names, asked.clone()));
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
    async fn a_newcomer_comes_to_be_connected_to_whom_the_one_peer_names_that_it_knows() {
        let (network, dirs) = (network("newcomer"), [TempDir::new().unwrap(), TempDir::new().unwrap()]);
        let (newcomer, other) = (node(&dirs[0], &network).await, node(&dirs[1], &network).await);
        let teller = Teller::start(&network, vec![host(other.id(), &other.addresses()[0])]).await;
        newcomer.connect(&teller.net.addresses()[0]).await.unwrap();
        let peers = newcomer.shared().net.as_ref().unwrap().peers();
        eventually("the other is met", || peers.connected().contains(&other.id())).await;
        for node in [newcomer, other] {
            node.shutdown(CLOSING).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_node_without_a_model_names_its_peers_and_not_the_asker() {
        let (network, dirs) = (network("named"), [TempDir::new().unwrap(), TempDir::new().unwrap()]);
        let (known, asked) = (node(&dirs[0], &network).await, node(&dirs[1], &network).await);
        known.connect(&asked.addresses()[0]).await.unwrap();
        let asker = Teller::start(&network, Vec::new()).await;
        asker.net.dial(&asked.addresses()[0]).await.unwrap();
        let peers = asked.shared().net.as_ref().unwrap().peers();
        eventually("both are there", || peers.connected().len() == 2).await;
        let named = named_by(&asker.net, asked.id()).await.unwrap();
        assert_eq!(named, [host(known.id(), &known.addresses()[0])]);
        for node in [known, asked] {
            node.shutdown(CLOSING).await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn wrong_addresses_cost_a_bounded_number_of_dials_once() {
        let (network, dir) = (network("wrong"), TempDir::new().unwrap());
        let newcomer = node(&dir, &network).await;
        let deaf = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let deaf_at = format!("/ip4/127.0.0.1/tcp/{}", deaf.local_addr().unwrap().port());
        // No point of the curve has these bytes.
        let no_key = NodeId([2; 32]);
        let mut names = vec![host(newcomer.id(), &deaf_at), host(no_key, &deaf_at)];
        names.extend([host(stranger(0), "nowhere"), host(stranger(0), &deaf_at), host(stranger(1), "")]);
        names.extend((2..).map(|seed| host(stranger(seed), &deaf_at)).take(MAX_PEERS - names.len()));
        let teller = Teller::start(&network, names).await;
        let dials = Arc::new(AtomicUsize::new(0));
        let counted = dials.clone();
        teller.tasks.spawn("deaf", async move {
            while let Ok((stream, _)) = deaf.accept().await {
                counted.fetch_add(1, Ordering::Relaxed);
                drop(stream);
            }
        });
        newcomer.connect(&teller.net.addresses()[0]).await.unwrap();
        // Of the first sixteen that are somebody else, three have no address or no key.
        let (shared, id) = (newcomer.shared(), teller.net.local());
        eventually("all are dialled", || dials.load(Ordering::Relaxed) >= MAX_DIALS - 3).await;
        shared.exchange.ask(shared.net.as_ref().unwrap(), id, &shared.tasks.stopping()).await;
        tokio::time::sleep(QUIET).await;
        assert_eq!(dials.load(Ordering::Relaxed), MAX_DIALS - 3);
        assert_eq!(teller.asked.load(Ordering::Relaxed), 1);
        assert_eq!(shared.net.as_ref().unwrap().peers().connected(), [id]);
        newcomer.shutdown(CLOSING).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_answer_beyond_the_bounds_is_refused() {
        let network = network("bounds");
        let names = (0..).map(|seed| host(stranger(seed), LISTEN)).take(MAX_PEERS + 1).collect();
        let (teller, asker) = (Teller::start(&network, names).await, Teller::start(&network, Vec::new()).await);
        asker.net.dial(&teller.net.addresses()[0]).await.unwrap();
        let refused = named_by(&asker.net, teller.net.local()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::BadFrame);
    }

    #[test]
    fn a_peer_is_asked_once_in_a_while_and_few_are_whoever_comes() {
        let (exchange, start) = (Exchange::new(), Instant::now());
        assert!(exchange.begin(stranger(0), start));
        assert!(!exchange.begin(stranger(0), start + AGAIN / 2));
        let begun = (1..).take(MAX_ASKED).filter(|seed| exchange.begin(stranger(*seed), start)).count();
        assert_eq!(begun, MAX_ASKED - 1);
        assert!(exchange.begin(stranger(0), start + AGAIN));
    }

    #[test]
    fn askers_are_named_other_peers_that_are_connected_and_can_be_dialled() {
        let id = |name: u8| NodeId([name; 32]);
        let peer = |name: u8| PeerInfo {
            node: id(name),
            addresses: vec![LISTEN.to_owned(); MAX_PEER_ADDRESSES + 1],
            connected: true,
            speaks: true,
            rtt: None,
            transport: None,
            agent: None,
        };
        let named =
            |asker: u8, known| peers_for(id(asker), known).into_iter().map(|host| host.node).collect::<Vec<_>>();
        assert_eq!(named(2, vec![peer(1), peer(2), peer(3)]), [id(3), id(1)]);
        let gone = PeerInfo { connected: false, ..peer(1) };
        let hidden = PeerInfo { addresses: vec!["x".repeat(Announcement::MAX_TEXT + 1)], ..peer(2) };
        assert!(named(9, vec![gone, hidden, PeerInfo { speaks: false, ..peer(3) }]).is_empty());
        let all = peers_for(id(9), (10..100).map(peer).collect());
        assert_eq!(all.len(), MAX_PEERS);
        assert!(check_peers(&all).is_ok());
    }
}
