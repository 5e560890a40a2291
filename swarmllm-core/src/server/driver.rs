//! The tasks that accept and serve connections.
//!
//! `axum::serve` has no timeout of a request's head, so that half a head would hold a connection forever; this loop sets
//! hyper's. hyper-util's `GracefulShutdown` would replace the `select!` of a connection alone: connections must also be
//! bounded in number and aborted at a deadline, which need the permit, the token and the tracker anyway. Its `conn::auto`
//! adds HTTP/2, which is not served.

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
use tokio_io_timeout::TimeoutStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::state::Client;

/// Pause after a failed accept. Without it, the loop would use a whole core while file descriptors are exhausted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Buffer of a connection in bytes, which also bounds a request's head.
const CONNECTION_BUFFER: usize = 64 << 10;

/// Shared state of accept loops and connections.
#[derive(Clone)]
pub(super) struct Driver {
    pub(super) app: Router,
    /// A permit for each connection.
    pub(super) slots: Arc<Semaphore>,
    pub(super) header_timeout: Duration,
    pub(super) write_timeout: Duration,
    /// Stops accepting connections and requests.
    pub(super) stop: CancellationToken,
    /// Closes all connections.
    pub(super) abort: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl Driver {
    /// Accepts connections until `stop`. The permit comes first, so that connections over the limit wait in the kernel's
    /// queue.
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

    /// Serves a connection; dropping the future drops its answers.
    async fn connection(self, stream: TcpStream, from: SocketAddr, _slot: OwnedSemaphorePermit) {
        // Without it, each small write of a token waits for the acknowledgement of the previous write.
        if let Err(cause) = stream.set_nodelay(true) {
            tracing::debug!(%cause, "cannot set nodelay");
        }
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(self.write_timeout));
        let io = TokioIo::new(Box::pin(stream));
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
