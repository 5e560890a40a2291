//! Detects silent hosts: a machine that is frozen or cut off keeps its connection for long and sends nothing.
//!
//! A late answer is no reason to drop its host, since a step may take any time; it is a reason to probe the host. A
//! host that does not reply within [`ANSWER_TIMEOUT`] is silent. The probe names the stage: a host that lost its last
//! connection to the coordinator has ended the stage, while a coordinator that already had the next connection has
//! noticed nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::base::{ErrorKind, NodeId, SessionId};
use crate::net::NetHandle;
use crate::pipeline::link::request::{ANSWER_TIMEOUT, request};
use crate::pipeline::link::router::SessionStage;
use crate::wire::control::{Reply, Request};

/// Least time after which an answer is late.
const MIN_LATE: Duration = Duration::from_millis(500);
/// An answer is late after the slowest recent one times this factor.
const LATE_FACTOR: u32 = 4;
/// Answers whose time is remembered. The longest of 64 stands for the 99th percentile.
const REMEMBERED: usize = 64;
/// A waiting session probes its stages at least this often, by which hosts know that it still exists.
pub const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Most peers that are probed at once.
const MAX_PROBED_AT_ONCE: usize = 16;

/// Latency of a session's answers, and when one is late.
pub struct AnswerLatency {
    last_answer: Instant,
    recent: VecDeque<Duration>,
}

impl AnswerLatency {
    /// Answers are expected from now on.
    pub fn new(now: Instant) -> Self {
        Self { last_answer: now, recent: VecDeque::with_capacity(REMEMBERED) }
    }

    /// Records an answer and the time since its step was sent.
    pub fn record(&mut self, latency: Duration, now: Instant) {
        self.last_answer = now;
        if self.recent.len() == REMEMBERED {
            self.recent.pop_front();
        }
        self.recent.push_back(latency);
    }

    fn patience(&self) -> Duration {
        MIN_LATE.max(self.recent.iter().max().copied().unwrap_or_default() * LATE_FACTOR)
    }

    /// When the next answer is late, and the hosts are to be probed.
    pub fn late_at(&self) -> Instant {
        self.last_answer + self.patience()
    }

    /// When to probe again hosts that were all alive at `now`, after a probe that was due at `late`: at growing
    /// intervals, up to [`KEEP_ALIVE`].
    pub fn next_probe_at(&self, late: Instant, now: Instant) -> Instant {
        now + late.saturating_duration_since(self.last_answer).min(KEEP_ALIVE)
    }
}

/// Probes hosts for their stages. Cancel-safe.
pub async fn probe_hosts(net: &NetHandle, stages: &[(NodeId, SessionStage)]) -> UnresponsiveHosts {
    let asked = stages.iter().map(async |(host, stage)| (*host, probe(net, *host, *stage, || ()).await));
    let answers = join_all(asked).await;
    let with = |result| answers.iter().filter(|answer| answer.1 == result).map(|(host, _)| *host).collect();
    UnresponsiveHosts { gone: with(ProbeResult::Gone), silent: with(ProbeResult::Silent) }
}

/// Hosts that will not answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UnresponsiveHosts {
    /// They reply and have lost their stages.
    pub gone: Vec<NodeId>,
    /// They do not reply.
    pub silent: Vec<NodeId>,
}

/// Result of probing a host for a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ProbeResult {
    Alive,
    Silent,
    Gone,
}

/// Any reply, even a refusal, shows that the host is alive; a lost connection is reported elsewhere. A missing reply
/// may be the connection's fault, so the connection is suspected (and `late` called) before the host is given up.
async fn probe(net: &NetHandle, host: NodeId, stage: SessionStage, late: impl FnOnce()) -> ProbeResult {
    let SessionStage { session, epoch, stage } = stage;
    let alive = Request::Alive { session, epoch, stage };
    let answer = request(net, host, &alive, ANSWER_TIMEOUT);
    tokio::pin!(answer);
    let in_time = tokio::time::timeout(late_after(net, host), &mut answer).await;
    let answer = match in_time {
        Ok(answer) => answer,
        Err(_) => {
            net.suspect(host);
            late();
            answer.await
        }
    };
    match answer {
        Ok(Reply::Alive { serves: false }) => ProbeResult::Gone,
        Err(fault) if fault.kind() == ErrorKind::Timeout => ProbeResult::Silent,
        _ => ProbeResult::Alive,
    }
}

/// Time after which a reply of this host is late.
fn late_after(net: &NetHandle, host: NodeId) -> Duration {
    let rtt = net.peers().lookup(host).and_then(|peer| peer.rtt).unwrap_or_default();
    MIN_LATE.max(rtt * LATE_FACTOR)
}

/// Whether a host that may still load its stage is silent; `late` is called as soon as its reply is late.
pub async fn is_silent(net: &NetHandle, host: NodeId, stage: SessionStage, late: impl FnOnce()) -> bool {
    probe(net, host, stage, late).await == ProbeResult::Silent
}

/// Keeps open stages alive until their first step, by repeated probes.
pub async fn keep_alive(net: &NetHandle, stages: &[(NodeId, SessionStage)]) -> Infallible {
    loop {
        tokio::time::sleep(KEEP_ALIVE).await;
        let asked = stages.iter().map(|(host, SessionStage { session, epoch, stage })| {
            let alive = Request::Alive { session: *session, epoch: *epoch, stage: *stage };
            async move { request(net, *host, &alive, ANSWER_TIMEOUT).await }
        });
        join_all(asked).await;
    }
}

/// Probes peers, so that hanging connections are replaced before they are needed.
pub async fn probe_all(net: &NetHandle, peers: impl Iterator<Item = NodeId>) {
    let nothing = SessionStage { session: SessionId([0; 16]), epoch: 0, stage: 0 };
    let connected = peers.filter(|peer| net.peers().lookup(*peer).is_some_and(|peer| peer.connected));
    join_all(connected.take(MAX_PROBED_AT_ONCE).map(|peer| probe(net, peer, nothing, || ()))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_late_after_four_times_the_slowest_recent_one() {
        let now = Instant::now();
        let mut latency = AnswerLatency::new(now);
        assert_eq!(latency.patience(), MIN_LATE);
        latency.record(Duration::from_millis(20), now);
        assert_eq!(latency.patience(), MIN_LATE);
        latency.record(Duration::from_millis(900), now);
        assert_eq!(latency.patience(), Duration::from_millis(3600));
        (0..REMEMBERED).for_each(|_| latency.record(Duration::from_millis(150), now));
        assert_eq!(latency.patience(), Duration::from_millis(600));
    }
}
