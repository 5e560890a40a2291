use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use tempfile::TempDir;

use super::record::{Body, PROPOSAL_BYTES, Proposal, RECORD_BYTES, Record};
use super::*;
use crate::base::{ErrorKind, Hash, NodeId, SessionId};
use crate::identity::Keypair;
use crate::store::Store;
use crate::store::disk::TestDisk;

const NETWORK: Hash = Hash([9; 32]);
const SESSION: SessionId = SessionId([3; 16]);

fn key(seed: u8) -> Keypair {
    Keypair::from_seed(&[seed; 32])
}

fn id(debtor: &Keypair, creditor: &Keypair) -> AccountId {
    AccountId { debtor: debtor.node_id(), creditor: creditor.node_id() }
}

fn body(debtor: &Keypair, creditor: &Keypair) -> Body {
    let account = id(debtor, creditor);
    let prev = Body::genesis(&NETWORK, &account, 0);
    Body { network: NETWORK, account, epoch: 0, seq: 1, prev, total: 7, delta: 7, work: Hash([4; 32]), time: 5 }
}

/// One account as its debtor and its creditor store it, and both keys.
fn pair() -> (Account, Account, Keypair, Keypair) {
    let (debtor, creditor) = (key(1), key(2));
    let account = Account::new(id(&debtor, &creditor), NETWORK);
    (account.clone(), account, debtor, creditor)
}

#[test]
fn a_record_has_one_encoding_and_every_bit_is_signed() {
    let (debtor, creditor) = (key(1), key(2));
    let record = Record::sign(Proposal::sign(body(&debtor, &creditor), &debtor), &creditor);
    let bytes = record.encode();
    assert_eq!(Record::decode(&bytes).unwrap(), record);
    assert_eq!(Proposal::decode(&bytes[..PROPOSAL_BYTES]).unwrap(), *record.proposal());
    for bit in 0..bytes.len() * 8 {
        let mut corrupted = bytes;
        corrupted[bit / 8] ^= 1 << (bit % 8);
        assert!(Record::decode(&corrupted).is_err(), "bit {bit}");
    }
    for length in (0..RECORD_BYTES).chain([RECORD_BYTES + 1]) {
        assert!(Record::decode(&[bytes.as_slice(), &[0]].concat()[..length]).is_err(), "{length} bytes");
    }
}

#[test]
fn neither_signature_can_stand_in_for_the_other() {
    let (debtor, creditor) = (key(1), key(2));
    let body = body(&debtor, &creditor);
    let mut bytes = Proposal::sign(body, &debtor).encode().to_vec();
    // The debtor's signature in the creditor's place.
    bytes.extend(debtor.sign(&[b"swarmllm/ledger/v1/accept\0".as_slice(), &bytes].concat()));
    assert!(matches!(Record::decode(&bytes), Err(LedgerError::Signature(_))));
    // The creditor's own proposal to itself.
    let own = Body { account: AccountId { debtor: creditor.node_id(), creditor: creditor.node_id() }, ..body };
    assert!(matches!(Proposal::decode(&Proposal::sign(own, &creditor).encode()), Err(LedgerError::Malformed { .. })));
}

#[test]
fn a_repeated_payment_is_accepted_once() {
    let (mut ours, mut theirs, debtor, creditor) = pair();
    let proposal = ours.propose(5, Hash([0; 32]), 100, &debtor).unwrap();
    assert_eq!(ours.propose(9, Hash([1; 32]), 200, &debtor).unwrap(), proposal, "an unanswered proposal is repeated");
    let record = theirs.accept(proposal.clone(), &creditor).unwrap();
    assert_eq!(theirs.accept(proposal, &creditor).unwrap(), record);
    assert!(ours.adopt(record.clone()).unwrap());
    assert!(!ours.adopt(record).unwrap());
    assert_eq!((ours.total(), theirs.total(), ours.pending()), (5, 5, None));
    let next = ours.propose(2, Hash([0; 32]), 50, &debtor).unwrap();
    assert!(next.body().seq == 101 && next.body().total == 7, "numbers grow although the clock went back");
}

