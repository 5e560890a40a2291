//! What can be typed.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Args, Parser, Subcommand};
use swarmllm_core::base::LayerRange;
use swarmllm_core::node::{Codec, MAX_SESSIONS, Parts, WebSource};

use crate::config::{Flags, KvName};
use crate::units::parse_bytes;

#[derive(Debug, Parser)]
#[command(
    name = "swarmllm",
    version,
    about = "Answers from a large model, computed by machines none of which holds it"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Print JSON, errors included
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more, to stderr; repeat for more. RUST_LOG is honoured
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Directory for key, models, store and config.toml [env: SWARMLLM_DATA_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node until it is told to stop: hold and compute layers, serve HTTP
    Run(RunArgs),
    /// Ask a model, once or in turns
    Chat(ChatArgs),
    /// Cut a GGUF, from here or from the web, into shards and keep some of them here
    Import(ImportArgs),
    /// Tell what of a GGUF cannot run here, without importing it
    Examine(ExamineArgs),
    /// Fetch shards of a model from peers
    Pull(PullArgs),
    /// List the models held here
    Models,
    /// Give a model an alias
    Alias(AliasArgs),
    /// Take an alias away
    Unalias(UnaliasArgs),
    /// Remove a model from this machine, and say how much disk that frees
    Remove(RemoveArgs),
    /// Keep a model, whatever else goes where room is made
    Pin(PinArgs),
    /// Take a pin back
    Unpin(PinArgs),
    /// Tell which machines would answer, and how fast
    Plan(PlanArgs),
    /// List the peers that can be found
    Peers(PeersArgs),
    /// Tell who owes whom for what was computed
    Balances(BalancesArgs),
    /// Write an invite to this node's swarm, for another machine's `join`
    Invite(InviteArgs),
    /// Enter the swarm of an invite, and stay in it
    Join(JoinArgs),
    /// Check what would keep this machine from taking part
    Doctor,
}

/// Arguments of `invite`.
#[derive(Debug, Args)]
pub struct InviteArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Days for which the invite is good
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pub days: u32,
}

/// Arguments of `join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The invite, as `swarmllm invite` wrote it; `-` reads it from stdin, so that no other user of the machine and no
    /// history of the shell sees it
    pub invite: String,
}

/// Arguments of `alias`.
#[derive(Debug, Args)]
pub struct AliasArgs {
    /// Name, id, or the unique beginning of either; of an id at least 8 digits
    pub model: String,
    /// What the model is called here from now on, beside the names that it has
    pub alias: String,
    /// Take the alias from the model that has it
    #[arg(long = "move")]
    pub moves: bool,
}

/// Arguments of `unalias`.
#[derive(Debug, Args)]
pub struct UnaliasArgs {
    /// The alias
    pub alias: String,
}

/// Arguments of `remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Name or id, or the unique beginning of the id: at least 8 digits
    pub model: String,
}

/// Arguments of `pin` and `unpin`.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Name, id, or the unique beginning of either; of an id at least 8 digits
    pub model: String,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Name, id, or the unique beginning of either; of an id at least 8 digits
    pub model: String,
    #[command(flatten)]
    pub meet: MeetArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// Arguments of `balances`.
#[derive(Debug, Args)]
pub struct BalancesArgs {
    /// Name of the swarm
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
}

