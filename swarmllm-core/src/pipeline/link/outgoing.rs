//! The queue before a peer's stream: frames that wait to be written, bounded in number and in bytes.
//!
//! A frame takes bytes of a pool from before it is queued until it is written; each peer has a share of the pool. A
//! sender waits for its turn, for the bytes and for a place in the queue. So a slow reader delays the sessions whose
//! frames go to it, until its link gives up. The sessions that send to other peers go on, with one frame at a time at
//! least.

use std::sync::Arc;

use tokio::sync::{Mutex, mpsc};

use crate::base::NodeId;
use crate::pipeline::link::message::Message;
use crate::rt::{FairPool, PoolLimits, PoolPermit};

/// Messages that may wait for one peer's stream.
const LINK_QUEUE: usize = 64;

/// Bytes of frames that wait to be written to all peers, and to each. An honest session has 8 steps under way, of 512
/// rows of at most 16,384 numbers: `8 * 512 * 16,384 * 4` bytes are 256 MiB, so that it never waits for itself. Two
/// peers may have as much; the reserve is for peers without any. The longest frame takes 128 MiB.
const QUEUED_BYTES: PoolLimits = PoolLimits { total: 512 << 20, per_key: 256 << 20, reserve: 256 << 20 };

/// Memory for the frames to all peers. Clones are the same pool.
#[derive(Clone)]
pub(super) struct OutgoingFrames(FairPool<NodeId>);

/// A frame that waits to be written, and its memory, which is freed when this is dropped.
pub(in crate::pipeline) struct QueuedFrame {
    pub message: Message,
    pub memory: Option<PoolPermit<NodeId>>,
}

/// The sending half of a link's queue.
#[derive(Clone)]
pub(super) struct LinkQueue {
    to: NodeId,
    frames: OutgoingFrames,
    /// Keeps frames in the order of their senders, whatever their sizes.
    turn: Arc<Mutex<()>>,
    queue: mpsc::Sender<QueuedFrame>,
}

/// The link has ended.
#[derive(Debug)]
pub(super) struct LinkEnded;

impl OutgoingFrames {
    pub fn new() -> Self {
        Self::with_limits(QUEUED_BYTES)
    }

    pub fn with_limits(limits: PoolLimits) -> Self {
        Self(FairPool::new(limits))
    }

    /// A new queue for a link to a peer.
    pub fn queue(&self, to: NodeId) -> (LinkQueue, mpsc::Receiver<QueuedFrame>) {
        let (queue, receiver) = mpsc::channel(LINK_QUEUE);
        (LinkQueue { to, frames: self.clone(), turn: Arc::default(), queue }, receiver)
    }
}

impl LinkQueue {
    /// Whether the link has ended.
    pub fn is_closed(&self) -> bool {
        self.queue.is_closed()
    }

    /// Queues a frame, once there is space for it. Cancel-safe.
    pub async fn send(&self, message: Message) -> Result<(), LinkEnded> {
        let queued = async {
            let _turn = self.turn.lock().await;
            let memory = match message.bytes() {
                0 => None,
                bytes => Some(self.frames.0.wait(self.to, bytes).await),
            };
            self.queue.send(QueuedFrame { message, memory }).await.map_err(|_| LinkEnded)
        };
        tokio::select! {
            biased;
            queued = queued => queued,
            () = self.queue.closed() => Err(LinkEnded),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::base::SessionId;
    use crate::engine::StageConfig;
    use crate::engine::sample::LogitRow;
    use crate::pipeline::link::message::MAX_CHUNKS_IN_FLIGHT;
    use crate::wire::job::{LogitShape, LogitsHeader};

    /// Bytes of a frame.
    const FRAME: usize = 16;

    fn frame() -> Message {
        let shape = LogitShape::Full { vocab: 4 };
        let header =
            LogitsHeader { session: SessionId([1; 16]), epoch: 0, step: 0, rows: 1, shape, compute_us: Vec::new() };
        Message::Logits { header, rows: vec![LogitRow::Full(vec![0.0; FRAME / size_of::<f32>()])] }
    }

    /// Queues frames until one must wait; returns their number.
    fn fill(queue: &LinkQueue) -> usize {
        let sent = std::iter::repeat_with(|| queue.send(frame()).now_or_never()).map_while(|sent| sent);
        sent.take(LINK_QUEUE).map(Result::unwrap).count()
    }

    #[tokio::test]
    async fn frames_for_a_slow_peer_are_bounded_and_delay_no_other_peer() {
        let frames =
            OutgoingFrames::with_limits(PoolLimits { total: 5 * FRAME, per_key: 3 * FRAME, reserve: 2 * FRAME });
        let node = |name| NodeId([name; 32]);
        let ((slow, mut reads), (other, _unread)) = (frames.queue(node(1)), frames.queue(node(2)));
        assert_eq!((fill(&slow), fill(&other)), (3, 2), "a share, and the remainder of the pool");
        let (third, _third) = frames.queue(node(3));
        assert_eq!(fill(&third), 1, "a peer without any has the reserve");
        let mut waiting = Box::pin(slow.send(frame()));
        assert!(waiting.as_mut().now_or_never().is_none());
        let taken = reads.recv().await.unwrap();
        assert!(waiting.as_mut().now_or_never().is_none(), "a taken frame is not written yet");
        drop((taken, third, _third));
        waiting.await.unwrap();
    }

    #[test]
    fn a_window_of_an_honest_session_fits_in_a_peers_share() {
        const WIDEST: usize = 16_384;
        let window = MAX_CHUNKS_IN_FLIGHT * StageConfig::DEFAULT_MAX_ROWS as usize * WIDEST * size_of::<f32>();
        let PoolLimits { total, per_key, reserve } = QUEUED_BYTES;
        assert!(window <= per_key && per_key < total && window <= reserve && MAX_CHUNKS_IN_FLIGHT <= LINK_QUEUE);
        assert!(total + reserve <= 1 << 30, "a gibibyte for all peers together");
    }

    #[tokio::test]
    async fn a_wait_for_memory_ends_with_the_link() {
        let frames = OutgoingFrames::with_limits(PoolLimits { total: FRAME, per_key: FRAME, reserve: 0 });
        let ((full, _unread), (broken, reads)) = (frames.queue(NodeId([1; 32])), frames.queue(NodeId([2; 32])));
        assert_eq!(fill(&full), 1);
        let mut waiting = Box::pin(broken.send(frame()));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(reads);
        assert!(waiting.await.is_err() && broken.is_closed());
    }
}
