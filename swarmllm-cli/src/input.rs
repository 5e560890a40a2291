//! Reading stdin, line by line.

use std::io::{BufRead, Read};

use tokio::sync::mpsc;

/// Longest line, in bytes.
const MAX_LINE: u64 = 1 << 20;

/// Lines of stdin, read on a thread of their own: it may wait for ever, and nothing waits for it.
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
    fn lines_are_read_to_the_end_and_none_is_unbounded() {
        let mut input: &[u8] = b"one\r\ntwo";
        assert_eq!(read_line(&mut input).unwrap().as_deref(), Some("one"));
        assert_eq!(read_line(&mut input).unwrap().as_deref(), Some("two"));
        assert_eq!(read_line(&mut input).unwrap(), None);
        let endless = vec![b'x'; MAX_LINE as usize + 1];
        assert!(read_line(&mut endless.as_slice()).is_err());
    }
}
