//! Loads tensors from shard files into candle, and reads embedding rows from the file.
//!
//! candle panics on types, shapes and lengths that do not fit, so all are validated here first. A tensor's bytes are
//! allocated only if the file is long enough.

use std::collections::HashMap;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Tensor};

use super::error::{bad_model, failed, not_loaded};
use super::matrix::Matrix;
use super::shape::Shape;
use crate::base::LayerRange;
use crate::engine::{Embedder, EngineError};
use crate::model::{EmbeddingSource, SourceTensor, StageSource, TensorEntry};
use crate::rt::read_exact_at;

/// The candle type of a ggml type; `None` unless candle has all operations for it.
fn dtype(ty: u32) -> Option<GgmlDType> {
    Some(match ty {
        0 => GgmlDType::F32,
        1 => GgmlDType::F16,
        2 => GgmlDType::Q4_0,
        3 => GgmlDType::Q4_1,
        6 => GgmlDType::Q5_0,
        7 => GgmlDType::Q5_1,
        8 => GgmlDType::Q8_0,
        10 => GgmlDType::Q2K,
        11 => GgmlDType::Q3K,
        12 => GgmlDType::Q4K,
        13 => GgmlDType::Q5K,
        14 => GgmlDType::Q6K,
        30 => GgmlDType::BF16,
        _ => return None,
    })
}

/// Values of a block of the types that [`check_blocks`] handles.
const BLOCK: u32 = 32;

/// Layout of a validated tensor.
#[derive(Debug, Clone, Copy)]
pub(super) struct TensorLayout {
    dtype: GgmlDType,
    row_bytes: u64,
    bytes: u64,
}

/// Validates type, shape and size of a tensor against the architecture. `dims` is in GGUF order.
pub(super) fn check_entry(entry: &TensorEntry, dims: &[u64]) -> Result<TensorLayout, EngineError> {
    let refuse = |reason: String| bad_model(entry.name.clone(), reason);
    let dtype = dtype(entry.ty).ok_or_else(|| refuse(format!("candle has no tensors of ggml type {}", entry.ty)))?;
    if entry.dims != dims {
        return Err(refuse(format!("its shape is {:?}, the architecture needs {dims:?}", entry.dims)));
    }
    let block = dtype.block_size() as u64;
    let (&row, rows) = dims.split_first().ok_or_else(|| refuse("it has no dimensions".to_owned()))?;
    if row == 0 || row % block != 0 {
        return Err(refuse(format!("its rows of {row} are not whole blocks of {block}")));
    }
    let too_large = || refuse("its size is beyond 64 bits".to_owned());
    let row_bytes = (row / block).checked_mul(dtype.type_size() as u64).ok_or_else(too_large)?;
    let bytes = rows.iter().try_fold(row_bytes, |bytes, rows| bytes.checked_mul(*rows)).ok_or_else(too_large)?;
    if entry.size != bytes {
        return Err(refuse(format!("it has {} bytes, its shape and type make {bytes}", entry.size)));
    }
    Ok(TensorLayout { dtype, row_bytes, bytes })
}

/// Like [`check_entry`]; also validates that the file holds the tensor.
fn check(tensor: &SourceTensor, dims: &[u64]) -> Result<TensorLayout, EngineError> {
    let layout = check_entry(&tensor.entry, dims)?;
    let refuse = |reason: String| bad_model(tensor.entry.name.clone(), reason);
    let held = tensor.file.metadata().map_err(|error| refuse(error.to_string()))?.len();
    if tensor.offset.checked_add(layout.bytes).is_none_or(|end| end > held) {
        return Err(refuse(format!("it ends beyond the {held} bytes of its file")));
    }
    Ok(layout)
}

/// Refuses rows with an odd number of blocks for types that candle multiplies two blocks at a time: its worker would panic,
/// which makes candle unusable for the whole process.
pub(super) fn check_blocks(entry: &TensorEntry, columns: u32) -> Result<(), EngineError> {
    let pairs = matches!(dtype(entry.ty), Some(GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1));
    if pairs && !(columns / BLOCK).is_multiple_of(2) {
        let reason =
            format!("candle needs an even number of blocks of {BLOCK} in a row, {columns} values are an odd number");
        return Err(bad_model(entry.name.clone(), reason));
    }
    Ok(())
}

/// Aligned bytes, because candle reinterprets them as blocks.
struct AlignedBytes {
    words: Vec<u64>,
    bytes: usize,
}

impl AlignedBytes {
    fn new(bytes: usize) -> Self {
        Self { words: vec![0; bytes.div_ceil(size_of::<u64>())], bytes }
    }

    fn as_slice(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words).split_at(self.bytes).0
    }

    fn as_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.words).split_at_mut(self.bytes).0
    }
}

/// The tensors of a stage, removed one by one; remaining tensors are unknown to the architecture.
pub(super) struct Tensors<'a> {
    layers: LayerRange,
    device: Device,
    remaining: HashMap<&'a str, &'a SourceTensor>,
    bytes: u64,
}

