//! Who a node is: its Ed25519 key, the file that keeps it, and values signed with it.
//!
//! Owns the secret key. Promises that the secret is wiped from memory when dropped, that a key file is never
//! overwritten, and that a [`Signed`] value exists only after its signature was verified. Refuses weak and
//! non-canonical signatures.
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

/// Why a key cannot be had or a signature does not hold.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The operating system gave no randomness.
    #[error("the operating system gives no randomness: {0}")]
    NoRandomness(String),
    /// Reading or writing the key file failed.
    #[error("the key file {path} cannot be {act}: {cause}")]
    Io { path: PathBuf, act: &'static str, cause: std::io::Error },
    /// The file at the place of the key is not a key that we wrote. It is left as it is.
    #[error("{path} is not a usable key file ({reason}); restore it from a backup, or move it away for a new identity")]
    Damaged { path: PathBuf, reason: &'static str },
    /// The signature is not this node's over these bytes.
    #[error("the signature is not that of node {node}")]
    BadSignature { node: NodeId },
}

impl IdentityError {
    /// The kind that hosts see.
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
