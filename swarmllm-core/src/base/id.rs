//! Identifiers: fixed-size bytes with one text form, lower-case hexadecimal.

use std::fmt;
use std::str::FromStr;

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde::{Deserialize, Serialize};

/// The text is not the hexadecimal form of an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an identifier of {bytes} bytes in hexadecimal")]
pub struct ParseIdError {
    /// The text, cut to the identifier's length.
    pub text: String,
    /// Length of the identifier in bytes.
    pub bytes: usize,
}

/// `N` bytes from hexadecimal digits of either case.
fn parse_hex<const N: usize>(text: &str) -> Result<[u8; N], ParseIdError> {
    let mut bytes = [0u8; N];
    // The decoder panics where the lengths differ.
    let is_long_enough = text.len() == 2 * N;
    let is_decoded = is_long_enough && HEXLOWER_PERMISSIVE.decode_mut(text.as_bytes(), &mut bytes).is_ok();
    is_decoded.then_some(bytes).ok_or_else(|| ParseIdError { text: text.chars().take(2 * N).collect(), bytes: N })
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
                HEXLOWER.encode(&self.0[..4])
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                HEXLOWER.encode_display(&self.0).fmt(f)
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
    /// A model: the BLAKE3 digest of its canonical manifest. Names are aliases of the id.
    ModelId,
    32
);
id!(
    /// A shard: the BLAKE3 digest of its bytes.
    ShardId,
    32
);
id!(
    /// A session of a coordinator: random, never reused, bound to that coordinator (`wire::control::session_id`).
    SessionId,
    16
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_and_other_text_is_refused() {
        let id = ModelId([0xa5; 32]);
        assert_eq!(id.to_string().parse::<ModelId>(), Ok(id));
        assert!("a5".parse::<ModelId>().is_err());
        assert!("zz".repeat(32).parse::<ModelId>().is_err());
        assert!("é".repeat(32).parse::<ModelId>().is_err());
    }
}
