//! Pending operations: the callers waiting for a dial, an identify message or a DHT query, with their deadlines.
//!
//! Independent of the swarm: events in, replies out. Every waiter gets one reply, at its deadline at the latest.

use std::collections::HashMap;
use std::hash::Hash as HashKey;
use std::time::{Duration, Instant};

use super::NetError;
use super::command::Reply;
use super::config::{MAX_PENDING, MAX_PROVIDERS_FOUND};
use crate::base::NodeId;

/// A caller waiting for a connection to a peer.
pub(super) struct Waiter {
    /// The address for error texts.
    pub address: String,
    pub reply: Reply<NodeId>,
    pub deadline: Instant,
    pub allowed: Duration,
    /// Whether the dial is cancelled once no caller waits for it.
    pub cancellable: bool,
}

impl Waiter {
    fn expire(self) {
        let millis = self.allowed.as_millis() as u64;
        let _ = self.reply.send(Err(NetError::Timeout { what: "connecting to a peer", millis }));
    }

    fn fail(self, error: &dyn Fn(String) -> NetError) {
        let _ = self.reply.send(Err(error(self.address)));
    }
}

/// A DHT query.
pub(super) enum Query {
    /// Announcement of a key.
    Provide(Reply<()>),
    /// Search for providers.
    Find { found: Vec<NodeId>, reply: Reply<Vec<NodeId>> },
}

/// All pending operations. `D` identifies a dial, `P` a peer, `Q` a query.
pub(super) struct Pending<D, P, Q> {
    dials: HashMap<D, (Option<P>, Vec<Waiter>)>,
    awaiting_identify: HashMap<P, Vec<Waiter>>,
    queries: HashMap<Q, (Instant, Query)>,
}

impl<D: HashKey + Eq + Copy, P: HashKey + Eq + Copy, Q: HashKey + Eq + Copy> Pending<D, P, Q> {
    pub fn new() -> Self {
        Self { dials: HashMap::new(), awaiting_identify: HashMap::new(), queries: HashMap::new() }
    }

    /// Whether the number of pending operations is below the limit.
    pub fn has_capacity(&self) -> bool {
        let waiters = self.dials.values().map(|(_, waiters)| waiters.len()).sum::<usize>()
            + self.awaiting_identify.values().map(Vec::len).sum::<usize>();
        waiters + self.queries.len() < MAX_PENDING
    }

    /// A dial was started, with or without waiters.
    pub fn dialling(&mut self, dial: D, peer: Option<P>, waiters: Vec<Waiter>) {
        self.dials.insert(dial, (peer, waiters));
    }

    /// Whether the driver started the dial; routing, AutoNAT and hole punching start dials of their own.
    pub fn is_ours(&self, dial: D) -> bool {
        self.dials.contains_key(&dial)
    }

    /// Whether any dial to this peer is under way.
    pub fn is_dialling(&self, peer: P) -> bool {
        self.dials.values().any(|(to, _)| *to == Some(peer))
    }

    /// A dial to this peer that is under way with waiters. A dial without waiters uses old addresses, and the caller may
    /// have newer ones.
    pub fn dial_to(&self, peer: P) -> Option<D> {
        let has_waiters = |(to, waiters): &(Option<P>, Vec<Waiter>)| *to == Some(peer) && !waiters.is_empty();
        self.dials.iter().find(|(_, dial)| has_waiters(dial)).map(|(dial, _)| *dial)
    }

    /// Adds a waiter to a dial under way.
    pub fn join(&mut self, dial: D, waiter: Waiter) {
        if let Some((_, waiters)) = self.dials.get_mut(&dial) {
            waiters.push(waiter);
        }
    }

    /// Adds a waiter for the identify message of a connected peer.
    pub fn await_identify(&mut self, peer: P, waiter: Waiter) {
        self.awaiting_identify.entry(peer).or_default().push(waiter);
    }

    /// The dial has connected to `peer`; its waiters now wait for the identify message.
    pub fn connected(&mut self, dial: D, peer: P) {
        let Some((_, waiters)) = self.dials.remove(&dial) else { return };
        if !waiters.is_empty() {
            self.awaiting_identify.entry(peer).or_default().extend(waiters);
        }
    }

