//! The stage image: a virtual GGUF file of one stage. Its header is synthesised; its tensors, renumbered from 0, are
//! extents of the shard files.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;

use llama_cpp_sys_2 as ll;

use crate::model::StageSource;

use super::architecture::Output;
use super::header::{Header, put_text};
use super::read_at::fill_at;
use super::shape::Shape;
use super::tensors::{EMBEDDING, OUTPUT, placeholders, row_size};

/// GGUF's default alignment.
const ALIGNMENT: u64 = 32;
const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
/// Prefix of the names of layers' tensors.
pub(super) const LAYER: &str = "blk.";

/// Types of placeholder matrices, by descending block width.
const ZERO_TYPES: [ll::ggml_type; 5] =
    [ll::GGML_TYPE_IQ1_S, ll::GGML_TYPE_Q1_0, ll::GGML_TYPE_Q2_0, ll::GGML_TYPE_Q4_0, ll::GGML_TYPE_F32];

/// A matrix in a shard.
pub(super) struct Matrix {
    pub name: CString,
    pub file: Arc<File>,
    pub offset: u64,
    pub size: u64,
}

/// Source of a tensor's bytes.
enum Origin {
    Shard { file: Arc<File>, offset: u64 },
    Zeros,
}

/// A tensor of the image.
struct ImageTensor {
    name: String,
    dims: Vec<u64>,
    ty: u32,
    size: u64,
    origin: Origin,
}

/// A run of the image's bytes.
struct Extent {
    name: String,
    start: u64,
    size: u64,
    origin: Origin,
}

/// A virtual GGUF file.
pub(super) struct Image {
    head: Vec<u8>,
    extents: Vec<Extent>,
    len: u64,
}

impl Image {
    /// The image of a validated stage.
    ///
    /// Tensors that llama.cpp's loader requires and the stage lacks are zeros; they are never computed with. An untied
    /// output matrix gets the name of the embedding if the loader uses the embedding for a missing output matrix: the
    /// embedding itself is never needed.
    pub fn of_stage(shape: &Shape, source: &StageSource) -> Self {
        let vocab = if source.head { shape.vocab } else { 1 };
        let own_output = shape.architecture.output == Output::Own;
        let placeholders = placeholders(shape, source.head);
        let mut tensors: Vec<ImageTensor> = placeholders.into_iter().map(|(name, dims)| zeros(&name, dims)).collect();
        tensors.extend(source.tensors.iter().map(|tensor| ImageTensor {
            name: match tensor.entry.name.as_str() {
                OUTPUT if !own_output => EMBEDDING.to_owned(),
                name => renumbered(name, source.layers.start),
            },
            dims: tensor.entry.dims.clone(),
            ty: tensor.entry.ty,
            size: tensor.entry.size,
            origin: Origin::Shard { file: tensor.file.clone(), offset: tensor.offset },
        }));
        Self::assemble(shape.header(source.layers, vocab), tensors)
    }

    /// Bytes of the placeholder tensors of a stage's image.
    pub fn placeholder_bytes(shape: &Shape, head: bool) -> u64 {
        placeholders(shape, head).into_iter().map(|(name, dims)| zeros(&name, dims).size).sum()
    }

    fn assemble(header: Header, tensors: Vec<ImageTensor>) -> Self {
        let mut head = MAGIC.to_vec();
        head.extend(VERSION.to_le_bytes());
        head.extend((tensors.len() as u64).to_le_bytes());
        head.extend(header.count.to_le_bytes());
        head.extend(header.bytes);
        let mut offset = 0_u64;
        let mut extents = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let start = offset;
            put_text(&mut head, &tensor.name);
            head.extend((tensor.dims.len() as u32).to_le_bytes());
            tensor.dims.iter().for_each(|dim| head.extend(dim.to_le_bytes()));
            head.extend(tensor.ty.to_le_bytes());
            head.extend(offset.to_le_bytes());
            offset = offset.saturating_add(tensor.size).next_multiple_of(ALIGNMENT);
            extents.push(Extent { name: tensor.name, start, size: tensor.size, origin: tensor.origin });
        }
        head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
        let data = head.len() as u64;
        extents.iter_mut().for_each(|extent| extent.start += data);
        Self { head, extents, len: data + offset }
    }

    /// Bytes of the image.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Locations of the layers' tensors in the shards.
    pub fn matrices(&self) -> Vec<Matrix> {
        let matrix = |extent: &Extent| match &extent.origin {
            Origin::Shard { file, offset } if extent.name.starts_with(LAYER) => Some(Matrix {
                name: CString::new(extent.name.as_str()).ok()?,
                file: file.clone(),
                offset: *offset,
                size: extent.size,
            }),
            _ => None,
        };
        self.extents.iter().filter_map(matrix).collect()
    }

    /// Reads at most `buffer.len()` bytes at `at`; returns their number, 0 at the end. The read bytes are initialised. A
    /// shard file that is too short is an error.
    pub fn read_at(&self, buffer: &mut [MaybeUninit<u8>], at: u64) -> io::Result<usize> {
        if let Some(head) = usize::try_from(at).ok().and_then(|at| self.head.get(at..)).filter(|head| !head.is_empty())
        {
            return Ok(copy(head, buffer));
        }
        if at >= self.len || buffer.is_empty() {
            return Ok(0);
        }
        let next = self.extents.partition_point(|extent| extent.start <= at);
        let current = next.checked_sub(1).and_then(|current| self.extents.get(current));
        let inside = current.map(|extent| (extent, at - extent.start)).filter(|(extent, skip)| *skip < extent.size);
        let Some((extent, skip)) = inside else {
            let end = self.extents.get(next).map_or(self.len, |extent| extent.start);
            let gap = limit(buffer, end - at);
            gap.fill(MaybeUninit::new(0));
            return Ok(gap.len());
        };
        let part = limit(buffer, extent.size - skip);
        match &extent.origin {
            Origin::Zeros => part.fill(MaybeUninit::new(0)),
            Origin::Shard { file, offset } => {
                let from = offset.checked_add(skip).ok_or(io::ErrorKind::InvalidInput)?;
                fill_at(file, part, from)?;
            }
        }
        Ok(part.len())
    }
}

