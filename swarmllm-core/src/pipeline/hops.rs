//! The ways between hosts: what the planner counts for the results of one stage to come to the next.
//!
//! The coordinator has measured the way to each host. The way from one host to another it is told by those two, and of what
//! they tell the longer counts, so that one alone cannot make itself near. Where neither tells anything the way counts for
//! what it would take over the coordinator, half of both round trips: the sum of all round trips is then the whole way.

use std::collections::HashMap;

use crate::base::NodeId;
use crate::pipeline::plan::Candidate;

/// Round trips that hosts tell: to whom, and microseconds.
pub type Told<'a> = HashMap<NodeId, &'a [(NodeId, u32)]>;

/// Round trips between candidates, which are named by their places.
pub(super) struct Hops {
    /// Of each: to whom, and microseconds there and back; sorted, and each once.
    told: Vec<Vec<(u32, u32)>>,
}

impl Hops {
    /// Takes what the candidates tell of each other.
    pub fn new(candidates: &[&Candidate], told: &Told) -> Self {
        let mut hops = Self { told: vec![Vec::new(); candidates.len()] };
        if told.is_empty() {
            return hops;
        }
        let places: HashMap<NodeId, u32> = candidates.iter().map(|candidate| candidate.node).zip(0..).collect();
        // The coordinator, who is no way from itself, knows better what it has measured.
        let other = |at: u32| candidates[at as usize].rtt_us > 0;
        for (candidate, from) in candidates.iter().zip(0..).filter(|(_, from)| other(*from)) {
            for (node, us) in told.get(&candidate.node).copied().unwrap_or_default() {
                let Some(to) = places.get(node).copied().filter(|to| other(*to) && *to != from) else { continue };
                hops.told[from as usize].push((to, *us));
                hops.told[to as usize].push((from, *us));
            }
        }
        for told in &mut hops.told {
            told.sort_unstable();
            told.dedup_by(|longer, kept| {
                let same = longer.0 == kept.0;
                kept.1 = if same { longer.1 } else { kept.1 };
                same
            });
        }
        hops
    }

    /// Whom a host has a known way to, each once, and microseconds there and back; it has none to itself, and comes first.
    pub fn known(&self, host: usize) -> impl Iterator<Item = (usize, u32)> {
        let others = self.told[host].iter().map(|(to, us)| (*to as usize, *us));
        std::iter::once((host, 0)).chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: u8, rtt_us: u32) -> Candidate {
        let (layers, loaded) = (Vec::new(), Vec::new());
        Candidate { node: NodeId([name; 32]), layers, head: false, rtt_us, pace_ns: 1, free_memory: 0, loaded }
    }

    fn known(hops: &Hops, host: usize) -> Vec<(usize, u32)> {
        hops.known(host).collect()
    }

    #[test]
    fn of_what_two_hosts_tell_the_longer_counts_and_one_of_them_is_enough() {
        let node = |name| NodeId([name; 32]);
        let lists = [vec![(node(2), 70), (node(3), 10)], vec![(node(1), 50)], vec![(node(2), 90)]];
        let told = lists.iter().zip(1..).map(|(list, name)| (node(name), &list[..])).collect();
        let hosts = [1, 2, 3, 4].map(|name| candidate(name, 5));
        let hops = Hops::new(&hosts.each_ref(), &told);
        assert_eq!(known(&hops, 0), [(0, 0), (1, 70), (2, 10)]);
        assert_eq!(known(&hops, 1), [(1, 0), (0, 70), (2, 90)]);
        assert_eq!(known(&hops, 3), [(3, 0)], "nobody tells of it");
    }

    #[test]
    fn nobody_tells_the_coordinator_how_far_it_is_nor_how_far_a_host_is_from_itself_or_from_strangers() {
        let lie = [(NodeId([1; 32]), 1), (NodeId([2; 32]), 900), (NodeId([9; 32]), 1)];
        let told = Told::from([(lie[0].0, &lie[..]), (lie[1].0, &lie[..])]);
        let hops = Hops::new(&[&candidate(1, 0), &candidate(2, 40)], &told);
        assert_eq!((known(&hops, 0), known(&hops, 1)), (vec![(0, 0)], vec![(1, 0)]));
    }
}
