//! Rate limit of downloads from the web.

use std::num::NonZeroU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Burst after a pause, as time at the limit: short, so every second stays within the limit.
const BURST: Duration = Duration::from_millis(100);

/// Rate limit shared by all downloads of a node. Each byte takes its time at the limit; received bytes wait for it, and no
/// further bytes are read meanwhile.
#[derive(Debug)]
pub(crate) struct Throttle {
    rate: Option<NonZeroU64>,
    /// End of the time of all bytes so far.
    busy_until: Mutex<Instant>,
}

impl Throttle {
    /// Limit in bytes per second; `None` sets no limit.
    pub fn new(rate: Option<NonZeroU64>) -> Self {
        Self { rate, busy_until: Mutex::new(Instant::now()) }
    }

    /// Waits for the time of `bytes` further bytes. Cancel-safe.
    pub async fn pass(&self, bytes: usize) {
        let Some(rate) = self.rate else { return };
        let time = Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        let until = {
            let mut busy_until = self.busy_until.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            *busy_until = (*busy_until).max(now.checked_sub(BURST).unwrap_or(now)) + time;
            *busy_until
        };
        tokio::time::sleep_until(until).await;
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self::new(None)
    }
}
