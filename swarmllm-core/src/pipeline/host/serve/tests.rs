//! The opening of stages, and the reports of their end to the coordinator.

use futures::FutureExt;
use tokio::time::timeout;

use super::*;
use crate::pipeline::host::stages::tests::Bench;
use crate::pipeline::link::router::SESSION_QUEUE;
use crate::wire::codec::Codec;
use crate::wire::control::{Host, SESSION_NONCE_BYTES, session_id};
use crate::wire::job::RowOutput;

/// The host, which coordinates the session too.
const NODE: NodeId = NodeId([1; 32]);
/// Longer than the test waits.
const LONG: Duration = Duration::from_secs(60);

/// A request for a standby of a session's second stage.
fn open(bench: &Bench) -> OpenSession {
    let (key, host) = (bench.key(), || Host { node: NODE, addresses: Vec::new() });
    OpenSession {
        session: session_id(NODE, [7; SESSION_NONCE_BYTES]),
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
        is_standby: true,
        coordinator: host(),
        previous: NODE,
    }
}

#[tokio::test]
async fn a_stage_beyond_the_longest_route_is_not_opened() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let (router, bench) = (SessionRouter::new(NODE, None, tasks.clone()), Bench::new(1, 64, 1 << 20));
    let server = StageServer::new(bench.table.clone(), router, Balances::new(None), tasks);
    let opens =
        async |stage| server.open(NODE, OpenSession { stage, ..open(&bench) }).await.err().map(|fault| fault.kind());
    assert_eq!(opens(MAX_STAGES as u32).await, Some(ErrorKind::InvalidArgument));
    assert_eq!(opens(u32::MAX).await, Some(ErrorKind::InvalidArgument));
    assert_eq!(opens(MAX_STAGES as u32 - 1).await, None);
}

#[tokio::test]
async fn the_end_of_a_lagging_standby_is_reported_to_its_coordinator() {
    let tasks = TaskSet::new(tokio::runtime::Handle::current());
    let (router, bench) = (SessionRouter::new(NODE, None, tasks.clone()), Bench::new(1, 64, 1 << 20));
    let server = StageServer::new(bench.table.clone(), router.clone(), Balances::new(None), tasks);
    let open = open(&bench);
    let session = open.session;
    let mut answers = router.register_coordinator(session);
    let width = server.open(NODE, open).await.unwrap().width;
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
            want: RowOutput::State,
            committed: step + 1,
            compute_us: Vec::new(),
        };
        Message::Step { header, hidden: vec![0.0; width as usize] }
    };
    // The session's task reads none of them before the queue overflows.
    (0..=SESSION_QUEUE as u32).for_each(|number| router.deliver(NODE, step(number)));
    match timeout(LONG, answers.next()).await.expect("the end is not reported") {
        Some((NODE, Message::Failed { epoch: 3, stage: 1, fault, .. })) => {
            assert_eq!(fault.kind(), ErrorKind::Overloaded, "{fault}");
        }
        other => panic!("{other:?}"),
    }
    assert!(answers.next().now_or_never().is_none(), "one report");
}
