//! Weights in a second layout: beside llama.cpp's repacked ones, as they stand in the shards.
//!
//! llama.cpp repacks quantised weights while it loads them, for products with a row or a few. With many rows its products
//! on the weights as they are may be the faster ones: on x86 a model in Q4_K reads prompts nearly twice as fast with them.
//! Here the shards' files stay mapped, which takes no memory that the system could not take back at any time, and steps of
//! many rows whose bits are free are computed with whichever layout is faster. Which one that is depends on the processor,
//! so it is measured, on pieces of long steps.
//!
//! Only matrices of layers take part: of the output matrix a prompt needs one row.

use std::ffi::{CStr, CString, c_void};
use std::fs::File;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

use llama_cpp_sys_2 as ll;
use memmap2::Mmap;

use super::image::Image;

/// What llama.cpp calls the buffers of repacked weights.
const REPACKED: &CStr = c"CPU_REPACK";
/// What llama.cpp's kernels may assume of a tensor's address.
const ALIGNMENT: usize = 32;
/// Rows from which weights as they stand may be the faster ones: 16 rows take as long with either layout.
const MANY: usize = 32;
/// Rows of a piece that is measured.
const PIECE: usize = 64;
/// Long steps between two measurements; each takes a piece with the slower layout.
const BETWEEN: u32 = 64;
/// The other layout must be so much faster to be taken: measurements are noisy.
const MARGIN: f64 = 0.9;

/// A part of a step that is computed by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// Whether with the weights as they stand in the shards.
    pub plain: bool,
    /// Whether its time is held against the other layout's.
    pub measured: bool,
}

impl Part {
    /// All of these rows as llama.cpp would compute them.
    pub fn usual(rows: Range<usize>) -> Self {
        Self { rows, plain: false, measured: false }
    }
}

/// Which layout steps of many rows get. Pure: times go in, parts come out.
#[derive(Debug)]
pub(super) struct Choice {
    plain: bool,
    trial: Trial,
}

/// How far a measurement has come.
#[derive(Debug)]
enum Trial {
    /// It is over, since so many long steps.
    Over(u32),
    /// A piece is computed with the other layout.
    Other,
    /// The other layout's piece took so many microseconds; one with this layout is next.
    This(u32),
}

impl Default for Choice {
    fn default() -> Self {
        // Measured at the first step that is long enough. Its first piece is computed with repacked weights, and llama.cpp's
        // tensors are met there.
        Self { plain: true, trial: Trial::Over(BETWEEN) }
    }
}

impl Choice {
    /// What of a step's rows is computed next; all where it may not be taken apart.
    pub fn next(&mut self, rows: Range<usize>, whole: bool) -> Part {
        if rows.len() < MANY {
            return Part::usual(rows);
        }
        let piece = |plain| Part { rows: rows.start..rows.start + PIECE, plain, measured: true };
        match self.trial {
            Trial::Over(BETWEEN) | Trial::Other if !whole && rows.len() >= 3 * PIECE => {
                self.trial = Trial::Other;
                return piece(!self.plain);
            }
            Trial::This(_) if !whole && rows.len() >= PIECE => return piece(self.plain),
            Trial::Over(since) => self.trial = Trial::Over(BETWEEN.min(since + 1)),
            Trial::Other | Trial::This(_) => {}
        }
        Part { rows, plain: self.plain, measured: false }
    }

    /// What a measured part took.
    pub fn took(&mut self, micros: u32) {
        self.trial = match self.trial {
            Trial::Other => Trial::This(micros),
            Trial::This(other) => {
                self.plain ^= f64::from(other) < MARGIN * f64::from(micros);
                Trial::Over(0)
            }
            Trial::Over(since) => Trial::Over(since),
        };
    }
}

/// A stage's weights as they stand in the shards.
pub(super) struct Plain {
    weights: Weights,
    /// Whether they are in use now.
    in_use: bool,
    pub choice: Choice,
}

