//! Configurations: `NodeBuilder` behind a handle.

use std::ffi::c_char;
use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};

use swarmllm_core::base::Fault;
use swarmllm_core::node::{MAX_TEMPLATE, Node, NodeBuilder, Preset};

use crate::handle::Registry;
use crate::status::{guard, place, refuse, swarmllm_status};
use crate::text::{MAX_NAME, read};

/// Most addresses of one kind that a configuration takes.
const MAX_ADDRESSES: usize = 64;

static CONFIGS: Registry<Mutex<Config>> = Registry::new(1, "configuration");

/// A configuration that a node can be started from. What is not set has the library's default.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct swarmllm_config {
    /// Opaque; 0 is never a handle.
    pub id: u64,
}

/// How a node meets others.
#[repr(C)]
pub enum swarmllm_preset {
    /// No network at all.
    SWARMLLM_PRESET_OFFLINE = 0,
    /// LAN discovery, ephemeral ports. The default.
    SWARMLLM_PRESET_LAN = 1,
    /// Listens on the configured ports and serves others.
    SWARMLLM_PRESET_PUBLIC = 2,
}

#[derive(Clone)]
struct Config {
    builder: NodeBuilder,
    listen: Vec<String>,
    bootstrap: Vec<String>,
    external: Vec<String>,
}

/// The builder that a configuration stands for.
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

fn set(config: swarmllm_config, set: impl FnOnce(NodeBuilder) -> NodeBuilder) -> swarmllm_status {
    change(config, |config| {
        config.builder = set(config.builder.clone());
        Ok(())
    })
}

fn add(addresses: &mut Vec<String>, address: &str) -> Result<(), Fault> {
    if addresses.len() == MAX_ADDRESSES {
        return Err(refuse(format_args!("a configuration takes at most {MAX_ADDRESSES} addresses of one kind")));
    }
    addresses.push(address.to_owned());
    Ok(())
}

/// Opens a configuration with the library's defaults.
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

/// Directory for keys, models and the store.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_set_data_dir(config: swarmllm_config, path: *const c_char) -> swarmllm_status {
    change(config, |config| {
        // SAFETY: the caller gives a NUL-terminated text.
        let path = unsafe { read(path, "path", MAX_NAME) }?;
        config.builder = config.builder.clone().data_dir(path);
        Ok(())
    })
}

/// Name of the swarm; nodes of different swarms cannot meet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_set_network(config: swarmllm_config, name: *const c_char) -> swarmllm_status {
    change(config, |config| {
        // SAFETY: the caller gives a NUL-terminated text.
        let name = unsafe { read(name, "name", MAX_NAME) }?;
        config.builder = config.builder.clone().network(name);
        Ok(())
    })
}

/// Whether the swarm is to be private (0 = no): its nodes share a secret, and who has not got it completes no handshake.
/// The first node founds it, others come in by `swarmllm_config_join`. Such a swarm speaks TCP only.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_private(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.private(on != 0))
}

/// Enters the swarm of an invite, and stays in it: the data directory remembers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_join(config: swarmllm_config, invite: *const c_char) -> swarmllm_status {
    change(config, |config| {
        // SAFETY: the caller gives a NUL-terminated text.
        let invite = unsafe { read(invite, "invite", MAX_NAME) }?;
        config.builder = config.builder.clone().join(invite);
        Ok(())
    })
}

/// How the node meets others: one of `swarmllm_preset`.
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
            _ => return Err(refuse(format_args!("{preset} is no `swarmllm_preset`"))),
        };
        config.builder = config.builder.clone().preset(preset);
        Ok(())
    })
}

/// Adds an address to listen on (multiaddr, port 0 = any free one). The first one replaces the defaults.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_add_listen(
    config: swarmllm_config,
    address: *const c_char,
) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    change(config, |config| add(&mut config.listen, unsafe { read(address, "address", MAX_NAME) }?))
}

/// Adds a peer to dial at start and to redial (multiaddr with `/p2p/`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_add_bootstrap(
    config: swarmllm_config,
    address: *const c_char,
) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    change(config, |config| add(&mut config.bootstrap, unsafe { read(address, "address", MAX_NAME) }?))
}

/// Whether to find peers on the LAN by mDNS (0 = no).
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_mdns(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.mdns(on != 0))
}

/// Whether to carry circuits for peers that nobody can connect to, without being able to read them (0 = no).
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_relay(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.relay(on != 0))
}

/// Adds an address under which others reach this node although it does not listen there (multiaddr).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_add_external(
    config: swarmllm_config,
    address: *const c_char,
) -> swarmllm_status {
    // SAFETY: the caller gives a NUL-terminated text.
    change(config, |config| add(&mut config.external, unsafe { read(address, "address", MAX_NAME) }?))
}

