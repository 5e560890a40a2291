//! The node's small facts that must outlive it: peers that once answered, how fast hosts computed, and the ledger's
//! accounts. One redb file.
//!
//! Owns every table (`tables`) and their version (`migrate`); no other room opens the file. Promises: each call is one
//! durable transaction, so a killed process loses nothing that was acknowledged; everything stored is bounded. Refuses:
//! a damaged file, one of a newer build, and one that another process uses; none of them is changed by the attempt.
//!
//! All calls block on the disk, for about a millisecond: from async code, call them on a blocking thread.
//!
//! May import: base, identity, wire, rt.

mod migrate;
mod tables;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::base::{ErrorKind, Hash, ModelId, NodeId};
use tables::{ACCOUNTS, PEERS, SPEEDS};

/// Bounds of what is stored.
pub mod limits {
    /// Peers of all swarms; the ones not seen for longest make room.
    pub const PEERS: u64 = 1024;
    /// Addresses of a peer, the newest ones.
    pub const ADDRESSES: usize = 16;
    /// Bytes of an address; longer ones are not stored.
    pub const ADDRESS: usize = 256;
    /// Paces of hosts; the ones not seen for longest make room.
    pub const SPEEDS: u64 = 4096;
    /// Bytes that are kept of an account.
    pub const ACCOUNT: usize = 1024;
    /// Bytes of memory for redb's pages: what is stored takes less than a few MiB.
    pub const CACHE: usize = 4 * 1024 * 1024;
}

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Reading or writing failed; see [`StoreError::kind`] for a full disk.
    #[error("the store {path} could not be read or written: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The file is not a store, or its content is damaged.
    #[error("the store {path} is damaged: {reason}; move it away to begin with an empty one", path = path.display())]
    Damaged { path: PathBuf, reason: String },
    /// The file is of a newer build.
    #[error(
        "the store {path} has version {found}, this build reads up to {known}; use a newer build",
        path = path.display()
    )]
    Newer { path: PathBuf, found: u64, known: u64 },
    /// Another node has it open.
    #[error(
        "the store {path} is in use by another node; give each node a data directory of its own",
        path = path.display()
    )]
    InUse { path: PathBuf },
}

impl StoreError {
    /// The kind that crosses borders.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::DiskFull,
                _ => ErrorKind::Io,
            },
            Self::Damaged { .. } | Self::Newer { .. } => ErrorKind::StoreDamaged,
            Self::InUse { .. } => ErrorKind::DataDirBusy,
        }
    }

    fn from_redb(error: redb::Error, path: &Path) -> StoreError {
        let path = path.to_owned();
        match error {
            redb::Error::DatabaseAlreadyOpen => Self::InUse { path },
            redb::Error::Io(source) => match source.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                    Self::Damaged { path, reason: source.to_string() }
                }
                _ => Self::Io { path, source },
            },
            other => Self::Damaged { path, reason: other.to_string() },
        }
    }
}

/// A peer as remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRecord {
    /// The peer.
    pub node: NodeId,
    /// Where it answered, newest first, as multiaddr text.
    pub addresses: Vec<String>,
    /// When it last answered, in milliseconds since 1970.
    pub last_seen_ms: u64,
}

/// How fast a host has computed a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeedRecord {
    /// The model.
    pub model: ModelId,
    /// The host.
    pub node: NodeId,
    /// Nanoseconds for a token and a unit of weight.
    pub pace_ns: u64,
    /// When that was seen last, in milliseconds since 1970.
    pub seen_ms: u64,
}

/// An account's key (swarm, debtor, creditor) and its bytes.
pub type StoredAccount = ([u8; 96], Vec<u8>);

/// What the table holds beside the key.
#[derive(Serialize, Deserialize)]
struct StoredPeer {
    addresses: Vec<String>,
    last_seen_ms: u64,
}

/// Where a peer is stored.
fn peer_key(network: &Hash, node: NodeId) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(network.as_bytes());
    key[32..].copy_from_slice(node.as_bytes());
    key
}

/// What is stored of a peer that was seen again.
fn merge(seen: &PeerRecord, known: Option<StoredPeer>) -> StoredPeer {
    let known = known.unwrap_or(StoredPeer { addresses: Vec::new(), last_seen_ms: 0 });
    let mut addresses: Vec<String> = Vec::new();
    for address in seen.addresses.iter().chain(&known.addresses) {
        if address.len() <= limits::ADDRESS && addresses.len() < limits::ADDRESSES && !addresses.contains(address) {
            addresses.push(address.clone());
        }
    }
    StoredPeer { addresses, last_seen_ms: seen.last_seen_ms.max(known.last_seen_ms) }
}

/// A handle to the store; clones share it. The file is closed with the last one.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    database: Database,
}

