//! Configurations: `NodeBuilder` behind a handle.

use std::ffi::c_char;
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};

use swarmllm_core::base::Fault;
use swarmllm_core::node::{MAX_TEMPLATE, Node, NodeBuilder, Preset};

use crate::handle::Registry;
use crate::status::{guard, place, refuse, swarmllm_status};
use crate::text::{MAX_NAME, read};

/// Maximum number of addresses of each kind in a configuration.
const MAX_ADDRESSES: usize = 64;

static CONFIGS: Registry<Mutex<Config>> = Registry::new(1, "configuration");

/// A configuration to start nodes from. Settings that are not made have the library's defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct swarmllm_config {
    /// Opaque; 0 is never a handle.
    pub id: u64,
}

/// How a node finds and reaches peers.
#[repr(C)]
pub enum swarmllm_preset {
    /// No network.
    SWARMLLM_PRESET_OFFLINE = 0,
    /// Finds peers on the LAN and listens on ephemeral ports. The default.
    SWARMLLM_PRESET_LAN = 1,
    /// Listens on the configured ports and computes for peers.
    SWARMLLM_PRESET_PUBLIC = 2,
}

#[derive(Clone)]
struct Config {
    builder: NodeBuilder,
    listen: Vec<String>,
    bootstrap: Vec<String>,
    external: Vec<String>,
}

/// The builder of a configuration.
pub fn builder(config: swarmllm_config) -> Result<NodeBuilder, Fault> {
    let config = CONFIGS.get(config.id)?;
    let Config { mut builder, listen, bootstrap, external } =
        config.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if !listen.is_empty() {
        builder = builder.listen(listen);
    }
    if !bootstrap.is_empty() {
        builder = builder.bootstrap(bootstrap);
    }
    builder = builder.external(external);
    Ok(builder)
}

fn change(config: swarmllm_config, change: impl FnOnce(&mut Config) -> Result<(), Fault>) -> swarmllm_status {
    guard(|| change(&mut CONFIGS.get(config.id)?.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// Reads a text argument of at most `limit` bytes and passes it to a setter.
///
/// # Safety
/// As [`read`].
unsafe fn set_text(
    config: swarmllm_config,
    (text, name, limit): (*const c_char, &str, usize),
    set: impl FnOnce(NodeBuilder, &str) -> Result<NodeBuilder, Fault>,
) -> swarmllm_status {
    change(config, |config| {
        // SAFETY: the caller's promise is passed on.
        let text = unsafe { read(text, name, limit) }?;
        config.builder = set(config.builder.clone(), text)?;
        Ok(())
    })
}

fn set(config: swarmllm_config, set: impl FnOnce(NodeBuilder) -> NodeBuilder) -> swarmllm_status {
    change(config, |config| {
        config.builder = set(config.builder.clone());
        Ok(())
    })
}

fn add(addresses: &mut Vec<String>, address: &str) -> Result<(), Fault> {
    if addresses.len() == MAX_ADDRESSES {
        return Err(refuse(format_args!("a configuration has at most {MAX_ADDRESSES} addresses of each kind")));
    }
    addresses.push(address.to_owned());
    Ok(())
}

/// Creates a configuration with the library's defaults.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_new(config: Option<&mut swarmllm_config>) -> swarmllm_status {
    guard(|| {
        let config = place(config, "config")?;
        config.id = 0;
        let new = Config { builder: Node::builder(), listen: Vec::new(), bootstrap: Vec::new(), external: Vec::new() };
        config.id = CONFIGS.insert(Mutex::new(new))?;
        Ok(())
    })
}

/// Sets the directory of keys, models and the store.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_set_data_dir(config: swarmllm_config, path: *const c_char) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    unsafe { set_text(config, (path, "path", MAX_NAME), |builder, path| Ok(builder.data_dir(path))) }
}

/// Sets the name of the swarm. Nodes of different swarms do not connect.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_set_network(config: swarmllm_config, name: *const c_char) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    unsafe { set_text(config, (name, "name", MAX_NAME), |builder, name| Ok(builder.network(name))) }
}

/// Makes the swarm private (0 = no): its nodes share a secret, and nodes without the secret cannot complete a handshake.
/// The first node creates the secret; other nodes join by `swarmllm_config_join`. A private swarm uses TCP only.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_private(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.private(on != 0))
}

/// Joins the swarm of an invite. The data directory stores the membership.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_join(config: swarmllm_config, invite: *const c_char) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    unsafe { set_text(config, (invite, "invite", MAX_NAME), |builder, invite| Ok(builder.join(invite))) }
}

/// Sets how the node finds and reaches peers: one of `swarmllm_preset`.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_preset(config: swarmllm_config, preset: i32) -> swarmllm_status {
    const OFFLINE: i32 = swarmllm_preset::SWARMLLM_PRESET_OFFLINE as i32;
    const LAN: i32 = swarmllm_preset::SWARMLLM_PRESET_LAN as i32;
    const PUBLIC: i32 = swarmllm_preset::SWARMLLM_PRESET_PUBLIC as i32;
    change(config, |config| {
        let preset = match preset {
            OFFLINE => Preset::Offline,
            LAN => Preset::Lan,
            PUBLIC => Preset::Public,
            _ => return Err(refuse(format_args!("{preset} is not a `swarmllm_preset`"))),
        };
        config.builder = config.builder.clone().preset(preset);
        Ok(())
    })
}

