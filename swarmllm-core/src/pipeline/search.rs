//! The search for a session's routes: whom it does without, in which epoch it tries, and when it gives up. Pure; time is
//! an argument.

use std::time::{Duration, Instant};

use crate::base::{ErrorKind, Fault, NodeId};

/// Attempts to open routes that one session makes.
pub const MAX_ATTEMPTS: u32 = 32;
/// How often a route is looked for where there is none.
pub const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// Longest that a route is looked for at once: the swarm's table may be slow to say that it knows of nobody.
pub const LONGEST_LOOK: Duration = Duration::from_secs(3);
/// The same at first where hosts are left out that may be back already; each time that they were of no use again, others are
/// sought for twice as long.
const FIRST_LOOK: Duration = LOOK_AGAIN;
/// A route that stood for so long was of use: what was learnt before it of hosts that come back counts no more.
const STOOD: Duration = Duration::from_secs(30);
/// How often a look is made twice as long: 16 times 250 ms are more than the longest.
const LONGER_LOOKS: u32 = 4;
/// Most times its patience that a search waits in all, however many hosts it loses on the way.
const PATIENT: u32 = 4;

/// Hosts that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blame {
    /// Who. Where it is nobody, no other route would be better.
    pub nodes: Vec<NodeId>,
    /// Whether they may be asked again: their connection was lost, which may come back.
    pub may_return: bool,
    /// Why, for who asked.
    pub fault: Fault,
}

impl Blame {
    /// Hosts that did not open their stages; nothing where there are none. Who begins an answer does not wait for a host that is
    /// full (the node's own queue does); one that goes on has others only where they hold the same.
    pub fn unopened(failed: Vec<(NodeId, Fault)>, goes_on: bool) -> Option<Self> {
        // That a host is busy passes: where another has failed, that is the reason.
        let lasting = failed.iter().find(|(_, fault)| fault.kind() != ErrorKind::Overloaded);
        let fault = lasting.or(failed.first())?.1.clone();
        let is_full = |kind| matches!(kind, ErrorKind::Overloaded | ErrorKind::OutOfMemory);
        let passes = |kind| is_loss(kind) || (goes_on && is_full(kind));
        let may_return = failed.iter().all(|(_, fault)| passes(fault.kind()));
        Some(Blame { nodes: failed.into_iter().map(|(node, _)| node).collect(), may_return, fault })
    }

    /// Hosts that do not say that they are there; nothing where there are none. They may only be slow, or cut off, but there
    /// is another way. Where that turns out to be none, they are asked again.
    pub fn silent(nodes: Vec<NodeId>) -> Option<Self> {
        let text = format!("peer {} does not answer", nodes.first()?.short());
        Some(Blame { nodes, may_return: true, fault: Fault::new(ErrorKind::PeerLost, text) })
    }

    /// Hosts that have ended their stages, of which nobody was told; nothing where there are none. They may begin anew.
    pub fn gone(nodes: Vec<NodeId>) -> Option<Self> {
        let text = format!("peer {} has lost its stage", nodes.first()?.short());
        Some(Blame { nodes, may_return: true, fault: Fault::new(ErrorKind::PeerLost, text) })
    }
}

/// What one session has tried.
#[derive(Debug, Default)]
pub struct Tried {
    /// Epoch of the next attempt.
    epoch: u32,
    /// Nodes that are not asked again.
    without: Vec<NodeId>,
    /// Looks without hosts that may be back already, which found no others.
    looks: u32,
    /// When the last route was open.
    opened: Option<Instant>,
}

/// A search under way.
#[derive(Debug)]
pub struct Search {
    /// Why the route before was of no use: what is said where there is no other.
    pub cause: Fault,
    /// Until when it waits for hosts to return, and until when at most.
    until: Instant,
    longest: Instant,
    /// How long it waits after the last was lost.
    patience: Duration,
    /// Nodes that may return.
    lost: Vec<NodeId>,
    /// Whether its time is over, and it asks once more those who may have returned.
    last: bool,
}

/// What a search does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Open the route that was found.
    Attempt,
    /// Look again, after [`Tried::pause`], for one with those who may have returned.
    LookAgain,
    /// Say why.
    GiveUp,
}

impl Tried {
    /// The epoch of the last attempt.
    pub fn last_epoch(&self) -> u32 {
        self.epoch.saturating_sub(1)
    }

    /// The epoch of an attempt that begins.
    pub fn attempt(&mut self) -> u32 {
        self.epoch += 1;
        self.epoch - 1
    }

    /// Whom a route does without, beside these.
    pub fn without(&self, others: &[NodeId]) -> Vec<NodeId> {
        [self.without.as_slice(), others].concat()
    }

