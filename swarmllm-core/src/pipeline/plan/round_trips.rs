//! Round trips between hosts: the time that the planner counts for results to travel from one stage to the next.
//!
//! The coordinator measures its round trip to each host. The round trip between two hosts is reported by the two. The
//! longer report counts, so that one host alone cannot claim to be near. Where neither reports, a result counts as if
//! it travelled via the coordinator, for half of both round trips: a token's travel is then the sum of all round trips
//! to the coordinator.

use std::collections::HashMap;

use crate::base::NodeId;
use crate::pipeline::plan::request::{Candidate, ReportedRoundTrips};

/// Round trips between candidates, which are named by their index.
pub(super) struct RoundTrips {
    /// For each candidate: the other candidate, and microseconds there and back; sorted, each other candidate once.
    known: Vec<Vec<(u32, u32)>>,
}

impl RoundTrips {
    /// The round trips that the candidates report of each other.
    pub fn new(candidates: &[&Candidate], reported: &ReportedRoundTrips) -> Self {
        let mut round_trips = Self { known: vec![Vec::new(); candidates.len()] };
        if reported.is_empty() {
            return round_trips;
        }
        let places: HashMap<NodeId, u32> = candidates.iter().map(|candidate| candidate.node).zip(0..).collect();
        // The coordinator, whose round trip to itself is 0, trusts its own measurements.
        let other = |at: u32| candidates[at as usize].rtt_us > 0;
        for (candidate, from) in candidates.iter().zip(0..).filter(|(_, from)| other(*from)) {
            for (node, us) in reported.get(&candidate.node).copied().unwrap_or_default() {
                let Some(to) = places.get(node).copied().filter(|to| other(*to) && *to != from) else { continue };
                round_trips.known[from as usize].push((to, *us));
                round_trips.known[to as usize].push((from, *us));
            }
        }
        for known in &mut round_trips.known {
            known.sort_unstable();
            known.dedup_by(|longer, kept| {
                let same = longer.0 == kept.0;
                kept.1 = if same { longer.1 } else { kept.1 };
                same
            });
        }
        round_trips
    }

    /// The hosts with a known round trip to a host, each once, and its microseconds. The host itself comes first, with
    /// 0.
    pub fn known(&self, host: usize) -> impl Iterator<Item = (usize, u32)> {
        let others = self.known[host].iter().map(|(to, us)| (*to as usize, *us));
        std::iter::once((host, 0)).chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: u8, rtt_us: u32) -> Candidate {
        let (layers, loaded) = (Vec::new(), Vec::new());
        Candidate { node: NodeId([name; 32]), layers, head: false, rtt_us, ns_per_unit: 1, free_memory: 0, loaded }
    }

    fn known(round_trips: &RoundTrips, host: usize) -> Vec<(usize, u32)> {
        round_trips.known(host).collect()
    }

    #[test]
    fn the_longer_report_counts_and_one_report_is_enough() {
        let node = |name| NodeId([name; 32]);
        let lists = [vec![(node(2), 70), (node(3), 10)], vec![(node(1), 50)], vec![(node(2), 90)]];
        let reported = lists.iter().zip(1..).map(|(list, name)| (node(name), &list[..])).collect();
        let hosts = [1, 2, 3, 4].map(|name| candidate(name, 5));
        let round_trips = RoundTrips::new(&hosts.each_ref(), &reported);
        assert_eq!(known(&round_trips, 0), [(0, 0), (1, 70), (2, 10)]);
        assert_eq!(known(&round_trips, 1), [(1, 0), (0, 70), (2, 90)]);
        assert_eq!(known(&round_trips, 3), [(3, 0)], "no host reports it");
    }

    #[test]
    fn reports_about_the_coordinator_the_host_itself_and_strangers_are_ignored() {
        let lie = [(NodeId([1; 32]), 1), (NodeId([2; 32]), 900), (NodeId([9; 32]), 1)];
        let reported = ReportedRoundTrips::from([(lie[0].0, &lie[..]), (lie[1].0, &lie[..])]);
        let round_trips = RoundTrips::new(&[&candidate(1, 0), &candidate(2, 40)], &reported);
        assert_eq!((known(&round_trips, 0), known(&round_trips, 1)), (vec![(0, 0)], vec![(1, 0)]));
    }
}