#[test]
fn a_proposal_that_does_not_follow_the_head_changes_nothing() {
    let (ours, mut theirs, debtor, creditor) = pair();
    let first = ours.clone().propose(5, Hash([0; 32]), 100, &debtor).unwrap();
    theirs.accept(first.clone(), &creditor).unwrap();
    let before = theirs.clone();
    let head = theirs.head().unwrap().body().id();
    let follows = Body { prev: head, seq: 200, total: 8, delta: 3, ..*first.body() };
    let wrong = [
        Body { prev: Hash([0; 32]), ..follows },
        Body { seq: 100, ..follows },
        Body { total: 9, ..follows },
        Body { total: 2, delta: 2, ..follows },
    ];
    for body in wrong {
        let refused = theirs.accept(Proposal::sign(body, &debtor), &creditor).map(|_| ());
        assert!(matches!(refused, Err(LedgerError::NotNext { .. })), "{body:?}: {refused:?}");
    }
    let elsewhere = [
        Body { network: Hash([1; 32]), ..follows },
        Body { epoch: 1, ..follows },
        Body { account: AccountId { debtor: debtor.node_id(), creditor: key(3).node_id() }, ..follows },
    ];
    for body in elsewhere {
        let refused = theirs.accept(Proposal::sign(body, &debtor), &creditor).map(|_| ());
        assert!(matches!(refused, Err(LedgerError::Misplaced { .. })), "{body:?}: {refused:?}");
    }
    assert_eq!(theirs, before);
    theirs.accept(Proposal::sign(follows, &debtor), &creditor).unwrap();
}

#[test]
fn a_total_does_not_wrap() {
    let (mut ours, mut theirs, debtor, creditor) = pair();
    let proposal = ours.propose(u64::MAX, Hash([0; 32]), 1, &debtor).unwrap();
    ours.adopt(theirs.accept(proposal, &creditor).unwrap()).unwrap();
    let full = ours.propose(1, Hash([0; 32]), 2, &debtor);
    assert!(matches!(full, Err(LedgerError::Overflow { .. })));
    let prev = ours.head().unwrap().body().id();
    let wrapped = Body { prev, seq: 9, total: 1, delta: 1, ..*ours.head().unwrap().body() };
    assert!(theirs.accept(Proposal::sign(wrapped, &debtor), &creditor).is_err());
}

#[test]
fn contradicting_records_freeze_the_account_permanently() {
    let (mut ours, _, debtor, creditor) = pair();
    let record = |delta: u64, seq: u64| {
        let body = Body { seq, total: delta, delta, ..body(&debtor, &creditor) };
        Record::sign(Proposal::sign(body, &debtor), &creditor)
    };
    ours.adopt(record(5, 10)).unwrap();
    let fork = record(6, 10);
    let shrunk = record(4, 11);
    for other in [fork, shrunk] {
        let mut account = ours.clone();
        assert!(matches!(account.adopt(other), Err(LedgerError::Conflict { .. })));
        let mut again = Account::decode(account.id(), NETWORK, &account.encode()).unwrap();
        assert_eq!(again.total(), 5, "the agreed total stands");
        assert!(matches!(again.propose(1, Hash([0; 32]), 20, &debtor), Err(LedgerError::Frozen { .. })));
    }
}

/// One side of an account and its disk. A crash loses unwritten changes.
struct Side {
    account: Account,
    disk: Vec<u8>,
}

impl Side {
    fn new(account: &Account) -> Self {
        Self { account: account.clone(), disk: account.encode() }
    }

    fn keep(&mut self) {
        self.disk = self.account.encode();
    }

    fn crash(&mut self) {
        self.account = Account::decode(self.account.id(), NETWORK, &self.disk).unwrap();
    }
}

/// A message in flight.
#[derive(Clone)]
enum Message {
    Pay(Proposal),
    Paid(Record),
    /// The creditor's newest record, sent to the debtor.
    Head(Record),
}

/// One account between two nodes that crash, over a network that drops, repeats and reorders messages.
struct AccountPair {
    debtor: Side,
    creditor: Side,
    keys: (Keypair, Keypair),
    wire: Vec<Message>,
    /// Bodies signed by the debtor, by number, and by the creditor, by predecessor.
    signed: (HashMap<u64, Hash>, HashMap<Hash, Hash>),
    clock: u64,
    /// The highest total that the debtor has seen as agreed.
    agreed: u64,
}

impl AccountPair {
    fn new() -> Self {
        let (ours, theirs, debtor, creditor) = pair();
        let (debtor_side, creditor_side) = (Side::new(&ours), Side::new(&theirs));
        let (keys, signed) = ((debtor, creditor), Default::default());
        Self { debtor: debtor_side, creditor: creditor_side, keys, wire: Vec::new(), signed, clock: 0, agreed: 0 }
    }

