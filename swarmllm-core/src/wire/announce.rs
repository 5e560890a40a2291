//! The announcement of a node to the swarm. Unverified: measurements take precedence.

use serde::{Deserialize, Serialize};

use crate::base::names::{is_hidden, visible};
use crate::base::{LayerRange, ModelId, NodeId};
use crate::wire::WireError;

/// The parts of a model stored on a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// The model.
    pub model: ModelId,
    /// The node's names for the model, preferred name first. Hints for display and for look-ups by name; the id is the
    /// identity.
    pub names: Vec<String>,
    /// Stored layers, merged and sorted.
    pub layers: Vec<LayerRange>,
    /// Whether the metadata shard is stored.
    pub metadata: bool,
    /// Whether the embedding shard is stored.
    pub embedding: bool,
    /// Whether all shards of the head are stored.
    pub head: bool,
}

/// A loaded stage with sessions. Further sessions on it take no memory for weights.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StageInUse {
    /// The model.
    pub model: ModelId,
    /// Its layers.
    pub layers: LayerRange,
    /// Whether the stage computes the head.
    pub head: bool,
    /// Name of the engine.
    pub engine: String,
}

/// A node's announcement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// Increases with each announcement of a node; older versions are dropped. Starts at the milliseconds since 1970.
    pub version: u64,
    /// Agent text, for example `swarmllm/0.1.0`.
    pub agent: String,
    /// Whether the node serves stages to others.
    pub serves: bool,
    /// Free memory for stages in bytes, as claimed.
    pub free_memory: u64,
    /// Stages in use, sorted.
    pub in_use: Vec<StageInUse>,
    /// Addresses of the node, as multiaddr text.
    pub addresses: Vec<String>,
    /// Round-trip times to its nearest peers in microseconds, sorted by peer id.
    pub round_trips: Vec<(NodeId, u32)>,
    /// Stored models.
    pub holdings: Vec<Holding>,
}

impl Announcement {
    /// Maximum models of an announcement.
    pub const MAX_HOLDINGS: usize = 256;
    /// Maximum names per model.
    pub const MAX_NAMES: usize = 4;
    /// Maximum length of a name in bytes.
    pub const MAX_NAME: usize = 128;
    /// Maximum layer ranges per model.
    pub const MAX_RANGES: usize = 512;
    /// Maximum addresses.
    pub const MAX_ADDRESSES: usize = 32;
    /// Maximum round-trip times. A plan over thousands of nodes reads all of them within milliseconds.
    pub const MAX_ROUND_TRIPS: usize = 16;
    /// Maximum stages in use.
    pub const MAX_IN_USE: usize = 32;
    /// Maximum length of other texts in bytes.
    pub const MAX_TEXT: usize = 256;
    /// Maximum length of an encoded announcement in bytes; leaves space for the framing of a request or gossip.
    pub const MAX_BYTES: usize = 63 * 1024;
}

