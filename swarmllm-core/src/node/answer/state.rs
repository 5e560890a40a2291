//! State that all answers of a node share: the queue, and bounded work off the runtime.

use crate::node::answer::constraint::ConstraintPool;
use crate::node::answer::plan_pool::PlanPool;
use crate::node::answer::prompt_reader::PromptReaders;
use crate::node::answer::queue::Queue;
use crate::node::answer::readiness::ReadinessCache;

/// See the module. Each field bounds its own work.
#[derive(Default)]
pub(crate) struct AnswerState {
    /// Waiting requests.
    pub queue: Queue,
    pub readers: PromptReaders,
    pub planners: PlanPool,
    pub constraints: ConstraintPool,
    pub readiness: ReadinessCache,
}