    /// Begins to search for another route than one whose hosts have failed, for as long as `patience` lasts if they may
    /// return.
    pub fn search(&mut self, blame: Blame, now: Instant, patience: Duration) -> Search {
        if self.opened.is_some_and(|opened| now.saturating_duration_since(opened) >= STOOD) {
            self.looks = 0;
        }
        let (cause, longest) = (blame.fault.clone(), now + patience * PATIENT);
        let mut search = Search { cause, until: now, longest, patience, lost: Vec::new(), last: false };
        self.blame(blame, &mut search, now);
        search
    }

    /// Hosts have failed: who may return is left out for now, the others for good.
    pub fn blame(&mut self, blame: Blame, search: &mut Search, now: Instant) {
        if blame.may_return {
            search.until = search.longest.min(now + search.patience);
            search.lost.extend(blame.nodes);
        } else {
            self.without.extend(blame.nodes);
        }
    }

    /// How long a route without those who may return is looked for now. A host whose connection was only replaced is back sooner
    /// than the table says that there is no other. One that is of no use each time that it returns, in this search or in a later
    /// one of the session, keeps others from being found for a moment only.
    pub fn look(&self, search: &Search) -> Duration {
        if self.opened.is_none() && search.cause.kind() == ErrorKind::Overloaded {
            // Another host that is known may have room. The swarm's table is not waited for: a slot comes free sooner.
            return LOOK_AGAIN;
        }
        if search.lost.is_empty() {
            return LONGEST_LOOK;
        }
        longer(self.looks)
    }

    /// How long it waits before it looks again: the longer the oftener those who came back were of no use, since each attempt
    /// opens all stages.
    pub fn pause(&self) -> Duration {
        longer(self.looks.saturating_sub(1))
    }

    /// A route is open.
    pub fn opened(&mut self, now: Instant) {
        self.opened = Some(now);
    }

    /// Whether a route was open before: what is sought now is to go on.
    pub fn goes_on(&self) -> bool {
        self.opened.is_some()
    }

    /// What follows where a route was `found`, or none was. Nobody gives up without having asked those again who may have
    /// returned: another may have taken all patience to say that it is full.
    pub fn next(&mut self, search: &mut Search, found: bool, now: Instant) -> Next {
        match found {
            true if self.epoch >= MAX_ATTEMPTS => Next::GiveUp,
            true => Next::Attempt,
            false if search.last || (search.lost.is_empty() && now >= search.until) => Next::GiveUp,
            false => {
                search.last = now >= search.longest;
                if !search.lost.is_empty() {
                    self.looks = self.looks.saturating_add(1);
                }
                search.lost.clear();
                Next::LookAgain
            }
        }
    }
}

impl Search {
    /// Who is left out for now.
    pub fn lost(&self) -> &[NodeId] {
        &self.lost
    }
}

/// The first look, so many times made twice as long.
fn longer(times: u32) -> Duration {
    LONGEST_LOOK.min(FIRST_LOOK * (1 << times.min(LONGER_LOOKS)))
}

