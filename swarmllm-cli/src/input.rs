//! Input: lines of stdin, and small files.

use std::fs::File;
use std::io::{BufRead, Read};
use std::path::Path;

use swarmllm_core::base::ErrorKind;
use tokio::sync::mpsc;

use crate::failure::Failure;

/// Maximum length of a line, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// The text of a file of at most `max` bytes.
pub fn file(path: &Path, max: u64) -> Result<String, Failure> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(max.saturating_add(1)).read_to_string(&mut text));
    read.map_err(|cause| Failure::io(path.display(), &cause))?;
    if text.len() as u64 > max {
        let message = format!("{} is larger than the maximum of {max} bytes", path.display());
        return Err(Failure::new(ErrorKind::InvalidArgument, message));
    }
    Ok(text)
}

/// Lines of stdin, read on a thread of their own, which may block forever. The process ends without it.
pub fn lines() -> mpsc::Receiver<std::io::Result<String>> {
    let (sender, lines) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let Some(line) = read_line(&mut input).transpose() else { return };
            let failed = line.is_err();
            if sender.blocking_send(line).is_err() || failed {
                return;
            }
        }
    });
    lines
}

/// The next line without its end; `None` at the end of the input.
fn read_line(input: &mut impl BufRead) -> std::io::Result<Option<String>> {
    let mut line = String::new();
    let read = input.take(MAX_LINE).read_line(&mut line)?;
    if read as u64 == MAX_LINE && !line.ends_with('\n') {
        return Err(std::io::Error::other(format!("a line is longer than {MAX_LINE} bytes")));
    }
    Ok((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_over_the_maximum_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "abc").unwrap();
        assert_eq!(file(&path, 3).ok().as_deref(), Some("abc"));
        assert_eq!(file(&path, 2).err().map(|failure| failure.kind), Some(ErrorKind::InvalidArgument));
        assert!(file(&dir.path().join("gone"), 3).is_err());
    }

    #[test]
    fn lines_are_read_to_the_end_and_are_bounded() {
        let mut input: &[u8] = b"one\r\ntwo";
        assert_eq!(read_line(&mut input).unwrap().as_deref(), Some("one"));
        assert_eq!(read_line(&mut input).unwrap().as_deref(), Some("two"));
        assert_eq!(read_line(&mut input).unwrap(), None);
        let endless = vec![b'x'; MAX_LINE as usize + 1];
        assert!(read_line(&mut endless.as_slice()).is_err());
    }
}