/// A tensor of zeros; a matrix has the type that takes the fewest bytes.
fn zeros(name: &str, dims: Vec<u64>) -> ImageTensor {
    let (columns, rows) = (dims.first().copied().unwrap_or(1), dims.iter().skip(1).product::<u64>());
    let dense = |ty: ll::ggml_type| Some((ty, row_size(ty, columns)?));
    let types = if dims.len() == 1 { &[ll::GGML_TYPE_F32][..] } else { &ZERO_TYPES };
    let least = types.iter().filter_map(|ty| dense(*ty)).min_by_key(|(_, row)| *row);
    let (ty, row) = least.unwrap_or((ll::GGML_TYPE_F32, columns.saturating_mul(size_of::<f32>() as u64)));
    ImageTensor { name: name.to_owned(), dims, ty, size: row.saturating_mul(rows), origin: Origin::Zeros }
}

/// The tensor's name with the layer counted from the stage's first layer.
fn renumbered(name: &str, first: u32) -> String {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match layer.and_then(|(layer, part)| Some((layer.parse::<u32>().ok()?.checked_sub(first)?, part))) {
        Some((layer, part)) => format!("blk.{layer}.{part}"),
        None => name.to_owned(),
    }
}

fn limit(buffer: &mut [MaybeUninit<u8>], most: u64) -> &mut [MaybeUninit<u8>] {
    let end = usize::try_from(most).unwrap_or(usize::MAX).min(buffer.len());
    buffer.get_mut(..end).unwrap_or_default()
}

fn copy(from: &[u8], to: &mut [MaybeUninit<u8>]) -> usize {
    let count = from.len().min(to.len());
    to.iter_mut().zip(from).for_each(|(to, from)| *to = MaybeUninit::new(*from));
    count
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn image(shard: &[u8]) -> Image {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(shard).expect("written");
        let shard = ImageTensor {
            name: "blk.0.a".to_owned(),
            dims: vec![10],
            ty: 0,
            size: 40,
            origin: Origin::Shard { file: Arc::new(file), offset: 3 },
        };
        Image::assemble(Header::new("llama"), vec![shard, zeros("b", vec![2])])
    }

    fn read_all(image: &Image, step: usize) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        let mut buffer = vec![MaybeUninit::new(0xff); step];
        loop {
            match image.read_at(&mut buffer, all.len() as u64)? {
                0 => return Ok(all),
                // SAFETY: `read` bytes were read.
                read => all.extend(buffer[..read].iter().map(|byte| unsafe { byte.assume_init() })),
            }
        }
    }

    #[test]
    fn an_image_is_the_same_for_all_read_sizes() {
        let shard: Vec<u8> = (0..43).collect();
        let image = image(&shard);
        let whole = read_all(&image, 4096).expect("readable");
        assert_eq!(whole.len() as u64, image.len());
        assert_eq!(read_all(&image, 1).expect("readable"), whole);
        assert_eq!(read_all(&image, 7).expect("readable"), whole);
        let data = image.head.len();
        assert_eq!(&whole[data..data + 40], &shard[3..43]);
        assert!(whole[data + 40..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_image_over_a_short_shard_is_an_error() {
        assert!(read_all(&image(&[0; 42]), 4096).is_err());
    }

    #[test]
    fn tensors_are_counted_from_the_first_layer_of_the_stage() {
        assert_eq!(renumbered("blk.12.attn_q.weight", 10), "blk.2.attn_q.weight");
        assert_eq!(renumbered("output_norm.weight", 10), "output_norm.weight");
    }
}