enum Weights {
    /// Where each matrix is; llama.cpp's tensors are met in its first graph.
    Unmet(Vec<Matrix>),
    Met {
        swaps: Vec<Swap>,
        _files: Vec<Mapped>,
    },
}

/// A matrix in a shard.
pub(super) struct Matrix {
    pub name: CString,
    pub file: Arc<File>,
    pub offset: u64,
    pub size: u64,
}

/// A shard's file in memory, and llama.cpp's view of it.
struct Mapped {
    file: Arc<File>,
    buffer: NonNull<ll::ggml_backend_buffer>,
    map: Mmap,
}

/// A tensor of llama.cpp's model, and what it does not point to at the moment.
struct Swap {
    tensor: NonNull<ll::ggml_tensor>,
    other: Place,
}

/// Where a tensor's bytes are, and how they are laid out.
#[derive(Clone, Copy)]
struct Place {
    buffer: *mut ll::ggml_backend_buffer,
    data: *mut c_void,
    extra: *mut c_void,
}

impl Plain {
    /// The matrices of an image. Nothing is mapped yet.
    pub fn of(image: &Image) -> Self {
        Self { weights: Weights::Unmet(image.matrices()), in_use: false, choice: Choice::default() }
    }

    /// Whether llama.cpp's tensors are still to be met.
    pub fn is_unmet(&self) -> bool {
        matches!(self.weights, Weights::Unmet(_))
    }

    /// Whether llama.cpp has repacked nothing, so that there is no choice.
    pub fn is_nothing(&self) -> bool {
        matches!(&self.weights, Weights::Met { swaps, .. } if swaps.is_empty())
    }

    /// Takes the tensors that the graph of a step multiplies with. Those that llama.cpp has not repacked, and those whose
    /// shard cannot be mapped, stay as they are.
    ///
    /// # Safety
    ///
    /// The tensors are alive, and those that are repacked are of a model that is not computed with after `self`.
    pub unsafe fn meet(&mut self, tensors: &[NonNull<ll::ggml_tensor>]) {
        let Weights::Unmet(matrices) = &self.weights else { return };
        let (mut swaps, mut files) = (Vec::<Swap>::new(), Vec::new());
        for &tensor in tensors {
            // SAFETY: the caller's tensors are alive, and nothing computes with them now.
            let met = unsafe { tensor.as_ref() };
            if !is_repacked(met) || swaps.iter().any(|swap| swap.tensor == tensor) {
                continue;
            }
            let place = matrices.iter().find(|matrix| matrix.is(met)).and_then(|matrix| mapped(&mut files, matrix));
            swaps.extend(place.map(|other| Swap { tensor, other }));
        }
        self.weights = Weights::Met { swaps, _files: files };
    }

    /// Puts this layout in use, or the other one. Not while the model computes.
    pub fn put(&mut self, plain: bool) {
        let Weights::Met { swaps, .. } = &mut self.weights else { return };
        if std::mem::replace(&mut self.in_use, plain) == plain {
            return;
        }
        for Swap { tensor, other } in swaps {
            // SAFETY: the tensor is alive, see `meet`, and nothing computes with it. Both places hold its weights: one as
            // llama.cpp left them, the other in a file that stays mapped. llama.cpp looks at a weight's buffer whenever it
            // computes, to find out how it is laid out, and keeps no memory of it.
            let tensor = unsafe { tensor.as_mut() };
            let Place { buffer, data, extra } = *other;
            *other = Place { buffer: tensor.buffer, data: tensor.data, extra: tensor.extra };
            (tensor.buffer, tensor.data, tensor.extra) = (buffer, data, extra);
        }
    }
}

impl Matrix {
    fn is(&self, tensor: &ll::ggml_tensor) -> bool {
        let name = self.name.as_bytes_with_nul();
        // SAFETY: the tensor is alive.
        let size = unsafe { ll::ggml_nbytes(tensor) };
        let alike = tensor.name.iter().zip(name).all(|(given, wanted)| *given as u8 == *wanted);
        tensor.name.len() >= name.len() && alike && u64::try_from(size) == Ok(self.size)
    }
}

