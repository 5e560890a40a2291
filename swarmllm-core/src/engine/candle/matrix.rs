//! A matrix of weights, and how rows are multiplied with it.

use candle_core::quantized::QMatMul;
use candle_core::{Module, Result, Tensor};

/// From so many rows on it pays to make floats of a quantised matrix: candle multiplies floats in blocks, quantised rows
/// one by one. (Measured on two models and two cores: even at 4 and 6 rows, six times as fast at 40.)
const MANY_ROWS: usize = 6;

/// A matrix of weights, left quantised where candle multiplies quantised ones.
pub(super) struct Matrix(QMatMul);

impl Matrix {
    pub fn new(product: QMatMul) -> Self {
        Self(product)
    }

    /// Multiplies `x`, `[rows, columns]`. `free` says that the result need not be that of candle's own models: many rows
    /// are then multiplied with the weights as they are, rather than both in 8 bits.
    pub fn forward(&self, x: &Tensor, free: bool) -> Result<Tensor> {
        match &self.0 {
            QMatMul::QTensor(weights) if free && x.dim(0)? >= MANY_ROWS => {
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
    fn only_many_rows_that_are_free_are_multiplied_with_the_weights_as_they_are() {
        let (columns, outputs) = (64, 32);
        let wave = |rows: usize, step: f32| {
            let values = (0..rows * columns).map(|index| (index as f32 * step).sin()).collect();
            Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
        };
        let weights = QTensor::quantize(&wave(outputs, 0.37), GgmlDType::Q4_0).unwrap();
        let exact = weights.dequantize(&Device::Cpu).unwrap().t().unwrap();
        let matrix = Matrix::new(QMatMul::from_qtensor(weights).unwrap());
        for rows in [1, MANY_ROWS - 1, MANY_ROWS, 3 * MANY_ROWS] {
            let x = wave(rows, 0.11);
            let (plain, free) = (matrix.forward(&x, false).unwrap(), matrix.forward(&x, true).unwrap());
            let (plain, free) = (floats(&plain), floats(&free));
            if rows < MANY_ROWS {
                assert_eq!(free, plain, "{rows} rows");
                continue;
            }
            assert_eq!(free, floats(&x.matmul(&exact).unwrap()), "{rows} rows");
            assert_ne!(free, plain, "{rows} rows");
            let largest = plain.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
            let apart = plain.iter().zip(&free).fold(0.0_f32, |apart, (one, other)| apart.max((one - other).abs()));
            assert!(apart < 0.02 * largest, "{rows} rows: {apart} of {largest}");
        }
    }
}