    /// The debtor pays. It crashes before its write (`crash` 1), after it (2), or not.
    fn pay(&mut self, delta: u64, crash: u8) {
        // The clock stands still at times.
        self.clock += u64::from(crash == 0);
        let proposal = self.debtor.account.propose(delta, Hash([0; 32]), self.clock, &self.keys.0).unwrap();
        if crash == 1 {
            return self.debtor.crash();
        }
        self.debtor.keep();
        let known = self.signed.0.entry(proposal.body().seq).or_insert_with(|| proposal.body().id());
        assert_eq!(*known, proposal.body().id(), "a debtor signs one body per number");
        if crash == 2 {
            return self.debtor.crash();
        }
        self.wire.push(Message::Pay(proposal));
    }

    fn deliver(&mut self, message: Message, crash: u8) {
        match message {
            Message::Pay(proposal) => {
                let Ok(record) = self.creditor.account.accept(proposal, &self.keys.1) else {
                    // A refused debtor compares heads.
                    self.wire.extend(self.creditor.account.head().cloned().map(Message::Head));
                    return;
                };
                if crash == 1 {
                    return self.creditor.crash();
                }
                self.creditor.keep();
                let known = self.signed.1.entry(record.body().prev).or_insert_with(|| record.body().id());
                assert_eq!(*known, record.body().id(), "a creditor signs one successor per record");
                if crash == 2 {
                    return self.creditor.crash();
                }
                self.wire.push(Message::Paid(record));
            }
            Message::Paid(record) | Message::Head(record) => {
                self.debtor.account.adopt(record).expect("honest nodes never contradict each other");
                if crash == 1 {
                    return self.debtor.crash();
                }
                self.debtor.keep();
            }
        }
    }

    fn check(&mut self) {
        let totals = (self.debtor.account.total(), self.creditor.account.total());
        assert!(totals.0 <= totals.1, "a debtor's total never exceeds its creditor's: {totals:?}");
        assert!(self.agreed <= totals.1, "an agreed total never falls");
        self.agreed = self.agreed.max(totals.0);
    }

    /// Brings both sides up to date, as the next connection does.
    fn reconnect(&mut self) {
        self.wire.clear();
        if let Some(head) = self.creditor.account.head().cloned() {
            self.deliver(Message::Head(head), 0);
        }
        if self.debtor.account.pending().is_some() {
            self.pay(0, 0);
            while let Some(message) = self.wire.pop() {
                self.deliver(message, 0);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]
    #[test]
    fn both_sides_agree_after_losses_repeats_and_crashes(
        steps in proptest::collection::vec((0u8..8, any::<u8>(), 0u8..6, 1u64..1000), 1..40)
    ) {
        let mut pair = AccountPair::new();
        let mut dropped = 0;
        for (action, index, crash, delta) in steps {
            match action {
                0 | 1 => pair.pay(delta, crash),
                2 => pair.debtor.crash(),
                3 => pair.creditor.crash(),
                _ if pair.wire.is_empty() => {}
                4 => {
                    pair.wire.swap_remove(usize::from(index) % pair.wire.len());
                    dropped += 1;
                }
                5 => {
                    let message = pair.wire[usize::from(index) % pair.wire.len()].clone();
                    pair.deliver(message, crash);
                }
                _ => {
                    let message = pair.wire.swap_remove(usize::from(index) % pair.wire.len());
                    pair.deliver(message, crash);
                }
            }
            pair.check();
        }
        pair.reconnect();
        pair.check();
        let heads = [&pair.debtor, &pair.creditor].map(|side| side.account.head().cloned());
        prop_assert_eq!(&heads[0], &heads[1], "after {} losses", dropped);
        prop_assert!(pair.debtor.account.pending().is_none());
    }

    #[test]
    fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..RECORD_BYTES + 2)) {
        prop_assert!(Record::decode(&bytes).is_err() && Proposal::decode(&bytes).is_err());
        let account = Account::new(id(&key(1), &key(2)), NETWORK);
        prop_assert!(Account::decode(account.id(), NETWORK, &bytes).is_err() || bytes.len() < 20);
    }
}

fn open(dir: &TempDir, seed: u8) -> Ledger {
    let store = Store::open(&dir.path().join("store.redb")).unwrap();
    Ledger::open(store, Arc::new(key(seed)), "test", None).unwrap()
}

fn node(seed: u8) -> NodeId {
    key(seed).node_id()
}

