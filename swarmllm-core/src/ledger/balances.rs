//! In-memory balances: unsigned debt beside the signed totals. Admission reads them, and the host program can query them.
//! Every step of every stage writes here, so no operation waits for a disk.

use std::sync::Arc;

use dashmap::DashMap;
use serde::Serialize;
use tokio::sync::Notify;

use crate::base::{ErrorKind, Fault, Hash, NodeId, SessionId};
use crate::ledger::price;

/// Unpaid rows of a peer that trigger a payment before the answer ends.
const CHUNK_ROWS: u32 = 64;
/// Maximum peers with a balance; further peers are refused. About 200 bytes each.
const MAX_PEERS: usize = 64 * 1024;

/// Balance with a peer, in credits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// The peer.
    #[serde(serialize_with = "as_text")]
    pub peer: NodeId,
    /// Total that the peer has signed to owe this node.
    pub earned: u64,
    /// Total that this node has signed to owe the peer.
    pub spent: u64,
    /// Unsigned credits for work computed for the peer.
    pub unsigned_earned: u64,
    /// Unsigned credits for work requested from the peer.
    pub unsigned_spent: u64,
}

fn as_text<S: serde::Serializer>(value: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// The balance with one peer.
#[derive(Debug, Clone, Copy)]
struct PeerBalance {
    /// Thousandths of a credit that this node owes and has not proposed to pay.
    owed: u64,
    /// Rows of that debt.
    rows: u32,
    /// Commitment to the work of that debt.
    work: Hash,
    /// Thousandths of unpaid work for the peer; negative if it has paid for work still in progress.
    receivable: i64,
    /// Signed credits of the account with the peer as debtor.
    earned: u64,
    /// Signed credits of the account with this node as debtor.
    spent: u64,
    /// Whether a signed payment is unanswered.
    pending: bool,
}

impl Default for PeerBalance {
    fn default() -> Self {
        Self { owed: 0, rows: 0, work: Hash([0; 32]), receivable: 0, earned: 0, spent: 0, pending: false }
    }
}

impl PeerBalance {
    /// Credits lost if the peer never returned: its debt minus the debt to it.
    fn exposure(&self) -> u64 {
        let owed_to_it = self.spent.saturating_add(price::milli_to_credits(self.owed));
        self.earned.saturating_add(self.unsigned()).saturating_sub(owed_to_it)
    }

    /// Unsigned credits for work computed for the peer.
    fn unsigned(&self) -> u64 {
        price::milli_to_credits(self.receivable.try_into().unwrap_or(0))
    }
}

/// Balances by peer. Clones share the state.
#[derive(Debug, Clone)]
pub struct Balances {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    by_peer: DashMap<NodeId, PeerBalance>,
    /// Maximum credits that a peer may owe; `None` without a limit.
    limit: Option<u64>,
    due: Notify,
}

impl Balances {
    /// No balances; a peer may owe up to `limit` credits.
    pub fn new(limit: Option<u64>) -> Self {
        Self { inner: Arc::new(Inner { by_peer: DashMap::new(), limit, due: Notify::new() }) }
    }

    /// Records a step that a peer computed for a session of this node, at a price of `milli` thousandths.
    pub fn spend(&self, peer: NodeId, session: SessionId, rows: u32, milli: u64) {
        let mut balance = self.inner.by_peer.entry(peer).or_default();
        balance.owed = balance.owed.saturating_add(milli);
        balance.rows = balance.rows.saturating_add(rows);
        let mut hasher = blake3::Hasher::new();
        hasher.update(balance.work.as_bytes()).update(session.as_bytes()).update(&milli.to_be_bytes());
        balance.work = Hash(*hasher.finalize().as_bytes());
        if balance.rows >= CHUNK_ROWS {
            self.inner.due.notify_one();
        }
    }

    /// Makes all debt due at the end of a session.
    pub fn end(&self) {
        self.inner.due.notify_one();
    }

    /// Waits until a payment is due. Cancel-safe.
    pub async fn due(&self) {
        self.inner.due.notified().await;
    }

    /// Records a step computed for a peer, at a price of `milli` thousandths.
    pub fn earn(&self, peer: NodeId, milli: u64) {
        let mut balance = self.inner.by_peer.entry(peer).or_default();
        balance.receivable = balance.receivable.saturating_add_unsigned(milli);
    }

    /// Admits work for a peer within its debt limit; `NoCredit` beyond it, `Overloaded` with too many peers.
    pub fn admit(&self, peer: NodeId) -> Result<(), Fault> {
        let known = self.inner.by_peer.get(&peer).map(|balance| balance.exposure());
        if known.is_none() && self.inner.by_peer.len() >= MAX_PEERS {
            return Err(Fault::new(
                ErrorKind::Overloaded,
                format!("this node has accounts with {MAX_PEERS} peers, the maximum"),
            ));
        }
        match self.inner.limit {
            Some(limit) if known.unwrap_or(0) >= limit => {
                let owed = known.unwrap_or(0);
                let text = format!(
                    "you owe {owed} credits here, the limit is {limit}; compute for this node, or use another one"
                );
                Err(Fault::new(ErrorKind::NoCredit, text))
            }
            _ => Ok(()),
        }
    }

    /// All balances, sorted by peer.
    pub fn snapshot(&self) -> Vec<Balance> {
        let public = |peer: NodeId, balance: &PeerBalance| Balance {
            peer,
            earned: balance.earned,
            spent: balance.spent,
            unsigned_earned: balance.unsigned(),
            unsigned_spent: price::milli_to_credits(balance.owed),
        };
        let mut all: Vec<Balance> =
            self.inner.by_peer.iter().map(|entry| public(*entry.key(), entry.value())).collect();
        all.sort_by_key(|balance| balance.peer);
        all
    }

    /// Peers that this node owes.
    pub fn creditors(&self) -> Vec<NodeId> {
        self.inner
            .by_peer
            .iter()
            .filter(|balance| balance.owed > 0 || balance.pending)
            .map(|balance| *balance.key())
            .collect()
    }

    /// Whole credits owed to a peer and not yet proposed, with the commitment to their work.
    pub(super) fn owed(&self, peer: NodeId) -> (u64, Hash) {
        self.inner
            .by_peer
            .get(&peer)
            .map_or((0, Hash([0; 32])), |balance| (price::milli_to_credits(balance.owed), balance.work))
    }

    /// Deducts a signed payment from the debt.
    pub(super) fn on_proposed(&self, peer: NodeId, credits: u64) {
        let mut balance = self.inner.by_peer.entry(peer).or_default();
        balance.owed = balance.owed.saturating_sub(price::credits_to_milli(credits));
        (balance.rows, balance.work) = (0, Hash([0; 32]));
    }

    /// Whether a peer owes for unpaid work.
    pub(super) fn has_receivable(&self, peer: NodeId) -> bool {
        self.inner.by_peer.get(&peer).is_some_and(|balance| balance.receivable > 0)
    }

    /// Deducts an accepted payment from the peer's debt.
    pub(super) fn on_accepted(&self, peer: NodeId, credits: u64) {
        let mut balance = self.inner.by_peer.entry(peer).or_default();
        balance.receivable = balance.receivable.saturating_sub_unsigned(price::credits_to_milli(credits));
    }

    /// Sets the total that a peer has signed to owe.
    pub(super) fn set_earned(&self, peer: NodeId, total: u64) {
        self.inner.by_peer.entry(peer).or_default().earned = total;
    }

    /// Sets the total that this node has signed to owe a peer, and whether a payment is unanswered.
    pub(super) fn set_spent(&self, peer: NodeId, total: u64, pending: bool) {
        let mut balance = self.inner.by_peer.entry(peer).or_default();
        (balance.spent, balance.pending) = (total, pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId([1; 32]);

    #[test]
    fn work_is_refused_at_the_debt_limit() {
        let balances = Balances::new(Some(10));
        balances.admit(PEER).unwrap();
        balances.earn(PEER, 9_000);
        balances.admit(PEER).unwrap();
        balances.earn(PEER, 1);
        assert_eq!(balances.admit(PEER).unwrap_err().kind(), ErrorKind::NoCredit);
        // A signature alone does not reduce the debt: signed debt counts like unsigned debt.
        balances.on_accepted(PEER, 10);
        balances.set_earned(PEER, 10);
        assert_eq!(balances.admit(PEER).unwrap_err().kind(), ErrorKind::NoCredit);
        // Work in the other direction reduces the debt.
        balances.set_spent(PEER, 4, false);
        balances.admit(PEER).unwrap();
    }

    #[test]
    fn without_a_limit_no_peer_is_refused() {
        let balances = Balances::new(None);
        balances.earn(PEER, u64::MAX);
        balances.earn(PEER, 1);
        balances.admit(PEER).unwrap();
    }

    #[tokio::test]
    async fn a_payment_is_due_per_row_chunk_and_at_session_end() {
        let balances = Balances::new(None);
        let is_due =
            || async { tokio::time::timeout(std::time::Duration::from_millis(10), balances.due()).await.is_ok() };
        balances.spend(PEER, SessionId([0; 16]), CHUNK_ROWS - 1, 5);
        assert!(!is_due().await);
        balances.spend(PEER, SessionId([0; 16]), 1, 5);
        assert!(is_due().await && !is_due().await);
        balances.end();
        assert!(is_due().await);
    }
}
