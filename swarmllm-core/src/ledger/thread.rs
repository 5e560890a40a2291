//! The one thread that changes accounts and signs. It reads all of them at the start, and writes each change durably before
//! it gives what the change was for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::{mpsc, oneshot};

use crate::base::{Hash, NodeId};
use crate::identity::Keypair;
use crate::ledger::account::{Account, AccountId};
use crate::ledger::record::{Proposal, Record};
use crate::ledger::tab::Tabs;
use crate::ledger::{LedgerError, limits};
use crate::store::{Store, StoreError};

/// Requests that wait; more wait at their senders.
const QUEUE: usize = 64;

/// The newest records of the two accounts with a peer, as one of the two has them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Heads {
    /// Of the account in which whoever tells them is the debtor.
    pub debit: Option<Record>,
    /// Of the one in which it is the creditor.
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

/// A handle to the ledger; clones share it. The thread ends with the last one, or when it is told to.
#[derive(Debug, Clone)]
pub struct Ledger {
    requests: mpsc::Sender<Request>,
    tabs: Tabs,
}

impl Ledger {
    /// Reads the accounts of a store. `network` is the swarm's name, `limit` what a peer may owe, in credits. Blocks.
    pub fn open(store: Store, key: Arc<Keypair>, network: &str, limit: Option<u64>) -> Result<Ledger, LedgerError> {
        let tabs = Tabs::new(limit);
        let network = Hash(*blake3::hash(network.as_bytes()).as_bytes());
        let (accounts, unsure) = (BTreeMap::new(), None);
        let mut book = Book { store, key, network, accounts, tabs: tabs.clone(), unsure, stopped: false };
        book.read()?;
        let (requests, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("swarmllm-ledger".into());
        let started = thread.spawn(move || book.run(queue));
        started.map_err(|error| {
            tracing::error!(%error, "the ledger's thread could not be started");
            LedgerError::Stopped
        })?;
        Ok(Ledger { requests, tabs })
    }

    /// What is not signed for yet, and what each peer owes.
    pub fn tabs(&self) -> &Tabs {
        &self.tabs
    }

    /// The newest records with a peer, as this node has them.
    pub async fn heads(&self, peer: NodeId) -> Result<Heads, LedgerError> {
        self.ask(|answer| Request::Heads(peer, answer)).await
    }

    /// Takes what a peer has that is newer.
    pub async fn adopt(&self, peer: NodeId, theirs: Heads) -> Result<(), LedgerError> {
        self.ask(|answer| Request::Adopt(peer, Box::new(theirs), answer)).await
    }

    /// The payment of what is owed to a peer, durable and signed; an earlier one that was not answered comes again. Nothing
    /// where nothing is owed.
    pub async fn propose(&self, peer: NodeId) -> Result<Option<Proposal>, LedgerError> {
        self.ask(|answer| Request::Propose(peer, answer)).await
    }

    /// Takes a payment; gives the record, durable and signed.
    pub async fn accept(&self, proposal: Proposal) -> Result<Record, LedgerError> {
        self.ask(|answer| Request::Accept(Box::new(proposal), answer)).await
    }

    /// Ends the thread and closes its store; whatever is asked from then on is refused.
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

/// What the thread owns.
struct Book {
    store: Store,
    key: Arc<Keypair>,
    network: Hash,
    accounts: BTreeMap<AccountId, Account>,
    tabs: Tabs,
    /// A change for which the disk had no room: whether the disk has it is not known, and nothing is signed meanwhile.
    unsure: Option<(Account, Effect)>,
    /// A commit has failed otherwise: what the disk will have after a loss of power is not known, so nothing is signed any
    /// more.
    stopped: bool,
}

/// What a durable change of an account does to what is not signed for.
#[derive(Debug, Clone, Copy)]
enum Effect {
    None,
    Proposed(NodeId, u64),
    Accepted(NodeId, u64),
}

impl Book {
    fn read(&mut self) -> Result<(), LedgerError> {
        for (key, bytes) in self.store.accounts()? {
            let (network, id) = of_key(&key);
            // Others are of swarms that the node was in before: they are there again when it is.
            if network == self.network {
                let account = Account::decode(id, network, &bytes)?;
                self.show(&account);
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

    /// The accounts in which this node is the debtor, and the creditor.
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
                Ok(true) => self.keep(account, Effect::None)?,
                Err(error) => {
                    // A frozen one stays so after a restart.
                    if matches!(error, LedgerError::Conflict { .. }) {
                        self.keep(account, Effect::None)?;
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
        let (credits, work) = self.tabs.owed(peer);
        if credits == 0 {
            return Ok(None);
        }
        let proposal = account.propose(credits, work, now(), &self.key)?;
        self.keep(account, Effect::Proposed(peer, credits))?;
        Ok(Some(proposal))
    }

    fn accept(&mut self, proposal: Proposal) -> Result<Record, LedgerError> {
        let (id, delta) = (proposal.body().account, proposal.body().delta);
        if id.creditor != self.me() {
            return Err(LedgerError::Misplaced { account: id });
        }
        // Anyone can make a key, and each account takes room.
        if !self.accounts.contains_key(&id) && !self.tabs.has_worked(id.debtor) {
            return Err(LedgerError::NothingOwed { account: id });
        }
        let mut account = self.account(id)?;
        let before = account.total();
        let record = account.accept(proposal, &self.key)?;
        if account.total() != before {
            self.keep(account, Effect::Accepted(id.debtor, delta))?;
        }
        Ok(record)
    }

    /// A copy of the account, to be changed and kept.
    fn account(&mut self, id: AccountId) -> Result<Account, LedgerError> {
        self.make_sure()?;
        match self.accounts.get(&id) {
            Some(account) => Ok(account.clone()),
            None if self.accounts.len() >= limits::ACCOUNTS => Err(LedgerError::Full),
            None => Ok(Account::new(id, self.network)),
        }
    }

    /// Makes a change durable, and only then real.
    fn keep(&mut self, account: Account, effect: Effect) -> Result<(), LedgerError> {
        let stored = self.store.put_account(&key_of(&self.network, account.id()), &account.encode());
        if let Err(error) = stored {
            match &error {
                StoreError::Full { .. } => {
                    tracing::warn!(%error, "the ledger signs nothing until there is room");
                    self.unsure = Some((account, effect));
                }
                _ => {
                    tracing::error!(%error, "the ledger stops signing");
                    self.stopped = true;
                }
            }
            return Err(error.into());
        }
        self.take_over(account, effect);
        Ok(())
    }

    /// Finds out whether the disk has a change that it had no room for: then it has happened, and else it has not.
    fn make_sure(&mut self) -> Result<(), LedgerError> {
        if self.stopped {
            return Err(LedgerError::Stopped);
        }
        let Some((account, effect)) = &self.unsure else { return Ok(()) };
        let (account, effect) = (account.clone(), *effect);
        let key = key_of(&self.network, account.id());
        let found = self.store.account(&key)?;
        if let Some(found) = &found {
            // What was read may be in the system's memory only. Once it is written again it is durable.
            self.store.put_account(&key, found)?;
        }
        self.unsure = None;
        if found == Some(account.encode()) {
            self.take_over(account, effect);
        }
        Ok(())
    }

    /// A change is durable.
    fn take_over(&mut self, account: Account, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Proposed(peer, credits) => self.tabs.proposed(peer, credits),
            Effect::Accepted(peer, credits) => self.tabs.accepted(peer, credits),
        }
        self.show(&account);
        self.accounts.insert(account.id(), account);
    }

    /// Tells the totals to those who look.
    fn show(&self, account: &Account) {
        let (id, total) = (account.id(), account.total());
        match id.debtor == self.me() {
            true => self.tabs.show_spent(id.creditor, total, account.pending().is_some()),
            false => self.tabs.show_earned(id.debtor, total),
        }
    }
}

/// Where an account is stored.
fn key_of(network: &Hash, id: AccountId) -> [u8; 96] {
    let mut key = [0; 96];
    key[..32].copy_from_slice(network.as_bytes());
    key[32..].copy_from_slice(&id.key());
    key
}

fn of_key(key: &[u8; 96]) -> (Hash, AccountId) {
    let (network, id) = (std::array::from_fn(|at| key[at]), std::array::from_fn(|at| key[32 + at]));
    (Hash(network), AccountId::of_key(&id))
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}
