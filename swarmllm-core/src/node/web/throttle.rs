//! A bound of how many bytes a second come from the web.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// What may come at once after a pause, as time at the bound's rate: short, so that any second keeps to it.
const BURST: Duration = Duration::from_millis(100);

/// Makes all downloads of a node together keep to a rate. Each byte has its time; what came waits until that has passed,
/// and meanwhile nothing more is read.
#[derive(Debug)]
pub(crate) struct Throttle {
    rate: Option<NonZeroU64>,
    /// When the bytes that came so far have had their time.
    paid: Mutex<Instant>,
}

impl Throttle {
    /// At most so many bytes a second; `None` is as fast as they come.
    pub fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, paid: Mutex::new(Instant::now()) }
    }

    /// Waits until so many bytes more may have come.
    pub async fn pass(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let time = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        let until = {
            let mut paid = self.paid.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *paid = (*paid).max(now.checked_sub(BURST).unwrap_or(now)) + time;
            *paid
        };
        tokio::time::sleep_until(until).await;
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(None)
    }
}
