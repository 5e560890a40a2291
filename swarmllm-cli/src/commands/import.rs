//! `swarmllm import`: cuts a GGUF, from here or from the web, into shards.

use std::process::ExitCode;

use swarmllm_core::node::ImportOptions;

use super::models;
use crate::INTERRUPTED;
use crate::args::ImportArgs;
use crate::context::{Context, close};
use crate::failure::Failure;
use crate::print;
use crate::progress::Bar;
use crate::signals::Stop;

pub async fn import(context: &Context, args: ImportArgs) -> Result<ExitCode, Failure> {
    let node = context.offline().await?;
    let bar = Bar::new("importing", context.json);
    let (parts, name) = (args.parts(), args.name.clone());
    let options = ImportOptions { name, parts, anyway: args.anyway, progress: Some(bar.mover()) };
    let imported = match args.address() {
        None => node.import(&args.source, options).await.map(Some),
        Some(address) => {
            let mut stop = Stop::listen()?;
            tokio::select! {
                imported = node.import_url(context.web(address), options) => imported.map(Some),
                // What came is kept: the next import of it goes on from there.
                () = stop.told() => Ok(None),
            }
        }
    };
    drop(bar);
    close(node).await;
    match imported? {
        Some(model) => {
            model.warnings.iter().for_each(|warning| print::note(&print::clean(&format!("warning: {warning}"))));
            models::tell(context, &[model]).map(|()| ExitCode::SUCCESS)
        }
        None => Ok(ExitCode::from(INTERRUPTED)),
    }
}
