//! Requests between nodes: one request and one reply per control stream.

use std::time::{Duration, Instant};

use crate::base::{ErrorKind, Fault, NodeId};
use crate::net::{Channel, NetHandle, Stream};
use crate::wire::control::{MAX_REPLY_BYTES, MAX_REQUEST_BYTES, Reply, Request};
use crate::wire::frame::{FrameLimits, read_frame, write_frame};

/// Bounds of control frames, which have no body.
const REQUESTS: FrameLimits = FrameLimits { header: MAX_REQUEST_BYTES, body: 0 };
const REPLIES: FrameLimits = FrameLimits { header: MAX_REPLY_BYTES, body: 0 };
/// Time for retries to a busy peer, within the request's own deadline.
const BUSY_RETRIES: Duration = Duration::from_secs(5);
/// The shortest and the longest wait between two attempts, whatever the busy peer asks for.
const BUSY_WAIT: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Time in which a reachable host answers: its control streams wait for no computation.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// Sends a request to a peer and returns its reply. `Refused` becomes the error that it carries. A busy peer is retried
/// for some seconds, then the error is `Overloaded`. A connection without an answer in time is suspected: perhaps only
/// the connection has failed, not the peer. Cancel-safe: dropping the future resets the stream.
pub async fn request(net: &NetHandle, peer: NodeId, request: &Request, deadline: Duration) -> Result<Reply, Fault> {
    let until = Instant::now() + deadline.min(BUSY_RETRIES);
    let exchanged = tokio::time::timeout(deadline, exchange_while_busy(net, peer, request, until)).await;
    let late = || {
        net.suspect(peer);
        Fault::new(ErrorKind::Timeout, format!("peer {} did not answer within {deadline:?}", peer.short()))
    };
    match exchanged.unwrap_or_else(|_| Err(late()))? {
        Reply::Refused(fault) => Err(Fault::new(fault.kind(), format!("peer {}: {fault}", peer.short()))),
        reply => Ok(reply),
    }
}

async fn exchange_while_busy(net: &NetHandle, peer: NodeId, request: &Request, until: Instant) -> Result<Reply, Fault> {
    loop {
        let millis = match exchange(net, peer, request).await? {
            Reply::Busy { millis } => millis,
            reply => return Ok(reply),
        };
        let wait = Duration::from_millis(millis.into()).clamp(BUSY_WAIT.0, BUSY_WAIT.1);
        if Instant::now() + wait >= until {
            return Err(Fault::new(ErrorKind::Overloaded, format!("peer {} is busy; try again", peer.short())));
        }
        tokio::time::sleep(wait).await;
    }
}

async fn exchange(net: &NetHandle, peer: NodeId, request: &Request) -> Result<Reply, Fault> {
    let mut stream = net.open(peer, Channel::Control).await.map_err(|error| Fault::new(error.kind(), error))?;
    let broken = |error: crate::wire::WireError| {
        Fault::new(ErrorKind::PeerLost, format!("the control stream to peer {} broke: {error}", peer.short()))
    };
    write_frame(&mut stream, request, &[], REQUESTS).await.map_err(broken)?;
    let frame = read_frame::<_, Reply>(&mut stream, REPLIES).await.map_err(broken)?;
    let silent = || Fault::new(ErrorKind::PeerLost, format!("peer {} closed without an answer", peer.short()));
    Ok(frame.ok_or_else(silent)?.header)
}

/// Reads the request of an inbound control stream.
pub async fn read_request(stream: &mut Stream) -> Result<Option<Request>, crate::wire::WireError> {
    Ok(read_frame::<_, Request>(stream, REQUESTS).await?.map(|frame| frame.header))
}

/// Writes the reply of an inbound control stream.
pub async fn write_reply(stream: &mut Stream, reply: &Reply) -> Result<(), crate::wire::WireError> {
    write_frame(stream, reply, &[], REPLIES).await
}

/// The error for a reply of the wrong kind.
pub fn unexpected(peer: NodeId) -> Fault {
    Fault::new(ErrorKind::BadFrame, format!("peer {} sent a reply of the wrong kind", peer.short()))
}

/// Whether a fault means that a peer is out of reach, which may be temporary.
pub fn is_loss(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::PeerLost | ErrorKind::PeerUnreachable)
}
