//! `swarmllm import`: splits a GGUF, local or on the web, into shards.

use std::process::ExitCode;

use swarmllm_core::node::ImportOptions;

use super::models;
use crate::INTERRUPTED;
use crate::args::ImportArgs;
use crate::context::{Context, close};
use crate::failure::Failure;
use crate::print;
use crate::progress::Bar;
use crate::signals::StopSignal;

pub async fn import(context: &Context, args: ImportArgs) -> Result<ExitCode, Failure> {
    let node = context.offline().await?;
    let bar = Bar::new("importing", context.json);
    let (parts, name) = (args.from.parts(), args.name.clone());
    let options = ImportOptions { name, parts, anyway: args.anyway, progress: Some(bar.callback()) };
    let imported = match args.from.address() {
        None => node.import(&args.from.source, options).await.map(Some),
        Some(address) => {
            let mut stop = StopSignal::listen()?;
            tokio::select! {
                imported = node.import_url(context.web(address), options) => imported.map(Some),
                // Fetched bytes are kept: the next import of the file continues from there.
                () = stop.received() => Ok(None),
            }
        }
    };
    drop(bar);
    close(node).await;
    match imported? {
        Some(model) => {
            model.warnings.iter().for_each(|warning| print::note(&print::clean(&format!("warning: {warning}"))));
            models::show(context, &[model]).map(|()| ExitCode::SUCCESS)
        }
        None => Ok(ExitCode::from(INTERRUPTED)),
    }
}
