//! Traffic counters by channel, and the optional bandwidth ceiling of the node.
//!
//! Counts the bytes of streams before encryption and framing. The ceiling applies to the streams of every connection and so
//! to all traffic: channels, gossip, DHT and relayed connections.

use std::io;
use std::num::NonZeroU64;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures::io::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent, SubstreamBox};
use serde::Serialize;
use tokio::time::Sleep;

use super::Channel;

/// Minimum burst in bytes. The burst is a quarter of a second of the ceiling.
const MIN_BURST: u64 = 64 * 1024;
/// Messages up to this size in bytes do not wait behind bulk data, within a debt of one burst: a shard transfer must not
/// delay pings and tokens.
const MAX_SMALL_MESSAGE: usize = 4 * 1024;
/// Time after which a throttled stream tries again.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

/// Bytes sent and received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Flow {
    /// Bytes sent.
    pub sent: u64,
    /// Bytes received.
    pub received: u64,
}

/// Traffic since the start, by channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// Control requests and replies.
    pub control: Flow,
    /// Hidden states of sessions.
    pub stage: Flow,
    /// Bytes of model shards.
    pub shard: Flow,
    /// All other traffic: identify, ping, gossip, DHT and relayed connections.
    pub other: Flow,
}

#[derive(Debug, Default)]
struct Counter {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Counter {
    fn flow(&self) -> Flow {
        Flow { sent: self.sent.load(Ordering::Relaxed), received: self.received.load(Ordering::Relaxed) }
    }
}

/// Counters and ceiling, shared by all connections of a network.
#[derive(Debug)]
pub(super) struct Meter {
    all: Counter,
    channels: [Counter; Channel::ALL.len()],
    bucket: Option<Mutex<TokenBucket>>,
}

impl Meter {
    /// `ceiling` in bytes per second, both directions together; `None` without a limit.
    pub fn new(ceiling: Option<NonZeroU64>) -> Self {
        let bucket = ceiling.map(|rate| Mutex::new(TokenBucket::new(rate, Instant::now())));
        Self { all: Counter::default(), channels: Default::default(), bucket }
    }

    /// Traffic so far.
    pub fn traffic(&self) -> Traffic {
        let [control, stage, shard] = [0, 1, 2].map(|channel: usize| self.channels[channel].flow());
        let all = self.all.flow();
        let rest = |of: fn(Flow) -> u64| of(all).saturating_sub(of(control) + of(stage) + of(shard));
        let other = Flow { sent: rest(|flow| flow.sent), received: rest(|flow| flow.received) };
        Traffic { control, stage, shard, other }
    }

