//! Models of this node: examination, transfer, placement, eviction, loading.

pub(super) mod eviction;
pub(super) mod examine;
pub(super) mod fetch;
pub(super) mod handle;
pub(super) mod loaded;
pub(super) mod placement;
pub(super) mod prepare;
pub(super) mod transfer;
