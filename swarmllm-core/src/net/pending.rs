//! Acts that wait for their end: who waits for which dial, peer or search, and until when.
//!
//! Knows nothing of the swarm: facts in, replies out. Every waiter is answered once, at its deadline at the latest.

use std::collections::HashMap;
use std::hash::Hash as HashKey;
use std::time::{Duration, Instant};

use super::NetError;
use super::command::Reply;
use super::config::{MAX_PENDING, MAX_PROVIDERS_FOUND};
use crate::base::NodeId;

/// Someone who waits to be connected to a peer.
pub(super) struct Waiter {
    /// The address as given, for errors.
    pub address: String,
    pub reply: Reply<NodeId>,
    pub deadline: Instant,
    pub allowed: Duration,
    /// Whether the dial ends where nobody waits for it any more.
    pub brief: bool,
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

/// A search or announcement in the routing table.
pub(super) enum Query {
    /// Announce a key.
    Provide(Reply<()>),
    /// Find who announced one.
    Find { found: Vec<NodeId>, reply: Reply<Vec<NodeId>> },
}

/// Everything that waits. `D` names a dial, `P` a peer, `Q` a query.
pub(super) struct Pending<D, P, Q> {
    dials: HashMap<D, (Option<P>, Vec<Waiter>)>,
    greetings: HashMap<P, Vec<Waiter>>,
    queries: HashMap<Q, (Instant, Query)>,
}

impl<D: HashKey + Eq + Copy, P: HashKey + Eq + Copy, Q: HashKey + Eq + Copy> Pending<D, P, Q> {
    pub fn new() -> Self {
        Self { dials: HashMap::new(), greetings: HashMap::new(), queries: HashMap::new() }
    }

    /// Whether one more act may wait.
    pub fn has_room(&self) -> bool {
        let waiters = self.dials.values().map(|(_, waiters)| waiters.len()).sum::<usize>()
            + self.greetings.values().map(Vec::len).sum::<usize>();
        waiters + self.queries.len() < MAX_PENDING
    }

    /// A dial was started; without waiters it is only remembered as being under way.
    pub fn dialling(&mut self, dial: D, peer: Option<P>, waiters: Vec<Waiter>) {
        self.dials.insert(dial, (peer, waiters));
    }

    /// Whether this node itself has begun the dial: routing, tries and circuits begin some of their own.
    pub fn is_ours(&self, dial: D) -> bool {
        self.dials.contains_key(&dial)
    }

    /// Whether any dial to this peer is under way.
    pub fn is_dialling(&self, peer: P) -> bool {
        self.dials.values().any(|(to, _)| *to == Some(peer))
    }

    /// A dial to this peer that is under way and that somebody asked for. One that only tries where the peer once was is
    /// none to wait for: whoever asks may know better.
    pub fn dial_to(&self, peer: P) -> Option<D> {
        let asked = |(to, waiters): &(Option<P>, Vec<Waiter>)| *to == Some(peer) && !waiters.is_empty();
        self.dials.iter().find(|(_, dial)| asked(dial)).map(|(dial, _)| *dial)
    }

    /// Waits for the end of a dial that is under way.
    pub fn join(&mut self, dial: D, waiter: Waiter) {
        if let Some((_, waiters)) = self.dials.get_mut(&dial) {
            waiters.push(waiter);
        }
    }

    /// Waits for a connected peer to identify itself.
    pub fn await_greeting(&mut self, peer: P, waiter: Waiter) {
        self.greetings.entry(peer).or_default().push(waiter);
    }

    /// The dial has connected to `peer`, who must now identify itself.
    pub fn connected(&mut self, dial: D, peer: P) {
        let Some((_, waiters)) = self.dials.remove(&dial) else { return };
        if !waiters.is_empty() {
            self.greetings.entry(peer).or_default().extend(waiters);
        }
    }

    /// The dial has failed.
    pub fn dial_failed(&mut self, dial: D, error: &dyn Fn(String) -> NetError) {
        let Some((_, waiters)) = self.dials.remove(&dial) else { return };
        waiters.into_iter().for_each(|waiter| waiter.fail(error));
    }

