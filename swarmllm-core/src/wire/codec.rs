//! Encodings of hidden states: exact, or rounded to fewer bytes.
//!
//! Rounded states change an answer by less than llama.cpp's own settings do (flash attention, batch sizes), provided that
//! outliers are stored separately: one value a thousand times larger than its neighbours would take all their bits. IEEE
//! 16-bit floats would overflow, so they are not offered.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::wire::WireError;
use crate::wire::job::MAX_BODY_BYTES;
use crate::wire::tensor::{decode_f32, encode_f32};

/// Encoding of hidden states on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// Exact, 4 bytes per value. Default.
    #[default]
    F32,
    /// bfloat16, rounded to even, 2 bytes per value.
    Bf16,
    /// Per row the 4 largest values exact, the others in blocks of 32 with a scale and 8 bits each: about 1.14 bytes each.
    Int8,
}

/// Unknown name of a codec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not one of f32, bf16, int8")]
pub struct UnknownCodec(String);

impl FromStr for Codec {
    type Err = UnknownCodec;

    fn from_str(name: &str) -> Result<Self, UnknownCodec> {
        let all = [Codec::F32, Codec::Bf16, Codec::Int8];
        all.into_iter().find(|codec| codec.name() == name).ok_or_else(|| UnknownCodec(name.to_owned()))
    }
}

/// Outliers per row, stored exactly with their index.
const OUTLIERS: usize = 4;
/// Values per scale.
const BLOCK: usize = 32;
/// Largest quantised value of a block.
const LEVELS: f32 = 127.0;

impl Codec {
    /// The name of the codec in all interfaces.
    pub fn name(self) -> &'static str {
        match self {
            Codec::F32 => "f32",
            Codec::Bf16 => "bf16",
            Codec::Int8 => "int8",
        }
    }

    /// Bytes of an encoded row of `width` values.
    pub fn row_bytes(self, width: usize) -> usize {
        match self {
            Codec::F32 => width.saturating_mul(4),
            Codec::Bf16 => width.saturating_mul(2),
            Codec::Int8 => (8 * OUTLIERS.min(width)).saturating_add(4 * width.div_ceil(BLOCK)).saturating_add(width),
        }
    }

    /// Encodes rows of `width` values, all finite.
    pub fn encode(self, states: &[f32], width: usize) -> Vec<u8> {
        match self {
            Codec::F32 => encode_f32(states),
            Codec::Bf16 => states.iter().flat_map(|value| to_bf16(*value).to_le_bytes()).collect(),
            Codec::Int8 => {
                let rows = states.len().checked_div(width).unwrap_or(0);
                let mut bytes = Vec::with_capacity(rows.saturating_mul(self.row_bytes(width)));
                states.chunks_exact(width.max(1)).for_each(|row| encode_int8(row, &mut bytes));
                bytes
            }
        }
    }

    /// Decodes exactly `rows` rows of `width` finite values.
    pub fn decode(self, bytes: &[u8], rows: usize, width: usize) -> Result<Vec<f32>, WireError> {
        // A short message must not decode to a large allocation.
        let fits = rows.saturating_mul(width).saturating_mul(4) <= MAX_BODY_BYTES;
        if !fits || rows.checked_mul(self.row_bytes(width)) != Some(bytes.len()) {
            let text = format!("{} bytes for {rows} rows of {width} values in {}", bytes.len(), self.name());
            return Err(WireError::Body(text));
        }
        match self {
            Codec::F32 => decode_f32(bytes, rows.saturating_mul(width)),
            Codec::Bf16 => finite(bytes.chunks_exact(2).map(|two| from_bf16([two[0], two[1]])).collect()),
            Codec::Int8 => {
                // The product is less than the length of `bytes`.
                let mut states = Vec::with_capacity(rows * width);
                let rows = bytes.chunks_exact(self.row_bytes(width).max(1));
                rows.into_iter().try_for_each(|row| decode_int8(row, width, &mut states))?;
                finite(states)
            }
        }
    }
}

fn finite(states: Vec<f32>) -> Result<Vec<f32>, WireError> {
    match states.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(WireError::Body(format!("value {index} is not finite"))),
        None => Ok(states),
    }
}

/// Rounds to the nearest bfloat16, ties to even, saturating at the largest finite value.
fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.saturating_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    match f32::from_bits(rounded << 16).is_finite() {
        true => rounded as u16,
        false => (bits >> 16) as u16,
    }
}

fn from_bf16(bytes: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
}

/// Encodes a row: index and value of each outlier, then per block the scale and the quantised values.
fn encode_int8(row: &[f32], bytes: &mut Vec<u8>) {
    let mut rest = row.to_vec();
    for _ in 0..OUTLIERS.min(row.len()) {
        let largest = rest.iter().enumerate().max_by(|one, other| one.1.abs().total_cmp(&other.1.abs()));
        let index = largest.map_or(0, |(index, _)| index);
        bytes.extend((index as u32).to_le_bytes());
        bytes.extend(row[index].to_le_bytes());
        rest[index] = 0.0;
    }
    for block in rest.chunks(BLOCK) {
        let scale = block.iter().fold(0.0_f32, |max, value| max.max(value.abs())) / LEVELS;
        // A subnormal scale counts as zero.
        let scale = if scale.is_normal() { scale } else { 0.0 };
        bytes.extend(scale.to_le_bytes());
        let level = |value: &f32| if scale == 0.0 { 0 } else { (value / scale).round().clamp(-LEVELS, LEVELS) as i8 };
        bytes.extend(block.iter().map(|value| level(value).to_le_bytes()[0]));
    }
}

