//! Configuration in layers: flags over `SWARMLLM_*` variables over `config.toml` over defaults. Unknown keys are
//! errors.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Deserializer, Serialize};
use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::KvCache;
use swarmllm_core::server::{DEFAULT_PORT, ServerConfig};

use crate::failure::Failure;
use crate::units::parse_bytes;

/// Name of the file in the data directory.
const FILE: &str = "config.toml";
/// What our variables begin with.
const PREFIX: &str = "SWARMLLM_";
/// Says where `config.toml` is, so it cannot be in it.
const DATA_DIR_KEY: &str = "data_dir";
/// Variables of our own tests, which are no configuration.
const TEST_PREFIX: &str = "test_";
/// Keys whose variables are text as it stands, even where it looks like a number.
const TEXTS: [&str; 6] = ["network", "engine", "api_key", "hub", "hub_token", "chat_template"];
/// Keys whose variables are lists, separated by commas.
const LISTS: [&str; 4] = ["bootstrap", "listen", "external", "allowed_hosts"];
/// P2P TCP listens this far above the HTTP port.
const P2P_OFFSET: u16 = 10;

/// What the command line can be configured with. `None` leaves the choice to the library.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// HTTP on TCP `port`, P2P on TCP `port` + 10 and QUIC on UDP `port`; 0 takes free ports.
    pub port: u16,
    /// Whether `run` serves HTTP.
    pub http: bool,
    /// Where HTTP listens.
    pub http_address: IpAddr,
    /// Key that HTTP asks for.
    pub api_key: Option<String>,
    /// Names of this machine for HTTP beside localhost.
    pub allowed_hosts: Vec<String>,
    /// P2P addresses, instead of the ones that follow from `port`.
    pub listen: Option<Vec<String>>,
    pub network: Option<String>,
    /// Whether to found a private swarm where the data directory belongs to none.
    pub private: bool,
    pub bootstrap: Vec<String>,
    pub mdns: bool,
    /// Whether to carry circuits for peers that nobody can connect to.
    pub relay: bool,
    /// Addresses under which others reach this node beside those that it listens on.
    pub external: Vec<String>,
    /// Whether to ask the router to forward ports.
    pub upnp: bool,
    /// Most bytes a second that may go over the wire; a number, or text like `2MiB`.
    #[serde(default, deserialize_with = "size")]
    pub max_traffic: Option<u64>,
    /// Whether `run` computes for others.
    pub serve: bool,
    pub threads: Option<u32>,
    pub gpu_layers: Option<u32>,
    /// Whether to keep the cores awake while steps come from afar.
    pub keep_awake: bool,
    /// Bytes, or text like `8GiB`.
    #[serde(default, deserialize_with = "size")]
    pub memory: Option<u64>,
    /// Most bytes of shards on the disk.
    #[serde(default, deserialize_with = "size")]
    pub max_disk: Option<u64>,
    /// Disk up to which the node fetches by itself what its swarm is short of.
    #[serde(default, deserialize_with = "size")]
    pub place: Option<u64>,
    /// Most bytes a second from the web.
    #[serde(default, deserialize_with = "size")]
    pub download_rate: Option<u64>,
    /// The hub that `hf:` addresses are of, or a mirror of it.
    pub hub: Option<String>,
    /// A token for files of the hub that not everybody may have. No flag: others would see it in the list of processes.
    pub hub_token: Option<String>,
    pub context: Option<u32>,
    pub sessions: Option<u32>,
    pub kv: Option<KvName>,
    /// Credits that a peer may owe.
    pub credit_limit: Option<u64>,
    pub engine: Option<String>,
    /// File with a chat template in the place of those that models have.
    pub chat_template: Option<PathBuf>,
}

/// How keys and values are kept, by the names that files and flags use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum KvName {
    #[serde(rename = "full")]
    Full,
    #[serde(rename = "q8_0")]
    #[value(name = "q8_0")]
    Q8,
}