    /// The dial has failed.
    pub fn dial_failed(&mut self, dial: D, error: &dyn Fn(String) -> NetError) {
        let Some((_, waiters)) = self.dials.remove(&dial) else { return };
        waiters.into_iter().for_each(|waiter| waiter.fail(error));
    }

    /// The peer has identified as a node of this network.
    pub fn identified(&mut self, peer: P, node: NodeId) {
        for waiter in self.awaiting_identify.remove(&peer).unwrap_or_default() {
            let _ = waiter.reply.send(Ok(node));
        }
    }

    /// The peer belongs to another network, or has disconnected.
    pub fn refused(&mut self, peer: P, error: &dyn Fn(String) -> NetError) {
        let waiters = self.awaiting_identify.remove(&peer).unwrap_or_default();
        waiters.into_iter().for_each(|waiter| waiter.fail(error));
    }

    /// A query was started.
    pub fn query_started(&mut self, id: Q, deadline: Instant, query: Query) {
        self.queries.insert(id, (deadline, query));
    }

    /// Adds providers found by a query.
    pub fn found(&mut self, id: Q, nodes: impl Iterator<Item = NodeId>) {
        let Some((_, Query::Find { found, .. })) = self.queries.get_mut(&id) else { return };
        for node in nodes {
            if found.len() < MAX_PROVIDERS_FOUND && !found.contains(&node) {
                found.push(node);
            }
        }
    }

    /// The query has ended. After an error, a search still returns the providers found so far.
    pub fn query_ended(&mut self, id: Q, error: Option<NetError>) {
        match (self.queries.remove(&id), error) {
            (Some((_, Query::Provide(reply))), None) => drop(reply.send(Ok(()))),
            (Some((_, Query::Provide(reply))), Some(error)) => drop(reply.send(Err(error))),
            (Some((_, Query::Find { found, reply })), None) => drop(reply.send(Ok(found))),
            (Some((_, Query::Find { found, reply })), Some(_)) if !found.is_empty() => drop(reply.send(Ok(found))),
            (Some((_, Query::Find { reply, .. })), Some(error)) => drop(reply.send(Err(error))),
            (None, _) => {}
        }
    }

    /// Answers waiters past their deadline and removes cancelled ones. Returns the peers whose dial to cancel: all its
    /// waiters have gone and no other dial to the peer is under way.
    pub fn sweep(&mut self, now: Instant) -> Vec<P> {
        let mut cancelled = Vec::new();
        for (peer, waiters) in self.dials.values_mut() {
            if !waiters.is_empty() && waiters.iter().all(|waiter| waiter.cancellable && waiter.reply.is_closed()) {
                cancelled.extend(*peer);
            }
            expire(waiters, now);
        }
        cancelled.retain(|peer| self.dials.values().filter(|(to, _)| *to == Some(*peer)).count() == 1);
        for waiters in self.awaiting_identify.values_mut() {
            expire(waiters, now);
        }
        self.awaiting_identify.retain(|_, waiters| !waiters.is_empty());
        let late: Vec<Q> =
            self.queries.iter().filter(|(_, (deadline, _))| *deadline <= now).map(|(id, _)| *id).collect();
        for id in late {
            let millis = super::config::QUERY_DEADLINE.as_millis() as u64;
            self.query_ended(id, Some(NetError::Timeout { what: "searching the swarm", millis }));
        }
        cancelled
    }
}

