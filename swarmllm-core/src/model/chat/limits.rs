//! Limits of templates, conversations and renderings.

/// Longest template, in bytes; the longest in use has about 20,000.
pub const MAX_TEMPLATE: usize = 256 << 10;
/// Longest conversation: bytes of its roles, contents and inputs.
pub const MAX_CONVERSATION: usize = 4 << 20;
/// Most messages in a conversation.
pub const MAX_MESSAGES: usize = 16_384;
/// Most characters that one rendering builds, intermediate texts included. A character takes up to four bytes.
pub const MAX_BUILT_CHARS: usize = 32 << 20;
/// Deepest nesting of an input's lists and maps: converting them recurses. Tool schemas in use nest about 10 deep.
pub const MAX_NESTED: usize = 20;
