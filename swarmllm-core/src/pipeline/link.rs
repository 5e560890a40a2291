//! One stage stream: who writes sends frames, who reads acknowledges them.
//!
//! A line may be cut, or a connection hang in the system's ever longer waits before it tries again, while both ends stay
//! connected by all that anybody is told. So the reader says every [`ACK_EVERY`] how many frames it has had. A writer that
//! does not hear of a frame in time doubts the connection, and at last takes the stream for broken. Acknowledging waits for
//! no computation, and no message waits for it.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use futures::io::{ReadHalf, WriteHalf};
use futures::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};

use crate::net::Stream;
use crate::pipeline::outgoing::Outgoing;
use crate::wire::WireError;
use crate::wire::frame::{Begun, Frame, FrameLimits, Head, begin_frame, encode_head, read_body, read_head, skip_body};
use crate::wire::job::{MAX_BODY_BYTES, MAX_HEADER_BYTES, StageHeader};

/// Messages that are taken out of a link's queue at once.
const TOGETHER: usize = 16;
/// Bounds of a stage frame.
const LIMITS: FrameLimits = FrameLimits { header: MAX_HEADER_BYTES, body: MAX_BODY_BYTES };
/// A peer that does not take what is written at once, a frame at most, within this time is gone.
pub(super) const WRITE_DEADLINE: Duration = Duration::from_secs(30);
/// A peer opens a stream because it has a frame to send.
const FIRST_FRAME: Duration = Duration::from_secs(10);
/// Time for the header of a frame that has begun, as long as its sender has: a line may be cut for a while. Its body has as long,
/// and what its bytes take on a slow line.
const HEAD_DEADLINE: Duration = WRITE_DEADLINE;
/// Time that an inlet has for finding memory for a frame: as long as its sender waits for us to take it.
const ROOM_DEADLINE: Duration = WRITE_DEADLINE;
/// Frames that come within this time are acknowledged together.
const ACK_EVERY: Duration = Duration::from_millis(200);
/// After this time, and what the bytes take on a slow line, a connection that brings no acknowledgement is doubted, again and
/// again.
const ACK_WITHIN: Duration = Duration::from_secs(2);
const SLOW_BYTES_PER_SECOND: u64 = 100 * 1024;
/// After this time of its own a process that may have been frozen has read what came.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Where a coordinator says that an answer is late, what was sent so long ago, and the way there and back, is late here.
const ASKED_WITHIN: Duration = ACK_EVERY.saturating_mul(2);
/// Doubted for so long it is given up: a machine that was frozen, or a line that was cut, may be back before.
const GIVE_UP: Duration = Duration::from_secs(20);
/// Longest wait before the first doubt.
const ACK_LONGEST: Duration = Duration::from_secs(30);
/// Bytes of an acknowledgement: how many frames have come so far, little-endian, modulo 2^32.
const ACK: usize = 4;

/// What a link is told, and tells.
pub struct Watching<F, G> {
    /// A session's answer is late that goes over this link.
    pub asked: Arc<Notify>,
    /// The way to the peer and back.
    pub rtt: F,
    /// Called when the peer may be silent.
    pub doubt: G,
}

