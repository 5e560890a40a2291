//! The job of one generation, its environment and its outcome.

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::base::{Fault, ModelId, SessionId};
use crate::engine::Embedder;
use crate::engine::constraint::Guide;
use crate::engine::sample::{SampledToken, Sampler};
use crate::ledger::Balances;
use crate::net::NetHandle;
use crate::pipeline::host::serve::StageServer;
use crate::pipeline::link::router::SessionRouter;
use crate::pipeline::plan::speeds::Speeds;
use crate::pipeline::route::StageReport;
use crate::pipeline::route::failures::Failures;
use crate::pipeline::route::{OpenParams, Routes};
use crate::pipeline::session::chunking::ChunkPolicy;
use crate::pipeline::session::drafter::Drafter;
use crate::pipeline::session::limits::Limits;
use crate::pipeline::session::pooling::Pooling;
use crate::pipeline::session::prefix::PrefixHasher;
use crate::pipeline::session::speculation::SpeculationHistory;
use crate::pipeline::session::{SessionEnd, Speculation};
use crate::rt::{EventBus, TaskSet};
use crate::wire::codec::Codec;

/// The handles that every runner of a node uses.
#[derive(Clone)]
pub struct Coordinator {
    pub router: SessionRouter,
    pub stage_server: StageServer,
    pub net: Option<NetHandle>,
    pub tasks: TaskSet,
    /// Hashes the texts whose KV hosts may keep.
    pub prefix_hasher: PrefixHasher,
    /// Chunk lengths of prompts, by model.
    pub chunk_policy: Arc<ChunkPolicy>,
    /// Speculation statistics, by model.
    pub speculation: Arc<SpeculationHistory>,
    /// Measured speeds of hosts.
    pub speeds: Arc<Speeds>,
    /// Recent failures of hosts.
    pub failures: Arc<Failures>,
    /// Debts to peers for their work.
    pub balances: Balances,
    /// Receives [`GenerationRerouted`](crate::base::Event::GenerationRerouted).
    pub events: EventBus,
}

/// The job of one generation.
pub struct Job {
    pub session: SessionId,
    pub model: ModelId,
    /// Finds further routes.
    pub routes: Arc<dyn Routes>,
    pub engine: String,
    pub prompt: Vec<u32>,
    /// Whether steps keep the shapes of a plain run.
    pub exact: bool,
    /// Codec of states on the wire.
    pub codec: Codec,
    /// Whether to speculate; never in exact mode, nor under a constraint.
    pub speculate: bool,
    /// The draft model, in addition to n-gram matches.
    pub drafter: Option<Drafter>,
    /// The guide of a constraint.
    pub guide: Option<Guide>,
    /// Pooling of an embedding; no answer is generated then.
    pub pooling: Option<Pooling>,
    /// The hosts may grant less.
    pub max_tokens: u32,
    pub vocab: u32,
    pub embedder: Arc<dyn Embedder>,
    pub sampler: Sampler,
    pub is_end: Box<dyn Fn(u32) -> bool + Send + Sync>,
    pub deadline: Option<Instant>,
    pub cancel: CancellationToken,
}

impl Job {
    /// Its source of draft tokens.
    pub(super) fn speculation(&self) -> Speculation {
        match &self.drafter {
            _ if !self.speculate || self.exact => Speculation::Off,
            Some(drafter) => Speculation::Draft(drafter.draft()),
            None => Speculation::NGrams,
        }
    }

    /// What ends it whatever it waits for.
    pub fn limits(&self) -> Limits {
        Limits { deadline: self.deadline, cancel: self.cancel.clone() }
    }

    /// Parameters that are sent to every host.
    pub(super) fn open_params(&self) -> OpenParams {
        OpenParams {
            session: self.session,
            model: self.model,
            engine: self.engine.clone(),
            exact: self.exact,
            context: (self.prompt.len() as u64 + u64::from(self.max_tokens)).try_into().unwrap_or(u32::MAX),
            least: (self.prompt.len() as u64 + u64::from(self.max_tokens.min(1))).try_into().unwrap_or(u32::MAX),
            width: self.embedder.width(),
            vocab: self.vocab,
        }
    }
}

/// Receives the tokens.
pub trait TokenSink: Send + Sync {
    /// Takes one token; `Break` ends the session with this token. Must not wait for a reader.
    fn token(&mut self, sampled: SampledToken) -> impl Future<Output = ControlFlow<()>> + Send;

    /// Whether the sink has room for more tokens. Without room the session sends no step; other events are handled all
    /// the same.
    fn has_room(&self) -> bool;

    /// Waits for room; an error gives up the session. Cancel-safe.
    fn room(&self) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// A good end, or the fault.
    pub end: Result<SessionEnd, Fault>,
    /// Generated tokens.
    pub tokens: Vec<u32>,
    /// Prompt tokens that were not computed again.
    pub cached: u32,
    /// Draft tokens proposed and accepted.
    pub draft_counts: (u32, u32),
    /// The embedding, of an embedding session.
    pub embedding: Option<Vec<f32>>,
    /// Reports of the stages of all routes, in order; empty where opening failed.
    pub stages: Vec<StageReport>,
    /// From the start of the job until all stages were open.
    pub open: Duration,
    /// Microseconds of a token, predicted by the plan of the last route.
    pub predicted_us: u64,
    /// From the start of the job to the first token.
    pub first_token: Option<Duration>,
    /// From the start of the job to the end.
    pub total: Duration,
}
