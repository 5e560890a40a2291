//! Positioned reads of files.

use std::fs::File;
use std::io;

/// Fills `buffer` from byte `offset` of the file; an error if the file is shorter. Threads may read one file at the
/// same time. Blocks.
#[cfg(unix)]
pub fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

/// Fills `buffer` from byte `offset` of the file; an error if the file is shorter. Threads may read one file at the
/// same time, but the file's own position moves. Blocks.
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                buffer = buffer.split_at_mut(read).1;
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_fills_the_buffer_or_fails_at_the_end() {
        let path = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(path.path(), b"0123456789").unwrap();
        let file = File::open(path.path()).unwrap();
        let mut buffer = [0; 4];
        for (offset, expected) in [(6, b"6789"), (0, b"0123")] {
            read_exact_at(&file, &mut buffer, offset).unwrap();
            assert_eq!(&buffer, expected);
        }
        assert_eq!(read_exact_at(&file, &mut buffer, 7).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
