//! What of an answer its reader has not taken yet: bounded, and no reason for anybody to wait who computes.
//!
//! An answer of usual length is kept whole, so that its session ends and its slots are free whether somebody reads or
//! not. Behind the bound the session pauses, and an answer that is left unread there for long is given up.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::base::{ErrorKind, Fault};
use crate::node::api::error::GenerateError;
use crate::node::api::report::{Delta, Likelihood};

/// Bytes of an answer that are kept unread, its log-probabilities included, which are kept nowhere else. A token takes some 40: about 26,000 tokens, 25 answers of the usual 1,024. With
/// 20 alternatives to each it takes some 2 KiB: about 500 tokens.
const MAX_UNREAD: usize = 1 << 20;
/// Time after which an answer is given up of which nothing was read, beyond that.
const UNREAD_DEADLINE: Duration = Duration::from_secs(60);
/// Time that an answer may be behind the bound in all: a reader who takes a little now and then does not hold a slot for ever.
const MAX_PAUSED: Duration = Duration::from_secs(10 * 60);

type Item = Result<Delta, GenerateError>;

/// What is kept of an answer for its reader.
pub(crate) fn channel() -> (Deltas, DeltaReader) {
    channel_within(UNREAD_DEADLINE, MAX_PAUSED)
}

fn channel_within(deadline: Duration, paused: Duration) -> (Deltas, DeltaReader) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let state = State { bytes: 0, taken: Instant::now(), full: None, left: paused };
    let unread = Arc::new(Unread { state: Mutex::new(state), taken: Notify::new(), deadline });
    (Deltas { sender, unread: unread.clone() }, DeltaReader { receiver, unread })
}

/// What is unread.
struct State {
    bytes: usize,
    /// When something was taken, or nothing was left, last.
    taken: Instant,
    /// Since when it is behind the bound.
    full: Option<Instant>,
    /// How long it may still be so.
    left: Duration,
}

impl State {
    fn resize(&mut self, bytes: usize, now: Instant) {
        self.bytes = bytes;
        match (bytes >= MAX_UNREAD, self.full) {
            (true, None) => self.full = Some(now),
            (false, Some(since)) => {
                self.left = self.left.saturating_sub(now - since);
                self.full = None;
            }
            _ => {}
        }
    }
}

struct Unread {
    state: Mutex<State>,
    taken: Notify,
    deadline: Duration,
}

impl Unread {
    fn state(&self) -> MutexGuard<'_, State> {
        // Some numbers, which a panic cannot leave half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end that the answer goes in.
pub(crate) struct Deltas {
    sender: mpsc::UnboundedSender<Item>,
    unread: Arc<Unread>,
}

impl Deltas {
    /// Keeps an item for the reader; false where there is none any more. Whoever sends looks at [`has_room`](Self::has_room)
    /// before the next token.
    pub fn send(&self, item: Item) -> bool {
        let size = size_of_item(&item);
        {
            let mut state = self.unread.state();
            let now = Instant::now();
            if state.bytes == 0 {
                state.taken = now;
            }
            let bytes = state.bytes + size;
            state.resize(bytes, now);
        }
        self.sender.send(item).is_ok()
    }

    /// Whether more may be sent.
    pub fn has_room(&self) -> bool {
        self.unread.state().bytes < MAX_UNREAD
    }

    /// Waits until more may be sent; fails where nothing is read for long. Cancel-safe.
    pub async fn room(&self) -> Result<(), Fault> {
        loop {
            let taken = self.unread.taken.notified();
            let until = {
                let state = self.unread.state();
                let Some(full) = state.full.filter(|_| !self.sender.is_closed()) else { return Ok(()) };
                (state.taken + self.unread.deadline).min(full + state.left)
            };
            if tokio::time::timeout_at(until, taken).await.is_err() {
                let text = "the answer was left unread for too long; read it as it comes";
                return Err(Fault::new(ErrorKind::Timeout, text));
            }
        }
    }
}

/// The end that the answer is read from.
pub(crate) struct DeltaReader {
    receiver: mpsc::UnboundedReceiver<Item>,
    unread: Arc<Unread>,
}

impl DeltaReader {
    /// The next item; `None` behind the last. Cancel-safe.
    pub async fn next(&mut self) -> Option<Item> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Item>> {
        let polled = self.receiver.poll_recv(context);
        if let Poll::Ready(Some(item)) = &polled {
            let mut state = self.unread.state();
            let (bytes, now) = (state.bytes.saturating_sub(size_of_item(item)), Instant::now());
            state.taken = now;
            state.resize(bytes, now);
            drop(state);
            self.unread.taken.notify_one();
        }
        polled
    }
}

impl Drop for DeltaReader {
    fn drop(&mut self) {
        self.receiver.close();
        self.unread.taken.notify_one();
    }
}

/// About the bytes that an item takes. The end of an answer comes when no more is computed.
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
    async fn an_answer_of_usual_length_is_kept_whole_for_a_reader_who_reads_later() {
        let (deltas, mut reader) = channel();
        for _ in 0..4096 {
            assert!(deltas.has_room());
            assert!(deltas.send(text(6)));
        }
        assert_eq!(deltas.room().await, Ok(()));
        assert_eq!(reader.next().await, Some(text(6)));
    }

    #[tokio::test]
    async fn behind_the_bound_there_is_room_again_as_it_is_read() {
        let (deltas, mut reader) = channel();
        assert!(deltas.send(text(8)) && deltas.send(text(MAX_UNREAD)));
        assert!(!deltas.has_room());
        let mut room = Box::pin(deltas.room());
        assert!(futures::poll!(&mut room).is_pending());
        assert_eq!(reader.next().await, Some(text(8)));
        assert!(futures::poll!(&mut room).is_pending(), "there is still too much");
        assert_eq!(reader.next().await, Some(text(MAX_UNREAD)));
        assert_eq!(room.await, Ok(()));
    }

    #[tokio::test]
    async fn an_answer_that_stays_unread_behind_the_bound_is_given_up() {
        let (deltas, _reader) = channel_within(Duration::from_millis(1), MAX_PAUSED);
        assert!(deltas.send(text(MAX_UNREAD)));
        assert_eq!(deltas.room().await.map_err(|fault| fault.kind()), Err(ErrorKind::Timeout));
    }

    #[tokio::test]
    async fn a_reader_who_takes_a_little_now_and_then_does_not_hold_an_answer_for_ever() {
        let (deltas, mut reader) = channel_within(UNREAD_DEADLINE, Duration::from_millis(1));
        assert!(deltas.send(text(MAX_UNREAD)) && deltas.send(text(1)));
        tokio::time::sleep(Duration::from_millis(2)).await;
        assert_eq!(reader.next().await, Some(text(MAX_UNREAD)));
        assert_eq!(deltas.room().await, Ok(()), "there is room now");
        assert_eq!(deltas.unread.state().left, Duration::ZERO, "what it has paused counts");
        assert!(deltas.send(text(MAX_UNREAD)));
        assert_eq!(deltas.room().await.map_err(|fault| fault.kind()), Err(ErrorKind::Timeout));
    }

    #[tokio::test]
    async fn a_reader_that_is_gone_is_waited_for_no_more() {
        let (deltas, reader) = channel();
        assert!(deltas.send(text(MAX_UNREAD)));
        let mut room = Box::pin(deltas.room());
        assert!(futures::poll!(&mut room).is_pending());
        drop(reader);
        assert_eq!(room.await, Ok(()));
        assert!(!deltas.send(text(1)));
    }
}
