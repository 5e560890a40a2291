//! A stage image as the C `FILE` that llama.cpp reads from.
//!
//! On Linux the `FILE` calls back for each read (`fopencookie`), so nothing is copied. Other Unix systems use an unlinked
//! temporary file.

use std::ffi::c_void;
use std::io;
use std::ptr::NonNull;

use super::image::Image;

/// A C `FILE`, closed when dropped.
struct Stream(NonNull<c_void>);

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the C library's own opening call, and is closed only here.
        unsafe { fclose(self.0.as_ptr()) };
    }
}

unsafe extern "C" {
    fn fclose(file: *mut c_void) -> std::ffi::c_int;
}

/// Calls `read` with a `FILE` of the image. If reading a shard failed meanwhile, returns that error instead.
pub(super) fn with_file<T>(image: &Image, read: impl FnOnce(*mut c_void) -> T) -> io::Result<T> {
    imp::with_file(image, read)
}

#[cfg(target_os = "linux")]
mod imp {
    use std::ffi::{c_char, c_int, c_void};
    use std::io;
    use std::mem::MaybeUninit;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::ptr::NonNull;

    use super::{Image, Stream};

    /// Data of the callbacks.
    struct Cookie<'a> {
        image: &'a Image,
        at: u64,
        failure: Option<io::Error>,
    }

    /// `cookie_io_functions_t`, with the same layout in glibc and musl.
    #[repr(C)]
    struct Functions {
        read: Option<unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> isize>,
        write: Option<unsafe extern "C" fn(*mut c_void, *const c_char, usize) -> isize>,
        seek: Option<unsafe extern "C" fn(*mut c_void, *mut i64, c_int) -> c_int>,
        close: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    }

    unsafe extern "C" {
        fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: Functions) -> *mut c_void;
    }

    unsafe extern "C" fn on_read(cookie: *mut c_void, buffer: *mut c_char, size: usize) -> isize {
        // SAFETY: `cookie` is the one that `with_file` opened the stream with; the C library calls from one thread, and
        // gives a buffer of `size` bytes, which is only written.
        let (cookie, buffer) = unsafe {
            (&mut *cookie.cast::<Cookie>(), std::slice::from_raw_parts_mut(buffer.cast::<MaybeUninit<u8>>(), size))
        };
        let read = catch_unwind(AssertUnwindSafe(|| cookie.image.read_at(buffer, cookie.at)));
        match read.unwrap_or_else(|_| Err(io::Error::other("reading a stage image panicked"))) {
            Ok(read) => {
                cookie.at += read as u64;
                read as isize
            }
            Err(error) => {
                cookie.failure.get_or_insert(error);
                -1
            }
        }
    }

    unsafe extern "C" fn on_seek(cookie: *mut c_void, offset: *mut i64, whence: c_int) -> c_int {
        // SAFETY: as in `on_read`; `offset` points to one number.
        let (cookie, offset) = unsafe { (&mut *cookie.cast::<Cookie>(), &mut *offset) };
        let base = match whence {
            libc::SEEK_SET => 0,
            libc::SEEK_CUR => cookie.at,
            libc::SEEK_END => cookie.image.len(),
            _ => return -1,
        };
        match base.checked_add_signed(*offset).and_then(|at| Some((at, i64::try_from(at).ok()?))) {
            Some((at, position)) => {
                cookie.at = at;
                *offset = position;
                0
            }
            None => -1,
        }
    }

    pub(super) fn with_file<T>(image: &Image, read: impl FnOnce(*mut c_void) -> T) -> io::Result<T> {
        let mut cookie = Cookie { image, at: 0, failure: None };
        let functions = Functions { read: Some(on_read), write: None, seek: Some(on_seek), close: None };
        // SAFETY: the cookie outlives the stream, which is dropped below, before the cookie is looked at again.
        let stream = unsafe { fopencookie((&raw mut cookie).cast(), c"rb".as_ptr(), functions) };
        let stream = Stream(NonNull::new(stream).ok_or_else(io::Error::last_os_error)?);
        let value = read(stream.0.as_ptr());
        drop(stream);
        match cookie.failure {
            Some(error) => Err(error),
            None => Ok(value),
        }
    }
}

#[cfg(all(unix, not(target_os = "linux")))]
mod imp {
    use std::ffi::{c_char, c_int, c_void};
    use std::fs::OpenOptions;
    use std::io::{self, Write};
    use std::mem::MaybeUninit;
    use std::os::fd::IntoRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    use std::ptr::NonNull;

    use super::{Image, Stream};

    /// Bytes copied at once.
    const BUFFER: usize = 1 << 20;

    unsafe extern "C" {
        fn fdopen(descriptor: c_int, mode: *const c_char) -> *mut c_void;
    }

    pub(super) fn with_file<T>(image: &Image, read: impl FnOnce(*mut c_void) -> T) -> io::Result<T> {
        let mut tag = [0_u8; 16];
        getrandom::fill(&mut tag).map_err(io::Error::other)?;
        let name = tag.iter().fold(String::from("swarmllm-stage-"), |name, byte| format!("{name}{byte:02x}"));
        let path = std::env::temp_dir().join(name);
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        std::fs::remove_file(&path)?;
        let mut buffer = vec![MaybeUninit::new(0_u8); BUFFER];
        let mut at = 0;
        loop {
            let count = image.read_at(&mut buffer, at)?.min(buffer.len());
            if count == 0 {
                break;
            }
            // SAFETY: all bytes of the buffer have been written.
            file.write_all(unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), count) })?;
            at += count as u64;
        }
        io::Seek::rewind(&mut file)?;
        // SAFETY: the descriptor is open and handed over: the stream closes it.
        let stream = unsafe { fdopen(file.into_raw_fd(), c"rb".as_ptr()) };
        let stream = Stream(NonNull::new(stream).ok_or_else(io::Error::last_os_error)?);
        Ok(read(stream.0.as_ptr()))
    }
}

#[cfg(not(unix))]
mod imp {
    use std::ffi::c_void;
    use std::io;

    use super::Image;

    pub(super) fn with_file<T>(_: &Image, _: impl FnOnce(*mut c_void) -> T) -> io::Result<T> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "stages of llama.cpp cannot be loaded on this system yet"))
    }
}
