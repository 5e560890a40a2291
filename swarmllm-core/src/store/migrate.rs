//! The version of the tables, and the way from each older one to the next.

use redb::{ReadTransaction, ReadableTable, TableError, WriteTransaction};

use super::tables::{ACCOUNTS, META, OLD_PEERS, PEERS, SPEEDS};

/// Version that this build reads and writes.
pub(super) const VERSION: u64 = 3;
/// Where the version is kept.
const VERSION_KEY: &str = "schema";

/// The version that a file has; none of a new one.
pub(super) fn version(transaction: &ReadTransaction) -> Result<Option<u64>, redb::Error> {
    match transaction.open_table(META) {
        Ok(meta) => Ok(meta.get(VERSION_KEY)?.map(|version| version.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Brings the tables to [`VERSION`], inside the one transaction; gives the version that the file then has. A newer one
/// is left as it is.
pub(super) fn run(transaction: &WriteTransaction) -> Result<u64, redb::Error> {
    let mut meta = transaction.open_table(META)?;
    let found = meta.get(VERSION_KEY)?.map(|version| version.value());
    match found {
        Some(found) if found >= VERSION => return Ok(found),
        // A file without a version is a new one; version 1 had peers only, of whatever swarm: they will be met again.
        // Version 2 had no speeds.
        _ => {
            transaction.delete_table(OLD_PEERS)?;
            transaction.open_table(PEERS)?;
            transaction.open_table(ACCOUNTS)?;
            transaction.open_table(SPEEDS)?;
        }
    }
    meta.insert(VERSION_KEY, VERSION)?;
    Ok(VERSION)
}

#[cfg(test)]
pub(super) fn pretend(transaction: &WriteTransaction, version: u64) -> Result<(), redb::Error> {
    transaction.open_table(META)?.insert(VERSION_KEY, version)?;
    Ok(())
}
