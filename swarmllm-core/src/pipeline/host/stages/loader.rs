//! Loads a stage into an engine: checks the request, and shares out the layers that accelerators may compute.

use std::sync::Arc;

use super::StageTable;
use super::entries::{Entries, Entry, StageKey};
use crate::base::{ErrorKind, Event, Fault, LayerRange};
use crate::engine::{Engine, StageConfig, StageHandle};
use crate::model::Manifest;

impl StageTable {
    /// The engine of this name.
    pub(super) fn engine(&self, name: &str) -> Result<Arc<dyn Engine>, Fault> {
        let found = self.inner.engines.iter().find(|engine| engine.name() == name).cloned();
        found.ok_or_else(|| Fault::new(ErrorKind::Unsupported, format!("engine `{name}` is not built into this node")))
    }

    /// Refuses layers that are not a legal stage of the model.
    pub(super) fn check_cut(&self, engine: &Arc<dyn Engine>, manifest: &Manifest, key: &StageKey) -> Result<(), Fault> {
        let cuts = engine.cuts(manifest).map_err(|error| Fault::new(error.kind(), error))?;
        let inside = key.layers.end <= manifest.layers && (!key.head || key.layers.end == manifest.layers);
        match cuts.violation(key.layers) {
            None if inside => Ok(()),
            None => {
                let text = format!("layers {} of a model of {} cannot be a stage", key.layers, manifest.layers);
                Err(Fault::new(ErrorKind::InvalidArgument, text))
            }
            Some(rule) => {
                let text = format!("layers {} of `{}` cannot be a stage: {rule}", key.layers, manifest.architecture);
                Err(Fault::new(ErrorKind::NoPlan, text))
            }
        }
    }

    /// Layers of a new stage that accelerators may compute, beside those of the other entries.
    pub(super) fn gpu_layers(&self, entries: &Entries, key: &StageKey) -> u32 {
        let used = entries.all().map(|entry| entry.gpu_layers());
        gpu_share(self.inner.limits.stage.gpu_layers, used, key.layers, key.head)
    }

    /// Loads an entry's stage, and announces it as an event.
    pub(super) async fn load(&self, engine: Arc<dyn Engine>, entry: &Entry) -> Result<StageHandle, Fault> {
        let catalog = self.inner.catalog.clone();
        let config =
            StageConfig { gpu_layers: entry.gpu_layers, context: entry.context, ..self.inner.limits.stage.clone() };
        let name = engine.name();
        let StageKey { model, layers, head, .. } = entry.key;
        let source = tokio::task::spawn_blocking(move || catalog.stage_source(model, layers, head))
            .await
            .map_err(|error| Fault::new(ErrorKind::Internal, error))?
            .map_err(|error| Fault::new(error.kind(), error))?;
        let threads = self.inner.threads.clone();
        let handle = StageHandle::spawn_counted(move || engine.load_stage(source, &config), threads)
            .await
            .map_err(|error| Fault::new(error.kind(), error))?;
        self.inner.events.send(Event::StageLoaded { model, layers, engine: name });
        Ok(handle)
    }
}

/// Layers of accelerators that a stage may get from a node's `budget`, where other stages use some.
pub(super) fn gpu_share(budget: u32, used: impl Iterator<Item = u32>, layers: LayerRange, head: bool) -> u32 {
    let left = used.fold(budget, u32::saturating_sub);
    left.min(layers.len().saturating_add(u32::from(head)))
}
