//! Streaming verification of shards: the BLAKE3 tree in groups of 1 MiB.
//!
//! A shard's id is the plain BLAKE3 hash of its bytes. Its *leaves* are the chaining values of its groups. A receiver
//! with the leaves checks each group on arrival, so it reads at most one bad group. The leaves are checked against the
//! id before use. A shard of one group has one leaf, the id itself; an empty shard has no leaves.

use std::io::{self, Read};

use blake3::Hasher;
use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use crate::base::{ErrorKind, ShardId};

/// Bytes of a group; the last group may be shorter. A power of two of BLAKE3's chunks, so that groups are subtrees.
pub const GROUP: u64 = 1024 * 1024;
/// Largest shard in bytes. The blocks of the largest public models take about 34 GB in bf16.
pub const MAX_SHARD_BYTES: u64 = 64 * 1024 * 1024 * 1024;

/// Chaining value of a group.
pub type Leaf = [u8; 32];

/// Bytes or leaves do not match the shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// The shard exceeds [`MAX_SHARD_BYTES`].
    #[error(
        "shard {shard} claims {given} bytes, at most {MAX_SHARD_BYTES} are accepted",
        shard = shard.short()
    )]
    TooLarge { shard: ShardId, given: u64 },
    /// The number of leaves does not match the size.
    #[error("shard {shard} comes with {given} leaves, {expected} are needed", shard = shard.short())]
    LeafCount { shard: ShardId, given: usize, expected: u64 },
    /// The leaves do not hash to the id.
    #[error("the leaves given for shard {shard} do not hash to it", shard = shard.short())]
    Root { shard: ShardId },
    /// The bytes do not hash to the id.
    #[error("the bytes given for shard {shard} do not hash to it", shard = shard.short())]
    Bytes { shard: ShardId },
    /// The group is past the end, or has the wrong length.
    #[error("group {group} of shard {shard} has {given} bytes, {expected} are needed", shard = shard.short())]
    GroupLength { shard: ShardId, group: u64, given: usize, expected: u64 },
    /// The bytes of the group do not match its leaf.
    #[error("group {group} of shard {shard} is corrupt", shard = shard.short())]
    Group { shard: ShardId, group: u64 },
}

impl ShardError {
    /// The [`ErrorKind`] reported to callers.
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::ShardCorrupt
    }
}

/// Number of groups in a shard of `size` bytes.
pub fn groups(size: u64) -> u64 {
    size.div_ceil(GROUP)
}

/// Bytes of group `group` in a shard of `size` bytes; 0 past the end.
pub fn group_len(size: u64, group: u64) -> u64 {
    group.checked_mul(GROUP).map_or(0, |start| size.saturating_sub(start).min(GROUP))
}

/// Reads exactly `size` bytes and returns the leaves, 32 bytes per MiB.
pub fn leaves(reader: &mut impl Read, size: u64) -> io::Result<Vec<Leaf>> {
    let mut leaves = Vec::new();
    let mut buffer = Vec::new();
    for group in 0..groups(size) {
        // At most `GROUP`, so it fits any usize.
        buffer.resize(group_len(size, group) as usize, 0);
        reader.read_exact(&mut buffer)?;
        leaves.push(leaf(group, groups(size), &buffer));
    }
    Ok(leaves)
}

/// The leaf of group `group` out of `groups`. `bytes` must not be empty and at most [`GROUP`] long.
pub fn leaf(group: u64, groups: u64, bytes: &[u8]) -> Leaf {
    if groups == 1 {
        return *blake3::hash(bytes).as_bytes();
    }
    let mut hasher = Hasher::new();
    hasher.set_input_offset(group * GROUP);
    hasher.update(bytes).finalize_non_root()
}

/// The id of the shard with these leaves.
pub fn root_from_leaves(leaves: &[Leaf]) -> ShardId {
    match leaves {
        [] => ShardId(*blake3::hash(&[]).as_bytes()),
        [only] => ShardId(*only),
        _ => {
            let (left, right) = halves(leaves);
            ShardId(*merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash).as_bytes())
        }
    }
}

/// The chaining value above these leaves. The recursion is as deep as the tree, at most 16 levels.
fn subtree(leaves: &[Leaf]) -> Leaf {
    match leaves {
        [] => [0; 32],
        [only] => *only,
        _ => {
            let (left, right) = halves(leaves);
            merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
        }
    }
}

/// Splits at the largest power of two below the length, as BLAKE3 does. `leaves` must have at least two elements.
fn halves(leaves: &[Leaf]) -> (&[Leaf], &[Leaf]) {
    leaves.split_at(leaves.len().div_ceil(2).next_power_of_two())
}

/// Checks the groups of one shard, in any order.
#[derive(Debug, Clone)]
pub struct Verifier {
    shard: ShardId,
    size: u64,
    leaves: Vec<Leaf>,
}

