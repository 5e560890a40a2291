//! What a node tells the swarm about itself. Never believed where it can be measured.

use serde::{Deserialize, Serialize};

use crate::base::{LayerRange, ModelId, NodeId};
use crate::wire::WireError;

/// What a node holds of one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The model.
    pub model: ModelId,
    /// Its name, for people.
    pub name: String,
    /// Layers held, merged and sorted.
    pub layers: Vec<LayerRange>,
    /// Whether the metadata shard is held.
    pub metadata: bool,
    /// Whether the embedding shard is held.
    pub embedding: bool,
    /// Whether all that the head needs is held.
    pub head: bool,
}

/// A stage that sessions use on the node: another one takes no more memory there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct InUse {
    /// The model.
    pub model: ModelId,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether it computes the head.
    pub head: bool,
    /// Name of the engine.
    pub engine: String,
}

/// A node's announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Increases with each announcement of a node; older ones are dropped. Milliseconds since 1970 at the first one.
    pub version: u64,
    /// Software, as `swarmllm/0.1.0`.
    pub agent: String,
    /// Whether the node computes stages for others.
    pub serves: bool,
    /// Bytes of memory that it says are free for stages.
    pub free_memory: u64,
    /// Stages in use, in their order.
    pub in_use: Vec<InUse>,
    /// Addresses it listens on, as multiaddr text.
    pub addresses: Vec<String>,
    /// Round trips to those of its peers that are nearest, in microseconds, in the order of the peers' ids.
    pub round_trips: Vec<(NodeId, u32)>,
    /// What it holds.
    pub holdings: Vec<Holding>,
}

impl Announcement {
    /// Most models that one announcement names.
    pub const MAX_HOLDINGS: usize = 256;
    /// Most layer ranges of one holding.
    pub const MAX_RANGES: usize = 512;
    /// Most addresses.
    pub const MAX_ADDRESSES: usize = 32;
    /// Most round trips. Plans among thousands of nodes look at all of them, within milliseconds.
    pub const MAX_ROUND_TRIPS: usize = 16;
    /// Most stages in use.
    pub const MAX_IN_USE: usize = 32;
    /// Longest text, in bytes.
    pub const MAX_TEXT: usize = 256;
    /// Longest encoded announcement, in bytes.
    pub const MAX_BYTES: usize = 64 * 1024;
}

impl Announcement {
    /// Encodes it for gossip.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let bytes = postcard::to_stdvec(self).map_err(|error| WireError::Header(error.to_string()))?;
        match bytes.len() <= Self::MAX_BYTES {
            true => Ok(bytes),
            false => Err(WireError::TooLong { part: "announcement", given: bytes.len(), max: Self::MAX_BYTES }),
        }
    }

    /// Parses what a peer sent by gossip, bounds included.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(WireError::TooLong { part: "announcement", given: bytes.len(), max: Self::MAX_BYTES });
        }
        let announcement: Self = postcard::from_bytes(bytes).map_err(|error| WireError::Header(error.to_string()))?;
        announcement.check()?;
        Ok(announcement)
    }

    /// Refuses one that is larger than an honest node's, or whose ranges are not merged and sorted.
    pub fn check(&self) -> Result<(), WireError> {
        let refuse = |what: &str| Err(WireError::Body(format!("the announcement {what}")));
        if self.holdings.len() > Self::MAX_HOLDINGS || self.addresses.len() > Self::MAX_ADDRESSES {
            return refuse("names too many models or addresses");
        }
        let long = |text: &String| text.len() > Self::MAX_TEXT;
        if long(&self.agent) || self.addresses.iter().any(long) || self.holdings.iter().any(|held| long(&held.name)) {
            return refuse("holds a text that is too long");
        }
        let sorted = self.round_trips.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let measured = self.round_trips.iter().all(|(_, us)| *us > 0);
        if self.round_trips.len() > Self::MAX_ROUND_TRIPS || !sorted || !measured {
            return refuse("tells too many round trips, or one twice, or one of no time");
        }
        let sound = |stage: &InUse| !stage.layers.is_empty() && !long(&stage.engine);
        if self.in_use.len() > Self::MAX_IN_USE || !self.in_use.iter().all(sound) {
            return refuse("names too many stages in use, or one that is none");
        }
        for held in &self.holdings {
            let sorted = held.layers.windows(2).all(|pair| pair[0].end < pair[1].start);
            if held.layers.len() > Self::MAX_RANGES || !sorted || held.layers.iter().any(LayerRange::is_empty) {
                return refuse("holds layer ranges that are not merged");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn announcement(layers: Vec<LayerRange>) -> Announcement {
        let model = ModelId([1; 32]);
        let holding = Holding { model, name: "model".to_owned(), layers, metadata: true, embedding: true, head: false };
        Announcement {
            version: 1,
            agent: "test".to_owned(),
            serves: true,
            free_memory: 7,
            in_use: vec![InUse { model, layers: LayerRange::new(0, 3), head: false, engine: "echo".to_owned() }],
            addresses: vec!["/ip4/127.0.0.1/tcp/1".to_owned()],
            round_trips: vec![(NodeId([2; 32]), 900), (NodeId([3; 32]), 40)],
            holdings: vec![holding],
        }
    }

    #[test]
    fn it_round_trips() {
        let original = announcement(vec![LayerRange::new(0, 3), LayerRange::new(5, 6)]);
        assert_eq!(Announcement::decode(&original.encode().unwrap()).unwrap(), original);
    }

    #[test]
    fn ranges_that_are_empty_or_overlap_and_long_texts_are_refused() {
        assert!(announcement(vec![LayerRange::new(3, 3)]).check().is_err());
        assert!(announcement(vec![LayerRange::new(0, 4), LayerRange::new(3, 6)]).check().is_err());
        let mut long = announcement(Vec::new());
        long.agent = "x".repeat(Announcement::MAX_TEXT + 1);
        assert!(long.check().is_err());
    }

    #[test]
    fn round_trips_that_are_many_or_told_twice_or_of_no_time_are_refused() {
        let of = |round_trips| Announcement { round_trips, ..announcement(Vec::new()) }.check();
        let peer = |name| NodeId([name; 32]);
        let many = |count: u8| (0..count).map(|name| (peer(name), 5)).collect();
        assert!(of(many(Announcement::MAX_ROUND_TRIPS as u8)).is_ok());
        assert!(of(many(Announcement::MAX_ROUND_TRIPS as u8 + 1)).is_err());
        assert!(of(vec![(peer(1), 5), (peer(1), 6)]).is_err());
        assert!(of(vec![(peer(1), 0)]).is_err());
    }

    #[test]
    fn stages_in_use_that_are_many_or_empty_are_refused() {
        let stage = announcement(Vec::new()).in_use.remove(0);
        let of = |in_use| Announcement { in_use, ..announcement(Vec::new()) }.check();
        assert!(of(vec![stage.clone(); Announcement::MAX_IN_USE]).is_ok());
        assert!(of(vec![stage.clone(); Announcement::MAX_IN_USE + 1]).is_err());
        assert!(of(vec![InUse { layers: LayerRange::new(3, 2), ..stage.clone() }]).is_err());
        assert!(of(vec![InUse { engine: "x".repeat(Announcement::MAX_TEXT + 1), ..stage }]).is_err());
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Announcement::decode(&bytes);
        }
    }
}
