//! The channels of streams.

use std::fmt;

/// The purpose of a stream. Each channel has its own protocol name and queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Control requests and replies.
    Control,
    /// Hidden states of sessions.
    Stage,
    /// Bytes of model shards.
    Shard,
}

impl Channel {
    /// Every channel.
    pub const ALL: [Channel; 3] = [Channel::Control, Channel::Stage, Channel::Shard];

    /// The last part of the protocol name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Stage => "stage",
            Self::Shard => "shard",
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
