//! Constraints made ready for an answer: off the runtime, few at once, within a time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::base::{ErrorKind, Fault};
use crate::engine::constraint::{Constraint, ConstraintError, Guide};
use crate::node::models::loaded::LoadedModel;

/// Constraints that are compiled at once. Each takes a core while it lasts, and answers need those too.
const COMPILING: usize = 2;
/// Waiting and compiling together. Large schemas take a second.
const COMPILE_DEADLINE: Duration = Duration::from_secs(20);

/// Why a constraint is not followed.
fn refuse(error: &ConstraintError) -> Fault {
    let fault = Fault::new(error.kind(), error);
    match fault.kind() {
        ErrorKind::InvalidArgument => fault.about("constraint"),
        _ => fault,
    }
}

/// Compiles constraints.
pub(crate) struct Guides {
    room: Arc<Semaphore>,
}

impl Default for Guides {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(COMPILING)) }
    }
}

impl Guides {
    /// What holds an answer of this model to the constraint.
    pub async fn guide(&self, model: &Arc<LoadedModel>, constraint: Constraint) -> Result<Guide, Fault> {
        let (room, model) = (self.room.clone(), model.clone());
        let work = async move {
            let permit = room.acquire_owned().await.map_err(|closed| Fault::new(ErrorKind::Closed, closed))?;
            // The permit goes with the work: it cannot be stopped, and what runs on behind a deadline still takes a core.
            let compile = move || {
                let _permit = permit;
                let guide = model.lexicon().and_then(|lexicon| lexicon.compile(&constraint));
                guide.map_err(|error| refuse(&error))
            };
            let done = tokio::task::spawn_blocking(compile).await;
            done.unwrap_or_else(|error| Err(Fault::new(ErrorKind::Internal, error)))
        };
        let late = |_| {
            let text =
                format!("the constraint was not compiled within {COMPILE_DEADLINE:?}; simplify it, or try again");
            Fault::new(ErrorKind::Timeout, text).of_field("constraint")
        };
        tokio::time::timeout(COMPILE_DEADLINE, work).await.map_err(late)?
    }
}
