//! What the coordinator of a session hears of its end at a host.

use futures::FutureExt;
use tokio::time::timeout;

use super::*;
use crate::pipeline::links::SESSION_QUEUE;
use crate::pipeline::stages::tests::Bench;
use crate::wire::codec::Codec;
use crate::wire::control::{Host, SESSION_CHANCE, session_id};
use crate::wire::job::Want;

/// The host, which coordinates the session too.
const NODE: NodeId = NodeId([1; 32]);
/// Longer than the test waits.
const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn the_coordinator_of_a_stand_by_that_lags_too_far_behind_is_told_that_it_follows_no_more() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let (links, bench) = (Links::new(NODE, None, tasks.clone()), Bench::new(1, 64, 1 << 20));
    let serving = Serving::new(bench.table.clone(), links.clone(), Tabs::new(None), tasks);
    let (session, key) = (session_id(NODE, [7; SESSION_CHANCE]), bench.key());
    let host = || Host { node: NODE, addresses: Vec::new() };
    let open = OpenSession {
        session,
        epoch: 3,
        model: key.model,
        engine: key.engine,
        layers: key.layers,
        head: key.head,
        stage: 1,
        context: 64,
        least: 1,
        exact: false,
        prefix: Prefix::default(),
        next: host(),
        copy: None,
        stands_by: true,
        coordinator: host(),
        previous: NODE,
    };
    let mut told = links.register_coordinator(session);
    let width = serving.open(NODE, open).await.unwrap().width;
    let step = |step| {
        let header = StepHeader {
            session,
            epoch: 3,
            stage: 1,
            step,
            pos: step,
            rows: 1,
            width,
            codec: Codec::F32,
            want_from: 0,
            want: Want::State,
            certain: step + 1,
            compute_us: Vec::new(),
        };
        Message::Step { header, hidden: vec![0.0; width as usize] }
    };
    // The session's task reads none of them before they are too many.
    (0..=SESSION_QUEUE as u32).for_each(|number| links.deliver(NODE, step(number)));
    match timeout(LONG, told.next()).await.expect("nobody is told") {
        Some((NODE, Message::Failed { epoch: 3, stage: 1, fault, .. })) => {
            assert_eq!(fault.kind(), ErrorKind::Overloaded, "{fault}");
        }
        other => panic!("{other:?}"),
    }
    assert!(told.next().now_or_never().is_none(), "it is told once");
}
