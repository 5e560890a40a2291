//! The event bus of a node: many writers and readers, none of which blocks.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::base::Event;

/// Events buffered for a slow reader.
const CAPACITY: usize = 1024;

/// Sends events. Clones share the bus.
#[derive(Debug, Clone)]
pub struct EventBus {
    sender: broadcast::Sender<Event>,
}

impl EventBus {
    /// A bus without readers.
    pub fn new() -> Self {
        Self { sender: broadcast::Sender::new(CAPACITY) }
    }

    /// Sends an event to all readers. Never blocks; without readers the event is dropped.
    pub fn send(&self, event: Event) {
        let _ = self.sender.send(event);
    }

    /// A reader of all further events.
    pub fn subscribe(&self) -> EventReader {
        EventReader { receiver: self.sender.subscribe(), lost: 0 }
    }
}

impl Default for EventBus {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads the events of a node. A slow reader loses the oldest events and counts them.
#[derive(Debug)]
pub struct EventReader {
    receiver: broadcast::Receiver<Event>,
    lost: u64,
}

impl EventReader {
    /// The next event; `None` after the node has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(RecvError::Lagged(missed)) => self.lost = self.lost.saturating_add(missed),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Number of lost events.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(number: usize) -> Event {
        Event::Listening { address: number.to_string() }
    }

    #[tokio::test]
    async fn a_slow_reader_loses_and_counts_the_oldest_events() {
        let bus = EventBus::new();
        let mut reader = bus.subscribe();
        for number in 0..CAPACITY + 10 {
            bus.send(event(number));
        }
        assert_eq!(reader.next().await, Some(event(10)));
        assert_eq!(reader.lost(), 10);
    }

    #[tokio::test]
    async fn a_reader_ends_with_the_last_writer() {
        let bus = EventBus::new();
        let mut reader = bus.subscribe();
        bus.send(event(1));
        drop(bus);
        assert_eq!(reader.next().await, Some(event(1)));
        assert_eq!(reader.next().await, None);
    }
}
