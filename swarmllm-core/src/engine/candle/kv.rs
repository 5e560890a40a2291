//! KV cache of one session at one stage.
//!
//! Each layer has one tensor of keys and one of values, `[kv heads, cells, head]` in f32, written in place. The tensors
//! grow by whole blocks of cells, so that a session takes only the memory that it needs and steps rarely copy. The stage
//! knows the session's length; the next step overwrites cells beyond it.

use candle_core::{DType, Device, Result, Tensor};

/// Cells by which a session's tensors grow.
const BLOCK: usize = 256;

/// Size of a layer's cells.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cells {
    pub heads: usize,
    pub head: usize,
}

impl Cells {
    /// Floats of keys and values that one position takes in one layer.
    pub fn floats(self) -> usize {
        2 * self.heads * self.head
    }
}

/// KV of one layer.
#[derive(Debug)]
struct Layer {
    keys: Tensor,
    values: Tensor,
}

/// KV of one session in all layers of the stage.
#[derive(Debug)]
pub(super) struct Kv {
    cells: Cells,
    device: Device,
    layers: Vec<Option<Layer>>,
}

impl Kv {
    pub fn new(cells: Cells, layers: usize, device: &Device) -> Self {
        Self { cells, device: device.clone(), layers: (0..layers).map(|_| None).collect() }
    }

    /// Frees the session's KV.
    pub fn clear(&mut self) {
        self.layers.iter_mut().for_each(|layer| *layer = None);
    }

    /// Writes keys and values (`[kv heads, rows, head]`, contiguous) from position `pos` on. Returns those of all positions
    /// up to the last written one, as views that are valid until the next write.
    pub fn put(&mut self, layer: usize, pos: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let end = pos + keys.dim(1)?;
        let (cells, device) = (self.cells, &self.device);
        let Some(held) = self.layers.get_mut(layer) else { candle_core::bail!("no layer {layer} in the KV") };
        // Replaced only once both tensors exist: if the allocation fails, the session keeps its KV.
        let held = match held {
            Some(layer) if layer.keys.dim(1)? >= end => layer,
            place => {
                let capacity = end.next_multiple_of(BLOCK);
                let grow = |old: Option<&Tensor>| -> Result<Tensor> {
                    let new = Tensor::zeros((cells.heads, capacity, cells.head), DType::F32, device)?;
                    old.map_or(Ok(()), |old| new.slice_set(old, 1, 0))?;
                    Ok(new)
                };
                let keys = grow(place.as_ref().map(|old| &old.keys))?;
                let values = grow(place.as_ref().map(|old| &old.values))?;
                place.insert(Layer { keys, values })
            }
        };
        held.keys.slice_set(keys, 1, pos)?;
        held.values.slice_set(values, 1, pos)?;
        Ok((held.keys.narrow(1, 0, end)?, held.values.narrow(1, 0, end)?))
    }
}
