//! Weights in a second layout: unpacked, as stored in the shards, beside llama.cpp's repacked weights.
//!
//! llama.cpp repacks quantised weights at load time for products with few rows. With many rows its products on unpacked
//! weights may be faster: on x86 prefill of a Q4_K model is nearly twice as fast. So steps of many rows that need not be
//! exact use the faster layout. Which layout is faster depends on the CPU, so it is measured on parts of long steps.
//!
//! Unpacked weights are read from the shard files during a step: as many matrices at a time as fit into a bounded buffer,
//! in the order of the graph's products. The graph pauses after the last of them, and the next matrices overwrite the
//! buffer. The files are not memory-mapped: with a mapping a truncated file or a failing disk ends the process, while a
//! read returns an error, after which all steps use repacked weights.
//!
//! Only matrices of layers are unpacked: a prompt needs one row of the output matrix.

use std::alloc::{Layout, alloc, dealloc};
use std::ffi::{CStr, c_void};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use llama_cpp_sys_2 as ll;

use super::huge_pages;
use super::image::{Image, LAYER, Matrix};
use crate::model::TensorEntry;
use crate::rt::read_exact_at;

/// llama.cpp's name of the buffer type of repacked weights.
const REPACKED: &CStr = c"CPU_REPACK";
/// Tensor types that llama.cpp repacks on some CPU.
const REPACKED_TYPES: [ll::ggml_type; 9] = [
    ll::GGML_TYPE_Q1_0,
    ll::GGML_TYPE_Q4_0,
    ll::GGML_TYPE_Q8_0,
    ll::GGML_TYPE_Q2_K,
    ll::GGML_TYPE_Q4_K,
    ll::GGML_TYPE_Q5_K,
    ll::GGML_TYPE_Q6_K,
    ll::GGML_TYPE_IQ4_NL,
    ll::GGML_TYPE_MXFP4,
];
/// Bytes of the buffer unless a matrix is larger. A step of an 8B model in 4 bits then pauses 70 times for some 10 ms each.
/// Smaller in tests, so that small models pause too.
const BUFFER_BYTES: u64 = if cfg!(test) { 4 << 20 } else { 64 << 20 };
/// Larger matrices stay repacked; the largest matrix of a dense 70B model in 4 bits has 130 MiB.
const MAX_MATRIX_BYTES: u64 = 256 << 20;
/// Bytes of one read.
const READ_BYTES: usize = 1 << 20;
/// Name of a reading thread; Linux shows 15 bytes.
const READER_THREAD: &str = "swarmllm-shards";
/// Alignment that llama.cpp's kernels require of tensors, and the size of a cache line.
const ALIGNMENT: usize = 64;
/// Fewest rows for which unpacked weights may be faster; at 16 rows both layouts take equally long.
const MIN_ROWS: usize = 32;
/// The same if a step reads the weights from files, which takes as long as some 15 rows. Steps of tests are short.
const MIN_ROWS_STREAMED: usize = if cfg!(test) { 32 } else { 128 };
/// Fewest rows of a measured part.
const TRIAL_ROWS: usize = 64;
/// Long steps between two measurements; each measurement computes a part with the slower layout.
const TRIAL_INTERVAL: u32 = 64;
/// The other layout must take less than this share of the time to be chosen, because measurements are noisy.
const MARGIN: f64 = 0.9;

/// A part of a step that is computed in one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct StepPart {
    /// Rows of the step.
    pub rows: Range<usize>,
    /// Whether the part uses unpacked weights.
    pub unpacked: bool,
    /// Whether the part's time is compared with the other layout's.
    pub measured: bool,
}

impl StepPart {
    /// These rows with repacked weights.
    pub fn repacked(rows: Range<usize>) -> Self {
        Self { rows, unpacked: false, measured: false }
    }
}

/// Chooses the layout for steps of many rows. Pure: measured times determine the parts.
#[derive(Debug)]
pub(super) struct LayoutChooser {
    unpacked: bool,
    /// Fewest rows for which there is a choice.
    min_rows: usize,
    trial: Trial,
}

/// State of the measurement.
#[derive(Debug)]
enum Trial {
    /// None; this many long steps since the last one.
    Idle(u32),
    /// A part is computed with the other layout.
    Other,
    /// Microseconds of the other layout's part; a part with the current layout is next.
    Current(u32),
}

