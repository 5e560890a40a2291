//! The shape of a certified architecture's model: its facts, validated before llama.cpp sees them, its cut rules, and the
//! header of its stages.
//!
//! A stage's header is written from this struct and never copied from the model, so that an unknown key does not reach
//! llama.cpp. Uncertified keys that would change llama.cpp's results are refused; llama.cpp does not read the other keys
//! for the architecture. The description of an architecture ([`Architecture`]) has its particulars.

use crate::base::LayerRange;
use crate::engine::{CutRules, EngineError};
use crate::model::Manifest;

use super::architecture::{Architecture, FactKind, FactRule, Heads, Norm, Output, Presence, Scale};
use super::error::bad;
use super::facts::Facts;
use super::header::Header;
use super::limits::{
    MAX_CONTEXT, MAX_EXPERTS, MAX_FEED_FORWARD, MAX_HEAD_SIZE, MAX_HEADS, MAX_LAYERS, MAX_VOCAB, MAX_WIDTH,
};
use super::rope::Rope;
use super::window::Window;

/// Keys that llama.cpp reads for all architectures. They must be absent or zero unless the architecture certifies them.
const UNCERTIFIED: [&str; 12] = [
    "expert_group_count",
    "expert_group_used_count",
    "nextn_predict_layers",
    "embedding_length_out",
    "attention.key_length_swa",
    "attention.value_length_swa",
    "rope.dimension_count_swa",
    "rope.scaling.alpha",
    "pooling_type",
    "classifier.pooling_type",
    "classifier.output_labels",
    "swiglu_clamp_exp",
];

/// Experts of a model.
#[derive(Debug, Clone)]
pub(super) struct Experts {
    /// Experts of a layer.
    pub count: u32,
    /// Experts that a token uses.
    pub used: u32,
    /// Feed-forward width of an expert; 0 if not specified.
    pub feed_forward: u32,
}

/// Value of an architecture-specific fact.
#[derive(Debug, Clone, Copy)]
enum Value {
    Count(u32),
    Number(f32),
    Flag(bool),
}

/// A model's validated facts.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    pub architecture: &'static Architecture,
    pub layers: u32,
    pub width: u32,
    pub vocab: u32,
    /// Most positions of a session.
    pub context: u32,
    /// Query heads of a layer.
    pub heads: u32,
    /// Key heads of a layer, equal to its value heads.
    pub kv_heads: u32,
    /// Floats of a head's keys, as llama.cpp caches them.
    pub key_size: u32,
    /// Floats of a head's values.
    pub value_size: u32,
    /// Width of the feed-forward network; 0 if not specified.
    pub feed_forward: u32,
    pub experts: Option<Experts>,
    pub rope: Rope,
    pub window: Option<Window>,
    epsilon: f32,
    trained_context: u32,
    own: Vec<(&'static FactRule, Value)>,
}

impl Shape {
    /// Reads and validates the facts of a manifest of this architecture.
    pub fn read(architecture: &'static Architecture, manifest: &Manifest) -> Result<Self, EngineError> {
        let facts = Facts::of(manifest);
        refuse_uncertified(&facts, architecture)?;
        check_output(architecture, manifest.tied)?;
        let (layers, width) = read_extent(&facts, manifest)?;
        let trained_context = facts.count("context_length", MAX_CONTEXT)?;
        let (heads, kv_heads) = read_heads(&facts, layers)?;
        let (key_size, value_size) = read_head_sizes(&facts, architecture.heads, width, heads)?;
        let rope = Rope::read(&facts, architecture.rotation, architecture.scalings, key_size)?;
        let window = architecture.window.as_ref().map(|rule| Window::read(&facts, rule, layers)).transpose()?.flatten();
        let shape = Self {
            architecture,
            layers,
            width,
            vocab: manifest.vocab,
            context: rope.max_context(trained_context),
            heads,
            kv_heads,
            key_size,
            value_size,
            feed_forward: facts.uniform("feed_forward_length", layers, MAX_FEED_FORWARD)?.unwrap_or(0),
            experts: read_experts(&facts, architecture.experts, layers)?,
            rope,
            window,
            epsilon: required(&facts, epsilon_key(architecture))?,
            trained_context,
            own: read_own(&facts, architecture)?,
        };
        (architecture.check)(&shape)?;
        Ok(shape)
    }

    /// An architecture-specific integer; 0 if absent.
    pub fn count(&self, key: &str) -> u32 {
        match self.find(key) {
            Some(Value::Count(count)) => count,
            _ => 0,
        }
    }

