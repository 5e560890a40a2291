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

/// The second stage of a session, which follows.
fn open(bench: &Bench) -> OpenSession {
    let (key, host) = (bench.key(), || Host { node: NODE, addresses: Vec::new() });
    OpenSession {
        session: session_id(NODE, [7; SESSION_CHANCE]),
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
    }
}

#[tokio::test]
async fn a_stage_beyond_the_longest_route_is_not_opened() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let (links, bench) = (Links::new(NODE, None, tasks.clone()), Bench::new(1, 64, 1 << 20));
    let serving = Serving::new(bench.table.clone(), links, Tabs::new(None), tasks);
    let opens =
        async |stage| serving.open(NODE, OpenSession { stage, ..open(&bench) }).await.err().map(|fault| fault.kind());
    assert_eq!(opens(MAX_STAGES as u32).await, Some(ErrorKind::InvalidArgument));
    assert_eq!(opens(u32::MAX).await, Some(ErrorKind::InvalidArgument));
    assert_eq!(opens(MAX_STAGES as u32 - 1).await, None);
}

#[tokio::test]
async fn the_coordinator_of_a_stand_by_that_lags_too_far_behind_is_told_that_it_follows_no_more() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let (links, bench) = (Links::new(NODE, None, tasks.clone()), Bench::new(1, 64, 1 << 20));
    let serving = Serving::new(bench.table.clone(), links.clone(), Tabs::new(None), tasks);
    let open = open(&bench);
    let session = open.session;
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
