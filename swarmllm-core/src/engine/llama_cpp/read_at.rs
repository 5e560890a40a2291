//! Exact reads of shard files.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;

/// Like [`crate::rt::read_exact_at`], into uninitialised memory; on success all of the buffer is initialised.
#[cfg(target_os = "linux")]
pub(super) fn fill_at(file: &File, mut buffer: &mut [MaybeUninit<u8>], mut at: u64) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    while !buffer.is_empty() {
        let offset = i64::try_from(at).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: the buffer has `buffer.len()` bytes, which are only written.
        let read = unsafe { libc::pread64(file.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), offset) };
        match usize::try_from(read) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                buffer = buffer.get_mut(read..).unwrap_or_default();
                at += read as u64;
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Like [`crate::rt::read_exact_at`], into uninitialised memory; on success all of the buffer is initialised.
#[cfg(not(target_os = "linux"))]
pub(super) fn fill_at(file: &File, buffer: &mut [MaybeUninit<u8>], at: u64) -> io::Result<()> {
    buffer.fill(MaybeUninit::new(0));
    // SAFETY: all of it was just written.
    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), buffer.len()) };
    crate::rt::read_exact_at(file, buffer, at)
}