/// How a node is set up; each flag has a key in config.toml and a SWARMLLM_ variable.
#[derive(Debug, Default, Args)]
pub struct NodeArgs {
    /// Name of the swarm
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// Found a private swarm, which only nodes with an invite can enter, where the data directory belongs to none
    #[arg(long)]
    pub private: bool,
    /// Peer to dial at start and again when lost, as /ip4/../tcp/../p2p/..; may be repeated. Without an address: be one to
    /// others, that is --relay and --no-serve
    #[arg(long, value_name = "ADDR", num_args = 0..=1, default_missing_value = "")]
    pub bootstrap: Vec<String>,
    /// Carry circuits for peers that nobody can connect to, without being able to read them
    #[arg(long)]
    pub relay: bool,
    /// Address under which others reach this node although it does not listen there; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub external: Vec<String>,
    /// Ask the router to forward this node's ports
    #[arg(long)]
    pub upnp: bool,
    /// Most bytes a second over the wire, both ways together, as 2MiB or in bytes [default: no ceiling]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_traffic: Option<u64>,
    /// P2P address to listen on, as /ip4/../tcp/..; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// Do not look for peers on the LAN
    #[arg(long)]
    pub no_mdns: bool,
    /// Compute threads
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: Option<u32>,
    /// Layers that accelerators compute, of all models together [default: all]
    #[arg(long, value_name = "N")]
    pub gpu_layers: Option<u32>,
    /// Keep the cores awake while steps come from afar: faster tokens, more power
    #[arg(long)]
    pub keep_awake: bool,
    /// Memory for weights and KV, as 8GiB or in bytes
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Most disk that shards may take here, as 100GiB or in bytes [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_disk: Option<u64>,
    /// Fetch by itself what the swarm is short of, up to this much disk, as 100GiB or in bytes [default: fetch nothing unasked]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub place: Option<u64>,
    /// Positions of a session, prompt and answer together [default: the model's own as far as the memory allows, 512 at least]
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub context: Option<u32>,
    /// Sessions that a stage computes at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SESSIONS)))]
    pub sessions: Option<u32>,
    /// How keys and values are kept: full, or q8_0 in about half of the memory, without exact answers
    #[arg(long, value_enum, value_name = "NAME")]
    pub kv: Option<KvName>,
    /// Credits that a peer may owe before it is not computed for any more [default: no limit]
    #[arg(long, value_name = "N")]
    pub credit_limit: Option<u64>,
    /// Engine: llama.cpp or candle
    #[arg(long, value_name = "NAME")]
    pub engine: Option<String>,
    /// Chat template (Jinja) in the place of the model's own
    #[arg(long, value_name = "FILE")]
    pub chat_template: Option<PathBuf>,
}

impl NodeArgs {
    /// The flags that were given.
    pub fn flags(&self) -> Flags {
        let given = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
        let mut bootstrap = self.bootstrap.clone();
        bootstrap.retain(|address| !address.is_empty());
        let is_bootstrap = bootstrap.len() < self.bootstrap.len();
        Flags {
            network: self.network.clone(),
            private: self.private.then_some(true),
            bootstrap: given(&bootstrap),
            relay: (self.relay || is_bootstrap).then_some(true),
            external: given(&self.external),
            upnp: self.upnp.then_some(true),
            max_traffic: self.max_traffic,
            serve: is_bootstrap.then_some(false),
            listen: given(&self.listen),
            mdns: self.no_mdns.then_some(false),
            threads: self.threads,
            gpu_layers: self.gpu_layers,
            keep_awake: self.keep_awake.then_some(true),
            memory: self.memory,
            max_disk: self.max_disk,
            place: self.place,
            context: self.context,
            sessions: self.sessions,
            kv: self.kv,
            credit_limit: self.credit_limit,
            engine: self.engine.clone(),
            chat_template: self.chat_template.clone(),
            ..Flags::default()
        }
    }
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// HTTP on TCP N, P2P on TCP N+10 and QUIC on UDP N; 0 takes free ports [default: 8800]
    #[arg(long, value_name = "N")]
    pub port: Option<u16>,
    /// Do not serve HTTP
    #[arg(long)]
    pub no_http: bool,
    /// Address that HTTP listens on; one that others can reach needs api_key in config.toml or SWARMLLM_API_KEY
    /// [default: 127.0.0.1]
    #[arg(long, value_name = "IP")]
    pub http_address: Option<std::net::IpAddr>,
    /// Do not compute for others
    #[arg(long)]
    pub no_serve: bool,
    /// Write an invite, good for so many days, when ready
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..))]
    pub invite: Option<u32>,
}

impl RunArgs {
    /// The flags that were given.
    pub fn flags(&self) -> Flags {
        let node = self.node.flags();
        Flags {
            port: self.port,
            http: self.no_http.then_some(false),
            http_address: self.http_address,
            serve: self.no_serve.then_some(false).or(node.serve),
            ..node
        }
    }
}

/// How a command of its own node finds the others.
#[derive(Debug, Args)]
pub struct MeetArgs {
    /// Peer to connect to, as /ip4/../tcp/../p2p/..; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub peer: Vec<String>,
    /// Seconds to wait until peers make it possible
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub wait: u32,
}