impl Default for LayoutChooser {
    fn default() -> Self {
        // The first long step is measured, once llama.cpp's tensors are resolved in it or before.
        Self { unpacked: true, min_rows: MIN_ROWS, trial: Trial::Idle(TRIAL_INTERVAL) }
    }
}

impl LayoutChooser {
    /// The next part of a step's rows; all rows if `whole`.
    pub fn next(&mut self, rows: Range<usize>, whole: bool) -> StepPart {
        if rows.len() < self.min_rows {
            return StepPart::repacked(rows);
        }
        let long = TRIAL_ROWS.max(self.min_rows);
        let piece = |unpacked| StepPart { rows: rows.start..rows.start + long, unpacked, measured: true };
        match self.trial {
            Trial::Idle(TRIAL_INTERVAL) | Trial::Other if !whole && rows.len() >= 3 * long => {
                self.trial = Trial::Other;
                return piece(!self.unpacked);
            }
            Trial::Current(_) if !whole && rows.len() >= long => return piece(self.unpacked),
            Trial::Idle(since) => self.trial = Trial::Idle(TRIAL_INTERVAL.min(since + 1)),
            Trial::Other | Trial::Current(_) => {}
        }
        StepPart { rows, unpacked: self.unpacked, measured: false }
    }

    /// Starts over, for steps of at least `min_rows` rows.
    fn restart(&mut self, min_rows: usize) {
        self.min_rows = min_rows;
        self.trial = Trial::Idle(TRIAL_INTERVAL);
    }

    /// Records the time of a measured part.
    pub fn record(&mut self, micros: u32) {
        self.trial = match self.trial {
            Trial::Other => Trial::Current(micros),
            Trial::Current(other) => {
                self.unpacked ^= f64::from(other) < MARGIN * f64::from(micros);
                Trial::Idle(0)
            }
            Trial::Idle(since) => Trial::Idle(since),
        };
    }
}

/// A stage's unpacked weights.
pub(super) struct UnpackedWeights {
    weights: Weights,
    /// Reading threads.
    threads: usize,
    pub chooser: LayoutChooser,
}

enum Weights {
    /// Location of each matrix; llama.cpp's tensors are resolved in its first graph.
    Unresolved(Vec<Matrix>),
    /// `None` while a step uses the weights, if llama.cpp has repacked none, and after a read error.
    Resolved(Option<Box<WeightStream>>),
}

/// Upper bound of the buffer's bytes for a stage with these tensors.
pub(super) fn buffer_bytes<'a>(tensors: impl Iterator<Item = &'a TensorEntry>) -> u64 {
    let may_take_part = |tensor: &&TensorEntry| tensor.name.starts_with(LAYER) && REPACKED_TYPES.contains(&tensor.ty);
    buffer_size(tensors.filter(may_take_part).map(|tensor| tensor.size))
}

/// Bytes of the buffer for matrices of these sizes.
fn buffer_size(sizes: impl Iterator<Item = u64>) -> u64 {
    let sizes = sizes.filter(|size| *size <= MAX_MATRIX_BYTES).map(|size| size.next_multiple_of(ALIGNMENT as u64));
    let (largest, all) = sizes.fold((0, 0_u64), |(most, all), size| (size.max(most), all.saturating_add(size)));
    all.min(BUFFER_BYTES).max(largest)
}

/// Matrices that are read group by group while a graph multiplies with them.
pub(super) struct WeightStream {
    matrices: Vec<SwappedTensor>,
    /// Runs of consecutive matrices that fit into the buffer together.
    groups: Vec<Range<usize>>,
    buffer: WeightBuffer,
    /// Reading threads.
    threads: usize,
    /// The group whose bytes are in the buffer.
    loaded: Option<usize>,
    /// The group whose tensors point into the buffer.
    active: Option<usize>,
    failure: Option<io::Error>,
}

/// A tensor of llama.cpp's model, the location of its bytes in a shard, and its inactive storage.
struct SwappedTensor {
    tensor: NonNull<ll::ggml_tensor>,
    file: Arc<File>,
    offset: u64,
    /// Range in the buffer.
    bytes: Range<usize>,
    other: TensorStorage,
}

/// Storage of a tensor: address and layout.
#[derive(Clone, Copy)]
struct TensorStorage {
    buffer: *mut ll::ggml_backend_buffer,
    data: *mut c_void,
    extra: *mut c_void,
}

