//! What this node says and hears, counted by kind, and the ceiling that its host may set for all of it.
//!
//! Counted are the bytes of streams, before they are enciphered and framed. The ceiling is held where streams meet
//! connections, so that nothing passes by it: our channels, gossip, the swarm's table, and what is carried for others.

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

/// What was saved up may be spent at once: a quarter of a second of the ceiling, and at least this.
const LEAST_BURST: u64 = 64 * 1024;
/// A message of at most so many bytes waits for no bulk before it, until what it borrows is as much as a burst: pings and
/// tokens must not be late because a shard is under way.
const SMALL: usize = 4 * 1024;
/// A stream that may not go on comes back after so long.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Bytes said and heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Flow {
    /// Bytes that this node has sent.
    pub sent: u64,
    /// Bytes that it has received.
    pub received: u64,
}

/// All that went over the wire since the start, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Traffic {
    /// Requests and replies about the work.
    pub control: Flow,
    /// Hidden states of sessions.
    pub stage: Flow,
    /// Bytes of models.
    pub shard: Flow,
    /// Everything else: who is there, gossip, the swarm's table, and what is carried for others.
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

/// Counts, and holds the ceiling. One for all connections of a network.
#[derive(Debug)]
pub(super) struct Meter {
    all: Counter,
    channels: [Counter; Channel::ALL.len()],
    bucket: Option<Mutex<Bucket>>,
}

impl Meter {
    /// With a ceiling in bytes a second, both ways together, where there is one.
    pub fn new(ceiling: Option<NonZeroU64>) -> Self {
        let bucket = ceiling.map(|rate| Mutex::new(Bucket::new(rate, Instant::now())));
        Self { all: Counter::default(), channels: Default::default(), bucket }
    }

    /// What has passed so far.
    pub fn traffic(&self) -> Traffic {
        let [control, stage, shard] = [0, 1, 2].map(|channel: usize| self.channels[channel].flow());
        let all = self.all.flow();
        let rest = |of: fn(Flow) -> u64| of(all).saturating_sub(of(control) + of(stage) + of(shard));
        let other = Flow { sent: rest(|flow| flow.sent), received: rest(|flow| flow.received) };
        Traffic { control, stage, shard, other }
    }

    /// Bytes of one of our channels.
    pub fn sent(&self, channel: Channel, bytes: usize) {
        self.channels[channel as usize].sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The same the other way.
    pub fn received(&self, channel: Channel, bytes: usize) {
        self.channels[channel as usize].received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How many of `wanted` bytes may pass now; 0 where it must wait.
    fn take(&self, wanted: usize) -> usize {
        let Some(bucket) = &self.bucket else { return wanted };
        bucket.lock().unwrap_or_else(PoisonError::into_inner).take(wanted, Instant::now())
    }

    /// Bytes that were taken and did not pass.
    fn give_back(&self, bytes: usize) {
        if let Some(bucket) = &self.bucket {
            bucket.lock().unwrap_or_else(PoisonError::into_inner).room += bytes as i64;
        }
    }
}

/// Room for bytes, which grows with time.
#[derive(Debug)]
struct Bucket {
    rate: u64,
    burst: i64,
    /// Bytes that may pass; less than none where small messages have borrowed.
    room: i64,
    filled: Instant,
}

impl Bucket {
    fn new(rate: NonZeroU64, now: Instant) -> Self {
        let burst = i64::try_from((rate.get() / 4).max(LEAST_BURST)).unwrap_or(i64::MAX);
        Self { rate: rate.get(), burst, room: burst, filled: now }
    }

    fn take(&mut self, wanted: usize, now: Instant) -> usize {
        let grown = now.duration_since(self.filled).as_micros().saturating_mul(u128::from(self.rate)) / 1_000_000;
        // What is less than a byte is left to grow.
        if grown > 0 {
            self.room = self.room.saturating_add(i64::try_from(grown).unwrap_or(i64::MAX)).min(self.burst);
            self.filled = now;
        }
        let small = wanted <= SMALL && self.room > -self.burst;
        let granted = if small { wanted } else { wanted.min(usize::try_from(self.room).unwrap_or(0)) };
        self.room -= granted as i64;
        granted
    }
}

/// A connection whose streams are counted.
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

/// One stream of such a connection.
pub(super) struct MeteredStream {
    inner: SubstreamBox,
    meter: Arc<Meter>,
    /// The time until it may go on.
    wait: Option<Pin<Box<Sleep>>>,
}

impl MeteredStream {
    /// How many of `wanted` bytes may pass, once any may.
    fn poll_take(&mut self, wanted: usize, context: &mut Context<'_>) -> Poll<usize> {
        loop {
            if let Some(wait) = &mut self.wait {
                ready!(wait.as_mut().poll(context));
                self.wait = None;
            }
            match self.meter.take(wanted) {
                0 if wanted > 0 => self.wait = Some(Box::pin(tokio::time::sleep(LOOK_AGAIN))),
                granted => return Poll::Ready(granted),
            }
        }
    }

    /// Gives back what did not pass of what was taken.
    fn settle(&self, taken: usize, passed: &Poll<io::Result<usize>>, count: &AtomicU64) {
        let passed = if let Poll::Ready(Ok(passed)) = passed { *passed } else { 0 };
        self.meter.give_back(taken.saturating_sub(passed));
        count.fetch_add(passed as u64, Ordering::Relaxed);
    }
}

impl AsyncRead for MeteredStream {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let taken = ready!(self.poll_take(buffer.len(), context));
        let read = Pin::new(&mut self.inner).poll_read(context, &mut buffer[..taken]);
        self.settle(taken, &read, &self.meter.all.received);
        read
    }
}

impl AsyncWrite for MeteredStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let taken = ready!(self.poll_take(buffer.len(), context));
        let written = Pin::new(&mut self.inner).poll_write(context, &buffer[..taken]);
        self.settle(taken, &written, &self.meter.all.sent);
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

    fn bucket(now: Instant) -> Bucket {
        Bucket::new(NonZeroU64::new(RATE).unwrap(), now)
    }

    #[test]
    fn bulk_gets_what_the_ceiling_gives_and_no_more() {
        let begun = Instant::now();
        let (mut bucket, mut passed) = (bucket(begun), 0);
        for millisecond in 0..10_000 {
            passed += bucket.take(64 * 1024, begun + Duration::from_millis(millisecond)) as u64;
        }
        let ceiling = 10 * RATE + RATE / 4;
        assert!(passed <= ceiling && passed > ceiling - RATE / 50, "{passed} of {ceiling}");
    }

    #[test]
    fn a_small_message_goes_before_bulk_but_not_without_end() {
        let now = Instant::now();
        let mut bucket = bucket(now);
        assert!(bucket.take(usize::MAX, now) > 0);
        assert_eq!(bucket.take(64 * 1024, now), 0);
        let passed: usize = (0..10_000).map(|_| bucket.take(100, now)).sum();
        assert!(passed > 0 && passed as u64 <= RATE / 4 + 100, "{passed}");
        assert_eq!(bucket.take(100, now), 0);
    }

    #[test]
    fn without_a_ceiling_all_passes() {
        let meter = Meter::new(None);
        assert_eq!(meter.take(usize::MAX), usize::MAX);
    }
}
