//! Pays peers for their computation, outside of the token path, over control streams.
//!
//! A payment is due after a number of rows and at the end of a session. Debtor and creditor first compare their newest
//! records, once per connection; each adopts from the other what it has lost. An unanswered payment is repeated with
//! the same bytes.

use std::collections::HashSet;
use std::sync::Mutex;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, NodeId};
use crate::ledger::record::{Proposal, Record};
use crate::ledger::{Heads, Ledger, LedgerError};
use crate::net::NetHandle;
use crate::pipeline::link::request::{request, unexpected};
use crate::wire::control::{AccountHeads, Reply, Request};

/// Debts that come due within this time are paid together.
const TOGETHER: Duration = Duration::from_millis(100);
/// Interval of retries of failed payments.
const RETRY: Duration = Duration::from_secs(10);
/// Timeout of a request to a peer.
const DEADLINE: Duration = Duration::from_secs(10);
/// Most concurrent payments.
const PEERS_AT_ONCE: usize = 8;
/// Payments to one peer in a row: an unfinished one, and the current debt.
const PAYMENTS: usize = 2;

/// Pays this node's debts, and accepts payments.
pub struct Payments {
    ledger: Ledger,
    net: NetHandle,
    /// Peers whose records were compared since they connected.
    compared: Mutex<HashSet<NodeId>>,
}

impl Payments {
    /// Pays the debts of this ledger over this network.
    pub fn new(ledger: Ledger, net: NetHandle) -> Self {
        Self { ledger, net, compared: Mutex::default() }
    }

    /// Pays debts that come due, until stopped.
    pub async fn run(&self, stopping: CancellationToken) {
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pay = async {
            loop {
                tokio::select! {
                    () = self.ledger.balances().due() => sleep(TOGETHER).await,
                    _ = retry.tick() => {}
                }
                self.pay_all().await;
            }
        };
        stopping.run_until_cancelled(pay).await;
    }

    /// Ends the ledger.
    pub async fn close(&self) {
        self.ledger.close().await;
    }

    /// Pays every connected creditor.
    pub async fn pay_all(&self) {
        let creditors = self.ledger.balances().creditors();
        let connected: HashSet<NodeId> = self.net.peers().connected().into_iter().collect();
        let reached = creditors.into_iter().filter(|peer| connected.contains(peer));
        let pay = |peer: NodeId| async move {
            if let Err(fault) = self.pay(peer).await {
                tracing::debug!(%peer, %fault, "a peer could not be paid");
            }
        };
        futures::stream::iter(reached).for_each_concurrent(PEERS_AT_ONCE, pay).await;
    }

    /// Pays one peer.
    async fn pay(&self, peer: NodeId) -> Result<(), Fault> {
        if !self.has_compared(peer) {
            self.compare(peer).await?;
        }
        for _ in 0..PAYMENTS {
            let Some(proposal) = self.ledger.propose(peer).await.map_err(refused)? else { return Ok(()) };
            let pay = Request::Pay { proposal: proposal.encode().to_vec() };
            let paid = request(&self.net, peer, &pay, DEADLINE).await;
            // After any refusal the next payment begins with a comparison.
            let paid = paid.inspect_err(|_| self.left(peer))?;
            let Reply::Paid { record } = paid else { return Err(unexpected(peer)) };
            let record = Record::decode(&record).map_err(refused)?;
            self.ledger.adopt(peer, Heads { debit: None, credit: Some(record) }).await.map_err(refused)?;
        }
        Ok(())
    }

    async fn compare(&self, peer: NodeId) -> Result<(), Fault> {
        let ours = self.ledger.heads(peer).await.map_err(refused)?;
        let Reply::Heads(theirs) = request(&self.net, peer, &Request::Heads(encoded(&ours)), DEADLINE).await? else {
            return Err(unexpected(peer));
        };
        self.ledger.adopt(peer, decoded(&theirs).map_err(refused)?).await.map_err(refused)?;
        self.compared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).insert(peer);
        Ok(())
    }

    fn has_compared(&self, peer: NodeId) -> bool {
        self.compared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).contains(&peer)
    }

    /// Forgets the comparison with a disconnected peer, whose records may differ when it returns.
    pub fn left(&self, peer: NodeId) {
        self.compared.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&peer);
    }

    /// Answers a peer's comparison.
    pub async fn on_heads(&self, peer: NodeId, theirs: &AccountHeads) -> Result<Reply, Fault> {
        self.ledger.adopt(peer, decoded(theirs).map_err(refused)?).await.map_err(refused)?;
        Ok(Reply::Heads(encoded(&self.ledger.heads(peer).await.map_err(refused)?)))
    }

    /// Answers a peer's payment.
    pub async fn on_pay(&self, peer: NodeId, proposal: &[u8]) -> Result<Reply, Fault> {
        let proposal = Proposal::decode(proposal).map_err(refused)?;
        if proposal.body().account.debtor != peer {
            return Err(Fault::new(ErrorKind::BadFrame, "a peer pays its own debts only"));
        }
        let record = self.ledger.accept(proposal).await.map_err(refused)?;
        Ok(Reply::Paid { record: record.encode().to_vec() })
    }
}

/// Fault for a peer: it says that the store failed, and not where it lies.
fn refused(error: LedgerError) -> Fault {
    match error {
        LedgerError::Store(_) => Fault::new(error.kind(), "the ledger's store takes no change now"),
        error => Fault::new(error.kind(), error),
    }
}

fn encoded(heads: &Heads) -> AccountHeads {
    let bytes = |record: &Option<Record>| record.as_ref().map(|record| record.encode().to_vec());
    AccountHeads { debit: bytes(&heads.debit), credit: bytes(&heads.credit) }
}

/// Parses at the trust boundary: only records with both signatures pass.
fn decoded(heads: &AccountHeads) -> Result<Heads, LedgerError> {
    let record = |bytes: &Option<Vec<u8>>| bytes.as_deref().map(Record::decode).transpose();
    Ok(Heads { debit: record(&heads.debit)?, credit: record(&heads.credit)? })
}
