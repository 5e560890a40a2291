//! The certified architectures: one description each, one file for each family.
//!
//! To add an architecture: read its file in llama.cpp (`src/models/<name>.cpp`); describe the facts that it reads, the
//! tensors that it loads and the rules that count layers; add the description to [`CERTIFIED`]; and add a tiny model to the
//! tests. The tests fail for an architecture without a tiny model, and compare each legal cut of the model with llama.cpp
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

/// All architectures whose stages are proven to equal the whole model.
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

/// Reads and validates a manifest's facts by its architecture's description.
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
