//! Tensors from shard files into candle, and rows of an embedding straight from the file.
//!
//! candle asserts or panics on types, shapes and lengths that do not fit; each is checked here first, and a tensor's
//! bytes are only allocated once the file is known to hold them.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use candle_core::quantized::ggml_file::qtensor_from_ggml;
use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
use candle_core::{Device, Tensor};

use super::error::{bad_model, failed, not_loaded};
use super::matrix::Matrix;
use super::shape::Shape;
use crate::base::LayerRange;
use crate::engine::{Embedder, EngineError};
use crate::model::{EmbeddingSource, SourceTensor, StageSource, TensorEntry};

/// The candle type of a ggml type, for those whose every operation candle has.
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

/// Values in one block of the types that [`check_blocks`] is about.
const BLOCK: u32 = 32;

/// What a checked tensor is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    dtype: GgmlDType,
    row_bytes: u64,
    bytes: u64,
}

/// Checks type, shape and size of a tensor against what the architecture needs. `dims` is in GGUF order.
pub(super) fn check_entry(entry: &TensorEntry, dims: &[u64]) -> Result<Layout, EngineError> {
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
    Ok(Layout { dtype, row_bytes, bytes })
}

/// The same, and that the file holds the tensor.
fn check(tensor: &SourceTensor, dims: &[u64]) -> Result<Layout, EngineError> {
    let layout = check_entry(&tensor.entry, dims)?;
    let refuse = |reason: String| bad_model(tensor.entry.name.clone(), reason);
    let held = tensor.file.metadata().map_err(|error| refuse(error.to_string()))?.len();
    if tensor.offset.checked_add(layout.bytes).is_none_or(|end| end > held) {
        return Err(refuse(format!("its bytes end beyond the {held} bytes of its file")));
    }
    Ok(layout)
}

/// Refuses rows of an odd number of blocks for the types whose products candle takes two blocks at a time. That would
/// panic on candle's workers, and a panic there leaves candle useless for the whole process.
pub(super) fn check_blocks(entry: &TensorEntry, columns: u32) -> Result<(), EngineError> {
    let pairs = matches!(dtype(entry.ty), Some(GgmlDType::Q4_1 | GgmlDType::Q5_0 | GgmlDType::Q5_1));
    if pairs && !(columns / BLOCK).is_multiple_of(2) {
        let reason = format!("candle needs an even number of blocks of {BLOCK} in a row, {columns} make an odd one");
        return Err(bad_model(entry.name.clone(), reason));
    }
    Ok(())
}

/// Reads `bytes.len()` bytes at `offset` without moving any cursor that others may use.
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    #[cfg(unix)]
    return std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset);
    #[cfg(windows)]
    {
        let mut done = 0;
        while done < bytes.len() {
            let read = std::os::windows::fs::FileExt::seek_read(file, &mut bytes[done..], offset + done as u64)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            done += read;
        }
        Ok(())
    }
}

/// Bytes as candle wants them: it reinterprets them as blocks, so that they have to be aligned.
struct Aligned {
    words: Vec<u64>,
    bytes: usize,
}

impl Aligned {
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

/// The tensors of a stage, taken out one by one; what is left at the end the architecture does not know.
pub(super) struct Tensors<'a> {
    layers: LayerRange,
    device: Device,
    left: HashMap<&'a str, &'a SourceTensor>,
    bytes: u64,
}

impl<'a> Tensors<'a> {
    pub fn new(source: &'a StageSource, device: &Device) -> Result<Self, EngineError> {
        let mut left = HashMap::with_capacity(source.tensors.len());
        for tensor in &source.tensors {
            if left.insert(tensor.entry.name.as_str(), tensor).is_some() {
                return Err(bad_model(tensor.entry.name.clone(), "it is there twice"));
            }
        }
        Ok(Self { layers: source.layers, device: device.clone(), left, bytes: 0 })
    }

    /// Where they are put.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Layers of the stage.
    pub fn layers(&self) -> LayerRange {
        self.layers
    }

    /// Whether a tensor is there and was not taken.
    pub fn has(&self, name: &str) -> bool {
        self.left.contains_key(name)
    }

    /// A matrix of `columns` inputs and `rows` outputs, left quantised where candle multiplies quantised ones.
    pub fn matrix(&mut self, name: &str, columns: u32, rows: u32) -> Result<Matrix, EngineError> {
        if let Some(tensor) = self.left.get(name) {
            check_blocks(&tensor.entry, columns)?;
        }
        let tensor = self.take(name, &[columns.into(), rows.into()])?;
        QMatMul::from_qtensor(tensor).map(Matrix::new).map_err(|error| not_loaded(self.layers, error))
    }

    /// A vector in f32.
    pub fn vector(&mut self, name: &str, length: u32) -> Result<Tensor, EngineError> {
        let tensor = self.take(name, &[length.into()])?;
        tensor.dequantize(&self.device).map_err(|error| not_loaded(self.layers, error))
    }

    /// Bytes of all that was taken; an error where something is left over.
    pub fn finish(self) -> Result<u64, EngineError> {
        match self.left.keys().min() {
            Some(name) => Err(bad_model(*name, "candle's engine does not know this tensor")),
            None => Ok(self.bytes),
        }
    }

    fn take(&mut self, name: &str, dims: &[u64]) -> Result<QTensor, EngineError> {
        let tensor = self.left.remove(name).ok_or_else(|| bad_model(name, "the tensor is missing"))?;
        let layout = check(tensor, dims)?;
        let unread = |reason: String| not_loaded(self.layers, format!("reading `{name}`: {reason}"));
        let bytes = usize::try_from(layout.bytes).map_err(|error| unread(error.to_string()))?;
        let mut data = Aligned::new(bytes);
        read_at(&tensor.file, data.as_mut(), tensor.offset).map_err(|error| unread(error.to_string()))?;
        self.bytes = self.bytes.saturating_add(layout.bytes);
        quantised(layout.dtype, &data, dims, &self.device).map_err(|error| unread(error.to_string()))
    }
}

/// candle's shapes are the other way round than GGUF's: the fastest axis last.
fn quantised(dtype: GgmlDType, data: &Aligned, dims: &[u64], device: &Device) -> candle_core::Result<QTensor> {
    let dims = dims.iter().rev().map(|&dim| dim as usize).collect();
    qtensor_from_ggml(dtype, data.as_slice(), dims, device)
}

/// Rows of an embedding matrix, read from its file as they are needed: no part of it stays in memory.
pub(super) struct Rows {
    tensor: SourceTensor,
    layout: Layout,
    width: u32,
    vocab: u32,
    scale: Option<f32>,
}

impl Rows {
    /// Rows that are read at once, so that a long prompt does not decide how much memory is taken.
    const CHUNK: usize = 512;

    /// Rows of a model of this shape.
    pub fn open(source: EmbeddingSource, shape: &Shape) -> Result<Self, EngineError> {
        let (width, vocab, scale) = (shape.width, shape.vocab, shape.embedding_scale());
        let layout = check(&source.tensor, &[width.into(), vocab.into()])?;
        Ok(Self { tensor: source.tensor, layout, width, vocab, scale })
    }

    fn rows(&self, tokens: &[u32]) -> candle_core::Result<Vec<f32>> {
        let row_bytes = self.layout.row_bytes as usize;
        let mut data = Aligned::new(row_bytes * tokens.len());
        for (token, row) in tokens.iter().zip(data.as_mut().chunks_exact_mut(row_bytes)) {
            let offset = self.tensor.offset + u64::from(*token) * self.layout.row_bytes;
            read_at(&self.tensor.file, row, offset)?;
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
