//! One account as one of its two nodes stores it: pure rules, no IO, no clock.
//!
//! An account has a direction: only its debtor proposes and only its creditor accepts, so two nodes never write
//! concurrently. A pair of nodes has two accounts. The caller must persist the change before sending the result.

use serde::{Deserialize, Serialize};

use crate::base::{Hash, NodeId};
use crate::identity::Keypair;
use crate::ledger::LedgerError;
use crate::ledger::record::{Body, Proposal, Record};

/// Identifies an account by its debtor and its creditor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId {
    /// The node that owes for work.
    pub debtor: NodeId,
    /// The node that computed.
    pub creditor: NodeId,
}

impl AccountId {
    /// Concatenated ids, the debtor's first.
    pub fn key(&self) -> [u8; 64] {
        let mut key = [0; 64];
        key[..32].copy_from_slice(self.debtor.as_bytes());
        key[32..].copy_from_slice(self.creditor.as_bytes());
        key
    }

    /// Inverse of [`AccountId::key`].
    pub fn from_key(key: &[u8; 64]) -> AccountId {
        let node = |at: usize| NodeId(std::array::from_fn(|index| key[at + index]));
        AccountId { debtor: node(0), creditor: node(32) }
    }
}

/// The epoch of every account. The opening of further epochs is not implemented.
const EPOCH: u32 = 0;

/// One account, see the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    id: AccountId,
    network: Hash,
    /// The newest record signed by both.
    head: Option<Record>,
    /// The unanswered proposal that this node has signed as the debtor.
    pending: Option<Proposal>,
    /// The highest number that this node has signed as the debtor.
    top_seq: u64,
    /// Two records contradict each other: nothing more is signed.
    frozen: bool,
}

/// The stored form of an account.
#[derive(Serialize, Deserialize)]
struct Stored {
    head: Option<Vec<u8>>,
    pending: Option<Vec<u8>>,
    top_seq: u64,
    frozen: bool,
}

impl Account {
    /// An account without records.
    pub fn new(id: AccountId, network: Hash) -> Self {
        Self { id, network, head: None, pending: None, top_seq: 0, frozen: false }
    }

    /// The account's id.
    pub fn id(&self) -> AccountId {
        self.id
    }

    /// The newest record.
    pub fn head(&self) -> Option<&Record> {
        self.head.as_ref()
    }

    /// The unanswered proposal.
    pub fn pending(&self) -> Option<&Proposal> {
        self.pending.as_ref()
    }

    /// Credits signed by both.
    pub fn total(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.body().total)
    }

    fn seq(&self) -> u64 {
        self.head.as_ref().map_or(0, |head| head.body().seq)
    }

    fn head_id(&self) -> Hash {
        let genesis = || Body::genesis(&self.network, &self.id, EPOCH);
        self.head.as_ref().map_or_else(genesis, |head| head.body().id())
    }

    /// Debtor: signs a proposal to pay `delta` credits. Returns an unanswered proposal again with the same bytes: a node
    /// never signs two bodies with one number.
    ///
    /// The number is the larger of `time` and the last number plus 1, so that a debtor restored from a backup does not
    /// reuse a number.
    pub fn propose(&mut self, delta: u64, work: Hash, time: u64, key: &Keypair) -> Result<Proposal, LedgerError> {
        self.check_not_frozen()?;
        if let Some(pending) = &self.pending {
            return Ok(pending.clone());
        }
        let total = self.total().checked_add(delta).ok_or(LedgerError::Overflow { account: self.id })?;
        let last = self.top_seq.max(self.seq());
        let seq = last.checked_add(1).ok_or(LedgerError::Overflow { account: self.id })?.max(time);
        let (network, account, prev) = (self.network, self.id, self.head_id());
        let body = Body { network, account, epoch: EPOCH, seq, prev, total, delta, work, time };
        let proposal = Proposal::sign(body, key);
        self.top_seq = seq;
        self.pending = Some(proposal.clone());
        Ok(proposal)
    }

    /// Creditor: accepts a proposal and returns the record. A repeated proposal returns the same record.
    pub fn accept(&mut self, proposal: Proposal, key: &Keypair) -> Result<Record, LedgerError> {
        self.check_not_frozen()?;
        let body = *proposal.body();
        self.check_belongs(&body)?;
        if let Some(head) = self.head.as_ref().filter(|head| *head.proposal() == proposal) {
            return Ok(head.clone());
        }
        let follows = body.seq > self.seq() && body.prev == self.head_id();
        if !follows || Some(body.total) != self.total().checked_add(body.delta) {
            return Err(LedgerError::NotNext { account: self.id, seq: body.seq, head: self.seq() });
        }
        let record = Record::sign(proposal, key);
        self.head = Some(record.clone());
        Ok(record)
    }

    /// Either side: adopts a newer record of the peer; ignores an older one. Returns whether the account changed.
    /// Contradicting records freeze the account.
    pub fn adopt(&mut self, record: Record) -> Result<bool, LedgerError> {
        let body = *record.body();
        self.check_belongs(&body)?;
        if body.seq < self.seq() {
            return Ok(false);
        }
        if let Some(head) = &self.head {
            let same = head.body().id() == body.id();
            let forks = body.seq == head.body().seq && !same;
            let shrinks = body.seq > head.body().seq && body.total < head.body().total;
            if forks || shrinks {
                self.frozen = true;
                return Err(LedgerError::Conflict { account: self.id, seq: body.seq });
            }
            if same {
                return Ok(false);
            }
        }
        self.top_seq = self.top_seq.max(body.seq);
        self.head = Some(record);
        // Drops a proposal that the record answers or that can no longer be accepted.
        let head = self.head_id();
        self.pending = self.pending.take().filter(|pending| pending.body().prev == head);
        Ok(true)
    }

    /// Checks that a body belongs to this account, swarm and epoch.
    fn check_belongs(&self, body: &Body) -> Result<(), LedgerError> {
        let here = body.network == self.network && body.account == self.id && body.epoch == EPOCH;
        if here { Ok(()) } else { Err(LedgerError::Misplaced { account: body.account }) }
    }

    fn check_not_frozen(&self) -> Result<(), LedgerError> {
        if self.frozen { Err(LedgerError::Frozen { account: self.id }) } else { Ok(()) }
    }

    /// The stored form.
    pub fn encode(&self) -> Vec<u8> {
        let stored = Stored {
            head: self.head.as_ref().map(|head| head.encode().to_vec()),
            pending: self.pending.as_ref().map(|pending| pending.encode().to_vec()),
            top_seq: self.top_seq,
            frozen: self.frozen,
        };
        // Serialising plain owned data into a Vec has no failing path in postcard.
        postcard::to_stdvec(&stored).unwrap_or_default()
    }

    /// Reads the stored form. Verifies the signatures again: the file may have been modified.
    pub fn decode(id: AccountId, network: Hash, bytes: &[u8]) -> Result<Account, LedgerError> {
        let stored: Stored =
            postcard::from_bytes(bytes).map_err(|_| LedgerError::Malformed { what: "stored account" })?;
        let head = stored.head.as_deref().map(Record::decode).transpose()?;
        let pending = stored.pending.as_deref().map(Proposal::decode).transpose()?;
        let account = Account { id, network, head, pending, top_seq: stored.top_seq, frozen: stored.frozen };
        let bodies = account.head.iter().map(Record::body).chain(account.pending.iter().map(Proposal::body));
        bodies.into_iter().try_for_each(|body| account.check_belongs(body))?;
        Ok(account)
    }
}
