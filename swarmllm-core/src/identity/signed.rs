//! Values signed by a node, verified on construction.
//!
//! Bytes: signer (32), signature (64), the value in postcard. The signature covers the domain's length, the domain and the
//! value, so that a signature for one purpose is invalid for any other.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Keypair, verify};
use crate::base::{ErrorKind, NodeId};

const SIGNER_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;
const OVERHEAD: usize = SIGNER_BYTES + SIGNATURE_BYTES;

/// An error of a signed value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignedError {
    /// Too few bytes, or more than [`MAX_BYTES`](Signed::MAX_BYTES).
    #[error("a signed value has {min} to {max} bytes, not {given}")]
    Length { given: usize, min: usize, max: usize },
    /// The signature does not verify, or is for another domain.
    #[error("the signature of {signer} is not valid for `{domain}`")]
    Signature { signer: NodeId, domain: &'static str },
    /// The signed bytes do not decode, or are not the canonical encoding.
    #[error("{signer} signed an invalid value for `{domain}`: {reason}")]
    Value { signer: NodeId, domain: &'static str, reason: String },
    /// The value cannot be encoded.
    #[error("the value for `{domain}` cannot be encoded: {reason}")]
    Write { domain: &'static str, reason: String },
}

impl SignedError {
    /// The error kind for the API boundaries.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Write { .. } => ErrorKind::Internal,
            _ => ErrorKind::BadFrame,
        }
    }
}

/// A value with a verified signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<T> {
    value: T,
    signer: NodeId,
    bytes: Vec<u8>,
}

impl<T> Signed<T> {
    /// Maximum bytes of a signed value including the signature.
    pub const MAX_BYTES: usize = 1024 * 1024;

    /// The value.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// The value without its signature.
    pub fn into_value(self) -> T {
        self.value
    }

    /// The signer.
    pub fn signer(&self) -> NodeId {
        self.signer
    }

    /// The bytes for [`open`](Self::open).
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T: Serialize> Signed<T> {
    /// Signs `value` for the purpose `domain`.
    pub fn seal(value: T, domain: &'static str, keypair: &Keypair) -> Result<Self, SignedError> {
        let payload = encode(&value, domain)?;
        check_length(OVERHEAD + payload.len())?;
        let signer = keypair.node_id();
        let mut bytes = Vec::with_capacity(OVERHEAD + payload.len());
        bytes.extend_from_slice(signer.as_bytes());
        bytes.extend_from_slice(&keypair.sign(&message(domain, &payload)));
        bytes.extend_from_slice(&payload);
        Ok(Self { value, signer, bytes })
    }
}

impl<T: Serialize + DeserializeOwned> Signed<T> {
    /// Verifies and decodes `bytes`. Decodes only after the signature is verified.
    pub fn open(bytes: &[u8], domain: &'static str) -> Result<Self, SignedError> {
        check_length(bytes.len())?;
        let short = || SignedError::Length { given: bytes.len(), min: OVERHEAD, max: Self::MAX_BYTES };
        let (signer, rest) = bytes.split_first_chunk::<SIGNER_BYTES>().ok_or_else(short)?;
        let (signature, payload) = rest.split_first_chunk::<SIGNATURE_BYTES>().ok_or_else(short)?;
        let signer = NodeId(*signer);
        verify(&signer, &message(domain, payload), signature).map_err(|_| SignedError::Signature { signer, domain })?;
        let refuse = |reason: String| SignedError::Value { signer, domain, reason };
        let value: T = postcard::from_bytes(payload).map_err(|error| refuse(error.to_string()))?;
        // Only the canonical encoding: otherwise one record could have two digests.
        if encode(&value, domain)? != payload {
            return Err(refuse("it is not in canonical form".into()));
        }
        Ok(Self { value, signer, bytes: bytes.to_vec() })
    }
}

fn check_length(given: usize) -> Result<(), SignedError> {
    let max = Signed::<()>::MAX_BYTES;
    match given {
        OVERHEAD.. if given <= max => Ok(()),
        _ => Err(SignedError::Length { given, min: OVERHEAD, max }),
    }
}

fn encode<T: Serialize>(value: &T, domain: &'static str) -> Result<Vec<u8>, SignedError> {
    postcard::to_stdvec(value).map_err(|error| SignedError::Write { domain, reason: error.to_string() })
}

fn message(domain: &str, payload: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(8 + domain.len() + payload.len());
    message.extend_from_slice(&(domain.len() as u64).to_le_bytes());
    message.extend_from_slice(domain.as_bytes());
    message.extend_from_slice(payload);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOMAIN: &str = "test/1";

    fn sealed() -> Signed<(u32, String)> {
        Signed::seal((7, "seven".to_string()), DOMAIN, &Keypair::from_seed(&[1; 32])).unwrap()
    }

    #[test]
    fn a_sealed_value_opens_with_its_signer() {
        let sealed = sealed();
        assert_eq!(Signed::open(sealed.bytes(), DOMAIN).unwrap(), sealed);
        assert_eq!(sealed.signer(), Keypair::from_seed(&[1; 32]).node_id());
    }

    #[test]
    fn any_changed_added_or_missing_byte_is_refused() {
        let bytes = sealed().bytes().to_vec();
        for bit in 0..bytes.len() * 8 {
            let mut corrupted = bytes.clone();
            corrupted[bit / 8] ^= 1 << (bit % 8);
            assert!(Signed::<(u32, String)>::open(&corrupted, DOMAIN).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(Signed::<(u32, String)>::open(&bytes[..length], DOMAIN).is_err(), "{length}");
        }
        assert!(Signed::<(u32, String)>::open(&[bytes, vec![0]].concat(), DOMAIN).is_err());
    }

    #[test]
    fn a_signature_is_invalid_for_another_domain() {
        let error = Signed::<(u32, String)>::open(sealed().bytes(), "test/2").unwrap_err();
        assert!(matches!(error, SignedError::Signature { .. }));
    }

    #[test]
    fn a_signed_value_with_a_second_encoding_is_refused() {
        let key = Keypair::from_seed(&[1; 32]);
        // 7 as a varint of two bytes: decodes to the same value.
        let payload = [0x87, 0x00];
        let mut bytes = key.node_id().0.to_vec();
        bytes.extend(key.sign(&message(DOMAIN, &payload)));
        bytes.extend(payload);
        assert!(matches!(Signed::<u32>::open(&bytes, DOMAIN), Err(SignedError::Value { .. })));
    }

    #[test]
    fn a_value_beyond_the_limit_is_refused_on_both_sides() {
        let large = vec![0u8; Signed::<()>::MAX_BYTES + 1];
        assert!(matches!(Signed::<Vec<u8>>::open(&large, DOMAIN), Err(SignedError::Length { .. })));
        let sealed = Signed::seal(large, DOMAIN, &Keypair::from_seed(&[1; 32]));
        assert!(matches!(sealed, Err(SignedError::Length { .. })));
    }
}
