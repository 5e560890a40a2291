//! Which swarm a data directory belongs to, where that was settled by an invite or by founding a private swarm.
//!
//! Kept in the file `swarm` beside the node's key, readable by its owner alone since it may have the swarm's secret. Without
//! the file a node is in the swarm that the host names, which anyone may enter who knows the name.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::base::{ErrorKind, Fault};
use crate::identity::{SwarmKey, keyfile};
use crate::net::NetConfig;
use crate::node::swarm::invite::Invite;

const FILE: &str = "swarm";
const MAGIC: &[u8; 8] = b"swllmsw1";
/// Longest file, in bytes: an invite's eight addresses and a name.
const MAX_BYTES: usize = 4096;

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Membership {
    /// Name of the swarm.
    pub network: String,
    /// What its nodes prove to have; nothing in an open swarm.
    pub key: Option<SwarmKey>,
    /// Where members may be dialled.
    pub bootstrap: Vec<String>,
}

/// As it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    network: String,
    key: Option<[u8; SwarmKey::BYTES]>,
    bootstrap: Vec<String>,
}

/// What the host asks for.
pub(crate) struct Wish<'a> {
    /// A swarm by name.
    pub network: Option<&'a str>,
    /// Whether to found a private one where the directory belongs to none.
    pub private: bool,
    /// An invite.
    pub invite: Option<&'a str>,
}

/// Settles which swarm a data directory belongs to, and keeps it there. The caller holds the directory's lock.
pub(crate) fn settle(dir: &Path, wish: &Wish, default: &str) -> Result<Membership, Fault> {
    let path = dir.join(FILE);
    let kept = load(&path)?;
    let invite = wish.invite.map(Invite::read).transpose()?;
    if let Some(kept) = kept {
        let asked = invite.as_ref().map(|invite| (invite.network.as_str(), Some(&invite.key)));
        let asked = asked.or(wish.network.map(|network| (network, None)));
        let agrees =
            asked.is_none_or(|(network, key)| network == kept.network && key.is_none_or(|key| *key == kept.key));
        return match agrees && !is_too_open(wish, kept.key.as_ref()) {
            true => Ok(kept),
            false => Err(belongs_elsewhere(&path, &kept.network)),
        };
    }
    let membership = match invite {
        Some(invite) => {
            invite.check()?;
            if wish.network.is_some_and(|network| network != invite.network) {
                let text = format!("the invite is to swarm `{}`, another was named", invite.network);
                return Err(Fault::new(ErrorKind::InvalidArgument, text));
            }
            if is_too_open(wish, invite.key.as_ref()) {
                let text = format!("the invite is to the open swarm `{}`, a private one was asked for", invite.network);
                return Err(Fault::new(ErrorKind::InvalidArgument, text));
            }
            Membership { network: invite.network, key: invite.key, bootstrap: invite.addresses }
        }
        None if wish.private => {
            let key = SwarmKey::generate().map_err(|error| Fault::new(error.kind(), error))?;
            let network = wish.network.map_or_else(|| name_of(&key), str::to_owned);
            Membership { network, key: Some(key), bootstrap: Vec::new() }
        }
        None => {
            let network = wish.network.unwrap_or(default).to_owned();
            return Ok(Membership { network, key: None, bootstrap: Vec::new() });
        }
    };
    check(&membership)?;
    save(&path, &membership)?;
    Ok(membership)
}

/// Who asks for a private swarm must never find itself in an open one.
fn is_too_open(wish: &Wish, key: Option<&SwarmKey>) -> bool {
    wish.private && key.is_none()
}

/// What could not be started with is not kept: a name that is none, addresses that a member has signed and that are none.
fn check(membership: &Membership) -> Result<(), Fault> {
    let Membership { network, bootstrap, .. } = membership.clone();
    let config = NetConfig { network, bootstrap, ..NetConfig::default() };
    config.validate().map_err(|error| Fault::new(error.kind(), error))
}

/// A name that no other private swarm has; it tells nothing of the secret.
fn name_of(key: &SwarmKey) -> String {
    /// Digits of the name: two of a thousand swarms have the same with a chance of one in 500 million.
    const DIGITS: usize = 12;
    let hash = blake3::derive_key("swarmllm 2026-11 private swarm's name", key.bytes());
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("private-{}", &digits[..DIGITS])
}

fn belongs_elsewhere(path: &Path, network: &str) -> Fault {
    let text = format!(
        "this data directory belongs to swarm `{network}`; use another directory, or remove {} to leave that swarm",
        path.display()
    );
    Fault::new(ErrorKind::InvalidConfig, text)
}

fn load(path: &Path) -> Result<Option<Membership>, Fault> {
    let failed = |error: io::Error| Fault::new(ErrorKind::Io, format!("{} cannot be read: {error}", path.display()));
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.and_then(|file| file.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)).map_err(failed)?,
    };
    let damaged = || {
        let text = format!("{} is damaged; restore it, or remove it to leave the swarm", path.display());
        Fault::new(ErrorKind::InvalidConfig, text)
    };
    let body = bytes.strip_prefix(MAGIC.as_slice()).filter(|_| bytes.len() <= MAX_BYTES).ok_or_else(damaged)?;
    let Kept { network, key, bootstrap } = postcard::from_bytes(body).map_err(|_| damaged())?;
    Ok(Some(Membership { network, key: key.map(SwarmKey::from_bytes), bootstrap }))
}

