//! One stage stream: the writer sends frames, the reader acknowledges them.
//!
//! A line may be cut, or a connection may hang in the operating system's retransmission backoff, while both ends still
//! report a connection. So the reader sends its count of frames every [`ACK_INTERVAL`]. A writer without an
//! acknowledgement in time suspects the connection, and at last treats the stream as broken. Acknowledgements wait for
//! no computation, and no frame waits for an acknowledgement.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use crate::net::Stream;
use crate::pipeline::link::outgoing::QueuedFrame;
use crate::wire::WireError;
use crate::wire::frame::{
    Frame, FrameHead, FrameLimits, FrameStart, encode_head, read_body, read_frame_start, read_head, skip_body,
};
use crate::wire::job::{MAX_BODY_BYTES, MAX_HEADER_BYTES, StageHeader};

/// Messages that are taken out of a link's queue at once.
const BATCH: usize = 16;
/// Bounds of a stage frame.
const LIMITS: FrameLimits = FrameLimits { header: MAX_HEADER_BYTES, body: MAX_BODY_BYTES };
/// Time for a peer to take one write, of a frame at most. A slower peer is gone.
pub(super) const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// Time for the first frame: a peer opens a stream because it has a frame to send.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// Time for the header of a frame that has begun: as long as its sender has, since a line may be cut for a while. Its
/// body has the same time, and the time of its bytes on a slow line.
const HEADER_DEADLINE: Duration = WRITE_DEADLINE;
/// Time to find memory for a frame: as long as its sender waits for this node to take it.
const MEMORY_DEADLINE: Duration = WRITE_DEADLINE;
/// Frames within this interval are acknowledged together.
const ACK_INTERVAL: Duration = Duration::from_millis(200);
/// Time for an acknowledgement, beside the time of the bytes on a slow line. A later acknowledgement makes the
/// connection suspect; the suspicion is repeated at this interval.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const SLOW_BYTES_PER_SECOND: u64 = 100 * 1024;
/// Time for a process that may have been frozen to read what came meanwhile.
const RECHECK: Duration = Duration::from_millis(500);
/// Time for an acknowledgement, beside round trips, once a coordinator has reported a late answer.
const LATE_ANSWER_ACK_TIMEOUT: Duration = ACK_INTERVAL.saturating_mul(2);
/// Time from the first suspicion until the stream is given up: a frozen machine or a cut line may be back before.
const GIVE_UP_AFTER: Duration = Duration::from_secs(20);
/// Longest wait before the first suspicion.
const MAX_ACK_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of an acknowledgement: the count of frames read so far, little-endian, modulo 2^32.
const ACK_BYTES: usize = 4;

/// The link's sources of evidence and its reaction to a late acknowledgement.
pub struct LinkMonitor<F, G> {
    /// Notified when a session's answer over this link is late.
    pub answer_late: Arc<Notify>,
    /// The current round-trip time to the peer.
    pub rtt: F,
    /// Called when the connection is suspect.
    pub suspect: G,
}

