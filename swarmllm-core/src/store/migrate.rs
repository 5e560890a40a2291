//! The version of the tables, and the migration from older ones.

use redb::{ReadTransaction, ReadableTable, TableError, WriteTransaction};

use super::tables::{ACCOUNTS, META, PEERS, PEERS_V1, SPEEDS};

/// The version that this build reads and writes.
pub(super) const VERSION: u64 = 3;
/// Key of the version in [`META`].
const VERSION_KEY: &str = "schema";

/// The file's version; `None` for a new file.
pub(super) fn version(transaction: &ReadTransaction) -> Result<Option<u64>, redb::Error> {
    match transaction.open_table(META) {
        Ok(meta) => Ok(meta.get(VERSION_KEY)?.map(|version| version.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Migrates the tables to [`VERSION`] inside the transaction and returns the file's version. A newer version is left
/// unchanged.
pub(super) fn run(transaction: &WriteTransaction) -> Result<u64, redb::Error> {
    let mut meta = transaction.open_table(META)?;
    let found = meta.get(VERSION_KEY)?.map(|version| version.value());
    match found {
        Some(found) if found >= VERSION => return Ok(found),
        // A file without a version is new. Version 1 had only peers, without their swarm, so they are dropped. Version 2 had
        // no speeds.
        _ => {
            transaction.delete_table(PEERS_V1)?;
            transaction.open_table(PEERS)?;
            transaction.open_table(ACCOUNTS)?;
            transaction.open_table(SPEEDS)?;
        }
    }
    meta.insert(VERSION_KEY, VERSION)?;
    Ok(VERSION)
}

#[cfg(test)]
pub(super) fn set_version(transaction: &WriteTransaction, version: u64) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(VERSION_KEY, version)?;
    Ok(())
}
