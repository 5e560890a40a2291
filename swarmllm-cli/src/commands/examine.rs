//! `swarmllm examine`: what of a GGUF cannot run here.

use std::process::ExitCode;

use swarmllm_core::node::{ImportOptions, ImportReport};

use crate::args::ExamineArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::print;

/// Fails where an import would be refused. Needs no data directory, so that a node may run beside it.
pub async fn examine(context: &Context, args: &ExamineArgs) -> Result<ExitCode, Failure> {
    let builder = context.builder()?;
    let options = ImportOptions { parts: args.parts(), ..ImportOptions::default() };
    let report = match args.address() {
        None => builder.examine(&args.source, options).await?,
        Some(address) => builder.examine_url(context.web(address), options).await?,
    };
    match context.json {
        true => print::json(&report)?,
        false => print::line(&print::clean(&shown(&report).join("\n")))?,
    }
    Ok(if report.refuses() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn shown(report: &ImportReport) -> Vec<String> {
    let verdict = match (report.refuses(), report.warnings().is_empty()) {
        (true, _) => "cannot run here; `swarmllm import --anyway` keeps it for others",
        (false, false) => "can run here, with less than its file says",
        (false, true) => "can run here",
    };
    let first = format!("{}: {verdict}", report.architecture);
    std::iter::once(first).chain(report.warnings().into_iter().map(|warning| format!("- {warning}"))).collect()
}
