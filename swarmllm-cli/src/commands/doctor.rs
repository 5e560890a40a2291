//! `swarmllm doctor`: checks whether this machine can take part.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use swarmllm_core::base::{Bytes, ErrorKind};
use swarmllm_core::node::NodeStatus;

use crate::context::{Context, close};
use crate::failure::Failure;
use crate::print;

/// Free memory below which only tiny models run.
const LOW_MEMORY: u64 = 2 << 30;
/// Free disk space below which few models fit.
const LOW_DISK: u64 = 5 << 30;
/// 2026-01-01, before this version: an earlier clock is wrong.
const EARLIEST: Duration = Duration::from_secs(1_767_225_600);
/// 2100-01-01.
const LATEST: Duration = Duration::from_secs(4_102_444_800);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    verdict: Verdict,
    found: String,
    /// Advice.
    #[serde(skip_serializing_if = "Option::is_none")]
    advice: Option<&'static str>,
}

impl Check {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn warn(check: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self { check, verdict: Verdict::Warn, found: found.into(), advice: Some(advice) }
    }

    fn fail(check: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self { check, verdict: Verdict::Fail, found: found.into(), advice: Some(advice) }
    }
}

pub async fn doctor(context: &Context) -> Result<ExitCode, Failure> {
    let mut checks = node(context).await;
    checks.extend([cpu(), memory(), disk(&context.data_dir)]);
    checks.extend(ports(context));
    checks.push(clock(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()));
    match context.json {
        true => print::json(&checks)?,
        false => print::line(&shown(&checks))?,
    }
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn shown(checks: &[Check]) -> String {
    let line = |check: &Check| {
        let verdict = match check.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "fail",
        };
        let advice = check.advice.map(|advice| format!("\n      -> {advice}")).unwrap_or_default();
        format!("{verdict}  {}: {}{advice}", check.check, print::clean(&check.found))
    };
    checks.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// Starts a node without network, which checks the data directory and the engines.
async fn node(context: &Context) -> Vec<Check> {
    let place = context.data_dir.display();
    match context.offline().await {
        Ok(node) => {
            let status = node.status();
            close(node).await;
            let place = Check::ok("data directory", format!("{place}, node {}", status.id.short()));
            vec![place, engines(&status), accelerators(&status)]
        }
        Err(failure) if failure.kind == ErrorKind::DataDirBusy => {
            let advice = "fine if that is your node; otherwise stop it, or choose another directory with --data-dir";
            vec![Check::warn("data directory", format!("{place} is in use by a running node"), advice)]
        }
        Err(failure) => {
            vec![Check::fail("data directory", failure.message, data_dir_advice(failure.kind))]
        }
    }
}

fn data_dir_advice(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::DiskFull => "free space on its disk; its content is intact",
        ErrorKind::StoreDamaged => {
            "do not delete it: it holds the ledger with other nodes; restore a copy, or use the build that wrote it"
        }
        _ => "make it writable, or choose another directory with --data-dir",
    }
}

fn engines(status: &NodeStatus) -> Check {
    match status.engines.is_empty() {
        false => Check::ok("engines", format!("{}, {} threads", status.engines.join(", "), status.threads)),
        true => Check::fail("engines", "none in this build", "build with the feature llama-cpp or candle"),
    }
}

fn accelerators(status: &NodeStatus) -> Check {
    match status.accelerators.is_empty() {
        false => Check::ok("accelerators", status.accelerators.join(", ")),
        true => Check::ok("accelerators", "none for this build; features are cuda, metal and vulkan"),
    }
}

