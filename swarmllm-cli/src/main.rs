//! The command line of swarmllm.
//!
//! It uses the library's public API and adds what the library leaves to its host: signals, logs, configuration files and
//! printing. `commands` has a file per command. Exit codes: 0 success, 1 failure, 2 wrong usage, 130 interrupted.

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

/// Runtime threads for sockets and files; engines have threads of their own.
const WORKERS: usize = 2;
/// Exit code of an interrupted command, as in shells.
pub const INTERRUPTED: u8 = 130;
/// Time for background work after the command has ended.
const RUNTIME_SHUTDOWN: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.global.json;
    init_logs(cli.global.verbose);
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(WORKERS).enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return Failure::new(ErrorKind::Io, format!("cannot start threads: {cause}")).report(json),
    };
    let ended = runtime.block_on(commands::run(cli));
    runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
    ended.unwrap_or_else(|failure| failure.report(json))
}

/// Logs go to stderr, at `warn` or more by `-v`; `RUST_LOG` takes precedence.
fn init_logs(verbose: u8) {
    let level = match verbose {
        // Without peers, Kademlia warns repeatedly.
        0 => "warn,libp2p_kad=error",
        1 => "info,swarmllm_core=debug,libp2p_kad=error",
        2 => "debug",
        _ => "trace",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| level.into());
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours).with_writer(std::io::stderr).init();
}
