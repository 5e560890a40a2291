//! Writer of a GGUF's key-values.

use super::facts::ty;

/// The key-values of a GGUF file.
pub(super) struct Header {
    prefix: &'static str,
    /// Key-values so far.
    pub count: u64,
    pub bytes: Vec<u8>,
}

impl Header {
    /// A header with the key of its architecture.
    pub fn new(architecture: &'static str) -> Self {
        let mut header = Self { prefix: architecture, count: 0, bytes: Vec::new() };
        header.string("general.architecture", architecture);
        header
    }

    /// Begins a key-value. General and tokenizer keys are literal; others get the architecture's prefix.
    fn key(&mut self, key: &str, ty: u32) {
        match key.starts_with("general.") || key.starts_with("tokenizer.") {
            true => put_text(&mut self.bytes, key),
            false => put_text(&mut self.bytes, &format!("{}.{key}", self.prefix)),
        }
        self.bytes.extend(ty.to_le_bytes());
        self.count += 1;
    }

    /// A string.
    pub fn string(&mut self, key: &str, value: &str) {
        self.key(key, ty::STRING);
        put_text(&mut self.bytes, value);
    }

    /// An unsigned integer.
    pub fn u32(&mut self, key: &str, value: u32) {
        self.key(key, ty::U32);
        self.bytes.extend(value.to_le_bytes());
    }

    /// A number, if there is one.
    pub fn f32(&mut self, key: &str, value: Option<f32>) {
        if let Some(value) = value {
            self.key(key, ty::F32);
            self.bytes.extend(value.to_le_bytes());
        }
    }

    /// A boolean.
    pub fn bool(&mut self, key: &str, value: bool) {
        self.key(key, ty::BOOL);
        self.bytes.push(u8::from(value));
    }

    /// A boolean for each layer.
    pub fn bools(&mut self, key: &str, values: &[bool]) {
        self.key(key, ty::ARRAY);
        self.bytes.extend(ty::BOOL.to_le_bytes());
        self.bytes.extend((values.len() as u64).to_le_bytes());
        self.bytes.extend(values.iter().map(|value| u8::from(*value)));
    }
}

/// A GGUF string: the length, then the bytes.
pub(super) fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}