/// Memory and llama.cpp's view of it.
struct WeightBuffer {
    memory: NonNull<u8>,
    layout: Layout,
    view: NonNull<ll::ggml_backend_buffer>,
}

impl UnpackedWeights {
    /// The matrices of an image, to be read by `threads` threads. Reads nothing yet.
    pub fn of(image: &Image, threads: u32) -> Self {
        let threads = usize::try_from(threads).unwrap_or(1);
        Self { weights: Weights::Unresolved(image.matrices()), threads, chooser: LayoutChooser::default() }
    }

    /// Whether llama.cpp's tensors are still to be resolved.
    pub fn is_unresolved(&self) -> bool {
        matches!(self.weights, Weights::Unresolved(_))
    }

    /// Whether there is no second layout.
    pub fn is_empty(&self) -> bool {
        matches!(self.weights, Weights::Resolved(None))
    }

    /// Resolves the tensors of a graph's products, in the graph's order. Ignores tensors that llama.cpp has not repacked.
    ///
    /// # Safety
    ///
    /// The tensors are alive, and those that are repacked are of a model that is not computed with after `self`.
    pub unsafe fn resolve(&mut self, tensors: &[NonNull<ll::ggml_tensor>]) {
        let Weights::Unresolved(matrices) = &self.weights else { return };
        let mut resolved = Vec::<(NonNull<ll::ggml_tensor>, &Matrix)>::new();
        for &tensor in tensors {
            // SAFETY: the caller's tensors are alive, and nothing computes with them now.
            let known = unsafe { tensor.as_ref() };
            if is_repacked(known) && !resolved.iter().any(|(resolved, _)| *resolved == tensor) {
                resolved.extend(matrices.iter().find(|matrix| matrix.is(known)).map(|matrix| (tensor, matrix)));
            }
        }
        let stream = WeightStream::new(&resolved, self.threads);
        let is_read = stream.as_ref().is_some_and(|stream| stream.groups.len() > 1);
        self.chooser.restart(if is_read { MIN_ROWS_STREAMED } else { MIN_ROWS });
        self.weights = Weights::Resolved(stream.map(Box::new));
    }

    /// Hands the weights to a step, after reading the first group. `None` without a second layout.
    pub fn begin(&mut self) -> Option<Box<WeightStream>> {
        let Weights::Resolved(stream) = &mut self.weights else { return None };
        let mut stream = stream.take()?;
        stream.activate(0);
        Some(stream)
    }

