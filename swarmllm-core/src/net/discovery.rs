//! Peers that ought to be connected: bootstrap peers and those found on the LAN; when to dial them (again).
//!
//! Sans-IO: it is told the time and what happened, and says whom to dial.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use super::config::{MAX_DISCOVERED, REDIAL_FIRST, REDIAL_LONGEST};

/// A peer that ought to be connected, under addresses of type `A`.
struct Target<D, P, A> {
    /// Who it must be; bootstrap addresses without a peer id are places, where anyone of the network will do.
    named: Option<P>,
    /// Who it is: the named one, or who was found there.
    peer: Option<P>,
    addresses: Vec<A>,
    /// Given by the host: never forgotten, however often it fails.
    bootstrap: bool,
    attempt: Option<D>,
    wait: Duration,
    due: Instant,
}

/// All of them. `D` names a dial, `P` a peer, `A` is an address.
pub(super) struct Discovery<D, P, A> {
    targets: Vec<Target<D, P, A>>,
    /// Found peers that turned out to be none of ours, until when they are left alone.
    strangers: HashMap<P, Instant>,
}

/// How long a discovered peer of another network is left alone.
const STRANGER_REST: Duration = Duration::from_secs(10 * 60);
/// Failures after which a discovered peer is forgotten until it is found again.
const DISCOVERED_PATIENCE: Duration = Duration::from_secs(16);

impl<D: PartialEq + Copy, P: Hash + Eq + Copy, A: Clone + PartialEq> Discovery<D, P, A> {
    /// Begins with the bootstrap peers, due at once.
    pub fn new(bootstrap: impl Iterator<Item = (Option<P>, A)>, now: Instant) -> Self {
        let target = |(named, address)| Target {
            named,
            peer: named,
            addresses: vec![address],
            bootstrap: true,
            attempt: None,
            wait: REDIAL_FIRST,
            due: now,
        };
        Self { targets: bootstrap.map(target).collect(), strangers: HashMap::new() }
    }

    /// A peer was found on the LAN; to be dialled at `due` unless it is connected by then.
    pub fn found(&mut self, peer: P, address: A, due: Instant) {
        if self.strangers.contains_key(&peer) {
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
            let (addresses, wait) = (vec![address], REDIAL_FIRST);
            let peer = Some(peer);
            self.targets.push(Target { named: peer, peer, addresses, bootstrap: false, attempt: None, wait, due });
        }
    }

    /// Whom to dial now: for each the peer it must be, the addresses, and the index for [`Self::dialling`]. The highest
    /// index comes first: one that fails at once and is removed does not move those that follow.
    pub fn due(&mut self, now: Instant, connected: impl Fn(&P) -> bool) -> Vec<(usize, Option<P>, Vec<A>)> {
        self.strangers.retain(|_, until| *until > now);
        let ready = |target: &Target<D, P, A>| {
            target.attempt.is_none() && target.due <= now && !target.peer.as_ref().is_some_and(&connected)
        };
        let due = self.targets.iter().enumerate().rev().filter(|(_, target)| ready(target));
        due.map(|(index, target)| (index, target.named, target.addresses.clone())).collect()
    }

    /// All who are not being dialled are due now.
    pub fn hurry(&mut self, now: Instant) {
        self.targets.iter_mut().for_each(|target| target.due = target.due.min(now));
    }

    /// How many are being dialled.
    pub fn dialled(&self) -> usize {
        self.targets.iter().filter(|target| target.attempt.is_some()).count()
    }

    /// The dial that was started for the target of this index.
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

    /// A dial has failed: wait longer, by a factor of two up to the longest wait. `jitter` in 0..1 spreads many nodes.
    pub fn failed(&mut self, dial: D, now: Instant, jitter: f64) {
        let Some(index) = self.targets.iter().position(|target| target.attempt == Some(dial)) else { return };
        let Some(target) = self.targets.get_mut(index) else { return };
        target.attempt = None;
        if !target.bootstrap && target.wait >= DISCOVERED_PATIENCE {
            self.targets.remove(index);
            return;
        }
        target.due = now + target.wait.mul_f64(0.75 + jitter / 2.0);
        target.wait = (target.wait * 2).min(REDIAL_LONGEST);
    }

    /// The peer is one of ours: it has been reached, waits begin anew.
    pub fn greeted(&mut self, peer: P) {
        for target in self.targets.iter_mut().filter(|target| target.peer == Some(peer)) {
            target.wait = REDIAL_FIRST;
        }
    }

    /// The last connection to the peer is gone: dial it again, soon.
    pub fn lost(&mut self, peer: P, now: Instant) {
        for target in self.targets.iter_mut().filter(|target| target.peer == Some(peer) && target.attempt.is_none()) {
            target.due = target.due.max(now + target.wait);
        }
    }