fn expire(waiters: &mut Vec<Waiter>, now: Instant) {
    for waiter in waiters.extract_if(.., |waiter| waiter.deadline <= now || waiter.reply.is_closed()) {
        waiter.expire();
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    type TestPending = Pending<u32, u32, u32>;

    fn waiter(allowed: Duration) -> (Waiter, oneshot::Receiver<Result<NodeId, NetError>>) {
        let (reply, receiver) = oneshot::channel();
        (
            Waiter { address: "there".into(), reply, deadline: Instant::now() + allowed, allowed, cancellable: false },
            receiver,
        )
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_dial_completes_when_the_peer_identifies() {
        let (mut pending, node) = (TestPending::new(), NodeId([1; 32]));
        let (first, mut first_reply) = waiter(LONG);
        let (second, mut second_reply) = waiter(LONG);
        pending.dialling(1, Some(7), vec![first]);
        pending.join(pending.dial_to(7).unwrap(), second);
        pending.dialling(2, Some(8), Vec::new());
        assert_eq!(pending.dial_to(8), None, "a dial without waiters");
        pending.connected(1, 7);
        assert!(first_reply.try_recv().is_err(), "connected is not enough");
        pending.identified(7, node);
        assert_eq!(first_reply.try_recv().unwrap(), Ok(node));
        assert_eq!(second_reply.try_recv().unwrap(), Ok(node));
        assert_eq!(pending.dial_to(7), None);
    }

    #[test]
    fn every_waiter_gets_a_failure_with_its_address() {
        let mut pending = TestPending::new();
        let (dialling, mut dial_reply) = waiter(LONG);
        let (identifying, mut identify_reply) = waiter(LONG);
        pending.dialling(1, None, vec![dialling]);
        pending.await_identify(7, identifying);
        pending.dial_failed(1, &|address| NetError::SelfDial { address });
        pending.refused(7, &|address| NetError::NotSwarmllm { address, theirs: "x".into() });
        assert_eq!(dial_reply.try_recv().unwrap(), Err(NetError::SelfDial { address: "there".into() }));
        assert!(matches!(identify_reply.try_recv().unwrap(), Err(NetError::NotSwarmllm { .. })));
    }

    #[test]
    fn waiters_are_answered_at_their_deadline() {
        let mut pending = TestPending::new();
        let (dialling, mut dial_reply) = waiter(Duration::ZERO);
        let (identifying, mut identify_reply) = waiter(Duration::ZERO);
        let (reply, mut found) = oneshot::channel();
        pending.dialling(1, None, vec![dialling]);
        pending.await_identify(7, identifying);
        pending.query_started(9, Instant::now(), Query::Find { found: Vec::new(), reply });
        pending.sweep(Instant::now());
        assert!(matches!(dial_reply.try_recv().unwrap(), Err(NetError::Timeout { .. })));
        assert!(matches!(identify_reply.try_recv().unwrap(), Err(NetError::Timeout { .. })));
        assert!(matches!(found.try_recv().unwrap(), Err(NetError::Timeout { .. })));
    }

    #[test]
    fn a_dial_is_cancelled_once_all_its_waiters_have_gone() {
        let mut pending = TestPending::new();
        let cancellable = || {
            let (waiter, reply) = waiter(LONG);
            (Waiter { cancellable: true, ..waiter }, reply)
        };
        let ((first, first_reply), (second, second_reply)) = (cancellable(), cancellable());
        pending.dialling(1, Some(7), vec![first, second]);
        let (patient, patient_reply) = waiter(LONG);
        pending.dialling(2, Some(8), vec![patient]);
        let (third, third_reply) = cancellable();
        pending.dialling(3, Some(9), vec![third]);
        pending.dialling(4, Some(9), Vec::new());
        drop((first_reply, patient_reply, third_reply));
        assert!(pending.sweep(Instant::now()).is_empty(), "a waiter, a dial that is not cancellable, or another dial");
        drop(second_reply);
        assert_eq!(pending.sweep(Instant::now()), [7]);
        assert!(pending.sweep(Instant::now()).is_empty(), "reported once");
    }

    #[test]
    fn pending_operations_are_bounded_and_cancelled_ones_removed() {
        let mut pending = TestPending::new();
        let mut replies = Vec::new();
        for number in 0..MAX_PENDING {
            assert!(pending.has_capacity());
            let (waiter, reply) = waiter(LONG);
            pending.await_identify(number as u32, waiter);
            replies.push(reply);
        }
        assert!(!pending.has_capacity());
        replies.clear();
        pending.sweep(Instant::now());
        assert!(pending.has_capacity());
    }

    #[test]
    fn a_timed_out_search_returns_what_it_found() {
        let mut pending = TestPending::new();
        let (reply, mut outcome) = oneshot::channel();
        pending.query_started(9, Instant::now(), Query::Find { found: Vec::new(), reply });
        pending.found(9, [NodeId([1; 32]), NodeId([1; 32]), NodeId([2; 32])].into_iter());
        pending.sweep(Instant::now());
        assert_eq!(outcome.try_recv().unwrap(), Ok(vec![NodeId([1; 32]), NodeId([2; 32])]));
    }
}