fn is_repacked(tensor: &ll::ggml_tensor) -> bool {
    if tensor.buffer.is_null() {
        return false;
    }
    // SAFETY: the tensor is alive and so is its buffer; names of buffer types are static text.
    let name = unsafe { CStr::from_ptr(ll::ggml_backend_buft_name(ll::ggml_backend_buffer_get_type(tensor.buffer))) };
    name == REPACKED
}

/// Where a matrix is in memory; its file is mapped once.
fn mapped(files: &mut Vec<Mapped>, matrix: &Matrix) -> Option<Place> {
    let known = files.iter().position(|mapped| Arc::ptr_eq(&mapped.file, &matrix.file));
    let index = match known {
        Some(index) => index,
        None => {
            files.push(Mapped::new(&matrix.file)?);
            files.len() - 1
        }
    };
    let Mapped { buffer, map, .. } = &files[index];
    let from = usize::try_from(matrix.offset).ok()?;
    let end = from.checked_add(usize::try_from(matrix.size).ok()?)?;
    let bytes = map.get(from..end).filter(|bytes| bytes.as_ptr().addr() % ALIGNMENT == 0)?;
    Some(Place { buffer: buffer.as_ptr(), data: bytes.as_ptr().cast_mut().cast(), extra: std::ptr::null_mut() })
}

impl Mapped {
    fn new(file: &Arc<File>) -> Option<Self> {
        // SAFETY: a shard's file is never written to or cut short once it is whole, and belongs to a directory that one
        // node at a time has; whoever changes it by hand harms its own process.
        let map = unsafe { Mmap::map(file.as_ref()) }.ok()?;
        // SAFETY: the bytes stay where they are for as long as the map, which is dropped after the buffer; llama.cpp reads
        // weights and never writes to them.
        let buffer = unsafe { ll::ggml_backend_cpu_buffer_from_ptr(map.as_ptr().cast_mut().cast(), map.len()) };
        let buffer = NonNull::new(buffer)?;
        // SAFETY: the buffer was just made.
        unsafe { ll::ggml_backend_buffer_set_usage(buffer.as_ptr(), ll::GGML_BACKEND_BUFFER_USAGE_WEIGHTS) };
        Some(Self { file: file.clone(), buffer, map })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the buffer is ours, and the model that pointed to it computes no more.
        unsafe { ll::ggml_backend_buffer_free(self.buffer.as_ptr()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(rows: Range<usize>, plain: bool, measured: bool) -> Part {
        Part { rows, plain, measured }
    }

    #[test]
    fn few_rows_are_computed_with_repacked_weights_and_many_with_what_was_measured_to_be_faster() {
        let mut choice = Choice::default();
        assert_eq!(choice.next(3..20, false), part(3..20, false, false));
        assert_eq!(choice.next(0..100, false), part(0..100, true, false), "too short to measure");
        assert_eq!(choice.next(0..512, true), part(0..512, true, false), "of several sessions");
        assert_eq!(choice.next(8..520, false), part(8..72, false, true));
        // That step was given up; the next one begins again.
        assert_eq!(choice.next(0..512, false), part(0..64, false, true));
        choice.took(350);
        assert_eq!(choice.next(64..512, false), part(64..128, true, true));
        choice.took(360);
        assert_eq!(choice.next(128..512, false), part(128..512, true, false), "the other one is hardly faster");
        for _ in 1..BETWEEN {
            assert_eq!(choice.next(0..512, false), part(0..512, true, false));
        }
        assert_eq!(choice.next(0..512, false), part(0..64, false, true), "measured again");
        choice.took(300);
        choice.next(64..512, false);
        choice.took(360);
        assert_eq!(choice.next(128..512, false), part(128..512, false, false));
    }
}
