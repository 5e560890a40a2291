//! The commands, a file for each.

mod alias;
mod balances;
mod chat;
mod doctor;
mod examine;
mod import;
mod invite;
mod models;
mod peers;
mod pin;
mod plan;
mod pull;
mod remove;
mod run;

use std::process::ExitCode;

use swarmllm_core::base::LayerRange;

use crate::args::{Cli, Command};
use crate::config::Flags;
use crate::context::Context;
use crate::failure::Failure;

/// Runs a command.
pub async fn run(cli: Cli) -> Result<ExitCode, Failure> {
    let flags = match &cli.command {
        Command::Run(args) => args.flags(),
        Command::Chat(args) => args.node.flags(),
        Command::Pull(args) => args.flags(),
        Command::Peers(args) => args.node.flags(),
        Command::Plan(args) => args.node.flags(),
        Command::Balances(args) => Flags { network: args.network.clone(), ..Flags::default() },
        Command::Invite(args) => args.run.flags(),
        Command::Import(args) => args.flags(),
        Command::Models | Command::Examine(_) | Command::Alias(_) | Command::Unalias(_) => Flags::default(),
        Command::Pin(_) | Command::Unpin(_) | Command::Remove(_) => Flags::default(),
        Command::Join(_) | Command::Doctor => Flags::default(),
    };
    let context = Context::load(&cli.global, &flags)?;
    match cli.command {
        Command::Run(args) => run::run(&context, args.invite).await,
        Command::Chat(args) => chat::chat(&context, args).await,
        Command::Import(args) => import::import(&context, args).await,
        Command::Examine(args) => examine::examine(&context, &args).await,
        Command::Pull(args) => pull::pull(&context, args).await,
        Command::Models => models::models(&context).await,
        Command::Alias(args) => alias::alias(&context, &args).await,
        Command::Unalias(args) => alias::unalias(&context, &args.alias).await,
        Command::Pin(args) => pin::pin(&context, &args.model, true).await,
        Command::Unpin(args) => pin::pin(&context, &args.model, false).await,
        Command::Remove(args) => remove::remove(&context, &args.model).await,
        Command::Plan(args) => plan::plan(&context, args).await,
        Command::Peers(args) => peers::peers(&context, args).await,
        Command::Balances(_) => balances::balances(&context).await,
        Command::Invite(args) => invite::invite(&context, args.days).await,
        Command::Join(args) => invite::join(&context, &args.invite).await,
        Command::Doctor => doctor::doctor(&context).await,
    }
}

/// Ranges of layers as text.
fn ranges(ranges: &[LayerRange]) -> String {
    match ranges {
        [] => "-".to_owned(),
        ranges => ranges.iter().map(LayerRange::to_string).collect::<Vec<_>>().join(","),
    }
}