#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Name, id, or the unique beginning of either; of an id at least 8 digits
    pub model: String,
    /// Question; without it, each line of stdin is one
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// What the model is told before
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Longest answer, in tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// 0 always takes the likeliest token
    #[arg(long, value_name = "X")]
    pub temperature: Option<f32>,
    /// Choose among the N likeliest tokens only
    #[arg(long, value_name = "N")]
    pub top_k: Option<u32>,
    /// Choose among the likeliest tokens of this probability together
    #[arg(long, value_name = "X")]
    pub top_p: Option<f32>,
    /// Makes the choice repeatable
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Answer token for token as a plain run of the whole model, whoever else is answered meanwhile
    #[arg(long)]
    pub exact: bool,
    /// Have other hosts follow the stages, where some can, so that one goes on where a stage's host is lost
    #[arg(long)]
    pub stand_by: bool,
    /// How hidden states travel between hosts: rounded they are shorter, not with --exact
    #[arg(long, value_name = "f32|bf16|int8")]
    pub wire: Option<Codec>,
    /// Model that guesses ahead: a smaller one with the same vocabulary, held here as a whole
    #[arg(long, value_name = "MODEL")]
    pub draft: Option<String>,
    /// JSON schema that the answer has to satisfy
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
    /// Text that ends the answer; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Continue the text as it is, without a chat template: for models that have none
    #[arg(long, conflicts_with_all = ["system", "chat_template", "template_arg", "think", "no_think", "tools", "documents", "parse_content"])]
    pub raw: bool,
    /// Variable of the chat template; the value is JSON (true, 3, "x", [1]), or else a text; may be repeated
    #[arg(long, value_name = "NAME=JSON")]
    pub template_arg: Vec<TemplateArg>,
    /// Have the model think before it answers, where its template can choose: --template-arg enable_thinking=true
    #[arg(long, conflicts_with = "no_think")]
    pub think: bool,
    /// Have it answer at once, where its template can choose
    #[arg(long)]
    pub no_think: bool,
    /// JSON list of tools for the chat template, in OpenAI's shape; a call that the model writes is shown as it writes it
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,
    /// JSON list of documents for the chat template
    #[arg(long, value_name = "FILE")]
    pub documents: Option<PathBuf>,
    /// Read control tokens in messages and inputs too, instead of as plain text: a text can then forge turns
    #[arg(long)]
    pub parse_content: bool,
    #[command(flatten)]
    pub meet: MeetArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// GGUF file, its address (https://..), or its place in a hub as hf:owner/repo/path/file.gguf[@revision]; of a model in
    /// several files any part, as NAME-00001-of-00003.gguf
    pub source: PathBuf,
    /// Alias of the model here, beside those that it has; `swarmllm alias --move` takes one that another model has
    #[arg(long)]
    pub name: Option<String>,
    /// Import a model that cannot run here all the same, to keep it for others
    #[arg(long)]
    pub anyway: bool,
    /// Keep these layers, and the head if asked: A..B or A..B,head; may be repeated. Default: everything
    #[arg(long, value_name = "A..B[,head]")]
    pub layers: Vec<StageArg>,
    /// Keep metadata and embedding: what a node that asks needs
    #[arg(long)]
    pub coordinator: bool,
    /// Bytes a second at which it comes from the web at most, as 10MiB or in bytes [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub download_rate: Option<u64>,
    /// Most disk that shards may take here, as 100GiB or in bytes [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_disk: Option<u64>,
}

/// Arguments of `examine`.
#[derive(Debug, Args)]
pub struct ExamineArgs {
    /// GGUF file, address, or place in a hub, as for `import`
    pub source: PathBuf,
    /// Layers that would be kept, as for `import`: a node that keeps layers alone needs no tokenizer
    #[arg(long, value_name = "A..B[,head]")]
    pub layers: Vec<StageArg>,
    /// Ask for a node that keeps metadata and embedding too
    #[arg(long)]
    pub coordinator: bool,
}

impl ExamineArgs {
    /// The address, where it is one.
    pub fn address(&self) -> Option<&str> {
        self.source.to_str().filter(|text| WebSource::is_address(text))
    }

