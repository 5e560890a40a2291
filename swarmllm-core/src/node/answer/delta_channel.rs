//! The channel of an answer's deltas. Its buffer is bounded and decouples computation from the reader.
//!
//! An answer of usual length is buffered whole, so its session ends and frees its slots even if nobody reads. At the limit
//! the session pauses; an answer that stays unread there is aborted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::base::{ErrorKind, Fault};
use crate::node::api::error::GenerateError;
use crate::node::api::report::{Delta, Likelihood};

/// Buffer limit of an answer in bytes, log-probabilities included. A token takes about 40 bytes: 26,000 tokens, or 25
/// answers of the usual 1,024. With 20 alternatives a token takes about 2 KiB: 500 tokens.
const MAX_UNREAD: usize = 1 << 20;
/// Time without a read after which an answer at the limit is aborted.
const UNREAD_DEADLINE: Duration = Duration::from_secs(60);
/// Total time that an answer may be at the limit: a slow reader cannot hold a slot forever.
const MAX_PAUSED: Duration = Duration::from_secs(10 * 60);

type Item = Result<Delta, GenerateError>;

/// A channel for one answer.
pub(crate) fn channel() -> (DeltaSender, DeltaReader) {
    channel_within(UNREAD_DEADLINE, MAX_PAUSED)
}

fn channel_within(deadline: Duration, paused: Duration) -> (DeltaSender, DeltaReader) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let state = State { bytes: 0, last_read: Instant::now(), full_since: None, pause_left: paused };
    let buffer = Arc::new(UnreadBuffer { state: Mutex::new(state), read: Notify::new(), deadline });
    (DeltaSender { sender, buffer: buffer.clone() }, DeltaReader { receiver, buffer })
}

/// State of the buffer.
struct State {
    bytes: usize,
    /// Last time that the reader took an item or the buffer was empty.
    last_read: Instant,
    /// Since when the buffer is at the limit.
    full_since: Option<Instant>,
    /// Remaining time at the limit.
    pause_left: Duration,
}

impl State {
    fn resize(&mut self, bytes: usize, now: Instant) {
        self.bytes = bytes;
        match (bytes >= MAX_UNREAD, self.full_since) {
            (true, None) => self.full_since = Some(now),
            (false, Some(since)) => {
                self.pause_left = self.pause_left.saturating_sub(now - since);
                self.full_since = None;
            }
            _ => {}
        }
    }
}

struct UnreadBuffer {
    state: Mutex<State>,
    read: Notify,
    deadline: Duration,
}

impl UnreadBuffer {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic cannot leave these counters inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sending end.
pub(crate) struct DeltaSender {
    sender: mpsc::UnboundedSender<Item>,
    buffer: Arc<UnreadBuffer>,
}

impl DeltaSender {
    /// Buffers an item; false if the reader is gone. The sender checks [`has_room`](Self::has_room) before the next token.
    pub fn send(&self, item: Item) -> bool {
        let size = size_of_item(&item);
        {
            let mut state = self.buffer.state();
            let now = Instant::now();
            if state.bytes == 0 {
                state.last_read = now;
            }
            let bytes = state.bytes + size;
            state.resize(bytes, now);
        }
        self.sender.send(item).is_ok()
    }

    /// Whether the buffer is below the limit.
    pub fn has_room(&self) -> bool {
        self.buffer.state().bytes < MAX_UNREAD
    }

