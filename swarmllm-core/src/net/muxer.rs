//! Yamux with a bounded window.
//!
//! libp2p's own wrapper offers no way to lower Yamux's default of 1 GiB of unread bytes per connection, so this is a
//! wrapper of the same protocol (`/yamux/1.0.0`) that does, and otherwise only translates.

use std::collections::VecDeque;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures::io::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use yamux::{Connection, ConnectionError, Mode};

use super::config::{MAX_STREAMS_PER_CONNECTION, YAMUX_SPLIT, YAMUX_WINDOW_TOTAL};

/// Streams that the peer has opened and the swarm has not asked for yet; more are reset.
const MAX_WAITING: usize = MAX_STREAMS_PER_CONNECTION;

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
    waiting: VecDeque<yamux::Stream>,
    waker: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(connection: Connection<C>) -> Self {
        Self { connection, waiting: VecDeque::new(), waker: None }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<io::Result<yamux::Stream>> {
        self.connection.poll_next_inbound(context).map(|next| match next {
            Some(stream) => stream.map_err(to_io),
            None => Err(io::ErrorKind::ConnectionAborted.into()),
        })
    }
}

fn to_io(error: ConnectionError) -> io::Error {
    match error {
        ConnectionError::Io(error) => error,
        other => io::Error::other(other),
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> StreamMuxer for Muxer<C> {
    type Substream = yamux::Stream;
    type Error = io::Error;

    fn poll_inbound(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<yamux::Stream>> {
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

    fn poll_outbound(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<yamux::Stream>> {
        self.get_mut().connection.poll_new_outbound(context).map_err(to_io)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().connection.poll_close(context).map_err(to_io)
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
    use super::*;

    #[test]
    fn the_bounds_are_ones_that_yamux_accepts() {
        // Yamux panics on bounds that contradict each other: here, not in a connection.
        let text = format!("{:?}", Yamux.config());
        assert!(text.contains(&YAMUX_WINDOW_TOTAL.to_string()), "{text}");
        assert!(text.contains(&MAX_STREAMS_PER_CONNECTION.to_string()), "{text}");
    }
}
