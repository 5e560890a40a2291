//! News of a node: many writers, many readers, nobody waits.

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::base::Event;

/// Events kept for a reader that is behind.
const CAPACITY: usize = 1024;

/// Where rooms tell what happened. Clones are the same bus.
#[derive(Debug, Clone)]
pub struct EventBus {
    sender: broadcast::Sender<Event>,
}

impl EventBus {
    /// A bus without readers.
    pub fn new() -> Self {
        Self { sender: broadcast::Sender::new(CAPACITY) }
    }

    /// Tells everyone who reads. Never blocks; without readers the event is gone.
    pub fn send(&self, event: Event) {
        let _ = self.sender.send(event);
    }

    /// A reader of what happens from now on.
    pub fn subscribe(&self) -> EventReader {
        EventReader { receiver: self.sender.subscribe(), lost: 0 }
    }
}

impl Default for EventBus {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads a node's news. One that lags loses the oldest and counts them.
#[derive(Debug)]
pub struct EventReader {
    receiver: broadcast::Receiver<Event>,
    lost: u64,
}

impl EventReader {
    /// The next event; `None` when the node is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(RecvError::Lagged(missed)) => self.lost = self.lost.saturating_add(missed),
                Err(RecvError::Closed) => return None,
            }
        }
    }

    /// Events lost so far.
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
    async fn a_slow_reader_loses_the_oldest_and_knows_how_many() {
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