    /// Takes the weights back after a computed or cancelled step.
    pub fn end(&mut self, mut stream: Box<WeightStream>) {
        stream.deactivate();
        self.weights = Weights::Resolved(match stream.failure.take() {
            None => Some(stream),
            Some(error) => {
                tracing::warn!(%error, "a shard can no longer be read; the stage uses repacked weights only");
                None
            }
        });
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

impl WeightStream {
    /// Groups the matrices; `None` if none is small enough.
    fn new(resolved: &[(NonNull<ll::ggml_tensor>, &Matrix)], threads: usize) -> Option<Self> {
        let capacity = buffer_size(resolved.iter().map(|(_, matrix)| matrix.size));
        let buffer = WeightBuffer::new(usize::try_from(capacity).ok().filter(|capacity| *capacity > 0)?)?;
        let (mut matrices, mut groups, mut end) = (Vec::<SwappedTensor>::new(), Vec::<Range<usize>>::new(), 0);
        for (tensor, matrix) in resolved.iter().filter(|(_, matrix)| matrix.size <= capacity) {
            // Below the buffer's size, which fits.
            let size = matrix.size as usize;
            let index = matrices.len();
            match groups.last_mut().filter(|_| end + size <= buffer.layout.size()) {
                Some(group) => group.end += 1,
                None => {
                    groups.push(index..index + 1);
                    end = 0;
                }
            }
            let bytes = end..end + size;
            end = bytes.end.next_multiple_of(ALIGNMENT);
            let other = buffer.storage(bytes.start);
            matrices.push(SwappedTensor {
                tensor: *tensor,
                file: matrix.file.clone(),
                offset: matrix.offset,
                bytes,
                other,
            });
        }
        Some(Self { matrices, groups, buffer, threads, loaded: None, active: None, failure: None })
    }

    /// Whether the graph pauses after a node, because the next matrices are not in the buffer.
    pub fn pauses(&self, node: &ll::ggml_tensor) -> bool {
        let last = self.active.filter(|group| group + 1 < self.groups.len());
        let last = last.and_then(|group| self.matrices.get(self.groups.get(group)?.end.checked_sub(1)?));
        is_product(node) && last.is_some_and(|last| last.tensor.as_ptr() == node.src[0])
    }

    /// Reads the next group. Must be called during a pause.
    pub fn advance(&mut self) {
        if let Some(group) = self.active {
            self.activate(group + 1);
        }
    }

    /// Points the tensors of a group into the buffer, after reading the group if it is not there. All other tensors point
    /// to llama.cpp's storage; so do those of the group after a read error. Must not be called while the model computes.
    fn activate(&mut self, group: usize) {
        self.deactivate();
        let Some(range) = self.groups.get(group).cloned() else { return };
        if self.loaded != Some(group) {
            self.loaded = None;
            let matrices = self.matrices.get(range.clone()).unwrap_or_default();
            if let Err(error) = self.buffer.fill(matrices, self.threads) {
                self.failure.get_or_insert(error);
                return;
            }
            self.loaded = Some(group);
        }
        self.swap(range);
        self.active = Some(group);
    }

    /// Points all tensors to llama.cpp's storage. Must not be called while the model computes.
    fn deactivate(&mut self) {
        if let Some(range) = self.active.take().and_then(|group| self.groups.get(group).cloned()) {
            self.swap(range);
        }
    }

    fn swap(&mut self, range: Range<usize>) {
        for SwappedTensor { tensor, other, .. } in self.matrices.get_mut(range).unwrap_or_default() {
            // SAFETY: the tensor is alive, see `resolve`, and nothing computes with it. Both storages hold its weights: one
            // is llama.cpp's, the other is the filled buffer. llama.cpp determines a weight's layout from its buffer at
            // each computation and does not cache it.
            let tensor = unsafe { tensor.as_mut() };
            let TensorStorage { buffer, data, extra } = *other;
            *other = TensorStorage { buffer: tensor.buffer, data: tensor.data, extra: tensor.extra };
            (tensor.buffer, tensor.data, tensor.extra) = (buffer, data, extra);
        }
    }
}

impl WeightBuffer {
    /// Allocates `capacity` bytes, at least 1; `None` without memory.
    fn new(capacity: usize) -> Option<Self> {
        let layout = Layout::from_size_align(capacity, ALIGNMENT).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc(layout) })?;
        let start = memory.as_ptr().addr();
        huge_pages::request(start..start.saturating_add(capacity));
        // SAFETY: the memory was just taken, with this size.
        unsafe { memory.write_bytes(0, capacity) };
        // SAFETY: the memory is the buffer's, which frees it after the view; llama.cpp reads weights and never writes to
        // them.
        let view = unsafe { ll::ggml_backend_cpu_buffer_from_ptr(memory.as_ptr().cast(), capacity) };
        let Some(view) = NonNull::new(view) else {
            // SAFETY: it was just taken, with this layout.
            unsafe { dealloc(memory.as_ptr(), layout) };
            return None;
        };
        // SAFETY: the view was just made.
        unsafe { ll::ggml_backend_buffer_set_usage(view.as_ptr(), ll::GGML_BACKEND_BUFFER_USAGE_WEIGHTS) };
        Some(Self { memory, layout, view })
    }

    /// Storage of a tensor at offset `at`, which the caller keeps within the memory.
    fn storage(&self, at: usize) -> TensorStorage {
        let data = self.memory.as_ptr().wrapping_add(at);
        TensorStorage { buffer: self.view.as_ptr(), data: data.cast(), extra: std::ptr::null_mut() }
    }

    /// Reads matrices into their consecutive ranges.
    fn fill(&mut self, matrices: &[SwappedTensor], threads: usize) -> io::Result<()> {
        // SAFETY: the memory has been written, with zeros at least, and nothing computes with it while it is lent out here.
        let mut memory = unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.layout.size()) };
        let (mut pieces, mut at) = (Vec::new(), 0);
        for matrix in matrices {
            let Range { start, end } = matrix.bytes;
            let (target, rest) = memory.split_at_mut_checked(end - at).ok_or(io::ErrorKind::InvalidInput)?;
            let target = target.get_mut(start - at..).unwrap_or_default();
            (memory, at) = (rest, end);
            let offsets = (matrix.offset..).step_by(READ_BYTES);
            pieces.extend(
                target.chunks_mut(READ_BYTES).zip(offsets).map(|(target, offset)| (target, &*matrix.file, offset)),
            );
        }
        let threads = threads.min(pieces.len());
        let pieces = Mutex::new(pieces.into_iter());
        let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
        let read =
            || std::iter::from_fn(next).try_for_each(|(target, file, offset)| read_exact_at(file, target, offset));
        std::thread::scope(|scope| {
            let helper = |_| std::thread::Builder::new().name(READER_THREAD.to_owned()).spawn_scoped(scope, read).ok();
            let helpers: Vec<_> = (1..threads).filter_map(helper).collect();
            let panicked = |_| Err(io::Error::other("reading a shard panicked"));
            helpers.into_iter().fold(read(), |done, helper| done.and(helper.join().unwrap_or_else(panicked)))
        })
    }
}

