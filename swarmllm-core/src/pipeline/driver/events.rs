//! What happens to a session, what is to be done for it, and what it teaches.

use std::time::Duration;

use super::{Debt, RouteAction, RouteEvent};
use crate::base::{Fault, NodeId};
use crate::engine::sample::Sampled;
use crate::pipeline::draft::{Drafted, Horizon};
use crate::pipeline::links::{Delivery, Hosts, SessionStage};
use crate::pipeline::losses::Loss;
use crate::pipeline::prefix::Namer;
use crate::pipeline::session::LearntOfGuesses;
use crate::pipeline::speeds::Seen;
use crate::pipeline::watch::Absent;
use crate::pipeline::way::{Shape, Way, usable};
use crate::wire::codec::Codec;
use crate::wire::control::Host;
use crate::wire::job::StepHeader;

/// What of a session does not change, beside what its hosts are asked ([`OpenParams`](crate::pipeline::route::OpenParams)).
pub struct SessionConfig {
    /// How states travel.
    pub codec: Codec,
    pub namer: Namer,
    /// Whether the states of all tokens are needed, so that nothing may be cached.
    pub needs_all: bool,
    /// Whether it only reads, and needs no room for an answer.
    pub reads: bool,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Bytes of the longest answer to a step.
    pub longest: usize,
}

/// What the first route is, for who makes the session.
#[derive(Debug, Clone, Copy)]
pub struct Start {
    pub stages: usize,
    pub max_rows: u32,
    /// Tokens of the prompt that are not computed again.
    pub cached: u32,
}

/// What happens to a session.
#[derive(Debug)]
pub enum Event {
    /// A message of the session; nothing where there were more than it has room for.
    Delivered(Option<Delivery>),
    /// A loss, and whether the link that steps go by has ended.
    Lost { loss: Loss, link_ended: bool },
    /// The step that was taken last could not be sent.
    Unsent(Fault),
    /// The step that was taken last was not sent, because something else happened meanwhile.
    NotSent,
    /// What the draft model guessed, and how long that took; nothing where it failed.
    Drafted(Option<(Drafted, Duration)>),
    /// The reader of the tokens wants no more behind the one that was taken last.
    Enough,
    /// What the coordinator itself does for the session has failed.
    Failed(Fault),
    /// The caller wants no more.
    Cancelled,
    /// The deadline is over.
    Overdue,
    /// Hosts were asked for their stages.
    Present { question: u32, absent: Absent },
    /// Something of the routes.
    Route(RouteEvent),
    /// Time has passed.
    Time,
}

/// What is to be done for a session.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// The route is of no use any more, for this reason, and another is looked for.
    Broken(Fault),
    /// Another route took the place of the one before: what is left of that one's answers is of no use any more.
    Rerouted { epoch: u32, kept: u32, cause: Fault },
    /// From now on steps go to this host and copies to that one, and these hosts have a say.
    Follow { first: Host, copy: Option<Host>, hosts: Hosts },
    /// Copies go to nobody any more.
    StopCopies,
    /// Send the states of these tokens to the first stage, and a copy to its stand-by.
    Send { header: StepHeader, tokens: Vec<u32> },
    /// Say this token.
    Emit(Sampled),
    /// Ask the draft model how the text goes on; [`Event::Drafted`] answers.
    Draft { text: Vec<u32>, horizon: Horizon },
    /// Let the draft model go on behind this text, whose last tokens it guessed.
    Foresee { text: Vec<u32>, most: usize },
    /// Ask these hosts for their stages; [`Event::Present`] answers.
    Ask { question: u32, stages: Vec<(NodeId, SessionStage)> },
    /// A peer is owed for a step.
    Owe(Debt),
    /// Something for the routes.
    Route(RouteAction),
}

/// What a session teaches the sessions to come.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Lessons {
    /// Of guesses; nothing where it made none.
    pub guesses: Option<LearntOfGuesses>,
    /// Of chunks: microseconds of a prompt's rows at the slowest stage, the rows, and microseconds of a token there.
    pub chunks: Option<(u64, u32, u32)>,
    /// How fast the hosts of the last route were, round trips left out, and microseconds of a token.
    pub speeds: Option<(Vec<Seen>, u32)>,
}

impl SessionConfig {
    /// How much of the KV that every stage has is of use, where chunks have so many rows.
    pub(super) fn usable(&self, way: &Way, exact: bool, chunk: u32, text: usize) -> u32 {
        let shape = exact.then_some(Shape { prompt: self.prompt as u32, chunk });
        // Of a mean all states are needed, and they are not kept.
        if self.needs_all { 0 } else { usable(way.cached, text as u32, shape) }
    }
}
