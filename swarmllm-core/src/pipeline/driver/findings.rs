//! Measurements of a session, for later sessions. Pure.

use super::steps::median;
use super::{SessionDriver, SessionFindings};
use crate::pipeline::plan::speeds::StageTiming;
use crate::pipeline::route::RouteStage;
use crate::pipeline::route::StageReport;

impl SessionDriver {
    /// Measurements for later sessions.
    pub fn findings(&self) -> SessionFindings {
        SessionFindings {
            speculation: self.session.speculation_stats(),
            chunks: self.of_chunks(),
            speeds: self.of_speeds(),
        }
    }

    /// Times of the stage with the slowest rows, on the first route only: a resumed session computes more than its
    /// prompt.
    fn of_chunks(&self) -> Option<(u64, u32, u32)> {
        let slowest = self.steps.reports().iter().max_by_key(|report| report.prefill_us)?;
        let rows = (self.session.prompt_sent().len() as u32).saturating_sub(self.cached);
        let known = self.route.epoch == 0 && !slowest.decode_us.is_empty();
        known.then(|| (slowest.prefill_us, rows, median(&slowest.decode_us)))
    }

    /// Speeds of the hosts of the current route; `None` after speculation, because a step with draft tokens says
    /// nothing about a token.
    fn of_speeds(&self) -> Option<(Vec<StageTiming>, u32)> {
        let token_us = self.steps.median_round();
        let seen = |(report, stage): (&StageReport, &RouteStage)| StageTiming {
            node: report.stage.node,
            weight: stage.weight,
            reported_us: median(&report.decode_us),
            rtt_us: 0,
        };
        let known = token_us > 0 && self.session.draft_counts().0 == 0;
        known.then(|| (self.steps.present().iter().zip(&self.route.stages).map(seen).collect(), token_us))
    }
}
