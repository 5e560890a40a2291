//! The node's persistent records: known peers, measured speeds of hosts, and the ledger's accounts. One redb file.
//!
//! Owns all tables (`tables`) and their version (`migrate`); no other module opens the file. Guarantees: each call is one
//! durable transaction, so a killed process loses nothing that was acknowledged; everything stored is bounded; after a call
//! fails on a full or failing disk, the store works again as soon as the disk does. A file that is damaged, newer than this
//! build or used by another process is refused and not changed.
//!
//! All calls block on the disk for about a millisecond: async code calls them on a blocking thread.
//!
//! May import: base, identity, wire, rt.

#[cfg(test)]
pub(crate) mod disk;
mod migrate;
mod tables;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use redb::{Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::base::{ErrorKind, Hash, ModelId, NodeId};
use crate::rt::{create_dir_all, sync_dir};
use tables::{ACCOUNTS, PEERS, SPEEDS};

/// Bounds of what is stored.
pub mod limits {
    /// Peers of all swarms; the least recently seen are evicted.
    pub const PEERS: u64 = 1024;
    /// Addresses of a peer; the newest are kept.
    pub const ADDRESSES: usize = 16;
    /// Bytes of an address; longer ones are not stored.
    pub const ADDRESS: usize = 256;
    /// Speeds of hosts; the least recently seen are evicted.
    pub const SPEEDS: u64 = 4096;
    /// Bytes of an account.
    pub const ACCOUNT: usize = 1024;
    /// Bytes of redb's page cache. The stored data takes less than a few MiB.
    pub const CACHE: usize = 4 * 1024 * 1024;
}

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk is full. Earlier data is intact, and the next call tries again.
    #[error("no space for the store {path}: {source}; free some, the stored data is intact", path = path.display())]
    Full { path: PathBuf, source: io::Error },
    /// A read or write failed. The next call tries again.
    #[error("the store {path} could not be read or written: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The file is not a store, or its content is damaged.
    #[error(
        "the store {path} is damaged: {reason}; it holds the accounts with other nodes, so put it back from a copy. A node \
         that starts without it has lost all credits that the other nodes do not tell it of",
        path = path.display()
    )]
    Damaged { path: PathBuf, reason: String },
    /// A newer build wrote the file.
    #[error(
        "the store {path} has version {found}, this build reads up to {known}; use a newer build",
        path = path.display()
    )]
    Newer { path: PathBuf, found: u64, known: u64 },
    /// Another process has the file open.
    #[error(
        "the store {path} is in use by another node; give each node a data directory of its own",
        path = path.display()
    )]
    InUse { path: PathBuf },
}

impl StoreError {
    /// The [`ErrorKind`] reported to callers.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Full { .. } => ErrorKind::DiskFull,
            Self::Io { .. } => ErrorKind::Io,
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
                _ => Self::from_io(source, &path),
            },
            // These report an earlier failure and say nothing about the file's content.
            redb::Error::PreviousIo | redb::Error::DatabaseClosed | redb::Error::LockPoisoned(_) => {
                Self::Io { path, source: io::Error::other(error.to_string()) }
            }
            other => Self::Damaged { path, reason: other.to_string() },
        }
    }

    fn from_io(source: io::Error, path: &Path) -> StoreError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { path, source },
            _ => Self::Io { path, source },
        }
    }
}

/// A remembered peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerRecord {
    /// Node id.
    pub node: NodeId,
    /// Addresses where it answered, newest first, as multiaddr text.
    pub addresses: Vec<String>,
    /// Time of its last answer, in milliseconds since 1970.
    pub last_seen_ms: u64,
}

/// The measured speed of a host on a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeedRecord {
    /// The model.
    pub model: ModelId,
    /// The host.
    pub node: NodeId,
    /// Nanoseconds per token and unit of weight.
    pub ns_per_unit: u64,
    /// Time of the last measurement, in milliseconds since 1970.
    pub seen_ms: u64,
}

/// An account's key (swarm, debtor, creditor; 32 bytes each) and its bytes.
pub type StoredAccount = ([u8; 96], Vec<u8>);

/// The value of a row of peers.
#[derive(Serialize, Deserialize)]
struct StoredPeer {
    addresses: Vec<String>,
    last_seen_ms: u64,
}

/// The key of a row of peers.
fn peer_key(network: &Hash, node: NodeId) -> [u8; 64] {
    let mut key = [0; 64];
    key[..32].copy_from_slice(network.as_bytes());
    key[32..].copy_from_slice(node.as_bytes());
    key
}

/// The stored row after a peer was seen again.
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

/// A handle to the store; clones share it. Dropping the last one closes the file.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

/// Opens the database.
type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

