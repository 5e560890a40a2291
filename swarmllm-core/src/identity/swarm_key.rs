//! The secret that the nodes of a private swarm share. It never prints itself.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::IdentityError;

/// See the module. Wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SwarmKey([u8; Self::BYTES]);

impl SwarmKey {
    /// Length, in bytes.
    pub const BYTES: usize = 32;

    /// A new one, by the operating system's chance.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut bytes = [0; Self::BYTES];
        getrandom::fill(&mut bytes).map_err(|error| IdentityError::NoRandomness(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// The one that has these bytes.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// Its bytes, for those that put it to use or keep it.
    pub fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwarmKey(..)")
    }
}
