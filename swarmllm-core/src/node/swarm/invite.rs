//! Invites: what a machine needs to join a swarm, as one line of text signed by a member.
//!
//! The text is `swarmllm-` and the base64url of a signed value: the swarm's name, the secret of a private swarm, the
//! member's addresses, and the expiry. The holder of an invite to a private swarm has its secret: honest programs refuse an
//! expired invite, but expiry does not revoke the secret.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::base::{ErrorKind, Fault, NodeId};
use crate::identity::{Keypair, Signed, SwarmKey};

/// Prefix of every invite.
const PREFIX: &str = "swarmllm-";
/// Domain separation of an invite's signature.
const DOMAIN: &str = "swarmllm invite 1";
/// Longest invite in bytes of text: eight addresses of 256 bytes are 2,048 bytes, 2,731 in base64.
const MAX_TEXT: usize = 4096;
/// Most addresses, and most bytes of each.
const MAX_ADDRESSES: usize = 8;
const MAX_ADDRESS_BYTES: usize = 256;

/// The signed value. Never printed: it may contain the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    network: String,
    key: Option<[u8; SwarmKey::BYTES]>,
    addresses: Vec<String>,
    /// Seconds since 1970.
    expires: u64,
}

/// An invite with a valid signature; see the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Name of the swarm.
    pub network: String,
    /// Addresses of the inviting member, as multiaddr text.
    pub addresses: Vec<String>,
    /// Expiry, seconds since 1970.
    pub expires: u64,
    /// The member that signed it.
    pub issuer: NodeId,
    pub(super) key: Option<SwarmKey>,
}

impl Invite {
    /// Parses an invite and verifies its signature. [`check`](Self::check) tests the expiry.
    pub fn read(text: &str) -> Result<Self, Fault> {
        let text = text.trim();
        let refuse = |reason: &str| Fault::new(ErrorKind::InvalidArgument, format!("this is not an invite: {reason}"));
        if text.len() > MAX_TEXT {
            return Err(refuse("it is too long"));
        }
        let encoded = text.strip_prefix(PREFIX).ok_or_else(|| refuse("it does not begin with `swarmllm-`"))?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| refuse("it was cut or changed in transit"))?;
        let signed = Signed::<Body>::open(&bytes, DOMAIN).map_err(|error| refuse(&error.to_string()))?;
        let issuer = signed.signer();
        let Body { network, key, addresses, expires } = signed.into_value();
        if addresses.len() > MAX_ADDRESSES || addresses.iter().any(|address| address.len() > MAX_ADDRESS_BYTES) {
            return Err(refuse("it names too many addresses"));
        }
        Ok(Self { network, addresses, expires, issuer, key: key.map(SwarmKey::from_bytes) })
    }

    /// Whether the swarm is private: nodes without the secret cannot connect.
    pub fn is_private(&self) -> bool {
        self.key.is_some()
    }

    /// Refuses an expired invite, by this machine's clock.
    pub fn check(&self) -> Result<(), Fault> {
        let (now, expires) = (since_1970(SystemTime::now()), self.expires);
        if now >= expires {
            let hours = (now - expires) / 3600;
            let text = format!("the invite to `{}` expired {hours} hours ago; ask for a new one", self.network);
            return Err(Fault::new(ErrorKind::InvalidArgument, text));
        }
        Ok(())
    }

    /// Signs a new invite and returns its text.
    pub(crate) fn write(
        keypair: &Keypair,
        network: &str,
        key: Option<&SwarmKey>,
        addresses: Vec<String>,
        good_for: Duration,
    ) -> Result<String, Fault> {
        let body = Body {
            network: network.to_owned(),
            key: key.map(|key| *key.bytes()),
            addresses: shareable(addresses),
            expires: since_1970(SystemTime::now()).saturating_add(good_for.as_secs()),
        };
        let signed = Signed::seal(body, DOMAIN, keypair).map_err(|error| Fault::new(error.kind(), error))?;
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(signed.bytes())))
    }
}

/// Addresses that other machines can use; loopback addresses only if there are no others.
fn shareable(addresses: Vec<String>) -> Vec<String> {
    let local = |address: &String| address.starts_with("/ip4/127.") || address.starts_with("/ip6/::1/");
    let (inner, outer): (Vec<String>, Vec<String>) = addresses.into_iter().partition(local);
    let mut shared = if outer.is_empty() { inner } else { outer };
    shared.retain(|address| address.len() <= MAX_ADDRESS_BYTES);
    shared.truncate(MAX_ADDRESSES);
    shared
}

fn since_1970(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn keypair() -> Keypair {
        Keypair::from_seed(&[3; 32])
    }

    fn written(key: Option<&SwarmKey>, good_for: Duration) -> String {
        let addresses = vec!["/ip4/127.0.0.1/tcp/1".to_owned(), "/ip4/10.0.0.7/tcp/8810".to_owned()];
        Invite::write(&keypair(), "home", key, addresses, good_for).unwrap()
    }

    #[test]
    fn an_invite_round_trips_and_names_its_signer() {
        let key = SwarmKey::generate().unwrap();
        let invite = Invite::read(&format!("  {}\n", written(Some(&key), DAY))).unwrap();
        assert_eq!((invite.network.as_str(), invite.issuer), ("home", keypair().node_id()));
        assert_eq!(invite.addresses, ["/ip4/10.0.0.7/tcp/8810"], "loopback addresses are left out");
        assert!(invite.is_private() && invite.key == Some(key.clone()) && invite.check().is_ok());
        assert!(!format!("{invite:?}").contains(&format!("{:?}", key.bytes())), "the secret is not printed");
        assert!(!Invite::read(&written(None, DAY)).unwrap().is_private());
    }

    #[test]
    fn an_expired_invite_is_refused() {
        let invite = Invite::read(&written(None, Duration::ZERO)).unwrap();
        let refused = invite.check().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        assert!(refused.to_string().contains("expired"), "{refused}");
    }

    #[test]
    fn an_invite_with_any_changed_byte_is_refused() {
        let text = written(Some(&SwarmKey::generate().unwrap()), DAY);
        let bytes = URL_SAFE_NO_PAD.decode(&text[PREFIX.len()..]).unwrap();
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            let changed = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(changed));
            assert!(Invite::read(&changed).is_err(), "byte {index}");
        }
        for other in ["", "swarmllm-", &text[..text.len() - 4], &text[1..], &text.repeat(20)] {
            assert_eq!(Invite::read(other).unwrap_err().kind(), ErrorKind::InvalidArgument, "{other:.40}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,200}") {
            let _ = Invite::read(&text);
            let _ = Invite::read(&format!("{PREFIX}{text}"));
        }
    }
}
