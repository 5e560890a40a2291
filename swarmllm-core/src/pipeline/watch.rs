//! Watches hosts that should have answered: a machine that is frozen or cut off keeps its connection for long, and says
//! nothing.
//!
//! That an answer is late is no reason to give its host up, since a step may take any time; it is one to ask whether the
//! host is there. Who does not answer that within [`ANSWERS`] is silent. And it is asked for its stage: a host that lost its
//! last connection to the coordinator has ended it, while the coordinator, which had the next one already, has noticed
//! nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::base::{ErrorKind, NodeId, SessionId};
use crate::net::NetHandle;
use crate::pipeline::control::request;
use crate::pipeline::links::SessionStage;
use crate::wire::control::{Reply, Request};

/// Time after which an answer is late, at least.
const LATE: Duration = Duration::from_millis(500);
/// So many times the time that answers take is late.
const TIMES: u32 = 4;
/// Answers whose time is remembered. The longest of 64 stands for the 99th percentile.
const REMEMBERED: usize = 64;
/// A host that is there says so within this time: its control streams wait for no computation.
pub const ANSWERS: Duration = Duration::from_secs(1);
/// A session that waits asks its hosts for their stages this often at least, by which they know that it is there.
pub const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Peers that are asked at once whether they are there.
const MOST_ROUSED: usize = 16;

/// How long a session's answers take, and when one is late.
pub struct Watch {
    heard: Instant,
    took: VecDeque<Duration>,
}

impl Watch {
    /// Hosts answer from now on.
    pub fn new(now: Instant) -> Self {
        Self { heard: now, took: VecDeque::with_capacity(REMEMBERED) }
    }

    /// An answer has come, so long after its step was sent.
    pub fn heard(&mut self, took: Duration, now: Instant) {
        self.heard = now;
        if self.took.len() == REMEMBERED {
            self.took.pop_front();
        }
        self.took.push_back(took);
    }

    fn patience(&self) -> Duration {
        LATE.max(self.took.iter().max().copied().unwrap_or_default() * TIMES)
    }

    /// When an answer is late, and hosts are to be asked whether they are there.
    pub fn late_at(&self) -> Instant {
        self.heard + self.patience()
    }

    /// When they are to be asked again who were all there at `now`, having been asked at `late`: less and less often, down to
    /// once in [`KEEP_ALIVE`].
    pub fn later(&self, late: Instant, now: Instant) -> Instant {
        now + late.saturating_duration_since(self.heard).min(KEEP_ALIVE)
    }
}

/// Asks hosts for their stages. Cancel-safe.
pub async fn attendance(net: &NetHandle, stages: &[(NodeId, SessionStage)]) -> Absent {
    let asked = stages.iter().map(async |(host, stage)| (*host, presence(net, *host, *stage, || ()).await));
    let answers = join_all(asked).await;
    let who = |presence| answers.iter().filter(|answer| answer.1 == presence).map(|(host, _)| *host).collect();
    Absent { gone: who(Presence::Gone), silent: who(Presence::Silent) }
}

/// Hosts that an answer waits for in vain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Absent {
    /// They are there, and have their stages no more.
    pub gone: Vec<NodeId>,
    /// They do not say that they are there.
    pub silent: Vec<NodeId>,
}

/// What a host says of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Presence {
    Here,
    Silent,
    Gone,
}

/// Whatever is answered, a refusal too, is an answer; that a connection is gone is told elsewhere. Where no answer comes it
/// may be for the connection, so that it is doubted before the host is given up.
async fn presence(net: &NetHandle, host: NodeId, stage: SessionStage, late: impl FnOnce()) -> Presence {
    let SessionStage { session, epoch, stage } = stage;
    let alive = Request::Alive { session, epoch, stage };
    let answer = request(net, host, &alive, ANSWERS);
    tokio::pin!(answer);
    let in_time = tokio::time::timeout(in_time(net, host), &mut answer).await;
    let answer = match in_time {
        Ok(answer) => answer,
        Err(_) => {
            net.doubt(host);
            late();
            answer.await
        }
    };
    match answer {
        Ok(Reply::Alive { serves: false }) => Presence::Gone,
        Err(fault) if fault.kind() == ErrorKind::Timeout => Presence::Silent,
        _ => Presence::Here,
    }
}

/// An answer of this host that comes later than this is late.
fn in_time(net: &NetHandle, host: NodeId) -> Duration {
    let rtt = net.peers().lookup(host).and_then(|peer| peer.rtt).unwrap_or_default();
    LATE.max(rtt * TIMES)
}

/// Whether a host that may not have its stage yet says nothing; `late` is called as soon as that seems so.
pub async fn is_silent(net: &NetHandle, host: NodeId, stage: SessionStage, late: impl FnOnce()) -> bool {
    presence(net, host, stage, late).await == Presence::Silent
}

/// Asks hosts for the stage of a session again and again, so that they keep it until its first step.
pub async fn keep(net: &NetHandle, stages: &[(NodeId, SessionStage)]) -> Infallible {
    loop {
        tokio::time::sleep(KEEP_ALIVE).await;
        let asked = stages.iter().map(|(host, SessionStage { session, epoch, stage })| {
            let alive = Request::Alive { session: *session, epoch: *epoch, stage: *stage };
            async move { request(net, *host, &alive, ANSWERS).await }
        });
        join_all(asked).await;
    }
}

/// Asks peers whether they are there, only so that connections to them that hang are replaced before they are needed.
pub async fn rouse(net: &NetHandle, peers: impl Iterator<Item = NodeId>) {
    let nothing = SessionStage { session: SessionId([0; 16]), epoch: 0, stage: 0 };
    let connected = peers.filter(|peer| net.peers().lookup(*peer).is_some_and(|peer| peer.connected));
    join_all(connected.take(MOST_ROUSED).map(|peer| presence(net, peer, nothing, || ()))).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_late_after_half_a_second_or_four_times_what_the_slowest_of_the_last_took() {
        let now = Instant::now();
        let mut watch = Watch::new(now);
        assert_eq!(watch.patience(), LATE);
        watch.heard(Duration::from_millis(20), now);
        assert_eq!(watch.patience(), LATE);
        watch.heard(Duration::from_millis(900), now);
        assert_eq!(watch.patience(), Duration::from_millis(3600));
        (0..REMEMBERED).for_each(|_| watch.heard(Duration::from_millis(150), now));
        assert_eq!(watch.patience(), Duration::from_millis(600));
    }
}
