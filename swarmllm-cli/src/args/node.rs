//! Arguments of commands that start a node.

use std::path::PathBuf;

use clap::Args;
use swarmllm_core::node::MAX_SESSIONS;

use crate::config::{Flags, KvName};
use crate::units::parse_bytes;

/// Settings of a node. Each flag has a key in config.toml and a SWARMLLM_ variable.
#[derive(Debug, Default, Args)]
pub struct NodeArgs {
    /// Name of the swarm
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// Create a private swarm, which only nodes with an invite can enter, unless the data directory belongs to one
    #[arg(long)]
    pub private: bool,
    /// Peer to dial at start and to redial, as /ip4/../tcp/../p2p/..; may be repeated. Without an address: be a bootstrap
    /// node, that is --relay and --no-serve
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "")]
    pub bootstrap: Vec<String>,
    /// Relay connections for peers behind NAT; the relayed bytes are encrypted between the peers
    #[arg(long)]
    pub relay: bool,
    /// External address of this node, such as a forwarded port; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub external: Vec<String>,
    /// Ask the router to forward this node's ports (UPnP)
    #[arg(long)]
    pub upnp: bool,
    /// Limit of bytes per second on the network, sent and received together, as 2MiB or in bytes [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_traffic: Option<u64>,
    /// P2P address to listen on, as /ip4/../tcp/..; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Do not look for peers on the LAN
    #[arg(long)]
    pub no_mdns: bool,
    /// Compute threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: Option<u32>,
    /// Layers on accelerators, of all models together [default: all]
    #[arg(long, value_name = "N")]
    pub gpu_layers: Option<u32>,
    /// Keep the cores awake while computing steps for remote peers: faster tokens, more power; Linux only
    #[arg(long)]
    pub keep_awake: bool,
    /// Memory for weights and KV cache, as 8GiB or in bytes
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Disk budget for shards, as 100GiB or in bytes [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_disk: Option<u64>,
    /// Fetch shards that the swarm has too few copies of, up to this much disk, as 100GiB or in bytes [default: fetch nothing
    /// unasked]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub place: Option<u64>,
    /// Context length of a session, prompt and answer together [default: the model's own as far as the memory allows, at
    /// least 512]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub context: Option<u32>,
    /// Concurrent sessions per stage
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SESSIONS)))]
    pub sessions: Option<u32>,
    /// Format of the KV cache: full, or q8_0 in about half of the memory, without exact answers
    #[arg(long, value_enum, value_name = "NAME")]
    pub kv: Option<KvName>,
    /// Credits that a peer may owe before this node refuses to compute for it [default: no limit]
    #[arg(long, value_name = "N")]
    pub credit_limit: Option<u64>,
    /// Engine: llama.cpp or candle
    #[arg(long, value_name = "NAME")]
    pub engine: Option<String>,
    /// Chat template (Jinja) that replaces the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
}

impl NodeArgs {
    /// The given flags.
    pub fn flags(&self) -> Flags {
        let given = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
        let mut bootstrap = self.bootstrap.clone();
        bootstrap.retain(|address| !address.is_empty());
        let is_bootstrap = bootstrap.len() < self.bootstrap.len();
        Flags {
            network: self.network.clone(),
            private: self.private.then_some(true),
            bootstrap: given(&bootstrap),
            relay: (self.relay || is_bootstrap).then_some(true),
            external: given(&self.external),
            upnp: self.upnp.then_some(true),
            max_traffic: self.max_traffic,
            serve: is_bootstrap.then_some(false),
            listen: given(&self.listen),
            mdns: self.no_mdns.then_some(false),
            threads: self.threads,
            gpu_layers: self.gpu_layers,
            keep_awake: self.keep_awake.then_some(true),
            memory: self.memory,
            max_disk: self.max_disk,
            place: self.place,
            context: self.context,
            sessions: self.sessions,
            kv: self.kv,
            credit_limit: self.credit_limit,
            engine: self.engine.clone(),
            chat_template: self.chat_template.clone(),
            ..Flags::default()
        }
    }
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// HTTP on TCP N, P2P on TCP N+10 and QUIC on UDP N; 0 takes free ports [default: 8800]
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// Do not serve HTTP
    #[arg(long)]
    pub no_http: bool,
    /// Address that HTTP listens on; an address that other machines reach needs api_key in config.toml or
    /// SWARMLLM_API_KEY [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub http_address: Option<std::net::IpAddr>,
    /// Do not compute for peers
    #[arg(long)]
    pub no_serve: bool,
    /// Print an invite that expires after DAYS, when ready
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    pub invite: Option<u32>,
}

impl RunArgs {
    /// The given flags.
    pub fn flags(&self) -> Flags {
        let node = self.node.flags();
        Flags {
            port: self.port,
            http: self.no_http.then_some(false),
            http_address: self.http_address,
            serve: self.no_serve.then_some(false).or(node.serve),
            ..node
        }
    }
}

/// How the node of a command finds peers.
#[derive(Debug, Args)]
pub struct MeetArgs {
    /// Peer to connect to, as /ip4/../tcp/../p2p/..; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub peer: Vec<String>,
    /// Seconds to wait for peers that are needed
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub wait: u32,
}