fn save(path: &Path, membership: &Membership) -> Result<(), Fault> {
    let Membership { network, key, bootstrap } = membership.clone();
    let kept = Kept { network, key: key.as_ref().map(|key| *key.bytes()), bootstrap };
    let body = postcard::to_stdvec(&kept).map_err(|error| Fault::new(ErrorKind::Internal, error))?;
    let bytes = [MAGIC.as_slice(), &body].concat();
    keyfile::write(path, &bytes).map_err(|error| Fault::new(error.kind(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Keypair;
    use std::time::Duration;

    fn wish<'a>(network: Option<&'a str>, private: bool, invite: Option<&'a str>) -> Wish<'a> {
        Wish { network, private, invite }
    }

    fn invite(network: &str, key: Option<&SwarmKey>, seconds: u64) -> String {
        let keypair = Keypair::from_seed(&[3; 32]);
        let addresses = vec!["/ip4/10.0.0.7/tcp/8810".to_owned()];
        Invite::write(&keypair, network, key, addresses, Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn a_private_swarm_is_founded_once_and_entered_by_invite() {
        let (founder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let founded = settle(founder.path(), &wish(None, true, None), "main").unwrap();
        assert!(founded.key.is_some() && founded.network.starts_with("private-"));
        assert_eq!(settle(founder.path(), &wish(None, true, None), "main").unwrap(), founded);
        assert_eq!(settle(founder.path(), &wish(None, false, None), "main").unwrap(), founded, "it stays private");
        let code = invite(&founded.network, founded.key.as_ref(), 60);
        let joined = settle(other.path(), &wish(None, false, Some(&code)), "main").unwrap();
        assert_eq!((&joined.network, &joined.key), (&founded.network, &founded.key));
        assert_eq!(joined.bootstrap, ["/ip4/10.0.0.7/tcp/8810"]);
        assert_eq!(settle(other.path(), &wish(None, false, None), "main").unwrap(), joined);
        // Who is in need not be asked in again, whatever has become of the invite.
        let late = invite(&founded.network, founded.key.as_ref(), 0);
        assert_eq!(settle(other.path(), &wish(None, false, Some(&late)), "main").unwrap(), joined);
    }

    #[test]
    fn without_file_and_wish_a_node_is_where_the_host_says_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(settle(dir.path(), &wish(None, false, None), "main").unwrap().network, "main");
        assert_eq!(settle(dir.path(), &wish(Some("lab"), false, None), "main").unwrap().network, "lab");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_contradicts_is_refused_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let kind = |wish: Wish| settle(dir.path(), &wish, "main").unwrap_err().kind();
        let key = SwarmKey::generate().unwrap();
        let (home, lab) = (invite("home", Some(&key), 60), invite("lab", None, 60));
        assert_eq!(kind(wish(None, false, Some(&invite("home", Some(&key), 0)))), ErrorKind::InvalidArgument);
        assert_eq!(kind(wish(Some("lab"), false, Some(&home))), ErrorKind::InvalidArgument);
        assert_eq!(kind(wish(None, false, Some("swarmllm-zzzz"))), ErrorKind::InvalidArgument);
        let joined = settle(dir.path(), &wish(None, false, Some(&home)), "main").unwrap();
        assert_eq!(kind(wish(None, false, Some(&lab))), ErrorKind::InvalidConfig);
        assert_eq!(kind(wish(Some("lab"), false, None)), ErrorKind::InvalidConfig);
        let other_key = invite("home", Some(&SwarmKey::generate().unwrap()), 60);
        assert_eq!(kind(wish(None, false, Some(&other_key))), ErrorKind::InvalidConfig);
        assert_eq!(settle(dir.path(), &wish(Some("home"), false, None), "main").unwrap(), joined);
    }

    #[test]
    fn who_asks_for_a_private_swarm_is_never_in_an_open_one() {
        let dir = tempfile::tempdir().unwrap();
        let open = invite("home", None, 60);
        let refused = settle(dir.path(), &wish(None, true, Some(&open)), "main").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        assert!(settle(dir.path(), &wish(None, false, Some(&open)), "main").unwrap().key.is_none());
        assert_eq!(settle(dir.path(), &wish(None, true, None), "main").unwrap_err().kind(), ErrorKind::InvalidConfig);
    }

    #[test]
    fn what_could_not_be_started_with_is_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let keypair = Keypair::from_seed(&[3; 32]);
        let minute = Duration::from_secs(60);
        let lame = Invite::write(&keypair, "home", None, vec!["nowhere".to_owned()], minute).unwrap();
        assert_eq!(
            settle(dir.path(), &wish(None, false, Some(&lame)), "main").unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
        let bad_name = invite("No Name", None, 60);
        assert_eq!(
            settle(dir.path(), &wish(None, false, Some(&bad_name)), "main").unwrap_err().kind(),
            ErrorKind::InvalidConfig
        );
        assert_eq!(
            settle(dir.path(), &wish(Some("No Name"), true, None), "main").unwrap_err().kind(),
            ErrorKind::InvalidConfig
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_is_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        settle(dir.path(), &wish(None, true, None), "main").unwrap();
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for bytes in [&whole[..whole.len() - 1], b"", b"something else", &vec![0; MAX_BYTES + 1]] {
            std::fs::write(&path, bytes).unwrap();
            let refused = settle(dir.path(), &wish(None, true, None), "main").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidConfig);
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }
}
