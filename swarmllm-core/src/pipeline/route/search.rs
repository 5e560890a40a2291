//! The search for a session's routes: excluded nodes, epochs, and when it gives up. Pure; time is an argument.

use std::time::{Duration, Instant};

use crate::base::{ErrorKind, Fault, NodeId};
use crate::pipeline::link::request::is_loss;

/// Most attempts to open routes in one session.
pub const MAX_ATTEMPTS: u32 = 32;
/// Interval of searches while there is no route.
pub const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Longest single search; a DHT lookup may be slow to report that it knows of no host.
pub const MAX_SEARCH: Duration = Duration::from_secs(3);
/// Length of the first search that excludes hosts which may have returned already; it doubles each time that these
/// hosts fail again.
const FIRST_SEARCH: Duration = RETRY_INTERVAL;
/// A route that was open for this long resets what was counted of returning hosts before it.
const STABLE_AFTER: Duration = Duration::from_secs(30);
/// Most doublings of a search: 16 times 250 ms exceed the longest search.
const MAX_DOUBLINGS: u32 = 4;
/// Longest search in all, in multiples of its patience, however many hosts are lost meanwhile.
const MAX_EXTENSION: u32 = 4;

/// The failure of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteFailure {
    /// The hosts at fault. Without any, no other route would be better.
    pub nodes: Vec<NodeId>,
    /// Whether the hosts may be asked again, because a lost connection may return.
    pub may_return: bool,
    /// The fault for the caller.
    pub fault: Fault,
}

impl RouteFailure {
    /// The failure of hosts that did not open their stages; `None` without any. A session without an open route so far
    /// does not wait for a full host, because the node's own queue does; a resumed one does, because other hosts may
    /// not hold the same layers.
    pub fn unopened(failed: Vec<(NodeId, Fault)>, resumed: bool) -> Option<Self> {
        // A busy host is temporary; a lasting failure is the reason.
        let lasting = failed.iter().find(|(_, fault)| fault.kind() != ErrorKind::Overloaded);
        let fault = lasting.or(failed.first())?.1.clone();
        let is_full = |kind| matches!(kind, ErrorKind::Overloaded | ErrorKind::OutOfMemory);
        let passes = |kind| is_loss(kind) || (resumed && is_full(kind));
        let may_return = failed.iter().all(|(_, fault)| passes(fault.kind()));
        Some(RouteFailure { nodes: failed.into_iter().map(|(node, _)| node).collect(), may_return, fault })
    }

    /// The failure of silent hosts; `None` without any. They may be slow or cut off while another route exists. If none
    /// does, they are asked again.
    pub fn unresponsive(nodes: Vec<NodeId>) -> Option<Self> {
        let text = format!("peer {} does not answer", nodes.first()?.short());
        Some(RouteFailure { nodes, may_return: true, fault: Fault::new(ErrorKind::PeerLost, text) })
    }

    /// The failure of hosts that lost their stages unnoticed; `None` without any. They may open them again.
    pub fn stages_lost(nodes: Vec<NodeId>) -> Option<Self> {
        let text = format!("peer {} has lost its stage", nodes.first()?.short());
        Some(RouteFailure { nodes, may_return: true, fault: Fault::new(ErrorKind::PeerLost, text) })
    }
}

/// Attempts of one session.
#[derive(Debug, Default)]
pub struct RouteAttempts {
    /// Epoch of the next attempt.
    epoch: u32,
    /// Nodes excluded for good.
    excluded: Vec<NodeId>,
    /// Searches without hosts that may have returned, which found no route.
    vain_searches: u32,
    /// When the last route was opened.
    opened: Option<Instant>,
}

/// A search in progress.
#[derive(Debug)]
pub struct RouteSearch {
    /// Fault of the route before, reported where there is no other.
    pub cause: Fault,
    /// When it stops to wait for hosts to return, and the latest that this may be extended to.
    until: Instant,
    latest: Instant,
    /// Waiting time after the last loss.
    patience: Duration,
    /// Nodes that may return, excluded for now.
    lost: Vec<NodeId>,
    /// Whether its time is over, and the next search, which includes lost hosts, is the last.
    is_last: bool,
}

/// Next step of a search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SearchStep {
    /// Open the route that was found.
    Attempt,
    /// Search again after [`RouteAttempts::pause`], with the hosts that may have returned.
    Retry,
    /// Report the fault.
    GiveUp,
}

impl RouteAttempts {
    /// The epoch of the last attempt.
    pub fn last_epoch(&self) -> u32 {
        self.epoch.saturating_sub(1)
    }

    /// Begins an attempt; returns its epoch.
    pub fn begin(&mut self) -> u32 {
        self.epoch += 1;
        self.epoch - 1
    }

    /// All excluded nodes, with these.
    pub fn without(&self, others: &[NodeId]) -> Vec<NodeId> {
        [self.excluded.as_slice(), others].concat()
    }

