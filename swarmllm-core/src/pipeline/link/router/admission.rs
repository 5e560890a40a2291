//! Admission of inbound frames: a peer's frame is read only for an open session, within what was agreed and within
//! memory.

use super::stages::DropReason;
use super::{FrameTarget, SessionRouter};
use crate::base::{ErrorKind, Fault, NodeId};
use crate::net::Stream;
use crate::pipeline::link::bodies::{BodyMemory, MemoryError};
use crate::pipeline::link::connection::{self, FrameHandler};
use crate::pipeline::link::message::{ANSWERING_STAGE, Message, SessionStage};
use crate::wire::frame::Frame;
use crate::wire::job::StageHeader;

impl SessionRouter {
    /// Reads one inbound stage stream until it ends or breaks the protocol.
    pub async fn read(&self, from: NodeId, stream: Stream) {
        if let Err(error) = connection::read(stream, PeerFrames { router: self, from }).await {
            tracing::debug!(peer = %from, %error, "a stage stream ended");
        }
    }
}

/// Handles the frames of one peer's stream.
pub(super) struct PeerFrames<'a> {
    pub router: &'a SessionRouter,
    pub from: NodeId,
}

impl PeerFrames<'_> {
    /// Whether the frame belongs to a session that is open here and to which the peer sends, within what was agreed;
    /// else the reason why the frame ends that session, where it does.
    pub fn check(&self, header: &StageHeader, body: usize) -> Result<bool, String> {
        let inner = &self.router.inner;
        match header {
            StageHeader::Step(step) => inner.stages.admits(target_of(header).stage(), self.from, step, body),
            StageHeader::Logits(logits) => inner.coordinated.admits_answer(self.from, logits, body),
            StageHeader::Failed { session, epoch, stage, .. } => {
                Ok(body == 0 && inner.coordinated.admits_failure(self.from, *session, *epoch, *stage))
            }
        }
    }

    /// Ends the session of a frame that is well-formed but wrong, and leaves the other sessions of the stream alone.
    fn refuse(&self, target: FrameTarget, reason: String) {
        tracing::debug!(peer = %self.from, reason, "a frame was refused");
        let fault = Fault::new(ErrorKind::BadFrame, format!("peer {} sent a bad frame: {reason}", self.from.short()));
        let SessionStage { session, epoch, stage } = target.stage();
        // The task of a stage passes the failure on to the coordinator.
        self.router.queue(target, (self.from, Message::Failed { session, epoch, stage, fault }), None);
    }
}

impl FrameHandler for PeerFrames<'_> {
    type Memory = BodyMemory;

    fn admits(&self, header: &StageHeader, body: usize) -> bool {
        self.check(header, body).unwrap_or_else(|reason| {
            self.refuse(target_of(header), reason);
            false
        })
    }

    async fn reserve(&self, header: &StageHeader, body: usize) -> Option<BodyMemory> {
        let (inner, target) = (&self.router.inner, target_of(header));
        let (owner, share, bytes, longest) = match header {
            StageHeader::Step(step) => inner.stages.body_need(target.stage(), step)?,
            StageHeader::Logits(_) | StageHeader::Failed { .. } => {
                inner.coordinated.body_need(target.stage().session, self.from, body)?
            }
        };
        match inner.bodies.wait(owner, share, bytes, longest).await {
            Ok(memory) => return Some(memory),
            Err(MemoryError::SessionEnded) => {}
            Err(MemoryError::WindowExceeded) => self.router.drop_session(target, DropReason::WindowExceeded),
            Err(MemoryError::TimedOut) => self.router.drop_session(target, DropReason::MemoryTimeout),
        }
        None
    }

    fn handle(&self, frame: Frame<StageHeader>, memory: BodyMemory) {
        let target = target_of(&frame.header);
        match Message::decode(frame) {
            Ok(message) => self.router.queue(target, (self.from, message), Some(memory)),
            Err(error) => self.refuse(target, error.to_string()),
        }
    }
}

fn target_of(header: &StageHeader) -> FrameTarget {
    let stage = |session, epoch, stage| SessionStage { session, epoch, stage };
    match header {
        StageHeader::Step(step) => FrameTarget::Stage(stage(step.session, step.epoch, step.stage)),
        StageHeader::Logits(logits) => FrameTarget::Coordinator(stage(logits.session, logits.epoch, ANSWERING_STAGE)),
        StageHeader::Failed { session, epoch, stage: number, .. } => {
            FrameTarget::Coordinator(stage(*session, *epoch, *number))
        }
    }
}
