//! Sends one session's frames to one peer.

use super::SessionRouter;
use crate::base::{Fault, NodeId};
use crate::pipeline::link::message::Message;
use crate::pipeline::link::outgoing::LinkQueue;
use crate::pipeline::link::pool::{lost, unreachable};
use crate::wire::control::Host;

/// Sends one session's frames to one peer, all of them over one link.
pub struct FrameSender {
    router: SessionRouter,
    to: Host,
    link: Option<LinkQueue>,
    /// Whether another peer has named the receiver.
    named: bool,
}

impl SessionRouter {
    /// The sender of a session's frames to a peer that may be at these addresses.
    pub fn sender(&self, to: Host) -> FrameSender {
        FrameSender { router: self.clone(), to, link: None, named: false }
    }

    /// The same for a peer that another peer has named: only the addresses that it announces for itself are dialled.
    pub fn sender_to_named(&self, node: NodeId) -> FrameSender {
        FrameSender { named: true, ..self.sender(Host { node, addresses: Vec::new() }) }
    }
}

impl FrameSender {
    /// Whether its link has ended.
    pub fn has_ended(&self) -> bool {
        self.link.as_ref().is_some_and(LinkQueue::is_closed)
    }

    /// Sends a frame, and waits for space in the link's queue. The first frame opens the link if there is none. Fails
    /// for good once the link has broken.
    pub async fn send(&mut self, message: Message) -> Result<(), Fault> {
        let Host { node, addresses } = &self.to;
        let node = *node;
        if node == self.router.local() {
            self.router.deliver(node, message);
            return Ok(());
        }
        let link = match &mut self.link {
            Some(link) => link,
            none => {
                let pool = &self.router.inner.pool;
                if self.named {
                    pool.reach_named(node).await?;
                }
                let router = self.router.clone();
                let link = pool.link(node, addresses, move || router.link_broke(node)).await;
                none.insert(link.map_err(|fault| if self.named { unreachable(node) } else { fault })?)
            }
        };
        link.send(message).await.map_err(|_| lost(node))
    }
}