    /// Begins a search after a failure; it waits up to `patience` for hosts that may return.
    pub fn begin_search(&mut self, failure: RouteFailure, now: Instant, patience: Duration) -> RouteSearch {
        if self.opened.is_some_and(|opened| now.saturating_duration_since(opened) >= STABLE_AFTER) {
            self.vain_searches = 0;
        }
        let (cause, latest) = (failure.fault.clone(), now + patience * MAX_EXTENSION);
        let mut search = RouteSearch { cause, until: now, latest, patience, lost: Vec::new(), is_last: false };
        self.exclude(failure, &mut search, now);
        search
    }

    /// Excludes failed hosts: for now where they may return, else for good.
    pub fn exclude(&mut self, failure: RouteFailure, search: &mut RouteSearch, now: Instant) {
        if failure.may_return {
            search.until = search.latest.min(now + search.patience);
            search.lost.extend(failure.nodes);
        } else {
            self.excluded.extend(failure.nodes);
        }
    }

    /// Timeout of the next search without the hosts that may return. A host whose connection was only replaced returns
    /// sooner than the DHT reports that there is no other. A host that fails each time it returns delays other routes
    /// only briefly, because the timeout grows.
    pub fn search_timeout(&self, search: &RouteSearch) -> Duration {
        if self.opened.is_none() && search.cause.kind() == ErrorKind::Overloaded {
            // Another known host may have room. The DHT is not waited for: a slot becomes free sooner.
            return RETRY_INTERVAL;
        }
        if search.lost.is_empty() {
            return MAX_SEARCH;
        }
        doubled(self.vain_searches)
    }

    /// Pause before the next search. It grows with the failures of returned hosts, because each attempt opens all
    /// stages.
    pub fn pause(&self) -> Duration {
        doubled(self.vain_searches.saturating_sub(1))
    }

    /// Records that a route is open.
    pub fn on_opened(&mut self, now: Instant) {
        self.opened = Some(now);
    }

    /// Whether a route was open before, so that the session resumes.
    pub fn has_opened(&self) -> bool {
        self.opened.is_some()
    }

    /// The step after a search that `found` a route, or none. The search never gives up before it has asked the
    /// returned hosts again: a refusal by a full host may have used up the time.
    pub fn next(&mut self, search: &mut RouteSearch, found: bool, now: Instant) -> SearchStep {
        match found {
            true if self.epoch >= MAX_ATTEMPTS => SearchStep::GiveUp,
            true => SearchStep::Attempt,
            false if search.is_last || (search.lost.is_empty() && now >= search.until) => SearchStep::GiveUp,
            false => {
                search.is_last = now >= search.latest;
                if !search.lost.is_empty() {
                    self.vain_searches = self.vain_searches.saturating_add(1);
                }
                search.lost.clear();
                SearchStep::Retry
            }
        }
    }
}

impl RouteSearch {
    /// Nodes excluded for now.
    pub fn lost(&self) -> &[NodeId] {
        &self.lost
    }
}

