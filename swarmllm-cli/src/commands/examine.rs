//! `swarmllm examine`: checks what of a GGUF cannot run here.

use std::process::ExitCode;

use swarmllm_core::node::{ImportOptions, ImportReport};

use crate::args::ExamineArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::print;

/// Fails if an import would be refused. Needs no data directory, so a node may run at the same time.
pub async fn examine(context: &Context, args: &ExamineArgs) -> Result<ExitCode, Failure> {
    let builder = context.builder()?;
    let options = ImportOptions { parts: args.from.parts(), ..ImportOptions::default() };
    let report = match args.from.address() {
        None => builder.examine(&args.from.source, options).await?,
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
        (true, _) => "cannot run here; `swarmllm import --anyway` keeps it for other nodes. Reasons:",
        (false, false) => "can run here. Limits:",
        (false, true) => "can run here",
    };
    let first = format!("architecture {}: {verdict}", report.architecture);
    std::iter::once(first).chain(report.warnings().into_iter().map(|warning| format!("- {warning}"))).collect()
}

#[cfg(test)]
mod tests {
    use swarmllm_core::base::ErrorKind;
    use swarmllm_core::node::{Finding, Subject};

    use super::*;

    #[test]
    fn the_verdict_precedes_the_reasons() {
        let finding = |subject, refuses| Finding {
            subject,
            kind: ErrorKind::BadTokenizer,
            reason: "because of this".to_owned(),
            refuses,
        };
        let said = |findings| shown(&ImportReport { architecture: "llama".to_owned(), findings }).join("\n");
        assert_eq!(said(Vec::new()), "architecture llama: can run here");
        let refused = said(vec![finding(Subject::Tokenizer, true)]);
        assert!(
            refused.starts_with("architecture llama: cannot run here; ")
                && refused.ends_with("Reasons:\n- because of this")
        );
        let mute = said(vec![finding(Subject::Template, false)]);
        assert_eq!(
            mute,
            "architecture llama: can run here. Limits:\n- it completes plain text and cannot chat: because of this"
        );
    }
}
