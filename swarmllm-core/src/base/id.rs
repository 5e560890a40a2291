//! Identifiers: fixed-size bytes with one text form, lower-case hexadecimal.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Text that is not the hexadecimal form of an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an identifier of {bytes} bytes in hexadecimal")]
pub struct ParseIdError {
    /// What was given, cut to a bounded length.
    pub text: String,
    /// How many bytes the identifier has.
    pub bytes: usize,
}

fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    let refuse = || ParseIdError { text: text.chars().take(2 * N).collect(), bytes: N };
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return Err(refuse());
    }
    let mut bytes = [0u8; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16).ok_or_else(refuse)?;
        let low = char::from(pair[1]).to_digit(16).ok_or_else(refuse)?;
        // Two hexadecimal digits are at most 255.
        *byte = (high * 16 + low) as u8;
    }
    Ok(bytes)
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $bytes]);

        impl $name {
            /// The raw bytes.
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }

            /// The first eight hexadecimal digits, for people.
            pub fn short(&self) -> String {
                self.to_string().chars().take(8).collect()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.short())
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                parse_hex(text).map(Self)
            }
        }
    };
}

id!(
    /// A BLAKE3 digest.
    Hash,
    32
);
id!(
    /// A node: its Ed25519 public key.
    NodeId,
    32
);
id!(
    /// A model: the BLAKE3 digest of its canonical manifest. Names are aliases of this.
    ModelId,
    32
);
id!(
    /// A shard: the BLAKE3 digest of its bytes.
    ShardId,
    32
);
id!(
    /// One session of a coordinator: random, never reused, and of nobody else (`wire::control::session_id`).
    SessionId,
    16
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_anything_else_is_refused() {
        let id = ModelId([0xa5; 32]);
        assert_eq!(id.to_string().parse::<ModelId>(), Ok(id));
        assert!("a5".parse::<ModelId>().is_err());
        assert!("zz".repeat(32).parse::<ModelId>().is_err());
        assert!("é".repeat(32).parse::<ModelId>().is_err());
    }
}
