//! Sampling (to be written).
/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, Default)]
#[serde(default)]
pub struct SamplingParams {
    /// 0 is greedy.
    pub temperature: f32,
    pub top_k: u32,
    pub top_p: f32,
    pub min_p: f32,
    pub repeat_penalty: f32,
    pub repeat_last_n: u32,
    pub presence_penalty: f32,
    pub frequency_penalty: f32,
    pub seed: Option<u64>,
}
/// One row of logits as a last stage gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum LogitRow {
    Top { lse: f32, ids: Vec<u32>, logits: Vec<f32> },
    Full(Vec<f32>),
}
