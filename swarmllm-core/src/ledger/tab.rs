//! What is owed and not signed for yet, in memory, beside the totals that are: what admission looks at, and what a host is
//! shown. Every step of every stage writes here, so nothing here waits for a disk.

use std::sync::Arc;

use dashmap::DashMap;
use serde::Serialize;
use tokio::sync::Notify;

use crate::base::{ErrorKind, Fault, Hash, NodeId, SessionId};
use crate::ledger::price;

/// Rows of steps that were asked of a peer before it is paid without waiting for the answer's end.
const CHUNK_ROWS: u32 = 64;
/// Peers that something is kept of; one more is refused. About 200 bytes each.
const MAX_TABS: usize = 64 * 1024;

/// How this node stands with a peer, in credits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Balance {
    /// The peer.
    #[serde(serialize_with = "as_text")]
    pub peer: NodeId,
    /// What it has signed to owe this node, all in all.
    pub earned: u64,
    /// What this node has signed to owe it, all in all.
    pub spent: u64,
    /// What was computed for it and is not signed for yet.
    pub unsigned_earned: u64,
    /// What it was asked to compute and is not signed for yet.
    pub unsigned_spent: u64,
}

fn as_text<S: serde::Serializer>(value: &NodeId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// One peer's.
#[derive(Debug, Clone, Copy)]
struct Tab {
    /// Thousandths that this node owes and has not proposed to pay.
    owed: u64,
    /// Rows behind them.
    rows: u32,
    /// Commits to what they are for.
    work: Hash,
    /// Thousandths that were computed for the peer and that it has not paid; below zero where it has paid for what is
    /// still being computed.
    worked: i64,
    /// Credits of the account in which the peer is the debtor.
    earned: u64,
    /// Credits of the account in which this node is.
    spent: u64,
    /// Whether a payment was signed and not answered.
    pending: bool,
}

impl Default for Tab {
    fn default() -> Self {
        Self { owed: 0, rows: 0, work: Hash([0; 32]), worked: 0, earned: 0, spent: 0, pending: false }
    }
}

impl Tab {
    /// Credits that would be lost if the peer were never seen again: what it owes over what is owed to it.
    fn exposure(&self) -> u64 {
        let owed_to_it = self.spent.saturating_add(price::credits(self.owed));
        self.earned.saturating_add(self.unsigned()).saturating_sub(owed_to_it)
    }

    /// Credits that were computed for it and are not signed for.
    fn unsigned(&self) -> u64 {
        price::credits(self.worked.try_into().unwrap_or(0))
    }
}

/// See the module. Clones are the same.
#[derive(Debug, Clone)]
pub struct Tabs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    by_peer: DashMap<NodeId, Tab>,
    /// Credits that a peer may owe; nothing where that is not bounded.
    limit: Option<u64>,
    due: Notify,
}

impl Tabs {
    /// Empty; a peer may owe up to `limit` credits.
    pub fn new(limit: Option<u64>) -> Self {
        Self { inner: Arc::new(Inner { by_peer: DashMap::new(), limit, due: Notify::new() }) }
    }

    /// A peer has computed a step of a session that this node began, for so many thousandths.
    pub fn spend(&self, peer: NodeId, session: SessionId, rows: u32, milli: u64) {
        let mut tab = self.inner.by_peer.entry(peer).or_default();
        tab.owed = tab.owed.saturating_add(milli);
        tab.rows = tab.rows.saturating_add(rows);
        let mut hasher = blake3::Hasher::new();
        hasher.update(tab.work.as_bytes()).update(session.as_bytes()).update(&milli.to_be_bytes());
        tab.work = Hash(*hasher.finalize().as_bytes());
        if tab.rows >= CHUNK_ROWS {
            self.inner.due.notify_one();
        }
    }

    /// A session is over: what it has cost is due.
    pub fn end(&self) {
        self.inner.due.notify_one();
    }

    /// Waits until something is due. Cancel-safe.
    pub async fn due(&self) {
        self.inner.due.notified().await;
    }

    /// A step was computed for a peer.
    pub fn earn(&self, peer: NodeId, milli: u64) {
        let mut tab = self.inner.by_peer.entry(peer).or_default();
        tab.worked = tab.worked.saturating_add_unsigned(milli);
    }