impl<'a> Tensors<'a> {
    pub fn new(source: &'a StageSource, device: &Device) -> Result<Self, EngineError> {
        let mut remaining = HashMap::with_capacity(source.tensors.len());
        for tensor in &source.tensors {
            if remaining.insert(tensor.entry.name.as_str(), tensor).is_some() {
                return Err(bad_model(tensor.entry.name.clone(), "it is there twice"));
            }
        }
        Ok(Self { layers: source.layers, device: device.clone(), remaining, bytes: 0 })
    }

    /// Device of the loaded tensors.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Layers of the stage.
    pub fn layers(&self) -> LayerRange {
        self.layers
    }

    /// Whether a tensor remains.
    pub fn has(&self, name: &str) -> bool {
        self.remaining.contains_key(name)
    }

    /// A matrix of `columns` inputs and `rows` outputs, quantised if candle has products for its type.
    pub fn matrix(&mut self, name: &str, columns: u32, rows: u32) -> Result<Matrix, EngineError> {
        if let Some(tensor) = self.remaining.get(name) {
            check_blocks(&tensor.entry, columns)?;
        }
        let tensor = self.load(name, &[columns.into(), rows.into()])?;
        QMatMul::from_qtensor(tensor).map(Matrix::new).map_err(|error| not_loaded(self.layers, error))
    }

    /// A vector in f32.
    pub fn vector(&mut self, name: &str, length: u32) -> Result<Tensor, EngineError> {
        let tensor = self.load(name, &[length.into()])?;
        tensor.dequantize(&self.device).map_err(|error| not_loaded(self.layers, error))
    }

    /// Bytes of all loaded tensors; an error if a tensor remains.
    pub fn finish(self) -> Result<u64, EngineError> {
        match self.remaining.keys().min() {
            Some(name) => Err(bad_model(*name, "candle's engine does not know this tensor")),
            None => Ok(self.bytes),
        }
    }

    fn load(&mut self, name: &str, dims: &[u64]) -> Result<QTensor, EngineError> {
        let tensor = self.remaining.remove(name).ok_or_else(|| bad_model(name, "the tensor is missing"))?;
        let layout = check(tensor, dims)?;
        let unread = |reason: String| not_loaded(self.layers, format!("reading `{name}`: {reason}"));
        let bytes = usize::try_from(layout.bytes).map_err(|error| unread(error.to_string()))?;
        let mut data = AlignedBytes::new(bytes);
        read_exact_at(&tensor.file, data.as_mut(), tensor.offset).map_err(|error| unread(error.to_string()))?;
        self.bytes = self.bytes.saturating_add(layout.bytes);
        quantised(layout.dtype, &data, dims, &self.device).map_err(|error| unread(error.to_string()))
    }
}

/// candle's shapes have the reverse order of GGUF's: the fastest axis is last.
fn quantised(dtype: GgmlDType, data: &AlignedBytes, dims: &[u64], device: &Device) -> candle_core::Result<QTensor> {
    let dims = dims.iter().rev().map(|&dim| dim as usize).collect();
    qtensor_from_ggml(dtype, data.as_slice(), dims, device)
}

/// Rows of an embedding matrix, read from its file on demand; the matrix is not kept in memory.
pub(super) struct Rows {
    tensor: SourceTensor,
    layout: TensorLayout,
    width: u32,
    vocab: u32,
    scale: Option<f32>,
}

impl Rows {
    /// Rows of one read, which bounds the memory for a long prompt.
    const CHUNK: usize = 512;

    /// Opens the embedding of a model of this shape.
    pub fn open(source: EmbeddingSource, shape: &Shape) -> Result<Self, EngineError> {
        let (width, vocab, scale) = (shape.width, shape.vocab, shape.embedding_scale());
        let layout = check(&source.tensor, &[width.into(), vocab.into()])?;
        Ok(Self { tensor: source.tensor, layout, width, vocab, scale })
    }

    fn rows(&self, tokens: &[u32]) -> candle_core::Result<Vec<f32>> {
        let row_bytes = self.layout.row_bytes as usize;
        let mut data = AlignedBytes::new(row_bytes * tokens.len());
        for (token, row) in tokens.iter().zip(data.as_mut().chunks_exact_mut(row_bytes)) {
            let offset = self.tensor.offset + u64::from(*token) * self.layout.row_bytes;
            read_exact_at(&self.tensor.file, row, offset)?;
        }
        let rows = quantised(self.layout.dtype, &data, &[self.width.into(), tokens.len() as u64], &Device::Cpu)?;
        rows.dequantize(&Device::Cpu)?.flatten_all()?.to_vec1()
    }
}

impl Embedder for Rows {
    fn width(&self) -> u32 {
        self.width
    }

    fn embed(&self, tokens: &[u32], out: &mut Vec<f32>) -> Result<(), EngineError> {
        let vocab = self.vocab;
        if let Some(&token) = tokens.iter().find(|&&token| token >= vocab) {
            return Err(EngineError::Token { token, vocab });
        }
        out.clear();
        for tokens in tokens.chunks(Self::CHUNK) {
            out.extend(self.rows(tokens).map_err(failed)?);
        }
        if let Some(scale) = self.scale {
            out.iter_mut().for_each(|value| *value *= scale);
        }
        Ok(())
    }
}
