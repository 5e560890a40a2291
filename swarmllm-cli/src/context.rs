//! The context of a command: its settings and its node.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::{MAX_TEMPLATE, Node, NodeBuilder, Preset, WebSource};

use crate::args::{Global, MeetArgs};
use crate::config::{Flags, Settings};
use crate::failure::Failure;
use crate::{input, print};

/// Variable of the data directory, if no flag gives it.
const DATA_DIR_VARIABLE: &str = "SWARMLLM_DATA_DIR";
/// Time for the shutdown of a command's node.
const CLOSE: Duration = Duration::from_secs(3);
/// Pause between attempts while peers are missing.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// Settings of a command.
pub struct Context {
    pub json: bool,
    pub data_dir: PathBuf,
    pub settings: Settings,
}

impl Context {
    pub fn load(global: &Global, flags: &Flags) -> Result<Self, Failure> {
        let data_dir = data_dir(global)?;
        let variables = std::env::vars_os()
            .map(|(name, text)| (name.to_string_lossy().into_owned(), text.to_string_lossy().into_owned()));
        let settings = Settings::load(&data_dir, variables, flags)?;
        Ok(Self { json: global.json, data_dir, settings })
    }

    /// A node without network.
    pub async fn offline(&self) -> Result<Node, Failure> {
        Ok(self.builder()?.preset(Preset::Offline).start().await?)
    }

    /// A node for one command: it uses free ports and does not compute for peers.
    pub async fn client(&self, peers: &[String]) -> Result<Node, Failure> {
        let builder = match &self.settings.listen {
            Some(listen) => self.builder()?.listen(listen.clone()),
            None => self.builder()?,
        };
        let node = self.online(builder.preset(Preset::Lan).serve(false)).start().await?;
        for peer in peers {
            node.connect(peer).await?;
        }
        Ok(node)
    }

    /// The node of `run`.
    pub async fn server_node(&self) -> Result<Node, Failure> {
        let builder = self.builder()?.preset(Preset::Public).listen(self.settings.p2p_listen()?);
        Ok(self.online(builder.serve(self.settings.serve)).start().await?)
    }

    /// Joins the swarm of an invite; the returned node has no network.
    pub async fn join(&self, invite: &str) -> Result<Node, Failure> {
        Ok(self.builder()?.join(invite).preset(Preset::Offline).start().await?)
    }

    /// How long to wait for peers; zero if the node has no way to find any.
    pub fn patience(&self, meet: &MeetArgs) -> Duration {
        let finds_peers = self.settings.mdns || !self.settings.bootstrap.is_empty() || !meet.peer.is_empty();
        Duration::from_secs(if finds_peers { meet.wait.into() } else { 0 })
    }

    /// A file on the web. The hub's token is sent for files of the hub only.
    pub fn web(&self, address: &str) -> WebSource {
        let settings = &self.settings;
        let mut source = WebSource::new(address);
        if source.is_of_hub() {
            source.token.clone_from(&settings.hub_token);
        }
        if let Some(hub) = &settings.hub {
            source.hub.clone_from(hub);
        }
        source
    }

    /// A builder with these settings.
    pub fn builder(&self) -> Result<NodeBuilder, Failure> {
        let settings = &self.settings;
        let mut builder = Node::builder().data_dir(&self.data_dir).runtime(tokio::runtime::Handle::current());
        if let Some(threads) = settings.threads {
            builder = builder.threads(threads);
        }
        if let Some(layers) = settings.gpu_layers {
            builder = builder.gpu_layers(layers);
        }
        builder = builder.keep_awake(settings.keep_awake);
        if let Some(memory) = settings.memory {
            builder = builder.memory(memory);
        }
        if let Some(bytes) = settings.place {
            builder = builder.place(bytes);
        }
        if let Some(bytes) = settings.max_disk {
            builder = builder.max_disk_bytes(bytes);
        }
        builder = builder.download_rate(settings.download_rate.and_then(NonZeroU64::new));
        if let Some(context) = settings.context {
            builder = builder.context(context);
        }
        if let Some(sessions) = settings.sessions {
            builder = builder.sessions(sessions);
        }
        if let Some(kv) = settings.kv {
            builder = builder.kv(kv.into());
        }
        if let Some(credits) = settings.credit_limit {
            builder = builder.credit_limit(credits);
        }
        if let Some(engine) = &settings.engine {
            builder = builder.engine(engine);
        }
        if let Some(path) = &settings.chat_template {
            builder = builder.chat_template(input::file(path, MAX_TEMPLATE as u64)?);
        }
        if let Some(network) = &settings.network {
            builder = builder.network(network);
        }
        Ok(builder.private(settings.private))
    }

    fn online(&self, builder: NodeBuilder) -> NodeBuilder {
        let settings = &self.settings;
        let builder = builder.mdns(settings.mdns).bootstrap(settings.bootstrap.clone());
        let builder = builder.relay(settings.relay).external(settings.external.clone()).upnp(settings.upnp);
        match settings.max_traffic.and_then(NonZeroU64::new) {
            Some(limit) => builder.max_traffic(limit),
            None => builder,
        }
    }
}

/// Shuts down the node of a command.
pub async fn close(node: Node) {
    node.shutdown(CLOSE).await;
}

/// Prints similar names if `model` is not known: it may be misspelt. The command still waits for a peer that knows it.
pub fn suggest(node: &Node, model: &str) {
    let nearest = node.nearest_names(model);
    if !nearest.is_empty() {
        print::note(&print::clean(&format!("no model `{model}` is known yet; nearest: {}", nearest.join(", "))));
    }
}

/// Retries for at most `wait` while the failure may be due to a missing peer.
pub async fn retry<T>(wait: Duration, mut act: impl AsyncFnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let begin = Instant::now();
    loop {
        match act().await {
            Err(failure) if begin.elapsed() < wait && is_transient(failure.kind) => {
                tokio::time::sleep(RETRY_INTERVAL).await
            }
            ended => return ended,
        }
    }
}

/// Whether another peer may resolve a failure of this kind.
fn is_transient(kind: ErrorKind) -> bool {
    use ErrorKind::*;
    matches!(kind, ModelNotFound | ShardMissing | PeerNotFound | PeerUnreachable | NoPlan)
}

/// The data directory: flag, variable, or the system's directory for application data, the library's default.
fn data_dir(global: &Global) -> Result<PathBuf, Failure> {
    let variable = || std::env::var_os(DATA_DIR_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let system = || Some(directories::ProjectDirs::from("", "", "swarmllm")?.data_local_dir().to_owned());
    let unknown =
        || Failure::new(ErrorKind::InvalidConfig, "the home directory is unknown; choose a directory with --data-dir");
    global.data_dir.clone().or_else(variable).or_else(system).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_failures_that_a_peer_may_resolve_are_retried() {
        let long = Duration::from_secs(60);
        let mut tries = 0;
        let cured = retry(long, async || {
            tries += 1;
            if tries < 3 { Err(Failure::new(ErrorKind::NoPlan, "")) } else { Ok(tries) }
        });
        assert_eq!(cured.await.ok(), Some(3));
        let refused = retry::<()>(long, async || Err(Failure::new(ErrorKind::InvalidArgument, "")));
        assert_eq!(refused.await.err().map(|failure| failure.kind), Some(ErrorKind::InvalidArgument));
        let hopeless = retry::<()>(Duration::ZERO, async || Err(Failure::new(ErrorKind::NoPlan, "")));
        assert_eq!(hopeless.await.err().map(|failure| failure.kind), Some(ErrorKind::NoPlan));
    }
}