    /// What would be kept; `None` is everything.
    pub fn parts(&self) -> Option<Vec<Parts>> {
        let parts = parts(self.coordinator, &self.layers);
        (!parts.is_empty()).then_some(parts)
    }
}

impl ImportArgs {
    /// The flags that were given.
    pub fn flags(&self) -> Flags {
        Flags { download_rate: self.download_rate, max_disk: self.max_disk, ..Flags::default() }
    }

    /// The address, where it is one.
    pub fn address(&self) -> Option<&str> {
        self.source.to_str().filter(|text| WebSource::is_address(text))
    }

    /// What to keep; `None` is everything.
    pub fn parts(&self) -> Option<Vec<Parts>> {
        let parts = parts(self.coordinator, &self.layers);
        (!parts.is_empty()).then_some(parts)
    }
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// Name, id, or the unique beginning of either; of an id at least 8 digits
    pub model: String,
    /// Fetch these layers; default: everything
    #[arg(long, value_name = "A..B")]
    pub layers: Option<StageArg>,
    /// Fetch the head too
    #[arg(long, requires = "layers")]
    pub head: bool,
    /// Fetch metadata and embedding: what a node that asks needs
    #[arg(long)]
    pub coordinator: bool,
    /// Fetch from its GGUF on the web too, as https://.. or hf:owner/repo/path/file.gguf[@revision]
    #[arg(long, value_name = "ADDR")]
    pub url: Option<String>,
    /// Bytes a second at which it comes from the web at most, as 10MiB or in bytes [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub download_rate: Option<u64>,
    #[command(flatten)]
    pub meet: MeetArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

impl PullArgs {
    /// The flags that were given.
    pub fn flags(&self) -> Flags {
        Flags { download_rate: self.download_rate, ..self.node.flags() }
    }

    /// What to fetch, one after the other.
    pub fn parts(&self) -> Vec<Parts> {
        let stage = self.layers.map(|stage| StageArg { head: stage.head || self.head, ..stage });
        match parts(self.coordinator, stage.as_slice()) {
            parts if parts.is_empty() => vec![Parts::All],
            parts => parts,
        }
    }
}

fn parts(coordinator: bool, stages: &[StageArg]) -> Vec<Parts> {
    let stages = stages.iter().map(|stage| Parts::Stage { layers: stage.layers, head: stage.head });
    coordinator.then_some(Parts::Coordinator).into_iter().chain(stages).collect()
}

#[derive(Debug, Args)]
pub struct PeersArgs {
    /// Peer to connect to first; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub peer: Vec<String>,
    /// Seconds to look around
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    pub wait: u32,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// A variable of a chat template, `NAME=JSON`.
#[derive(Debug, Clone, PartialEq)]
pub struct TemplateArg {
    pub name: String,
    pub value: serde_json::Value,
}

impl FromStr for TemplateArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or("write it as NAME=JSON")?;
        Ok(Self { name: name.to_owned(), value: json_or_text(value)? })
    }
}

/// Reads JSON, or takes a text. What was certainly meant to be JSON is no text: a template takes any text for true.
fn json_or_text(value: &str) -> Result<serde_json::Value, String> {
    let cause = match serde_json::from_str(value) {
        Ok(json) => return Ok(json),
        Err(cause) => cause,
    };
    let word = match value {
        "None" => Some("null"),
        other => ["true", "false", "null"].into_iter().find(|word| other.eq_ignore_ascii_case(word)),
    };
    match word {
        Some(word) => Err(format!("JSON writes `{value}` as `{word}`; the text would be `\"{value}\"`")),
        None if value.trim_start().starts_with(['{', '[', '"']) => Err(format!(
            "it begins as JSON and is none: {cause}; put JSON into single quotes, so that the shell leaves it as it is"
        )),
        None => Ok(value.into()),
    }
}

/// Layers of one stage, `A..B` or `A..B,head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageArg {
    pub layers: LayerRange,
    pub head: bool,
}

