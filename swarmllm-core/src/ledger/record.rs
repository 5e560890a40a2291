//! The record that debtor and creditor sign. Fixed layout, big-endian, one encoding per value.
//!
//! ```text
//! magic "SWLR" 4 | version 1 | kind 1 | network 32 | debtor 32 | creditor 32 | epoch u32 | seq u64
//! prev 32 | total u64 | delta u64 | work 32 | time u64                            = 202 bytes, the body
//! debtor's signature 64, over "swarmllm/ledger/v1/propose\0" and the body         = 266 bytes, a proposal
//! creditor's signature 64, over "swarmllm/ledger/v1/accept\0", the body and the debtor's signature  = 330 bytes
//! ```
//!
//! A record's id is the BLAKE3 digest of the body without the signatures.

use crate::base::{Hash, NodeId};
use crate::identity::{Keypair, verify};
use crate::ledger::{AccountId, LedgerError};

/// Bytes of a body.
pub const BODY_BYTES: usize = 202;
/// Bytes of a proposal: a body that the debtor has signed.
pub const PROPOSAL_BYTES: usize = BODY_BYTES + 64;
/// Bytes of a record: a proposal that the creditor has signed.
pub const RECORD_BYTES: usize = PROPOSAL_BYTES + 64;

const MAGIC: &[u8; 4] = b"SWLR";
const VERSION: u8 = 1;
/// Kind of a payment for work. Reserved for later: the opening of an epoch, a checkpoint.
const RECEIPT: u8 = 1;
const PROPOSE: &[u8] = b"swarmllm/ledger/v1/propose\0";
const ACCEPT: &[u8] = b"swarmllm/ledger/v1/accept\0";

/// The signed content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Body {
    /// Digest of the swarm's name: a signature is invalid in any other swarm.
    pub network: Hash,
    /// The account.
    pub account: AccountId,
    /// Increased after a creditor has lost its records.
    pub epoch: u32,
    /// Grows with each body that the debtor signs; gaps are fine.
    pub seq: u64,
    /// Id of the preceding record; [`Body::genesis`] in the first one.
    pub prev: Hash,
    /// Credits of all records of the account including this one.
    pub total: u64,
    /// Credits of this record.
    pub delta: u64,
    /// Commitment to the paid work, as recorded by the debtor.
    pub work: Hash,
    /// Creation time by the debtor's clock, in milliseconds since 1970. Informational.
    pub time: u64,
}

impl Body {
    /// Value of `prev` in an account's first record.
    pub fn genesis(network: &Hash, account: &AccountId, epoch: u32) -> Hash {
        let mut hasher = blake3::Hasher::new();
        hasher.update(network.as_bytes()).update(&account.key()).update(&epoch.to_be_bytes());
        Hash(*hasher.finalize().as_bytes())
    }

    /// The record's id.
    pub fn id(&self) -> Hash {
        Hash(*blake3::hash(&self.encode()).as_bytes())
    }

    /// The canonical encoding.
    pub fn encode(&self) -> [u8; BODY_BYTES] {
        let mut out = ArrayWriter { bytes: [0; BODY_BYTES], at: 0 };
        out.put(MAGIC).put(&[VERSION, RECEIPT]).put(self.network.as_bytes()).put(&self.account.key());
        out.put(&self.epoch.to_be_bytes()).put(&self.seq.to_be_bytes()).put(self.prev.as_bytes());
        out.put(&self.total.to_be_bytes()).put(&self.delta.to_be_bytes());
        out.put(self.work.as_bytes()).put(&self.time.to_be_bytes());
        debug_assert_eq!(out.at, BODY_BYTES);
        out.bytes
    }

    fn decode(bytes: &[u8; BODY_BYTES]) -> Result<Body, LedgerError> {
        let mut rest = SliceReader(bytes);
        if rest.take()? != *MAGIC || rest.take()? != [VERSION, RECEIPT] {
            return Err(LedgerError::Malformed { what: "kind or version" });
        }
        let network = Hash(rest.take()?);
        let account = AccountId { debtor: NodeId(rest.take()?), creditor: NodeId(rest.take()?) };
        let (epoch, seq) = (u32::from_be_bytes(rest.take()?), u64::from_be_bytes(rest.take()?));
        let prev = Hash(rest.take()?);
        let (total, delta) = (u64::from_be_bytes(rest.take()?), u64::from_be_bytes(rest.take()?));
        let (work, time) = (Hash(rest.take()?), u64::from_be_bytes(rest.take()?));
        if account.debtor == account.creditor || delta == 0 || delta > total {
            return Err(LedgerError::Malformed { what: "nodes or amounts" });
        }
        Ok(Body { network, account, epoch, seq, prev, total, delta, work, time })
    }
}

