//! How a call ends: status codes, the last error of a thread, and the panic boundary.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use swarmllm_core::base::{ErrorKind, Fault};

/// How a call ended: `SWARMLLM_OK`, or one of the other `SWARMLLM_` codes.
pub type swarmllm_status = i32;

const OK: swarmllm_status = 0;

thread_local! {
    static LAST_ERROR: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Runs the body of an export: no panic leaves it, and a fault becomes a code and this thread's last error.
pub fn guard(body: impl FnOnce() -> Result<(), Fault>) -> swarmllm_status {
    let fault = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return OK,
        Ok(Err(fault)) => fault,
        Err(panic) => {
            let fault = Fault::new(ErrorKind::Internal, format_args!("a defect of swarmllm: {}", panic_text(&*panic)));
            // Dropping a panic's payload may panic again.
            std::mem::forget(panic);
            fault
        }
    };
    let code = swarmllm_status::from(fault.kind().code());
    // A thread in teardown has no last error any more; the caller still gets the code.
    let _ = LAST_ERROR.try_with(|last| last.replace(fault.message().to_owned()));
    code
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panic without a message")
}

/// A fault of kind `InvalidArgument`.
pub fn refuse(message: impl std::fmt::Display) -> Fault {
    Fault::new(ErrorKind::InvalidArgument, message)
}

/// The place of a call's result; refuses NULL.
pub fn place<'a, T>(place: Option<&'a mut T>, name: &str) -> Result<&'a mut T, Fault> {
    place.ok_or_else(|| refuse(format_args!("`{name}` is NULL")))
}

/// Copies the message of this thread's last failed call into `buffer` (at most `size` bytes with the closing NUL, truncated
/// between characters). Returns the whole length of the message in bytes without the NUL. `buffer` may be NULL: the call
/// then only returns the length.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn swarmllm_last_error(buffer: *mut c_char, size: usize) -> usize {
    let message = LAST_ERROR.try_with(|last| last.borrow().clone()).unwrap_or_default();
    if buffer.is_null() || size == 0 {
        return message.len();
    }
    let kept = message.floor_char_boundary(size - 1);
    // SAFETY: the caller gives `size` writable bytes at `buffer`; `kept + 1 <= size`, and `message` is ours alone.
    unsafe {
        std::ptr::copy_nonoverlapping(message.as_ptr(), buffer.cast::<u8>(), kept);
        buffer.add(kept).write(0);
    }
    message.len()
}

/// The name of a status code, such as `ModelNotFound`; `Ok` for 0, `Unknown` for any other number. Never freed.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_error_name(code: swarmllm_status) -> *const c_char {
    static NAMES: OnceLock<Vec<(swarmllm_status, CString)>> = OnceLock::new();
    let names = NAMES.get_or_init(|| {
        let named = |kind: &ErrorKind| Some((kind.code().into(), CString::new(kind.name()).ok()?));
        ErrorKind::ALL.iter().filter_map(named).collect()
    });
    let unknown: &CStr = if code == OK { c"Ok" } else { c"Unknown" };
    names.iter().find(|(known, _)| *known == code).map_or(unknown, |(_, name)| name.as_c_str()).as_ptr()
}

/// The version of the library, such as `0.1.0`. Never freed.
#[unsafe(no_mangle)]
pub extern "C" fn swarmllm_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_error() -> String {
        let mut buffer = [0u8; 2048];
        // SAFETY: the buffer has `buffer.len()` bytes.
        let length = unsafe { swarmllm_last_error(buffer.as_mut_ptr().cast(), buffer.len()) };
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn a_panic_becomes_a_code_and_a_message() {
        let code = guard(|| panic!("the roof fell"));
        assert_eq!(code, i32::from(ErrorKind::Internal.code()));
        assert!(last_error().contains("the roof fell"));
    }

    #[test]
    fn a_message_is_truncated_between_characters() {
        guard(|| Err(refuse("né")));
        let mut buffer = [1u8; 3];
        // SAFETY: the buffer has `buffer.len()` bytes.
        let length = unsafe { swarmllm_last_error(buffer.as_mut_ptr().cast(), buffer.len()) };
        assert_eq!((length, &buffer), (3, b"n\0\x01"));
    }

    #[test]
    fn every_code_has_its_name() {
        for kind in ErrorKind::ALL {
            // SAFETY: names are NUL-terminated and live as long as the process.
            let name = unsafe { CStr::from_ptr(swarmllm_error_name(kind.code().into())) };
            assert_eq!(name.to_str(), Ok(kind.name()));
        }
    }
}
