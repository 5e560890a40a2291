//! Yamux with a bounded window, and an end that everybody hears of.
//!
//! libp2p's own wrapper offers no way to lower Yamux's default of 1 GiB of unread bytes per connection, so this is a
//! wrapper of the same protocol (`/yamux/1.0.0`) that does. Yamux says nothing to those who wait on streams of a connection
//! that its own side closes, and the goodbye lasts until the system gives the line up where that hangs, which is why most
//! such connections are closed. Here both end soon. Otherwise this only translates.

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

/// Streams that the peer has opened and the swarm has not asked for yet; more are reset.
const MAX_WAITING: usize = MAX_STREAMS_PER_CONNECTION;
/// Longest goodbye of one connection.
const GOODBYE: Duration = Duration::from_secs(2);

/// The upgrade of a secured connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Yamux;

impl Yamux {
    fn config(self) -> yamux::Config {
        let mut config = yamux::Config::default();
        // The number of streams first: each needs its share of the window.
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

/// One connection's streams.
#[derive(Debug)]
pub(super) struct Muxer<C> {
    connection: Connection<C>,
    /// Yamux makes progress only by looking for the next inbound stream; what `poll` finds waits here.
    waiting: VecDeque<Substream>,
    waker: Option<Waker>,
    /// Cancelled when this side begins to close the connection.
    over: CancellationToken,
    /// When the goodbye has lasted long enough.
    goodbye: Option<Pin<Box<Sleep>>>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(connection: Connection<C>) -> Self {
        Self { connection, waiting: VecDeque::new(), waker: None, over: CancellationToken::new(), goodbye: None }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Substream>> {
        self.connection.poll_next_inbound(context).map(|next| match next {
            Some(stream) => stream.map(|stream| Substream::new(stream, &self.over)).map_err(to_io),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        })
    }
}

/// One stream. Whoever waits for it hears when this side closes the connection.
#[derive(Debug)]
pub(super) struct Substream {
    stream: yamux::Stream,
    /// For who reads and who writes, since they may be two.
    over: [Pin<Box<WaitForCancellationFutureOwned>>; 2],
}

/// Places in [`Substream::over`].
const READS: usize = 0;
const WRITES: usize = 1;

impl Substream {
    fn new(stream: yamux::Stream, over: &CancellationToken) -> Self {
        let over = || Box::pin(over.clone().cancelled_owned());
        Self { stream, over: [over(), over()] }
    }

    /// What was polled or, where that is pending, the end of the connection.
    fn unless_over<T>(
        &mut self,
        who: usize,
        polled: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        match polled {
            Poll::Pending => {
                self.over[who].as_mut().poll(context).map(|()| Err(io::ErrorKind::ConnectionAborted.into()))
            }
            ready => ready,
        }
    }
}

impl AsyncRead for Substream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &mut [u8]) -> Poll<io::Result<usize>> {
        let read = Pin::new(&mut self.stream).poll_read(context, bytes);
        self.unless_over(READS, read, context)
    }
}

impl AsyncWrite for Substream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.unless_over(WRITES, written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.unless_over(WRITES, flushed, context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_close(context);
        self.unless_over(WRITES, closed, context)
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
        if let Some(stream) = this.waiting.pop_front() {
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
        stream.map_ok(|stream| Substream::new(stream, &this.over))
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.over.cancel();
        match this.connection.poll_close(context) {
            Poll::Ready(closed) => Poll::Ready(closed.map_err(to_io)),
            Poll::Pending => {
                let goodbye = this.goodbye.get_or_insert_with(|| Box::pin(tokio::time::sleep(GOODBYE)));
                goodbye.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        let this = self.get_mut();
        let stream = std::task::ready!(this.poll_next(context))?;
        if this.waiting.len() < MAX_WAITING {
            this.waiting.push_back(stream);
            if let Some(waker) = this.waker.take() {
                waker.wake();
            }
        }
        // There may be more: come back, after others had their turn.
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
    async fn who_waits_on_a_stream_hears_at_once_that_its_own_side_closes_a_connection_that_hangs() {
        // Nobody takes anything at the other end.
        let (line, _end) = tokio::io::duplex(4 * 1024);
        let mut near = Muxer::new(Connection::new(line.compat(), Yamux.config(), Mode::Client));
        let mut open = async || poll_fn(|context| Pin::new(&mut near).poll_outbound(context)).await.unwrap();
        let (mut reads, mut writes) = (open().await, open().await);
        let (close, closing) = tokio::sync::oneshot::channel::<()>();
        let connection = tokio::spawn(async move {
            let runs = poll_fn(|context| Pin::new(&mut near).poll(context));
            assert!(matches!(select(runs, closing).await, Either::Right(_)), "it runs until it is closed");
            poll_fn(|context| Pin::new(&mut near).poll_close(context)).await
        });
        let reader = tokio::spawn(async move {
            reads.write_all(b"asked").await.unwrap();
            reads.read(&mut [0]).await
        });
        // The other stream fills the line.
        tokio::time::sleep(Duration::from_millis(50)).await;
        let writer = tokio::spawn(async move { while writes.write_all(&[0; 1024]).await.is_ok() {} });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!reader.is_finished() && !writer.is_finished(), "both wait");
        close.send(()).unwrap();
        let both = tokio::time::timeout(GOODBYE / 2, async { (reader.await.unwrap(), writer.await.unwrap()) });
        assert!(both.await.expect("they hear of it at once").0.is_err());
        let goodbye = tokio::time::timeout(GOODBYE * 10, connection).await.expect("it ends").unwrap();
        assert_eq!(goodbye.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn the_bounds_are_ones_that_yamux_accepts() {
        // Yamux panics on bounds that contradict each other: here, not in a connection.
        let text = format!("{:?}", Yamux.config());
        assert!(text.contains(&YAMUX_WINDOW_TOTAL.to_string()), "{text}");
        assert!(text.contains(&MAX_STREAMS_PER_CONNECTION.to_string()), "{text}");
    }
}
