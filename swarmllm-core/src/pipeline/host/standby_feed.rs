//! Hot standbys: hosts that replicate a stage of a session, so that the session goes on where the stage's host is lost.
//!
//! A standby is loaded and admitted like the stage itself. It gets a copy of every step from the previous stage, or
//! from the coordinator for the first stage. It computes the copies and sends no results, and so holds the KV that its
//! stage holds. It costs what the stage costs. No node waits for a standby: one that is slow, or behind a slow
//! connection, gets no more copies, and keeps the part of the text that has arrived.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::pipeline::link::message::Message;
use crate::pipeline::link::router::FrameSender;
use crate::rt::TaskSet;

/// Steps that may wait to be sent to a standby: the steps of the first second, while the link to it is opened.
const MAX_COPIES: usize = 256;
/// Floats of these steps together: 64 MiB.
const MAX_FLOATS: usize = 16 * 1024 * 1024;

/// Sends copies of steps to a standby without ever waiting.
pub struct StandbyFeed {
    queue: Option<mpsc::Sender<(Message, OwnedSemaphorePermit)>>,
    /// The remainder of [`MAX_FLOATS`].
    floats: Arc<Semaphore>,
}

impl StandbyFeed {
    /// The feed of a standby, if there is one. It ends when it is dropped, and with the first copy that cannot be sent.
    pub fn to(sender: Option<FrameSender>, tasks: &TaskSet) -> Self {
        let floats = Arc::new(Semaphore::new(MAX_FLOATS));
        let Some(mut sender) = sender else { return Self { queue: None, floats } };
        let (queue, mut copies) = mpsc::channel::<(Message, OwnedSemaphorePermit)>(MAX_COPIES);
        tasks.spawn("standby-feed", async move {
            while let Some((message, _floats)) = copies.recv().await {
                if let Err(fault) = sender.send(message).await {
                    tracing::debug!(%fault, "a standby gets no more copies");
                    return;
                }
            }
        });
        Self { queue: Some(queue), floats }
    }

    /// Sends a copy of a step. The first step that does not fit ends the feed.
    pub fn send(&mut self, message: &Message) {
        let (Some(queue), Message::Step { hidden, .. }) = (&self.queue, message) else { return };
        let floats = hidden.len().try_into().unwrap_or(u32::MAX);
        let permit = self.floats.clone().try_acquire_many_owned(floats).ok();
        if permit.is_none_or(|permit| queue.try_send((message.clone(), permit)).is_err()) {
            self.queue = None;
        }
    }
}
