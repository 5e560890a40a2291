//! Speculation statistics of earlier answers, kept for the next ones.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::base::ModelId;

use super::{DraftStats, NGramStats};

/// Models, and pairs of models, that are remembered; one more clears all.
const MAX_MODELS: usize = 256;

/// Statistics by model, and by pair of model and draft model.
#[derive(Debug, Default)]
pub struct SpeculationHistory {
    ngrams: Mutex<HashMap<ModelId, NGramStats>>,
    /// By answering model and draft model.
    drafts: Mutex<HashMap<(ModelId, ModelId), DraftStats>>,
}

impl SpeculationHistory {
    /// N-gram statistics of a model.
    pub fn ngram_stats(&self, model: ModelId) -> NGramStats {
        locked(&self.ngrams).get(&model).copied().unwrap_or_default().forgetting()
    }

    /// Statistics of a model with this draft model.
    pub fn draft_stats(&self, model: ModelId, draft: ModelId) -> DraftStats {
        locked(&self.drafts).get(&(model, draft)).copied().unwrap_or_default()
    }

    /// Records the n-gram statistics of an answer.
    pub fn record_ngrams(&self, model: ModelId, stats: NGramStats) {
        let mut ngrams = locked(&self.ngrams);
        let known = ngrams.get(&model).copied().unwrap_or_default();
        put(&mut ngrams, model, known.updated(stats));
    }

    /// Records the statistics of an answer with a draft model.
    pub fn record_draft(&self, model: ModelId, draft: ModelId, stats: DraftStats) {
        put(&mut locked(&self.drafts), (model, draft), stats);
    }
}

fn put<K: Eq + Hash, V>(table: &mut HashMap<K, V>, key: K, value: V) {
    if table.len() >= MAX_MODELS && !table.contains_key(&key) {
        table.clear();
    }
    table.insert(key, value);
}

fn locked<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
