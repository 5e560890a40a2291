//! Weights in a second layout: beside llama.cpp's repacked ones, as they stand in the shards.
//!
//! llama.cpp repacks quantised weights while it loads them, for products with a row or a few. With many rows its products
//! on the weights as they are may be the faster ones: on x86 a model in Q4_K reads prompts nearly twice as fast with them.
//! So steps of many rows whose bits are free are computed with whichever layout is faster. Which one that is depends on the
//! processor, so it is measured, on pieces of long steps.
//!
//! The weights as they stand are read from the shards' files while a step computes: as many matrices at a time as a buffer
//! of bounded size holds, in the order in which the graph multiplies with them. The graph pauses behind the last of them,
//! and the next ones are read over them. Nothing is mapped: where a file is cut short or its disk fails, a mapping ends the
//! process, and a read gives an error, behind which all steps are computed with the repacked weights.
//!
//! Only matrices of layers take part: of the output matrix a prompt needs one row.

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
use super::read_at::read_exact_at;
use crate::model::TensorEntry;

/// What llama.cpp calls the buffers of repacked weights.
const REPACKED: &CStr = c"CPU_REPACK";
/// Types of which llama.cpp repacks matrices, on one kind of processor or another.
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
/// Bytes of the buffer, where no matrix is larger: a step of an 8B model in 4 bits pauses 70 times then, for some 10 ms each.
/// Tests have small models, which pause too.
const BUFFER: u64 = if cfg!(test) { 4 << 20 } else { 64 << 20 };
/// Larger matrices stay repacked: the largest of a dense model of 70B in 4 bits has 130 MiB.
const LARGEST: u64 = 256 << 20;
/// Bytes that a thread reads at once.
const READ: usize = 1 << 20;
/// Name of a thread that reads, at most the 15 bytes that Linux shows.
const READER: &str = "swarmllm-shards";
/// What llama.cpp's kernels may assume of a tensor's address, and a line of the processor's cache.
const ALIGNMENT: usize = 64;
/// Rows from which weights as they stand may be the faster ones: 16 rows take as long with either layout.
const MANY: usize = 32;
/// The same where a step reads them from their files, which takes as long as some 15 rows do. Steps of tests are short.
const MANY_READ: usize = if cfg!(test) { 32 } else { 128 };
/// Fewest rows of a piece that is measured.
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
    /// Rows from which there is a choice.
    many: usize,
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
        // Measured at the first step that is long enough, once llama.cpp's tensors have been met in it or before.
        Self { plain: true, many: MANY, trial: Trial::Over(BETWEEN) }
    }
}

impl Choice {
    /// What of a step's rows is computed next; all where it may not be taken apart.
    pub fn next(&mut self, rows: Range<usize>, whole: bool) -> Part {
        if rows.len() < self.many {
            return Part::usual(rows);
        }
        let long = PIECE.max(self.many);
        let piece = |plain| Part { rows: rows.start..rows.start + long, plain, measured: true };
        match self.trial {
            Trial::Over(BETWEEN) | Trial::Other if !whole && rows.len() >= 3 * long => {
                self.trial = Trial::Other;
                return piece(!self.plain);
            }
            Trial::This(_) if !whole && rows.len() >= long => return piece(self.plain),
            Trial::Over(since) => self.trial = Trial::Over(BETWEEN.min(since + 1)),
            Trial::Other | Trial::This(_) => {}
        }
        Part { rows, plain: self.plain, measured: false }
    }

    /// Begins anew, for steps of at least so many rows.
    fn restart(&mut self, many: usize) {
        self.many = many;
        self.trial = Trial::Over(BETWEEN);
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
    /// Threads that read.
    threads: usize,
    pub choice: Choice,
}

enum Weights {
    /// Where each matrix is; llama.cpp's tensors are met in its first graph.
    Unmet(Vec<Matrix>),
    /// Nothing while a step has them, and where llama.cpp has repacked none or their files cannot be read.
    Met(Option<Box<Stream>>),
}

/// Most bytes that the buffer of a stage with these tensors takes.
pub(super) fn buffer_bytes<'a>(tensors: impl Iterator<Item = &'a TensorEntry>) -> u64 {
    let may_take_part = |tensor: &&TensorEntry| tensor.name.starts_with(LAYER) && REPACKED_TYPES.contains(&tensor.ty);
    room(tensors.filter(may_take_part).map(|tensor| tensor.size))
}