fn decode_int8(bytes: &[u8], width: usize, states: &mut Vec<f32>) -> Result<(), WireError> {
    let (outliers, blocks) = bytes.split_at(8 * OUTLIERS.min(width));
    let begin = states.len();
    for block in blocks.chunks(4 + BLOCK) {
        let (scale, levels) = block.split_at(4);
        let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
        states.extend(levels.iter().map(|level| scale * f32::from(i8::from_le_bytes([*level]))));
    }
    for pair in outliers.chunks_exact(8) {
        let index = u32::from_le_bytes([pair[0], pair[1], pair[2], pair[3]]) as usize;
        let value = f32::from_le_bytes([pair[4], pair[5], pair[6], pair[7]]);
        let at = states.get_mut(begin..).and_then(|row| row.get_mut(index));
        *at.ok_or_else(|| WireError::Body(format!("value {index} of a row of {width}")))? = value;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ALL: [Codec; 3] = [Codec::F32, Codec::Bf16, Codec::Int8];

    #[test]
    fn a_codec_parses_from_its_exact_name() {
        assert!(ALL.iter().all(|codec| codec.name().parse() == Ok(*codec)));
        assert!("BF16".parse::<Codec>().is_err());
    }

    #[test]
    fn row_bytes_is_the_encoded_length() {
        let bytes = ALL.map(|codec| codec.row_bytes(2048));
        assert_eq!(bytes, [8192, 4096, 32 + 64 * 4 + 2048]);
        for (codec, width) in ALL.into_iter().flat_map(|codec| [1, 3, 31, 32, 33, 576].map(|width| (codec, width))) {
            assert_eq!(
                codec.encode(&vec![1.0; 2 * width], width).len(),
                2 * codec.row_bytes(width),
                "{codec:?} {width}"
            );
        }
    }

    #[test]
    fn outliers_are_exact_and_do_not_affect_other_values() {
        let mut row: Vec<f32> = (0..64).map(|at| (at as f32 - 30.0) / 40.0).collect();
        (row[3], row[40], row[41]) = (82_642.0, -3.0e38, 5.0e5);
        let back = Codec::Int8.decode(&Codec::Int8.encode(&row, 64), 1, 64).unwrap();
        assert_eq!((back[3], back[40], back[41]), (row[3], row[40], row[41]));
        let worst = row.iter().zip(&back).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
        assert!(worst < 1.0 / 127.0, "{worst}");
    }

    #[test]
    fn bf16_rounds_to_nearest_without_overflow() {
        let back = |value: f32| Codec::Bf16.decode(&Codec::Bf16.encode(&[value], 1), 1, 1).unwrap()[0];
        assert_eq!((back(1.0), back(-0.0).to_bits(), back(1.003_906_2)), (1.0, (-0.0f32).to_bits(), 1.0));
        assert_eq!(back(1.003_907), 1.007_812_5);
        assert!(back(f32::MAX).is_finite() && back(-f32::MAX).is_finite());
    }

    #[test]
    fn wrong_lengths_bad_indices_and_infinite_values_are_refused() {
        for codec in ALL {
            let bytes = codec.encode(&[1.0; 64], 64);
            assert!(codec.decode(&bytes[1..], 1, 64).is_err());
            assert!(codec.decode(&bytes, 2, 64).is_err());
            assert!(codec.decode(&bytes, usize::MAX, usize::MAX).is_err());
            assert!(codec.decode(&[], usize::MAX, 0).is_ok_and(|rows| rows.is_empty()));
        }
        let mut outside = Codec::Int8.encode(&[1.0; 64], 64);
        outside[0] = 64;
        assert!(Codec::Int8.decode(&outside, 1, 64).is_err());
        let mut scale = Codec::Int8.encode(&[1.0; 64], 64);
        scale[32..36].copy_from_slice(&f32::INFINITY.to_le_bytes());
        assert!(Codec::Int8.decode(&scale, 1, 64).is_err());
        assert!(Codec::Bf16.decode(&0x7f80_u16.to_le_bytes(), 1, 1).is_err());
    }

    proptest! {
        #[test]
        fn decoded_values_are_within_rounding_error(row in proptest::collection::vec(-1.0e6f32..1.0e6, 1..100)) {
            let width = row.len();
            for (codec, part) in [(Codec::F32, 0.0), (Codec::Bf16, 1.0 / 256.0), (Codec::Int8, 1.0 / 127.0)] {
                let back = codec.decode(&codec.encode(&row, width), 1, width).unwrap();
                for (block, back) in row.chunks(BLOCK).zip(back.chunks(BLOCK)) {
                    let max = block.iter().fold(0.0f32, |max, value| max.max(value.abs()));
                    prop_assert!(block.iter().zip(back).all(|(one, other)| (one - other).abs() <= max * part));
                }
            }
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(
            rows in 0usize..5,
            width in 0usize..80,
            bytes in proptest::collection::vec(any::<u8>(), 0..500),
        ) {
            for codec in ALL {
                let _ = codec.decode(&bytes, rows, width);
                let mut fits = bytes.clone();
                fits.resize(rows * codec.row_bytes(width), 0xff);
                let _ = codec.decode(&fits, rows, width);
            }
        }
    }
}
