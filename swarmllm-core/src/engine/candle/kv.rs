//! The keys and values of one session at one stage.
//!
//! Each layer has one tensor for keys and one for values, `[kv heads, cells, head]` in f32, written in place. They grow
//! by whole blocks of cells, so that a session takes what it needs and a step copies nothing that is already there. How
//! many cells count is the stage's knowledge: what lies beyond is overwritten by the next step.

use candle_core::{DType, Device, Result, Tensor};

/// Cells by which a session's tensors grow.
const BLOCK: usize = 256;

/// Size of the cells of a layer.
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

/// Keys and values of one layer.
#[derive(Debug)]
struct Layer {
    keys: Tensor,
    values: Tensor,
}

/// Keys and values of one session, at each layer of the stage.
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

    /// Frees what the session held.
    pub fn clear(&mut self) {
        self.layers.iter_mut().for_each(|layer| *layer = None);
    }

    /// Writes keys and values (`[kv heads, rows, head]`, contiguous) from position `pos` on, and gives those of all
    /// positions up to the last one written. They are views: use them before the next write.
    pub fn put(&mut self, layer: usize, pos: usize, keys: &Tensor, values: &Tensor) -> Result<(Tensor, Tensor)> {
        let end = pos + keys.dim(1)?;
        let (cells, device) = (self.cells, &self.device);
        let Some(held) = self.layers.get_mut(layer) else { candle_core::bail!("no layer {layer} in the KV") };
        // Replaced once both tensors are there: a device without room for them leaves what the session had.
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

    /// Appends the first `len` positions to `out`: layer by layer keys, then values, as little-endian f32.
    pub fn save(&self, len: usize, out: &mut Vec<u8>) -> Result<()> {
        for layer in self.layers.iter().flatten().filter(|_| len > 0) {
            for tensor in [&layer.keys, &layer.values] {
                let floats = tensor.narrow(1, 0, len)?.contiguous()?.flatten_all()?.to_vec1::<f32>()?;
                out.extend(floats.into_iter().flat_map(f32::to_le_bytes));
            }
        }
        Ok(())
    }

    /// Takes over what [`save`](Kv::save) gave for `len` positions, `layers * len * cells.floats()` floats.
    pub fn load(&mut self, len: usize, floats: &[f32]) -> Result<()> {
        self.clear();
        let half = len * self.cells.floats() / 2;
        for (layer, floats) in floats.chunks_exact((2 * half).max(1)).enumerate() {
            let (keys, values) = floats.split_at(half);
            let tensor = |data| Tensor::from_slice(data, (self.cells.heads, len, self.cells.head), &self.device);
            let (keys, values) = (tensor(keys)?, tensor(values)?);
            self.put(layer, 0, &keys, &values)?;
        }
        Ok(())
    }
}
