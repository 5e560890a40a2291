//! Nodes that are far from each other, or that a narrow line joins.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use swarmllm_core::base::ModelId;
use swarmllm_core::node::{Codec, ImportOptions, Node, Parts};
use swarmllm_tests::cluster::{Carrier, Member, await_plan, join, lonely_network, stage_parts};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::relay::{counted, delayed};

use crate::asked::{Asked, Text, node, start};
use crate::own::edited;
use crate::{Figures, SHORT, tell, threads};

/// One-way delays between nodes that are far from each other, in milliseconds, and the stages of a chain over them, of
/// which the asking node has the first.
const DELAYS: [u64; 5] = [0, 5, 10, 20, 50];
const CHAINS: [u32; 2] = [2, 3];
/// Rounds of each, and tokens of an answer: a token of the longest takes 160 ms.
const FAR_ROUNDS: usize = 3;
const FAR_DECODE: u32 = 48;

/// A chain whose first stage is at the node that is asked; `line` says how an address is reached, and `awake` whether its
/// nodes keep their cores awake.
pub async fn chain(
    model: TestModel,
    stages: u32,
    awake: bool,
    line: impl Fn(&str) -> String,
) -> (Vec<Member>, ModelId) {
    let network = lonely_network();
    let cut = model.cut(stages);
    let node = async || start(&network, |builder| builder.keep_awake(awake)).await;
    let asked = node().await;
    let id = hold_first(&asked.node, model, stages).await;
    let mut members = vec![asked];
    for index in 1..cut.len() {
        let host = node().await;
        host.import(&model.path(), model.name(), stage_parts(&cut, index)).await;
        for other in &members {
            join(&other.node, &[line(&host.node.addresses()[0])], Carrier::Tcp).await;
        }
        members.push(host);
    }
    await_plan(&members[0].node, id).await;
    (members, id)
}

/// Gives a node what it needs to ask a chain of which it has the first stage.
pub async fn hold_first(node: &Node, model: TestModel, stages: u32) -> ModelId {
    let parts = vec![Parts::Coordinator, stage_parts(&model.cut(stages), 0)];
    let options = ImportOptions { name: Some(model.name().to_owned()), parts: Some(parts), ..ImportOptions::default() };
    node.import(&model.path(), options).await.expect("a sound GGUF is imported").id
}

/// What a token takes over a chain of nodes that are far from each other, over what it takes on one node and one way for each
/// stage takes.
async fn over_floor(one: &Asked, distant: &Asked, ways: Duration, text: &mut Text) -> Vec<f64> {
    let mut over = Vec::new();
    for round in 0..=FAR_ROUNDS {
        let prompt = text.cut(SHORT);
        let (near, apart) = (one.ask(&prompt, FAR_DECODE).await, distant.ask(&prompt, FAR_DECODE).await);
        let floor = near.token() + ways.as_secs_f64();
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

/// Tokens over chains of nodes that are far from each other, with cores that sleep between them and with cores that are kept
/// awake; and what guesses bring there.
pub async fn far(model: TestModel, text: &mut Text, figures: &mut Figures) {
    let one = node(&lonely_network(), threads()).await;
    let id = one.import(&model.path(), model.name(), Parts::All).await;
    await_plan(&one.node, id).await;
    let one = Asked::of(&one.node, id);
    for stages in CHAINS {
        for delay in DELAYS {
            let way = Duration::from_millis(delay);
            let line = |address: &str| if delay == 0 { address.to_owned() } else { delayed(address, way) };
            for (awake, suffix, goal) in [(false, "_cores_asleep", ""), (true, "", "<= 1.05 and 1 ms")] {
                let (members, id) = chain(model, stages, awake, line).await;
                let distant = Asked::of(&members[0].node, id);
                let name = format!("wan{delay}_s{stages}_over_floor{suffix}");
                tell(figures, &name, goal, over_floor(&one, &distant, way * stages, text).await);
                if (stages, delay, awake) == (2, 10, false) {
                    tell(figures, "wan10_s2_ngram_edit_speedup", ">= 2", edited(&distant).await);
                }
            }
        }
    }
}

/// A narrow line, in bytes a second: 20 Mbit/s. Tokens of a prompt that goes over it.
const NARROW: u32 = 20_000_000 / 8;
const NARROW_PROMPT: usize = 1000;

/// A prompt whose states go from one stage to the next over a narrow line, as they are and rounded: the bytes it takes, and
/// the time over what the line takes for them.
pub async fn narrow(model: TestModel, text: &mut Text, figures: &mut Figures) {
    let carried = Arc::new(AtomicU64::new(0));
    let (members, id) = chain(model, 2, false, |address| counted(address, NARROW, &carried)).await;
    for wire in [Codec::F32, Codec::Bf16, Codec::Int8] {
        let asked = Asked::of(&members[0].node, id).with(|options| options.wire = wire);
        let (mut bytes, mut over) = (Vec::new(), Vec::new());
        for round in 0..=FAR_ROUNDS {
            let (prompt, before) = (text.cut(NARROW_PROMPT), carried.load(Ordering::Relaxed));
            let took = asked.ask(&prompt, 1).await.first;
            let sent = (carried.load(Ordering::Relaxed) - before) as f64;
            if round > 0 {
                bytes.push(sent / 1e6);
                over.push(took / (sent / f64::from(NARROW)));
            }
        }
        let name = wire.name();
        tell(figures, &format!("narrow20_prefill1000_{name}_megabytes"), "", bytes);
        tell(figures, &format!("narrow20_prefill1000_{name}_over_floor"), "", over);
    }
}
