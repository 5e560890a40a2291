//! Credits between this node and its peers: balances, limits and settlement.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, NodeId};
use crate::ledger::{Balance, Balances, Ledger};
use crate::net::NetHandle;
use crate::pipeline::runner::payments::Payments;
use crate::wire::control::{AccountHeads, Reply};

/// Handle over the ledger. Owners: the ledger's thread writes records, [`Payments`] settles them with peers.
pub(crate) struct Credits {
    balances: Balances,
    /// `None` without a network.
    payments: Option<Payments>,
}

impl Credits {
    /// Without a network nothing is settled: the ledger ends here, its balances stay.
    pub fn new(ledger: Ledger, net: Option<NetHandle>) -> Self {
        Self { balances: ledger.balances().clone(), payments: net.map(|net| Payments::new(ledger, net)) }
    }

    /// Balance with every peer that computed for this node or was served by it.
    pub fn balances(&self) -> Vec<Balance> {
        self.balances.snapshot()
    }

    /// Settles due payments until the node stops.
    pub async fn run(&self, stopping: CancellationToken) {
        if let Some(payments) = &self.payments {
            payments.run(stopping).await;
        }
    }

    /// Pays all that is owed to connected peers, within this time.
    pub async fn pay_all(&self, deadline: Duration) {
        if let Some(payments) = &self.payments {
            let _ = tokio::time::timeout(deadline, payments.pay_all()).await;
        }
    }

    /// Ends the ledger; its records are durable then.
    pub async fn close(&self) {
        if let Some(payments) = &self.payments {
            payments.close().await;
        }
    }

    /// The peer's last connection is gone: records are compared again when it returns.
    pub fn disconnected(&self, peer: NodeId) {
        self.payments.iter().for_each(|payments| payments.left(peer));
    }

    /// Reply to a peer that compares records.
    pub async fn on_heads(&self, peer: NodeId, theirs: &AccountHeads) -> Result<Reply, Fault> {
        self.settlement()?.on_heads(peer, theirs).await
    }

    /// Reply to a peer that pays.
    pub async fn on_pay(&self, peer: NodeId, proposal: &[u8]) -> Result<Reply, Fault> {
        self.settlement()?.on_pay(peer, proposal).await
    }

    /// Present wherever a peer can ask: requests come over a network.
    fn settlement(&self) -> Result<&Payments, Fault> {
        self.payments.as_ref().ok_or_else(|| Fault::new(ErrorKind::Internal, "this node settles nothing"))
    }
}