/// Bytes of the buffer for matrices of these sizes.
fn room(sizes: impl Iterator<Item = u64>) -> u64 {
    let sizes = sizes.filter(|size| *size <= LARGEST).map(|size| size.next_multiple_of(ALIGNMENT as u64));
    let (largest, all) = sizes.fold((0, 0_u64), |(most, all), size| (size.max(most), all.saturating_add(size)));
    all.min(BUFFER).max(largest)
}

/// Matrices that are read group by group while a graph multiplies with them.
pub(super) struct Stream {
    matrices: Vec<Swap>,
    /// Neighbouring matrices that the buffer holds at once.
    groups: Vec<Range<usize>>,
    buffer: Buffer,
    /// Threads that read.
    threads: usize,
    /// The group whose bytes are in the buffer.
    held: Option<usize>,
    /// The group whose tensors point there.
    used: Option<usize>,
    failure: Option<io::Error>,
}

/// A tensor of llama.cpp's model, where its bytes are in a shard, and what it does not point to at the moment.
struct Swap {
    tensor: NonNull<ll::ggml_tensor>,
    file: Arc<File>,
    offset: u64,
    /// Where in the buffer.
    bytes: Range<usize>,
    other: Place,
}

/// Where a tensor's bytes are, and how they are laid out.
#[derive(Clone, Copy)]
struct Place {
    buffer: *mut ll::ggml_backend_buffer,
    data: *mut c_void,
    extra: *mut c_void,
}

/// Memory, and llama.cpp's view of it.
struct Buffer {
    memory: NonNull<u8>,
    layout: Layout,
    view: NonNull<ll::ggml_backend_buffer>,
}

impl Plain {
    /// The matrices of an image, to be read by so many threads. Nothing is read yet.
    pub fn of(image: &Image, threads: u32) -> Self {
        let threads = usize::try_from(threads).unwrap_or(1);
        Self { weights: Weights::Unmet(image.matrices()), threads, choice: Choice::default() }
    }

    /// Whether llama.cpp's tensors are still to be met.
    pub fn is_unmet(&self) -> bool {
        matches!(self.weights, Weights::Unmet(_))
    }

    /// Whether there is no second layout, so that there is no choice.
    pub fn is_nothing(&self) -> bool {
        matches!(self.weights, Weights::Met(None))
    }

    /// Takes the tensors that the graph of a step multiplies with, in its order. Those that llama.cpp has not repacked stay
    /// as they are.
    ///
    /// # Safety
    ///
    /// The tensors are alive, and those that are repacked are of a model that is not computed with after `self`.
    pub unsafe fn meet(&mut self, tensors: &[NonNull<ll::ggml_tensor>]) {
        let Weights::Unmet(matrices) = &self.weights else { return };
        let mut met = Vec::<(NonNull<ll::ggml_tensor>, &Matrix)>::new();
        for &tensor in tensors {
            // SAFETY: the caller's tensors are alive, and nothing computes with them now.
            let known = unsafe { tensor.as_ref() };
            if is_repacked(known) && !met.iter().any(|(met, _)| *met == tensor) {
                met.extend(matrices.iter().find(|matrix| matrix.is(known)).map(|matrix| (tensor, matrix)));
            }
        }
        let stream = Stream::new(&met, self.threads);
        let is_read = stream.as_ref().is_some_and(|stream| stream.groups.len() > 1);
        self.choice.restart(if is_read { MANY_READ } else { MANY });
        self.weights = Weights::Met(stream.map(Box::new));
    }

    /// Gives the weights to a step; the first ones are read. Nothing where there is no second layout.
    pub fn begin(&mut self) -> Option<Box<Stream>> {
        let Weights::Met(stream) = &mut self.weights else { return None };
        let mut stream = stream.take()?;
        stream.turn_to(0);
        Some(stream)
    }