/// Pays the debt of node 1 to node 2. Returns the total that both then have.
async fn pay(debtor: &Ledger, creditor: &Ledger) -> u64 {
    let proposal = debtor.propose(node(2)).await.unwrap().expect("something is owed");
    let record = creditor.accept(proposal).await.unwrap();
    debtor.adopt(node(2), Heads { debit: None, credit: Some(record.clone()) }).await.unwrap();
    let ours = debtor.heads(node(2)).await.unwrap().debit;
    assert_eq!(ours, creditor.heads(node(1)).await.unwrap().credit);
    record.body().total
}

#[tokio::test]
async fn debt_is_paid_in_whole_credits_and_survives_restarts() {
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let (debtor, creditor) = (open(&dirs[0], 1), open(&dirs[1], 2));
    assert!(debtor.propose(node(2)).await.unwrap().is_none(), "nothing is owed");
    debtor.balances().spend(node(2), SESSION, 3, 2_500);
    creditor.balances().earn(node(1), 2_500);
    assert_eq!(pay(&debtor, &creditor).await, 3);
    debtor.balances().spend(node(2), SESSION, 3, 1_000);
    creditor.balances().earn(node(1), 1_000);
    assert_eq!(pay(&debtor, &creditor).await, 4);
    for ledger in [&debtor, &creditor] {
        ledger.close().await;
        assert!(matches!(ledger.heads(node(3)).await, Err(LedgerError::Stopped)));
    }
    let (debtor, creditor) = (open(&dirs[0], 1), open(&dirs[1], 2));
    let (ours, theirs) = (debtor.balances().snapshot(), creditor.balances().snapshot());
    assert_eq!((ours[0].peer, ours[0].spent, ours[0].earned), (node(2), 4, 0));
    assert_eq!((theirs[0].peer, theirs[0].spent, theirs[0].earned), (node(1), 0, 4));
}

#[tokio::test]
async fn an_unanswered_payment_is_repeated_after_a_restart() {
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let (debtor, creditor) = (open(&dirs[0], 1), open(&dirs[1], 2));
    debtor.balances().spend(node(2), SESSION, 1, 5_000);
    creditor.balances().earn(node(1), 5_000);
    let first = debtor.propose(node(2)).await.unwrap().unwrap();
    creditor.accept(first.clone()).await.unwrap();
    // The debtor restarts before the answer arrives.
    debtor.close().await;
    let debtor = open(&dirs[0], 1);
    assert_eq!(debtor.balances().creditors(), [node(2)]);
    assert_eq!(debtor.propose(node(2)).await.unwrap().unwrap(), first);
    assert_eq!(pay(&debtor, &creditor).await, 5);
    assert!(debtor.balances().creditors().is_empty());
}

#[tokio::test]
async fn a_peer_without_debt_cannot_open_an_account() {
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let (debtor, creditor) = (open(&dirs[0], 1), open(&dirs[1], 2));
    debtor.balances().spend(node(2), SESSION, 1, 5_000);
    let proposal = debtor.propose(node(2)).await.unwrap().unwrap();
    assert!(matches!(creditor.accept(proposal.clone()).await, Err(LedgerError::NothingOwed { .. })));
    assert!(
        matches!(debtor.accept(proposal).await, Err(LedgerError::Misplaced { .. })),
        "this node is not its creditor"
    );
    assert!(creditor.balances().snapshot().is_empty());
}

#[tokio::test]
async fn a_debtor_restored_from_backup_recovers_without_reusing_numbers() {
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let (debtor, creditor) = (open(&dirs[0], 1), open(&dirs[1], 2));
    let mut numbers = Vec::new();
    for _ in 0..2 {
        debtor.balances().spend(node(2), SESSION, 1, 5_000);
        creditor.balances().earn(node(1), 5_000);
        pay(&debtor, &creditor).await;
        numbers.push(debtor.heads(node(2)).await.unwrap().debit.unwrap().body().seq);
    }
    debtor.close().await;
    let empty = TempDir::new().unwrap();
    let debtor = open(&empty, 1);
    debtor.adopt(node(2), creditor.heads(node(1)).await.unwrap()).await.unwrap();
    debtor.balances().spend(node(2), SESSION, 1, 5_000);
    creditor.balances().earn(node(1), 5_000);
    assert_eq!(pay(&debtor, &creditor).await, 15);
    let next = debtor.heads(node(2)).await.unwrap().debit.unwrap().body().seq;
    assert!(numbers.iter().all(|number| *number < next), "{numbers:?} {next}");
}

