//! Progress bar of imports and downloads.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use swarmllm_core::base::Progress;
use swarmllm_core::node::ProgressFn;

/// A bar on stderr, removed on drop. Hidden if stderr is not a terminal or the output is JSON.
pub struct Bar(ProgressBar);

impl Bar {
    pub fn new(what: &str, json: bool) -> Self {
        let target = if json { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(Some(0), target).with_message(what.to_owned());
        let style = "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        Self(bar.with_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar())))
    }

    /// The callback that moves the bar.
    pub fn callback(&self) -> ProgressFn {
        let bar = self.0.clone();
        Arc::new(move |progress: Progress| {
            bar.set_length(progress.total);
            bar.set_position(progress.done);
        })
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
