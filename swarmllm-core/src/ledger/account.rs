//! One account as one of its two nodes keeps it: pure rules, no IO, no clock.
//!
//! An account has a direction. Only its debtor proposes and only its creditor accepts, so that no two nodes ever write at
//! once; what a pair of nodes do for each other are two accounts. Whoever calls must make a change durable before what it
//! gave is sent.

use serde::{Deserialize, Serialize};

use crate::base::{Hash, NodeId};
use crate::identity::Keypair;
use crate::ledger::LedgerError;
use crate::ledger::record::{Body, Proposal, Record};

/// Which account: who pays, and who is paid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId {
    /// Who has been worked for.
    pub debtor: NodeId,
    /// Who has worked.
    pub creditor: NodeId,
}

impl AccountId {
    /// Both ids, the debtor's first.
    pub fn key(&self) -> [u8; 64] {
        let mut key = [0; 64];
        key[..32].copy_from_slice(self.debtor.as_bytes());
        key[32..].copy_from_slice(self.creditor.as_bytes());
        key
    }

    /// The account of these ids.
    pub fn of_key(key: &[u8; 64]) -> AccountId {
        let node = |at: usize| NodeId(std::array::from_fn(|index| key[at + index]));
        AccountId { debtor: node(0), creditor: node(32) }
    }
}

/// The epoch that every account is in, until the opening of another is built.
const EPOCH: u32 = 0;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    id: AccountId,
    network: Hash,
    /// The newest record that both have signed.
    head: Option<Record>,
    /// What this node, as the debtor, has signed and has no answer to.
    pending: Option<Proposal>,
    /// The highest number that this node has ever signed as the debtor.
    top: u64,
    /// Two records contradict each other: nothing is signed any more.
    frozen: bool,
}

/// What is stored of an account.
#[derive(Serialize, Deserialize)]
struct Stored {
    head: Option<Vec<u8>>,
    pending: Option<Vec<u8>>,
    top: u64,
    frozen: bool,
}

impl Account {
    /// An account without records.
    pub fn new(id: AccountId, network: Hash) -> Self {
        Self { id, network, head: None, pending: None, top: 0, frozen: false }
    }

    /// Which account.
    pub fn id(&self) -> AccountId {
        self.id
    }

    /// The newest record.
    pub fn head(&self) -> Option<&Record> {
        self.head.as_ref()
    }

    /// What was proposed and not answered.
    pub fn pending(&self) -> Option<&Proposal> {
        self.pending.as_ref()
    }

    /// Credits that both have signed for.
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

    /// Debtor: the proposal to pay `delta` credits. One that has no answer yet is given again, the same bytes: nobody
    /// signs two bodies with one number.
    ///
    /// Numbers are the time, or the last one and 1, so that a debtor whose database was put back from a backup does not
    /// use one again.
    pub fn propose(&mut self, delta: u64, work: Hash, time: u64, key: &Keypair) -> Result<Proposal, LedgerError> {
        self.check_open()?;
        if let Some(pending) = &self.pending {
            return Ok(pending.clone());
        }
        let total = self.total().checked_add(delta).ok_or(LedgerError::Overflow { account: self.id })?;
        let last = self.top.max(self.seq());
        let seq = last.checked_add(1).ok_or(LedgerError::Overflow { account: self.id })?.max(time);
        let (network, account, prev) = (self.network, self.id, self.head_id());
        let body = Body { network, account, epoch: EPOCH, seq, prev, total, delta, work, time };
        let proposal = Proposal::sign(body, key);
        self.top = seq;
        self.pending = Some(proposal.clone());
        Ok(proposal)
    }

    /// Creditor: the record that takes what is proposed. The same proposal gets the same record.
    pub fn accept(&mut self, proposal: Proposal, key: &Keypair) -> Result<Record, LedgerError> {
        self.check_open()?;
        let body = *proposal.body();
        self.check_place(&body)?;
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

    /// Both: a record that the other has, with both signatures. A newer one is taken, an older one says nothing; says
    /// whether something has changed. Two that contradict each other freeze the account.
    pub fn adopt(&mut self, record: Record) -> Result<bool, LedgerError> {
        let body = *record.body();
        self.check_place(&body)?;
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
        self.top = self.top.max(body.seq);
        self.head = Some(record);
        // One that was settled by it, or that nobody can accept any more.
        let head = self.head_id();
        self.pending = self.pending.take().filter(|pending| pending.body().prev == head);
        Ok(true)
    }

    /// Whether a body belongs here at all.
    fn check_place(&self, body: &Body) -> Result<(), LedgerError> {
        let here = body.network == self.network && body.account == self.id && body.epoch == EPOCH;
        if here { Ok(()) } else { Err(LedgerError::Misplaced { account: body.account }) }
    }

    fn check_open(&self) -> Result<(), LedgerError> {
        if self.frozen { Err(LedgerError::Frozen { account: self.id }) } else { Ok(()) }
    }

    /// What is kept of it.
    pub fn encode(&self) -> Vec<u8> {
        let stored = Stored {
            head: self.head.as_ref().map(|head| head.encode().to_vec()),
            pending: self.pending.as_ref().map(|pending| pending.encode().to_vec()),
            top: self.top,
            frozen: self.frozen,
        };
        // Serialising plain owned data into a Vec has no failing path in postcard.
        postcard::to_stdvec(&stored).unwrap_or_default()
    }

    /// Reads what was kept. Signatures are verified again: the file may have been touched.
    pub fn decode(id: AccountId, network: Hash, bytes: &[u8]) -> Result<Account, LedgerError> {
        let stored: Stored =
            postcard::from_bytes(bytes).map_err(|_| LedgerError::Malformed { what: "stored account" })?;
        let head = stored.head.as_deref().map(Record::decode).transpose()?;
        let pending = stored.pending.as_deref().map(Proposal::decode).transpose()?;
        let account = Account { id, network, head, pending, top: stored.top, frozen: stored.frozen };
        let bodies = account.head.iter().map(Record::body).chain(account.pending.iter().map(Proposal::body));
        bodies.into_iter().try_for_each(|body| account.check_place(body))?;
        Ok(account)
    }
}
