//! How others reach a node to which no connection comes through: by a reservation with one or two of the relays that its host has
//! named as bootstrap peers. Nobody else is asked to carry what this node says.
//!
//! Sans-IO: it is told the time and what happened, and says where to listen and where not any more.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::config::{MAX_ADDRESSES_PER_PEER, MAX_RELAYS, REDIAL_FIRST, REDIAL_LONGEST, RELAYS_USED};

/// A peer that offers to carry circuits.
struct Relay<P, A, L> {
    peer: P,
    /// What to listen on for its circuits.
    circuit: A,
    /// The reservation that is asked for or kept there.
    reservation: Option<L>,
    wait: Duration,
    due: Instant,
}

/// All of them. `P` names a peer, `A` is an address, `L` names a listener.
pub(super) struct Reach<P, A, L> {
    relays: Vec<Relay<P, A, L>>,
    /// Addresses of this node's own at which it was reached from outside.
    open: HashSet<A>,
}

impl<P: Eq + Copy, A: Eq + Hash + Clone, L: Eq + Copy> Reach<P, A, L> {
    pub fn new() -> Self {
        Self { relays: Vec::new(), open: HashSet::new() }
    }

    /// A named relay is connected, and its circuits are listened for at `circuit`.
    pub fn offered(&mut self, peer: P, circuit: A, now: Instant) {
        if let Some(relay) = self.relays.iter_mut().find(|relay| relay.peer == peer) {
            relay.circuit = circuit;
        } else if self.relays.len() < MAX_RELAYS {
            self.relays.push(Relay { peer, circuit, reservation: None, wait: REDIAL_FIRST, due: now });
        }
    }

    /// Where to ask for a reservation now: the index for [`Self::asked`], and what to listen on.
    pub fn due(&self, now: Instant, connected: impl Fn(&P) -> bool) -> Vec<(usize, A)> {
        if !self.open.is_empty() {
            return Vec::new();
        }
        let used = self.relays.iter().filter(|relay| relay.reservation.is_some()).count();
        let ready = |relay: &Relay<P, A, L>| relay.reservation.is_none() && relay.due <= now && connected(&relay.peer);
        let ready = self.relays.iter().enumerate().filter(|(_, relay)| ready(relay));
        ready.take(RELAYS_USED.saturating_sub(used)).map(|(index, relay)| (index, relay.circuit.clone())).collect()
    }

    /// The listener that stands for the reservation asked for; `None` where it failed at once.
    pub fn asked(&mut self, index: usize, listener: Option<L>, now: Instant) {
        let Some(relay) = self.relays.get_mut(index) else { return };
        relay.reservation = listener;
        if listener.is_none() {
            relay.rest(now);
        }
    }

    /// The reservation is given.
    pub fn kept(&mut self, listener: L) {
        if let Some(relay) = self.relays.iter_mut().find(|relay| relay.reservation == Some(listener)) {
            relay.wait = REDIAL_FIRST;
        }
    }

    /// The reservation is gone, or was never given.
    pub fn closed(&mut self, listener: L, now: Instant) {
        if let Some(relay) = self.relays.iter_mut().find(|relay| relay.reservation == Some(listener)) {
            relay.reservation = None;
            relay.rest(now);
        }
    }

    /// This node was reached at an address of its own. Gives the reservations to be given up: they are not needed.
    pub fn opened(&mut self, address: A) -> Vec<L> {
        if self.open.len() < MAX_ADDRESSES_PER_PEER {
            self.open.insert(address);
        }
        self.relays.iter().filter_map(|relay| relay.reservation).collect()
    }

    /// The machine has moved: what was open is not any more.
    pub fn moved(&mut self) {
        self.open.clear();
    }
}

impl<P, A, L> Relay<P, A, L> {
    fn rest(&mut self, now: Instant) {
        self.due = now + self.wait;
        self.wait = (self.wait * 2).min(REDIAL_LONGEST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Reservations = Reach<u32, &'static str, u32>;

    fn everywhere(_: &u32) -> bool {
        true
    }

    #[test]
    fn reservations_are_kept_with_two_relays_and_a_third_stands_in() {
        let (mut reach, now) = (Reservations::new(), Instant::now());
        for (peer, circuit) in [(1, "a"), (2, "b"), (3, "c")] {
            reach.offered(peer, circuit, now);
        }
        assert_eq!(reach.due(now, everywhere), [(0, "a"), (1, "b")]);
        assert_eq!(reach.due(now, |peer| *peer == 3), [(2, "c")], "only those that are connected");
        reach.asked(0, Some(10), now);
        reach.asked(1, Some(11), now);
        assert!(reach.due(now, everywhere).is_empty());
        reach.closed(10, now);
        assert_eq!(reach.due(now, everywhere), [(2, "c")], "the one that failed rests");
    }

    #[test]
    fn a_relay_that_gives_no_reservation_is_asked_ever_more_rarely() {
        let (mut reach, mut now) = (Reservations::new(), Instant::now());
        reach.offered(1, "a", now);
        let mut waits = Vec::new();
        for listener in 0..8 {
            reach.asked(0, Some(listener), now);
            reach.closed(listener, now);
            let wait = (0..).find(|second| !reach.due(now + Duration::from_secs(*second), everywhere).is_empty());
            waits.push(wait.unwrap());
            now += Duration::from_secs(waits[waits.len() - 1]);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        reach.asked(0, Some(9), now);
        reach.kept(9);
        reach.closed(9, now);
        assert!(!reach.due(now + REDIAL_FIRST, everywhere).is_empty(), "one that gave a reservation is asked soon");
    }

    #[test]
    fn a_node_that_is_reached_from_outside_gives_its_reservations_up() {
        let (mut reach, now) = (Reservations::new(), Instant::now());
        reach.offered(1, "a", now);
        reach.asked(0, Some(10), now);
        assert_eq!(reach.opened("mine"), [10]);
        reach.closed(10, now);
        assert!(reach.due(now + Duration::from_secs(600), everywhere).is_empty());
        reach.moved();
        assert!(!reach.due(now + Duration::from_secs(600), everywhere).is_empty());
    }
}
