//! Nodes over links with delay or low bandwidth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use swarmllm_core::base::ModelId;
use swarmllm_core::node::{Codec, ImportOptions, Node, Parts};
use swarmllm_tests::cluster::{Member, Transport, await_plan, join, stage_parts, unique_network};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::slow_link::{delayed, limited_and_counted};

use crate::subject::{Subject, Text, node, start};
use crate::versus_self::edit_speedups;
use crate::{Figures, SHORT, record, threads};

/// One-way delays between nodes in milliseconds, and numbers of stages; the coordinator has the first stage.
const DELAYS: [u64; 5] = [0, 5, 10, 20, 50];
const CHAINS: [u32; 2] = [2, 3];
/// Rounds, and tokens of an answer: at most about 160 ms per token.
const FAR_ROUNDS: usize = 3;
const FAR_DECODE: u32 = 48;

/// A route with its first stage on the coordinator. `line` maps an address to its link; `awake` keeps the cores awake.
pub async fn chain(
    model: TestModel,
    stages: u32,
    awake: bool,
    line: impl Fn(&str) -> String,
) -> (Vec<Member>, ModelId) {
    let network = unique_network();
    let cut = model.cut(stages);
    let node = async || start(&network, |builder| builder.keep_awake(awake)).await;
    let coordinator = node().await;
    let id = hold_first(&coordinator.node, model, stages).await;
    let mut members = vec![coordinator];
    for index in 1..cut.len() {
        let host = node().await;
        host.import(&model.path(), model.name(), stage_parts(&cut, index)).await;
        for other in &members {
            join(&other.node, &[line(&host.node.addresses()[0])], Transport::Tcp).await;
        }
        members.push(host);
    }
    await_plan(&members[0].node, id).await;
    (members, id)
}

/// Imports the parts for a coordinator with the first stage.
pub async fn hold_first(node: &Node, model: TestModel, stages: u32) -> ModelId {
    let parts = vec![Parts::Coordinator, stage_parts(&model.cut(stages), 0)];
    let options = ImportOptions { name: Some(model.name().to_owned()), parts: Some(parts), ..ImportOptions::default() };
    node.import(&model.path(), options).await.expect("a sound GGUF is imported").id
}

/// Time per token over distant stages, relative to the time on a single node plus one one-way delay per stage.
async fn over_floor(one: &Subject, distant: &Subject, delays: Duration, text: &mut Text) -> Vec<f64> {
    let mut over = Vec::new();
    for round in 0..=FAR_ROUNDS {
        let prompt = text.cut(SHORT);
        let (near, apart) = (one.ask(&prompt, FAR_DECODE).await, distant.ask(&prompt, FAR_DECODE).await);
        let floor = near.token() + delays.as_secs_f64();
        if round > 0 {
            let [near, token, least, compute] =
                [near.compute, apart.token(), floor, apart.compute].map(|seconds| seconds * 1e3);
            println!(
                "    ms a token: {token:.2}, at least {least:.2}; of it computing {compute:.2}, on one node {near:.2}"
            );
            over.push(apart.token() / floor);
        }
    }
    over
}

/// Decode over distant stages, with sleeping cores and with cores kept awake; and the speedup by speculation.
pub async fn far(model: TestModel, text: &mut Text, figures: &mut Figures) {
    let one = node(&unique_network(), threads()).await;
    let id = one.import(&model.path(), model.name(), Parts::All).await;
    await_plan(&one.node, id).await;
    let one = Subject::of(&one.node, id);
    for stages in CHAINS {
        for delay in DELAYS {
            let way = Duration::from_millis(delay);
            let line = |address: &str| if delay == 0 { address.to_owned() } else { delayed(address, way) };
            for (awake, suffix, goal) in [(false, "_cores_asleep", ""), (true, "", "<= 1.05 and 1 ms")] {
                let (members, id) = chain(model, stages, awake, line).await;
                let distant = Subject::of(&members[0].node, id);
                let name = format!("wan{delay}_s{stages}_over_floor{suffix}");
                record(figures, &name, goal, over_floor(&one, &distant, way * stages, text).await);
                if (stages, delay, awake) == (2, 10, false) {
                    record(figures, "wan10_s2_ngram_edit_speedup", ">= 2", edit_speedups(&distant).await);
                }
            }
        }
    }
}

/// Bandwidth of the slow link in bytes per second (20 Mbit/s), and the tokens of the prompt over it.
const NARROW: u32 = 20_000_000 / 8;
const NARROW_PROMPT: usize = 1000;

/// Prefill over a slow link with each codec: bytes sent, and time relative to the transmission time of these bytes.
pub async fn narrow(model: TestModel, text: &mut Text, figures: &mut Figures) {
    let carried = Arc::new(AtomicU64::new(0));
    let (members, id) = chain(model, 2, false, |address| limited_and_counted(address, NARROW, &carried)).await;
    for wire in [Codec::F32, Codec::Bf16, Codec::Int8] {
        let subject = Subject::of(&members[0].node, id).with(|options| options.wire = wire);
        let (mut bytes, mut over) = (Vec::new(), Vec::new());
        for round in 0..=FAR_ROUNDS {
            let (prompt, before) = (text.cut(NARROW_PROMPT), carried.load(Ordering::Relaxed));
            let took = subject.ask(&prompt, 1).await.first;
            let sent = (carried.load(Ordering::Relaxed) - before) as f64;
            if round > 0 {
                bytes.push(sent / 1e6);
                over.push(took / (sent / f64::from(NARROW)));
            }
        }
        let name = wire.name();
        record(figures, &format!("narrow20_prefill1000_{name}_megabytes"), "", bytes);
        record(figures, &format!("narrow20_prefill1000_{name}_over_floor"), "", over);
    }
}
