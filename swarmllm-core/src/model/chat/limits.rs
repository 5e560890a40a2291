//! What a template, a conversation and a rendering may have at most.

/// Longest template, in bytes; the longest in use have about 20,000.
pub const MAX_TEMPLATE: usize = 256 << 10;
/// Longest conversation, in bytes of roles, contents and inputs.
pub const MAX_CONVERSATION: usize = 4 << 20;
/// Most messages in a conversation.
pub const MAX_MESSAGES: usize = 16_384;
/// Characters that one rendering may build, the output and all that comes before it together. One takes up to four
/// bytes.
pub const MAX_BUILT: usize = 32 << 20;
/// How deep lists and maps of an input may nest. Converting them recurses; schemas of tools in use nest about 10 deep.
pub const MAX_NESTED: usize = 20;
