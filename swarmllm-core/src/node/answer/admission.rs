//! Admission of a session: its turn in the queue, then a route whose stages are opened at each host. While all slots are in
//! use, the request waits as long as its caller does.

use std::sync::Arc;
use std::time::Duration;

use crate::base::{ErrorKind, Fault, NodeId, SessionId};
use crate::node::answer::drafting;
use crate::node::answer::planning::first_route;
use crate::node::answer::queue::{Caller, RunningAnswer};
use crate::node::lifecycle::Lifecycle;
use crate::node::models::loaded::LoadedModel;
use crate::node::models::prepare::load;
use crate::node::shared::SharedState;
use crate::pipeline::runner::job::Job;
use crate::pipeline::runner::{self, OpenedSession};
use crate::pipeline::session::SessionEnd;
use crate::wire::control::{SESSION_NONCE_BYTES, session_id};

/// Longest time that a request blocks others of its model: longer than hosts let it wait for a slot (8 s). Slow loading
/// stages and unresponsive hosts do not delay other requests beyond it.
const MAX_TURN: Duration = Duration::from_secs(12);

/// A session whose stages are open.
pub(super) struct AdmittedSession {
    /// Held while the session runs.
    pub running: RunningAnswer,
    pub job: Job,
    pub begun: OpenedSession,
}

/// Options of a session beside its job.
#[derive(Default)]
pub(super) struct SessionOptions {
    /// Name of the draft model.
    pub draft: Option<String>,
    /// Whether stages get hot standbys.
    pub standby: bool,
}

/// Waits for its turn and opens the job's stages. While hosts are busy it retries with a new session id, until the job is
/// cancelled or its deadline passes. Not cancel-safe: use `job.cancel`.
pub(super) async fn admit(
    shared: &Arc<SharedState>,
    model: &Arc<LoadedModel>,
    caller: &Caller,
    mut job: Job,
    options: &SessionOptions,
) -> Result<AdmittedSession, Result<SessionEnd, Fault>> {
    let limits = job.limits();
    if let Some(name) = &options.draft {
        // Loaded before the turn: the lookup of an unknown draft must not block other requests.
        limits.bound(async { load(shared, name).await.map_err(of_draft) }).await?;
    }
    let next_turn = || limits.bound(async { Ok(shared.answers.queue.turn(model.id, caller).await) });
    let mut turn = next_turn().await?;
    loop {
        let begun = turn.attempt(MAX_TURN, attempt(shared, model, &mut job, options)).await;
        match begun {
            Ok(begun) => return Ok(AdmittedSession { running: turn.admit(caller), job, begun }),
            Err(Err(fault)) if fault.kind() == ErrorKind::Overloaded => {
                tracing::debug!(%fault, "no host has a free slot yet");
                if options.draft.is_some() && job.drafter.is_none() {
                    // This request waits for its draft model; others may use free slots.
                    turn.release();
                }
                let retry = async {
                    turn.wait_for_slot().await;
                    Ok(())
                };
                limits.bound(retry).await?;
                if turn.is_released() {
                    turn = next_turn().await?;
                }
            }
            Err(end) => return Err(end),
        }
    }
}

async fn attempt(
    shared: &Arc<SharedState>,
    model: &Arc<LoadedModel>,
    job: &mut Job,
    options: &SessionOptions,
) -> Result<OpenedSession, Result<SessionEnd, Fault>> {
    let limits = job.limits();
    job.session = new_session(shared.id).map_err(Err)?;
    if let Some(name) = options.draft.as_ref().filter(|_| job.drafter.is_none()) {
        let drafter = async {
            let drafter = drafting::drafter(shared, model, name, job.prompt.len(), job.max_tokens).await;
            drafter.map_err(of_draft)
        };
        job.drafter = Some(limits.bound(drafter).await?);
    }
    let route = limits.bound(first_route(shared, model, options.standby)).await?;
    runner::open(&shared.coordinator, job, route).await
}

/// The id of a new session of this node.
pub(super) fn new_session(coordinator: NodeId) -> Result<SessionId, Fault> {
    let mut chance = [0; SESSION_NONCE_BYTES];
    getrandom::fill(&mut chance).map_err(|error| Fault::new(ErrorKind::Internal, error))?;
    Ok(session_id(coordinator, chance))
}

/// A fault of the draft model, rather than of the answering one.
fn of_draft(fault: Fault) -> Fault {
    fault.of_field("draft")
}

/// The fault of a session that was not admitted, for the caller.
pub(super) fn refusal(lifecycle: &Lifecycle, end: Result<SessionEnd, Fault>) -> Fault {
    match end {
        Err(fault) => fault,
        Ok(_) if lifecycle.closed.is_cancelled() => Fault::new(ErrorKind::Closed, "the node was shut down meanwhile"),
        Ok(_) => Fault::new(ErrorKind::Cancelled, "the request was cancelled before it was admitted"),
    }
}
