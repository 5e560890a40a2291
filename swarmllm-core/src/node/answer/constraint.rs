//! Compilation of constraints: off the runtime, with bounded concurrency, within a deadline.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::base::{ErrorKind, Fault};
use crate::engine::constraint::{Constraint, ConstraintError, Guide};
use crate::node::models::loaded::LoadedModel;

/// Constraints compiled in parallel. Each takes a core that answers need too.
const PARALLEL: usize = 2;
/// Deadline, waiting included. Large schemas take a second.
const COMPILE_DEADLINE: Duration = Duration::from_secs(20);

/// The fault of a constraint that does not compile.
fn refuse(error: &ConstraintError) -> Fault {
    let fault = Fault::new(error.kind(), error);
    match fault.kind() {
        ErrorKind::InvalidArgument => fault.about("constraint"),
        _ => fault,
    }
}

/// Compiles constraints.
pub(crate) struct ConstraintPool {
    permits: Arc<Semaphore>,
}

impl Default for ConstraintPool {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(PARALLEL)) }
    }
}

impl ConstraintPool {
    /// Compiles a constraint for this model. Cancel-safe.
    pub async fn compile(&self, model: &Arc<LoadedModel>, constraint: Constraint) -> Result<Guide, Fault> {
        let (permits, model) = (self.permits.clone(), model.clone());
        let work = async move {
            let permit = permits.acquire_owned().await.map_err(|closed| Fault::new(ErrorKind::Closed, closed))?;
            // The work keeps the permit: it cannot be stopped and takes a core even after the deadline.
            let compile = move || {
                let _permit = permit;
                let guide = model.compiler().and_then(|compiler| compiler.compile(&constraint));
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
