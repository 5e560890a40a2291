//! The identity of a node: its Ed25519 key, the key file, and signed values.
//!
//! Owns the secret key. Guarantees: the secret is wiped from memory on drop; a key file is never overwritten; a [`Signed`]
//! value exists only with a verified signature. Refuses weak and non-canonical signatures.
//!
//! May import: base.

pub mod keyfile;
mod keypair;
mod signed;
mod swarm_key;

pub use keypair::{Keypair, verify};
pub use signed::{Signed, SignedError};
pub use swarm_key::SwarmKey;

use std::path::PathBuf;

use crate::base::{ErrorKind, NodeId};

/// An error of a key or a signature.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The operating system provided no randomness.
    #[error("the operating system provides no randomness: {0}")]
    NoRandomness(String),
    /// Reading or writing the key file failed.
    #[error("the key file {path} cannot be {act}: {cause}")]
    Io { path: PathBuf, act: &'static str, cause: std::io::Error },
    /// The key file is invalid. It is left unchanged.
    #[error("{path} is not a usable key file ({reason}); restore it from a backup, or move it away for a new identity")]
    Damaged { path: PathBuf, reason: &'static str },
    /// The signature does not verify for this node and message.
    #[error("the signature is not valid for node {node}")]
    BadSignature { node: NodeId },
}

impl IdentityError {
    /// The error kind for the API boundaries.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoRandomness(_) => ErrorKind::Internal,
            Self::Io { cause, .. } if cause.kind() == std::io::ErrorKind::StorageFull => ErrorKind::DiskFull,
            Self::Io { .. } => ErrorKind::Io,
            Self::Damaged { .. } => ErrorKind::InvalidConfig,
            Self::BadSignature { .. } => ErrorKind::BadFrame,
        }
    }
}
