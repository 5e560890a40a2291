//! Converts Python's arguments to the core's types. `None` means "not given"; defaults live in the core.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use serde::de::DeserializeOwned;
use swarmllm_core::base::json::{self, BoundedU32, JsonError};
use swarmllm_core::base::{ErrorKind, LayerRange};
use swarmllm_core::node::{
    ChatMessage, ChatRequest, Codec, Constraint, GenerateOptions, MAX_ALTERNATIVES, MAX_SESSIONS, Node, NodeBuilder,
    PartialOptions, Parts, Pooling, Preset, TemplateInputs, WebSource,
};

use crate::errors::Failure;
use crate::fields::{Within, field, fields, unfit};

fields! {
    /// The configuration of a node, from a dict with all of these keys.
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
    /// A builder with the given settings.
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

/// A source on the web: its address, a hub other than the default, and a token.
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

/// Options of a generation, from a dict with all of their keys. `constraint` is JSON text, `deadline` is in seconds.
pub struct Options(PartialOptions, Option<Duration>);

impl<'py> FromPyObject<'_, 'py> for Options {
    type Error = PyErr;

    fn extract(dict: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let deadline = field(&dict, "deadline")?.map(seconds).transpose()?;
        let options = PartialOptions {
            max_tokens: field::<Within<1, { u32::MAX }>>(&dict, "max_tokens")?.map(|within| BoundedU32(within.0)),
            temperature: field(&dict, "temperature")?,
            top_k: field(&dict, "top_k")?,
            typical_p: field(&dict, "typical_p")?,
            top_p: field(&dict, "top_p")?,
            min_p: field(&dict, "min_p")?,
            repeat_penalty: field(&dict, "repeat_penalty")?,
            repeat_last_n: field(&dict, "repeat_last_n")?,
            presence_penalty: field(&dict, "presence_penalty")?,
            frequency_penalty: field(&dict, "frequency_penalty")?,
            logit_bias: field::<BTreeMap<u32, f32>>(&dict, "logit_bias")?,
            seed: field(&dict, "seed")?,
            stop: field::<Vec<String>>(&dict, "stop")?.unwrap_or_default(),
            deadline_ms: None,
            exact: field(&dict, "exact")?,
            speculate: field(&dict, "speculate")?,
            draft: field(&dict, "draft")?,
            standby: field(&dict, "standby")?,
            wire: field(&dict, "wire")?.map(wire).transpose()?,
            logprobs: field::<Within<0, MAX_ALTERNATIVES>>(&dict, "logprobs")?.map(|within| BoundedU32(within.0)),
            constraint: field(&dict, "constraint")?.map(constraint).transpose()?,
            caller: field(&dict, "caller")?,
        };
        Ok(Self(options, deadline))
    }
}

impl From<Options> for GenerateOptions {
    fn from(Options(options, deadline): Options) -> Self {
        GenerateOptions { deadline, ..options.complete() }
    }
}

fn wire(name: String) -> Result<Codec, Failure> {
    json::convert(name.into()).map_err(|error| unread("wire", error))
}

fn constraint(text: String) -> Result<Constraint, Failure> {
    read("constraint", &text)
}

fields! {
    /// Inputs of a chat template, from a dict with all of these keys.
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

/// A chat request.
pub fn chat(model: String, messages: &str, options: Options, templated: Templated) -> Result<ChatRequest, Failure> {
    let inputs = TemplateInputs {
        tools: given("tools", templated.tools)?,
        documents: given("documents", templated.documents)?,
        kwargs: given("chat_template_kwargs", templated.kwargs)?,
        parse_content: templated.parse_content.unwrap_or_default(),
    };
    let (options, chat_template) = (options.into(), templated.chat_template);
    let messages: Vec<ChatMessage> = read("messages", messages)?;
    Ok(ChatRequest { model, messages, options, inputs, chat_template })
}

/// Reads JSON; `None` gives the default.
fn given<T: DeserializeOwned + Default>(name: &str, json: Option<String>) -> Result<T, Failure> {
    json.map_or_else(|| Ok(T::default()), |json| read(name, &json))
}

fn read<T: DeserializeOwned>(name: &str, json: &str) -> Result<T, Failure> {
    json::parse(json.as_bytes()).map_err(|error| unread(name, error))
}

fn unread(name: &str, error: JsonError) -> Failure {
    refuse(error.nested_in(name).sentence(&format!("`{name}`")))
}

/// A duration in seconds.
pub fn seconds(seconds: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(seconds).map_err(|cause| refuse(format_args!("{seconds} seconds: {cause}")))
}

/// A pooling by its name.
pub fn pooling(name: &str) -> Result<Pooling, Failure> {
    match name {
        "mean" => Ok(Pooling::Mean),
        "last" => Ok(Pooling::Last),
        _ => Err(refuse(format_args!("`pooling`: must be one of `mean`, `last`, not {name:?}"))),
    }
}

/// Parts of a model.
pub enum Part {
    Stage(u32, u32, bool),
    Layers(u32, u32),
    Named(String),
}

/// The forms of a part, for error messages.
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
    /// The parts as the core has them.
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
