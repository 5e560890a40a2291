//! Timeouts and retries of downloads.

use std::time::Duration;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timeouts {
    /// Deadline of a connection, a response or the next bytes. Servers that prepare a file take some seconds.
    pub stall: Duration,
    /// Deadline of all bytes of a group of 1 MiB: 3.5 KB/s. Bounds a server that sends slowly forever.
    pub group: Duration,
    /// Retries of one group or of the first request.
    pub retries: u32,
    /// Pause before the first retry; doubled each time.
    pub pause: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        let (stall, group) = (Duration::from_secs(30), Duration::from_secs(300));
        Self { stall, group, retries: 5, pause: Duration::from_millis(500) }
    }
}