/// Adds an address to listen on (multiaddr; port 0 = any free port). The first address replaces the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_add_listen(
    config: swarmllm_config,
    address: *const c_char,
) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    change(config, |config| add(&mut config.listen, unsafe { read(address, "address", MAX_NAME) }?))
}

/// Adds a peer that the node dials at start, and redials when the connection is lost (multiaddr with `/p2p/`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_add_bootstrap(
    config: swarmllm_config,
    address: *const c_char,
) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    change(config, |config| add(&mut config.bootstrap, unsafe { read(address, "address", MAX_NAME) }?))
}

/// Sets whether the node finds peers on the LAN by mDNS (0 = no).
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_mdns(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.mdns(on != 0))
}

/// Sets whether the node relays connections for peers behind NAT (0 = no). The relayed bytes are encrypted between the peers.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_relay(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.relay(on != 0))
}

/// Adds an external address of the node, such as a forwarded port (multiaddr).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_add_external(
    config: swarmllm_config,
    address: *const c_char,
) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    change(config, |config| add(&mut config.external, unsafe { read(address, "address", MAX_NAME) }?))
}

/// Sets whether the node asks the router to forward its ports by UPnP (0 = no).
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_upnp(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.upnp(on != 0))
}

/// Sets the limit of network traffic, sent and received together (0 = no change; default: unlimited).
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_max_traffic(config: swarmllm_config, bytes_per_second: u64) -> swarmllm_status {
    set(config, |builder| match NonZeroU64::new(bytes_per_second) {
        Some(limit) => builder.max_traffic(limit),
        None => builder,
    })
}

/// Sets whether the node computes stages for peers (0 = no).
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_serve(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.serve(on != 0))
}

/// Sets the number of compute threads.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_threads(config: swarmllm_config, threads: u32) -> swarmllm_status {
    set(config, |builder| builder.threads(threads))
}

/// Sets the number of layers on accelerators, summed over all stages of the node. It has no effect when the library was not
/// built for the machine's accelerator.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_gpu_layers(config: swarmllm_config, layers: u32) -> swarmllm_status {
    set(config, |builder| builder.gpu_layers(layers))
}

/// Sets whether the cores stay awake while the node computes steps for remote peers (0 = no, the default): lower token
/// latency at round trips of a few milliseconds, at the cost of power; Linux only.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_keep_awake(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.keep_awake(on != 0))
}

/// Sets the credits that a peer may owe before the node refuses to compute for it. Default: no limit. One credit is a
/// million parameters applied to one token.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_credit_limit(config: swarmllm_config, credits: u64) -> swarmllm_status {
    set(config, |builder| builder.credit_limit(credits))
}

/// Sets the memory budget for weights and KV cache, in bytes.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_memory(config: swarmllm_config, bytes: u64) -> swarmllm_status {
    set(config, |builder| builder.memory(bytes))
}

/// Sets the disk budget for shards, in bytes. Default: no limit. An import or pull that would exceed it fails before it
/// begins.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_max_disk_bytes(config: swarmllm_config, bytes: u64) -> swarmllm_status {
    set(config, |builder| builder.max_disk_bytes(bytes))
}

/// Lets the node fetch shards that its swarm has too few copies of, while all its models together take at most `bytes` of
/// disk. Default: the node fetches nothing unasked.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_place(config: swarmllm_config, bytes: u64) -> swarmllm_status {
    set(config, |builder| builder.place(bytes))
}

/// Sets the limit of all downloads from the web together (0 = no change; default: unlimited).
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_download_rate(config: swarmllm_config, bytes_per_second: u64) -> swarmllm_status {
    set(config, |builder| builder.download_rate(NonZeroU64::new(bytes_per_second)))
}

/// Sets the context length of a session in tokens, prompt and answer together. Default: the model's own context as far as
/// the memory allows, at least 512.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_context(config: swarmllm_config, tokens: u32) -> swarmllm_status {
    set(config, |builder| builder.context(tokens))
}

/// Sets the number of concurrent sessions per stage, 1 to 64. Each session reserves KV cache for a whole context.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_sessions(config: swarmllm_config, sessions: u32) -> swarmllm_status {
    set(config, |builder| builder.sessions(sessions))
}

/// Sets the format of the KV cache: `full` (the default), or `q8_0`, which takes about half of the memory and refuses
/// requests with `exact`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_set_kv(config: swarmllm_config, name: *const c_char) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    unsafe { set_text(config, (name, "name", MAX_NAME), |builder, kv| Ok(builder.kv(kv.parse().map_err(refuse)?))) }
}

/// Sets the engine: `llama.cpp` or `candle`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_set_engine(config: swarmllm_config, name: *const c_char) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    unsafe { set_text(config, (name, "name", MAX_NAME), |builder, name| Ok(builder.engine(name))) }
}

/// Sets a chat template (Jinja, at most 256 KiB) that replaces the models' own; a request's `chat_template` takes precedence.
/// The node does not start with a template that does not compile.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_set_chat_template(
    config: swarmllm_config,
    source: *const c_char,
) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    unsafe { set_text(config, (source, "source", MAX_TEMPLATE), |builder, source| Ok(builder.chat_template(source))) }
}

/// Frees a configuration. Nodes started from it keep running.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_free(config: swarmllm_config) -> swarmllm_status {
    guard(|| CONFIGS.remove(config.id).map(drop))
}