    /// Takes them back when the step has been computed, or given up.
    pub fn end(&mut self, mut stream: Box<Stream>) {
        stream.rest();
        self.weights = Weights::Met(match stream.failure.take() {
            None => Some(stream),
            Some(error) => {
                tracing::warn!(%error, "a shard can no longer be read; prompts are computed with repacked weights only");
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

impl Stream {
    /// The matrices, grouped; nothing where none is small enough.
    fn new(met: &[(NonNull<ll::ggml_tensor>, &Matrix)], threads: usize) -> Option<Self> {
        let room = room(met.iter().map(|(_, matrix)| matrix.size));
        let buffer = Buffer::new(usize::try_from(room).ok().filter(|room| *room > 0)?)?;
        let (mut matrices, mut groups, mut end) = (Vec::<Swap>::new(), Vec::<Range<usize>>::new(), 0);
        for (tensor, matrix) in met.iter().filter(|(_, matrix)| matrix.size <= room) {
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
            let other = buffer.place(bytes.start);
            matrices.push(Swap { tensor: *tensor, file: matrix.file.clone(), offset: matrix.offset, bytes, other });
        }
        Some(Self { matrices, groups, buffer, threads, held: None, used: None, failure: None })
    }

    /// Whether the graph pauses behind a node: the next matrices are not in the buffer yet.
    pub fn pauses(&self, node: &ll::ggml_tensor) -> bool {
        let last = self.used.filter(|group| group + 1 < self.groups.len());
        let last = last.and_then(|group| self.matrices.get(self.groups.get(group)?.end.checked_sub(1)?));
        is_product(node) && last.is_some_and(|last| last.tensor.as_ptr() == node.src[0])
    }

    /// Reads the next matrices; to be called in a pause.
    pub fn go_on(&mut self) {
        if let Some(group) = self.used {
            self.turn_to(group + 1);
        }
    }

    /// Points the tensors of a group to their bytes, which are read where they are not in the buffer; all others are as
    /// llama.cpp left them, and so are these where reading fails. Not while the model computes.
    fn turn_to(&mut self, group: usize) {
        self.rest();
        let Some(range) = self.groups.get(group).cloned() else { return };
        if self.held != Some(group) {
            self.held = None;
            let matrices = self.matrices.get(range.clone()).unwrap_or_default();
            if let Err(error) = self.buffer.fill(matrices, self.threads) {
                self.failure.get_or_insert(error);
                return;
            }
            self.held = Some(group);
        }
        self.swap(range);
        self.used = Some(group);
    }

    /// Leaves all tensors as llama.cpp left them. Not while the model computes.
    fn rest(&mut self) {
        if let Some(range) = self.used.take().and_then(|group| self.groups.get(group).cloned()) {
            self.swap(range);
        }
    }

    fn swap(&mut self, range: Range<usize>) {
        for Swap { tensor, other, .. } in self.matrices.get_mut(range).unwrap_or_default() {
            // SAFETY: the tensor is alive, see `meet`, and nothing computes with it. Both places hold its weights: one as
            // llama.cpp left them, the other in the buffer, which has been filled. llama.cpp looks at a weight's buffer
            // whenever it computes, to find out how it is laid out, and keeps no memory of it.
            let tensor = unsafe { tensor.as_mut() };
            let Place { buffer, data, extra } = *other;
            *other = Place { buffer: tensor.buffer, data: tensor.data, extra: tensor.extra };
            (tensor.buffer, tensor.data, tensor.extra) = (buffer, data, extra);
        }
    }
}

impl Buffer {
    /// Room for so many bytes, at least 1; nothing where there is no memory for it.
    fn new(room: usize) -> Option<Self> {
        let layout = Layout::from_size_align(room, ALIGNMENT).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: the layout has a size.
        let memory = NonNull::new(unsafe { alloc(layout) })?;
        let start = memory.as_ptr().addr();
        huge_pages::request(start..start.saturating_add(room));
        // SAFETY: the memory was just taken, with this size.
        unsafe { memory.write_bytes(0, room) };
        // SAFETY: the memory is the buffer's, which frees it after the view; llama.cpp reads weights and never writes to
        // them.
        let view = unsafe { ll::ggml_backend_cpu_buffer_from_ptr(memory.as_ptr().cast(), room) };
        let Some(view) = NonNull::new(view) else {
            // SAFETY: it was just taken, with this layout.
            unsafe { dealloc(memory.as_ptr(), layout) };
            return None;
        };
        // SAFETY: the view was just made.
        unsafe { ll::ggml_backend_buffer_set_usage(view.as_ptr(), ll::GGML_BACKEND_BUFFER_USAGE_WEIGHTS) };
        Some(Self { memory, layout, view })
    }

    /// The place of a tensor that begins here; inside the memory, as callers see to.
    fn place(&self, at: usize) -> Place {
        let data = self.memory.as_ptr().wrapping_add(at);
        Place { buffer: self.view.as_ptr(), data: data.cast(), extra: std::ptr::null_mut() }
    }

    /// Reads matrices to their places, which follow each other.
    fn fill(&mut self, matrices: &[Swap], threads: usize) -> io::Result<()> {
        // SAFETY: the memory has been written, with zeros at least, and nothing computes with it while it is lent out here.
        let mut memory = unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.layout.size()) };
        let (mut pieces, mut at) = (Vec::new(), 0);
        for matrix in matrices {
            let Range { start, end } = matrix.bytes;
            let (room, rest) = memory.split_at_mut_checked(end - at).ok_or(io::ErrorKind::InvalidInput)?;
            let room = room.get_mut(start - at..).unwrap_or_default();
            (memory, at) = (rest, end);
            let offsets = (matrix.offset..).step_by(READ);
            pieces.extend(room.chunks_mut(READ).zip(offsets).map(|(room, offset)| (room, &*matrix.file, offset)));
        }
        let threads = threads.min(pieces.len());
        let pieces = Mutex::new(pieces.into_iter());
        let next = || pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
        let read = || std::iter::from_fn(next).try_for_each(|(room, file, offset)| read_exact_at(file, room, offset));
        std::thread::scope(|scope| {
            let helper = |_| std::thread::Builder::new().name(READER.to_owned()).spawn_scoped(scope, read).ok();
            let helpers: Vec<_> = (1..threads).filter_map(helper).collect();
            let panicked = |_| Err(io::Error::other("reading a shard panicked"));
            helpers.into_iter().fold(read(), |done, helper| done.and(helper.join().unwrap_or_else(panicked)))
        })
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: view and memory are ours, the latter of this layout, and the model that pointed there computes no more.
        unsafe {
            ll::ggml_backend_buffer_free(self.view.as_ptr());
            dealloc(self.memory.as_ptr(), self.layout);
        }
    }
}

/// Whether a node multiplies with a matrix.
pub(super) fn is_product(node: &ll::ggml_tensor) -> bool {
    matches!(node.op, ll::GGML_OP_MUL_MAT | ll::GGML_OP_MUL_MAT_ID)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(rows: Range<usize>, plain: bool, measured: bool) -> Part {
        Part { rows, plain, measured }
    }

    #[test]
    fn the_buffer_is_bounded_and_has_room_for_the_largest_matrix_that_takes_part() {
        const MIB: u64 = 1 << 20;
        let room = |sizes: &[u64]| room(sizes.iter().copied());
        assert_eq!(room(&[]), 0);
        assert_eq!(room(&[100, 64]), 192);
        assert_eq!(room(&[3 * MIB; 3]), BUFFER);
        assert_eq!(room(&[130 * MIB, MIB]), 130 * MIB);
        assert_eq!(room(&[300 * MIB, MIB]), MIB, "the larger one stays repacked");
        let tensor = |name: &str, ty| TensorEntry { name: name.to_owned(), ty, dims: Vec::new(), offset: 0, size: MIB };
        let tensors = [
            tensor("blk.0.ffn_up.weight", ll::GGML_TYPE_Q4_K),
            tensor("blk.0.ffn_down.weight", ll::GGML_TYPE_F16),
            tensor("output.weight", ll::GGML_TYPE_Q4_K),
        ];
        assert_eq!(buffer_bytes(tensors.iter()), MIB);
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

    #[test]
    fn weights_that_each_step_reads_anew_are_for_longer_steps_and_measured_on_longer_pieces() {
        let mut choice = Choice::default();
        assert_eq!(choice.next(0..512, false), part(0..64, false, true));
        // The tensors are met in that piece.
        choice.restart(128);
        assert_eq!(choice.next(0..127, false), part(0..127, false, false));
        assert_eq!(choice.next(64..512, false), part(64..192, false, true));
        choice.took(360);
        assert_eq!(choice.next(192..512, false), part(192..320, true, true));
    }
}
