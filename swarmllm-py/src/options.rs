//! What Python gives, as the core wants it. `None` is "not given": defaults live in the core.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use pyo3::prelude::*;
use swarmllm_core::base::{ErrorKind, LayerRange};
use swarmllm_core::node::{
    ChatMessage, ChatRequest, Codec, Constraint, GenerateOptions, Node, NodeBuilder, Parts, Pooling, Preset,
    TemplateInputs, WebSource,
};

use crate::errors::Failure;

/// A node's configuration, from a dict with all of these keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct NodeConfig {
    data_dir: Option<PathBuf>,
    preset: Option<String>,
    network: Option<String>,
    private: Option<bool>,
    join: Option<String>,
    listen: Option<Vec<String>>,
    bootstrap: Option<Vec<String>>,
    mdns: Option<bool>,
    relay: Option<bool>,
    external: Option<Vec<String>>,
    upnp: Option<bool>,
    max_traffic: Option<NonZeroU64>,
    serve: Option<bool>,
    threads: Option<u32>,
    gpu_layers: Option<u32>,
    keep_awake: Option<bool>,
    memory: Option<u64>,
    max_disk_bytes: Option<u64>,
    place: Option<u64>,
    download_rate: Option<NonZeroU64>,
    context: Option<u32>,
    sessions: Option<u32>,
    kv: Option<String>,
    credit_limit: Option<u64>,
    engine: Option<String>,
    chat_template: Option<String>,
}

impl NodeConfig {
    /// The builder with what was given.
    pub fn builder(self) -> Result<NodeBuilder, Failure> {
        /// Calls a setter where there is a value.
        fn set<T>(builder: NodeBuilder, value: Option<T>, setter: fn(NodeBuilder, T) -> NodeBuilder) -> NodeBuilder {
            match value {
                Some(value) => setter(builder, value),
                None => builder,
            }
        }
        let mut builder = set(Node::builder(), self.data_dir, NodeBuilder::data_dir);
        builder = set(builder, self.preset.map(preset).transpose()?, NodeBuilder::preset);
        builder = set(builder, self.network, NodeBuilder::network);
        builder = set(builder, self.private, NodeBuilder::private);
        builder = set(builder, self.join, NodeBuilder::join);
        builder = set(builder, self.listen, NodeBuilder::listen);
        builder = set(builder, self.bootstrap, NodeBuilder::bootstrap);
        builder = set(builder, self.mdns, NodeBuilder::mdns);
        builder = set(builder, self.relay, NodeBuilder::relay);
        builder = set(builder, self.external, NodeBuilder::external);
        builder = set(builder, self.upnp, NodeBuilder::upnp);
        builder = set(builder, self.max_traffic, NodeBuilder::max_traffic);
        builder = set(builder, self.serve, NodeBuilder::serve);
        builder = set(builder, self.threads, NodeBuilder::threads);
        builder = set(builder, self.gpu_layers, NodeBuilder::gpu_layers);
        builder = set(builder, self.keep_awake, NodeBuilder::keep_awake);
        builder = set(builder, self.memory, NodeBuilder::memory);
        builder = set(builder, self.max_disk_bytes, NodeBuilder::max_disk_bytes);
        builder = set(builder, self.place, NodeBuilder::place);
        builder = builder.download_rate(self.download_rate);
        builder = set(builder, self.context, NodeBuilder::context);
        builder = set(builder, self.sessions, NodeBuilder::sessions);
        builder = set(builder, self.kv.map(|name| name.parse().map_err(refuse)).transpose()?, NodeBuilder::kv);
        builder = set(builder, self.credit_limit, NodeBuilder::credit_limit);
        builder = set(builder, self.engine, NodeBuilder::engine);
        Ok(set(builder, self.chat_template, NodeBuilder::chat_template))
    }
}

/// A source on the web: its address, a hub other than the default one, and a token.
pub type Web = (String, Option<String>, Option<String>);

/// The core's source.
pub fn web((address, hub, token): Web) -> WebSource {
    let source = WebSource { token, ..WebSource::new(address) };
    match hub {
        Some(hub) => WebSource { hub, ..source },
        None => source,
    }
}

fn preset(name: String) -> Result<Preset, Failure> {
    match name.as_str() {
        "offline" => Ok(Preset::Offline),
        "lan" => Ok(Preset::Lan),
        "public" => Ok(Preset::Public),
        _ => Err(refuse(format_args!("preset `{name}` is not `offline`, `lan` or `public`"))),
    }
}

/// A generation's options, from a dict with all of these keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Options {
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    typical_p: Option<f32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repeat_penalty: Option<f32>,
    repeat_last_n: Option<u32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    logit_bias: Option<BTreeMap<u32, f32>>,
    seed: Option<u64>,
    stop: Option<Vec<String>>,
    deadline: Option<f64>,
    exact: Option<bool>,
    guess: Option<bool>,
    draft: Option<String>,
    stand_by: Option<bool>,
    wire: Option<String>,
    logprobs: Option<u32>,
    /// JSON, as [`Constraint`] is written in it.
    constraint: Option<String>,
    caller: Option<String>,
}