impl From<KvName> for KvCache {
    fn from(name: KvName) -> Self {
        match name {
            KvName::Full => KvCache::Full,
            KvName::Q8 => KvCache::Q8,
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            port: DEFAULT_PORT,
            http: true,
            http_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            api_key: None,
            allowed_hosts: Vec::new(),
            listen: None,
            network: None,
            private: false,
            bootstrap: Vec::new(),
            mdns: true,
            relay: false,
            external: Vec::new(),
            upnp: false,
            max_traffic: None,
            serve: true,
            threads: None,
            gpu_layers: None,
            keep_awake: false,
            memory: None,
            max_disk: None,
            place: None,
            download_rate: None,
            hub: None,
            hub_token: None,
            context: None,
            sessions: None,
            kv: None,
            credit_limit: None,
            engine: None,
            chat_template: None,
        }
    }
}

/// The settings that flags gave.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Flags {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub private: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bootstrap: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mdns: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub relay: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upnp: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_traffic: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serve: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_layers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_awake: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_disk: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download_rate: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub context: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv: Option<KvName>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credit_limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<PathBuf>,
}

/// A size may be a number or text with a unit.
#[derive(Deserialize)]
#[serde(untagged)]
enum Size {
    Bytes(u64),
    Text(String),
}

fn size<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u64>, D::Error> {
    match Option::<Size>::deserialize(value)? {
        None => Ok(None),
        Some(Size::Bytes(bytes)) => Ok(Some(bytes)),
        Some(Size::Text(text)) => parse_bytes(&text).map(Some).map_err(serde::de::Error::custom),
    }
}

/// Variables, their keys in lower case and without prefix.
struct Variables(Vec<(String, String)>);

impl Variables {
    fn new(all: impl Iterator<Item = (String, String)>) -> Self {
        let ours = all.filter_map(|(name, text)| Some((name.strip_prefix(PREFIX)?.to_ascii_lowercase(), text)));
        Self(ours.filter(|(key, _)| key != DATA_DIR_KEY && !key.starts_with(TEST_PREFIX)).collect())
    }
}

impl Provider for Variables {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment variable(s)")
            .interpolater(|_, keys| format!("{PREFIX}{}", keys.join("_").to_ascii_uppercase()))
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        let value = |key: &str, text: &str| match key {
            _ if TEXTS.contains(&key) => Value::from(text),
            _ if LISTS.contains(&key) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Value::from(parts.map(Value::from).collect::<Vec<_>>())
            }
            // Figment's own reading never fails: what is nothing else is text.
            _ => text.parse().unwrap_or_else(|_| Value::from(text)),
        };
        let dict = self.0.iter().map(|(key, text)| (key.clone(), value(key, text))).collect();
        Ok(Profile::Default.collect(dict))
    }
}

impl Settings {
    /// Reads every layer. `variables` are the process's.
    pub fn load(
        data_dir: &Path,
        variables: impl Iterator<Item = (String, String)>,
        flags: &Flags,
    ) -> Result<Self, Failure> {
        let file = data_dir.join(FILE);
        let mut layers = Figment::from(Serialized::defaults(Settings::default()));
        // One that is there but cannot be seen is read all the same, to fail with its reason.
        if file.try_exists().unwrap_or(true) {
            layers = layers.merge(Toml::file_exact(file));
        }
        let layers = layers.merge(Variables::new(variables)).merge(Serialized::defaults(flags));
        layers.extract().map_err(|error| Failure::new(ErrorKind::InvalidConfig, error.to_string()))
    }

    /// P2P addresses of `run`.
    pub fn p2p_listen(&self) -> Result<Vec<String>, Failure> {
        if let Some(listen) = &self.listen {
            return Ok(listen.clone());
        }
        Ok(vec![format!("/ip4/0.0.0.0/tcp/{}", self.p2p_port()?), format!("/ip4/0.0.0.0/udp/{}/quic-v1", self.port)])
    }

    /// Port of P2P over TCP.
    pub fn p2p_port(&self) -> Result<u16, Failure> {
        match self.port {
            0 => Ok(0),
            port => port.checked_add(P2P_OFFSET).ok_or_else(|| {
                let message = format!("port {port} leaves no room for P2P at port + {P2P_OFFSET}; choose a lower one");
                Failure::new(ErrorKind::InvalidConfig, message)
            }),
        }
    }

