//! The two test models, which `make` fetches, whose digests it checks and of which it says where they are; and a large
//! one without sense, for measuring.

use std::path::PathBuf;

use swarmllm_core::base::LayerRange;

use crate::synthetic;

/// A model with quantised weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestModel {
    /// SmolLM2-135M-Instruct, Q4_1, architecture `llama`, 30 layers.
    SmolLm2,
    /// Gemma 3 270M, Q4_K_M, architecture `gemma3`, 18 layers of which every sixth has no window.
    Gemma3,
    /// Qwen2.5-Coder-1.5B-Instruct, Q4_K_M, architecture `qwen2`, 28 layers: large enough for the memory to rule.
    Coder15,
    /// Qwen2.5-Coder-0.5B-Instruct, Q4_K_M, 24 layers, the same tokens: its draft.
    Coder05,
    /// Random weights in the shape of a Llama of one billion parameters, Q4_K, 16 layers: it says nothing of sense.
    OneBillion,
}

impl TestModel {
    /// The real ones that every test run has.
    pub const ALL: [TestModel; 2] = [TestModel::SmolLm2, TestModel::Gemma3];

    /// The name it is imported under.
    pub fn name(self) -> &'static str {
        match self {
            Self::SmolLm2 => "smollm2",
            Self::Gemma3 => "gemma3",
            Self::Coder15 => "coder15",
            Self::Coder05 => "coder05",
            Self::OneBillion => "1b",
        }
    }

    /// Its transformer blocks.
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
            // Made beside this one, with its tokenizer.
            Self::SmolLm2 | Self::OneBillion => "SWARMLLM_TEST_SMOLLM2",
            Self::Gemma3 => "SWARMLLM_TEST_GEMMA3",
            Self::Coder15 => "SWARMLLM_TEST_CODER15",
            Self::Coder05 => "SWARMLLM_TEST_CODER05",
        }
    }

    /// Whether its file is there. The larger ones come in packages of third parties, which may go.
    pub fn is_there(self) -> bool {
        std::env::var_os(self.variable()).is_some_and(|path| PathBuf::from(path).is_file())
    }

    /// Its GGUF. Panics where the file is not there: a contract that was not tried must not look kept.
    pub fn path(self) -> PathBuf {
        let variable = self.variable();
        let Some(path) = std::env::var_os(variable).map(PathBuf::from) else {
            panic!("{variable} names no model: run `make test`, which fetches it, or set the variable");
        };
        assert!(path.is_file(), "{variable} is {}, where no file is", path.display());
        match self {
            Self::OneBillion => synthetic::one_billion_q4_k(path.parent().expect("a file is in a directory")),
            _ => path,
        }
    }

    /// Its layers in `stages` parts of nearly one size.
    pub fn cut(self, stages: u32) -> Vec<LayerRange> {
        let bound = |stage: u32| self.layers() * stage / stages;
        (0..stages).map(|stage| LayerRange::new(bound(stage), bound(stage + 1))).collect()
    }
}
