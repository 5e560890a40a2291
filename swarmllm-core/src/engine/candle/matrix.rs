//! A weight matrix and its products.

use candle_core::quantized::QMatMul;
use candle_core::{Module, Result, Tensor};

/// Fewest rows for which dequantising a matrix is faster: candle multiplies floats in blocks and quantised rows one by one.
/// (Measured on two models and two cores: equal at 4 and 6 rows, six times as fast at 40.)
const MIN_DEQUANTISED_ROWS: usize = 6;

/// A weight matrix, quantised if candle has products for its type.
pub(super) struct Matrix(QMatMul);

impl Matrix {
    pub fn new(product: QMatMul) -> Self {
        Self(product)
    }

    /// Multiplies `x`, `[rows, columns]`. With `allow_rounding` the result may differ from candle's models: many rows are
    /// multiplied with dequantised weights rather than both in 8 bits.
    pub fn forward(&self, x: &Tensor, allow_rounding: bool) -> Result<Tensor> {
        match &self.0 {
            QMatMul::QTensor(weights) if allow_rounding && x.dim(0)? >= MIN_DEQUANTISED_ROWS => {
                x.matmul(&weights.dequantize(x.device())?.t()?)
            }
            product => product.forward(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use candle_core::quantized::{GgmlDType, QTensor};

    use super::*;

    fn floats(tensor: &Tensor) -> Vec<f32> {
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn only_many_rows_with_rounding_allowed_use_dequantised_weights() {
        let (columns, outputs) = (64, 32);
        let wave = |rows: usize, step: f32| {
            let values = (0..rows * columns).map(|index| (index as f32 * step).sin()).collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
        };
        let weights = QTensor::quantize(&wave(outputs, 0.37), GgmlDType::Q4_0).unwrap();
        let exact = weights.dequantize(&Device::Cpu).unwrap().t().unwrap();
        let matrix = Matrix::new(QMatMul::from_qtensor(weights).unwrap());
        for rows in [1, MIN_DEQUANTISED_ROWS - 1, MIN_DEQUANTISED_ROWS, 3 * MIN_DEQUANTISED_ROWS] {
            let x = wave(rows, 0.11);
            let (plain, allow_rounding) = (matrix.forward(&x, false).unwrap(), matrix.forward(&x, true).unwrap());
            let (plain, allow_rounding) = (floats(&plain), floats(&allow_rounding));
            if rows < MIN_DEQUANTISED_ROWS {
                assert_eq!(allow_rounding, plain, "{rows} rows");
                continue;
            }
            assert_eq!(allow_rounding, floats(&x.matmul(&exact).unwrap()), "{rows} rows");
            assert_ne!(allow_rounding, plain, "{rows} rows");
            let largest = plain.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let apart =
                plain.iter().zip(&allow_rounding).fold(0.0_f32, |apart, (one, other)| apart.max((one - other).abs()));
            assert!(apart < 0.02 * largest, "{rows} rows: {apart} of {largest}");
        }
    }
}
