//! The command line: a node for a terminal.
//!
//! A consumer of the library like any other: it adds signals, logs, configuration files and printing, which the library
//! leaves to its host. One file per command in `commands`. Exit codes: 0 done, 1 failed, 2 used wrongly, 130
//! interrupted.

mod args;
mod commands;
mod config;
mod context;
mod failure;
mod input;
mod options;
mod print;
mod progress;
mod signals;
mod units;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use swarmllm_core::base::ErrorKind;

use args::Cli;
use failure::Failure;

/// Threads that drive sockets and files; engines have threads of their own.
const WORKERS: usize = 2;
/// What shells give for a command that was interrupted.
pub const INTERRUPTED: u8 = 130;
/// What is left to background work after the command has ended.
const LAST_MOMENT: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.global.json;
    init_logs(cli.global.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return Failure::new(ErrorKind::Io, format!("no threads can be started: {cause}")).report(json),
    };
    let ended = runtime.block_on(commands::run(cli));
    runtime.shutdown_timeout(LAST_MOMENT);
    ended.unwrap_or_else(|failure| failure.report(json))
}

/// Logs go to stderr, at `warn` and as `-v` raises it; `RUST_LOG` has the last word.
fn init_logs(verbose: u8) {
    let level = match verbose {
        // Of a node that is alone the table of the swarm says so once and again.
        0 => "warn,libp2p_kad=error",
        1 => "info,swarmllm_core=debug,libp2p_kad=error",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
