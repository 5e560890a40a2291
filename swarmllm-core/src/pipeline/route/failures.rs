//! Hosts that failed a short while ago to open or compute a stage, or to say hello. The next plans prefer other hosts.
//!
//! A host is never excluded: where no other can do the work it is asked again, and a complete answer clears its
//! failures.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::base::{ErrorKind, NodeId};

/// How long a first failure counts. Each further one counts twice as long.
const FIRST: Duration = Duration::from_secs(30);
/// How long a full host counts as failed: the time of an answer of some length.
const FULL: Duration = Duration::from_secs(5);
/// Longest that a failure counts. After as long again without a failure a host starts anew.
const LONGEST: Duration = Duration::from_secs(10 * 60);
/// Hosts that are remembered: as many as announcements (4,096). Beyond that the failure that expires first is dropped.
const MAX_HOSTS: usize = 4096;

/// See the module.
#[derive(Default)]
pub struct Failures {
    hosts: Mutex<HashMap<NodeId, Failure>>,
}

struct Failure {
    until: Instant,
    counts: Duration,
}

impl Failures {
    fn hosts(&self) -> MutexGuard<'_, HashMap<NodeId, Failure>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A host refused a request for work with a fault of this kind.
    pub fn refused(&self, host: NodeId, kind: ErrorKind) {
        match kind {
            kind if is_full(kind) => self.full(host),
            kind if is_failure(kind) => self.failed(host),
            _ => {}
        }
    }

    /// A host has failed.
    pub fn failed(&self, host: NodeId) {
        self.failed_at(host, Instant::now());
    }

    fn failed_at(&self, host: NodeId, now: Instant) {
        let mut hosts = self.hosts();
        hosts.retain(|_, failure| now < failure.until + LONGEST);
        let counts = match hosts.get(&host) {
            None => FIRST,
            // Several sessions that meet one failure count it once.
            Some(failure) if now < failure.until && failure.counts >= FIRST => failure.counts,
            Some(failure) => LONGEST.min((failure.counts * 2).max(FIRST)),
        };
        remember(&mut hosts, host, Failure { until: now + counts, counts });
    }

    /// A host had no room for a session. That is no failure, but a host that is always full must not stay first.
    pub fn full(&self, host: NodeId) {
        self.full_at(host, Instant::now());
    }

    fn full_at(&self, host: NodeId, now: Instant) {
        let mut hosts = self.hosts();
        let known = hosts.get(&host).map_or(FULL, |failure| failure.counts);
        let until = hosts.get(&host).map_or(now, |failure| failure.until).max(now + FULL);
        remember(&mut hosts, host, Failure { until, counts: known });
    }

    /// A host has done its part of a complete answer.
    pub fn worked(&self, host: NodeId) {
        self.hosts().remove(&host);
    }

    /// Hosts with a failure that counts now.
    pub fn now(&self) -> HashSet<NodeId> {
        self.at(Instant::now())
    }

    fn at(&self, now: Instant) -> HashSet<NodeId> {
        self.hosts().iter().filter(|(_, failure)| now < failure.until).map(|(host, _)| *host).collect()
    }
}

fn remember(hosts: &mut HashMap<NodeId, Failure>, host: NodeId, failure: Failure) {
    if hosts.len() >= MAX_HOSTS && !hosts.contains_key(&host) {
        let least = hosts.iter().min_by_key(|(_, failure)| failure.until).map(|(host, _)| *host);
        least.and_then(|host| hosts.remove(&host));
    }
    hosts.insert(host, failure);
}

/// Whether a fault is the host's, rather than the request's.
fn is_failure(kind: ErrorKind) -> bool {
    use ErrorKind::{Cancelled, Closed, ContextOverflow, InvalidArgument, Unsupported};
    !is_full(kind) && !matches!(kind, Cancelled | Closed | ContextOverflow | InvalidArgument | Unsupported)
}

/// Whether the host is full, or admits no more work of this node for now.
fn is_full(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Overloaded | ErrorKind::OutOfMemory | ErrorKind::NoCredit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn host(number: u32) -> NodeId {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&number.to_le_bytes());
        NodeId(id)
    }

    #[test]
    fn a_failure_counts_for_a_while_and_longer_each_time() {
        let (failures, now) = (Failures::default(), Instant::now());
        failures.failed_at(host(1), now);
        assert_eq!(failures.at(now + FIRST - SECOND), [host(1)].into());
        assert!(failures.at(now + FIRST).is_empty());
        let again = now + FIRST * 2;
        failures.failed_at(host(1), again);
        assert_eq!(failures.at(again + FIRST * 2 - SECOND), [host(1)].into());
        assert!(failures.at(again + FIRST * 2).is_empty());
        for _ in 0..20 {
            failures.failed_at(host(1), again);
        }
        assert!(failures.at(again + LONGEST).is_empty());
        let anew = again + LONGEST * 2;
        failures.failed_at(host(1), anew);
        assert!(failures.at(anew + FIRST).is_empty());
    }

    #[test]
    fn a_complete_answer_clears_the_failures_of_its_hosts() {
        let failures = Failures::default();
        failures.failed(host(1));
        failures.worked(host(1));
        assert!(failures.now().is_empty());
    }

    #[test]
    fn one_failure_met_by_several_sessions_counts_once() {
        let (failures, now) = (Failures::default(), Instant::now());
        (0..6).for_each(|_| failures.failed_at(host(1), now));
        assert_eq!((failures.at(now + FIRST - SECOND).len(), failures.at(now + FIRST).len()), (1, 0));
    }

    #[test]
    fn a_full_host_comes_last_for_a_moment_however_often_it_says_so() {
        let (failures, now) = (Failures::default(), Instant::now());
        (0..99).for_each(|_| failures.full_at(host(1), now));
        assert_eq!((failures.at(now + FULL - SECOND).len(), failures.at(now + FULL).len()), (1, 0));
        // A failure that counts longer is not shortened.
        failures.failed_at(host(2), now);
        failures.full_at(host(2), now);
        assert_eq!(failures.at(now + FIRST - SECOND), [host(2)].into());
    }

    #[test]
    fn failures_are_bounded() {
        let (failures, now) = (Failures::default(), Instant::now());
        for number in 0..MAX_HOSTS as u32 + 9 {
            failures.failed_at(host(number), now + Duration::from_millis(number.into()));
        }
        let counted = failures.at(now + SECOND);
        assert_eq!(counted.len(), MAX_HOSTS);
        assert!(!counted.contains(&host(0)) && counted.contains(&host(MAX_HOSTS as u32)));
    }

    #[test]
    fn a_fault_of_the_request_is_no_failure_of_the_host() {
        assert!(is_failure(ErrorKind::Timeout) && is_failure(ErrorKind::PeerUnreachable));
        assert!(is_failure(ErrorKind::BadFrame) && is_failure(ErrorKind::Refused));
        assert!(!is_failure(ErrorKind::Overloaded) && !is_failure(ErrorKind::ContextOverflow));
    }
}
