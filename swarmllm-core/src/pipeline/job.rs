//! A generation's work order, what it is carried out with, and how it ended.

use std::future::Future;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep_until;
use tokio_util::sync::CancellationToken;

use crate::base::{ErrorKind, Fault, ModelId, NodeId, SessionId};
use crate::engine::Embedder;
use crate::engine::constraint::Guide;
use crate::engine::sample::{Sampled, Sampler};
use crate::ledger::Tabs;
use crate::net::NetHandle;
use crate::pipeline::draft::Lessons;
use crate::pipeline::drafter::Drafter;
use crate::pipeline::failures::Failures;
use crate::pipeline::links::Links;
use crate::pipeline::overlap::Overlap;
use crate::pipeline::plan::PlanStage;
use crate::pipeline::pool::Pooling;
use crate::pipeline::prefix::Namer;
use crate::pipeline::route::{OpenParams, Routes};
use crate::pipeline::serve::Serving;
use crate::pipeline::session::{End, Guess};
use crate::pipeline::speeds::Speeds;
use crate::rt::{EventBus, TaskSet};
use crate::wire::codec::Codec;

/// What every runner of a node uses.
#[derive(Clone)]
pub struct Coordinator {
    pub links: Links,
    pub serving: Serving,
    pub net: Option<NetHandle>,
    pub tasks: TaskSet,
    /// Names the texts whose KV hosts may keep.
    pub namer: Namer,
    /// How long a prompt's chunks are.
    pub overlap: Arc<Overlap>,
    /// How long windows of guesses are.
    pub lessons: Arc<Lessons>,
    /// How fast hosts have computed.
    pub speeds: Arc<Speeds>,
    /// Which hosts failed lately.
    pub failures: Arc<Failures>,
    /// What peers are asked for is owed to them.
    pub tabs: Tabs,
    /// Hears of sessions that got another route.
    pub events: EventBus,
}

/// One generation's work order.
pub struct Job {
    pub session: SessionId,
    pub model: ModelId,
    /// Where routes come from, beside the first.
    pub routes: Arc<dyn Routes>,
    pub engine: String,
    pub prompt: Vec<u32>,
    /// Whether steps keep the shapes of a plain run.
    pub exact: bool,
    /// How states travel.
    pub codec: Codec,
    /// Whether to guess ahead; never in the exact mode, nor under a constraint.
    pub guess: bool,
    /// The draft model that guesses, in the place of what repeats itself.
    pub drafter: Option<Drafter>,
    /// What holds the answer to a constraint.
    pub guide: Option<Guide>,
    /// Whether the prompt is only read, for its embedding.
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
    /// Where its guesses come from.
    pub(super) fn guess(&self) -> Guess {
        match &self.drafter {
            _ if !self.guess || self.exact => Guess::Never,
            Some(drafter) => Guess::Draft(drafter.draft()),
            None => Guess::Repeats,
        }
    }

    /// When it ends whatever it waits for.
    pub fn limits(&self) -> Limits {
        Limits { deadline: self.deadline, cancel: self.cancel.clone() }
    }

    /// What every host is asked.
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

/// Takes the tokens as they come.
pub trait TokenSink: Send + Sync {
    /// One token; a `Break` ends the session there, the token included. It must not wait for a reader.
    fn token(&mut self, sampled: Sampled) -> impl Future<Output = ControlFlow<()>> + Send;

    /// Whether more tokens may come now. Where not, the session goes no further, and hears what happens to it all the same.
    fn has_room(&self) -> bool;

    /// Waits until more tokens may come; fails where it gives that up. Cancel-safe.
    fn room(&self) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// One stage as it was used.
#[derive(Debug, Clone, PartialEq)]
pub struct StageReport {
    /// Which stage.
    pub stage: PlanStage,
    /// Who was asked to follow it. The host before it may send copies there from the beginning, whatever the answer was.
    pub stand_by: Option<NodeId>,
    /// Which of the session's routes it was part of; the highest is the last.
    pub epoch: u32,
    /// Milliseconds that loading took, 0 where it was loaded.
    pub load_ms: u32,
    /// Microseconds of compute of each prefill step.
    pub prefill_us: u64,
    /// Microseconds of compute of each decode step.
    pub decode_us: Vec<u32>,
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Well, or why not.
    pub end: Result<End, Fault>,
    /// Tokens chosen.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt that were not computed again.
    pub cached: u32,
    /// Guesses that were made, and how many were right.
    pub guesses: (u32, u32),
    /// Of a prompt that was only read.
    pub embedding: Option<Vec<f32>>,
    /// The stages of each route, in order; empty where opening failed.
    pub stages: Vec<StageReport>,
    /// From the order to all stages being open.
    pub open: Duration,
    /// Microseconds of a token, as the last route's plan predicted it.
    pub predicted_us: u64,
    /// From the order to the first token.
    pub first_token: Option<Duration>,
    /// From the order to the end.
    pub total: Duration,
}

/// When a session ends whatever it waits for.
#[derive(Clone)]
pub struct Limits {
    pub deadline: Option<Instant>,
    pub cancel: CancellationToken,
}

impl Limits {
    /// Waits for the work, or for the end of the session.
    pub async fn bound<T>(&self, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Result<End, Fault>> {
        tokio::select! {
            done = work => done.map_err(Err),
            () = self.cancel.cancelled() => Err(Ok(End::Cancelled)),
            () = self.overdue() => Err(Err(late())),
        }
    }

    /// Waits for the deadline.
    pub async fn overdue(&self) {
        match self.deadline {
            Some(deadline) => sleep_until(deadline.into()).await,
            None => std::future::pending().await,
        }
    }
}

/// The fault of a request whose deadline has passed.
pub fn late() -> Fault {
    Fault::new(ErrorKind::Timeout, "the deadline of the request passed; allow more time or ask for fewer tokens")
}
