//! Signals that stop the process.

use crate::failure::Failure;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT and SIGTERM, or Ctrl-C on Windows. Signals from its creation on are kept until [`received`](Self::received).
pub struct StopSignal {
    #[cfg(unix)]
    terminate: Signal,
    #[cfg(unix)]
    interrupt: Signal,
    #[cfg(windows)]
    interrupt: tokio::signal::windows::CtrlC,
}

impl StopSignal {
    #[cfg(unix)]
    pub fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|cause| Failure::io("signals", &cause));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for a signal. Cancel-safe.
    #[cfg(unix)]
    pub async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    #[cfg(windows)]
    pub fn listen() -> Result<Self, Failure> {
        let interrupt = tokio::signal::windows::ctrl_c().map_err(|cause| Failure::io("signals", &cause))?;
        Ok(Self { interrupt })
    }

    /// Waits for a signal. Cancel-safe.
    #[cfg(windows)]
    pub async fn received(&mut self) {
        self.interrupt.recv().await;
    }
}
