//! The swarm that a data directory belongs to, once an invite or the founding of a private swarm has fixed it.
//!
//! Stored in the file `swarm` beside the node's key. Only its owner can read it, since it may contain the swarm's secret.
//! Without the file the host names the swarm, which is open to anyone who knows the name.

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
    /// Secret that nodes prove in the handshake; `None` in an open swarm.
    pub key: Option<SwarmKey>,
    /// Addresses of members.
    pub bootstrap: Vec<String>,
}

/// The stored form.
#[derive(Serialize, Deserialize)]
struct StoredMembership {
    network: String,
    key: Option<[u8; SwarmKey::BYTES]>,
    bootstrap: Vec<String>,
}

/// The host's settings.
pub(crate) struct MembershipRequest<'a> {
    /// Name of the swarm.
    pub network: Option<&'a str>,
    /// Whether to found a private swarm if the directory belongs to none.
    pub private: bool,
    /// Text of an invite.
    pub invite: Option<&'a str>,
}

/// Determines the swarm of a data directory and stores it. The caller holds the directory's lock. Blocks.
pub(crate) fn resolve(dir: &Path, request: &MembershipRequest, default: &str) -> Result<Membership, Fault> {
    let path = dir.join(FILE);
    let stored = load(&path)?;
    let invite = request.invite.map(Invite::read).transpose()?;
    if let Some(stored) = stored {
        let asked = invite.as_ref().map(|invite| (invite.network.as_str(), Some(&invite.key)));
        let asked = asked.or(request.network.map(|network| (network, None)));
        let agrees =
            asked.is_none_or(|(network, key)| network == stored.network && key.is_none_or(|key| *key == stored.key));
        return match agrees && !is_too_open(request, stored.key.as_ref()) {
            true => Ok(stored),
            false => Err(belongs_elsewhere(&path, &stored.network)),
        };
    }
    let membership = match invite {
        Some(invite) => {
            invite.check()?;
            if request.network.is_some_and(|network| network != invite.network) {
                let text = format!("the invite is to swarm `{}`, but another swarm was named", invite.network);
                return Err(Fault::new(ErrorKind::InvalidArgument, text));
            }
            if is_too_open(request, invite.key.as_ref()) {
                let text =
                    format!("the invite is to the open swarm `{}`, but a private swarm was requested", invite.network);
                return Err(Fault::new(ErrorKind::InvalidArgument, text));
            }
            Membership { network: invite.network, key: invite.key, bootstrap: invite.addresses }
        }
        None if request.private => {
            let key = SwarmKey::generate().map_err(|error| Fault::new(error.kind(), error))?;
            let network = request.network.map_or_else(|| name_of(&key), str::to_owned);
            Membership { network, key: Some(key), bootstrap: Vec::new() }
        }
        None => {
            let network = request.network.unwrap_or(default).to_owned();
            return Ok(Membership { network, key: None, bootstrap: Vec::new() });
        }
    };
    check(&membership)?;
    save(&path, &membership)?;
    Ok(membership)
}

/// A host that asks for a private swarm must never end up in an open one.
fn is_too_open(request: &MembershipRequest, key: Option<&SwarmKey>) -> bool {
    request.private && key.is_none()
}

/// A membership that could not start is not stored: its name or the signed addresses are invalid.
fn check(membership: &Membership) -> Result<(), Fault> {
    let Membership { network, bootstrap, .. } = membership.clone();
    let config = NetConfig { network, bootstrap, ..NetConfig::default() };
    config.validate().map_err(|error| Fault::new(error.kind(), error))
}

/// A unique name that reveals nothing of the secret.
fn name_of(key: &SwarmKey) -> String {
    /// Digits of the name. Among a thousand swarms, two share a name with a probability of 1 in 500 million.
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
    let StoredMembership { network, key, bootstrap } = postcard::from_bytes(body).map_err(|_| damaged())?;
    Ok(Some(Membership { network, key: key.map(SwarmKey::from_bytes), bootstrap }))
}

