//! Finds holders of a model that this node has not heard of, through the swarm's table.
//!
//! Announcements reach who is there when they are made; who came later looks a model up under its id or its name. What
//! the table says is never believed: each provider is asked itself, by a hello.

use std::sync::Arc;

use futures::future::join_all;

use crate::base::{Hash, NodeId};
use crate::net::NetHandle;
use crate::node::shared::Shared;
use crate::node::swarm::directory::Announced;

/// Providers of one key that are asked.
const MAX_ASKED: usize = 16;
/// Looks for who announced `key`, says hello to those that are new, and gives how many answered.
pub(crate) async fn seek(shared: &Arc<Shared>, key: Hash) -> usize {
    let Some(net) = &shared.net else { return 0 };
    let providers = match net.find_providers(key).await {
        Ok(providers) => providers,
        Err(error) => {
            tracing::debug!(%error, "the swarm's table could not be asked");
            return 0;
        }
    };
    let known = shared.registry.snapshot();
    let greeted = |node: &NodeId| known.get(node).is_some_and(Announced::greeted);
    let strangers = providers.into_iter().filter(|node| !greeted(node)).take(MAX_ASKED);
    let met = join_all(strangers.map(|node| meet(shared, net, node))).await;
    met.into_iter().filter(|met| *met).count()
}

async fn meet(shared: &Shared, net: &NetHandle, node: NodeId) -> bool {
    let met = match net.ensure_connected(node, &[]).await {
        Ok(()) => shared.announcer.hello(node).await.map_err(|fault| fault.to_string()),
        Err(error) => Err(error.to_string()),
    };
    met.inspect_err(|reason| tracing::debug!(peer = %node, reason, "a provider could not be asked")).is_ok()
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
    use crate::node::swarm::table_keys::key_of_name;
    use crate::pipeline::control::{read_request, write_reply};
    use crate::rt::{EventBus, TaskSet};
    use crate::wire::control::{Reply, Request};

    const LISTEN: &str = "/ip4/127.0.0.1/tcp/0";
    /// Time within which anything here happens.
    const SOON: Duration = Duration::from_secs(30);
    /// Hellos after which the one that a connection begins with has surely been refused: it and two of a search.
    const ENOUGH: usize = 3;

    /// A peer's network without the node, that answers hellos once it is willing to.
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

    /// Connections come by other ways as well, and each begins with a hello; so the holder answers only what comes after.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_search_asks_the_providers_that_the_table_names_and_believes_none_that_does_not_answer() {
        let (network, dir) = (format!("seek-{}", std::process::id()), TempDir::new().unwrap());
        let (hub, holder) = (Peer::start(&network, true).await, Peer::start(&network, false).await);
        holder.net.dial(&hub.net.addresses()[0]).await.unwrap();
        let builder = Node::builder().data_dir(dir.path().join("data")).network(&network).mdns(false);
        let late = builder.listen(vec![LISTEN.to_owned()]).serve(false).start().await.unwrap();
        late.connect(&hub.net.addresses()[0]).await.unwrap();
        let key = key_of_name("lighthouse");
        holder.net.provide(key).await.unwrap();
        let begun = Instant::now();
        while holder.refused.load(Ordering::Relaxed) < ENOUGH {
            assert_eq!(seek(late.shared(), key).await, 0, "it has not answered");
            assert!(begun.elapsed() < SOON, "the table names the holder");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        holder.willing.store(true, Ordering::Relaxed);
        assert_eq!(seek(late.shared(), key).await, 1);
        assert_eq!(seek(late.shared(), key).await, 0, "who is known is not asked again");
        late.shutdown(Duration::from_secs(5)).await;
    }
}
