//! The certified architectures: one description each, in a file per family.
//!
//! To add one: read llama.cpp's file of it (`src/models/<name>.cpp`); describe which facts it reads, which tensors it
//! loads and which of its rules count layers; put the description into [`CERTIFIED`]; and give the tests a tiny model
//! of it. They fail as long as an architecture of the list has none, and hold each legal cut of it against llama.cpp
//! on the whole file, bit by bit.

mod blocks;
mod cohere;
mod deepseek;
mod gemma;
mod glm;
mod gpt_oss;
mod granite;
mod llama;
mod olmo;
mod phi;
mod qwen;
mod stablelm;
mod starcoder;

use crate::engine::EngineError;
use crate::model::Manifest;

use super::architecture::Architecture;
use super::error::ENGINE;
use super::shape::Shape;

/// Every architecture whose stages are proven to equal the whole model.
pub(super) const CERTIFIED: [&Architecture; 24] = [
    &llama::LLAMA,
    &qwen::QWEN2,
    &qwen::QWEN3,
    &qwen::QWEN3MOE,
    &phi::PHI3,
    &llama::MISTRAL3,
    &gemma::GEMMA2,
    &gemma::GEMMA3,
    &granite::GRANITE,
    &gpt_oss::GPT_OSS,
    &deepseek::DEEPSEEK2,
    &llama::LLAMA4,
    &llama::SMOLLM3,
    &olmo::OLMO2,
    &glm::GLM4,
    &qwen::QWEN2MOE,
    &llama::INTERNLM2,
    &cohere::COMMAND_R,
    &starcoder::STARCODER2,
    &stablelm::STABLELM,
    &phi::PHI2,
    &gemma::GEMMA,
    &granite::GRANITE_MOE,
    &olmo::OLMOE,
];

/// Reads and checks the facts of a manifest, by its architecture's description.
pub(super) fn read_shape(manifest: &Manifest) -> Result<Shape, EngineError> {
    Shape::read(of(&manifest.architecture)?, manifest)
}

/// The certified architecture of this name.
fn of(name: &str) -> Result<&'static Architecture, EngineError> {
    let found = CERTIFIED.iter().find(|certified| certified.name == name);
    found.copied().ok_or_else(|| EngineError::UnsupportedArchitecture {
        engine: ENGINE,
        architecture: name.chars().take(64).collect(),
        certified: CERTIFIED.map(|certified| certified.name).join(", "),
    })
}
