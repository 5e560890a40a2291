//! What Python gives, as the core wants it. `None` is "not given": defaults live in the core.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use serde::de::DeserializeOwned;
use swarmllm_core::base::json::{self, JsonError};
use swarmllm_core::base::{ErrorKind, LayerRange};
use swarmllm_core::node::{
    ChatMessage, ChatRequest, Codec, Constraint, GenerateOptions, MAX_ALTERNATIVES, MAX_SESSIONS, Node, NodeBuilder,
    Parts, Pooling, Preset, TemplateInputs, WebSource,
};

use crate::errors::Failure;
use crate::fields::{Within, fields, unfit};

fields! {
    /// A node's configuration, from a dict with all of these keys.
    pub struct NodeConfig {
        data_dir: PathBuf,
        preset: String,
        network: String,
        private: bool,
        join: String,
        listen: Vec<String>,
        bootstrap: Vec<String>,
        mdns: bool,
        relay: bool,
        external: Vec<String>,
        upnp: bool,
        max_traffic: NonZeroU64,
        serve: bool,
        threads: Within<1, { u32::MAX }>,
        gpu_layers: u32,
        keep_awake: bool,
        memory: u64,
        max_disk_bytes: u64,
        place: u64,
        download_rate: NonZeroU64,
        context: Within<1, { u32::MAX }>,
        sessions: Within<1, MAX_SESSIONS>,
        kv: String,
        credit_limit: u64,
        engine: String,
        chat_template: String,
    }
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
        builder = set(builder, self.threads.map(|within| within.0), NodeBuilder::threads);
        builder = set(builder, self.gpu_layers, NodeBuilder::gpu_layers);
        builder = set(builder, self.keep_awake, NodeBuilder::keep_awake);
        builder = set(builder, self.memory, NodeBuilder::memory);
        builder = set(builder, self.max_disk_bytes, NodeBuilder::max_disk_bytes);
        builder = set(builder, self.place, NodeBuilder::place);
        builder = builder.download_rate(self.download_rate);
        builder = set(builder, self.context.map(|within| within.0), NodeBuilder::context);
        builder = set(builder, self.sessions.map(|within| within.0), NodeBuilder::sessions);
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
        _ => Err(refuse(format_args!("`preset`: must be one of `offline`, `lan`, `public`, not {name:?}"))),
    }
}

fields! {
    /// A generation's options, from a dict with all of these keys.
    pub struct Options {
        max_tokens: Within<1, { u32::MAX }>,
        temperature: f32,
        top_k: u32,
        typical_p: f32,
        top_p: f32,
        min_p: f32,
        repeat_penalty: f32,
        repeat_last_n: u32,
        presence_penalty: f32,
        frequency_penalty: f32,
        logit_bias: BTreeMap<u32, f32>,
        seed: u64,
        stop: Vec<String>,
        deadline: f64,
        exact: bool,
        guess: bool,
        draft: String,
        stand_by: bool,
        wire: String,
        logprobs: Within<0, MAX_ALTERNATIVES>,
        /// JSON, as [`Constraint`] is written in it.
        constraint: String,
        caller: String,
    }
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
        let max_tokens = self.max_tokens.map(|within| within.0);
        let stop = self.stop.unwrap_or_default();
        let mut options = GenerateOptions { max_tokens, sampling, stop, deadline, ..GenerateOptions::default() };
        set(&mut options.exact, self.exact);
        set(&mut options.guess, self.guess);
        options.draft = self.draft;
        set(&mut options.stand_by, self.stand_by);
        set(&mut options.wire, self.wire.map(wire).transpose()?);
        options.logprobs = self.logprobs.map(|within| within.0);
        options.constraint = self.constraint.map(constraint).transpose()?;
        set(&mut options.caller, self.caller);
        Ok(options)
    }
}

fn wire(name: String) -> Result<Codec, Failure> {
    json::convert(name.into()).map_err(|error| unread("wire", error))
}

fn constraint(text: String) -> Result<Constraint, Failure> {
    read("constraint", &text)
}

fields! {
    /// What a chat template is given, from a dict with all of these keys.
    pub struct Templated {
        /// JSON.
        tools: String,
        /// JSON.
        documents: String,
        /// JSON.
        kwargs: String,
        chat_template: String,
        parse_content: bool,
    }
}

/// A request for an answer to a chat.
pub fn chat(model: String, messages: &str, options: Options, templated: Templated) -> Result<ChatRequest, Failure> {
    let inputs = TemplateInputs {
        tools: given("tools", templated.tools)?,
        documents: given("documents", templated.documents)?,
        kwargs: given("chat_template_kwargs", templated.kwargs)?,
        parse_content: templated.parse_content.unwrap_or_default(),
    };
    let (options, chat_template) = (options.convert()?, templated.chat_template);
    let messages: Vec<ChatMessage> = read("messages", messages)?;
    Ok(ChatRequest { model, messages, options, inputs, chat_template })
}

/// Reads JSON; what is not given is the default.
fn given<T: DeserializeOwned + Default>(name: &str, json: Option<String>) -> Result<T, Failure> {
    json.map_or_else(|| Ok(T::default()), |json| read(name, &json))
}

fn read<T: DeserializeOwned>(name: &str, json: &str) -> Result<T, Failure> {
    json::parse(json.as_bytes()).map_err(|error| unread(name, error))
}

fn unread(name: &str, error: JsonError) -> Failure {
    refuse(error.below(name).sentence(&format!("`{name}`")))
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
        _ => Err(refuse(format_args!("`pooling`: must be one of `mean`, `last`, not {name:?}"))),
    }
}

/// Which shards of a model.
pub enum Part {
    Stage(u32, u32, bool),
    Layers(u32, u32),
    Named(String),
}

/// What a part may be.
const PARTS: &str = "\"all\", \"coordinator\", (start, end) or (start, end, head)";

impl<'py> FromPyObject<'_, 'py> for Part {
    type Error = PyErr;

    fn extract(part: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let stage = || part.extract().map(|(start, end, head): (u32, u32, bool)| Part::Stage(start, end, head)).ok();
        let layers = || part.extract().map(|(start, end): (u32, u32)| Part::Layers(start, end)).ok();
        let named = part.extract().map(Part::Named).ok();
        let any = named.or_else(stage).or_else(layers);
        any.ok_or_else(|| unfit("part", PARTS, &part, &PyTypeError::new_err(())))
    }
}

impl Part {
    /// The core's word for it.
    pub fn convert(self) -> Result<Parts, Failure> {
        match self {
            Part::Stage(start, end, head) => Ok(Parts::Stage { layers: LayerRange::new(start, end), head }),
            Part::Layers(start, end) => Part::Stage(start, end, false).convert(),
            Part::Named(name) if name == "all" => Ok(Parts::All),
            Part::Named(name) if name == "coordinator" => Ok(Parts::Coordinator),
            Part::Named(name) => Err(refuse(format_args!("`part`: must be {PARTS}, not {name:?}"))),
        }
    }
}

fn refuse(message: impl std::fmt::Display) -> Failure {
    Failure::new(ErrorKind::InvalidArgument, message)
}
