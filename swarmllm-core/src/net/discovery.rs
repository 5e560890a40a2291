//! Dial targets: bootstrap peers, peers found on the LAN and known peers, with backoff between dials.
//!
//! Sans-IO: time and events are inputs, due dials are the output.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::config::{MAX_DISCOVERED, REDIAL_MAX, REDIAL_MIN};

/// A peer to keep connected, with addresses of type `A`.
struct Target<D, P, A> {
    /// Required peer id; `None` accepts any node of the network at the address.
    required: Option<P>,
    /// Actual peer id: the required one, or the peer found at the address.
    peer: Option<P>,
    addresses: Vec<A>,
    /// Configured by the host program: never removed, however often it fails.
    bootstrap: bool,
    attempt: Option<D>,
    wait: Duration,
    due: Instant,
}

/// All dial targets. `D` identifies a dial, `P` a peer, `A` is an address.
pub(super) struct Discovery<D, P, A> {
    targets: Vec<Target<D, P, A>>,
    /// Discovered peers of other networks, with the end of their exclusion.
    excluded: HashMap<P, Instant>,
}

/// Exclusion time of a discovered peer of another network.
const EXCLUSION_TIME: Duration = Duration::from_secs(10 * 60);
/// Backoff at which a discovered peer is removed until it is discovered again.
const DISCOVERED_PATIENCE: Duration = Duration::from_secs(16);

impl<D: PartialEq + Copy, P: Hash + Eq + Copy, A: Clone + PartialEq> Discovery<D, P, A> {
    /// Starts with the bootstrap peers, due at once.
    pub fn new(bootstrap: impl Iterator<Item = (Option<P>, A)>, now: Instant) -> Self {
        let target = |(required, address)| Target {
            required,
            peer: required,
            addresses: vec![address],
            bootstrap: true,
            attempt: None,
            wait: REDIAL_MIN,
            due: now,
        };
        Self { targets: bootstrap.map(target).collect(), excluded: HashMap::new() }
    }

    /// A peer was discovered; it is dialled at `due` unless it is connected by then.
    pub fn discovered(&mut self, peer: P, address: A, due: Instant) {
        if self.excluded.contains_key(&peer) {
            return;
        }
        if let Some(target) = self.targets.iter_mut().find(|target| target.peer == Some(peer)) {
            if !target.bootstrap && !target.addresses.contains(&address) {
                target.addresses.push(address);
                target.addresses.truncate(super::config::MAX_ADDRESSES_PER_PEER);
            }
            return;
        }
        if self.targets.iter().filter(|target| !target.bootstrap).count() < MAX_DISCOVERED {
            let (addresses, wait) = (vec![address], REDIAL_MIN);
            let peer = Some(peer);
            self.targets.push(Target { required: peer, peer, addresses, bootstrap: false, attempt: None, wait, due });
        }
    }

    /// Targets due now: the index for [`Self::dialling`], the required peer and the addresses. Descending by index: a target
    /// removed after an immediate failure does not shift those that follow.
    pub fn due(&mut self, now: Instant, connected: impl Fn(&P) -> bool) -> Vec<(usize, Option<P>, Vec<A>)> {
        self.excluded.retain(|_, until| *until > now);
        let ready = |target: &Target<D, P, A>| {
            target.attempt.is_none() && target.due <= now && !target.peer.as_ref().is_some_and(&connected)
        };
        let due = self.targets.iter().enumerate().rev().filter(|(_, target)| ready(target));
        due.map(|(index, target)| (index, target.required, target.addresses.clone())).collect()
    }

    /// Makes all targets due now.
    pub fn make_due(&mut self, now: Instant) {
        self.targets.iter_mut().for_each(|target| target.due = target.due.min(now));
    }

    /// Number of dials under way.
    pub fn dial_count(&self) -> usize {
        self.targets.iter().filter(|target| target.attempt.is_some()).count()
    }

    /// A dial was started for the target with this index.
    pub fn dialling(&mut self, index: usize, dial: D) {
        if let Some(target) = self.targets.get_mut(index) {
            target.attempt = Some(dial);
        }
    }

    /// A dial has connected to `peer`.
    pub fn connected(&mut self, dial: D, peer: P) {
        if let Some(target) = self.targets.iter_mut().find(|target| target.attempt == Some(dial)) {
            (target.attempt, target.peer) = (None, Some(peer));
        }
    }

    /// A dial failed: doubles the backoff up to the maximum. `jitter` in 0..1 spreads the dials of many nodes.
    pub fn failed(&mut self, dial: D, now: Instant, jitter: f64) {
        let Some(index) = self.targets.iter().position(|target| target.attempt == Some(dial)) else { return };
        let Some(target) = self.targets.get_mut(index) else { return };
        target.attempt = None;
        if !target.bootstrap && target.wait >= DISCOVERED_PATIENCE {
            self.targets.remove(index);
            return;
        }
        target.due = now + target.wait.mul_f64(0.75 + jitter / 2.0);
        target.wait = (target.wait * 2).min(REDIAL_MAX);
    }

    /// The peer has identified as a node of this network: resets the backoff.
    pub fn identified(&mut self, peer: P) {
        for target in self.targets.iter_mut().filter(|target| target.peer == Some(peer)) {
            target.wait = REDIAL_MIN;
        }
    }