    /// Whether the host has given this peer.
    pub fn is_bootstrap(&self, peer: &P) -> bool {
        self.targets.iter().any(|target| target.bootstrap && target.peer.as_ref() == Some(peer))
    }

    /// The peer is of another network or protocol.
    pub fn refused(&mut self, peer: P, now: Instant) {
        if self.strangers.len() < MAX_DISCOVERED {
            self.strangers.insert(peer, now + STRANGER_REST);
        }
        self.targets.retain(|target| target.bootstrap || target.peer != Some(peer));
        for target in self.targets.iter_mut().filter(|target| target.peer == Some(peer)) {
            // Its place may be taken by the right one some day.
            (target.wait, target.due) = (REDIAL_LONGEST, now + REDIAL_LONGEST);
        }
    }

    /// This dial led to this node itself: not to be tried again.
    pub fn is_me(&mut self, dial: D) {
        self.targets.retain(|target| target.attempt != Some(dial));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Plan = Discovery<u32, u32, &'static str>;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_bootstrap_peer_is_dialled_ever_more_rarely_and_never_given_up() {
        let start = Instant::now();
        let mut plan = Plan::new([(None, "seed")].into_iter(), start);
        let mut now = start;
        let mut waits = Vec::new();
        for dial in 0..10 {
            let due = plan.due(now, |_| false);
            assert_eq!(due.len(), 1);
            plan.dialling(due[0].0, dial);
            assert!(plan.due(now + seconds(1000), |_| false).is_empty(), "one attempt at a time");
            plan.failed(dial, now, 0.5);
            let wait = (0..).find(|count| !plan.due(now + seconds(*count), |_| false).is_empty()).unwrap();
            waits.push(wait);
            now += seconds(wait);
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60, 60]);
    }

    #[test]
    fn a_lost_bootstrap_peer_is_dialled_again_after_the_first_wait() {
        let start = Instant::now();
        let mut plan = Plan::new([(None, "seed")].into_iter(), start);
        plan.due(start, |_| false);
        plan.dialling(0, 1);
        plan.connected(1, 7);
        plan.greeted(7);
        assert!(plan.due(start + seconds(9), |peer| *peer == 7).is_empty(), "it is connected");
        plan.lost(7, start + seconds(10));
        assert!(plan.due(start + seconds(10), |_| false).is_empty());
        assert_eq!(plan.due(start + seconds(11), |_| false), [(0, None, vec!["seed"])]);
    }

    #[test]
    fn who_waits_is_due_at_once_where_there_is_hurry() {
        let start = Instant::now();
        let mut plan = Plan::new([(None, "seed")].into_iter(), start);
        plan.dialling(0, 1);
        plan.failed(1, start, 0.5);
        assert!(plan.due(start, |_| false).is_empty());
        plan.hurry(start);
        assert_eq!(plan.due(start, |_| false), [(0, None, vec!["seed"])]);
        plan.dialling(0, 2);
        plan.hurry(start);
        assert!(plan.due(start, |_| false).is_empty(), "it is being dialled");
    }

    #[test]
    fn a_found_stranger_is_left_alone_for_a_while() {
        let start = Instant::now();
        let mut plan = Plan::new(std::iter::empty(), start);
        plan.found(7, "lan", start);
        let due = plan.due(start, |_| false);
        plan.dialling(due.first().unwrap().0, 1);
        plan.connected(1, 7);
        plan.refused(7, start);
        plan.found(7, "lan", start);
        assert!(plan.due(start + seconds(60), |_| false).is_empty());
        assert!(plan.due(start + STRANGER_REST + seconds(1), |_| false).is_empty());
        plan.found(7, "lan", start);
        assert_eq!(plan.due(start + seconds(1), |_| false).len(), 1);
    }

    #[test]
    fn found_peers_are_bounded_and_forgotten_when_they_stay_away() {
        let start = Instant::now();
        let mut plan = Plan::new(std::iter::empty(), start);
        for peer in 0..MAX_DISCOVERED as u32 + 10 {
            plan.found(peer, "lan", start);
        }
        assert_eq!(plan.due(start, |_| false).len(), MAX_DISCOVERED);
        let mut plan = Plan::new(std::iter::empty(), start);
        plan.found(7, "lan", start);
        let mut now = start;
        for dial in 0..10 {
            now += seconds(100);
            match plan.due(now, |_| false).first() {
                Some((index, ..)) => plan.dialling(*index, dial),
                None => return,
            }
            plan.failed(dial, now, 0.5);
        }
        panic!("a peer that never answers is still kept");
    }

    #[test]
    fn this_node_is_not_dialled_twice() {
        let start = Instant::now();
        let mut plan = Plan::new([(None, "me")].into_iter(), start);
        plan.dialling(0, 1);
        plan.is_me(1);
        assert!(plan.due(start + seconds(1000), |_| false).is_empty());
    }
}
