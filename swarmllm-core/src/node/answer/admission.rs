//! How an answer gets its place: the queue, then a route, opened at each of its hosts. Where all places are in use it waits
//! for as long as the caller does.

use std::sync::Arc;
use std::time::Duration;

use crate::base::{ErrorKind, Fault, SessionId};
use crate::node::answer::drafting;
use crate::node::answer::planning::first_route;
use crate::node::answer::queue::{Caller, Place};
use crate::node::models::loaded::LoadedModel;
use crate::node::models::prepare::load;
use crate::node::shared::Shared;
use crate::pipeline::job::Job;
use crate::pipeline::runner::{self, Begun};
use crate::pipeline::session::End;
use crate::wire::control::{SESSION_CHANCE, session_id};

/// How long a request keeps the turn to look for a place: longer than hosts let it wait for a slot (8 s). One whose stages take
/// longer to load, or whose host only says that it is there, does not hold up the others.
const TURN: Duration = Duration::from_secs(12);

/// A session whose stages are open.
pub(super) struct Admitted {
    /// Held for as long as the session is under way.
    pub place: Place,
    pub job: Job,
    pub begun: Begun,
}

/// What a session wants beside its job.
#[derive(Default)]
pub(super) struct Wants {
    /// The name of the model that guesses ahead.
    pub draft: Option<String>,
    /// Whether its stages are to have stand-bys.
    pub stand_by: bool,
}

/// Waits for a place and opens the job's stages. Where hosts are busy it tries again, in a session of another id, until the
/// job is cancelled or its deadline has passed. Not cancel-safe: use `job.cancel`.
pub(super) async fn admit(
    shared: &Arc<Shared>,
    model: &Arc<LoadedModel>,
    caller: &Caller,
    mut job: Job,
    wants: &Wants,
) -> Result<Admitted, Result<End, Fault>> {
    let limits = job.limits();
    if let Some(name) = &wants.draft {
        // Found and loaded before the turn comes, which is not theirs to hold who look for an unknown draft.
        limits.bound(async { load(shared, name).await.map_err(of_draft) }).await?;
    }
    let turn = || limits.bound(async { Ok(shared.queue.turn(model.id, caller).await) });
    let mut ours = turn().await?;
    loop {
        let begun = ours.keep(TURN, attempt(shared, model, &mut job, wants)).await;
        match begun {
            Ok(begun) => return Ok(Admitted { place: ours.done(caller), job, begun }),
            Err(Err(fault)) if fault.kind() == ErrorKind::Overloaded => {
                tracing::debug!(%fault, "no place for an answer yet");
                if wants.draft.is_some() && job.drafter.is_none() {
                    // It waits for its draft, and the others for what is free.
                    ours.pass();
                }
                let again = async {
                    ours.again().await;
                    Ok(())
                };
                limits.bound(again).await?;
                if ours.is_passed() {
                    ours = turn().await?;
                }
            }
            Err(end) => return Err(end),
        }
    }
}

async fn attempt(
    shared: &Arc<Shared>,
    model: &Arc<LoadedModel>,
    job: &mut Job,
    wants: &Wants,
) -> Result<Begun, Result<End, Fault>> {
    let limits = job.limits();
    job.session = new_session(shared).map_err(Err)?;
    if let Some(name) = wants.draft.as_ref().filter(|_| job.drafter.is_none()) {
        let drafter = async {
            let drafter = drafting::drafter(shared, model, name, job.prompt.len(), job.max_tokens).await;
            drafter.map_err(of_draft)
        };
        job.drafter = Some(limits.bound(drafter).await?);
    }
    let route = limits.bound(first_route(shared, model, wants.stand_by)).await?;
    runner::open(&shared.coordinator, job, route).await
}

/// The id of a new session of this node.
pub(super) fn new_session(shared: &Shared) -> Result<SessionId, Fault> {
    let mut chance = [0; SESSION_CHANCE];
    getrandom::fill(&mut chance).map_err(|error| Fault::new(ErrorKind::Internal, error))?;
    Ok(session_id(shared.id, chance))
}

/// A fault of the model that guesses ahead, rather than of the one that answers.
fn of_draft(fault: Fault) -> Fault {
    fault.of_field("draft")
}

/// Why a session got no place, for the caller.
pub(super) fn refusal(shared: &Shared, end: Result<End, Fault>) -> Fault {
    match end {
        Err(fault) => fault,
        Ok(_) if shared.closed.is_cancelled() => Fault::new(ErrorKind::Closed, "the node was shut down meanwhile"),
        Ok(_) => Fault::new(ErrorKind::Cancelled, "the request was cancelled before it had a place"),
    }
}