impl Options {
    /// The core's options with what was given.
    pub fn convert(self) -> Result<GenerateOptions, Failure> {
        /// Overwrites a default where there is a value.
        fn set<T>(place: &mut T, value: Option<T>) {
            if let Some(value) = value {
                *place = value;
            }
        }
        let mut sampling = swarmllm_core::engine::sample::SamplingParams::default();
        set(&mut sampling.temperature, self.temperature);
        set(&mut sampling.top_k, self.top_k);
        set(&mut sampling.typical_p, self.typical_p);
        set(&mut sampling.top_p, self.top_p);
        set(&mut sampling.min_p, self.min_p);
        set(&mut sampling.repeat_penalty, self.repeat_penalty);
        set(&mut sampling.repeat_last_n, self.repeat_last_n);
        set(&mut sampling.presence_penalty, self.presence_penalty);
        set(&mut sampling.frequency_penalty, self.frequency_penalty);
        set(&mut sampling.logit_bias, self.logit_bias);
        set(&mut sampling.seed, self.seed.map(Some));
        let deadline = self.deadline.map(seconds).transpose()?;
        let (max_tokens, stop) = (self.max_tokens, self.stop.unwrap_or_default());
        let mut options = GenerateOptions { max_tokens, sampling, stop, deadline, ..GenerateOptions::default() };
        set(&mut options.exact, self.exact);
        set(&mut options.guess, self.guess);
        options.draft = self.draft;
        set(&mut options.stand_by, self.stand_by);
        set(&mut options.wire, self.wire.map(wire).transpose()?);
        options.logprobs = self.logprobs;
        options.constraint = self.constraint.map(constraint).transpose()?;
        set(&mut options.caller, self.caller);
        Ok(options)
    }
}

fn wire(name: String) -> Result<Codec, Failure> {
    name.parse().map_err(|cause| refuse(format_args!("option `wire`: {cause}")))
}

fn constraint(json: String) -> Result<Constraint, Failure> {
    serde_json::from_str(&json).map_err(|cause| refuse(format_args!("option `constraint`: {cause}")))
}

/// What a chat template is given, from a dict with all of these keys.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct Templated {
    /// JSON.
    tools: String,
    /// JSON.
    documents: String,
    /// JSON.
    kwargs: String,
    chat_template: Option<String>,
    parse_content: bool,
}

/// A request for an answer to a chat.
pub fn chat(
    model: String,
    messages: Vec<(String, String)>,
    options: Options,
    templated: Templated,
) -> Result<ChatRequest, Failure> {
    let inputs = TemplateInputs {
        tools: read("tools", &templated.tools)?,
        documents: read("documents", &templated.documents)?,
        kwargs: read("chat_template_kwargs", &templated.kwargs)?,
        parse_content: templated.parse_content,
    };
    let (messages, options, chat_template) = (self::messages(messages), options.convert()?, templated.chat_template);
    Ok(ChatRequest { model, messages, options, inputs, chat_template })
}

fn read<T: serde::de::DeserializeOwned>(name: &str, json: &str) -> Result<T, Failure> {
    serde_json::from_str(json).map_err(|cause| refuse(format_args!("option `{name}`: {cause}")))
}

/// `(role, content)` pairs as messages.
fn messages(pairs: Vec<(String, String)>) -> Vec<ChatMessage> {
    pairs.into_iter().map(|(role, content)| ChatMessage { role, content }).collect()
}

/// Seconds as Python counts them.
pub fn seconds(seconds: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(seconds).map_err(|cause| refuse(format_args!("{seconds} seconds: {cause}")))
}

/// What is taken of a text's states.
pub fn pooling(name: &str) -> Result<Pooling, Failure> {
    match name {
        "mean" => Ok(Pooling::Mean),
        "last" => Ok(Pooling::Last),
        _ => Err(refuse(format_args!("pooling is `{name}`; it is `mean` or `last`"))),
    }
}

/// Which shards of a model.
#[derive(FromPyObject)]
pub enum Part {
    Stage(u32, u32, bool),
    Layers(u32, u32),
    Named(String),
}

impl Part {
    /// The core's word for it.
    pub fn convert(self) -> Result<Parts, Failure> {
        match self {
            Part::Stage(start, end, head) => Ok(Parts::Stage { layers: LayerRange::new(start, end), head }),
            Part::Layers(start, end) => Part::Stage(start, end, false).convert(),
            Part::Named(name) if name == "all" => Ok(Parts::All),
            Part::Named(name) if name == "coordinator" => Ok(Parts::Coordinator),
            Part::Named(name) => Err(refuse(format_args!(
                "part `{name}` is not `all`, `coordinator`, (start, end) or (start, end, head)"
            ))),
        }
    }
}

fn refuse(message: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorKind::InvalidArgument, message)
}
