//! The shared secret of a private swarm. Never printed.

use std::fmt;

use zeroize::{Zeroize, ZeroizeOnDrop};

use super::IdentityError;

/// The shared secret, wiped from memory on drop.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SwarmKey([u8; Self::BYTES]);

impl SwarmKey {
    /// Length, in bytes.
    pub const BYTES: usize = 32;

    /// A new random key from the operating system.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut bytes = [0; Self::BYTES];
        getrandom::fill(&mut bytes).map_err(|error| IdentityError::NoRandomness(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key.
    pub fn bytes(&self) -> &[u8; Self::BYTES] {
        &self.0
    }
}

impl fmt::Debug for SwarmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SwarmKey(..)")
    }
}
