//! Mutations of the driver and its routes: each is a bug that the simulated swarms must find.

/// See the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mutant {
    /// A recovery does not raise the epoch.
    KeepsEpoch,
    /// No host is told that the session has ended.
    ForgetsRelease,
    /// Answers of an earlier route are accepted, both queued and late ones.
    TakesLate,
}