    /// Waits until the buffer is below the limit; fails if the reader is too slow. Cancel-safe.
    pub async fn room(&self) -> Result<(), Fault> {
        loop {
            let read = self.buffer.read.notified();
            let until = {
                let state = self.buffer.state();
                let Some(full) = state.full_since.filter(|_| !self.sender.is_closed()) else { return Ok(()) };
                (state.last_read + self.buffer.deadline).min(full + state.pause_left)
            };
            if tokio::time::timeout_at(until, read).await.is_err() {
                let text = "the answer was left unread for too long; read it as it comes";
                return Err(Fault::new(ErrorKind::Timeout, text));
            }
        }
    }
}

/// Receiving end.
pub(crate) struct DeltaReader {
    receiver: mpsc::UnboundedReceiver<Item>,
    buffer: Arc<UnreadBuffer>,
}

impl DeltaReader {
    /// The next item; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<Item> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let polled = self.receiver.poll_recv(context);
        if let Poll::Ready(Some(item)) = &polled {
            let mut state = self.buffer.state();
            let (bytes, now) = (state.bytes.saturating_sub(size_of_item(item)), Instant::now());
            state.last_read = now;
            state.resize(bytes, now);
            drop(state);
            self.buffer.read.notify_one();
        }
        polled
    }
}

impl Drop for DeltaReader {
    fn drop(&mut self) {
        self.receiver.close();
        self.buffer.read.notify_one();
    }
}

/// Approximate bytes of an item. `Done` counts only its frame: nothing is computed after it.
fn size_of_item(item: &Item) -> usize {
    let likelihood = |one: &Likelihood| size_of::<Likelihood>() + one.text.len() + one.bytes.len();
    let own = match item {
        Ok(Delta::Text(text)) => text.len(),
        Ok(Delta::Token(token)) => likelihood(&token.chosen) + token.alternatives.iter().map(likelihood).sum::<usize>(),
        Ok(Delta::Done(_)) | Err(_) => 0,
    };
    size_of::<Item>() + own
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(length: usize) -> Item {
        Ok(Delta::Text("x".repeat(length)))
    }

    #[tokio::test]
    async fn an_answer_of_usual_length_is_buffered_whole() {
        let (deltas, mut reader) = channel();
        for _ in 0..4096 {
            assert!(deltas.has_room());
            assert!(deltas.send(text(6)));
        }
        assert_eq!(deltas.room().await, Ok(()));
        assert_eq!(reader.next().await, Some(text(6)));
    }

    #[tokio::test]
    async fn reading_frees_the_buffer() {
        let (deltas, mut reader) = channel();
        assert!(deltas.send(text(8)) && deltas.send(text(MAX_UNREAD)));
        assert!(!deltas.has_room());
        let mut room = Box::pin(deltas.room());
        assert!(futures::poll!(&mut room).is_pending());
        assert_eq!(reader.next().await, Some(text(8)));
        assert!(futures::poll!(&mut room).is_pending(), "the buffer is still at the limit");
        assert_eq!(reader.next().await, Some(text(MAX_UNREAD)));
        assert_eq!(room.await, Ok(()));
    }

    #[tokio::test]
    async fn an_unread_answer_at_the_limit_is_aborted() {
        let (deltas, _reader) = channel_within(Duration::from_millis(1), MAX_PAUSED);
        assert!(deltas.send(text(MAX_UNREAD)));
        assert_eq!(deltas.room().await.map_err(|fault| fault.kind()), Err(ErrorKind::Timeout));
    }

    #[tokio::test]
    async fn a_slow_reader_cannot_hold_an_answer_forever() {
        let (deltas, mut reader) = channel_within(UNREAD_DEADLINE, Duration::from_millis(1));
        assert!(deltas.send(text(MAX_UNREAD)) && deltas.send(text(1)));
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(reader.next().await, Some(text(MAX_UNREAD)));
        assert_eq!(deltas.room().await, Ok(()), "the buffer is below the limit");
        assert_eq!(deltas.buffer.state().pause_left, Duration::ZERO, "the pause was counted");
        assert!(deltas.send(text(MAX_UNREAD)));
        assert_eq!(deltas.room().await.map_err(|fault| fault.kind()), Err(ErrorKind::Timeout));
    }

    #[tokio::test]
    async fn a_dropped_reader_ends_the_wait() {
        let (deltas, reader) = channel();
        assert!(deltas.send(text(MAX_UNREAD)));
        let mut room = Box::pin(deltas.room());
        assert!(futures::poll!(&mut room).is_pending());
        drop(reader);
        assert_eq!(room.await, Ok(()));
        assert!(!deltas.send(text(1)));
    }
}
