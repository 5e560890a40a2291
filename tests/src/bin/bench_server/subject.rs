//! The measured subjects, their prompts, and the timing of their answers.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use swarmllm_core::base::ModelId;
use swarmllm_core::engine::sample::SamplingParams;
use swarmllm_core::node::{Delta, GenerateOptions, GenerateRequest, Generation, Node, NodeBuilder, Parts, Prompt};
use swarmllm_tests::cluster::{Member, Transport, await_plan, builder, unique_network};
use swarmllm_tests::prompts::harbour_log;
use swarmllm_tests::reference::ReferenceModel;
use swarmllm_tests::server::LlamaServer;
use tempfile::TempDir;

use crate::{CONTEXT, SESSIONS, threads};

/// Pause before each request: llama.cpp's compute threads spin for about 200 ms after their last step.
pub const PAUSE: Duration = Duration::from_millis(500);

/// End-of-generation tokens of the small test models, banned here as in the server's answers, so that all answers have full
/// length.
const ENDS: [u32; 4] = [0, 1, 2, 106];

/// Seed of all sampling.
const SEED: u64 = 7;

/// Timing of an answer, in seconds.
pub struct Times {
    pub first: f64,
    pub gaps: Vec<f64>,
    rest: f64,
    /// Tokens of the answer; fewer than requested if the model ended it.
    tokens: u32,
    /// Median compute of all stages per token; 0 if not reported.
    pub compute: f64,
    /// Accepted draft tokens, if reported.
    accepted: u32,
}

impl Times {
    fn of(begun: Instant, came: &[Instant], tokens: u32) -> Self {
        let first = *came.first().expect("an answer has a token");
        let gaps = came.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let rest = (*came.last().unwrap_or(&first) - first).as_secs_f64();
        Times { first: (first - begun).as_secs_f64(), gaps, rest, tokens, compute: 0.0, accepted: 0 }
    }

    /// Tokens per round trip over the route; each accepted draft token saves one round trip.
    pub fn tokens_per_step(&self) -> f64 {
        f64::from(self.tokens) / f64::from(self.tokens.saturating_sub(self.accepted).max(1))
    }

    /// Seconds per decoded token.
    pub fn token(&self) -> f64 {
        self.rest / f64::from(self.tokens.max(2) - 1)
    }
}

/// A measured server or node.
#[derive(Clone)]
pub enum Subject {
    Server { server: Arc<LlamaServer>, temperature: f32 },
    Ours { node: Node, model: ModelId, options: Box<GenerateOptions> },
}

impl Subject {
    /// llama.cpp's server with a model and slots for `sessions` sessions.
    pub fn server(binary: &Path, model: &Path, sessions: u32) -> Self {
        Self::Server {
            server: LlamaServer::start(binary, model, threads(), sessions, CONTEXT).into(),
            temperature: 0.0,
        }
    }

    /// A node with the whole model, inexact and without speculation, and its member.
    pub async fn ours(path: &Path, name: &str) -> (Self, Member) {
        let member = node(&unique_network(), threads()).await;
        let model = member.import(path, name, Parts::All).await;
        await_plan(&member.node, model).await;
        (Self::of(&member.node, model), member)
    }

    /// A node that has a plan for the model.
    pub fn of(node: &Node, model: ModelId) -> Self {
        let mut options =
            GenerateOptions { speculate: false, sampling: SamplingParams::greedy(), ..Default::default() };
        options.sampling.logit_bias = ENDS.map(|end| (end, SamplingParams::BAN)).into();
        Self::Ours { node: node.clone(), model, options: options.into() }
    }

    /// The subject with changed options; no effect on the server.
    pub fn with(&self, change: impl Fn(&mut GenerateOptions)) -> Self {
        let mut other = self.clone();
        if let Self::Ours { options, .. } = &mut other {
            change(options);
        }
        other
    }

    /// The subject in exact mode.
    pub fn exact(&self) -> Self {
        self.with(|options| options.exact = true)
    }

