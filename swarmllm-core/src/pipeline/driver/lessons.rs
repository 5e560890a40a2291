//! What a session teaches the sessions to come. Pure.

use super::steps::median;
use super::{Lessons, SessionDriver};
use crate::pipeline::job::StageReport;
use crate::pipeline::route::RouteStage;
use crate::pipeline::speeds::Seen;

impl SessionDriver {
    /// What it teaches the sessions to come.
    pub fn lessons(&self) -> Lessons {
        Lessons { guesses: self.session.learnt(), chunks: self.of_chunks(), speeds: self.of_speeds() }
    }

    /// What the stage whose rows took longest took. What is computed again is not what a prompt of this length takes.
    fn of_chunks(&self) -> Option<(u64, u32, u32)> {
        let slowest = self.steps.reports().iter().max_by_key(|report| report.prefill_us)?;
        let rows = (self.session.prompt_sent().len() as u32).saturating_sub(self.cached);
        let known = self.way.epoch == 0 && !slowest.decode_us.is_empty();
        known.then(|| (slowest.prefill_us, rows, median(&slowest.decode_us)))
    }

    /// How fast the hosts of the present route were. A step with guesses says nothing of a token.
    fn of_speeds(&self) -> Option<(Vec<Seen>, u32)> {
        let token_us = self.steps.median_round();
        let seen = |(report, stage): (&StageReport, &RouteStage)| Seen {
            node: report.stage.node,
            weight: stage.weight,
            told_us: median(&report.decode_us),
            rtt_us: 0,
        };
        let known = token_us > 0 && self.session.guesses().0 == 0;
        known.then(|| (self.steps.present().iter().zip(&self.way.stages).map(seen).collect(), token_us))
    }
}