    fn find(&self, key: &str) -> Option<Value> {
        self.own.iter().find(|(rule, _)| rule.key == key).map(|(_, value)| *value)
    }

    /// The model's cut rules.
    pub fn cuts(&self) -> CutRules {
        let mut rules = CutRules::any();
        if let Some(window) = &self.window {
            rules.must_contain = (0..self.layers).filter(|layer| window.covers(*layer)).collect();
        }
        (self.architecture.cuts)(self, &mut rules);
        rules
    }

    /// Refuses layers that, with or without the head, are not a legal stage.
    pub fn admit(&self, layers: LayerRange, head: bool) -> Result<(), EngineError> {
        let rule = if layers.end > self.layers {
            Some(format!("the model has {} layers", self.layers))
        } else if head && layers.end != self.layers {
            Some("the head follows the last layer".to_owned())
        } else {
            self.cuts().violation(layers)
        };
        match rule {
            Some(rule) => {
                Err(EngineError::IllegalCut { architecture: self.architecture.name.to_owned(), layers, rule })
            }
            None => Ok(()),
        }
    }

    /// Floats of a position's keys in a layer's cache.
    pub fn cached_keys(&self) -> u64 {
        u64::from(self.kv_heads) * u64::from(self.key_size)
    }

    /// Floats of a position's values in a layer's cache; 0 if the values are a part of the keys.
    pub fn cached_values(&self) -> u64 {
        let compressed = self.count("attention.key_length_mla") > 0;
        if compressed { 0 } else { u64::from(self.kv_heads) * u64::from(self.value_size) }
    }

    /// The factor of embeddings, as llama.cpp computes it.
    pub fn embedding_scale(&self) -> Option<f32> {
        match self.architecture.scale {
            Scale::None => None,
            Scale::RootOfWidth => Some((self.width as f32).sqrt()),
            Scale::Fact(key) => match self.find(key) {
                Some(Value::Number(scale)) if scale != 0.0 => Some(scale),
                _ => None,
            },
        }
    }

    /// The header of a stage of these layers with a vocabulary of `vocab` tokens.
    pub fn header(&self, layers: LayerRange, vocab: u32) -> Header {
        let mut header = Header::new(self.architecture.name);
        header.string("tokenizer.ggml.model", "no_vocab");
        header.u32("vocab_size", vocab);
        header.u32("block_count", layers.len());
        header.u32("context_length", self.trained_context);
        header.u32("embedding_length", self.width);
        if self.feed_forward > 0 {
            header.u32("feed_forward_length", self.feed_forward);
        }
        header.u32("attention.head_count", self.heads);
        header.u32("attention.head_count_kv", self.kv_heads);
        header.u32("attention.key_length", self.key_size);
        header.u32("attention.value_length", self.value_size);
        header.f32(epsilon_key(self.architecture), Some(self.epsilon));
        self.rope.write(&mut header);
        if let Some(window) = &self.window {
            window.write(layers.start, layers.end, &mut header);
        }
        if let Some(experts) = &self.experts {
            experts.write(&mut header);
        }
        for (rule, value) in self.own.iter().filter(|(rule, _)| rule.copied) {
            match value {
                Value::Count(count) => header.u32(rule.key, *count),
                Value::Number(number) => header.f32(rule.key, Some(*number)),
                Value::Flag(flag) => header.bool(rule.key, *flag),
            }
        }
        (self.architecture.rewrite)(self, layers, &mut header);
        header
    }
}

impl Experts {
    fn write(&self, header: &mut Header) {
        header.u32("expert_count", self.count);
        header.u32("expert_used_count", self.used);
        if self.feed_forward > 0 {
            header.u32("expert_feed_forward_length", self.feed_forward);
        }
    }
}

fn epsilon_key(architecture: &Architecture) -> &'static str {
    match architecture.norm {
        Norm::RootMeanSquare => "attention.layer_norm_rms_epsilon",
        Norm::MeanAndVariance => "attention.layer_norm_epsilon",
    }
}

fn refuse_uncertified(facts: &Facts, architecture: &Architecture) -> Result<(), EngineError> {
    for key in UNCERTIFIED.iter().chain(architecture.uncertified).filter(|key| !architecture.knows(key)) {
        if !facts.is_unset(key) {
            return Err(bad(facts.name(key), "it is not certified"));
        }
    }
    if facts.bool("attention.causal")? == Some(false) {
        return Err(bad(facts.name("attention.causal"), "only causal attention is certified"));
    }
    Ok(())
}

