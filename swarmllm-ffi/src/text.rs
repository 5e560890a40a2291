//! Text across the ABI: NUL-terminated UTF-8 in, owned strings out.

use std::ffi::{CStr, c_char};

use safer_ffi::prelude::char_p;
use swarmllm_core::base::Fault;

use crate::status::{guard, place, refuse, swarmllm_status};

/// Maximum length of a name, address or path, in bytes.
pub const MAX_NAME: usize = 64 << 10;
/// Maximum length of a prompt or JSON text, in bytes.
pub const MAX_TEXT: usize = 16 << 20;

/// safer-ffi's owned text: one pointer, NULL for `None`. The header declares it as `const char *`.
pub type OwnedText = Option<char_p::Box>;

/// Text returned by the library: UTF-8 with a closing NUL. The caller owns it until `swarmllm_string_free`.
#[repr(C)]
pub struct swarmllm_string {
    /// The text, or NULL.
    pub text: OwnedText,
    /// Bytes before the closing NUL.
    pub length: usize,
}

impl swarmllm_string {
    /// The empty string: NULL.
    ///
    /// cbindgen:ignore
    pub const NONE: Self = Self { text: None, length: 0 };

    /// A string that C owns. U+0000, which would end the text early, becomes U+FFFD.
    pub fn new(text: impl Into<String>) -> Self {
        let mut text = text.into();
        if text.contains('\0') {
            text = text.replace('\0', "\u{fffd}");
        }
        let length = text.len();
        Self { text: char_p::Box::try_from(text).ok(), length }
    }
}

/// Frees a string and empties it. NULL and an empty string are allowed.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_string_free(string: Option<&mut swarmllm_string>) {
    guard(|| {
        if let Some(string) = string {
            string.text = None;
            string.length = 0;
        }
        Ok(())
    });
}

/// Reads a text of at most `limit` bytes of UTF-8; refuses NULL.
///
/// # Safety
/// `text` is NULL, or readable up to its NUL or for `limit + 1` bytes, and not written during `'a`.
pub unsafe fn read<'a>(text: *const c_char, name: &str, limit: usize) -> Result<&'a str, Fault> {
    // SAFETY: the caller's promise is passed on.
    let text = unsafe { read_optional(text, name, limit) }?;
    text.ok_or_else(|| refuse(format_args!("`{name}` is NULL")))
}

/// Reads a text; NULL gives `None`.
///
/// # Safety
/// As [`read`].
pub unsafe fn read_optional<'a>(text: *const c_char, name: &str, limit: usize) -> Result<Option<&'a str>, Fault> {
    if text.is_null() {
        return Ok(None);
    }
    let mut length = 0;
    // SAFETY: bytes up to the NUL, or up to `limit`, are readable by the caller's promise.
    while unsafe { text.add(length).read() } != 0 {
        length += 1;
        if length > limit {
            return Err(refuse(format_args!("`{name}` has more than {limit} bytes, or no closing NUL")));
        }
    }
    // SAFETY: the loop above has read these bytes and the NUL behind them.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), length + 1) };
    let text = CStr::from_bytes_with_nul(bytes).map_err(|_| refuse(format_args!("`{name}` contains a NUL")))?;
    text.to_str()
        .map(Some)
        .map_err(|bad| refuse(format_args!("`{name}` is not UTF-8: invalid byte at {}", bad.valid_up_to())))
}

/// Runs the body of an export that returns text, and writes the text to `out`.
pub fn answer(
    out: Option<&mut std::mem::MaybeUninit<swarmllm_string>>,
    text: impl FnOnce() -> Result<String, Fault>,
) -> swarmllm_status {
    guard(|| {
        let out = place(out, "out")?;
        out.write(swarmllm_string::NONE);
        out.write(swarmllm_string::new(text()?));
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_long_and_non_utf8_text_is_refused() {
        // SAFETY: NULL, or literals with a closing NUL.
        unsafe {
            assert!(read(std::ptr::null(), "name", 4).is_err());
            assert!(read(c"12345".as_ptr(), "name", 4).is_err());
            assert!(read(c"\xff".as_ptr(), "name", 4).is_err());
            assert_eq!(read(c"1234".as_ptr(), "name", 4), Ok("1234"));
            assert_eq!(read_optional(std::ptr::null(), "name", 4), Ok(None));
        }
    }

    #[test]
    fn a_string_may_be_freed_twice() {
        let mut string = swarmllm_string::new("a\0b");
        assert_eq!(string.length, "a\u{fffd}b".len());
        swarmllm_string_free(Some(&mut string));
        swarmllm_string_free(Some(&mut string));
        assert!(string.text.is_none() && string.length == 0);
    }

    #[test]
    fn an_owned_text_is_one_pointer() {
        assert_eq!(size_of::<OwnedText>(), size_of::<*const c_char>());
    }
}