struct Inner {
    path: PathBuf,
    opener: Opener,
    /// `None` after a failure: redb refuses all further work, so the next call reopens the file.
    database: Mutex<Option<Database>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `path`, creates it (with its directory) if it is missing, and migrates it to this build's version.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        match fs::metadata(path) {
            // A node killed while it creates the store leaves an empty file.
            Ok(found) if !found.is_file() || found.len() > 0 => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::from_io(error, path)),
            _ => create_empty(path)?,
        }
        let file = path.to_owned();
        Self::open_with(path, Box::new(move || Database::builder().set_cache_size(limits::CACHE).open(&file)))
    }

    fn open_with(path: &Path, opener: Opener) -> Result<Store, StoreError> {
        let store = Store { inner: Arc::new(Inner { path: path.to_owned(), opener, database: Mutex::default() }) };
        // A file of this version is not written, since a full disk may have no space for that.
        let found = match store.read(migrate::version)? {
            Some(found) if found >= migrate::VERSION => found,
            _ => store.write(migrate::run)?,
        };
        match found > migrate::VERSION {
            true => Err(StoreError::Newer { path: path.to_owned(), found, known: migrate::VERSION }),
            false => Ok(store),
        }
    }

    /// The remembered peers of a swarm, last seen first.
    pub fn peers(&self, network: &Hash) -> Result<Vec<PeerRecord>, StoreError> {
        let mut peers = self.read(|transaction| {
            let table = transaction.open_table(PEERS)?;
            let mut peers = Vec::new();
            let (first, last) = (peer_key(network, NodeId([0; 32])), peer_key(network, NodeId([u8::MAX; 32])));
            for row in table.range::<&[u8; 64]>(&first..=&last)? {
                let (key, bytes) = row?;
                let node = NodeId(std::array::from_fn(|at| key.value()[32 + at]));
                // An unreadable row is skipped: it costs one address, not the others.
                if let Ok(StoredPeer { addresses, last_seen_ms }) = postcard::from_bytes(bytes.value()) {
                    peers.push(PeerRecord { node, addresses, last_seen_ms });
                }
            }
            Ok(peers)
        })?;
        peers.sort_by_key(|peer| (std::cmp::Reverse(peer.last_seen_ms), peer.node));
        Ok(peers)
    }

    /// Remembers peers of a swarm in one transaction, merged with their stored rows: new addresses come first, old ones stay
    /// within the bound.
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

    /// Forgets a peer; returns whether it was known.
    pub fn forget_peer(&self, network: &Hash, node: NodeId) -> Result<bool, StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(PEERS)?;
            Ok(table.remove(&peer_key(network, node))?.is_some())
        })
    }

    /// All accounts, with the bytes last given to [`put_account`](Self::put_account).
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

    /// The bytes last given to [`put_account`](Self::put_account) for this account.
    pub fn account(&self, key: &[u8; 96]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|transaction| Ok(transaction.open_table(ACCOUNTS)?.get(key)?.map(|bytes| bytes.value().to_vec())))
    }

    /// Stores an account in one transaction, durable when this returns, even if the machine loses power during the commit.
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
                let (key, (ns_per_unit, seen_ms)) = (key.value(), value.value());
                let id = |from: usize| std::array::from_fn(|at| key[from + at]);
                speeds.push(SpeedRecord { model: ModelId(id(0)), node: NodeId(id(32)), ns_per_unit, seen_ms });
            }
            Ok(speeds)
        })
    }

    /// Stores speeds in one transaction and removes those last seen before `oldest_ms`.
    pub fn put_speeds(&self, speeds: &[SpeedRecord], oldest_ms: u64) -> Result<(), StoreError> {
        self.write(|transaction| {
            let mut table = transaction.open_table(SPEEDS)?;
            for speed in speeds {
                let mut key = [0; 64];
                key[..32].copy_from_slice(&speed.model.0);
                key[32..].copy_from_slice(&speed.node.0);
                table.insert(&key, (speed.ns_per_unit, speed.seen_ms))?;
            }
            tables::evict_speeds(&mut table, oldest_ms)
        })
    }

    fn read<T>(&self, work: impl FnOnce(&ReadTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.with_database(|database| work(&database.begin_read()?))
    }

    /// Runs one durable transaction; an error leaves everything unchanged.
    fn write<T>(&self, work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        self.commit(false, work)
    }

    /// As `write`, optionally with two-phase commit, which does not rely on the order of the disk's writes.
    fn commit<T>(
        &self,
        two_phase: bool,
        work: impl FnOnce(&WriteTransaction) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        self.with_database(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(two_phase);
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    /// Runs `work` on the database, which is reopened if the last call failed on the disk.
    fn with_database<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
        let Inner { path, opener, database } = &*self.inner;
        let mut place = database.lock().unwrap_or_else(PoisonError::into_inner);
        let opened = place.take().map_or_else(opener, Ok);
        let database = opened.map_err(|error| StoreError::from_redb(error.into(), path))?;
        let done = work(&database).map_err(|error| StoreError::from_redb(error, path));
        if !matches!(done, Err(StoreError::Full { .. } | StoreError::Io { .. })) {
            *place = Some(database);
        }
        done
    }
}

/// Creates an empty store atomically: a half-written file would count as damaged.
fn create_empty(path: &Path) -> Result<(), StoreError> {
    let io = |source| StoreError::from_io(source, path);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir_all(dir).map_err(io)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    remove_if_exists(&beside).map_err(io)?;
    let made = Database::builder().set_cache_size(limits::CACHE).create(&beside).and_then(Database::close);
    let placed = made.map_err(|error| StoreError::from_redb(error.into(), path)).and_then(|()| {
        fs::rename(&beside, path).map_err(io)?;
        sync_dir(dir).map_err(io)
    });
    placed.inspect_err(|_| drop(remove_if_exists(&beside)))
}

fn remove_if_exists(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
