//! Events and actions of a session, and its findings.

use std::time::Duration;

use super::Debt;
use crate::base::{Fault, NodeId};
use crate::engine::sample::SampledToken;
use crate::pipeline::link::router::{Delivery, RouteHosts, SessionStage};
use crate::pipeline::plan::speeds::StageTiming;
use crate::pipeline::route::active::{ActiveRoute, StepShape, reusable};
use crate::pipeline::route::losses::HostLoss;
use crate::pipeline::route::manager::{RouteAction, RouteEvent};
use crate::pipeline::route::watch::UnresponsiveHosts;
use crate::pipeline::session::SpeculationStats;
use crate::pipeline::session::prefix::PrefixHasher;
use crate::pipeline::session::speculation::{DraftContinuation, DraftLimits};
use crate::wire::codec::Codec;
use crate::wire::control::Host;
use crate::wire::job::StepHeader;

/// Constants of a session, beside the parameters sent to its hosts
/// ([`OpenParams`](crate::pipeline::route::OpenParams)).
pub struct SessionConfig {
    /// Codec of states on the wire.
    pub codec: Codec,
    pub prefix_hasher: PrefixHasher,
    /// Whether the states of all tokens are needed, so that nothing may be cached.
    pub needs_all_states: bool,
    /// Whether this is an embedding session, which needs no room for an answer.
    pub is_embedding: bool,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Bytes of the longest answer to a step.
    pub max_answer_bytes: usize,
}

/// The first route, for the construction of the session.
#[derive(Debug, Clone, Copy)]
pub struct FirstRoute {
    pub stages: usize,
    pub max_rows: u32,
    /// Prompt tokens that are not computed again.
    pub cached: u32,
}

/// An event of a session.
#[derive(Debug)]
pub enum Event {
    /// A message of the session; `None` after an overflow of its queue.
    Delivered(Option<Delivery>),
    /// A loss, and whether the link for steps has ended.
    Lost { loss: HostLoss, link_ended: bool },
    /// The step of the last `Send` could not be sent.
    SendFailed(Fault),
    /// The step of the last `Send` was not sent, because another event came first.
    SendAborted,
    /// The result of the draft model and its time; `None` where it failed.
    Drafted(Option<(DraftContinuation, Duration)>),
    /// The reader stopped behind the token of the last `Emit`.
    ReaderStopped,
    /// The coordinator's own work for the session failed.
    LocalFailure(Fault),
    /// The caller cancelled.
    Cancelled,
    /// The deadline of the request has passed.
    DeadlinePassed,
    /// The result of a probe of the hosts.
    HostsProbed { probe: u32, unresponsive: UnresponsiveHosts },
    /// An event of the routes.
    Route(RouteEvent),
    /// The time of `wake_at` has come.
    Wake,
}

impl Event {
    /// The event as the route manager handles it while no route is open; `None` for events that do not concern it.
    pub fn into_route_event(self) -> Option<RouteEvent> {
        match self {
            Event::Route(event) => Some(event),
            Event::Wake => Some(RouteEvent::Wake),
            Event::Lost { loss: HostLoss::Peer(peer), .. } => Some(RouteEvent::Lost(peer)),
            _ => None,
        }
    }
}

/// An action for a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The route failed with this fault; the search for another begins.
    RouteFailed(Fault),
    /// Another route replaced the failed one: drop queued answers of that one.
    Rerouted { epoch: u32, kept: u32, cause: Fault },
    /// Send steps to this host and copies to that one, and accept messages of these hosts.
    UseRoute { first: Host, copy: Option<Host>, hosts: RouteHosts },
    /// Send no copies any more.
    StopCopies,
    /// Send the states of these tokens to the first stage, and a copy to its standby.
    Send { header: StepHeader, tokens: Vec<u32> },
    /// Give this token to the reader.
    Emit(SampledToken),
    /// Ask the draft model to continue the text; [`Event::Drafted`] answers.
    Draft { text: Vec<u32>, limits: DraftLimits },
    /// Let the draft model continue behind this text, which ends with its own draft tokens.
    DraftAhead { text: Vec<u32>, max_tokens: usize },
    /// Probe these hosts for their stages; [`Event::HostsProbed`] answers.
    ProbeHosts { probe: u32, stages: Vec<(NodeId, SessionStage)> },
    /// Record a debt to a peer for a step.
    Owe(Debt),
    /// An action for the routes.
    Route(RouteAction),
}

/// Measurements of a session, for later sessions.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SessionFindings {
    /// Of speculation; `None` without it.
    pub speculation: Option<SpeculationStats>,
    /// Of chunks, at the slowest stage: microseconds of the prompt's rows, their number, and microseconds of a token.
    pub chunks: Option<(u64, u32, u32)>,
    /// Speeds of the hosts of the last route, without round-trip times, and microseconds of a token.
    pub speeds: Option<(Vec<StageTiming>, u32)>,
}

impl SessionConfig {
    /// Tokens of KV on every stage that can be reused with chunks of this many rows.
    pub(super) fn reusable(&self, route: &ActiveRoute, exact: bool, chunk: u32, text: usize) -> u32 {
        let shape = exact.then_some(StepShape { prompt: self.prompt as u32, chunk });
        // A mean needs all states, and they are not kept.
        if self.needs_all_states { 0 } else { reusable(route.cached, text as u32, shape) }
    }
}
