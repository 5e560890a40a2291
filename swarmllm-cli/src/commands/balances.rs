//! `swarmllm balances`: the balance with each peer.

use std::process::ExitCode;

use swarmllm_core::ledger::Balance;

use crate::context::{Context, close};
use crate::failure::Failure;
use crate::print;

pub async fn balances(context: &Context) -> Result<ExitCode, Failure> {
    let node = context.offline().await?;
    let balances = node.balances();
    close(node).await;
    show(context, &balances)?;
    Ok(ExitCode::SUCCESS)
}

fn show(context: &Context, balances: &[Balance]) -> Result<(), Failure> {
    if context.json {
        return print::json(&balances);
    }
    if balances.is_empty() {
        print::note("no peer has computed for this node, and this node for no peer");
        return Ok(());
    }
    let rows: Vec<[String; 4]> = balances.iter().map(row).collect();
    print::line(&print::table(["peer", "earned", "spent", "balance"], &rows))
}

fn row(balance: &Balance) -> [String; 4] {
    let difference = i128::from(balance.earned) - i128::from(balance.spent);
    [balance.peer.short(), balance.earned.to_string(), balance.spent.to_string(), format!("{difference:+}")]
}
