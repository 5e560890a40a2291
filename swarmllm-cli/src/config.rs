//! Configuration. Precedence: flags, `SWARMLLM_*` variables, `config.toml`, defaults. Unknown keys are errors.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Map, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::{Deserialize, Deserializer, Serialize};
use swarmllm_core::base::ErrorKind;
use swarmllm_core::node::KvType;
use swarmllm_core::server::{DEFAULT_PORT, ServerConfig};

use crate::failure::Failure;
use crate::units::parse_bytes;

/// The file in the data directory.
const FILE: &str = "config.toml";
/// Prefix of variables.
const PREFIX: &str = "SWARMLLM_";
/// This key locates `config.toml`, so it cannot be in it.
const DATA_DIR_KEY: &str = "data_dir";
/// Prefix of variables of the project's tests, which are not configuration.
const TEST_PREFIX: &str = "test_";
/// Keys whose variables are text, even if it looks like a number.
const TEXTS: [&str; 6] = ["network", "engine", "api_key", "hub", "hub_token", "chat_template"];
/// Keys whose variables are lists, separated by commas.
const LISTS: [&str; 4] = ["bootstrap", "listen", "external", "allowed_hosts"];
/// P2P TCP listens this far above the HTTP port.
const P2P_OFFSET: u16 = 10;

/// The settings. `None` is the library's default.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// HTTP on TCP `port`, P2P on TCP `port` + 10 and QUIC on UDP `port`; 0 takes free ports.
    pub port: u16,
    /// Whether `run` serves HTTP.
    pub http: bool,
    /// Address that HTTP listens on.
    pub http_address: IpAddr,
    /// API key of HTTP.
    pub api_key: Option<String>,
    /// Further host names of this machine for HTTP.
    pub allowed_hosts: Vec<String>,
    /// P2P addresses, instead of those derived from `port`.
    pub listen: Option<Vec<String>>,
    pub network: Option<String>,
    /// Whether to create a private swarm unless the data directory belongs to one.
    pub private: bool,
    pub bootstrap: Vec<String>,
    pub mdns: bool,
    /// Whether to relay connections for peers behind NAT.
    pub relay: bool,
    /// External addresses, beside those that the node listens on.
    pub external: Vec<String>,
    /// Whether to ask the router to forward ports.
    pub upnp: bool,
    /// Limit of bytes per second on the network; a number, or text like `2MiB`.
    #[serde(default, deserialize_with = "size")]
    pub max_traffic: Option<u64>,
    /// Whether `run` computes for peers.
    pub serve: bool,
    pub threads: Option<u32>,
    pub gpu_layers: Option<u32>,
    /// Whether to keep the cores awake while computing steps for remote peers.
    pub keep_awake: bool,
    /// Bytes, or text like `8GiB`.
    #[serde(default, deserialize_with = "size")]
    pub memory: Option<u64>,
    /// Disk budget for shards.
    #[serde(default, deserialize_with = "size")]
    pub max_disk: Option<u64>,
    /// Disk up to which the node fetches shards that its swarm has too few copies of.
    #[serde(default, deserialize_with = "size")]
    pub place: Option<u64>,
    /// Limit of bytes per second from the web.
    #[serde(default, deserialize_with = "size")]
    pub download_rate: Option<u64>,
    /// The hub of `hf:` addresses, or a mirror of it.
    pub hub: Option<String>,
    /// Token for restricted files of the hub. It has no flag, because the process list would show it.
    pub hub_token: Option<String>,
    pub context: Option<u32>,
    pub sessions: Option<u32>,
    pub kv: Option<KvName>,
    /// Credits that a peer may owe.
    pub credit_limit: Option<u64>,
    pub engine: Option<String>,
    /// File with a chat template that replaces the models' own.
    pub chat_template: Option<PathBuf>,
}

/// Names of the KV cache formats in files and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
pub enum KvName {
    #[serde(rename = "full")]
    Full,
    #[serde(rename = "q8_0")]
    #[value(name = "q8_0")]
    Q8,
}