/// Writes a link's messages until all senders of its queue are gone. Closes the queue and fails when the stream ends or
/// its reader is silent for too long.
pub(super) async fn write(
    stream: Stream,
    mut queue: mpsc::Receiver<QueuedFrame>,
    monitor: LinkMonitor<impl Fn() -> Duration, impl Fn()>,
) -> Result<(), WireError> {
    let LinkMonitor { answer_late, rtt, suspect } = monitor;
    let (mut acks, mut stream) = stream.split();
    let (mut queued, mut unacked, mut part) = (Vec::new(), UnackedFrames::default(), Vec::with_capacity(ACK_BYTES));
    let mut bytes = [0; 64];
    loop {
        let overdue = async {
            match unacked.deadline() {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            taken = queue.recv_many(&mut queued, BATCH) => {
                if taken == 0 {
                    return Ok(());
                }
                // The memory is freed when all frames are written.
                let mut memories = Vec::with_capacity(taken);
                let frames = queued.drain(..).map(|QueuedFrame { message, memory }| {
                    memories.push(memory);
                    message.encode()
                });
                let sent = write_frames(&mut stream, frames).await?;
                unacked.sent(taken as u32, sent, Instant::now());
            }
            read = acks.read(&mut bytes) => match read? {
                0 => return Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
                read => {
                    part.extend_from_slice(&bytes[..read]);
                    take_acks(&mut part, &mut unacked)?;
                }
            },
            () = answer_late.notified() => if unacked.is_late(Instant::now(), rtt()) {
                suspect();
            },
            () = overdue => match unacked.deadline_passed(Instant::now()) {
                LateAck::Recheck => {}
                LateAck::Suspect => suspect(),
                LateAck::GiveUp => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            },
        }
    }
}

/// Takes whole acknowledgements out of the bytes that were read.
fn take_acks(read: &mut Vec<u8>, unacked: &mut UnackedFrames) -> Result<(), WireError> {
    let whole = read.len() / ACK_BYTES * ACK_BYTES;
    for ack in read.drain(..whole).collect::<Vec<_>>().chunks_exact(ACK_BYTES) {
        let count = u32::from_le_bytes(ack.try_into().unwrap_or_default());
        if !unacked.acknowledge(count) {
            return Err(WireError::Body(format!("{count} frames are acknowledged, which is more than were sent")));
        }
    }
    Ok(())
}

/// The reaction to a late acknowledgement.
#[derive(Debug, PartialEq, Eq)]
enum LateAck {
    Recheck,
    Suspect,
    GiveUp,
}

/// Frames that were written and are not acknowledged.
#[derive(Debug, Default)]
struct UnackedFrames {
    /// Batches in the order of their writing: the count up to the last frame, modulo 2^32, and the acknowledgement's
    /// deadline.
    pending: VecDeque<(u32, Instant)>,
    /// Frames written, and acknowledged, modulo 2^32.
    sent: u32,
    acked: u32,
    /// Since when the connection is suspect, and when that is checked next.
    suspect: Option<(Instant, Instant)>,
}

impl UnackedFrames {
    /// Notes `frames` written frames of `bytes` bytes together. The wait for a batch begins when the wait for the batch
    /// before it may end.
    fn sent(&mut self, frames: u32, bytes: usize, now: Instant) {
        let slow = Duration::from_millis(bytes as u64 * 1000 / SLOW_BYTES_PER_SECOND);
        let begin = self.pending.back().map_or(now, |(_, deadline)| (*deadline - ACK_TIMEOUT).max(now));
        let deadline = (begin + ACK_TIMEOUT + slow).min(now + MAX_ACK_TIMEOUT);
        self.sent = self.sent.wrapping_add(frames);
        self.pending.push_back((self.sent, deadline));
    }

    /// Notes an acknowledgement of the first `count` frames. False where fewer were sent.
    fn acknowledge(&mut self, count: u32) -> bool {
        if count.wrapping_sub(self.acked) > self.sent.wrapping_sub(self.acked) {
            return false;
        }
        let before = std::mem::replace(&mut self.acked, count);
        if count != before {
            self.suspect = None;
        }
        self.pending.retain(|(last, _)| last.wrapping_sub(before) > count.wrapping_sub(before));
        true
    }

    fn deadline(&self) -> Option<Instant> {
        let (_, deadline) = self.pending.front()?;
        Some(self.suspect.map_or(*deadline, |(_, check)| check.max(*deadline)))
    }

    /// Whether a frame is unacknowledged for longer than a healthy connection of this round-trip time takes.
    fn is_late(&self, now: Instant, rtt: Duration) -> bool {
        let sent = self.pending.front().and_then(|(_, deadline)| deadline.checked_sub(ACK_TIMEOUT));
        sent.is_some_and(|sent| now >= sent + LATE_ANSWER_ACK_TIMEOUT + rtt * 2)
    }

    /// Decides what follows from a passed deadline. The first time is no reason for suspicion: if this process itself
    /// was frozen, its clock has gone on, and it has yet to read the acknowledgements that came meanwhile.
    fn deadline_passed(&mut self, now: Instant) -> LateAck {
        let Some((since, _)) = self.suspect else {
            self.suspect = Some((now, now + RECHECK));
            return LateAck::Recheck;
        };
        self.suspect = Some((since, now + ACK_TIMEOUT));
        if now.duration_since(since) < GIVE_UP_AFTER { LateAck::Suspect } else { LateAck::GiveUp }
    }
}

/// Writes frames and returns their bytes. Short frames go out together, so that the tokens of a step cost one packet.
async fn write_frames(
    stream: &mut WriteHalf<Stream>,
    frames: impl Iterator<Item = (StageHeader, Vec<u8>)>,
) -> Result<usize, WireError> {
    /// Bytes that are buffered for one write.
    const ONE_WRITE: usize = 64 * 1024;
    let (mut bytes, mut sent) = (Vec::new(), 0);
    for (header, body) in frames {
        let head = encode_head(&header, body.len(), LIMITS)?;
        sent += head.len() + body.len();
        bytes.extend_from_slice(&head);
        if bytes.len() + body.len() <= ONE_WRITE {
            bytes.extend_from_slice(&body);
            continue;
        }
        write_all(stream, &bytes).await?;
        write_all(stream, &body).await?;
        bytes.clear();
    }
    write_all(stream, &bytes).await?;
    Ok(sent)
}

/// Writes and flushes bytes within [`WRITE_DEADLINE`].
async fn write_all(stream: &mut WriteHalf<Stream>, bytes: &[u8]) -> Result<(), WireError> {
    let written = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    let written = tokio::time::timeout(WRITE_DEADLINE, written).await;
    Ok(written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
}

/// Handles the frames of a peer's stream.
pub trait FrameHandler {
    /// Memory for a body.
    type Memory;
    /// Whether to read the body of a frame, of `body` bytes; it is skipped otherwise.
    fn admits(&self, header: &StageHeader, body: usize) -> bool;
    /// Waits for memory for the body; `None` where the body is to be skipped after all.
    fn reserve(&self, header: &StageHeader, body: usize) -> impl Future<Output = Option<Self::Memory>>;
    /// Handles a frame, with the memory of its body.
    fn handle(&self, frame: Frame<StageHeader>, memory: Self::Memory);
}

/// Passes the frames of an inbound stream to the handler, and acknowledges them, until the stream ends or breaks the
/// protocol. After its first frame a peer may be idle between frames for any time; a frame that has begun has a
/// deadline.
pub async fn read(stream: Stream, handler: impl FrameHandler) -> Result<(), WireError> {
    let (mut stream, acks) = stream.split();
    let (frames_read, more) = (AtomicU32::new(0), Notify::new());
    let frames = async {
        let mut first = true;
        loop {
            let begun = match first {
                true => in_time(FIRST_FRAME, read_frame_start(&mut stream)).await?,
                false => read_frame_start(&mut stream).await?,
            };
            let Some(begun) = begun else { return Ok(()) };
            first = false;
            read_one(&mut stream, begun, &handler).await?;
            frames_read.fetch_add(1, Ordering::Relaxed);
            more.notify_one();
        }
    };
    tokio::select! {
        ended = frames => ended,
        ended = acknowledge(acks, &frames_read, &more) => ended,
    }
}

/// Reads a frame that has begun, or skips its body.
async fn read_one(
    stream: &mut ReadHalf<Stream>,
    begun: FrameStart,
    handler: &impl FrameHandler,
) -> Result<(), WireError> {
    let FrameHead { header, body: len } = in_time(HEADER_DEADLINE, read_head(stream, begun, LIMITS)).await?;
    let deadline = HEADER_DEADLINE + Duration::from_millis(len as u64 * 1000 / SLOW_BYTES_PER_SECOND);
    if !handler.admits(&header, len) {
        return in_time(deadline, skip_body(stream, len)).await;
    }
    let memory = tokio::time::timeout(MEMORY_DEADLINE, handler.reserve(&header, len)).await;
    let Some(memory) = memory.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? else {
        return in_time(deadline, skip_body(stream, len)).await;
    };
    let body = in_time(deadline, read_body(stream, len)).await?;
    handler.handle(Frame { header, body }, memory);
    Ok(())
}

async fn in_time<T>(deadline: Duration, work: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    let done = tokio::time::timeout(deadline, work).await;
    done.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

async fn acknowledge(mut stream: WriteHalf<Stream>, frames_read: &AtomicU32, more: &Notify) -> Result<(), WireError> {
    loop {
        more.notified().await;
        tokio::time::sleep(ACK_INTERVAL).await;
        write_all(&mut stream, &frames_read.load(Ordering::Relaxed).to_le_bytes()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_longer_to_be_acknowledged_on_a_slow_line() {
        let (mut unacked, now) = (UnackedFrames::default(), Instant::now());
        assert_eq!(unacked.deadline(), None);
        unacked.sent(1, 2_304, now);
        assert!(unacked.deadline().is_some_and(|deadline| deadline - now < ACK_TIMEOUT + Duration::from_millis(50)));
        unacked.sent(2, 500 * 1024, now);
        assert!(unacked.acknowledge(1));
        assert!(unacked.deadline().is_some_and(|deadline| deadline - now >= ACK_TIMEOUT + Duration::from_secs(5)));
        unacked.sent(1, 1 << 30, now);
        assert!(unacked.acknowledge(3));
        assert_eq!(unacked.deadline(), Some(now + MAX_ACK_TIMEOUT));
        assert!(unacked.acknowledge(4) && unacked.deadline().is_none());
        assert!(!unacked.acknowledge(5), "more frames than were sent");
        assert!(!unacked.acknowledge(3), "fewer frames than before");
    }

    #[test]
    fn a_connection_is_suspect_for_a_while_before_it_is_given_up() {
        let (mut unacked, now) = (UnackedFrames::default(), Instant::now());
        unacked.sent(1, 10, now);
        let late = now + ACK_TIMEOUT;
        assert_eq!(unacked.deadline_passed(late), LateAck::Recheck);
        assert_eq!(unacked.deadline(), Some(late + RECHECK), "one recheck comes first");
        assert_eq!(unacked.deadline_passed(late + RECHECK), LateAck::Suspect);
        assert_eq!(unacked.deadline(), Some(late + RECHECK + ACK_TIMEOUT), "the suspicion is repeated");
        assert_eq!(unacked.deadline_passed(late + GIVE_UP_AFTER - ACK_TIMEOUT), LateAck::Suspect);
        assert_eq!(unacked.deadline_passed(late + GIVE_UP_AFTER), LateAck::GiveUp);
        unacked.sent(1, 10, late);
        assert!(unacked.acknowledge(1));
        assert_eq!(
            unacked.deadline_passed(late + GIVE_UP_AFTER),
            LateAck::Recheck,
            "an acknowledgement clears the suspicion"
        );
    }

    #[test]
    fn a_late_answer_shortens_the_wait_but_not_below_the_round_trips() {
        let (mut unacked, now, rtt) = (UnackedFrames::default(), Instant::now(), Duration::from_millis(150));
        assert!(!unacked.is_late(now + MAX_ACK_TIMEOUT, rtt), "no frame is unacknowledged");
        unacked.sent(1, 0, now);
        assert!(!unacked.is_late(now + LATE_ANSWER_ACK_TIMEOUT + rtt, rtt));
        assert!(unacked.is_late(now + LATE_ANSWER_ACK_TIMEOUT + rtt * 2, rtt));
        unacked.sent(1, 10, now + ACK_INTERVAL);
        assert!(unacked.acknowledge(1));
        assert!(!unacked.is_late(now + LATE_ANSWER_ACK_TIMEOUT, Duration::ZERO), "the second frame was sent later");
    }

    #[test]
    fn frame_counts_may_wrap() {
        let mut unacked = UnackedFrames { sent: u32::MAX, acked: u32::MAX, ..UnackedFrames::default() };
        unacked.sent(3, 10, Instant::now());
        assert!(unacked.acknowledge(1) && unacked.deadline().is_some());
        assert!(unacked.acknowledge(2) && unacked.deadline().is_none());
    }

    #[test]
    fn an_acknowledgement_may_arrive_in_pieces() {
        let (mut unacked, mut read) = (UnackedFrames::default(), vec![2, 0]);
        unacked.sent(2, 10, Instant::now());
        take_acks(&mut read, &mut unacked).unwrap();
        assert!(unacked.deadline().is_some());
        read.extend([0, 0, 2]);
        take_acks(&mut read, &mut unacked).unwrap();
        assert!(unacked.deadline().is_none() && read == [2]);
        assert!(take_acks(&mut vec![9, 0, 0, 0], &mut unacked).is_err());
    }
}
