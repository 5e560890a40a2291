//! How long, and how often, a server is waited for.

use std::time::Duration;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    /// Longest wait for a connection, an answer or the next bytes. Servers that prepare a file take some seconds.
    pub stall: Duration,
    /// Longest wait for all bytes of a group of 1 MiB together: 3.5 KB/s. Against a server that never stalls and never
    /// ends.
    pub group: Duration,
    /// How often one group, or the first answer, is asked for again.
    pub retries: u32,
    /// Pause before the first of these, doubled with each more.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        let (stall, group) = (Duration::from_secs(30), Duration::from_secs(300));
        Self { stall, group, retries: 5, pause: Duration::from_millis(500) }
    }
}