impl From<KvName> for KvType {
    fn from(name: KvName) -> Self {
        match name {
            KvName::Full => KvType::Full,
            KvName::Q8 => KvType::Q8,
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

/// The settings given by flags.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Flags {
    pub port: Option<u16>,
    pub http: Option<bool>,
    pub http_address: Option<IpAddr>,
    pub listen: Option<Vec<String>>,
    pub network: Option<String>,
    pub private: Option<bool>,
    pub bootstrap: Option<Vec<String>>,
    pub mdns: Option<bool>,
    pub relay: Option<bool>,
    pub external: Option<Vec<String>>,
    pub upnp: Option<bool>,
    pub max_traffic: Option<u64>,
    pub serve: Option<bool>,
    pub threads: Option<u32>,
    pub gpu_layers: Option<u32>,
    pub keep_awake: Option<bool>,
    pub memory: Option<u64>,
    pub place: Option<u64>,
    pub max_disk: Option<u64>,
    pub download_rate: Option<u64>,
    pub context: Option<u32>,
    pub sessions: Option<u32>,
    pub kv: Option<KvName>,
    pub credit_limit: Option<u64>,
    pub engine: Option<String>,
    pub chat_template: Option<PathBuf>,
}

impl Flags {
    /// The given flags by key.
    fn given(&self) -> Result<Dict, Box<figment::Error>> {
        let Value::Dict(_, all) = Value::serialize(self)? else { return Ok(Dict::new()) };
        Ok(all.into_iter().filter(|(_, value)| !matches!(value, Value::Empty(..))).collect())
    }
}

/// A size: a number, or text with a unit.
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

/// Variables; keys are in lower case, without prefix.
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
            // Figment's own parser does not fail: it reads anything else as text.
            _ => text.parse().unwrap_or_else(|_| Value::from(text)),
        };
        let dict = self.0.iter().map(|(key, text)| (key.clone(), value(key, text))).collect();
        Ok(Profile::Default.collect(dict))
    }
}

impl Settings {
    /// Reads all sources. `variables` are those of the process.
    pub fn load(
        data_dir: &Path,
        variables: impl Iterator<Item = (String, String)>,
        flags: &Flags,
    ) -> Result<Self, Failure> {
        let file = data_dir.join(FILE);
        let mut layers = Figment::from(Serialized::defaults(Settings::default()));
        // An existing file without access is read too, to fail with its reason.
        if file.try_exists().unwrap_or(true) {
            layers = layers.merge(Toml::file_exact(file));
        }
        let invalid = |error: figment::Error| Failure::new(ErrorKind::InvalidConfig, error.to_string());
        let flags = flags.given().map_err(|error| invalid(*error))?;
        let layers = layers.merge(Variables::new(variables)).merge(Serialized::defaults(flags));
        layers.extract().map_err(invalid)
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
                let message = format!("port {port} is too high: P2P uses port + {P2P_OFFSET}; choose a lower port");
                Failure::new(ErrorKind::InvalidConfig, message)
            }),
        }
    }

    /// Configuration of the HTTP server.
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
    fn without_sources_the_defaults_apply() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::load(dir.path(), std::iter::empty(), &Flags::default());
        assert!(settings.ok() == Some(Settings::default()));
    }

    #[test]
    fn flags_precede_variables_and_variables_the_file() {
        let toml = "port = 1\nthreads = 1\nnetwork = \"file\"\nmdns = false\n";
        let variables = [("SWARMLLM_PORT", "2"), ("SWARMLLM_THREADS", "2"), ("OTHER_PORT", "9")];
        let settings = load(toml, &variables, Flags { port: Some(3), ..Flags::default() }).unwrap();
        assert_eq!((settings.port, settings.threads), (3, Some(2)));
        assert_eq!((settings.network.as_deref(), settings.mdns, settings.serve), (Some("file"), false, true));
    }

    #[test]
    fn unknown_keys_are_errors_with_key_and_source() {
        let file = load("prot = 1", &[], Flags::default()).err().unwrap();
        assert!(file.message.contains("prot") && file.message.contains(FILE), "{}", file.message);
        let variable = load("", &[("SWARMLLM_PROT", "1")], Flags::default()).err().unwrap();
        assert!(variable.message.contains("prot"), "{}", variable.message);
        assert_eq!(variable.kind, ErrorKind::InvalidConfig);
        assert!(load("port = ", &[], Flags::default()).is_err());
        assert!(load("port = 70000", &[], Flags::default()).is_err());
    }

    #[test]
    fn variables_have_the_types_of_their_keys() {
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
    fn all_ports_follow_from_port() {
        let listen = |port| Settings { port, ..Settings::default() }.p2p_listen();
        assert_eq!(listen(8800).ok().unwrap(), ["/ip4/0.0.0.0/tcp/8810", "/ip4/0.0.0.0/udp/8800/quic-v1"]);
        assert_eq!(listen(0).ok().unwrap(), ["/ip4/0.0.0.0/tcp/0", "/ip4/0.0.0.0/udp/0/quic-v1"]);
        assert!(listen(65530).is_err());
        assert_eq!(Settings { port: 9000, ..Settings::default() }.server().listen[0].port(), 9000);
    }
}