impl Drop for WeightBuffer {
    fn drop(&mut self) {
        // SAFETY: view and memory are ours, the latter of this layout, and the model that pointed there computes no more.
        unsafe {
            ll::ggml_backend_buffer_free(self.view.as_ptr());
            dealloc(self.memory.as_ptr(), self.layout);
        }
    }
}

/// Whether a node is a matrix product.
pub(super) fn is_product(node: &ll::ggml_tensor) -> bool {
    matches!(node.op, ll::GGML_OP_MUL_MAT | ll::GGML_OP_MUL_MAT_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(rows: Range<usize>, unpacked: bool, measured: bool) -> StepPart {
        StepPart { rows, unpacked, measured }
    }

    #[test]
    fn the_buffer_is_bounded_and_fits_the_largest_matrix() {
        const MIB: u64 = 1 << 20;
        let buffer_size = |sizes: &[u64]| buffer_size(sizes.iter().copied());
        assert_eq!(buffer_size(&[]), 0);
        assert_eq!(buffer_size(&[100, 64]), 192);
        assert_eq!(buffer_size(&[3 * MIB; 3]), BUFFER_BYTES);
        assert_eq!(buffer_size(&[130 * MIB, MIB]), 130 * MIB);
        assert_eq!(buffer_size(&[300 * MIB, MIB]), MIB, "the larger one stays repacked");
        let tensor = |name: &str, ty| TensorEntry { name: name.to_owned(), ty, dims: Vec::new(), offset: 0, size: MIB };
        let tensors = [
            tensor("blk.0.ffn_up.weight", ll::GGML_TYPE_Q4_K),
            tensor("blk.0.ffn_down.weight", ll::GGML_TYPE_F16),
            tensor("output.weight", ll::GGML_TYPE_Q4_K),
        ];
        assert_eq!(buffer_bytes(tensors.iter()), MIB);
    }

    #[test]
    fn few_rows_use_repacked_weights_and_many_the_faster_layout() {
        let mut chooser = LayoutChooser::default();
        assert_eq!(chooser.next(3..20, false), part(3..20, false, false));
        assert_eq!(chooser.next(0..100, false), part(0..100, true, false), "too short to measure");
        assert_eq!(chooser.next(0..512, true), part(0..512, true, false), "of several sessions");
        assert_eq!(chooser.next(8..520, false), part(8..72, false, true));
        // The step was cancelled; the next one starts over.
        assert_eq!(chooser.next(0..512, false), part(0..64, false, true));
        chooser.record(350);
        assert_eq!(chooser.next(64..512, false), part(64..128, true, true));
        chooser.record(360);
        assert_eq!(chooser.next(128..512, false), part(128..512, true, false), "the other layout is hardly faster");
        for _ in 1..TRIAL_INTERVAL {
            assert_eq!(chooser.next(0..512, false), part(0..512, true, false));
        }
        assert_eq!(chooser.next(0..512, false), part(0..64, false, true), "measured again");
        chooser.record(300);
        chooser.next(64..512, false);
        chooser.record(360);
        assert_eq!(chooser.next(128..512, false), part(128..512, false, false));
    }

    #[test]
    fn streamed_weights_need_longer_steps_and_measured_parts() {
        let mut chooser = LayoutChooser::default();
        assert_eq!(chooser.next(0..512, false), part(0..64, false, true));
        // The tensors are resolved in that part.
        chooser.restart(128);
        assert_eq!(chooser.next(0..127, false), part(0..127, false, false));
        assert_eq!(chooser.next(64..512, false), part(64..192, false, true));
        chooser.record(360);
        assert_eq!(chooser.next(192..512, false), part(192..320, true, true));
    }
}
