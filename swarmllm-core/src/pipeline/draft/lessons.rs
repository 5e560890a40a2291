//! What answers have learnt of guesses, kept for the next ones.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::base::ModelId;

use super::{DraftLearnt, Learnt};

/// Models, and pairs of models, of which something is remembered; beyond that all is learnt anew.
const MODELS: usize = 256;

/// What was learnt of each model in earlier answers, by itself and with each draft model.
#[derive(Debug, Default)]
pub struct Lessons {
    repeats: Mutex<HashMap<ModelId, Learnt>>,
    /// By the model and its draft model.
    drafts: Mutex<HashMap<(ModelId, ModelId), DraftLearnt>>,
}

impl Lessons {
    /// What is known of a model's guesses without a draft model.
    pub fn of(&self, model: ModelId) -> Learnt {
        locked(&self.repeats).get(&model).copied().unwrap_or_default().forgetting()
    }

    /// What is known of a model with this draft model.
    pub fn of_draft(&self, model: ModelId, draft: ModelId) -> DraftLearnt {
        locked(&self.drafts).get(&(model, draft)).copied().unwrap_or_default()
    }

    /// Takes what an answer has learnt.
    pub fn learn(&self, model: ModelId, learnt: Learnt) {
        let mut repeats = locked(&self.repeats);
        let known = repeats.get(&model).copied().unwrap_or_default();
        put(&mut repeats, model, known.behind(learnt));
    }

    /// Takes what an answer has learnt of a draft model.
    pub fn learn_draft(&self, model: ModelId, draft: ModelId, learnt: DraftLearnt) {
        put(&mut locked(&self.drafts), (model, draft), learnt);
    }
}

fn put<K: Eq + Hash, V>(table: &mut HashMap<K, V>, key: K, value: V) {
    if table.len() >= MODELS && !table.contains_key(&key) {
        table.clear();
    }
    table.insert(key, value);
}

fn locked<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}