/// The first search timeout, doubled `times` times, within the longest.
fn doubled(times: u32) -> Duration {
    MAX_SEARCH.min(FIRST_SEARCH * (1 << times.min(MAX_DOUBLINGS)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn failure(name: u8, may_return: bool) -> RouteFailure {
        RouteFailure { nodes: vec![NodeId([name; 32])], may_return, fault: Fault::new(ErrorKind::PeerLost, name) }
    }

    #[test]
    fn a_host_that_may_return_is_excluded_only_for_now() {
        let (mut attempts, now) = (RouteAttempts::default(), Instant::now());
        let mut search = attempts.begin_search(failure(1, true), now, PATIENCE);
        attempts.exclude(failure(2, false), &mut search, now);
        assert_eq!(attempts.without(search.lost()), [NodeId([2; 32]), NodeId([1; 32])]);
        assert_eq!(attempts.next(&mut search, false, now), SearchStep::Retry);
        assert_eq!(attempts.without(search.lost()), [NodeId([2; 32])]);
    }

    #[test]
    fn a_route_is_busy_only_where_none_of_its_hosts_has_failed() {
        let of = |kinds: &[ErrorKind]| {
            let failed = kinds.iter().map(|kind| (NodeId([1; 32]), Fault::new(*kind, "so"))).collect();
            RouteFailure::unopened(failed, false).map(|failure| failure.fault.kind())
        };
        assert_eq!(of(&[ErrorKind::Overloaded, ErrorKind::NoCredit]), Some(ErrorKind::NoCredit));
        assert_eq!(of(&[ErrorKind::Overloaded, ErrorKind::Overloaded]), Some(ErrorKind::Overloaded));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn it_waits_for_lost_hosts_within_its_patience_only() {
        let (mut attempts, now) = (RouteAttempts::default(), Instant::now());
        let mut search = attempts.begin_search(failure(1, true), now, PATIENCE);
        assert_eq!(attempts.next(&mut search, false, now + PATIENCE / 2), SearchStep::Retry);
        assert_eq!(attempts.next(&mut search, false, now + PATIENCE), SearchStep::GiveUp);
        let mut search = attempts.begin_search(failure(1, false), now, PATIENCE);
        assert_eq!(attempts.next(&mut search, false, now), SearchStep::GiveUp);
    }

    #[test]
    fn returned_hosts_are_asked_again_before_giving_up() {
        let (mut attempts, now) = (RouteAttempts::default(), Instant::now());
        attempts.on_opened(now);
        let mut search = attempts.begin_search(failure(1, true), now, PATIENCE);
        let later = now + PATIENCE * 2;
        let full = vec![(NodeId([2; 32]), Fault::new(ErrorKind::Overloaded, "so"))];
        attempts.exclude(RouteFailure::unopened(full, attempts.has_opened()).unwrap(), &mut search, later);
        assert_eq!(attempts.without(search.lost()), [NodeId([1; 32]), NodeId([2; 32])]);
        // At any time.
        for late in [later + PATIENCE, now + PATIENCE * MAX_EXTENSION * 2] {
            let mut search =
                RouteSearch { lost: search.lost.clone(), ..attempts.begin_search(failure(1, true), now, PATIENCE) };
            assert_eq!(attempts.next(&mut search, false, late), SearchStep::Retry);
            assert!(attempts.without(search.lost()).is_empty());
            assert_eq!(attempts.next(&mut search, false, late), SearchStep::GiveUp);
        }
    }

    #[test]
    fn full_hosts_shorten_the_first_search_but_not_a_resumed_one() {
        let (mut attempts, now) = (RouteAttempts::default(), Instant::now());
        let full = || RouteFailure { fault: Fault::new(ErrorKind::Overloaded, "so"), ..failure(1, false) };
        let search = attempts.begin_search(full(), now, PATIENCE);
        assert_eq!(attempts.search_timeout(&search), RETRY_INTERVAL);
        attempts.on_opened(now);
        let search = attempts.begin_search(full(), now, PATIENCE);
        assert_eq!(attempts.search_timeout(&search), MAX_SEARCH);
    }

    #[test]
    fn each_lost_host_extends_the_patience_within_a_bound() {
        let (mut attempts, begun) = (RouteAttempts::default(), Instant::now());
        let mut search = attempts.begin_search(failure(1, true), begun, PATIENCE);
        let late = begun + PATIENCE;
        attempts.exclude(failure(2, true), &mut search, late);
        assert_eq!(attempts.next(&mut search, false, late), SearchStep::Retry);
        let last = begun + PATIENCE * MAX_EXTENSION;
        attempts.exclude(failure(1, true), &mut search, last - Duration::from_secs(1));
        assert_eq!(attempts.next(&mut search, false, last - Duration::from_millis(1)), SearchStep::Retry);
        assert_eq!(attempts.next(&mut search, false, last), SearchStep::GiveUp);
    }

    #[test]
    fn searches_grow_longer_while_returned_hosts_keep_failing() {
        let (mut attempts, now) = (RouteAttempts::default(), Instant::now());
        let mut search = attempts.begin_search(failure(1, true), now, PATIENCE);
        let (mut timeouts, mut pauses) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            timeouts.push(attempts.search_timeout(&search).as_millis());
            assert_eq!(attempts.next(&mut search, false, now), SearchStep::Retry);
            pauses.push(attempts.pause().as_millis());
            assert_eq!(attempts.search_timeout(&search), MAX_SEARCH, "a search with all hosts waits the longest");
            attempts.exclude(failure(1, true), &mut search, now);
        }
        assert_eq!((timeouts, pauses), (vec![250, 500, 1000, 2000, 3000], vec![250, 500, 1000, 2000, 3000]));
        let later = attempts.begin_search(failure(1, true), now, PATIENCE);
        assert_eq!(attempts.search_timeout(&later), MAX_SEARCH, "failures count across searches");
        attempts.on_opened(now);
        let again = attempts.begin_search(failure(1, true), now + STABLE_AFTER, PATIENCE);
        assert_eq!(attempts.search_timeout(&again), FIRST_SEARCH, "a stable route resets them");
    }

    #[test]
    fn attempts_are_numbered_and_bounded() {
        let (mut attempts, now) = (RouteAttempts::default(), Instant::now());
        let mut search = attempts.begin_search(failure(1, true), now, PATIENCE);
        for epoch in 0..MAX_ATTEMPTS {
            assert_eq!(attempts.next(&mut search, true, now), SearchStep::Attempt);
            assert_eq!(attempts.begin(), epoch);
        }
        assert_eq!(attempts.next(&mut search, true, now), SearchStep::GiveUp);
    }
}
