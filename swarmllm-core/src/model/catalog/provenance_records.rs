//! Reads and writes of the provenance of known models.

use super::provenance::{Provenance, ProvenanceTable};
use super::{Catalog, State};
use crate::base::ModelId;
use crate::model::{ModelError, ShardEntry, ShardKind};

impl State {
    /// The shards of a known model, each with its provenance.
    pub(super) fn shards_with_provenance(&self, model: ModelId) -> impl Iterator<Item = (&ShardEntry, Provenance)> {
        static NOTHING: ProvenanceTable = ProvenanceTable(Vec::new());
        let table = self.provenance.get(&model).unwrap_or(&NOTHING);
        self.models.get(&model).into_iter().flat_map(|manifest| table.with(manifest))
    }
}

impl Catalog {
    /// The provenance of each shard of a model; empty for an unknown model.
    pub fn provenance(&self, model: ModelId) -> Vec<(ShardKind, Provenance)> {
        self.state().shards_with_provenance(model).map(|(entry, provenance)| (entry.kind, provenance)).collect()
    }

    /// Records that the host requests these shards, held or not. They are the host's from now on.
    pub fn record_requested(&self, model: ModelId, parts: &dyn Fn(ShardKind) -> bool) -> Result<(), ModelError> {
        self.update_provenance(model, &|entry, provenance| {
            if parts(entry.kind) { Provenance::Requested } else { provenance }
        })
    }

    /// Records that placement requests these shards, where they are not held and nothing is recorded.
    pub fn record_placed(&self, model: ModelId, parts: &dyn Fn(ShardKind) -> bool) -> Result<(), ModelError> {
        self.update_provenance(model, &|entry, provenance| match provenance {
            Provenance::Unrecorded if parts(entry.kind) && !self.has(&entry.id) => Provenance::Placed,
            provenance => provenance,
        })
    }

    fn update_provenance(
        &self,
        model: ModelId,
        change: &dyn Fn(&ShardEntry, Provenance) -> Provenance,
    ) -> Result<(), ModelError> {
        let _guard = self.lock_disk();
        let manifest = self.require_manifest(model)?;
        let table = self.provenance_of(model).changed(&manifest, change);
        self.store_provenance(model, table)
    }

    pub(super) fn provenance_of(&self, model: ModelId) -> ProvenanceTable {
        self.state().provenance.get(&model).cloned().unwrap_or_default()
    }

    /// Persists the provenance of a known model, then updates it in memory. The caller holds the disk lock.
    pub(super) fn store_provenance(&self, model: ModelId, table: ProvenanceTable) -> Result<(), ModelError> {
        if self.provenance_of(model) == table {
            return Ok(());
        }
        self.layout().prepare(&table.encode())?.persist(&self.layout().provenance(&model))?;
        self.layout().sync_models()?;
        self.state_mut().provenance.insert(model, table);
        Ok(())
    }
}
