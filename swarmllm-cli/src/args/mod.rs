//! Commands and their arguments.

mod node;
mod values;

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};
use swarmllm_core::node::{Codec, Parts, WebSource};

pub use self::node::{MeetArgs, NodeArgs, RunArgs};
use self::values::{StageArg, TemplateArg};
use crate::config::Flags;
use crate::units::parse_bytes;

#[derive(Debug, Parser)]
#[command(
    name = "swarmllm",
    version,
    about = "Answers of a large model, computed by machines that each hold a part of it"
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Global {
    /// Print JSON, also for errors
    #[arg(long, global = true)]
    pub json: bool,
    /// Log more, to stderr; may be repeated. RUST_LOG takes precedence
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// Directory of key, models, store and config.toml [env: SWARMLLM_DATA_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node until a signal stops it: hold and compute layers, serve HTTP
    Run(RunArgs),
    /// Ask a model, once or in a conversation
    Chat(ChatArgs),
    /// Split a GGUF, local or on the web, into shards and keep some of them here
    Import(ImportArgs),
    /// Check what of a GGUF cannot run here, without importing it
    Examine(ExamineArgs),
    /// Fetch shards of a model from peers
    Pull(PullArgs),
    /// List the models held here
    Models,
    /// Give a model an alias
    Alias(AliasArgs),
    /// Remove an alias
    Unalias(UnaliasArgs),
    /// Remove a model from this machine and print the disk space freed
    Remove(RemoveArgs),
    /// Protect a model from removal
    Pin(PinArgs),
    /// Undo a pin
    Unpin(PinArgs),
    /// Show which machines would answer, and how fast
    Plan(PlanArgs),
    /// List the peers of the swarm
    Peers(PeersArgs),
    /// List the balance with each peer
    Balances(BalancesArgs),
    /// Print an invite to this node's swarm, for `join` on another machine
    Invite(InviteArgs),
    /// Join the swarm of an invite; the data directory stores the membership
    Join(JoinArgs),
    /// Check whether this machine can take part
    Doctor,
}

/// Arguments of `invite`.
#[derive(Debug, Args)]
pub struct InviteArgs {
    #[command(flatten)]
    pub run: RunArgs,
    /// Days until the invite expires
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    pub days: u32,
}

/// Arguments of `join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The invite, as printed by `swarmllm invite`; `-` reads it from stdin, which keeps it out of the process list and the
    /// history of the shell
    pub invite: String,
}

/// Arguments of `alias`.
#[derive(Debug, Args)]
pub struct AliasArgs {
    /// Name, id, or a unique prefix of either, of an id at least 8 digits
    pub model: String,
    /// Further name of the model here
    pub alias: String,
    /// Take the alias from the model that has it now
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
    /// Name or id, or a unique prefix of the id of at least 8 digits
    pub model: String,
}

/// Arguments of `pin` and `unpin`.
#[derive(Debug, Args)]
pub struct PinArgs {
    /// Name, id, or a unique prefix of either, of an id at least 8 digits
    pub model: String,
}

/// Arguments of `plan`.
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Name, id, or a unique prefix of either, of an id at least 8 digits
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

