//! The configuration of a running node.

use std::path::PathBuf;
use std::sync::Arc;

use crate::engine::KvType;

/// Settings in force, defaults filled in. [`NodeBuilder`](super::NodeBuilder) documents each of them.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub data_dir: PathBuf,
    pub network: String,
    pub serve: bool,
    pub threads: u32,
    pub gpu_layers: u32,
    pub keep_awake: bool,
    pub memory: u64,
    /// `None`: the model's own context, as far as the memory allows.
    pub context: Option<u32>,
    pub sessions: u32,
    pub kv: KvType,
    pub engine: Option<String>,
    /// Replaces the models' chat templates.
    pub chat_template: Option<Arc<str>>,
    /// Bytes of disk for shards that the node fetches by itself; `None` disables placement.
    pub place: Option<u64>,
}
