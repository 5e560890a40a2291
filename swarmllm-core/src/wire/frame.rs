//! Frames on a stream: `u32` header length, `u32` body length (both little endian), the header in postcard, the body raw.
//!
//! Lengths are checked against the caller's bounds before anything is allocated, and memory for a body grows as its
//! bytes arrive, so that a header that claims much and sends nothing costs nothing.

use std::io;

use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A frame as read: its decoded header and its raw body.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame<H> {
    /// The header.
    pub header: H,
    /// The body.
    pub body: Vec<u8>,
}

/// Bounds of one protocol's frames, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Longest header.
    pub header: usize,
    /// Longest body.
    pub body: usize,
}

/// What a peer sent is not in the protocol, or the stream ended.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The stream failed or ended inside a frame.
    #[error("the stream failed: {0}")]
    Stream(#[from] io::Error),
    /// A length exceeds its bound.
    #[error("a {part} of {given} bytes was announced, at most {max} are accepted")]
    TooLong { part: &'static str, given: usize, max: usize },
    /// The header is not a message of the protocol.
    #[error("the header is not a message of this protocol: {0}")]
    Header(String),
    /// The body does not fit its header.
    #[error("the body does not fit its header: {0}")]
    Body(String),
}

/// Bytes by which a body's buffer grows while it is read.
const BODY_STEP: usize = 64 * 1024;

/// Encodes a frame's prefix and header; the body follows it as is.
pub fn encode_head<H: Serialize>(header: &H, body_len: usize, limits: FrameLimits) -> Result<Vec<u8>, WireError> {
    let head = postcard::to_stdvec(header).map_err(|error| WireError::Header(error.to_string()))?;
    check("header", head.len(), limits.header)?;
    check("body", body_len, limits.body)?;
    let mut bytes = Vec::with_capacity(8 + head.len());
    // Both fit in u32: the limits of every protocol here are far below 4 GiB.
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

/// Writes one frame and flushes it. Not cancel-safe: a dropped call leaves half a frame, so close the stream then.
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

/// A frame of which the header was read, and not the body yet.
#[derive(Debug, Clone, PartialEq)]
pub struct Head<H> {
    /// The header.
    pub header: H,
    /// Bytes of the body.
    pub body: usize,
}

/// The first bytes of a frame: it has begun.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    prefix: [u8; 8],
    read: usize,
}

/// Waits for a frame to begin; `None` where the stream ended. Cancel-safe.
pub async fn begin_frame<R: AsyncRead + Unpin>(stream: &mut R) -> Result<Option<Begun>, WireError> {
    let mut prefix = [0u8; 8];
    let read = stream.read(&mut prefix).await?;
    Ok((read > 0).then_some(Begun { prefix, read }))
}

/// Reads the header of a frame that has begun. Not cancel-safe. The body is to be read or skipped next.
pub async fn read_head<R, H>(stream: &mut R, begun: Begun, limits: FrameLimits) -> Result<Head<H>, WireError>
where
    R: AsyncRead + Unpin,
    H: DeserializeOwned,
{
    let Begun { mut prefix, read } = begun;
    stream.read_exact(&mut prefix[read..]).await?;
    let [h0, h1, h2, h3, b0, b1, b2, b3] = prefix;
    let header_len = u32::from_le_bytes([h0, h1, h2, h3]) as usize;
    let body = u32::from_le_bytes([b0, b1, b2, b3]) as usize;
    check("header", header_len, limits.header)?;
    check("body", body, limits.body)?;
    let head = read_exactly(stream, header_len).await?;
    let (header, rest) = postcard::take_from_bytes::<H>(&head).map_err(|error| WireError::Header(error.to_string()))?;
    match rest.is_empty() {
        true => Ok(Head { header, body }),
        false => Err(WireError::Header(format!("{} bytes follow it", rest.len()))),
    }
}

/// Reads a body of this length. Not cancel-safe.
pub async fn read_body<R: AsyncRead + Unpin>(stream: &mut R, len: usize) -> Result<Vec<u8>, WireError> {
    read_exactly(stream, len).await
}

/// Passes over a body of this length. Not cancel-safe.
pub async fn skip_body<R: AsyncRead + Unpin>(stream: &mut R, len: usize) -> Result<(), WireError> {
    let (mut left, mut bytes) = (len, vec![0; len.min(BODY_STEP)]);
    while left > 0 {
        let step = left.min(bytes.len());
        stream.read_exact(&mut bytes[..step]).await?;
        left -= step;
    }
    Ok(())
}

/// Reads one frame; `None` where the stream ended between frames. Not cancel-safe.
pub async fn read_frame<R, H>(stream: &mut R, limits: FrameLimits) -> Result<Option<Frame<H>>, WireError>
where
    R: AsyncRead + Unpin,
    H: DeserializeOwned,
{
    let Some(begun) = begin_frame(stream).await? else { return Ok(None) };
    let Head { header, body } = read_head(stream, begun, limits).await?;
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
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        block_on(write_frame(&mut bytes, &7u32, b"body", LIMITS)).unwrap();
        assert_eq!(read(bytes).unwrap(), Some(Frame { header: 7, body: b"body".to_vec() }));
        assert_eq!(read(Vec::new()).unwrap(), None);
    }

    #[test]
    fn lengths_beyond_the_bound_are_refused_before_anything_is_read() {
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
    fn a_body_that_is_passed_over_leaves_the_next_frame() {
        let mut bytes = Vec::new();
        let body = vec![7; 3 * BODY_STEP + 1];
        let limits = FrameLimits { body: body.len(), ..LIMITS };
        block_on(write_frame(&mut bytes, &7u32, &body, limits)).unwrap();
        block_on(write_frame(&mut bytes, &8u32, b"next", LIMITS)).unwrap();
        let mut stream = Cursor::new(bytes);
        let next = block_on(async {
            let begun = begin_frame(&mut stream).await.unwrap().unwrap();
            let head: Head<u32> = read_head(&mut stream, begun, limits).await.unwrap();
            assert_eq!(head, Head { header: 7, body: body.len() });
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
