//! Accounts between peers: who has computed for whom, in records that both have signed. No chain, no coin, no global sum.
//!
//! For each pair of nodes there are two accounts, one in each direction ([`account`]): the debtor proposes a growing total,
//! the creditor countersigns ([`record`]), and each side keeps the newest record durably before it says so. What work costs
//! both know by themselves ([`price`]). What has been computed or received and is not in a record yet is counted in memory
//! ([`tab`]); it is what a crash can lose, and what a limit bounds.
//!
//! Owns the accounts, their table in the store, and the only place where records are signed (`thread`). Promises: nothing
//! is signed before it is durable; nobody signs two bodies with one number; a proposal or a record that comes twice changes
//! nothing; amounts are integers that never wrap. Refuses: what does not follow the account's newest record, what was
//! signed for another swarm, and everything on an account whose records contradict each other.
//!
//! May import: base, identity, wire, rt, store.

mod account;
pub mod price;
pub mod record;
mod tab;
mod thread;

#[cfg(test)]
mod tests;

pub use account::{Account, AccountId};
pub use tab::{Balance, Tabs};
pub use thread::{Heads, Ledger};

use crate::base::ErrorKind;
use crate::identity::IdentityError;
use crate::store::StoreError;

/// Bounds of what is kept.
pub mod limits {
    /// Accounts of one node. Each takes less than 1 KiB, in memory and on disk.
    pub const ACCOUNTS: usize = 16 * 1024;
}

/// Why the ledger refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// Bytes that are no record or proposal.
    #[error("not a record of the ledger: its {what} is wrong")]
    Malformed { what: &'static str },
    /// A signature that does not hold.
    #[error("not a record of the ledger: {0}")]
    Signature(#[from] IdentityError),
    /// A record of another account or swarm.
    #[error("a record of the account of {debtor} with {creditor} was given for another account or swarm", debtor = account.debtor.short(), creditor = account.creditor.short())]
    Misplaced { account: AccountId },
    /// A proposal that does not follow the newest record.
    #[error("number {seq} does not follow number {head} of the account of {debtor} with {creditor}; compare heads first", debtor = account.debtor.short(), creditor = account.creditor.short())]
    NotNext { account: AccountId, seq: u64, head: u64 },
    /// Two records that contradict each other.
    #[error("two records up to number {seq} of the account of {debtor} with {creditor} contradict each other; the account is frozen", debtor = account.debtor.short(), creditor = account.creditor.short())]
    Conflict { account: AccountId, seq: u64 },
    /// The account has been frozen.
    #[error("the account of {debtor} with {creditor} is frozen: two of its records contradict each other", debtor = account.debtor.short(), creditor = account.creditor.short())]
    Frozen { account: AccountId },
    /// A payment from somebody who owes nothing.
    #[error("nothing was computed for {debtor} that could be paid", debtor = account.debtor.short())]
    NothingOwed { account: AccountId },
    /// A total would exceed what can be written.
    #[error("the total of the account of {debtor} with {creditor} cannot grow any more", debtor = account.debtor.short(), creditor = account.creditor.short())]
    Overflow { account: AccountId },
    /// As many accounts as are kept.
    #[error("the ledger keeps {max} accounts, and there is none yet with this peer", max = limits::ACCOUNTS)]
    Full,
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A transaction failed earlier, and not for want of room: what is on disk is not known, so nothing is signed until the
    /// next start. Or the ledger has been closed.
    #[error("the ledger stopped signing when its store failed; start the node again")]
    Stopped,
}

impl LedgerError {
    /// The kind that crosses borders.
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
