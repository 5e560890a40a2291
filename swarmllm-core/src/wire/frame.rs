//! Frames on a stream: `u32` header length, `u32` body length (both little endian), the header in postcard, the body raw.
//!
//! Lengths are checked against the caller's limits before any allocation, and the buffer of a body grows as its bytes
//! arrive: a large announced length without bytes costs no memory.

use std::io;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A frame with its decoded header and raw body.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame<H> {
    /// The header.
    pub header: H,
    /// The body.
    pub body: Vec<u8>,
}

/// Limits of a protocol's frames, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Maximum header.
    pub header: usize,
    /// Maximum body.
    pub body: usize,
}

/// A protocol violation or a stream failure.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream failed or ended within a frame.
    #[error("the stream failed: {0}")]
    Stream(#[from] io::Error),
    /// A length exceeds its limit.
    #[error("the {part} has {given} bytes, at most {max} are accepted")]
    TooLong { part: &'static str, given: usize, max: usize },
    /// The header is not a valid message.
    #[error("invalid header: {0}")]
    Header(String),
    /// The body does not match its header.
    #[error("invalid body: {0}")]
    Body(String),
}

/// Growth of a body's buffer while it is read, in bytes.
const BODY_STEP: usize = 64 * 1024;

/// Encodes a frame's length prefix and header; the raw body follows.
pub fn encode_head<H: Serialize>(header: &H, body_len: usize, limits: FrameLimits) -> Result<Vec<u8>, WireError> {
    let head = postcard::to_stdvec(header).map_err(|error| WireError::Header(error.to_string()))?;
    check("header", head.len(), limits.header)?;
    check("body", body_len, limits.body)?;
    let mut bytes = Vec::with_capacity(8 + head.len());
    // Both fit in u32: all limits are far below 4 GiB.
    bytes.extend_from_slice(&(head.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(body_len as u32).to_le_bytes());
    bytes.extend_from_slice(&head);
    Ok(bytes)
}

fn check(part: &'static str, given: usize, max: usize) -> Result<(), WireError> {
    if given > max.min(u32::MAX as usize) {
        return Err(WireError::TooLong { part, given, max });
    }
    Ok(())
}

/// Writes a frame and flushes. Not cancel-safe: a dropped call can leave a partial frame; close the stream then.
pub async fn write_frame<W, H>(stream: &mut W, header: &H, body: &[u8], limits: FrameLimits) -> Result<(), WireError>
where
    W: AsyncWrite + Unpin,
    H: Serialize,
{
    let head = encode_head(header, body.len(), limits)?;
    stream.write_all(&head).await?;
    if !body.is_empty() {
        stream.write_all(body).await?;
    }
    stream.flush().await?;
    Ok(())
}

/// A decoded header whose body is unread.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameHead<H> {
    /// The header.
    pub header: H,
    /// Length of the body in bytes.
    pub body: usize,
}

/// The first bytes of a frame.
#[derive(Debug, Clone, Copy)]
pub struct FrameStart {
    prefix: [u8; 8],
    read: usize,
}

/// Waits for the start of a frame; `None` at the end of the stream. Cancel-safe.
pub async fn read_frame_start<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<FrameStart>, WireError> {
    let mut prefix = [0u8; 8];
    let read = stream.read(&mut prefix).await?;
    Ok((read > 0).then_some(FrameStart { prefix, read }))
}

/// Reads the rest of the header. Read or skip the body next. Not cancel-safe.
pub async fn read_head<R, H>(stream: &mut R, start: FrameStart, limits: FrameLimits) -> Result<FrameHead<H>, WireError>
where
    R: AsyncRead + Unpin,
    H: DeserializeOwned,
{
    let FrameStart { mut prefix, read } = start;
    stream.read_exact(&mut prefix[read..]).await?;
    let [h0, h1, h2, h3, b0, b1, b2, b3] = prefix;
    let header_len = u32::from_le_bytes([h0, h1, h2, h3]) as usize;
    let body = u32::from_le_bytes([b0, b1, b2, b3]) as usize;
    check("header", header_len, limits.header)?;
    check("body", body, limits.body)?;
    let head = read_exactly(stream, header_len).await?;
    let (header, rest) = postcard::take_from_bytes::<H>(&head).map_err(|error| WireError::Header(error.to_string()))?;
    match rest.is_empty() {
        true => Ok(FrameHead { header, body }),
        false => Err(WireError::Header(format!("{} trailing bytes", rest.len()))),
    }
}

/// Reads a body of this length. Not cancel-safe.
pub async fn read_body<R: AsyncRead + Unpin>(stream: &mut R, len: usize) -> Result<Vec<u8>, WireError> {
    read_exactly(stream, len).await
}

/// Skips a body of this length. Not cancel-safe.
pub async fn skip_body<R: AsyncRead + Unpin>(stream: &mut R, len: usize) -> Result<(), WireError> {
    let (mut left, mut bytes) = (len, vec![0; len.min(BODY_STEP)]);
    while left > 0 {
        let step = left.min(bytes.len());
        stream.read_exact(&mut bytes[..step]).await?;
        left -= step;
    }
    Ok(())
}

/// Reads a frame; `None` at the end of the stream between frames. Not cancel-safe.
pub async fn read_frame<R, H>(stream: &mut R, limits: FrameLimits) -> Result<Option<Frame<H>>, WireError>
where
    R: AsyncRead + Unpin,
    H: DeserializeOwned,
{
    let Some(start) = read_frame_start(stream).await? else { return Ok(None) };
    let FrameHead { header, body } = read_head(stream, start, limits).await?;
    Ok(Some(Frame { header, body: read_body(stream, body).await? }))
}

async fn read_exactly<R: AsyncRead + Unpin>(stream: &mut R, len: usize) -> Result<Vec<u8>, WireError> {
    let mut bytes = Vec::with_capacity(len.min(BODY_STEP));
    while bytes.len() < len {
        let start = bytes.len();
        bytes.resize(len.min(start + BODY_STEP.max(start)), 0);
        stream.read_exact(&mut bytes[start..]).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::executor::block_on;
    use futures::io::Cursor;

    const LIMITS: FrameLimits = FrameLimits { header: 64, body: 1024 };

    fn read(bytes: Vec<u8>) -> Result<Option<Frame<u32>>, WireError> {
        block_on(read_frame(&mut Cursor::new(bytes), LIMITS))
    }

    #[test]
    fn a_frame_round_trips() {
        let mut bytes = Vec::new();
        block_on(write_frame(&mut bytes, &7u32, b"body", LIMITS)).unwrap();
        assert_eq!(read(bytes).unwrap(), Some(Frame { header: 7, body: b"body".to_vec() }));
        assert_eq!(read(Vec::new()).unwrap(), None);
    }

    #[test]
    fn lengths_beyond_the_limit_are_refused_before_reading() {
        let mut bytes = 1u32.to_le_bytes().to_vec();
        bytes.extend(u32::MAX.to_le_bytes());
        assert!(matches!(read(bytes), Err(WireError::TooLong { part: "body", .. })));
        let mut bytes = u32::MAX.to_le_bytes().to_vec();
        bytes.extend(0u32.to_le_bytes());
        assert!(matches!(read(bytes), Err(WireError::TooLong { part: "header", .. })));
    }

    #[test]
    fn a_truncated_frame_is_an_error_at_every_length() {
        let mut bytes = Vec::new();
        block_on(write_frame(&mut bytes, &7u32, b"body", LIMITS)).unwrap();
        for len in 1..bytes.len() {
            assert!(matches!(read(bytes[..len].to_vec()), Err(WireError::Stream(_))), "{len}");
        }
    }

    #[test]
    fn after_a_skipped_body_the_next_frame_is_read() {
        let mut bytes = Vec::new();
        let body = vec![7; 3 * BODY_STEP + 1];
        let limits = FrameLimits { body: body.len(), ..LIMITS };
        block_on(write_frame(&mut bytes, &7u32, &body, limits)).unwrap();
        block_on(write_frame(&mut bytes, &8u32, b"next", LIMITS)).unwrap();
        let mut stream = Cursor::new(bytes);
        let next = block_on(async {
            let start = read_frame_start(&mut stream).await.unwrap().unwrap();
            let head: FrameHead<u32> = read_head(&mut stream, start, limits).await.unwrap();
            assert_eq!(head, FrameHead { header: 7, body: body.len() });
            skip_body(&mut stream, head.body).await.unwrap();
            read_frame(&mut stream, LIMITS).await.unwrap()
        });
        assert_eq!(next, Some(Frame { header: 8u32, body: b"next".to_vec() }));
    }

    #[test]
    fn a_header_with_trailing_bytes_is_refused() {
        let bytes = [2, 0, 0, 0, 0, 0, 0, 0, 7, 7].to_vec();
        assert!(matches!(read(bytes), Err(WireError::Header(_))));
    }
}