impl FromStr for StageArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (range, head) = match text.split_once(',') {
            Some((range, "head")) => (range, true),
            Some((_, other)) => return Err(format!("`{other}` is not `head`")),
            None => (text, false),
        };
        let (start, end) = range.split_once("..").ok_or("write layers as A..B, B excluded, like 0..10")?;
        let number = |text: &str| text.parse::<u32>().map_err(|_| format!("`{text}` is not a layer's number"));
        let layers = LayerRange::new(number(start)?, number(end)?);
        if layers.is_empty() {
            return Err("the range is empty: B is excluded, so 0..10 are layers 0 to 9".to_owned());
        }
        Ok(Self { layers, head })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(["swarmllm"].into_iter().chain(line.split_whitespace())).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bootstrap_names_a_peer_or_makes_the_node_one() {
        let flags = |line| match parse(line) {
            Ok(Command::Run(run)) => run.flags(),
            other => panic!("{other:?}"),
        };
        let one = flags("run --bootstrap --external /dns4/a.example/tcp/1");
        assert_eq!((one.relay, one.serve, one.bootstrap), (Some(true), Some(false), None));
        assert_eq!(one.external, Some(vec!["/dns4/a.example/tcp/1".to_owned()]));
        let known = flags("run --bootstrap /ip4/10.0.0.1/tcp/1");
        assert_eq!((known.relay, known.serve), (None, None));
        assert_eq!(known.bootstrap.map(|peers| peers.len()), Some(1));
    }

    #[test]
    fn a_range_of_layers_is_read_and_anything_else_refused() {
        let layers = LayerRange::new(0, 10);
        assert_eq!("0..10".parse::<StageArg>(), Ok(StageArg { layers, head: false }));
        assert_eq!("0..10,head".parse::<StageArg>(), Ok(StageArg { layers, head: true }));
        for bad in ["", "3", "3..3", "4..3", "a..b", "0..10,tail", "0..10,", "-1..2", "0..99999999999"] {
            assert!(bad.parse::<StageArg>().is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_of_a_template_are_json_or_else_text() {
        let value = |text: &str| text.parse::<TemplateArg>().map(|arg| arg.value);
        assert_eq!(value("depth=3"), Ok(3.into()));
        assert_eq!(value("effort=high"), Ok("high".into()));
        assert_eq!(value("a=b=c"), Ok("b=c".into()));
        assert_eq!(value("list=[true]"), Ok(vec![true].into()));
        assert_eq!((value("effort=none"), value("quoted=\"True\"")), (Ok("none".into()), Ok("True".into())));
        assert!("thinking".parse::<TemplateArg>().is_err() && "=1".parse::<TemplateArg>().is_err());
    }

    #[test]
    fn what_was_meant_to_be_json_is_no_text_and_the_option_and_the_right_spelling_are_named() {
        for (given, right) in
            [("False", "false"), ("True", "true"), ("None", "null"), ("FALSE", "false"), ("Null", "null")]
        {
            let error = parse(&format!("chat m --template-arg on={given}")).unwrap_err().to_string();
            assert!(error.contains("--template-arg") && error.contains(&format!("`{right}`")), "{error}");
        }
        for given in ["{a:1}", "[1,", "\"x", "{'a':1}"] {
            let error = parse(&format!("chat m --template-arg on={given}")).unwrap_err().to_string();
            assert!(error.contains("--template-arg") && error.contains("is none"), "{error}");
        }
    }

    #[test]
    fn numbers_out_of_their_range_are_refused_with_the_option_and_the_range() {
        for (line, option) in [
            ("chat m --max-tokens 0", "--max-tokens"),
            ("chat m --sessions 65", "--sessions"),
            ("chat m --sessions 0", "--sessions"),
            ("run --threads 0", "--threads"),
            ("run --context 0", "--context"),
            ("run --invite 0", "--invite"),
            ("invite --days 0", "--days"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(option) && error.contains("is not in 1.."), "{line}: {error}");
        }
        assert!(parse("chat m --max-tokens 1 --sessions 64 --context 1 --threads 1").is_ok());
    }

    #[test]
    fn help_says_how_many_digits_of_an_id_are_enough() {
        let least = format!("at least {} digits", swarmllm_core::base::names::MIN_ID_PREFIX);
        for mut command in Cli::command().get_subcommands().cloned() {
            let takes_model = command.get_arguments().any(|arg| arg.get_id() == "model");
            assert_eq!(command.render_long_help().to_string().contains(&least), takes_model, "{}", command.get_name());
        }
    }

    #[test]
    fn plain_text_has_no_template_to_be_given_anything() {
        assert!(parse("chat m --raw -m x").is_ok() && parse("chat m --think --tools f").is_ok());
        for line in [
            "--raw --system x",
            "--raw --think",
            "--raw --tools f",
            "--raw --template-arg a=1",
            "--raw --parse-content",
            "--think --no-think",
        ] {
            assert!(parse(&format!("chat m {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn import_keeps_what_is_named_and_else_everything() {
        let Ok(Command::Import(some)) = parse("import m.gguf --layers 0..2 --layers 4..6,head --coordinator") else {
            panic!("not understood")
        };
        let stage = |start, end, head| Parts::Stage { layers: LayerRange::new(start, end), head };
        assert_eq!(some.parts(), Some(vec![Parts::Coordinator, stage(0, 2, false), stage(4, 6, true)]));
        let Ok(Command::Import(all)) = parse("import m.gguf") else { panic!("not understood") };
        assert_eq!(all.parts(), None);
    }

    #[test]
    fn import_takes_files_and_addresses() {
        let address = |source: &str| match parse(&format!("import {source}")) {
            Ok(Command::Import(import)) => import.address().map(str::to_owned),
            other => panic!("{other:?}"),
        };
        for web in ["https://example.org/m.gguf", "http://localhost/m.gguf", "hf:owner/repo/m.gguf@v1"] {
            assert_eq!(address(web).as_deref(), Some(web));
        }
        for file in ["m.gguf", "./hf/m.gguf", "https.gguf"] {
            assert_eq!(address(file), None);
        }
        let Ok(Command::Import(import)) = parse("import hf:o/r/m.gguf --download-rate 10MiB --max-disk 1GiB") else {
            panic!("not understood")
        };
        let flags = import.flags();
        assert_eq!((flags.download_rate, flags.max_disk), (Some(10 << 20), Some(1 << 30)));
    }

    #[test]
    fn a_pin_and_a_removal_need_their_model() {
        assert!(matches!(parse("pin m"), Ok(Command::Pin(pin)) if pin.model == "m"));
        assert!(matches!(parse("unpin m"), Ok(Command::Unpin(pin)) if pin.model == "m"));
        assert!(parse("pin").is_err() && parse("unpin a b").is_err());
        assert!(matches!(parse("remove m"), Ok(Command::Remove(remove)) if remove.model == "m"));
        assert!(parse("remove").is_err());
    }

    #[test]
    fn pull_fetches_what_is_named_and_else_everything() {
        let parts = |line| match parse(line) {
            Ok(Command::Pull(pull)) => pull.parts(),
            other => panic!("{other:?}"),
        };
        let layers = LayerRange::new(0, 2);
        assert_eq!(parts("pull m"), [Parts::All]);
        assert_eq!(parts("pull m --layers 0..2 --head"), [Parts::Stage { layers, head: true }]);
        assert_eq!(parts("pull m --coordinator"), [Parts::Coordinator]);
        assert!(parse("pull m --head").is_err());
        let Ok(Command::Pull(pull)) = parse("pull m --url hf:o/r/m.gguf --download-rate 1MiB --max-disk 2GiB") else {
            panic!("not understood")
        };
        assert_eq!(pull.url.as_deref(), Some("hf:o/r/m.gguf"));
        assert_eq!((pull.flags().download_rate, pull.flags().max_disk), (Some(1 << 20), Some(2 << 30)));
    }

    #[test]
    fn only_flags_that_were_given_override() {
        let Ok(Command::Run(run)) = parse("run --port 9000 --no-mdns --memory 2GiB --bootstrap a --bootstrap b") else {
            panic!("not understood")
        };
        let flags = run.flags();
        assert_eq!((flags.port, flags.mdns, flags.memory), (Some(9000), Some(false), Some(2 << 30)));
        assert_eq!(flags.bootstrap, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!((flags.http, flags.serve, flags.network), (None, None, None));
    }

    #[test]
    fn flags_that_do_not_exist_and_values_that_do_not_fit_are_refused() {
        for line in ["run --nonsense", "run --port 70000", "run --memory lots", "chat", "import", "peers --wait soon"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