/// Whether a fault says that a peer is out of reach, which may change.
pub fn is_loss(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::PeerLost | ErrorKind::PeerUnreachable)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(5);

    fn blame(name: u8, may_return: bool) -> Blame {
        Blame { nodes: vec![NodeId([name; 32])], may_return, fault: Fault::new(ErrorKind::PeerLost, name) }
    }

    #[test]
    fn who_may_return_is_left_out_until_there_is_no_other_way_and_who_failed_for_good() {
        let (mut tried, now) = (Tried::default(), Instant::now());
        let mut search = tried.search(blame(1, true), now, PATIENCE);
        tried.blame(blame(2, false), &mut search, now);
        assert_eq!(tried.without(search.lost()), [NodeId([2; 32]), NodeId([1; 32])]);
        assert_eq!(tried.next(&mut search, false, now), Next::LookAgain);
        assert_eq!(tried.without(search.lost()), [NodeId([2; 32])]);
    }

    #[test]
    fn a_route_is_busy_only_where_none_of_its_hosts_has_failed() {
        let of = |kinds: &[ErrorKind]| {
            let failed = kinds.iter().map(|kind| (NodeId([1; 32]), Fault::new(*kind, "so"))).collect();
            Blame::unopened(failed, false).map(|blame| blame.fault.kind())
        };
        assert_eq!(of(&[ErrorKind::Overloaded, ErrorKind::NoCredit]), Some(ErrorKind::NoCredit));
        assert_eq!(of(&[ErrorKind::Overloaded, ErrorKind::Overloaded]), Some(ErrorKind::Overloaded));
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn it_gives_up_when_patience_is_at_its_end_and_waits_for_nobody_who_failed() {
        let (mut tried, now) = (Tried::default(), Instant::now());
        let mut search = tried.search(blame(1, true), now, PATIENCE);
        assert_eq!(tried.next(&mut search, false, now + PATIENCE / 2), Next::LookAgain);
        assert_eq!(tried.next(&mut search, false, now + PATIENCE), Next::GiveUp);
        let mut search = tried.search(blame(1, false), now, PATIENCE);
        assert_eq!(tried.next(&mut search, false, now), Next::GiveUp);
    }

    #[test]
    fn who_may_have_returned_is_asked_again_however_long_another_took_to_say_that_it_is_full() {
        let (mut tried, now) = (Tried::default(), Instant::now());
        tried.opened(now);
        let mut search = tried.search(blame(1, true), now, PATIENCE);
        let later = now + PATIENCE * 2;
        let full = vec![(NodeId([2; 32]), Fault::new(ErrorKind::Overloaded, "so"))];
        tried.blame(Blame::unopened(full, tried.goes_on()).unwrap(), &mut search, later);
        assert_eq!(tried.without(search.lost()), [NodeId([1; 32]), NodeId([2; 32])]);
        // However late it is.
        for late in [later + PATIENCE, now + PATIENCE * PATIENT * 2] {
            let mut search = Search { lost: search.lost.clone(), ..tried.search(blame(1, true), now, PATIENCE) };
            assert_eq!(tried.next(&mut search, false, late), Next::LookAgain);
            assert!(tried.without(search.lost()).is_empty());
            assert_eq!(tried.next(&mut search, false, late), Next::GiveUp);
        }
    }

    #[test]
    fn an_answer_that_begins_looks_for_a_moment_where_hosts_are_full_and_one_that_goes_on_as_for_lost_ones() {
        let (mut tried, now) = (Tried::default(), Instant::now());
        let full = || Blame { fault: Fault::new(ErrorKind::Overloaded, "so"), ..blame(1, false) };
        let search = tried.search(full(), now, PATIENCE);
        assert_eq!(tried.look(&search), LOOK_AGAIN);
        tried.opened(now);
        let search = tried.search(full(), now, PATIENCE);
        assert_eq!(tried.look(&search), LONGEST_LOOK);
    }

    #[test]
    fn each_host_that_is_lost_on_the_way_gives_it_patience_anew_within_a_bound() {
        let (mut tried, begun) = (Tried::default(), Instant::now());
        let mut search = tried.search(blame(1, true), begun, PATIENCE);
        let late = begun + PATIENCE;
        tried.blame(blame(2, true), &mut search, late);
        assert_eq!(tried.next(&mut search, false, late), Next::LookAgain);
        let last = begun + PATIENCE * PATIENT;
        tried.blame(blame(1, true), &mut search, last - Duration::from_secs(1));
        assert_eq!(tried.next(&mut search, false, last - Duration::from_millis(1)), Next::LookAgain);
        assert_eq!(tried.next(&mut search, false, last), Next::GiveUp);
    }

    #[test]
    fn others_are_sought_longer_each_time_that_those_who_may_be_back_were_of_no_use() {
        let (mut tried, now) = (Tried::default(), Instant::now());
        let mut search = tried.search(blame(1, true), now, PATIENCE);
        let (mut looks, mut pauses) = (Vec::new(), Vec::new());
        for _ in 0..5 {
            looks.push(tried.look(&search).as_millis());
            assert_eq!(tried.next(&mut search, false, now), Next::LookAgain);
            pauses.push(tried.pause().as_millis());
            assert_eq!(tried.look(&search), LONGEST_LOOK, "with all of them: nobody else is asked instead");
            tried.blame(blame(1, true), &mut search, now);
        }
        assert_eq!((looks, pauses), (vec![250, 500, 1000, 2000, 3000], vec![250, 500, 1000, 2000, 3000]));
        let later = tried.search(blame(1, true), now, PATIENCE);
        assert_eq!(tried.look(&later), LONGEST_LOOK, "what one search has learnt counts in the next");
        tried.opened(now);
        let again = tried.search(blame(1, true), now + STOOD, PATIENCE);
        assert_eq!(tried.look(&again), FIRST_LOOK, "but not behind a route that stood");
    }

    #[test]
    fn attempts_are_numbered_and_bounded() {
        let (mut tried, now) = (Tried::default(), Instant::now());
        let mut search = tried.search(blame(1, true), now, PATIENCE);
        for epoch in 0..MAX_ATTEMPTS {
            assert_eq!(tried.next(&mut search, true, now), Next::Attempt);
            assert_eq!(tried.attempt(), epoch);
        }
        assert_eq!(tried.next(&mut search, true, now), Next::GiveUp);
    }
}
