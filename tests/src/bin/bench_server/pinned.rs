//! Emulates two single-core machines on one machine: two processes, each pinned to its own core by `taskset` with half of
//! the model, against one process with the whole model on one of these cores.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use swarmllm_tests::cluster::{Transport, await_plan, join, stage_parts, unique_network};
use swarmllm_tests::models::TestModel;

use crate::subject::{Subject, Text, node, text_of};
use crate::wan::hold_first;
use crate::{DECODE, Figures, ROUNDS, SESSIONS, SHORT, number, record, threads};

/// First argument of this program as one of the two processes; the model's name follows.
pub const NEAR: &str = "--pinned-near";
pub const FAR: &str = "--pinned-far";

/// The cores.
const CORES: [&str; 2] = ["0", "1"];

fn pinned(core: &str, role: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(std::env::current_exe().expect("this program has a path")).arg(role);
    command
}

/// Measures a model in a separate process, which adds its figures to the report.
pub fn measure_apart(model: TestModel) {
    let ended = pinned(CORES[0], NEAR).arg(model.name()).status();
    if !ended.is_ok_and(|status| status.success()) {
        println!(
            "cannot pin processes (needs two cores and `taskset`): the pinned parts of {} are skipped",
            model.name()
        );
    }
}

/// The process with the second half. Ends on drop.
struct Far {
    child: Child,
    address: String,
}

impl Far {
    fn start(model: TestModel, network: &str) -> Far {
        let mut command = pinned(CORES[1], FAR);
        command.arg(model.name()).arg(network).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the other process starts");
        let mut address = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut address).expect("it prints its address");
        Far { child, address: address.trim().to_owned() }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process with the second half: prints its address and runs until its input ends.
pub async fn far(model: TestModel, network: &str) {
    let host = node(network, threads()).await;
    let cut = model.cut(2);
    host.import(&model.path(), model.name(), stage_parts(&cut, 1)).await;
    println!("{}", host.node.addresses()[0]);
    let wait = || std::io::stdin().read_to_end(&mut Vec::new());
    let _ = tokio::task::spawn_blocking(wait).await;
    host.stop().await;
}

/// The process with the first half: the coordinator.
pub async fn near(model: TestModel, figures: &mut Figures) {
    println!("{} threads per process, one core each", threads());
    let (path, network) = (model.path(), unique_network());
    let (whole, _member) = Subject::ours(&path, model.name()).await;
    let asker = node(&network, threads()).await;
    let id = hold_first(&asker.node, model, 2).await;
    let far = Far::start(model, &network);
    join(&asker.node, std::slice::from_ref(&far.address), Transport::Tcp).await;
    await_plan(&asker.node, id).await;
    let split = Subject::of(&asker.node, id);
    compare(&whole, &split, prefix(&path), &mut text_of(&path), figures).await;
}

/// Prefix of a model's figures.
fn prefix(path: &Path) -> &'static str {
    if path == TestModel::SmolLm2.path() { "" } else { "pair_" }
}

async fn compare(whole: &Subject, split: &Subject, prefix: &str, text: &mut Text, figures: &mut Figures) {
    let (mut one, mut exact, mut eight) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        let prompt = text.cut(SHORT);
        let token = async |subject: &Subject| subject.ask(&prompt, DECODE).await.token();
        let plain = token(whole).await / token(split).await;
        let (whole_exact, split_exact) = (whole.exact(), split.exact());
        let exactly = token(&whole_exact).await / token(&split_exact).await;
        let prompts: Vec<Vec<u32>> = (0..SESSIONS).map(|_| text.cut(SHORT)).collect();
        let together = whole.crowd(&prompts, DECODE).await;
        let apart = split.crowd(&prompts, DECODE).await;
        if round > 0 {
            one.push(plain);
            exact.push(exactly);
            eight.push(apart / together);
        }
    }
    record(figures, &format!("{prefix}split2_pinned"), ">= 0.95", one);
    record(figures, &format!("{prefix}split2_exact_pinned"), ">= 0.95", exact);
    record(figures, &format!("{prefix}split2_batch8_pinned"), ">= 1.5", eight);
}
