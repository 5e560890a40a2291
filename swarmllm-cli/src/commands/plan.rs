//! `swarmllm plan`: which machines would answer, and how fast.

use std::process::ExitCode;

use swarmllm_core::node::Plan;

use crate::args::PlanArgs;
use crate::context::{Context, close, patiently};
use crate::failure::Failure;
use crate::print;

pub async fn plan(context: &Context, args: PlanArgs) -> Result<ExitCode, Failure> {
    let node = context.guest(&args.meet.peer).await?;
    let patience = context.patience(&args.meet);
    let plan = patiently(patience, async || node.plan(&args.model).await.map_err(Failure::from)).await;
    close(node).await;
    tell(context, &plan?)?;
    Ok(ExitCode::SUCCESS)
}

fn tell(context: &Context, plan: &Plan) -> Result<(), Failure> {
    if context.json {
        return print::json(plan);
    }
    let rows: Vec<[String; 3]> = (1..)
        .zip(&plan.stages)
        .map(|(number, stage)| {
            let head = if stage.head { "+head" } else { "" };
            [format!("{number}"), stage.node.short(), format!("{}{head}", stage.layers)]
        })
        .collect();
    print::line(&print::table(["stage", "node", "layers"], &rows))?;
    print::note(&format!(
        "about {:.1} ms a token at most; of machines that have not computed for this process yet the speed is a guess",
        plan.token_us as f64 / 1e3
    ));
    Ok(())
}
