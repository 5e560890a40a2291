//! The two test models. `make` fetches them, checks their digests and says where they are.

use std::path::PathBuf;

use swarmllm_core::base::LayerRange;

/// A small real model with quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestModel {
    /// SmolLM2-135M-Instruct, Q4_1, architecture `llama`, 30 layers.
    SmolLm2,
    /// Gemma 3 270M, Q4_K_M, architecture `gemma3`, 18 layers of which every sixth has no window.
    Gemma3,
}

impl TestModel {
    /// Both.
    pub const ALL: [TestModel; 2] = [TestModel::SmolLm2, TestModel::Gemma3];

    /// The name it is imported under.
    pub fn name(self) -> &'static str {
        match self {
            Self::SmolLm2 => "smollm2",
            Self::Gemma3 => "gemma3",
        }
    }

    /// Its transformer blocks.
    pub fn layers(self) -> u32 {
        match self {
            Self::SmolLm2 => 30,
            Self::Gemma3 => 18,
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Self::SmolLm2 => "SWARMLLM_TEST_SMOLLM2",
            Self::Gemma3 => "SWARMLLM_TEST_GEMMA3",
        }
    }

    /// Its GGUF. Panics where the file is not there: a contract that was not tried must not look kept.
    pub fn path(self) -> PathBuf {
        let variable = self.variable();
        let Some(path) = std::env::var_os(variable).map(PathBuf::from) else {
            panic!("{variable} names no model: run `make test`, which fetches it, or set the variable");
        };
        assert!(path.is_file(), "{variable} is {}, where no file is", path.display());
        path
    }

    /// Its layers in `stages` parts of nearly one size.
    pub fn cut(self, stages: u32) -> Vec<LayerRange> {
        let bound = |stage: u32| self.layers() * stage / stages;
        (0..stages).map(|stage| LayerRange::new(bound(stage), bound(stage + 1))).collect()
    }
}