impl Store {
    /// Opens the store at `path`, which is made (with its directory) where it is missing, and brings it to this build's
    /// version.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let io = |source| StoreError::Io { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(io)?;
        }
        let opened = Database::builder().set_cache_size(limits::CACHE).create(path);
        let database = opened.map_err(|error| StoreError::from_redb(error.into(), path))?;
        let store = Store { inner: Arc::new(Inner { path: path.to_owned(), database }) };
        match store.write(migrate::run)? {
            found if found > migrate::VERSION => {
                Err(StoreError::Newer { path: path.to_owned(), found, known: migrate::VERSION })
            }
            _ => Ok(store),
        }
    }

    /// The peers of a swarm that were remembered, the last seen first.
    pub fn peers(&self, network: &Hash) -> Result<Vec<PeerRecord>, StoreError> {
        let mut peers = self.read(|transaction| {
            let table = transaction.open_table(PEERS)?;
            let mut peers = Vec::new();
            let (first, last) = (peer_key(network, NodeId([0; 32])), peer_key(network, NodeId([u8::MAX; 32])));
            for row in table.range::<&[u8; 64]>(&first..=&last)? {
                let (key, bytes) = row?;
                let node = NodeId(std::array::from_fn(|at| key.value()[32 + at]));
                // A row that cannot be read is one address less to try, no reason to refuse the others.
                if let Ok(StoredPeer { addresses, last_seen_ms }) = postcard::from_bytes(bytes.value()) {
                    peers.push(PeerRecord { node, addresses, last_seen_ms });
                }
            }
            Ok(peers)
        })?;
        peers.sort_by_key(|peer| (std::cmp::Reverse(peer.last_seen_ms), peer.node));
        Ok(peers)
    }

    /// Remembers peers of a swarm in one transaction, merged with what is known of them: new addresses come first, old ones stay
    /// as long as there is room.
    pub fn remember_peers(&self, network: &Hash, peers: &[PeerRecord]) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(PEERS)?;
            for peer in peers {
                let key = peer_key(network, peer.node);
                let known = table.get(&key)?.and_then(|row| postcard::from_bytes(row.value()).ok());
                let bytes = postcard::to_stdvec(&merge(peer, known)).unwrap_or_default();
                table.insert(&key, bytes.as_slice())?;
            }
            tables::evict_peers(&mut table)
        })
    }

    /// Forgets a peer; says whether it was known.
    pub fn forget_peer(&self, network: &Hash, node: NodeId) -> Result<bool, StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(PEERS)?;
            Ok(table.remove(&peer_key(network, node))?.is_some())
        })
    }

    /// All accounts: their keys, and what [`put_account`](Self::put_account) was given.
    pub fn accounts(&self) -> Result<Vec<StoredAccount>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(ACCOUNTS)?;
            let mut accounts = Vec::new();
            for row in table.iter()? {
                let (key, bytes) = row?;
                accounts.push((*key.value(), bytes.value().to_vec()));
            }
            Ok(accounts)
        })
    }

    /// Stores an account in one transaction, durable when this returns, even if the machine loses power in the commit.
    pub fn put_account(&self, key: &[u8; 96], bytes: &[u8]) -> Result<(), StoreError> {
        debug_assert!(bytes.len() <= limits::ACCOUNT, "{} bytes of an account", bytes.len());
        self.commit(true, |transaction| {
            transaction.open_table(ACCOUNTS)?.insert(key, bytes)?;
            Ok(())
        })
    }

    /// All speeds.
    pub fn speeds(&self) -> Result<Vec<SpeedRecord>, StoreError> {
        self.read(|transaction| {
            let table = transaction.open_table(SPEEDS)?;
            let mut speeds = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let (key, (pace_ns, seen_ms)) = (key.value(), value.value());
                let id = |from: usize| std::array::from_fn(|at| key[from + at]);
                speeds.push(SpeedRecord { model: ModelId(id(0)), node: NodeId(id(32)), pace_ns, seen_ms });
            }
            Ok(speeds)
        })
    }

    /// Stores speeds in one transaction, and forgets those that were seen last before `oldest_ms`.
    pub fn put_speeds(&self, speeds: &[SpeedRecord], oldest_ms: u64) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(SPEEDS)?;
            for speed in speeds {
                let mut key = [0; 64];
                key[..32].copy_from_slice(&speed.model.0);
                key[32..].copy_from_slice(&speed.node.0);
                table.insert(&key, (speed.pace_ns, speed.seen_ms))?;
            }
            tables::evict_speeds(&mut table, oldest_ms)
        })
    }

    fn read<T>(&self, work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let transaction = self.inner.database.begin_read().map_err(redb::Error::from);
        transaction.and_then(|transaction| work(&transaction)).map_err(|error| self.error(error))
    }

    /// Runs one durable transaction; an error leaves everything as it was.
    fn write<T>(&self, work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.commit(false, work)
    }

    /// The same, in two phases where one must not trust in the order in which the disk writes.
    fn commit<T>(
        &self,
        two_phase: bool,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let mut transaction = self.inner.database.begin_write().map_err(|error| self.error(error.into()))?;
        transaction.set_two_phase_commit(two_phase);
        let done = work(&transaction).map_err(|error| self.error(error))?;
        transaction.commit().map_err(|error| self.error(error.into()))?;
        Ok(done)
    }

    fn error(&self, error: redb::Error) -> StoreError {
        StoreError::from_redb(error, &self.inner.path)
    }
}
