//! All tables, and the eviction that bounds them.

use redb::{ReadableTable, ReadableTableMetadata, Table, TableDefinition};

use super::{StoredPeer, limits};

/// Metadata of the file: `schema`, the version of all tables.
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
/// Swarm and node id to a [`StoredPeer`] in postcard.
pub(super) const PEERS: TableDefinition<'_, &[u8; 64], &[u8]> = TableDefinition::new("peers_by_swarm");
/// Peers of version 1, without their swarm.
pub(super) const PEERS_V1: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("peers");
/// Swarm, debtor and creditor to the ledger's account bytes.
pub(super) const ACCOUNTS: TableDefinition<'_, &[u8; 96], &[u8]> = TableDefinition::new("accounts");
/// Model and node id to nanoseconds per token and unit of weight, and the time last seen.
pub(super) const SPEEDS: TableDefinition<'_, &[u8; 64], (u64, u64)> = TableDefinition::new("speeds");

/// Removes the speeds last seen before `oldest_ms`, then the oldest beyond the bound.
pub(super) fn evict_speeds(
    table: &mut Table<'_, &'static [u8; 64], (u64, u64)>,
    oldest_ms: u64,
) -> Result<(), redb::Error> {
    table.retain(|_, (_, seen_ms)| seen_ms >= oldest_ms)?;
    let excess = table.len()?.saturating_sub(limits::SPEEDS);
    if excess == 0 {
        return Ok(());
    }
    let mut by_age = Vec::new();
    for row in table.iter()? {
        let (key, value) = row?;
        by_age.push((value.value().1, *key.value()));
    }
    by_age.sort_unstable();
    for (_, key) in by_age.into_iter().take(excess as usize) {
        table.remove(&key)?;
    }
    Ok(())
}

/// Removes the least recently seen peers beyond the bound.
pub(super) fn evict_peers(table: &mut Table<'_, &'static [u8; 64], &'static [u8]>) -> Result<(), redb::Error> {
    let excess = table.len()?.saturating_sub(limits::PEERS);
    if excess == 0 {
        return Ok(());
    }
    let mut by_age = Vec::new();
    for row in table.iter()? {
        let (node, bytes) = row?;
        // Unreadable rows go first.
        let seen = postcard::from_bytes(bytes.value()).map_or(0, |peer: StoredPeer| peer.last_seen_ms);
        by_age.push((seen, *node.value()));
    }
    by_age.sort_unstable();
    for (_, node) in by_age.into_iter().take(excess as usize) {
        table.remove(&node)?;
    }
    Ok(())
}
