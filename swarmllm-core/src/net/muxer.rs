//! Yamux with a bounded receive window and a prompt close.
//!
//! libp2p's own wrapper cannot lower Yamux's default of 1 GiB of unread bytes per connection; this wrapper of the same
//! protocol (`/yamux/1.0.0`) can. When the local side closes a connection, Yamux does not wake pending reads and writes, and
//! the close of a hanging connection, the usual reason to close one, lasts until the system gives up. Here both end
//! promptly.

use std::collections::VecDeque;
use std::future::{Future, Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::io::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use yamux::{Connection, ConnectionError, Mode};

use super::config::{MAX_STREAMS_PER_CONNECTION, YAMUX_SPLIT, YAMUX_WINDOW_TOTAL};

/// Maximum inbound streams not yet polled by the swarm; further streams are reset.
const MAX_INBOUND: usize = MAX_STREAMS_PER_CONNECTION;
/// Timeout of the close of a connection.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The upgrade of a secured connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Yamux;

impl Yamux {
    fn config(self) -> yamux::Config {
        let mut config = yamux::Config::default();
        // The number of streams is set first: the window is checked against it.
        config.set_max_num_streams(MAX_STREAMS_PER_CONNECTION);
        config.set_max_connection_receive_window(Some(YAMUX_WINDOW_TOTAL));
        config.set_split_send_size(YAMUX_SPLIT);
        config
    }
}

impl UpgradeInfo for Yamux {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<Result<Muxer<C>, io::Error>>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        ready(Ok(Muxer::new(Connection::new(socket, self.config(), Mode::Server))))
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<Result<Muxer<C>, io::Error>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        ready(Ok(Muxer::new(Connection::new(socket, self.config(), Mode::Client))))
    }
}

/// The streams of a connection.
#[derive(Debug)]
pub(super) struct Muxer<C> {
    connection: Connection<C>,
    /// Inbound streams found by `poll`: Yamux makes progress only by polling for inbound streams.
    inbound: VecDeque<Substream>,
    waker: Option<Waker>,
    /// Cancelled when this side begins to close the connection.
    closed: CancellationToken,
    /// Timer of the close timeout.
    close_timer: Option<Pin<Box<Sleep>>>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(connection: Connection<C>) -> Self {
        Self { connection, inbound: VecDeque::new(), waker: None, closed: CancellationToken::new(), close_timer: None }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        self.connection.poll_next_inbound(context).map(|next| match next {
            Some(stream) => stream.map(|stream| Substream::new(stream, &self.closed)).map_err(to_io),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        })
    }
}

/// A stream. Its pending reads and writes fail when the local side closes the connection.
#[derive(Debug)]
pub(super) struct Substream {
    stream: yamux::Stream,
    /// One waiter each for the reading and the writing task.
    closed: [Pin<Box<WaitForCancellationFutureOwned>>; 2],
}

/// Indices of [`Substream::closed`].
const READER: usize = 0;
const WRITER: usize = 1;

impl Substream {
    fn new(stream: yamux::Stream, closed: &CancellationToken) -> Self {
        let closed = || Box::pin(closed.clone().cancelled_owned());
        Self { stream, closed: [closed(), closed()] }
    }

    /// Turns a pending result into an error once the connection is closed.
    fn unless_closed<T>(
        &mut self,
        index: usize,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match polled {
            Poll::Pending => {
                self.closed[index].as_mut().poll(context).map(|()| Err(io::ErrorKind::ConnectionAborted.into()))
            }
            ready => ready,
        }
    }
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read(context, bytes);
        self.unless_closed(READER, read, context)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_closed(WRITER, written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.unless_closed(WRITER, flushed, context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_close(context);
        self.unless_closed(WRITER, closed, context)
    }
}

fn to_io(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = Substream;
    type Error = io::Error;

    fn poll_inbound(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        let this = self.get_mut();
        if let Some(stream) = this.inbound.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        let next = this.poll_next(context);
        if next.is_pending() {
            this.waker = Some(context.waker().clone());
        }
        next
    }

    fn poll_outbound(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        let this = self.get_mut();
        let stream = this.connection.poll_new_outbound(context).map_err(to_io);
        stream.map_ok(|stream| Substream::new(stream, &this.closed))
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.closed.cancel();
        match this.connection.poll_close(context) {
            Poll::Ready(closed) => Poll::Ready(closed.map_err(to_io)),
            Poll::Pending => {
                let close_timer = this.close_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)));
                close_timer.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        let this = self.get_mut();
        let stream = std::task::ready!(this.poll_next(context))?;
        if this.inbound.len() < MAX_INBOUND {
            this.inbound.push_back(stream);
            if let Some(waker) = this.waker.take() {
                waker.wake();
            }
        }
        // More streams may be available: yield and poll again.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::future::{Either, select};
    use futures::{AsyncReadExt, AsyncWriteExt};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use super::*;

    #[tokio::test]
    async fn a_local_close_of_a_hanging_connection_ends_its_streams() {
        // The remote end never reads.
        let (line, _end) = tokio::io::duplex(4 * 1024);
        let mut near = Muxer::new(Connection::new(line.compat(), Yamux.config(), Mode::Client));
        let mut open = async || poll_fn(|context| Pin::new(&mut near).poll_outbound(context)).await.unwrap();
        let (mut reads, mut writes) = (open().await, open().await);
        let (close, closing) = tokio::sync::oneshot::channel::<()>();
        let connection = tokio::spawn(async move {
            let runs = poll_fn(|context| Pin::new(&mut near).poll(context));
            assert!(matches!(select(runs, closing).await, Either::Right(_)), "runs until closed");
            poll_fn(|context| Pin::new(&mut near).poll_close(context)).await
        });
        let reader = tokio::spawn(async move {
            reads.write_all(b"asked").await.unwrap();
            reads.read(&mut [0]).await
        });
        // The second stream fills the line.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let writer = tokio::spawn(async move { while writes.write_all(&[0; 1024]).await.is_ok() {} });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!reader.is_finished() && !writer.is_finished(), "both wait");
        close.send(()).unwrap();
        let both = tokio::time::timeout(CLOSE_TIMEOUT / 2, async { (reader.await.unwrap(), writer.await.unwrap()) });
        assert!(both.await.expect("both end at once").0.is_err());
        let closed = tokio::time::timeout(CLOSE_TIMEOUT * 10, connection).await.expect("the close ends").unwrap();
        assert_eq!(closed.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_limits_are_valid_for_yamux() {
        // Yamux panics on inconsistent limits: detect them here rather than in a connection.
        let text = format!("{:?}", Yamux.config());
        assert!(text.contains(&YAMUX_WINDOW_TOTAL.to_string()), "{text}");
        assert!(text.contains(&MAX_STREAMS_PER_CONNECTION.to_string()), "{text}");
    }
}