/// Writes a link's messages until nobody sends any more; closes its queue and fails when the stream ends or its reader is
/// silent for too long.
pub(super) async fn write(
    stream: Stream,
    mut queue: mpsc::Receiver<Outgoing>,
    watching: Watching<impl Fn() -> Duration, impl Fn()>,
) -> Result<(), WireError> {
    let Watching { asked, rtt, doubt } = watching;
    let (mut acks, mut stream) = stream.split();
    let (mut queued, mut owed, mut part) = (Vec::new(), Owed::default(), Vec::with_capacity(ACK));
    let mut bytes = [0; 64];
    loop {
        let overdue = async {
            match owed.deadline() {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            taken = queue.recv_many(&mut queued, TOGETHER) => {
                if taken == 0 {
                    return Ok(());
                }
                // Their memory is given back when all are written.
                let mut held = Vec::with_capacity(taken);
                let frames = queued.drain(..).map(|Outgoing { message, memory }| {
                    held.push(memory);
                    message.encode()
                });
                let sent = write_frames(&mut stream, frames).await?;
                owed.sent(taken as u32, sent, Instant::now());
            }
            read = acks.read(&mut bytes) => match read? {
                0 => return Err(io::Error::from(io::ErrorKind::BrokenPipe).into()),
                read => {
                    part.extend_from_slice(&bytes[..read]);
                    take_acks(&mut part, &mut owed)?;
                }
            },
            () = asked.notified() => if owed.is_late(Instant::now(), rtt()) {
                doubt();
            },
            () = overdue => match owed.overdue(Instant::now()) {
                Overdue::Wait => {}
                Overdue::Doubt => doubt(),
                Overdue::GiveUp => return Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            },
        }
    }
}

/// Takes whole acknowledgements out of what was read.
fn take_acks(read: &mut Vec<u8>, owed: &mut Owed) -> Result<(), WireError> {
    let whole = read.len() / ACK * ACK;
    for ack in read.drain(..whole).collect::<Vec<_>>().chunks_exact(ACK) {
        let had = u32::from_le_bytes(ack.try_into().unwrap_or_default());
        if !owed.heard(had) {
            return Err(WireError::Body(format!("{had} frames are acknowledged, which is more than were sent")));
        }
    }
    Ok(())
}

/// What follows when an acknowledgement is late.
#[derive(Debug, PartialEq, Eq)]
enum Overdue {
    Wait,
    Doubt,
    GiveUp,
}

/// Frames that were written and of which the reader has not said that it had them.
#[derive(Debug, Default)]
struct Owed {
    /// Counts up to which frame, modulo 2^32, and until when they are to be acknowledged.
    waiting: VecDeque<(u32, Instant)>,
    /// Frames written, and acknowledged.
    sent: u32,
    had: u32,
    /// Since when, and until when again, the connection is doubted.
    doubt: Option<(Instant, Instant)>,
}

impl Owed {
    /// So many frames of so many bytes together were written. Each wait begins when the one before it may end.
    fn sent(&mut self, frames: u32, bytes: usize, now: Instant) {
        let slow = Duration::from_millis(bytes as u64 * 1000 / SLOW_BYTES_PER_SECOND);
        let begun = self.waiting.back().map_or(now, |(_, deadline)| (*deadline - ACK_WITHIN).max(now));
        let deadline = (begun + ACK_WITHIN + slow).min(now + ACK_LONGEST);
        self.sent = self.sent.wrapping_add(frames);
        self.waiting.push_back((self.sent, deadline));
    }

    /// The reader has had so many. Whether they were sent at all.
    fn heard(&mut self, had: u32) -> bool {
        if had.wrapping_sub(self.had) > self.sent.wrapping_sub(self.had) {
            return false;
        }
        let before = std::mem::replace(&mut self.had, had);
        if had != before {
            self.doubt = None;
        }
        self.waiting.retain(|(upto, _)| upto.wrapping_sub(before) > had.wrapping_sub(before));
        true
    }

    fn deadline(&self) -> Option<Instant> {
        let (_, deadline) = self.waiting.front()?;
        Some(self.doubt.map_or(*deadline, |(_, again)| again.max(*deadline)))
    }

    /// Whether a frame is not acknowledged that would be, were all well on a way of this length.
    fn is_late(&self, now: Instant, rtt: Duration) -> bool {
        let sent = self.waiting.front().and_then(|(_, deadline)| deadline.checked_sub(ACK_WITHIN));
        sent.is_some_and(|sent| now >= sent + ASKED_WITHIN + rtt * 2)
    }

    /// The deadline has passed. A first time is no ground for doubt: where this process itself was frozen, its clock has
    /// gone on, and what came meanwhile is yet to be read.
    fn overdue(&mut self, now: Instant) -> Overdue {
        let Some((since, _)) = self.doubt else {
            self.doubt = Some((now, now + LOOK_AGAIN));
            return Overdue::Wait;
        };
        self.doubt = Some((since, now + ACK_WITHIN));
        if now.duration_since(since) < GIVE_UP { Overdue::Doubt } else { Overdue::GiveUp }
    }
}

/// Writes frames; gives the bytes. Short ones go out together, so that the tokens of a step cost one packet.
async fn write_frames(
    stream: &mut WriteHalf<Stream>,
    frames: impl Iterator<Item = (StageHeader, Vec<u8>)>,
) -> Result<usize, WireError> {
    /// Bytes that are gathered for one write.
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

/// Writes and flushes bytes, which a peer that is there takes within [`WRITE_DEADLINE`].
async fn write_all(stream: &mut WriteHalf<Stream>, bytes: &[u8]) -> Result<(), WireError> {
    let written = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    let written = tokio::time::timeout(WRITE_DEADLINE, written).await;
    Ok(written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
}

/// Where the frames of a peer's stream go.
pub trait Inlet {
    /// Memory for a body.
    type Room;
    /// Whether the body of a frame is wanted, which has so many bytes. Others are passed over.
    fn admits(&self, header: &StageHeader, body: usize) -> bool;
    /// Waits for the memory for it; nothing where it is wanted no more.
    fn room(&self, header: &StageHeader, body: usize) -> impl Future<Output = Option<Self::Room>>;
    /// Takes a frame, and the memory that it has.
    fn take(&self, frame: Frame<StageHeader>, room: Self::Room);
}

/// Gives the frames of an inbound stream to an inlet, and acknowledges them, until it ends or breaks the protocol. Between
/// frames the peer has all time, after it has sent one; a frame that has begun comes to its end.
pub async fn read(stream: Stream, inlet: impl Inlet) -> Result<(), WireError> {
    let (mut stream, acks) = stream.split();
    let (had, more) = (AtomicU32::new(0), Notify::new());
    let frames = async {
        let mut first = true;
        loop {
            let begun = match first {
                true => in_time(FIRST_FRAME, begin_frame(&mut stream)).await?,
                false => begin_frame(&mut stream).await?,
            };
            let Some(begun) = begun else { return Ok(()) };
            first = false;
            read_one(&mut stream, begun, &inlet).await?;
            had.fetch_add(1, Ordering::Relaxed);
            more.notify_one();
        }
    };
    tokio::select! {
        ended = frames => ended,
        ended = acknowledge(acks, &had, &more) => ended,
    }
}

/// Reads a frame that has begun, or passes over it.
async fn read_one(stream: &mut ReadHalf<Stream>, begun: Begun, inlet: &impl Inlet) -> Result<(), WireError> {
    let Head { header, body: len } = in_time(HEAD_DEADLINE, read_head(stream, begun, LIMITS)).await?;
    let deadline = HEAD_DEADLINE + Duration::from_millis(len as u64 * 1000 / SLOW_BYTES_PER_SECOND);
    if !inlet.admits(&header, len) {
        return in_time(deadline, skip_body(stream, len)).await;
    }
    let room = tokio::time::timeout(ROOM_DEADLINE, inlet.room(&header, len)).await;
    let Some(room) = room.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? else {
        return in_time(deadline, skip_body(stream, len)).await;
    };
    let body = in_time(deadline, read_body(stream, len)).await?;
    inlet.take(Frame { header, body }, room);
    Ok(())
}

async fn in_time<T>(deadline: Duration, work: impl Future<Output = Result<T, WireError>>) -> Result<T, WireError> {
    let done = tokio::time::timeout(deadline, work).await;
    done.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

async fn acknowledge(mut stream: WriteHalf<Stream>, had: &AtomicU32, more: &Notify) -> Result<(), WireError> {
    loop {
        more.notified().await;
        tokio::time::sleep(ACK_EVERY).await;
        write_all(&mut stream, &had.load(Ordering::Relaxed).to_le_bytes()).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_owed_until_it_is_acknowledged_and_longer_on_a_slow_line() {
        let (mut owed, now) = (Owed::default(), Instant::now());
        assert_eq!(owed.deadline(), None);
        owed.sent(1, 2_304, now);
        assert!(owed.deadline().is_some_and(|deadline| deadline - now < ACK_WITHIN + Duration::from_millis(50)));
        owed.sent(2, 500 * 1024, now);
        assert!(owed.heard(1));
        assert!(owed.deadline().is_some_and(|deadline| deadline - now >= ACK_WITHIN + Duration::from_secs(5)));
        owed.sent(1, 1 << 30, now);
        assert!(owed.heard(3));
        assert_eq!(owed.deadline(), Some(now + ACK_LONGEST));
        assert!(owed.heard(4) && owed.deadline().is_none());
        assert!(!owed.heard(5), "more than were sent");
        assert!(!owed.heard(3), "less than before");
    }

    #[test]
    fn a_connection_is_doubted_for_a_while_before_it_is_given_up() {
        let (mut owed, now) = (Owed::default(), Instant::now());
        owed.sent(1, 10, now);
        let late = now + ACK_WITHIN;
        assert_eq!(owed.overdue(late), Overdue::Wait);
        assert_eq!(owed.deadline(), Some(late + LOOK_AGAIN), "it is looked once more");
        assert_eq!(owed.overdue(late + LOOK_AGAIN), Overdue::Doubt);
        assert_eq!(owed.deadline(), Some(late + LOOK_AGAIN + ACK_WITHIN), "it is asked again");
        assert_eq!(owed.overdue(late + GIVE_UP - ACK_WITHIN), Overdue::Doubt);
        assert_eq!(owed.overdue(late + GIVE_UP), Overdue::GiveUp);
        owed.sent(1, 10, late);
        assert!(owed.heard(1));
        assert_eq!(owed.overdue(late + GIVE_UP), Overdue::Wait, "an acknowledgement begins anew");
    }

    #[test]
    fn who_is_told_that_an_answer_is_late_doubts_sooner_but_not_before_the_way_there_and_back() {
        let (mut owed, now, rtt) = (Owed::default(), Instant::now(), Duration::from_millis(150));
        assert!(!owed.is_late(now + ACK_LONGEST, rtt), "nothing is owed");
        owed.sent(1, 0, now);
        assert!(!owed.is_late(now + ASKED_WITHIN + rtt, rtt));
        assert!(owed.is_late(now + ASKED_WITHIN + rtt * 2, rtt));
        owed.sent(1, 10, now + ACK_EVERY);
        assert!(owed.heard(1));
        assert!(!owed.is_late(now + ASKED_WITHIN, Duration::ZERO), "the second was sent later");
    }

    #[test]
    fn counts_go_on_where_they_wrap() {
        let mut owed = Owed { sent: u32::MAX, had: u32::MAX, ..Owed::default() };
        owed.sent(3, 10, Instant::now());
        assert!(owed.heard(1) && owed.deadline().is_some());
        assert!(owed.heard(2) && owed.deadline().is_none());
    }

    #[test]
    fn acknowledgements_may_come_in_pieces() {
        let (mut owed, mut read) = (Owed::default(), vec![2, 0]);
        owed.sent(2, 10, Instant::now());
        take_acks(&mut read, &mut owed).unwrap();
        assert!(owed.deadline().is_some());
        read.extend([0, 0, 2]);
        take_acks(&mut read, &mut owed).unwrap();
        assert!(owed.deadline().is_none() && read == [2]);
        assert!(take_acks(&mut vec![9, 0, 0, 0], &mut owed).is_err());
    }
}
