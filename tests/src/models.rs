//! The test models, which `make` fetches, verifies and passes by environment variables; and a large synthetic model for
//! benchmarks.

use std::path::PathBuf;

use swarmllm_core::base::LayerRange;

use crate::synthetic;

/// A model with quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestModel {
    /// SmolLM2-135M-Instruct, Q4_1, architecture `llama`, 30 layers.
    SmolLm2,
    /// Gemma 3 270M, Q4_K_M, architecture `gemma3`, 18 layers; every sixth has no attention window.
    Gemma3,
    /// Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, architecture `qwen2`, 28 layers: limited by memory bandwidth.
    Coder15,
    /// Qwen2.5-Coder-0.5B-Instruct, Q4_K_M, 24 layers, the same vocabulary: the draft model of the former.
    Coder05,
    /// Random weights in the shape of a Llama with one billion parameters, Q4_K, 16 layers. Its text is meaningless.
    OneBillion,
}

impl TestModel {
    /// The models of every test run.
    pub const ALL: [TestModel; 2] = [TestModel::SmolLm2, TestModel::Gemma3];

    /// The name for imports.
    pub fn name(self) -> &'static str {
        match self {
            Self::SmolLm2 => "smollm2",
            Self::Gemma3 => "gemma3",
            Self::Coder15 => "coder15",
            Self::Coder05 => "coder05",
            Self::OneBillion => "1b",
        }
    }

    /// Number of layers.
    pub fn layers(self) -> u32 {
        match self {
            Self::SmolLm2 => 30,
            Self::Gemma3 => 18,
            Self::Coder15 => 28,
            Self::Coder05 => 24,
            Self::OneBillion => synthetic::LAYERS,
        }
    }

    fn variable(self) -> &'static str {
        match self {
            // The synthetic model is written beside SmolLM2, with its tokenizer.
            Self::SmolLm2 | Self::OneBillion => "SWARMLLM_TEST_SMOLLM2",
            Self::Gemma3 => "SWARMLLM_TEST_GEMMA3",
            Self::Coder15 => "SWARMLLM_TEST_CODER15",
            Self::Coder05 => "SWARMLLM_TEST_CODER05",
        }
    }

    /// Whether the file exists. The larger models come from third-party packages, which may disappear.
    pub fn is_there(self) -> bool {
        std::env::var_os(self.variable()).is_some_and(|path| PathBuf::from(path).is_file())
    }

    /// Path of the GGUF. Panics without the file: an untested contract must not count as passed.
    pub fn path(self) -> PathBuf {
        let variable = self.variable();
        let Some(path) = std::env::var_os(variable).map(PathBuf::from) else {
            panic!("{variable} is not set: run `make test`, which fetches the model, or set the variable");
        };
        assert!(path.is_file(), "{variable} is {}, which is not a file", path.display());
        match self {
            Self::OneBillion => synthetic::one_billion_q4_k(path.parent().expect("a file is in a directory")),
            _ => path,
        }
    }

    /// The layers in `stages` ranges of nearly equal size.
    pub fn cut(self, stages: u32) -> Vec<LayerRange> {
        let bound = |stage: u32| self.layers() * stage / stages;
        (0..stages).map(|stage| LayerRange::new(bound(stage), bound(stage + 1))).collect()
    }
}
