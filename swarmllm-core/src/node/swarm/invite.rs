//! Invites: what another machine needs to enter a swarm, in one line of text that a member has signed.
//!
//! The text is `swarmllm-`, then base64url of a signed value: the swarm's name, its secret where it is private, where the
//! member may be dialled, and until when the invite is good. Whoever has the invite of a private swarm has its secret: an
//! expiry makes a forgotten invite useless to honest programs, it does not take the secret back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::base::{ErrorKind, Fault, NodeId};
use crate::identity::{Keypair, Signed, SwarmKey};

/// What every invite begins with.
const START: &str = "swarmllm-";
/// Keeps the signature of an invite apart from every other.
const DOMAIN: &str = "swarmllm invite 1";
/// Longest invite, in bytes of text: eight addresses of 256 bytes are 2,048 bytes, in base64 2,731.
const MAX_TEXT: usize = 4096;
/// Addresses in an invite, and bytes of each.
const MAX_ADDRESSES: usize = 8;
const MAX_ADDRESS_BYTES: usize = 256;

/// What is signed. Never printed: it may have the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Body {
    network: String,
    key: Option<[u8; SwarmKey::BYTES]>,
    addresses: Vec<String>,
    /// Seconds since 1970.
    expires: u64,
}

/// An invite whose signature holds; see the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invite {
    /// Name of the swarm.
    pub network: String,
    /// Where the member that invites may be dialled, as multiaddr text.
    pub addresses: Vec<String>,
    /// Until when it is good, in seconds since 1970.
    pub expires: u64,
    /// Who invites.
    pub issuer: NodeId,
    pub(super) key: Option<SwarmKey>,
}

impl Invite {
    /// Reads an invite. Whether it has expired is for [`check`](Self::check) to say.
    pub fn read(text: &str) -> Result<Self, Fault> {
        let text = text.trim();
        let refuse = |reason: &str| Fault::new(ErrorKind::InvalidArgument, format!("this is no invite: {reason}"));
        if text.len() > MAX_TEXT {
            return Err(refuse("it is too long"));
        }
        let encoded = text.strip_prefix(START).ok_or_else(|| refuse("it does not begin with `swarmllm-`"))?;
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| refuse("it was cut or changed on the way"))?;
        let signed = Signed::<Body>::open(&bytes, DOMAIN).map_err(|error| refuse(&error.to_string()))?;
        let issuer = signed.signer();
        let Body { network, key, addresses, expires } = signed.into_value();
        if addresses.len() > MAX_ADDRESSES || addresses.iter().any(|address| address.len() > MAX_ADDRESS_BYTES) {
            return Err(refuse("it names too many addresses"));
        }
        Ok(Self { network, addresses, expires, issuer, key: key.map(SwarmKey::from_bytes) })
    }

    /// Whether the swarm is private: nodes without its secret cannot connect.
    pub fn is_private(&self) -> bool {
        self.key.is_some()
    }

    /// Refuses an invite that is not good any more, by this machine's clock.
    pub fn check(&self) -> Result<(), Fault> {
        let (now, expires) = (since_1970(SystemTime::now()), self.expires);
        if now >= expires {
            let hours = (now - expires) / 3600;
            let text = format!("the invite to `{}` expired {hours} hours ago; ask for a new one", self.network);
            return Err(Fault::new(ErrorKind::InvalidArgument, text));
        }
        Ok(())
    }

    /// The text of a new invite.
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
            addresses: worth_telling(addresses),
            expires: since_1970(SystemTime::now()).saturating_add(good_for.as_secs()),
        };
        let signed = Signed::seal(body, DOMAIN, keypair).map_err(|error| Fault::new(error.kind(), error))?;
        Ok(format!("{START}{}", URL_SAFE_NO_PAD.encode(signed.bytes())))
    }
}

/// Addresses that others can use; those of this machine alone only where there is nothing else.
fn worth_telling(addresses: Vec<String>) -> Vec<String> {
    let local = |address: &String| address.starts_with("/ip4/127.") || address.starts_with("/ip6/::1/");
    let (inner, outer): (Vec<String>, Vec<String>) = addresses.into_iter().partition(local);
    let mut told = if outer.is_empty() { inner } else { outer };
    told.retain(|address| address.len() <= MAX_ADDRESS_BYTES);
    told.truncate(MAX_ADDRESSES);
    told
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
    fn what_is_written_is_read_and_names_who_signed_it() {
        let key = SwarmKey::generate().unwrap();
        let invite = Invite::read(&format!("  {}\n", written(Some(&key), DAY))).unwrap();
        assert_eq!((invite.network.as_str(), invite.issuer), ("home", keypair().node_id()));
        assert_eq!(invite.addresses, ["/ip4/10.0.0.7/tcp/8810"], "an address of the machine alone helps nobody");
        assert!(invite.is_private() && invite.key == Some(key.clone()) && invite.check().is_ok());
        assert!(!format!("{invite:?}").contains(&format!("{:?}", key.bytes())), "the secret is not printed");
        assert!(!Invite::read(&written(None, DAY)).unwrap().is_private());
    }

    #[test]
    fn an_expired_invite_is_refused_and_says_so() {
        let invite = Invite::read(&written(None, Duration::ZERO)).unwrap();
        let refused = invite.check().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        assert!(refused.to_string().contains("expired"), "{refused}");
    }

    #[test]
    fn an_invite_with_any_byte_changed_is_none() {
        let text = written(Some(&SwarmKey::generate().unwrap()), DAY);
        let bytes = URL_SAFE_NO_PAD.decode(&text[START.len()..]).unwrap();
        for index in 0..bytes.len() {
            let mut bent = bytes.clone();
            bent[index] ^= 1;
            let bent = format!("{START}{}", URL_SAFE_NO_PAD.encode(bent));
            assert!(Invite::read(&bent).is_err(), "byte {index}");
        }
        for other in ["", "swarmllm-", &text[..text.len() - 4], &text[1..], &text.repeat(20)] {
            assert_eq!(Invite::read(other).unwrap_err().kind(), ErrorKind::InvalidArgument, "{other:.40}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,200}") {
            let _ = Invite::read(&text);
            let _ = Invite::read(&format!("{START}{text}"));
        }
    }
}
