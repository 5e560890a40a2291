//! The client's side of control: one request, one reply, over a stream of its own.

use std::time::Duration;

use crate::base::{ErrorKind, Fault, NodeId};
use crate::net::{Channel, NetHandle, Stream};
use crate::wire::control::{MAX_CONTROL_BYTES, Reply, Request};
use crate::wire::frame::{FrameLimits, read_frame, write_frame};

/// Bounds of a control frame; it has no body.
const LIMITS: FrameLimits = FrameLimits { header: MAX_CONTROL_BYTES, body: 0 };

/// Asks a peer. `Refused` comes back as the error that it carries. A connection that brings no answer in time is doubted:
/// perhaps only it is of no use any more. Cancel-safe: dropping it resets the stream.
pub async fn request(net: &NetHandle, peer: NodeId, request: &Request, deadline: Duration) -> Result<Reply, Fault> {
    let asked = tokio::time::timeout(deadline, exchange(net, peer, request)).await;
    let late = || {
        net.doubt(peer);
        Fault::new(ErrorKind::Timeout, format!("peer {} did not answer within {deadline:?}", peer.short()))
    };
    match asked.unwrap_or_else(|_| Err(late()))? {
        Reply::Refused(fault) => Err(Fault::new(fault.kind(), format!("peer {}: {fault}", peer.short()))),
        reply => Ok(reply),
    }
}

async fn exchange(net: &NetHandle, peer: NodeId, request: &Request) -> Result<Reply, Fault> {
    let mut stream = net.open(peer, Channel::Control).await.map_err(|error| Fault::new(error.kind(), error))?;
    let broken = |error: crate::wire::WireError| {
        Fault::new(ErrorKind::PeerLost, format!("the control stream to peer {} broke: {error}", peer.short()))
    };
    write_frame(&mut stream, request, &[], LIMITS).await.map_err(broken)?;
    let frame = read_frame::<_, Reply>(&mut stream, LIMITS).await.map_err(broken)?;
    let silent = || Fault::new(ErrorKind::PeerLost, format!("peer {} closed without an answer", peer.short()));
    Ok(frame.ok_or_else(silent)?.header)
}

/// Reads the request of an inbound control stream.
pub async fn read_request(stream: &mut Stream) -> Result<Option<Request>, crate::wire::WireError> {
    Ok(read_frame::<_, Request>(stream, LIMITS).await?.map(|frame| frame.header))
}

/// Answers it.
pub async fn write_reply(stream: &mut Stream, reply: &Reply) -> Result<(), crate::wire::WireError> {
    write_frame(stream, reply, &[], LIMITS).await
}

/// The error for a reply of the wrong kind.
pub fn unexpected(peer: NodeId) -> Fault {
    Fault::new(ErrorKind::BadFrame, format!("peer {} answered something else than was asked", peer.short()))
}