/// Whether to ask the router to forward the ports, by UPnP (0 = no).
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_upnp(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.upnp(on != 0))
}

/// Most bytes a second that may go over the wire, both ways together (0 = no ceiling, as without a call).
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_max_traffic(config: swarmllm_config, bytes_a_second: u64) -> swarmllm_status {
    set(config, |builder| match NonZeroU64::new(bytes_a_second) {
        Some(ceiling) => builder.max_traffic(ceiling),
        None => builder,
    })
}

/// Whether to compute stages for others (0 = no).
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_serve(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.serve(on != 0))
}

/// Compute threads.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_threads(config: swarmllm_config, threads: u32) -> swarmllm_status {
    set(config, |builder| builder.threads(threads))
}

/// Layers that accelerators compute, of all stages of the node together; without effect where the library was not built
/// for the machine's accelerator.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_gpu_layers(config: swarmllm_config, layers: u32) -> swarmllm_status {
    set(config, |builder| builder.gpu_layers(layers))
}

/// Whether to keep the cores awake while steps come from afar (0 = no, the default): tokens over ways of some milliseconds
/// then come sooner, for the price of power. Without effect but on Linux.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_keep_awake(config: swarmllm_config, on: i32) -> swarmllm_status {
    set(config, |builder| builder.keep_awake(on != 0))
}

/// Credits that a peer may owe before it is not computed for any more; without a call nobody is refused. One credit is a
/// million parameters applied to one token.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_credit_limit(config: swarmllm_config, credits: u64) -> swarmllm_status {
    set(config, |builder| builder.credit_limit(credits))
}

/// Bytes of memory for weights and KV.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_memory(config: swarmllm_config, bytes: u64) -> swarmllm_status {
    set(config, |builder| builder.memory(bytes))
}

/// Most bytes that shards may take on the disk; without a call there is no bound. What would go beyond is refused before it
/// begins.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_max_disk_bytes(config: swarmllm_config, bytes: u64) -> swarmllm_status {
    set(config, |builder| builder.max_disk_bytes(bytes))
}

/// Lets the node fetch by itself what its swarm is short of, for as long as all models here take at most so many bytes of
/// disk; without a call nothing is fetched unasked.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_place(config: swarmllm_config, bytes: u64) -> swarmllm_status {
    set(config, |builder| builder.place(bytes))
}

/// Bytes a second at which all downloads from the web together come at most; 0, and without a call, as fast as they come.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_download_rate(config: swarmllm_config, bytes: u64) -> swarmllm_status {
    set(config, |builder| builder.download_rate(NonZeroU64::new(bytes)))
}

/// Positions that a session may have, prompt and answer together. Default: the model's own as far as the memory allows,
/// 512 at least.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_context(config: swarmllm_config, tokens: u32) -> swarmllm_status {
    set(config, |builder| builder.context(tokens))
}

/// Sessions that a stage has room for at once, 1 to 64; each takes KV for a whole context.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_set_sessions(config: swarmllm_config, sessions: u32) -> swarmllm_status {
    set(config, |builder| builder.sessions(sessions))
}

/// How keys and values are kept: `full` (the default), or `q8_0`, which takes about half of the memory and refuses answers
/// that are to be exact.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_set_kv(config: swarmllm_config, name: *const c_char) -> swarmllm_status {
    change(config, |config| {
        // SAFETY: the caller gives a NUL-terminated text.
        let kv = unsafe { read(name, "name", MAX_NAME) }?.parse().map_err(refuse)?;
        config.builder = config.builder.clone().kv(kv);
        Ok(())
    })
}

/// Engine to use: `llama.cpp` or `candle`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_set_engine(config: swarmllm_config, name: *const c_char) -> swarmllm_status {
    change(config, |config| {
        // SAFETY: the caller gives a NUL-terminated text.
        let name = unsafe { read(name, "name", MAX_NAME) }?;
        config.builder = config.builder.clone().engine(name);
        Ok(())
    })
}

/// A chat template (Jinja) in the place of those that models have, unless a chat brings one of its own; at most 256 KiB. One
/// that cannot be compiled is refused when the node starts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_config_set_chat_template(
    config: swarmllm_config,
    source: *const c_char,
) -> swarmllm_status {
    change(config, |config| {
        // SAFETY: the caller gives a NUL-terminated text.
        let source = unsafe { read(source, "source", MAX_TEMPLATE) }?;
        config.builder = config.builder.clone().chat_template(source);
        Ok(())
    })
}

/// Frees a configuration. Nodes that were started from it are not touched.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_config_free(config: swarmllm_config) -> swarmllm_status {
    guard(|| CONFIGS.remove(config.id).map(drop))
}
