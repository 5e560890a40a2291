//! Measured costs of windows, by the index of their length.

/// Weight of a new measurement in a running average.
pub(super) const NEW_WEIGHT: f64 = 0.2;

/// Costs of windows of `N` lengths; index 0 is the window without draft tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct WindowCosts<const N: usize> {
    measured: [Option<Measurement>; N],
    /// Costs from earlier answers, in plain tokens.
    known: [Option<f64>; N],
}

#[derive(Debug, Clone, Copy)]
struct Measurement {
    cost: f64,
    /// Whether it is representative: the first step of a new length includes its one-time preparation.
    reliable: bool,
}

impl<const N: usize> WindowCosts<N> {
    /// Costs without measurements, with those of earlier answers.
    pub fn new(known: [Option<f64>; N]) -> Self {
        Self { measured: [None; N], known }
    }

    /// Records a measurement. The first one of a length is reliable only where earlier answers measured the length.
    pub fn measure(&mut self, index: usize, cost: f64) {
        let reliable = self.is_reliable(index);
        self.measured[index] = Some(match self.measured[index] {
            None => Measurement { cost, reliable },
            Some(Measurement { reliable: false, .. }) => Measurement { cost, reliable: true },
            Some(known) => Measurement { cost: known.cost + NEW_WEIGHT * (cost - known.cost), reliable: true },
        });
    }

    /// Whether the cost of a length is known beyond its first step.
    pub fn is_reliable(&self, index: usize) -> bool {
        index == 0 || self.measured[index].map_or(self.known[index].is_some(), |measured| measured.reliable)
    }

    /// The reliable measurement of a length.
    pub fn reliable(&self, index: usize) -> Option<f64> {
        self.measured[index].filter(|measured| measured.reliable).map(|measured| measured.cost)
    }

    /// The cost from earlier answers, in plain tokens.
    pub fn known(&self, index: usize) -> Option<f64> {
        self.known[index]
    }

    /// The cost of a length: measured, of earlier answers (converted by `known`), or the prior. An unreliable measurement may
    /// lower the prior and not raise it.
    pub fn cost(&self, index: usize, prior: f64, known: impl FnOnce(f64) -> f64) -> f64 {
        match (self.measured[index], self.known[index]) {
            (Some(Measurement { cost, reliable: true }), _) => cost,
            (Some(Measurement { cost, reliable: false }), _) => cost.min(prior),
            (None, Some(cost)) => known(cost),
            (None, None) => prior,
        }
    }
}

/// Adds a measurement to a running average.
pub(super) fn update_average(average: &mut Option<f64>, value: f64) {
    let average = average.get_or_insert(value);
    *average += NEW_WEIGHT * (value - *average);
}
