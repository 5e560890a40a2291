//! Hidden states and logits as little-endian f32, with checks for length and finite values.

use crate::wire::WireError;

/// Encodes `values` as little-endian bytes.
pub fn encode_f32(values: &[f32]) -> Vec<u8> {
    if cfg!(target_endian = "little") {
        return bytemuck::cast_slice(values).to_vec();
    }
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Decodes exactly `count` finite floats.
pub fn decode_f32(bytes: &[u8], count: usize) -> Result<Vec<f32>, WireError> {
    if count.checked_mul(4) != Some(bytes.len()) {
        return Err(WireError::Body(format!("{} bytes for {count} floats", bytes.len())));
    }
    let values: Vec<f32> =
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]])).collect();
    match values.iter().position(|value| !value.is_finite()) {
        Some(index) => Err(WireError::Body(format!("value {index} is not finite"))),
        None => Ok(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_round_trip_to_the_bit() {
        let values = [0.0, -0.0, 1.5, f32::MIN_POSITIVE, 82_642.0, -3.0e38];
        let back = decode_f32(&encode_f32(&values), values.len()).unwrap();
        assert!(values.iter().zip(&back).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn wrong_lengths_and_infinite_values_are_refused() {
        assert!(decode_f32(&[0; 8], 3).is_err());
        assert!(decode_f32(&[0; 7], 2).is_err());
        assert!(decode_f32(&encode_f32(&[1.0, f32::NAN]), 2).is_err());
        assert!(decode_f32(&encode_f32(&[f32::INFINITY]), 1).is_err());
    }
}