    /// The peer is one of ours.
    pub fn greeted(&mut self, peer: P, node: NodeId) {
        for waiter in self.greetings.remove(&peer).unwrap_or_default() {
            let _ = waiter.reply.send(Ok(node));
        }
    }

    /// The peer is none of ours, or has left.
    pub fn refused(&mut self, peer: P, error: &dyn Fn(String) -> NetError) {
        let waiters = self.greetings.remove(&peer).unwrap_or_default();
        waiters.into_iter().for_each(|waiter| waiter.fail(error));
    }

    /// A query was started.
    pub fn asked(&mut self, id: Q, deadline: Instant, query: Query) {
        self.queries.insert(id, (deadline, query));
    }

    /// A search has found these.
    pub fn found(&mut self, id: Q, nodes: impl Iterator<Item = NodeId>) {
        let Some((_, Query::Find { found, .. })) = self.queries.get_mut(&id) else { return };
        for node in nodes {
            if found.len() < MAX_PROVIDERS_FOUND && !found.contains(&node) {
                found.push(node);
            }
        }
    }

    /// The query has ended; a search that was cut short has still found what it found.
    pub fn answered(&mut self, id: Q, error: Option<NetError>) {
        match (self.queries.remove(&id), error) {
            (Some((_, Query::Provide(reply))), None) => drop(reply.send(Ok(()))),
            (Some((_, Query::Provide(reply))), Some(error)) => drop(reply.send(Err(error))),
            (Some((_, Query::Find { found, reply })), None) => drop(reply.send(Ok(found))),
            (Some((_, Query::Find { found, reply })), Some(_)) if !found.is_empty() => drop(reply.send(Ok(found))),
            (Some((_, Query::Find { reply, .. })), Some(error)) => drop(reply.send(Err(error))),
            (None, _) => {}
        }
    }

