//! The single thread that changes accounts and signs. It reads all accounts at the start and persists each change before it
//! returns the result.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};

use crate::base::{Hash, NodeId};
use crate::identity::Keypair;
use crate::ledger::account::{Account, AccountId};
use crate::ledger::balances::Balances;
use crate::ledger::record::{Proposal, Record};
use crate::ledger::{LedgerError, limits};
use crate::store::{Store, StoreError};

/// Capacity of the request queue; further senders wait.
const QUEUE: usize = 64;

/// The newest records of both accounts of a pair of nodes, as one of them has stored them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heads {
    /// Record of the account in which the sender is the debtor.
    pub debit: Option<Record>,
    /// Record of the account in which the sender is the creditor.
    pub credit: Option<Record>,
}

type Answer<T> = oneshot::Sender<Result<T, LedgerError>>;

enum Request {
    Heads(NodeId, Answer<Heads>),
    Adopt(NodeId, Box<Heads>, Answer<()>),
    Propose(NodeId, Answer<Option<Proposal>>),
    Accept(Box<Proposal>, Answer<Record>),
    Close(oneshot::Sender<()>),
}

/// A handle to the ledger; clones share it. The thread ends with the last handle or with [`Ledger::close`].
#[derive(Debug, Clone)]
pub struct Ledger {
    requests: mpsc::Sender<Request>,
    balances: Balances,
}

impl Ledger {
    /// Opens the accounts of a store. `network` is the swarm's name, `limit` the maximum debt of a peer in credits. Blocks.
    pub fn open(store: Store, key: Arc<Keypair>, network: &str, limit: Option<u64>) -> Result<Ledger, LedgerError> {
        let balances = Balances::new(limit);
        let network = Hash(*blake3::hash(network.as_bytes()).as_bytes());
        let (accounts, uncertain) = (BTreeMap::new(), None);
        let mut state =
            LedgerState { store, key, network, accounts, balances: balances.clone(), uncertain, stopped: false };
        state.read()?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("swarmllm-ledger".into());
        let started = thread.spawn(move || state.run(queue));
        started.map_err(|error| {
            tracing::error!(%error, "failed to start the ledger thread");
            LedgerError::Stopped
        })?;
        Ok(Ledger { requests, balances })
    }

    /// The in-memory balances.
    pub fn balances(&self) -> &Balances {
        &self.balances
    }

    /// The newest records with a peer, as this node has stored them.
    pub async fn heads(&self, peer: NodeId) -> Result<Heads, LedgerError> {
        self.ask(|answer| Request::Heads(peer, answer)).await
    }

    /// Adopts the newer records of a peer.
    pub async fn adopt(&self, peer: NodeId, theirs: Heads) -> Result<(), LedgerError> {
        self.ask(|answer| Request::Adopt(peer, Box::new(theirs), answer)).await
    }

    /// Signs a payment of the debt to a peer; it is durable on return. Returns an unanswered earlier payment again, and
    /// `None` without debt.
    pub async fn propose(&self, peer: NodeId) -> Result<Option<Proposal>, LedgerError> {
        self.ask(|answer| Request::Propose(peer, answer)).await
    }

    /// Accepts a payment and returns the signed record, durable on return.
    pub async fn accept(&self, proposal: Proposal) -> Result<Record, LedgerError> {
        self.ask(|answer| Request::Accept(Box::new(proposal), answer)).await
    }

    /// Ends the thread and closes its store. Later calls return [`LedgerError::Stopped`].
    pub async fn close(&self) {
        let (answer, closed) = oneshot::channel();
        if self.requests.send(Request::Close(answer)).await.is_ok() {
            let _ = closed.await;
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(Answer<T>) -> Request) -> Result<T, LedgerError> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| LedgerError::Stopped)?;
        answered.await.map_err(|_| LedgerError::Stopped)?
    }
}

/// State of the thread.
struct LedgerState {
    store: Store,
    key: Arc<Keypair>,
    network: Hash,
    accounts: BTreeMap<AccountId, Account>,
    balances: Balances,
    /// A change that failed with a full disk: it may or may not be on disk. Nothing is signed until that is resolved.
    uncertain: Option<(Account, Effect)>,
    /// A commit failed otherwise: the state on disk after a power loss is unknown, so nothing more is signed.
    stopped: bool,
}

/// Effect of a durable account change on the balances.
#[derive(Debug, Clone, Copy)]
enum Effect {
    None,
    Proposed(NodeId, u64),
    Accepted(NodeId, u64),
}

impl LedgerState {
    fn read(&mut self) -> Result<(), LedgerError> {
        for (key, bytes) in self.store.accounts()? {
            let (network, id) = account_key_parts(&key);
            // Accounts of other swarms stay in the store for when the node rejoins them.
            if network == self.network {
                let account = Account::decode(id, network, &bytes)?;
                self.publish(&account);
                self.accounts.insert(id, account);
            }
        }
        Ok(())
    }

    fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        while let Some(request) = queue.blocking_recv() {
            match request {
                Request::Heads(peer, answer) => drop(answer.send(Ok(self.heads(peer)))),
                Request::Adopt(peer, theirs, answer) => drop(answer.send(self.adopt(peer, *theirs))),
                Request::Propose(peer, answer) => drop(answer.send(self.propose(peer))),
                Request::Accept(proposal, answer) => drop(answer.send(self.accept(*proposal))),
                Request::Close(answer) => {
                    drop(self);
                    let _ = answer.send(());
                    return;
                }
            }
        }
    }

    fn me(&self) -> NodeId {
        self.key.node_id()
    }

    /// The accounts with this node as debtor and as creditor.
    fn ids(&self, peer: NodeId) -> (AccountId, AccountId) {
        let me = self.me();
        (AccountId { debtor: me, creditor: peer }, AccountId { debtor: peer, creditor: me })
    }

    fn heads(&self, peer: NodeId) -> Heads {
        let head = |id| self.accounts.get(&id).and_then(|account| account.head().cloned());
        let (debit, credit) = self.ids(peer);
        Heads { debit: head(debit), credit: head(credit) }
    }

    fn adopt(&mut self, peer: NodeId, theirs: Heads) -> Result<(), LedgerError> {
        let (debit, credit) = self.ids(peer);
        for (id, record) in [(debit, theirs.credit), (credit, theirs.debit)] {
            let Some(record) = record else { continue };
            let mut account = self.account(id)?;
            match account.adopt(record) {
                Ok(false) => {}
                Ok(true) => self.persist(account, Effect::None)?,
                Err(error) => {
                    // The account stays frozen after a restart.
                    if matches!(error, LedgerError::Conflict { .. }) {
                        self.persist(account, Effect::None)?;
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn propose(&mut self, peer: NodeId) -> Result<Option<Proposal>, LedgerError> {
        let mut account = self.account(self.ids(peer).0)?;
        if let Some(pending) = account.pending() {
            return Ok(Some(pending.clone()));
        }
        let (credits, work) = self.balances.owed(peer);
        if credits == 0 {
            return Ok(None);
        }
        let proposal = account.propose(credits, work, now(), &self.key)?;
        self.persist(account, Effect::Proposed(peer, credits))?;
        Ok(Some(proposal))
    }

    fn accept(&mut self, proposal: Proposal) -> Result<Record, LedgerError> {
        let (id, delta) = (proposal.body().account, proposal.body().delta);
        if id.creditor != self.me() {
            return Err(LedgerError::Misplaced { account: id });
        }
        // Anyone can generate keys, and each account takes space.
        if !self.accounts.contains_key(&id) && !self.balances.has_receivable(id.debtor) {
            return Err(LedgerError::NothingOwed { account: id });
        }
        let mut account = self.account(id)?;
        let before = account.total();
        let record = account.accept(proposal, &self.key)?;
        if account.total() != before {
            self.persist(account, Effect::Accepted(id.debtor, delta))?;
        }
        Ok(record)
    }

    /// A copy of the account, to be changed and persisted.
    fn account(&mut self, id: AccountId) -> Result<Account, LedgerError> {
        self.resolve_uncertain()?;
        match self.accounts.get(&id) {
            Some(account) => Ok(account.clone()),
            None if self.accounts.len() >= limits::ACCOUNTS => Err(LedgerError::Full),
            None => Ok(Account::new(id, self.network)),
        }
    }

    /// Persists a change, then applies it.
    fn persist(&mut self, account: Account, effect: Effect) -> Result<(), LedgerError> {
        let stored = self.store.put_account(&storage_key(&self.network, account.id()), &account.encode());
        if let Err(error) = stored {
            match &error {
                StoreError::Full { .. } => {
                    tracing::warn!(%error, "the disk is full; the ledger signs nothing until space is free");
                    self.uncertain = Some((account, effect));
                }
                _ => {
                    tracing::error!(%error, "the ledger stops signing");
                    self.stopped = true;
                }
            }
            return Err(error.into());
        }
        self.apply(account, effect);
        Ok(())
    }

    /// Finds out whether the change that failed with a full disk was stored; applies it if so.
    fn resolve_uncertain(&mut self) -> Result<(), LedgerError> {
        if self.stopped {
            return Err(LedgerError::Stopped);
        }
        let Some((account, effect)) = &self.uncertain else { return Ok(()) };
        let (account, effect) = (account.clone(), *effect);
        let key = storage_key(&self.network, account.id());
        let found = self.store.account(&key)?;
        if let Some(found) = &found {
            // The value read may be in the page cache only. A second write makes it durable.
            self.store.put_account(&key, found)?;
        }
        self.uncertain = None;
        if found == Some(account.encode()) {
            self.apply(account, effect);
        }
        Ok(())
    }

    /// Applies a durable change.
    fn apply(&mut self, account: Account, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Proposed(peer, credits) => self.balances.on_proposed(peer, credits),
            Effect::Accepted(peer, credits) => self.balances.on_accepted(peer, credits),
        }
        self.publish(&account);
        self.accounts.insert(account.id(), account);
    }

    /// Publishes the totals to the balances.
    fn publish(&self, account: &Account) {
        let (id, total) = (account.id(), account.total());
        match id.debtor == self.me() {
            true => self.balances.set_spent(id.creditor, total, account.pending().is_some()),
            false => self.balances.set_earned(id.debtor, total),
        }
    }
}

/// Key of an account in the store.
fn storage_key(network: &Hash, id: AccountId) -> [u8; 96] {
    let mut key = [0; 96];
    key[..32].copy_from_slice(network.as_bytes());
    key[32..].copy_from_slice(&id.key());
    key
}

fn account_key_parts(key: &[u8; 96]) -> (Hash, AccountId) {
    let (network, id) = (std::array::from_fn(|at| key[at]), std::array::from_fn(|at| key[32 + at]));
    (Hash(network), AccountId::from_key(&id))
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