#[tokio::test]
async fn accounts_of_another_swarm_stay_unchanged() {
    let dirs = [TempDir::new().unwrap(), TempDir::new().unwrap()];
    let (debtor, creditor) = (open(&dirs[0], 1), open(&dirs[1], 2));
    debtor.balances().spend(node(2), SESSION, 1, 5_000);
    creditor.balances().earn(node(1), 5_000);
    pay(&debtor, &creditor).await;
    let theirs = creditor.heads(node(1)).await.unwrap();
    debtor.close().await;
    let store = Store::open(&dirs[0].path().join("store.redb")).unwrap();
    let elsewhere = Ledger::open(store, Arc::new(key(1)), "other", None).unwrap();
    assert!(elsewhere.balances().snapshot().is_empty());
    assert!(matches!(elsewhere.adopt(node(2), theirs).await, Err(LedgerError::Misplaced { .. })));
    elsewhere.balances().spend(node(2), SESSION, 1, 1_000);
    assert_eq!(elsewhere.propose(node(2)).await.unwrap().unwrap().body().total, 1);
    elsewhere.close().await;
    assert_eq!(open(&dirs[0], 1).balances().snapshot()[0].spent, 5);
}

#[tokio::test]
async fn an_unreadable_account_fails_the_start() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(&dir.path().join("store.redb")).unwrap();
    let mut key_bytes = [0; 96];
    key_bytes[..32].copy_from_slice(blake3::hash(b"test").as_bytes());
    store.put_account(&key_bytes, b"spoilt").unwrap();
    let refused = Ledger::open(store, Arc::new(key(1)), "test", None);
    assert!(matches!(refused, Err(LedgerError::Malformed { .. })), "{refused:?}");
}

/// The ledger after a power loss.
fn after_power_loss(disk: &TestDisk, seed: u8) -> Ledger {
    Ledger::open(disk.after_power_loss().open().unwrap(), Arc::new(key(seed)), "test", None).unwrap()
}

#[tokio::test]
async fn after_a_full_disk_the_ledger_resumes_without_paying_twice() {
    let mut failed = 0;
    for writes in 0.. {
        let disks = [TestDisk::default(), TestDisk::default()];
        let [debtor, creditor] = [0, 1].map(|side| {
            let store = disks[side].open().unwrap();
            Ledger::open(store, Arc::new(key(side as u8 + 1)), "test", None).unwrap()
        });
        for _ in 0..2 {
            debtor.balances().spend(node(2), SESSION, 1, 5_000);
            creditor.balances().earn(node(1), 5_000);
            assert!(pay(&debtor, &creditor).await % 5 == 0);
        }
        debtor.balances().spend(node(2), SESSION, 1, 5_000);
        creditor.balances().earn(node(1), 5_000);
        disks[0].allow(Some(writes));
        let proposed = debtor.propose(node(2)).await;
        let Err(refused) = proposed else { break };
        for refused in [refused, debtor.propose(node(2)).await.unwrap_err()] {
            assert_eq!(refused.kind(), ErrorKind::DiskFull, "at write {writes}: {refused}");
        }
        disks[0].allow(None);
        let proposal = debtor.propose(node(2)).await.unwrap().expect("the debt remains");
        let kept = after_power_loss(&disks[0], 1).propose(node(2)).await.unwrap();
        assert_eq!(kept.as_ref(), Some(&proposal), "a proposal is durable before it is returned, at write {writes}");
        disks[1].allow(Some(writes));
        if creditor.accept(proposal.clone()).await.is_err() {
            assert_eq!(creditor.accept(proposal).await.unwrap_err().kind(), ErrorKind::DiskFull);
        }
        disks[1].allow(None);
        assert_eq!(pay(&debtor, &creditor).await, 15, "at write {writes}");
        let kept = after_power_loss(&disks[1], 2).heads(node(1)).await.unwrap();
        assert_eq!(kept.credit, creditor.heads(node(1)).await.unwrap().credit, "at write {writes}");
        let left = [debtor.balances().snapshot(), creditor.balances().snapshot()].concat();
        assert!(left.iter().all(|peer| peer.unsigned_spent + peer.unsigned_earned == 0), "at write {writes}: {left:?}");
        failed += 1;
    }
    assert!(failed > 2, "a change takes several writes");
}