impl Verifier {
    /// A verifier for shard `shard` of `size` bytes, both from the manifest. Refuses leaves that do not hash to the id.
    pub fn new(shard: ShardId, size: u64, leaves: Vec<Leaf>) -> Result<Verifier, ShardError> {
        if size > MAX_SHARD_BYTES {
            return Err(ShardError::TooLarge { shard, given: size });
        }
        if leaves.len() as u64 != groups(size) {
            return Err(ShardError::LeafCount { shard, given: leaves.len(), expected: groups(size) });
        }
        if root_from_leaves(&leaves) != shard {
            return Err(ShardError::Root { shard });
        }
        Ok(Self { shard, size, leaves })
    }

    /// The shard's id.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Number of groups.
    pub fn groups(&self) -> u64 {
        groups(self.size)
    }

    /// Bytes of a group; 0 past the end.
    pub fn group_len(&self, group: u64) -> u64 {
        group_len(self.size, group)
    }

    /// Checks the bytes of a group against its leaf.
    pub fn check(&self, group: u64, bytes: &[u8]) -> Result<(), ShardError> {
        let shard = self.shard;
        let expected = self.group_len(group);
        if expected == 0 || bytes.len() as u64 != expected {
            return Err(ShardError::GroupLength { shard, group, given: bytes.len(), expected });
        }
        // `group` is below the number of leaves, which is a usize.
        match self.leaves.get(group as usize) {
            Some(promised) if *promised == leaf(group, self.groups(), bytes) => Ok(()),
            _ => Err(ShardError::Group { shard, group }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: usize = GROUP as usize;

    fn bytes(size: usize, seed: u8) -> Vec<u8> {
        let mut bytes = vec![0; size];
        Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    }

    fn check_size(size: usize) {
        let data = bytes(size, 1);
        let leaves = leaves(&mut data.as_slice(), size as u64).unwrap();
        let id = ShardId(*blake3::hash(&data).as_bytes());
        assert_eq!(root_from_leaves(&leaves), id, "{size}");
        let verifier = Verifier::new(id, size as u64, leaves).unwrap();
        assert_eq!(verifier.groups() as usize, data.chunks(MIB).count(), "{size}");
        for (group, chunk) in data.chunks(MIB).enumerate() {
            verifier.check(group as u64, chunk).unwrap();
        }
    }

    #[test]
    fn the_root_of_the_leaves_is_the_plain_hash_at_every_boundary() {
        for size in [0, 1, 1023, 1024, 1025] {
            check_size(size);
        }
        for mib in 1..=5 {
            (mib * MIB - 1..=mib * MIB + 1).for_each(check_size);
        }
    }

    #[test]
    fn leaves_that_do_not_match_the_size_are_refused() {
        let data = bytes(2 * MIB, 2);
        let leaves = leaves(&mut data.as_slice(), data.len() as u64).unwrap();
        let id = root_from_leaves(&leaves);
        let refuse = |size, leaves: &[Leaf]| Verifier::new(id, size, leaves.to_vec()).unwrap_err();
        assert!(matches!(refuse(2 * GROUP + 1, &leaves), ShardError::LeafCount { expected: 3, .. }));
        assert!(matches!(refuse(2 * GROUP, &leaves[..1]), ShardError::LeafCount { .. }));
        assert!(matches!(refuse(0, &[]), ShardError::Root { .. }));
        assert!(matches!(refuse(u64::MAX, &leaves), ShardError::TooLarge { .. }));
    }

    #[test]
    fn a_misplaced_group_or_one_of_wrong_length_is_refused() {
        let data = bytes(2 * MIB + 7, 3);
        let leaves = leaves(&mut data.as_slice(), data.len() as u64).unwrap();
        let verifier = Verifier::new(root_from_leaves(&leaves), data.len() as u64, leaves).unwrap();
        let group = |index: usize| data.chunks(MIB).nth(index).unwrap();
        assert!(matches!(verifier.check(1, group(0)), Err(ShardError::Group { group: 1, .. })));
        assert!(matches!(verifier.check(2, group(0)), Err(ShardError::GroupLength { expected: 7, .. })));
        assert!(matches!(verifier.check(3, &[]), Err(ShardError::GroupLength { expected: 0, .. })));
        assert!(matches!(verifier.check(u64::MAX, &[]), Err(ShardError::GroupLength { .. })));
        assert!(matches!(verifier.check(0, &[]), Err(ShardError::GroupLength { .. })));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn any_flipped_bit_of_data_or_leaves_is_refused(
            size in 1usize..3 * MIB,
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let mut data = bytes(size, 4);
            let good = leaves(&mut data.as_slice(), size as u64).unwrap();
            let id = root_from_leaves(&good);
            let verifier = Verifier::new(id, size as u64, good.clone()).unwrap();
            let at_data = at.index(size);
            data[at_data] ^= 1 << bit;
            let group = at_data / MIB;
            let refused = verifier.check(group as u64, data.chunks(MIB).nth(group).unwrap());
            prop_assert_eq!(refused, Err(ShardError::Group { shard: id, group: group as u64 }));

            let mut bad = good;
            let at_leaf = at.index(bad.len() * 32);
            bad[at_leaf / 32][at_leaf % 32] ^= 1 << bit;
            prop_assert_eq!(Verifier::new(id, size as u64, bad).unwrap_err(), ShardError::Root { shard: id });
        }

        #[test]
        fn the_root_of_the_leaves_is_the_plain_hash(size in 0usize..5 * MIB) {
            check_size(size);
        }
    }
}
