//! The accepted ggml types, with elements and bytes of a block.

use super::{ShapeFault, limits};

/// A tensor type, stored in blocks of `block` elements and `bytes` bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GgmlType {
    /// Type id in a GGUF.
    pub id: u32,
    /// Name in ggml.
    pub name: &'static str,
    /// Elements of a block; a row is a whole number of blocks.
    pub block: u64,
    /// Bytes of a block.
    pub bytes: u64,
}

macro_rules! types {
    ($($id:literal $name:ident $block:literal $bytes:literal;)*) => {
        /// All accepted types. The missing ids were withdrawn from the format.
        const TYPES: &[GgmlType] =
            &[$(GgmlType { id: $id, name: stringify!($name), block: $block, bytes: $bytes },)*];
    };
}

types! {
    0 F32 1 4;
    1 F16 1 2;
    2 Q4_0 32 18;
    3 Q4_1 32 20;
    6 Q5_0 32 22;
    7 Q5_1 32 24;
    8 Q8_0 32 34;
    9 Q8_1 32 36;
    10 Q2_K 256 84;
    11 Q3_K 256 110;
    12 Q4_K 256 144;
    13 Q5_K 256 176;
    14 Q6_K 256 210;
    15 Q8_K 256 292;
    16 IQ2_XXS 256 66;
    17 IQ2_XS 256 74;
    18 IQ3_XXS 256 98;
    19 IQ1_S 256 50;
    20 IQ4_NL 32 18;
    21 IQ3_S 256 110;
    22 IQ2_S 256 82;
    23 IQ4_XS 256 136;
    24 I8 1 1;
    25 I16 1 2;
    26 I32 1 4;
    27 I64 1 8;
    28 F64 1 8;
    29 IQ1_M 256 56;
    30 BF16 1 2;
    34 TQ1_0 256 54;
    35 TQ2_0 256 66;
    39 MXFP4 32 17;
    40 NVFP4 64 36;
    41 Q1_0 128 18;
    42 Q2_0 64 18;
}

impl GgmlType {
    /// All accepted types.
    pub fn all() -> &'static [GgmlType] {
        TYPES
    }

    /// The type with this id.
    pub fn from_id(id: u32) -> Option<GgmlType> {
        TYPES.iter().copied().find(|ty| ty.id == id)
    }

    /// Bytes of a row of `elements` elements.
    pub fn row_size(&self, elements: u64) -> Result<u64, ShapeFault> {
        if !elements.is_multiple_of(self.block) {
            return Err(ShapeFault::Row { row: elements, block: self.block });
        }
        (elements / self.block).checked_mul(self.bytes).ok_or(ShapeFault::Overflow)
    }

    /// Bytes of a tensor of this shape, fastest axis first.
    pub fn tensor_size(&self, dims: &[u64]) -> Result<u64, ShapeFault> {
        let (row, rest) = match dims {
            [row, rest @ ..] if dims.len() <= limits::AXES as usize => (*row, rest),
            _ => return Err(ShapeFault::Axes(dims.len() as u64)),
        };
        elements(dims)?;
        let rows = rest.iter().try_fold(1u64, |rows, dim| rows.checked_mul(*dim)).ok_or(ShapeFault::Overflow)?;
        self.row_size(row)?.checked_mul(rows).ok_or(ShapeFault::Overflow)
    }
}

/// Number of elements of a shape. ggml counts in `i64`, so a larger number is refused too.
pub fn elements(dims: &[u64]) -> Result<u64, ShapeFault> {
    if dims.contains(&0) {
        return Err(ShapeFault::Empty);
    }
    dims.iter()
        .try_fold(1u64, |count, dim| count.checked_mul(*dim))
        .filter(|count| *count <= i64::MAX as u64)
        .ok_or(ShapeFault::Overflow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_id_maps_to_one_type() {
        for ty in TYPES {
            assert_eq!(GgmlType::from_id(ty.id), Some(*ty));
        }
        for withdrawn in [4, 5, 31, 36, 1000] {
            assert_eq!(GgmlType::from_id(withdrawn), None);
        }
    }

    #[test]
    fn sizes_are_whole_blocks() {
        let q4_1 = GgmlType::from_id(3).unwrap();
        assert_eq!(q4_1.tensor_size(&[576, 192]), Ok(576 / 32 * 20 * 192));
        assert_eq!(q4_1.tensor_size(&[33]), Err(ShapeFault::Row { row: 33, block: 32 }));
        assert_eq!(q4_1.tensor_size(&[32, 0]), Err(ShapeFault::Empty));
        assert_eq!(q4_1.tensor_size(&[]), Err(ShapeFault::Axes(0)));
        assert_eq!(q4_1.tensor_size(&[32; 5]), Err(ShapeFault::Axes(5)));
        assert_eq!(q4_1.tensor_size(&[1 << 40, 1 << 40]), Err(ShapeFault::Overflow));
        let f64 = GgmlType::from_id(28).unwrap();
        assert_eq!(f64.tensor_size(&[1 << 62]), Err(ShapeFault::Overflow));
    }
}
