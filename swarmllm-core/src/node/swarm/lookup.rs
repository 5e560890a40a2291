//! Finds unknown holders of a model in the DHT.
//!
//! An announcement reaches the nodes present when it is sent; a node that joins later looks models up by id or name. DHT
//! records are untrusted: each provider is greeted itself.

use std::sync::Arc;

use futures::future::join_all;

use crate::base::{Hash, NodeId};
use crate::net::NetHandle;
use crate::node::shared::SharedState;
use crate::node::swarm::announcer::Announcer;
use crate::node::swarm::registry::KnownNode;

/// Providers greeted per key.
const MAX_GREETED: usize = 16;

/// Looks up providers of `key` and greets those not greeted yet; returns how many answered.
pub(crate) async fn greet_providers(shared: &Arc<SharedState>, key: Hash) -> usize {
    let Some(net) = &shared.net else { return 0 };
    let providers = match net.find_providers(key).await {
        Ok(providers) => providers,
        Err(error) => {
            tracing::debug!(%error, "a DHT lookup failed");
            return 0;
        }
    };
    let known = shared.registry.snapshot();
    let greeted = |node: &NodeId| known.get(node).is_some_and(KnownNode::greeted);
    let strangers = providers.into_iter().filter(|node| !greeted(node)).take(MAX_GREETED);
    let greeted = join_all(strangers.map(|node| greet(&shared.announcer, net, node))).await;
    greeted.into_iter().filter(|answered| *answered).count()
}

async fn greet(announcer: &Announcer, net: &NetHandle, node: NodeId) -> bool {
    let greeted = match net.ensure_connected(node, &[]).await {
        Ok(()) => announcer.hello(node).await.map_err(|fault| fault.to_string()),
        Err(error) => Err(error.to_string()),
    };
    greeted.inspect_err(|reason| tracing::debug!(peer = %node, reason, "a provider did not answer")).is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::time::{Duration, Instant};

    use tempfile::TempDir;

    use super::*;
    use crate::identity::Keypair;
    use crate::net::{self, Incoming, NetConfig};
    use crate::node::Node;
    use crate::node::swarm::dht_keys::dht_key_of_name;
    use crate::pipeline::link::request::{read_request, write_reply};
    use crate::rt::{EventBus, TaskSet};
    use crate::wire::control::{Reply, Request};

    const LISTEN: &str = "/ip4/127.0.0.1/tcp/0";
    /// Deadline of every expected event.
    const SOON: Duration = Duration::from_secs(30);
    /// Refused hellos that prove the connection's own hello was refused: that one and two of a lookup.
    const ENOUGH: usize = 3;

    /// A peer's network without a node. Answers hellos once `willing`.
    struct Peer {
        net: NetHandle,
        willing: Arc<AtomicBool>,
        refused: Arc<AtomicUsize>,
        tasks: TaskSet,
    }

    impl Drop for Peer {
        fn drop(&mut self) {
            self.tasks.abort();
        }
    }

    impl Peer {
        async fn start(network: &str, willing: bool) -> Self {
            let listen = vec![LISTEN.to_owned()];
            let config = NetConfig { network: network.to_owned(), listen, mdns: false, ..NetConfig::default() };
            let tasks = TaskSet::new(tokio::runtime::Handle::current());
            let key = Keypair::generate().unwrap();
            let (net, incoming) = net::start(config, &key, EventBus::new(), tasks.clone()).await.unwrap();
            let (willing, refused) = (Arc::new(AtomicBool::new(willing)), Arc::new(AtomicUsize::new(0)));
            tasks.spawn("peer", Self::serve(incoming, willing.clone(), refused.clone()));
            Self { net, willing, refused, tasks }
        }

        async fn serve(mut incoming: Incoming, willing: Arc<AtomicBool>, refused: Arc<AtomicUsize>) {
            while let Some((_, mut stream)) = incoming.control.recv().await {
                let Ok(Some(Request::Hello(greeting))) = read_request(&mut stream).await else { continue };
                if willing.load(Ordering::Relaxed) {
                    let _ = write_reply(&mut stream, &Reply::Hello(greeting)).await;
                } else {
                    refused.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Each connection begins with a hello and may have another cause; so the holder answers only later hellos.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_lookup_greets_providers_and_counts_those_that_answer() {
        let (network, dir) = (format!("lookup-{}", std::process::id()), TempDir::new().unwrap());
        let (hub, holder) = (Peer::start(&network, true).await, Peer::start(&network, false).await);
        holder.net.dial(&hub.net.addresses()[0]).await.unwrap();
        let builder = Node::builder().data_dir(dir.path().join("data")).network(&network).mdns(false);
        let late = builder.listen(vec![LISTEN.to_owned()]).serve(false).start().await.unwrap();
        late.connect(&hub.net.addresses()[0]).await.unwrap();
        let key = dht_key_of_name("lighthouse");
        holder.net.provide(key).await.unwrap();
        let begun = Instant::now();
        while holder.refused.load(Ordering::Relaxed) < ENOUGH {
            assert_eq!(greet_providers(late.shared(), key).await, 0, "the holder does not answer yet");
            assert!(begun.elapsed() < SOON, "the DHT names the holder");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        holder.willing.store(true, Ordering::Relaxed);
        assert_eq!(greet_providers(late.shared(), key).await, 1);
        assert_eq!(greet_providers(late.shared(), key).await, 0, "a greeted holder is not greeted again");
        late.shutdown(Duration::from_secs(5)).await;
    }
}
