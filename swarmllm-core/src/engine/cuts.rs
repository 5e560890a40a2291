//! Rules for cutting a model into stages.

use super::EngineError;
use crate::base::LayerRange;
use crate::model::Manifest;

/// Legal stages of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutRules {
    /// A stage starts at a multiple of this layer index.
    pub align: u32,
    /// Fewest layers of a stage.
    pub min_layers: u32,
    /// Each stage holds at least one of these layers (Gemma 3: the windowed ones); empty for no such rule.
    pub must_contain: Vec<u32>,
    /// Layer counts that no stage may have, because the engine would take the stage for another model.
    pub forbidden: Vec<u32>,
}

impl CutRules {
    /// Any cut is legal.
    pub fn any() -> Self {
        Self { align: 1, min_layers: 1, must_contain: Vec::new(), forbidden: Vec::new() }
    }

    /// The rule that `layers` violates; `None` for a legal stage.
    pub fn violation(&self, layers: LayerRange) -> Option<String> {
        if layers.is_empty() || layers.len() < self.min_layers {
            return Some(format!("a stage has at least {} layers", self.min_layers.max(1)));
        }
        if !layers.start.is_multiple_of(self.align.max(1)) {
            return Some(format!("a stage starts at a multiple of {}", self.align));
        }
        if self.forbidden.contains(&layers.len()) {
            return Some(format!("the engine would take a stage of {} layers for another model", layers.len()));
        }
        let holds = |layer: &u32| layers.start <= *layer && *layer < layers.end;
        if !self.must_contain.is_empty() && !self.must_contain.iter().any(holds) {
            return Some("a stage holds at least one sliding-window layer".to_owned());
        }
        None
    }

    /// Refuses layers that the model does not have and illegal stages.
    pub fn check(&self, manifest: &Manifest, layers: LayerRange) -> Result<(), EngineError> {
        let outside = || format!("the model has {} layers", manifest.layers);
        let refused = (layers.end > manifest.layers).then(outside).or_else(|| self.violation(layers));
        refused.map_or(Ok(()), |rule| {
            Err(EngineError::IllegalCut { architecture: manifest.architecture.clone(), layers, rule })
        })
    }
}
