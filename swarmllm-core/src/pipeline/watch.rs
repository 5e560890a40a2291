//! Watches hosts that should have answered: a machine that is frozen or cut off keeps its connection for long, and says
//! nothing.
//!
//! That an answer is late is no reason to give its host up, since a step may take any time; it is one to ask whether the
//! host is there. Who does not answer that within [`ANSWERS`] is silent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use futures::future::join_all;

use crate::base::{ErrorKind, NodeId};
use crate::net::NetHandle;
use crate::pipeline::control::request;
use crate::wire::control::Request;

/// Time after which an answer is late, at least.
const LATE: Duration = Duration::from_millis(500);
/// So many times the time that answers take is late.
const TIMES: u32 = 4;
/// Answers whose time is remembered. The longest of 64 stands for the 99th percentile.
const REMEMBERED: usize = 64;
/// A host that is there says so within this time: its control streams wait for no computation.
pub const ANSWERS: Duration = Duration::from_secs(1);

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

    /// When they are to be asked again who were all there at `now`, having been asked at `late`: less and less often.
    pub fn later(&self, late: Instant, now: Instant) -> Instant {
        now + late.saturating_duration_since(self.heard)
    }

    /// Waits until an answer is late and hosts are silent; gives those. Cancel-safe.
    pub async fn silent(&self, net: &NetHandle, hosts: &[NodeId]) -> Vec<NodeId> {
        let mut late = self.late_at();
        loop {
            tokio::time::sleep_until(late.into()).await;
            let answers = join_all(hosts.iter().map(|host| is_silent(net, *host))).await;
            let silent: Vec<NodeId> =
                hosts.iter().zip(answers).filter(|(_, silent)| *silent).map(|(host, _)| *host).collect();
            if !silent.is_empty() {
                return silent;
            }
            late = self.later(late, Instant::now());
        }
    }
}

/// Whatever is answered, a refusal too, is an answer; that a connection is gone is told elsewhere. Perhaps only the connection
/// is of no use any more, so that another is tried.
pub async fn is_silent(net: &NetHandle, host: NodeId) -> bool {
    let asked = request(net, host, &Request::Alive, ANSWERS).await;
    let silent = asked.is_err_and(|fault| fault.kind() == ErrorKind::Timeout);
    if silent {
        net.doubt(host);
    }
    silent
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
