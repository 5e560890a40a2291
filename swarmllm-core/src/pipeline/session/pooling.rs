//! Pooling of the states of a text's tokens into one embedding vector.

use crate::engine::sample::LogitRow;

/// Pooling method over the states behind the output norm. The vector is then scaled to length 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pooling {
    /// The mean of all states.
    #[default]
    Mean,
    /// The state of the last token, the only one that has seen the whole text.
    Last,
}

/// Accumulates states row by row.
#[derive(Debug, Clone)]
pub struct Pool {
    pooling: Pooling,
    /// In f64, so that the sum of a long text does not depend on its chunks.
    sum: Vec<f64>,
}

impl Pool {
    /// A pool of states of `width` floats.
    pub fn new(pooling: Pooling, width: u32) -> Self {
        Self { pooling, sum: vec![0.0; width as usize] }
    }

    /// Drops all rows.
    pub fn restart(&mut self) {
        self.sum.fill(0.0);
    }

    /// The pooling method.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// Takes one row; an error for a row that is no state of this width. Values are finite: the wire and the stage
    /// check that.
    pub fn take(&mut self, row: &LogitRow) -> Result<(), String> {
        let state = match row {
            LogitRow::Full(state) if state.len() == self.sum.len() => state,
            LogitRow::Full(state) => return Err(format!("{} floats for a state of {}", state.len(), self.sum.len())),
            LogitRow::Top { .. } => return Err("logits in place of a state".to_owned()),
        };
        for (sum, value) in self.sum.iter_mut().zip(state) {
            *sum = f64::from(*value) + if self.pooling == Pooling::Mean { *sum } else { 0.0 };
        }
        Ok(())
    }

    /// The vector, of length 1, or of zeros where the states cancel out.
    pub fn vector(&self) -> Vec<f32> {
        // The mean is the sum up to its length, which is normalised.
        let length = self.sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        let scale = if length > 0.0 { length.recip() } else { 0.0 };
        self.sum.iter().map(|value| (value * scale) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pooled(pooling: Pooling, states: &[[f32; 2]]) -> Vec<f32> {
        let mut pool = Pool::new(pooling, 2);
        states.iter().for_each(|state| pool.take(&LogitRow::Full(state.to_vec())).unwrap());
        pool.vector()
    }

    #[test]
    fn the_mean_or_the_last_state_is_scaled_to_length_one() {
        let states = [[9.0, 0.0], [-3.0, 8.0]];
        assert_eq!(pooled(Pooling::Mean, &states), [0.6, 0.8]);
        assert_eq!(pooled(Pooling::Last, &[[5.0, 5.0], [0.0, -2.0]]), [0.0, -1.0]);
        assert_eq!(pooled(Pooling::Mean, &[[1.0, 0.0], [-1.0, 0.0]]), [0.0, 0.0]);
    }

    #[test]
    fn a_row_that_is_no_state_of_the_width_is_refused() {
        let mut pool = Pool::new(Pooling::Mean, 2);
        assert!(pool.take(&LogitRow::Full(vec![1.0; 3])).is_err());
        assert!(pool.take(&LogitRow::Top { lse: 0.0, ids: vec![0, 1], logits: vec![0.0, 0.0] }).is_err());
    }
}