#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Name, id, or a unique prefix of either, of an id at least 8 digits
    pub model: String,
    /// Question; without it, each line of stdin is a question
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// System message
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Maximum length of the answer, in tokens
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_tokens: Option<u32>,
    /// Sampling temperature; 0 always takes the most likely token
    #[arg(long, value_name = "X")]
    pub temperature: Option<f32>,
    /// Sample from the N most likely tokens only
    #[arg(long, value_name = "N")]
    pub top_k: Option<u32>,
    /// Sample from the most likely tokens whose probabilities add up to X
    #[arg(long, value_name = "X")]
    pub top_p: Option<f32>,
    /// Seed of the sampling
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Answer as a plain run of the whole model, token for token, whatever other sessions run
    #[arg(long)]
    pub exact: bool,
    /// Have hot standbys replicate the stages, where hosts can, to take over from a lost host
    #[arg(long)]
    pub standby: bool,
    /// Format of hidden states on the wire; bf16 and int8 are rounded and shorter, not with --exact
    #[arg(long, value_name = "f32|bf16|int8")]
    pub wire: Option<Codec>,
    /// Smaller model with the same vocabulary, held here as a whole, that proposes draft tokens
    #[arg(long, value_name = "MODEL")]
    pub draft: Option<String>,
    /// JSON schema of the answer
    #[arg(long, value_name = "FILE")]
    pub json_schema: Option<PathBuf>,
    /// Text that ends the answer; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
    /// Continue the text without a chat template, also for models without one
    #[arg(long, conflicts_with_all = ["system", "chat_template", "template_arg", "think", "no_think", "tools", "documents", "parse_content"])]
    pub raw: bool,
    /// Variable of the chat template; the value is JSON (true, 3, "x", [1]), otherwise text; may be repeated
    #[arg(long, value_name = "NAME=JSON")]
    pub template_arg: Vec<TemplateArg>,
    /// Have the model think before it answers, if its template supports it: --template-arg enable_thinking=true
    #[arg(long, conflicts_with = "no_think")]
    pub think: bool,
    /// Have the model answer at once, if its template supports it
    #[arg(long)]
    pub no_think: bool,
    /// JSON list of tools for the chat template, in OpenAI's format; calls are printed as the model writes them
    #[arg(long, value_name = "FILE")]
    pub tools: Option<PathBuf>,
    /// JSON list of documents for the chat template
    #[arg(long, value_name = "FILE")]
    pub documents: Option<PathBuf>,
    /// Parse control tokens in messages and inputs instead of treating them as text; a text can then forge turns
    #[arg(long)]
    pub parse_content: bool,
    #[command(flatten)]
    pub meet: MeetArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

/// The source of `import` and `examine`, and what of it to keep.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// GGUF file, its address (https://..), or its place in a hub as hf:owner/repo/path/file.gguf[@revision]; of a model in
    /// several files any of them, as NAME-00001-of-00003.gguf
    pub source: PathBuf,
    /// Layers that the import keeps, and the head if given: A..B or A..B,head; may be repeated; a node that keeps layers alone
    /// needs no tokenizer [default: all of the model]
    #[arg(long, value_name = "A..B[,head]")]
    pub layers: Vec<StageArg>,
    /// The import also keeps metadata and embedding, which a node needs to send requests
    #[arg(long)]
    pub coordinator: bool,
}

impl SourceArgs {
    /// The source as an address on the web, if it is one.
    pub fn address(&self) -> Option<&str> {
        self.source.to_str().filter(|text| WebSource::is_address(text))
    }

    /// The parts to keep; `None` is the whole model.
    pub fn parts(&self) -> Option<Vec<Parts>> {
        let parts = parts(self.coordinator, &self.layers);
        (!parts.is_empty()).then_some(parts)
    }
}

/// Arguments of `examine`.
#[derive(Debug, Args)]
pub struct ExamineArgs {
    #[command(flatten)]
    pub from: SourceArgs,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    pub from: SourceArgs,
    /// Alias of the model here; `swarmllm alias --move` takes one from another model
    #[arg(long)]
    pub name: Option<String>,
    /// Import a model even if it cannot run here, to keep it for other nodes
    #[arg(long)]
    pub anyway: bool,
    /// Limit of bytes per second from the web, as 10MiB or in bytes [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub download_rate: Option<u64>,
    /// Disk budget for shards, as 100GiB or in bytes [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub max_disk: Option<u64>,
}

impl ImportArgs {
    /// The given flags.
    pub fn flags(&self) -> Flags {
        Flags { download_rate: self.download_rate, max_disk: self.max_disk, ..Flags::default() }
    }
}

#[derive(Debug, Args)]
pub struct PullArgs {
    /// Name, id, or a unique prefix of either, of an id at least 8 digits
    pub model: String,
    /// Layers to fetch [default: all of the model]
    #[arg(long, value_name = "A..B")]
    pub layers: Option<StageArg>,
    /// Fetch the head too
    #[arg(long, requires = "layers")]
    pub head: bool,
    /// Fetch metadata and embedding, which a node needs to ask
    #[arg(long)]
    pub coordinator: bool,
    /// Fetch also from its GGUF on the web, as https://.. or hf:owner/repo/path/file.gguf[@revision]
    #[arg(long, value_name = "ADDR")]
    pub url: Option<String>,
    /// Limit of bytes per second from the web, as 10MiB or in bytes [default: no limit]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub download_rate: Option<u64>,
    #[command(flatten)]
    pub meet: MeetArgs,
    #[command(flatten)]
    pub node: NodeArgs,
}

