//! Where a model may be cut into stages.

use super::EngineError;
use crate::base::LayerRange;
use crate::model::Manifest;

/// Where a model of some architecture may be cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CutRules {
    /// Stages start on multiples of this.
    pub align: u32,
    /// Fewest layers of a stage.
    pub min_layers: u32,
    /// Layers of which each stage must hold at least one (Gemma 3: the windowed ones), empty where any will do.
    pub must_contain: Vec<u32>,
    /// Numbers of layers that no stage may have: the engine would take it for another model.
    pub forbidden: Vec<u32>,
}

impl CutRules {
    /// Any cut is legal.
    pub fn free() -> Self {
        Self { align: 1, min_layers: 1, must_contain: Vec::new(), forbidden: Vec::new() }
    }

    /// Says why `layers` is not a legal stage, or nothing where it is.
    pub fn refuses(&self, layers: LayerRange) -> Option<String> {
        if layers.is_empty() || layers.len() < self.min_layers {
            return Some(format!("a stage has at least {} layers", self.min_layers.max(1)));
        }
        if !layers.start.is_multiple_of(self.align.max(1)) {
            return Some(format!("a stage starts on a multiple of {}", self.align));
        }
        if self.forbidden.contains(&layers.len()) {
            return Some(format!("a stage of {} layers would be taken for another model", layers.len()));
        }
        let holds = |layer: &u32| layers.start <= *layer && *layer < layers.end;
        if !self.must_contain.is_empty() && !self.must_contain.iter().any(holds) {
            return Some("a stage holds at least one sliding-window layer".to_owned());
        }
        None
    }

    /// Refuses `layers` that the model does not have or that are not a legal stage of it.
    pub fn check(&self, manifest: &Manifest, layers: LayerRange) -> Result<(), EngineError> {
        let outside = || format!("the model has {} layers", manifest.layers);
        let refused = (layers.end > manifest.layers).then(outside).or_else(|| self.refuses(layers));
        refused.map_or(Ok(()), |rule| {
            Err(EngineError::IllegalCut { architecture: manifest.architecture.clone(), layers, rule })
        })
    }
}