    /// The subject at this temperature with a fixed seed; 0 is greedy.
    pub fn at(&self, temperature: f32) -> Self {
        match self {
            Self::Server { server, .. } => Self::Server { server: server.clone(), temperature },
            Self::Ours { .. } => self.with(|options| {
                let logit_bias = options.sampling.logit_bias.clone();
                options.sampling = match temperature > 0.0 {
                    true => SamplingParams { temperature, seed: Some(SEED), logit_bias, ..SamplingParams::default() },
                    false => SamplingParams { logit_bias, ..SamplingParams::greedy() },
                }
            }),
        }
    }

    pub async fn ask(&self, prompt: &[u32], tokens: u32) -> Times {
        tokio::time::sleep(PAUSE).await;
        let begun = Instant::now();
        match self {
            Self::Server { server, temperature } => {
                let (server, prompt, temperature) = (server.clone(), prompt.to_vec(), *temperature);
                let complete = move || server.complete(&prompt, tokens, temperature, SEED);
                let came = tokio::task::spawn_blocking(complete).await.expect("no panic");
                Times::of(begun, &came, came.len() as u32)
            }
            Self::Ours { node, model, options } => {
                let options = GenerateOptions { max_tokens: Some(tokens), ..(**options).clone() };
                let prompt = Prompt::Tokens(prompt.to_vec());
                let request = GenerateRequest { model: model.to_string(), prompt, options };
                read(node.generate(request).await.expect("the swarm answers"), begun).await
            }
        }
    }

    /// Tokens per second of several sessions together.
    pub async fn crowd(&self, prompts: &[Vec<u32>], tokens: u32) -> f64 {
        let begun = Instant::now();
        let answers = join_all(prompts.iter().map(|prompt| self.ask(prompt, tokens))).await;
        let tokens: u32 = answers.iter().map(|times| times.tokens).sum();
        // Each request begins with the pause.
        f64::from(tokens) / (begun.elapsed() - PAUSE).as_secs_f64()
    }
}

/// Reads an answer to its end.
pub async fn read(mut generation: Generation, begun: Instant) -> Times {
    let mut came = Vec::new();
    loop {
        match generation.next().await {
            Some(Ok(Delta::Text(_))) => came.push(Instant::now()),
            Some(Ok(Delta::Done(done))) => {
                came.push(Instant::now());
                if done.draft_tokens > 0 {
                    println!("    {} of {} draft tokens were accepted", done.accepted_tokens, done.draft_tokens);
                }
                let compute: u64 = done.route.iter().map(|stage| stage.decode_us).sum();
                let times = Times::of(begun, &came, done.completion_tokens);
                return Times { compute: compute as f64 / 1e6, accepted: done.accepted_tokens, ..times };
            }
            other => panic!("the answer broke off: {other:?}"),
        }
    }
}

/// The text from which prompts are cut, each time another piece.
pub struct Text {
    tokens: Vec<u32>,
    next: usize,
}

impl Text {
    /// The next piece.
    pub fn cut(&mut self, length: usize) -> Vec<u32> {
        self.next = (self.next + 37) % (self.tokens.len() - length);
        self.tokens[self.next..self.next + length].to_vec()
    }
}

pub fn text_of(path: &Path) -> Text {
    let whole = ReferenceModel::load(path, threads());
    Text { tokens: whole.tokenize(&harbour_log(400)), next: 0 }
}

pub async fn node(network: &str, threads: u32) -> Member {
    start(network, |builder| builder.threads(threads)).await
}

/// A node with the settings of the benchmark and `more`.
pub async fn start(network: &str, more: impl Fn(NodeBuilder) -> NodeBuilder) -> Member {
    let dir = TempDir::new().expect("a temporary directory");
    let builder = builder(dir.path(), network, Transport::Tcp).threads(threads()).context(CONTEXT).sessions(SESSIONS);
    Member { node: more(builder).start().await.expect("a node starts"), dir }
}
