//! Two machines with a core each, as far as one machine with two can show them: two processes, each pinned to a core of its own
//! by `taskset`, with half a model each, against one process with the whole model on one of these cores.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use swarmllm_tests::cluster::{Carrier, await_plan, join, lonely_network, stage_parts};
use swarmllm_tests::models::TestModel;

use crate::asked::{Asked, Text, node, text_of};
use crate::far::hold_first;
use crate::{DECODE, Figures, ROUNDS, SESSIONS, SHORT, number, tell, threads};

/// First arguments of this program where it is one of the two processes; the model's name follows.
pub const NEAR: &str = "--pinned-near";
pub const FAR: &str = "--pinned-far";

/// The cores.
const CORES: [&str; 2] = ["0", "1"];

fn pinned(core: &str, role: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", core]).arg(std::env::current_exe().expect("this program has a path")).arg(role);
    command
}

/// Measures a model in a process of its own, which adds its figures to the report.
pub fn measure_apart(model: TestModel) {
    let ended = pinned(CORES[0], NEAR).arg(model.name()).status();
    if !ended.is_ok_and(|status| status.success()) {
        println!("no two cores, or no `taskset`, to pin processes to: what {} gives so is left out", model.name());
    }
}

/// The far half, in a process of its own. Ends when this is dropped.
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
        let told = child.stdout.take().expect("it is piped");
        BufReader::new(told).read_line(&mut address).expect("it says where it is");
        Far { child, address: address.trim().to_owned() }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The process of the second half: says its address, and stays until its input ends.
pub async fn far(model: TestModel, network: &str) {
    let host = node(network, threads()).await;
    let cut = model.cut(2);
    host.import(&model.path(), model.name(), stage_parts(&cut, 1)).await;
    println!("{}", host.node.addresses()[0]);
    let wait = || std::io::stdin().read_to_end(&mut Vec::new());
    let _ = tokio::task::spawn_blocking(wait).await;
    host.stop().await;
}

/// The process of the first half, which asks.
pub async fn near(model: TestModel, figures: &mut Figures) {
    println!("{} threads on a core of its own each", threads());
    let (path, network) = (model.path(), lonely_network());
    let (whole, _member) = Asked::ours(&path, model.name()).await;
    let asker = node(&network, threads()).await;
    let id = hold_first(&asker.node, model, 2).await;
    let far = Far::start(model, &network);
    join(&asker.node, std::slice::from_ref(&far.address), Carrier::Tcp).await;
    await_plan(&asker.node, id).await;
    let split = Asked::of(&asker.node, id);
    compare(&whole, &split, prefix(&path), &mut text_of(&path), figures).await;
}

/// What the figures of a model begin with.
fn prefix(path: &Path) -> &'static str {
    if path == TestModel::SmolLm2.path() { "" } else { "pair_" }
}

async fn compare(whole: &Asked, split: &Asked, prefix: &str, text: &mut Text, figures: &mut Figures) {
    let (mut one, mut exact, mut eight) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=number("BENCH_ROUNDS", ROUNDS) {
        let prompt = text.cut(SHORT);
        let token = async |asked: &Asked| asked.ask(&prompt, DECODE).await.token();
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
    tell(figures, &format!("{prefix}split2_pinned"), ">= 0.95", one);
    tell(figures, &format!("{prefix}split2_exact_pinned"), ">= 0.95", exact);
    tell(figures, &format!("{prefix}split2_batch8_pinned"), ">= 1.5", eight);
}
