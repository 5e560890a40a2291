//! The channels: what streams are for.

use std::fmt;

/// What a stream is for; each has its own protocol name and its own queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Requests and replies about the work.
    Control,
    /// Hidden states of sessions.
    Stage,
    /// Bytes of models.
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
