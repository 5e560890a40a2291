//! Upper bounds of accepted models. Those of layers and experts are llama.cpp's.

pub(super) const MAX_LAYERS: u32 = 512;
pub(super) const MAX_EXPERTS: u32 = 1024;
pub(super) const MAX_HEAD_SIZE: u32 = 1024;
pub(super) const MAX_WIDTH: u32 = 1 << 17;
pub(super) const MAX_FEED_FORWARD: u32 = 1 << 20;
pub(super) const MAX_CONTEXT: u32 = 1 << 26;
pub(super) const MAX_HEADS: u32 = 1024;
pub(super) const MAX_VOCAB: u32 = 1 << 22;
