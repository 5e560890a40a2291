//! `swarmllm plan`: the machines that would answer, and their speed.

use std::process::ExitCode;

use serde::Serialize;
use swarmllm_core::node::{Node, Plan};

use crate::args::PlanArgs;
use crate::context::{Context, close, retry, suggest};
use crate::failure::Failure;
use crate::print;

/// Maximum number of peers that are checked as helpers.
const MAX_HELPERS: usize = 64;

pub async fn plan(context: &Context, args: PlanArgs) -> Result<ExitCode, Failure> {
    let node = context.client(&args.meet.peer).await?;
    let patience = context.patience(&args.meet);
    suggest(&node, &args.model);
    let plan = retry(patience, async || node.plan(&args.model).await.map_err(Failure::from)).await;
    let helpers = match &plan {
        Ok(plan) => helpers(&node, &args.model, plan).await,
        Err(_) => Vec::new(),
    };
    close(node).await;
    show(context, &plan?, &helpers)?;
    Ok(ExitCode::SUCCESS)
}

/// A peer that would improve the plan if it held the model, and the improved plan.
#[derive(Serialize)]
struct Helper {
    node: String,
    plan: Plan,
}

async fn helpers(node: &Node, model: &str, plan: &Plan) -> Vec<Helper> {
    let mut helpers = Vec::new();
    for peer in node.peers().into_iter().filter(|peer| peer.connected && peer.serves).take(MAX_HELPERS) {
        // The peer may have left meanwhile.
        let Ok(with) = node.plan_if_held(model, peer.id).await else { continue };
        if (with.stages.len(), with.token_us) < (plan.stages.len(), plan.token_us) {
            helpers.push(Helper { node: peer.id.to_string(), plan: with });
        }
    }
    helpers
}

#[derive(Serialize)]
struct PlanWithHelpers<'a> {
    #[serde(flatten)]
    plan: &'a Plan,
    would_help: &'a [Helper],
}

fn show(context: &Context, plan: &Plan, helpers: &[Helper]) -> Result<(), Failure> {
    if context.json {
        return print::json(&PlanWithHelpers { plan, would_help: helpers });
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
        "at most about {:.1} ms per token; the speed of machines that have not computed for this process is an estimate",
        plan.token_us as f64 / 1e3
    ));
    for Helper { node, plan } in helpers {
        let (stages, millis) = (plan.stages.len(), plan.token_us as f64 / 1e3);
        let short = node.get(..8).unwrap_or(node);
        print::note(&format!(
            "{short} would help if it held the model: {stages} stages, about {millis:.1} ms per token"
        ));
    }
    Ok(())
}