    /// How HTTP is served.
    pub fn server(&self) -> ServerConfig {
        ServerConfig {
            listen: vec![SocketAddr::new(self.http_address, self.port)],
            api_key: self.api_key.clone(),
            allowed_hosts: self.allowed_hosts.clone(),
            ..ServerConfig::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(toml: &str, variables: &[(&str, &str)], flags: Flags) -> Result<Settings, Failure> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), toml).unwrap();
        let variables = variables.iter().map(|(name, text)| (name.to_string(), text.to_string()));
        Settings::load(dir.path(), variables, &flags)
    }

    #[test]
    fn without_anything_the_defaults_hold() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::load(dir.path(), std::iter::empty(), &Flags::default());
        assert!(settings.ok() == Some(Settings::default()));
    }

    #[test]
    fn flags_beat_variables_and_those_beat_the_file() {
        let toml = "port = 1\nthreads = 1\nnetwork = \"file\"\nmdns = false\n";
        let variables = [("SWARMLLM_PORT", "2"), ("SWARMLLM_THREADS", "2"), ("OTHER_PORT", "9")];
        let settings = load(toml, &variables, Flags { port: Some(3), ..Flags::default() }).unwrap();
        assert_eq!((settings.port, settings.threads), (3, Some(2)));
        assert_eq!((settings.network.as_deref(), settings.mdns, settings.serve), (Some("file"), false, true));
    }

    #[test]
    fn unknown_keys_are_errors_that_name_key_and_place() {
        let file = load("prot = 1", &[], Flags::default()).err().unwrap();
        assert!(file.message.contains("prot") && file.message.contains(FILE), "{}", file.message);
        let variable = load("", &[("SWARMLLM_PROT", "1")], Flags::default()).err().unwrap();
        assert!(variable.message.contains("prot"), "{}", variable.message);
        assert_eq!(variable.kind, ErrorKind::InvalidConfig);
        assert!(load("port = ", &[], Flags::default()).is_err());
        assert!(load("port = 70000", &[], Flags::default()).is_err());
    }

    #[test]
    fn variables_are_read_as_their_keys_mean_them() {
        let variables = [
            ("SWARMLLM_NETWORK", "007"),
            ("SWARMLLM_API_KEY", "1234567890123456"),
            ("SWARMLLM_BOOTSTRAP", "/ip4/1.2.3.4/tcp/1, /ip4/1.2.3.4/tcp/2"),
            ("SWARMLLM_MEMORY", "2GiB"),
            ("SWARMLLM_MAX_DISK", "100GB"),
            ("SWARMLLM_HUB_TOKEN", "12345"),
            ("SWARMLLM_HTTP", "false"),
            ("SWARMLLM_HTTP_ADDRESS", "0.0.0.0"),
            ("SWARMLLM_DATA_DIR", "/somewhere"),
            ("SWARMLLM_TEST_SMOLLM2", "/a/model"),
        ];
        let settings = load("memory = 1024", &variables, Flags::default()).unwrap();
        assert_eq!(settings.network.as_deref(), Some("007"));
        assert_eq!(settings.api_key.as_deref(), Some("1234567890123456"));
        assert_eq!(settings.bootstrap, ["/ip4/1.2.3.4/tcp/1", "/ip4/1.2.3.4/tcp/2"]);
        assert_eq!((settings.memory, settings.http), (Some(2 << 30), false));
        assert_eq!((settings.max_disk, settings.hub_token.as_deref()), (Some(100_000_000_000), Some("12345")));
        assert!(settings.http_address.is_unspecified());
    }

    #[test]
    fn one_port_shifts_all() {
        let listen = |port| Settings { port, ..Settings::default() }.p2p_listen();
        assert_eq!(listen(8800).ok().unwrap(), ["/ip4/0.0.0.0/tcp/8810", "/ip4/0.0.0.0/udp/8800/quic-v1"]);
        assert_eq!(listen(0).ok().unwrap(), ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"]);
        assert!(listen(65530).is_err());
        assert_eq!(Settings { port: 9000, ..Settings::default() }.server().listen[0].port(), 9000);
    }
}
