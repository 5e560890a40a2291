//! Relay reservations of a node without inbound reachability, with up to two relays among its bootstrap peers. No other peer
//! is used as a relay.
//!
//! Sans-IO: time and events are inputs; listeners to open and to close are outputs.

use std::collections::HashSet;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::config::{MAX_ADDRESSES_PER_PEER, MAX_RELAYS, REDIAL_MAX, REDIAL_MIN, RELAYS_USED};

/// A peer that offers relaying.
struct Relay<P, A, L> {
    peer: P,
    /// Listen address for connections over this relay.
    listen_address: A,
    /// Listener of the requested or active reservation.
    reservation: Option<L>,
    wait: Duration,
    due: Instant,
}

/// Relays and confirmed addresses. `P` identifies a peer, `A` is an address, `L` identifies a listener.
pub(super) struct Reachability<P, A, L> {
    relays: Vec<Relay<P, A, L>>,
    /// Confirmed external addresses of this node.
    confirmed: HashSet<A>,
}

impl<P: Eq + Copy, A: Eq + Hash + Clone, L: Eq + Copy> Reachability<P, A, L> {
    pub fn new() -> Self {
        Self { relays: Vec::new(), confirmed: HashSet::new() }
    }

    /// A bootstrap relay is connected; `circuit` is the listen address for connections over it.
    pub fn relay_available(&mut self, peer: P, listen_address: A, now: Instant) {
        if let Some(relay) = self.relays.iter_mut().find(|relay| relay.peer == peer) {
            relay.listen_address = listen_address;
        } else if self.relays.len() < MAX_RELAYS {
            self.relays.push(Relay { peer, listen_address, reservation: None, wait: REDIAL_MIN, due: now });
        }
    }

    /// Reservations to request now: the index for [`Self::requested`], and the listen address.
    pub fn due(&self, now: Instant, connected: impl Fn(&P) -> bool) -> Vec<(usize, A)> {
        if !self.confirmed.is_empty() {
            return Vec::new();
        }
        let used = self.relays.iter().filter(|relay| relay.reservation.is_some()).count();
        let ready = |relay: &Relay<P, A, L>| relay.reservation.is_none() && relay.due <= now && connected(&relay.peer);
        let ready = self.relays.iter().enumerate().filter(|(_, relay)| ready(relay));
        ready
            .take(RELAYS_USED.saturating_sub(used))
            .map(|(index, relay)| (index, relay.listen_address.clone()))
            .collect()
    }

    /// The listener of the requested reservation; `None` if the request failed at once.
    pub fn requested(&mut self, index: usize, listener: Option<L>, now: Instant) {
        let Some(relay) = self.relays.get_mut(index) else { return };
        relay.reservation = listener;
        if listener.is_none() {
            relay.back_off(now);
        }
    }

    /// The reservation was granted.
    pub fn granted(&mut self, listener: L) {
        if let Some(relay) = self.relays.iter_mut().find(|relay| relay.reservation == Some(listener)) {
            relay.wait = REDIAL_MIN;
        }
    }

    /// The reservation ended or was denied.
    pub fn closed(&mut self, listener: L, now: Instant) {
        if let Some(relay) = self.relays.iter_mut().find(|relay| relay.reservation == Some(listener)) {
            relay.reservation = None;
            relay.back_off(now);
        }
    }

    /// An external address was confirmed. Returns the reservations to drop.
    pub fn address_confirmed(&mut self, address: A) -> Vec<L> {
        if self.confirmed.len() < MAX_ADDRESSES_PER_PEER {
            self.confirmed.insert(address);
        }
        self.relays.iter().filter_map(|relay| relay.reservation).collect()
    }

    /// A listen address expired: external addresses must be confirmed again.
    pub fn addresses_expired(&mut self) {
        self.confirmed.clear();
    }
}

impl<P, A, L> Relay<P, A, L> {
    fn back_off(&mut self, now: Instant) {
        self.due = now + self.wait;
        self.wait = (self.wait * 2).min(REDIAL_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Reservations = Reachability<u32, &'static str, u32>;

    fn everywhere(_: &u32) -> bool {
        true
    }

    #[test]
    fn two_reservations_are_kept_and_a_third_relay_replaces_a_failed_one() {
        let (mut reachability, now) = (Reservations::new(), Instant::now());
        for (peer, listen_address) in [(1, "a"), (2, "b"), (3, "c")] {
            reachability.relay_available(peer, listen_address, now);
        }
        assert_eq!(reachability.due(now, everywhere), [(0, "a"), (1, "b")]);
        assert_eq!(reachability.due(now, |peer| *peer == 3), [(2, "c")], "only connected relays");
        reachability.requested(0, Some(10), now);
        reachability.requested(1, Some(11), now);
        assert!(reachability.due(now, everywhere).is_empty());
        reachability.closed(10, now);
        assert_eq!(reachability.due(now, everywhere), [(2, "c")], "the failed relay backs off");
    }

    #[test]
    fn requests_to_a_denying_relay_back_off() {
        let (mut reachability, mut now) = (Reservations::new(), Instant::now());
        reachability.relay_available(1, "a", now);
        let mut waits = Vec::new();
        for listener in 0..8 {
            reachability.requested(0, Some(listener), now);
            reachability.closed(listener, now);
            let wait =
                (0..).find(|second| !reachability.due(now + Duration::from_secs(*second), everywhere).is_empty());
            waits.push(wait.unwrap());
            now += Duration::from_secs(waits[waits.len() - 1]);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        reachability.requested(0, Some(9), now);
        reachability.granted(9);
        reachability.closed(9, now);
        assert!(!reachability.due(now + REDIAL_MIN, everywhere).is_empty(), "a granted reservation resets the backoff");
    }

    #[test]
    fn a_confirmed_external_address_ends_reservations() {
        let (mut reachability, now) = (Reservations::new(), Instant::now());
        reachability.relay_available(1, "a", now);
        reachability.requested(0, Some(10), now);
        assert_eq!(reachability.address_confirmed("mine"), [10]);
        reachability.closed(10, now);
        assert!(reachability.due(now + Duration::from_secs(600), everywhere).is_empty());
        reachability.addresses_expired();
        assert!(!reachability.due(now + Duration::from_secs(600), everywhere).is_empty());
    }
}
