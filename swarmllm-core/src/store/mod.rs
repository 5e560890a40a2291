//! The node's small facts that must outlive it: peers that once answered, how fast hosts computed, and the ledger's
//! accounts. One redb file.
//!
//! Owns every table (`tables`) and their version (`migrate`); no other room opens the file. Promises: each call is one
//! durable transaction, so a killed process loses nothing that was acknowledged; everything stored is bounded; a call that
//! fails for want of room, or because the disk does not read or write, leaves a store that works again as soon as the disk
//! does. Refuses: a damaged file, one of a newer build, and one that another process uses; none of them is changed by the
//! attempt.
//!
//! All calls block on the disk, for about a millisecond: from async code, call them on a blocking thread.
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
    /// The disk has no room for a change. What was stored before is there, and the next call tries again.
    #[error("there is no room on the disk for the store {path}: {source}; make some, what it holds is kept", path = path.display())]
    Full { path: PathBuf, source: io::Error },
    /// The disk did not read or write. The next call tries again.
    #[error("the store {path} could not be read or written: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
    /// The file is not a store, or its content is damaged.
    #[error(
        "the store {path} is damaged: {reason}; it holds the accounts with other nodes, so put it back from a copy. A node \
         that starts without it has lost all credits that the other nodes do not tell it of",
        path = path.display()
    )]
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
            // They say that something failed before, and nothing of the file's content.
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

/// Opens the database.
type Opener = Box<dyn Fn() -> Result<Database, DatabaseError> + Send + Sync>;

struct Inner {
    path: PathBuf,
    opener: Opener,
    /// Nothing behind a failure: redb refuses all work then, so that the next call opens the file again.
    database: Mutex<Option<Database>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Store {
    /// Opens the store at `path`, which is made (with its directory) where it is missing, and brings it to this build's
    /// version.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        match fs::metadata(path) {
            // An empty file is what a node leaves that is killed while it makes one.
            Ok(found) if !found.is_file() || found.len() > 0 => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(StoreError::from_io(error, path)),
            _ => make(path)?,
        }
        let file = path.to_owned();
        Self::open_with(path, Box::new(move || Database::builder().set_cache_size(limits::CACHE).open(&file)))
    }

    fn open_with(path: &Path, opener: Opener) -> Result<Store, StoreError> {
        let store = Store { inner: Arc::new(Inner { path: path.to_owned(), opener, database: Mutex::default() }) };
        // A file of this version needs no change, for which a full disk may have no room.
        let found = match store.read(migrate::version)? {
            Some(found) if found >= migrate::VERSION => found,
            _ => store.write(migrate::run)?,
        };
        match found > migrate::VERSION {
            true => Err(StoreError::Newer { path: path.to_owned(), found, known: migrate::VERSION }),
            false => Ok(store),
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

    /// What [`put_account`](Self::put_account) was given for one account.
    pub fn account(&self, key: &[u8; 96]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|transaction| Ok(transaction.open_table(ACCOUNTS)?.get(key)?.map(|bytes| bytes.value().to_vec())))
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
        self.with(|database| work(&database.begin_read()?))
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
        self.with(|database| {
            let mut transaction = database.begin_write()?;
            transaction.set_two_phase_commit(two_phase);
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        })
    }

    /// Lets `work` have the database, which is opened again where the last call failed on the disk.
    fn with<T>(&self, work: impl FnOnce(&Database) -> Result<T, redb::Error>) -> Result<T, StoreError> {
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

/// Makes an empty store, whole or not at all: a file that is half made would be taken for a damaged one.
fn make(path: &Path) -> Result<(), StoreError> {
    let io = |source| StoreError::from_io(source, path);
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir_all(dir).map_err(io)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    remove_if_there(&beside).map_err(io)?;
    let made = Database::builder().set_cache_size(limits::CACHE).create(&beside).and_then(Database::close);
    let placed = made.map_err(|error| StoreError::from_redb(error.into(), path)).and_then(|()| {
        fs::rename(&beside, path).map_err(io)?;
        sync_dir(dir).map_err(io)
    });
    placed.inspect_err(|_| drop(remove_if_there(&beside)))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