fn check_output(architecture: &Architecture, tied: bool) -> Result<(), EngineError> {
    match (architecture.output, tied) {
        (Output::Own, true) => Err(bad("output", "llama.cpp needs a separate output matrix for this architecture")),
        (Output::Embedding, false) => {
            Err(bad("output", "llama.cpp uses the embedding as output matrix for this architecture"))
        }
        _ => Ok(()),
    }
}

/// Layers and width, which must equal the manifest's.
fn read_extent(facts: &Facts, manifest: &Manifest) -> Result<(u32, u32), EngineError> {
    let layers = facts.count("block_count", MAX_LAYERS)?;
    let width = facts.count("embedding_length", MAX_WIDTH)?;
    for (what, fact, given) in [("layers", layers, manifest.layers), ("width", width, manifest.width)] {
        if fact != given {
            return Err(bad(what, format!("the manifest says {given}, the facts say {fact}")));
        }
    }
    if manifest.vocab == 0 || manifest.vocab > MAX_VOCAB {
        return Err(bad("vocabulary", format!("{} tokens are not in 1..={MAX_VOCAB}", manifest.vocab)));
    }
    Ok((layers, width))
}

fn required(facts: &Facts, key: &str) -> Result<f32, EngineError> {
    facts.positive(key)?.ok_or_else(|| bad(facts.name(key), "it is missing"))
}

/// Query heads and key heads.
fn read_heads(facts: &Facts, layers: u32) -> Result<(u32, u32), EngineError> {
    let key = "attention.head_count";
    let heads = facts.uniform(key, layers, MAX_HEADS)?.ok_or_else(|| bad(facts.name(key), "it is missing"))?;
    let kv_heads = facts.uniform("attention.head_count_kv", layers, MAX_HEADS)?.unwrap_or(heads);
    match heads % kv_heads {
        0 => Ok((heads, kv_heads)),
        _ => Err(bad("attention heads", format!("{kv_heads} key heads do not divide {heads} heads"))),
    }
}

/// Floats of a head's keys and values; by default the head's share of the width.
fn read_head_sizes(facts: &Facts, rule: Heads, width: u32, heads: u32) -> Result<(u32, u32), EngineError> {
    let given = |key: &str| if facts.has(key) { facts.count(key, MAX_HEAD_SIZE) } else { Ok(width / heads) };
    let (keys, values) = (given("attention.key_length")?, given("attention.value_length")?);
    let even = |size: u32| size > 0 && size <= MAX_HEAD_SIZE && size.is_multiple_of(2);
    if !even(keys) || !even(values) || (keys != values && rule != Heads::Latent) {
        return Err(bad("head size", format!("{keys} for keys and {values} for values are not one even number")));
    }
    if rule == Heads::Square && u64::from(keys) * u64::from(heads) != u64::from(width) {
        return Err(bad("head size", format!("{heads} heads of {keys} are not {width} wide together")));
    }
    Ok((keys, values))
}

fn read_experts(facts: &Facts, presence: Presence, layers: u32) -> Result<Option<Experts>, EngineError> {
    let (count, used) = ("expert_count", "expert_used_count");
    if presence == Presence::Never || (presence == Presence::Maybe && facts.is_unset(count)) {
        return match [count, used].into_iter().find(|key| !facts.is_unset(key)) {
            Some(key) => Err(bad(facts.name(key), "experts are not certified here")),
            None => Ok(None),
        };
    }
    let count = facts.count(count, MAX_EXPERTS)?;
    let used = facts.uniform(used, layers, count)?.ok_or_else(|| bad(facts.name(used), "it is missing"))?;
    let feed_forward = facts.uniform("expert_feed_forward_length", layers, MAX_FEED_FORWARD)?.unwrap_or(0);
    Ok(Some(Experts { count, used, feed_forward }))
}

fn read_own(
    facts: &Facts,
    architecture: &'static Architecture,
) -> Result<Vec<(&'static FactRule, Value)>, EngineError> {
    let mut own = Vec::with_capacity(architecture.facts.len());
    for rule in architecture.facts {
        let value = match rule.kind {
            FactKind::Count(max) => match facts.u32(rule.key)? {
                Some(count) if count > max => {
                    return Err(bad(facts.name(rule.key), format!("{count} is more than {max}")));
                }
                count => count.map(Value::Count),
            },
            FactKind::Number => facts.number(rule.key)?.map(Value::Number),
            FactKind::Positive => facts.positive(rule.key)?.map(Value::Number),
            FactKind::Flag => facts.bool(rule.key)?.map(Value::Flag),
        };
        match value {
            Some(value) => own.push((rule, value)),
            None if rule.required => return Err(bad(facts.name(rule.key), "it is missing")),
            None => {}
        }
    }
    Ok(own)
}
