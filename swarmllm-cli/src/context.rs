//! What every command needs: settings, and a node that fits the command.

use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::{MAX_TEMPLATE, Node, NodeBuilder, Preset, WebSource};

use crate::args::{Global, MeetArgs};
use crate::config::{Flags, Settings};
use crate::failure::Failure;
use crate::{input, print};

/// Names the data directory where no flag does.
const DATA_DIR_VARIABLE: &str = "SWARMLLM_DATA_DIR";
/// What a command's own node is given to end.
const CLOSE: Duration = Duration::from_secs(3);
/// Pause between looks for what peers bring.
const LOOK: Duration = Duration::from_millis(100);

/// The command's surroundings.
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

    /// A node for one command: on free ports, asking others and not computing for them.
    pub async fn guest(&self, peers: &[String]) -> Result<Node, Failure> {
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
    pub async fn host(&self) -> Result<Node, Failure> {
        let builder = self.builder()?.preset(Preset::Public).listen(self.settings.p2p_listen()?);
        Ok(self.online(builder.serve(self.settings.serve)).start().await?)
    }

    /// Enters the swarm of an invite and gives the node, which has no network yet.
    pub async fn join(&self, invite: &str) -> Result<Node, Failure> {
        Ok(self.builder()?.join(invite).preset(Preset::Offline).start().await?)
    }

    /// How long to wait for what peers bring; not at all where none can turn up.
    pub fn patience(&self, meet: &MeetArgs) -> Duration {
        let meets = self.settings.mdns || !self.settings.bootstrap.is_empty() || !meet.peer.is_empty();
        Duration::from_secs(if meets { meet.wait.into() } else { 0 })
    }

    /// A file on the web. The hub's token is for files of the hub.
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

    /// A node of these settings, not started.
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
        let met = builder.mdns(settings.mdns).bootstrap(settings.bootstrap.clone());
        let met = met.relay(settings.relay).external(settings.external.clone()).upnp(settings.upnp);
        match settings.max_traffic.and_then(std::num::NonZeroU64::new) {
            Some(ceiling) => met.max_traffic(ceiling),
            None => met,
        }
    }
}

/// Ends a command's own node.
pub async fn close(node: Node) {
    node.shutdown(CLOSE).await;
}

/// Tells at once which names a text resembles that means no known model: it may be misspelt, and a peer that knows it is
/// waited for all the same.
pub fn suggest(node: &Node, model: &str) {
    let nearest = node.nearest_names(model);
    if !nearest.is_empty() {
        print::note(&print::clean(&format!("no model `{model}` is known yet; nearest: {}", nearest.join(", "))));
    }
}

/// Tries again while only the absence of a peer is in the way, for at most `wait`.
pub async fn patiently<T>(wait: Duration, mut act: impl AsyncFnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let begin = Instant::now();
    loop {
        match act().await {
            Err(failure) if begin.elapsed() < wait && may_pass(failure.kind) => tokio::time::sleep(LOOK).await,
            ended => return ended,
        }
    }
}

/// Kinds that another peer's arrival may cure.
fn may_pass(kind: ErrorKind) -> bool {
    use ErrorKind::*;
    matches!(kind, ModelNotFound | ShardMissing | PeerNotFound | PeerUnreachable | NoPlan)
}

/// The data directory: flag, variable, or the system's place for an application's data, as the library has it.
fn data_dir(global: &Global) -> Result<PathBuf, Failure> {
    let variable = || std::env::var_os(DATA_DIR_VARIABLE).filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let system = || Some(directories::ProjectDirs::from("", "", "swarmllm")?.data_local_dir().to_owned());
    let unknown = || Failure::new(ErrorKind::InvalidConfig, "no home directory is known; name a place with --data-dir");
    global.data_dir.clone().or_else(variable).or_else(system).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_what_a_peer_may_cure_is_waited_for() {
        let long = Duration::from_secs(60);
        let mut tries = 0;
        let cured = patiently(long, async || {
            tries += 1;
            if tries < 3 { Err(Failure::new(ErrorKind::NoPlan, "")) } else { Ok(tries) }
        });
        assert_eq!(cured.await.ok(), Some(3));
        let refused = patiently::<()>(long, async || Err(Failure::new(ErrorKind::InvalidArgument, "")));
        assert_eq!(refused.await.err().map(|failure| failure.kind), Some(ErrorKind::InvalidArgument));
        let hopeless = patiently::<()>(Duration::ZERO, async || Err(Failure::new(ErrorKind::NoPlan, "")));
        assert_eq!(hopeless.await.err().map(|failure| failure.kind), Some(ErrorKind::NoPlan));
    }
}