fn save(path: &Path, membership: &Membership) -> Result<(), Fault> {
    let Membership { network, key, bootstrap } = membership.clone();
    let stored = StoredMembership { network, key: key.as_ref().map(|key| *key.bytes()), bootstrap };
    let body = postcard::to_stdvec(&stored).map_err(|error| Fault::new(ErrorKind::Internal, error))?;
    let bytes = [MAGIC.as_slice(), &body].concat();
    keyfile::write(path, &bytes).map_err(|error| Fault::new(error.kind(), error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::Keypair;
    use std::time::Duration;

    fn request<'a>(network: Option<&'a str>, private: bool, invite: Option<&'a str>) -> MembershipRequest<'a> {
        MembershipRequest { network, private, invite }
    }

    fn invite(network: &str, key: Option<&SwarmKey>, seconds: u64) -> String {
        let keypair = Keypair::from_seed(&[3; 32]);
        let addresses = vec!["/ip4/10.0.0.7/tcp/8810".to_owned()];
        Invite::write(&keypair, network, key, addresses, Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn a_private_swarm_is_founded_once_and_joined_by_invite() {
        let (founder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let founded = resolve(founder.path(), &request(None, true, None), "main").unwrap();
        assert!(founded.key.is_some() && founded.network.starts_with("private-"));
        assert_eq!(resolve(founder.path(), &request(None, true, None), "main").unwrap(), founded);
        assert_eq!(resolve(founder.path(), &request(None, false, None), "main").unwrap(), founded, "it stays private");
        let code = invite(&founded.network, founded.key.as_ref(), 60);
        let joined = resolve(other.path(), &request(None, false, Some(&code)), "main").unwrap();
        assert_eq!((&joined.network, &joined.key), (&founded.network, &founded.key));
        assert_eq!(joined.bootstrap, ["/ip4/10.0.0.7/tcp/8810"]);
        assert_eq!(resolve(other.path(), &request(None, false, None), "main").unwrap(), joined);
        // A member stays a member when the invite has expired.
        let late = invite(&founded.network, founded.key.as_ref(), 0);
        assert_eq!(resolve(other.path(), &request(None, false, Some(&late)), "main").unwrap(), joined);
    }

    #[test]
    fn without_a_file_the_host_names_the_swarm_and_nothing_is_stored() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(resolve(dir.path(), &request(None, false, None), "main").unwrap().network, "main");
        assert_eq!(resolve(dir.path(), &request(Some("lab"), false, None), "main").unwrap().network, "lab");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn contradictions_are_refused_and_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let kind = |request: MembershipRequest| resolve(dir.path(), &request, "main").unwrap_err().kind();
        let key = SwarmKey::generate().unwrap();
        let (home, lab) = (invite("home", Some(&key), 60), invite("lab", None, 60));
        assert_eq!(kind(request(None, false, Some(&invite("home", Some(&key), 0)))), ErrorKind::InvalidArgument);
        assert_eq!(kind(request(Some("lab"), false, Some(&home))), ErrorKind::InvalidArgument);
        assert_eq!(kind(request(None, false, Some("swarmllm-zzzz"))), ErrorKind::InvalidArgument);
        let joined = resolve(dir.path(), &request(None, false, Some(&home)), "main").unwrap();
        assert_eq!(kind(request(None, false, Some(&lab))), ErrorKind::InvalidConfig);
        assert_eq!(kind(request(Some("lab"), false, None)), ErrorKind::InvalidConfig);
        let other_key = invite("home", Some(&SwarmKey::generate().unwrap()), 60);
        assert_eq!(kind(request(None, false, Some(&other_key))), ErrorKind::InvalidConfig);
        assert_eq!(resolve(dir.path(), &request(Some("home"), false, None), "main").unwrap(), joined);
    }

    #[test]
    fn a_request_for_a_private_swarm_never_joins_an_open_one() {
        let dir = tempfile::tempdir().unwrap();
        let open = invite("home", None, 60);
        let refused = resolve(dir.path(), &request(None, true, Some(&open)), "main").unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
        assert!(resolve(dir.path(), &request(None, false, Some(&open)), "main").unwrap().key.is_none());
        assert_eq!(
            resolve(dir.path(), &request(None, true, None), "main").unwrap_err().kind(),
            ErrorKind::InvalidConfig
        );
    }

    #[test]
    fn an_invalid_membership_is_not_stored() {
        let dir = tempfile::tempdir().unwrap();
        let keypair = Keypair::from_seed(&[3; 32]);
        let minute = Duration::from_secs(60);
        let invalid = Invite::write(&keypair, "home", None, vec!["nowhere".to_owned()], minute).unwrap();
        assert_eq!(
            resolve(dir.path(), &request(None, false, Some(&invalid)), "main").unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
        let bad_name = invite("No Name", None, 60);
        assert_eq!(
            resolve(dir.path(), &request(None, false, Some(&bad_name)), "main").unwrap_err().kind(),
            ErrorKind::InvalidConfig
        );
        assert_eq!(
            resolve(dir.path(), &request(Some("No Name"), true, None), "main").unwrap_err().kind(),
            ErrorKind::InvalidConfig
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_file_is_an_error_and_stays_unchanged() {
        let dir = tempfile::tempdir().unwrap();
        resolve(dir.path(), &request(None, true, None), "main").unwrap();
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for bytes in [&whole[..whole.len() - 1], b"", b"something else", &vec![0; MAX_BYTES + 1]] {
            std::fs::write(&path, bytes).unwrap();
            let refused = resolve(dir.path(), &request(None, true, None), "main").unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidConfig);
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
    }
}
