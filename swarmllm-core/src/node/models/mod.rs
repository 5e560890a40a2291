//! Models here: examined, fetched from peers and given to them, placed, evicted, made ready to be asked.

pub(super) mod eviction;
pub(super) mod examine;
pub(super) mod fetch;
pub(super) mod loaded;
pub(super) mod placement;
pub(super) mod prepare;
pub(super) mod transfer;
