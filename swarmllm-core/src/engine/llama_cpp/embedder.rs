//! Embedding lookup outside llama.cpp: rows are read from the shard file and dequantised by ggml's own function, so that
//! they equal llama.cpp's bit by bit. The matrix is never loaded.

use std::fs::File;
use std::sync::Arc;

use llama_cpp_sys_2 as ll;

use crate::engine::{Embedder, EngineError};
use crate::model::SourceTensor;
use crate::rt::read_exact_at;

use super::error::{ENGINE, bad};
use super::shape::Shape;
use super::tensors::{matrix_type, row_size};

/// ggml's function that dequantises a row.
type Dequantise = unsafe extern "C" fn(*const std::ffi::c_void, *mut f32, i64);

/// The rows of an embedding matrix.
pub(super) struct LlamaEmbedder {
    file: Arc<File>,
    offset: u64,
    /// Bytes of a row.
    row: usize,
    /// `None` for F32 rows.
    dequantise: Option<Dequantise>,
    width: u32,
    vocab: u32,
    scale: Option<f32>,
}

impl LlamaEmbedder {
    /// An embedder of a validated matrix.
    pub fn new(shape: &Shape, tensor: SourceTensor) -> Result<Self, EngineError> {
        let refuse = || bad("embedding", "its type cannot be dequantised");
        let ty = matrix_type(&tensor.entry).ok_or_else(refuse)?;
        let row = row_size(ty, u64::from(shape.width)).and_then(|row| usize::try_from(row).ok()).ok_or_else(refuse)?;
        // SAFETY: ggml has traits of each of its types, in a table that lives as long as the process.
        let dequantise = unsafe { ll::ggml_get_type_traits(ty).as_ref() }.and_then(|traits| traits.to_float);
        let dequantise = match ty {
            ll::GGML_TYPE_F32 => None,
            _ => Some(dequantise.ok_or_else(refuse)?),
        };
        Ok(Self {
            file: tensor.file,
            offset: tensor.offset,
            row,
            dequantise,
            width: shape.width,
            vocab: shape.vocab,
            scale: shape.embedding_scale(),
        })
    }

    /// Reads the row of `token` into `place`, `width` floats. `block` holds one row and is aligned for all types.
    fn read(&self, token: u32, block: &mut [u64], place: &mut [f32]) -> Result<(), EngineError> {
        let at = self.offset + u64::from(token) * self.row as u64;
        let bytes = match self.dequantise {
            Some(_) => bytemuck::cast_slice_mut(block).get_mut(..self.row).unwrap_or_default(),
            None => bytemuck::cast_slice_mut(&mut *place),
        };
        read_exact_at(&self.file, bytes, at).map_err(|error| EngineError::Step {
            engine: ENGINE,
            reason: format!("embedding of token {token} could not be read: {error}"),
        })?;
        if let Some(dequantise) = self.dequantise {
            // SAFETY: `block` holds a whole row of the type, which gives the `width` floats of `place`.
            unsafe { dequantise(block.as_ptr().cast(), place.as_mut_ptr(), place.len() as i64) };
        }
        Ok(())
    }
}

impl Embedder for LlamaEmbedder {
    fn width(&self) -> u32 {
        self.width
    }

    fn embed(&self, tokens: &[u32], out: &mut Vec<f32>) -> Result<(), EngineError> {
        out.clear();
        if let Some(token) = tokens.iter().copied().find(|token| *token >= self.vocab) {
            return Err(EngineError::Token { token, vocab: self.vocab });
        }
        out.resize(tokens.len() * self.width as usize, 0.0);
        let mut block = vec![0_u64; self.row.div_ceil(size_of::<u64>())];
        for (token, place) in tokens.iter().zip(out.chunks_exact_mut(self.width as usize)) {
            self.read(*token, &mut block, place)?;
        }
        if let Some(scale) = self.scale {
            out.iter_mut().for_each(|value| *value *= scale);
        }
        Ok(())
    }
}
