//! The Ed25519 key pair of a node.

use std::fmt;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use super::IdentityError;
use crate::base::NodeId;

/// A node's key pair. The secret is wiped on drop and never printed.
pub struct Keypair {
    key: SigningKey,
}

impl Keypair {
    /// Bytes of the secret.
    pub const SEED_BYTES: usize = 32;

    /// A new random key.
    pub fn generate() -> Result<Self, IdentityError> {
        let mut seed = Zeroizing::new([0u8; Self::SEED_BYTES]);
        getrandom::fill(seed.as_mut()).map_err(|error| IdentityError::NoRandomness(error.to_string()))?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of this seed.
    pub fn from_seed(seed: &[u8; Self::SEED_BYTES]) -> Self {
        Self { key: SigningKey::from_bytes(seed) }
    }

    /// The secret, wiped when the copy is dropped. For the key file and the transport only.
    pub(crate) fn seed(&self) -> Zeroizing<[u8; Self::SEED_BYTES]> {
        Zeroizing::new(self.key.to_bytes())
    }

    /// The node id: the public key.
    pub fn node_id(&self) -> NodeId {
        NodeId(self.key.verifying_key().to_bytes())
    }

    /// Signs `message` without a domain. Callers prepend one, see [`Signed`](super::Signed).
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl fmt::Debug for Keypair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keypair({})", self.node_id().short())
    }
}

/// Verifies `node`'s signature of `message`; refuses malleable signatures and weak keys.
pub fn verify(node: &NodeId, message: &[u8], signature: &[u8; 64]) -> Result<(), IdentityError> {
    let refuse = |_| IdentityError::BadSignature { node: *node };
    let key = VerifyingKey::from_bytes(node.as_bytes()).map_err(refuse)?;
    key.verify_strict(message, &Signature::from_bytes(signature)).map_err(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_valid_for_its_message_and_node_only() {
        let (key, other) = (Keypair::generate().unwrap(), Keypair::generate().unwrap());
        let signature = key.sign(b"message");
        verify(&key.node_id(), b"message", &signature).unwrap();
        assert!(verify(&key.node_id(), b"messagf", &signature).is_err());
        assert!(verify(&other.node_id(), b"message", &signature).is_err());
        for bit in 0..512 {
            let mut corrupted = signature;
            corrupted[bit / 8] ^= 1 << (bit % 8);
            assert!(verify(&key.node_id(), b"message", &corrupted).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_neutral_element_signs_nothing() {
        // Its "signature" would be valid for every message with a lax verifier.
        let mut identity = [0u8; 32];
        identity[0] = 1;
        let mut signature = [0u8; 64];
        signature[0] = 1;
        assert!(verify(&NodeId(identity), b"anything", &signature).is_err());
    }

    #[test]
    fn the_secret_is_not_printed() {
        let key = Keypair::from_seed(&[7; 32]);
        assert!(!format!("{key:?}").contains("0707"));
    }
}