    /// The last connection to the peer closed: dials it again after the backoff.
    pub fn lost(&mut self, peer: P, now: Instant) {
        for target in self.targets.iter_mut().filter(|target| target.peer == Some(peer) && target.attempt.is_none()) {
            target.due = target.due.max(now + target.wait);
        }
    }

    /// Whether this is a bootstrap peer.
    pub fn is_bootstrap(&self, peer: &P) -> bool {
        self.targets.iter().any(|target| target.bootstrap && target.peer.as_ref() == Some(peer))
    }

    /// The peer is of another network or protocol.
    pub fn refused(&mut self, peer: P, now: Instant) {
        if self.excluded.len() < MAX_DISCOVERED {
            self.excluded.insert(peer, now + EXCLUSION_TIME);
        }
        self.targets.retain(|target| target.bootstrap || target.peer != Some(peer));
        for target in self.targets.iter_mut().filter(|target| target.peer == Some(peer)) {
            // A node of this network may take over the address later.
            (target.wait, target.due) = (REDIAL_MAX, now + REDIAL_MAX);
        }
    }

    /// The dial reached this node itself: removes the target.
    pub fn is_self(&mut self, dial: D) {
        self.targets.retain(|target| target.attempt != Some(dial));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type TestDiscovery = Discovery<u32, u32, &'static str>;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn bootstrap_dials_back_off_and_never_end() {
        let start = Instant::now();
        let mut discovery = TestDiscovery::new([(None, "seed")].into_iter(), start);
        let mut now = start;
        let mut waits = Vec::new();
        for dial in 0..10 {
            let due = discovery.due(now, |_| false);
            assert_eq!(due.len(), 1);
            discovery.dialling(due[0].0, dial);
            assert!(discovery.due(now + seconds(1000), |_| false).is_empty(), "one attempt at a time");
            discovery.failed(dial, now, 0.5);
            let wait = (0..).find(|count| !discovery.due(now + seconds(*count), |_| false).is_empty()).unwrap();
            waits.push(wait);
            now += seconds(wait);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    }

    #[test]
    fn a_lost_bootstrap_peer_is_redialled_after_the_first_backoff() {
        let start = Instant::now();
        let mut discovery = TestDiscovery::new([(None, "seed")].into_iter(), start);
        discovery.due(start, |_| false);
        discovery.dialling(0, 1);
        discovery.connected(1, 7);
        discovery.identified(7);
        assert!(discovery.due(start + seconds(9), |peer| *peer == 7).is_empty(), "it is connected");
        discovery.lost(7, start + seconds(10));
        assert!(discovery.due(start + seconds(10), |_| false).is_empty());
        assert_eq!(discovery.due(start + seconds(11), |_| false), [(0, None, vec!["seed"])]);
    }

    #[test]
    fn waiting_targets_can_be_made_due_at_once() {
        let start = Instant::now();
        let mut discovery = TestDiscovery::new([(None, "seed")].into_iter(), start);
        discovery.dialling(0, 1);
        discovery.failed(1, start, 0.5);
        assert!(discovery.due(start, |_| false).is_empty());
        discovery.make_due(start);
        assert_eq!(discovery.due(start, |_| false), [(0, None, vec!["seed"])]);
        discovery.dialling(0, 2);
        discovery.make_due(start);
        assert!(discovery.due(start, |_| false).is_empty(), "it is being dialled");
    }

    #[test]
    fn a_discovered_peer_of_another_network_is_excluded_for_a_while() {
        let start = Instant::now();
        let mut discovery = TestDiscovery::new(std::iter::empty(), start);
        discovery.discovered(7, "lan", start);
        let due = discovery.due(start, |_| false);
        discovery.dialling(due.first().unwrap().0, 1);
        discovery.connected(1, 7);
        discovery.refused(7, start);
        discovery.discovered(7, "lan", start);
        assert!(discovery.due(start + seconds(60), |_| false).is_empty());
        assert!(discovery.due(start + EXCLUSION_TIME + seconds(1), |_| false).is_empty());
        discovery.discovered(7, "lan", start);
        assert_eq!(discovery.due(start + seconds(1), |_| false).len(), 1);
    }

    #[test]
    fn discovered_peers_are_bounded_and_expire_after_failures() {
        let start = Instant::now();
        let mut discovery = TestDiscovery::new(std::iter::empty(), start);
        for peer in 0..MAX_DISCOVERED as u32 + 10 {
            discovery.discovered(peer, "lan", start);
        }
        assert_eq!(discovery.due(start, |_| false).len(), MAX_DISCOVERED);
        let mut discovery = TestDiscovery::new(std::iter::empty(), start);
        discovery.discovered(7, "lan", start);
        let mut now = start;
        for dial in 0..10 {
            now += seconds(100);
            match discovery.due(now, |_| false).first() {
                Some((index, ..)) => discovery.dialling(*index, dial),
                None => return,
            }
            discovery.failed(dial, now, 0.5);
        }
        panic!("a peer that never answers is still a target");
    }

    #[test]
    fn this_node_itself_is_not_dialled_again() {
        let start = Instant::now();
        let mut discovery = TestDiscovery::new([(None, "me")].into_iter(), start);
        discovery.dialling(0, 1);
        discovery.is_self(1);
        assert!(discovery.due(start + seconds(1000), |_| false).is_empty());
    }
}