    /// Answers whoever has waited long enough, and forgets who no longer waits. Gives the peers of dials that end: all who
    /// waited for them have given up, and no other dial to the peer is under way.
    pub fn sweep(&mut self, now: Instant) -> Vec<P> {
        let mut given_up = Vec::new();
        for (peer, waiters) in self.dials.values_mut() {
            if !waiters.is_empty() && waiters.iter().all(|waiter| waiter.brief && waiter.reply.is_closed()) {
                given_up.extend(*peer);
            }
            expire(waiters, now);
        }
        given_up.retain(|peer| self.dials.values().filter(|(to, _)| *to == Some(*peer)).count() == 1);
        for waiters in self.greetings.values_mut() {
            expire(waiters, now);
        }
        self.greetings.retain(|_, waiters| !waiters.is_empty());
        let late: Vec<Q> =
            self.queries.iter().filter(|(_, (deadline, _))| *deadline <= now).map(|(id, _)| *id).collect();
        for id in late {
            let millis = super::config::QUERY_DEADLINE.as_millis() as u64;
            self.answered(id, Some(NetError::Timeout { what: "searching the swarm", millis }));
        }
        given_up
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

    type Acts = Pending<u32, u32, u32>;

    fn waiter(allowed: Duration) -> (Waiter, oneshot::Receiver<Result<NodeId, NetError>>) {
        let (reply, receiver) = oneshot::channel();
        (Waiter { address: "there".into(), reply, deadline: Instant::now() + allowed, allowed, brief: false }, receiver)
    }

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_dial_is_answered_when_the_peer_has_said_who_it_is() {
        let (mut acts, node) = (Acts::new(), NodeId([1; 32]));
        let (first, mut first_reply) = waiter(LONG);
        let (second, mut second_reply) = waiter(LONG);
        acts.dialling(1, Some(7), vec![first]);
        acts.join(acts.dial_to(7).unwrap(), second);
        acts.dialling(2, Some(8), Vec::new());
        assert_eq!(acts.dial_to(8), None, "nobody asked for that one");
        acts.connected(1, 7);
        assert!(first_reply.try_recv().is_err(), "connected is not enough");
        acts.greeted(7, node);
        assert_eq!(first_reply.try_recv().unwrap(), Ok(node));
        assert_eq!(second_reply.try_recv().unwrap(), Ok(node));
        assert_eq!(acts.dial_to(7), None);
    }

    #[test]
    fn a_failure_reaches_every_waiter_with_its_own_address() {
        let mut acts = Acts::new();
        let (dialling, mut dial_reply) = waiter(LONG);
        let (greeting, mut greeting_reply) = waiter(LONG);
        acts.dialling(1, None, vec![dialling]);
        acts.await_greeting(7, greeting);
        acts.dial_failed(1, &|address| NetError::ThatIsMe { address });
        acts.refused(7, &|address| NetError::NotSwarmllm { address, theirs: "x".into() });
        assert_eq!(dial_reply.try_recv().unwrap(), Err(NetError::ThatIsMe { address: "there".into() }));
        assert!(matches!(greeting_reply.try_recv().unwrap(), Err(NetError::NotSwarmllm { .. })));
    }

    #[test]
    fn nobody_waits_beyond_the_deadline() {
        let mut acts = Acts::new();
        let (dialling, mut dial_reply) = waiter(Duration::ZERO);
        let (greeting, mut greeting_reply) = waiter(Duration::ZERO);
        let (reply, mut found) = oneshot::channel();
        acts.dialling(1, None, vec![dialling]);
        acts.await_greeting(7, greeting);
        acts.asked(9, Instant::now(), Query::Find { found: Vec::new(), reply });
        acts.sweep(Instant::now());
        assert!(matches!(dial_reply.try_recv().unwrap(), Err(NetError::Timeout { .. })));
        assert!(matches!(greeting_reply.try_recv().unwrap(), Err(NetError::Timeout { .. })));
        assert!(matches!(found.try_recv().unwrap(), Err(NetError::Timeout { .. })));
    }

    #[test]
    fn a_brief_dial_ends_where_all_who_waited_for_it_have_given_up() {
        let mut acts = Acts::new();
        let brief = || {
            let (waiter, reply) = waiter(LONG);
            (Waiter { brief: true, ..waiter }, reply)
        };
        let ((first, first_reply), (second, second_reply)) = (brief(), brief());
        acts.dialling(1, Some(7), vec![first, second]);
        let (patient, patient_reply) = waiter(LONG);
        acts.dialling(2, Some(8), vec![patient]);
        let (third, third_reply) = brief();
        acts.dialling(3, Some(9), vec![third]);
        acts.dialling(4, Some(9), Vec::new());
        drop((first_reply, patient_reply, third_reply));
        assert!(acts.sweep(Instant::now()).is_empty(), "somebody waits, it may last, or another dial is under way");
        drop(second_reply);
        assert_eq!(acts.sweep(Instant::now()), [7]);
        assert!(acts.sweep(Instant::now()).is_empty(), "it is told once");
    }

    #[test]
    fn what_waits_is_bounded_and_who_gave_up_makes_room() {
        let mut acts = Acts::new();
        let mut replies = Vec::new();
        for number in 0..MAX_PENDING {
            assert!(acts.has_room());
            let (waiter, reply) = waiter(LONG);
            acts.await_greeting(number as u32, waiter);
            replies.push(reply);
        }
        assert!(!acts.has_room());
        replies.clear();
        acts.sweep(Instant::now());
        assert!(acts.has_room());
    }

    #[test]
    fn a_search_keeps_what_it_found_when_it_is_cut_short() {
        let mut acts = Acts::new();
        let (reply, mut outcome) = oneshot::channel();
        acts.asked(9, Instant::now(), Query::Find { found: Vec::new(), reply });
        acts.found(9, [NodeId([1; 32]), NodeId([1; 32]), NodeId([2; 32])].into_iter());
        acts.sweep(Instant::now());
        assert_eq!(outcome.try_recv().unwrap(), Ok(vec![NodeId([1; 32]), NodeId([2; 32])]));
    }
}
