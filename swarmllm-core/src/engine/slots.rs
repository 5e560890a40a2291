//! Lengths of a stage's sessions, and the validation of every step before an engine computes it.

use super::{EngineError, Row, StageConfig, StageSpec};

/// Length of each slot, in positions.
#[derive(Debug, Clone)]
pub(crate) struct Slots {
    held: Vec<u32>,
    context: u32,
}

impl Slots {
    /// Empty slots `0..max_sessions`.
    pub fn new(config: &StageConfig) -> Self {
        Self { held: vec![0; config.max_sessions as usize], context: config.context }
    }

    /// Length of a slot, in positions.
    pub fn held(&self, slot: u32) -> Result<u32, EngineError> {
        self.held.get(slot as usize).copied().ok_or_else(|| self.no_slot(slot))
    }

    /// Validates a step. A valid step may be computed and then [`commit`](Slots::commit)ted.
    pub fn check(&self, spec: &StageSpec, hidden: &[f32], rows: &[Row]) -> Result<(), EngineError> {
        let max = spec.config.max_rows;
        if rows.is_empty() || rows.len() > max as usize {
            return Err(EngineError::Rows { rows: rows.len(), max });
        }
        let width = spec.width as usize;
        if rows.len().checked_mul(width) != Some(hidden.len()) {
            return Err(EngineError::Shape { given: hidden.len(), rows: rows.len(), width: spec.width });
        }
        let mut next = self.held.clone();
        for row in rows {
            let next = next.get_mut(row.slot as usize).ok_or_else(|| self.no_slot(row.slot))?;
            if row.pos != *next {
                return Err(EngineError::Position { given: row.pos, expected: *next });
            }
            *next += 1;
        }
        self.fits(&next)?;
        match hidden.iter().position(|value| !value.is_finite()) {
            Some(at) => Err(EngineError::NotFinite { row: at / width.max(1) }),
            None => Ok(()),
        }
    }

    /// Counts the rows of a computed step.
    pub fn commit(&mut self, rows: &[Row]) {
        for row in rows {
            if let Some(held) = self.held.get_mut(row.slot as usize) {
                *held += 1;
            }
        }
    }

    /// Keeps at most `len` positions; returns the new length.
    pub fn truncate(&mut self, slot: u32, len: u32) -> Result<u32, EngineError> {
        let kept = self.held(slot)?.min(len);
        self.put(slot, kept);
        Ok(kept)
    }

    /// Empties a slot. Ignores unknown slots.
    pub fn release(&mut self, slot: u32) {
        self.put(slot, 0);
    }

    fn put(&mut self, slot: u32, len: u32) {
        if let Some(held) = self.held.get_mut(slot as usize) {
            *held = len;
        }
    }

    fn fits(&self, held: &[u32]) -> Result<(), EngineError> {
        match held.iter().any(|held| *held > self.context) {
            true => Err(EngineError::ContextFull { context: self.context }),
            false => Ok(()),
        }
    }

    fn no_slot(&self, slot: u32) -> EngineError {
        EngineError::Slot { slot, slots: self.held.len() as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::LayerRange;
    use crate::engine::KvType;

    fn spec() -> StageSpec {
        let config = StageConfig {
            context: 4,
            max_sessions: 2,
            max_rows: 3,
            threads: 1,
            kv: KvType::Full,
            ..StageConfig::default()
        };
        StageSpec { engine: "test", layers: LayerRange::new(0, 1), width: 2, vocab: None, config, memory: 0 }
    }

    fn row(slot: u32, pos: u32) -> Row {
        Row { slot, pos, want: false }
    }

    #[test]
    fn an_invalid_step_is_refused_with_its_cause() {
        let spec = spec();
        let mut slots = Slots::new(&spec.config);
        let check = |slots: &Slots, hidden: &[f32], rows: &[Row]| slots.check(&spec, hidden, rows);

        assert_eq!(check(&slots, &[], &[]), Err(EngineError::Rows { rows: 0, max: 3 }));
        assert_eq!(check(&slots, &[0.0; 8], &[row(0, 0); 4]), Err(EngineError::Rows { rows: 4, max: 3 }));
        assert_eq!(check(&slots, &[0.0; 3], &[row(0, 0)]), Err(EngineError::Shape { given: 3, rows: 1, width: 2 }));
        assert_eq!(check(&slots, &[0.0; 2], &[row(2, 0)]), Err(EngineError::Slot { slot: 2, slots: 2 }));
        assert_eq!(check(&slots, &[0.0; 2], &[row(0, 1)]), Err(EngineError::Position { given: 1, expected: 0 }));
        assert_eq!(
            check(&slots, &[0.0, 0.0, 0.0, f32::NAN], &[row(0, 0), row(1, 0)]),
            Err(EngineError::NotFinite { row: 1 })
        );

        let rows = [row(0, 0), row(1, 0), row(0, 1)];
        assert_eq!(check(&slots, &[0.0; 6], &rows), Ok(()));
        slots.commit(&rows);
        let more = [row(0, 2), row(0, 3), row(0, 4)];
        assert_eq!(check(&slots, &[0.0; 6], &more), Err(EngineError::ContextFull { context: 4 }));
        let other = [row(1, 1), row(1, 2), row(1, 3)];
        assert_eq!(check(&slots, &[0.0; 6], &other), Ok(()), "each session has its own context");
        assert_eq!(slots.truncate(0, 1), Ok(1));
        assert_eq!(check(&slots, &[0.0; 6], &[row(0, 1), row(0, 2), row(0, 3)]), Ok(()));
    }
}
