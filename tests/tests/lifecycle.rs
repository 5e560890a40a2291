//! Shutdown and release of every handle, and isolation of nodes in one process.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use swarmllm_core::base::{ErrorKind, Event, LayerRange, ModelId};
use swarmllm_core::node::{Delta, GenerateOptions, GenerateRequest, Parts, Preset, Prompt};
use swarmllm_core::pipeline::host::stages::SLOT_WAIT;
use swarmllm_core::server::{ServerConfig, serve};
use swarmllm_tests::cluster::{
    Cluster, Member, SHUTDOWN_DEADLINE, Transport, answer, ask, await_plan, builder, greedy, join, stage_parts,
    unique_network,
};
use swarmllm_tests::models::TestModel;
use swarmllm_tests::slow_link::delayed;
use swarmllm_tests::{eventually, in_time};
use tempfile::TempDir;

const MODEL: TestModel = TestModel::SmolLm2;
const TEXT: &str = "The lighthouse keeper counted the ships again and found that";

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_is_idempotent_and_later_calls_return_closed() {
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    let id = member.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    let node = member.node.clone();
    in_time("a shutdown", async {
        tokio::join!(node.shutdown(SHUTDOWN_DEADLINE), node.shutdown(SHUTDOWN_DEADLINE));
        node.shutdown(SHUTDOWN_DEADLINE).await;
    })
    .await;
    let Err(error) = ask(&node, id, TEXT, 4).await else { panic!("a closed node takes no work") };
    assert_eq!(error.kind(), ErrorKind::Closed);
    assert_eq!(node.connect("/ip4/127.0.0.1/tcp/9").await.expect_err("closed").kind(), ErrorKind::Closed);
    assert_eq!(node.pull("smollm2", Parts::All, None).await.expect_err("closed").kind(), ErrorKind::Closed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_reconnects_to_its_peers() {
    let network = unique_network();
    for shut_down in [true, false] {
        let peer = Member::start(&network, Transport::Tcp).await;
        let member = Member::start(&network, Transport::Tcp).await;
        join(&member.node, &peer.node.addresses(), Transport::Tcp).await;
        let dir = match shut_down {
            true => member.stop().await,
            false => {
                // Long enough to store the peer; then the node is dropped without a shutdown.
                tokio::time::sleep(Duration::from_secs(2)).await;
                let Member { node, dir } = member;
                drop(node);
                dir
            }
        };
        let again = Member::start_on(dir, &network, Transport::Tcp).await;
        let found = || again.node.peers().iter().any(|found| found.id == peer.node.id() && found.connected);
        eventually("the peer is found without being named", found).await;
        again.stop().await;
        peer.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_ends_a_running_answer() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let mut generation = ask(cluster.node(), cluster.model, TEXT, 1900).await.expect("the swarm answers");
    assert!(matches!(generation.next().await, Some(Ok(Delta::Text(_)))), "the answer has started");
    in_time("a shutdown", cluster.node().shutdown(Duration::from_millis(100))).await;
    let error = in_time("the answer", generation.finish()).await.expect_err("it was cut off");
    assert_eq!(error.kind(), ErrorKind::Closed, "{error}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_a_generation_frees_remote_kv() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let busy = |count: u32| cluster.hosts.iter().all(|host| host.node.status().sessions == count);
    let mut generation = ask(cluster.node(), cluster.model, TEXT, 1900).await.expect("the swarm answers");
    assert!(matches!(generation.next().await, Some(Ok(Delta::Text(_)))), "the answer has started");
    assert!(busy(1), "every host has the session");
    drop(generation);
    eventually("every host has forgotten the session", || busy(0)).await;
    // A finished answer also frees its KV.
    answer(cluster.node(), cluster.model, TEXT, 4).await.expect("the swarm answers");
    eventually("every host has forgotten the session", || busy(0)).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_prompt_is_not_computed_further() {
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    answer(cluster.node(), cluster.model, TEXT, 1).await.expect("the stages are loaded");
    // Several chunks, all in flight at once.
    let (one, other) = ("ship ".repeat(1900), "lamp ".repeat(1900));
    let began = Instant::now();
    answer(cluster.node(), cluster.model, &one, 1).await.expect("the swarm answers");
    let whole = began.elapsed();
    let idle = || cluster.hosts.iter().all(|host| host.node.status().sessions == 0);
    eventually("every host has forgotten the session", idle).await;
    let dropped = ask(cluster.node(), cluster.model, &other, 1).await.expect("the swarm answers");
    tokio::time::sleep(whole / 8).await;
    assert!(!idle(), "the prompt is under way");
    drop(dropped);
    let began = Instant::now();
    eventually("every host has forgotten the session", idle).await;
    assert!(began.elapsed() < whole / 3, "{:?} of {whole:?}", began.elapsed());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_with_different_names_of_one_file_answer_together() {
    let network = unique_network();
    let (asker, host) = (Member::start(&network, Transport::Tcp).await, Member::start(&network, Transport::Tcp).await);
    let model = asker.import(&MODEL.path(), "Harbour", Parts::Coordinator).await;
    let all = Parts::Stage { layers: LayerRange::new(0, MODEL.layers()), head: true };
    assert_eq!(host.import(&MODEL.path(), "Lighthouse", all).await, model);
    join(&asker.node, &host.node.addresses(), Transport::Tcp).await;
    await_plan(&asker.node, model).await;
    for name in ["Harbour", "harb", "HARBOUR", &model.to_string()[..8]] {
        let prompt = Prompt::Text(TEXT.to_owned());
        let request = GenerateRequest { model: name.to_owned(), prompt, options: greedy(1) };
        let answer = in_time("an answer", asker.node.generate(request)).await.expect("a name of the model");
        assert!(answer.finish().await.is_ok(), "{name}");
    }
    // The host's alias is a suggested name here for a known model.
    assert_eq!(asker.node.resolve("lighthouse").expect("a peer's name"), model);
    let error = asker.node.resolve("harbor").expect_err("an unknown name");
    assert!(error.kind() == ErrorKind::ModelNotFound && error.to_string().contains("Harbour"), "{error}");
    asker.stop().await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_dropped_during_speculation_frees_its_stages() {
    const AWAY: Duration = Duration::from_millis(10);
    let network = unique_network();
    let coordinator = Member::start(&network, Transport::Tcp).await;
    let model = coordinator.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    let (cut, mut hosts) = (MODEL.cut(2), Vec::<Member>::new());
    for index in 0..cut.len() {
        let host = Member::start(&network, Transport::Tcp).await;
        host.import(&MODEL.path(), MODEL.name(), stage_parts(&cut, index)).await;
        let away = [delayed(&host.node.addresses()[0], AWAY)];
        for other in hosts.iter().chain([&coordinator]) {
            join(&other.node, &away, Transport::Tcp).await;
        }
        hosts.push(host);
    }
    await_plan(&coordinator.node, model).await;
    let request = || {
        let prompt = Prompt::Text("one two three four five six seven eight nine ten ".repeat(6));
        let options = GenerateOptions { exact: false, ..greedy(96) };
        GenerateRequest { model: model.to_string(), prompt, options }
    };
    let mut dropped = coordinator.node.generate(request()).await.expect("the swarm answers");
    for _ in 0..8 {
        assert!(matches!(dropped.next().await, Some(Ok(Delta::Text(_)))), "the answer continues");
    }
    drop(dropped);
    let idle = || hosts.iter().all(|host| host.node.status().sessions == 0);
    eventually("every host has forgotten the session", idle).await;
    let next = coordinator.node.generate(request()).await.expect("the swarm answers");
    let next = in_time("an answer", next.finish()).await.expect("the swarm answers");
    assert!(next.accepted_tokens > 0 && next.accepted_tokens <= next.draft_tokens, "{next:?}");
    for member in hosts.into_iter().chain([coordinator]) {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_answers_free_their_slots_for_the_next() {
    const MORE_THAN_SLOTS: usize = 24;
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    for _ in 0..MORE_THAN_SLOTS {
        let mut generation = ask(cluster.node(), cluster.model, TEXT, 1900).await.expect("no slot is lost");
        assert!(matches!(generation.next().await, Some(Ok(Delta::Text(_)))), "the answer has started");
    }
    cluster.stop().await;
}

/// The connection of a request for a stream.
fn stream_over_http(address: SocketAddr, model: ModelId) -> TcpStream {
    let messages = serde_json::json!([{"role": "user", "content": "How many ships?"}]);
    let body = serde_json::json!({"model": model.to_string(), "messages": messages, "max_tokens": 3, "stream": true});
    let body = body.to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json";
    let request = format!("{head}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let mut stream = TcpStream::connect(address).expect("the server listens");
    stream.write_all(request.as_bytes()).expect("the server takes the request");
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_waits_for_a_slot_as_long_as_its_caller() {
    const SLOTS: usize = 4;
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let mut under_way = Vec::new();
    for _ in 0..SLOTS {
        under_way.push(ask(cluster.node(), cluster.model, TEXT, 1900).await.expect("the swarm answers"));
    }
    let config = ServerConfig { listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))], ..ServerConfig::default() };
    let server = serve(cluster.node().clone(), config).expect("the server starts");
    let mut stream = stream_over_http(server.addresses()[0], cluster.model);
    eventually("the request waits", || cluster.node().status().waiting == 1).await;
    // A request ends at its deadline; a dropped one leaves the queue.
    let late = GenerateOptions { deadline: Some(Duration::from_millis(50)), ..greedy(3) };
    let prompt = Prompt::Text(TEXT.to_owned());
    let request = GenerateRequest { model: cluster.model.to_string(), prompt, options: late };
    let Err(late) = cluster.node().generate(request).await else { panic!("no slot is free") };
    assert_eq!(late.kind(), ErrorKind::Timeout, "{late}");
    drop(tokio::time::timeout(Duration::from_millis(50), ask(cluster.node(), cluster.model, TEXT, 3)).await);
    eventually("only the first waits", || cluster.node().status().waiting == 1).await;
    // By then hosts have reported that they are full, and the node has retried.
    tokio::time::sleep(SLOT_WAIT + Duration::from_secs(1)).await;
    stream.set_nonblocking(true).expect("an option of the socket");
    let said = stream.read(&mut [0; 64]).map_err(|error| error.kind());
    assert_eq!(said, Err(std::io::ErrorKind::WouldBlock), "no byte is sent before a slot is free");
    under_way.pop();
    let answer = tokio::task::spawn_blocking(move || {
        stream.set_nonblocking(false).expect("an option of the socket");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    });
    let answer = in_time("an answer", answer).await.expect("no panic").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("[DONE]"), "{answer}");
    assert_eq!(cluster.node().status().waiting, 0);
    drop(under_way);
    server.shutdown(SHUTDOWN_DEADLINE).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_answer_completes_and_frees_its_slots() {
    const TOKENS: u32 = 100;
    let cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let unread = ask(cluster.node(), cluster.model, TEXT, TOKENS).await.expect("the swarm answers");
    let idle = || cluster.hosts.iter().all(|host| host.node.status().sessions == 0);
    eventually("every host has forgotten the session", idle).await;
    let whole = in_time("an answer", unread.finish()).await.expect("it was kept");
    assert_eq!(whole.completion_tokens, TOKENS);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_cancelled_during_prefix_reuse_leaves_a_usable_slot() {
    let member = Member::start(&unique_network(), Transport::Tcp).await;
    let model = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&member.node, model).await;
    let request = |text: String, deadline| {
        let options = GenerateOptions { exact: false, deadline, ..greedy(3) };
        GenerateRequest { model: model.to_string(), prompt: Prompt::Text(text), options }
    };
    let known = || "one two three four five six seven eight nine ten ".repeat(8);
    let answer = |text: String| async {
        let generation = member.node.generate(request(text, None)).await.expect("the swarm answers");
        in_time("an answer", generation.finish()).await
    };
    let idle = || member.node.status().sessions == 0;
    let mut given_up = 0;
    // How long the chunk ahead takes is the machine's affair: the shortest patience ends on any, the longest
    // where the cut-back waits for its turn on a slow one.
    for patience in [5, 20, 60, 150] {
        assert_eq!(answer(known()).await.expect("an answer whose KV is kept").completion_tokens, 3);
        eventually("the node is idle", idle).await;
        // The stage computes a long chunk, after which the slot's KV would be truncated to the prefix.
        let busy = member.node.generate(request("word ".repeat(1500), None)).await.expect("the swarm answers");
        let known_and_more = format!("{} and on", known());
        let impatient = request(known_and_more, Some(Duration::from_millis(patience)));
        let ended = match member.node.generate(impatient).await {
            Ok(generation) => generation.finish().await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
            given_up += 1;
        }
        drop(busy);
        eventually("the node is idle", idle).await;
        for text in ["alpha ", "beta ", "gamma ", "delta "] {
            assert_eq!(answer(text.repeat(40)).await.expect("a slot that is fit for use").completion_tokens, 3);
        }
    }
    assert!(given_up > 0, "three tokens came within 5 ms");
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_release_the_sessions_of_a_lost_coordinator() {
    let mut cluster = Cluster::start(MODEL, Transport::Tcp, 2).await;
    let mut generation = ask(cluster.node(), cluster.model, TEXT, 1900).await.expect("the swarm answers");
    assert!(matches!(generation.next().await, Some(Ok(Delta::Text(_)))), "the answer has started");
    let hosts = std::mem::take(&mut cluster.hosts);
    cluster.stop().await;
    eventually("no host has a session", || hosts.iter().all(|host| host.node.status().sessions == 0)).await;
    for host in hosts {
        host.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_in_one_process_share_nothing() {
    let (network, other) = (unique_network(), unique_network());
    let one = Member::start(&network, Transport::Tcp).await;
    let two = Member::start(&other, Transport::Quic).await;
    let mut news = two.node.events();
    one.import(&MODEL.path(), MODEL.name(), Parts::Coordinator).await;
    assert_ne!(one.node.id(), two.node.id());
    assert!(!one.node.models().is_empty() && two.node.models().is_empty(), "models are not shared between nodes");
    assert!(one.node.peers().is_empty() && two.node.peers().is_empty(), "they are not connected");
    one.stop().await;
    assert_eq!(two.node.status().network, other);
    let about_models = async {
        loop {
            match news.next().await {
                Some(Event::Listening { .. }) => {}
                event => return event,
            }
        }
    };
    let heard = tokio::time::timeout(Duration::from_millis(200), about_models).await;
    assert!(heard.is_err(), "an event of one node reached the other: {heard:?}");
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_node_keeps_its_id_and_shards() {
    let layers = LayerRange::new(10, 20);
    let network = unique_network();
    let member = Member::start(&network, Transport::Tcp).await;
    let id = member.node.id();
    let model = member.import(&MODEL.path(), MODEL.name(), Parts::Stage { layers, head: false }).await;
    let dir = member.stop().await;
    let member = Member::start_on(dir, &network, Transport::Tcp).await;
    assert_eq!(member.node.id(), id);
    let models = member.node.models();
    assert_eq!(models.len(), 1);
    assert_eq!((models[0].id, models[0].held.as_slice(), models[0].has_head), (model, [layers].as_slice(), false));
    assert_eq!(models[0].name, MODEL.name());
    member.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_last_handle_releases_the_directory() {
    let network = unique_network();
    let Member { node, dir } = Member::start(&network, Transport::Tcp).await;
    let clone = node.clone();
    drop(node);
    assert!(builder(dir.path(), &network, Transport::Tcp).start().await.is_err(), "a clone keeps the node alive");
    drop(clone);
    let start = std::time::Instant::now();
    let node = loop {
        match builder(dir.path(), &network, Transport::Tcp).start().await {
            Ok(node) => break node,
            Err(error) => {
                assert!(start.elapsed() < swarmllm_tests::TIMEOUT, "the directory was not released: {error}")
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    node.shutdown(SHUTDOWN_DEADLINE).await;
}

#[test]
fn a_thread_without_a_runtime_can_start_and_drop_a_node() {
    let dir = TempDir::new().expect("a temporary directory");
    let node = builder(dir.path(), &unique_network(), Transport::Tcp).start_blocking().expect("a node starts");
    assert!(!node.addresses().is_empty());
    node.runtime().block_on(node.shutdown(SHUTDOWN_DEADLINE));
    drop(node);
    let offline = builder(dir.path(), &unique_network(), Transport::Tcp).preset(Preset::Offline).start_blocking();
    let offline = offline.expect("a node starts");
    assert!(offline.peers().is_empty());
    drop(offline);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offline_node_answers_without_opening_a_port() {
    let dir = TempDir::new().expect("a temporary directory");
    let node = builder(dir.path(), &unique_network(), Transport::Tcp).preset(Preset::Offline).listen(Vec::new());
    let member = Member { node: node.start().await.expect("a node starts"), dir };
    let id = member.import(&MODEL.path(), MODEL.name(), Parts::All).await;
    await_plan(&member.node, id).await;
    assert!(member.node.addresses().is_empty(), "{:?}", member.node.addresses());
    assert_eq!(answer(&member.node, id, TEXT, 8).await.expect("it answers alone").completion_tokens, 8);
    member.stop().await;
}

/// Threads and descriptors of this process, if the system reports them.
fn resources() -> Option<(usize, usize)> {
    let count = |dir: &str| std::fs::read_dir(dir).ok().map(Iterator::count);
    Some((count("/proc/self/task")?, count("/proc/self/fd")?))
}

#[test]
fn a_hundred_restarts_leak_no_thread_or_descriptor() {
    const WARM: u32 = 5;
    const CYCLES: u32 = 100;
    let dir = TempDir::new().expect("a temporary directory");
    let cycle = || {
        let node = builder(dir.path(), &unique_network(), Transport::Tcp).start_blocking().expect("a node starts");
        node.runtime().block_on(node.shutdown(SHUTDOWN_DEADLINE));
    };
    (0..WARM).for_each(|_| cycle());
    let before = resources();
    (0..CYCLES).for_each(|_| cycle());
    let settled = || match (before, resources()) {
        (Some(before), Some(after)) => after.0 <= before.0 + 2 && after.1 <= before.1 + 2,
        _ => true,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(eventually("threads and descriptors are as before", settled));
}