fn cpu() -> Check {
    let found: Vec<&str> = cpu_features().into_iter().filter_map(|(name, has)| has.then_some(name)).collect();
    let kernels = swarmllm_core::engine::llama_cpp::kernels();
    let text = format!("{} {}; llama.cpp's kernels: {}", std::env::consts::ARCH, found.join(" "), kernels.level);
    match (found.is_empty(), kernels.missing) {
        (true, _) => Check::warn("processor", text, "no known vector instructions; answers will be slow"),
        (_, None) => Check::ok("processor", text),
        (_, Some(missing)) => {
            let text = format!("{text}; the processor supports `{}`: {}", missing.level, missing.reason);
            Check::warn("processor", text, "answers are slower than this processor allows")
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_features() -> Vec<(&'static str, bool)> {
    use std::arch::is_x86_feature_detected;
    vec![
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
    ]
}

#[cfg(target_arch = "aarch64")]
fn cpu_features() -> Vec<(&'static str, bool)> {
    use std::arch::is_aarch64_feature_detected;
    vec![
        ("neon", is_aarch64_feature_detected!("neon")),
        ("dotprod", is_aarch64_feature_detected!("dotprod")),
        ("fp16", is_aarch64_feature_detected!("fp16")),
        ("i8mm", is_aarch64_feature_detected!("i8mm")),
    ]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn cpu_features() -> Vec<(&'static str, bool)> {
    Vec::new()
}

fn memory() -> Check {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    let (free, total) = (system.available_memory(), system.total_memory());
    let text = format!("{} free of {}", Bytes(free), Bytes(total));
    match free >= LOW_MEMORY {
        true => Check::ok("memory", text),
        false => Check::warn("memory", text, "close other programs, or hold fewer layers on this machine"),
    }
}

/// Free space on the disk of the data directory, which may not exist yet.
fn disk(data_dir: &Path) -> Check {
    let place = data_dir.ancestors().find_map(|dir| dir.canonicalize().ok()).unwrap_or_else(|| data_dir.to_owned());
    let disks = sysinfo::Disks::new_with_refreshed_list();
    let holder = disks.iter().filter(|disk| place.starts_with(disk.mount_point()));
    let Some(disk) = holder.max_by_key(|disk| disk.mount_point().as_os_str().len()) else {
        return Check::warn("disk", format!("the disk of {} is unknown", place.display()), "check its free space");
    };
    let text = format!("{} free at {}", Bytes(disk.available_space()), disk.mount_point().display());
    match disk.available_space() >= LOW_DISK {
        true => Check::ok("disk", text),
        false => Check::warn("disk", text, "free some space, or choose another disk with --data-dir"),
    }
}

/// The ports of `run`.
fn ports(context: &Context) -> Vec<Check> {
    let port = context.settings.port;
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let advice = "fine if that is your node; otherwise choose another port with --port";
    let check = |what: &'static str, name: String, bound: std::io::Result<()>| match bound {
        Ok(()) => Check::ok(what, format!("{name} is free")),
        Err(cause) => Check::warn(what, format!("{name}: {cause}"), advice),
    };
    let http = SocketAddr::new(context.settings.http_address, port);
    let mut checks = vec![check("HTTP port", format!("TCP {http}"), TcpListener::bind(http).map(drop))];
    checks.push(match context.settings.p2p_port() {
        Ok(tcp) => {
            let tcp = SocketAddr::new(any, tcp);
            check("P2P port", format!("TCP {tcp}"), TcpListener::bind(tcp).map(drop))
        }
        Err(failure) => Check::fail("P2P port", failure.message, "choose another port with --port"),
    });
    let quic = SocketAddr::new(any, port);
    checks.push(check("QUIC port", format!("UDP {quic}"), UdpSocket::bind(quic).map(drop)));
    checks
}

/// `now` is the time since 1970.
fn clock(now: Duration) -> Check {
    let text = format!("{} seconds since 1970", now.as_secs());
    match (EARLIEST..LATEST).contains(&now) {
        true => Check::ok("clock", text),
        false => Check::fail("clock", text, "set the system clock; records of other nodes depend on it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unset_clock_fails() {
        assert_eq!(clock(Duration::ZERO).verdict, Verdict::Fail);
        assert_eq!(clock(LATEST).verdict, Verdict::Fail);
        assert_eq!(clock(EARLIEST).verdict, Verdict::Ok);
    }

    #[test]
    fn warnings_and_failures_come_with_advice() {
        let text = shown(&[Check::ok("a", "b"), Check::warn("c", "d", "e"), Check::fail("f", "g", "h")]);
        assert_eq!(text, "ok    a: b\nwarn  c: d\n      -> e\nfail  f: g\n      -> h");
    }
}
