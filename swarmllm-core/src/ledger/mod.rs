//! Bilateral accounts of computed work, in records that both peers have signed. No chain, no coin, no global sum.
//!
//! Each pair of nodes has two accounts, one per direction ([`account`]). The debtor proposes a growing total, the creditor
//! countersigns ([`record`]), and each side persists the newest record before it answers. Both sides compute the price of
//! work independently ([`price`]). Work without a record yet is counted in memory ([`balances`]): a crash can lose it, and
//! the debt limit bounds it.
//!
//! Owns the accounts, their table in the store, and the only code that signs records (`thread`). Guarantees: a signature is
//! durable before it leaves the node; no node signs two bodies with one number; a repeated proposal or record changes
//! nothing; amounts are integers that never wrap. Refuses: proposals that do not follow the account's newest record, records
//! of another swarm, and any change to an account with contradicting records.
//!
//! May import: base, identity, wire, rt, store.

mod account;
mod balances;
pub mod price;
pub mod record;
mod thread;

#[cfg(test)]
mod tests;

pub use account::{Account, AccountId};
pub use balances::{Balance, Balances};
pub use thread::{Heads, Ledger};

use crate::base::ErrorKind;
use crate::identity::IdentityError;
use crate::store::StoreError;

/// Limits of the ledger.
pub mod limits {
    /// Maximum accounts of one node. Each takes less than 1 KiB in memory and on disk.
    pub const ACCOUNTS: usize = 16 * 1024;
}

/// An error of the ledger.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The bytes are not a record or proposal.
    #[error("malformed ledger record: wrong {what}")]
    Malformed { what: &'static str },
    /// A signature does not verify.
    #[error("invalid ledger record: {0}")]
    Signature(#[from] IdentityError),
    /// The record belongs to another account or swarm.
    #[error("a record of the account of {debtor} with {creditor} does not belong to this account or swarm", debtor = account.debtor.short(), creditor = account.creditor.short())]
    Misplaced { account: AccountId },
    /// The proposal does not follow the newest record.
    #[error("number {seq} does not follow number {head} of the account of {debtor} with {creditor}; compare heads first", debtor = account.debtor.short(), creditor = account.creditor.short())]
    NotNext { account: AccountId, seq: u64, head: u64 },
    /// Two records contradict each other.
    #[error("two records up to number {seq} of the account of {debtor} with {creditor} contradict each other; the account is frozen", debtor = account.debtor.short(), creditor = account.creditor.short())]
    Conflict { account: AccountId, seq: u64 },
    /// The account is frozen.
    #[error("the account of {debtor} with {creditor} is frozen: two of its records contradict each other", debtor = account.debtor.short(), creditor = account.creditor.short())]
    Frozen { account: AccountId },
    /// The payment comes from a peer without debt.
    #[error("{debtor} owes nothing to this node", debtor = account.debtor.short())]
    NothingOwed { account: AccountId },
    /// The total would exceed 64 bits.
    #[error("the total of the account of {debtor} with {creditor} would overflow", debtor = account.debtor.short(), creditor = account.creditor.short())]
    Overflow { account: AccountId },
    /// The maximum number of accounts is reached.
    #[error("the ledger is full: {max} accounts, none with this peer", max = limits::ACCOUNTS)]
    Full,
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An earlier transaction failed for a reason other than a full disk: the state on disk is unknown, so nothing is signed
    /// until the next start. Also returned after the ledger has been closed.
    #[error("the ledger stopped signing when its store failed; start the node again")]
    Stopped,
}

impl LedgerError {
    /// The error kind for the API boundaries.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Malformed { .. } | Self::Signature(_) | Self::Misplaced { .. } => ErrorKind::BadFrame,
            Self::NotNext { .. } | Self::Conflict { .. } | Self::Frozen { .. } => ErrorKind::LedgerConflict,
            Self::NothingOwed { .. } | Self::Overflow { .. } => ErrorKind::Refused,
            Self::Full => ErrorKind::Overloaded,
            Self::Store(error) => error.kind(),
            Self::Stopped => ErrorKind::Io,
        }
    }
}