impl PullArgs {
    /// The given flags.
    pub fn flags(&self) -> Flags {
        Flags { download_rate: self.download_rate, ..self.node.flags() }
    }

    /// The parts to fetch, in order.
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
    /// Peer to connect to at first; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub peer: Vec<String>,
    /// Seconds to look for peers
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    pub wait: u32,
    #[command(flatten)]
    pub node: NodeArgs,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use swarmllm_core::base::LayerRange;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(["swarmllm"].into_iter().chain(line.split_whitespace())).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bootstrap_without_an_address_makes_the_node_a_bootstrap_node() {
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
    fn misspelt_json_is_an_error_with_option_and_spelling() {
        for (given, right) in
            [("False", "false"), ("True", "true"), ("None", "null"), ("FALSE", "false"), ("Null", "null")]
        {
            let error = parse(&format!("chat m --template-arg on={given}")).unwrap_err().to_string();
            assert!(error.contains("--template-arg") && error.contains(&format!("`{right}`")), "{error}");
        }
        for given in ["{a:1}", "[1,", "\"x", "{'a':1}"] {
            let error = parse(&format!("chat m --template-arg on={given}")).unwrap_err().to_string();
            assert!(error.contains("--template-arg") && error.contains("is not valid JSON"), "{error}");
        }
    }

    #[test]
    fn numbers_out_of_range_name_option_and_range() {
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
    fn help_states_the_minimum_digits_of_an_id() {
        let least = format!("at least {} digits", swarmllm_core::base::names::MIN_ID_PREFIX);
        for mut command in Cli::command().get_subcommands().cloned() {
            let takes_model = command.get_arguments().any(|arg| arg.get_id() == "model");
            assert_eq!(command.render_long_help().to_string().contains(&least), takes_model, "{}", command.get_name());
        }
    }

    #[test]
    fn raw_conflicts_with_options_of_the_template() {
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
    fn import_keeps_the_given_parts_or_all() {
        let Ok(Command::Import(some)) = parse("import m.gguf --layers 0..2 --layers 4..6,head --coordinator") else {
            panic!("not understood")
        };
        let stage = |start, end, head| Parts::Stage { layers: LayerRange::new(start, end), head };
        assert_eq!(some.from.parts(), Some(vec![Parts::Coordinator, stage(0, 2, false), stage(4, 6, true)]));
        let Ok(Command::Import(all)) = parse("import m.gguf") else { panic!("not understood") };
        assert_eq!(all.from.parts(), None);
    }

    #[test]
    fn import_takes_files_and_addresses() {
        let address = |source: &str| match parse(&format!("import {source}")) {
            Ok(Command::Import(import)) => import.from.address().map(str::to_owned),
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
    fn pin_and_remove_need_a_model() {
        assert!(matches!(parse("pin m"), Ok(Command::Pin(pin)) if pin.model == "m"));
        assert!(matches!(parse("unpin m"), Ok(Command::Unpin(pin)) if pin.model == "m"));
        assert!(parse("pin").is_err() && parse("unpin a b").is_err());
        assert!(matches!(parse("remove m"), Ok(Command::Remove(remove)) if remove.model == "m"));
        assert!(parse("remove").is_err());
    }

    #[test]
    fn pull_fetches_the_given_parts_or_all() {
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
    fn only_given_flags_override() {
        let Ok(Command::Run(run)) = parse("run --port 9000 --no-mdns --memory 2GiB --bootstrap a --bootstrap b") else {
            panic!("not understood")
        };
        let flags = run.flags();
        assert_eq!((flags.port, flags.mdns, flags.memory), (Some(9000), Some(false), Some(2 << 30)));
        assert_eq!(flags.bootstrap, Some(vec!["a".to_owned(), "b".to_owned()]));
        assert_eq!((flags.http, flags.serve, flags.network), (None, None, None));
    }

    #[test]
    fn unknown_flags_and_wrong_values_are_refused() {
        for line in ["run --nonsense", "run --port 70000", "run --memory lots", "chat", "import", "peers --wait soon"] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