impl Announcement {
    /// Encodes the announcement for gossip.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let bytes = postcard::to_stdvec(self).map_err(|error| WireError::Header(error.to_string()))?;
        match bytes.len() <= Self::MAX_BYTES {
            true => Ok(bytes),
            false => Err(WireError::TooLong { part: "announcement", given: bytes.len(), max: Self::MAX_BYTES }),
        }
    }

    /// Bytes in memory without allocator overhead and spare capacity.
    pub fn memory(&self) -> usize {
        let text = |text: &String| size_of::<String>() + text.len();
        let holding = |held: &Holding| {
            size_of::<Holding>() + size_of_val(&held.layers[..]) + held.names.iter().map(text).sum::<usize>()
        };
        let in_use = |stage: &StageInUse| size_of::<StageInUse>() + stage.engine.len();
        size_of::<Self>()
            + self.agent.len()
            + size_of_val(&self.round_trips[..])
            + self.in_use.iter().map(in_use).sum::<usize>()
            + self.addresses.iter().map(text).sum::<usize>()
            + self.holdings.iter().map(holding).sum::<usize>()
    }

    /// Drops models from the end until the encoding fits [`MAX_BYTES`](Self::MAX_BYTES).
    pub fn shorten(&mut self) {
        while self.encode().is_err() && self.holdings.pop().is_some() {}
    }

    /// Removes hidden characters from texts, and names without visible characters.
    pub fn clean(&mut self) {
        let clean = |text: &mut String| {
            if text.chars().any(is_hidden) {
                *text = visible(text);
            }
        };
        clean(&mut self.agent);
        for held in &mut self.holdings {
            held.names.iter_mut().for_each(clean);
            held.names.retain(|name| !name.is_empty());
        }
    }

    /// Decodes and checks an announcement from gossip.
    pub fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > Self::MAX_BYTES {
            return Err(WireError::TooLong { part: "announcement", given: bytes.len(), max: Self::MAX_BYTES });
        }
        let announcement: Self = postcard::from_bytes(bytes).map_err(|error| WireError::Header(error.to_string()))?;
        announcement.check()?;
        Ok(announcement)
    }

    /// Checks the limits, and that lists are sorted and ranges merged.
    pub fn check(&self) -> Result<(), WireError> {
        let refuse = |what: &str| Err(WireError::Body(format!("the announcement {what}")));
        if self.holdings.len() > Self::MAX_HOLDINGS || self.addresses.len() > Self::MAX_ADDRESSES {
            return refuse("has too many models or addresses");
        }
        let long = |text: &String| text.len() > Self::MAX_TEXT;
        if long(&self.agent) || self.addresses.iter().any(long) {
            return refuse("has a text that is too long");
        }
        let sorted = self.round_trips.windows(2).all(|pair| pair[0].0 < pair[1].0);
        let measured = self.round_trips.iter().all(|(_, us)| *us > 0);
        if self.round_trips.len() > Self::MAX_ROUND_TRIPS || !sorted || !measured {
            return refuse("has too many, repeated or zero round-trip times");
        }
        let sound = |stage: &StageInUse| !stage.layers.is_empty() && !long(&stage.engine);
        if self.in_use.len() > Self::MAX_IN_USE || !self.in_use.iter().all(sound) {
            return refuse("has too many or invalid stages in use");
        }
        let is_name =
            |name: &String| !name.is_empty() && name.len() <= Self::MAX_NAME && !name.chars().any(char::is_control);
        for held in &self.holdings {
            if held.names.len() > Self::MAX_NAMES || !held.names.iter().all(is_name) {
                return refuse("has too many or unprintable names of a model");
            }
            let sorted = held.layers.windows(2).all(|pair| pair[0].end < pair[1].start);
            if held.layers.len() > Self::MAX_RANGES || !sorted || held.layers.iter().any(LayerRange::is_empty) {
                return refuse("has layer ranges that are not merged");
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
        let holding =
            Holding { model, names: vec!["model".to_owned()], layers, metadata: true, embedding: true, head: false };
        Announcement {
            version: 1,
            agent: "test".to_owned(),
            serves: true,
            free_memory: 7,
            in_use: vec![StageInUse { model, layers: LayerRange::new(0, 3), head: false, engine: "echo".to_owned() }],
            addresses: vec!["/ip4/127.0.0.1/tcp/1".to_owned()],
            round_trips: vec![(NodeId([2; 32]), 900), (NodeId([3; 32]), 40)],
            holdings: vec![holding],
        }
    }

    #[test]
    fn an_announcement_round_trips() {
        let original = announcement(vec![LayerRange::new(0, 3), LayerRange::new(5, 6)]);
        assert_eq!(Announcement::decode(&original.encode().unwrap()).unwrap(), original);
    }

    #[test]
    fn a_long_announcement_is_cut_to_its_first_models() {
        let ranges = (0..Announcement::MAX_RANGES as u32).map(|index| LayerRange::new(2 * index, 2 * index + 1));
        let mut long = announcement(ranges.collect());
        long.holdings = vec![long.holdings[0].clone(); Announcement::MAX_HOLDINGS];
        assert!(long.encode().is_err());
        long.shorten();
        assert!(long.encode().is_ok() && long.holdings.len() > 16);
    }

    #[test]
    fn invalid_ranges_and_long_texts_are_refused() {
        assert!(announcement(vec![LayerRange::new(3, 3)]).check().is_err());
        assert!(announcement(vec![LayerRange::new(0, 4), LayerRange::new(3, 6)]).check().is_err());
        let mut long = announcement(Vec::new());
        long.agent = "x".repeat(Announcement::MAX_TEXT + 1);
        assert!(long.check().is_err());
    }

    #[test]
    fn too_many_long_or_unprintable_names_are_refused() {
        let of = |names: Vec<String>| {
            let mut announcement = announcement(Vec::new());
            announcement.holdings[0].names = names;
            announcement.check()
        };
        assert!(of(vec!["n".repeat(Announcement::MAX_NAME); Announcement::MAX_NAMES]).is_ok());
        assert!(of(Vec::new()).is_ok());
        assert!(of(vec!["n".to_owned(); Announcement::MAX_NAMES + 1]).is_err());
        for name in ["", "a\u{1b}[2J", &"n".repeat(Announcement::MAX_NAME + 1)] {
            assert!(of(vec![name.to_owned()]).is_err(), "{name:?}");
        }
    }

    #[test]
    fn hidden_characters_are_removed_from_names_and_agent() {
        let mut announcement = announcement(Vec::new());
        announcement.agent = "swarm\u{202e}llm\u{7}".to_owned();
        announcement.holdings[0].names = ["a\u{200b}b", "\u{2066}\u{2069}", "plain  name"].map(str::to_owned).to_vec();
        announcement.clean();
        assert_eq!(
            (announcement.agent.as_str(), &announcement.holdings[0].names[..]),
            ("swarmllm", &["ab".to_owned(), "plain  name".to_owned()][..])
        );
    }

    #[test]
    fn too_many_repeated_or_zero_round_trips_are_refused() {
        let of = |round_trips| Announcement { round_trips, ..announcement(Vec::new()) }.check();
        let peer = |name| NodeId([name; 32]);
        let many = |count: u8| (0..count).map(|name| (peer(name), 5)).collect();
        assert!(of(many(Announcement::MAX_ROUND_TRIPS as u8)).is_ok());
        assert!(of(many(Announcement::MAX_ROUND_TRIPS as u8 + 1)).is_err());
        assert!(of(vec![(peer(1), 5), (peer(1), 6)]).is_err());
        assert!(of(vec![(peer(1), 0)]).is_err());
    }

    #[test]
    fn too_many_or_empty_stages_in_use_are_refused() {
        let stage = announcement(Vec::new()).in_use.remove(0);
        let of = |in_use| Announcement { in_use, ..announcement(Vec::new()) }.check();
        assert!(of(vec![stage.clone(); Announcement::MAX_IN_USE]).is_ok());
        assert!(of(vec![stage.clone(); Announcement::MAX_IN_USE + 1]).is_err());
        assert!(of(vec![StageInUse { layers: LayerRange::new(3, 2), ..stage.clone() }]).is_err());
        assert!(of(vec![StageInUse { engine: "x".repeat(Announcement::MAX_TEXT + 1), ..stage }]).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = Announcement::decode(&bytes);
        }
    }
}
