//! The tasks that accept and serve connections.
//!
//! An own loop, because axum's has no timers: a client that sends half a head would hold its connection for ever.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::stall::StallGuard;
use super::state::Client;

/// Pause after a failed accept: out of file descriptors, a loop without it would take a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes that a connection may buffer, which bounds a request's head too.
const CONNECTION_BUFFER: usize = 64 << 10;

/// What every accept loop and connection needs.
#[derive(Clone)]
pub(super) struct Driver {
    pub(super) app: Router,
    /// One permit per connection.
    pub(super) slots: Arc<Semaphore>,
    pub(super) header_timeout: Duration,
    pub(super) write_timeout: Duration,
    /// No more requests.
    pub(super) stop: CancellationToken,
    /// No more connections.
    pub(super) abort: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Driver {
    /// Accepts until told to stop. Takes the slot first, so that what is over the limit waits in the kernel's queue.
    pub(super) async fn accept(self, listener: TcpListener) {
        let stop = self.stop.clone();
        let accepting = async {
            while let Ok(slot) = self.slots.clone().acquire_owned().await {
                match listener.accept().await {
                    Ok((stream, from)) => drop(self.tasks.spawn(self.clone().connection(stream, from, slot))),
                    Err(cause) => {
                        tracing::warn!(%cause, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        };
        stop.run_until_cancelled(accepting).await;
    }

    /// Serves one connection; dropping it drops the answers that it waits for.
    async fn connection(self, stream: TcpStream, from: SocketAddr, _slot: OwnedSemaphorePermit) {
        // Tokens are small: without this each waits for the acknowledgement of the one before.
        if let Err(cause) = stream.set_nodelay(true) {
            tracing::debug!(%cause, "cannot set nodelay");
        }
        let io = TokioIo::new(StallGuard::new(stream, self.write_timeout));
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.header_timeout).max_buf_size(CONNECTION_BUFFER);
        let (client, app) = (Client::new(from.ip()), TowerToHyperService::new(self.app));
        let app = service_fn(move |mut request: Request<Incoming>| {
            request.extensions_mut().insert(client.clone());
            app.call(request)
        });
        let mut connection = pin!(builder.serve_connection(io, app));
        let serving = async {
            tokio::select! {
                ended = connection.as_mut() => return ended,
                () = self.stop.cancelled() => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        };
        if let Some(Err(cause)) = self.abort.run_until_cancelled(serving).await {
            tracing::debug!(%cause, "a connection ended early");
        }
    }
}