    /// Counts bytes sent on a channel.
    pub fn sent(&self, channel: Channel, bytes: usize) {
        self.channels[channel as usize].sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Counts bytes received on a channel.
    pub fn received(&self, channel: Channel, bytes: usize) {
        self.channels[channel as usize].received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Takes up to `wanted` bytes from the bucket; 0 if the stream must wait.
    fn take(&self, wanted: usize) -> usize {
        let Some(bucket) = &self.bucket else { return wanted };
        bucket.lock().unwrap_or_else(PoisonError::into_inner).take(wanted, Instant::now())
    }

    /// Returns unused bytes to the bucket.
    fn give_back(&self, bytes: usize) {
        if let Some(bucket) = &self.bucket {
            bucket.lock().unwrap_or_else(PoisonError::into_inner).tokens += bytes as i64;
        }
    }
}

/// A token bucket; one token is one byte.
#[derive(Debug)]
struct TokenBucket {
    rate: u64,
    burst: i64,
    /// Available bytes; negative after small messages have borrowed.
    tokens: i64,
    filled: Instant,
}

impl TokenBucket {
    fn new(rate: NonZeroU64, now: Instant) -> Self {
        let burst = i64::try_from((rate.get() / 4).max(MIN_BURST)).unwrap_or(i64::MAX);
        Self { rate: rate.get(), burst, tokens: burst, filled: now }
    }

    fn take(&mut self, wanted: usize, now: Instant) -> usize {
        let grown = now.duration_since(self.filled).as_micros().saturating_mul(u128::from(self.rate)) / 1_000_000;
        // A fraction of a byte stays in the elapsed time.
        if grown > 0 {
            self.tokens = self.tokens.saturating_add(i64::try_from(grown).unwrap_or(i64::MAX)).min(self.burst);
            self.filled = now;
        }
        let small = wanted <= MAX_SMALL_MESSAGE && self.tokens > -self.burst;
        let granted = if small { wanted } else { wanted.min(usize::try_from(self.tokens).unwrap_or(0)) };
        self.tokens -= granted as i64;
        granted
    }
}

/// A connection with metered streams.
pub(super) struct Metered {
    inner: StreamMuxerBox,
    meter: Arc<Meter>,
}

impl Metered {
    pub fn new(inner: StreamMuxerBox, meter: Arc<Meter>) -> Self {
        Self { inner, meter }
    }

    fn stream(&self, inner: SubstreamBox) -> MeteredStream {
        MeteredStream { inner, meter: self.meter.clone(), wait: None }
    }
}

impl StreamMuxer for Metered {
    type Substream = MeteredStream;
    type Error = io::Error;

    fn poll_inbound(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<MeteredStream>> {
        let this = self.get_mut();
        let inner = ready!(Pin::new(&mut this.inner).poll_inbound(context))?;
        Poll::Ready(Ok(this.stream(inner)))
    }

    fn poll_outbound(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<MeteredStream>> {
        let this = self.get_mut();
        let inner = ready!(Pin::new(&mut this.inner).poll_outbound(context))?;
        Poll::Ready(Ok(this.stream(inner)))
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_close(context)
    }

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<StreamMuxerEvent>> {
        Pin::new(&mut self.get_mut().inner).poll(context)
    }
}

/// A stream of a [`Metered`] connection.
pub(super) struct MeteredStream {
    inner: SubstreamBox,
    meter: Arc<Meter>,
    /// Timer until the next attempt.
    wait: Option<Pin<Box<Sleep>>>,
}

impl MeteredStream {
    /// Waits until bytes are available; returns how many of `wanted`.
    fn poll_take(&mut self, wanted: usize, context: &mut Context<'_>) -> Poll<usize> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(context));
                self.wait = None;
            }
            match self.meter.take(wanted) {
                0 if wanted > 0 => self.wait = Some(Box::pin(tokio::time::sleep(RETRY_INTERVAL))),
                granted => return Poll::Ready(granted),
            }
        }
    }

    /// Counts the bytes passed and returns the rest to the bucket.
    fn record_passed(&self, taken: usize, passed: &Poll<io::Result<usize>>, count: &AtomicU64) {
        let passed = if let Poll::Ready(Ok(passed)) = passed { *passed } else { 0 };
        self.meter.give_back(taken.saturating_sub(passed));
        count.fetch_add(passed as u64, Ordering::Relaxed);
    }
}

impl AsyncRead for MeteredStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let taken = ready!(self.poll_take(buffer.len(), context));
        let read = Pin::new(&mut self.inner).poll_read(context, &mut buffer[..taken]);
        self.record_passed(taken, &read, &self.meter.all.received);
        read
    }
}

impl AsyncWrite for MeteredStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let taken = ready!(self.poll_take(buffer.len(), context));
        let written = Pin::new(&mut self.inner).poll_write(context, &buffer[..taken]);
        self.record_passed(taken, &written, &self.meter.all.sent);
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 1024 * 1024;

    fn bucket(now: Instant) -> TokenBucket {
        TokenBucket::new(NonZeroU64::new(RATE).unwrap(), now)
    }

    #[test]
    fn bulk_data_is_limited_to_the_ceiling() {
        let begun = Instant::now();
        let (mut bucket, mut passed) = (bucket(begun), 0);
        for millisecond in 0..10_000 {
            passed += bucket.take(64 * 1024, begun + Duration::from_millis(millisecond)) as u64;
        }
        let ceiling = 10 * RATE + RATE / 4;
        assert!(passed <= ceiling && passed > ceiling - RATE / 50, "{passed} of {ceiling}");
    }

    #[test]
    fn small_messages_precede_bulk_within_a_debt_limit() {
        let now = Instant::now();
        let mut bucket = bucket(now);
        assert!(bucket.take(usize::MAX, now) > 0);
        assert_eq!(bucket.take(64 * 1024, now), 0);
        let passed: usize = (0..10_000).map(|_| bucket.take(100, now)).sum();
        assert!(passed > 0 && passed as u64 <= RATE / 4 + 100, "{passed}");
        assert_eq!(bucket.take(100, now), 0);
    }

    #[test]
    fn without_a_ceiling_nothing_is_throttled() {
        let meter = Meter::new(None);
        assert_eq!(meter.take(usize::MAX), usize::MAX);
    }
}