/// A body with its debtor's signature. Construction verifies the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    body: Body,
    signature: [u8; 64],
}

impl Proposal {
    /// Signs as the debtor.
    pub fn sign(body: Body, debtor: &Keypair) -> Proposal {
        debug_assert_eq!(body.account.debtor, debtor.node_id());
        Proposal { signature: debtor.sign(&[PROPOSE, &body.encode()].concat()), body }
    }

    /// The proposed body.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// The canonical encoding.
    pub fn encode(&self) -> [u8; PROPOSAL_BYTES] {
        joined(&self.body.encode(), &self.signature)
    }

    /// Decodes and verifies the signatures.
    pub fn decode(bytes: &[u8]) -> Result<Proposal, LedgerError> {
        let bytes: &[u8; PROPOSAL_BYTES] = exactly(bytes)?;
        let (body, signature) = split(bytes)?;
        let body = Body::decode(body)?;
        verify(&body.account.debtor, &[PROPOSE, &body.encode()].concat(), signature)?;
        Ok(Proposal { body, signature: *signature })
    }
}

/// A proposal with its creditor's signature. Construction verifies the signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    proposal: Proposal,
    signature: [u8; 64],
}

impl Record {
    /// Signs as the creditor.
    pub fn sign(proposal: Proposal, creditor: &Keypair) -> Record {
        debug_assert_eq!(proposal.body.account.creditor, creditor.node_id());
        Record { signature: creditor.sign(&[ACCEPT, &proposal.encode()].concat()), proposal }
    }

    /// The body signed by both.
    pub fn body(&self) -> &Body {
        &self.proposal.body
    }

    /// The proposal signed by the debtor.
    pub fn proposal(&self) -> &Proposal {
        &self.proposal
    }

    /// The canonical encoding.
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        joined(&self.proposal.encode(), &self.signature)
    }

    /// Decodes and verifies the signatures.
    pub fn decode(bytes: &[u8]) -> Result<Record, LedgerError> {
        let bytes: &[u8; RECORD_BYTES] = exactly(bytes)?;
        let (proposal, signature) = split::<RECORD_BYTES, PROPOSAL_BYTES>(bytes)?;
        let proposal = Proposal::decode(proposal)?;
        verify(&proposal.body.account.creditor, &[ACCEPT, &proposal.encode()].concat(), signature)?;
        Ok(Record { proposal, signature: *signature })
    }
}

fn exactly<const N: usize>(bytes: &[u8]) -> Result<&[u8; N], LedgerError> {
    bytes.try_into().map_err(|_| LedgerError::Malformed { what: "length" })
}

/// Splits into the signed part and the signature after it.
fn split<const N: usize, const SIGNED: usize>(bytes: &[u8; N]) -> Result<(&[u8; SIGNED], &[u8; 64]), LedgerError> {
    let (signed, signature) = bytes.split_at(SIGNED);
    Ok((exactly(signed)?, exactly(signature)?))
}

fn joined<const N: usize>(signed: &[u8], signature: &[u8; 64]) -> [u8; N] {
    let mut out = ArrayWriter { bytes: [0; N], at: 0 };
    out.put(signed).put(signature);
    debug_assert_eq!(out.at, N);
    out.bytes
}

/// Fills an array from its beginning.
struct ArrayWriter<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> ArrayWriter<N> {
    fn put(&mut self, bytes: &[u8]) -> &mut Self {
        let end = self.at + bytes.len();
        self.bytes[self.at..end].copy_from_slice(bytes);
        self.at = end;
        self
    }
}

/// The unread rest of a slice.
struct SliceReader<'a>(&'a [u8]);

impl SliceReader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], LedgerError> {
        let (first, rest) = self.0.split_first_chunk().ok_or(LedgerError::Malformed { what: "length" })?;
        self.0 = rest;
        Ok(*first)
    }
}