    /// Whether a peer may be worked for: within what it may owe.
    pub fn admit(&self, peer: NodeId) -> Result<(), Fault> {
        let known = self.inner.by_peer.get(&peer).map(|tab| tab.exposure());
        if known.is_none() && self.inner.by_peer.len() >= MAX_TABS {
            return Err(Fault::new(ErrorKind::Overloaded, format!("this node keeps accounts with {MAX_TABS} peers")));
        }
        match self.inner.limit {
            Some(limit) if known.unwrap_or(0) >= limit => {
                let owed = known.unwrap_or(0);
                let text =
                    format!("you owe {owed} credits here, {limit} are allowed; compute for this node, or ask another");
                Err(Fault::new(ErrorKind::NoCredit, text))
            }
            _ => Ok(()),
        }
    }

    /// How this node stands with everybody, by peer.
    pub fn balances(&self) -> Vec<Balance> {
        let balance = |peer: NodeId, tab: &Tab| Balance {
            peer,
            earned: tab.earned,
            spent: tab.spent,
            unsigned_earned: tab.unsigned(),
            unsigned_spent: price::credits(tab.owed),
        };
        let mut all: Vec<Balance> = self.inner.by_peer.iter().map(|tab| balance(*tab.key(), tab.value())).collect();
        all.sort_by_key(|balance| balance.peer);
        all
    }

    /// Peers that this node is to pay.
    pub fn creditors(&self) -> Vec<NodeId> {
        self.inner.by_peer.iter().filter(|tab| tab.owed > 0 || tab.pending).map(|tab| *tab.key()).collect()
    }

    /// Whole credits that are owed to a peer and not proposed, and what they are for.
    pub(super) fn owed(&self, peer: NodeId) -> (u64, Hash) {
        self.inner.by_peer.get(&peer).map_or((0, Hash([0; 32])), |tab| (price::credits(tab.owed), tab.work))
    }

    /// A payment was signed: it is no longer owed.
    pub(super) fn proposed(&self, peer: NodeId, credits: u64) {
        let mut tab = self.inner.by_peer.entry(peer).or_default();
        tab.owed = tab.owed.saturating_sub(price::paid(credits));
        (tab.rows, tab.work) = (0, Hash([0; 32]));
    }

    /// Whether a peer has been worked for without having paid.
    pub(super) fn has_worked(&self, peer: NodeId) -> bool {
        self.inner.by_peer.get(&peer).is_some_and(|tab| tab.worked > 0)
    }

    /// A payment was taken.
    pub(super) fn accepted(&self, peer: NodeId, credits: u64) {
        let mut tab = self.inner.by_peer.entry(peer).or_default();
        tab.worked = tab.worked.saturating_sub_unsigned(price::paid(credits));
    }

    /// What a peer has signed to owe, all in all.
    pub(super) fn show_earned(&self, peer: NodeId, total: u64) {
        self.inner.by_peer.entry(peer).or_default().earned = total;
    }

    /// What this node has signed to owe a peer, and whether more was proposed.
    pub(super) fn show_spent(&self, peer: NodeId, total: u64, pending: bool) {
        let mut tab = self.inner.by_peer.entry(peer).or_default();
        (tab.spent, tab.pending) = (total, pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: NodeId = NodeId([1; 32]);

    #[test]
    fn a_peer_is_worked_for_until_it_owes_as_much_as_it_may() {
        let tabs = Tabs::new(Some(10));
        tabs.admit(PEER).unwrap();
        tabs.earn(PEER, 9_000);
        tabs.admit(PEER).unwrap();
        tabs.earn(PEER, 1);
        assert_eq!(tabs.admit(PEER).unwrap_err().kind(), ErrorKind::NoCredit);
        // A signature does not pay: what is signed for is owed like what is not.
        tabs.accepted(PEER, 10);
        tabs.show_earned(PEER, 10);
        assert_eq!(tabs.admit(PEER).unwrap_err().kind(), ErrorKind::NoCredit);
        // Work in the other direction does.
        tabs.show_spent(PEER, 4, false);
        tabs.admit(PEER).unwrap();
    }

    #[test]
    fn without_a_limit_nobody_is_refused() {
        let tabs = Tabs::new(None);
        tabs.earn(PEER, u64::MAX);
        tabs.earn(PEER, 1);
        tabs.admit(PEER).unwrap();
    }

    #[tokio::test]
    async fn a_chunk_of_rows_or_the_end_of_a_session_makes_a_payment_due() {
        let tabs = Tabs::new(None);
        let is_due = || async { tokio::time::timeout(std::time::Duration::from_millis(10), tabs.due()).await.is_ok() };
        tabs.spend(PEER, SessionId([0; 16]), CHUNK_ROWS - 1, 5);
        assert!(!is_due().await);
        tabs.spend(PEER, SessionId([0; 16]), 1, 5);
        assert!(is_due().await && !is_due().await);
        tabs.end();
        assert!(is_due().await);
    }
}
